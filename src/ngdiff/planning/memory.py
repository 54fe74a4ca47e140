"""model, method and machine -> bytes that training takes on each device, part by part, with nothing loaded.

The parts of one optimizer step that are there at the same time:

- weights; the gradient of the retain loss; the second buffer, which holds the forget gradient (and, where
the rate is
  automatic, a copy of the weights during probes); the optimizer's two moments;
- activations: what the decoder keeps of one micro-batch for its backward pass, casts of weights to bf16
included; - the head: logits of the labelled positions, what the loss keeps of them, and their gradient.

Activations and head are not guessed: the model runs once on fake tensors, which have shapes and no memory,
and what autograd keeps is added up. That holds for any architecture. The parts are added, which is the peak
where gradients are accumulated over micro-batches (both buffers are full while the next one runs forward),
and a little more than it where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.modeling_layers import GradientCheckpointingLayer

from ngdiff.losses import LOSSES, Loss
from ngdiff.methods import RUN, Method, find_method
from ngdiff.models.adapters import with_lora
from ngdiff.models.head import tokens_at_once
from ngdiff.models.loading import ModelSource
from ngdiff.models.logprobs import LabelledTokens, output_head
from ngdiff.models.packing import attention_as_on_a_gpu
from ngdiff.preparation.counterfactual import KEPT
from ngdiff.steps.weighting import RULES

GIB = 2**30
Adapters = Literal["none", "lora", "qlora"]
Sharding = Literal["ddp", "fsdp"]
ForgetBuffer = Literal["device", "cpu", "bf16"]

FLOAT32, BF16 = 4, 2
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight in 4 bits: itself, an 8-bit scale for 64 of them, a float32 scale for 256 of those."""
MOMENTS = 2
CONTEXT = GIB // 2
"""What a CUDA context and the kernels' own workspaces take on a GPU: about half a GiB, from experience."""


