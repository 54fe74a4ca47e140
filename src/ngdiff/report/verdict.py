"""a run -> did it forget, did it keep, can it be trusted: three figures and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ngdiff.outcome import is_hidden, verdict
from ngdiff.report.cards import (
    Card,
    Interval,
    Status,
    Verdict,
    evaluated,
    evaluation_marks,
    in_words,
    items_interval,
    limit_of,
    marks_of,
    named,
    value_of,
)
from ngdiff.report.run_files import Run, dig, number, rows_of
from ngdiff.report.text import visible
from ngdiff.report.trust import judge_trust

MOST_NAMED = 12
"""Most items that the first card names."""
CONTRADICTORY, UNJUDGED, NOT_SHOWN = "Contradictory", "Cannot be judged", "Not shown"
"""Answers of the first card where the run's own closing line is not repeated."""


def judge(run: Run) -> Verdict:
    """Answer the three questions from what is known of a run, without guessing."""
    trust, told = with_audit(*judge_trust(run), run)
    if run.record is None:
        forget, first = _forget_by_evaluation(run)
        keep, second = _keep_by_evaluation(run)
    else:
        forget, first = _forget(run)
        keep, second = _keep(run)
    line = _line(run) if forget.answer not in (CONTRADICTORY, UNJUDGED, NOT_SHOWN) else ""
    sentence = " ".join(part for part in (line, first, second, told) if part)
    return Verdict(_overall(forget.status, keep.status, trust.status), sentence, (forget, keep, trust))


def _line(run: Run) -> str:
    """Return the run's own closing line, computed again from its figures, and what to do next."""
    if run.record is None:
        return ""
    stop, after = dig(run.record, "stop"), dig(run.record, "after", "forget")
    said = verdict(stop if isinstance(stop, Mapping) else {}, after if isinstance(after, Mapping) else {})
    return f"{said.line}. {said.advice}"


def _overall(forget: Status, keep: Status, trust: Status) -> Status:
    if "bad" in (forget, keep):
        return "bad"
    if "unknown" in (forget, keep):
        return "unknown"
    return "mixed" if trust != "good" or "mixed" in (forget, keep) else "good"


def _forget(run: Run) -> tuple[Card, str]:
    record = run.record or {}
    stop = dig(record, "stop") or {}
    measure = str(dig(stop, "target", "measure") or "extraction_strength")
    target, met = number(dig(stop, "target", "value")), dig(stop, "target_met")
    before, after = (number(dig(record, side, "forget", measure)) for side in ("before", "after"))
    bounds = items_interval(run, "forget", measure, after)
    marks = marks_of(
        ("now", "after unlearning", after, bounds),
        ("before", "before", before, None),
        ("target", "target", target, None),
        ("retrained", "retrained model", value_of(run.reference, f"forget.{measure}"), None),
        ("unseen", "text never seen", number(dig(record, "before", "never_seen", measure)), None),
    )
    if after is None and is_hidden(record):
        status, answer, sentence = _not_shown("forget", met)
    else:
        status, answer, sentence = _forgotten(stop, measure, before, after, target, met)
    lines = [_line_of_target(stop)] if target is not None else []
    lines += _lines_of_items(stop)
    lines += _beyond(measure, bounds, target, met)
    lines += evaluated(run, f"forget.{measure}")
    figure = f"{named(measure)} of the forget set"
    return Card("Did it forget?", answer, status, figure, marks, limit_of(measure, marks), lines), sentence


def _not_shown(name: str, met: Any) -> tuple[Status, str, str]:
    """Return status, answer and sentence of figures that the record leaves out on purpose."""
    said = {True: ", and the run says that the target was met", False: ", and the run missed its target"}
    text = f"The {name} set's figures are left out, since the data are hidden under a key{said.get(met, '')}."
    return ("bad" if met is False else "unknown"), NOT_SHOWN, text


