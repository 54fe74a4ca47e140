"""a folder filled by a trainer -> a complete checkpoint; a run -> its last intact one.

A checkpoint is written under another name; only when its files are hashed and on the disk is it renamed to
``checkpoint-STEP``. So a folder with that name was complete once, and its manifest shows whether it still is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.system.disk import disk_reason, is_disk_error, is_no_room, sha256_file
from ngdiff.system.output import sync_file, sync_folder
from ngdiff.system.processes import from_each

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that a run cannot resume from.

    Args:
        folder: the checkpoint.
        why: what is wrong with it.
    """

    folder: Path
    why: str


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint's name; None for anything else."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, first step first."""
    if not os.path.isdir(run):  # noqa: PTH112 (also False for a name too long)
        return []
    numbered = [(step, folder) for folder in run.iterdir() if (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(numbered)]


class NotWritten(RunError):
    """A checkpoint that could not be written.

    Args:
        why: in words.
        no_room: whether only space was missing, so that the run may continue without the checkpoint.
    """

    def __init__(self, why: str, no_room: bool) -> None:
        self.why, self.no_room = why, no_room
        super().__init__(f"the checkpoint could not be written ({why})")


def on_each(work: Callable[[], object]) -> None:
    """Do a part of the writing on every process; where it fails on one, it fails on all.

    Parts may be nested. Work of a single process must be a part of its own if an exchange between the
    processes follows: otherwise the others would wait in that exchange forever.

    Raises:
        NotWritten: on every process; its cause is the error, on the process where that happened.
    """
    failed: BaseException | None = None
    try:
        work()
    except NotWritten:
        raise  # on all of them
    except Exception as error:
        failed = error
    except CheckpointException as error:  # of torch's sharded checkpoints; not an Exception
        failed = next(iter(error.failures.values()))[0]
    told = from_each(None if failed is None else (_reason(failed), is_no_room(failed)))
    found = [one for one in told if one is not None]
    if found:
        why = next((text for text, no_room in found if not no_room), found[0][0])
        raise NotWritten(why, all(no_room for _, no_room in found)) from failed


def _reason(error: BaseException) -> str:
    if not is_disk_error(error):
        return f"{type(error).__name__}: {error}"
    place = getattr(error, "filename", None)
    return disk_reason(error) if place is None or is_no_room(error) else f"{disk_reason(error)}: {place}"


@contextmanager
def staged_checkpoint(
    run: Path,
    step: int,
    *,
    main: bool = True,
    part: Callable[[Callable[[], object]], object] = lambda work: work(),
) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``run/checkpoint-STEP`` when the block succeeds, else it is deleted.

    Args:
        run: the run's folder.
        step: optimizer steps done.
        main: whether this process seals and renames; the others only write files.
        part: does a part of the work; for several processes :func:`on_each`, which the block must use too.
    """
    final = run / f"checkpoint-{step}"
    outer = run / f".{final.name}.partial"
    staging = outer / final.name

    def begin() -> None:
        if main:
            shutil.rmtree(outer, ignore_errors=True)
            staging.mkdir(parents=True)

    def end() -> None:
        if main:
            seal(staging, step)
            _put(staging, final)

    try:
        part(begin)
        yield staging
        part(end)
    finally:
        if main:
            shutil.rmtree(outer, ignore_errors=True)


def _put(staging: Path, final: Path) -> None:
    """Rename a sealed checkpoint; an older one of the same step is replaced only then."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    staging.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, step: int) -> None:
    """Hash all files below a folder, flush them to the disk, and write the manifest last."""
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        sync_file(path)
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync_file(folder / MANIFEST)
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(inner)


def damage(folder: Path) -> str | None:
    """Return how a checkpoint differs from what was written; None where every file matches its hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected: dict[str, Any] = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
        found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        for name, (size, digest) in expected.items():
            if name not in found:
                return f"{name} is missing"
            if found[name].stat().st_size != size:
                return f"{name} has {found[name].stat().st_size} bytes instead of {size}"
            if sha256_file(found[name]) != digest:
                return f"{name} is not what was written (its SHA-256 differs)"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    unknown = sorted(set(found) - set(expected))
    return f"{unknown[0]} does not belong to it" if unknown else None


def last_good(run: Path) -> tuple[Path | None, list[Damaged]]:
    """Return the newest intact checkpoint, if there is one, and newer damaged ones."""
    broken: list[Damaged] = []
    for folder in reversed(checkpoints(run)):
        why = damage(folder)
        if why is None:
            return folder, broken
        broken.append(Damaged(folder, why))
    return None, broken


def good_or_refused(run: Path) -> tuple[Path | None, list[Damaged]]:
    """Return what :func:`last_good` does, but refuse a run of which every checkpoint is damaged.

    Raises:
        RequestError: there are checkpoints, but none is intact.
    """
    good, broken = last_good(run)
    if good is None and broken:
        listed = "; ".join(f"{one.folder.name}: {one.why}" for one in broken)
        what = f"no checkpoint in {run} is intact ({listed})"
        fix = "Start over with --no-resume, or restore the files from a copy"
        raise RequestError(Fault("--resume", what, fix))
    return good, broken


def tidy(run: Path) -> None:
    """Delete unfinished files of a killed process; its checkpoints stay."""
    for pattern in (".checkpoint-*.partial", ".checkpoint-*.old"):
        for folder in run.glob(pattern):
            # killed between the two renames: the old one is the one that counts
            name = folder.name[1:].removesuffix(".old")
            if folder.suffix == ".old" and not (run / name).exists():
                folder.rename(run / name)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def forget_older(run: Path, keep: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints; None deletes none."""
    if keep is None or keep <= 0:
        return
    for folder in checkpoints(run)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
