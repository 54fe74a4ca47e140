"""bench request -> the trials it takes: those that tune a method, and those that are reported."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ngdiff.bench.grid import Settings, candidates, nested
from ngdiff.bench.variants import Variant, ablations, find_variant, same_conditions
from ngdiff.data.benchmarks import Folders
from ngdiff.evaluation.metrics import changed_definitions
from ngdiff.evaluation.statistics import harmonic_mean
from ngdiff.losses import LOSSES
from ngdiff.methods import Method, find_method
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.steps.weighting import RULES
from ngdiff.system.cache import cache_key

if TYPE_CHECKING:
    from ngdiff.bench.inputs import Hashes

Stopping = Literal["rule", "none"]
TUNING_SEED = 1000
"""Seed of the trials that tune; reports take 0, 1, 2, ..."""
TRIALS, TUNING = "trials", "tuning-"
"""Begins the name of the questions to tune on: as many as the forget set has that it ends with."""


@dataclass(frozen=True)
class BenchRequest:
    """Everything that ``ngdiff bench`` needs to know.

    Args:
        model: the target model: folder or hub name.
        output: the folder that holds everything; what is in it already is not done again.
        methods: names of rows of the table of methods.
        splits: forget sets of the suite, such as ``forget01``.
        references: split (or ``""`` for all) to the retrained model, or its evaluation.
        seeds: runs of each method that are reported.
        trials: settings tried where a method has a range to search; 1 for its defaults alone.
        tune_on: tune on as many questions as this split has, and use the settings on all; None to tune on
            as many as each split has. The questions are those before the largest split's.
        same_conditions: also run each method with the default's retain loss, step size and stopping.
        ablate: also run the default method with one part changed at a time.
        stopping: under the stopping rule, to the end of the epochs, or both.
        also_retain: sources that every run is to keep beside the split's retain set.
        epochs: most passes over the forget set; None for the default of ``ngdiff unlearn``.
        learned: how many of TOFU's last questions the target learned; None for all.
        items: most items of each set that are evaluated; None for all.
        settings: further settings of every trial, as for ``ngdiff unlearn``.
        lora: train adapters only.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        precision: ``auto``, ``bf16`` or ``fp32``.
        batch_size: sequences a forward pass of evaluation.
        paraphrases: also ask paraphrased questions.
        gradient_norms: also run the membership attack by gradient norm.
        keep_models: keep the weights of the reported runs.
        jobs: trials at once; None for as many as there are GPUs, or one.
        trust_remote_code: run Python code that comes with the models.
        suite: name of a row of :data:`ngdiff.bench.suites.SUITES`.
        corpus: of MUSE, ``news`` or ``books``.
        texts: the target learned so many texts of each set of MUSE, the first; None for all.
        forget: one's own data: sources of what to forget.
        retain: sources of what to keep; under MUSE in place of its own retain text.
        holdout: sources of text never seen.
    """

    model: str
    output: Path
    methods: tuple[str, ...]
    splits: tuple[str, ...]
    references: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 3
    trials: int = 1
    tune_on: str | None = None
    same_conditions: bool = False
    ablate: bool = False
    stopping: tuple[Stopping, ...] = ("rule",)
    also_retain: tuple[str, ...] = ()
    epochs: float | None = None
    learned: int | None = None
    items: int | None = None
    settings: Settings = field(default_factory=dict)
    lora: bool = False
    folders: Folders = field(default_factory=dict)
    precision: str = "auto"
    batch_size: int = 8
    paraphrases: bool = True
    gradient_norms: bool = False
    keep_models: bool = False
    jobs: int | None = None
    trust_remote_code: bool = False
    suite: str = "tofu"
    corpus: str = "news"
    texts: int | None = None
    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of everything that is run: the methods, and what else was requested."""
        names = list(self.methods)
        if self.same_conditions:
            names += same_conditions(self.methods)
        if self.ablate:
            names += [DEFAULT_METHOD, *ablations(DEFAULT_METHOD)]
        return tuple(dict.fromkeys(names))

    def tuned_on(self, split: str) -> str:
        """Return the name of the questions on which the settings for a split are chosen."""
        return TUNING + (self.tune_on or split)

    def reference(self, split: str) -> str | None:
        """Return the retrained model of a split, or its evaluation, where one was given."""
        return self.references.get(split, self.references.get(""))


@dataclass(frozen=True)
class Trial:
    """One unlearning run of the benchmark.

    Args:
        split: of TOFU, or the name of the questions to tune on.
        method: name of its variant, see :mod:`ngdiff.bench.variants`.
        stopping: under the stopping rule, or to the end of the epochs.
        label: ``tune-N``, ``tune-wider-ROUND-N`` or ``seed-N``.
        settings: of the run, beyond the name of its method.
        evaluate: whether the model is evaluated with the whole suite afterwards.
    """

    split: str
    method: str
    stopping: Stopping
    label: str
    settings: Settings
    evaluate: bool

    @property
    def place(self) -> Path:
        """The trial's folder below the benchmark's."""
        kind = self.method if self.stopping == "rule" else f"{self.method}-no-stop"
        return Path(TRIALS) / self.split / kind / self.label

    def key(self, request: BenchRequest, inputs: Hashes) -> str:
        """Return a hash of all that decides the trial's outcome: model, data, method, settings, evaluation.

        What a figure means is part of it: the stopping rule and tuning go by figures, too.
        """
        variant = find_variant(self.method)
        own = {**asdict(self), "settings": dict(self.settings), "recipe": recipe(variant.method)}
        if variant.settings:  # the rest of it is its row's
            own["row"] = [variant.row, recipe(find_method(variant.row))]
        common = {"model": inputs.model, "rows": inputs.learned, "lora": request.lora}
        measured = evaluation_key(request, inputs) if self.evaluate else None
        return cache_key(own, common, measured, request.precision, changed_definitions())


