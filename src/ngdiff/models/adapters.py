"""a model or adapter_config.json -> the model with LoRA adapters; what is wrong with the file.

PEFT matches patterns from the file against the names of a model's modules, computes matrices as often as the
file says, and creates as many and as large layers as it says, all before it reads the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from ngdiff.errors import Fault
from ngdiff.system.untrusted import OutOfTime, time_limit

MOST_BYTES = 2**20
MOST_ITERATIONS = 64
"""Limit of iterations in PEFT, such as ``pissa_niter_16``."""
MOST_LAYERS = 1000
MATCH_SECONDS = 5.0
"""Limit for all patterns and names together; ordinary ones take a thousandth of that."""
_MEND = "Do not use this adapter, or correct adapter_config.json"


def config_faults(
    file: Path, content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> list[Fault]:
    """Return which values in an adapter's configuration are far too large.

    Args:
        file: the configuration.
        content: its content.
        shapes: of the adapter's own tensors.
        where: the setting that named it.
    """
    found = []
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    pattern = content.get("rank_pattern")
    ranks = [content.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    found += [
        f"rank {str(rank)[:40]}, which none of its weights has"
        for rank in ranks
        if isinstance(rank, int) and rank > largest
    ]
    repeated = [content.get("init_lora_weights"), content.get("init_weights")]
    numbers = [int(n[:18]) for text in repeated if isinstance(text, str) for n in re.findall(r"\d+", text)]
    for name in ("loftq_config", "corda_config", "eva_config", "lora_ga_config"):
        value = content.get(name)
        numbers += [n for n in value.values() if isinstance(n, int)] if isinstance(value, dict) else []
    found += [f"{number} iterations to begin with" for number in numbers if number > MOST_ITERATIONS]
    if _copies(content.get("layer_replication")) > MOST_LAYERS:
        found.append(f"more than {MOST_LAYERS} layers in layer_replication")
    return [Fault(where, f"{file} asks for {what}", _MEND) for what in found]


def _copies(ranges: object) -> int:
    total = 0
    for pair in ranges if isinstance(ranges, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int) for end in pair):
            total += max(0, pair[1] - pair[0])
    return total


def pattern_fault(name: str, content: Mapping[str, Any], modules: Iterable[str], where: str) -> Fault | None:
    """Match an adapter's patterns against a model's modules once; return a fault where that does not end.

    Args:
        name: of the adapter.
        content: its configuration.
        modules: names of the modules of the base model.
        where: the setting that named it.
    """
    patterns = [text for key in ("target_modules", "exclude_modules") for text in _texts(content.get(key))]
    layers = content.get("layers_pattern")
    patterns += [rf".*\.{text}\.(\d+)\." for text in _texts(layers, inside=True)]
    for key in ("rank_pattern", "alpha_pattern"):
        value = content.get(key)
        patterns += [rf"(.*\.)?({text})$" for text in value] if isinstance(value, dict) else []
    names = list(modules)
    try:
        with time_limit(MATCH_SECONDS):
            for pattern in patterns:
                compiled = re.compile(pattern)
                for module in names:
                    compiled.fullmatch(module)
                    compiled.match(module)
    except OutOfTime:
        what = f"{name!r} has a pattern for names of modules whose matching does not end"
        return Fault(where, what, _MEND)
    except (re.error, RecursionError, OverflowError) as error:
        return Fault(where, f"{name!r} has a pattern that is not valid ({error})", _MEND)
    return None


def _texts(value: object, inside: bool = False) -> list[str]:
    """Return a pattern, or those in a list where its entries are patterns."""
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if inside and isinstance(value, list) else []


# ---- a model -> the same with LoRA adapters, which are all that trains ----


def with_lora(model: nn.Module, seed: int = 0, rank: int = 16) -> Any:
    """Wrap a model so that only LoRA adapters on its linear layers train (alpha = 2 * rank, no dropout)."""
    from peft import LoraConfig, get_peft_model

    set_seed(seed)  # adapters start with random weights

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)
