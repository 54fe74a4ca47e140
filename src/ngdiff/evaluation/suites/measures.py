"""evaluator and one data set -> the figures that every suite of questions and answers shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ngdiff.data.examples import Example, text_fault
from ngdiff.errors import Fault
from ngdiff.evaluation.item_scores import (
    ATTACKS,
    guarded_forget_truth_ratio,
    guarded_log_ratio,
    option_probability,
    privleak,
    rouge,
)
from ngdiff.evaluation.reference import Reference, truth_ratio_from_log
from ngdiff.evaluation.result import Bootstrap, Figure, figure
from ngdiff.evaluation.statistics import (
    auc,
    auc_interval,
    auc_resamples,
    ks_distance,
    ks_p_value,
    percentiles,
    two_sample_interval,
)
from ngdiff.evaluation.suites import SuiteData
from ngdiff.inference.evaluator import Evaluator
from ngdiff.inference.teacher_forced import AnswerScore

PERTURBED, PARAPHRASED, ASKED_OTHERWISE = "perturbed_answer", "paraphrased_answer", "paraphrased_question"

_DECIMALS = 5
"""Of a difference of two models' losses: what is below differs by the order of float32's sums."""

Figures = dict[str, Figure]


# ---- columns ----


def with_answer(example: Example, answer: str) -> Example:
    """Return the example with another answer to the same prompt."""
    return replace(example, messages=(*example.messages[:-1], replace(example.messages[-1], content=answer)))


def with_question(example: Example, question: str) -> Example:
    """Return the example with its last question put otherwise."""
    *before, asked, answer = example.messages
    return replace(example, messages=(*before, replace(asked, content=question), answer))


def has_column(examples: Sequence[Example], column: str) -> bool:
    """Return whether any row has something in a column."""
    return any(example.extra.get(column) is not None for example in examples)


def column_faults(examples: Sequence[Example], column: str, where: str) -> list[Fault]:
    """List the rows whose column is missing, or holds anything but text (``perturbed_answer``: a list)."""
    several = column == PERTURBED
    shape = "a list of wrong answers" if several else "a text"
    faults = []
    for example in examples:
        value = example.extra.get(column)
        texts = value if several else [value]
        if value is None:
            what = f"lacks the column {column!r}, which the truth ratio needs"
            if column == ASKED_OTHERWISE:
                what = f"lacks the column {column!r}, which other rows have"
        elif not example.messages:
            what = f"has the column {column!r}, but no question"
        elif not _are_texts(texts):
            what = f"has {str(value)[:40]!r} in the column {column!r}, which is not {shape}"
        else:
            continue
        faults.append(Fault(f"{where} {example.place}", what, f"Give {column!r} {shape}"))
    return faults


def _are_texts(values: object) -> bool:
    if not isinstance(values, (list, tuple)) or not values:
        return False
    return all(text_fault(value) is None for value in values)


# ---- one set ----


@dataclass(frozen=True)
class SetScores:
    """What one set's answers came to.

    Args:
        right: score of the answer that the truth ratio takes for right, one an item.
        wrong: scores of the perturbed answers, one list an item.
    """

    right: Sequence[AnswerScore]
    wrong: Sequence[Sequence[AnswerScore]]

    def log_ratios(self) -> list[float]:
        """Return log(p(wrong)/p(right)) of each item, in nats per token."""
        return [right - wrong for right, wrong in self._losses()]

    def guarded_log_ratios(self) -> list[float]:
        """Return the same by OpenUnlearning's convention: log(p(wrong)/(p(right) + 1e-10))."""
        return [guarded_log_ratio(right, wrong) for right, wrong in self._losses()]

    def _losses(self) -> list[tuple[float, float]]:
        return [
            (right.mean_nll, math.fsum(score.mean_nll for score in wrong) / len(wrong))
            for right, wrong in zip(self.right, self.wrong, strict=True)
        ]


