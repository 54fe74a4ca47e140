"""Receipts through the real command line: written, verified, altered in every way that must be named."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from commandline import SHORT, Answer, Cli, questions, save_model, write_jsonl
from ngdiff.data.examples import data_hash, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.statistics import interval
from ngdiff.receipts.hashes import canonical
from ngdiff.receipts.set_figures import figures_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that went through two requests, both signed."""
    folder = tmp_path_factory.mktemp("receipts")
    save_model(folder / "target")
    for number in (1, 2):
        write_jsonl(folder / f"forget{number}.jsonl", questions(10 * number, 4))
    write_jsonl(folder / "retain.jsonl", questions(100, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("keygen", "key.pem")
        run("unlearn", *request(folder, "target", 1), "--set", "sign=key.pem")
        run(
            *("unlearn", *request(folder, "out1", 2), "--set", "sign=key.pem"),
            "--earlier",
            folder / "forget1.jsonl",
        )
    return folder


def request(folder: Path, model: str, number: int) -> list[object]:
    return [
        *("--model", folder / model, "--forget", folder / f"forget{number}.jsonl"),
        *("--retain", folder / "retain.jsonl", "--output", folder / f"out{number}", *SHORT),
    ]  # fmt: skip


def run(*words: object) -> None:
    from typer.testing import CliRunner

    import ngdiff.cli.commands  # noqa: F401
    from ngdiff.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The second result, free to be altered."""
    return Path(shutil.copytree(made / "out2", tmp_path / "copy"))


def lines(answer: Answer, mark: str) -> list[str]:
    return [line[2:] for line in answer.out.splitlines() if line.startswith(mark)]


def receipt_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "receipt.json").read_bytes())
    return content


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter a receipt as somebody would who knows how receipts are made."""
    content = receipt_of(folder)
    change(content)
    content["seal"] = "0" * 64
    content["seal"] = hashlib.sha256(canonical(content)).hexdigest()
    (folder / "receipt.json").write_bytes(canonical(content))
    (folder / "report.html").unlink(missing_ok=True)  # which shows the receipt as it was


# ---- a receipt that nobody touched ----


def test_everything_agrees(cli: Cli, made: Path) -> None:
    data = ("--forget", made / "forget2.jsonl", "--retain", made / "retain.jsonl")
    extras = ("--model", made / "out1", "--public-key", made / "key.pub.pem", "--chain")
    answer = cli("verify", made / "out2", *data, *extras)
    assert answer.code == 0, answer.out
    assert lines(answer, "✗") == []
    unchecked = [line for line in lines(answer, "-") if not line.startswith("report.html")]  # written later
    assert unchecked == ["software that ran: the same software as this one"]
    agreed = "\n".join(lines(answer, "✓"))
    for claim in ("model.safetensors", "receipts/001.json", "weights", "forget data", "retain data"):
        assert claim in agreed
    for claim in ("starting model", "receipts before", "request in the receipt", "made with the key given"):
        assert claim in agreed


def test_what_it_says(made: Path) -> None:
    receipt, record = receipt_of(made / "out2"), json.loads((made / "out2" / "record.json").read_text())
    assert receipt["request"]["settings"] == record["settings"]
    assert receipt["figures"]["after"]["forget"]["nll"]["value"] == pytest.approx(
        record["after"]["forget"]["nll"]
    )
    assert receipt["model"]["sha256_before"] == receipt_of(made / "out1")["model"]["sha256_after"]
    assert any(
        "cannot" in line or "That the model has forgotten" in line for line in receipt["does_not_prove"]
    )
    assert "the author" not in (made / "out2" / "receipt.json").read_text()  # the answers themselves


def test_a_verifier_of_a_few_lines_agrees(made: Path) -> None:
    """What docs/receipts.md tells a third party to do, without this package and without reading JSON back."""
    folder = made / "out2"
    text = (folder / "receipt.json").read_bytes()
    receipt = json.loads(text)
    for name, entry in receipt["files"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert hashlib.sha256(text.replace(receipt["seal"].encode(), b"0" * 64)).hexdigest() == receipt["seal"]
    assert json.dumps(receipt, sort_keys=True, indent=1).encode() + b"\n" == text
    before = (folder / "receipts" / "001.json").read_bytes()
    assert hashlib.sha256(before).hexdigest() == receipt["previous"]["sha256"]
    assert before == (made / "out1" / "receipt.json").read_bytes()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(receipt["signer"]["public_key"]))
    key.verify((folder / "receipt.sig").read_bytes(), text)
    asked = receipt["request"]
    counted = {k: v for k, v in asked["settings"].items() if k not in asked["not_counted"]}
    asked = {"settings": counted, "data": {role: said["sha256"] for role, said in receipt["data"].items()}}
    asked["model"] = receipt["model"]["sha256_before"]
    short = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(short).hexdigest() == receipt["request"]["sha256"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_agrees(made: Path) -> None:
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(made / "key.pub.pem"), "-rawin"]
    files = ["-in", str(made / "out2/receipt.json"), "-sigfile", str(made / "out2/receipt.sig")]
    assert subprocess.run([*words, *files], capture_output=True).returncode == 0
    files[-1] = str(made / "out1/receipt.sig")
    assert subprocess.run([*words, *files], capture_output=True).returncode != 0


# ---- alterations ----


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def edit_figures(old: str, new: str) -> Callable[[Path], object]:
    """Edit the figures before the first step, which the receipt repeats; checks stand in front of them."""

    def change(folder: Path) -> None:
        front, key, figures = (folder / "record.json").read_text().partition('"before": {')
        assert key and old in figures
        (folder / "record.json").write_text(front + key + figures.replace(old, new, 1))

    return change


def improve(content: dict[str, Any]) -> None:
    content["figures"]["after"]["forget"]["probability"]["value"] = 0.0


def earlier_time(content: dict[str, Any]) -> None:
    content["time"] = "2020-01-01T00:00:00+00:00"


def drop_file(content: dict[str, Any]) -> None:
    content["files"].pop("config.json")


def forge_earlier(folder: Path) -> None:
    content = json.loads((folder / "receipts/001.json").read_bytes())
    content["time"] = "2020-01-01T00:00:00+00:00"
    content["seal"] = "0" * 64
    content["seal"] = hashlib.sha256(canonical(content)).hexdigest()
    (folder / "receipts/001.json").write_bytes(canonical(content))


def refigure(folder: Path) -> None:
    """Better figures in the record, and a receipt to go with them, but the items stay what they were."""
    record = json.loads((folder / "record.json").read_text())
    record["after"]["forget"]["probability"] = 0.0
    text = json.dumps(record).encode()
    (folder / "record.json").write_bytes(text)
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    reseal(folder, lambda content: content["files"].update({"record.json": entry}))


def reweigh(folder: Path) -> None:
    """Other weights, and a receipt that names their file's hash, but not that of the weights."""
    flip(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(folder, lambda receipt: receipt["files"].update({"model.safetensors": entry}))


ALTERED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "weights": (lambda f: flip(f / "model.safetensors"), ["model.safetensors: was changed", "weights: have"]),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(b"x"),
        ["model.safetensors: was changed", "weights: have the SHA-256 unreadable"],
    ),
    "weights and receipt": (
        reweigh,
        ["weights: have the SHA-256", "signature of receipt.json: does not match"],
    ),
    "config": (edit("config.json", '"rope', '"rope '), ["config.json: was changed"]),
    "record": (
        edit("record.json", '"seed": 0', '"seed": 1'),
        ["record.json: was changed", "request in the receipt"],
    ),
    "record is no JSON": (
        lambda f: (f / "record.json").write_text("{"),
        ["record.json: is not a complete record"],
    ),
    "record is a list": (
        lambda f: (f / "record.json").write_text("[]"),
        ["record.json: is not a complete record"],
    ),
    "record's figures": (refigure, ["figures in record.json: do not follow from the items: after forget"]),
    "receipt, by hand": (
        edit("receipt.json", '\n "time": "2', '\n "time": "1'),
        ["receipt.json: does not have the hash", "signature of receipt.json", "time in the receipt"],
    ),
    "receipt, spaces": (
        edit("receipt.json", '\n "time": ', '\n "time":  '),
        ["receipt.json: is not written in its"],
    ),
    "receipt, resealed": (
        lambda f: reseal(f, improve),
        ["signature of receipt.json: does not match", "figures in the receipt: does not follow"],
    ),
    "receipt's time, resealed": (lambda f: reseal(f, earlier_time), ["time in the receipt: does not follow"]),
    "file left out, resealed": (lambda f: reseal(f, drop_file), ["config.json: is not in the receipt"]),
    "receipt is no JSON": (
        lambda f: (f / "receipt.json").write_text("{"),
        ["receipt.json: is not readable JSON"],
    ),
    "receipt is nested deep": (
        lambda f: (f / "receipt.json").write_text("[" * 100_000),
        ["receipt.json: is not readable JSON"],
    ),
    "receipt of another form": (
        lambda f: (f / "receipt.json").write_text('{"kind": "receipt"}'),
        ["receipt.json: is not a valid receipt"],
    ),
    "no signature": (lambda f: (f / "receipt.sig").unlink(), ["signature of receipt.json: is missing"]),
    "signature": (lambda f: flip(f / "receipt.sig"), ["signature of receipt.json: does not match"]),
    "signer removed": (
        lambda f: reseal(f, lambda c: c.update(signer=None)),
        ["signature of receipt.json: exists, but the receipt says that it is not"],
    ),
    "receipt before": (
        forge_earlier,
        [
            "receipts/001.json: was changed",
            "receipts/001.json: is not the receipt that receipt.json was chained",
        ],
    ),
    "receipt before is lost": (
        lambda f: (f / "receipts/001.json").unlink(),
        ["receipts/001.json: is missing"],
    ),
    "missing file": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json: is missing"]),
    "extra file": (lambda f: (f / "adapter.bin").write_bytes(b"x"), ["adapter.bin: is not in the receipt"]),
    "hidden file below": (
        lambda f: ((f / "more").mkdir(), (f / "more/.x").write_bytes(b"x")),
        ["more/.x: is not in the receipt"],
    ),
    "receipt is nested too deep": (
        lambda f: reseal(f, lambda c: c["request"]["settings"].update(x=json.loads("[" * 70 + "]" * 70))),
        ["receipt.json: is nested deeper"],
    ),
    "request's hash in the record": (
        edit("record.json", '"request_sha256": ', '"request_sha256": "x", "y": '),
        ["request_sha256 in record.json: is not the hash"],
    ),
    "a setting said not to count, resealed": (
        lambda f: reseal(f, lambda c: c["request"]["not_counted"].append("seed")),
        ["request in the receipt: does not follow", "request_sha256 in record.json: is not the hash"],
    ),
    "a pipe for weights": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        ["model.safetensors: is not a regular file", "weights: have the SHA-256 unreadable"],
    ),
    "a pipe for the record": (
        lambda f: ((f / "record.json").unlink(), os.mkfifo(f / "record.json")),
        ["record.json: is not a regular file", "record.json: is needed"],
    ),
    "what it proves, resealed": (
        lambda f: reseal(f, lambda c: c["proves"].append("That the model has forgotten everything.")),
        ["proves in the receipt: differs from the text of every receipt"],
    ),
    "what it does not prove, resealed": (
        lambda f: reseal(f, lambda c: c["does_not_prove"].pop()),
        ["does_not_prove in the receipt: differs from the text of every receipt"],
    ),
    "the chain cut off, resealed": (
        lambda f: reseal(f, lambda c: c.update(previous=None)),
        ["receipt.json: counts 0 receipts before it, but receipts/001.json is there too"],
    ),
    "a number of 4,000 digits": (
        edit("receipt.json", '"seed": 0', f'"seed": {"7" * 4000}'),
        ["receipt.json: is not readable JSON"],
    ),
    "a record's number of 4,000 digits": (
        edit("record.json", '"seed": 0', f'"seed": {"7" * 4000}'),
        ["record.json: is not a complete record"],
    ),
    "a figure of 299 digits": (
        edit_figures('"exact_memorisation": ', f'"exact_memorisation": {"7" * 299}, "x": '),
        ["record.json: was changed", "figures in"],
    ),
    "link to nothing": (lambda f: (f / "link").symlink_to("nowhere"), ["link: is not a regular file"]),
    "link to a folder": (lambda f: (f / "link").symlink_to("/"), ["link: is not a regular file"]),
}


