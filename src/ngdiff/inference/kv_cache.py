"""model -> caches of keys and values that grow in place, begin with a shared prompt, and take in rows.

A cache of transformers is copied whole for every token that it grows by. Here it has room to spare. All rows
of an evaluation begin with the same tokens, such as a template's system prompt; their keys and values are
computed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

States = Float[Tensor, "rows heads length width"]

_SPARE = 48
"""Columns that a cache has room for beyond those that it holds."""

_WORTH = 8
"""Tokens that a prefix must have to be run apart."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, in buffers with room to spare."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []

    def update(self, key_states: States, value_states: States, *_: Any, **__: Any) -> tuple[States, States]:
        """Append columns; return all keys and all values."""
        if not self._buffers:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return self.keys, self.values
        held, needed = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for place, new in enumerate((key_states, value_states)):
            buffer = self._buffers[place]
            if needed > buffer.shape[2]:
                buffer = _roomier(buffer[:, :, :held], needed)
                self._buffers[place] = buffer
            buffer[:, :, held:needed] = new
        self._look(needed)
        return self.keys, self.values

    def set(self, keys: States, values: States) -> None:
        """Hold these keys and values, and no others."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [_roomier(states, states.shape[2]) for states in (keys, values)]
        self._look(keys.shape[2])

    def batch_select_indices(self, indices: Int[Tensor, " kept"]) -> None:
        """Keep these rows."""
        held = self.keys.shape[2]
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._look(held)

    def _look(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)


def _roomier(states: States, columns: int) -> Tensor:
    rows, heads, held, width = states.shape
    bigger = states.new_empty((rows, heads, columns + _SPARE, width))
    bigger[:, :, :held] = states
    return bigger


def new_cache(model: Any) -> Any:
    """Return an empty cache; layers that keep all keys and values grow in place."""
    cache = DynamicCache(config=getattr(getattr(model, "module", model), "config", None))
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_everything(cache: Any) -> bool:
    """Return whether the cache is nothing but keys and values of all tokens."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def cache_name(model: Any) -> str:
    """Return what the model's forward calls its cache: transformers 5.24 renamed it."""
    inner = getattr(model, "module", model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


def cached_tokens(cache: Any) -> int:
    """Return how many columns the cache holds; 0 where there are layers without keys and values."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return 0


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all prompts begin with, the last of each left out; none where they are few."""
    if len(prompts) < 2:
        return []
    ordered = sorted(map(list, prompts))
    first, last = ordered[0], ordered[-1]  # what these two begin with, all in between begin with
    shortest = min(map(len, prompts)) - 1
    same = 0
    while same < shortest and first[same] == last[same]:
        same += 1
    return first[:same] if same >= _WORTH else []


class Prefix:
    """The keys and values of tokens that many sequences begin with.

    Args:
        model: in eval mode; called without gradients.
        ids: the tokens, at positions 0, 1, ...

    Raises:
        NotImplementedError: the model keeps something else than keys and values.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, tuple(ids)
        self._layers: list[tuple[States, States]] = []
        if not ids:
            return
        cache = new_cache(model)
        if not keeps_everything(cache):
            raise NotImplementedError("the model keeps something else than keys and values")
        device = next(model.parameters()).device
        tokens = torch.tensor([list(ids)], device=device)
        positions = torch.arange(len(ids), device=device).unsqueeze(0)
        settings: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1, cache_name(model): cache}
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, **settings)
        if cached_tokens(cache) != len(ids):
            raise NotImplementedError("the model keeps its state elsewhere")
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def __len__(self) -> int:
        return len(self.ids)

    def cache(self, padding: Int[Tensor, " rows"]) -> Any:
        """Return a cache of as many columns as the prefix has tokens, one row for each count of padding.

        A row begins with its padding, whose states mean nothing, and holds what then has room of the prefix.
        """
        cache = new_cache(self.model)
        if not self._layers:
            return cache
        places = torch.arange(len(self.ids), device=padding.device) - padding.unsqueeze(1)
        places = places.clamp(min=0)
        for layer, both in zip(cache.layers, self._layers, strict=True):
            layer.set(*(states[0][:, places].transpose(0, 1) for states in both))
        return cache


def joined(first: Any, second: Any) -> Any:
    """Add the rows of the second cache to the first; the one with fewer columns is padded in front."""
    for mine, theirs in zip(first.layers, second.layers, strict=True):
        columns = max(mine.keys.shape[2], theirs.keys.shape[2])
        pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
        mine.set(*(torch.cat([_in_front(states, columns) for states in pair]) for pair in pairs))
    return first


def _in_front(states: States, columns: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))
