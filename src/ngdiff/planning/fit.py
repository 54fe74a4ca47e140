"""model, method and machine -> whether a run fits, and what to switch on where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from ngdiff.methods import RUN, Method, find_method
from ngdiff.models.loading import ModelSource
from ngdiff.planning.memory import GIB, Parts, Plan, Shapes, host_bytes, measure, parts
from ngdiff.steps.weighting import RULES


def configuration(source: ModelSource) -> Any:
    """Read a model's configuration alone; for an adapter that of its base model."""
    from transformers import AutoConfig

    from ngdiff.models.loading import resolve_model

    if source.adapter and source.base:
        return configuration(resolve_model(source.base, trust_remote_code=source.trust_remote_code))
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return AutoConfig.from_pretrained(source.location, trust_remote_code=source.trust_remote_code, **extra)


def builder(config: Any) -> Callable[[], nn.Module]:
    """Return what builds the model of a configuration, wherever new tensors go to."""
    from transformers import AutoModelForCausalLM

    def build() -> nn.Module:
        model: nn.Module = AutoModelForCausalLM.from_config(config)
        return model

    return build


def with_method(plan: Plan, name: str) -> Plan:
    """Return what a method needs: one gradient or two, probes or none, and its losses.

    Raises:
        RequestError: there is no such method.
    """
    method = find_method(name)
    return replace(
        plan,
        two_gradients=not RULES[method.rule].fixed or _sharpens(method),
        sharpens=_sharpens(method),
        automatic=method.step_size != "fixed",
        forget_loss=method.forget_loss,
        retain_loss=method.retain_loss,
    )


def _sharpens(method: Method) -> bool:
    return float({**RUN, **method.run}["sam_radius"]) > 0


@dataclass(frozen=True)
class Estimate:
    """What one plan takes.

    Args:
        words: what was switched on, as on the command line; empty for the plan as asked.
        plan: the plan.
        parts: bytes on each device.
        host: bytes of ordinary memory on a machine that has all devices.
    """

    words: str
    plan: Plan
    parts: Parts
    host: int

    def fits(self, memory_gib: float) -> bool:
        """Return whether it fits devices of so much memory."""
        return self.parts.total <= memory_gib * GIB


class Estimator:
    """Estimates plans for one model; what several plans share is measured once.

    Args:
        build: returns the model, as :func:`ngdiff.planning.memory.measure` wants it.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._measure = cache(lambda plan: measure(build, plan))

    def shapes(self, plan: Plan) -> Shapes:
        """Measure what a plan keeps."""
        sharded = plan.shards > 1
        alike = replace(plan, checkpointing=False, forget_buffer="device", two_gradients=True, automatic=True)
        return self._measure(replace(alike, devices=2 if sharded else 1))

    def estimate(self, plan: Plan, words: str = "") -> Estimate:
        """Compute what a plan takes."""
        shapes = self.shapes(plan)
        return Estimate(words, plan, parts(shapes, plan), host_bytes(shapes, plan))

    def until_it_fits(self, plan: Plan, memory_gib: float) -> Iterator[Estimate]:
        """Switch on one saving after another, and yield each, up to the first plan that fits."""
        for words, saving in savings(plan):
            found = self.estimate(saving, words)
            yield found
            if found.fits(memory_gib):
                return


def savings(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield plans that take less and less, with what each adds to the one before; cheapest in time first."""
    if plan.devices > 1 and plan.sharding == "ddp" and plan.adapters != "qlora":
        plan = replace(plan, sharding="fsdp")
        yield "--fsdp", plan
    if not plan.checkpointing:
        plan = replace(plan, checkpointing=True)
        yield "--gradient-checkpointing", plan
    if plan.two_gradients and plan.forget_buffer == "device":
        plan = replace(plan, forget_buffer="bf16")
        yield "--forget-buffer bf16", plan
    if plan.two_gradients and plan.forget_buffer == "bf16":
        plan = replace(plan, forget_buffer="cpu")
        yield "--forget-buffer cpu", plan
    while plan.batch_size > 1:
        plan = replace(plan, batch_size=plan.batch_size // 2)
        yield f"--batch-size {plan.batch_size}", plan
    if plan.adapters == "none":
        plan = replace(plan, adapters="lora")
        yield "--lora", plan
    if plan.adapters == "lora":
        plan = replace(plan, adapters="qlora", sharding="ddp")
        yield "--qlora", plan
