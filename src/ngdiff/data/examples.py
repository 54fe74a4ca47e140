"""`rows -> examples`: recognised columns become conversations or texts, with every fault found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ngdiff.data.benchmarks import Folders
from ngdiff.data.files import COLUMN_FORMS, Row, accepted_columns
from ngdiff.data.layouts import EXAMPLE, recognised
from ngdiff.data.sources import capped, read_rows
from ngdiff.errors import Fault, Faults, RequestError

Kind = Literal["qa", "completion", "chat", "text"]

MOST_CHARACTERS = 2**24
"""Longest text of one row: several novels. A tokenizer takes minutes and gigabytes for more."""

ROLES: tuple[str, ...] = ("system", "user", "assistant")
"""The roles a message can have."""

_KINDS: dict[str, Kind] = {"messages": "chat", "question": "qa", "prompt": "completion", "text": "text"}
# The extra columns that evaluation reads, which a data hash covers.
_HASHED_EXTRA = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: one of ``ROLES``.
        content: the text of the turn.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Part:
    """Position of a piece in its text.

    Args:
        whole: the text.
        start: its first character.
        stop: the first character after it.
    """

    whole: Example
    start: int
    stop: int


@dataclass(frozen=True)
class Example:
    """One item to forget, to retain or to evaluate on.

    Args:
        messages: the conversation, the answer last; empty for kind ``text``.
        text: the text for kind ``text``, else ``None``.
        kind: which columns the example came from.
        place: position of its row, such as ``forget.jsonl, line 3``.
        extra: the row's other columns, unchanged, such as ``perturbed_answer``.
        opening: words that the answer is made to begin with; they count as context, not as answer.
        part: position of a piece in its longer text; ``text`` is then the piece alone.
        passage: whether it was running text, whose beginning now serves as the question.
    """

    messages: tuple[Message, ...]
    text: str | None
    kind: Kind
    place: str
    extra: Mapping[str, object] = field(default_factory=dict, hash=False)
    opening: str = ""
    part: Part | None = field(default=None, compare=False, repr=False)
    passage: bool = False

    @property
    def prompt(self) -> str:
        """The earlier turns, joined by line breaks; empty for a text."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        """The last assistant turn, or the whole text."""
        return self.messages[-1].content if self.messages else self.text or ""

    @property
    def key(self) -> str:
        """The content with whitespace and case normalised; equal keys mean a shared row, of any kind."""
        return "\n".join(" ".join(part.split()).casefold() for part in self._contents())

    def _contents(self) -> list[str]:
        return [message.content for message in self.messages] or [self.text or ""]


def to_examples(rows: Sequence[Row], where: str) -> list[Example]:
    """Turn rows into examples.

    Args:
        rows: rows with ``messages``, ``question``/``answer``, ``prompt``/``completion`` or ``text`` (checked
            in this order; a form whose columns are all null gives way to the next), else with the columns
            of Alpaca or ShareGPT (:mod:`ngdiff.data.layouts`).
        where: the setting that named the source, such as ``--forget``, for faults.

    Raises:
        RequestError: with every row that lacks columns, or whose content is null, empty or malformed.
    """
    examples: list[Example] = []
    faults: list[Fault] = []
    strangers: dict[tuple[str, ...], list[str]] = {}
    for found in rows:
        row = recognised(found)
        form = _form(row.values)
        if form is None:
            strangers.setdefault(tuple(row.values), []).append(row.place)
            continue
        wrong = [] if _is_blank(row, form) else _content_faults(row, form, where)
        faults += wrong
        if not wrong:
            examples.append(_example(row, form))
    faults = [_column_fault(columns, places, where) for columns, places in strangers.items()] + faults
    if not rows:
        faults = [Fault(where, "has no rows", "Give at least one")]
    if faults:
        raise RequestError(capped(faults, where))
    return examples


def _is_blank(row: Row, form: tuple[str, ...]) -> bool:
    """Return whether a row is an empty text of a benchmark, which is left out during encoding."""
    value = row.values.get("text")
    return row.published and form == ("text",) and isinstance(value, str) and not value.strip()


def _form(values: Mapping[str, object]) -> tuple[str, ...] | None:
    present = [form for form in COLUMN_FORMS if all(column in values for column in form)]
    filled = [form for form in present if any(values[column] is not None for column in form)]
    return next(iter(filled or present), None)


def _column_fault(columns: tuple[str, ...], places: list[str], where: str) -> Fault:
    found = ", ".join(map(repr, columns)) or "none"
    what = f"the columns ({found}) are not among those known, in {_rows(len(places))}"
    fix = f"Name the columns {accepted_columns()}, or map them, as with --columns {EXAMPLE}"
    for form in COLUMN_FORMS:
        have = [column for column in form if column in columns]
        lack = [column for column in form if column not in columns]
        if have and lack:
            fix = (
                f"Add the column {lack[0]!r} that goes with {have[0]!r}, or use one of: {accepted_columns()}"
            )
    return Fault(f"{where} {places[0]}", what, fix)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _content_faults(row: Row, form: tuple[str, ...], where: str) -> list[Fault]:
    at = f"{where} {row.place}"
    if form == ("messages",):
        fault = _messages_fault(row.values["messages"], at, row.names.get("messages", "messages"))
        return [fault] if fault else []
    found = ((row.names.get(column, column), text_fault(row.values[column])) for column in form)
    return [
        Fault(at, f"{column!r} {what}", f"Give {column!r} some text, or remove the row")
        for column, what in found
        if what
    ]


def text_fault(value: object) -> str | None:
    """Return what is wrong with a value that must be a text that is not empty."""
    if value is None:
        return "is null"
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}, not a string"
    if len(value) > MOST_CHARACTERS:
        return f"has {len(value)} characters, but at most {MOST_CHARACTERS} are read"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains half of a surrogate pair, which is not a character"
    return None


def _messages_fault(value: object, at: str, column: str) -> Fault | None:
    shape = 'Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if not isinstance(value, list) or not value:
        got = "null" if value is None else "empty" if value == [] else f"of type {type(value).__name__}"
        return Fault(at, f"{column!r} is {got}, not a list of messages", shape)
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            return Fault(at, f"message {number} is of type {type(message).__name__}, not an object", shape)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            return Fault(at, f"message {number} has the role {role!r}", f"Use one of {', '.join(ROLES)}")
        what = None if role == "system" and content == "" else text_fault(content)
        if what:
            fix = "Give it some text, or remove the row"
            return Fault(at, f"the content of message {number} {what}", fix)
    if value[-1]["role"] != "assistant":
        what = f"the last message is from {value[-1]['role']!r}, not from 'assistant'"
        return Fault(at, what, "End with the answer to forget or to keep")
    if len(value) == 1:
        fix = "Give the question too, or use the column 'text'"
        return Fault(at, "no message comes before the answer", fix)
    return None


def _example(row: Row, form: tuple[str, ...]) -> Example:
    values = row.values
    kind = _KINDS[form[0]]
    extra = {column: value for column, value in values.items() if column not in form}
    messages: tuple[Message, ...] = ()
    if kind == "chat":
        turns = values["messages"]
        assert isinstance(turns, list)
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    elif kind != "text":
        messages = (Message("user", str(values[form[0]])), Message("assistant", str(values[form[1]])))
    return Example(messages, str(values["text"]) if kind == "text" else None, kind, row.place, extra)


def read_examples(
    sources: Sequence[str], where: str, folders: Folders | None, faults: Faults
) -> list[Example]:
    """Return the examples of all sources that can be read, and add to ``faults`` what is wrong with the rest.

    Args:
        sources: as :func:`ngdiff.data.sources.read_rows` takes them.
        where: the option that names them.
        folders: benchmarks to folders that hold their data.
        faults: of the whole request.
    """
    examples: list[Example] = []
    for source in sources:
        with faults.collecting():
            examples += to_examples(read_rows(source, where=where, folders=folders), where)
    return examples


def overlap_fault(forget: Sequence[Example], retain: Sequence[Example]) -> Fault | None:
    """Return a fault where rows of the retain set are in the forget set too (compared by ``Example.key``)."""
    places: dict[str, str] = {}
    for example in forget:
        places.setdefault(example.key, example.place)
    places.pop("", None)
    shared = [example for example in retain if example.key in places]
    if not shared:
        return None
    first = shared[0]
    verb = "is" if len(shared) == 1 else "are"
    what = (
        f"{_rows(len(shared))} of the retain set {verb} in the forget set too, "
        f"the first at {first.place} and {places[first.key]}"
    )
    return Fault("--retain", what, "Remove them from one of the two sets, or give --set allow_overlap=true")


def texts_of(examples: Sequence[Example]) -> list[Example]:
    """Return the rows that examples come from; for the pieces of one text, the text once."""
    found: list[Example] = []
    for example in examples:
        row = example if example.part is None else example.part.whole
        if example.part is None or not found or found[-1] is not row:
            found.append(row)
    return found


def data_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 (hex) of the rows' content in order, however long texts were split.

    It depends on kind, messages, text and the paraphrased and perturbed columns; not on file format, path,
    position or unused columns.
    """
    content = [
        {
            "kind": example.kind,
            "messages": [[message.role, message.content] for message in example.messages],
            "text": example.text,
            **{name: example.extra[name] for name in _HASHED_EXTRA if example.extra.get(name) is not None},
        }
        for example in texts_of(examples)
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
