"""`benchmark:part -> where its rows are`: on the hub, or in a folder of the same layout.

A benchmark is one row of :data:`BENCHMARKS`. Its name makes the sources (``muse:news/forget``), the option of
its folder (``--muse-dir``) and the variable that stands for it (``NGDIFF_MUSE_DIR``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ngdiff.data.files import READERS, Row, read_data_file
from ngdiff.errors import Fault
from ngdiff.system.untrusted import MOST_DATA, Unreadable, load_json, read_within

Folders = Mapping[str, Path | None]
"""Names of benchmarks to the folders given for them."""
NO_FOLDERS: Folders = MappingProxyType({})
"""None was given."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark whose data can be named.

    Args:
        name: what stands before the colon.
        title: its name in messages.
        paper: where it comes from.
        parts: names of its parts, each with a line on it.
        hub: part to its source on the hub, ``org/name:config@split``.
        inside: folder and part to the files, without their endings, that may hold the part, best first.
        columns: columns that are called otherwise here.
    """

    name: str
    title: str
    paper: str
    parts: Mapping[str, str]
    hub: Callable[[str], str]
    inside: Callable[[Path, str], Sequence[Path]]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def option(self) -> str:
        """The option that names its folder."""
        return f"--{self.name}-dir"

    @property
    def variable(self) -> str:
        """The variable that does."""
        return f"NGDIFF_{self.name.upper()}_DIR"

    def folder(self, folders: Folders | None) -> Path | None:
        """Return the folder given for it, else that of the variable, else nothing: the hub is asked."""
        given = (folders or {}).get(self.name) or os.environ.get(self.variable)
        return Path(given).expanduser() if given else None

    def read(self, folder: Path, part: str, where: str) -> tuple[list[Row], list[Fault]]:
        """Read a part from a folder; the faults are those of all its files."""
        rows, faults = self.read_as_is(folder, part, where)
        return self.published(rows), faults

    def read_as_is(self, folder: Path, part: str, where: str) -> tuple[list[Row], list[Fault]]:
        """Do the same, with the columns that the files have."""
        files = next(filter(None, map(files_of, self.inside(folder, part))), [])
        if not files:
            return [], [self._missing(folder, part, where)]
        rows: list[Row] = []
        faults: list[Fault] = []
        for file in files:
            more, wrong = read_table(file)
            rows += more
            faults += [Fault(f"{where} {part}: {fault.where}", fault.what, fault.fix) for fault in wrong]
        return [
            replace(row, place=f"{part}: {row.place}" if "/" in part else row.place) for row in rows
        ], faults

    def published(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows under the names that columns have here, marked as the benchmark's."""
        return [
            replace(
                row,
                values={self.columns.get(name, name): value for name, value in row.values.items()},
                published=True,
            )
            for row in rows
        ]

    def _missing(self, folder: Path, part: str, where: str) -> Fault:
        wanted = _looked_for(self.inside(folder, part), folder)
        what = f"the {self.title} folder {str(folder)!r} has no file {wanted}"
        there = [name for name in self.parts if any(map(files_of, self.inside(folder, name)))]
        alike = [name for name in there if name.partition("/")[0] == part.partition("/")[0]]
        has = ", ".join(alike or there) or f"nothing of {self.title}"
        fix = f"It has {has}; correct {self.option} or {self.variable}, or leave it out for the hub"
        return Fault(where, what, fix)


def _looked_for(stems: Sequence[Path], folder: Path) -> str:
    names = [f"{stem.relative_to(folder)}.json" for stem in stems]
    also = f", nor {', '.join(names[:-1])}" if names[:-1] else ""
    endings = [ending for ending in READERS if ending != ".json"]
    return f"{names[-1]}{also} (or {', '.join(endings)})"


def files_of(stem: Path) -> list[Path]:
    """Return the file of that name with any ending that is read, or Parquet shards as the hub has them."""
    found = [file for ending in READERS if (file := stem.with_name(stem.name + ending)).is_file()]
    return found[:1] or sorted(stem.parent.glob(f"{stem.name}-[0-9]*-of-[0-9]*.parquet"))


def read_table(file: Path) -> tuple[list[Row], list[Fault]]:
    """Read a data file, or a JSON array of texts."""
    texts = _array_of_texts(file)
    return (texts, []) if texts else read_data_file(file)


def _array_of_texts(file: Path) -> list[Row]:
    """Return the rows of a JSON array of strings, as MUSE's own code writes texts; else nothing."""
    if file.suffix != ".json":
        return []
    try:
        texts = load_json(read_within(file, MOST_DATA))
    except Unreadable:
        return []  # the ordinary reader says what is wrong
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    return [Row({"text": text}, f"{file.name}, item {number}") for number, text in enumerate(texts, 1)]


# ---- TOFU ----

_TOFU_KINDS = {
    "forget": "the {share}% of TOFU to forget",
    "retain": "the {share}% of TOFU to keep",
    "holdout": "questions of its kind that no model learned, as many as forget{share}",
    "real_authors": "questions about real authors",
    "world_facts": "questions about the world",
}
_WITH_WRONG_ANSWERS = ", with paraphrased and wrong answers"


