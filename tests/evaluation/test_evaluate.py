"""``ngdiff evaluate`` from request to eval.json: provenance, references, and requests that are wrong."""

from __future__ import annotations

import errno
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import slow_tofu
from commandline import Cli, save_model
from ngdiff.errors import EvaluationError, RequestError, RunError
from ngdiff.evaluation.evaluate import evaluate
from ngdiff.evaluation.openunlearning import read_log
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import EvaluationResult, Figure, read_result, write_result
from ngdiff.system.cache import FILE, _digest
from ngdiff.system.environment import weights_hash
from published_logs import tofu_log
from tiny import tiny_llama
from tofu_folder import make_tofu

OWN = ("perturbed_answer", "paraphrased_answer", "paraphrased_question")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a TOFU folder, and the same rows as files of one's own."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "model", 0)
    save_model(folder / "retrained", 1)
    save_model(folder / "broken", 0)
    broken = tiny_llama()
    with torch.no_grad():  # finite, as every weight must be, but what follows from it is not
        broken.lm_head.weight[5] = 3e38
    broken.save_pretrained(folder / "broken")
    tofu = make_tofu(folder / "tofu")
    for name, file in (
        ("forget", "forget01_perturbed"),
        ("retain", "retain_perturbed"),
        ("holdout", "holdout01"),
    ):
        (folder / f"{name}.jsonl").write_text((tofu / f"{file}.json").read_text())
    return folder


def tofu_request(place: Path, output: Path, **changes: Any) -> EvaluateRequest:
    asked = EvaluateRequest(
        str(place / "model"),
        "tofu",
        output,
        ("forget01",),
        folders={"tofu": place / "tofu"},
        cache=False,
        max_new_tokens=4,
        resamples=20,
    )
    return replace(asked, **changes)


def own_request(place: Path, output: Path, **changes: Any) -> EvaluateRequest:
    sources = {name: (str(place / f"{name}.jsonl"),) for name in ("forget", "retain")}
    return replace(tofu_request(place, output), **{"suite": "own", "folders": {}, **sources, **changes})


def refused(request: EvaluateRequest) -> str:
    """Return what an evaluation was refused for; nothing may have been written."""
    before = request.output.read_bytes() if request.output.is_file() else None
    with pytest.raises(RequestError) as caught:
        evaluate(request)
    assert (request.output.read_bytes() if request.output.is_file() else None) == before
    return str(caught.value)


def test_the_result_says_where_it_comes_from(place: Path, tmp_path: Path) -> None:
    written = evaluate(tofu_request(place, tmp_path / "eval.json", seed=5))
    read = read_result(tmp_path / "eval.json")
    assert replace(read, texts={}) == EvaluationResult.from_json(json.loads(json.dumps(written.as_json())))
    assert read.texts == written.texts
    content = json.loads((tmp_path / "eval.json").read_text())
    origin = content["provenance"]
    assert origin["model"]["sha256"] == weights_hash(tiny_llama())
    assert set(origin["data"]) == {"forget", "retain", "real_authors", "world_facts", "holdout"}
    assert all(len(entry["sha256"]) == 64 for entry in origin["data"].values())
    assert origin["seed"] == 5 and origin["settings"]["max_new_tokens"] == 4
    assert {"torch", "transformers", "ngdiff"} <= set(origin["versions"])
    assert (
        content["places"]["forget"][2] == "forget01_perturbed.json, line 3" or content["places"]["forget"][2]
    )
    for key, figure in content["figures"].items():
        assert figure["metric"] in origin["metrics"] and figure["metric_version"] >= 1, key
        if figure["value"] is not None:
            assert figure["interval"][0] <= figure["interval"][1], key
    assert content["figures"]["forget.probability"]["higher_is_better"] is False
    assert content["figures"]["retain.probability"]["higher_is_better"] is True
    assert len(content["figures"]["forget.probability"]["items"]) == 6


def test_a_reference_given_in_three_ways(place: Path, tmp_path: Path) -> None:
    other = tofu_request(place, tmp_path / "retrained.json", model=str(place / "retrained"))
    evaluate(replace(other, openunlearning=tmp_path / "log"))
    qualities, leaks = [], []
    for number, reference in enumerate((place / "retrained", tmp_path / "retrained.json", tmp_path / "log")):
        output = tmp_path / f"{number}.json"
        found = evaluate(tofu_request(place, output, reference=str(reference)))
        qualities.append(found.figures["forget_quality"].value)
        leaks.append(found.figures["privleak"].value)
    assert qualities[0] is not None and 0 < qualities[0] < 1
    assert qualities == pytest.approx([qualities[0]] * 3)
    assert leaks == pytest.approx([leaks[0]] * 3)


