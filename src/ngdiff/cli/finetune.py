"""``ngdiff finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ngdiff.cli.app import app

if TYPE_CHECKING:
    from ngdiff.models import Precision


@app.command()
def finetune(
    model: Annotated[str, typer.Option(help="Folder, hub name, or 'smollm2'.")],
    data: Annotated[
        list[str], typer.Option(help="File, folder, hub data set or tofu:NAME; may be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to make.")],
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 5.0,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per optimizer step.")] = 8,
    max_length: Annotated[int, typer.Option(min=8, help="Longest sequence, in tokens.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the order of the data.")] = 0,
    lora: Annotated[bool, typer.Option("--lora", help="Train LoRA adapters only.")] = False,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    tofu_dir: Annotated[Path | None, typer.Option(help="Folder with TOFU's JSON files.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
) -> None:
    """Make a target model (knows everything) or a retrained one (never saw the forget set).

    Example: `ngdiff finetune --model smollm2 --data tofu:full --output target`
    """
    from rich.markup import escape

    from ngdiff.environment import keep_freed_memory
    from ngdiff.finetune import FinetuneRequest
    from ngdiff.finetune import finetune as run
    from ngdiff.progress import console

    keep_freed_memory()
    request = FinetuneRequest(
        model=model,
        data=tuple(data),
        output=output,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        lora=lora,
        precision=cast("Precision", precision),  # checked with all the rest
        tofu_dir=tofu_dir,
        overwrite=overwrite,
    )
    console.print(f"The {'adapter' if lora else 'model'} is in {escape(str(run(request)))}", highlight=False)
