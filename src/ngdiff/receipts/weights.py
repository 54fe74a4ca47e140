"""folder of a model -> the hash of its weights, worked out from its files again, a tensor at a time."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ngdiff.environment import update_with, weights_hash
from ngdiff.errors import RequestError
from ngdiff.models import load_model, resolve_model


def recomputed_weights_hash(folder: Path) -> str | None:
    """Return what :func:`ngdiff.environment.weights_hash` gave when the folder was written.

    None for an adapter, whose hash is that of adapter and base, and the base is elsewhere. Where files and
    parameters are named alike, as they are for most models, no model is built. An unreadable model has the
    hash ``unreadable``.
    """
    if (folder / "adapter_config.json").is_file():
        return None
    try:
        source = resolve_model(str(folder))
        if _named_alike(folder):
            return _hash_of_files(folder)
        return weights_hash(load_model(source))
    except (RequestError, SafetensorError, OSError):
        return "unreadable"


def _named_alike(folder: Path) -> bool:
    """Say whether the files' tensors are the model's parameters by name; tied ones stand there once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    stored = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                stored[name] = tuple(tensors.get_slice(name).get_shape())
    return parameters == stored


def _hash_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in folder.glob("*.safetensors"):
            tensors = stack.enter_context(safe_open(str(file), framework="pt"))
            places |= dict.fromkeys(tensors.keys(), tensors)
        for name in sorted(places):
            update_with(digest, name, places[name].get_tensor(name))
    return digest.hexdigest()
