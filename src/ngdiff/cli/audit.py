"""``ngdiff audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ngdiff.cli import completion
from ngdiff.cli.app import app
from ngdiff.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    RESOURCES,
    CacheDir,
    GradientNorms,
    Holdout,
    Log,
    LongText,
    MaxNewTokens,
    Overwrite,
    Precision,
    Quiet,
    Resamples,
    with_folders,
)
from ngdiff.data.benchmarks import NO_FOLDERS, Folders
from ngdiff.errors import Fault, RequestError
from ngdiff.system.events import log
from ngdiff.system.terminal import last_line

if TYPE_CHECKING:
    from ngdiff.audits.audit_result import AuditResult
    from ngdiff.audits.findings import Finding
    from ngdiff.audits.subject import Role
    from ngdiff.models.loading import Precision as PrecisionName

PREFIX = "Sure, here is the answer:"


@app.command()
@with_folders
def audit(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The unlearned model: folder, hub name, or 'smollm2'.")],
    output: Annotated[
        Path, typer.Option(help="JSON file to write, such as audit.json.", rich_help_panel=OUTPUT)
    ],
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="Data it was made to forget; tofu: forget01, forget05 or forget10.",
            autocompletion=completion.forget_sets,
            rich_help_panel=DATA,
        ),
    ] = None,
    retain: Annotated[
        list[str] | None, typer.Option(help="own: data it was made to keep.", rich_help_panel=DATA)
    ] = None,
    holdout: Holdout = None,
    suite: Annotated[str, typer.Option(help="Evaluation suite: own or tofu.", rich_help_panel=DATA)] = "own",
    audits: Annotated[
        str | None,
        typer.Option(
            help="Audits to run, separated by commas; see 'ngdiff ls audits'. [default: all]",
            rich_help_panel=METHOD,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The model before unlearning, to audit as well.", rich_help_panel=DATA),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The retrained model, to audit as well.", rich_help_panel=DATA)
    ] = None,
    folders: Folders = NO_FOLDERS,
    relearn_lr: Annotated[
        float, typer.Option(help="Learning rate of relearning.", rich_help_panel=METHOD)
    ] = 2e-5,
    relearn_epochs: Annotated[
        float, typer.Option(help="Number of relearning epochs.", rich_help_panel=METHOD)
    ] = 1.0,
    relearn_batch_size: Annotated[
        int, typer.Option(help="Batch size of relearning.", rich_help_panel=METHOD)
    ] = 8,
    bits: Annotated[
        str,
        typer.Option(help="Bit widths of quantised weights, separated by commas.", rich_help_panel=METHOD),
    ] = "8,4",
    prefix: Annotated[
        str, typer.Option(help="Words that each answer is forced to start with.", rich_help_panel=METHOD)
    ] = PREFIX,
    samples: Annotated[
        int, typer.Option(help="Number of answers sampled per question.", rich_help_panel=METHOD)
    ] = 64,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            help="Shadow model that saw neither forget set nor holdout, for membership. Repeatable.",
            rich_help_panel=DATA,
        ),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate/--no-generate", help="Also generate answers, for ROUGE.", rich_help_panel=METHOD
        ),
    ] = True,
    gradient_norms: GradientNorms = True,
    batch_size: Annotated[
        int, typer.Option(help="Sequences per forward pass.", rich_help_panel=RESOURCES)
    ] = 8,
    max_length: Annotated[
        int, typer.Option(help="Maximum sequence length in tokens.", rich_help_panel=RESOURCES)
    ] = 512,
    long_text: LongText = "split",
    max_new_tokens: MaxNewTokens = 200,
    seed: Annotated[
        int, typer.Option(help="Random seed of intervals and relearning.", rich_help_panel=METHOD)
    ] = 0,
    resamples: Resamples = 2000,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="Cache the results of single items.", rich_help_panel=RESOURCES
        ),
    ] = True,
    cache_dir: CacheDir = None,
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    log_format: Log = "auto",
) -> None:
    """Try to recover what a model seems to have forgotten.

    The audits are extraction, membership inference, inner layers, fluency, paraphrases, answer prefixes, the
    worst of many wordings, sampling, quantisation and relearning. Each is compared with never-seen text
    (--holdout) and with the retrained model (--reference), where they are given. The model is not changed.

    `ngdiff audit unlearned --forget forget.jsonl --retain retain.jsonl --output audit.json`

    `ngdiff audit unlearned --suite tofu --forget forget10 --reference retrained --output audit.json`
    """
    _refuse_early(context, overwrite, suite == "own" and bool(forget and retain), folders)
    from ngdiff.audits.audit import audit as run
    from ngdiff.audits.audit_request import AuditRequest
    from ngdiff.system.environment import keep_freed_memory

    keep_freed_memory()
    request = AuditRequest(
        model=model,
        output=output,
        forget=tuple(forget or ()),
        retain=tuple(retain or ()),
        holdout=tuple(holdout or ()),
        suite=suite,
        audits=_names(audits or ""),
        target=target,
        reference=reference,
        folders=folders,
        relearn_lr=relearn_lr,
        relearn_epochs=relearn_epochs,
        relearn_batch_size=relearn_batch_size,
        bits=_widths(bits),
        prefix=prefix,
        samples=samples,
        shadows=tuple(shadow or ()),
        generate=generate,
        gradient_norms=gradient_norms,
        batch_size=batch_size,
        max_length=max_length,
        long_text=long_text,
        max_new_tokens=max_new_tokens,
        seed=seed,
        resamples=resamples,
        cache=cache,
        cache_dir=cache_dir,
        precision=cast("PrecisionName", precision),  # checked with all the rest
        overwrite=overwrite,
    )
    show(run(request), output)


def _refuse_early(context: typer.Context, overwrite: bool, whole: bool, folders: Folders) -> None:
    """Refuse what shows without a library, where the data are own ones."""
    from ngdiff.cli.early import NUMBERS, Look, model_named, refuse_names, right, rows_named
    from ngdiff.evaluation.result import check_output_file
    from ngdiff.report.run_files import is_audit

    looks: dict[str, Look] = {**NUMBERS, "model": model_named(), "suite": right(lambda name: name == "own")}
    looks |= {
        "output": lambda path: check_output_file(path, overwrite, ours=is_audit, example="audit.json"),
        "audits": rows_named("--audits", "audit", "audits"),
        "target": model_named("--target"),
        "reference": model_named("--reference"),
    }
    if whole:
        refuse_names(context, looks, {name: f"--{name}" for name in ("forget", "retain", "holdout")}, folders)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(name) for name in _names(text))
    except ValueError:
        raise RequestError(Fault("--bits", f"is {text!r}", "Give 8, 4, or both with a comma")) from None


def show(result: AuditResult, output: Path) -> None:
    """Print the findings of each audit, and the notes."""
    from rich.markup import escape

    from ngdiff.system.progress import console

    console.print(finding_table(result))
    for note in result.notes:
        log.note(note)
        console.print(f"Note: {escape(note)}.", highlight=False)
    if all(found.found is None for found in result.findings):
        console.print("Nothing could be compared: give --reference or --holdout.", style="bold")
    legend = (
        "Figures are of the forget set, with 95% intervals over items; p is adjusted for all findings. "
        "audit.json has every figure of every audit."
    )
    console.print(legend, highlight=False)
    log.conclude(output=str(output))
    last_line(f"The result, with every other figure, is in {escape(str(output))}")


def finding_table(result: AuditResult) -> Any:
    """Build a table with one figure of every form of every audit: that of the finding, else the first."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table("audit", "before → under it", "beside", "reading", show_lines=True)
    firsts: dict[tuple[str, str], Finding] = {}
    for found in result.findings:
        first = firsts.setdefault((found.audit, found.form), found)
        if found.found and not first.found:
            firsts[found.audit, found.form] = found
    for found in firsts.values():
        change = f"{_number(found.before)} → " if found.before is not None else ""
        under = f"{change}{_number(found.after)}\n{_bounds(found.after_interval).strip()}"
        unseen = found.figure.replace("forget.", "holdout.", 1)
        named: tuple[tuple[str, Role, str], ...] = (
            ("never seen", "audited", unseen),
            ("retrained", "reference", found.figure),
            ("target", "target", found.figure),
        )
        values = [(title, _value(result, role, found, key)) for title, role, key in named]
        beside = "\n".join(f"{title} {value}" for title, value in values if value)
        figure = found.figure.removeprefix("forget.").replace("_", " ")
        cells = (
            f"{found.audit}: {found.form}\n{figure}",
            under,
            beside,
            reading(found) + _also(result, found),
        )
        shown.add_row(*map(escape, cells))
    return shown