@pytest.mark.parametrize("name", ALTERED)
def test_alterations_are_named(cli: Cli, copy: Path, name: str) -> None:
    change, expected = ALTERED[name]
    change(copy)
    answer = cli("verify", copy)
    wrong = lines(answer, "✗")
    assert answer.code == 4
    for start in expected:
        assert any(line.startswith(start) for line in wrong), (start, wrong)


def test_a_list_of_settings_that_changes_later_leaves_receipts_whole(
    cli: Cli, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ngdiff.receipts.receipt.NOT_COUNTED", frozenset({"seed"}))
    answer = cli("verify", copy)
    assert answer.code == 0, answer.out
    reseal(copy, lambda content: content["request"].pop("not_counted"))  # as early versions wrote them
    wrong = lines(cli("verify", copy), "✗")
    assert any(line.startswith("request in the receipt: does not follow") for line in wrong)
    monkeypatch.undo()
    wrong = lines(cli("verify", copy), "✗")
    assert wrong and all(line.startswith("signature") for line in wrong), wrong


def test_a_receipt_names_files_outside(cli: Cli, copy: Path, tmp_path: Path) -> None:
    """Names in a receipt are compared, never opened."""
    (tmp_path / "secret").write_bytes(b"x")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    reseal(copy, lambda content: content["files"].update({"../secret": entry, "/etc/passwd": entry}))
    wrong = lines(cli("verify", copy), "✗")
    assert {"../secret: is missing", "/etc/passwd: is missing"} <= set(wrong)


def test_wrong_data_model_and_key(cli: Cli, made: Path, tmp_path: Path) -> None:
    cli("keygen", tmp_path / "other.pem")
    swapped = (
        "--forget",
        made / "retain.jsonl",
        "--retain",
        made / "forget2.jsonl",
        "--holdout",
        made / "forget1.jsonl",
    )
    others = ("--model", made / "target", "--public-key", tmp_path / "other.pub.pem")
    answer = cli("verify", made / "out2", *swapped, *others)
    assert answer.code == 4
    starts = [
        "signature of receipt.json: was made with a different key",
        "forget data: is not the set used: 4",
    ]
    starts += [
        "holdout data: the receipt has none",
        "retain data: is not the set used",
        "starting model: is a different model",
    ]
    wrong = lines(answer, "✗")
    assert len(wrong) == len(starts)
    assert all(line.startswith(start) for line, start in zip(wrong, starts, strict=True))


def test_an_earlier_receipt_of_another_run(cli: Cli, copy: Path, made: Path, tmp_path: Path) -> None:
    """Chained by its hash, sound in itself, but its model is not the one that this run began with."""
    other = Path(shutil.copytree(made / "out1", tmp_path / "other"))
    content = receipt_of(other)
    content["model"]["sha256_after"] = "1" * 64
    content["files"]["model.safetensors"]["sha256"] = "2" * 64
    reseal(other, lambda c: c.update(content))
    text = (other / "receipt.json").read_bytes()
    (copy / "receipts/001.json").write_bytes(text)
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}

    def forge(content: dict[str, Any]) -> None:
        content["files"]["receipts/001.json"] = entry
        content["previous"]["sha256"] = entry["sha256"]

    reseal(copy, forge)
    wrong = lines(cli("verify", copy), "✗")
    assert "receipt.json: names another starting model than the one that receipts/001.json produced" in wrong


