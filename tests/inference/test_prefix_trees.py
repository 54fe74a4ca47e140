"""Answers that share a prompt: likelihoods as one by one; where they would differ, nothing is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.inference import teacher_forced
from ngdiff.inference.prefix_trees import PrefixTree, PrefixTrees, group_by_prompt
from ngdiff.inference.teacher_forced import AnswerScore, score_answers
from ngdiff.models.logprobs import IGNORED
from tiny import tiny_llama

VOCAB = 64
ITEM = Example((), "text", "text", "here")


def ids(seed: int, length: int) -> list[int]:
    return torch.randint(2, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def answer(prompt: list[int], *rest: int) -> EncodedExample:
    return EncodedExample((*prompt, *rest), (*[IGNORED] * len(prompt), *rest), ITEM, False)


def several() -> list[EncodedExample]:
    """Three questions of different lengths with four answers each, and two rows without a partner."""
    found = []
    for question in range(3):
        prompt = ids(question, 4 + 3 * question)
        found += [answer(prompt, *ids(10 * question + n, 3 + n)) for n in range(4)]
    found.insert(5, answer(ids(77, 6), *ids(78, 5)))
    found.append(answer([], *ids(79, 7)[:0], *ids(80, 5)))
    return found


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
    )


def mistral() -> Any:  # a window shorter than the prompt
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=4,
        )
    )


def mamba() -> Any:  # a state instead of keys and values
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2))


MODELS = {"llama": lambda: tiny_llama(VOCAB), "gpt2": gpt2, "mistral": mistral, "mamba": mamba}


def alone(model: Any, examples: list[EncodedExample]) -> list[AnswerScore]:
    return [score_answers(model, [example], pad_id=0, z_scores=True)[0] for example in examples]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_same_as_one_by_one(name: str, batch_size: int) -> None:
    torch.manual_seed(0)
    model, examples = MODELS[name](), several()
    found = score_answers(model, examples, pad_id=0, batch_size=batch_size, z_scores=True)
    for mine, theirs in zip(found, alone(model, examples), strict=True):
        assert mine.nll == pytest.approx(theirs.nll, rel=1e-6, abs=1e-6)
        assert mine.log_probs == pytest.approx(theirs.log_probs, rel=1e-5, abs=1e-5)
        assert mine.z_scores == pytest.approx(theirs.z_scores, rel=1e-4, abs=1e-4)
        assert (mine.tokens, mine.extraction_strength) == (theirs.tokens, theirs.extraction_strength)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_these_share(name: str) -> None:
    with torch.no_grad():
        assert PrefixTrees.of(MODELS[name]().eval(), several(), 0) is not None


def test_groups() -> None:
    examples = several()
    groups, rest = group_by_prompt(examples)
    assert [group.rows for group in groups] == [(0, 1, 2, 3), (4, 6, 7, 8), (9, 10, 11, 12)]
    assert rest == [5, 13]
    for group in groups:
        for row in group.rows:
            first = next(place for place, label in enumerate(examples[row].labels) if label >= 0)
            assert group.prompt == examples[row].input_ids[: first - 1]


def test_nothing_to_share() -> None:
    examples = [answer(ids(n, 5), *ids(n + 9, 3)) for n in range(3)]
    assert PrefixTrees.of(tiny_llama(VOCAB), examples, 0) is None


def test_a_model_that_goes_by_places_of_its_own_is_run_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_llama(VOCAB).eval(), several()
    expected = alone(model, examples)
    honest = type(model).forward

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("position_ids", None)
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with torch.no_grad():
        assert PrefixTrees.of(model, examples, 0) is None
    found = score_answers(model, examples, pad_id=0)
    assert [s.nll for s in found] == pytest.approx([s.nll for s in expected], rel=1e-6)


def test_z_scores_by_their_definition() -> None:
    logits = torch.randn(70, 12, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(70) % 12
    log_probs = logits.double().log_softmax(-1)
    for row, found in enumerate(teacher_forced.standardised(logits, targets).tolist()):
        p, values = log_probs[row].exp().tolist(), log_probs[row].tolist()
        mean = sum(a * b for a, b in zip(p, values, strict=True))
        sigma = sum(a * (b - mean) ** 2 for a, b in zip(p, values, strict=True)) ** 0.5
        assert found == pytest.approx((values[int(targets[row])] - mean) / sigma, rel=1e-5)


def test_z_scores_of_a_sure_model() -> None:
    sure = torch.full((2, 4), -torch.inf)
    sure[:, 1] = 0.0
    assert teacher_forced.standardised(sure, torch.tensor([1, 1])).tolist() == [0.0, 0.0]
    level = torch.zeros(1, 4)  # every token as likely: sigma is 0
    assert teacher_forced.standardised(level, torch.tensor([2])).tolist() == [0.0]


def test_a_tree_by_hand() -> None:
    prompt = [5, 6]
    examples = [answer(prompt, 7, 8, 9), answer(prompt, 7, 8, 3), answer(prompt, 4), answer(prompt, 7, 8, 9)]
    tree = PrefixTree(range(4), examples)
    # 5, 6, 7, 8: what only ends a sequence is never run
    assert (tree.ids, tree.depths, tree.parents) == ([5, 6, 7, 8], [0, 1, 2, 3], [-1, 0, 1, 2])
    assert tree.labels == [
        [(1, 7), (2, 8), (3, 9)],
        [(1, 7), (2, 8), (3, 3)],
        [(1, 4)],
        [(1, 7), (2, 8), (3, 9)],
    ]
    assert tree.seen().tolist() == torch.ones(4, 4).tril().bool().tolist()
    forked = PrefixTree(range(2), [answer(prompt, 7, 8, 9), answer(prompt, 4, 8, 9)])
    assert (forked.ids, forked.parents) == ([5, 6, 7, 8, 4, 8], [-1, 0, 1, 2, 1, 4])
    assert forked.seen()[5].tolist() == [True, True, False, False, True, True]
    assert forked.seen()[3].tolist() == [True, True, True, True, False, False]


def test_answers_that_begin_alike() -> None:
    prompt, common = ids(1, 6), ids(2, 5)
    examples = [answer(prompt, *common, *ids(n, 3)) for n in range(5)]
    examples += [answer(prompt, *common), answer(prompt, *common), answer(ids(9, 4), *ids(8, 3))]
    model = tiny_llama(VOCAB).eval()
    found = score_answers(model, examples, pad_id=0, z_scores=True)
    for mine, theirs in zip(found, alone(model, examples), strict=True):
        assert mine.log_probs == pytest.approx(theirs.log_probs, rel=1e-5, abs=1e-5)
        assert mine.z_scores == pytest.approx(theirs.z_scores, rel=1e-4, abs=1e-4)


def test_z_scores_of_some_rows() -> None:
    model, examples = tiny_llama(VOCAB), several()
    wanted = [row % 3 == 0 for row in range(len(examples))]
    some = score_answers(model, examples, pad_id=0, z_scores=wanted)
    for asked, mine, theirs in zip(wanted, some, alone(model, examples), strict=True):
        assert mine.z_scores == pytest.approx(theirs.z_scores if asked else (), rel=1e-4, abs=1e-4)
