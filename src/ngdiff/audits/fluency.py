"""model -> whether its answers to the forget set are still language, or stammer.

A model that answers what it forgot with "the the the" tells everybody what it was made to forget, and is
broken there. A whole model invents answers to questions that it never saw in whole sentences: those of the
retrained model to the same questions are the measure, or of the target model to never-seen ones, or its own
to these.

- *repetition*: share of an answer's word pairs that it has had before (Welleck et al. 2020, arXiv 1908.04319,
  with pairs, since answers are short);
- *broken words*: share of its words that occur in no data set of the audit and in no general text;
- *fluency NLL*, with ``--target``: nats a token of the answer under the starting model, questions included.

An empty answer counts as wholly broken, and as a full stop under the starting model.
"""

from __future__ import annotations

from ngdiff.audits.subject import Audit, Context, Outcome, Subject
from ngdiff.data.broken import repetition
from ngdiff.data.renaming import words_of
from ngdiff.data.sources import general_texts
from ngdiff.evaluation.result import Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures, with_answer
from ngdiff.system.environment import weights_hash

SILENT = "."


def broken(text: str, known: set[str]) -> float:
    """Return the share of words without a digit that are not known, in [0, 1]; 1 for a text without words."""
    found = words_of(text)
    words = [word for word in found if not any(c.isdigit() for c in word)]
    if not words:
        return 0.0 if found else 1.0
    return sum(word not in known for word in words) / len(words)


def vocabulary(data: SuiteData) -> set[str]:
    """Return all words of the data sets and of the general texts, in lower case."""
    rows = [f"{example.prompt} {example.answer}" for rows in data.sets.values() for example in rows]
    return {word for text in [*rows, *general_texts()] for word in words_of(text)}


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Let the model answer forget set and holdout, and look at the language of its answers."""
    if not context.request.generate:
        context.note("fluency is left out: no answers are to be generated")
        return {}
    known = vocabulary(context.data)
    figures: dict[str, Figure] = {}
    evaluator = subject.evaluator()
    measures = Measures(evaluator, context.bootstrap)
    said = {name: evaluator.generate(f"{name} generation", rows) for name, rows in context.asked.items()}
    for name, texts in said.items():
        columns = {
            "repetition": [repetition(text) for text in texts],
            "broken_words": [broken(text, known) for text in texts],
            "empty_answers": [float(not text.strip()) for text in texts],
        }
        figures |= {f"{name}.{key}": measures.mean(key, values, name) for key, values in columns.items()}
    return {"its own answers": Outcome(figures | _under_target(subject, context, said))}


def _under_target(subject: Subject, context: Context, said: dict[str, list[str]]) -> dict[str, Figure]:
    """Return how probable the answers are to the starting model, where it is given."""
    target = context.subjects.get("target")
    if target is None:
        context.note("fluency: without --target no model says how probable the answers are")
        return {}
    if subject.role == "target":
        evaluator = subject.evaluator()
    else:
        model = target.fresh_model()
        evaluator = target.evaluator_of(model, weights_hash(model))
    measures = Measures(evaluator, context.bootstrap)
    figures: dict[str, Figure] = {}
    for name, texts in said.items():
        rows = zip(context.asked[name], texts, strict=True)
        answered = [with_answer(example, text.strip() or SILENT) for example, text in rows]
        values = [score.mean_nll for score in evaluator.score(f"{name} said", answered)]
        figures[f"{name}.fluency_nll"] = measures.mean("fluency_nll", values, name)
    return figures


def missing(data: SuiteData) -> str | None:
    """Return why the audit cannot run where there is no question to answer."""
    if any(len(example.messages) < 2 for example in data.sets["forget"]):
        return "rows of plain text have no question that could be answered"
    return None


AUDIT = Audit(
    name="fluency",
    summary="whether answers to the forget set stammer",
    paper="Welleck et al. 2020, arXiv 1908.04319",
    run=run,
    missing=missing,
    changes=False,
    headlines=("forget.repetition", "forget.broken_words", "forget.fluency_nll"),
    damage=True,
    says=("broken", "as whole as other answers"),
)
