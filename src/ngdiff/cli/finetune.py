"""``ngdiff finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    RESOURCES,
    GradientCheckpointing,
    Log,
    LongText,
    Lora,
    Overwrite,
    Precision,
    Quiet,
    Resume,
    SaveMinutes,
    SaveSteps,
    TrustRemoteCode,
    with_folders,
)
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

if TYPE_CHECKING:
    from ngdiff.models.loading import Precision as PrecisionName


@app.command()
@with_folders
def finetune(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="Model: a folder, a hub name, or 'smollm2'.", rich_help_panel=DATA)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            help="Data: a file, a folder, a hub data set or tofu:NAME. Repeatable.",
            autocompletion=completion.sources,
            rich_help_panel=DATA,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the model to.", rich_help_panel=OUTPUT)],
    epochs: Annotated[
        float, typer.Option(help="Number of passes over the data.", rich_help_panel=METHOD)
    ] = 5.0,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=METHOD)] = 1e-4,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences per optimizer step.", rich_help_panel=RESOURCES)
    ] = 8,
    max_length: Annotated[
        int, typer.Option(min=8, help="Maximum sequence length in tokens.", rich_help_panel=RESOURCES)
    ] = 512,
    long_text: LongText = "split",
    seed: Annotated[int, typer.Option(help="Random seed of the data order.", rich_help_panel=METHOD)] = 0,
    lora: Lora = False,
    gradient_checkpointing: GradientCheckpointing = False,
    precision: Precision = "auto",
    folders: Folders = NO_FOLDERS,
    save_steps: SaveSteps = None,
    save_minutes: SaveMinutes = None,
    resume: Resume = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Train a target model (on all data) or a retrained model (without the forget set).

    `ngdiff finetune --model smollm2 --data tofu:full --output target`

    `ngdiff finetune --model smollm2 --data tofu:retain95 --output retrained --epochs 5 --lr 1e-4`

    Your own data, and adapters only:

    `ngdiff finetune --model org/name --data rows.jsonl --output adapter --lora`
    """
    from rich.markup import escape

    from ngdiff.cli.early import NUMBERS, model_named, new_folder, refuse_names

    place = new_folder(overwrite, {"--data": data}, folders)
    looks = {**NUMBERS, "model": model_named(output=output), "output": place}
    refuse_names(context, looks, {"data": "--data"}, folders)
    from ngdiff.finetune import FinetuneRequest
    from ngdiff.finetune import finetune as run
    from ngdiff.runs.saving import SAVE_MINUTES
    from ngdiff.system.environment import keep_freed_memory

    keep_freed_memory()
    request = FinetuneRequest(
        model=model,
        data=tuple(data),
        output=output,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        max_length=max_length,
        long_text=long_text,
        seed=seed,
        lora=lora,
        gradient_checkpointing=gradient_checkpointing,
        precision=cast("PrecisionName", precision),  # checked with all the rest
        folders=folders,
        overwrite=overwrite,
        save_steps=save_steps,
        save_minutes=SAVE_MINUTES if save_minutes is None else save_minutes,
        resume=resume,
        trust_remote_code=trust_remote_code,
    )
    folder = str(run(request))
    log.conclude(output=folder)
    last_line(f"The {'adapter' if lora else 'model'} is in {escape(folder)}")