def test_a_report_is_the_one_of_this_folder_or_named(cli: Cli, copy: Path) -> None:
    assert cli("report", copy).code == 0
    answer = cli("verify", copy)
    assert answer.code == 0 and "✓ report.html: is the page that 'ngdiff report' makes" in answer.out
    page = (copy / "report.html").read_text(encoding="utf-8")
    forged = page.replace("Unlearning report", "Unlearning report: all forgotten")
    (copy / "report.html").write_text(forged, encoding="utf-8")
    answer = cli("verify", copy)
    assert answer.code == 4 and "✗ report.html: is not the page that 'ngdiff report' makes" in answer.out
    copy.rename(copy.with_name("elsewhere"))  # a page keeps the name that it was made under
    assert cli("verify", copy.with_name("elsewhere")).code == 4
    (copy.with_name("elsewhere") / "report.html").write_text(page, encoding="utf-8")
    answer = cli("verify", copy.with_name("elsewhere"))
    assert answer.code == 0 and "✓ report.html: is the page that 'ngdiff report' makes" in answer.out
    copy.with_name("elsewhere").rename(copy)
    others = ("x", forged.replace("alone&#34;: true", "alone&#34;: false"), forged.replace(": true}", ": [}"))
    for page in (*others, re.sub('<meta name="ngdiff-origin".*', "", forged)):
        (copy / "report.html").write_text(page, encoding="utf-8")
        answer = cli("verify", copy)
        assert answer.code == 0, "it may be a page with an evaluation, or of another version"
        assert "- report.html: is not in the receipt, nor the page that" in answer.out
        assert "or forged" in answer.out
    (copy / ".report.html.abc123_x").write_text("half a pa")  # killed while it was written
    answer = cli("verify", copy)
    assert answer.code == 0 and "- .report.html.abc123_x: was left behind by a killed command" in answer.out
    (copy / "report.html").unlink()
    assert cli("report", copy).code == 0 and not (copy / ".report.html.abc123_x").exists()
    (copy / ".report.html.abc").write_text("something else")
    assert cli("verify", copy).code == 4
    (copy / ".report.html.abc").unlink()


