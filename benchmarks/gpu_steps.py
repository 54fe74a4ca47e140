"""Steps on a device at its own pace: called by ``python -m benchmarks.steps --device cuda``.

For each shape, as medians over rounds in which all kinds of step take turns on the same batches: seconds,
share of the speed of the device's own matrix products, real tokens per second, peak memory, kernel launches
and waits of the host for the device. Kinds: ``plain`` (two losses through transformers' own forward, two
backward passes, one buffer), ``graddiff``, ``ngdiff``, ``default``; and what one point of a probe takes. Then
a run of 30 steps beside the sum of its steps. On a CPU operators are counted instead of launches and waits.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.steps import STEPS, Bench, linear_flops
from ngdiff.data.batching import Batch, collate_for_loss
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import IGNORED, output_head
from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.weighting import make_rule

KINDS = ("plain", *STEPS)
SHAPES: dict[str, dict[str, int]] = {
    # rows of each task, longest row, labelled tokens of a row; the shortest row is 0.6 of the longest
    "smollm2": {"rows": 32, "length": 110, "labelled": 40},
    "llama-1b": {"rows": 8, "length": 256, "labelled": 192},
    "tiny": {"rows": 4, "length": 12, "labelled": 5},
}
LLAMAS = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
    },
}
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class DeviceBench(Bench):
    """A model of one shape on a device, with random tokens and what the default method compares with."""

    def __init__(self, shape: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, sizes = device, SHAPES[shape]
        if shape in LLAMAS:
            self.model: nn.Module = LlamaForCausalLM(LlamaConfig(**LLAMAS[shape])).float()
        else:
            self.model = load_model(resolve_model(shape))
        self.model.to(device).train()
        weight = output_head(self.model).weight.detach().clone()
        self.head = lambda states: nn.functional.linear(states.to(weight.dtype), weight).float()
        self.batches = [self._batch(seed, weight, **sizes) for seed in range(4)]
        self.probes = [[self._batch(9 + seed, weight, **sizes)] for seed in range(4)]
        self.pair = GradientPair(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
        self.rule = make_rule("ngdiff")

    def _batch(self, seed: int, weight: torch.Tensor, rows: int, length: int, labelled: int) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        examples = []
        for row in range(rows):
            size = round(length * (0.6 + 0.4 * row / max(1, rows - 1)))
            ids = torch.randint(3, len(weight), (size,), generator=draw).tolist()
            known = min(labelled, size - 1)
            labels = [IGNORED] * (size - known) + ids[size - known :]
            one = EncodedExample(tuple(ids), tuple(labels), Example((), "", "text", "random"), False)
            states = torch.randn(known, weight.shape[1], generator=draw)
            object.__setattr__(one, "reference_states", states)
            object.__setattr__(one, "predictable", (0.5,) * known)
            examples.append(one)
        batch = collate_for_loss(examples, 0)
        return {name: value.to(self.device) for name, value in batch.items()}

    def plain(self, forget: Batch, retain: Batch) -> None:
        """Both losses as transformers works them out, into one buffer."""
        self.optimizer.zero_grad(set_to_none=True)
        for sign, batch in ((-1.0, forget), (1.0, retain)):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            (sign * self.model(**inputs, use_cache=False).loss).backward()
        self.optimizer.step()

    def take(self, kind: str, forget: Batch, retain: Batch) -> None:
        """Take one step under bfloat16 autocast; leave no gradients behind."""
        with torch.autocast(self.device.type, torch.bfloat16):
            getattr(self, kind)(forget, retain)

    def release(self) -> None:
        """Let go of all gradients, so that the next kind's peak is its own."""
        self.pair.clear()


def seconds(bench: DeviceBench, work: Callable[[], object]) -> float:
    """Return the seconds that something takes, the device's share included."""
    wait(bench.device)
    started = time.perf_counter()
    work()
    wait(bench.device)
    return time.perf_counter() - started


