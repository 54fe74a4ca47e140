"""What a run knows of the machine it is on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ngdiff
from ngdiff.system import environment
from ngdiff.system.environment import code_hash, peak_memory_gib

CHILD = "from ngdiff.system.environment import _peak_resident_bytes as peak; print(peak())"


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_gib()["process"]
    held = bytearray(b"x") * int((before + 0.2) * 2**30 - 0)  # more than anything held until now
    assert peak_memory_gib()["process"] > before + 0.1
    del held


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere a process inherits its starter's peak"
)
def test_the_peak_is_the_processs_own() -> None:
    starter = (
        "import subprocess, sys; held = bytearray(b'x') * 2**31; "
        f"print(subprocess.run([sys.executable, '-c', {CHILD!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**31


def test_the_hash_of_the_code_covers_every_module_of_the_package() -> None:
    package = Path(ngdiff.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix()):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    assert code_hash() == digest.hexdigest()
    names = {path.relative_to(package).parts[0] for path in package.rglob("*.py")}
    assert {"losses", "steps", "training", "unlearn.py"} <= names


def test_a_module_that_was_changed_changes_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ngdiff"
    shutil.copytree(environment.ROOT, package, ignore=shutil.ignore_patterns("static", "__pycache__"))
    monkeypatch.setattr(environment, "ROOT", package)
    before = code_hash()
    module = package / "losses" / "likelihood.py"
    module.write_text(module.read_text() + "\n# changed\n")
    assert code_hash() != before


def test_the_commit_says_when_any_module_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    package = tmp_path / "src" / "ngdiff"
    (package / "losses").mkdir(parents=True)
    for name in ("__init__.py", "losses/row.py"):
        (package / name).write_text("")
    monkeypatch.setattr(environment, "ROOT", package)
    git("init")
    assert environment.git_commit() is None  # somebody else's checkout
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "first")
    clean = environment.git_commit()
    assert clean is not None and not clean.endswith("+changes")
    (package / "losses" / "row.py").write_text("changed = True\n")
    assert environment.git_commit() == f"{clean}+changes"


GAPS = """
import psutil, torch
from ngdiff.system.environment import keep_freed_memory, return_freed_memory
assert keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss
kept = []
for _ in range(40):
    freed = torch.ones(2**22)          # 16 MiB, and something behind it that stays
    kept.append(torch.ones(2**12))
    del freed
    kept.append(torch.ones(2**20 + 2**12 * len(kept)))
del kept[1::2]
before = resident()
return_freed_memory()
print(before - resident())
assert all(bool((part == 1).all()) for part in kept)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has malloc_trim")
def test_gaps_of_freed_memory_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100 * 2**20
