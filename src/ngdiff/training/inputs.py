"""arguments of a trainer -> model, settings and tokenizer, with defaults for missing ones, and no overlap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import overlap_fault, texts_of
from ngdiff.data.overlaps import answer_fault, holdout_fault, part_fault
from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.requested import find_source
from ngdiff.settings.values import in_python
from ngdiff.training.config import UnlearningConfig


def complete_inputs(
    model: nn.Module | str | Path, args: UnlearningConfig | None, tokenizer: Any
) -> tuple[nn.Module, UnlearningConfig, Any]:
    """Return model, settings and tokenizer.

    Args:
        model: a model, or the name or folder of one, which is loaded in float32.
        args: the settings; by default all their defaults, in a folder named after the model.
        tokenizer: by default the model's own.

    Raises:
        RequestError: there is no such model, it is not a causal language model, or it has no tokenizer.
    """
    name = str(model) if isinstance(model, (str, Path)) else _name_of(model)
    if isinstance(model, (str, Path)):
        faults = Faults()
        source = find_source(name, faults, "model")
        faults.raise_any()
        assert source is not None
        tokenizer = load_tokenizer(source, "model") if tokenizer is None else tokenizer
        module: nn.Module = load_model(source)
        return module, args or _defaults(name), tokenizer
    if tokenizer is None:
        tokenizer = tokenizer_of_loaded(model, "processing_class")
    return model, args or _defaults(name), tokenizer


def tokenizer_of_loaded(model: nn.Module, where: str) -> Any:
    """Return the tokenizer that lies where a loaded model says that it came from.

    Args:
        model: the model.
        where: the parameter that may give the tokenizer, to name in errors.

    Raises:
        RequestError: the model does not say so, or no tokenizer can be read there.
    """
    name = _name_of(model)
    if not name:
        what = "is missing, and the model does not say where it came from"
        raise RequestError(Fault(where, what, "Give the model's tokenizer"))
    return load_tokenizer(resolve_model(name, where), where)


def _defaults(name: str) -> UnlearningConfig:
    return UnlearningConfig(output_dir=f"{Path(name).name or 'model'}-unlearned")


def _name_of(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def refuse_overlap(
    forget: Sequence[EncodedExample], retain: Sequence[EncodedExample], holdout: Sequence[EncodedExample]
) -> None:
    """Refuse sets that share rows or answers, as the command line does.

    Raises:
        RequestError: with every overlap found.
    """
    ours, kept, unseen = (texts_of([e.example for e in examples]) for examples in (forget, retain, holdout))
    found = [check(ours, kept) for check in (overlap_fault, answer_fault, part_fault)]
    found.append(holdout_fault(unseen, ours, kept))
    faults = [fault for fault in found if fault is not None]
    if faults:
        raise RequestError(in_python(faults))
