"""bench request -> the trials it takes: those that tune a method, and those that are reported."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ngdiff.evaluation.cache import cache_key
from ngdiff.evaluation.metrics import changed_definitions
from ngdiff.evaluation.statistics import harmonic_mean
from ngdiff.losses import LOSSES
from ngdiff.methods import Method, find_method
from ngdiff.steps.weighting import RULES

if TYPE_CHECKING:
    from ngdiff.bench.inputs import Hashes

Stopping = Literal["rule", "none"]
Settings = Mapping[str, Any]
TUNING_SEED = 1000
"""Seed of the trials that tune; reports take 0, 1, 2, ..."""


@dataclass(frozen=True)
class BenchRequest:
    """Everything that ``ngdiff bench tofu`` needs to know.

    Args:
        model: the target model: folder or hub name.
        output: the folder that holds everything; what is in it already is not done again.
        methods: names of rows of the table of methods.
        splits: ``forget01``, ``forget05``, ``forget10``.
        references: split (or ``""`` for all) to the retrained model, or its evaluation.
        seeds: runs of each method that are reported.
        trials: settings tried where a method has a range to search; 1 for its defaults alone.
        tune_on: the split whose tuned settings serve all others; None to tune on each.
        stopping: under the stopping rule, to the end of the epochs, or both.
        also_retain: sources that every run is to keep beside the split's retain set.
        epochs: most passes over the forget set; None for the default of ``ngdiff unlearn``.
        learned: how many of TOFU's last questions the target learned; None for all.
        items: most items of each set that are evaluated; None for all.
        settings: further settings of every trial, as for ``ngdiff unlearn``.
        lora: train adapters only.
        tofu_dir: folder with TOFU's JSON files.
        precision: ``auto``, ``bf16`` or ``fp32``.
        batch_size: sequences a forward pass of evaluation.
        paraphrases: also ask paraphrased questions.
        gradient_norms: also run the membership attack by gradient norm.
        keep_models: keep the weights of the reported runs.
        jobs: trials at once; None for as many as there are GPUs, or one.
        trust_remote_code: run Python code that comes with the models.
    """

    model: str
    output: Path
    methods: tuple[str, ...]
    splits: tuple[str, ...]
    references: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 3
    trials: int = 1
    tune_on: str | None = None
    stopping: tuple[Stopping, ...] = ("rule",)
    also_retain: tuple[str, ...] = ()
    epochs: float | None = None
    learned: int | None = None
    items: int | None = None
    settings: Settings = field(default_factory=dict)
    lora: bool = False
    tofu_dir: Path | None = None
    precision: str = "auto"
    batch_size: int = 8
    paraphrases: bool = True
    gradient_norms: bool = False
    keep_models: bool = False
    jobs: int | None = None
    trust_remote_code: bool = False

    def tuned_on(self, split: str) -> str:
        """Return the split on which the settings for a split are chosen."""
        return self.tune_on or split

    def reference(self, split: str) -> str | None:
        """Return the retrained model of a split, or its evaluation, where one was given."""
        return self.references.get(split, self.references.get(""))


@dataclass(frozen=True)
class Trial:
    """One unlearning run of the benchmark.

    Args:
        split: of TOFU.
        method: name of its row.
        stopping: under the stopping rule, or to the end of the epochs.
        label: ``tune-N`` or ``seed-N``.
        settings: of the run, beyond the method's name.
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
        return Path("trials") / self.split / kind / self.label

    def key(self, request: BenchRequest, inputs: Hashes) -> str:
        """Return a hash of all that decides the trial's outcome: model, data, method, settings, evaluation.

        What a figure means is part of it: the stopping rule and tuning go by figures, too.
        """
        own = {**asdict(self), "settings": dict(self.settings), "recipe": recipe(find_method(self.method))}
        common = {"model": inputs.model, "rows": inputs.learned, "lora": request.lora}
        measured = evaluation_key(request, inputs) if self.evaluate else None
        return cache_key(own, common, measured, request.precision, changed_definitions())


def evaluation_key(request: BenchRequest, inputs: Hashes) -> list[Any]:
    """Return all that decides what an evaluation finds beside the model."""
    return [inputs.evaluated, inputs.reference, request.paraphrases, request.gradient_norms]


def recipe(method: Method) -> dict[str, Any]:
    """Return what a method's name stands for today: its parts with all their settings."""
    rule = {**RULES[method.rule].settings, **method.rule_settings}
    losses = (LOSSES[method.forget_loss], LOSSES[method.retain_loss])
    return {
        "losses": [[loss.name, dict(loss.settings)] for loss in losses],
        "rule": [method.rule, rule],
        "step_size": [method.step_size, method.learning_rate],
        "run": dict(method.run),
    }