def test_the_starting_model_is_hashed_though_the_receipt_lists_no_files(
    cli: Cli, copy: Path, made: Path
) -> None:
    reseal(copy, lambda content: content.update(starting_files=None))
    wrong = lines(cli("verify", copy, "--model", made / "target"), "✗")
    assert any(line.startswith("starting model: is a different model: its weights") for line in wrong), wrong
    answer = cli("verify", copy, "--model", made / "out1")
    assert "✓ starting model: its weights have the SHA-256 of the receipt" in answer.out
    wrong = lines(answer, "✗")
    assert all(line.startswith("signature") for line in wrong), wrong


def test_a_chain_cut_off_is_seen_beside_the_starting_model(cli: Cli, copy: Path, made: Path) -> None:
    """By somebody with the key, so that no signature tells."""
    shutil.rmtree(copy / "receipts")

    def cut(content: dict[str, Any]) -> None:
        content["previous"] = None
        for name in list(content["files"]):
            if name.startswith("receipts/"):
                del content["files"][name]

    reseal(copy, cut)
    key: Any = serialization.load_pem_private_key((made / "key.pem").read_bytes(), None)
    (copy / "receipt.sig").write_bytes(key.sign((copy / "receipt.json").read_bytes()))
    assert cli("verify", copy).code == 0, "nothing here shows it"
    answer = cli("verify", copy, "--model", made / "out1")
    assert answer.code == 4
    (wrong,) = lines(answer, "✗")
    assert wrong.startswith("starting model: has a receipt.json that this receipt is not chained to")
    answer = cli("verify", made / "out2", "--model", made / "out1")
    assert answer.code == 0 and "✓ starting model: its receipt.json is what this receipt is" in answer.out


