"""ngdiff report and compare, without a browser: what is written, what is refused, what is escaped."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from commandline import Cli
from ngdiff.evaluation.result import read_result, write_result
from ngdiff.report.page import REPORT, command, run_page, write_comparison, write_report
from ngdiff.report.run_files import Run
from report_runs import answers, evaluation, items, record, run, write_run

ATTACK = '<script>window.ran=1</script><img src=x onerror="window.ran=1">'


class _Elements(HTMLParser):
    """Collects elements as (tag, attributes) and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data

    def data(self) -> Any:
        return json.loads(self.scripts[0])


def test_a_run_gives_a_page(tmp_path: Path, cli: Cli) -> None:
    out = write_run(tmp_path / "out", record(), answers(items(0.1, 0.3)))
    answer = cli("report", out)
    assert answer.code == 0 and REPORT in answer.err
    page = (out / REPORT).read_text(encoding="utf-8")
    found = _Elements(page)
    assert "FORGOTTEN (extraction strength 0." in page
    assert [item["after"] for item in found.data()["answers"]] == ["a cook 1", "a cook 0"]
    assert found.data()["curves"]["kept"] == 12
    assert cli("report", out).code == 0  # its own page may be replaced


def test_the_page_refers_to_nothing_outside() -> None:
    for tag, attributes in _Elements(run_page(run())).found:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith("#"), (tag, name, target)
        assert not any(name.startswith("on") for name in attributes)


def test_the_policy_allows_the_page_s_own_scripts_and_no_other() -> None:
    page = _Elements(run_page(run()))
    policy = next(a["content"] for t, a in page.found if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy and "script-src 'unsafe-inline'" not in policy
    hashes = set(re.findall(r"'(sha256-[^']+)'", policy))
    own = {
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in page.scripts[1:]
    }
    assert hashes == own and len(own) == 3


def test_hostile_text_stays_text() -> None:
    poisoned = record(
        settings={"model": ATTACK, "forget": [ATTACK], "method": ATTACK},
        model={"name": ATTACK},
        notes=[ATTACK, "\u202edesrever"],
        stop={"target_source": ATTACK, "code": ATTACK},
    )
    said = answers(
        [item | {"question": ATTACK, "truth": ATTACK, "set": ATTACK, "place": ATTACK} for item in items(0.1)]
    )
    page = run_page(Run(ATTACK, poisoned, answers=said))
    clean = _Elements(run_page(run()))
    tags = [tag for tag, _ in _Elements(page).found]
    assert tags.count("script") == [tag for tag, _ in clean.found].count("script")
    assert "img" not in tags and ATTACK not in page
    assert "\u202e" not in page and "⟨U+202E⟩desrever" in page
    assert _Elements(page).data()["answers"][0]["question"] == ATTACK


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    said = answers([item | {"question": "\ud800 who", "truth": "\udfff"} for item in items(0.1)])
    found = json.dumps(record(settings={"model": "\ud800"}))
    (tmp_path / "record.json").write_text(found, encoding="utf-8")
    (tmp_path / "answers.json").write_text(json.dumps(said), encoding="utf-8")
    assert "⟨U+D800⟩" in write_report(tmp_path).read_text(encoding="utf-8")


def test_evaluations_in_the_folder_are_found(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", record())
    write_result(evaluation(0.78, (0.67, 0.87)), out / "eval.json")
    write_result(evaluation(0.5, (0.4, 0.6), sha256="re"), out / "retrained.json")
    write_result(evaluation(1.0, (1.0, 1.0), sha256="be"), out / "target.json")
    page = write_report(out).read_text(encoding="utf-8")
    assert "membership inference still works" in page
    rocs = _Elements(page).data()["membership"][0]["rocs"]
    assert [roc["label"] for roc in rocs] == ["this model", "target model", "retrained model"]


def test_an_evaluation_keeps_its_texts(tmp_path: Path) -> None:
    said = {"forget": [{"place": "p", "question": "q", "truth": "t", "answer": "a"}]}
    write_result(evaluation(texts=said), tmp_path / "eval.json")
    path, beside = tmp_path / "eval.json", tmp_path / "eval.texts.json"
    assert read_result(path).texts == said
    assert "texts" not in json.loads(path.read_text(encoding="utf-8"))
    assert beside.stat().st_mode & 0o777 == 0o600
    whole = beside.read_text(encoding="utf-8")
    for damaged in ("{", "[]", whole.replace('"of": "', '"of": "0'), whole.replace("[\n", "3, [\n")):
        beside.write_text(damaged, encoding="utf-8")
        assert read_result(path).texts == {}
    beside.unlink()
    os.mkfifo(beside)
    assert read_result(path).texts == {}
    older = json.loads(path.read_text(encoding="utf-8")) | {"texts": said}  # as earlier versions wrote it
    path.write_text(json.dumps(older), encoding="utf-8")
    assert read_result(path).texts == said


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": [1]},
        {"cost": {"seconds": "x", "steps": {}}},
        {"cost": "x"},
        {"model": 5},
        {"data": {"forget": "x"}},
        {"stop": {"target": {"measure": {}, "value": 1}}},
        {"notes": 7},
        {"versions": 3.5},
        {"losses": [[]]},
    ],
    ids=str,
)
def test_records_of_wrong_types_end_in_one_message_or_a_page(
    cli: Cli, tmp_path: Path, changed: dict[str, Any]
) -> None:
    write_run(tmp_path / "out", record() | changed)
    answer = cli("report", tmp_path / "out")
    assert answer.code in (0, 2), answer.err
    assert answer.code == 0 or len(answer.faults) == 1


