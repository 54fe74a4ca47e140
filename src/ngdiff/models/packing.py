"""a padded batch -> one row of its real tokens, through a model whose attention keeps the sequences apart.

Outside the attention, padding costs as much as text: every layer's matrix products run over it. Here they run
over the real tokens alone, one sequence after the other, each with its own positions. Only the attention sees
the sequences as padded rows, where a causal mask suffices and its fast kernels apply. Flash and flex
attention are told where the sequences begin, as :class:`transformers.DataCollatorWithFlattening` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

WORTH = 0.02
"""Share of padding from which a batch is packed."""
_TRIAL = ((3, 5, 7, 2, 4, 6, 8), (9, 4, 2), (5, 2, 8, 3, 7))
"""Token ids of three sequences that a model must read the same both ways."""
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")

refused: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Why a model's batches are padded, for the record of the run."""
_taken: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Rows(NamedTuple):
    """Positions of the tokens of packed rows in padded ones.

    Args:
        number: of rows.
        length: of the padded rows.
        real: position of each real token among all padded positions, row after row.
        token: the real token at each padded position; 0 where there is none.
        empty: which padded positions have none.
    """

    number: int
    length: int
    real: Tensor
    token: Tensor
    empty: Tensor


def rows_of(real: Tensor, number: int, length: int) -> Rows:
    """Return the positions of tokens, without reading numbers from the device."""
    order = torch.arange(len(real), device=real.device)
    token = torch.zeros(number * length, dtype=torch.long, device=real.device).scatter_(0, real, order)
    empty = torch.ones(number * length, dtype=torch.bool, device=real.device).index_fill_(0, real, False)
    return Rows(number, length, real, token, empty)


def inputs_for(model: nn.Module, batch: Mapping[str, Tensor], packed: Rows | None) -> dict[str, Any]:
    """Return the model's arguments.

    Args:
        model: unwrapped or not.
        batch: ``input_ids`` and ``attention_mask``, of shape (rows, length).
        packed: where the real tokens lie; None to run the padded batch.
    """
    ids = batch["input_ids"]
    if packed is None:
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "use_cache": False}
    positions = packed.real % packed.length
    found = {
        "input_ids": ids.flatten()[packed.real].unsqueeze(0),
        "position_ids": positions.unsqueeze(0),
        "use_cache": False,
    }
    if _implementation(model) == "sdpa":
        # a mask of four dimensions is passed on unchanged, and none of quadratic size is made
        nothing = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device)
        return {**found, "attention_mask": nothing, "packed_rows": packed}
    lengths = (~packed.empty).view(packed.number, packed.length).sum(dim=1, dtype=torch.int32)
    ends = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    limits = {f"cu_seq_lens_{side}": ends for side in "qk"} | {f"max_length_{s}": packed.length for s in "qk"}
    return {**found, "attention_mask": None, **(limits if "flash" in _implementation(model) else {})}


# ---- attention ----


class _Spread(torch.autograd.Function):
    """Packed tokens -> padded rows; the content of empty positions is never read."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return states.index_select(0, rows.token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.rows.real), None


class _Gather(torch.autograd.Function):
    """Padded rows -> packed tokens; empty positions have no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return states.index_select(0, rows.real)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows: Rows = ctx.rows
        spread = gradients[0].index_select(0, rows.token)
        return spread.masked_fill_(rows.empty.view(-1, *[1] * (spread.dim() - 1)), 0.0), None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: Rows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Apply ``transformers``' attention, separately for each sequence of a packed row.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, width).
        key: of the same shape, possibly with fewer heads.
        value: of the shape of ``key``.
        attention_mask: ignored where rows are packed.
        packed_rows: positions of the tokens; None for a padded batch.
        settings: scaling, dropout and so on; a sliding window is respected.
    """
    if packed_rows is None:
        return _attention(module, query, key, value, attention_mask, **settings), None
    rows = packed_rows
    mask = _window(settings.get("sliding_window"), rows.length, query.device)
    query, key, value = (_padded(states, rows) for states in (query, key, value))
    output = _attention(module, query, key, value, mask, **{**settings, "is_causal": True})
    flat = output.reshape(rows.number * rows.length, *output.shape[2:])
    return _Gather.apply(flat, rows).unsqueeze(0), None  # type: ignore[no-untyped-call]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> Tensor:
    """Call ``transformers``' attention; in float32 where bf16 gradients are computed on a CPU.

    There the backward pass of torch's bf16 kernel takes twice as long as that of float32 for sequences of up
    to 128 tokens, and as long for longer ones.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: Tensor
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if query.device.type != "cpu" or low != torch.bfloat16 or not torch.is_grad_enabled() or _as_on_a_gpu:
        output, _ = sdpa_attention_forward(module, query, key, value, mask, **settings)
        return output
    with torch.autocast("cpu", enabled=False):
        states = (query.float(), key.float(), value.float())
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
        output, _ = sdpa_attention_forward(module, *states, mask, **settings)
    return output.to(low)


