"""a run -> did it forget, did it keep, can it be trusted: three figures and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.evaluation.statistics import interval
from ngdiff.report.sources import Run, dig, number, rows_of

Status = Literal["good", "bad", "mixed", "unknown"]
Interval = tuple[float, float] | None
CHANCE = 0.5
SIGNIFICANT = 0.05
"""Forget quality below this tells the model from a retrained one."""

OVERSHOT = 2.0
"""A forget NLL so many times that of never-seen text counts as over-forgotten."""


@dataclass(frozen=True)
class Mark:
    """One value on a card's scale.

    Args:
        kind: ``now``, ``before``, ``target``, ``retrained``, ``unseen``, ``floor`` or ``chance``; picks its shape.
        label: what it is, in words.
        value: where it stands.
        bounds: its 95% interval, where known.
    """

    kind: str
    label: str
    value: float
    bounds: Interval = None


@dataclass(frozen=True)
class Card:
    """One of the three questions with its answer.

    Args:
        question: as a reader would ask it.
        answer: yes, no or what else it is, in a few words.
        status: how good that is.
        figure: name of the figure that answers; ``None`` where there is none.
        marks: the figure's values, the present one first.
        limit: the right end of the scale, whose left end is 0.
        lines: what a reader should know besides.
    """

    question: str
    answer: str
    status: Status
    figure: str | None = None
    marks: Sequence[Mark] = ()
    limit: float = 1.0
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """The first screen: one sentence, three cards."""

    status: Status
    sentence: str
    cards: Sequence[Card] = field(default_factory=tuple)


def judge(run: Run) -> Verdict:
    """Answer the three questions from what is known of a run, and no more than that."""
    trust, told = _trust(run)
    if run.record is None:
        forget, first = _forget_by_evaluation(run)
        keep, second = _keep_by_evaluation(run)
    else:
        forget, first = _forget(run)
        keep, second = _keep(run)
    sentence = " ".join(part for part in (first, second, told) if part)
    return Verdict(_overall(forget.status, keep.status, trust.status), sentence, (forget, keep, trust))


def _overall(forget: Status, keep: Status, trust: Status) -> Status:
    if "bad" in (forget, keep):
        return "bad"
    if "unknown" in (forget, keep):
        return "unknown"
    return "mixed" if trust != "good" or "mixed" in (forget, keep) else "good"


def in_words(value: float | None) -> str:
    """Return a figure with three digits that matter."""
    if value is None:
        return "unknown"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e4):
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def named(measure: str) -> str:
    """Return a measure's name in words."""
    return measure.replace("_", " ") if measure != "nll" else "negative log-likelihood"


# ---- did it forget? ----


def _forget(run: Run) -> tuple[Card, str]:
    record = run.record or {}
    stop = dig(record, "stop") or {}
    measure = str(dig(stop, "target", "measure") or "extraction_strength")
    target, met = number(dig(stop, "target", "value")), dig(stop, "target_met")
    before, after = (number(dig(record, side, "forget", measure)) for side in ("before", "after"))
    bounds = items_interval(run, "forget", measure, after)
    marks = _marks(
        ("now", "after unlearning", after, bounds),
        ("before", "before", before, None),
        ("target", "target", target, None),
        ("retrained", "retrained model", value_of(run.reference, f"forget.{measure}"), None),
        ("unseen", "text never seen", number(dig(record, "before", "never_seen", measure)), None),
    )
    status, answer, sentence = _forgotten(stop, measure, before, after, target, met)
    lines = [_line_of_target(stop)] if target is not None else []
    lines += _beyond(measure, bounds, target, met)
    lines += _evaluated(run, f"forget.{measure}")
    figure = f"{named(measure)} of the forget set"
    return Card("Did it forget?", answer, status, figure, marks, _limit(measure, marks), lines), sentence


def _forgotten(
    stop: Mapping[str, Any],
    measure: str,
    before: float | None,
    after: float | None,
    target: float | None,
    met: Any,
) -> tuple[Status, str, str]:
    """Return status, answer and sentence: whatever the run says of itself must be borne out by its figures."""
    what = f"{named(measure)} of the forget set"
    kept, code = stop.get("kept_step"), stop.get("code")
    if after is None:
        return "bad", "Cannot be judged", f"Cannot be judged: the {what} has no finite value after the run."
    went = f"{what} went from {in_words(before)} to {in_words(after)}"
    if target is None:
        text = f"No forget target was set: {went}; whether that is enough is not for this run to say."
        return "unknown", "No target was set", text
    if bool(met) != (after >= target if measure == "nll" else after <= target):
        text = f"Cannot be trusted: the record says target_met={met!r}, but {went}, with the target {in_words(target)}."
        return "bad", "Contradictory", text
    if met and kept == 0:
        text = f"Nothing had to be forgotten: {what} was {in_words(before)} before the first step, within the target of {in_words(target)}; the model is as it was."
        return "good", "Nothing to forget", text
    if met:
        return "good", "Yes", f"Forgotten: {went}, and the target was {in_words(target)}."
    return (
        "bad",
        "No, target missed",
        f"Not forgotten: {went}, and the target of {in_words(target)} was missed{_why(code, kept)}.",
    )


