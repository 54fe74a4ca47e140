"""The evaluator: what changes is measured again, what was measured is not, rows keep their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example, Message
from ngdiff.errors import EvaluationError
from ngdiff.inference import evaluator as module
from ngdiff.inference.evaluator import Evaluator
from ngdiff.system.cache import Cache
from tiny import CHATML_NO_NEWLINE, tiny_llama, tiny_tokenizer


def asked(number: int, answer: str = "the cat sat") -> Example:
    turns = (Message("user", f"question {number}?"), Message("assistant", answer + "!" * (number % 4)))
    return Example(turns, None, "qa", f"data.jsonl, line {number + 1}")


EXAMPLES = [asked(number) for number in range(7)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each measurement was asked for."""
    calls: list[int] = []
    for name in ("score_answers", "generate_answers", "norms_and_scores"):
        honest: Callable[..., Any] = getattr(module, name)

        def wrapped(*args: Any, honest: Callable[..., Any] = honest, **kwargs: Any) -> Any:
            rows = next(a for a in args if isinstance(a, list))
            calls.append(len(rows))
            return honest(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)
    return calls


def build(folder: Path, model: Any = None, tokenizer: Any = None, **settings: Any) -> Evaluator:
    return Evaluator(
        tiny_llama() if model is None else model,
        tokenizer or tiny_tokenizer(),
        **{"cache": Cache(folder), "max_new_tokens": 4, "quiet": True, **settings},
    )


def measure(evaluator: Evaluator) -> tuple[Any, Any, Any]:
    return (
        evaluator.score("set answers", EXAMPLES),
        evaluator.generate("set generation", EXAMPLES),
        evaluator.gradient_norms("set gradients", EXAMPLES),
    )


def test_nothing_is_measured_twice(tmp_path: Path, counted: list[int]) -> None:
    first = measure(build(tmp_path))
    assert sum(counted) == 3 * len(EXAMPLES)
    counted.clear()
    again = build(tmp_path, batch_size=3)  # changes no figure beyond rounding
    assert measure(again) == first
    assert counted == []
    assert set(again.cached.values()) == {len(EXAMPLES)}


def other_weights() -> Any:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    return model


def other_end() -> Any:
    model = tiny_llama()
    model.generation_config.eos_token_id = [1, 7]
    return model


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"model": other_weights}, (True, True, True)),
        ({"tokenizer": lambda: tiny_tokenizer(CHATML_NO_NEWLINE)}, (True, True, True)),
        ({"precision": lambda: "bf16"}, (True, True, True)),
        ({"max_new_tokens": lambda: 5}, (False, True, False)),
        ({"model": other_end}, (False, True, False)),
    ],
    ids=["weights", "template", "precision", "length of answers", "end tokens"],
)
def test_what_changes_is_measured_again(
    tmp_path: Path, counted: list[int], change: dict[str, Callable[[], Any]], again: tuple[bool, ...]
) -> None:
    measure(build(tmp_path))
    counted.clear()
    evaluator = build(tmp_path, **{name: make() for name, make in change.items()})
    found = []
    for kind in (evaluator.score, evaluator.generate, evaluator.gradient_norms):
        kind("set", EXAMPLES)
        found.append(bool(counted))
        counted.clear()
    assert tuple(found) == again


def test_other_rows_and_z_scores_are_measured(tmp_path: Path, counted: list[int]) -> None:
    evaluator = build(tmp_path)
    evaluator.score("set", EXAMPLES)
    evaluator.score("set", [*EXAMPLES, asked(3, "a dog sat")])
    assert counted == [7, 1]
    plain = evaluator.score("set", EXAMPLES)
    with_z = evaluator.score("set", EXAMPLES, z_scores=True)
    assert counted == [7, 1, 7]
    assert not plain[0].z_scores and len(with_z[0].z_scores) == with_z[0].tokens
    evaluator.score("set", EXAMPLES, end_token=False)  # the template ends chat rows: the same ids
    assert counted == [7, 1, 7]


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCHES_A_CHUNK", 1)
    honest, done = module.score_answers, []

    def dies(model: Any, rows: Any, **kwargs: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(rows))
        return honest(model, rows, **kwargs)

    monkeypatch.setattr(module, "score_answers", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, batch_size=2).score("set", EXAMPLES)
    assert done == [2, 2]
    monkeypatch.setattr(module, "score_answers", honest)
    second = build(tmp_path, batch_size=2)
    found = second.score("set", EXAMPLES)
    assert second.cached == {"set": 4}
    assert found == build(tmp_path, cache=None, batch_size=2).score("set", EXAMPLES)


def test_rows_keep_their_place(tmp_path: Path) -> None:
    evaluator = build(tmp_path, cache=None, batch_size=3)
    together = evaluator.score("set", EXAMPLES)
    for example, score in zip(EXAMPLES, together, strict=True):
        (alone,) = evaluator.score("set", [example])
        assert score.nll == pytest.approx(alone.nll, rel=1e-5)


def test_an_item_without_likelihood_is_named_and_not_remembered(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    for kind in ("score", "gradient_norms"):
        with pytest.raises(EvaluationError, match=r"data\.jsonl, line \d"):
            getattr(build(tmp_path, model), kind)("set", EXAMPLES)
    sound = build(tmp_path)
    sound.score("set", EXAMPLES)
    assert sound.cached == {"set": 0}


@pytest.fixture(scope="module")
def knowing() -> Any:
    """A model that has learned the first three answers."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    batch = collate(encode_all(EXAMPLES[:3], tokenizer, 512, "data"), 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_what_teacher_forcing_foretells_is_not_generated(knowing: Any, counted: list[int]) -> None:
    evaluator = Evaluator(knowing, tiny_tokenizer(), quiet=True, max_new_tokens=12)
    scores = evaluator.score("set answers", EXAMPLES)
    plain = evaluator.generate("set generation", EXAMPLES)
    known = [text == e.answer for text, e in zip(plain, EXAMPLES, strict=True)]
    assert all(known[:3]) and not all(known)
    assert all(score.extraction_strength == 1 for score, whole in zip(scores, known, strict=True) if whole)
    counted.clear()
    assert evaluator.generate("set generation", EXAMPLES, scores=scores) == plain
    assert 0 < sum(counted) < known.count(False)  # some answers part from the true one at their very end
    for change in ({"max_new_tokens": 2}, {"stop_strings": ("cat",)}):
        expected = evaluator.generate("set generation", EXAMPLES, **change)
        counted.clear()
        assert evaluator.generate("set generation", EXAMPLES, scores=scores, **change) == expected
        assert expected != plain and sum(counted) <= known.count(False)
    # not where something else than the likelihoods decides
    knowing.generation_config.min_new_tokens = 1
    try:
        counted.clear()
        evaluator.generate("set generation", EXAMPLES, scores=scores)
        assert counted == [len(EXAMPLES)]
    finally:
        knowing.generation_config.min_new_tokens = None