def reading(found: Finding) -> str:
    """Describe a finding in words."""
    from ngdiff.audits import audits

    one = found.weakest
    if one is None or found.p_value is None:
        return "nothing to compare with: give --holdout or --reference"
    verdict = audits()[found.audit].says[0 if found.found else 1]
    if found.found and found.figure.startswith("forget.membership"):
        verdict += ", known better" if one.excess > 0 else ", known less: over-forgotten"
    size = f"{one.excess:+.3f}{_bounds(one.interval)} beside {one.beside}, p {found.p_value:.2g}"
    back = "" if found.recovered is None else f"; {found.recovered:.0%} of what was lost came back"
    return f"{verdict}: {size}{back}"


def _also(result: AuditResult, found: Finding) -> str:
    """List the other figures of the same form with findings."""
    others = [
        other.figure.removeprefix("forget.")
        for other in result.findings
        if (other.audit, other.form) == (found.audit, found.form) and other.found and other is not found
    ]
    return f"; also brought out: {', '.join(others)}" if others else ""


def _value(result: AuditResult, role: Role, found: Finding, key: str) -> str:
    outcome = result.outcomes[found.audit].get(role, {}).get(found.form)
    figure = None if outcome is None else outcome.figures.get(key)
    return _number(None if figure is None else figure.value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bounds(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
