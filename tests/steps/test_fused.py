"""Kernels over all tensors at once, against the loop over tensors and against flattened gradients."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ngdiff.steps import fused, products
from ngdiff.steps.gradients import GradientPair, Weights

SIZES = [(3, 5), (70_001,), (1,), (300, 300), (0,)]


def gradients(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    both = [[torch.randn(size, generator=draw).to(dtype) for size in SIZES] for _ in range(2)]
    return both[0], both[1]


def expected(retain: list[Tensor], forget: list[Tensor]) -> Tensor:
    r, f = flat(retain), flat(forget)
    return torch.stack([r @ r, r @ f, f @ f])


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    """Within a share of the two lengths: an inner product may be nearly nothing beside them."""
    assert found.dtype == torch.float64
    assert float((found.cpu() - wanted.cpu()).abs().max()) <= tolerance * float(wanted[0] * wanted[2]) ** 0.5


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_loop_gives_the_products_of_flattened_gradients(dtype: torch.dtype) -> None:
    retain, forget = gradients(dtype)
    found = products.inner_products(list(zip(retain, forget, strict=True)), torch.device("cpu"))
    assert_near(found, expected(retain, forget), 1e-5)


# ---- the tables, with kernels that read memory by the addresses they are given ----


def _numbers(address: int, count: int) -> Tensor:
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)


def _each(work: Callable[[int, Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    """Walk over the chunks as the programs of a kernel do."""

    def walk(places: Tensor, chunks: Tensor) -> None:
        for program, (place, first, size) in enumerate(chunks.tolist()):
            count = min(size - first, fused.CHUNK)
            left, right = (int(address) + 4 * first for address in places[place])
            work(program, _numbers(left, count), _numbers(right, count))

    return walk


class Kernel:
    """Something that is launched as ``kernel[grid](...)``."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self.launch: Callable[..., None] | None = launch
        self.launches = 0

    def __getitem__(self, grid: tuple[int]) -> Any:
        self.launches += 1
        return self.launch


class SlowKernels:
    """What the kernels do, program by program, on float32 tensors of the CPU."""

    wrong = 0.0

    def __init__(self) -> None:
        self.products, self.combination = Kernel(self._products), Kernel(self._combination)

    @property
    def launches(self) -> int:
        return self.products.launches + self.combination.launches

    def _products(self, places: Tensor, chunks: Tensor, found: Tensor, *_: Any, **__: Any) -> None:
        def work(program: int, left: Tensor, right: Tensor) -> None:
            found[program] = torch.stack([left @ left, left @ right + self.wrong, right @ right]).double()

        _each(work)(places, chunks)

    def _combination(
        self, places: Tensor, chunks: Tensor, mine: float, other: float, *_: Any, **__: Any
    ) -> None:
        def work(_: int, left: Tensor, right: Tensor) -> None:
            left.mul_(mine).add_(right, alpha=other)

        _each(work)(places, chunks)


@pytest.fixture
def slow_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowKernels]:
    kernels = SlowKernels()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    monkeypatch.setattr(fused, "_has_triton", lambda: True)
    monkeypatch.setattr(fused, "refused", {})
    fused._work.cache_clear()
    yield kernels
    fused._work.cache_clear()


def test_chunks_cover_every_number_once(slow_kernels: SlowKernels) -> None:
    retain, forget = gradients()
    r, f = flat(retain), flat(forget)
    assert fused.takes(retain, forget)
    assert_near(fused.inner_products(retain, forget), expected(retain, forget))
    fused.combine(retain, forget, (0.3, -2.5))
    torch.testing.assert_close(flat(retain), 0.3 * r - 2.5 * f, rtol=1e-6, atol=1e-6)


