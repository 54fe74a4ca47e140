"""request and loaded model -> the run's own folder, locked for it, and the request's hash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from ngdiff.runs.signals import StopWish, wish_to_stop
from ngdiff.runs.workplace import Asked, Workplace
from ngdiff.system.environment import weights_hash
from ngdiff.system.output import check_output
from ngdiff.system.processes import by_main, from_main, is_main, on_all, raise_faults


class Writes(Protocol):
    """What a request says of its output."""

    @property
    def output(self) -> Path:
        """The folder of the result."""

    @property
    def overwrite(self) -> bool:
        """Whether an earlier result may be replaced, and another request's unfinished run dropped."""

    @property
    def resume(self) -> bool | None:
        """True: resume or fail; False: start over; None: resume where that is possible."""


@dataclass(frozen=True)
class Reservation:
    """A run that is ready to begin.

    Args:
        asked: the request, with the hash of the model's weights.
        going_on: whether there is a checkpoint to resume from.
        wish: tells the trainer when it is asked to stop.
    """

    asked: Asked
    going_on: bool
    wish: StopWish


def may_replace(request: Writes) -> bool:
    """Return whether an earlier result may be replaced, by this request or by the run that it resumes."""
    return request.overwrite or (request.resume is not False and Workplace(request.output).may_replace)


@contextmanager
def reserved(
    place: Workplace, request: Writes, asked: Asked, model: nn.Module, needed: int
) -> Iterator[Reservation]:
    """Check again whether the result can be written, and lock the run's folder while the block runs.

    Args:
        place: where the run works.
        request: what it says about its output.
        asked: the request, its model not hashed yet.
        model: as loaded, without adapters.
        needed: most bytes that the run writes.

    Raises:
        RequestError: there is not enough space; another process is at work; or see :meth:`Workplace.goes_on`.
    """
    on_all(lambda: raise_faults(check_output(request.output, may_replace(request), needed)))
    # with FSDP2 the first process alone may have read the weights
    hashed = replace(asked, model=from_main(weights_hash(model) if is_main() else ""))
    reserve = partial(place.reserved, hashed, resume=request.resume, overwrite=request.overwrite)
    with by_main(reserve) as going_on, wish_to_stop() as wish:
        yield Reservation(hashed, going_on, wish)
