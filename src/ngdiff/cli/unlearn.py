"""``ngdiff unlearn``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app, of_a_missed_target
from ngdiff.cli.options import (
    DATA,
    LOGS,
    METHOD,
    OUTPUT,
    RESOURCES,
    STOPPING,
    GradientCheckpointing,
    Holdout,
    Log,
    Lora,
    Overwrite,
    Quiet,
    Report,
    Resume,
    SaveMinutes,
    SaveSteps,
    SetPairs,
    TrustRemoteCode,
    with_folders,
)
from ngdiff.cli.push import Private, upload
from ngdiff.cli.report import report_after
from ngdiff.cli.settings import NEEDED, gather, to_request
from ngdiff.cli.validate import checked, show_plan
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.errors import Fault, RequestError
from ngdiff.settings import DEFAULT_METHOD

NO_SETTINGS = ("config", "set_", "overwrite", "resume", "quiet", "log_format", "report", "dry_run")
"""Parameters of the command that say nothing of what is done to the model."""


@app.command()
@with_folders
def unlearn(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Folder, hub name, or 'smollm2'.", rich_help_panel=DATA)
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="What to forget: file, folder, hub data set or tofu:NAME.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(help="What to keep, likewise.", autocompletion=completion.sources, rich_help_panel=DATA),
    ] = None,
    holdout: Holdout = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"See 'ngdiff ls methods'. [default: {DEFAULT_METHOD}]",
            autocompletion=completion.methods,
            rich_help_panel=METHOD,
        ),
    ] = None,
    step_size: Annotated[
        str | None,
        typer.Option(
            help="auto: probes find the rate; gen: as GeN's authors do; fixed. [default: the method's]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Fixed learning rate, instead of the method's own.", rich_help_panel=METHOD),
    ] = None,
    lr_start: Annotated[
        float | None,
        typer.Option(help="auto: search the rate from here; gen: begin here.", rich_help_panel=METHOD),
    ] = None,
    forget_loss: Annotated[
        str | None,
        typer.Option(
            help="See 'ngdiff ls losses'.", autocompletion=completion.forget_losses, rich_help_panel=METHOD
        ),
    ] = None,
    retain_loss: Annotated[
        str | None,
        typer.Option(
            help="See 'ngdiff ls losses'.", autocompletion=completion.retain_losses, rich_help_panel=METHOD
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="See 'ngdiff ls rules'.", autocompletion=completion.rules, rich_help_panel=METHOD),
    ] = None,
    stop_at: Annotated[
        str | None,
        typer.Option(
            help="auto, never-seen-loss, none, or e.g. extraction_strength=0.05. "
            "[default: auto, or the method's]",
            autocompletion=completion.forget_targets,
            rich_help_panel=STOPPING,
        ),
    ] = None,
    keep_utility: Annotated[
        float | None,
        typer.Option(
            help="Floor of each figure to keep, as a share of its start. [default: 0.98, or the method's]",
            rich_help_panel=STOPPING,
        ),
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            help="One floor by name: retain, general, language or a --keep set; 0 for none.",
            metavar="NAME=SHARE",
            rich_help_panel=STOPPING,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="What must be kept besides, with a floor of its own; may be repeated.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Most passes over the forget set. [default: 20, or the method's]", rich_help_panel=STOPPING
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Most optimizer steps.", rich_help_panel=STOPPING)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Forget, and as many retain, examples a step. [default: 8 to 32, by the forget set's size]",
            rich_help_panel=RESOURCES,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of every random choice. [default: 0]", rich_help_panel=METHOD)
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Longest sequence in tokens. [default: 512]", rich_help_panel=RESOURCES),
    ] = None,
    long_text: Annotated[
        str | None,
        typer.Option(
            help="split: running text that is longer becomes several pieces; cut: the rest is dropped. "
            "[default: split]",
            autocompletion=completion.long_texts,
            rich_help_panel=DATA,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to make.", rich_help_panel=OUTPUT)] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            help="Evaluate every so many steps, into record.json. [default: never]", rich_help_panel=OUTPUT
        ),
    ] = None,
    eval_items: Annotated[
        int | None,
        typer.Option(help="Most items of a set that these look at. [default: 64]", rich_help_panel=OUTPUT),
    ] = None,
    lora: Lora = False,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora",
            help="Likewise, on weights in 4 bits; needs bitsandbytes.",
            rich_help_panel=RESOURCES,
        ),
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto, bf16 or fp32. [default: auto]",
            autocompletion=completion.precisions,
            rich_help_panel=RESOURCES,
        ),
    ] = None,
    gradient_checkpointing: GradientCheckpointing = False,
    forget_buffer: Annotated[
        str | None,
        typer.Option(
            help="Where the second gradient lies: device, cpu or bf16. [default: device]",
            rich_help_panel=RESOURCES,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; flags win over it.", rich_help_panel=DATA)
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            help="Then push the result there, such as me/unlearned; asks the hub beforehand.",
            metavar="NAME",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    private: Private = False,
    set_: SetPairs = None,
    folders: Folders = NO_FOLDERS,
    earlier: Annotated[
        list[str] | None,
        typer.Option(
            help="What earlier requests forgot, to see that nothing of it comes back.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(help="Private key (Ed25519, PEM) to sign the receipt with.", rich_help_panel=OUTPUT),
    ] = None,
    data_key: Annotated[
        Path | None,
        typer.Option(help="Key that hides hashes of data ('ngdiff keygen --data').", rich_help_panel=OUTPUT),
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow-overlap", help="Go on though both sets share rows.", rich_help_panel=DATA),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the request, print what it would take, and run nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    save_steps: SaveSteps = None,
    save_minutes: SaveMinutes = None,
    resume: Resume = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    answers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Questions to answer before and after, for the report. [default: 12]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    report: Report = True,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, trackio or wandb; may be repeated.",
            autocompletion=completion.trackers,
            rich_help_panel=LOGS,
        ),
    ] = None,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Make a model forget one data set and keep another.

    Nothing but the four names is needed; the learning rate is found, and the run stops by itself:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output unlearned`

    Adapters only, which takes less memory:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output adapter --lora`

    From a settings file, with one of them changed:

    `ngdiff unlearn --config request.yaml --seed 1`

    Until a threshold of your own, with a log for a machine to read:

    `ngdiff unlearn --config request.yaml --stop-at extraction_strength=0.05 --log-format json`

    With curves to watch, and the result on the hub, for those alone whom you let see it:

    `ngdiff unlearn --config request.yaml --report-to tensorboard --push-to-hub me/unlearned --private`

    What it would take, with warnings, before anything runs:

    `ngdiff unlearn --config request.yaml --dry-run`

    Interrupted, it resumes where it was when the same command is given again.

    Exit code 0: forgotten. 3: saved, but the forget target was not reached (0 under torchrun and accelerate
    launch, whose last line then says so). 2: the request was wrong.
    """
    from ngdiff.cli.run_summary import close_unlearning

    flags = {key: value for key, value in context.params.items() if key not in NO_SETTINGS}
    given, faults = gather(config, set_ or [], flags)
    if dry_run:
        show_plan(*checked(given, faults, overwrite))
        return
    name, hidden = given.get("push_to_hub"), bool(given.get("private"))
    if name is not None:
        from ngdiff.hub.upload import push_faults

        faults += push_faults(name, hidden)
    if faults:
        raise RequestError([*faults, *_further_faults(given, overwrite)])
    record = _run(given, overwrite, resume)
    report_after(Path(str(given["output"])), report)
    close_unlearning(record, to_request(given))
    if name is not None:
        upload(Path(str(given["output"])), name, hidden, after_a_run=True)
    if record.stop["target_met"] is False:
        raise typer.Exit(of_a_missed_target())


def _further_faults(given: dict[str, Any], overwrite: bool) -> list[Fault]:
    """Return what else is wrong with a request that is refused already, as far as it says anything."""
    from ngdiff.unlearn import prepare

    if any(not given.get(name) for name in NEEDED):
        return []
    try:
        prepare(to_request(given, overwrite))
    except RequestError as error:
        return list(error.faults)
    return []


def _run(given: dict[str, Any], overwrite: bool, resume: bool | None) -> Any:
    from ngdiff.system.environment import keep_freed_memory
    from ngdiff.unlearn import unlearn as run

    keep_freed_memory()
    return run(to_request(given, overwrite, resume))
