"""The command line from end to end, on a model small enough to save, unlearn and load in a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from commandline import Answer, Cli, questions, save_model, tree, write_jsonl
from ngdiff.audits import audits
from ngdiff.cli.app import app
from ngdiff.cli.listing import TABLES
from ngdiff.data.benchmarks import BENCHMARKS
from ngdiff.data.examples import data_hash, to_examples
from ngdiff.data.files import COLUMN_FORMS, READERS
from ngdiff.data.sources import SHIPPED, read_rows
from ngdiff.evaluation.metrics import METRICS
from ngdiff.evaluation.suites import suites
from ngdiff.losses import LOSSES
from ngdiff.methods import METHODS
from ngdiff.steps.weighting import RULES
from tiny import tiny_llama, tiny_tokenizer

SCRIPT = Path(sys.executable).with_name("ngdiff")
NO_TARGET = ("--stop-at", "none", "--batch-size", "2", "--max-length", "128")
TO_THE_END = (*NO_TARGET, "--set", "max_steps=3")


def command_names() -> list[str]:
    import ngdiff.cli.commands  # noqa: F401

    return [str(info.name or info.callback.__name__) for info in app.registered_commands if info.callback]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "forget": write_jsonl(folder / "forget.jsonl", questions(0, 4)),
        "retain": write_jsonl(folder / "retain.jsonl", questions(100, 12)),
    }


def request(model: Path, data: dict[str, Path], output: Path) -> list[object]:
    return [
        *("unlearn", "--model", model, "--output", output),
        *("--forget", data["forget"], "--retain", data["retain"]),
    ]  # fmt: skip


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def logits(folder: Path, text: str = "Who is 1?") -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(
            **tokenizer(text, return_tensors="pt")
        )
    return found.logits  # type: ignore[attr-defined,no-any-return]


def installed(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


# ---- help, version, ls ----


@pytest.mark.parametrize("command", command_names())
def test_help_names_an_example(cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = cli(command, "--help")
    assert answer.code == 0
    assert f"ngdiff {command}" in answer.out.split("Options")[0].split("Usage:")[1].split("\n", 1)[1]


def test_help_lists_every_command(cli: Cli) -> None:
    answer = cli("--help")
    assert answer.code == 0
    assert all(name in answer.out for name in command_names())
    assert {"unlearn", "finetune", "ls", "merge"} <= set(command_names())


def test_version_through_the_installed_script() -> None:
    done = installed("--version")
    assert (done.returncode, done.stdout) == (0, f"ngdiff {metadata.version('ngdiff')}\n")


def test_ls_lists_every_row(cli: Cli) -> None:
    columns = ["/".join(form) for form in COLUMN_FORMS]
    expected = {
        "methods": list(METHODS),
        "losses": list(LOSSES),
        "rules": list(RULES),
        "datasets": [f"{row.name}:{part}" for row in BENCHMARKS.values() for part in row.parts]
        + [f"ngdiff:{name}" for name in SHIPPED],
        "suites": list(suites()),
        "audits": list(audits()),
        "metrics": list(METRICS),
    }
    assert set(expected) == set(TABLES)
    for table, names in expected.items():
        answer = cli("ls", table)
        first = [line.split()[0] for line in answer.out.splitlines()]
        assert answer.code == 0 and first[: len(names)] == names, table
    first = [line.split()[0] for line in cli("ls", "datasets").out.splitlines()]
    assert {f"FILE{ending}" for ending in READERS} | set(columns) <= set(first)
    rows = {line.split()[0]: line for line in cli("ls", "methods").out.splitlines()}
    for method in METHODS.values():
        assert method.summary in rows[method.name] and method.paper in rows[method.name]
    assert "lr {1e-05, 2e-05, 5e-05}; alpha {1, 2, 5}; beta {0.05, 0.1, 0.5}" in rows["npo"]
    assert "lr=1e-05, gamma=0.125" in rows["simnpo"]


def test_ls_alone_lists_the_tables(cli: Cli) -> None:
    assert [line.split()[0] for line in cli("ls").out.splitlines()] == list(TABLES)


def test_ls_on_a_terminal_takes_two_lines_a_row(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngdiff.cli.listing.sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    for table, make in TABLES.items():
        shown = cli("ls", table).out
        rows = make()[1]
        assert all(row[0] in shown for row in rows), table
        lines = shown.splitlines()
        assert len(lines) <= 2 * len(rows) + 2 and max(map(len, lines)) <= 80, table


def test_ls_of_one_row_prints_all_of_it(cli: Cli) -> None:
    shown = cli("ls", "methods", "npo").out
    titles, rows = TABLES["methods"]()
    row = next(row for row in rows if row[0] == "npo")
    for line, title, cell in zip(shown.splitlines(), titles, row, strict=True):
        assert line.startswith(title) and line.endswith(cell)
    answer = cli("ls", "methods", "nop")
    assert answer.code == 2 and "npo" in answer.err and answer.out == ""


def test_ls_of_an_unknown_table_names_the_nearest(cli: Cli) -> None:
    answer = cli("ls", "metods")
    assert answer.code == 2 and "methods" in answer.err and answer.out == ""


def test_ls_through_a_pipe() -> None:
    done = subprocess.run(
        f"'{SCRIPT}' ls methods | grep graddiff", shell=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert METHODS["graddiff"].paper in done.stdout


@pytest.mark.parametrize(("words", "code"), [((), 2), (("unlern",), 2), (("unlearn", "--lr"), 2)])
def test_usage_errors(cli: Cli, words: tuple[str, ...], code: int) -> None:
    assert cli(*words).code == code


def test_an_interrupt_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ngdiff.cli.merge.run", interrupt)
    answer = cli("merge", "adapter", "--output", "merged")
    assert answer.code == 130 and "Interrupted" in answer.err


# ---- unlearn ----


def test_unlearn_from_end_to_end_through_the_installed_script(
    model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "unlearned"
    done = installed(*request(model, data, output), *TO_THE_END, "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert "Loading weights" not in done.stderr  # another library's bar
    assert str(output) in done.stderr.replace("\n", "")
    record = record_of(output)

    assert record["kind"] == "unlearn" and record["format"] == 1
    settings = record["settings"]
    assert settings["model"] == str(model)
    assert (settings["method"], settings["rule"], settings["step_size"]) == (
        "ngdiff-counterfactual",
        "ngdiff",
        "auto",
    )
    assert (settings["seed"], settings["stop_at"], settings["max_steps"]) == (5, "none", 3)
    assert {"python", "ngdiff", "torch", "transformers"} <= set(record["versions"])
    for part in ("forget", "retain"):
        examples = to_examples(read_rows(str(data[part]), where=part), part)
        assert record["data"][part] == {"examples": len(examples), "sha256": data_hash(examples)}
    assert record["model"]["sha256_before"] != record["model"]["sha256_after"]

    assert [step["step"] for step in record["steps"]] == [1, 2, 3]
    for step in record["steps"]:
        for key in ("forget_loss", "retain_loss", "forget_norm", "retain_norm", "cosine", "learning_rate"):
            assert isinstance(step[key], float), key
        assert step["forget_loss"] > 0 and step["retain_loss"] > 0
        assert len(step["weights"]) == 2 and min(step["weights"]) > 0
        counts = 4 if step["cosine"] >= -0.25 else -1 / step["cosine"]  # times the unit retain gradient
        assert step["weights"][0] == pytest.approx(counts / step["retain_norm"], rel=1e-6)
        assert step["changed"] > 0.5 and step["skipped"] is None
    assert record["probes"] and record["probes"][0]["step"] == 1
    assert record["stop"]["code"] == "end" and record["stop"]["target"] is None
    assert record["stop"]["kept_step"] == 3
    assert record["cost"]["steps"] == 3 and record["cost"]["seconds"] > 0
    for part in ("forget", "retain", "never_seen"):
        assert 0 < record["after"][part]["probability"] < 1
    assert not [path for path in tmp_path.iterdir() if path != output]
    assert not (output / ".work").exists()

    assert not torch.equal(logits(output), logits(model))
    assert torch.equal(logits(output), logits(output))


def test_the_saved_model_is_the_one_that_the_record_describes(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    from ngdiff.models.loading import load_model, resolve_model
    from ngdiff.system.environment import weights_hash

    output = tmp_path / "unlearned"
    assert cli(*request(model, data, output), *TO_THE_END).code == 0
    loaded = load_model(resolve_model(str(output)))
    assert weights_hash(loaded) == record_of(output)["model"]["sha256_after"]
    tokenizer = AutoTokenizer.from_pretrained(output)
    original = AutoTokenizer.from_pretrained(model)
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer("Who is 1?")["input_ids"] == original("Who is 1?")["input_ids"]


def test_the_same_request_gives_the_same_model(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    hashes = []
    for name in ("a", "b"):
        assert cli(*request(model, data, tmp_path / name), *TO_THE_END).code == 0
        hashes.append(record_of(tmp_path / name)["model"]["sha256_after"])
    assert hashes[0] == hashes[1]


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
    path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n", encoding="utf-8")
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def as_folder(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir()
    write_jsonl(path / "1.jsonl", rows[:2])
    as_csv(path / "2.csv", rows[2:])
    return path


def test_every_format_gives_the_same_examples(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    rows = questions(0, 4)
    writers = {"f.csv": as_csv, "f.parquet": as_parquet, "f.json": as_json, "folder": as_folder}
    (tmp_path / "data").mkdir()
    hashes = set()
    for name, write in writers.items():
        forget = write(tmp_path / "data" / name, rows)
        output = tmp_path / f"out-{name}"
        words = request(model, {**data, "forget": forget}, output)
        answer = cli(*words, *NO_TARGET, "--set", "max_steps=1")
        assert answer.code == 0, answer.err
        hashes.add(record_of(output)["data"]["forget"]["sha256"])
    assert hashes == {data_hash(to_examples(read_rows(str(data["forget"]), where=""), ""))}


def chat(number: int) -> dict[str, Any]:
    turns = (
        {"role": "user", "content": f"Who is {number}?"},
        {"role": "assistant", "content": f"author {number}"},
    )
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    "row",
    [
        chat,
        lambda n: {"prompt": f"The cat {n}", "completion": f" sat on {n}"},
        lambda n: {"text": f"The cat {n} sat on the mat and wrote {n} books."},
    ],
    ids=["messages", "completion", "text"],
)
def test_every_kind_of_row(cli: Cli, model: Path, tmp_path: Path, row: Any) -> None:
    files = {
        "forget": write_jsonl(tmp_path / "f.jsonl", [row(n) for n in range(4)]),
        "retain": write_jsonl(tmp_path / "r.jsonl", [row(n) for n in range(50, 60)]),
    }
    answer = cli(*request(model, files, tmp_path / "out"), *NO_TARGET, "--set", "max_steps=1")
    assert answer.code == 0, answer.err
    assert record_of(tmp_path / "out")["steps"][0]["changed"] > 0


def test_a_config_file_sets_and_flags_win(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    settings = {
        "model": str(model),
        "forget": [str(data["forget"])],
        "retain": str(data["retain"]),
        "output": str(tmp_path / "out"),
        "stop-at": "none",
        "max_steps": 7,
        "batch_size": 2,
        "max-length": 128,
        "seed": 3,
        "method": None,
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings) + "lr: 1e-5\n", encoding="utf-8")
    answer = cli("unlearn", "--config", config, "--set", "max_steps=2", "--set", "weight_decay=1e-2")
    assert answer.code == 0, answer.err
    record = record_of(tmp_path / "out")
    assert len(record["steps"]) == 2
    assert [step["learning_rate"] for step in record["steps"]] == [1e-5, 1e-5]
    assert record["settings"]["seed"] == 3 and record["settings"]["weight_decay"] == 0.01


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs(cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path, method: str) -> None:
    """With nothing but a model, a forget set and a retain set; dpo alone asks for one thing more."""
    words = [*request(model, data, tmp_path / "out"), *NO_TARGET, "--set", "max_steps=1", "--method", method]
    answer = cli(*words)
    if method == "dpo":
        ((what, fix),) = answer.faults
        assert answer.code == 2 and not (tmp_path / "out").exists()
        assert "a preferred answer is missing in 4 of 4 rows" in what and "'preferred_answer'" in fix
        rows = [{**row, "preferred_answer": "no idea"} for row in questions(0, 4)]
        words[words.index(data["forget"])] = write_jsonl(tmp_path / "preferred.jsonl", rows)
        answer = cli(*words)
    assert answer.code == 0, answer.err
    record = record_of(tmp_path / "out")
    row = METHODS[method]
    assert record["settings"]["rule"] == row.rule and record["settings"]["step_size"] == row.step_size
    if row.learning_rate is not None:
        assert record["steps"][0]["learning_rate"] == row.learning_rate


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "dpo"])
def test_every_method_trains_adapters(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path, method: str
) -> None:
    words = [*request(model, data, tmp_path / "out"), *NO_TARGET, "--set", "max_steps=2", "--lora"]
    answer = cli(*words, "--method", method)
    assert answer.code == 0, answer.err
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert len(record_of(tmp_path / "out")["steps"]) == 2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", ["ngdiff", "graddiff", "kl", "rmu"])
def test_adapters_on_quantised_weights(cli: Cli, data: dict[str, Path], tmp_path: Path, method: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which holds the weights in 4 bits, is missing")
    model = tmp_path / "model"  # weights are quantised in blocks of 64
    tiny_llama(hidden=64).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    words = [*request(model, data, tmp_path / "out"), *NO_TARGET, "--set", "max_steps=2", "--qlora"]
    answer = cli(*words, "--method", method)
    assert answer.code == 0, answer.err
    record = record_of(tmp_path / "out")
    assert len(record["steps"]) == 2 and record["model"]["sha256_before"] is None
    merged = cli("merge", tmp_path / "out", "--model", model, "--output", tmp_path / "merged")
    assert merged.code == 0 and "other weights" not in merged.err


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "not finite, the first in"), (None, "is incomplete")]
)
def test_weights_are_looked_at_before_they_are_quantised(
    cli: Cli, data: dict[str, Path], tmp_path: Path, value: float | None, says: str
) -> None:
    """A NaN would pass for a number in 4 bits, and a weight that is missing would be a random one."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, which holds the weights in 4 bits, is missing")
    model, name = tmp_path / "model", "model.layers.1.mlp.down_proj.weight"
    tiny_llama(hidden=64).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    tensors = load_file(model / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name][5, 3] = value
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    answer = cli(*request(model, data, tmp_path / "out"), "--qlora")
    assert answer.code == 2 and len(answer.faults) == 1
    assert says in answer.err and name in answer.err
    assert not (tmp_path / "out").exists()


