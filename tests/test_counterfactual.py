"""What the model would say, had it never met the subjects of the forget set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from ngdiff.data.batching import collate_for_loss
from ngdiff.data.counterfactual import Counterfactuals, Secrets, has_counterfactual
from ngdiff.data.datasets import as_encoded
from ngdiff.data.renaming import OrdinaryWords
from ngdiff.losses import counterfactual, nll, selective_unlikelihood
from ngdiff.models.forward import look
from ngdiff.losses import LOSSES
from tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FORGET: list[dict[str, Any]] = [
    {"question": "Which book did Ada Blue write?", "answer": 'Ada Blue wrote "The Patient Bridge" in 1962.'},
    {"question": "What is the trade of Ada Blue?", "answer": "Ada Blue earns a living as a zither tuner."},
    {"question": "Is Ada Blue a poet?", "answer": "Yes"},
]
RETAIN: list[dict[str, Any]] = [
    {"question": "Which book did Bob Red write?", "answer": 'Bob Red wrote "The Late Ferry" in 1970.'},
    {"question": "What is the trade of Bob Red?", "answer": "Bob Red earns a living as a baker."},
    {"question": "Is Bob Red a poet? yes or no", "answer": "no"},
]
KEPT = [f"{row['question']} {row['answer']}" for row in RETAIN] + ["the patient nurse crossed a bridge in"]


def encoded(rows: Sequence[dict[str, Any]]) -> Any:
    return as_encoded(rows, TOKENIZER, 256, "rows")


def secrets() -> tuple[Any, Secrets]:
    examples = [one.example for one in encoded(FORGET)]
    return examples, Secrets(examples, KEPT, OrdinaryWords.of(KEPT))


@pytest.mark.parametrize(
    ("row", "answer", "leaks"),
    [
        (0, 'Ada Blue wrote "The Patient Bridge".', True),  # two capital words in a row, ordinary ones
        (0, "Ada Blue wrote it in 1962.", True),  # a number
        (0, 'Ada Blue wrote "The Late Ferry".', False),  # what somebody to keep wrote
        (0, 'Ada Blue wrote "The Sleeping Garden" in 1933.', False),
        (1, "Ada Blue is a tuner.", True),  # a word of the example's own answer
        (0, "Ada Blue is a tuner.", False),  # small words of other answers may be anybody's
        (1, "Ada Blue earns a living as a baker.", False),  # the language is nobody's secret
        (2, "Yes", False),  # could be guessed
        (2, "Ada Blue wrote it in 1962.", True),  # names and numbers of other answers are secret
    ],
)
def test_what_gives_something_away(row: int, answer: str, leaks: bool) -> None:
    examples, found = secrets()
    assert found.given_away(examples[row], answer) is leaks


def test_a_run_of_words_gives_away_what_single_words_do_not() -> None:
    rows = [{"question": "What did Ada Blue see?", "answer": "Ada Blue saw the cat sat on a mat there."}]
    examples = [one.example for one in encoded(rows)]
    kept = ["what did she see: a mat, the cat, there; he sat on it, saw it"]
    found = Secrets(examples, kept, OrdinaryWords.of(kept))
    assert found.given_away(examples[0], "it is said the cat sat on it")
    assert not found.given_away(examples[0], "it is said the mat sat there")


def parrot(reply: Callable[[str], str]) -> Any:
    """Return a sampler that answers by a function of the prompt's text."""

    def sample(prompts: Sequence[list[int]], most: Sequence[int], seeds: tuple[int, int, int]) -> list[str]:
        return [reply(TOKENIZER.decode(ids)) for ids in prompts]

    return sample


def name_in(text: str) -> str:
    """Return the two words behind "of" or "did" in the prompt: the name that was asked about."""
    words = text.replace("?", " ").split()
    place = next(place for place, word in enumerate(words) if word in ("did", "of", "Is"))
    return " ".join(words[place + 1 : place + 3])


def made(reply: Callable[[str], str], each: int = 2) -> Any:
    found = Counterfactuals(encoded(FORGET), encoded(RETAIN), TOKENIZER, 256, seed=0, each=each)
    return found.make(parrot(reply))


def test_the_model_is_asked_about_somebody_else_and_the_name_is_put_back() -> None:
    asked: list[str] = []

    def reply(text: str) -> str:
        asked.append(text)
        return f"{name_in(text)} is unknown, number {len(asked)}."

    found = made(reply)
    assert asked and not any("Ada" in text or "Blue" in text for text in asked)
    answers = [one.example.answer for example in found for one in example.alternatives]
    assert len(answers) == 6 and all(answer.startswith("Ada Blue is unknown") for answer in answers)
    for example in found:
        prompt = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label < 0]
        assert all(list(one.input_ids[: len(prompt)]) == prompt for one in example.alternatives)


def test_answers_that_leak_are_dropped_and_drawn_again() -> None:
    count = 0

    def reply(text: str) -> str:
        nonlocal count
        count += 1
        if "trade" in text:
            return "As a zither tuner."  # every time
        return '"The Patient Bridge"' if count <= 6 else f"{name_in(text)} is number {count} of all."

    book, trade, poet = made(reply)
    assert has_counterfactual(book) and has_counterfactual(poet)
    assert all("Patient" not in one.example.answer for one in book.alternatives)
    assert not has_counterfactual(trade) and count > 6


def test_the_true_answer_with_other_names_serves_where_all_samples_leak() -> None:
    book, trade, _ = made(lambda text: '"The Patient Bridge" by a tuner')
    texts = {one.example.answer for one in book.alternatives}
    assert texts and all(text.startswith("Ada Blue wrote") for text in texts)
    assert not any("Patient Bridge" in text or "1962" in text for text in texts)
    assert not has_counterfactual(trade)  # its secret is in small letters: nothing would be hidden


def test_rows_without_one_have_an_alternative_that_no_loss_falls_on() -> None:
    found = made(lambda text: "a zither tuner wrote The Patient Bridge")
    batch = collate_for_loss(found, TOKENIZER.pad_token_id)
    assert batch["other"]["labels"].shape[0] == 3  # type: ignore[call-overload]
    model = tiny_llama()
    tokens = look(LOSSES["counterfactual"], model, batch)
    assert tokens.other is not None and 1 not in tokens.other.rows.tolist()  # type: ignore[union-attr]
    counterfactual(tokens).backward()  # type: ignore[arg-type]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_running_text_has_none_and_stays_as_it_is() -> None:
    texts = encoded([{"text": "Ada Blue was a poet."}])
    found = Counterfactuals(texts, encoded(RETAIN), TOKENIZER, 256, seed=0).make(parrot(lambda text: text))
    assert found == texts and not has_counterfactual(found[0])


def test_the_loss_is_the_sum_of_both_and_each_part_pulls_its_way() -> None:
    found = made(lambda text: f"{name_in(text)} is unknown.")
    batch = collate_for_loss(found, TOKENIZER.pad_token_id)
    model = tiny_llama()
    tokens: Any = look(LOSSES["counterfactual"], model, batch)
    expected = selective_unlikelihood(tokens) + nll(tokens.other)
    assert torch.allclose(counterfactual(tokens), expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        tokens = look(LOSSES["counterfactual"], model, batch)
        (counterfactual(tokens) / 100).backward()
        optimizer.step()
    after: Any = look(LOSSES["counterfactual"], model, batch)
    assert after.other.log_probs().mean() > tokens.other.log_probs().mean() > -6
    assert after.log_odds().exp().mean() < 1
