"""Fixtures that tests of several packages share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from commandline import Cli, make_cli

LONGEST = (
    "test_several_processes.py",
    "test_real.py",
    "test_survive.py",
    "test_bench.py",
    "test_survive_processes.py",
    "test_evaluate_processes.py",
)
"""Files that take a minute and more. Begun last, one of them keeps one worker busy and the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: ``--no-loadscope-reorder`` keeps to this order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


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