def test_a_record_beside_the_starting_model_is_compared(cli: Cli, made: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(made / "out1", tmp_path / "start"))
    for name in ("receipt.json", "receipt.sig"):
        (start / name).unlink()
    words = request(made, "out1", 2)
    words[words.index("--output") + 1], words[1] = tmp_path / "out", start
    assert cli("unlearn", *words).code == 0
    answer = cli("verify", tmp_path / "out", "--model", start)
    assert answer.code == 0 and "✓ starting model: its record.json is what this receipt is" in answer.out
    (start / "record.json").write_text((start / "record.json").read_text() + " ")
    assert cli("verify", tmp_path / "out", "--model", start).code == 4


def test_no_receipt_at_all(cli: Cli, made: Path) -> None:
    answer = cli("verify", made / "target")
    assert answer.code == 2 and "contains no receipt.json" in answer.faults[0][0]


# ---- keys ----


def pem(path: Path, key: Any, password: bytes | None = None) -> Path:
    locked: Any = serialization.NoEncryption()
    if password is not None:
        locked = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    return path


def test_bad_keys(cli: Cli, made: Path, tmp_path: Path) -> None:
    keys = {
        "is encrypted with a password": pem(tmp_path / "locked.pem", Ed25519PrivateKey.generate(), b"secret"),
        "another kind of key (RSA)": pem(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 1024)),
        "contains a public key": made / "key.pub.pem",
        "does not contain a private key": made / "retain.jsonl",
        "cannot be read": tmp_path / "nowhere.pem",
        "is not a file": tmp_path,
    }
    for what, key in keys.items():
        words = request(made, "target", 1)
        words[words.index("--output") + 1] = tmp_path / "out"
        answer = cli("unlearn", *words, "--set", f"sign={key}")
        assert answer.code == 2 and not (tmp_path / "out").exists()
        assert what in answer.faults[0][0], what


