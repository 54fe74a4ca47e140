"""A run's record -> the model's card (``README.md``), in the hub's format.

It contains no name or text of a data set, only counts and hashes, since a file may be named after a person.
All other untrusted text is escaped, so that no name of a model or method becomes Markdown, HTML or YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.errors import inert
from ngdiff.outcome import verdict
from ngdiff.system.untrusted import MIB, Unreadable, read_within

if TYPE_CHECKING:
    from ngdiff.record import RunRecord

CARD = "README.md"
TAGS = ("machine-unlearning", "ngdiff", "arxiv:2410.22086")
MEASURES = {
    "probability": "answer probability",
    "extraction_strength": "extraction strength",
    "nll": "NLL (nats per token)",
}
SETS = {"forget": "Forget set", "retain": "Retain set, held out", "never_seen": "Never-seen text"}
FLOOR_NAMES = {
    "retain": "retain set, held out: answer probability",
    "general.facts": "general facts: probability of the true answer",
    "general.answers": "general facts: answered correctly",
    "general.text": "general text: answer probability",
    "language": "language of the forget answers: probability",
}
MOST_ROWS = 20
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def model_card(record: RunRecord, name: str, adapters: bool) -> str:
    """Return the card of an unlearned model.

    Args:
        record: complete, as it goes to ``record.json``.
        name: of the model; that of its folder.
        adapters: whether the folder holds adapters rather than a whole model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = str(record.model.get("name", ""))
    known = _of_the_base(base)
    data = ModelCardData(
        base_model=known.get("base_model"),
        license=known.get("license"),
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        model_name=inert(name) or "unlearned",
        eval_results=_eval_results(record),
        base_model_relation=("adapter" if adapters else "finetune") if "base_model" in known else None,
    )
    sections = (
        _what(record, base, adapters),
        _settings(record),
        _data(record),
        _figures(record),
        _limits(record, adapters),
        _checking(record, adapters),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _of_the_base(name: str) -> dict[str, str]:
    """Return the starting model's name on the hub and its licence, as far as stated."""
    from ngdiff.models.loading import SMOLLM2_HUB
    from ngdiff.models.model_names import SMOLLM2

    if name == SMOLLM2:
        return {"base_model": SMOLLM2_HUB, "license": "apache-2.0"}
    found = {}
    folder = Path(name).expanduser()
    if not folder.is_dir() and HUB_NAME.fullmatch(name):
        found["base_model"] = name
    stated = _front_matter(folder if folder.is_dir() else None, name)
    for key, pattern in (("license", LICENSE), ("base_model", HUB_NAME)):
        value = stated.get(key)
        if key not in found and isinstance(value, str) and pattern.fullmatch(value):
            found[key] = value
    return found


def _front_matter(folder: Path | None, name: str) -> Mapping[str, Any]:
    """Return the metadata of the base's own card, from its folder or from the hub's cache on this disk."""
    import yaml
    from huggingface_hub import try_to_load_from_cache

    card = None if folder is None else str(folder / CARD)
    if card is None and HUB_NAME.fullmatch(name):
        cached = try_to_load_from_cache(name, CARD)
        card = cached if isinstance(cached, str) else None
    if card is None:
        return {}
    try:
        text = read_within(Path(card), MIB).decode("utf-8")
    except (Unreadable, UnicodeDecodeError):
        return {}
    matter = re.match(r"---\r?\n(.{0,20000}?)\r?\n---", text, re.DOTALL)
    try:
        loaded = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _eval_results(record: RunRecord) -> list[Any]:
    from huggingface_hub import EvalResult

    results = []
    for part, title in (("forget", SETS["forget"]), ("retain", SETS["retain"])):
        digest = record.data.get(part, {}).get("sha256", "")
        for measure, named in MEASURES.items():
            value = record.after.get(part, {}).get(measure)
            if value is not None and value - value == 0:
                results.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=f"sha256-{digest[:16]}",
                        dataset_name=title,
                        metric_type=measure,
                        metric_name=named,
                        metric_value=round(value, 6),
                    )
                )
    return results