def _why(code: Any, kept: Any) -> str:
    reasons = {
        "floor": "; the run ended because utility fell under its floor",
        "non-finite": "; the run broke off because gradients were not finite",
        "stationary": "; the run ended because both gradients were zero",
        "end": "; all steps allowed were used",
    }
    tail = (
        "; the model is as it was"
        if kept == 0
        else f"; the best state above the floor, of step {kept}, was kept"
    )
    return reasons.get(str(code), "") + (tail if kept is not None else "")


def _line_of_target(stop: Mapping[str, Any]) -> str:
    source = str(stop.get("target_source") or "")
    given = "as given" if source == "given" else source
    return f"Target: {in_words(number(dig(stop, 'target', 'value')))}" + (f", {given}." if given else ".")


def _beyond(measure: str, bounds: Interval, target: float | None, met: Any) -> list[str]:
    if bounds is None or target is None or not met:
        return []
    end = bounds[0] if measure == "nll" else bounds[1]
    over = end < target if measure == "nll" else end > target
    return (
        [f"The 95% interval reaches {in_words(end)}, past the target: on other items it might be missed."]
        if over
        else []
    )


def _forget_by_evaluation(run: Run) -> tuple[Card, str]:
    key = "forget.extraction_strength"
    marks = _evaluation_marks(run, key)
    if not marks:
        return Card("Did it forget?", "Not measured", "unknown"), "Whether it forgot was not measured."
    now = marks[0]
    what = f"Extraction strength of the forget set is {in_words(now.value)}"
    retrained = value_of(run.reference, key)
    if retrained is None:
        text = f"{what}; there is no run and no retrained model to hold it against."
        return Card(
            "Did it forget?",
            "Nothing to compare with",
            "unknown",
            "extraction strength of the forget set",
            marks,
        ), text
    reached = (now.bounds[0] if now.bounds else now.value) <= retrained
    answer, status = (
        ("Yes, as if retrained", "good") if reached else ("More is left than after retraining", "bad")
    )
    text = f"{'Forgotten' if reached else 'Not forgotten'}: {what[0].lower()}{what[1:]}, the retrained model has {in_words(retrained)}."
    return Card("Did it forget?", answer, status, "extraction strength of the forget set", marks), text  # type: ignore[arg-type]


# ---- did it keep? ----


def _keep(run: Run) -> tuple[Card, str]:
    record = run.record or {}
    floor = number(dig(record, "stop", "utility_floor"))
    before, after = (number(dig(record, side, "retain", "probability")) for side in ("before", "after"))
    marks = _marks(
        ("now", "after unlearning", after, items_interval(run, "retain", "probability", after)),
        ("before", "before", before, None),
        ("floor", "floor", floor if floor else None, None),
    )
    lines = []
    if before and after is not None:
        lines.append(
            f"{100 * after / before:.1f}% of what it was, on retain examples held out from training."
        )
    lines += (
        _evaluated(run, "retain.probability") + _evaluated(run, "model_utility") + _evaluated(run, "utility")
    )
    status, answer, sentence = _kept(before, after, floor, record)
    figure = "answer probability of the retain set"
    return Card("Did it keep the rest?", answer, status, figure, marks, 1.0, lines), sentence


def _kept(
    before: float | None, after: float | None, floor: float | None, record: Mapping[str, Any]
) -> tuple[Status, str, str]:
    if after is None:
        return (
            "bad",
            "Cannot be judged",
            "The retain set's answer probability has no finite value after the run.",
        )
    share = (
        f"{100 * after / before:.1f}% of the retain set's answer probability is left"
        if before
        else "the retain set's answer probability before is not known"
    )
    unseen = [number(dig(record, side, "never_seen", "probability")) for side in ("before", "after")]
    lost = ""
    if unseen[0] and unseen[1] is not None and unseen[1] < 0.8 * unseen[0]:
        lost = f", though never-seen text of the same kind lost {100 * (1 - unseen[1] / unseen[0]):.0f}%"
    if not floor:
        return "unknown", "No floor was set", f"No utility floor was set; {share}{lost}."
    if after < floor:
        return "bad", "No", f"Not kept: {share}, under the floor of {in_words(floor)}."
    if lost:
        return "mixed", "Yes, with damage nearby", f"Kept: {share}{lost}."
    return "good", "Yes", f"Kept: {share}."


