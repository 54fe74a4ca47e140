"""a run -> report.html: one file that opens from disk, runs only its own scripts and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.report.answers import answers
from ngdiff.report.cards import in_words
from ngdiff.report.comparison import comparison, evaluated_tradeoff, tradeoff
from ngdiff.report.curves import curves
from ngdiff.report.evaluations import figure_table, membership, truth_ratios
from ngdiff.report.run_files import Bench, Given, Run, dig, is_bench, read_bench, read_run, rows_of
from ngdiff.report.text import embedded, visible
from ngdiff.report.verdict import judge
from ngdiff.settings import FLAGS, SHORT
from ngdiff.settings.identity import FROM_MEMORY
from ngdiff.system.output import staged_file
from ngdiff.system.untrusted import MOST_JSON, Unreadable, load_json, read_within

REPORT, ORIGIN = "report.html", "ngdiff-origin"
HERE = Path(__file__).parent
GENERATOR = '<meta name="generator" content="ngdiff'
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
SCRIPTS = ("dom.js", "charts.js", "panels.js", "answers.js", "main.js")


def write_report(
    place: Path,
    output: Path | None = None,
    given: Given | None = None,
    others: Sequence[Path] = (),
) -> Path:
    """Write the page of a run, a benchmark or an evaluation.

    Args:
        place: folder of ``unlearn``, ``demo`` or ``bench``, or an ``eval.json``.
        output: the file to write; default: ``report.html`` in the folder, or the file's name ending in .html.
        given: evaluations to use instead of those in the folder.
        others: other runs, drawn beside this one in forgetting against utility.

    Returns:
        The file written.

    Raises:
        RequestError: there is nothing to show, or a file is damaged; nothing was written.
    """
    if output is None:
        output = place / REPORT if place.is_dir() else place.with_suffix(".html")
    check_page(output)
    if is_bench(place):
        bench = read_bench(place)
        return _write(_made(lambda: bench_page(bench), place), output)
    run = read_run(place, given)
    rest = [read_run(other, where="--other") for other in others]
    return _write(_made(lambda: run_page(run, rest), place), output)


def is_page_of(place: Path) -> bool | None:
    """Return whether the page in the folder of a run is the one that :func:`write_report` makes of it.

    Returns:
        None where that is not known: the page says that another version or other files made it.
    """
    try:
        page = read_within(place / REPORT, MOST_JSON).decode("utf-8")
        stated = re.search(f'<meta name="{ORIGIN}" content="([^"]*)">', page)
        found: Any = {} if stated is None else load_json(html.unescape(stated[1]).encode())
        run = read_run(place, name=str(found["name"]), checked=not found["alone"])
        if page == _made(lambda: run_page(run), place):
            return True
        return False if found == _origin(run) and found["alone"] else None
    except (Unreadable, ValueError, LookupError, TypeError):  # also RequestError and text that is not UTF-8
        return None


def write_comparison(places: Sequence[Path], output: Path) -> Path:
    """Write the page that compares runs or evaluations.

    Raises:
        RequestError: one of them has nothing to compare; nothing was written.
    """
    check_page(output)
    names = [place.absolute().name for place in places]
    parents = [f"{place.absolute().parent.name}/{place.absolute().name}" for place in places]
    unique = names if len(set(names)) == len(names) else parents
    faults, runs = Faults(), list[Run]()
    for place, name in zip(places, unique, strict=True):
        with faults.collecting():
            runs.append(read_run(place, where="RUN", name=name))
    faults.raise_any()
    return _write(_made(lambda: compare_page("Comparison", runs), *places), output)


def _made(page: Callable[[], str], *places: Path) -> str:
    """Return a page.

    Raises:
        RequestError: a record or an evaluation has the right keys, but invalid values.
    """
    try:
        return page()
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        what = f"{', '.join(map(str, places))} contains invalid values ({type(error).__name__}: {error})"
        raise RequestError(Fault("OUT", what, "Give a folder as ngdiff wrote it")) from error


def check_page(path: Path, where: str = "--output") -> None:
    """Refuse to write anything but a page, or to replace anything but an earlier page of ours.

    Raises:
        RequestError: it is not to be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(Fault(where, f"{path} is not a valid page name", "Give a name that ends in .html"))
    if path.is_dir():
        raise RequestError(Fault(where, f"{path} is a folder", "Give the name of a file"))
    if not path.exists():
        return
    if not path.is_file():  # a pipe would be waited for
        raise RequestError(Fault(where, f"{path} is not a regular file", "Choose another name"))
    with path.open(encoding="utf-8", errors="replace") as file:
        ours = GENERATOR in file.read(4000)
    if not ours:
        raise RequestError(Fault(where, f"{path} exists and is not an ngdiff report", "Choose another name"))