def score_set(
    evaluator: Evaluator, name: str, examples: Sequence[Example], z_scores: bool, paraphrased: bool
) -> tuple[list[AnswerScore], SetScores | None]:
    """Score the answers, the paraphrased and the perturbed ones in one pass, in which they share much.

    Args:
        evaluator: of the model.
        name: of the set.
        examples: all with perturbed answers, or none.
        z_scores: standardise the log-probabilities of the true answers' tokens, too.
        paraphrased: the option that is right is the paraphrased answer, not the answer itself.

    Returns:
        Scores of the true answers; and those of the options, where there are perturbed answers.
    """
    options = has_column(examples, PERTURBED)
    asked: list[Example] = []
    spans = []
    for example in examples:
        start = len(asked)
        asked.append(example)
        if options and paraphrased:
            asked.append(with_answer(example, str(example.extra[PARAPHRASED])))
        if options:
            asked += [with_answer(example, wrong) for wrong in _texts(example)]
        spans.append(slice(start, len(asked)))
    firsts = {span.start for span in spans}
    scores = evaluator.score(f"{name} answers", asked, [z_scores and i in firsts for i in range(len(asked))])
    own = [scores[span] for span in spans]
    # All answers to a prompt show the beginning of the one greedy answer; the longest is the most useful.
    answers = [replace(found[0], greedy=max((s.greedy for s in found), key=len)) for found in own]
    if not options:
        return answers, None
    right = int(paraphrased)
    return answers, SetScores([found[right] for found in own], [found[right + 1 :] for found in own])


@dataclass(frozen=True)
class Answered:
    """A set whose answers were scored, and may be generated.

    Args:
        examples: the rows.
        scores: of the true answers.
        options: scores of the options, where there are perturbed answers.
    """

    examples: Sequence[Example]
    scores: Sequence[AnswerScore]
    options: SetScores | None = None


def asked_otherwise(evaluator: Evaluator, name: str, examples: Sequence[Example]) -> tuple[str, Answered]:
    """Ask the paraphrased questions; return the name under which their figures go, and the scores."""
    asked = [with_question(e, str(e.extra[ASKED_OTHERWISE])) for e in examples]
    label = f"{name}_paraphrased"
    return label, Answered(asked, evaluator.score(f"{label} answers", asked))


def generated(evaluator: Evaluator, sets: Mapping[str, Answered]) -> dict[str, list[str]]:
    """Generate the answers of all sets whose rows have prompts, where their scores leave them open."""
    return evaluator.generate_sets(
        {
            name: (part.examples, part.scores)
            for name, part in sets.items()
            if all(example.messages for example in part.examples)
        }
    )


def attack_norms(evaluator: Evaluator, data: SuiteData) -> tuple[list[float], list[float]] | None:
    """Return the gradient norms of forget set and holdout, where there is a holdout and they are requested.

    To be called before the sets are scored: the passes show how well their answers are known, too.
    """
    if "holdout" not in data.sets or not (data.settings or {}).get("gradient_norms", True):
        return None
    forget, holdout = (
        evaluator.gradient_norms(f"{name} gradients", data.sets[name]) for name in ("forget", "holdout")
    )
    return forget, holdout


def _texts(example: Example) -> list[str]:
    wrong = example.extra[PERTURBED]
    assert isinstance(wrong, (list, tuple))
    return [str(text) for text in wrong]


