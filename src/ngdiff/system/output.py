"""results -> a folder or a file, written whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RunError
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

if sys.platform != "win32":
    import fcntl

RECORD, ANSWERS, REPORT = "record.json", "answers.json", "report.html"
GIB = 2**30
_BESIDE = {
    "unlearn": re.compile(
        r"README\.md|answers\.json|receipt\.(json|sig)|receipts/\d+\.(json|sig)|report\.html"
    ),
    "finetune": re.compile(r"report\.html"),
    "merge": re.compile(r"report\.html"),
}
"""Files of a result besides its record and those that the record lists, by the record's kind."""
_SHOWN = 5


def check_output(path: Path, overwrite: bool, needed_bytes: int = 0, where: str = "--output") -> list[Fault]:
    """Return what keeps ``path`` from being written, before any long work starts.

    Args:
        path: the folder to make.
        overwrite: whether an earlier result of ours may be replaced (see :func:`in_the_way`).
        needed_bytes: space that writing the result takes.
        where: the setting to name in errors.
    """
    faults = []
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        reason = getattr(error, "strerror", None) or error
        what = f"cannot create a folder named {path.name[:40]!r}... ({reason})"
        return [Fault(where, what, "Choose another name")]
    if path.is_symlink() and not path.exists():
        return [Fault(where, f"{path} is a broken link", "Fix the link, or choose another name")]
    files = [place for place in (path, *path.parents) if place.exists() and not place.is_dir()]
    if files:
        faults.append(Fault(where, f"{files[0]} is a file", "Give the name of a folder"))
    else:
        faults += in_the_way(path, overwrite, where)
    parent = nearest_folder(path.resolve().parent)  # where it is staged
    if not os.access(parent, os.W_OK):
        faults.append(Fault(where, f"{parent} is not writable", "Choose a writable folder"))
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        what = f"{free / GIB:.1f} GiB are free at {parent}, but the result needs {needed_bytes / GIB:.1f} GiB"
        faults.append(Fault(where, what, "Free some space, or choose another disk"))
    return faults


def in_the_way(path: Path, overwrite: bool, where: str = "--output") -> list[Fault]:
    """Return why a result may not replace what is at ``path``, if it may not.

    An empty folder may be replaced. With ``overwrite``, a result of ours may be replaced as long as it
    contains only what its command wrote: the files that its record lists and, for an unlearning run, those
    that go with them.
    """
    if not (path.exists() or path.is_symlink()):
        return []
    if not path.is_dir():
        return [Fault(where, f"{path} is a file", "Give the name of a folder")]
    names = names_below(path)
    if not names:
        return []
    if not overwrite:
        fix = "Choose another folder, or --overwrite to replace an earlier result"
        return [Fault(where, f"{path} is not empty", fix)]
    fix = "Choose another folder, or empty this one"
    if RECORD not in names:
        what = f"{path} contains no {RECORD}, so --overwrite does not delete it"
        return [Fault(where, what, fix)]
    kind, listed = _kind_and_files(path / RECORD)
    if kind is None:
        what = (
            f"{path / RECORD} is not a record with a list of files, so --overwrite does not delete the folder"
        )
        return [Fault(where, what, fix)]
    foreign = [
        name
        for name in names
        if name not in listed and not _BESIDE[kind].fullmatch(name) and not is_left_over(name, REPORT)
    ]
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        what = f"{path} contains {', '.join(foreign[:_SHOWN])}{more}, which ngdiff did not write"
        return [Fault(where, what, "Move it, or choose another folder")]
    return []


def names_below(folder: Path) -> list[str]:
    """List everything below a folder: files, links and empty folders, relative to it, with ``/``."""
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder).as_posix() for name in [*files, *links]]
        if here != folder and not folders and not files:
            found.append(here.relative_to(folder).as_posix())
    return sorted(found)


def _kind_and_files(record: Path) -> tuple[str | None, set[str]]:
    """Return a record's kind and the files that it lists; no kind where it is not a record of ours."""
    try:
        content = load_json(read_within(record, MOST_JSON))
        kind, listed = content["kind"], {RECORD, *content["files"]}
        return (kind if kind in _BESIDE else None), listed
    except (Unreadable, LookupError, TypeError):
        return None, set()


def check_new_file(path: Path, where: str = "--output") -> list[Fault]:
    """Return what keeps a new file from being written."""
    try:
        there = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        reason = getattr(error, "strerror", None) or error
        return [
            Fault(
                where, f"cannot create a file named {path.name[:40]!r}... ({reason})", "Choose another name"
            )
        ]
    if there:
        return [Fault(where, f"{path} exists", "Choose another file, or delete it")]
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [Fault(where, f"{parent} is not writable", "Choose a writable folder")]
    return []


def same_folder(output: Path, used: str, where: str = "--output") -> list[Fault]:
    """Refuse to put a result in the place of the model it is made from, around it or inside it.

    In its place or around it the model would be deleted, and an adapter would lose its base.
    """
    try:
        result, model = output.resolve(), Path(used).resolve()
        if not model.is_dir():
            return []
    except (OSError, RuntimeError, ValueError):  # one of them is no folder here
        return []
    if result == model:
        return [Fault(where, f"{output} is the model itself", "Choose another folder")]
    if result in model.parents and output.is_dir():
        return [Fault(where, f"{output} contains the model {used}", "Choose another folder")]
    if model in result.parents:
        return [Fault(where, f"{output} is inside the model {used}", "Choose a folder outside it")]
    return []