@dataclass(frozen=True)
class Plan:
    """What is to be run, and on what.

    Args:
        adapters: ``lora`` trains adapters, ``qlora`` on weights in 4 bits.
        batch_size: forget, and as many retain, examples of a micro-batch on one device.
        length: tokens of the longest sequence; all are taken to be as long.
        answer: labelled tokens of a sequence; None for all of them, as where texts are forgotten.
        checkpointing: keep only each layer's input, and run it again in the backward pass.
        forget_buffer: where the second gradient is kept.
        two_gradients: whether the method keeps both gradients apart.
        automatic: whether the learning rate is found by probes.
        sharpens: whether steps move uphill first, and keep a copy of the trainable weights meanwhile.
        forget_loss: name of the loss, for what it keeps of the logits.
        retain_loss: of the method; one that compares predictions has the starting model's head beside the
            model.
        bf16: bfloat16 autocast.
        devices: GPUs.
        sharding: ``fsdp`` gives each device a part of weights, gradients and moments, ``ddp`` all of them.
    """

    adapters: Adapters = "none"
    batch_size: int = 8
    length: int = 512
    answer: int | None = None
    checkpointing: bool = False
    forget_buffer: ForgetBuffer = "device"
    two_gradients: bool = True
    automatic: bool = True
    sharpens: bool = False
    forget_loss: str = "counterfactual"
    retain_loss: str = "kl"
    bf16: bool = True
    devices: int = 1
    sharding: Sharding = "ddp"

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and moments are cut into."""
        return self.devices if self.sharding == "fsdp" else 1


@dataclass(frozen=True)
class Parts:
    """Bytes on each device, part by part."""

    weights: int
    gradient: int
    second_buffer: int
    moments: int
    activations: int
    head: int
    starting_head: int = 0
    communication: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Shapes:
    """How many numbers a model has, and what it keeps of one micro-batch.

    Args:
        parameters: all weights.
        trainable: those that get a gradient.
        quantised: those held in 4 bits.
        largest: weights of the largest matrix in 4 bits.
        gathered: weights of the largest layer, or of embedding or head where these are larger: what FSDP
            puts together at a time.
        kept: bytes that all layers keep for the backward pass; of these
        kept_by_a_layer: the most that one layer does, and
        inputs: the bytes of all layers' inputs.
        outside: bytes kept by neither layer nor head.
        head: bytes of logits, of what the loss that keeps most of them does, and of their gradient.
        starting_head: bytes of the starting model's output head, where a loss compares predictions.
    """

    parameters: int
    trainable: int
    quantised: int
    largest: int
    gathered: int
    kept: int
    kept_by_a_layer: int
    inputs: int
    outside: int
    head: int
    starting_head: int = 0


def parts(shapes: Shapes, plan: Plan) -> Parts:
    """Return the bytes on one device."""
    shards = plan.shards
    second = second_buffer_bytes(shapes.trainable, plan)
    kept = shapes.inputs + shapes.kept_by_a_layer if plan.checkpointing else shapes.kept
    copy = FLOAT32 * shapes.trainable if plan.sharpens else 0
    return Parts(
        weights=_share(weight_bytes(shapes) + copy, shards),
        gradient=_share(FLOAT32 * shapes.trainable, shards),
        second_buffer=_share(second, shards),
        moments=_share(MOMENTS * FLOAT32 * shapes.trainable, shards),
        activations=kept + shapes.outside,
        head=shapes.head,
        starting_head=shapes.starting_head,
        communication=communication_bytes(shapes, plan),
        context=CONTEXT,
    )


def _share(count: int, shards: int) -> int:
    return -(-count // shards)


def weight_bytes(shapes: Shapes) -> int:
    """Return the bytes of the weights: float32, or 4 bits and the largest matrix of these unpacked."""
    unpacked = BF16 * shapes.largest if shapes.quantised else 0
    return FLOAT32 * (shapes.parameters - shapes.quantised) + round(NF4 * shapes.quantised) + unpacked


def second_buffer_bytes(trainable: int, plan: Plan) -> int:
    """Return the bytes of the forget gradient on the device.

    A method of one gradient has none; where its rate is automatic, probes keep a copy of the weights all
    the same, as large as the buffer.
    """
    if not plan.two_gradients:
        return FLOAT32 * trainable if plan.automatic else 0
    return {"device": FLOAT32, "bf16": BF16, "cpu": 0}[plan.forget_buffer] * trainable


def communication_bytes(shapes: Shapes, plan: Plan) -> int:
    """Return the bytes that several devices need to speak to one another.

    DDP copies gradients into buckets, as many bytes as there are gradients. FSDP puts one layer's weights
    together while it is used, and the next one's meanwhile, and one layer's gradients: three of the
    largest.
    """
    if plan.devices == 1:
        return 0
    if plan.sharding == "ddp":
        return FLOAT32 * shapes.trainable
    return 3 * (BF16 if plan.bf16 else FLOAT32) * shapes.gathered


def host_bytes(shapes: Shapes, plan: Plan) -> int:
    """Return the bytes of ordinary memory on one machine: a float32 model while it loads, for each process.

    The best weights so far, which are kept on disk, pass through as much again while they are written; a
    forget buffer on the CPU stays there.
    """
    processes = 1 if plan.sharding == "fsdp" else plan.devices
    forget = FLOAT32 * shapes.trainable if plan.forget_buffer == "cpu" and plan.two_gradients else 0
    return processes * FLOAT32 * max(shapes.parameters, 2 * shapes.trainable) + forget * processes


# ---- what a model keeps, from one run on fake tensors ----


def measure(build: Callable[[], nn.Module], plan: Plan) -> Shapes:
    """Build a model of fake tensors and run one micro-batch forward.

    Args:
        build: returns the model, without weights of its own to load, such as
            ``lambda: AutoModelForCausalLM.from_config(config)``.
        plan: for batch, length, adapters, precision and loss.
    """
    with torch.device("meta"):
        model = build()
        linear = _linear_layers(model)
        sizes = [p.numel() for p in model.parameters()]
        if plan.adapters != "none":
            model = with_lora(model)
    if plan.bf16 and (plan.adapters == "qlora" or plan.shards > 1):
        for layer in linear:  # unpacked, or put together, in bf16 layer by layer: no cast of them is kept
            weight = layer.weight.detach().to(torch.bfloat16)
            layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    mode = FakeTensorMode()
    _pretend(model, mode)
    with mode, attention_as_on_a_gpu():
        kept = _Kept(model.train())
        kept.run(plan)
    quantised = [layer.weight.numel() for layer in linear] if plan.adapters == "qlora" else []
    return Shapes(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        quantised=sum(quantised),
        largest=max(quantised, default=0),
        gathered=max([*_layer_sizes(model), *sizes]),
        kept=sum(kept.by_layer.values()),
        kept_by_a_layer=max(kept.by_layer.values(), default=0),
        inputs=sum(kept.inputs.values()),
        outside=kept.outside,
        head=kept.head,
        starting_head=kept.starting_head,
    )


def _pretend(model: nn.Module, mode: FakeTensorMode) -> None:
    """Let parameters and buffers on the meta device pass for ones on the CPU."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            made[id(tensor)] = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
        return made[id(tensor)]

    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = parameters.get(id(parameter))
            if place is None:
                place = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                parameters[id(parameter)] = place
            setattr(module, name, place)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake(buffer))


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    head = output_head(model)
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