class Measures:
    """Figures of named sets, with one way of drawing intervals.

    Args:
        evaluator: of the model.
        bootstrap: how intervals are drawn.
    """

    def __init__(self, evaluator: Evaluator, bootstrap: Bootstrap) -> None:
        self.evaluator, self.bootstrap = evaluator, bootstrap

    def mean(self, metric: str, values: Sequence[float], *sets: str, note: str | None = None) -> Figure:
        """Return the mean over items with its interval."""
        boot = self.bootstrap
        return figure(metric, values, seed=boot.seed, resamples=boot.resamples, sets=sets, note=note)

    def answers(self, name: str, scores: Sequence[AnswerScore]) -> Figures:
        """Return probability, NLL, extraction strength and exact memorisation."""
        return {
            f"{name}.probability": self.mean("probability", [s.probability for s in scores], name),
            f"{name}.nll": self.mean("nll", [s.mean_nll for s in scores], name),
            f"{name}.extraction_strength": self.mean(
                "extraction_strength", [s.extraction_strength for s in scores], name
            ),
            f"{name}.exact_memorisation": self.mean(
                "exact_memorisation", [s.exact_memorisation for s in scores], name
            ),
        }

    def rouges(self, name: str, examples: Sequence[Example], answers: Sequence[str]) -> Figures:
        """Compare generated answers with the true ones."""
        found = [rouge(example.answer, answer) for example, answer in zip(examples, answers, strict=True)]
        return {
            f"{name}.rouge": self.mean("rougeL_recall", [r.rougeL_recall for r in found], name),
            f"{name}.rouge1": self.mean("rouge1_recall", [r.rouge1_recall for r in found], name),
            f"{name}.rouge_f1": self.mean("rougeL_f1", [r.rougeL_f1 for r in found], name),
        }

    def truth_ratios(self, name: str, scores: SetScores, forget: bool) -> Figures:
        """Return the truth ratio in both conventions, and its logarithm, whose items a reference needs."""
        logs = scores.log_ratios()
        ratios = [
            math.exp(-abs(value)) if forget else max(0.0, -math.expm1(min(0.0, value))) for value in logs
        ]
        shares = [1 / (1 + truth_ratio_from_log(value)) for value in logs]
        guarded = self._guarded_truth_ratios(name, scores) if forget else {}
        return guarded | {
            f"{name}.truth_ratio": self.mean("truth_ratio", ratios, name),
            f"{name}.truth_ratio_share": self.mean("truth_ratio_share", shares, name),
            f"{name}.log_truth_ratio": self.mean("log_truth_ratio", logs, name),
        }

    def _guarded_truth_ratios(self, name: str, scores: SetScores) -> Figures:
        """Return OpenUnlearning's figure under its name, and its logarithm, whose items a reference needs."""
        logs = scores.guarded_log_ratios()
        ratios = [guarded_forget_truth_ratio(truth_ratio_from_log(value)) for value in logs]
        return {
            f"{name}.truth_ratio_openunlearning": self.mean("truth_ratio_openunlearning", ratios, name),
            f"{name}.log_truth_ratio_openunlearning": self.mean("log_truth_ratio_openunlearning", logs, name),
        }

    def options(self, name: str, scores: SetScores) -> Figures:
        """Return the probability of the right one among the options, and the plain one as ``raw``."""
        values = [option_probability(r, w) for r, w in zip(scores.right, scores.wrong, strict=True)]
        raw = [score.probability for score in scores.right]
        return {
            f"{name}.probability": self.mean("option_probability", values, name),
            f"{name}.raw_probability": self.mean("probability", raw, name),
        }

    # ---- two sets, or two models ----

    def membership(
        self,
        forget: tuple[Sequence[Example], Sequence[AnswerScore]],
        holdout: tuple[Sequence[Example], Sequence[AnswerScore]],
        reference: Reference | None,
        norms: tuple[Sequence[float], Sequence[float]] | None,
    ) -> Figures:
        """Return the AUC of each attack between forget set and holdout, and PrivLeak.

        Args:
            forget: examples and their scores, with z-scores.
            holdout: the same for the holdout.
            reference: the retrained model's evaluation, for PrivLeak and the attack that compares losses.
            norms: of the gradients of both, for the attack by gradient norm; without it, that is left out.
        """
        found: dict[str, tuple[list[float], list[float]]] = {}
        for name, attack in ATTACKS.items():
            sides = [[attack(s, e.answer) for e, s in zip(*part, strict=True)] for part in (forget, holdout)]
            found[name] = (sides[0], sides[1])
        if norms is not None:
            found["gradient_norm"] = ([-norm for norm in norms[0]], [-norm for norm in norms[1]])
        losses = None if reference is None else reference.losses(len(forget[0]), len(holdout[0]))
        if losses is not None:
            pairs = zip((forget[1], holdout[1]), losses, strict=True)
            sides = [[round(loss - s.mean_nll, _DECIMALS) for s, loss in zip(*p, strict=True)] for p in pairs]
            found["reference"] = (sides[0], sides[1])
        figures = {f"forget.membership.{name}": self.auc(*sides) for name, sides in found.items()}
        return figures | {"privleak": self.privleak(*found["min_k"], reference)}

    def auc(self, members: Sequence[float], others: Sequence[float]) -> Figure:
        """Return the AUC of an attack's scores; higher scores mean members."""
        boot = self.bootstrap
        value, bounds = auc_interval(members, others, seed=boot.seed, resamples=boot.resamples)
        note = f"items: {len(members)} of the forget set, then {len(others)} of the holdout"
        return Figure("auc", value, bounds, (*members, *others), note, ("forget", "holdout"))

    def privleak(
        self, members: Sequence[float], others: Sequence[float], reference: Reference | None
    ) -> Figure:
        """Return PrivLeak by min-k, or a figure without value where the retrained model's AUC is missing."""
        if reference is None or "min_k" not in reference.membership:
            missing = "needs --reference, the retrained model or its evaluation with a holdout"
            return Figure("privleak", None, note=missing)
        retrained = reference.membership_auc("min_k")
        if retrained == 1:
            what = f"not defined: the AUC of min-k on {reference.name} is 1"
            return Figure("privleak", None, note=what)
        boot = self.bootstrap
        value = auc(members, others)
        drawn = auc_resamples(members, others, seed=boot.seed, resamples=boot.resamples)
        bounds = percentiles([privleak(float(resampled), retrained) for resampled in drawn])
        note = f"AUC of the retrained model {retrained:.4f}, taken as exact"
        return Figure("privleak", privleak(value, retrained), bounds, note=note, sets=("forget", "holdout"))

    def forget_quality(
        self, figures: Mapping[str, Figure], reference: Reference | None, split: str | None
    ) -> Figures:
        """Return forget quality, or a figure without value where there is no reference.

        OpenUnlearning's is beside it, where the reference has the ratios of that convention.

        Args:
            figures: with the forget set's truth ratios, in logarithms.
            reference: the retrained model's evaluation.
            split: of TOFU.

        Raises:
            RequestError: the reference is of another split or size, or has no truth ratios.
        """
        if reference is None:
            missing = "needs --reference, the retrained model or its evaluation"
            return {"forget_quality": Figure("forget_quality", None, note=missing)}
        ours = [truth_ratio_from_log(value) for value in values_of(figures, "forget.log_truth_ratio")]
        theirs = reference.forget_truth_ratios(len(ours), split)
        note = f"against {reference.name}; the interval, of bootstrap samples, is biased towards 0"
        value, bounds = two_sample_interval(ks_p_value, ours, theirs, self.bootstrap)
        distance, apart = two_sample_interval(ks_distance, ours, theirs, self.bootstrap)
        found = {
            "forget_quality": Figure("forget_quality", value, bounds, note=note, sets=("forget",)),
            "ks_distance": Figure("ks_distance", distance, apart, note=note, sets=("forget",)),
        }
        guarded = values_of(figures, "forget.log_truth_ratio_openunlearning")
        if len(reference.guarded_truth_ratios) == len(guarded):
            samples = [truth_ratio_from_log(value) for value in guarded], reference.guarded_truth_ratios
            value, bounds = two_sample_interval(ks_p_value, *samples, self.bootstrap)
            key = "forget_quality_openunlearning"
            found[key] = Figure(key, value, bounds, note=note, sets=("forget",))
        return found