def _forgotten(
    stop: Mapping[str, Any],
    measure: str,
    before: float | None,
    after: float | None,
    target: float | None,
    met: Any,
) -> tuple[Status, str, str]:
    """Return status, answer and sentence; the figures must confirm the run's own verdict."""
    what = f"{named(measure)} of the forget set"
    kept, code = stop.get("kept_step"), stop.get("code")
    if after is None:
        return "bad", UNJUDGED, f"Cannot be judged: the {what} has no finite value after the run."
    went = f"{what} went from {in_words(before)} to {in_words(after)}"
    if target is None:
        text = f"No forget target was set: {went}; so this run cannot say whether that is enough."
        return "unknown", "No target was set", text
    reached = after >= target if measure == "nll" else after <= target
    items = dig(stop, "target", "bounds") is not None  # then both items and the mean decide
    if (met and not reached) or (reached and not met and not items):
        said = f"the record says target_met={met!r}, but {went}, with the target {in_words(target)}"
        text = f"Cannot be trusted: {said}."
        return "bad", CONTRADICTORY, text
    if met and kept == 0:
        was = f"{what} was {in_words(before)} before the first step, within the target of {in_words(target)}"
        text = f"Nothing had to be forgotten: {was}; the model is unchanged."
        return "good", "Nothing changed", text
    if met:
        return "good", "Forgotten", f"The {went}, and the target was {in_words(target)}."
    return (
        "bad",
        "Not forgotten",
        f"The {went}, {_missed(stop, target, reached)}{_why(code, kept)}.",
    )


def _missed(stop: Mapping[str, Any], target: float, reached: bool) -> str:
    left, of = rows_of(stop.get("left")), _rows_there_are(stop)
    if not reached or not left:
        return f"and the target of {in_words(target)} was missed"
    return f"but {len(left)} of {of} items are left above their thresholds"


def _rows_there_are(stop: Mapping[str, Any]) -> str:
    of = number(dig(stop, "looked_at", "of"))
    return "?" if of is None else f"{of:.0f}"


def _lines_of_items(stop: Mapping[str, Any]) -> list[str]:
    """List the places of the items left, which contain none of their text."""
    if dig(stop, "target", "bounds") is None:
        return []
    left, of = rows_of(stop.get("left")), _rows_there_are(stop)
    lines = [f"Items above their thresholds: {len(left)} of {of}."]
    if left:
        named = "; ".join(visible(str(item.get("place"))) for item in left[:MOST_NAMED])
        more = f"; and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        lines.append(f"Left: {named}{more}.")
    if stop.get("target_met") is False and stop.get("price"):
        lines.append(f"By the last checks, {visible(stop['price'])}.")
    return lines


def _why(code: Any, kept: Any) -> str:
    reasons = {
        "floor": "; the run ended because a floor was met",
        "non-finite": "; the run ended because gradients were not finite",
        "stationary": "; the run ended because both gradients were zero",
        "end": "; all steps were used",
    }
    tail = (
        "; the model is unchanged"
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
        [f"The 95% interval reaches {in_words(end)}, beyond the target: on other items it might be missed."]
        if over
        else []
    )


def _forget_by_evaluation(run: Run) -> tuple[Card, str]:
    key = "forget.extraction_strength"
    marks = evaluation_marks(run, key)
    if not marks:
        return Card("Did it forget?", "Not measured", "unknown"), "Whether it forgot was not measured."
    now = marks[0]
    what = f"Extraction strength of the forget set is {in_words(now.value)}"
    retrained = value_of(run.reference, key)
    if retrained is None:
        text = f"{what}; there is no run and no retrained model to compare it with."
        return Card(
            "Did it forget?",
            "Nothing to compare with",
            "unknown",
            "extraction strength of the forget set",
            marks,
        ), text
    reached = (now.bounds[0] if now.bounds else now.value) <= retrained
    answer, status = (
        ("Yes, as if retrained", "good") if reached else ("More is left than in the retrained model", "bad")
    )
    first = "Forgotten" if reached else "Not forgotten"
    text = f"{first}: {what[0].lower()}{what[1:]}, the retrained model has {in_words(retrained)}."
    return Card("Did it forget?", answer, status, "extraction strength of the forget set", marks), text  # type: ignore[arg-type]