def _layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _layer_sizes(model: nn.Module) -> list[int]:
    return [sum(p.numel() for p in layer.parameters()) for layer in _layers(model)]


class _Kept:
    """Adds up what autograd keeps of one forward pass, by the part of the model that runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_layer: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self.outside = self.head = self.starting_head = 0
        self._inside: int | None = None
        self._in_head = False
        self._seen: dict[int, Tensor] = {}  # kept alive, so that no other storage takes the same place
        for tensor in (*model.parameters(), *model.buffers()):
            self._seen[_storage(tensor)] = tensor

    def run(self, plan: Plan) -> None:
        """Run one micro-batch through model and loss."""
        ids = torch.ones(plan.batch_size, plan.length, dtype=torch.long)
        positions = plan.batch_size * min(plan.answer or plan.length, plan.length - 1)
        head: Any = output_head(self.model)
        if positions > tokens_at_once(head.weight.shape[0]) and plan.sharding == "ddp":
            self.head += positions * int(head.weight.shape[1]) * FLOAT32
            positions = tokens_at_once(head.weight.shape[0])
        with ExitStack() as stack:
            for hook in self._hooks(positions):
                stack.callback(hook.remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                output = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                self._in_head = True
                logits = output.logits.squeeze(0).float()
                targets = torch.zeros(positions, dtype=torch.long)
                rows = torch.zeros(positions, dtype=torch.long)
                tokens = LabelledTokens(logits, targets, rows, plan.batch_size)
                self.head += max(
                    self._taken_by(name, tokens) for name in (plan.forget_loss, plan.retain_loss)
                )
        self.head += 2 * logits.numel() * FLOAT32  # its gradient, and that before the log-softmax

    def _taken_by(self, name: str, tokens: LabelledTokens) -> int:
        """Return what a loss keeps of the logits, and the starting model's where it compares with these."""
        before, seen, loss = self.head, dict(self._seen), LOSSES[name]
        starting = torch.zeros_like(tokens.whole_logits()) if loss.compares == "predictions" else None
        if starting is not None:
            # itself, and its log-softmax while the loss is computed
            self.head += 2 * starting.numel() * FLOAT32
            head = output_head(self.model)
            self.starting_head = sum(FLOAT32 * p.numel() for p in head.parameters(recurse=False))
        loss = _counted(loss).complete({}, {"never-seen NLL": 1.0})
        if loss.expected:
            ids = tokens.targets.unsqueeze(1).repeat(1, 1 + KEPT)
            tokens = replace(
                tokens, expected_ids=ids, expected_probs=torch.zeros_like(ids, dtype=torch.float32)
            )
        loss.function(replace(tokens, reference_logits=starting))
        taken, self.head, self._seen = self.head - before, before, seen
        return taken

    def _hooks(self, positions: int) -> Iterator[Any]:
        for number, layer in enumerate(_layers(self.model)):
            yield layer.register_forward_pre_hook(self._entering(number), with_kwargs=True)
            yield layer.register_forward_hook(self._leaving)
        yield output_head(self.model).register_forward_pre_hook(self._narrow(positions))

    def _entering(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside = number
            hidden = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            if hidden is not None:
                self.inputs[number] = hidden.numel() * hidden.element_size()

        return hook

    def _leaving(self, *_: Any) -> None:
        self._inside = None

    def _narrow(self, positions: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            self._in_head = True
            return (args[0].flatten(0, 1)[:positions].unsqueeze(0), *args[1:])

        return hook

    def _keep(self, tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place not in self._seen:
            self._seen[place] = tensor
            size = tensor.untyped_storage().nbytes()
            if self._in_head:
                self.head += size
            elif self._inside is not None:
                self.by_layer[self._inside] = self.by_layer.get(self._inside, 0) + size
            else:
                self.outside += size
        return tensor


def _counted(loss: Loss) -> Loss:
    """Return the loss; for one that looks at more than logits, one that keeps as much of them."""
    more = loss.compares not in (None, "predictions") or loss.other_answers is not None
    return LOSSES["unlikelihood"] if more or loss.looks_at != "predictions" else loss


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# ---- what fits ----


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
