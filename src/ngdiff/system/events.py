"""events of a command -> one JSON object per line on standard output, where requested.

Names are stable: fields may be added, but none is renamed, removed or redefined without a new :data:`SCHEMA`
number.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import Any, Literal, TextIO

SCHEMA = 1

Kind = Literal[
    "string",
    "integer",
    "number",
    "boolean",
    "array",
    "object",
    "string or null",
    "integer or null",
    "number or null",
    "object or null",
]


@dataclass(frozen=True)
class Event:
    """One kind of line.

    Args:
        summary: when it is written.
        fields: names beside ``event`` and ``time``, each with its JSON type and its meaning.
    """

    summary: str
    fields: Mapping[str, tuple[Kind, str]]


_FIGURES = "mean figures, as in record.json's `checks`"

EVENTS: dict[str, Event] = {
    "begin": Event(
        "first of all",
        {
            "schema": ("integer", "number of this schema"),
            "command": ("string", "the sub-command, such as `unlearn`"),
            "version": ("string", "of ngdiff"),
            "process": ("integer", "process id"),
        },
    ),
    "request": Event(
        "validate: what the request would take",
        {
            "sets": ("object", "role -> examples, tokens, answer_tokens, longest, cut, repeated"),
            "shared": ("integer", "rows in both sets"),
            "most_steps": ("integer", "most optimizer steps"),
            "disk_bytes": ("integer or null", "most disk space that the run takes"),
            "free_bytes": ("integer", "room there is"),
            "seconds_a_step": ("number or null", "rough estimate for this machine"),
        },
    ),
    "job": Event(
        "a part of the work begins, continues (every 30 s) or ends",
        {
            "title": ("string", "what is being done"),
            "state": ("string", "`begin`, `progress` or `end`"),
            "done": ("integer or null", "units done"),
            "total": ("integer or null", "the most units there can be"),
            "seconds": ("number", "since it began"),
        },
    ),
    "step": Event(
        "after each optimizer step: record.json's `steps`, under the same names",
        {
            "step": ("integer", "counted from 1"),
            "epoch": ("number", "passes over the forget set so far"),
            "forget_loss": ("number or null", "nats per token, before the step"),
            "retain_loss": ("number or null", "likewise"),
            "forget_norm": ("number or null", "norm of the forget gradient"),
            "retain_norm": ("number or null", "norm of the retain gradient"),
            "cosine": ("number or null", "between the two gradients"),
            "weights": ("array", "factors of the retain and the forget gradient"),
            "combined_norm": ("number or null", "norm of the combined gradient"),
            "learning_rate": ("number", "the step was taken with"),
            "retain_descent": ("number or null", "cosine of the applied update with the retain descent"),
            "forget_descent": ("number or null", "likewise, forget"),
            "changed": ("number or null", "share of parameters changed"),
            "forget_extraction_strength": ("number or null", "of the step's forget batch"),
            "seconds": ("number", "wall-clock time of the step"),
            "skipped": ("string or null", "why nothing was applied"),
        },
    ),
    "probe": Event(
        "after each probe of the learning rate: record.json's `probes`",
        {
            "step": ("integer", "optimizer step"),
            "outcome": ("string", "`accepted`, `widened`, `kept`, `halved` or `bounded`"),
            "reason": ("string", "why"),
            "before": ("number or null", "rate it started from"),
            "after": ("number", "rate from here on"),
            "applied": ("number", "rate of this very step"),
            "points": ("array", "every parabola measured"),
            "noise": ("number", "assumed of one loss, nats per token"),
        },
    ),
    "check": Event(
        "after each full check of forget and retain set: record.json's `checks`",
        {
            "step": ("integer", "optimizer steps done"),
            "forget": ("object", f"{_FIGURES}, of the forget set"),
            "utility": ("object", f"{_FIGURES}, of the held-out retain examples"),
            "met": ("boolean", "whether the forget target is met, which is decided on every row"),
            "above_floor": ("boolean", "whether every figure that must be kept is at or above its floor"),
            "best": ("boolean", "whether this is the best state so far"),
            "kept": ("object", "floor -> the figure it holds"),
            "broken": ("array", "floors that were broken"),
            "left": ("number or null", "items of the forget set that are left (estimated from a sample)"),
            "rows": ("integer", "rows of the forget set that were measured"),
            "of": ("integer", "rows there are"),
            "distance": ("number", "from the forget criterion; 0 where it is met"),
        },
    ),
    "evaluation": Event(
        "after each evaluation during the run (eval_steps): record.json's `evaluations`",
        {
            "step": ("integer", "optimizer steps done"),
            "seconds": ("number", "it took"),
            "figures": ("object", "name -> value and 95% interval"),
        },
    ),
    "note": Event("a fallback or a warning, once each", {"text": ("string", "as in record.json's `notes`")}),
    "error": Event(
        "an error, one line for each fault",
        {
            "where": ("string", "setting, file and row, or `ngdiff`"),
            "what": ("string", "what was found"),
            "fix": ("string", "what can be done about it; may be empty"),
        },
    ),
    "end": Event(
        "last of all",
        {
            "exit_code": ("integer", "of the command"),
            "seconds": ("number", "since `begin`"),
            "output": ("string or null", "what was written"),
            "hub": ("string or null", "where it was pushed to"),
            "stop": ("object or null", "unlearn: record.json's `stop`"),
            "next": ("array", "commands that come next"),
        },
    ),
}


class EventLog:
    """Writes events to a stream, or nowhere while it is closed; a lost reader does not end the run."""

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._notes: set[str] = set()
        self._ending: dict[str, Any] = {}
        self._few = False
        self._started = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether events are written."""
        return self._stream is not None

    def open(self, stream: TextIO, command: str, few: bool = False) -> None:
        """Start writing; with ``few``, only errors and the end."""
        self._stream, self._notes, self._ending, self._few = stream, set(), {}, few
        self._started = time.monotonic()
        version = metadata.version("ngdiff")
        self.write("begin", schema=SCHEMA, command=command, version=version, process=os.getpid())

    def write(self, event: str, **fields: Any) -> None:
        """Write one line; the fields are those of :data:`EVENTS`."""
        if self._stream is None or (self._few and event not in ("error", "end")):
            return
        from ngdiff.system.output import finite

        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps(finite({"event": event, "time": now, **fields}), allow_nan=False)
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the disk is full, which must not end the run
            self._stream = None

    def note(self, text: str) -> None:
        """Write a note, once."""
        if text not in self._notes:
            self._notes.add(text)
            self.write("note", text=text)

    def conclude(self, **fields: Any) -> None:
        """Set fields of the last line."""
        self._ending |= fields

    def close(self, exit_code: int) -> None:
        """Write the last line, and stop."""
        ending = {"output": None, "hub": None, "stop": None, "next": []} | self._ending
        self.write("end", exit_code=exit_code, seconds=time.monotonic() - self._started, **ending)
        self._stream, self._ending = None, {}


log = EventLog()
"""The log of this process."""