def test_without_cryptography_signing_is_refused_and_a_signature_not_checked(
    cli: Cli, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)  # as where it is not installed
    words = request(made, "target", 1)
    words[words.index("--output") + 1] = tmp_path / "out"
    for answer in (
        cli("keygen", tmp_path / "key.pem"),
        cli("unlearn", *words, "--set", f"sign={made / 'key.pem'}"),
        cli("verify", made / "out2", "--public-key", made / "key.pub.pem"),
    ):
        assert answer.code == 2
        what, fix = answer.faults[0]
        assert "the package cryptography, which is not installed" in what and "'ngdiff[sign]'" in fix
    assert not (tmp_path / "out").exists() and not (tmp_path / "key.pem").exists()
    answer = cli("verify", made / "out2", "--chain")
    assert answer.code == 0, answer.out
    unchecked = [line for line in lines(answer, "-") if line.startswith("signature")]
    assert len(unchecked) == 2 and all("'ngdiff[sign]'" in line for line in unchecked)
    assert cli("keygen", "--data", tmp_path / "data.key").code == 0


def test_keygen_replaces_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("keygen", tmp_path / "key.pem").code == 0
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    before = (tmp_path / "key.pem").read_bytes()
    assert cli("keygen", tmp_path / "key.pem").code == 2
    assert (tmp_path / "key.pem").read_bytes() == before
    assert cli("keygen", "--data", tmp_path / "data.key").code == 0
    assert cli("keygen", "--data", tmp_path / "data.key").code == 2
    assert cli("keygen", tmp_path / "none" / "key.pem").code == 2


@pytest.mark.parametrize("words", [("key.pem",), ("--data", "data.key")])
def test_keygen_on_a_full_disk_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    files = []

    def full(descriptor: int) -> None:
        files.append(descriptor)
        if len(files) == (2 if words[0] == "key.pem" else 1):  # of a pair, the public one
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = cli("keygen", *words)
    assert answer.code == 2 and "No space left" in answer.err and len(answer.faults) == 1
    assert list(tmp_path.iterdir()) == []
    assert cli("keygen", *words).code == 0


