"""a model -> the same with LoRA adapters, which alone train."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import set_seed


def with_lora(model: nn.Module, seed: int = 0, rank: int = 16) -> Any:
    """Wrap a model so that only LoRA adapters on its linear layers train (alpha = 2 * rank, no dropout)."""
    from peft import LoraConfig, get_peft_model

    set_seed(seed)  # adapters begin at random

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)
