"""What a run knows of the machine it is on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ngdiff.system.environment import peak_memory_gib

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