def test_nothing_is_compared_across_definitions(place: Path, tmp_path: Path) -> None:
    retrained = tmp_path / "retrained.json"
    evaluate(tofu_request(place, retrained, model=str(place / "retrained")))
    content = json.loads(retrained.read_text(encoding="utf-8"))
    content["figures"]["forget.membership.min_k"]["metric_version"] = 1
    retrained.write_text(json.dumps(content), encoding="utf-8")
    found = evaluate(tofu_request(place, tmp_path / "new.json", reference=str(retrained)))
    assert found.figures["privleak"].value is None and found.figures["forget_quality"].value is not None
    again = read_result(retrained)
    assert again.figures["forget.membership.min_k"].outdated == 1
    assert again.as_json()["figures"]["forget.membership.min_k"]["metric_version"] == 1


def test_own_data_is_measured_as_tofu_is(place: Path, tmp_path: Path) -> None:
    tofu = evaluate(tofu_request(place, tmp_path / "tofu.json", reference=str(place / "retrained")))
    holdout = (str(place / "holdout.jsonl"),)
    own = evaluate(
        own_request(place, tmp_path / "own.json", holdout=holdout, reference=str(place / "retrained"))
    )
    same = [key for key in own.figures if key in tofu.figures]
    assert len(same) > 30 and "forget_quality" in same
    for key in same:
        assert own.figures[key].value == pytest.approx(tofu.figures[key].value, rel=1e-6), key
    alone = evaluate(own_request(place, tmp_path / "alone.json"))
    assert alone.figures["forget_quality"].value is None
    assert not [key for key in alone.figures if "membership" in key]


