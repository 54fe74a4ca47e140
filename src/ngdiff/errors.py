"""What is wrong with a request -> one exception that carries every fault found."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request.

    Args:
        where: the setting, file and row concerned, such as ``forget.jsonl, row 3`` or ``--rule``.
        what: what was found, as a sentence without a full stop.
        fix: what the user can do about it, as a sentence without a full stop, or a question with its mark.
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {ended(self.fix)}"


class RequestError(ValueError):
    """A request that cannot be carried out, with all faults found in it (never empty)."""

    def __init__(self, faults: Fault | Sequence[Fault]) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        if not self.faults:
            raise ValueError("a RequestError needs at least one fault")
        super().__init__("\n".join(str(fault) for fault in self.faults))


class Faults(list[Fault]):
    """Faults found so far in one request, so that all of them can be reported together."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the faults of a RequestError that the block raises, which ends the block only."""
        try:
            yield
        except RequestError as error:
            self.extend(error.faults)

    def attempt(self, work: Callable[[], T], otherwise: T) -> T:
        """Return what ``work`` returns, or ``otherwise`` where it raises a RequestError."""
        with self.collecting():
            return work()
        return otherwise

    def raise_any(self) -> None:
        """Raise the faults found, each once.

        Raises:
            RequestError: there are any.
        """
        if self:
            raise RequestError(list(dict.fromkeys(self)))


def nearest_names(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.4) -> list[str]:
    """Return up to ``count`` known names that resemble ``name``, best first.

    ``cutoff`` is the minimum similarity, from 0 to 1.
    """
    return difflib.get_close_matches(name.lower(), list(known), n=count, cutoff=cutoff)


def unknown_name(where: str, kind: str, name: str, known: Iterable[str]) -> Fault:
    """Build the fault for a name that no table has, with the nearest names that exist."""
    names = sorted(known)
    near = nearest_names(name, names)
    fix = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}"
    return Fault(where, f"there is no {kind} called {name!r}", fix)


class EvaluationError(RuntimeError):
    """A model that cannot be evaluated, such as one with an infinite likelihood; it names the item."""


class RunError(RuntimeError):
    """A valid request whose run could not continue or be saved; the message says what to do."""


class Interrupted(RunError):
    """A run that stopped because it was asked to.

    Args:
        signum: the signal that asked.
        step: optimizer steps done; None where several runs were stopped.
        checkpoint: the step of the newest checkpoint; None where there is none.
    """

    def __init__(self, signum: int, step: int | None = None, checkpoint: int | None = None) -> None:
        self.signum, self.step, self.checkpoint = signum, step, checkpoint
        kept = "no checkpoint could be written" if checkpoint is None else f"checkpoint at step {checkpoint}"
        super().__init__(f"stopped after step {step}; {kept}")


def printable(text: str) -> str:
    """Put external text on one line and escape control characters, so that no terminal acts on them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.splitlines()))


def ended(text: str) -> str:
    """Return a sentence with its full stop; a question has its own mark."""
    return text if text.endswith("?") else f"{text}."


def inert(text: str) -> str:
    """Do the same, and drop the final full stop, which is added where the sentence is shown."""
    return printable(text).rstrip(".")