def run_page(run: Run, others: Sequence[Run] = ()) -> str:
    """Return the page of one run."""
    record = run.record or {}
    points = [tradeoff([run, *others])] if run.record is not None else []
    held_against = evaluated_tradeoff(run)
    data = {
        "curves": curves(record) if run.record is not None else None,
        "tradeoff": points + ([held_against] if held_against is not None else []),
        "membership": membership(run),
        "truth": truth_ratios(run),
        "answers": answers(run),
        "comparison": None,
    }
    context = {
        "title": run.name,
        "origin": json.dumps(_origin(run, others)),
        "kind": "Unlearning report" if run.record is not None else "Evaluation report",
        "facts": _facts(run),
        "verdict": asdict(judge(run)),
        "asked": _asked(run),
        "command": command(record) if run.record is not None else None,
        "tables": tables(run),
        "notes": notes(run),
        "figures": figure_table(run),
        "comparison": None,
    }
    return _render(context, data)


def compare_page(title: str, runs: Sequence[Run]) -> str:
    """Return the page that shows runs side by side."""
    return _comparison_page(title, "Comparison of runs", comparison(runs), [tradeoff(runs, way=False)], runs)


def bench_page(bench: Bench) -> str:
    """Return the page of a benchmark: its table, its runs, the front."""
    from ngdiff.report.comparison import bench_rows, bench_tradeoff

    found = comparison(bench.runs) | {"bench": bench_rows(bench.results)}
    return _comparison_page(bench.name, "Benchmark", found, bench_tradeoff(bench.results), bench.runs)


def _comparison_page(
    title: str, kind: str, found: Mapping[str, Any], points: list[dict[str, Any]], runs: Sequence[Run]
) -> str:
    data = {
        "curves": None,
        "tradeoff": points,
        "membership": [],
        "truth": None,
        "answers": [],
        "comparison": found["series"],
    }
    context = {
        "title": title,
        "origin": None,
        "kind": kind,
        "facts": [f"{len(runs)} runs"],
        "verdict": None,
        "asked": None,
        "command": None,
        "tables": [],
        "notes": _shared_notes(runs),
        "figures": None,
        "comparison": found,
    }
    return _render(context, data)


