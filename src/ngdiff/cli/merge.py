"""``ngdiff merge``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ngdiff.cli.app import app
from ngdiff.cli.options import DATA, OUTPUT, Log, Overwrite, Quiet, TrustRemoteCode
from ngdiff.errors import Faults
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

if TYPE_CHECKING:
    from ngdiff.models.loading import ModelSource


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(help="Folder made by 'ngdiff unlearn --lora' or 'finetune --lora'.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to write the merged model to.", rich_help_panel=OUTPUT)
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Base model. [default: the one the adapter names]", rich_help_panel=DATA),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Merge a LoRA adapter into its base model.

    `ngdiff merge adapter --output merged`

    `ngdiff merge adapter --model org/name --output merged`
    """
    from rich.markup import escape

    from ngdiff.system.progress import console

    record = run(MergeRequest(adapter, output, model, overwrite, trust_remote_code))
    for note in record["notes"]:
        log.note(note)
        console.print(f"Note: {escape(note)}.", highlight=False, soft_wrap=True)
    log.conclude(output=str(output))
    last_line(f"The model and record.json are in {escape(str(output))}")


@dataclass(frozen=True)
class MergeRequest:
    """Everything that ``ngdiff merge`` needs to know.

    Args:
        adapter: folder with the adapter.
        output: the folder to make.
        model: the base model; default: the one that the adapter names.
        overwrite: replace an earlier result.
        trust_remote_code: run Python code that comes with the base model.
    """

    adapter: str
    output: Path
    model: str | None = None
    overwrite: bool = False
    trust_remote_code: bool = False


def run(request: MergeRequest) -> dict[str, Any]:
    """Merge the adapter and save the model, its tokenizer and a record.

    Returns:
        The record, as it stands in ``record.json``.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
    """
    from ngdiff.models.loading import fold_in, load_model
    from ngdiff.system.environment import machine, versions, weights_hash
    from ngdiff.system.output import RECORD, follow_umask, names_below, staged_folder, write_json
    from ngdiff.system.progress import working

    source, base, tokenizer = _prepare(request)
    with working(f"Merging {request.adapter} into {base.name}"):
        model = load_model(base)
        before = weights_hash(model)
        model = fold_in(model, source)
    with staged_folder(request.output, request.overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        follow_umask(folder)
        record = {
            "kind": "merge",
            "adapter": {"path": request.adapter, **_file_hashes(Path(source.location))},
            "model": {"name": base.name, "sha256_before": before, "sha256_after": weights_hash(model)},
            "trust_remote_code": request.trust_remote_code,
            "versions": versions(),
            "machine": machine(),
            "notes": _other_base(Path(source.location) / RECORD, before),
            "files": names_below(folder),
        }
        write_json(record, folder / RECORD)
    return record


def _prepare(request: MergeRequest) -> tuple[ModelSource, ModelSource, Any]:
    from ngdiff.errors import Fault, RequestError
    from ngdiff.models.loading import (
        check_causal,
        load_tokenizer,
        on_this_machine,
        resolve_model,
        weights_bytes,
    )
    from ngdiff.system.output import check_output, same_folder

    faults = Faults()
    source = base = None
    with faults.collecting():
        source = resolve_model(request.adapter, "ADAPTER", request.trust_remote_code)
        if not source.adapter:
            what = f"{request.adapter!r} is a full model, not an adapter"
            faults.append(Fault("ADAPTER", what, "Give a folder made with --lora; this one needs no merging"))
        elif request.model is not None:
            source = replace(source, base=request.model)
    base_name = request.model or (source.base if source is not None else None)
    if base_name is not None:
        with faults.collecting():
            where = "--model" if request.model else "--model (as the adapter names it)"
            base = resolve_model(base_name, where, request.trust_remote_code)
            base = base if request.model else on_this_machine(base, where)
            faults += check_causal(base)
    elif not faults:
        what = f"{request.adapter!r} does not name its base model"
        faults.append(Fault("ADAPTER", what, "Give the base with --model"))
    needed = (weights_bytes(base) or 0) if base is not None else 0
    for used in (source, base):
        faults += same_folder(request.output, used.location) if used is not None else []
    faults += check_output(request.output, request.overwrite, needed)
    if faults or source is None or base is None:
        raise RequestError(faults)
    try:
        return source, base, load_tokenizer(source)
    except RequestError:
        return source, base, load_tokenizer(base)


def _file_hashes(adapter: Path) -> dict[str, str]:
    return {
        f"sha256 of {path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted([*adapter.glob("*.safetensors"), *adapter.glob("record.json")])
    }


def _other_base(record: Path, before: str) -> list[str]:
    """Return a note where the adapter's record names another base than the one it was merged into."""
    from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

    try:
        trained_on = load_json(read_within(record, MOST_JSON))["model"]["sha256_before"]
    except (Unreadable, LookupError, TypeError):
        return []
    if trained_on in (None, before):  # None: it was made on quantised weights
        return []
    return [f"the adapter was trained on other weights than these (SHA-256 {trained_on}, here {before})"]
