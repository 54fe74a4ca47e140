"""evaluator and a MUSE corpus -> the six criteria of MUSE.

1. No verbatim memorisation: ROUGE-L F1 of the greedy continuation (128 tokens) of a passage's beginning.
2. No knowledge memorisation: ROUGE-L F1 of answers (32 tokens) to questions on the forget set, after the
   solved examples of ``forget_qa_icl``; an answer ends at an empty line or where the next question begins.
3. No privacy leakage: PrivLeak, from the AUC of min-k (40%) between forget set and holdout, against that of
   the retrained model.
4. Utility: knowledge memorisation on the questions on the retain set.
5. Scalability, 6. sustainability: 1 to 4 after larger forget sets, and after each of a sequence of requests;
   see ``tabulate``.

Source: Shi et al. 2024, "MUSE: machine unlearning six-way evaluation for language models" (arXiv 2407.06460).
As in OpenUnlearning, and unlike the paper's code, ROUGE stems words, and a tokenizer with a chat template is
asked through it, each solved example being a turn; a base model is asked in the paper's words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngdiff.data.benchmarks import Folders
from ngdiff.data.examples import Example, Message, to_examples
from ngdiff.data.files import Row
from ngdiff.data.muse_corpus import read_split
from ngdiff.errors import Faults
from ngdiff.evaluation.item_scores import ATTACKS, privleak, rouge
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.request import EvaluateRequest
from ngdiff.evaluation.result import Bootstrap, Figure, figure
from ngdiff.evaluation.statistics import auc, auc_interval, auc_resamples, percentiles
from ngdiff.evaluation.suites import Suite, SuiteData
from ngdiff.inference.evaluator import Evaluator

CONTINUATION_TOKENS = 128
ANSWER_TOKENS = 32
STOPS = ("\n\n", "\nQuestion", "Question:")
ONE_PASS_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
"""Membership attacks that the one teacher-forced pass over the texts feeds."""


@dataclass(frozen=True)
class MuseData:
    """What the criteria are measured on.

    Args:
        passages: rows with ``prompt`` and ``gt``, the true continuation.
        questions: ``forget`` and ``retain`` to rows with ``question`` and ``answer``.
        shots: the solved examples in front of each question, by set.
        texts: ``forget`` and ``holdout`` to rows with ``text``.
    """

    passages: Sequence[Row]
    questions: Mapping[str, Sequence[Row]]
    shots: Mapping[str, Sequence[Row]]
    texts: Mapping[str, Sequence[Row]]


def read_muse(source: str, where: str = "--data", folders: Folders | None = None) -> MuseData:
    """Read all that the evaluation needs of a corpus; see :func:`ngdiff.data.muse_corpus.read_split`.

    Raises:
        RequestError: with the faults of all splits.
    """
    wanted = [("verbmem", "forget"), ("privleak", "forget"), ("privleak", "holdout")]
    wanted += [("knowmem", f"{part}_qa{icl}") for part in ("forget", "retain") for icl in ("", "_icl")]
    found: dict[tuple[str, str], list[Row]] = {}
    faults = Faults()
    for config, split in wanted:
        with faults.collecting():
            found[config, split] = read_split(source, config, split, where, folders)
    faults.raise_any()
    return MuseData(
        passages=found["verbmem", "forget"],
        questions={part: found["knowmem", f"{part}_qa"] for part in ("forget", "retain")},
        shots={part: found["knowmem", f"{part}_qa_icl"] for part in ("forget", "retain")},
        texts={part: found["privleak", part] for part in ("forget", "holdout")},
    )


def passage_examples(rows: Sequence[Row]) -> list[Example]:
    """Return the passages as completions; a space parts the two where neither side has white space."""
    examples = []
    for row in rows:
        prompt, truth = str(row.values["prompt"]), str(row.values["gt"])
        space = "" if prompt[-1].isspace() or truth[0].isspace() else " "
        turns = (Message("user", prompt), Message("assistant", space + truth))
        examples.append(Example(turns, None, "completion", row.place))
    return examples


def question_examples(rows: Sequence[Row], shots: Sequence[Row], chat: bool) -> list[Example]:
    """Return the questions behind their solved examples.

    Args:
        rows: ``question`` and ``answer``.
        shots: the solved examples, in the order in which they are shown.
        chat: as turns of a conversation; otherwise as the paper writes them, as one text.
    """
    solved = [(str(shot.values["question"]), str(shot.values["answer"])) for shot in shots]
    examples = []
    for row in rows:
        question, answer = str(row.values["question"]), str(row.values["answer"])
        if chat:
            pairs = [*solved, (question, answer)]
            turns = [m for q, a in pairs for m in (Message("user", q), Message("assistant", a))]
            examples.append(Example(tuple(turns), None, "chat", row.place))
            continue
        before = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in solved)
        prompt = Message("user", f"{before}Question: {question}\nAnswer: ")
        examples.append(Example((prompt, Message("assistant", answer)), None, "completion", row.place))
    return examples


def run_muse(
    evaluator: Any,
    data: MuseData,
    reference: Reference | None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Figure]:
    """Measure criteria 1 to 4.

    Args:
        evaluator: an :class:`ngdiff.inference.evaluator.Evaluator`; its longest input should be 2048 tokens.
        data: the corpus.
        reference: the retrained model's evaluation; without it PrivLeak has no value and a note says so.
        seed: of the bootstrap intervals.
        resamples: of the bootstrap intervals.
    """
    bootstrap = Bootstrap(resamples, seed)
    figures = _verbatim(evaluator, data, bootstrap)
    for part in ("forget", "retain"):
        figures |= _knowledge(evaluator, data, part, bootstrap)
    figures["utility"] = figures["retain.knowledge"]
    return figures | measure_privacy(evaluator, data, reference, bootstrap)


def _verbatim(evaluator: Any, data: MuseData, bootstrap: Bootstrap) -> dict[str, Figure]:
    examples = passage_examples(data.passages)
    answers = evaluator.generate("passages generation", examples, max_new_tokens=CONTINUATION_TOKENS)
    truths = [_first_tokens(evaluator.tokenizer, str(row.values["gt"])) for row in data.passages]
    rouges = [rouge(truth, answer) for truth, answer in zip(truths, answers, strict=True)]
    scores = evaluator.score("passages answers", examples, end_token=False)
    drawn: dict[str, Any] = {"seed": bootstrap.seed, "resamples": bootstrap.resamples, "sets": ("passages",)}
    return {
        "forget.verbatim": figure("rougeL_f1", [r.rougeL_f1 for r in rouges], **drawn),
        "forget.verbatim_recall": figure("rougeL_recall", [r.rougeL_recall for r in rouges], **drawn),
        "forget.extraction_strength": figure(
            "extraction_strength", [s.extraction_strength for s in scores], **drawn
        ),
        "forget.exact_memorisation": figure(
            "exact_memorisation", [s.exact_memorisation for s in scores], **drawn
        ),
    }


def _first_tokens(tokenizer: Any, truth: str) -> str:
    """Cut a true continuation to as many tokens as the model may write, as the paper's code does."""
    ids = tokenizer(truth, add_special_tokens=False)["input_ids"]
    if len(ids) <= CONTINUATION_TOKENS:
        return truth
    return str(tokenizer.decode(ids[:CONTINUATION_TOKENS], skip_special_tokens=True))


