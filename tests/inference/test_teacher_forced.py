"""Teacher-forced figures: hand values, batch sizes that change nothing, and a model left as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.inference.teacher_forced import (
    SURE,
    AnswerScore,
    batch_extraction_strength,
    exact_memorisation,
    extraction_strength,
    score_answers,
    score_tokens,
    summarise,
    unlikelihood,
)
from ngdiff.models.logprobs import LabelledTokens
from tiny import tiny_llama


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pattern(marks: str) -> torch.Tensor:
    """``"+-+"``: right, wrong, right."""
    return torch.tensor([mark == "+" for mark in marks])


@pytest.mark.parametrize(
    ("marks", "extraction", "memorisation"),
    [
        ("++++", 1.0, 1.0),
        ("----", 0.0, 0.0),
        ("---+", 0.0, 0.0),  # only the last, the end of the turn, which both leave out
        ("-+++", 2 / 3, 2 / 3),
        ("+++-", 1.0, 1.0),
        ("++-+", 0.0, 2 / 3),
        ("-+-++", 0.25, 0.5),
        ("-++--", 0.0, 0.5),
        ("--++-", 0.5, 0.5),
        ("+", 1.0, 1.0),
        ("-", 0.0, 0.0),
        ("+-", 1.0, 1.0),
        ("-+", 0.0, 0.0),
    ],
)
def test_by_hand(marks: str, extraction: float, memorisation: float) -> None:
    assert extraction_strength(pattern(marks)) == pytest.approx(extraction, abs=1e-12)
    assert exact_memorisation(pattern(marks)) == pytest.approx(memorisation, abs=1e-7)


def slow_extraction_strength(marks: list[bool]) -> float:
    """The definition: without the last token, try every prefix, from the shortest."""
    marks = marks[:-1] or marks
    for k in range(len(marks)):
        if all(marks[k:]):
            return 1 - k / len(marks)
    return 0.0


MARKS = st.lists(st.booleans(), min_size=1, max_size=9)


@given(marks=MARKS)
def test_extraction_strength_by_its_definition(marks: list[bool]) -> None:
    assert extraction_strength(torch.tensor(marks)) == pytest.approx(
        slow_extraction_strength(marks), abs=1e-12
    )


def fabricated(rows: list[list[bool]]) -> LabelledTokens:
    """Logits over four words whose argmax is right or wrong as told."""
    flat = [mark for row in rows for mark in row]
    targets = torch.arange(len(flat)) % 4
    logits = torch.zeros(len(flat), 4)
    for place, right in enumerate(flat):
        logits[place, int(targets[place]) if right else (int(targets[place]) + 1) % 4] = 1.0
    return LabelledTokens(
        logits, targets, torch.tensor([r for r, row in enumerate(rows) for _ in row]), len(rows)
    )


@given(rows=st.lists(MARKS, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_batchs_extraction_strength_is_the_mean_over_its_rows(rows: list[list[bool]]) -> None:
    tokens = fabricated(rows)
    expected = sum(slow_extraction_strength(row) for row in rows) / len(rows)
    assert float(batch_extraction_strength(tokens)) == pytest.approx(expected, abs=1e-6)
    scores = score_tokens(tokens)
    assert [s.extraction_strength for s in scores] == pytest.approx(
        [slow_extraction_strength(r) for r in rows]
    )
    assert [s.tokens for s in scores] == [len(row) for row in rows]


def test_score_tokens_by_hand() -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0], [2.0, 1.0, 1.0]])  # p = 1/2, 1/8, 1/4
    tokens = LabelledTokens(odds.log(), torch.tensor([1, 2, 2]), torch.tensor([0, 0, 1]), 2)
    first, second = score_tokens(tokens)
    assert first.nll == pytest.approx(math.log(16), rel=1e-6)
    assert first.tokens == 2
    assert first.mean_nll == pytest.approx(math.log(4), rel=1e-6)
    assert first.probability == pytest.approx(0.25, rel=1e-6)
    assert (first.extraction_strength, first.exact_memorisation) == (1.0, 1.0)  # of its first token alone
    assert (second.probability, second.extraction_strength) == (pytest.approx(0.25), 0.0)


# --- with a model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=12).eval()


def example(seed: int) -> EncodedExample:
    generator = torch.Generator().manual_seed(seed)
    prompt, answer = 1 + seed % 4, 1 + (5 * seed) % 7
    ids = torch.randint(0, 12, (prompt + answer,), generator=generator).tolist()
    labels = [-100] * prompt + ids[prompt:]
    return EncodedExample(tuple(ids), tuple(labels), Example((), "", "text", "a, line 1"), False)


EXAMPLES = [example(seed) for seed in range(8)]


def slow_score(model: LlamaForCausalLM, one: EncodedExample) -> AnswerScore:
    """One sequence alone, token by token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.input_ids])).logits[0].double()
    total, marks = 0.0, []
    for position in range(1, len(one.input_ids)):
        if one.labels[position] != -100:
            total -= float(logits[position - 1].log_softmax(0)[one.labels[position]])
            marks.append(int(logits[position - 1].argmax()) == one.labels[position])
    body = marks[:-1] or marks
    return AnswerScore(total, len(marks), slow_extraction_strength(marks), sum(body) / len(body))


