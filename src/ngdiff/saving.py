"""a trained model, perhaps in parts on several processes -> its files, as one process would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ngdiff.evaluation.distributed import is_main
from ngdiff.parallel import barrier, is_sharded, whole


def save_model(model: Any, folder: Path) -> None:
    """Write a model, or the adapters that were trained on it, with ``save_pretrained``.

    Every process has to call it; the first one writes. Sharded parameters are gathered one at a time, into
    the memory of the first process's CPU.

    Args:
        model: unwrapped (no DDP around it).
        folder: where to.
    """
    state = whole_state(model)
    if is_main():
        model.save_pretrained(folder, state_dict=state)
    barrier()


def whole_state(model: Any) -> dict[str, Tensor] | None:
    """Gather what belongs into a file; None where nothing is sharded, and the model knows it all itself.

    On other processes than the first the tensors are let go at once.
    """
    if not is_sharded(model):
        return None
    adapters = hasattr(model, "peft_config")
    gathered: dict[
        int, Tensor
    ] = {}  # a tied weight is one tensor under two names, and is to be one in the file
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if adapters and not parameter.requires_grad:
            continue
        if id(parameter) not in gathered:
            tensor = whole(parameter)
            gathered[id(parameter)] = tensor.cpu() if is_main() else tensor.new_empty(0)
        state[name] = gathered[id(parameter)]
    if not adapters:
        state |= {name: value for name, value in model.state_dict().items() if name not in state}
    return state
