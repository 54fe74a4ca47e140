"""The benchmark of steps on a GPU runs: here on a CPU, with a model of a few thousand weights."""

from __future__ import annotations

import torch
from benchmarks import gpu_steps


def test_each_kind_of_step_is_measured() -> None:
    found = gpu_steps.report(torch.device("cpu"), 1, ("tiny",), 0)
    figures = found["tiny"]
    for kind in ("plain", "graddiff", "ngdiff", "default"):
        assert figures[kind]["step_s"] > 0 and figures[kind]["real_tokens_per_s"] > 0
        assert figures[kind]["operators"] > 100
    assert figures["plain"]["over_plain"] == 1.0
    assert figures["probe_point_s"] > 0 and figures["ngdiff_over_graddiff"] > 0