def candidates(method: Method, count: int) -> list[dict[str, Any]]:
    """Return the settings to try: the method's defaults, then others of its search range.

    The others are drawn at random, and ordered so that every value of every setting comes up about as often
    as any other, however few are tried. The draw depends on the method's name alone, so that more trials go
    on from fewer.
    """
    defaults = {"learning_rate": method.learning_rate} if method.learning_rate is not None else {}
    if not method.search:
        return [defaults]
    names = list(method.search)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*method.search.values())]
    random.Random(method.name).shuffle(grid)
    usual = _defaults(method)
    rest = [found for found in grid if found != usual]
    return [defaults, *_spread(rest, usual, max(1, count) - 1)]


def _spread(rest: Sequence[dict[str, Any]], first: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Draw settings, each time those whose values came up least so far; ``first`` came up already."""
    left = list(rest)
    taken: list[dict[str, Any]] = []
    seen = Counter(first.items())
    while left and len(taken) < count:
        found = min(left, key=lambda settings: sum(seen[item] for item in settings.items()))
        left.remove(found)
        taken.append(found)
        seen.update(found.items())
    return taken


def _defaults(method: Method) -> dict[str, Any]:
    """Return a method's usual values of the settings in its search range."""
    usual: dict[str, Any] = {"learning_rate": method.learning_rate}
    tables = {
        "rule_settings": {**RULES[method.rule].settings, **method.rule_settings},
        "forget_loss_settings": LOSSES[method.forget_loss].settings,
        "retain_loss_settings": LOSSES[method.retain_loss].settings,
    }
    for group, values in tables.items():
        usual |= {f"{group}.{name}": value for name, value in values.items()}
    return {name: usual.get(name) for name in method.search}


def nested(settings: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Turn ``rule_settings.alpha`` and its like into the dictionaries that a run takes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group, dot, own = name.partition(".")
        if dot:
            start = dict(method.rule_settings) if group == "rule_settings" else {}
            found.setdefault(group, start)[own] = value
        else:
            found[name] = value
    return found


def tuning(request: BenchRequest) -> list[Trial]:
    """List the trials from which the settings of each method are chosen; none where there is no choice."""
    trials = []
    splits = dict.fromkeys(request.tuned_on(split) for split in request.splits)
    for split, name in itertools.product(splits, request.methods):
        method = find_method(name)
        choices = candidates(method, request.trials)
        if len(choices) > 1:
            trials += [
                _trial(request, split, method, "rule", f"tune-{number}", chosen, TUNING_SEED)
                for number, chosen in enumerate(choices)
            ]
    return trials


def reporting(request: BenchRequest, chosen: Mapping[tuple[str, str], Settings]) -> list[Trial]:
    """List the trials that are reported, each method with the settings chosen for it on the split."""
    trials = []
    for split, name, stopping in itertools.product(request.splits, request.methods, request.stopping):
        method = find_method(name)
        settings = chosen.get((request.tuned_on(split), name), candidates(method, 1)[0])
        trials += [
            _trial(request, split, method, stopping, f"seed-{seed}", settings, seed)
            for seed in range(request.seeds)
        ]
    return trials


def _trial(
    request: BenchRequest,
    split: str,
    method: Method,
    stopping: Stopping,
    label: str,
    chosen: Settings,
    seed: int,
) -> Trial:
    settings: dict[str, Any] = {**request.settings, **nested(chosen, method), "seed": seed}
    if request.epochs is not None:
        settings["num_train_epochs"] = request.epochs
    if stopping == "none":
        settings["stop_at"] = "none"
        settings.setdefault("keep_utility", 0.0)  # all steps count, whatever they cost
    return Trial(split, method.name, stopping, label, settings, evaluate=label.startswith("seed"))


def selection_score(record: Mapping[str, Any]) -> float | None:
    """Return how good a tuning trial was, in [0, 1]: the harmonic mean of three shares.

    None where a figure of it was not finite: nothing can be said of such a trial.

    - Forgotten: how far the forget set's extraction strength came down from where it was to that of text the
      model never saw.
    - Kept: the held-out retain examples' answer probability, over its value before, at most 1.
    - Neighbourhood: the never-seen text's answer probability, likewise.

    Nothing in it needs the retrained model, which nobody has who tunes a method for use.
    """
    before, after = record["before"], record["after"]
    parts = [("forget", "extraction_strength"), ("retain", "probability"), ("never_seen", "probability")]
    if any(side[part][figure] is None for side in (before, after) for part, figure in parts):
        return None
    level = before["never_seen"]["extraction_strength"]
    span = before["forget"]["extraction_strength"] - level
    fallen = before["forget"]["extraction_strength"] - after["forget"]["extraction_strength"]
    shares = [min(1.0, max(0.0, fallen / span)) if span > 0 else 1.0]
    for part in ("retain", "never_seen"):
        shares.append(min(1.0, after[part]["probability"] / max(before[part]["probability"], 1e-12)))
    return harmonic_mean(shares)
