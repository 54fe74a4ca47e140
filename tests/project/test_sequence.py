"""One request after another: earlier forget sets are recognised by their hashes and measured again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks.sequence import EVIDENCE, came_back, section, table

from commandline import SHORT, Cli, questions, save_model, tree, write_jsonl
from ngdiff.data.examples import Example, data_hash, to_examples
from ngdiff.data.sources import Row
from ngdiff.errors import RequestError
from ngdiff.receipts.earlier import EarlierRequest, looked_at_again, match_files
from ngdiff.receipts.schema import check_text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequence")
    save_model(folder / "target")
    for number in (1, 2, 3):
        write_jsonl(folder / f"forget{number}.jsonl", questions(10 * number, 4))
    write_jsonl(folder / "half1.jsonl", questions(10, 2))
    write_jsonl(folder / "half2.jsonl", questions(12, 2))
    write_jsonl(folder / "retain.jsonl", questions(100, 12))
    return folder


def request(folder: Path, model: Path, number: int, output: Path) -> list[object]:
    return [
        *("unlearn", "--model", model, "--forget", folder / f"forget{number}.jsonl"),
        *("--retain", folder / "retain.jsonl", "--output", output, *SHORT),
    ]  # fmt: skip


def receipt_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "receipt.json").read_bytes())
    return content


def test_three_requests(cli: Cli, made: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"out{n}" for n in (1, 2, 3)]
    assert cli(*request(made, made / "target", 1, outs[0])).code == 0
    # the first set in two files, in a row
    halves = ("--earlier", made / "half1.jsonl", "--earlier", made / "half2.jsonl")
    assert cli(*request(made, outs[0], 2, outs[1]), *halves).code == 0
    answer = cli(*request(made, outs[1], 3, outs[2]), "--earlier", made / "forget2.jsonl")
    assert answer.code == 0
    assert (
        "earlier requests not measured again, since their files were not given (--earlier): 1" in answer.err
    )

    receipts = [receipt_of(out) for out in outs]
    assert [receipt["previous"] and receipt["previous"]["count"] for receipt in receipts] == [None, 1, 2]
    said = [{e["request"]: e["looked_at"] for e in receipt["earlier"]} for receipt in receipts]
    assert said == [{}, {1: True}, {1: False, 2: True}]
    # same model, same items, same figures: what a run began with is what the one before ended with
    began, ended = receipts[1]["figures"]["before"]["earlier 1"], receipts[0]["figures"]["after"]["forget"]
    for measure, figure in ended.items():
        assert began[measure]["value"] == pytest.approx(figure["value"], abs=1e-5)
    assert receipts[2]["earlier"][1]["ended_at"] == receipts[1]["figures"]["after"]["forget"]
    for out in outs:
        assert cli("verify", out, "--chain").code == 0
    lines = table(receipts).splitlines()
    assert len(lines) == 5 and lines[2].count("—") == 2 and lines[4].count("—") == 1

    # a changed receipt, a lost one, other weights: nothing is chained to them
    for change in (
        lambda model: (model / "receipt.json").write_text((model / "receipt.json").read_text() + " "),
        lambda model: (model / "receipts" / "001.json").unlink(),
        lambda model: (model / "receipts" / "001.json").write_bytes((outs[1] / "receipt.json").read_bytes()),
        lambda model: save_model(model, seed=5),
    ):
        model = Path(shutil.copytree(outs[1], tmp_path / "changed"))
        change(model)
        before = tree(tmp_path)
        answer = cli(*request(made, model, 3, tmp_path / "never"))
        assert answer.code == 2 and "ngdiff verify" in answer.faults[0][1]
        assert tree(tmp_path) == before
        shutil.rmtree(model)


def test_a_record_without_a_receipt(cli: Cli, made: Path, tmp_path: Path) -> None:
    """What an older version left: its forget set is known from the record, and stays known afterwards."""
    assert cli(*request(made, made / "target", 1, tmp_path / "out1")).code == 0
    (tmp_path / "out1" / "receipt.json").unlink()
    earlier = ("--earlier", made / "forget1.jsonl")
    answer = cli(*request(made, tmp_path / "out1", 2, tmp_path / "out2"), *earlier)
    assert answer.code == 0 and "has a record but no receipt" in answer.err
    receipt = receipt_of(tmp_path / "out2")
    assert receipt["previous"]["sha256"] is None and receipt["previous"]["record_sha256"]
    assert [(e["request"], e["looked_at"]) for e in receipt["earlier"]] == [(0, True)]
    assert cli(*request(made, tmp_path / "out2", 3, tmp_path / "out3"), *earlier).code == 0
    assert [(e["request"], e["looked_at"]) for e in receipt_of(tmp_path / "out3")["earlier"]] == [
        (0, True),
        (1, False),
    ]
    assert cli("verify", tmp_path / "out3", "--chain").code == 0


def test_an_adapter_is_chained_by_its_files(cli: Cli, made: Path, tmp_path: Path) -> None:
    assert cli(*request(made, made / "target", 1, tmp_path / "out1"), "--lora").code == 0
    assert "- weights: not computed" in cli("verify", tmp_path / "out1").out
    earlier = ("--earlier", made / "forget1.jsonl")
    assert cli(*request(made, tmp_path / "out1", 2, tmp_path / "out2"), *earlier).code == 0
    answer = cli("verify", tmp_path / "out2", "--chain", "--model", tmp_path / "out1")
    assert answer.code == 0 and "✓ receipts before: the 1 before it match" in answer.out


def test_wrong_earlier_files(cli: Cli, made: Path, tmp_path: Path) -> None:
    earlier = ("--earlier", made / "forget2.jsonl")
    answer = cli(*request(made, made / "target", 1, tmp_path / "out"), *earlier)
    assert answer.code == 2 and "no receipt and no record" in answer.faults[0][0]
    assert cli(*request(made, made / "target", 1, tmp_path / "out1")).code == 0
    answer = cli(*request(made, tmp_path / "out1", 3, tmp_path / "out"), *earlier)
    assert answer.code == 2 and "is not the forget set of any earlier request" in answer.faults[0][0]
    # and what was forgotten is not to be learned again
    words = request(made, tmp_path / "out1", 3, tmp_path / "out")
    words[words.index("--retain") + 1] = made / "forget1.jsonl"
    answer = cli(*words, "--earlier", made / "forget1.jsonl")
    assert answer.code == 2 and "request 1 made the model forget what it should learn" in answer.faults[0][0]
    assert not (tmp_path / "out").exists()


def examples(start: int, count: int) -> list[Example]:
    return to_examples([Row(row, "row") for row in questions(start, count)], "")


def ended(value: float, high: float | None) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": value, "low": 0.0, "high": high} for name in ("extraction_strength", "probability")
    }


def test_what_came_back() -> None:
    data = {"examples": 4, "sha256": "0" * 64}
    requests = [
        EarlierRequest(n, "then", data, ended(0.1, high)) for n, high in ((1, 0.2), (2, 0.2), (3, None))
    ]
    now = {"extraction_strength": 0.1, "probability": 0.1}
    after = {"earlier 1": now | {"probability": 0.19}, "earlier 2": now | {"extraction_strength": 0.21}}
    said, notes = looked_at_again(requests, after)
    assert [(e["looked_at"], e["came_back"]) for e in said] == [(True, False), (True, True), (False, None)]
    assert notes[0].startswith(
        "what request 2 forgot came back: extraction strength of its forget set is 0.210"
    )
    assert notes[1].endswith(": 3")
    said, notes = looked_at_again(requests, {"earlier 3": now | {"probability": 0.11}})
    assert said[2]["came_back"] is True  # a record has no interval: its value is the limit


def test_files_find_their_requests() -> None:
    def known(number: int, found: list[Example]) -> EarlierRequest:
        return EarlierRequest(number, None, {"examples": 4, "sha256": data_hash(found)}, {})

    first, second = examples(0, 4), examples(4, 4)
    requests = [known(1, first), known(2, second)]
    parts = [("b", second), ("a1", first[:1]), ("a2", first[1:3]), ("a3", first[3:])]
    assert match_files(requests, parts, None) == {1: first, 2: second}
    with pytest.raises(RequestError, match="a2 is not the forget set of any earlier request"):
        match_files(requests, [parts[0], parts[2]], None)


def test_the_page_names_what_came_back() -> None:
    earlier = [{"request": 1, "came_back": False}, {"request": 2, "came_back": True}]
    assert came_back([{"earlier": []}, {"earlier": earlier[:1]}]) == "Came back: none."
    assert came_back([{"earlier": []}, {"earlier": []}, {"earlier": earlier}]) == (
        "Came back: set 2 after request 3."
    )


def test_the_page_shows_the_published_receipts() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "results-sequence.md").read_text(encoding="utf-8")
    for folder in sorted((root / EVIDENCE).iterdir()):
        texts = [file.read_bytes() for file in sorted(folder.glob("*.json"))]
        assert [check_text(text)[1] for text in texts] == [[]] * 4
        chained = [json.loads(text)["previous"] for text in texts]
        named = [previous["sha256"] for previous in chained[1:]]
        assert chained[0] is None and named == [hashlib.sha256(text).hexdigest() for text in texts[:-1]]
        found = section([json.loads(text) for text in texts])
        assert f"<!-- begin: sequence {folder.name} -->\n{found}\n<!-- end" in page