_as_on_a_gpu: list[bool] = []


@contextmanager
def attention_as_on_a_gpu() -> Iterator[None]:
    """Leave attention in bf16 on a CPU, too: for counting what a GPU would keep."""
    _as_on_a_gpu.append(True)
    try:
        yield
    finally:
        _as_on_a_gpu.pop()


def _padded(states: Tensor, rows: Rows) -> Tensor:
    tokens = _Spread.apply(states.squeeze(0).transpose(0, 1), rows)  # type: ignore[no-untyped-call]
    padded: Tensor = tokens.view(rows.number, rows.length, *tokens.shape[1:]).transpose(1, 2)
    return padded


def _window(size: int | None, length: int, device: torch.device) -> Tensor | None:
    """Return which positions each position sees, where these are not simply all earlier ones."""
    if size is None or length <= size:
        return None
    place = torch.arange(length, device=device)
    apart = place.unsqueeze(1) - place
    return ((apart >= 0) & (apart < size))[None, None]


@cache
def register() -> None:
    """Register :func:`attend` with ``transformers``, once.

    Call it before every forward pass that has gradients, whether its rows are packed or not. Where only the
    first packed row did, a resumed run used another attention than the run it continues, until that row came.
    """
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("sdpa", attend)


# ---- which models take packed rows ----


def takes_packed(model: nn.Module) -> bool:
    """Return whether a model predicts the same for packed and padded rows; tried once, on three sequences."""
    inner: nn.Module = getattr(model, "module", model)
    if inner not in _taken:
        why = _why_not(inner)
        if why is not None:
            refused[inner] = why
        _taken[inner] = why is None
    return _taken[inner]


def _config(model: nn.Module) -> Any:
    config: Any = getattr(getattr(model, "module", model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _implementation(model: nn.Module) -> str:
    return str(getattr(_config(model), "_attn_implementation", None))


def _why_not(model: nn.Module) -> str | None:
    name = _implementation(model)
    if name not in ("sdpa", "flex_attention") and "flash" not in name:
        return f"attention of the kind {name!r} cannot keep packed rows apart"
    if any(base.__name__ in _SHARDED for module in model.modules() for base in type(module).__mro__):
        return "a model whose weights are split over processes is not tried on packed rows"
    if "chunked_attention" in (getattr(_config(model), "layer_types", None) or ()):
        return "attention to chunks of a text cannot keep packed rows apart"
    register()
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            alike = _agrees(model)
    except Exception as error:
        return f"the model does not accept packed rows ({type(error).__name__})"
    finally:
        for module, training in before:
            module.training = training
    return None if alike else "the model's predictions for packed rows differ from those for padded ones"


def _agrees(model: nn.Module) -> bool:
    """Run the trial's sequences both ways; return whether the predictions agree."""
    device = next(model.parameters()).device
    lengths, longest = [len(ids) for ids in _TRIAL], max(map(len, _TRIAL))
    ids = torch.zeros((len(_TRIAL), longest), dtype=torch.long)
    for row, tokens in enumerate(_TRIAL):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long()
    real = mask.flatten().nonzero().squeeze(1).to(device)
    batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    packed = model(**inputs_for(model, batch, rows_of(real, *ids.shape))).logits[0].float()
    padded = model(**inputs_for(model, batch, None)).logits.flatten(0, 1)[real].float()
    low = torch.is_autocast_enabled(device.type) or next(model.parameters()).element_size() < 4
    tolerance = (0.05 if low else 1e-3) * max(1.0, float(padded.abs().max()))
    return bool((packed - padded).abs().max() <= tolerance)