def measure_reference(evaluator: Evaluator, data: SuiteData, name: str, suite: str) -> Reference:
    """Measure on a retrained model what the evaluation of another compares with, and nothing else."""
    forget, holdout = data.sets["forget"], data.sets.get("holdout", ())
    answers, options = score_set(evaluator, "forget", forget, bool(holdout), has_column(forget, PARAPHRASED))
    sides = [answers]
    membership = {}
    if holdout:
        sides.append(evaluator.score("holdout answers", holdout, z_scores=True))
        for attack, score in ATTACKS.items():
            members, others = (
                [score(s, e.answer) for e, s in zip(examples, scores, strict=True)]
                for examples, scores in zip((forget, holdout), sides, strict=True)
            )
            membership[attack] = auc(members, others)
    logs, guarded = ([], []) if options is None else (options.log_ratios(), options.guarded_log_ratios())
    return Reference(
        name=name,
        suite=suite,
        split=data.split,
        truth_ratios=tuple(map(truth_ratio_from_log, logs)),
        guarded_truth_ratios=tuple(map(truth_ratio_from_log, guarded)),
        membership=membership,
        forget_nll=tuple(score.mean_nll for score in sides[0]),
        holdout_nll=tuple(score.mean_nll for scores in sides[1:] for score in scores),
    )


def values_of(figures: Mapping[str, Figure], key: str) -> list[float]:
    """Return a figure's items, all of which are numbers."""
    return [value for value in figures[key].items if value is not None]
