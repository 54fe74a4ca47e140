"""rows with columns of other names -> rows with the columns that NGDiff knows.

Alpaca's columns (``instruction``, perhaps ``input``, ``output``) and ShareGPT's (``conversations`` of
``from`` and ``value``) are recognised. Others are mapped: ``question=instruction,answer=output`` says that
the question is in the column ``instruction``. A source can carry its mapping in braces, as in
``forget.jsonl{question=instruction,answer=output}``, and ``--columns`` writes it there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ngdiff.data.files import COLUMN_FORMS, Row
from ngdiff.errors import Fault, RequestError, unknown_name

KNOWN = tuple(dict.fromkeys(column for form in COLUMN_FORMS for column in form))
EXAMPLE = "question=instruction,answer=output"
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "Alpaca": ("instruction", "input", "output"),
    "ShareGPT": ("conversations",),
}
"""Names of data sets whose columns are recognised, with these."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}

Mapped = dict[str, str]
"""Columns that NGDiff knows to columns of the data."""


def parse_columns(text: str, where: str = "--columns") -> Mapped:
    """Parse ``OURS=THEIRS,OURS=THEIRS``.

    ``prompt`` may stand for ``question``, and ``completion`` for ``answer``; together, the two say that the
    answer continues the prompt's own text.

    Raises:
        RequestError: it is not a mapping, names a column that NGDiff does not know, or is not complete.
    """
    mapped: Mapped = {}
    faults = []
    for pair in text.split(","):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs:
            faults.append(Fault(where, f"{pair!r} does not map a column", f"Write it as {EXAMPLE}"))
        elif ours not in KNOWN:
            faults.append(unknown_name(where, "column to map to", ours, KNOWN))
        elif ours in mapped:
            faults.append(Fault(where, f"{ours!r} is mapped twice", "Keep one of them"))
        else:
            mapped[ours] = theirs
    if not faults:
        mapped, faults = _completed(mapped, where)
    if faults:
        raise RequestError(faults)
    return mapped


def _completed(mapped: Mapped, where: str) -> tuple[Mapped, list[Fault]]:
    """Rename mixed pairs, such as prompt and answer, to the columns of one form."""
    if set(mapped) in map(set, COLUMN_FORMS):
        return mapped, []
    other = {"prompt": "question", "completion": "answer"}
    named = {other.get(ours, ours): theirs for ours, theirs in mapped.items()}
    if len(named) == len(mapped) and set(named) == {"question", "answer"}:
        return named, []
    forms = ", ".join(" and ".join(form) for form in COLUMN_FORMS)
    what = f"{', '.join(mapped)} {'are' if len(mapped) > 1 else 'is'} not the columns of one kind of row"
    return mapped, [Fault(where, what, f"Map one of these: {forms}")]


def written_columns(mapped: Mapping[str, str]) -> str:
    """Write a mapping as :func:`parse_columns` reads it."""
    return ",".join(f"{ours}={theirs}" for ours, theirs in mapped.items())


def renamed(rows: Sequence[Row], mapped: Mapping[str, str], where: str) -> tuple[list[Row], list[Fault]]:
    """Return rows under the names of a mapping, and a fault for each row that lacks one of its columns."""
    found: list[Row] = []
    faults: list[Fault] = []
    for row in rows:
        missing = [theirs for theirs in mapped.values() if theirs not in row.values]
        if missing:
            what = f"has no column {missing[0]!r}, which --columns names"
            columns = ", ".join(map(repr, row.values)) or "none"
            faults.append(Fault(f"{where} {row.place}", what, f"Its columns: {columns}"))
            continue
        others = {c: value for c, value in row.values.items() if c not in {*mapped.values(), *KNOWN}}
        values = {**others, **{ours: row.values[theirs] for ours, theirs in mapped.items()}}
        found.append(replace(row, values=values, names=dict(mapped)))
    return found, faults


def recognised(row: Row) -> Row:
    """Return a row with Alpaca's or ShareGPT's columns under known names; other rows are unchanged."""
    values = row.values
    # Alpaca's files also hold the whole prompt as ``text``
    if any(all(column in values for column in form) for form in COLUMN_FORMS if form != ("text",)):
        return row
    if "instruction" in values and "output" in values:
        return _alpaca(row)
    if "conversations" in values:
        others = {column: value for column, value in values.items() if column != "conversations"}
        messages = _messages(values["conversations"])
        return replace(row, values={**others, "messages": messages}, names={"messages": "conversations"})
    return row


def _alpaca(row: Row) -> Row:
    columns = LAYOUTS["Alpaca"]
    question, more = row.values["instruction"], row.values.get("input")
    if isinstance(question, str) and isinstance(more, str) and more.strip():
        question = f"{question}\n\n{more}"
    others = {column: value for column, value in row.values.items() if column not in {*columns, "text"}}
    values = {**others, "question": question, "answer": row.values["output"]}
    return replace(row, values=values, names={"question": "instruction", "answer": "output"})


def _messages(turns: object) -> object:
    """Return ShareGPT's turns as messages; malformed turns stay, for the check of messages to report."""
    if not isinstance(turns, list):
        return turns
    return [
        {"role": _ROLES.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
        if isinstance(turn, Mapping) and "from" in turn
        else turn
        for turn in turns
    ]
