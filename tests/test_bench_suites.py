"""``ngdiff bench muse`` and ``bench own``: what their runs learn from, requests in a row, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli, make_cli, questions, save_model, write_jsonl
from muse_folder import muse_rows, write_muse
from ngdiff.bench.distance import distance
from ngdiff.bench.suites import SUITES
from ngdiff.bench.trial_figures import shares_of
from ngdiff.bench.trials import BenchRequest
from test_bench import here  # noqa: F401


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


def muse_request(**changes: Any) -> BenchRequest:
    usual: dict[str, Any] = {"suite": "muse", "model": "m", "output": Path("o"), "methods": ("ngdiff",)}
    return BenchRequest(**{**usual, "splits": ("forget",), **changes})


def test_what_each_split_of_muse_forgets_and_keeps() -> None:
    suite = SUITES["muse"]
    (step,) = suite.steps(muse_request(corpus="books"), "forget")
    assert (step.forget, step.retain, step.holdout) == (
        ("muse:books/forget",),
        ("muse:books/retain1",),
        ("muse:books/holdout",),
    )
    (larger,) = suite.steps(muse_request(texts=9, retain=("r.jsonl",), also_retain=("g",)), "scal_3")
    assert larger.forget == ("muse:news/scal/forget_3[:9]",) and larger.retain == ("r.jsonl", "g")
    rows = suite.steps(muse_request(), "sust")
    assert [one.forget for one in rows] == [(f"muse:news/sust/forget_{n}",) for n in range(1, 5)]
    assert suite.steps(muse_request(), "tuning-sust") == rows


def test_passages_are_those_of_the_texts_that_were_learned(tmp_path: Path) -> None:
    corpus = muse_rows()
    known = corpus["raw/forget"][1]["text"]
    corpus["verbmem/forget"][2] = {"prompt": known[:20], "gt": known[20:]}
    write_muse(tmp_path, corpus)
    asked = muse_request(texts=2, folders={"muse": tmp_path}, items=1)
    files = SUITES["muse"].files(asked, "forget")
    passages = [json.loads(line) for line in files["verbmem/forget.jsonl"].splitlines()]
    assert [row["prompt"] for row in passages] == [known[:20]]
    assert len(files["privleak/forget.jsonl"].splitlines()) == 1
    assert len(files["knowmem/retain_qa_icl.jsonl"].splitlines()) == 2  # solved examples stay


def test_shares_and_distance_of_muse_by_hand() -> None:
    target = {
        "forget.verbatim": 0.5,
        "forget.extraction_strength": 0.4,
        "utility": 0.4,
        "forget.knowledge": 0.6,
    }
    target |= {"retain.knowledge": 0.4, "general_nll": 3.0}
    retrained = {"forget.verbatim": 0.1, "forget.extraction_strength": 0.0, "forget.knowledge": 0.2}
    model = target | {
        "forget.verbatim": 0.2,
        "forget.knowledge": 0.2,
        "utility": 0.2,
        "retain.knowledge": 0.3,
    }
    shares = shares_of(model, target, retrained)
    assert shares["forgotten"] == pytest.approx(0.75) and shares["kept"] == pytest.approx(0.5)
    found = distance(model, target, retrained)
    assert (
        found is not None and found.part == "forget.extraction_strength" and found.value == pytest.approx(1.0)
    )
    assert found.parts["forget.verbatim"] == pytest.approx(0.25) and found.missing == ()
    assert found.parts["retain.knowledge"] == pytest.approx(0.25)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_model(tmp_path / "target")
    write_muse(tmp_path / "muse", muse_rows(folds=4), "texts")
    return tmp_path


QUICK = ("--set", "max_steps=1", "--set", "stop_at=none", "--seeds", 1, "--epochs", 1, "--no-report")
QUICK = (*QUICK, "--methods", "graddiff")


def test_requests_in_a_row_are_evaluated_after_each(cli: Cli, place: Path, here: list[Path]) -> None:  # noqa: F811
    words = ("bench", "muse", "--model", place / "target", "--muse-dir", place / "muse", *QUICK)
    words = (*words, "--splits", "forget,sust", "--items", 2, "--output", place / "out")
    answer = cli(*words)
    assert answer.code == 0, answer.err
    page = (place / "out" / "results.md").read_text()
    assert page.startswith("# MUSE: methods compared")
    assert "forget verbatim memorisation" in page and "### After each request, sust" in page
    trial = place / "out" / "trials" / "sust" / "graddiff" / "seed-0"
    after = json.loads((trial / "after-1" / "evaluation.json").read_text())
    last = json.loads((trial / "evaluation.json").read_text())
    assert after["provenance"]["model"]["sha256"] != last["provenance"]["model"]["sha256"]
    record = json.loads((trial / "record.json").read_text())
    assert record["settings"]["forget"] == ["muse:news/sust/forget_4"]
    assert record["settings"]["model"].endswith("model-3")  # from the model of the request before
    assert not list(trial.glob("model*"))  # weights go
    lines = [line for line in page.splitlines() if line.startswith("| graddiff | seed-0 |")]
    assert [line.split("|")[3].strip() for line in lines] == ["1", "2", "3", "4"]
    here.clear()
    assert cli(*words).code == 0 and here == []  # done already


def test_own_data(cli: Cli, place: Path, here: list[Path]) -> None:  # noqa: F811
    for name, start in (("forget", 0), ("retain", 50), ("holdout", 90)):
        write_jsonl(place / f"{name}.jsonl", questions(start, 12))
    data = [part for n in ("forget", "retain", "holdout") for part in (f"--{n}", place / f"{n}.jsonl")]
    answer = cli("bench", "own", "--model", place / "target", *data, *QUICK, "--output", place / "out")
    assert answer.code == 0, answer.err
    rows = json.loads((place / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["target", "graddiff"]
    assert {"forget.extraction_strength", "retain.probability", "utility"} <= set(rows[1]["cells"])
    assert len(here) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--splits", "forget10"), "no forget set of MUSE called 'forget10'"),
        (("--corpus", "newz"), "no part of MUSE called 'newz/forget'"),
        (("--retain", "gone.jsonl"), "gone.jsonl"),
        (("--methods", "dpo"), "MUSE has no preferred answers for 'dpo'"),
    ],
)
def test_bad_requests_name_what_is_wrong(cli: Cli, place: Path, words: tuple[str, ...], said: str) -> None:
    command = ("bench", "muse", "--model", place / "target", "--muse-dir", place / "muse")
    answer = cli(*command, "--output", place / "out", *QUICK[:-2], *words, "--dry-run")
    assert answer.code == 2 and said in " ".join(answer.err.split())
    assert not (place / "out").exists()
