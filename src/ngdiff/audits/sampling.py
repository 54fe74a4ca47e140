"""model -> what the best of many sampled answers shows that its one greedy answer does not.

An answer is scored by ROUGE-L recall, and by the share of the *key facts* it has: names, numbers and other
words of the true answer that neither the question nor the retain set has. This is no entailment model: a fact
in other words counts as missing, and one in a sentence that denies it as there. Never-seen questions are
sampled as often: the best of 64 guesses is right more often than one.

Source: Reisizadeh et al. 2025, arXiv 2511.04934.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ngdiff.audits.subject import Audit, Context, Outcome, Subject
from ngdiff.data.encoding import encode_prompt
from ngdiff.data.examples import Example
from ngdiff.data.renaming import words_of
from ngdiff.data.secrets import Secrets
from ngdiff.data.sources import general_texts
from ngdiff.evaluation.item_scores import rouge
from ngdiff.evaluation.result import Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.measures import Measures
from ngdiff.inference.evaluator import PROMPTS_A_SEQUENCE
from ngdiff.inference.sampled_answers import BUDGETS, best_of, sampled_answers
from ngdiff.system.progress import Meter

Score = Callable[[Example, str], float]


class KeyFacts:
    """The words that an answer must have to give its secret away.

    Args:
        retain: examples that the model is to keep.
    """

    def __init__(self, retain: Sequence[Example]) -> None:
        self._secrets = Secrets([*(f"{e.prompt} {e.answer}" for e in retain), *general_texts()])

    def of(self, example: Example) -> set[str]:
        """Return them in lower case; all new words of the answer where none is a secret."""
        spans = self._secrets.spans(example)
        found = {word for first, last in spans for word in words_of(example.answer[first:last])}
        return found or set(words_of(example.answer)) - set(words_of(example.prompt)) or {""}

    def share(self, example: Example, said: str) -> float:
        """Return the share of the key facts that a text has, in [0, 1]."""
        facts = self.of(example)
        return len(facts & set(words_of(said))) / len(facts)


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Sample answers to every question, and score the best of 1, 4, 16, 64 as far as so many are drawn."""
    if not context.request.generate:
        context.note("sampling is left out: no answers are to be generated")
        return {}
    facts = KeyFacts(context.data.sets["retain"])
    scores: dict[str, Score] = {
        "leak_rouge": lambda example, said: rouge(example.answer, said).rougeL_recall,
        "leak_facts": facts.share,
    }
    measures = Measures(subject.evaluator(), context.bootstrap)
    figures: dict[str, Figure] = {}
    most = context.request.samples
    for name, rows in context.asked.items():
        answers = _sampled(subject, context, name, rows)
        for metric, score in scores.items():
            drawn = [[score(e, text) for text in texts] for e, texts in zip(rows, answers, strict=True)]
            for k in sorted({*(k for k in BUDGETS if k < most), most}):
                key = f"{name}.{metric}" + ("" if k == most else f"_{k}")
                values = [best_of(found, k) for found in drawn]
                figures[key] = measures.mean(metric, values, name, note=f"best of {k}")
    return {f"best of {most} samples": Outcome(figures)}


def _sampled(subject: Subject, context: Context, name: str, rows: Sequence[Example]) -> list[list[str]]:
    request, evaluator, found = context.request, subject.evaluator(), []
    with Meter(f"{name} samples", len(rows)) as meter, context.autocast():
        for place, example in enumerate(rows):
            prompt = encode_prompt(example, subject.tokenizer, request.max_length)
            found.append(
                sampled_answers(
                    evaluator.model,
                    subject.tokenizer,
                    prompt,
                    request.samples,
                    max_new_tokens=request.max_new_tokens,
                    at_once=PROMPTS_A_SEQUENCE * request.batch_size,
                    seed=request.seed * 1_000_003 + place,
                )
            )
            meter.advance(1)
    return found


def missing(data: SuiteData) -> str | None:
    """Return why the audit cannot run where there is no question to answer."""
    if any(len(example.messages) < 2 for example in data.sets["forget"]):
        return "rows of plain text have no question that could be answered"
    return None


AUDIT = Audit(
    name="sampling",
    summary="the best of many sampled answers (leak@k)",
    paper="Reisizadeh et al. 2025, arXiv 2511.04934",
    run=run,
    settings=("samples",),
    missing=missing,
    changes=False,
    headlines=("forget.leak_facts", "forget.leak_rouge"),
)
