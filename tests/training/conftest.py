"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import nn

from ngdiff.losses import LOSSES
from tiny import tiny_llama
from training_runs import FORGET, RETAIN, taught


@pytest.fixture(scope="module")
def memorised() -> nn.Module:
    """A model that knows all answers by heart."""
    return taught(tiny_llama(layers=1), FORGET + RETAIN, 120)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Losses without a gradient."""
    for name in ("nll", "negated-nll"):
        whole = LOSSES[name].function
        still = lambda tokens, whole=whole: whole(tokens) * 0.0  # noqa: E731
        monkeypatch.setitem(LOSSES, name, replace(LOSSES[name], function=still))
    yield