def _keep(run: Run) -> tuple[Card, str]:
    record = run.record or {}
    floor = number(dig(record, "stop", "utility_floor"))
    before, after = (number(dig(record, side, "retain", "probability")) for side in ("before", "after"))
    marks = marks_of(
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
        evaluated(run, "retain.probability") + evaluated(run, "model_utility") + evaluated(run, "utility")
    )
    floors = _floors(record)
    lines += [_line_of_floor(str(name), floor) for name, floor in floors.items()]
    if after is None and is_hidden(record):
        status, answer, sentence = _not_shown("retain", None)
    else:
        status, answer, sentence = _kept(before, after, floor, record)
    figure = "answer probability of the retain set"
    return Card("Did it keep the rest?", answer, status, figure, marks, 1.0, lines), sentence


def _floors(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = dig(record, "stop", "floors")
    return found if isinstance(found, Mapping) else {}


def _line_of_floor(name: str, floor: Any) -> str:
    start, least, end = (number(dig(floor, key)) for key in ("start", "least", "end"))
    fell = end is None or least is None or end < least
    figures = f"{in_words(start)} → {in_words(end)}, floor {in_words(least)}"
    return f"{visible(name)}: {figures}{' (broken)' if fell else ''}."


def _broken(record: Mapping[str, Any]) -> list[str]:
    """Return the floors that the kept weights are below."""
    floors = _floors(record)
    pairs = (
        (str(name), number(dig(floor, "end")), number(dig(floor, "least"))) for name, floor in floors.items()
    )
    return [visible(name) for name, end, least in pairs if end is None or least is None or end < least]


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
    broken = [name for name in _broken(record) if name != "retain"]
    if floor and after < floor:
        return "bad", "No", f"Not kept: {share}, under the floor of {in_words(floor)}."
    if broken:
        return "bad", "No", f"Not kept: {', '.join(broken)} ended under the floor; {share}{lost}."
    if not floor:
        return "unknown", "No floor was set", f"No utility floor was set; {share}{lost}."
    if lost:
        return "mixed", "Yes, with damage nearby", f"Kept: {share}{lost}."
    return "good", "Yes", f"Kept: {share}."


def _keep_by_evaluation(run: Run) -> tuple[Card, str]:
    for key in ("model_utility", "utility", "retain.probability"):
        marks = evaluation_marks(run, key)
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
            else "; its value before is not known."
        )
        if before is None:
            return Card("Did it keep the rest?", "Nothing to compare with", "unknown", name, marks), text
        good = marks[0].value >= 0.95 * before
        return Card(
            "Did it keep the rest?", "Yes" if good else "Not all", "good" if good else "bad", name, marks
        ), text
    return Card("Did it keep the rest?", "Not measured", "unknown"), "What it kept was not measured."


# ---- what audits found ----


WAYS: dict[str, str] = {
    "extraction": "letting it complete the texts word for word",
    "membership": "telling from its confidence which texts it had learned",
    "layers": "reading its inner layers",
    "fluency": "looking for broken language in its answers",
    "paraphrase": "asking in other words",
    "prefix": "beginning its answers with compliant words",
    "worst-case": "asking in many wordings and formats and keeping the best",
    "sampling": "drawing many answers instead of one",
    "quantisation": "storing its weights in fewer bits",
    "relearning": "training it a little on the texts again",
}
"""Each audit in words for readers who do not know its name."""

SHOWN = {"membership": "tells the texts apart", "fluency": "finds broken answers"}
"""Predicate of an audit that found something, where it does not bring something back."""


