"""a transformers.Trainer -> one whose run survives: complete checkpoints only, and a stop on request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers.trainer
from torch import nn
from transformers import Trainer, TrainerCallback

from ngdiff.errors import Fault, Interrupted, RequestError, RunError
from ngdiff.models.parameters import all_finite
from ngdiff.runs.checkpoints import (
    MANIFEST,
    NotWritten,
    checkpoints,
    damage,
    forget_older,
    good_or_refused,
    on_each,
    staged_checkpoint,
    step_of,
    tidy,
)
from ngdiff.runs.signals import StopWish
from ngdiff.system.disk import is_disk_error
from ngdiff.system.events import log
from ngdiff.system.progress import console

FEWEST_KEPT = 2
"""Fewest checkpoints kept, so that there is one to fall back to."""


class _Moments(TrainerCallback):  # type: ignore[misc]
    """Decides when to save between two steps, and that a run resumed at its end has no steps left."""

    def __init__(self) -> None:
        self.trainer: ResumableTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        self.trainer._saved_at = time.monotonic()
        if state.global_step >= state.max_steps:
            self.trainer.no_more_steps = control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        if self.trainer._is_time_to_save():
            control.should_save = True


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """Adds to ``transformers.Trainer``: checkpoints by time, complete and sealed, and a stop on request.

    ``save_minutes`` (0 for never) and ``wish`` may be set before training. A subclass writes further parts of
    a checkpoint in :meth:`save_more`, takes no batches once :attr:`no_more_steps` is set, and records notes
    in :meth:`note`. Several processes agree on every decision here; transformers and ``save_more`` decide how
    each writes its part of a checkpoint.
    """

    def __init__(self, *args: Any, callbacks: Sequence[TrainerCallback] = (), **kwargs: Any) -> None:
        self.save_minutes = 0.0
        self.wish: StopWish | None = None
        self.no_more_steps = False
        self._saved_at = time.monotonic()
        self._staging: Path | None = None
        self._stops_here = False
        moments = _Moments()
        super().__init__(*args, callbacks=[moments, *callbacks], **kwargs)
        moments.trainer = self

    # ---- what a subclass adds ----

    def save_more(self, folder: Path) -> None:
        """Write to a checkpoint's folder what transformers does not; called by every process."""

    def note(self, text: str) -> None:
        """Note a fallback."""

    # ---- saving ----

    @property
    def run_folder(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.args.output_dir)

    def agreed(self, mine: bool) -> bool:
        """Return whether the flag is set on any process."""
        if self.accelerator.num_processes == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.args.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def weights_are_finite(self) -> bool:
        """Return whether every trained weight is finite, in all processes."""
        return not self.agreed(not all_finite(self.model))

    def _is_time_to_save(self) -> bool:
        self._stops_here = self.agreed(self.wish is not None and self.wish.signum is not None)
        passed = time.monotonic() - self._saved_at
        return self._stops_here or self.agreed(0 < 60 * self.save_minutes <= passed)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Do what transformers does; a failure of one process to write a checkpoint fails on all."""
        self._write(lambda: super(ResumableTrainer, self).save_model(output_dir, _internal_call))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with _agreeing_on_each_copy():
            self._write(lambda: super(ResumableTrainer, self)._save_optimizer_and_scheduler(output_dir))

    def _write(self, work: Callable[[], None]) -> None:
        on_each(work) if self._staging is not None else work()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a complete checkpoint or none; a lack of space for one does not end a run.

        Raises:
            RunError: it could not be written for another reason, on any process.
        """
        step = self.state.global_step
        if self.weights_are_finite():
            try:
                with staged_checkpoint(
                    self.run_folder, step, main=self.args.should_save, part=on_each
                ) as folder:
                    self._staging = folder.parent
                    on_each(lambda: super(ResumableTrainer, self)._save_checkpoint(model, trial))
                    on_each(lambda: self.save_more(folder))
            except NotWritten as error:
                if not error.no_room:
                    _end(step, error)
                self._say(f"step {step}: {error}")
            finally:
                self._staging = None
        else:
            self._say(f"step {step}: no checkpoint was written, since a weight was not finite")
        if self.args.should_save:
            keep = self.args.save_total_limit
            forget_older(self.run_folder, max(FEWEST_KEPT, keep) if keep else None)
        self._saved_at = time.monotonic()
        if self._stops_here:  # not earlier, or readers of the last step would take this for it
            self.control.should_training_stop = True

    def _say(self, text: str) -> None:
        """Note a fallback, and print it at once."""
        self.note(text)
        if self.args.should_save:
            log.note(text)
            console.print(f"Note: {text}.", highlight=False, markup=False, soft_wrap=True)

    # ---- resuming ----

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` resumes from the newest intact checkpoint.

        Raises:
            RequestError: the requested checkpoint, or every checkpoint, is damaged.
            Interrupted: the run was asked to stop.
        """
        self.no_more_steps = self._stops_here = False
        found = self.find_checkpoint(resume_from_checkpoint)
        result = super().train(resume_from_checkpoint=found, **kwargs)
        if self._stops_here:
            assert self.wish is not None
            saved = checkpoints(self.run_folder)
            last = step_of(saved[-1]) if saved else None
            raise Interrupted(self.wish.signum or 0, self.state.global_step, last)
        return result

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of weights that a checkpoint lacks, except tied ones, which it holds under one name."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def find_checkpoint(self, asked: Any) -> Any:
        """Return the folder to resume from, with its hashes checked; newer, damaged ones are deleted."""
        if isinstance(asked, (str, Path)):
            why = damage(Path(asked)) if (Path(asked) / MANIFEST).exists() else None
            if why is not None:
                fix = "Choose another checkpoint, or True for the newest intact one"
                raise RequestError(Fault("resume_from_checkpoint", f"{asked} is damaged: {why}", fix))
            return str(asked)
        if asked is not True:
            return asked
        if self.args.should_save:
            tidy(self.run_folder)
        self.accelerator.wait_for_everyone()
        good, broken = good_or_refused(self.run_folder)
        if good is None:
            return True  # transformers says that there is none
        self.accelerator.wait_for_everyone()  # no process still reads what is deleted now
        for one in broken:
            self.note(f"{one.folder.name} was damaged ({one.why}): resumed from {good.name} instead")
            if self.args.should_save:
                shutil.rmtree(one.folder, ignore_errors=True)
        return str(good)


@contextmanager
def _agreeing_on_each_copy() -> Iterator[None]:
    """Make the processes agree on FSDP's copy of the weights before they gather that of the optimizer.

    transformers does both in one function. Where the first process writes full copies, and has no space for
    the first one, the others would wait for it while gathering the second.
    """
    save = transformers.trainer.save_fsdp_model

    def part(*words: Any, **others: Any) -> None:
        on_each(lambda: save(*words, **others))

    transformers.trainer.save_fsdp_model = part
    try:
        yield
    finally:
        transformers.trainer.save_fsdp_model = save


def _end(step: int, error: NotWritten) -> NoReturn:
    """End the run with a sentence, or with the error itself where the disk did not cause it.

    Raises:
        RunError: the sentence.
    """
    cause = error.__cause__
    if cause is not None and not is_disk_error(cause):
        raise cause
    raise RunError(f"step {step}: {error}") from cause