def _tofu_parts() -> dict[str, str]:
    parts = {"full": "all questions about invented authors"}
    shares = ("01", "05", "10")
    names = [f"forget{share}{ending}" for share in shares for ending in ("", "_perturbed")]
    names += [f"retain{share}" for share in ("99", "95", "90")] + [f"holdout{share}" for share in shares]
    names += ["retain_perturbed"]
    names += [f"{part}{ending}" for part in ("real_authors", "world_facts") for ending in ("", "_perturbed")]
    for name in names:
        kind = name.removesuffix("_perturbed").rstrip("0123456789")
        share = name.removesuffix("_perturbed")[len(kind) :]
        shown = share if kind == "holdout" else share.lstrip("0")
        summary = "questions to keep" if name == "retain_perturbed" else _TOFU_KINDS[kind].format(share=shown)
        parts[name] = summary + (_WITH_WRONG_ANSWERS if name.endswith("_perturbed") else "")
    return parts


TOFU = Benchmark(
    "tofu",
    "TOFU",
    "Maini et al. 2024, arXiv 2401.06121",
    _tofu_parts(),
    lambda part: f"locuslab/TOFU:{part}@train",
    lambda folder, part: [folder / part],
)


# ---- MUSE ----

MUSE_CORPORA = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
"""Short names of the two corpora to data sets on the hub."""

_MUSE_TEXTS = {"news": "BBC articles", "books": "novels"}
_MUSE_SPLITS: dict[str, dict[str, str]] = {
    "raw": {
        "forget": "{texts} to forget",
        "retain1": "{texts} to keep, to train on",
        "retain2": "{texts} to keep, to measure on",
        "holdout": "{texts} that no model learned",
    },
    "verbmem": {"forget": "beginnings and continuations of {texts} to forget"},
    "knowmem": {
        f"{part}_qa{ending}": f"questions on {{texts}} to {verb}{more}"
        for part, verb in (("forget", "forget"), ("retain", "keep"))
        for ending, more in (("", ""), ("_icl", ", solved examples"))
    },
    "privleak": {
        "forget": "some {texts} to forget",
        "retain": "some {texts} to keep",
        "holdout": "as many {texts} that no model learned",
    },
    "scal": {
        f"forget_{fold}": f"larger and larger sets of {{texts}} to forget, {fold} of 4"
        for fold in range(1, 5)
    },
    "sust": {f"forget_{fold}": f"{{texts}} to forget one after another, {fold} of 4" for fold in range(1, 5)},
}


def _muse_parts() -> dict[str, str]:
    return {
        muse_part(corpus, config, split): summary.format(texts=_MUSE_TEXTS[corpus])
        for corpus in MUSE_CORPORA
        for config, splits in _MUSE_SPLITS.items()
        for split, summary in splits.items()
    }


def muse_part(corpus: str, config: str, split: str) -> str:
    """Return the name of a split of a corpus."""
    return f"{corpus}/{split}" if config == "raw" else f"{corpus}/{config}/{split}"


def _muse_place(part: str) -> tuple[str, str, str]:
    """Return corpus, config and split of a part."""
    corpus, *middle, split = part.split("/")
    return corpus, middle[0] if middle else "raw", split


def _muse_hub(part: str) -> str:
    corpus, config, split = _muse_place(part)
    return f"{MUSE_CORPORA[corpus]}:{config}@{split}"


def _muse_inside(folder: Path, part: str) -> list[Path]:
    """Look in a folder of both corpora, and in one that is the corpus itself, unless named as the other."""
    corpus, config, split = _muse_place(part)
    names = (corpus, f"muse-{corpus}", f"MUSE-{corpus.capitalize()}")
    others = [other for other in MUSE_CORPORA if other != corpus]
    own = not any(other in folder.absolute().name.lower() for other in others)
    return [folder / name / config / split for name in names] + ([folder / config / split] if own else [])


MUSE = Benchmark(
    "muse",
    "MUSE",
    "Shi et al. 2024, arXiv 2407.06460",
    _muse_parts(),
    _muse_hub,
    _muse_inside,
    {"gt": "completion"},
)

BENCHMARKS: Mapping[str, Benchmark] = {row.name: row for row in (TOFU, MUSE)}
"""The benchmarks whose data can be named, by what stands before the colon."""


def folder_options() -> tuple[str, ...]:
    """Return the names of the options that give the benchmarks' folders, with underscores."""
    return tuple(f"{name}_dir" for name in BENCHMARKS)


def folders_of(given: Mapping[str, object]) -> dict[str, Path]:
    """Return the folders given for benchmarks, from values by the names of their options."""
    named = {name: given.get(f"{name}_dir") for name in BENCHMARKS}
    return {name: Path(str(path)) for name, path in named.items() if path}


def as_text(folders: Folders) -> dict[str, str]:
    """Return the folders as plain JSON values."""
    return {name: str(path) for name, path in folders.items() if path is not None}
