"""losses, data and starting model -> the data with everything that losses compare with, kept for resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.errors import Fault, RequestError
from ngdiff.losses import Loss, Measured, Task
from ngdiff.losses.loss import look
from ngdiff.models.activations import Activations, freeze_behind, layer_count
from ngdiff.models.logprobs import LabelledTokens, StartingHead, labelled_tokens
from ngdiff.preparation.alternatives import EACH, alternative_faults, with_alternatives, with_invented
from ngdiff.preparation.counterfactual import Expectations, save_expected, with_expected
from ngdiff.preparation.predictable import figures_at_rest, levels_by_certainty, with_predictable
from ngdiff.preparation.starting_predictions import Autocast, StartingStates, starting_states, with_reference
from ngdiff.stopping.rule import ForgetTarget
from ngdiff.system.cache import Cache, default_folder
from ngdiff.system.processes import OneCache, is_main

LEAST_COUNTED = 50
"""Fewest retain answers to tell language from knowledge; with fewer, every token to forget is pushed down."""
EXPECTED = "expected.safetensors"
EVERY_TOKEN = "every token to forget is pushed down, as by unlikelihood"
DEPTH_OF_STEERING = 7 / 32
"""RMU's layer, the seventh of Zephyr-7B's 32, as a share for models of any depth."""


@dataclass
class Setting:
    """What the computation depends on besides the model and the data.

    Args:
        tokenizer: the model's.
        pad_id: what to pad with.
        max_length: longest sequence, in tokens.
        seed: of every random choice.
        batch_size: sequences a forward pass.
        precision: ``bf16`` or ``fp32``; part of the keys under which results are remembered.
        folder: the run's own, used where the cache folder cannot be.
    """

    tokenizer: Any
    pad_id: int
    max_length: int
    seed: int
    batch_size: int
    precision: str
    folder: Path


def layers_looked_behind(model: nn.Module, losses: Mapping[Task, Loss]) -> dict[Measured, float]:
    """Return the default layer for steering, where a loss reads a layer's activations.

    Where no loss reads later layers, the parameters after it are frozen, since no gradient reaches them.

    Raises:
        RequestError: a layer was given that the model does not have.
    """
    if all(loss.looks_at != "activations" for loss in losses.values()):
        return {}
    count = layer_count(model)
    faults = [
        Fault(f"--{task}-loss", f"the model has no layer {loss.layer}", f"Give a layer from 0 to {count - 1}")
        for task, loss in losses.items()
        if loss.layer is not None and not 0 <= loss.layer < count
    ]
    if faults:
        raise RequestError(faults)
    default = min(count - 1, round(count * DEPTH_OF_STEERING))
    if all(loss.looks_at == "activations" for loss in losses.values()):
        freeze_behind(model, max(default if loss.layer is None else loss.layer for loss in losses.values()))
    return {"layer at 7/32 of the depth": default}


class Comparisons:
    """Other answers and the starting model's predictions, as the losses of one run need them.

    Args:
        losses: both losses, with their settings.
        setting: what else it depends on.
        autocast: opens the context in which the model runs.
    """

    def __init__(self, losses: Mapping[Task, Loss], setting: Setting, autocast: Autocast) -> None:
        self.losses, self.setting, self.autocast = losses, setting, autocast
        self._states: dict[Task, StartingStates] = {}
        self._heads: dict[Task, StartingHead] = {}
        self._known: dict[Task, dict[str, Tensor]] = {}  # tensors of the files, mapped into memory

    def look(self, task: Task, model: nn.Module, batch: Mapping[str, Tensor]) -> LabelledTokens | Activations:
        """Run the model on a micro-batch of a task as its loss requires."""
        return look(self.losses[task], model, batch, self._heads.get(task))

    def ask(
        self,
        model: Any,
        data: Mapping[Task, list[EncodedExample]],
        rows: Mapping[Task, Sequence[int]],
        passes: int,
        never_seen: list[EncodedExample] | None = None,
        target: ForgetTarget | None = None,
        own: int | None = None,
    ) -> list[str]:
        """Complete the data in place with the untouched model, on every process.

        Args:
            model: the starting model.
            data: forget and retain set.
            rows: those rows of each that a step or a probe may use.
            passes: most passes over the forget set: no more alternatives are needed.
            never_seen: text the model never saw, for losses that need the tokens' levels; completed too.
            target: value that the forget set must fall to; levels that would keep it above are not used.
            own: rows of the retain set that are the caller's; general text follows them.

        Returns:
            Notes for the record.
        """
        notes: list[str] = []
        if self.losses["forget"].expected:
            notes += self._expect(model, data["forget"], data["retain"][:own], never_seen or [])
        elif self.losses["forget"].levels:
            notes += self._level(model, data["forget"], data["retain"][:own], never_seen or [], target)
        if all(loss.compares is None and loss.other_answers != "invented" for loss in self.losses.values()):
            return notes
        cache = OneCache(Cache(default_folder()) if is_main() else None)
        try:
            with torch.no_grad(), self.autocast():
                if self.losses["forget"].other_answers == "invented":
                    notes += self._invent(model, data["forget"], passes, cache)
                for task, loss in self.losses.items():
                    notes += self._remember(model, task, loss, data[task], rows[task], cache)
        finally:
            cache.close()
        return notes + cache.notes

    def _level(
        self,
        model: nn.Module,
        forget: list[EncodedExample],
        retain: Sequence[EncodedExample],
        never_seen: Sequence[EncodedExample],
        target: ForgetTarget | None,
    ) -> list[str]:
        """Compute each forget token's level, on every process, since a sharded model needs all of them."""
        count = len(retain)
        if count < LEAST_COUNTED:
            few = f"{count} answers to keep are too few to tell knowledge from language"
            return [f"{few} (from {LEAST_COUNTED} on): {EVERY_TOKEN}"]
        levelled = self._levelled(model, forget, retain, never_seen)
        rest = figures_at_rest(levelled)
        if target is not None and target.measure in rest and not target.met(rest):
            measure = target.measure
            return [f"if language were spared, {measure} would end near {rest[measure]:.2f}: {EVERY_TOKEN}"]
        forget[:] = levelled
        return []

    def _levelled(
        self,
        model: nn.Module,
        forget: list[EncodedExample],
        retain: Sequence[EncodedExample],
        never_seen: Sequence[EncodedExample],
    ) -> list[EncodedExample]:
        found = np.exp(self._log_probs(model, never_seen)).tolist()
        return with_predictable(forget, retain, never_seen, found)

    def _log_probs(self, model: nn.Module, examples: Sequence[EncodedExample]) -> list[float]:
        """Return the log-probability of every labelled token, in reading order."""
        found: list[float] = []
        device, size, training = next(model.parameters()).device, self.setting.batch_size, model.training
        model.eval()
        with torch.no_grad(), self.autocast():
            for start in range(0, len(examples), size):
                batch = collate(examples[start : start + size], self.setting.pad_id)
                tokens = labelled_tokens(model, {name: part.to(device) for name, part in batch.items()})
                found += tokens.log_probs().tolist()
        model.train(training)
        return found

    def _expect(
        self,
        model: nn.Module,
        forget: list[EncodedExample],
        retain: Sequence[EncodedExample],
        never_seen: list[EncodedExample],
    ) -> list[str]:
        """Compute what each forget token would be if the model had never met its subject."""
        setting = self.setting
        enough = len(retain) >= LEAST_COUNTED
        levels = typical = None
        if enough:
            certain, unseen = (self._log_probs(model, examples) for examples in (forget, never_seen))
            probabilities = np.exp(unseen).tolist()
            levels = levels_by_certainty(forget, retain, never_seen, certain, probabilities)
            both = with_predictable([*forget, *never_seen], retain, never_seen, probabilities, geometric=True)
            typical = [example.predictable or () for example in both[: len(forget)]]
            never_seen[:] = both[len(forget) :]
        with self.autocast():
            forget[:] = Expectations(
                forget,
                retain,
                levels,
                tokenizer=setting.tokenizer,
                pad_id=setting.pad_id,
                max_length=setting.max_length,
                seed=setting.seed,
                batch_size=setting.batch_size,
                typical=typical,
            ).work_out(model)
        return []

    def _invent(self, model: Any, forget: list[EncodedExample], passes: int, cache: OneCache) -> list[str]:
        setting = self.setting
        forget[:], refused = with_invented(
            model,
            forget,
            tokenizer=setting.tokenizer,
            max_length=setting.max_length,
            seed=setting.seed,
            each=max(1, min(EACH, passes)),
            batch_size=setting.batch_size,
            remembered=cache,
            precision=setting.precision,
        )
        if not refused:
            return []
        return [f"the model invented no answer in {refused} cases: refusals are used instead"]

    def _remember(
        self,
        model: Any,
        task: Task,
        loss: Loss,
        examples: list[EncodedExample],
        rows: Sequence[int],
        cache: OneCache,
    ) -> list[str]:
        setting = self.setting
        if loss.compares == "answers":
            examples[:] = with_reference(
                model,
                examples,
                tokenizer=setting.tokenizer,
                pad_id=setting.pad_id,
                batch_size=setting.batch_size,
                cache=cache,
                precision=setting.precision,
            )
        elif loss.compares is not None:
            states = starting_states(
                model,
                examples,
                rows,
                layer=loss.layer if loss.compares == "activations" else None,
                tokenizer=setting.tokenizer,
                pad_id=setting.pad_id,
                batch_size=setting.batch_size,
                folder=default_folder(),
                precision=setting.precision,
                autocast=self.autocast,
                otherwise=setting.folder,
            )
            self._attach(task, states, examples, next(model.parameters()).device)
            if states.path.parent == setting.folder:
                where = (
                    "the starting model's predictions are kept with the run: the cache folder is not writable"
                )
                return [f"{where}, or has too little space"]
        return []

    def _attach(
        self, task: Task, states: StartingStates, examples: list[EncodedExample], device: torch.device
    ) -> None:
        known = states.read()
        self._states[task], self._known[task] = states, known
        examples[:] = states.attach(examples, known)
        if self.losses[task].compares == "predictions":
            self._heads[task] = states.head(device, known)

    # ---- checkpoints ----

    def save(self, folder: Path, forget: Sequence[EncodedExample]) -> dict[str, Any]:
        """Add everything that the starting model was needed for to a checkpoint.

        The files come from the run's own folder: another run may clean up the cache, and the checkpoint that
        this run was resumed from is deleted later.
        """
        for task, states in self._states.items():
            mine = self._own(task)
            if states.path != mine or not mine.exists():
                self._states[task] = states.copy_to(mine, self._known[task])
            self._states[task].copy_to(folder / _file(task))
        if any(example.expected_ids is not None for example in forget):
            save_expected(forget, folder / EXPECTED)
        return {
            "answers": [example.reference_log_prob for example in forget],
            "alternatives": [[_as_json(one) for one in example.alternatives] for example in forget],
            "levels": [example.predictable for example in forget],
            "rows": {task: list(states.rows) for task, states in self._states.items()},
            "caps": {task: states.cap for task, states in self._states.items()},
        }

    def _own(self, task: Task) -> Path:
        return self.setting.folder / f".{_file(task)}"

    def discard(self) -> None:
        """Delete the run's own files, but not those of checkpoints and cache."""
        for task, states in self._states.items():
            if states.path == self._own(task):
                states.path.unlink(missing_ok=True)

    def restore(
        self,
        folder: Path,
        state: Mapping[str, Any],
        data: Mapping[Task, list[EncodedExample]],
        device: torch.device,
    ) -> None:
        """Complete the data from a checkpoint."""
        known = state.get("levels") or [None] * len(data["forget"])  # earlier checkpoints have none
        data["forget"][:] = [
            replace(
                example,
                reference_log_prob=value,
                alternatives=tuple(_from_json(one, example) for one in others),
                predictable=None if levels is None else tuple(levels),
            )
            for example, value, others, levels in zip(
                data["forget"], state["answers"], state["alternatives"], known, strict=True
            )
        ]
        if (folder / EXPECTED).is_file():
            data["forget"][:] = with_expected(data["forget"], folder / EXPECTED)
        for name, rows in state["rows"].items():
            task: Task = "forget" if name == "forget" else "retain"
            states = StartingStates(folder / _file(task), tuple(rows), state["caps"][name], self.autocast)
            self._attach(task, states, data[task], device)


def before_the_model(
    loss: Loss, forget: list[EncodedExample], tokenizer: Any, max_length: int, seed: int
) -> list[EncodedExample]:
    """Return the forget set with other answers that need no model.

    Raises:
        RequestError: the data has no questions, or lacks the column of preferred answers.
    """
    if loss.other_answers is None:
        return forget
    if loss.other_answers == "invented":
        faults = alternative_faults([e.example for e in forget], "invented", "--forget")
        if faults:
            raise RequestError(faults)
        return forget
    return with_alternatives(
        forget, loss.other_answers, tokenizer=tokenizer, max_length=max_length, seed=seed
    )


def _file(task: Task) -> str:
    return f"starting_{task}.safetensors"


def _as_json(example: EncodedExample) -> list[Any]:
    return [list(example.input_ids), list(example.labels), example.truncated, example.reference_log_prob]


def _from_json(value: Sequence[Any], of: EncodedExample) -> EncodedExample:
    ids, labels, truncated, reference = value
    return EncodedExample(tuple(ids), tuple(labels), of.example, truncated, reference)
