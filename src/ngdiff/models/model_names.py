"""a model's name -> the folder or hub repository that it can mean, without loading any library."""

from __future__ import annotations

import re
from pathlib import Path

from ngdiff.errors import Fault, nearest_names

SMOLLM2 = "smollm2"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z", re.ASCII)
_CONFIGS = ("config.json", "adapter_config.json")


def folder_of(name: str) -> Path | None:
    """Return the folder that a name means, if there is one."""
    path = Path(name).expanduser()
    try:
        return path if path.is_dir() else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        return None


def name_fault(name: str, where: str = "--model") -> Fault | None:
    """Return a fault where a name is neither ``smollm2``, nor a folder, nor the name of a hub repository."""
    if name == SMOLLM2 or folder_of(name) is not None:
        return None
    if _HUB_NAME.match(name) and ".." not in name and "--" not in name and not _is_there(name):
        return None
    near = [str(place) for place in _near(Path(name).expanduser())]
    fix = "Give a folder written by save_pretrained, a hub name such as org/name, or 'smollm2'"
    if near:
        fix = f"Did you mean {' or '.join(near)}?"
    return Fault(where, f"{name!r} is neither a folder nor a hub name", fix)


def _near(path: Path) -> list[Path]:
    """Return names similar to a path's: model folders beside it, and the model that ships with NGDiff."""
    here = [Path(SMOLLM2)] if path.parent == Path() else []
    try:
        here += [folder for folder in path.parent.iterdir() if any((folder / c).is_file() for c in _CONFIGS)]
    except (OSError, ValueError):
        return []
    places = {place.name: place for place in here}
    return [places[name] for name in nearest_names(path.name, sorted(places), cutoff=0.6)]


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError):
        return False
