"""Greedy answers: those of ``model.generate`` one by one, whatever the batch; rows leave it early."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from ngdiff.data.encoding import encode_prompt
from ngdiff.data.examples import Example, Message
from ngdiff.inference import generation
from ngdiff.inference.generation import cut, end_tokens, generate_answers, left_padded
from tiny import EOS, tiny_llama, tiny_tokenizer

MOST = 16


def question(text: str) -> Example:
    return Example((Message("user", text), Message("assistant", "x")), None, "qa", "here")


QUESTIONS = [question("the " * n + "cat?") for n in (1, 5, 2, 9, 3, 1, 4)]


def lively_llama(bias: float = 6.0) -> Any:
    """A random model that ends its answers at different times: the end token is made likelier."""
    model = tiny_llama(seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(bias)
    return model


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=320, n_positions=256, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
    )


def mamba() -> Any:
    config = MambaConfig(vocab_size=320, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=1)
    model = MambaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def one_by_one(model: Any, tokenizer: Any, ends: list[int]) -> list[str]:
    model.eval()
    answers = []
    for example in QUESTIONS:
        prompt = torch.tensor([encode_prompt(example, tokenizer, 512)])
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=MOST,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
        tokens = output[0, prompt.shape[1] :].tolist()
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("build", [lively_llama, gpt2, mamba])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_answers_of_one_by_one(build: Any, batch_size: int) -> None:
    torch.manual_seed(0)
    model, tokenizer = build(), tiny_tokenizer()
    found = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST, batch_size=batch_size)
    assert found == one_by_one(model, tokenizer, [tokenizer.eos_token_id])
    assert len(set(found)) > 1


def ends_that_occur(model: Any, tokenizer: Any) -> int:
    """Return a token that some answers come to early and others do not."""
    tokens: list[list[int]] = []
    for example in QUESTIONS:
        prompt = torch.tensor([encode_prompt(example, tokenizer, 512)])
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MOST, do_sample=False
        )
        tokens.append(output[0, prompt.shape[1] :].tolist())
    counts = {token: sum(token in row for row in tokens) for row in tokens for token in row}
    return next(token for token, count in counts.items() if 0 < count < len(QUESTIONS))


def test_several_end_tokens_and_rows_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = lively_llama().eval(), tiny_tokenizer()
    also = ends_that_occur(model, tokenizer)
    model.generation_config.eos_token_id = [1, also]
    assert end_tokens(model, tokenizer) == {1, also}
    sizes: list[int] = []
    honest = type(model).forward

    @wraps(honest)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].shape[0])
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    found = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST, batch_size=8)
    assert sizes.pop(0) == 1  # what all prompts begin with
    assert sizes[0] == len(QUESTIONS) and sizes[-1] < len(QUESTIONS)
    assert sizes == sorted(sizes, reverse=True)
    monkeypatch.undo()
    assert found == one_by_one(model, tokenizer, [1, also])


def test_an_answer_may_be_empty() -> None:
    model, tokenizer = lively_llama().eval(), tiny_tokenizer()
    prompt = torch.tensor([encode_prompt(QUESTIONS[0], tokenizer, 512)])
    first = int(model(prompt).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [first]
    found = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST, batch_size=4)
    assert found[0] == ""


def test_the_tokenizers_end_token_ends_too() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer(eos=EOS)
    assert end_tokens(model, tokenizer) == {1, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id}


def test_stop_strings() -> None:
    model, tokenizer = lively_llama().eval(), tiny_tokenizer()
    whole = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST)
    stop = next(text[2:4] for text in whole if len(text) > 4)
    found = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST, stop_strings=(stop,))
    assert found == [cut(text, (stop,)).strip() for text in whole]
    assert found != whole


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("a\n\nb", ("\n\n",), "a"),
        ("ab", ("c",), "ab"),
        ("abc", ("c", "b"), "a"),
        ("abc", (), "abc"),
        ("x", ("x",), ""),
    ],
)
def test_cut_by_hand(text: str, stops: tuple[str, ...], expected: str) -> None:
    assert cut(text, stops) == expected


def test_left_padding_by_hand() -> None:
    ids, mask = left_padded([[5, 0], [7, 8, 9]], 0)
    assert ids.tolist() == [[0, 5, 0], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]  # a pad id inside the prompt is seen


def test_a_model_with_processors_is_left_to_its_own_generate() -> None:
    model, tokenizer = lively_llama().eval(), tiny_tokenizer()
    model.generation_config.repetition_penalty = 5.0
    assert not generation._can_loop(model)
    found = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=MOST)
    assert found == one_by_one(model, tokenizer, [1])


def test_the_mode_is_put_back() -> None:
    model = lively_llama().train()
    generate_answers(model, tiny_tokenizer(), QUESTIONS[:2], max_new_tokens=2)
    assert model.training
