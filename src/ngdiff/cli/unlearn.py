"""``ngdiff unlearn``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app, of_a_missed_target
from ngdiff.cli.options import (
    DATA,
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
    SetPairs,
    SettingsCommand,
    TrustRemoteCode,
)
from ngdiff.cli.push import upload
from ngdiff.cli.report import report_after
from ngdiff.cli.settings import NEEDED, gather, to_request
from ngdiff.cli.validate import checked, show_plan
from ngdiff.errors import Fault, RequestError
from ngdiff.settings import DEFAULT_METHOD

NO_SETTINGS = ("config", "set_", "overwrite", "resume", "quiet", "log_format", "report", "dry_run")
"""Parameters of the command that are not settings of the run."""


@app.command(cls=SettingsCommand)
def unlearn(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="Model to change: a folder, a hub name, or 'smollm2'.", rich_help_panel=DATA),
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="Data to forget: a file, a folder, a hub data set, tofu:NAME or muse:NAME.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(help="Data to keep.", autocompletion=completion.sources, rich_help_panel=DATA),
    ] = None,
    holdout: Holdout = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="What columns of own data stand for, such as question=instruction,answer=output.",
            metavar="OURS=THEIRS,...",
            rich_help_panel=DATA,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Unlearning method; see 'ngdiff ls methods'. [default: {DEFAULT_METHOD}]",
            autocompletion=completion.methods,
            rich_help_panel=METHOD,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Fixed learning rate. [default: the method's]", rich_help_panel=METHOD),
    ] = None,
    forget_loss: Annotated[
        str | None,
        typer.Option(
            help="Forget loss; see 'ngdiff ls losses'. [default: the method's]",
            autocompletion=completion.forget_losses,
            rich_help_panel=METHOD,
        ),
    ] = None,
    retain_loss: Annotated[
        str | None,
        typer.Option(
            help="Retain loss; see 'ngdiff ls losses'. [default: the method's]",
            autocompletion=completion.retain_losses,
            rich_help_panel=METHOD,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Rule that weights the two gradients; see 'ngdiff ls rules'. [default: the method's]",
            autocompletion=completion.rules,
            rich_help_panel=METHOD,
        ),
    ] = None,
    stop_at: Annotated[
        str | None,
        typer.Option(
            help="Forget target: auto, never-seen-loss, none, or a threshold such as "
            "extraction_strength=0.05. [default: the method's, usually auto]",
            autocompletion=completion.forget_targets,
            rich_help_panel=STOPPING,
        ),
    ] = None,
    keep_utility: Annotated[
        float | None,
        typer.Option(
            help="Lowest share of its starting value that each utility figure may fall to; 0 for no floor. "
            "[default: the method's, usually 0.98]",
            rich_help_panel=STOPPING,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Further data to keep, with a floor of its own. Repeatable.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Maximum number of passes over the forget set. [default: the method's, usually 20]",
            rich_help_panel=STOPPING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Examples of each set per step. [default: 8 to 32, by the size of the forget set]",
            rich_help_panel=RESOURCES,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed. [default: 0]", rich_help_panel=METHOD)
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Maximum sequence length in tokens. [default: 512]", rich_help_panel=RESOURCES),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write the result to.", rich_help_panel=OUTPUT)
    ] = None,
    lora: Lora = False,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora",
            help="Like --lora, with the model's weights in 4 bits; needs bitsandbytes.",
            rich_help_panel=RESOURCES,
        ),
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Numerical precision: auto, bf16 or fp32. [default: auto]",
            autocompletion=completion.precisions,
            rich_help_panel=RESOURCES,
        ),
    ] = None,
    gradient_checkpointing: GradientCheckpointing = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings. Flags and --set override it.", rich_help_panel=DATA),
    ] = None,
    set_: SetPairs = None,
    earlier: Annotated[
        list[str] | None,
        typer.Option(
            help="Data that earlier requests forgot, to check that it stays forgotten.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the request and print its cost without running it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    resume: Resume = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    report: Report = True,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Make a model forget one data set and keep another.

    Only model, data and output are required. The learning rate is found automatically, and the run stops when
    the data are forgotten:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output unlearned`

    Train LoRA adapters only, which takes less memory:

    `ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output adapter --lora`

    Read the settings from a file, and change one of them:

    `ngdiff unlearn --config request.yaml --seed 1`

    Stop at a threshold of your own, and write the log as JSON:

    `ngdiff unlearn --config request.yaml --stop-at extraction_strength=0.05 --log-format json`

    Follow the run in TensorBoard, and push the result to a private repository on the hub:

    `ngdiff unlearn --config run.yaml --set report_to=tensorboard --set push_to_hub=me/x --set private=true`

    Check the request and its cost before running it:

    `ngdiff unlearn --config request.yaml --dry-run`

    Settings without a flag are given with --set, such as --set max_steps=100, --set save_steps=50,
    --set sign=key.pem or --set floors.general=0.95. An interrupted run resumes when the same command is given
    again.

    Exit code 0: forgotten. 3: saved, but the forget target was not reached (0 under torchrun and accelerate
    launch, whose last line then says so). 2: the request was wrong.
    """
    from ngdiff.cli.early import refuse_early
    from ngdiff.cli.run_summary import close_unlearning

    flags = {key: value for key, value in context.params.items() if key not in NO_SETTINGS}
    given, faults = gather(config, set_ or [], flags)
    if dry_run:
        show_plan(*checked(given, faults, overwrite))
        return
    refuse_early(given, faults, overwrite)
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
    """Return further faults of a request that is already refused, so that all are reported at once."""
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