def _keep_by_evaluation(run: Run) -> tuple[Card, str]:
    for key in ("model_utility", "utility", "retain.probability"):
        marks = _evaluation_marks(run, key)
        if not marks:
            continue
        name = (
            named(key.replace("retain.", ""))
            if key != "retain.probability"
            else "answer probability of the retain set"
        )
        before = value_of(run.before, key)
        text = f"{name[0].upper()}{name[1:]} is {in_words(marks[0].value)}" + (
            f", and was {in_words(before)} before."
            if before is not None
            else "; what it was before is not known."
        )
        if before is None:
            return Card("Did it keep the rest?", "Nothing to compare with", "unknown", name, marks), text
        good = marks[0].value >= 0.95 * before
        return Card(
            "Did it keep the rest?", "Yes" if good else "Not all", "good" if good else "bad", name, marks
        ), text
    return Card("Did it keep the rest?", "Not measured", "unknown"), "What it kept was not measured."


# ---- can it be trusted? ----


def attacks(evaluation: EvaluationResult | None) -> dict[str, Figure]:
    """Return the membership attacks of an evaluation that have a value, by name."""
    prefix = "forget.membership."
    figures = {} if evaluation is None else evaluation.figures
    return {
        k.removeprefix(prefix): f for k, f in figures.items() if k.startswith(prefix) and f.value is not None
    }


def tells(figure: Figure, retrained: Figure | None) -> bool:
    """Say whether an attack tells the forget set apart, and not for the two sets' own difference alone.

    That is so where its 95% interval holds neither 1/2 nor, where known, what it reaches on the retrained
    model, which saw neither set.
    """
    if figure.value is None or figure.interval is None:
        return False
    low, high = figure.interval
    apart = not low <= CHANCE <= high
    if retrained is None or retrained.value is None:
        return apart
    return apart and not low <= retrained.value <= high


def _trust(run: Run) -> tuple[Card, str]:
    question = "Can it be trusted?"
    record_lines = _doubts(run)
    if run.evaluation is None:
        lines = [
            "Measure it: ngdiff evaluate, with --holdout and --reference where you have them.",
            *record_lines,
        ]
        unaudited = "No audit was made: membership inference and a retrained model could still tell."
        return Card(question, "Not audited", "unknown", lines=lines), unaudited
    if foreign(run):
        text = "The evaluation is of other weights than this run saved, so it vouches for nothing here."
        return Card(question, "Evaluation of another model", "bad", lines=[text, *record_lines]), text
    found, theirs = attacks(run.evaluation), attacks(run.reference)
    telling = {name: f for name, f in found.items() if tells(f, theirs.get(name))}
    quality = run.evaluation.figures.get("forget_quality")
    apart = quality is not None and quality.value is not None and quality.value < SIGNIFICANT
    lines = _attack_lines(found, telling) + _quality_lines(quality) + record_lines
    if not found:
        answer = "Told from a retrained model" if apart else "Partly audited"
        text = "Membership inference was not tried: no holdout was given."
        return Card(question, answer, "bad" if apart else "unknown", lines=lines), text
    name = max(telling or found, key=lambda key: abs((found[key].value or CHANCE) - CHANCE))
    strongest = found[name]
    marks = _marks(
        ("now", "this model", strongest.value, strongest.interval),
        ("before", "target model", value_of(run.before, f"forget.membership.{name}"), None),
        ("retrained", "retrained model", value_of(run.reference, f"forget.membership.{name}"), None),
        ("chance", "chance", CHANCE, None),
    )
    figure = f"AUC of membership inference by {attack_name(name)}"
    answer, status, text = _trusted(telling, name, strongest, apart, quality)
    return Card(question, answer, status, figure, marks, 1.0, lines), text


def _trusted(
    telling: Mapping[str, Figure], name: str, strongest: Figure, apart: bool, quality: Figure | None
) -> tuple[str, Status, str]:
    if telling:
        how = "still tells the forget set from text never seen"
        if (strongest.value or 0) < CHANCE:
            how = "tells the forget set from text never seen, by being less known"
        text = f"But membership inference {how}: {attack_name(name)} reaches an AUC of {in_words(strongest.value)}."
        return "No, membership inference still tells", "bad", text
    if apart and quality is not None:
        text = f"But its truth ratios differ from the retrained model's (forget quality {in_words(quality.value)})."
        return "Told from a retrained model", "bad", text
    text = "Membership inference does not tell the forget set from text never seen"
    if quality is not None and quality.value is not None:
        text += f", and its truth ratios cannot be told from the retrained model's (forget quality {in_words(quality.value)})"
    return "Yes, as far as measured", "good", f"{text}."