@pytest.mark.parametrize("name", ["record.json", "answers.json", "receipt.json", "eval.json", "report.html"])
def test_pipes_and_devices_do_not_hang(cli: Cli, tmp_path: Path, name: str) -> None:
    out = write_run(tmp_path / "out", record())
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (out / name).unlink(missing_ok=True)
        make(out / name)
        answer = cli("report", out)
        required = name in ("record.json", "report.html")
        assert answer.code == (2 if required else 0), answer.err
        assert not required or name in answer.err


def test_a_full_disk_under_a_report(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_run(tmp_path / "out", record())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    monkeypatch.setattr(Path, "replace", full)
    answer = cli("report", out)
    assert answer.code == 2 and len(answer.faults) == 1 and "No space left" in answer.err
    assert [path.name for path in out.iterdir()] == ["record.json"]


def test_comparison_of_runs(tmp_path: Path, cli: Cli) -> None:
    places = [write_run(tmp_path / name, record(settings={"method": name})) for name in ("a", "b")]
    page = tmp_path / "both.html"
    assert cli("compare", *places, "--output", page).code == 0
    data = _Elements(page.read_text(encoding="utf-8")).data()
    assert [series["name"] for series in data["comparison"]] == ["a", "b"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name / "out", record()) for name in ("a", "b")]
    page = write_comparison(places, tmp_path / "c.html").read_text(encoding="utf-8")
    assert "a/out" in page and "b/out" in page


def test_all_folders_that_cannot_be_compared_are_named(tmp_path: Path, cli: Cli) -> None:
    good = write_run(tmp_path / "good", record())
    answer = cli("compare", good, tmp_path / "nowhere", tmp_path / "neither", "--output", tmp_path / "c.html")
    assert answer.code == 2 and "nowhere" in answer.err and "neither" in answer.err
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "contains no record.json and no evaluation"),
        ("{", "is not valid JSON"),
        ("[]", "not contain a JSON object"),
        ('{"kind": "finetune"}', "the record of 'finetune', not of an unlearning run"),
        ('{"kind": "unlearn", "format": 9}', "format '9'"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, cli: Cli, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "record.json").write_text(content, encoding="utf-8")
    answer = cli("report", tmp_path)
    assert answer.code == 2 and says in answer.err
    assert not (tmp_path / REPORT).exists()


def test_nothing_but_a_page_is_overwritten(tmp_path: Path, cli: Cli) -> None:
    out = write_run(tmp_path / "out", record())
    precious = tmp_path / "precious.html"
    precious.write_text("<h1>mine</h1>", encoding="utf-8")
    assert cli("report", out, "--output", out / "record.json").code == 2
    assert cli("report", out, "--output", precious).code == 2
    assert cli("compare", out, out, "--output", precious).code == 2
    assert precious.read_text(encoding="utf-8") == "<h1>mine</h1>"
    assert json.loads((out / "record.json").read_text(encoding="utf-8"))["kind"] == "unlearn"


def test_one_run_is_no_comparison(tmp_path: Path, cli: Cli) -> None:
    assert cli("compare", write_run(tmp_path / "a", record())).code == 2


