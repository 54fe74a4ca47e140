"""a padded batch -> one row of its real tokens, through a model whose attention keeps the sequences apart.

Padding costs what text costs in all but the attention: every layer's matrix products run over it. Here they
run over the real tokens alone, one sequence behind the other, each with positions of its own. Only the
attention sees the sequences padded, as many rows as there are, where a causal mask is all that it takes and
its fast kernels serve. Where the model runs on flash or flex attention, these are told where the sequences
begin, as :class:`transformers.DataCollatorWithFlattening` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

WORTH = 0.02
"""Share of a batch that has to be padding for it to be packed."""
_TRIAL = ((3, 5, 7, 2, 4, 6, 8), (9, 4, 2), (5, 2, 8, 3, 7))
"""Token numbers of three sequences that a model has to read alike both ways."""
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")

refused: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Why a model's batches are padded, for the record of the run."""
_taken: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Rows(NamedTuple):
    """Where the tokens of packed rows lie in padded ones.

    Args:
        number: of rows.
        length: of the padded rows.
        real: place of each real token among all padded places, row behind row.
        token: the real token at each padded place; 0 where there is none.
        empty: which padded places have none.
    """

    number: int
    length: int
    real: Tensor
    token: Tensor
    empty: Tensor


def rows_of(real: Tensor, number: int, length: int) -> Rows:
    """Return where tokens lie, without a look at the numbers on the device."""
    order = torch.arange(len(real), device=real.device)
    token = torch.zeros(number * length, dtype=torch.long, device=real.device).scatter_(0, real, order)
    empty = torch.ones(number * length, dtype=torch.bool, device=real.device).index_fill_(0, real, False)
    return Rows(number, length, real, token, empty)


def inputs_for(model: nn.Module, batch: Mapping[str, Tensor], packed: Rows | None) -> dict[str, Any]:
    """Return what to call the model with.

    Args:
        model: unwrapped or not.
        batch: ``input_ids`` and ``attention_mask``, of shape (rows, length).
        packed: where the real tokens lie; None to run the batch as it is.
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
        # a mask of four dimensions is handed on as it is, and none of the length's square is made
        nothing = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device)
        return {**found, "attention_mask": nothing, "packed_rows": packed}
    lengths = (~packed.empty).view(packed.number, packed.length).sum(dim=1, dtype=torch.int32)
    ends = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    limits = {f"cu_seq_lens_{side}": ends for side in "qk"} | {f"max_length_{s}": packed.length for s in "qk"}
    return {**found, "attention_mask": None, **(limits if "flash" in _implementation(model) else {})}


# ---- attention ----


class _Spread(torch.autograd.Function):
    """Packed tokens -> padded rows; what stands at empty places is no matter, since nobody looks there."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return states.index_select(0, rows.token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.rows.real), None


class _Gather(torch.autograd.Function):
    """Padded rows -> packed tokens; no gradient comes from the empty places."""

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
    """Do what ``transformers``' attention does, and for packed rows row by row.

    Args:
        module: the attention layer.
        query: of shape (1, heads, tokens, width), as are
        key: and
        value: with fewer heads, maybe.
        attention_mask: not looked at where rows are packed.
        packed_rows: where the tokens lie; None for a batch like any other.
        settings: scaling, dropout and such; a sliding window is heeded.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_rows is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    rows = packed_rows
    padded = [_padded(states, rows) for states in (query, key, value)]
    mask = _window(settings.get("sliding_window"), rows.length, query.device)
    settings["is_causal"] = True
    output, _ = sdpa_attention_forward(module, *padded, mask, **settings)
    flat = output.reshape(rows.number * rows.length, *output.shape[2:])
    return _Gather.apply(flat, rows).unsqueeze(0), None  # type: ignore[no-untyped-call]


def _padded(states: Tensor, rows: Rows) -> Tensor:
    tokens = _Spread.apply(states.squeeze(0).transpose(0, 1), rows)  # type: ignore[no-untyped-call]
    padded: Tensor = tokens.view(rows.number, rows.length, *tokens.shape[1:]).transpose(1, 2)
    return padded


def _window(size: int | None, length: int, device: torch.device) -> Tensor | None:
    """Return which places each place sees, where that is not simply all before it."""
    if size is None or length <= size:
        return None
    place = torch.arange(length, device=device)
    apart = place.unsqueeze(1) - place
    return ((apart >= 0) & (apart < size))[None, None]


@cache
def _register() -> None:
    """Let ``transformers`` call :func:`attend`; not before it is needed, since that is slow to import."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("sdpa", attend)


# ---- which models take packed rows ----


def takes_packed(model: nn.Module) -> bool:
    """Say whether a model reads packed rows as it reads padded ones; tried once, on three short sequences."""
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
    _register()
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            alike = _agrees(model)
    except Exception as error:
        return f"the model does not take packed rows ({type(error).__name__})"
    finally:
        for module, training in before:
            module.training = training
    return None if alike else "the model reads packed rows otherwise than padded ones"


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
