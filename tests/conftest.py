"""Fixtures that tests of several packages share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from commandline import Cli, make_cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, called in this process."""
    return make_cli(capsys)


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each run begins with a garbage collection and a look at what is installed: spare it what is known."""
    import ngdiff.training.trainer
    from training_runs import VERSIONS

    monkeypatch.setattr(ngdiff.training.trainer, "versions", lambda: VERSIONS)
    gc.freeze()
    yield
    gc.unfreeze()
