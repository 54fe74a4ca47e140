"""a finished run -> its verdict, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ngdiff.cli.app import app
from ngdiff.data.benchmarks import BENCHMARKS
from ngdiff.outcome import verdict
from ngdiff.system.events import log
from ngdiff.system.terminal import console, last_line

if TYPE_CHECKING:
    from ngdiff.record import RunRecord
    from ngdiff.unlearn import UnlearnRequest


def close_unlearning(record: RunRecord, request: UnlearnRequest) -> None:
    """Print what a run did, where it is, and what to do next."""
    console.print(_figures(record))
    stop, cost = record.stop, record.cost
    if stop.get("floors"):
        console.print(_floors(stop["floors"]))
    _say(f"Ended: {stop['reason']}.")
    for line in left_lines(stop):
        _say(line)
    _say(
        f"{cost['steps']} steps, {cost['seconds']:.0f} s, "
        f"peak memory {max(cost['peak_memory_gib'].values()):.1f} GiB; kept: step {stop['kept_step']}."
    )
    for note in record.notes:
        log.note(note)
        _say(f"Note: {note}.")
    following = next_commands(record, request)
    if following:
        _say("Next:")
    for words, why in following:
        console.print(f"  {escape(words)}  [dim]# {escape(why)}[/dim]", highlight=False, soft_wrap=True)
    log.conclude(output=str(request.output), stop=stop, next=[words for words, _ in following])
    kind = "adapter" if request.adapters else "model"
    said = verdict(stop, record.after["forget"])
    _say(said.advice)
    last_line(f"{said.line}: the {kind}, record.json and receipt.json are in {escape(str(request.output))}")


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _figures(record: RunRecord) -> Table:
    table = Table("set", title=None)
    for name in ("probability", "extraction strength", "NLL (nats/token)"):
        table.add_column(name, justify="right")
    for part, title in (("forget", "forget"), ("retain", "retain, held out"), ("never_seen", "never seen")):
        cells = [
            f"{_number(record.before, part, key)} → {_number(record.after, part, key)}"
            for key in ("probability", "extraction_strength", "nll")
        ]
        table.add_row(title, *cells)
    return table


def _floors(floors: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("must be kept", title=None)
    for name in ("start", "floor", "end", ""):
        table.add_column(name, justify="right")
    for name, floor in floors.items():
        cells = [f"{floor[key]:.3f}" for key in ("start", "least", "end")]
        table.add_row(escape(name), *cells, "" if floor["end"] >= floor["least"] else "broken")
    return table


def left_lines(stop: Mapping[str, Any], most: int = 10) -> list[str]:
    """Print which items are left, by place, and what further steps would cost."""
    left = stop.get("left") or []
    lines = []
    if stop.get("target_met") is not None:
        of = (stop.get("looked_at") or {}).get("of", "?")
        text = f"Left above their thresholds: {len(left)} of {of} items"
        named = "; ".join(str(item["place"]) for item in left[:most])
        more = f"; and {len(left) - most} more, all in record.json" if len(left) > most else ""
        lines.append(f"{text}: {named}{more}." if left else f"{text}.")
        whole = sum(bool(item.get("whole")) for item in left)
        if whole:
            lines.append(f"Reproduced word for word: {whole} of them.")
    if stop.get("target_met") is False and stop.get("price"):
        lines.append(f"By the last checks, {stop['price']}.")
    return lines


def _number(figures: dict[str, Any], part: str, key: str) -> str:
    value = figures[part].get(key)  # a record read back may lack it, where data are hidden under a key
    return "-" if value is None else f"{value:.3f}"


def next_commands(record: RunRecord, request: UnlearnRequest) -> list[tuple[str, str]]:
    """Return the commands that make sense now, ready to be pasted, each with why."""
    output = str(request.output)
    found = []
    if request.adapters:
        named = ["--model", request.model] if request.qlora else []
        words = ["merge", output, *named, "--output", f"{output}-merged"]
        found.append((words, f"fold the adapter into {request.model}"))
    found.append((["ask", output, "--before", request.model], "ask both models"))
    found.append((["check", output, *_folders(request)], "evaluate, audit and report, with one verdict"))
    found.append((["verify", output], "check what record.json says"))
    if record.stop.get("target_met") is False:
        kept = [word for source in request.keep for word in ("--keep", source)]
        again = ["unlearn", *_data(request), *kept, "--model", output, "--output", f"{output}-2"]
        found.append((again, "not forgotten yet: go on from here"))
    exist = commands()
    return [(shlex.join(["ngdiff", *words]), why) for words, why in found if words[0] in exist]


def _data(request: UnlearnRequest) -> list[str]:
    pairs: list[tuple[str, Any]] = [("--forget", source) for source in request.forget]
    pairs += [("--retain", source) for source in request.retain]
    pairs += [("--holdout", source) for source in request.holdout]
    return [str(word) for pair in pairs for word in pair] + _folders(request)


def _folders(request: UnlearnRequest) -> list[str]:
    given = [(BENCHMARKS[name].option, folder) for name, folder in request.folders.items() if folder]
    return [str(word) for pair in given for word in pair]


def commands() -> set[str]:
    """Return the names of the commands there are."""
    return {str(info.name or getattr(info.callback, "__name__", "")) for info in app.registered_commands}
