"""a folder -> the exclusive right of one process to work in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import console

LOCK_FILE = "lock"


def take(folder: Path, output: Path, name: str = LOCK_FILE) -> tuple[BaseFileLock, str | None]:
    """Create a folder where it is missing, and lock it for this process.

    Args:
        folder: folder of the lock file.
        output: name of the folder in errors.
        name: of the lock file.

    Returns:
        The lock to ``release`` at the end; and, where the file system has no locks, a note that has been
        printed.

    Raises:
        RequestError: another process holds the lock, or the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        raise RequestError(unwritable(folder, error)) from error
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = f"another process is using {output}"
        raise RequestError(Fault("--output", what, "Wait until it ends, or choose another folder")) from None
    except (OSError, NotImplementedError) as error:  # such as a network file system without locks
        note = f"the file system of {output} has no locks ({getattr(error, 'strerror', None) or error})"
        note += ", so two runs with the same output are not kept apart: start one at a time"
        log.note(note)
        console.print(f"Note: {note}.", highlight=False, markup=False, soft_wrap=True)
        return lock, note
    return lock, None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the lock file is hidden.

    Raises:
        RequestError: another process is using it, or it is not writable.
    """
    lock, _ = take(folder, folder, f".{LOCK_FILE}")
    try:
        yield
    finally:
        lock.release()


def unwritable(folder: Path, error: OSError) -> Fault:
    """Return the fault of a folder that cannot be written to."""
    what = f"cannot write to {folder} ({error.strerror or error})"
    return Fault("--output", what, "Choose a writable folder on a disk with free space")