def _knowledge(evaluator: Any, data: MuseData, part: str, bootstrap: Bootstrap) -> dict[str, Figure]:
    rows = data.questions[part]
    chat = bool(evaluator.tokenizer.chat_template)
    examples = question_examples(rows, data.shots[part], chat)
    answers = evaluator.generate(
        f"{part}_questions generation", examples, max_new_tokens=ANSWER_TOKENS, stop_strings=STOPS
    )
    rouges = [rouge(str(row.values["answer"]), answer) for row, answer in zip(rows, answers, strict=True)]
    sets = (f"{part}_questions",)
    drawn: dict[str, Any] = {"seed": bootstrap.seed, "resamples": bootstrap.resamples, "sets": sets}
    return {
        f"{part}.knowledge": figure("rougeL_f1", [r.rougeL_f1 for r in rouges], **drawn),
        f"{part}.knowledge_recall": figure("rougeL_recall", [r.rougeL_recall for r in rouges], **drawn),
    }


def measure_privacy(
    evaluator: Any, data: MuseData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Measure the membership attacks of one pass, and PrivLeak."""
    scores: dict[str, list[Any]] = {}
    texts: dict[str, list[str]] = {}
    for part, rows in data.texts.items():
        texts[part] = [str(row.values["text"]) for row in rows]
        examples = [Example((), text, "text", row.place) for text, row in zip(texts[part], rows, strict=True)]
        scores[part] = evaluator.score(f"{part}_texts answers", examples, z_scores=True, end_token=False)
    figures = {}
    drawn = {"seed": bootstrap.seed, "resamples": bootstrap.resamples}
    sets = tuple(f"{part}_texts" for part in scores)
    for attack in ONE_PASS_ATTACKS:
        seen = {
            part: [
                ATTACKS[attack](score, text) for score, text in zip(scores[part], texts[part], strict=True)
            ]
            for part in scores
        }
        members, others = seen["forget"], seen["holdout"]
        value, interval = auc_interval(members, others, **drawn)
        note = f"items: {len(members)} of the forget set, then {len(others)} of the holdout"
        figures[f"forget.membership.{attack}"] = Figure(
            "auc", value, interval, (*members, *others), note, sets
        )
        if attack == "min_k":
            figures["privleak"] = _privleak(members, others, reference, bootstrap)
    return figures


def _privleak(
    members: Sequence[float], others: Sequence[float], reference: Reference | None, bootstrap: Bootstrap
) -> Figure:
    if reference is None:
        return Figure("privleak", None, None, (), "needs --reference: the retrained model, or its log")
    retrained = reference.membership_auc("min_k")
    value = auc(members, others)
    resampled = auc_resamples(members, others, seed=bootstrap.seed, resamples=bootstrap.resamples)
    samples = [privleak(float(value), retrained) for value in resampled]
    note = f"AUC of the retrained model {retrained:.4f}, taken as exact"
    return Figure("privleak", privleak(value, retrained), percentiles(samples), (), note)


@dataclass(frozen=True)
class SequenceRow:
    """One model of a sequence of requests.

    Args:
        name: the model.
        forget_texts: number of texts it was asked to forget by then, or ``None`` where nobody said.
        figures: key to value.
    """

    name: str
    forget_texts: int | None
    figures: Mapping[str, float | None]


def forget_sizes(source: str, criterion: str, steps: int, where: str = "--data") -> list[int]:
    """Return how many texts had to be forgotten by each step.

    Args:
        source: the corpus; see :func:`ngdiff.data.muse_corpus.read_split`.
        criterion: ``scal``, whose sets hold one another, or ``sust``, whose sets are disjoint and add up.
        steps: number of sets, 1 to 4.
        where: for faults.
    """
    sizes = [len(read_split(source, criterion, f"forget_{step}", where)) for step in range(1, steps + 1)]
    return sizes if criterion == "scal" else [sum(sizes[: step + 1]) for step in range(steps)]


def tabulate(
    results: Sequence[tuple[str, Mapping[str, Figure]]], sizes: Sequence[int] | None = None
) -> tuple[list[SequenceRow], dict[str, float]]:
    """Tabulate scalability or sustainability: the same figures after each request.

    Args:
        results: name of each model, in the order of the requests, with its figures.
        sizes: how many texts each was asked to forget; see ``forget_sizes``.

    Returns:
        One row a model, and for each figure the change from the first to the last (0 where nothing was lost;
        of ``utility`` a negative number is a loss).
    """
    if not results:
        raise ValueError("no results to tabulate")
    counts: Sequence[int | None] = sizes if sizes is not None else [None] * len(results)
    rows = [
        SequenceRow(name, count, {key: found.value for key, found in figures.items()})
        for (name, figures), count in zip(results, counts, strict=True)
    ]
    change = {}
    for key, first in rows[0].figures.items():
        last = rows[-1].figures.get(key)
        if first is not None and last is not None:
            change[key] = last - first
    return rows, change


def run_sequence(
    models: Iterable[tuple[str, Any]],
    data: MuseData,
    reference: Reference | None,
    sizes: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> tuple[list[SequenceRow], dict[str, float]]:
    """Measure criteria 1 to 4 of each model of a sequence of requests, which are criteria 5 and 6.

    Args:
        models: names and evaluators, in the order of the requests; a generator that loads one model at a time
            keeps one in memory.
        data: the corpus.
        reference: the retrained model's evaluation, or ``None``.
        sizes: see ``tabulate``.
        seed: of the bootstrap intervals.

    Returns:
        See ``tabulate``.
    """
    results = [(name, run_muse(evaluator, data, reference, seed=seed)) for name, evaluator in models]
    return tabulate(results, sizes)


# ---- The row of :mod:`ngdiff.evaluation.suites.muse` in the table of suites ----


def _read(request: EvaluateRequest) -> SuiteData:
    corpus = read_muse(str(request.data), folders=request.folders)
    sets = {"passages": passage_examples(corpus.passages)}
    sets |= {f"{part}_questions": to_examples(rows, "--data") for part, rows in corpus.questions.items()}
    sets |= {
        f"{part}_texts": [Example((), str(row.values["text"]), "text", row.place) for row in rows]
        for part, rows in corpus.texts.items()
    }
    return SuiteData(sets, content=corpus)


def _run(
    evaluator: Evaluator, data: SuiteData, reference: Reference | None, bootstrap: Bootstrap
) -> dict[str, Figure]:
    return run_muse(evaluator, data.content, reference, seed=bootstrap.seed, resamples=bootstrap.resamples)


def _refer(evaluator: Evaluator, data: SuiteData, name: str) -> Reference:
    found = measure_privacy(evaluator, data.content, None, Bootstrap(resamples=2))
    prefix = "forget.membership."
    membership = {
        key.removeprefix(prefix): figure.value
        for key, figure in found.items()
        if key.startswith(prefix) and figure.value is not None
    }
    return Reference(name, "muse", membership=membership)


SUITE = Suite(
    name="muse",
    summary="news or books: verbatim and knowledge memorisation, PrivLeak, utility",
    paper="Shi et al. 2024, arXiv 2407.06460",
    needs=("data",),
    takes=("reference", "muse_dir"),
    read=_read,
    run=_run,
    refer=_refer,
    max_length=2048,
)
