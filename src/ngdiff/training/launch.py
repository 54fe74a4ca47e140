"""an unlearning trainer and its launcher -> how work is shared between processes, and what cannot run so."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import strtobool

from ngdiff.data.sharing import StepShares, examples_of_a_step
from ngdiff.errors import Fault, RequestError
from ngdiff.models.head import may_stand_apart
from ngdiff.models.logprobs import output_head
from ngdiff.settings import flag_of
from ngdiff.steps.weighting import RULES

if TYPE_CHECKING:
    from ngdiff.record import RunRecord
    from ngdiff.training.config import UnlearningConfig
    from ngdiff.training.trainer import UnlearningTrainer

FSDP2 = "Use FSDP2 instead: accelerate launch --config_file examples/distributed/fsdp2_8gpu.yaml"


def share_steps(args: Any, record: RunRecord | None = None, forget: int = 0) -> StepShares:
    """Divide a step's examples among the processes that were started, and tell ``transformers`` how.

    ``examples_per_step`` does not depend on the number of processes; 0 lets a step grow with it, as elsewhere
    in ``transformers``; None derives it from the size of the forget set. Settings without it describe the
    step of one process.

    Args:
        args: the settings.
        record: takes notes.
        forget: examples of the forget set.
    """
    if args.n_gpu > 1:
        # one process would copy the model to every GPU at every step (DataParallel), past all hooks
        seen, args._n_gpu = args.n_gpu, 1
        if record is not None:
            record.note(f"one of {seen} GPUs is used: start one process for each GPU with torchrun")
    processes = int(args.world_size)
    largest, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    asked = getattr(args, "examples_per_step", largest * accumulation)
    if asked is None:
        asked = examples_of_a_step(forget)
    examples = asked or largest * accumulation * processes
    if getattr(args, "batch_is_found", False) and args.device.type == "cuda":
        largest = -(-examples // processes)  # as many as fit: see ngdiff.training.micro_batches
    shares = StepShares.of(examples, largest, processes)
    args.per_device_train_batch_size = shares.micro_batch
    args.gradient_accumulation_steps = shares.accumulation
    if shares.idle and record is not None:
        record.note(
            f"{examples} examples a step cannot be shared evenly by {processes} processes: {shares.idle} "
            "wait at the end of each step. The result is the same; a multiple of the processes is faster"
        )
    return shares


def launch_faults(args: UnlearningConfig) -> list[Fault]:
    """Return the launcher settings that unlearning does not support, read from the environment alone."""
    faults: list[Fault] = []
    if _deepspeed_asked(args):
        faults += _deepspeed_faults(args, _zero_stage(args))
        if not faults and importlib.util.find_spec("deepspeed") is None:
            faults.append(Fault("accelerate launch", "DeepSpeed is not installed", "pip install deepspeed"))
    if _flag("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        what = "FSDP1 flattens parameters together, so gradients cannot be told apart by parameter"
        faults.append(Fault("accelerate launch", what, "Set fsdp_version: 2"))
    sharded = _flag("ACCELERATE_USE_FSDP") or bool(args.fsdp)
    return faults + (_evaluation_faults(args) if sharded else [])


def _evaluation_faults(args: UnlearningConfig) -> list[Fault]:
    if not args.eval_steps:
        return []
    what = "evaluations during the run need the whole model on each process, and FSDP2 has it in parts"
    return [Fault(flag_of("eval_steps"), what, "Remove it, and evaluate the result")]


def _flag(name: str) -> bool:
    return bool(strtobool(os.environ.get(name, "false")))


def _deepspeed_asked(args: UnlearningConfig) -> bool:
    return _flag("ACCELERATE_USE_DEEPSPEED") or args.deepspeed is not None


def _zero_stage(args: UnlearningConfig) -> int:
    """Return DeepSpeed's ZeRO stage, as far as it can be seen; 2 where it cannot, accelerate's default."""
    given: Any = args.deepspeed if isinstance(args.deepspeed, dict) else {}
    stage = given.get("zero_optimization", {}).get("stage", os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"))
    return int(stage) if str(stage).isdigit() else 2


def _deepspeed_faults(args: UnlearningConfig, stage: int) -> list[Fault]:
    faults = []
    needing = [
        (f"the rule {args.rule!r}", "--rule", not RULES[str(args.rule)].fixed),
        ("sam_radius", flag_of("sam_radius"), args.sam_radius > 0),
    ]
    for name, flag in [(name, flag) for name, flag, given in needing if given][:1]:
        what = f"DeepSpeed keeps gradients to itself, so {name}, which needs two of them, cannot run under it"
        faults.append(Fault(flag, what, FSDP2))
    if args.automatic:
        what = "DeepSpeed keeps its own copy of the weights, so a probe of the learning rate cannot move them"
        faults.append(Fault("--lr", what, f"Give a fixed rate such as --lr 1e-5. {FSDP2}"))
    what = "ZeRO-3 leaves no whole weights on any process, so the best ones cannot be restored"
    if stage == 3 and args.stop_at != "none":
        faults.append(Fault("--stop-at", what, f"Give --stop-at none, or ZeRO stage 2. {FSDP2}"))
    if stage == 3 and (args.keep_utility > 0 or any(args.floors.values())):
        faults.append(Fault("--keep-utility", what, f"Give --keep-utility 0, or ZeRO stage 2. {FSDP2}"))
    return faults


def check(trainer: UnlearningTrainer) -> None:
    """Refuse what cannot run, and keep gradients precise, once the accelerator exists.

    Raises:
        RequestError: something cannot run under DeepSpeed or FSDP.
    """
    if trainer.is_deepspeed_enabled:
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        faults = _deepspeed_faults(trainer.args, int(getattr(plugin, "zero_stage", 2)))
        if faults:
            raise RequestError(faults)
    check_sharding(trainer)
    faults = _evaluation_faults(trainer.args) if trainer.is_fsdp_enabled else []
    if faults:
        raise RequestError(faults)


def check_sharding(trainer: Any) -> None:
    """Refuse FSDP1, and make FSDP2 sum gradients in float32.

    Raises:
        RequestError: FSDP1 was asked for.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        what = "FSDP1 flattens parameters together, so gradients cannot be told apart by parameter"
        raise RequestError(Fault("accelerate launch", what, "Set fsdp_version: 2"))
    policy = plugin.mixed_precision_policy
    if policy is not None and policy.reduce_dtype == torch.bfloat16:
        # accelerate sums gradients in what it computes in; a norm needs more than bfloat16's eight bits
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)


def adds_up_itself(trainer: UnlearningTrainer, model: nn.Module) -> bool:
    """Return whether gradients are summed over processes after the last micro-batch, not by DDP's reducer.

    The reducer follows the graph of what the forward pass returned: it does not see a loss on hidden
    states, from which logits may be computed in parts. And it writes into ``parameter.grad``, which a
    forget buffer elsewhere has emptied.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return False
    hidden = any(loss.looks_at == "activations" for loss in trainer.losses.values())
    return hidden or may_stand_apart(output_head(model)) or trainer.args.forget_buffer != "device"


Weighted = list[tuple[float, float]]
"""Values with their weights."""


def weighted_mean(values: Weighted) -> float | None:
    """Return the mean; None where there is nothing to average."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total > 0 else None
