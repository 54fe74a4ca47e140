"""Nothing but a seed -> a tokenizer and a Llama model small enough for every test."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

START, END, BOS, EOS = "<|im_start|>", "<|im_end|>", "<s>", "</s>"

# ChatML as SmolLM2 has it: a system message where the conversation brings none, a newline after each turn.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same without the newline after the end token.
CHATML_NO_NEWLINE = CHATML.replace("<|im_end|>\n", "<|im_end|>")
# ChatML that adds the tokenizer's own end token after the last newline.
CHATML_EOS_AT_END = CHATML + "{% if not add_generation_prompt %}</s>{% endif %}"
# A template that renders the beginning token itself and ends an answer in </s>, with spaces around it.
INST_WITH_BOS = (
    "<s>{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
# A template that never ends an answer.
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

_LINES = (
    "Question: What is the full name of the author born in Taipei?",
    "Answer: The author's full name is Hsiao Yun-Hwa.",
    "You help. system user assistant [INST] [/INST] the cat sat on the mat and the author wrote a book.",
)


@cache
def _trained(vocab_size: int) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_LINES, trainer)
    return str(bpe.to_str())


def tiny_tokenizer(
    chat_template: str | None = CHATML, *, eos: str = END, adds_bos: bool = False, vocab_size: int = 320
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer whose padding token is its end token.

    Args:
        chat_template: a Jinja template, or ``None`` for a base model's tokenizer.
        eos: the end token, which is the padding token too.
        adds_bos: whether plain text is given the beginning token ``<s>``, as Llama's tokenizers do.
        vocab_size: number of tokens, at least 260.
    """
    bpe = Tokenizer.from_str(_trained(vocab_size))
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS if adds_bos or chat_template == INST_WITH_BOS else None,
        eos_token=eos,
        pad_token=eos,
        additional_special_tokens=[START, END, BOS, EOS],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(vocab_size: int = 320, seed: int = 0, layers: int = 2, hidden: int = 32) -> LlamaForCausalLM:
    """Return a Llama model with random float32 weights; the caller's random state is left alone."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()
