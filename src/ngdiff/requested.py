"""names in a request -> models and data: found, read, encoded and checked, before any weights are loaded.

The steps that ``unlearn``, ``finetune``, ``evaluate``, ``audit`` and ``bench`` share. Each adds what is wrong
to the faults of the whole request and continues, so that all faults are reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ngdiff.data.benchmarks import Folders
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example, read_examples
from ngdiff.data.long_text import encode_pieces, long_text_fault
from ngdiff.data.sources import local_sources
from ngdiff.errors import Fault, Faults
from ngdiff.models.loading import (
    ModelSource,
    check_causal,
    check_precision,
    load_tokenizer,
    resolve_model,
    vocabulary_faults,
    weights_bytes,
)
from ngdiff.settings.faults import seed_fault
from ngdiff.system.output import check_output, holds_faults, same_folder

FoundModel = tuple[ModelSource, Any]
"""A model and its tokenizer."""


def shared_setting_faults(request: Any, counts: Sequence[str] = ()) -> list[Fault]:
    """Check the settings that several commands have: ``precision`` and, where there, ``seed``, ``long_text``.

    Args:
        request: with these settings as attributes.
        counts: names of settings that must be at least 1; None passes.
    """
    faults = Faults()
    faults.attempt(lambda: check_precision(request.precision), None)
    given = {name: getattr(request, name) for name in counts}
    faults += [
        Fault(f"--{name.replace('_', '-')}", f"is {value}", "Give a number of at least 1")
        for name, value in given.items()
        if value is not None and value < 1
    ]
    checks: dict[str, Callable[[Any], Fault | None]] = {"seed": seed_fault, "long_text": long_text_fault}
    found = [check(getattr(request, name)) for name, check in checks.items() if hasattr(request, name)]
    return faults + [fault for fault in found if fault is not None]


def find_source(
    name: str, faults: Faults, where: str = "--model", trust_remote_code: bool = False
) -> ModelSource | None:
    """Find a model and check that it is a causal language model; return None if it cannot be found.

    Args:
        name: as :func:`ngdiff.models.loading.resolve_model` takes it.
        faults: of the whole request.
        where: the setting to name in faults.
        trust_remote_code: whether Python code that comes with the model may be run.
    """
    source = faults.attempt(lambda: resolve_model(name, where, trust_remote_code), None)
    if source is not None:
        faults += check_causal(source, where)
    return source


def find_model(
    name: str, faults: Faults, where: str = "--model", trust_remote_code: bool = False
) -> FoundModel | None:
    """Find a model as :func:`find_source` does, and load its tokenizer; None for one that has a fault."""
    source = find_source(name, faults, where, trust_remote_code)
    return None if source is None else (source, faults.attempt(lambda: load_tokenizer(source, where), None))


def check_folder(
    output: Path,
    may_replace: bool,
    source: ModelSource | None,
    room: Callable[[int], int],
    reads: Mapping[str, Sequence[str]],
    folders: Folders,
    faults: Faults,
) -> None:
    """Check that a result can be written to a folder, and replaces nothing that the request reads.

    Args:
        output: the folder to make.
        may_replace: whether an earlier result may be replaced.
        source: the model that the result is made from, where it was found.
        room: bytes of the model's weights, 0 where unknown -> bytes that are written at the most.
        reads: setting to the sources that it names.
        folders: benchmarks to folders that hold their data.
        faults: of the whole request.
    """
    needed = 0
    if source is not None:
        faults += same_folder(output, source.location)
        with faults.collecting():
            needed = room(weights_bytes(source) or 0)
    faults += check_output(output, may_replace, needed)
    faults += holds_faults(output, local_sources(reads, folders))


def read_sets(
    named: Mapping[str, Sequence[str]], folders: Folders, faults: Faults
) -> dict[str, list[Example]]:
    """Read the examples of every set.

    Args:
        named: name of a set, such as ``forget``, to its sources; the setting ``--forget`` gave them.
        folders: benchmarks to folders that hold their data.
        faults: of the whole request.
    """
    return {name: read_examples(given, f"--{name}", folders, faults) for name, given in named.items()}


def encode_sets(
    sets: Mapping[str, Sequence[Example]],
    model: FoundModel,
    max_length: int,
    faults: Faults,
    long_text: str = "cut",
    columns: Sequence[str] = (),
    where: str = "--model",
) -> tuple[dict[str, list[EncodedExample]], list[str]]:
    """Encode every set, and check that the model has an embedding for every token.

    Args:
        sets: name of a set, such as ``forget``, to its examples; the setting ``--forget`` gave them.
        model: the model and its tokenizer, whose padding token may be changed.
        max_length: longest sequence, in tokens.
        faults: of the whole request.
        long_text: ``split`` running text that is longer into pieces, or ``cut`` it there.
        columns: further columns whose texts the model will read.
        where: the setting that named the model, for faults.

    Returns:
        The encoded sets that have no fault, and what was split, cut or left out, for the record.
    """
    source, tokenizer = model
    encoded: dict[str, list[EncodedExample]] = {}
    notes: list[str] = []
    for name, examples in sets.items():
        with faults.collecting():
            encoded[name], told = encode_pieces(examples, tokenizer, max_length, f"--{name}", long_text)
            notes += told
    rows = [example for examples in encoded.values() for example in examples]
    faults += vocabulary_faults(source, tokenizer, _tokens(rows, tokenizer, columns), where)
    return encoded, notes


def _tokens(rows: Sequence[EncodedExample], tokenizer: Any, columns: Sequence[str]) -> Iterator[int]:
    """Yield the token ids of all rows, and of the texts in their further columns."""
    for row in rows:
        yield from row.input_ids
        for value in (row.example.extra.get(column) for column in columns):
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str):
                    yield from tokenizer(text, add_special_tokens=False)["input_ids"]
