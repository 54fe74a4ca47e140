"""How a command ended -> its exit code: one table, which help, guide and tests read."""

from __future__ import annotations

import os

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_TARGET_MISSED = 3
EXIT_DISAGREES = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES: dict[int, str] = {
    EXIT_DONE: "done",
    EXIT_FAILED: "an unexpected error, or a model that cannot be evaluated",
    EXIT_BAD_REQUEST: "the request was invalid, and nothing was written",
    EXIT_TARGET_MISSED: "the model was saved, but the forget target was not reached",
    EXIT_DISAGREES: "something differs from what a log or a receipt states",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    EXIT_TERMINATED: "terminated (SIGTERM)",
}
"""Every exit code there is, with its meaning."""


def of_a_missed_target() -> int:
    """Return the exit code of a run that ended well without reaching its forget target.

    torchrun, and accelerate launch through it, turn every code but 0 into 1 and report a crash. There the
    code is 0; the command's last line and the record's ``stop.target_met`` tell.
    """
    return EXIT_DONE if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_TARGET_MISSED


def as_sentence() -> str:
    """Return all exit codes on one line, for the help."""
    return "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
