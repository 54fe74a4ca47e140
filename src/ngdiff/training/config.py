"""Every setting of an unlearning run, with its unit and default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from transformers import TrainingArguments

from ngdiff.data.long_text import long_text_fault
from ngdiff.errors import Fault, Faults, unknown_name
from ngdiff.losses import LOSSES, find_loss
from ngdiff.methods import RUN, STEP_SIZES, Method, StepSizeName, find_method
from ngdiff.settings import DEFAULT_METHOD, flag_of
from ngdiff.settings.faults import default_of, type_faults
from ngdiff.settings.values import CHECKED, SettingError, range_faults
from ngdiff.steps.forget_buffer import Keep
from ngdiff.steps.gen import START
from ngdiff.steps.weighting import RULES, make_rule
from ngdiff.stopping.rule import parse_stop_at
from ngdiff.training.launch import launch_faults

BATCH = 8
"""Default number of examples in one forward pass of a process."""


def checkpointing(wanted: bool) -> dict[str, Any]:
    """Return the settings that recompute activations in the backward pass, by the names of this version."""
    if not wanted:
        return {}
    fields = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    # the other kind runs layers in a graph of their own, which losses on hidden states cannot see
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


@dataclass
class UnlearningConfig(TrainingArguments):  # type: ignore[misc]
    """Settings of :class:`ngdiff.UnlearningTrainer`, on top of those of ``transformers.TrainingArguments``.

    Only ``output_dir`` has to be given. Defaults that differ from transformers': ``learning_rate`` is None,
    which means automatic; ``num_train_epochs`` (passes over the forget set) is 20, since a run stops when
    it reaches its target; ``max_grad_norm`` is 0 (no clipping); ``remove_unused_columns`` is off; only the
    caller saves anything.

    Args:
        method: a row of :data:`ngdiff.methods.METHODS`; the four settings below override its parts.
        forget_loss: a forget loss of :data:`ngdiff.losses.LOSSES`.
        retain_loss: a retain loss of the same table.
        rule: a row of :data:`ngdiff.steps.weighting.RULES`.
        rule_settings: settings of the rule, such as ``{"alpha": 2}``.
        forget_loss_settings: settings of the forget loss, such as ``{"ceiling": 3}``.
        retain_loss_settings: settings of the retain loss.
        step_size: ``auto`` (the rate is found by probes, whatever the method), ``gen`` (as in GeN's released
            code, :class:`ngdiff.steps.gen.GenRate`) or ``fixed``; None for ``fixed`` where a learning rate is
            given, else the method's own.
        learning_rate: the rate of each optimizer step where it is fixed; where ``auto`` (instead of at a tiny
            step) and ``gen`` begin otherwise. None for the method's usual one (``gen``: or 1e-5).
        probe_every: optimizer steps between two probes of the rate.
        probe_tolerance: rise of the retain loss, in nats per token, that counts as no harm from one probe to
            the next; the default is a tenth of what a floor of 95% leaves.
        stop_at: when the forget set counts as forgotten: ``auto`` (extraction strength and probability, item
            by item, at the level of text the model never saw; see :mod:`ngdiff.stopping.criterion`),
            ``extraction_strength=0.05``, ``probability=0.1``, ``nll=3``, or ``none``.
        keep_utility: floor of each figure that must be kept (see :mod:`ngdiff.training.kept_sets`), as a
            share of its value at the start; 0 for no floor.
        floors: the share of single floors, by name, such as ``{"general": 0.95}``.
        hold_general: take half of each step's retain examples from general text that ships with the
            project, where the retain loss holds the starting model's predictions; None for the method's own.
        sam_radius: length of the ascent step on the forget loss at whose end its gradient is taken, over all
            trainable parameters (sharpness-aware minimisation, :mod:`ngdiff.steps.gradients`); works with
            every method, against relearning, and costs a second pass over the step's forget examples and a
            copy of the trainable weights. 0 for none; None for the method's own.
        check_every: most optimizer steps between two full checks of target and floors.
        max_length: longest sequence, in tokens.
        long_text: ``split`` running text that is longer into pieces, or ``cut`` it there (see
            :mod:`ngdiff.data.long_text`).
        trainable: regular expression; only parameters in whose names it is found are trained.
        forget_buffer: where the forget gradient is kept: ``device`` (beside the retain gradient), ``cpu``, or
            ``bf16`` (on the device, rounded to bfloat16).
        examples_per_step: pairs of a forget and a retain example that one optimizer step takes, over all
            processes and micro-batches; ``per_device_train_batch_size`` is then the most that one process
            runs at a time (where it is not given: 8 on a CPU, on a GPU as many as fit). 0 for their product,
            as everywhere in transformers, and so where either of ``per_device_train_batch_size`` and
            ``gradient_accumulation_steps`` is given; None goes by the size of the forget set, from 8 to 32
            (:func:`ngdiff.data.sharing.examples_of_a_step`).
        eval_steps: optimizer steps between two evaluations during the run (ROUGE, intervals and all, see
            :mod:`ngdiff.training.callbacks`); None or 0 for none. ``eval_strategy`` stays ``no``.
        eval_items: most items of each set that these look at.
        save_minutes: minutes between two checkpoints; 0 for no checkpoints by time. ``save_steps``, with
            ``save_strategy="steps"``, saves by steps.
        save_total_limit: checkpoints to keep; at least two, in case one is damaged.
    """

    method: str = DEFAULT_METHOD
    forget_loss: str | None = None
    retain_loss: str | None = None
    rule: str | None = None
    rule_settings: dict[str, float] = field(default_factory=dict)
    forget_loss_settings: dict[str, float] = field(default_factory=dict)
    retain_loss_settings: dict[str, float] = field(default_factory=dict)
    step_size: str | None = None
    learning_rate: float | None = None
    probe_every: int = 10
    probe_tolerance: float = 0.005
    stop_at: str = None  # type: ignore[assignment]  # this, keep_utility and epochs: see methods.RUN
    keep_utility: float = None  # type: ignore[assignment]
    floors: dict[str, float] = field(default_factory=dict)
    hold_general: bool = None  # type: ignore[assignment]
    sam_radius: float = None  # type: ignore[assignment]
    check_every: int = 10
    max_length: int = 512
    long_text: str = "split"
    trainable: str | None = None
    forget_buffer: str = "device"
    examples_per_step: int | None = None
    # None until __post_init__ has filled them in
    per_device_train_batch_size: int = None  # type: ignore[assignment]
    gradient_accumulation_steps: int = None  # type: ignore[assignment]
    eval_steps: int | None = None
    eval_items: int = 64
    save_minutes: float = 0.0

    num_train_epochs: float = None  # type: ignore[assignment]
    max_grad_norm: float = 0.0
    lr_scheduler_type: str = "constant"
    remove_unused_columns: bool = False
    save_strategy: str = "no"
    save_total_limit: int | None = 2
    logging_steps: float = 1
    logging_nan_inf_filter: bool = False  # it waits for the device at every micro-batch
    seed: int = 0

    def __post_init__(self) -> None:
        batch = (self.per_device_train_batch_size, self.gradient_accumulation_steps)
        self.batch_is_found = all(value is None for value in batch)
        if self.examples_per_step is None and any(value is not None for value in batch):
            self.examples_per_step = 0  # the batch was given, and is what a step takes
        self._fill_batch()
        faults = self._complete()
        if faults:
            raise SettingError(faults)
        for name, value in checkpointing(bool(self.gradient_checkpointing)).items():
            setattr(self, name, getattr(self, name) or value)
        super().__post_init__()

    def _fill_batch(self) -> None:
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = BATCH
        if self.gradient_accumulation_steps is None:
            self.gradient_accumulation_steps = 1

    @property
    def automatic(self) -> bool:
        """Whether probes move the learning rate."""
        return self.step_size != "fixed"

    def _complete(self) -> list[Fault]:
        """Fill in the method's parts; return what is wrong with the settings."""
        faults = Faults(self._type_faults())

        method = faults.attempt(lambda: find_method(self.method), None)
        for name, value in {**RUN, **(method.run if method else {})}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if method is not None:
            if self.rule in (None, method.rule):
                self.rule_settings = {**method.rule_settings, **self.rule_settings}
            self.forget_loss = self.forget_loss or method.forget_loss
            self.retain_loss = self.retain_loss or method.retain_loss
            self.rule = self.rule or method.rule
            faults += self._choose_step_size(method)
            self._share_seed_and_layer()
        checks: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
            (find_loss, (self.forget_loss, "forget", self.forget_loss_settings)),
            (find_loss, (self.retain_loss, "retain", self.retain_loss_settings)),
            (make_rule, (self.rule, self.rule_settings)),
            (parse_stop_at, (self.stop_at,)),
        )
        for check, args in checks:
            if args[0] is not None:
                with faults.collecting():
                    check(*args)
        return faults + self._range_faults() + ([] if faults else launch_faults(self))

    def _choose_step_size(self, method: Method) -> list[Fault]:
        """Decide how the rate is found: as requested, fixed where one is given, or the method's way."""
        asked, known = self.step_size, get_args(StepSizeName)
        if asked is not None and asked not in known:
            self.step_size = None
            return [unknown_name(flag_of("step_size"), "step size", asked, known)]
        self.step_size = asked or (method.step_size if self.learning_rate is None else "fixed")
        if self.step_size == "gen" and self.learning_rate is None:
            self.learning_rate = method.learning_rate or START
        if self.step_size == "fixed" and self.learning_rate is None:
            self.learning_rate = method.learning_rate
            if self.learning_rate is None:
                what = f"the method {method.name!r} has no default learning rate to fix"
                return [Fault(flag_of("step_size"), what, "Give one with --lr")]
        return []

    def _share_seed_and_layer(self) -> None:
        """By default, draw random numbers from the run's seed, and steer and hold the same layer."""
        rule, forget, retain = (
            RULES.get(str(self.rule)),
            LOSSES.get(str(self.forget_loss)),
            LOSSES.get(str(self.retain_loss)),
        )
        if rule is not None and "seed" in rule.settings:
            self.rule_settings = {"seed": self.seed, **self.rule_settings}
        if forget is not None and "seed" in forget.settings:
            self.forget_loss_settings = {"seed": self.seed, **self.forget_loss_settings}
        if all(loss is not None and "layer" in loss.settings for loss in (forget, retain)):
            ours, theirs = self.forget_loss_settings, self.retain_loss_settings
            self.forget_loss_settings = {**_layer_of(theirs), **ours}
            self.retain_loss_settings = {**_layer_of(ours), **theirs}

    def _type_faults(self) -> list[Fault]:
        """List values of the wrong type; defaults take their place, so that the rest can be checked."""
        fields = {name: one for name, one in type(self).__dataclass_fields__.items() if one.init}
        found = type_faults(type(self), {name: getattr(self, name) for name in fields})
        for name in found:
            setattr(self, name, default_of(fields[name]))
        self._fill_batch()
        return list(found.values())

    def _range_faults(self) -> list[Fault]:
        faults = range_faults({name: getattr(self, name) for name in CHECKED})
        if self.automatic and (self.lr_scheduler_type != "constant" or self.warmup_steps):
            fix = "Remove the schedule, or fix the rate with --lr"
            faults.append(Fault("lr_scheduler_type", "an automatic learning rate excludes a schedule", fix))
        faults += [
            Fault(flag_of("floors"), f"{name}={share} is not a share", "Give a number from 0 (no floor) to 1")
            for name, share in self.floors.items()
            if not 0 <= share <= 1
        ]
        if self.forget_buffer not in get_args(Keep):
            flag = flag_of("forget_buffer")
            faults.append(unknown_name(flag, "place", self.forget_buffer, get_args(Keep)))
        if (self.eval_steps or 0) < 0:
            what = f"{self.eval_steps} is negative"
            faults.append(Fault(flag_of("eval_steps"), what, "Give 0 (never) or more"))
        long_text = long_text_fault(self.long_text)
        faults += [] if long_text is None else [long_text]
        if self.fp16:
            fix = "Use bf16, which needs no loss scaling"
            faults.append(
                Fault(
                    "fp16",
                    "fp16 is not supported, because the two gradients cannot share one loss scale",
                    fix,
                )
            )
        return faults


def _layer_of(settings: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in settings.items() if name == "layer"}


# ---- settings of a run -> the paper, or this software, that each part of its method comes from ----


def sources(config: UnlearningConfig) -> dict[str, str]:
    """Return the source of each part that is in use, in the words of the tables.

    Parts that are switched off are omitted: with ``stop_at`` none and ``keep_utility`` 0, no criterion of
    this software decides when the run ends.
    """
    found = {
        "forget_loss": LOSSES[str(config.forget_loss)].paper,
        "retain_loss": LOSSES[str(config.retain_loss)].paper,
        "rule": RULES[str(config.rule)].paper,
        "step_size": STEP_SIZES[cast(StepSizeName, config.step_size)],
    }
    if config.sam_radius > 0:
        found["sam_radius"] = "Fan et al. 2025, arXiv 2502.05374"
    if config.stop_at != "none":
        found["stop_at"] = "NGDiff's own"
    if config.keep_utility > 0:
        found["keep_utility"] = "NGDiff's own"
    if config.hold_general and LOSSES[str(config.retain_loss)].compares == "predictions":
        found["hold_general"] = "NGDiff's own"
    if config.stop_at != "none" and config.step_size == "auto":
        found["pace"] = "NGDiff's own"
    return found
