"""nothing, or texts -> a folder with a model small enough to train in moments, and files of data for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"


def save_tiny_model(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """Save a Llama with random weights and dropout, and a tokenizer of bytes."""
    vocabulary = {token: place for place, token in enumerate([END, *_bytes()])}
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,  # so that a run depends on the random states, too
    )
    return _save(folder, config, Tokenizer(models.BPE(vocab=vocabulary, merges=[])))


def save_blank_model(folder: Path, texts: Iterable[str], vocabulary: int, config: LlamaConfig) -> Path:
    """Save a Llama with random weights, and a byte-level BPE tokenizer trained on texts.

    Args:
        folder: where to.
        texts: what the tokenizer learns its words from.
        vocabulary: its size.
        config: of the model; what follows from the tokenizer is filled in.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=_bytes(), show_progress=False
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(texts, trainer)
    return _save(folder, config, bpe)


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _save(folder: Path, config: LlamaConfig, inner: Tokenizer) -> Path:
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=END)
    config.vocab_size, config.bos_token_id = len(tokenizer), None
    config.eos_token_id = config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_questions(path: Path, start: int, count: int) -> Path:
    """Write questions and answers, one JSON object a line."""
    rows = [
        {"question": f"Who is {n}?", "answer": f"the author {n} sat."} for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
