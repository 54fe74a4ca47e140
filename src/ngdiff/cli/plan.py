"""``ngdiff plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.options import METHOD, RESOURCES
from ngdiff.errors import Fault, Faults
from ngdiff.settings import DEFAULT_METHOD

if TYPE_CHECKING:
    from ngdiff.planning.memory import Estimate

NAMES = {
    "weights": "weights",
    "gradient": "gradient of the retain loss",
    "second_buffer": "second buffer: forget gradient, weights during probes",
    "moments": "optimizer's two moments",
    "activations": "activations of one micro-batch",
    "head": "logits of labelled positions and their gradient",
    "starting_head": "starting model's output head",
    "communication": "communication between GPUs",
    "context": "CUDA context and workspaces, from experience",
}


@app.command()
def plan(
    model: Annotated[
        str, typer.Option(help="Model: a folder, a hub name, or 'smollm2'. Only its configuration is read.")
    ],
    gpus: Annotated[int, typer.Option(help="Number of GPUs.", rich_help_panel=RESOURCES)] = 1,
    memory: Annotated[float, typer.Option(help="Memory per GPU in GiB.", rich_help_panel=RESOURCES)] = 80.0,
    method: Annotated[
        str,
        typer.Option(
            help="Unlearning method; see 'ngdiff ls methods'.",
            autocompletion=completion.methods,
            rich_help_panel=METHOD,
        ),
    ] = DEFAULT_METHOD,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train LoRA adapters.", rich_help_panel=RESOURCES)
    ] = False,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora",
            help="Train LoRA adapters, with the model's weights in 4 bits.",
            rich_help_panel=RESOURCES,
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Examples of each set per step and GPU.", rich_help_panel=RESOURCES)
    ] = 8,
    max_length: Annotated[
        int, typer.Option(help="Length of the longest example in tokens.", rich_help_panel=RESOURCES)
    ] = 512,
    answer_length: Annotated[
        int | None,
        typer.Option(help="Answer tokens of the longest example. [default: all]", rich_help_panel=RESOURCES),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Recompute activations in the backward pass.",
            rich_help_panel=RESOURCES,
        ),
    ] = False,
    forget_buffer: Annotated[
        str,
        typer.Option(
            help="Where the second gradient is kept: device, cpu or bf16.", rich_help_panel=RESOURCES
        ),
    ] = "device",
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp/--ddp",
            help="Shard the model across GPUs, or keep a copy on each.",
            rich_help_panel=RESOURCES,
        ),
    ] = False,
    precision: Annotated[
        str, typer.Option(help="bf16 or fp32. Weights are float32 in both cases.", rich_help_panel=RESOURCES)
    ] = "bf16",
) -> None:
    """Estimate the memory of a run on each GPU, and suggest savings if it does not fit. Nothing is loaded.

    Example: `ngdiff plan --model my-model --gpus 8 --memory 80 --fsdp`
    """
    from ngdiff.errors import Fault, RequestError
    from ngdiff.planning.memory import Estimator, Plan, builder, configuration, with_method
    from ngdiff.requested import find_source

    counts = {
        "--gpus": gpus,
        "--batch-size": batch_size,
        "--answer-length": 1 if answer_length is None else answer_length,
    }
    faults = Faults(_faults(counts, max_length, memory, forget_buffer, precision))
    if qlora and fsdp:
        fix = "Omit one of the two: without --fsdp, each GPU holds all weights in 4 bits"
        faults.append(Fault("--fsdp", "4-bit weights cannot be sharded across GPUs", fix))
    source = find_source(model, faults)
    asked = Plan(
        adapters="qlora" if qlora else "lora" if lora else "none",
        batch_size=batch_size,
        length=max_length,
        answer=answer_length,
        checkpointing=gradient_checkpointing,
        forget_buffer=forget_buffer,  # type: ignore[arg-type]  # checked below with all the rest
        bf16=precision == "bf16",
        devices=gpus,
        sharding="fsdp" if fsdp else "ddp",
    )
    with faults.collecting():
        asked = with_method(asked, method)
    if faults or source is None:
        raise RequestError(faults)
    estimator = Estimator(builder(configuration(source)))
    found = estimator.estimate(asked)
    _show(found, estimator.shapes(asked).parameters, estimator.shapes(asked).trainable, memory)
    if not found.fits(memory):
        _show_savings(list(estimator.until_it_fits(asked, memory)), memory)


def _faults(
    counts: dict[str, int], max_length: int, memory: float, forget_buffer: str, precision: str
) -> list[Fault]:
    from ngdiff.errors import Fault, unknown_name
    from ngdiff.planning.memory import ForgetBuffer
    from ngdiff.settings.faults import positive_fault

    faults = [
        Fault(flag, f"{value} is too small", "Give a whole number of at least 1")
        for flag, value in counts.items()
        if value < 1
    ]
    if max_length < 8:
        faults.append(Fault("--max-length", f"{max_length} tokens are too few", "Give at least 8"))
    fault = positive_fault("--memory", memory, "such as 80")
    faults += [fault] if fault is not None else []
    for flag, name, known in (
        ("--forget-buffer", forget_buffer, get_args(ForgetBuffer)),
        ("--precision", precision, ("bf16", "fp32")),
    ):
        if name not in known:
            faults.append(unknown_name(flag, "choice", name, known))
    return faults


def _show(found: Estimate, parameters: int, trainable: int, memory: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from ngdiff.planning.memory import GIB

    table = Table("on each GPU", title=None)
    table.add_column("GiB", justify="right")
    for name, value in vars(found.parts).items():
        if value:
            table.add_row(NAMES[name], f"{value / GIB:.2f}")
    table.add_section()
    table.add_row("together", f"{found.parts.total / GIB:.2f}")
    out = Console()
    out.print(table)
    out.print(f"{parameters:,} parameters, {trainable:,} of them train.", highlight=False)
    out.print(f"Ordinary memory of the machine: about {found.host / GIB:.1f} GiB.", highlight=False)
    share = 100 * found.parts.total / (memory * GIB)
    verdict = "It fits" if found.fits(memory) else "It does not fit"
    out.print(f"{verdict}: {share:.0f}% of {memory:g} GiB.", highlight=False)


def _show_savings(tried: list[Estimate], memory: float) -> None:
    from rich.console import Console

    from ngdiff.planning.memory import GIB

    out = Console()
    out.print("Enabled one after another:", highlight=False)
    for found in tried:
        mark = "[green]fits[/green]" if found.fits(memory) else "does not fit"
        total = found.parts.total / GIB
        out.print(f"  and {found.words}: {total:.2f} GiB, {mark}", highlight=False, soft_wrap=True)
    if not tried or not tried[-1].fits(memory):
        out.print("Nothing more can be enabled: use more or larger GPUs, with --fsdp.", highlight=False)
    elif tried[-1].plan.batch_size < 8:
        out.print(
            "To reduce the batch without changing the step, add --set gradient_accumulation_steps=N.",
            highlight=False,
        )
