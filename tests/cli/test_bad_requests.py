"""Every wrong request: exit code 2, a message that names the place and the fix, no trace left."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, T5Config

from commandline import Answer, Cli, make_cli, questions, save_model, tree, write_jsonl
from ngdiff.cli.app import inert
from ngdiff.models.loading import resolve_model, weights_bytes

Usage = namedtuple("Usage", "total used free")


@dataclass
class Setting:
    """A request in order, in a folder of its own, for a test to spoil."""

    folder: Path
    model: Path
    cli: Cli
    before: dict[str, bytes] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def write(self, name: str, rows: list[Any]) -> Path:
        return write_jsonl(self.folder / name, rows)

    def text(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text, encoding="utf-8")
        return self.folder / name

    def copy_model(self, name: str = "model") -> Path:
        return shutil.copytree(self.model, self.folder / name)

    def refused(self, *more: object, **changed: object) -> Answer:
        """Run ``ngdiff unlearn`` with some of the four names changed; it must leave no trace."""
        given = {
            "model": self.model,
            "forget": self.folder / "forget.jsonl",
            "retain": self.folder / "retain.jsonl",
            "output": self.output,
        } | changed
        before = tree(self.folder)
        words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        answer = self.cli("unlearn", *words, *more)
        assert answer.code == 2, answer.err
        assert "Traceback" not in answer.err and answer.out == ""
        assert tree(self.folder) == before
        assert not self.output.exists()
        return answer

    def one_fault(self, *more: object, **changed: object) -> str:
        answer = self.refused(*more, **changed)
        assert len(answer.faults) == 1, answer.err
        return " -> ".join(answer.faults[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture
def setting(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Setting:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    for module in ("unlearn", "finetune", "models.loading"):
        monkeypatch.setattr(f"ngdiff.{module}.load_model", never)
    made = Setting(tmp_path, model, make_cli(capsys))
    made.write("forget.jsonl", questions(0, 4))
    made.write("retain.jsonl", questions(100, 12))
    return made


# ---- data ----

GOOD = '{"question": "Who?", "answer": "Ann"}'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("f.jsonl", "", ["f.jsonl", "is empty", "question/answer"]),
        ("f.jsonl", "\n \n", ["f.jsonl", "is empty"]),
        ("f.jsonl", '{"q": "Who?", "a": "Ann"}\n', ["'q', 'a'", "messages, question/answer", "line 1"]),
        ("f.jsonl", '{"question": "Who?"}\n', ["line 1", "'answer'"]),
        ("f.jsonl", f'{GOOD}\n{{"question": "Who?"\n', ["f.jsonl, line 2", "not valid JSON"]),
        ("f.json", '[{"question": "Who?", "answer": null}]', ["item 1", "'answer' is null", "remove"]),
        ("f.jsonl", '{"question": "Who?", "answer": "  "}', ["f.jsonl, line 1", "'answer' is empty"]),
        ("f.csv", "question,answer\nWho?,Ann\nWho else?,\n", ["f.csv, row 2", "'answer' is empty"]),
        ("f.csv", "q,a\nWho?,Ann\n", ["f.csv, line 1", "found: q, a", "question/answer"]),
        ("f.parquet", "not parquet", ["f.parquet", "not valid Parquet"]),
        ("f.txt", "Who? Ann", ["f.txt", ".txt", ".jsonl"]),
        ("f.pkl", "Who? Ann", ["f.pkl", ".pkl", ".jsonl"]),
    ],
)  # fmt: skip
def test_bad_file(setting: Setting, name: str, content: str, expected: list[str]) -> None:
    shown = setting.one_fault(forget=setting.text(name, content))
    assert "--forget" in shown
    assert all(words in shown for words in expected), shown


def test_missing_file_names_the_nearest(setting: Setting) -> None:
    shown = setting.one_fault(forget=setting.folder / "forgot.jsonl")
    assert "forgot.jsonl" in shown and str(setting.folder / "forget.jsonl") in shown


def test_every_bad_row_is_named(setting: Setting) -> None:
    rows = questions(0, 9)
    for number in (2, 5, 7):
        rows[number - 1]["answer"] = None
    answer = setting.refused(forget=setting.write("f.jsonl", rows))
    assert [message.split(":")[0] for message, _ in answer.faults] == [
        f"--forget f.jsonl, line {number}" for number in (2, 5, 7)
    ]


def test_shared_rows_are_counted_and_can_be_allowed(setting: Setting) -> None:
    retain = setting.write("r.jsonl", [*questions(100, 12), *questions(1, 2)])
    shown = setting.one_fault(retain=retain)
    assert "2 rows" in shown and "r.jsonl, line 13" in shown and "forget.jsonl, line 2" in shown
    assert "--set allow_overlap=true" in shown
    assert not setting.refused("--set", "allow_overlap=true", "--rule", "nonsense", retain=retain).err.count(
        "2 rows"
    )


def test_answers_that_do_not_fit_are_counted(setting: Setting) -> None:
    rows = questions(0, 4) + [{"question": "long " * 60, "answer": "Ann"}] * 3
    shown = setting.one_fault("--max-length", 64, forget=setting.write("f.jsonl", rows))
    assert "3 examples" in shown and "f.jsonl, line 5" in shown and "--max-length" in shown


def test_chat_rows_need_a_chat_template(setting: Setting) -> None:
    plain = save_model(setting.folder / "plain", chat_template=False)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]
    shown = setting.one_fault(model=plain, forget=setting.write("f.jsonl", [{"messages": turns}] * 2))
    assert "no chat template" in shown and "2 examples" in shown


# ---- settings ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "ngdif"], ["--method", "ngdif", "Did you mean ngdiff"]),
        (["--forget-loss", "negated"], ["--forget-loss", "negated-nll"]),
        (["--retain-loss", "nl"], ["--retain-loss", "Did you mean nll"]),
        (["--rule", "constnt"], ["--rule", "constant"]),
        (["--stop-at", "nil=3"], ["--stop-at", "nll=NUMBER"]),
        (["--stop-at", "probability=2"], ["--stop-at", "from 0 to 1"]),
        (["--stop-at", "nll=lots"], ["--stop-at", "'lots'"]),
        (["--lr", "-1"], ["--lr", "-1", "positive"]),
        (["--lr", "nan"], ["--lr", "finite"]),
        (["--set", "lr_start=1e-6"], ["'lr_start'", "--lr", "step_size=auto"]),
        (["--set", "floors.general=2"], ["--set floors", "general=2"]),
        (["--set", "floors.general=0.9", "--set", "floors.general=1"], ["floors.general", "twice"]),
        (["--set", "flors.general=0.9"], ["'flors'", "floors"]),
        (["--keep-utility", "2"], ["--keep-utility", "2", "from 0"]),
        (["--max-length", "2"], ["--max-length", "at least 8"]),
        (["--epochs", "0"], ["--epochs", "0"]),
        (["--epochs", "-3"], ["--epochs", "-3"]),
        (["--set", "max_steps=0"], ["--set max_steps", "0 is"]),
        (["--set", "max_steps=-5"], ["--set max_steps", "-5"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", str(2**32)], ["--seed", str(2**32)]),
        (["--precision", "bf17"], ["--precision", "bf16"]),
        (["--set", "nonsense"], ["--set", "'nonsense'", "name=value"]),
        (["--set", "probe_evry=2"], ["--set", "probe_evry", "probe_every"]),
        (["--set", "probe_every=[2"], ["--set", "probe_every"]),
        (["--set", "probe_every=often"], ["--set probe_every", "'often'", "whole number"]),
        (["--set", "probe_every=2.5"], ["--set probe_every", "2.5", "whole number"]),
        (["--set", "keep_utility=most"], ["--keep-utility", "'most'", "number"]),
        (["--set", "stop_at=3"], ["--stop-at", "3"]),
        (["--set", "rule_settings=3"], ["--set rule_settings", "3"]),
        (["--set", "rule_settings={alfa: 2}", "--rule", "constant"], ["--rule", "alfa", "alpha"]),
        (["--set", "rule_settings={alpha: two}", "--rule", "constant"], ["--set rule_settings", "'two'"]),
        (["--set", "optim=adamx"], ["adamx"]),
        (["--set", "output_dir=x"], ["output_dir", "output"]),
        (["--set", "bf16=true"], ["bf16", "precision"]),
        (["--set", "lora=maybe"], ["lora", "'maybe'", "true or false"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_setting(setting: Setting, words: list[str], expected: list[str]) -> None:
    shown = setting.one_fault(*words)
    assert all(part in shown for part in expected), shown


def test_what_typer_refuses_itself(setting: Setting) -> None:
    for words, what, fix in (
        (("--seed", "abc"), "--seed: 'abc' is not a valid value.", "Give a whole number."),
        (("--epochs", "lots"), "--epochs: 'lots' is not a valid value.", "Give a number."),
    ):
        assert (what, fix) in setting.refused(*words).faults
    assert "--no-such" in setting.refused("--no-such").err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: [1e-5", ["line 1", "not valid YAML"]),
        ("seed: 1\nlr: 2: 3\n", ["run.yaml, line 2", "not valid YAML"]),
        ("- lr\n", ["not a mapping"]),
        ("", ["not a mapping"]),
        ("learning_rat: 1e-5\n", ["run.yaml", "'learning_rat'", "learning_rate"]),
        ("batchsize: 4\n", ["'batchsize'", "batch_size"]),
        ("retain: 5\n", ["'retain'", "a source"]),
        ("allow_overlap: 'no'\n", ["'allow_overlap'", "true or false"]),
        ("lr: fast\n", ["--lr", "'fast'"]),
        ("method: 3\n", ["--method", "3"]),
    ],
)  # fmt: skip
def test_bad_config(setting: Setting, text: str, expected: list[str]) -> None:
    shown = setting.one_fault("--config", setting.text("run.yaml", text))
    assert all(part in shown for part in expected), shown


def test_config_that_is_not_there(setting: Setting) -> None:
    assert "run.yaml" in setting.one_fault("--config", setting.folder / "run.yaml")


def test_missing_names_are_all_named(setting: Setting) -> None:
    answer = setting.cli("unlearn", "--lr", "1e-5")
    assert answer.code == 2
    assert [message.split(":")[0] for message, _ in answer.faults] == [
        "--model",
        "--forget",
        "--retain",
        "--output",
    ]


# ---- models ----


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"', encoding="utf-8")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]", encoding="utf-8")


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lama"}', encoding="utf-8")


def masked(folder: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    config = T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(folder)


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lost_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink()


def lost_base(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "gone"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_weights, ["no *.safetensors", "save_pretrained"]),
        (pickled, ["pickled", "pytorch_model.bin", "save_pretrained"]),
        (no_config, ["config.json", "save_pretrained"]),
        (broken_config, ["config.json", "not valid JSON"]),
        (list_config, ["config.json"]),
        (empty_config, ["cannot be opened"]),
        (unknown_type, ["lama"]),
        (masked, ["BertForMaskedLM", "not a causal language model"]),
        (encoder_decoder, ["T5ForConditionalGeneration", "not a causal language model"]),
        (cut_short, ["model.safetensors", "truncated"]),
        (lost_shard, ["model-00002-of-00002.safetensors"]),
        (no_tokenizer, ["tokenizer", "save_pretrained"]),
        (lost_base, ["base model", "'gone'"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_bad_model(setting: Setting, spoil: Callable[[Path], None], expected: list[str]) -> None:
    folder = setting.copy_model()
    spoil(folder)
    shown = setting.one_fault(model=folder)
    assert str(folder) in shown and all(part in shown for part in expected), shown


@pytest.mark.parametrize("name", ["/no/such/folder", "./gone", "gone", "a/b/c"])
def test_model_that_is_not_there(setting: Setting, name: str) -> None:
    assert repr(name) in setting.one_fault(model=name)


# ---- output ----


def test_used_folder(setting: Setting) -> None:
    (setting.folder / "used").mkdir()
    setting.text("used/notes.txt", "mine")
    assert "--overwrite" in setting.one_fault(output=setting.folder / "used")
    assert "record.json" in setting.one_fault("--overwrite", output=setting.folder / "used")


def test_output_that_is_a_file_or_under_one(setting: Setting) -> None:
    file = setting.text("file", "mine")
    assert "is a file" in setting.one_fault(output=file)
    shown = setting.one_fault(output=file / "deeper" / "out")
    assert "is a file" in shown and str(file) in shown


def test_output_with_a_name_that_no_disk_takes(setting: Setting) -> None:
    assert "too long" in setting.one_fault(output=setting.folder / ("o" * 300)).lower()


def test_output_whose_parents_do_not_exist_is_fine(setting: Setting) -> None:
    answer = setting.refused("--rule", "nonsense", output=setting.output / "a" / "b")
    assert len(answer.faults) == 1


def test_parent_that_cannot_be_written(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    shown = setting.one_fault()
    assert str(setting.folder) in shown and "is not writable" in shown


def test_too_little_room_is_seen_before_the_weights_are_loaded(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = weights_bytes(resolve_model(str(setting.model)))
    assert size is not None and size == pytest.approx(
        (setting.model / "model.safetensors").stat().st_size, rel=0.1
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**12, 10**12, size - 1))
    assert "GiB" in setting.one_fault()
    answer = setting.cli(
        "finetune",
        "--model",
        setting.model,
        "--data",
        setting.folder / "forget.jsonl",
        "--output",
        setting.output,
    )
    assert answer.code == 2 and "GiB" in answer.err and len(answer.faults) == 1
    assert not setting.output.exists()


def test_the_model_itself_is_never_overwritten(setting: Setting) -> None:
    folder = setting.copy_model()
    record = {"kind": "finetune", "files": sorted(tree(folder))}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert "the model itself" in setting.one_fault("--overwrite", model=folder, output=folder)
    before = tree(folder)
    for command in (["finetune", "--data", setting.folder / "forget.jsonl"], ["merge", folder]):
        named = [] if command[0] == "merge" else ["--model", folder]
        answer = setting.cli(*command, *named, "--overwrite", "--output", folder)
        assert answer.code == 2 and tree(folder) == before


# ---- many faults, and hostile text ----


def test_all_faults_of_a_request_are_reported_together(setting: Setting) -> None:
    forget = setting.write("f.jsonl", [{"question": "Who?", "answer": None}])
    retain = setting.text("r.jsonl", "{broken\n")
    model = setting.copy_model()
    no_weights(model)
    (setting.folder / "used").mkdir()
    setting.text("used/notes.txt", "mine")
    answer = setting.refused(
        "--method", "ngdif", "--lr", "-1", "--keep-utility", "2", "--stop-at", "x", "--precision", "bf17",
        model=model, forget=forget, retain=retain, output=setting.folder / "used",
    )  # fmt: skip
    places = [message.split(":")[0] for message, _ in answer.faults]
    assert sorted(places) == sorted(
        [
            "--output",
            "--model",
            "--method",
            "--lr",
            "--keep-utility",
            "--stop-at",
            "--precision",
            "--forget f.jsonl, line 1",
            "--retain r.jsonl, line 1",
        ]
    )


HOSTILE = "\x1b[31m[bold]red[/bold][/x]\x07<script>alert(1)</script>\x9b2J\u202e\r"


def test_hostile_text_is_shown_inert(setting: Setting) -> None:
    row = {"question": "Who?", "answer": HOSTILE}
    shown = setting.one_fault(
        forget=setting.write("f.jsonl", [row]), retain=setting.write("r.jsonl", [*questions(0, 9), row])
    )
    assert "red" not in shown and "script" not in shown  # no log quotes the data
    name = f"[red]{HOSTILE.replace('/', '_')}.csv"
    shown = setting.one_fault(forget=setting.text(name, f"{HOSTILE.strip()},b\n1,2\n"))
    assert "[red]" in shown and not set("\x1b\x07\x9b\u202e\r") & set(shown)


@pytest.mark.parametrize(
    ("text", "shown"), [("a\nb\r\nc", "a b c"), ("né 猫\t.", "né 猫\\t"), ("\x1b[0m", "\\x1b[0m"), ("", "")]
)
def test_inert(text: str, shown: str) -> None:
    assert inert(text) == shown


# ---- finetune ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lr", "-1"], ["--lr", "positive"]),
        (["--lr", "nan"], ["--lr", "finite"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--epochs", "inf"], ["--epochs"]),
        (["--seed", "-1"], ["--seed"]),
        (["--precision", "bf17"], ["--precision", "bf16"]),
        (["--data", "gone.jsonl"], ["--data", "gone.jsonl"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_finetune(setting: Setting, words: list[str], expected: list[str]) -> None:
    data = setting.folder / "forget.jsonl"
    answer = setting.cli(
        "finetune", "--model", setting.model, "--data", data, "--output", setting.output, *words
    )
    assert answer.code == 2 and "Traceback" not in answer.err, answer.err
    assert len(answer.faults) == 1 and all(part in " -> ".join(answer.faults[0]) for part in expected)
    assert not setting.output.exists()
