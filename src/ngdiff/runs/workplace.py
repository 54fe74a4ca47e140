"""an output folder -> the folder beside it in which its run works, and which survives the process.

``OUT`` itself appears only when the result is complete. Until then everything is in ``.OUT.unfinished``: the
request (``run.json``), the checkpoints (``run``), and the result while it is being written (``result``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.runs.checkpoints import checkpoints, tidy
from ngdiff.runs.signals import StopWish, wish_to_stop
from ngdiff.settings.identity import NOT_COUNTED, request_hash
from ngdiff.system.environment import weights_hash
from ngdiff.system.lock import LOCK_FILE, take, unwritable
from ngdiff.system.output import check_output, in_the_way, sync_file, sync_folder, write_json
from ngdiff.system.processes import by_main, from_main, is_main, on_all, raise_faults
from ngdiff.system.progress import console

ASKED_FILE, FINISHED_FILE = "run.json", "finished.json"
SHORT = 12


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do.

    Args:
        settings: as the record keeps them.
        data: SHA-256 of each data set, by its role.
        model: SHA-256 of the starting model's weights; None while it is not known yet.
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    model: str | None

    @property
    def sha256(self) -> str:
        """The hash that names the request."""
        return request_hash(self.settings, self.data, self.model or "")

    def differences(self, now: Asked) -> list[str]:
        """List how the request ``now`` differs from this one; a model not known yet is not compared."""
        found = []
        for name in sorted({*self.settings, *now.settings} - NOT_COUNTED):
            then, value = self.settings.get(name), now.settings.get(name)
            if then != value:
                found.append(f"{name} was {_shown(then)}, now it is {_shown(value)}")
        for role in sorted({*self.data, *now.data}):
            then, value = self.data.get(role), now.data.get(role)
            if then != value:
                found.append(f"the {role} set changed (SHA-256 {_short(then)}, now {_short(value)})")
        if now.model is not None and self.model != now.model:
            found.append(f"the model changed (SHA-256 {_short(self.model)}, now {_short(now.model)})")
        return found


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:SHORT]}…"


class Workplace:
    """The folder in which the run for one output folder works."""

    def __init__(self, output: Path) -> None:
        self.output = _followed(output)
        self.folder = self.output.parent / f".{self.output.name}.unfinished"
        self.run, self.result, self._old = (self.folder / name for name in ("run", "result", "old"))
        self.unguarded: str | None = None
        """Why another process may also be at work here, where that cannot be known; for the record."""

    # ---- the unfinished run ----

    @property
    def begun(self) -> Asked | None:
        """The request of the unfinished run in this folder; None where there is none.

        A folder without a request was left by a process that was killed between two runs, and is reused.

        Raises:
            RequestError: there are checkpoints, but the file with their request is damaged.
        """
        try:
            kept = json.loads((self.folder / ASKED_FILE).read_text(encoding="utf-8"))
            return Asked(dict(kept["settings"]), dict(kept["data"]), kept["model"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = type(error).__name__
        if not checkpoints(self.run):
            return None
        what = f"{ASKED_FILE} in {self.folder} is damaged ({why}), so the request of the run there is unknown"
        raise RequestError(Fault("--output", what, "Delete that folder, or give --no-resume to start over"))

    @property
    def may_replace(self) -> bool:
        """Whether the unfinished run in this folder was allowed to replace an earlier result."""
        return self._said_overwrite(ASKED_FILE)

    def _said_overwrite(self, name: str) -> bool:
        try:
            kept = json.loads((self.folder / name).read_text(encoding="utf-8"))
            return bool(kept["overwrite"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def goes_on(self, asked: Asked, *, resume: bool | None, overwrite: bool) -> bool:
        """Decide whether to resume the run in this folder or to start over; writes nothing.

        Args:
            asked: the request now.
            resume: True: resume or fail; False: start over; None: resume where that is possible.
            overwrite: whether another request's unfinished run may be dropped.

        Raises:
            RequestError: neither is possible.
        """
        if resume is False:
            return False
        begun = self.begun
        if begun is None:
            if resume:
                what = f"there is no unfinished run for {self.output}"
                raise RequestError(Fault("--resume", what, "Omit --resume to start one"))
            return False
        different = begun.differences(asked)
        if not different:
            return True
        if overwrite and resume is None:
            return False
        what = f"an unfinished run of another request lies in {self.folder}: {'; '.join(different)}"
        fix = "Repeat that request to resume it, or give --overwrite to discard it and start over"
        raise RequestError(Fault("--resume" if resume else "--output", what, fix))

    # ---- working in it ----

    @contextmanager
    def reserved(self, asked: Asked, *, resume: bool | None, overwrite: bool) -> Iterator[bool]:
        """Lock out other processes, and yield whether there is a checkpoint to resume from.

        When the block fails, checkpoints are kept for the next time; without any, the folder is deleted.

        Raises:
            RequestError: see :meth:`goes_on`; or another process is at work here.
        """
        self.goes_on(asked, resume=resume, overwrite=overwrite)  # before anything is written
        lock, self.unguarded = take(self.folder, self.output)
        try:
            going_on = self.goes_on(asked, resume=resume, overwrite=overwrite)
            if not going_on and checkpoints(self.run) and not (self.folder / ASKED_FILE).exists():
                text = f"The checkpoints in {self.run} belong to no known request and are deleted."
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._make_ready(asked, going_on, overwrite)
            if going_on and not checkpoints(self.run):
                console.print("The interrupted run had no checkpoint yet: it starts from the beginning.")
            yield going_on and bool(checkpoints(self.run))
        except BaseException:
            if (self.folder / FINISHED_FILE).exists():
                pass  # the result waits to be moved into place
            elif checkpoints(self.run):
                text = f"The unfinished run is kept in {self.folder}: the same command resumes it."
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            lock.release()
            with suppress(OSError):  # where the system keeps a locked file until its lock is released
                self.folder.rmdir()

    def _make_ready(self, asked: Asked, going_on: bool, overwrite: bool) -> None:
        kept = {**_as_json(asked), "overwrite": overwrite or (going_on and self.may_replace)}
        try:
            self._empty(going_on)
            write_json(kept, self.folder / ASKED_FILE)
        except OSError as error:
            raise RequestError(unwritable(self.folder, error)) from error

    def _empty(self, going_on: bool) -> None:
        self._put_back()
        if not going_on:  # first, so that a kill leaves nothing that looks like a run to resume
            (self.folder / ASKED_FILE).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name == LOCK_FILE or (going_on and path.name in (ASKED_FILE, self.run.name)):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.run.mkdir(exist_ok=True)
        tidy(self.run)
        # left by a killed process; a checkpoint has its own
        for best in self.run.glob(".best-*"):
            shutil.rmtree(best, ignore_errors=True)
        for starting in self.run.glob(".starting_*"):
            starting.unlink()

    # ---- the end ----

    def finish(self) -> None:
        """Move the complete result into place; :meth:`settle` completes this after a kill."""
        for path in self.result.rglob("*"):
            sync_folder(path) if path.is_dir() else sync_file(path)
        sync_folder(self.result)
        (self.folder / ASKED_FILE).rename(self.folder / FINISHED_FILE)
        sync_folder(self.folder)
        self.settle()

    def settle(self, overwrite: bool = False) -> bool:
        """Move a finished result into place where a process was killed before it could.

        Args:
            overwrite: whether an earlier result may be replaced although the run was not allowed to.

        Returns:
            Whether there was one.

        Raises:
            RunError: something is in the way that may not be replaced, such as a folder that appeared during
                the run; the result stays where it is.
        """
        if not os.path.exists(self.folder / FINISHED_FILE):  # noqa: PTH110 (also False for a name too long)
            return False
        if self.result.exists():
            there = self.output.exists()  # anything that appears after this makes the last rename fail
            faults = in_the_way(self.output, overwrite or self._said_overwrite(FINISHED_FILE))
            if faults:
                what = f"{faults[0].what}, so it was not replaced; the finished result is in {self.result}"
                raise RunError(f"{what}. Move what is in the way, and run the same command again")
            if there:
                shutil.rmtree(self._old, ignore_errors=True)
                self.output.rename(self._old)
            try:
                self.result.rename(self.output)
            except BaseException:
                self._put_back()
                raise
            sync_folder(self.output.parent)
        for path in self.folder.iterdir():
            if path.name not in (FINISHED_FILE, LOCK_FILE):  # the marker goes last
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _put_back(self) -> None:
        if self._old.exists() and not self.output.exists():
            self._old.rename(self.output)


def _followed(output: Path) -> Path:
    """Return the real path of a folder; a link is followed, so that the result goes to its target."""
    try:
        return output.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop, or not a valid name: reported elsewhere
        return output.absolute()


def _as_json(asked: Asked) -> dict[str, Any]:
    return {
        "request_sha256": asked.sha256,
        "settings": dict(asked.settings),
        "data": dict(asked.data),
        "model": asked.model,
    }


# ---- reservation ----


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