def test_plain_text_has_no_answers(place: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        rows = [{"text": f"{name} text number {n} on the mat"} for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(own_request(tmp_path, tmp_path / "eval.json", model=str(place / "model")))
    assert found.figures["forget.rouge"].value is None and "no prompt" in str(
        found.figures["forget.rouge"].note
    )
    assert found.figures["forget.probability"].value is not None


def test_a_reference_of_another_kind(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    evaluate(own_request(place, own))
    assert "suite 'own'" in refused(tofu_request(place, tmp_path / "e.json", reference=str(own)))
    larger = make_tofu(tmp_path / "larger", seed=1, forget=9)
    evaluate(tofu_request(place, tmp_path / "larger.json", folders={"tofu": larger}))
    said = refused(tofu_request(place, tmp_path / "e.json", reference=str(tmp_path / "larger.json")))
    assert "9 truth ratios for the 6 items" in said
    changed = make_tofu(tmp_path / "changed", seed=2)
    evaluate(tofu_request(place, tmp_path / "changed.json", folders={"tofu": changed}))
    assert "other rows" in refused(
        tofu_request(place, tmp_path / "e.json", reference=str(tmp_path / "changed.json"))
    )
    content = json.loads((tmp_path / "changed.json").read_text())
    content["split"] = "forget10"
    (tmp_path / "split.json").write_text(json.dumps(content))
    said = refused(tofu_request(place, tmp_path / "e.json", reference=str(tmp_path / "split.json")))
    assert "forget10" in said


BAD_REFERENCES = {
    "missing": (None, "no such file"),
    "truncated": ('{"kind": "evaluation", "format": 1, "fig', "truncated"),
    "foreign": ('{"some": "thing"}', "--reference"),
    "not a number": ('{"kind": "evaluation", "format": 1, "figures": NaN}', "NaN"),
    "another version": ('{"kind": "evaluation", "format": 99}', "99"),
    "a list": ("[1, 2]", "--reference"),
    "a record": ('{"kind": "unlearn", "format": 1}', "--reference"),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_a_bad_reference(place: Path, tmp_path: Path, name: str) -> None:
    content, said = BAD_REFERENCES[name]
    file = tmp_path / "reference.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RequestError, match=said):
        evaluate(tofu_request(place, tmp_path / "e.json", reference=str(file)))


def test_what_is_required_must_be_possible(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "e.json"
    said = refused(tofu_request(place, output, require=("forget_quality",)))
    assert "--reference" in said and "retrained model" in said
    bare = make_tofu(tmp_path / "bare", holdout=0)
    said = refused(tofu_request(place, output, folders={"tofu": bare}, require=("membership", "privleak")))
    assert "--holdout" in said and "--reference" in said
    assert "forget_qualty" in refused(tofu_request(place, output, require=("forget_qualty",)))
    plain = [
        {k: v for k, v in row.items() if k not in OWN}
        for row in slow_tofu.rows(place / "tofu", "retain_perturbed")
    ]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    asked = own_request(
        place, output, retain=(str(place / "forget.jsonl"),), forget=(str(tmp_path / "plain.jsonl"),)
    )
    said = refused(replace(asked, require=("forget_quality",), reference=str(place / "retrained")))
    assert "perturbed_answer" in said


def test_faults_come_together(place: Path, tmp_path: Path) -> None:
    asked = tofu_request(
        place, tmp_path, model=str(tmp_path / "none"), forget=("forget02",), batch_size=0, precision="fp8"
    )
    said = refused(asked)
    for part in ("--output", "none", "forget02", "--batch-size", "--precision"):
        assert part in said


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "suite": ({"suite": "tufo"}, "tufo"),
    "an option of another suite": ({"tasks": ("mmlu",)}, "--tasks"),
    "a missing option": ({"suite": "own", "retain": ()}, "--retain"),
    "a missing corpus": ({"suite": "muse", "forget": ()}, "--data"),
    "no layout": ({"suite": "own", "openunlearning": Path("x")}, "--openunlearning"),
    "resamples": ({"resamples": 0}, "--resamples"),
    "length": ({"max_length": 0}, "--max-length"),
    "answers": ({"max_new_tokens": -3}, "--max-new-tokens"),
    "holdout": ({"holdout": ("nowhere.jsonl",)}, "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request(place: Path, tmp_path: Path, name: str) -> None:
    changes, said = WRONG[name]
    assert said in refused(tofu_request(place, tmp_path / "e.json", **changes))


def test_nothing_is_overwritten(place: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("my notes")
    assert "not an eval.json" in refused(tofu_request(place, mine, overwrite=True))
    output = tmp_path / "eval.json"
    evaluate(own_request(place, output))
    assert "already exists" in refused(own_request(place, output))
    evaluate(own_request(place, output, seed=3, overwrite=True))
    assert read_result(output).provenance["seed"] == 3


def test_an_item_without_likelihood(place: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="line"):
        evaluate(tofu_request(place, tmp_path / "e.json", model=str(place / "broken")))
    assert not (tmp_path / "e.json").exists()


def test_interrupted_and_started_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.inference import evaluator

    asked = tofu_request(place, tmp_path / "e.json", cache=True, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluator, "generate_answers", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            evaluate(asked)
    assert not (tmp_path / "e.json").exists()
    second = evaluate(asked)
    whole = evaluate(replace(asked, output=tmp_path / "f.json", cache=False))
    assert second.figures.keys() == whole.figures.keys()
    for key, figure in whole.figures.items():
        if figure.value is None:
            assert second.figures[key].value is None
        else:
            assert second.figures[key].value == pytest.approx(figure.value, rel=1e-6, abs=1e-9)
    cached = second.provenance["cached"]
    assert cached["forget gradients"] == 6  # the same passes show how well the true answers are known
    assert cached["forget answers"] == 6 * 6  # each question with a paraphrased and five perturbed answers
    assert cached["forget generation"] == cached["retain generation"] == 0
    third = evaluate(replace(asked, output=tmp_path / "g.json", model=str(place / "retrained")))
    assert not any(third.provenance["cached"].values())


def words(place: Path, output: Path, model: str = "model") -> tuple[object, ...]:
    sources = ("--forget", place / "forget.jsonl", "--retain", place / "retain.jsonl")
    return ("evaluate", place / model, "--suite", "own", *sources, "--output", output, "--no-cache")


def test_on_the_command_line(cli: Cli, place: Path, tmp_path: Path) -> None:
    answer = cli(*words(place, tmp_path / "eval.json"), "--max-new-tokens", 4)
    assert answer.code == 0, answer.err
    shown = answer.out + answer.err
    assert "forget.probability" in shown and "utility" in shown and "95%" in shown
    assert read_result(tmp_path / "eval.json").figures["utility"].value is not None


def test_figures_are_shown_although_the_disk_is_full(
    cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "eval.json")

    monkeypatch.setattr("ngdiff.evaluation.evaluate.write_result", full)
    answer = cli(*words(place, tmp_path / "eval.json"))
    assert answer.code == 2 and len(answer.faults) == 1 and "No space left" in answer.err
    assert "forget.probability" in answer.out + answer.err
    assert list(tmp_path.iterdir()) == []


def test_values_in_the_cache_that_do_not_fit_are_measured_again(place: Path, tmp_path: Path) -> None:
    request = own_request(place, tmp_path / "first.json", cache=True, cache_dir=tmp_path / "cache")
    first = evaluate(request)
    with sqlite3.connect(tmp_path / "cache" / FILE) as connection:
        rows = connection.execute("SELECT key FROM items").fetchall()
        for number, (key,) in enumerate(rows):
            text = ("7", '"x"', "[1]", "{}", '{"nll": "x"}')[number % 5]
            values = (text, _digest(key, text), key)
            connection.execute("UPDATE items SET value = ?, digest = ? WHERE key = ?", values)
    connection.close()
    again = evaluate(replace(request, output=tmp_path / "again.json"))
    for key, figure in first.figures.items():
        if not key.endswith("rouge"):  # a text edited to another text is not noticed
            assert figure.value is None or again.figures[key].value == pytest.approx(figure.value)


def test_nothing_that_was_to_be_forgotten_is_quoted(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval.json"
    result = evaluate(own_request(place, output))
    shared = output.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (place / "forget.jsonl").read_text().splitlines()]
    assert rows and result.texts["forget"]
    for row in rows:
        assert row["question"] not in shared and row["answer"] not in shared
    assert all(row["answer"] not in shared for row in result.texts["forget"] if len(row["answer"]) > 8)
    assert read_result(output).texts == result.texts
    (tmp_path / "other.texts.json").write_text("mine")
    with pytest.raises(RequestError, match=r"other\.texts\.json exists"):
        evaluate(own_request(place, tmp_path / "other.json"))


@pytest.mark.parametrize(
    ("name", "overwrite"), [("eval.json", False), ("eval.json", True), ("eval.texts.json", True)]
)
def test_a_file_that_appears_during_the_evaluation_is_not_replaced(
    place: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    request = own_request(place, tmp_path / "eval.json", overwrite=overwrite)
    with pytest.raises(RunError, match=rf"{name} exists .*the result is in .*eval-2\.json"):
        evaluate(request, lambda _: (tmp_path / name).write_text("mine"))
    assert (tmp_path / name).read_text() == "mine"
    assert read_result(tmp_path / "eval-2.json").texts["forget"]


def test_a_log_folder_that_appears_during_the_evaluation_is_not_replaced(place: Path, tmp_path: Path) -> None:
    request = tofu_request(place, tmp_path / "eval.json", openunlearning=tmp_path / "log")

    def appear(_: object) -> None:
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "mine").write_text("mine")

    with pytest.raises(RunError, match=r"log is not empty, so it was not replaced; the result is in"):
        evaluate(request, appear)
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["mine"]
    assert (tmp_path / "eval.json").is_file()


@pytest.mark.parametrize(("metric", "value"), [("auc", -5), ("probability", -5), ("nll", -5), ("auc", 1.5)])
def test_a_reference_with_impossible_figures_is_refused(
    cli: Cli, place: Path, tmp_path: Path, metric: str, value: float
) -> None:
    write_result(EvaluationResult("own", {"x": Figure(metric, value)}, {}), tmp_path / "reference.json")
    answer = cli(*words(place, tmp_path / "eval.json"), "--reference", tmp_path / "reference.json")
    assert answer.code == 2 and len(answer.faults) == 1 and f"{value} is not a possible value" in answer.err


def test_a_log_with_an_impossible_auc_is_refused(tmp_path: Path) -> None:
    log = tofu_log(0) | {"mia_min_k": {"agg_value": -5}}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
    with pytest.raises(RequestError, match=r"mia_min_k: is -5.*ROC"):
        read_log(tmp_path / "TOFU_EVAL.json")


def test_faults_on_the_command_line(cli: Cli, place: Path, tmp_path: Path) -> None:
    answer = cli(*words(place, tmp_path / "eval.json"), "--batch-size", 0, "--require", "forget_quality")
    assert answer.code == 2 and len(answer.faults) == 2
    broken = cli(*words(place, tmp_path / "eval.json", "broken"))
    assert broken.code == 1 and "line" in broken.err and "Traceback" not in broken.err
    assert list(tmp_path.iterdir()) == []
