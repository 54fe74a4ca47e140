"""The card in OUT: valid front matter, true figures, and no name that becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from commandline import Cli, make_cli, questions, save_model, write_jsonl
from ngdiff.hub.card import _unnamed, escaped, model_card
from ngdiff.record import RunRecord
from ngdiff.training.answer_book import broken_answers

HOSTILE = (
    "evil\n---\nlicense: mit\n# Title\n<script>alert(1)</script> [x](javascript:alert(1)) `code` | cell | "
    "https://evil.example www.evil.example "
    "@someone $x$ ![i](http://evil.example/i.png) {{ 7*7 }} \u202eback\x1b[31m"
)
FIGURES = {"probability": 0.5, "extraction_strength": 0.25, "nll": 1.5}


def record(model: str = "org/base") -> RunRecord:
    digest = "ab" * 32
    return RunRecord(
        settings={"method": "ngdiff", "learning_rate": None, "seed": 0},
        data={"forget": {"examples": 3, "sha256": digest}, "retain": {"examples": 3, "sha256": digest[::-1]}},
        model={"name": model, "sha256_before": "cd" * 32, "sha256_after": "ef" * 32},
        versions={"ngdiff": "0.1.0"},
        before={part: FIGURES for part in ("forget", "retain", "never_seen")},
        after={part: {**FIGURES, "nll": 3.25} for part in ("forget", "retain", "never_seen")},
        stop={"reason": "done", "target_met": False, "kept_step": 2},
        cost={"steps": 4},
    )


def test_the_front_matter_is_the_hub_s() -> None:
    data = ModelCard(model_card(record(), "unlearned", adapters=False)).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "org/base",
        "transformers",
        "text-generation",
    )
    assert {"machine-unlearning", "ngdiff"} <= set(data.tags)
    assert data.license is None and data.language is None and data.datasets is None
    assert data.base_model_relation == "finetune"
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in data.eval_results}
    assert found["Forget set", "nll"] == 3.25 and found["Retain set, held out", "probability"] == 0.5
    assert len(found) == 6


def test_the_text_says_what_happened_and_what_it_does_not_mean() -> None:
    card = model_card(record(), "unlearned", adapters=False)
    assert "| Forget set | 0.500 → 0.500 | 0.250 → 0.250 | 1.500 → 3.250 |" in card
    assert "**NOT FORGOTTEN" in card and "ab" * 32 in card and "ef" * 32 in card
    assert "not that nothing is left" in card
    assert "still knows the forget set" not in card
    adapter = model_card(record(), "adapter", adapters=True)
    assert "still knows the forget set" in adapter and ModelCard(adapter).data.library_name == "peft"


def test_what_is_left_and_kept_is_told_without_any_name() -> None:
    told = record()
    told.stop |= {
        "left": [{"row": n, "place": "john-smith.jsonl, line 3", "whole": True} for n in (3, 17)],
        "looked_at": {"rows": 200, "of": 200},
        "floors": {
            "general.facts": {"share": 0.98, "start": 0.8, "least": 0.784, "end": 0.79},
            "john-smith": {"share": 0.98, "start": 0.5, "least": 0.49, "end": 0.495},
        },
        "reason": "the set to keep 'john-smith' was under its floor of 0.490 for 3 checks in a row",
    }
    told.notes = [
        "1 row repeats another in the forget set (first: john-smith.jsonl, line 1 and john.jsonl, line 2)"
    ]
    card = model_card(told, "unlearned", adapters=False)
    assert "left above their thresholds: 2 of 200 (rows 3, 17)." in card
    assert "| general facts: probability of the true answer | 0.800 | 0.784 | 0.790 |" in card
    assert "| another set to keep, number 1 | 0.500 | 0.490 | 0.495 |" in card
    assert "a set to keep was under its floor" in card and "1 row repeats another in the forget set." in card
    assert "john" not in card


@pytest.mark.parametrize("where", ["model", "name", "reason", "note", "method", "version"])
def test_no_name_becomes_markup(where: str) -> None:
    hostile = record(HOSTILE if where == "model" else "org/base")
    hostile.stop["reason"] = HOSTILE if where == "reason" else "done"
    hostile.notes = [HOSTILE] if where == "note" else []
    hostile.settings["method"] = HOSTILE if where == "method" else "ngdiff"
    hostile.versions["ngdiff"] = HOSTILE if where == "version" else "0.1.0"
    card = model_card(hostile, HOSTILE if where == "name" else "unlearned", adapters=False)
    plain = model_card(record(), "unlearned", adapters=False)
    data, expected = ModelCard(card).data, ModelCard(plain).data
    assert data.license is None and set(data.to_dict()) <= set(expected.to_dict())
    body = card.split("\n---\n", 1)[1]
    headings = re.findall(r"^#.*$", body, flags=re.MULTILINE)
    assert headings == re.findall(r"^#.*$", plain.split("\n---\n", 1)[1], flags=re.MULTILINE)
    assert "<script" not in body and "https://evil" not in body and not re.search(r"(?<!\\)\]\(java", body)
    assert "\u202e" not in card and "\x1b" not in card
    for line in body.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5)


def test_escaped() -> None:
    assert escaped("a_b*c") == "a\\_b\\*c"
    assert escaped("<b>&") == "&lt;b&gt;&amp;"
    assert escaped("my-model, 0.5 (given): x") == "my-model, 0.5 (given): x"  # no more than needed
    assert escaped("http://x www.y") == "http\\://x www\\.y"


def test_licence_and_base_of_a_local_model_come_from_its_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: llama3.2\nbase_model: meta/base\n---\n", encoding="utf-8"
    )
    data = ModelCard(model_card(record(str(tmp_path)), "x", adapters=False)).data
    assert (data.license, data.base_model) == ("llama3.2", "meta/base")


@pytest.mark.parametrize(
    "card",
    ["", "no front matter", "---\n[1, 2]\n---\n", "---\nlicense: [a, b]\nbase_model: {a: 1}\n---\n",
     "---\nlicense: 'MIT <script>'\nbase_model: '../../etc/passwd'\n---\n", "---\n: : :\n\t- x\n---\n"],
)  # fmt: skip
def test_a_strange_card_of_the_base_gives_nothing(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    data = ModelCard(model_card(record(str(tmp_path)), "x", adapters=False)).data
    assert data.license is None and data.base_model is None


@pytest.mark.parametrize("lora", [False, True], ids=["model", "adapter"])
def test_a_run_writes_its_card(lora: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli: Cli = make_cli(capsys)
    model = save_model(tmp_path / "target")
    forget = write_jsonl(tmp_path / "john-smith-forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(100, 8))
    output = tmp_path / "out"
    words = ("--set", "max_steps=1", "--stop-at", "none", *(["--lora"] if lora else []))
    assert (
        cli(
            "unlearn", "--model", model, "--forget", forget, "--retain", retain, "--output", output, *words
        ).code
        == 0
    )
    card = (output / "README.md").read_text(encoding="utf-8")
    saved = json.loads((output / "record.json").read_text(encoding="utf-8"))
    data = ModelCard(card).data
    assert yaml.safe_load(card.split("---")[1]) and data.library_name == ("peft" if lora else "transformers")
    assert saved["data"]["forget"]["sha256"] in card and saved["model"]["sha256_after"] in card
    assert "john-smith" not in card and "the author" not in card and str(tmp_path) not in card
    value = next(e.metric_value for e in data.eval_results if e.metric_type == "nll")
    assert value == pytest.approx(saved["after"]["forget"]["nll"], abs=1e-6)


def test_the_card_says_that_answers_are_broken_and_not_in_which_file() -> None:
    items = [
        {
            "place": f"john-smith.jsonl, line {n}",
            "question": "Who?",
            "truth": "A name.",
            "after": {"answer": ""},
        }
        | {"before": {"answer": "A name."}}
        for n in range(1, 9)
    ]
    note = broken_answers(items)
    assert note is not None and "john-smith" in note
    shown = _unnamed(note, RunRecord())
    assert shown == "8 of 8 recorded answers are broken (empty 8; 0 before)"
