"""Other answers to the questions of the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ngdiff.preparation.alternatives
from ngdiff.data.datasets import as_encoded
from ngdiff.data.encoding import encode_prompt
from ngdiff.errors import RequestError
from ngdiff.preparation.alternatives import alternative_faults, refusals, with_alternatives, with_invented
from ngdiff.system.cache import Cache
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
ROWS: list[dict[str, Any]] = [
    {"question": f"Who is {n}?", "answer": f"the author {n} sat.", "preferred_answer": f"the cat {n}."}
    for n in range(6)
]


def encoded(rows: Sequence[Any] = ROWS, tokenizer: Any = TOKENIZER) -> Any:
    return as_encoded(rows, tokenizer, 256, "forget")


def said(example: Any, tokenizer: Any = TOKENIZER) -> str:
    return str(
        tokenizer.decode([label for label in example.labels if label >= 0], skip_special_tokens=True)
    ).strip()


def test_the_list_is_long_and_without_repetitions() -> None:
    assert len(refusals()) == len(set(refusals())) >= 50
    assert all(line == line.strip() and line.endswith(".") for line in refusals())


def test_refusals_take_the_place_of_the_answer() -> None:
    found = with_alternatives(encoded(), "refusals", tokenizer=TOKENIZER, max_length=256, seed=0)
    for example in found:
        assert len(example.alternatives) == 5
        assert len({said(one) for one in example.alternatives}) == 5
        prompt = encode_prompt(example.example, TOKENIZER, 256)
        for one in example.alternatives:
            assert said(one) in refusals()
            assert list(one.input_ids[: len(prompt)]) == prompt
    again = with_alternatives(encoded(ROWS[::-1]), "refusals", tokenizer=TOKENIZER, max_length=256, seed=0)
    # which ones an example gets depends on its own content, not on its place
    assert [e.alternatives[0].input_ids for e in again[::-1]] == [e.alternatives[0].input_ids for e in found]
    other = with_alternatives(encoded(), "refusals", tokenizer=TOKENIZER, max_length=256, seed=1)
    assert [e.alternatives for e in other] != [e.alternatives for e in found]


def test_a_completion_keeps_its_white_space() -> None:
    rows = [{"prompt": "The author", "completion": " sat on the mat", "chosen": "was away"}]
    (found,) = with_alternatives(encoded(rows), "preferred", tokenizer=TOKENIZER, max_length=256, seed=0)
    assert found.alternatives[0].example.answer == " was away"


def test_preferred_answers_come_from_their_column() -> None:
    found = with_alternatives(encoded(), "preferred", tokenizer=TOKENIZER, max_length=256, seed=0)
    assert [said(example.alternatives[0]) for example in found] == [f"the cat {n}." for n in range(6)]


def test_rows_without_a_preferred_answer_are_counted() -> None:
    rows = [*ROWS[:2], {**ROWS[2], "preferred_answer": " "}, {"question": "Who?", "answer": "the cat"}]
    with pytest.raises(RequestError, match=r"row 3.*missing in 2 of 4 rows.*'preferred_answer'.*idkdpo"):
        with_alternatives(encoded(rows), "preferred", tokenizer=TOKENIZER, max_length=256, seed=0)


def test_running_text_has_no_other_answer() -> None:
    examples = [e.example for e in encoded([{"text": "the cat sat"}])]
    for source in ("refusals", "preferred", "invented"):
        (fault,) = alternative_faults(examples, source, "--forget")
        assert "no question" in fault.what


@pytest.mark.parametrize("template", [True, False])
def test_invented_answers_are_sampled_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: bool
) -> None:
    tokenizer = TOKENIZER if template else tiny_tokenizer(None)
    model = tiny_llama()
    data = encoded(ROWS, tokenizer)
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": 256,
        "each": 2,
        "batch_size": 4,
        "precision": "fp32",
    }
    before = torch.get_rng_state()
    found, refused = with_invented(model, data, seed=0, remembered=Cache(tmp_path), **common)
    assert torch.equal(torch.get_rng_state(), before)
    assert refused == 0 and all(len(example.alternatives) == 2 for example in found)
    texts = {said(one, tokenizer) for example in found for one in example.alternatives}
    assert len(texts) > 6  # an untrained model says something else every time
    other, _ = with_invented(model, data, seed=1, remembered=Cache(tmp_path / "x"), **common)
    assert [e.alternatives for e in other] != [e.alternatives for e in found]
    monkeypatch.setattr(ngdiff.preparation.alternatives, "_sample", None)  # not asked again
    again, _ = with_invented(model, data, seed=0, remembered=Cache(tmp_path), **common)
    assert [e.alternatives for e in again] == [e.alternatives for e in found]


def test_refusals_stand_in_where_the_model_only_knows_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def parrot(model: Any, tokenizer: Any, prompts: Sequence[Any], *_: Any) -> list[str]:
        asked.append(len(prompts))
        return ["the author 0 sat.", *[""] * (len(prompts) - 1)]

    monkeypatch.setattr(ngdiff.preparation.alternatives, "_sample", parrot)
    found, refused = with_invented(
        tiny_llama(),
        encoded(ROWS[:1]),
        tokenizer=TOKENIZER,
        max_length=256,
        seed=0,
        each=3,
        batch_size=8,
        remembered=Cache(tmp_path),
        precision="fp32",
    )
    assert refused == 3 and asked == [3, 3, 3]
    assert all(said(one) in refusals() for one in found[0].alternatives)
