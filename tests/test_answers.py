"""Answers recorded before and after a run: what they are, and that the run does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from commandline import Cli, make_cli, questions, save_model, write_jsonl
from ngdiff.data.encoding import encode_all
from ngdiff.inference.generation import generate_answers
from ngdiff.inference.teacher_forced import AnswerScore, score_answers
from ngdiff.training.answer_book import AnswerBook, _after, _Look, _spread, broken_answers
from test_evaluation_callback import FORGET, RETAIN, TOKENIZER, make


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def test_answers_are_the_model_s_own_and_the_run_does_not_notice(tmp_path: Path) -> None:
    plain = make(tmp_path / "a")
    plain.train()
    trainer = make(tmp_path / "b")
    book = AnswerBook(trainer, 6)
    before = generate_answers(trainer.model, TOKENIZER, book.sets["forget"], max_new_tokens=64)
    trainer.train()
    found = book.compare()
    assert found is not None and json.loads(json.dumps(found)) == found
    note = broken_answers(found["items"])
    assert note is not None and note in trainer.record.notes  # an untrained model stammers
    for mine, theirs in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    forget = [item for item in found["items"] if item["set"] == "forget"]
    assert [item["question"] for item in forget] == [row["question"] for row in FORGET]
    after = generate_answers(trainer.model, TOKENIZER, book.sets["forget"], max_new_tokens=64)
    asked = [row for row, item in enumerate(forget) if item["before"]["answer"] is not None]
    assert asked == [0, 1, 3, 4]  # four of six at even distances; nothing is known by heart
    for row in asked:
        most = 64  # recorded answers end sooner: they are the beginning of the whole ones
        assert before[row].startswith(forget[row]["before"]["answer"][:most])
        assert after[row].startswith(forget[row]["after"]["answer"])
    scores = score_answers(
        trainer.model, encode_all(book.sets["forget"], TOKENIZER, 512, "x"), pad_id=TOKENIZER.pad_token_id
    )
    for item, score in zip(forget, scores, strict=True):
        assert item["after"]["probability"] == pytest.approx(score.probability)
    retain = [item["question"] for item in found["items"] if item["set"] == "retain"]
    assert retain and set(retain) < {row["question"] for row in RETAIN}


def test_none_are_asked_where_none_are_wanted(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a")
    book = AnswerBook(trainer, 0)
    trainer.train()
    assert book.compare() is None


def test_the_worst_forgotten_are_among_those_asked() -> None:
    def score(strength: float) -> AnswerScore:
        return AnswerScore(nll=1.0, tokens=2, extraction_strength=strength, exact_memorisation=0.5)

    strengths = [0.0, 0.1, 0.0, 0.9, 0.0, 0.0, 0.0, 0.8, 0.7]
    before = _Look([], dict.fromkeys(range(8), "known"))  # the last was not answered before
    rows = _after([score(value) for value in strengths], before, asked=6)
    assert rows == {0, 2, 4, 6, 3, 7}
    assert _spread(9, 4) == [0, 2, 4, 6] and _spread(3, 9) == [0, 1, 2]


def test_unlearn_writes_answers_and_report(tmp_path: Path, cli: Cli) -> None:
    model = save_model(tmp_path / "model")
    forget = write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(100, 12))
    common = (
        "--model",
        model,
        "--forget",
        forget,
        "--retain",
        retain,
        "--max-steps",
        2,
        "--precision",
        "fp32",
    )
    cli("unlearn", *common, "--output", tmp_path / "out", "--answers", 3)
    found = read(tmp_path / "out")
    assert found["asked"] == {"forget": 3, "retain": 2} and found["of"]["forget"] == 4
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Of the 4 examples to forget, 3 were asked" in page
    cli("unlearn", *common, "--output", tmp_path / "bare", "--answers", 0, "--no-report")
    assert not {"answers.json", "report.html"} & {path.name for path in (tmp_path / "bare").iterdir()}
    assert (tmp_path / "bare" / "record.json").exists()


def test_a_number_of_answers_that_is_none_is_refused(tmp_path: Path, cli: Cli) -> None:
    config = tmp_path / "request.yaml"
    config.write_text("answers: many\nmodel: nowhere\nforget: f\nretain: r\noutput: out\n", encoding="utf-8")
    answer = cli("unlearn", "--config", config)
    assert answer.code == 2 and ("--answers: is 'many'.", "Give a number, 0 for no answers.") in answer.faults