def train_a_little(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Teach it half of the answers, so that figures other than 0 appear."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(12):
        for one in EXAMPLES[::2]:
            model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def trained() -> LlamaForCausalLM:
    return train_a_little(tiny_llama(vocab_size=12)).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_are_those_of_each_example_alone_in_input_order(
    trained: LlamaForCausalLM, batch_size: int
) -> None:
    done: list[int] = []
    found = score_answers(trained, EXAMPLES, pad_id=1, batch_size=batch_size, advance=done.append)
    expected = [slow_score(trained, one) for one in EXAMPLES]
    assert len({s.nll for s in expected}) == 8
    assert 0 < sum(s.extraction_strength for s in expected) < 8
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.nll == pytest.approx(theirs.nll, abs=1e-5)
        assert ours.mean_nll == pytest.approx(theirs.mean_nll, abs=2e-6)
        assert ours.tokens == theirs.tokens
        assert ours.extraction_strength == pytest.approx(theirs.extraction_strength, abs=1e-12)
        assert ours.exact_memorisation == pytest.approx(theirs.exact_memorisation, abs=1e-6)
    assert sum(done) == 8


def test_batch_sizes_agree(trained: LlamaForCausalLM) -> None:
    one, three, eight = (
        summarise(score_answers(trained, EXAMPLES, pad_id=1, batch_size=n)) for n in (1, 3, 8)
    )
    assert one == pytest.approx(three, abs=1e-6)
    assert one == pytest.approx(eight, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_put_back_and_no_gradient_left(model: LlamaForCausalLM, training: bool) -> None:
    modes = []
    handle = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.train(training)
    try:
        score_answers(model, EXAMPLES[:2], pad_id=1)
        assert model.training is training
    finally:
        handle.remove()
        model.eval()
    assert set(modes) == {False}  # a model's first batch is tried packed and padded
    assert all(p.grad is None for p in model.parameters())


def test_the_models_mode_is_put_back_after_an_exception(model: LlamaForCausalLM) -> None:
    model.train()
    broken = EncodedExample((3, 999), (-100, 999), EXAMPLES[0].example, False)
    try:
        with pytest.raises(IndexError):
            score_answers(model, [broken], pad_id=1)
        assert model.training
    finally:
        model.eval()


# --- summaries -------------------------------------------------------------------------------------------


def test_summarise_by_hand() -> None:
    scores = [
        AnswerScore(nll=2 * math.log(2), tokens=2, extraction_strength=1.0, exact_memorisation=0.5),
        AnswerScore(nll=6 * math.log(4), tokens=6, extraction_strength=0.5, exact_memorisation=0.0),
    ]
    assert summarise(scores) == pytest.approx(
        {
            "probability": (1 / 2 + 1 / 4) / 2,  # a mean over items
            "extraction_strength": 0.75,
            "exact_memorisation": 0.25,
            "nll": 14 / 8 * math.log(2),  # a mean over tokens: 2 of ln 2 and 6 of 2 ln 2
        },
        rel=1e-12,
    )


def score(*probabilities: float) -> AnswerScore:
    logs = tuple(math.log(p) if p > 0 else -math.inf for p in probabilities)
    return AnswerScore(-sum(logs), len(logs), 0.0, 0.0, log_probs=logs)


def test_unlikelihood_by_hand() -> None:
    # the last token is left out where there are several; a mean over tokens, then over items
    assert unlikelihood([score(0.5, 0.75, 0.1), score(0.9, 0.9)]) == pytest.approx(
        ((math.log(2) + math.log(4)) / 2 + math.log(10)) / 2
    )
    assert unlikelihood([score(0.0)]) == 0.0
    assert unlikelihood([score(1.0)]) == pytest.approx(math.log(1 / SURE))
    assert unlikelihood([score(1 - SURE / 2)]) == pytest.approx(math.log(1 / SURE))
    assert math.isnan(unlikelihood([AnswerScore(math.nan, 1, 0.0, 0.0, log_probs=(math.nan,))]))


def test_unlikelihood_is_a_mean_over_items(trained: LlamaForCausalLM) -> None:
    scores = score_answers(trained, EXAMPLES, pad_id=1)
    assert 0 < unlikelihood(scores) < math.log(1 / SURE)
    whole = [unlikelihood([found]) for found in scores]
    assert unlikelihood(scores) == pytest.approx(sum(whole) / len(whole))


@pytest.mark.parametrize("scores", [[], [AnswerScore(1.0, 1, 0.0, 0.0)]])
def test_no_log_probabilities_no_unlikelihood(scores: list[AnswerScore]) -> None:
    with pytest.raises(ValueError, match="no log-probabilities"):
        unlikelihood(scores)


def test_nothing_to_summarise() -> None:
    with pytest.raises(ValueError, match="no scores"):
        summarise([])