def test_the_command_repeats_the_settings(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    settings = {
        "model": "it's mine",
        "forget": ["a.jsonl", "b c.jsonl"],
        "retain": ["r.jsonl"],
        "holdout": [],
        "lora": True,
        "qlora": False,
        "precision": "fp32",
        "learning_rate": 1e-5,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "rule_settings": {"alpha": 2},
        "rule": "constant",
        "optimizer": "adamw",
        "autocast": "none",
        "batch_size": 4,
        "seed": 0,
        "keep_utility": 0.0,
        "stop_at": "none",
    }
    words = shlex.split(command({"settings": settings}))
    assert words[:2] == ["ngdiff", "unlearn"]
    asked: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def catch(given: dict[str, Any], *_: object) -> None:
        asked.update(given)
        raise Stop

    monkeypatch.setattr("ngdiff.cli.unlearn._run", catch)
    monkeypatch.setattr("sys.argv", words)
    from ngdiff.cli import main

    with pytest.raises(Stop):
        main()
    expected = {k: v for k, v in settings.items() if v is not None and v is not False and v != []} | {
        "output": Path("OUT")
    }
    for worked_out in ("optimizer", "autocast", "batch_size"):
        del expected[worked_out]
    assert asked == expected


def test_a_demonstration_s_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "unlearned", record(), answers(items(0.1)))
    general = {"set": "general", "question": "q", "truth": "t", "before": "t", "after": "t"}
    shown = {"people": 6, "answers": [general, general | {"set": "forget"}]}
    (tmp_path / "demo.json").write_text(json.dumps(shown), encoding="utf-8")
    page = write_report(tmp_path)
    assert page == tmp_path / REPORT
    found = _Elements(page.read_text(encoding="utf-8")).data()["answers"]
    assert [item["set"] for item in found] == ["forget", "general"]  # the run's own answers win


def test_a_benchmark_s_folder(tmp_path: Path, cli: Cli) -> None:
    cells = {
        "forget.extraction_strength": {"value": 0.1, "low": 0.05, "high": 0.2},
        "retain.probability": {"value": 0.9},
        "distance": {"value": None, "low": None, "high": None},
    }
    measured = {**cells, "distance": {"value": 0.25, "low": 0.2, "high": 0.3}}
    rows = [
        {"split": "forget01", "name": name, "cells": found, "on_front": True}
        for name, found in (("ngdiff", cells), ("retrained", measured))
    ]
    results = {"kind": "bench", "format": 1, "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for seed in ("seed-0", "tune-0"):
        write_run(tmp_path / "trials" / "forget01" / "ngdiff" / seed, record())
    assert cli("report", tmp_path).code == 0
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    data = _Elements(page).data()
    assert [run["name"] for run in data["comparison"]] == [
        "forget01 / ngdiff / seed-0"
    ]  # not the one that was tried
    assert [end["name"] for end in data["tradeoff"][0]["ends"]] == ["ngdiff"]
    assert [model["name"] for model in data["tradeoff"][0]["models"]] == ["retrained"]
    assert "∞" in page and "0.250<small>0.200 – 0.300</small>" in page  # the distances


def test_the_libraries_are_those_that_the_decisions_name() -> None:
    from importlib import resources

    static = resources.files("ngdiff.report") / "static"
    hashes = {
        name: hashlib.sha256((static / name).read_bytes()).hexdigest()
        for name in ("d3.min.js", "plot.umd.min.js")
    }
    assert hashes == {  # of dist/ in the npm packages d3 7.9.2 and @observablehq/plot 0.6.17
        "d3.min.js": "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
        "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    }


def test_every_figure_of_an_evaluation_is_in_a_table(tmp_path: Path) -> None:
    write_result(evaluation(0.78, (0.67, 0.87)), tmp_path / "eval.json")
    page = write_report(tmp_path / "eval.json")
    assert page == tmp_path / "eval.html"
    text = page.read_text(encoding="utf-8")
    row = re.search(r"<tr><th scope=\"row\">forget.membership.min_k</th>.*?</tr>", text)
    assert row is not None and "0.780<small>0.670 – 0.870</small>" in row[0]
    row = re.search(r"<tr><th scope=\"row\">forget.extraction_strength</th>.*?</tr>", text)
    assert row is not None and "lower is better" in row[0]


def test_the_evaluation_that_another_was_held_against_is_found(tmp_path: Path) -> None:
    write_result(evaluation(strength=0.05), tmp_path / "retrained.json")
    ours = evaluation(strength=0.06)
    ours.provenance["reference"] = {"name": str(tmp_path / "retrained.json"), "sha256": None}
    write_result(ours, tmp_path / "eval.json")
    assert "Yes, as if retrained" in write_report(tmp_path / "eval.json").read_text(encoding="utf-8")
