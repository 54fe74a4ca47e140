"""A Trainer's steps -> a progress bar.

Apart from :mod:`ngdiff.progress`, so that a command that trains nothing does not wait for ``transformers``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ngdiff.progress import Meter


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Shows a Trainer's steps; a trainer may leave a ``progress_note`` to show beside the bar."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._meter: Meter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self._meter = Meter(self.title, state.max_steps).__enter__()
            self._meter.done = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one optimizer step."""
        if self._meter is not None:
            self._meter.advance(1, getattr(state, "progress_note", None))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._meter is not None:
            self._meter.__exit__()
            self._meter = None