def attack_name(name: str) -> str:
    """Return an attack's name as papers print it."""
    return {"min_k": "min-k", "min_k_plus_plus": "min-k++", "gradient_norm": "gradient norm"}.get(name, name)


def _attack_lines(found: Mapping[str, Figure], telling: Mapping[str, Figure]) -> list[str]:
    if not found:
        return []
    names = ", ".join(attack_name(name) for name in telling)
    told = f": {names}" if telling else ""
    return [f"{len(telling)} of {len(found)} attacks tell the sets apart{told}."]


def _quality_lines(quality: Figure | None) -> list[str]:
    if quality is None:
        return []
    if quality.value is None:
        return [f"Forget quality: {quality.note}."] if quality.note else []
    verdict = "differs from" if quality.value < SIGNIFICANT else "is not told from"
    return [f"Forget quality {in_words(quality.value)}: the model {verdict} the retrained one."]


def _doubts(run: Run) -> list[str]:
    """Return what in the record itself should make a reader careful."""
    record = run.record or {}
    lines = []
    ours, unseen = (number(dig(record, "after", part, "nll")) for part in ("forget", "never_seen"))
    if ours is not None and unseen and ours > OVERSHOT * unseen:
        lines.append(
            f"Over-forgotten: the forget set's negative log-likelihood is {in_words(ours)} nats per token, "
            f"never-seen text has {in_words(unseen)}; answers may stand out by being broken."
        )
    skipped = sum(1 for step in rows_of(record.get("steps")) if step.get("skipped"))
    if skipped:
        lines.append(f"{skipped} steps were skipped; see the notes.")
    return lines


def foreign(run: Run) -> bool:
    """Say whether the evaluation names other weights than the run saved."""
    if run.record is None or run.evaluation is None:
        return False
    ours = dig(run.record, "model", "sha256_after")
    theirs = dig(run.evaluation.provenance, "model", "sha256")
    return bool(ours and theirs and ours != theirs)


# ---- figures ----


def value_of(evaluation: EvaluationResult | None, key: str) -> float | None:
    """Return a figure's value, where there is one."""
    found = None if evaluation is None else evaluation.figures.get(key)
    return None if found is None else found.value


def items_interval(run: Run, name: str, measure: str, value: float | None) -> Interval:
    """Return the 95% bootstrap interval of a set's figure after the run, from the recorded items.

    ``None`` where there are no items, or their mean is not the figure (a loss is averaged over tokens).
    """
    items = [
        number(dig(item, "after", measure))
        for item in rows_of(dig(run.answers, "items"))
        if item.get("set") == name
    ]
    values = [item for item in items if item is not None]
    if value is None or not values or len(values) != len(items):
        return None
    mean = sum(values) / len(values)
    if abs(mean - value) > 1e-3 + 0.01 * abs(value):
        return None
    return interval(values)


def _marks(*found: tuple[str, str, float | None, Interval]) -> list[Mark]:
    return [Mark(kind, label, value, bounds) for kind, label, value, bounds in found if value is not None]


def _evaluation_marks(run: Run, key: str) -> list[Mark]:
    figure = None if run.evaluation is None else run.evaluation.figures.get(key)
    if figure is None or figure.value is None:
        return []
    return _marks(
        ("now", "this model", figure.value, figure.interval),
        ("before", "target model", value_of(run.before, key), None),
        ("retrained", "retrained model", value_of(run.reference, key), None),
    )


def _evaluated(run: Run, key: str) -> list[str]:
    """Return one line that sets the evaluation's figure beside the target model's and the retrained one's."""
    marks = _evaluation_marks(run, key)
    if not marks or foreign(run):
        return []
    now = marks[0]
    bounds = "" if now.bounds is None else f" [{in_words(now.bounds[0])}, {in_words(now.bounds[1])}]"
    others = "".join(f", {mark.label} {in_words(mark.value)}" for mark in marks[1:])
    name = named(key.rpartition(".")[2])
    where = f" on {key.partition('.')[0]}" if "." in key else ""
    return [f"Evaluated: {name}{where} {in_words(now.value)}{bounds}{others}."]


def _limit(measure: str, marks: Sequence[Mark]) -> float:
    if measure != "nll":
        return 1.0
    return 1.1 * max([1.0, *(mark.value for mark in marks)])