def test_a_pair_of_gradients_goes_through_the_kernels_but_for_what_only_one_task_has(
    slow_kernels: SlowKernels,
) -> None:
    net = nn.ModuleDict({name: nn.Linear(40, 30) for name in ("both", "retain", "forget")})
    row = torch.randn(40, generator=torch.Generator().manual_seed(0))
    pair = GradientPair(net.parameters())
    for task in ("forget", "retain"):
        with pair.task(task):  # type: ignore[arg-type]
            (net["both"](row).tanh() + net[task](row).tanh()).square().sum().backward()
    retain, forget = (pair.gradient(task) for task in ("retain", "forget"))  # type: ignore[arg-type]
    zeros = [torch.zeros_like(p) for p in net.parameters()]
    r, f = (
        flat([z if g is None else g for g, z in zip(side, zeros, strict=True)]) for side in (retain, forget)
    )
    gramian = pair.gramian()
    assert slow_kernels.launches == 3, "two for the trial, one for the products"
    torch.testing.assert_close(gramian, torch.stack([r, f]) @ torch.stack([r, f]).T, rtol=1e-6, atol=0)
    pair.combine(Weights(2.0, -3.0))
    assert slow_kernels.launches == 4
    found = flat([p.grad for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(found, 2 * r - 3 * f, rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_never_reads_the_other_gradient(slow_kernels: SlowKernels) -> None:
    parameter = nn.Parameter(torch.ones(2))
    pair = GradientPair([parameter])
    with pair.task("retain"):
        parameter.sum().backward()
    with pair.task("forget"):
        (parameter * torch.nan).sum().backward()
    pair.combine(Weights(1, 0))
    assert parameter.grad is not None and parameter.grad.tolist() == [1, 1]


def test_kernels_that_are_wrong_or_do_not_run_are_left_out_and_said_so(slow_kernels: SlowKernels) -> None:
    retain, forget = gradients()
    slow_kernels.wrong = 20.0
    assert not fused.takes(retain, forget)
    assert fused.refused == {"cpu": "Triton's kernels give wrong numbers"}
    fused._work.cache_clear()
    slow_kernels.products.launch = None
    assert not fused.takes(retain, forget)
    assert fused.refused == {"cpu": "Triton's kernels do not run (TypeError)"}


def test_gradients_of_other_kinds_are_left_to_the_loop(slow_kernels: SlowKernels) -> None:
    retain, forget = gradients()
    assert not fused.takes([retain[3], retain[0].double()], [forget[3], forget[0].double()])
    assert not fused.takes([retain[3]], [forget[3].t()]), "another order in memory"
    assert not fused.takes([retain[3][::2]], [forget[3][::2]]), "gaps in memory"
    assert fused.takes([retain[3].t()], [forget[3].t()])


# ---- how much there is to dispatch ----


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def test_operators_do_not_grow_with_the_number_of_tensors(slow_kernels: SlowKernels) -> None:
    """270 tensors: three kernels of ours, one sum over programs, and what brings six numbers to the host."""
    counts = []
    for number in (30, 270):
        parameters = [nn.Parameter(torch.ones(8)) for _ in range(number)]
        pair = GradientPair(parameters)
        for task in ("forget", "retain"):
            with pair.task(task):  # type: ignore[arg-type]
                torch.stack([p.sum() for p in parameters]).sum().backward()
        pair.gramian()  # the trial of the kernels, and the table of chunks
        kept = slow_kernels.products.launch, slow_kernels.combination.launch
        slow_kernels.products.launch = slow_kernels.combination.launch = lambda *_, **__: None
        before = slow_kernels.launches
        with Counted() as counted:
            pair.gramian()
            pair.combine(Weights(1.0, -1.0))
        assert slow_kernels.launches - before == 2
        counts.append(counted.operators)
        slow_kernels.products.launch, slow_kernels.combination.launch = kept
    assert counts[0] == counts[1] <= 20


# ---- Triton itself, where it is installed ----

IN_TRITON = """
import torch
from ngdiff.steps import fused, fused_kernels, products
for dtype in (torch.float32, torch.bfloat16):
    draw = torch.Generator().manual_seed(0)
    sizes = [(3, 5), (70_001,), (1,), (90, 300)]
    retain, forget = ([torch.randn(s, generator=draw).to(dtype) for s in sizes] for _ in range(2))
    assert fused.takes(retain, forget), fused.refused
    r, f = (torch.cat([t.double().flatten() for t in side]) for side in (retain, forget))
    error = (fused.inner_products(retain, forget) - torch.stack([r @ r, r @ f, f @ f])).abs().max()
    assert error <= 1e-6 * r.norm() * f.norm(), error
    wanted = [0.3 * r.float() - 2.5 * f.float() for r, f in zip(retain, forget)]
    fused.combine(retain, forget, (0.3, -2.5))
    for mine, other in zip(retain, wanted):
        # the interpreter cuts numbers off where it makes bfloat16 of them
        torch.testing.assert_close(mine.float(), other, rtol=8e-3, atol=1e-6)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for GPUs")
def test_the_kernels_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", IN_TRITON], check=True, env=environment, cwd=Path.cwd())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_on_a_gpu() -> None:
    retain, forget = ([g.cuda() for g in side] for side in gradients())
    assert fused.takes(retain, forget), fused.refused
    assert_near(fused.inner_products(retain, forget), expected(retain, forget))
