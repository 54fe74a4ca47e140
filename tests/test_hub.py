"""A result goes to the hub with what belongs there and nothing else; a hub that fails costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from commandline import Cli, make_cli, questions, save_model, tree, write_jsonl
from fake_hub import FakeHub, fake_hub
from ngdiff.errors import RequestError
from ngdiff.hub.upload import belongs, files_to_push, push_faults


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        yield served


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return make_cli(capsys)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result's folder, with much that must stay at home."""
    folder = save_model(tmp_path / "unlearned")
    (folder / "record.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text("---\ntags: [a]\n---\n# Card\n", encoding="utf-8")
    for name in (
        "answers.json",
        "eval.json",
        "report.html",
        "training_args.bin",
        ".secret.json",
        "optimizer.pt",
    ):
        (folder / name).write_text("Who is 1? the author 1 sat.", encoding="utf-8")
    for name in (".work/w.safetensors", "checkpoint-3/model.safetensors"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("weights that know", encoding="utf-8")
    return folder


BELONG = {
    *("README.md", "record.json", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
}


def test_only_what_belongs_goes(result: Path) -> None:
    assert set(files_to_push(result)) == BELONG
    assert set(files_to_push(result, ["answers.json"])) == {*BELONG, "answers.json"}
    (result / "link.safetensors").symlink_to("/etc/hostname")
    assert set(files_to_push(result)) == BELONG


@pytest.mark.parametrize("name", ["none.json", "../unlearned/answers.json", "checkpoint-3/model.safetensors"])
def test_files_that_cannot_be_asked_for(result: Path, name: str) -> None:
    with pytest.raises(RequestError, match="is no file"):
        files_to_push(result, [name])


def test_push(cli: Cli, hub: FakeHub, result: Path) -> None:
    before = tree(result)
    answer = cli("push", result, "unlearned", "--private")
    assert answer.code == 0, answer.err
    assert hub.repositories == {"me/unlearned": True}
    assert set(hub.files["me/unlearned"]) == BELONG
    for name, content in hub.files["me/unlearned"].items():
        assert content == before[name], name
    assert tree(result) == before
    assert f"{hub.address}/me/unlearned/commit/" in answer.err
    assert hub.cards and hub.cards[0] == before["README.md"].decode()


def test_push_is_public_unless_asked_and_goes_on_in_its_own_repository(
    cli: Cli, hub: FakeHub, result: Path
) -> None:
    assert cli("push", result, "lab/x").code == 0
    assert hub.repositories == {"lab/x": False}
    assert cli("push", result, "lab/x", "--include", "answers.json", "--quiet").code == 0
    assert "answers.json" in hub.files["lab/x"]
    refused = cli("push", result, "lab/x", "--private")
    assert refused.code == 2 and "exists and is public" in refused.err


@pytest.mark.parametrize(
    ("name", "token", "role", "told"),
    [
        ("me/x", None, "write", "nobody is logged in"),
        ("me/x", "hf_bad", "write", "does not accept the token"),
        ("me/x", "hf_good", "read", "can only read"),
        ("other/x", "hf_good", "write", "does not belong to 'other'"),
        ("a b/c", "hf_good", "write", "is no name of a repository"),
        ("a/b/c", "hf_good", "write", "is no name of a repository"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str, token: str | None, role: str, told: str
) -> None:
    hub.role = role
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    (fault,) = push_faults(name, private=False)
    assert told in fault.what and fault.where == "--push-to-hub" and fault.fix
    assert not [request for request in hub.requests if request.startswith("POST")]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    (fault,) = push_faults("me/x", private=False)
    assert "cannot be reached" in fault.what and "ngdiff push" in fault.fix


def test_no_result_no_push(cli: Cli, hub: FakeHub, tmp_path: Path) -> None:
    answer = cli("push", save_model(tmp_path / "plain"), "me/x")
    assert answer.code == 2 and "record.json" in answer.err and not hub.requests


def test_earlier_receipts_go_along(result: Path) -> None:
    (result / "receipts").mkdir()
    for name in ("1.json", "1.sig", "note.txt"):
        (result / "receipts" / name).touch()
    assert {name for name in files_to_push(result) if "/" in name} == {"receipts/1.json", "receipts/1.sig"}


# ---- after a run ----


def at_home_and_there(kept: dict[str, bytes]) -> dict[str, bytes]:
    """What a result has but for the files that hold answers."""
    return {name: content for name, content in kept.items() if name not in ("answers.json", "report.html")}


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    model = save_model(tmp_path / "target")
    forget = write_jsonl(tmp_path / "forget.jsonl", questions(0, 4))
    retain = write_jsonl(tmp_path / "retain.jsonl", questions(100, 8))
    return [
        *("unlearn", "--model", model, "--forget", forget, "--retain", retain, "--output", tmp_path / "out"),
        *("--max-steps", "1", "--stop-at", "none"),
    ]


def test_unlearn_pushes_what_stands_on_disk(
    cli: Cli, hub: FakeHub, words: list[object], tmp_path: Path
) -> None:
    answer = cli(*words, "--push-to-hub", "me/forgetful", "--private", "--log-format", "json")
    assert answer.code == 0, answer.err
    sent, kept = hub.files["me/forgetful"], tree(tmp_path / "out")
    assert sent == at_home_and_there(kept) and hub.repositories["me/forgetful"]
    assert {"model.safetensors", "receipt.json"} <= set(sent) and not {"answers.json"} & set(sent)
    assert b"Who is" not in sent["record.json"] and b"the author" not in sent["record.json"]
    end = json.loads(answer.out.splitlines()[-1])
    assert end["hub"].startswith(f"{hub.address}/me/forgetful") and end["output"] == str(tmp_path / "out")


def test_whoever_fetches_a_pushed_result_can_verify_it(
    cli: Cli, hub: FakeHub, words: list[object], tmp_path: Path
) -> None:
    assert cli(*words, "--push-to-hub", "me/forgetful").code == 0
    there = tmp_path / "there"
    for name, content in {
        **hub.files["me/forgetful"],
        ".gitattributes": b"*.x lfs",
        ".git/HEAD": b"",
    }.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    answer = cli("verify", there)
    assert answer.code == 0, answer.out
    assert "- answers.json: is not here" in answer.out and "- .gitattributes: is not in the" in answer.out
    (there / "tokenizer.json").unlink()  # what belongs to the model must be there
    (there / "config.bin").write_bytes(b"")
    answer = cli("verify", there)
    assert answer.code == 4
    assert "✗ tokenizer.json: is missing" in answer.out and "✗ config.bin: is not in the" in answer.out


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        *(
            ("model-00001-of-00002.safetensors", True),
            ("receipts/001.json", True),
            ("receipts/001.sig", True),
        ),
        *(("answers.json", False), ("checkpoint-3/model.safetensors", False), (".receipt.json", False)),
        *(("receipts/deeper/001.json", False), ("receipts/001.txt", False), ("training.bin", False)),
    ],
)
def test_what_belongs_on_the_hub(name: str, goes: bool) -> None:
    assert belongs(name) is goes


def test_nobody_logged_in_is_found_out_before_the_run(
    cli: Cli, hub: FakeHub, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    answer = cli(*words, "--push-to-hub", "me/x")
    assert answer.code == 2 and "hf auth login" in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["/commit/", "/repos/create"])
def test_an_upload_that_breaks_off_loses_nothing(
    cli: Cli, hub: FakeHub, words: list[object], tmp_path: Path, step: str
) -> None:
    hub.fail_at = (step, 403)
    answer = cli(*words, "--push-to-hub", "me/x", "--quiet")
    assert answer.code == 1
    assert f"ngdiff push {tmp_path / 'out'} me/x" in answer.err and "Traceback" not in answer.err
    assert {"model.safetensors", "record.json", "README.md"} <= set(tree(tmp_path / "out"))
    hub.fail_at = None
    assert cli("push", tmp_path / "out", "me/x").code == 0
    assert hub.files["me/x"] == at_home_and_there(tree(tmp_path / "out"))


def test_a_settings_file_may_ask_for_it(cli: Cli, hub: FakeHub, words: list[object], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("push_to_hub: me/y\nprivate: true\n", encoding="utf-8")
    assert cli(*words, "--config", tmp_path / "r.yaml").code == 0
    assert hub.repositories == {"me/y": True}
    settings = json.loads(hub.files["me/y"]["record.json"])["settings"]
    assert "push_to_hub" not in settings and "private" not in settings
