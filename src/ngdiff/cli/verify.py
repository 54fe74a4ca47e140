"""``ngdiff verify`` and ``ngdiff keygen``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ngdiff.cli.app import EXIT_DISAGREES, app, inert
from ngdiff.cli.options import with_folders
from ngdiff.data.benchmarks import NO_FOLDERS, Folders

if TYPE_CHECKING:
    from ngdiff.data.examples import Example
    from ngdiff.receipts.verify import Evidence, Finding


@app.command()
@with_folders
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder made by 'ngdiff unlearn'.")],
    forget: Annotated[
        list[str] | None, typer.Option(help="The forget set, to compare with its hash: see 'ngdiff unlearn'.")
    ] = None,
    retain: Annotated[list[str] | None, typer.Option(help="The retain set, likewise.")] = None,
    holdout: Annotated[list[str] | None, typer.Option(help="The holdout, likewise.")] = None,
    model: Annotated[str | None, typer.Option(help="The model before, to compare its files.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="Public key of who should have signed.")] = None,
    data_key: Annotated[Path | None, typer.Option(help="Key that hides the data's hashes.")] = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Check all earlier receipts, not only the one before.")
    ] = False,
    folders: Folders = NO_FOLDERS,
) -> None:
    """Work out every hash in a receipt again, and say line by line what agrees.

    Example: `ngdiff verify unlearned --forget forget.jsonl --retain retain.jsonl`

    Exit code 4: something is not what the receipt says.
    """
    from ngdiff.errors import Fault, RequestError
    from ngdiff.receipts.hashes import RECEIPT
    from ngdiff.receipts.verify import verify as check

    if not (folder / RECEIPT).is_file():
        fix = "Give a folder made by 'ngdiff unlearn'; without its receipt nothing can be checked"
        raise RequestError(Fault("FOLDER", f"{folder} holds no {RECEIPT}", fix))
    sources = {"forget": forget or [], "retain": retain or [], "holdout": holdout or []}
    evidence = _evidence(sources, folders, model, public_key, data_key, chain)
    try:
        findings = check(folder, evidence)
    except OSError as error:
        what = f"{folder} cannot be read: {error.strerror}"
        raise RequestError(Fault("FOLDER", what, "Check who may read it")) from error
    _show(findings, folder)
    if any(finding.agrees is False for finding in findings):
        raise typer.Exit(EXIT_DISAGREES)


def _evidence(
    sources: dict[str, list[str]],
    folders: Folders,
    model: str | None,
    public_key: Path | None,
    data_key: Path | None,
    chain: bool,
) -> Evidence:
    from ngdiff.data.examples import to_examples
    from ngdiff.data.sources import read_rows
    from ngdiff.errors import Faults
    from ngdiff.models.loading import resolve_model
    from ngdiff.receipts.data_key import read_data_key
    from ngdiff.receipts.signature import read_public_key
    from ngdiff.receipts.verify import Evidence

    faults = Faults()
    data: dict[str, list[Example]] = {}
    for role, names in sources.items():
        where = f"--{role}"
        with faults.collecting():
            parts = [to_examples(read_rows(n, where=where, folders=folders), where) for n in names]
            data |= {role: [example for part in parts for example in part]} if parts else {}
    key = secret = source = None
    with faults.collecting():
        key = read_public_key(public_key) if public_key is not None else None
        secret = read_data_key(data_key) if data_key is not None else None
        source = resolve_model(model) if model is not None else None
    faults.raise_any()
    return Evidence(data, secret, key, source, chain)


def _show(findings: Sequence[Finding], folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    from ngdiff.system.progress import console

    out = Console()
    marks = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[dim]-[/dim]"}
    for finding in findings:
        what, text = escape(inert(finding.what)), escape(inert(finding.text))
        out.print(f"{marks[finding.agrees]} {what}: {text}", highlight=False, soft_wrap=True)
    wrong = sum(finding.agrees is False for finding in findings)
    right = sum(finding.agrees is True for finding in findings)
    agree = "1 claim agrees" if right == 1 else f"{right} claims agree"
    disagree = "1 does not" if wrong == 1 else f"{wrong} do not"
    verdict = disagree if wrong else "nothing disagrees"
    left = len(findings) - wrong - right
    console.print(f"{escape(str(folder))}: {agree}, {verdict}, {left} not checked.")
    console.print("What a receipt proves, and what not, stands in it: 'proves', 'does_not_prove'.")


@app.command()
def keygen(
    key: Annotated[Path, typer.Argument(help="File to make, for nobody else to read.")],
    data: Annotated[
        bool, typer.Option("--data", help="A key that hides hashes of data, instead of one to sign with.")
    ] = False,
) -> None:
    """Make a key pair (Ed25519) to sign receipts with: KEY.pem, and KEY.pub.pem for others.

    Example: `ngdiff keygen key.pem`
    """
    from rich.markup import escape

    from ngdiff.receipts.data_key import write_data_key
    from ngdiff.receipts.signature import write_keys
    from ngdiff.system.progress import console

    if data:
        write_data_key(key)
        text = f"The data key is in {key}: keep it secret, and apart from the models"
    else:
        text = f"The private key is in {key}: keep it secret. The public one is in {write_keys(key)}"
    console.print(escape(text), highlight=False, soft_wrap=True)
