"""`benchmark:part -> where its rows are`: on the hub, or in a folder of the same layout.

A benchmark is one row of :data:`BENCHMARKS`. Its name occurs in its sources (``muse:news/forget``),
in the option for its folder (``--muse-dir``) and in the corresponding variable (``NGDIFF_MUSE_DIR``).
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
        name: the part before the colon.
        title: its name in messages.
        paper: where it comes from.
        parts: names of its parts, each with a line on it.
        hub: part to its source on the hub, ``org/name:config@split``.
        inside: folder and part to the files, without extensions, that may hold the part, best first.
        columns: columns with other names here.
        holder: part to the column whose lists hold the part's rows; None where the part has its own rows.
    """

    name: str
    title: str
    paper: str
    parts: Mapping[str, str]
    hub: Callable[[str], str]
    inside: Callable[[Path, str], Sequence[Path]]
    columns: Mapping[str, str] = field(default_factory=dict)
    holder: Callable[[str], str | None] = lambda part: None

    @property
    def option(self) -> str:
        """The option that names its folder."""
        return f"--{self.name}-dir"

    @property
    def variable(self) -> str:
        """The environment variable that names its folder."""
        return f"NGDIFF_{self.name.upper()}_DIR"

    def folder(self, folders: Folders | None) -> Path | None:
        """Return the folder given for it, else that of the variable, else None: the hub is used."""
        given = (folders or {}).get(self.name) or os.environ.get(self.variable)
        return Path(given).expanduser() if given else None

    def read(self, folder: Path, part: str, where: str) -> tuple[list[Row], list[Fault]]:
        """Read a part from a folder; the faults are those of all its files."""
        rows, faults = self.read_as_is(folder, part, where)
        return self.published(rows, part), faults

    def read_as_is(self, folder: Path, part: str, where: str) -> tuple[list[Row], list[Fault]]:
        """Do the same, with the column names of the files."""
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

    def published(self, rows: Sequence[Row], part: str) -> list[Row]:
        """Return a part's rows with this benchmark's column names mapped, marked as published."""
        holder = self.holder(part)
        if holder is not None:
            rows = [held for row in rows for held in _held(row, holder)]
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
        fix = f"It has {has}; correct {self.name}_dir or {self.variable}, or remove it to use the hub"
        return Fault(where, what, fix)


def _held(row: Row, column: str) -> list[Row]:
    """Return the rows in a column's list; the row itself where there is no list."""
    found = row.values.get(column)
    if not isinstance(found, list) or not all(isinstance(values, dict) for values in found):
        return [row]
    return [Row(values, f"{row.place}, {column} {number}") for number, values in enumerate(found, 1)]


def _looked_for(stems: Sequence[Path], folder: Path) -> str:
    names = [f"{stem.relative_to(folder)}.json" for stem in stems]
    also = f", nor {', '.join(names[:-1])}" if names[:-1] else ""
    endings = [ending for ending in READERS if ending != ".json"]
    return f"{names[-1]}{also} (or {', '.join(endings)})"


def files_of(stem: Path) -> list[Path]:
    """Return the file of that name with any supported extension, or Parquet shards as on the hub."""
    found = [file for ending in READERS if (file := stem.with_name(stem.name + ending)).is_file()]
    return found[:1] or sorted(stem.parent.glob(f"{stem.name}-[0-9]*-of-[0-9]*.parquet"))


def read_table(file: Path) -> tuple[list[Row], list[Fault]]:
    """Read a data file, or a JSON array of texts."""
    texts = _array_of_texts(file)
    return (texts, []) if texts else read_data_file(file)


def _array_of_texts(file: Path) -> list[Row]:
    """Return the rows of a JSON array of strings, which MUSE's own code writes; else None."""
    if file.suffix != ".json":
        return []
    try:
        texts = load_json(read_within(file, MOST_DATA))
    except Unreadable:
        return []  # the ordinary reader reports what is wrong
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
    """Search a folder of both corpora, and one that is the corpus itself unless named after the other."""
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

# ---- WMDP, RWKU, KnowUnDo ----

_BIO_FORGET = "bio-forget-corpus"  # in a separate data set, which requires access to be requested

WMDP = Benchmark(
    "wmdp",
    "WMDP",
    "Li et al. 2024, arXiv 2403.03218",
    {
        _BIO_FORGET: "papers on hazardous biology, to forget; access must be requested",
        "bio-retain-corpus": "papers on other biology, to keep",
        "cyber-forget-corpus": "hazardous passages on computer security, to forget",
        "cyber-retain-corpus": "other passages on computers, to keep",
    },
    lambda part: f"cais/wmdp-{part}@train" if part == _BIO_FORGET else f"cais/wmdp-corpora:{part}@train",
    lambda folder, part: [folder / part, folder / part / "train"],
)

_RWKU_FILES = {
    "train_original_passage": ("train", "passage", "texts about 200 people, to forget"),
    "train_positive_llama3": ("train", "positive", "what Llama 3 writes about them"),
    "train_positive_phi3": ("train", "positive_phi", "what Phi 3 writes about them"),
    "forget_level1": ("test", "forget_level1", "sentences about them with a gap, ___, and what fills it"),
    "forget_level2": ("test", "forget_level2", "questions about them"),
    "forget_level3": ("test", "forget_level3", "questions about them that try to get around a refusal"),
    "neighbor_level1": ("test", "neighbor_level1", "sentences with a gap about what is near them, to keep"),
    "neighbor_level2": ("test", "neighbor_level2", "questions about what is near them, to keep"),
    "mia_forget": ("test", "forget_mia", "texts about them that models have seen"),
    "mia_retain": ("test", "retain_mia", "texts about others that models have seen"),
}

RWKU = Benchmark(
    "rwku",
    "RWKU",
    "Jin et al. 2024, arXiv 2406.10890",
    {part: summary for part, (_, _, summary) in _RWKU_FILES.items()},
    lambda part: f"jinzhuoran/RWKU:{part}@{_RWKU_FILES[part][0]}",
    lambda folder, part: [folder / "All" / _RWKU_FILES[part][1], folder / _RWKU_FILES[part][1]],
    {"query": "question"},
)

_KNOWUNDO_KINDS = {
    "unlearn": "questions whose answers are to be forgotten",
    "retention": "questions near them whose answers are to be kept",
}

KNOWUNDO = Benchmark(
    "knowundo",
    "KnowUnDo",
    "Tian et al. 2024, arXiv 2407.01920",
    {
        f"{domain}/{kind}{val}": f"{domain}: {summary}{', held out' if val else ''}"
        for domain in ("copyright", "privacy")
        for kind, summary in _KNOWUNDO_KINDS.items()
        for val in ("", "/val")
    },
    lambda part: "zjunlp/KnowUnDo:{}@{}".format(*part.split("/")),
    lambda folder, part: [folder.joinpath(*part.split("/")[:2])],
    {"text": "prompt", "labels": "completion"},
    lambda part: "val" if part.endswith("/val") else "train",
)

BENCHMARKS: Mapping[str, Benchmark] = {row.name: row for row in (TOFU, MUSE, WMDP, RWKU, KNOWUNDO)}
"""The benchmarks whose data can be named, by the part before the colon."""


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