def escaped(text: str) -> str:
    """Return text that Markdown shows literally, on one line."""
    plain = inert(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#!|~$@]|:(?=//)|(?<=www)\.)", r"\\\1", plain, flags=re.IGNORECASE)


def _what(record: RunRecord, base: str, adapters: bool) -> str:
    shown = base if HUB_NAME.fullmatch(base) and not Path(base).exists() else Path(base).name or base
    made = "LoRA adapters that make" if adapters else "This model is"
    rest = "forget a data set" if adapters else "after it was made to forget a data set"
    said = verdict(record.stop, record.after.get("forget", {}))
    version = escaped(str(record.versions.get("ngdiff", "")))
    return (
        f"# Unlearned {'adapter' if adapters else 'model'}\n\n"
        f"{made} {escaped(shown)} {rest}, by NGDiff {version} "
        "([normalised gradient difference](https://arxiv.org/abs/2410.22086)). "
        f"The run ended: {escaped(_unnamed(str(record.stop.get('reason', '')), record))}.\n\n"
        f"**{escaped(said.line)}.** {escaped(said.advice)}"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _settings(record: RunRecord) -> str:
    settings, cost = record.settings, record.cost
    rate, moving = settings.get("learning_rate"), settings.get("step_size", "fixed") != "fixed"
    rows = [
        ("method", settings.get("method")),
        ("forget loss", settings.get("forget_loss")),
        ("retain loss", settings.get("retain_loss")),
        ("weighting rule", settings.get("rule")),
        ("learning rate", "automatic" if rate is None or moving else f"{rate:g}"),
        ("optimizer", settings.get("optimizer")),
        ("examples a step, of each set", settings.get("examples_per_step") or settings.get("batch_size")),
        ("seed", settings.get("seed")),
        (
            "steps",
            f"{cost.get('steps')}, of which the state after step {record.stop.get('kept_step')} was kept",
        ),
        ("stop at", settings.get("stop_at")),
        ("utility floor", settings.get("keep_utility")),
    ]
    return "## Method\n\n" + _table(
        ("setting", "value"), [(name, escaped(str(value))) for name, value in rows if value is not None]
    )


def _data(record: RunRecord) -> str:
    titles = {"forget": "to forget", "retain": "to keep", "holdout": "never seen by the model"}
    rows = [
        (title, _counted(record.data[part]), f"`{record.data[part]['sha256']}`")
        for part, title in titles.items()
        if part in record.data
    ]
    text = "The data are named by the SHA-256 of their content. Their language was not recorded."
    return f"## Data\n\n{text}\n\n" + _table(("set", "examples", "SHA-256"), rows)


def _counted(data: Mapping[str, Any]) -> str:
    """Return how many texts a set has and, where they were split, in how many pieces."""
    pieces = data.get("pieces")
    return str(data["examples"]) + (f" in {pieces} pieces" if pieces else "")


def _figures(record: RunRecord) -> str:
    rows = []
    for part, title in SETS.items():
        before, after = record.before.get(part, {}), record.after.get(part, {})
        if before and after:
            rows.append((title, *(f"{_number(before, key)} → {_number(after, key)}" for key in MEASURES)))
    text = "Before and after, as the run itself measured them on every row of each set:"
    figures = f"## Figures\n\n{text}\n\n" + _table(("set", *MEASURES.values()), rows)
    return "\n\n".join([figures, *_floors(record), *_left(record)])


def _floors(record: RunRecord) -> list[str]:
    """Return the table of what had to be kept; sets named after files are numbered."""
    floors, rows, number = record.stop.get("floors") or {}, [], 0
    for name, floor in floors.items():
        number += name not in FLOOR_NAMES
        title = FLOOR_NAMES.get(name, f"another set to keep, number {number}")
        rows.append((title, *(_number(floor, key) for key in ("start", "least", "end"))))
    text = "What had to be kept, and the floors that every kept state had to meet:"
    return [f"{text}\n\n" + _table(("figure", "start", "floor", "end"), rows)] if rows else []


def _left(record: RunRecord) -> list[str]:
    """List the items left by their rows alone."""
    left, of = record.stop.get("left"), (record.stop.get("looked_at") or {}).get("of")
    if left is None or record.stop.get("target_met") is None:
        return []
    text = f"Items of the forget set that are left above their thresholds: {len(left)} of {of}"
    rows = ", ".join(str(int(item["row"])) for item in left[:MOST_ROWS])
    more = f" and {len(left) - MOST_ROWS} more" if len(left) > MOST_ROWS else ""
    return [f"{text} (rows {rows}{more})." if left else f"{text}."]


def _number(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    return "-" if value is None else f"{value:.3f}"


def _limits(record: RunRecord, adapters: bool) -> str:
    lines = [
        "Forgotten means that the figures above fell, not that nothing is left. Training on a little of the "
        "forgotten data, other wordings, other languages or a change of precision can bring knowledge back. "
        "No such attack is part of this card.",
        "What was kept was measured on the sets named above. Abilities that they do not show were not looked "
        "at.",
        "Any flaw of the starting model may be a flaw of this one.",
    ]
    if record.stop.get("target_met") is False:
        lines.insert(
            0, "The forget target was not reached: the forget set is still better known than it should be."
        )
    if adapters:
        lines.insert(
            0,
            "The starting model still knows the forget set. Without the adapters it is back; "
            "to share a model that has forgotten, merge them (`ngdiff merge`) and share the merged one.",
        )
    lines += [f"Note of the run: {escaped(_unnamed(note, record))}." for note in record.notes]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _unnamed(text: str, record: RunRecord) -> str:
    """Return a text of the record without names of files, in names of sets and places of rows."""
    for name in record.stop.get("floors") or {}:
        text = text.replace(f"the set to keep {name!r}", "a set to keep")
    text = re.sub(r"(recorded answers are broken \([^)]*\)): .*$", r"\1", text, flags=re.DOTALL)
    return re.sub(r" \(first: .*\)$", "", text, flags=re.DOTALL)


def _checking(record: RunRecord, adapters: bool) -> str:
    hashes = [
        (title, f"`{record.model[key]}`")
        for key, title in (("sha256_before", "weights before"), ("sha256_after", "weights after"))
        if record.model.get(key)
    ]
    what = "adapters included" if adapters else "by name, shape, type and bytes"
    text = f"`record.json` holds every step, probe and check. SHA-256 of the weights, {what}:"
    return f"## To check\n\n{text}\n\n" + _table(("", "SHA-256"), hashes)
