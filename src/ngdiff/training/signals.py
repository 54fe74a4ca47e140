"""SIGTERM or Ctrl-C -> a wish to stop, asked about between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """Whether somebody asked the run to stop; ``signum`` is the signal that did, None so far."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:  # asked before, and still waiting
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + signum)
        self.signum = signum
        again = "Ctrl-C again" if signum == signal.SIGINT else "the signal again"
        # not print: the signal may have come in the middle of another print
        os.write(2, f"\nFinishing this step, then saving a checkpoint; {again} ends at once.\n".encode())


@contextmanager
def wish_to_stop() -> Iterator[StopWish]:
    """Take SIGINT and SIGTERM for a wish to stop; a second one ends at once.

    A signal that the process was told to ignore (``nohup``, a shell's background jobs) stays ignored. Outside
    the main thread, where Python hands out no signals, nothing is changed.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    heard = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, wish._ask) for signum in heard}
    try:
        yield wish
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