def _shared_notes(runs: Sequence[Run]) -> list[str]:
    """Return each note once, with its runs unless all have it."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for note in notes(run):
            found.setdefault(note, []).append(run.name)
    return [
        note if len(names) == len(runs) else f"{note} ({', '.join(names)})" for note, names in found.items()
    ]


def _facts(run: Run) -> list[str]:
    """Return the line below the title: method, model, data, steps, time."""
    record = run.record or {}
    settings, cost = record.get("settings") or {}, record.get("cost") or {}
    found = []
    if "method" in settings:
        found.append(f"method {settings['method']}")
    model = (record.get("model") or {}).get("name") or (
        (run.evaluation.provenance.get("model") or {}).get("name") if run.evaluation else None
    )
    found += [f"model {model}"] if model else []
    for name, text in (("forget", "to forget"), ("retain", "to keep")):
        data = (record.get("data") or {}).get(name) or {}
        count, pieces = data.get("examples"), data.get("pieces")
        found += [f"{count} {text}" + (f" in {pieces} pieces" if pieces else "")] if count else []
    if cost.get("steps") is not None and cost.get("seconds") is not None:
        found.append(f"{cost['steps']} steps in {cost['seconds']:.0f} s")
    return found


def _asked(run: Run) -> str | None:
    """Return a sentence on the part of the sets that was answered, lest it be taken for the whole."""
    if run.answers is None:
        return None
    asked, of = ((run.answers.get(key) or {}).get("forget") for key in ("asked", "of"))
    if isinstance(asked, int) and isinstance(of, int) and asked >= of:  # more were requested than there are
        said = f"All {of} examples to forget were asked."
    else:
        said = (
            f"Of the {of} examples to forget, {asked} were asked: most at even distances, the rest those "
            "forgotten worst."
        )
    said += " Retain examples are held out from training."
    if any(item.get("passage") for item in rows_of(run.answers.get("items"))):
        said += " For running text, the model continues the beginning of a passage."
    return said


def _origin(run: Run, others: Sequence[Run] = ()) -> dict[str, Any]:
    """Return a page's origin: the software, and whether it was made from a run's own folder alone."""
    evaluated = any(part is not None for part in (run.evaluation, run.reference, run.before, run.demo))
    return {"software": _software(), "name": run.name, "alone": not evaluated and not others}


@cache
def _software() -> str:
    """Return the version, and the SHA-256 of all files of this package, without loading the others."""
    digest = hashlib.sha256()
    for file in sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{file.relative_to(HERE).as_posix()}\n".encode() + file.read_bytes())
    return f"{metadata.version('ngdiff')} {digest.hexdigest()}"


# ---- html ----


def _static(name: str) -> str:
    return (resources.files("ngdiff.report") / "static" / name).read_text(encoding="utf-8")


@cache
def _scripts() -> tuple[tuple[str, str], ...]:
    """Return each script with its hash for the content security policy."""
    texts = [*(_static(name) for name in LIBRARIES), "\n".join(_static(name) for name in SCRIPTS)]
    for text in texts:
        if "</script" in text.lower() or "<!--" in text:
            raise ValueError("a script of the page contains text that would end its element")
    return tuple((text, _hash(text)) for text in texts)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("ngdiff.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"visible": visible, "in_words": in_words}
    return found


def _render(context: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    scripts = _scripts()
    policy = (
        "default-src 'none'; "
        f"script-src {' '.join(repr(digest) for _, digest in scripts)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            context,
            data=Markup(embedded(data)),
            has={name: bool(value) for name, value in data.items()},
            scripts=[Markup(text) for text, _ in scripts],
            style=Markup(_static("page.css")),
            policy=policy,
            version=metadata.version("ngdiff"),
        )
    )


def _write(page: str, output: Path) -> Path:
    check_page(output)  # again, for a file that appeared while the page was made
    with staged_file(output) as staging:
        staging.write_text(page, encoding="utf-8", newline="\n")
    return output


# ---- how to repeat it ----


LONG = {short: name for name, short in SHORT.items()}
WORKED_OUT = frozenset(
    {
        "optimizer",
        "autocast",
        "disable_tqdm",
        "logging_strategy",
        "answers",
        "push_to_hub",
        "private",
    }
)
"""Settings that follow from others, or do not affect the result."""


def command(record: Mapping[str, Any]) -> str:
    """Return the command that makes the same run again, with every setting written out."""
    settings = record.get("settings")
    words = ["ngdiff", "unlearn"]
    given = settings if isinstance(settings, Mapping) else {}
    for name, value in given.items():
        doubled = name == "per_device_train_batch_size" and "batch_size" in given
        unsaid = value is None or value is False or value in ([], {}, "")  # 0 is written out
        if name in WORKED_OUT or doubled or unsaid:
            continue
        if name == "model" and str(value).endswith(FROM_MEMORY):
            value = "MODEL"
        words += _words(str(name), value)
    return " ".join([*words, "--output", "OUT"])


def _words(name: str, value: Any) -> list[str]:
    flag = FLAGS.get(LONG.get(name, name))
    if flag is None:
        return ["--set", shlex.quote(f"{name}={json.dumps(value)}")]
    if value is True:
        return [flag]
    values = value if isinstance(value, list) else [value]
    return [word for item in values for word in (flag, shlex.quote(str(item)))]


def tables(run: Run) -> list[dict[str, Any]]:
    """Return (title, rows) of settings, data, weights, versions, machine, cost, evaluations and receipt."""
    record = run.record or {}
    provenance = {} if run.evaluation is None else run.evaluation.provenance
    parts = [
        ("Settings", record.get("settings") or provenance.get("settings")),
        ("Data", record.get("data") or provenance.get("data")),
        ("Weights", record.get("model") or provenance.get("model")),
        ("Request", {"sha256": record.get("request_sha256")} if record.get("request_sha256") else None),
        ("Losses as used", record.get("losses")),
        ("Versions", record.get("versions") or provenance.get("versions")),
        ("Machine", record.get("machine") or provenance.get("machine")),
        ("Cost", record.get("cost") or provenance.get("seconds")),
    ]
    parts += [
        (f"Evaluation: {label}", _about(evaluation))
        for label, evaluation in (
            ("this model", run.evaluation),
            ("target model", run.before),
            ("retrained model", run.reference),
        )
        if evaluation is not None
    ]
    parts.append(("Receipt", run.receipt))
    return [{"title": title, "rows": flat(content)} for title, content in parts if flat(content)]


def _about(evaluation: Any) -> dict[str, Any]:
    found = evaluation.provenance
    return {
        "suite": evaluation.suite,
        "split": evaluation.split,
        "model": found.get("model"),
        "seed": found.get("seed"),
        "versions": dig(found, "versions", "ngdiff"),
    }


def notes(run: Run) -> list[str]:
    """Return every fallback and warning of the run and of its evaluations."""
    found = [str(note) for note in dig(run.record, "notes") or []]
    found += [f"evaluation: {note}" for note in (run.evaluation.notes if run.evaluation else [])]
    return [visible(note) for note in dict.fromkeys(found)]


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, text); empty ones are left out."""
    if not isinstance(content, Mapping):
        return []
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += flat(value, f"{name}.")
        elif value not in (None, [], ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found.append((visible(name), visible(text[:2000])))
    return found