def test_a_pipe_for_a_data_key_does_not_hang(cli: Cli, made: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.key")
    answer = cli("verify", made / "out1", "--data-key", tmp_path / "data.key")
    assert answer.code == 2 and "is a pipe" in answer.faults[0][0]


# ---- hashes of data under a key ----


def test_data_under_a_key(cli: Cli, made: Path, tmp_path: Path) -> None:
    cli("keygen", "--data", tmp_path / "data.key")
    words = request(made, "target", 1)
    words[words.index("--output") + 1] = tmp_path / "out"
    assert cli("unlearn", *words, "--set", f"data_key={tmp_path / 'data.key'}").code == 0
    receipt = receipt_of(tmp_path / "out")
    examples = to_examples(read_rows(str(made / "forget1.jsonl"), where=""), "")
    plain = {data_hash(examples), *(data_hash([example]) for example in examples)}
    for name in ("receipt.json", "record.json"):  # no hash that a guess could be tried on
        assert not any(digest in (tmp_path / "out" / name).read_text() for digest in plain)
    key = bytes.fromhex((tmp_path / "data.key").read_text())
    said = receipt["data"]["forget"]
    assert said["sha256"] == hmac.new(key, data_hash(examples).encode(), "sha256").hexdigest()
    salt = hmac.new(key, f"{said['nonce']} row 2".encode(), "sha256").digest()  # what an owner is shown
    row = data_hash([examples[2]])
    assert said["rows"][2] == hmac.new(salt, row.encode(), "sha256").hexdigest()

    forget, one = ("--forget", made / "forget1.jsonl"), write_jsonl(tmp_path / "one.jsonl", questions(12, 1))
    assert "- forget data: its hash was made with a key" in cli("verify", tmp_path / "out", *forget).out
    with_key = ("--data-key", tmp_path / "data.key")
    assert "✓ forget data: the 4 examples" in cli("verify", tmp_path / "out", *forget, *with_key).out
    answer = cli("verify", tmp_path / "out", "--forget", one, *with_key)
    assert answer.code == 0 and "✓ forget data: part of the set used: row 3 of 4" in answer.out
    answer = cli("verify", tmp_path / "out", "--forget", made / "forget2.jsonl", *with_key)
    assert answer.code == 4 and "0 of these are in it" in answer.out


def test_bad_data_keys(cli: Cli, made: Path, tmp_path: Path) -> None:
    for content in ("", "ab" * 31, "zz" * 32, "ab" * 1000):
        (tmp_path / "data.key").write_text(content)
        answer = cli("verify", made / "out1", "--data-key", tmp_path / "data.key")
        assert answer.code == 2 and "contains no key of 64 hex digits" in answer.faults[0][0]


# ---- figures ----


def test_intervals_are_those_of_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    strength, tokens = rng.random(60), rng.integers(4, 30, size=60)
    nll = rng.random(60) * tokens
    items = {"nll": nll, "tokens": tokens, "extraction_strength": strength, "exact_memorisation": strength}
    found = figures_of({name: column.tolist() for name, column in items.items()})
    low, high = interval(strength.tolist(), seed=1)  # other draws, by scipy
    figure = found["extraction_strength"]
    assert figure["value"] == pytest.approx(strength.mean())
    assert (figure["low"], figure["high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert found["nll"]["value"] == pytest.approx(nll.sum() / tokens.sum())
    assert found["probability"]["value"] == pytest.approx(np.exp(-nll / tokens).mean())
    draws = rng.integers(60, size=(4000, 60))  # a slow oracle of the ratio's interval
    ratios = np.quantile(nll[draws].sum(axis=1) / tokens[draws].sum(axis=1), [0.025, 0.975])
    assert [found["nll"]["low"], found["nll"]["high"]] == pytest.approx(ratios.tolist(), abs=0.03)


def test_figures_need_whole_columns() -> None:
    column = {"nll": [1.0], "tokens": [2], "extraction_strength": [0.5], "exact_memorisation": [0.5]}
    assert figures_of(column)["nll"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert figures_of({**column, "nll": [None]})["nll"]["value"] is None  # type: ignore[dict-item, list-item]
    for bad in ({**column, "nll": [1.0, 2.0]}, {"nll": [1.0]}, {name: [] for name in column}):
        with pytest.raises(ValueError):
            figures_of(bad)