def holds_faults(output: Path, used: Iterable[tuple[str, str]], where: str = "--output") -> list[Fault]:
    """Refuse to replace what the request itself reads.

    Args:
        output: the folder to make, or the file to write.
        used: setting and the path it names, for every file or folder that is read; names that are not paths
            here are ignored.
        where: the setting to name in errors.
    """
    faults = []
    for flag, name in used:
        try:
            result, read = output.resolve(), Path(name).expanduser().resolve()
            there = read.exists()
        except (OSError, RuntimeError, ValueError):
            continue
        if there and (result == read or result in read.parents):
            what = f"{output} contains {name}, which {flag} reads and --overwrite would delete"
            what = f"{output} is what {flag} reads" if result == read else what
            faults.append(Fault(where, what, "Choose another name"))
    return faults


def nearest_folder(path: Path) -> Path:
    """Return ``path``, or the closest folder above it that exists."""
    for folder in [path.absolute(), *path.absolute().parents]:
        if folder.is_dir():
            return folder
    raise AssertionError("the root folder always exists")


@contextmanager
def staged_folder(path: Path, overwrite: bool | None = None) -> Iterator[Path]:
    """Yield a folder beside ``path`` to write in; it becomes ``path`` when the block succeeds.

    What was at ``path`` before is deleted only after the new folder has taken its place. On an error the
    staging folder is removed and ``path`` does not change. Links are followed and stay.

    Args:
        path: the folder to make.
        overwrite: see :func:`in_the_way`, which is called again at the end, since the folder may have
            appeared meanwhile; None replaces whatever is there.

    Raises:
        RunError: ``path`` may not be replaced; the new folder is kept beside it, and named.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    staging.chmod(0o755)
    try:
        yield staging
        if overwrite is not None and (faults := in_the_way(path, overwrite)):
            kept = staging.rename(staging.with_suffix(".finished"))
            raise RunError(f"{faults[0].what}, so it was not replaced; the result is in {kept}")
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(old / path.name)
        try:
            staging.rename(path)
        except BaseException:
            if old is not None:
                (old / path.name).rename(path)
                old.rmdir()
            raise
        if old is not None:
            shutil.rmtree(old)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def follow_umask(folder: Path) -> None:
    """Apply the umask to the files below a folder; safetensors makes them readable to their owner only."""
    mask = os.umask(0o077)
    os.umask(mask)
    for place, _, files in os.walk(folder):
        for name in files:
            (Path(place) / name).chmod(0o666 & ~mask)


def write_json(value: Any, path: Path, mode: int = 0o644) -> None:
    """Write JSON whole or not at all; NaN and infinities become null, since JSON has neither."""
    with staged_file(path, mode) as staging, staging.open("w", encoding="utf-8") as file:
        json.dump(finite(value), file, indent=1, allow_nan=False, ensure_ascii=False)
        file.write("\n")


def unless_in_the_way(
    path: Path, look: Callable[[Path], Sequence[Fault]], write: Callable[[Path], object]
) -> None:
    """Write a file that took long to compute, but not over a file that has appeared meanwhile.

    Args:
        path: where it belongs.
        look: returns what keeps it from being written there.
        write: writes it, and the files beside it, to the path given.

    Raises:
        RunError: something is in the way; the new file is kept beside it, and named.
    """
    faults = look(path)
    if not faults:
        write(path)
        return
    kept = _name_beside(path)
    write(kept)
    raise RunError(f"{faults[0].what}, so it was not replaced; the result is in {kept}")


def _name_beside(path: Path) -> Path:
    """Return a numbered variant of a file's name that no name in its folder begins with."""
    taken = [other.name for other in path.parent.iterdir()]
    for number in itertools.count(2):
        stem = f"{path.stem}-{number}"
        if not any(name.startswith(f"{stem}.") for name in taken):
            return path.with_name(f"{stem}{path.suffix}")
    raise AssertionError("numbers do not end")


def write_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write new files, each with its mode: all of them, or none.

    Raises:
        FileExistsError: one is there; it is left as it is.
        OSError: one cannot be written.
    """
    made = []
    try:
        for path, (content, mode) in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(path)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def staged_file(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a file to write beside ``path``; it becomes ``path`` when the block succeeds, else it is deleted.

    Until then only its owner may read it; then ``mode`` applies. The content is on the disk before the file
    gets its name: after a power failure ``path`` is the old file or the new one. Partial files that killed
    processes left for the same file are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    staging = Path(name)
    try:
        with _marked_as_written(descriptor):
            yield staging
            staging.chmod(mode)
            sync_file(staging)
            staging.replace(path)
    except BaseException as error:
        staging.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as where the disk is full
            error.filename = str(path)
        raise
    sync_folder(path.parent)


@contextmanager
def _marked_as_written(descriptor: int) -> Iterator[None]:
    """Hold a lock on a file while the block runs, then close it.

    Windows cannot replace an open file, or delete one that another process has open, so it is closed at once
    there.
    """
    if sys.platform == "win32":
        os.close(descriptor)
        yield
    else:
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def is_left_over(name: str, of: str) -> bool:
    """Return whether a file has the name of a partial file that :func:`staged_file` writes for ``of``."""
    return re.fullmatch(rf"\.{re.escape(of)}\.[a-z0-9_]{{8}}", name) is not None


def _remove_left_over(path: Path) -> None:
    """Delete partial files that no process is writing; a writer holds a lock."""
    for part in [part for part in path.parent.iterdir() if is_left_over(part.name, path.name)]:
        with suppress(OSError):
            if sys.platform == "win32":
                part.unlink()
            else:
                descriptor = os.open(part, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    if stat.S_ISREG(os.fstat(descriptor).st_mode):
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        part.unlink()
                finally:
                    os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    # Windows flushes only files that are open for writing
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, where possible."""
    try:
        sync_file(path)
    except OSError:  # some network file systems do not support fsync of folders
        return


def finite(value: Any) -> Any:
    """Replace every non-finite number in a JSON-like value by None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