def product_speed(device: torch.device, size: int) -> float:
    """Return the operations per second of bfloat16 products of square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        torch.mm(left, right)
        wait(device)
        times.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(times)


def calls(bench: DeviceBench, work: Callable[[], object]) -> dict[str, int]:
    """Return launches and waits of one step, as torch's profiler sees them."""
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as seen:
        work()
        wait(bench.device)
    names = [event.name for event in seen.events()]
    if not cuda:
        return {"operators": sum(name.startswith("aten::") for name in names)}
    # the last wait is the one above
    return {
        "launches": sum(name in LAUNCHES for name in names),
        "waits": sum(name in WAITS for name in names) - 1,
    }


def peak_gib(bench: DeviceBench, work: Callable[[], object]) -> float | None:
    """Return the most memory that is taken at once during a step, weights and moments included."""
    bench.release()
    if bench.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(bench.device)
    work()
    wait(bench.device)
    return torch.cuda.max_memory_allocated(bench.device) / 2**30


def rounds(bench: DeviceBench, count: int) -> Iterator[tuple[str, float]]:
    """Yield kinds of step and what they took, in turning order; the first round warms up."""
    for turn, (forget, retain, probe) in zip(range(count + 1), bench.triples(), strict=False):
        first = turn % len(KINDS)
        for kind in (*KINDS[first:], *KINDS[:first]):
            took = seconds(bench, partial(bench.take, kind, forget, retain))
            if turn:
                yield kind, took
        took = seconds(bench, partial(bench.probe_loss, probe))
        if turn:
            yield "probe point", took


def measure(shape: str, device: torch.device, count: int) -> dict[str, Any]:
    """Return the figures of one shape."""
    bench = DeviceBench(shape, device)
    times: dict[str, list[float]] = {}
    for kind, took in rounds(bench, count):
        times.setdefault(kind, []).append(took)
    forget, retain, _ = next(bench.triples())
    flops, tokens = linear_flops(bench.model, (forget, retain))
    speed = product_speed(device, 8192 if device.type == "cuda" else 512)
    found: dict[str, Any] = {"probe_point_s": statistics.median(times.pop("probe point"))}
    for kind, took in times.items():
        middle, work = statistics.median(took), partial(bench.take, kind, forget, retain)
        found[kind] = {
            "step_s": middle,
            "over_plain": statistics.median(a / b for a, b in zip(took, times["plain"], strict=True)),
            "share_of_products": flops / middle / speed,
            "real_tokens_per_s": tokens / middle,
            "peak_gib": peak_gib(bench, work),
            **calls(bench, work),
        }
    both = zip(times["ngdiff"], times["graddiff"], strict=True)
    found["ngdiff_over_graddiff"] = statistics.median(mine / other for mine, other in both)
    return found


def whole_run(model: str, device: torch.device, steps: int) -> dict[str, float]:
    """Train as ``ngdiff unlearn`` does, checks and probes included, and return what it and its steps took."""
    from ngdiff.invented.people import invent_people, question_rows
    from ngdiff.training.config import UnlearningConfig
    from ngdiff.training.trainer import UnlearningTrainer

    source = resolve_model(model)
    rows = question_rows(invent_people(60, 3))
    with tempfile.TemporaryDirectory() as folder:
        settings = UnlearningConfig(
            output_dir=folder,
            max_steps=steps,
            stop_at="none",
            bf16=True,
            use_cpu=device.type == "cpu",
            disable_tqdm=True,
            logging_strategy="no",
            report_to="none",
        )
        trainer = UnlearningTrainer(
            load_model(source),
            settings,
            forget_dataset=rows[: len(rows) // 3],
            retain_dataset=rows[len(rows) // 3 :],
            processing_class=load_tokenizer(source),
        )
        started = time.perf_counter()
        trainer.train()
        took = time.perf_counter() - started
    own = sum(step.seconds for step in trainer.record.steps)
    return {"run_s": took, "its_steps_s": own, "run_over_steps": took / own}


def report(device: torch.device, count: int, shapes: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Return all figures, with the name of the device that gave them."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "rounds": count}
    for shape in shapes:
        found[shape] = measure(shape, device, count)
        if cuda:
            torch.cuda.empty_cache()
    if steps:
        found["run"] = whole_run("smollm2", device, steps)
    return found