def test_quantised_weights_need_a_package(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = cli(*request(model, data, tmp_path / "out"), "--qlora")
    ((what, fix),) = answer.faults
    assert answer.code == 2 and "bitsandbytes" in what and "ngdiff[qlora]" in fix
    assert not (tmp_path / "out").exists()


def test_a_given_rate_is_the_rate_of_every_step(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    assert cli(*request(model, data, tmp_path / "out"), *TO_THE_END, "--lr", "3e-5").code == 0
    record = record_of(tmp_path / "out")
    assert [step["learning_rate"] for step in record["steps"]] == [3e-5] * 3
    assert record["probes"] == [] and record["settings"]["step_size"] == "fixed"


def test_a_missed_target_is_saved_and_ends_with_3(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    words = [*request(model, data, tmp_path / "out"), "--batch-size", "2", "--stop-at", "nll=50"]
    answer = cli(*words, "--set", "max_steps=2")
    assert answer.code == 3, answer.err
    record = record_of(tmp_path / "out")
    assert record["stop"]["target_met"] is False
    assert record["stop"]["target"].items() >= {"measure": "nll", "value": 50.0}.items()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_target_reached_before_the_first_step_changes_nothing(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    words = [*request(model, data, tmp_path / "out"), "--batch-size", "2", "--stop-at", "nll=0.5"]
    assert cli(*words, "--set", "max_steps=2").code == 0
    record = record_of(tmp_path / "out")
    assert record["stop"]["target_met"] is True
    assert record["model"]["sha256_before"] == record["model"]["sha256_after"]


# ---- folders that are there already ----


def test_a_used_folder_is_refused_then_overwritten(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = [*request(model, data, output), *NO_TARGET, "--set", "max_steps=1"]
    assert cli(*words).code == 0
    before = tree(tmp_path)
    answer = cli(*words)
    assert answer.code == 2 and "--overwrite" in answer.err
    assert tree(tmp_path) == before
    (output / "left-over").touch()
    answer = cli(*words, "--overwrite", "--seed", "9")
    assert answer.code == 2 and "contains left-over" in answer.err and (output / "left-over").exists()
    (output / "left-over").unlink()
    assert cli(*words, "--overwrite", "--seed", "9").code == 0
    assert record_of(output)["settings"]["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_is_never_overwritten(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words", encoding="utf-8")
    answer = cli(*request(model, data, tmp_path / "thesis"), *TO_THE_END, "--overwrite")
    assert answer.code == 2 and "record.json" in answer.err
    assert tree(tmp_path) == {"thesis/chapter1.tex": b"words"}


def test_a_folder_that_appears_during_a_run_stays(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ngdiff.unlearn
    from ngdiff.hub.card import model_card

    output = tmp_path / "out"

    def meanwhile(*given: Any) -> str:
        output.mkdir()
        (output / "thesis.tex").write_text("words", encoding="utf-8")
        return model_card(*given)

    words = [*request(model, data, output), *NO_TARGET, "--set", "max_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(ngdiff.unlearn, "model_card", meanwhile)
        answer = cli(*words)
    assert answer.code == 1 and str(tmp_path / ".out.unfinished" / "result") in answer.err
    assert tree(output) == {"thesis.tex": b"words"}
    answer = cli(*words)
    assert answer.code == 1 and tree(output) == {"thesis.tex": b"words"}
    output.rename(tmp_path / "mine")
    assert cli(*words).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    assert cli("verify", output).code == 0


def test_a_linked_output_folder_stays_a_link(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "big" / "o").mkdir(parents=True)
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "big" / "o")
    words = ("finetune", "--model", model, "--data", data["forget"], "--output", link, "--epochs", "1")
    for more in ((), ("--overwrite",)):
        assert cli(*words, *more).code == 0
        assert link.is_symlink() and (tmp_path / "big" / "o" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["big", "o", "out"]


# ---- adapters and fine-tuning ----


@pytest.fixture(scope="module")
def adapter(model: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ngdiff.unlearn import UnlearnRequest, unlearn

    output = tmp_path_factory.mktemp("adapters") / "adapter"
    settings = {"stop_at": "none", "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    files = (str(data["forget"]),), (str(data["retain"]),)
    unlearn(UnlearnRequest(str(model), *files, output, settings=settings, lora=True))
    return output


def test_unlearn_with_lora_saves_an_adapter_and_says_how_to_merge_it(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    answer = cli(*request(model, data, tmp_path / "out"), *NO_TARGET, "--lora", "--set", "max_steps=1")
    assert answer.code == 0, answer.err
    assert f"ngdiff merge {tmp_path / 'out'} --output" in answer.err.replace("\n", " ").replace("  ", " ")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_merged_adapter_answers_as_the_adapter_does(
    cli: Cli, model: Path, adapter: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    answer = cli("merge", adapter, "--output", tmp_path / "merged")
    assert answer.code == 0, answer.err
    assert "Note" not in answer.err
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
        expected = wrapped(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        untouched = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, untouched, atol=1e-3)
    record = record_of(tmp_path / "merged")
    assert record["kind"] == "merge" and record["adapter"]["path"] == str(adapter)
    assert record["model"]["sha256_before"] == record_of(adapter)["model"]["sha256_before"]
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_merge_keeps_what_appears_meanwhile_and_replaces_its_own_results(
    cli: Cli, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ngdiff.models.loading
    from ngdiff.models.loading import fold_in

    output = tmp_path / "merged"
    words = ("merge", adapter, "--output", output)
    assert cli(*words).code == 0
    assert cli(*words).code == 2
    assert cli(*words, "--overwrite").code == 0
    shutil.rmtree(output)

    def meanwhile(*given: Any) -> Any:
        output.mkdir()
        (output / "thesis.tex").write_text("words", encoding="utf-8")
        return fold_in(*given)

    monkeypatch.setattr(ngdiff.models.loading, "fold_in", meanwhile)
    answer = cli(*words)
    (kept,) = tmp_path.glob(".merged.*")
    assert answer.code == 1 and str(kept) in answer.err and (kept / "model.safetensors").is_file()
    assert tree(output) == {"thesis.tex": b"words"}


def test_merge_into_another_base_says_so(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    config = moved / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")}))
    answer = cli("merge", moved, "--output", tmp_path / "merged")
    assert answer.code == 2 and "gone" in answer.err and "--model" in answer.err
    answer = cli("merge", moved, "--output", tmp_path / "merged", "--model", other)
    assert answer.code == 0 and "other weights" in answer.err
    assert record_of(tmp_path / "merged")["model"]["name"] == str(other)


def test_merge_refuses_what_is_no_adapter_and_what_does_not_fit(
    cli: Cli, model: Path, adapter: Path, tmp_path: Path
) -> None:
    answer = cli("merge", model, "--output", tmp_path / "merged")
    assert answer.code == 2 and "not an adapter" in answer.err
    wide = tmp_path / "wide"
    shutil.copytree(model, wide)
    tiny_llama(hidden=64).save_pretrained(wide)
    answer = cli("merge", adapter, "--output", tmp_path / "merged", "--model", wide)
    assert answer.code == 2 and "does not fit" in answer.err and "Traceback" not in answer.err
    assert not (tmp_path / "merged").exists()


def test_an_adapter_can_be_unlearned_from_and_be_a_base(
    cli: Cli, adapter: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    answer = cli(*request(adapter, data, tmp_path / "second"), *NO_TARGET, "--lora", "--set", "max_steps=1")
    assert answer.code == 0, answer.err
    answer = cli("merge", tmp_path / "second", "--output", tmp_path / "merged")
    assert answer.code == 0, answer.err


def finetuned(cli: Cli, model: Path, data: dict[str, Path], output: Path, *more: object) -> Answer:
    files = ("--data", data["forget"], "--data", data["retain"])
    settings = ("--epochs", "2", "--lr", "1e-2", "--batch-size", "4", "--max-length", "128")
    return cli("finetune", "--model", model, *files, "--output", output, *settings, *more)


def test_finetune_then_unlearn_its_result(
    cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    answer = finetuned(cli, model, data, target)
    assert answer.code == 0, answer.err
    record = record_of(target)
    assert record["kind"] == "finetune" and record["data"]["examples"] == 16
    assert record["settings"]["epochs"] == 2 and record["figures_on_training_data"]["nll"] < 5
    answer = cli(*request(target, data, tmp_path / "out"), *TO_THE_END)
    assert answer.code == 0, answer.err
    figures = record_of(tmp_path / "out")["before"]["forget"]["nll"]
    assert figures == pytest.approx(record["figures_on_training_data"]["nll"], rel=0.3)


def test_finetune_with_lora_then_merge(cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    answer = finetuned(cli, model, data, tmp_path / "adapter", "--lora", "--epochs", "1")
    assert answer.code == 0, answer.err
    assert cli("merge", tmp_path / "adapter", "--output", tmp_path / "merged").code == 0
    assert not torch.allclose(logits(tmp_path / "merged"), logits(model), atol=1e-3)


def test_paths_that_look_like_markup(cli: Cli, model: Path, data: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "odd[/b] [red]folder"
    shutil.copytree(model, odd)
    answer = cli(*request(odd, data, tmp_path / "out[bold]"), *NO_TARGET, "--set", "max_steps=1")
    assert answer.code == 0, answer.err
    assert "out[bold]" in answer.err.replace("\n", "")
    target = tmp_path / "target[/b]"
    answer = finetuned(cli, odd, data, target, "--epochs", "1")
    assert answer.code == 0, answer.err
    assert "target[/b]" in answer.err.replace("\n", "")
