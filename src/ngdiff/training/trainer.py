"""model, forget set and retain set -> an unlearned model and its record: the loop.

The loop itself is ``transformers.Trainer``'s. This class adds what unlearning needs: two losses and two
gradients a step, the rule that weighs them, the step size, and the decision to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from ngdiff.data.batching import (
    ABSENT,
    GENERAL_EVERY,
    Batch,
    PairCollator,
    PairedDataset,
    PairSampler,
    RetainStream,
)
from ngdiff.data.datasets import as_encoded, encoded, split_retain
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.data.overlaps import small_sets
from ngdiff.data.secrets import kept_texts, with_secrets
from ngdiff.data.sharing import loader
from ngdiff.data.sources import general_split
from ngdiff.errors import Fault, RunError
from ngdiff.inference.teacher_forced import AnswerScore, batch_extraction_strength
from ngdiff.losses import LOSSES, Loss
from ngdiff.models.logprobs import LabelledTokens
from ngdiff.models.parameters import BestWeights, ChangeMeter, train_only
from ngdiff.preparation.comparisons import Comparisons, Setting, before_the_model, layers_looked_behind
from ngdiff.record import RunRecord
from ngdiff.runs.resumable import ResumableTrainer
from ngdiff.steps.gen import GenRate
from ngdiff.steps.gradients import GradientPair, Task, Weights, sharpen
from ngdiff.steps.stepsize import AutomaticRate
from ngdiff.steps.weighting import RULES, Losses, Verdict, judge, make_rule
from ngdiff.stopping import never_seen
from ngdiff.stopping.criterion import Guess, ItemWatch, means
from ngdiff.stopping.never_seen import guess_errors, guesses
from ngdiff.stopping.rule import ForgetTarget, StoppingRule, parse_stop_at
from ngdiff.system.environment import machine, versions
from ngdiff.system.processes import looking, no_exchange, process_count, raise_faults, summed
from ngdiff.training import launch, run_state
from ngdiff.training.checks import after_step, every_row, view_of
from ngdiff.training.config import UnlearningConfig, sources
from ngdiff.training.finish import conclude
from ngdiff.training.inputs import complete_inputs, refuse_overlap
from ngdiff.training.kept_sets import ROOM, KeptSets
from ngdiff.training.measurements import Measurements, ProbeLoss, informative_at_start
from ngdiff.training.micro_batches import MicroBatches, parts_of, try_largest
from ngdiff.training.run_state import RunState, StepState, combined_norm
from ngdiff.training.trackers import step_figures

TASKS: tuple[Task, Task] = ("forget", "retain")


class _Hooks(TrainerCallback):  # type: ignore[misc]
    """Calls the trainer back at the moments between backward pass, optimizer step and next batch."""

    def __init__(self) -> None:
        self.trainer: UnlearningTrainer | None = None

    def _owner(self) -> UnlearningTrainer:
        assert self.trainer is not None
        return self.trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._owner()
        trainer._begin()
        if trainer.args.device.type == "cuda" and trainer._recovers and trainer.run.decision is None:
            try_largest(trainer)
        if trainer._resumed is not None and trainer.run.decision is not None:
            trainer.no_more_steps = control.should_training_stop = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._owner()._before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._owner()._after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if after_step(self._owner()) is not None:
            control.should_training_stop = True


class UnlearningTrainer(ResumableTrainer):
    """Makes a model forget one data set and keep another.

    Args:
        model: a causal language model, or the name or folder of one, which is loaded in float32.
        args: the settings; by default all their defaults, with ``output_dir`` named after the model.
        forget_dataset: what to forget: a ``datasets.Dataset``, or a list of rows, of
            :class:`~ngdiff.data.examples.Example` or of :class:`~ngdiff.data.encoding.EncodedExample`.
            Columns as in :mod:`ngdiff.data.examples`.
        retain_dataset: what to keep, in the same forms. A part of it is held out to measure utility on.
        holdout_dataset: text of the same kind that the model never saw, in the same forms; without one, text
            of the forget set's kinds is invented. It sets the level at which ``stop_at="auto"`` stops.
        earlier_datasets: forget sets of earlier requests, by names that no other set has. They are measured
            before and after under these names, to show whether any of them comes back.
        keep_datasets: further sets that must be kept, by names that no other set has. Nothing is trained on
            them, and each has its own floor (see :mod:`ngdiff.training.kept_sets`).
        eval_dataset: a further set to measure, under the name ``eval``; :meth:`evaluate` looks at all sets.
        allow_overlap: continue although forget, retain and holdout set share rows or answers.
        processing_class: the tokenizer; by default the model's own.
        peft_config: train adapters of this kind only.
        callbacks: further callbacks.
        optimizers: optimizer and scheduler to use instead of the configured ones.
    """

    control: Any  # transformers' own

    CHECK_SIZE: ClassVar[int] = 128
    """Forget examples that a check during the run measures; before the run ends, all are measured. At most
    half as many retain examples are held out."""
    PATIENCE: ClassVar[int] = 3
    """Consecutive checks under a floor after which the run stops."""
    PROBE_SHARE: ClassVar[float] = 0.75
    """Retain examples of a probe, as a share of a step's: three forward passes cost under 5% of ten steps."""

    def __init__(
        self,
        model: nn.Module | str | Path,
        args: UnlearningConfig | None = None,
        *,
        forget_dataset: Any,
        retain_dataset: Any,
        holdout_dataset: Any = None,
        earlier_datasets: Mapping[str, Any] | None = None,
        keep_datasets: Mapping[str, Any] | None = None,
        eval_dataset: Any = None,
        allow_overlap: bool = False,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        whole, args, processing_class = complete_inputs(model, args, processing_class)
        self.begins_with(model, whole, peft_config is not None)
        self.record = RunRecord()
        self.pad_id = _pad_id(processing_class)
        told: list[str] = []

        def read(dataset: Any, where: str) -> list[EncodedExample]:
            found, notes = encoded(dataset, processing_class, args.max_length, where, args.long_text)
            told.extend(notes)
            return list(found)

        self.forget_set = read(forget_dataset, "forget_dataset")
        self.forget_set = before_the_model(
            LOSSES[str(args.forget_loss)], self.forget_set, processing_class, args.max_length, args.seed
        )
        retain = read(retain_dataset, "retain_dataset")
        self.retain_set, self.held_out_set, note = split_retain(retain, self.CHECK_SIZE // 2, args.seed)
        holdout = [] if holdout_dataset is None else read(holdout_dataset, "holdout_dataset")
        if not allow_overlap:
            refuse_overlap(self.forget_set, retain, holdout)
        unseen = (
            never_seen.invented(self.forget_set, processing_class, args.max_length)
            if holdout_dataset is None
            else never_seen.given(holdout, self.forget_set)
        )
        self._never_seen, self.level_source = unseen.examples, unseen.source
        self._is_text = never_seen.is_text(self.forget_set)
        if holdout_dataset is None and (lacking := never_seen.missing_holdout(self.forget_set)):
            told.append(lacking)
        earlier, kept = (
            {name: read(data, name) for name, data in (datasets or {}).items()}
            for datasets in (earlier_datasets, keep_datasets)
        )
        self.given_sets = {"forget": self.forget_set, "retain": retain, "holdout": holdout}
        self.given_sets |= {f"keep {name}": examples for name, examples in kept.items()}
        for text in [*told, *unseen.notes, *small_sets(len(self.forget_set), len(retain))]:
            self.record.note(text)
        kept_text = kept_texts(self.retain_set)
        self.own_retain = len(self.retain_set)
        self.retain_set = [*self.retain_set, *general_to_hold(args, processing_class)]
        self.forget_set = with_secrets(self.forget_set, kept_text, processing_class)
        self._never_seen = with_secrets(self._never_seen, kept_text, processing_class)
        if note:
            self.record.note(note)
        if peft_config is not None:
            from peft import get_peft_model

            set_seed(args.seed)  # adapters begin at random
            whole = get_peft_model(whole, peft_config)
        self.losses: dict[Task, Loss] = {
            "forget": LOSSES[str(args.forget_loss)].complete(args.forget_loss_settings, None),
            "retain": LOSSES[str(args.retain_loss)].complete(args.retain_loss_settings, None),
        }
        self._measured = layers_looked_behind(whole, self.losses)
        if args.trainable is not None:
            train_only(whole, args.trainable)
        self._shares = launch.share_steps(args, self.record, len(self.forget_set))
        hooks, pairs = _Hooks(), PairedDataset(self.forget_set, self.retain_set)
        super().__init__(
            model=whole,
            args=args,
            train_dataset=pairs,
            eval_dataset=self.held_out_set,  # transformers asks for one; evaluate() looks at all sets
            data_collator=PairCollator(self.pad_id, pairs),
            processing_class=processing_class,
            callbacks=[hooks, *(callbacks or ())],
            optimizers=optimizers,
        )
        hooks.trainer = self
        sets = {"forget": self.forget_set, "retain": self.held_out_set, "never_seen": self._never_seen}
        further = {} if eval_dataset is None else {"eval": read(eval_dataset, "eval_dataset")}
        self.measurements = Measurements(self, sets | earlier | kept | further)
        self.kept = KeptSets(self, kept)
        self.guesses: Mapping[int, Guess] = {}
        self.guess_errors: Sequence[float] = ()
        self.run = RunState(
            ItemWatch(len(self.forget_set), self.CHECK_SIZE, args.seed),
            BestWeights(whole, Path(args.output_dir)),
            make_rule(str(args.rule), args.rule_settings),
        )
        self.save_minutes = args.save_minutes
        self.comparisons: Comparisons | None = None
        self._rule_row = RULES[str(args.rule)]
        self._apart = args.sam_radius > 0 or not self._rule_row.fixed
        launch.check(self)
        self.pair: GradientPair | None = None
        self.micro_batches = MicroBatches(self.note)
        self._batches: list[dict[str, Any]] = []
        self._resumed: tuple[Path, dict[str, Any]] | None = None
        self._has_holdout = holdout_dataset is not None
        if args.eval_steps:
            from ngdiff.training.callbacks import EvaluationCallback, EvaluationPlan

            self.add_callback(EvaluationCallback(self, EvaluationPlan(args.eval_steps, args.eval_items)))

    # ---- data ----

    def begins_with(self, given: nn.Module | str | Path, model: nn.Module, adapted: bool) -> None:
        """Take note of the starting model before anything is done to it; here there is nothing to note.

        Args:
            given: what the caller gave.
            model: the loaded model.
            adapted: whether adapters are about to be put on it.
        """

    @property
    def training_sets(self) -> dict[Task, list[EncodedExample]]:
        """The examples that steps are made of, as the losses have completed them."""
        return {"forget": self.forget_set, "retain": self.retain_set}

    @property
    def forget_examples(self) -> list[Example]:
        """What is to be forgotten."""
        return [encoded.example for encoded in self.forget_set]

    @property
    def held_out_examples(self) -> list[Example]:
        """The part of the retain set that utility is measured on, and no step sees."""
        return [encoded.example for encoded in self.held_out_set]

    @property
    def holdout_examples(self) -> list[Example]:
        """Text that the model never saw, where the caller gave some."""
        return [encoded.example for encoded in self._never_seen] if self._has_holdout else []

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        own, general = self.own_retain, len(self.retain_set) - self.own_retain
        return PairSampler(len(self.forget_set), own, self.args.seed, self._rows_of_epoch, general)

    def _rows_of_epoch(self, epoch: int) -> list[int]:
        """Return the forget rows that an epoch draws from: those left at the last check.

        An epoch that a checkpoint interrupts draws from the rows that it began with.
        """
        if self.run.epoch_rows is None or self.run.epoch_rows[0] != epoch:
            wanted = self.run.stopping is not None and self.run.stopping.target is not None
            self.run.epoch_rows = (epoch, self.run.items.to_push() if wanted else every_row(self))
        return self.run.epoch_rows[1]

    def get_train_dataloader(self) -> Any:
        """Return this process's share of every step's examples."""
        return loader(self, self.train_dataset, self._get_train_sampler(), self._shares)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Take the micro-batches of one step and count, for each task, the items its loss averages over."""
        if self.no_more_steps:
            return [], None
        batches = list(islice(epoch_iterator, num_batches))
        self._batches = batches if self.args.sam_radius > 0 else []
        counts: dict[Task, int] = {}
        for task in TASKS:
            mine = sum(self.losses[task].count(batch[task]) for batch in batches if ABSENT not in batch)
            counts[task] = int(summed(torch.tensor(mine, device=device)))
        self.run.step = StepState(counts, self._retain_rows_of_step())
        self.micro_batches.begin_step()
        if self.pair is not None:
            self.pair.clear()
        return batches, None

    def _retain_rows_of_step(self) -> set[int]:
        """Return the retain rows of the step to come, over all processes."""
        each, size = self._shares.examples, len(self.forget_set)
        epoch, place = divmod(self.state.global_step, -(-size // each))
        stream = self._retain_stream
        first, last = place * each, min(size, (place + 1) * each)
        return {stream[epoch * size + position] for position in range(first, last)}

    # ---- one step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Add one micro-batch to both gradients; after the last one, weigh and combine them."""
        model.train()
        weights = None if self._apart else self.run.rule(torch.eye(2, dtype=torch.float64))
        if weights is not None and self.is_deepspeed_enabled:
            return self._single_backward(model, inputs, weights)
        if self.pair is None:
            self.pair = GradientPair(model.parameters(), self.args.forget_buffer)
        if self._recovers:
            self.micro_batches.take(
                inputs, lambda part: self.add_micro_batch(model, part, weights), self._begin_step_anew
            )
        else:
            self.add_micro_batch(model, inputs, weights)
        if self.accelerator.sync_gradients:
            self._finish_gradients()
            self._combine(weights)
        return self.run.step.reported.nan_to_num(0.0, 0.0, 0.0)  # a look would make the host wait

    @property
    def _recovers(self) -> bool:
        """Whether a process can split its micro-batches differently from the others."""
        return process_count() == 1 or self._adds_up

    def _begin_step_anew(self) -> None:
        assert self.pair is not None
        self.pair.clear()
        self.run.step = StepState(self.run.step.counts, self.run.step.retain_rows)

    def add_micro_batch(self, model: nn.Module, inputs: Mapping[str, Any], weights: Weights | None) -> None:
        """Add one micro-batch to both gradients, or to one where the weights are fixed."""
        assert self.pair is not None
        self.run.step.absent = ABSENT in inputs
        for task in TASKS:
            factor = 1.0 if weights is None else getattr(weights, task)
            if factor == 0:
                continue
            with no_exchange(model, self._adds_up):
                loss = self._task_loss(model, self._prepare_inputs(inputs[task]), task)
                with self.pair.task(task if weights is None else "retain"):
                    torch.autograd.backward(loss * (factor * self._averaged_over))
            self.run.step.add_loss(task, loss)

    def _single_backward(self, model: nn.Module, inputs: dict[str, Any], weights: Weights) -> Tensor:
        """Add one micro-batch in one backward pass; after the last one, DeepSpeed itself takes the step.

        Raises:
            RunError: a loss is not finite, since DeepSpeed cannot skip its step.
        """
        self.run.step.absent = ABSENT in inputs
        total, reported = None, torch.zeros((), device=self.args.device)
        for task in TASKS:
            factor = getattr(weights, task)
            if factor == 0:
                continue
            loss = self._task_loss(model, self._prepare_inputs(inputs[task]), task)
            self.run.step.add_loss(task, loss)
            if self.run.decision is not None:  # already decided before the first step: change nothing
                factor = 0.0
            reported, scaled = loss.detach(), loss * (factor * process_count())
            total = scaled if total is None else total + scaled
        assert total is not None
        if self.agreed(not math.isfinite(float(total.detach()))):
            raise RunError("the loss is not finite, and DeepSpeed cannot skip a step: give a smaller --lr")
        # the losses are shares of the whole step's already
        self.accelerator.backward(total, scale_wrt_gas=False)
        if self.accelerator.sync_gradients:
            self.run.step.send(self.args.device)
            self.run.step.receive(arrived=False)
            self.run.step.weights = weights
        return reported

    @property
    def _adds_up(self) -> bool:
        return launch.adds_up_itself(self, self.model_wrapped)

    @property
    def _averaged_over(self) -> int:
        """The number that the exchange of gradients divides by; their sum is needed."""
        return 1 if self._adds_up else process_count()

    def _finish_gradients(self) -> None:
        """Combine what each process gathered over its micro-batches."""
        assert self.pair is not None
        if self._adds_up:
            self.pair.add_up()
        if self.args.sam_radius > 0:
            sharpen(self.pair, self.args.sam_radius, self._forget_again)
        self.run.step.send(self.args.device)

    def _forget_again(self) -> None:
        """Compute the forget gradient of the step's micro-batches again, without recording it."""
        assert self.pair is not None
        model = self.model_wrapped
        for inputs in self._batches:
            self.run.step.absent = ABSENT in inputs
            for part in parts_of(inputs, self.micro_batches.most):
                with no_exchange(model, self._adds_up), self.pair.task("forget"):
                    loss = self._task_loss(model, self._prepare_inputs(part["forget"]), "forget", watch=False)
                    torch.autograd.backward(loss * self._averaged_over)
        if self._adds_up:
            self.pair.add_up("forget")

    def _task_loss(self, model: nn.Module, batch: Batch, task: Task, watch: bool = True) -> Tensor:
        assert self.comparisons is not None
        tokens = self.comparisons.look(task, model, batch)
        loss = self._loss_now(task).function(tokens) / self.run.step.counts[task]
        if self.run.step.absent:
            return loss * 0
        if not watch:
            return loss
        if task == "forget" and isinstance(tokens, LabelledTokens) and self.losses[task].own_answers:
            self.run.step.watch("strength", batch_extraction_strength(tokens), tokens.row_count)
            if self.run.stopping is not None and self.run.stopping.watches_nll:
                with torch.no_grad():
                    self.run.step.watch("nll", -tokens.log_probs().mean(), len(tokens.targets))
        return loss

    def _loss_now(self, task: Task) -> Loss:
        """Return a task's loss; for a divergence from the starting model, the NLL at the first step.

        Where the model is still the starting model, the gradient of the divergence is rounding noise.
        Normalised rules would stretch it to full length, and the first rate is derived from that step.
        """
        loss = self.losses[task]
        first = self.args.automatic and self.state.global_step == 0
        return informative_at_start(loss) if first and task == "retain" else loss

    def _combine(self, fixed: Weights | None) -> None:
        assert self.pair is not None
        if fixed is not None:
            self.run.step.weights = fixed
            self.run.step.verdict = Verdict.STEP
            self.pair.combine(Weights(1.0, 0.0))
            self.run.step.receive(arrived=False)
            if not all(math.isfinite(loss) for loss in self.run.step.losses.values()):
                self.run.step.verdict = Verdict.NON_FINITE
            return
        gramian = self.pair.gramian()
        self.run.step.receive(arrived=True)
        self.run.step.gramian, self.run.step.verdict = gramian, judge(gramian)
        if self.run.step.verdict is Verdict.STEP:
            self.run.step.weights = self.run.rule(gramian, self._global_losses())
            self.run.step.sampled = {task: self._meter.sample(self.pair.gradient(task)) for task in TASKS}
            if self._rule_row.per_coordinate is not None:
                self.pair.combine_each(self._rule_row.per_coordinate)
                return
            self.pair.combine(self.run.step.weights)
            self.run.step.combined_norm = combined_norm(gramian, self.run.step.weights)

    def _global_losses(self) -> Losses | None:
        """Return the losses over all processes' batches, where the rule needs them."""
        if not self._rule_row.uses_losses:
            return None
        return Losses(self.run.step.losses["retain"], self.run.step.losses["forget"])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Norm of the combined gradient; known from the Gramian, so that no second pass is needed."""
        if grad_norm is None and self.run.step.combined_norm is not None:
            return self.run.step.combined_norm
        norm = grad_norm if grad_norm is not None else super()._get_grad_norm(model)
        if norm is not None and self.run.step.gramian is None and self.run.step.verdict is Verdict.STEP:
            if not math.isfinite(float(norm)):
                self.run.step.verdict = Verdict.NON_FINITE
            elif float(norm) == 0:
                self.run.step.verdict = Verdict.STATIONARY
        return norm

    def _before_update(self) -> None:
        if self.run.decision is not None:  # already decided before the first step: change nothing
            self.run.step.verdict = Verdict.DONE
        if self.pair is None:  # DeepSpeed has stepped already, with gradients and weights of its own
            return
        if self.run.step.verdict is not Verdict.STEP:
            self.pair.drop()
            return
        self._meter.before()
        self.run.step_size.before_step(self.pair)

    def _after_update(self) -> None:
        self.run.step.rate = float(self.optimizer.param_groups[0]["lr"])
        if self.run.step.verdict is not Verdict.STEP:
            self.run.step.rate = 0.0
            return
        if self.pair is None:
            return
        self.run.step.probe = self.run.step_size.after_step(self._probe_loss())
        if self.run.step.probe is not None:
            self.run.step.rate = self.run.step.probe.applied
            self.record.probes.append(self.run.step.probe)
        self.run.step.changed, self.run.step.descent = self._meter.measured(self.run.step.sampled)
        self.run.step.sampled = {}

    def _probe_loss(self) -> ProbeLoss:
        size = math.ceil(self.PROBE_SHARE * self._shares.examples)
        return ProbeLoss(self, size)

    # ---- step size ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer; under an automatic rate it starts at 1 and is set before every step."""
        given = self.args.learning_rate
        if self.args.automatic:
            self.args.learning_rate = 1.0
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        finally:
            self.args.learning_rate = given
        return optimizer

    def _get_learning_rate(self) -> float:
        return self.run.step.rate if self.args.automatic else float(super()._get_learning_rate())

    # ---- beginning, checks and end ----

    def _begin(self) -> None:
        """Measure the starting point; called once the model is where it trains."""
        args = self.args
        model = self.accelerator.unwrap_model(self.model)
        self.run.begin(BestWeights(model, Path(args.output_dir)))
        self._meter = ChangeMeter(model)
        if args.sam_radius > 0 and _has_low_precision(model):
            self.note("sam_radius: in low precision most of the ascent step is rounded away")
        if args.step_size == "gen":
            self.run.step_size = GenRate(
                self.optimizer, start=float(args.learning_rate), every=args.probe_every
            )
        elif args.step_size == "auto":
            # 2**-9 and 2**-24: half the distance between neighbouring bf16 and float32 numbers around 1
            resolution = 2.0**-9 if args.bf16 or _has_low_precision(model) else 2.0**-24
            self.run.step_size = AutomaticRate(
                self.optimizer,
                start=args.learning_rate,
                every=args.probe_every,
                resolution=resolution,
                tolerance=args.probe_tolerance,
            )
        self.record.versions, self.record.machine = versions(), machine()
        self.record.sources = sources(args)
        target = parse_stop_at(args.stop_at)
        if self._resumed is not None:
            run_state.restore(self, *self._resumed)
            return
        scores = {name: self.measurements.scores(name) for name in ("forget", "retain", "never_seen")}
        if self._has_holdout:
            raise_faults(self._known_faults(scores, target))
        elif self._is_text:
            found = never_seen.unknown_retain(
                self.held_out_set, scores["forget"], scores["retain"], self.forget_set
            )
            if found is not None:
                self.measure_level_on(found)
                scores["never_seen"] = scores["retain"]
        self.record.before = self.measurements.everything(scores)
        if target is not None:
            target = self._with_level(target, scores["never_seen"])
        self.complete_losses()
        assert self.comparisons is not None
        passes = math.ceil(
            args.num_train_epochs if args.max_steps < 0 else self._pairs() / len(self.forget_set)
        )
        rows: dict[Task, Sequence[int]] = {
            "forget": range(len(self.forget_set)),
            "retain": self._retain_rows_needed(),
        }
        with looking(self.model_wrapped) as looked_at:
            notes = self.comparisons.ask(
                looked_at, self.training_sets, rows, passes, self._never_seen, target, own=self.own_retain
            )
        self.guesses = guesses(self.forget_set, self._never_seen, scores["never_seen"])
        self.guess_errors = guess_errors(self._never_seen, scores["never_seen"])
        if target is not None and self.guesses:
            target = parse_stop_at(args.stop_at)
            assert target is not None
            target = self._with_level(target, scores["never_seen"])
        for note in notes:
            self.record.note(note)
        kept = self.kept.start(every_row(self), scores["forget"], scores["retain"])
        self.run.stopping = StoppingRule(target, self.kept.floors(kept), self.PATIENCE)
        view = view_of(self, every_row(self), scores["forget"])
        if self.run.stopping.checks_needed:
            self.run.decision = self.run.stopping.judge(0, view, self.record.before["retain"], kept)
            self.run.best.save()
            self.run.items.keep()

    def _known_faults(
        self, scores: Mapping[str, list[AnswerScore]], target: ForgetTarget | None
    ) -> list[Fault]:
        """Refuse a holdout that cannot set a level; running text only where a decision depends on it."""
        ours, theirs = scores["forget"], scores["never_seen"]
        if not self._is_text:
            return never_seen.known_faults(ours, theirs)
        measured = target is not None and target.value is None
        return never_seen.known_text_faults(ours, theirs) if measured else []

    def _with_level(self, target: ForgetTarget, scores: Sequence[AnswerScore]) -> ForgetTarget:
        """Return the target with the thresholds that scores of never-seen text set."""
        size, source = len(self.forget_set), self.level_source
        return target.measured(scores, size, source, self.guesses, self.guess_errors, self._is_text)

    def measure_level_on(self, found: never_seen.NeverSeen) -> None:
        """Use other text as never-seen text."""
        kept = kept_texts(self.retain_set[: self.own_retain])
        self._never_seen = with_secrets(found.examples, kept, self.processing_class)
        self.level_source = found.source
        self.measurements.replace("never_seen", self._never_seen)
        for text in found.notes:
            self.record.note(text)

    def _pairs(self) -> int:
        """Return the number of pairs of examples in all steps together, over all processes."""
        return int(self.state.max_steps) * self._shares.examples

    @property
    def epochs_a_step(self) -> float:
        """Passes over the forget set that one step is."""
        return 1 / math.ceil(len(self.forget_set) / self._shares.examples)

    def _retain_rows_needed(self) -> Sequence[int]:
        """Return the rows of the retain set that a step or a probe may look at."""
        stream, positions = self._retain_stream, range(self._pairs())
        if len(positions) < GENERAL_EVERY * len(self.retain_set):
            met = {stream[position] for position in positions}
        else:
            met = set(range(len(self.retain_set)))
        return sorted(met | set(range(self.own_retain))) if self.args.automatic else sorted(met)

    @property
    def _retain_stream(self) -> RetainStream:
        """The order in which steps meet what is to be kept."""
        return RetainStream(self.own_retain, len(self.retain_set) - self.own_retain, self.args.seed + 1)

    def complete_losses(self) -> None:
        """Complete the losses' settings, now that the level of never-seen text is known."""
        args = self.args
        self._measured["never-seen NLL"] = float(self.record.before["never_seen"]["nll"])
        self.losses = {
            "forget": LOSSES[str(args.forget_loss)].complete(args.forget_loss_settings, self._measured),
            "retain": LOSSES[str(args.retain_loss)].complete(args.retain_loss_settings, self._measured),
        }
        self.record.losses = {task: dict(loss.settings) for task, loss in self.losses.items()}
        setting = Setting(
            self.processing_class,
            self.pad_id,
            args.max_length,
            args.seed,
            2 * args.eval_batch_size,
            "bf16" if args.bf16 else "fp32",
            Path(args.output_dir),
        )
        self.comparisons = Comparisons(self.losses, setting, self.compute_loss_context_manager)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Pass the step's record on to callbacks and trackers, under the record's own names."""
        if "loss" in logs:
            logs = step_figures(self.record, self.run.stopping.checks if self.run.stopping else ()) | logs
        super().log(logs, *args, **kwargs)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Unlearn; afterwards the model is in the best state found, and ``record`` holds every step."""
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            conclude(self)
        finally:
            self.run.best.discard()
            if self.comparisons is not None:
                self.comparisons.discard()
        return result

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean figures of every set, or of the one given, under the model as it is now.

        Args:
            eval_dataset: another data set, in any form that ``forget_dataset`` can have.
            ignore_keys: not used; transformers gives it.
            metric_key_prefix: beginning of the names, as in ``eval_forget_probability``.
        """
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            found = self.measurements.everything()
            sets = {name: figures for name, figures in found.items() if name != "items"}
        else:
            args, tokenizer = self.args, self.processing_class
            examples = as_encoded(eval_dataset, tokenizer, args.max_length, "eval_dataset", args.long_text)
            sets = {"": means(self.measurements.score(examples))}
        metrics = {
            "_".join(part for part in (metric_key_prefix, name, figure) if part): value
            for name, figures in sets.items()
            for figure, value in figures.items()
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- checkpoints ----

    def save_more(self, folder: Path) -> None:
        """Add this trainer's own state to a checkpoint."""
        run_state.save(self, folder)

    def find_checkpoint(self, asked: Any) -> Any:
        """Return the folder to resume from, and read this trainer's own state in it."""
        found = super().find_checkpoint(asked)
        state = run_state.read(Path(found)) if isinstance(found, str) else None
        self._resumed = None if state is None else (Path(found), state)
        return found

    def note(self, text: str) -> None:
        """Write a fallback to the record."""
        self.record.note(text)


def general_to_hold(args: UnlearningConfig, tokenizer: Any) -> list[EncodedExample]:
    """Return general text that ties the model to the starting model, for retain losses that compare with it.

    A likelihood would teach the model this text instead.
    """
    if not args.hold_general or LOSSES[str(args.retain_loss)].compares != "predictions":
        return []
    return as_encoded(general_split()[0], tokenizer, max(args.max_length, ROOM), "general")


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id or 0)


def _has_low_precision(model: nn.Module) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters() if p.requires_grad)
