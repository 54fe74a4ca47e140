"""chat template from outside, messages -> text, within a time limit.

``transformers`` runs templates in Jinja's sandbox, which keeps them from attributes that lead out of it, but
not from loops inside loops that no one would see the end of.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ngdiff.system.outside import first_line

MOST_SECONDS = 10.0
"""For one conversation; an honest template takes a thousandth of a second."""


class TemplateFault(Exception):
    """A chat template that refuses the messages, fails on them, or (``endless``) does not end."""

    def __init__(self, what: str, endless: bool = False) -> None:
        super().__init__(what)
        self.endless = endless


class _OutOfTime(BaseException):
    """Apart from ``Exception``, so that no handler on the way takes it for its own."""


def render(tokenizer: Any, turns: Sequence[dict[str, str]], answer_next: bool = False) -> str:
    """Render a conversation with the tokenizer's chat template.

    Raises:
        TemplateFault: the template raises something, or takes longer than :data:`MOST_SECONDS` (which is
            noticed in the main thread of a process only).
    """
    try:
        with _time_limit(MOST_SECONDS):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    except _OutOfTime:
        raise TemplateFault(f"does not end within {MOST_SECONDS:g} s", endless=True) from None
    except Exception as error:  # a template is a program: it can raise anything
        raise TemplateFault(f"refuses the messages ({first_line(error)})") from error
    if not isinstance(text, str):
        raise TemplateFault("gives no text")
    return text


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