def evaluation_key(request: BenchRequest, inputs: Hashes) -> list[Any]:
    """Return all that decides what an evaluation finds beside the model."""
    return [inputs.evaluated, inputs.reference, request.paraphrases, request.gradient_norms]


def recipe(method: Method) -> dict[str, Any]:
    """Return the current meaning of a method's name: its parts with all their settings."""
    rule = {**RULES[method.rule].settings, **method.rule_settings}
    losses = (LOSSES[method.forget_loss], LOSSES[method.retain_loss])
    return {
        "losses": [[loss.name, dict(loss.settings)] for loss in losses],
        "rule": [method.rule, rule],
        "step_size": [method.step_size, method.learning_rate],
        "run": dict(method.run),
    }


def tuning(request: BenchRequest) -> list[Trial]:
    """List the trials from which the settings of each method are chosen; none where there is no choice."""
    trials = []
    splits = dict.fromkeys(request.tuned_on(split) for split in request.splits)
    for split, name in itertools.product(splits, request.variants):
        choices = candidates(find_variant(name).method, request.trials)
        if len(choices) > 1:
            trials += [
                tuning_trial(request, split, name, f"tune-{number}", chosen)
                for number, chosen in enumerate(choices)
            ]
    return trials


def tuning_trial(request: BenchRequest, split: str, name: str, label: str, chosen: Settings) -> Trial:
    """Return the trial of one setting; it runs under the stopping rule and is not evaluated."""
    return _trial(request, split, find_variant(name), "rule", label, chosen, TUNING_SEED)


def reporting(request: BenchRequest, chosen: Mapping[tuple[str, str], Settings]) -> list[Trial]:
    """List the trials that are reported, each method with the settings chosen for it on the split."""
    trials = []
    for split, name, stopping in itertools.product(request.splits, request.variants, request.stopping):
        variant = find_variant(name)
        settings = chosen.get((request.tuned_on(split), name), candidates(variant.method, 1)[0])
        trials += [
            _trial(request, split, variant, stopping, f"seed-{seed}", settings, seed)
            for seed in range(request.seeds)
        ]
    return trials


def _trial(
    request: BenchRequest,
    split: str,
    variant: Variant,
    stopping: Stopping,
    label: str,
    chosen: Settings,
    seed: int,
) -> Trial:
    method = variant.method
    settings: dict[str, Any] = {**request.settings, **variant.settings, **nested(chosen, method)}
    settings["seed"] = seed
    if request.epochs is not None:
        settings["num_train_epochs"] = request.epochs
    if stopping == "none":
        settings["stop_at"] = "none"
        settings.setdefault("keep_utility", 0.0)  # all steps count, whatever they cost
    return Trial(split, method.name, stopping, label, settings, evaluate=label.startswith("seed"))


class Ending(NamedTuple):
    """How a run ended.

    Args:
        code: why, in one word.
        left: items of the forget set that are left; None without a target.
    """

    code: str
    left: int | None


def ending(record: Mapping[str, Any]) -> Ending:
    """Return how a run ended, as its record says."""
    stop = record["stop"]
    left = stop.get("left") if stop.get("target") is not None else None
    return Ending(str(stop["code"]), None if left is None else len(left))


def selection_score(record: Mapping[str, Any]) -> float | None:
    """Return how good a tuning trial was, in [0, 1]: the harmonic mean of three shares.

    None where a figure of it was not finite: nothing can be said of such a trial.

    - Forgotten: how far the forget set's extraction strength, and its answer probability, came down from
      where they were to those of text the model never saw; the lesser of the two.
    - Kept: the held-out retain examples' answer probability, over its value before, at most 1.
    - Neighbourhood: the never-seen text's answer probability, in the same way.

    Nothing in it needs a retrained model: there is none for the questions that tune, and nobody has one who
    tunes a method for use.
    """
    before, after = record["before"], record["after"]
    target = (record.get("stop") or {}).get("target") or {}
    text = target.get("measure") == "verbatim"  # of running text extraction strength says next to nothing
    measures = ("verbatim" if text else "extraction_strength", "probability")
    parts = [("forget", measure) for measure in measures]
    parts += [("retain", "probability"), ("never_seen", "probability")]
    if any(side[part][figure] is None for side in (before, after) for part, figure in parts):
        return None
    shares = [min(_forgotten(before, after, measure) for measure in measures)]
    for part in ("retain", "never_seen"):
        shares.append(min(1.0, after[part]["probability"] / max(before[part]["probability"], 1e-12)))
    return harmonic_mean(shares)


def _forgotten(before: Mapping[str, Any], after: Mapping[str, Any], measure: str) -> float:
    """Return how far a measure of the forget set fell towards that of never-seen text, in [0, 1]."""
    start = before["forget"][measure]
    span = start - before["never_seen"][measure]
    return min(1.0, max(0.0, (start - after["forget"][measure]) / span)) if span > 0 else 1.0
