"""A folder's worth of results -> the folder, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault

RECORD, ANSWERS = "record.json", "answers.json"
GIB = 2**30


def check_output(path: Path, overwrite: bool, needed_bytes: int = 0, where: str = "--output") -> list[Fault]:
    """Say what keeps ``path`` from being written, before any long work starts.

    Args:
        path: the folder to make.
        overwrite: whether an earlier result of ours may be replaced. A folder that holds no ``record.json``
            is never replaced: it is not ours to delete.
        needed_bytes: room the result will take, while it is written.
        where: the setting to name in errors.
    """
    faults = []
    try:
        path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        what = f"no folder can be called {path.name[:40]!r}... ({getattr(error, 'strerror', None) or error})"
        return [Fault(where, what, "Give another name")]
    in_the_way = [place for place in (path, *path.parents) if place.exists() and not place.is_dir()]
    if in_the_way:
        faults.append(Fault(where, f"{in_the_way[0]} is a file", "Give the name of a folder"))
    elif path.is_dir() and any(path.iterdir()):
        if not overwrite:
            mend = "Give another folder, or --overwrite to replace an earlier result"
            faults.append(Fault(where, f"{path} is not empty", mend))
        elif not (path / RECORD).is_file():
            what = f"{path} holds no {RECORD}, so it is not a result that --overwrite may delete"
            faults.append(Fault(where, what, "Give another folder, or empty this one yourself"))
    parent = nearest_folder(path)
    if not os.access(parent, os.W_OK):
        faults.append(Fault(where, f"{parent} cannot be written to", "Choose a folder that you may write to"))
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        what = f"{free / GIB:.1f} GiB are free at {parent}, the result takes {needed_bytes / GIB:.1f} GiB"
        faults.append(Fault(where, what, "Free some room or choose another disk"))
    return faults


def same_folder(output: Path, used: str, where: str = "--output") -> list[Fault]:
    """Refuse to put a result in the place of the model it is made from: an adapter would lose its base."""
    try:
        same = output.samefile(used)
    except (OSError, ValueError):  # one of them is no folder here
        return []
    return [Fault(where, f"{output} is the model itself", "Give another folder")] if same else []


def nearest_folder(path: Path) -> Path:
    """Return ``path``, or the closest folder above it that exists."""
    for folder in [path.absolute(), *path.absolute().parents]:
        if folder.is_dir():
            return folder
    raise AssertionError("the root folder always exists")


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` to write in; it becomes ``path`` when the block ends well.

    What was at ``path`` before is deleted only after the new folder stands in its place. On an error the
    staging folder is removed and ``path`` is left as it was.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    staging.chmod(0o755)
    try:
        yield staging
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


def write_json(value: Any, path: Path) -> None:
    """Write JSON whole or not at all; NaN and infinities become null, since JSON has neither."""
    with staged_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        json.dump(finite(value), file, indent=1, allow_nan=False, ensure_ascii=False)
        file.write("\n")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``; it becomes ``path`` when the block ends well, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    staging = Path(name)
    try:
        yield staging
        staging.chmod(0o644)
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """Replace every non-finite number in a JSON-like value by None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
