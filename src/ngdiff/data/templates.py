"""untrusted chat template and messages -> text, within a time limit.

``transformers`` runs templates in Jinja's sandbox, which blocks attributes that lead out of it, but not
nested loops that practically never end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ngdiff.system.untrusted import OutOfTime, first_line, time_limit

MOST_SECONDS = 10.0
"""Limit for one conversation; an ordinary template takes a thousandth of a second."""
MOST_ADDED = 100_000
"""Characters that a template may add to the messages, which it may repeat once."""


class TemplateFault(Exception):
    """A chat template that refuses the messages, fails on them, or (``endless``) does not end."""

    def __init__(self, what: str, endless: bool = False) -> None:
        super().__init__(what)
        self.endless = endless


def render(tokenizer: Any, turns: Sequence[dict[str, str]], answer_next: bool = False) -> str:
    """Render a conversation with the tokenizer's chat template.

    Raises:
        TemplateFault: the template raises something, takes longer than :data:`MOST_SECONDS` (detected only in
            the main thread of a process), or outputs far more than it was given.
    """
    try:
        with time_limit(MOST_SECONDS):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    except OutOfTime:
        raise TemplateFault(f"does not end within {MOST_SECONDS:g} s", endless=True) from None
    except Exception as error:  # a template is a program: it can raise anything
        raise TemplateFault(f"refuses the messages ({first_line(error)})") from error
    if not isinstance(text, str):
        raise TemplateFault("gives no text")
    said = sum(len(turn["content"]) for turn in turns)
    if len(text) > 2 * said + MOST_ADDED:
        raise TemplateFault(f"outputs {len(text)} characters for messages of {said}", endless=True)
    return text
