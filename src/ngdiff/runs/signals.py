"""SIGTERM or Ctrl-C -> a request to stop, checked between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 5.0
"""Seconds from the second signal to the end of a process that does not react to it."""


class StopWish:
    """Whether the run was asked to stop; ``signum`` is the signal, None if it was not."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:  # requested before, and still waiting
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + signum)
        self.signum = signum


@contextmanager
def wish_to_stop() -> Iterator[StopWish]:
    """Treat SIGINT and SIGTERM as requests to stop; a second signal ends the process at once.

    A signal that the process ignores (``nohup``, a shell's background jobs) stays ignored. Outside the main
    thread, where Python delivers no signals, nothing changes.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    heard = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, wish._ask) for signum in heard}
    try:
        with _listening(heard):
            yield wish
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _listening(heard: Sequence[int]) -> Iterator[None]:
    """Handle each signal in a thread, and end the process if it does not react to the second one.

    Python calls a signal's handler only between two instructions of the main thread, which may be waiting for
    another process, even a frozen one, inside one.
    """
    reader, writer = os.pipe()
    if sys.platform != "win32":  # where Python does not need it
        os.set_blocking(writer, False)
    over = threading.Event()

    def listen() -> None:
        count = 0
        while signum := next(iter(os.read(reader, 1)), 0):
            if signum not in heard:
                continue
            count += 1
            if count == 1:
                again = "Ctrl-C again" if signum == signal.SIGINT else "the signal again"
                _tell(f"Finishing this step, then saving a checkpoint; {again} ends at once.")
            elif not over.wait(GRACE_SECONDS):
                _tell("The step did not end, so the process was ended; earlier checkpoints are whole.")
                os._exit(128 + signum)

    thread = threading.Thread(target=listen, daemon=True)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(previous)
        os.close(writer)
        thread.join()
        os.close(reader)


def _tell(text: str) -> None:
    os.write(2, f"\n{text}\n".encode())  # not print, since another print may be in progress
