"""Running text: what counts as left of it, where its level is measured, and what a run shows of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commandline import Cli, save_model, write_jsonl
from ngdiff.data.datasets import as_encoded
from ngdiff.data.examples import Example
from ngdiff.data.long_text import in_pieces, passages
from ngdiff.data.overlaps import part_fault
from ngdiff.inference.teacher_forced import AnswerScore, verbatim
from ngdiff.stopping.criterion import TEXT, is_whole, measured_bounds
from ngdiff.stopping.never_seen import is_text, known_text_faults, missing_holdout, unknown_retain
from ngdiff.stopping.rule import ForgetTarget, parse_stop_at
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(None)


def score(probability: float, run: float, tokens: int = 200) -> AnswerScore:
    log_prob = torch.tensor(probability).log().item()
    return AnswerScore(-tokens * log_prob, tokens, 0.0, 0.5, (log_prob,) * tokens, verbatim=run)


# ---- the figure ----


def slow_verbatim(marks: Sequence[bool]) -> float:
    kept = marks[:-1] if len(marks) > 1 else marks
    longest = max((len(run) for run in "".join("x" if mark else " " for mark in kept).split(" ")), default=0)
    return min(1.0, longest / min(50, len(kept)))


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_verbatim_is_the_longest_run_of_fifty(marks: list[bool]) -> None:
    assert verbatim(torch.tensor(marks)) == pytest.approx(slow_verbatim(marks))


def test_verbatim_by_hand() -> None:
    marks = [True] * 30 + [False] + [True] * 20 + [False] + [True]  # the last is the end of the text
    assert verbatim(torch.tensor(marks)) == pytest.approx(30 / 50)
    assert verbatim(torch.tensor([True] * 8 + [False] * 2 + [True])) == pytest.approx(8 / 10)
    assert verbatim(torch.tensor([True] * 51)) == 1.0
    # one wrong token near the end, and extraction strength says that nothing is left
    from ngdiff.inference.teacher_forced import extraction_strength

    nearly = torch.tensor([True] * 198 + [False, True])
    assert extraction_strength(nearly) == 0.0 and verbatim(nearly) == 1.0


# ---- the criterion ----


def test_text_is_judged_by_passages_and_probability() -> None:
    never_seen = [score(0.05 + 0.001 * n, 0.1 + 0.01 * n) for n in range(12)]
    auto = parse_stop_at("auto")
    assert auto is not None
    target = auto.measured(never_seen, 20, "texts", {}, text=True)
    assert [bound.measure for bound in target.bounds] == list(TEXT) and target.measure == "verbatim"
    assert target.bounds[0].item == pytest.approx(0.21) and target.whole
    answers = auto.measured(never_seen, 20, "answers", {})
    assert [bound.measure for bound in answers.bounds] == ["extraction_strength", "probability"]
    given_one = parse_stop_at("verbatim=0.3")
    assert isinstance(given_one, ForgetTarget) and given_one.measure == "verbatim"
    assert given_one.measured(never_seen, 20, "texts", {}, text=True) is given_one


def test_a_passage_of_fifty_tokens_is_reproduced_whole_unless_that_could_be_guessed() -> None:
    bounds = measured_bounds(TEXT, [score(0.05, 0.1)] * 12, 20, {})
    assert is_whole(score(0.05, 1.0), bounds, None) and not is_whole(score(0.05, 0.98), bounds, None)
    assert not is_whole(score(0.05, 1.0), bounds, (0.0, 0.0, 1.0))
    repeated = measured_bounds(TEXT, [score(0.05, 1.0)] * 12, 20, {})  # never-seen text has it too
    assert not is_whole(score(0.05, 1.0), repeated, None)


# ---- the level ----


def texts(words: str, count: int) -> Any:
    return as_encoded([{"text": f"{words} {n} " * 4} for n in range(count)], TOKENIZER, 512, "rows")


def test_text_without_a_holdout_is_told_so_in_one_sentence() -> None:
    said = missing_holdout(texts("the cat", 12))
    assert said is not None and said.startswith("--holdout is missing") and ". " not in said
    assert missing_holdout(as_encoded([{"question": "q", "answer": "a"}], TOKENIZER, 512, "rows")) is None


def test_retain_text_serves_where_the_model_provably_does_not_know_it() -> None:
    forget, held_out = texts("the cat", 16), texts("the mat", 14)
    knows, does_not = [score(0.9, 1.0)] * 16, [score(0.1, 0.2)] * 14
    found = unknown_retain(held_out, knows, does_not, forget)
    assert found is not None and found.examples == held_out and "14 held-out pieces" in found.source
    refused = {
        "too few": (held_out[:11], knows, does_not[:11]),
        "known as well": (held_out, knows, [score(0.9, 0.3)] * 14),
        "one is known": (held_out, knows, [*does_not[:-1], score(0.95, 0.3)]),
        "one passage comes out": (held_out, knows, [*does_not[:-1], score(0.1, 1.0)]),
        "nothing is known": (held_out, [score(0.1, 0.2)] * 16, does_not),
    }
    for why, (part, ours, theirs) in refused.items():
        assert unknown_retain(part, ours, theirs, forget) is None, why
    questions = as_encoded([{"question": f"q{n}", "answer": "a"} for n in range(14)], TOKENIZER, 512, "rows")
    assert unknown_retain(questions, knows, does_not, forget) is None and not is_text(questions)


def test_a_holdout_whose_loss_is_no_higher_cannot_serve_as_a_level() -> None:
    assert known_text_faults([score(0.5, 1.0)], [score(0.1, 0.1)]) == []
    for unseen in (0.5, 0.6):
        (fault,) = known_text_faults([score(0.5, 1.0)], [score(unseen, 0.1)])
        assert fault.where == "--holdout" and "cannot set the level" in fault.what


# ---- passages ----


def test_a_passage_is_a_beginning_and_what_follows_it() -> None:
    text = "".join(random.Random(0).choice("qwxyz") for _ in range(100))
    piece = in_pieces([Example((), text, "text", "t, line 1")], TOKENIZER, 60, "x").examples[0]
    (found,) = passages([piece], TOKENIZER, 20)
    assert (found.prompt, found.answer) == (text[:20], text[20:40])
    assert found.passage and found.place == "t, line 1, piece 1 of 2"
    (short,) = passages([Example((), "abcdef", "text", "t")], TOKENIZER, 20)
    assert (short.prompt, short.answer) == ("abc", "def")
    (tiny,) = passages([Example((), "ab", "text", "t")], TOKENIZER, 20)
    assert tiny.kind == "text"


# ---- overlaps ----


def rows(*contents: str) -> list[Example]:
    return [Example((), content, "text", f"row {n}") for n, content in enumerate(contents, 1)]


def test_a_text_that_is_part_of_a_longer_one_in_the_other_set() -> None:
    words = [f"w{n}" for n in range(40)]
    short, long = " ".join(words[10:25]), " ".join(words)
    for forget, retain in ((rows("else", short), rows(long)), (rows(long), rows(short.upper() + "!"))):
        fault = part_fault(forget, retain)
        assert fault is not None and fault.where == "--retain" and "row" in fault.what
    assert part_fault(rows(short), rows(short)) is None  # the same: another fault
    assert part_fault(rows(" ".join(words[:11])), rows(long)) is None  # too short to be anybody's
    assert part_fault(rows(short), rows(" ".join([*words[:24], "x", *words[24:]]))) is None
    two = part_fault(rows(short, " ".join(words[5:20])), rows(long))
    assert two is not None and two.what.startswith("2 pairs of texts")


# ---- a run ----


def article(number: int) -> str:
    rng = random.Random(number)
    return " ".join(rng.choice(["cat", "mat", "sat", "the", "author", "wrote", "book"]) for _ in range(60))


def test_a_run_on_long_texts_counts_texts_and_pieces_and_shows_passages(cli: Cli, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    sets = {"forget": range(10), "retain": range(100, 112), "holdout": range(200, 206)}
    for name, numbers in sets.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": article(n)} for n in numbers])
    words = [part for name in ("forget", "retain") for part in (f"--{name}", tmp_path / f"{name}.jsonl")]
    short = (
        "--max-length",
        64,
        "--set",
        "max_steps=2",
        "--stop-at",
        "none",
        "--keep-utility",
        0,
        "--lr",
        1e-4,
    )
    answer = cli("unlearn", "--model", tmp_path / "model", *words, *short, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    said = " ".join(answer.err.split())
    assert "10 texts longer than 64 tokens were split into" in said
    assert said.index("--holdout is missing") < said.index("Ended:")  # before the run begins
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    data = record["data"]["forget"]
    assert data["examples"] == 10 and data["pieces"] == len(record["after"]["items"]["forget"]["nll"]) > 10
    assert receipt["data"]["forget"]["pieces"] == data["pieces"]
    assert f"10 (in {data['pieces']} pieces) to forget" in said
    assert record["after"]["forget"]["verbatim"] == pytest.approx(
        sum(record["after"]["items"]["forget"]["verbatim"]) / data["pieces"]
    )
    items = json.loads((tmp_path / "out" / "answers.json").read_text())["items"]
    asked = [item for item in items if item["set"] == "forget" and item["after"]["answer"] is not None]
    assert asked and all(item["passage"] and item["question"] and item["truth"] for item in asked)
    assert "the model continues the beginning of a passage" in (tmp_path / "out" / "report.html").read_text()
    assert cli("verify", tmp_path / "out", *words[:2]).code == 0
    known = ("--holdout", tmp_path / "forget.jsonl", "--output", tmp_path / "b")
    known += ("--set", "allow_overlap=true")
    assert "in another set too" in cli("unlearn", "--model", tmp_path / "model", *words, *short, *known).err


def test_pieces_of_mixed_sets_keep_answers_whole() -> None:
    piece = replace(rows("a b")[0], place="x")
    assert in_pieces([piece], TOKENIZER, 40, "x").examples == [piece]
