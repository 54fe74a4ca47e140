"""``ngdiff unlearn``."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from ngdiff.cli.app import EXIT_TARGET_MISSED, app
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.progress import console

if TYPE_CHECKING:
    from ngdiff.models import Precision

# request fields that a configuration file may set beside the trainer's settings
SOURCE_KEYS = ("forget", "retain", "holdout")
FLAG_KEYS = ("lora", "qlora", "allow_overlap")
REQUEST_KEYS = ("model", "output", "precision", "tofu_dir", *SOURCE_KEYS, *FLAG_KEYS)


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, named as on the command line (with ``_`` or ``-``).

    Raises:
        RequestError: the file is missing, is no YAML mapping, or names settings that do not exist.
    """
    import yaml

    try:
        loaded = _from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(Fault("--config", f"{path} cannot be read: {error}", "Check the path")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        what = f"is no YAML ({getattr(error, 'problem', None) or error})"
        raise RequestError(Fault(f"--config {at}", what, "Write one 'setting: value' a line")) from error
    if not isinstance(loaded, dict):
        raise RequestError(Fault("--config", f"{path} is no mapping", "Write one 'setting: value' a line"))
    return _checked(loaded, f"--config {path}")


ALIASES = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
ALIASES |= {"eval_every": "evaluate_every", "eval_items": "evaluate_items"}
# trainer settings that a flag decides
DECIDED_BY = {"output_dir": "output", "bf16": "precision", "fp16": "precision"}


def _from_yaml(text: str) -> Any:
    """Read YAML, with 1e-5 as the number it is in YAML 1.2; PyYAML alone takes it for a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.load(text, Loader)


def _checked(loaded: dict[Any, Any], where: str) -> dict[str, Any]:
    """Return the settings under their own names; a null leaves the default."""
    from ngdiff.config import UnlearningConfig

    names = {key: str(key).strip().replace("-", "_") for key in loaded}
    settings = {ALIASES.get(names[key], names[key]): value for key, value in loaded.items()}
    known = {*REQUEST_KEYS, *(field.name for field in fields(UnlearningConfig) if field.init)} - set(
        DECIDED_BY
    )
    faults = []
    for key, value in settings.items():
        if key in DECIDED_BY:
            faults.append(Fault(where, f"{key!r} is not set here", f"Use {DECIDED_BY[key]!r}"))
        elif key not in known:
            faults.append(unknown_name(where, "setting", key, {*known, *ALIASES}))
        elif key in FLAG_KEYS and not isinstance(value, bool | None):
            faults.append(Fault(where, f"{key!r} is {value!r}", "Write true or false"))
        elif key in SOURCE_KEYS and not _is_sources(value):
            faults.append(Fault(where, f"{key!r} is {value!r}", "Write a source, or a list of sources"))
    if faults:
        raise RequestError(faults)
    return {key: value for key, value in settings.items() if value is not None}


def _is_sources(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str) for item in items)


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are YAML.

    Raises:
        RequestError: a pair has no ``=``, its value is no YAML, or there is no such setting.
    """
    import yaml

    settings, faults = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            settings[name] = _from_yaml(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            faults.append(Fault("--set", f"{pair!r} is no setting", "Write --set name=value"))
    if faults:
        raise RequestError(faults)
    return _checked(settings, "--set")


@app.command()
def unlearn(
    model: Annotated[str | None, typer.Option(help="Folder, hub name, or 'smollm2'.")] = None,
    forget: Annotated[
        list[str] | None, typer.Option(help="What to forget: file, folder, hub data set or tofu:NAME.")
    ] = None,
    retain: Annotated[list[str] | None, typer.Option(help="What to keep, likewise.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to make.")] = None,
    holdout: Annotated[
        list[str] | None, typer.Option(help="Text of the forget set's kind that the model never saw.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="See 'ngdiff ls methods'. [default: ngdiff-unlikelihood]")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Fixed learning rate, instead of the method's own.")
    ] = None,
    lr_start: Annotated[float | None, typer.Option(help="Automatic rate, searched from here.")] = None,
    forget_loss: Annotated[str | None, typer.Option(help="See 'ngdiff ls losses'.")] = None,
    retain_loss: Annotated[str | None, typer.Option(help="See 'ngdiff ls losses'.")] = None,
    rule: Annotated[str | None, typer.Option(help="See 'ngdiff ls rules'.")] = None,
    stop_at: Annotated[
        str | None,
        typer.Option(help="auto, never-seen-loss, none, or e.g. extraction_strength=0.05. [default: auto]"),
    ] = None,
    keep_utility: Annotated[
        float | None, typer.Option(help="Floor of retain answer probability, as a share. [default: 0.95]")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Most passes over the forget set. [default: 20]")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most optimizer steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Forget, and as many retain, examples a step. [default: 8]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice. [default: 0]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest sequence in tokens. [default: 512]")] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Evaluate every so many steps, into record.json. [default: never]")
    ] = None,
    eval_items: Annotated[
        int | None, typer.Option(help="Most items of a set that these look at. [default: 64]")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA adapters only, and save those.")] = False,
    qlora: Annotated[
        bool, typer.Option("--qlora", help="Likewise, on weights in 4 bits; needs bitsandbytes.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="auto, bf16 or fp32. [default: auto]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other trainer setting, as name=value.")
    ] = None,
    tofu_dir: Annotated[Path | None, typer.Option(help="Folder with TOFU's JSON files.")] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on though both sets share rows.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
) -> None:
    """Make a model forget one data set and keep another.

    Nothing but the four names is needed; the learning rate is found, and the run stops by itself:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output unlearned`

    Exit code 0: forgotten. 3: saved, but the forget target was not reached. 2: the request was wrong.
    """
    given = read_config(config) if config is not None else {}
    given |= parse_set(set_ or [])
    flags = {
        "model": model,
        "forget": forget,
        "retain": retain,
        "output": output,
        "holdout": holdout,
        "method": method,
        "learning_rate": lr,
        "lr_start": lr_start,
        "forget_loss": forget_loss,
        "retain_loss": retain_loss,
        "rule": rule,
        "stop_at": stop_at,
        "keep_utility": keep_utility,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "seed": seed,
        "max_length": max_length,
        "evaluate_every": eval_every,
        "evaluate_items": eval_items,
        "lora": lora or None,
        "qlora": qlora or None,
        "precision": precision,
        "tofu_dir": tofu_dir,
        "allow_overlap": allow_overlap or None,
    }
    given |= {name: value for name, value in flags.items() if value not in (None, [])}
    _require(given)
    record = _run(given, overwrite)
    show(
        record, Path(str(given["output"])), bool(given.get("lora") or given.get("qlora")), str(given["model"])
    )
    if record.stop["target_met"] is False:
        raise typer.Exit(EXIT_TARGET_MISSED)


def _require(given: dict[str, Any]) -> None:
    missing = [name for name in ("model", "forget", "retain", "output") if not given.get(name)]
    if missing:
        mend = "Give it as a flag or in --config; see ngdiff unlearn --help"
        raise RequestError([Fault(f"--{name}", "is missing", mend) for name in missing])


def _run(given: dict[str, Any], overwrite: bool) -> Any:
    from ngdiff.environment import keep_freed_memory
    from ngdiff.unlearn import UnlearnRequest
    from ngdiff.unlearn import unlearn as run

    keep_freed_memory()
    request = UnlearnRequest(
        model=str(given["model"]),
        forget=_sources(given["forget"]),
        retain=_sources(given["retain"]),
        output=Path(str(given["output"])),
        holdout=_sources(given.get("holdout", ())),
        settings={key: value for key, value in given.items() if key not in REQUEST_KEYS},
        lora=bool(given.get("lora")),
        qlora=bool(given.get("qlora")),
        precision=cast("Precision", str(given.get("precision", "auto"))),  # checked with all the rest
        tofu_dir=Path(str(given["tofu_dir"])) if given.get("tofu_dir") else None,
        allow_overlap=bool(given.get("allow_overlap")),
        overwrite=overwrite,
    )
    return run(request)


def _sources(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def show(record: Any, output: Path, lora: bool, model: str) -> None:
    """Print what a run did, and what to do next."""
    table = Table(title=None)
    table.add_column("set")
    for name in ("probability", "extraction strength", "NLL (nats/token)"):
        table.add_column(name, justify="right")
    for part, title in (("forget", "forget"), ("retain", "retain, held out"), ("never_seen", "never seen")):
        cells = [
            f"{record.before[part][key]:.3f} → {record.after[part][key]:.3f}"
            for key in ("probability", "extraction_strength", "nll")
        ]
        table.add_row(title, *cells)
    console.print(table)
    cost = record.cost
    console.print(f"Ended: {escape(record.stop['reason'])}.", highlight=False)
    console.print(
        f"{cost['steps']} steps, {cost['seconds']:.0f} s, "
        f"peak memory {max(cost['peak_memory_gib'].values()):.1f} GiB; "
        f"kept: step {record.stop['kept_step']}.",
        highlight=False,
    )
    for note in record.notes:
        console.print(f"Note: {escape(note)}.", highlight=False)
    kind = "adapter" if lora else "model"
    console.print(f"The {kind} and record.json are in {escape(str(output))}", highlight=False)
    if lora:
        console.print(
            f"Merge it into {escape(model)}: ngdiff merge {escape(str(output))} --output MERGED",
            highlight=False,
        )