@dataclass(frozen=True)
class Audited:
    """The content of an audit, as far as its file is readable.

    Args:
        tried: names of the audits that were made and compared, in the table's order.
        alone: names of those that were made with nothing to compare with.
        came_back: name of an audit to the figures by which it found something.
        untried: names of the rest.
        notes: of the audit.
    """

    tried: Sequence[str]
    alone: Sequence[str]
    came_back: Mapping[str, Sequence[Mapping[str, Any]]]
    untried: Sequence[str]
    notes: Sequence[str]


def audited(run: Run) -> Audited | None:
    """Return the run's audit; None where there is none, or where it used other weights."""
    if run.audit is None or of_other_weights(run):
        return None
    findings = rows_of(run.audit.get("findings"))
    compared = {str(one.get("audit")) for one in findings if isinstance(one.get("found"), bool)}
    made = {str(one.get("audit")) for one in findings}
    came_back = {
        name: [one for one in findings if one.get("audit") == name and one.get("found") is True]
        for name in WAYS
    }
    notes = run.audit.get("notes")
    return Audited(
        [name for name in WAYS if name in compared],
        [name for name in WAYS if name in made - compared],
        {name: found for name, found in came_back.items() if found},
        [name for name in WAYS if name not in made],
        [str(note) for note in notes] if isinstance(notes, list) else [],
    )


def of_other_weights(run: Run) -> bool:
    """Return whether the audit names other weights than the run saved."""
    theirs = dig(run.audit, "provenance", "models", "audited", "sha256")
    ours = dig(run.record, "model", "sha256_after")
    return bool(ours and theirs and ours != theirs)


def with_audit(card: Card, sentence: str, run: Run) -> tuple[Card, str]:
    """Return the third card and its sentence, answered from the audit where there is one."""
    if run.audit is not None and of_other_weights(run):
        text = "The audit used other weights than this run saved, so it says nothing about this model."
        return replace(card, lines=[text, *card.lines]), sentence
    found = audited(run)
    if found is None:
        return card, sentence
    lines = [*_lines(found), *card.lines]
    if found.came_back:
        count, of = len(found.came_back), len(found.tried)
        answer = f"No, {count} of {of} audits found something"
        first, how = next(iter(found.came_back)), "brings back what was to be forgotten"
        text = f"But {WAYS[first]} {SHOWN.get(first, how)}."
        return replace(card, answer=answer, status="bad", lines=lines), text
    if not found.tried:
        text = "Audits were made, but without anything to compare with, so nothing follows from them."
        return replace(card, lines=lines), text if card.status == "unknown" else sentence
    if card.status == "bad":
        return replace(card, lines=lines), sentence
    text = (
        f"{len(found.tried)} ways to bring it back were tried; none showed more than for text that the model "
        "never saw."
    )
    answer = "Yes, as far as tried"
    return replace(card, answer=answer, status="good", lines=lines), text


def _lines(found: Audited) -> list[str]:
    lines = [_said("Tried", found.tried), _said("Tried without anything to compare with", found.alone)]
    for name, figures in found.came_back.items():
        lines.append(f"Found by {WAYS[name]}: {'; '.join(map(_figure, figures[:3]))}.")
    if found.tried and not found.came_back:
        lines.append("No more came back than from a model that never saw the texts.")
    lines.append(_said("Not tried", found.untried))
    return [line for line in lines if line]


def _said(title: str, names: Sequence[str]) -> str:
    return f"{title}: {'; '.join(WAYS[name] for name in names)}." if names else ""


def _figure(finding: Mapping[str, Any]) -> str:
    """Format one figure with its weakest comparison."""
    key = str(finding.get("figure")).removeprefix("forget.").replace("_", " ")
    text = f"{key} {in_words(number(finding.get('after')))} ({finding.get('form')})"
    compared = sorted(rows_of(finding.get("comparisons")), key=lambda one: number(one.get("p_value")) or 0.0)
    if compared:
        text += f", {in_words(number(compared[-1].get('excess')))} beside {compared[-1].get('beside')}"
    return text
