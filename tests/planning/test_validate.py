"""A request checked without being run: every fault at once, and counts that are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from commandline import Cli, questions, save_model, tree, write_jsonl
from ngdiff.planning.validate import most_steps, statistics, validation
from ngdiff.unlearn import prepare


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    save_model(tmp_path / "target")
    forget = questions(0, 4)
    return {
        "model": str(tmp_path / "target"),
        "forget": str(write_jsonl(tmp_path / "forget.jsonl", [*forget, forget[0]])),
        "retain": str(write_jsonl(tmp_path / "retain.jsonl", [*questions(100, 11), forget[1]])),
        "output": str(tmp_path / "out"),
        "allow_overlap": True,
        "batch_size": 2,
        "max_length": 44,
    }


def write(tmp_path: Path, settings: dict[str, Any]) -> Path:
    path = tmp_path / "request.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_request_in_order(cli: Cli, tmp_path: Path, settings: dict[str, Any]) -> None:
    path = write(tmp_path, settings)
    before = tree(tmp_path)
    answer = cli("validate", path, "--log-format", "json")
    found = next(line for line in map(json.loads, answer.out.splitlines()) if line["event"] == "request")
    assert answer.code == 0
    assert found["sets"]["forget"]["examples"] == 5 and found["sets"]["forget"]["repeated"] == 1
    assert found["sets"]["retain"]["examples"] == 12 and found["sets"]["retain"]["repeated"] == 0
    assert found["shared"] == 1
    assert found["most_steps"] == 3 * 20  # five examples, two a step, twenty passes
    weights = (tmp_path / "target" / "model.safetensors").stat().st_size
    assert 0.8 * 3 * weights < found["disk_bytes"] <= 3 * weights < found["free_bytes"]
    assert found["seconds_a_step"] > 0
    assert tree(tmp_path) == before  # nothing was written
    told = cli("validate", path)
    assert told.code == 0 and "Rows in both sets: 1." in told.err and "at most 60" in told.err
    assert cli("validate", path, "--quiet").err == "The request is in order; nothing was run.\n"


def test_counts_are_those_of_the_tokens(tmp_path: Path, settings: dict[str, Any]) -> None:
    from ngdiff.cli.settings import gather, to_request

    given, faults = gather(write(tmp_path, settings), [], {})
    assert not faults
    request = to_request(given)
    ready = prepare(request)
    counts = statistics(ready.retain)
    assert counts.tokens == sum(len(e.input_ids) for e in ready.retain)
    assert counts.answer_tokens == sum(sum(label >= 0 for label in e.labels) for e in ready.retain)
    assert counts.longest == max(len(e.input_ids) for e in ready.retain) <= 44
    assert counts.cut == sum(e.truncated for e in ready.retain) > 0
    assert validation(request, ready).sets["retain"] == counts


def test_the_file_is_the_one_that_unlearn_reads(cli: Cli, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Steps foretold are steps done, with accumulation and a part of an epoch."""
    path = write(tmp_path, settings | {"gradient_accumulation_steps": 2, "epochs": 2.0, "stop_at": "none"})
    answer = cli("validate", path, "--log-format", "json")
    found = next(line for line in map(json.loads, answer.out.splitlines()) if line["event"] == "request")
    assert cli("unlearn", "--config", path).code == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    assert record["cost"]["steps"] == found["most_steps"]


def test_all_faults_at_once(cli: Cli, tmp_path: Path, settings: dict[str, Any]) -> None:
    wrong = settings | {
        "forget": str(tmp_path / "nowhere.jsonl"),
        "rule": "nul",
        "seed": -1,
        "allow_overlp": True,
        "lora": "yes please",
        "precision": "int3",
        "hub_token": "hf_secret",
        "report_to": "notebook",
        "push_to_hub": 7,
    }
    del wrong["model"], wrong["output"]
    answer = cli("validate", write(tmp_path, wrong))
    assert answer.code == 2
    told = "\n".join(message for message, _ in answer.faults)
    for part in (
        "nowhere.jsonl",
        "--rule",
        "--seed",
        "allow_overlp",
        "'lora'",
        "int3",
        "hub_token",
        "notebook",
    ):
        assert part in told, part
    assert "--model: is missing" in told and "--output: is missing" in told and "'push_to_hub'" in told
    assert told.count("--model") == told.count("--output") == 1  # said once, not as wrong besides
    assert "hf_secret" not in answer.err + answer.out
    assert "Traceback" not in answer.err


def test_no_file_no_mapping(cli: Cli, tmp_path: Path) -> None:
    assert cli("validate", tmp_path / "none.yaml").code == 2
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    answer = cli("validate", tmp_path / "list.yaml")
    assert answer.code == 2 and "is not a mapping" in answer.err


def test_most_steps_by_hand() -> None:
    class Config:
        max_steps, per_device_train_batch_size, gradient_accumulation_steps = -1, 8, 1
        examples_per_step: int | None = 0
        num_train_epochs = 20.0

    config: Any = Config()
    assert most_steps(config, 40) == 100 and most_steps(config, 41) == 120 and most_steps(config, 1) == 20
    config.gradient_accumulation_steps = 4
    assert most_steps(config, 40) == 40  # five batches make two steps, the second one short
    config.examples_per_step = None
    assert most_steps(config, 200) == 13 * 20  # sixteen a step
    config.max_steps = 7
    assert most_steps(config, 40) == 7


def test_a_dry_run_prints_the_same_and_runs_nothing(
    cli: Cli, tmp_path: Path, settings: dict[str, Any]
) -> None:
    more = settings | {"max_steps": 3}
    path = write(tmp_path, more)
    flags = [
        word for name in ("model", "forget", "retain", "output") for word in (f"--{name}", more.pop(name))
    ]
    flags += [word for name, value in more.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    before = tree(tmp_path)
    answer, other = cli("unlearn", *flags, "--dry-run"), cli("validate", path)
    assert answer.code == 0 and tree(tmp_path) == before

    def shown(text: str) -> str:  # the estimated time is measured anew
        return text.partition("roughly")[0]

    assert shown(answer.err) == shown(other.err) != ""
    assert "1 row repeats another in the forget set" in answer.err
    wrong = cli("unlearn", *flags, "--lr", "-1", "--dry-run")
    assert wrong.code == 2 and wrong.faults


def test_sets_that_look_swapped_are_noted(cli: Cli, tmp_path: Path, settings: dict[str, Any]) -> None:
    swapped = settings | {"forget": settings["retain"], "retain": settings["forget"]}
    answer = cli("validate", write(tmp_path, swapped))
    assert "Note: 12 rows to forget and 5 to keep: check that the two are not swapped." in answer.err
