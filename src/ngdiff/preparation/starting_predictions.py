"""starting model and examples -> the examples with its predictions for them.

The data is fixed and so is the starting model, so one pass before the first step serves the whole run, and no
second model is ever in memory. What was computed is remembered on disk under the hash of the weights, the
tokens and the settings, so that other runs from the same model can read it.

Losses may need three things: the log-probability of each answer (one number), the whole prediction at each
labelled token, and the activations there. A whole prediction is as long as the vocabulary; the hidden state
from which the output head computes it is a hundredth of that. So the hidden state and the unchanged head are
kept, and the prediction is recomputed exactly when it is needed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ngdiff.data.batching import batches_by_length
from ngdiff.data.encoding import EncodedExample
from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.inference.evaluator import identity
from ngdiff.inference.teacher_forced import score_answers
from ngdiff.models.activations import labelled_activations
from ngdiff.models.logprobs import IGNORED, Places, head_sees, output_head
from ngdiff.models.tensor_file import DIGEST, GrowingFile, digest_of, growing_file, mapped, save_tensors
from ngdiff.system.cache import Cache, cache_key
from ngdiff.system.disk import disk_reason, is_disk_error
from ngdiff.system.environment import weights_hash
from ngdiff.system.processes import OneCache, any_process, is_first_here, on_all, process_count, shared, whole

VERSION = 1
MOST_KEPT = 16 * 2**30
"""Most bytes of such files; beyond that, the least recently used are deleted, but none of today's."""
DAY = 86400.0
UNSCALED = 0.01
"""A factor after the head that is this close to 1 is rounding in bf16."""
CHECKED = 256
"""Tokens at which the kept head is compared with the model's own logits."""
FOLDER, PATTERN = "starting-model", "*.safetensors"
_HEAD, _STATES = "head.", "states"
Autocast = Callable[[], AbstractContextManager[object]]


def with_reference(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    tokenizer: Any,
    pad_id: int,
    batch_size: int,
    cache: Cache | OneCache,
    precision: str,
) -> list[EncodedExample]:
    """Return the examples, and their alternatives, with ``reference_log_prob`` filled in.

    Args:
        model: the starting model, as it is before the first step.
        examples: those that the loss will see.
        tokenizer: the model's; part of the key under which results are remembered.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a forward pass.
        cache: where results are remembered.
        precision: what the model runs in; part of the key.
    """
    who = identity(model, tokenizer, weights_hash(model), precision)
    everything = [one for example in examples for one in (example, *example.alternatives)]
    keys = [cache_key(who, "reference", VERSION, e.input_ids, e.labels) for e in everything]
    found = cache.get(keys)
    missing = [place for place, key in enumerate(keys) if key not in found]
    alone = process_count() == 1
    scores = shared(
        [everything[place] for place in missing],
        lambda mine: score_answers(model, mine, pad_id=pad_id, batch_size=batch_size, share_prompts=alone),
    )
    new = {keys[place]: -score.nll for place, score in zip(missing, scores, strict=True)}
    cache.put(new)
    known = found | new
    filled = iter(
        replace(example, reference_log_prob=float(known[key]))
        for example, key in zip(everything, keys, strict=True)
    )
    return [
        replace(next(filled), alternatives=tuple(next(filled) for _ in example.alternatives))
        for example in examples
    ]


@dataclass(frozen=True)
class StartingStates:
    """Hidden states of the starting model, in one file with its output head where predictions are needed.

    Args:
        path: the file (safetensors), mapped into memory rather than read.
        rows: rows of the data set that it holds, in order.
        cap: what the model caps its logits at, if it does.
        autocast: opens the context in which the head runs.
    """

    path: Path
    rows: tuple[int, ...]
    cap: float | None = None
    autocast: Autocast = nullcontext

    def read(self) -> dict[str, Tensor]:
        """Return the file's tensors; the mapping remains valid after its deletion."""
        return mapped(self.path)

    def attach(
        self, examples: Sequence[EncodedExample], known: Mapping[str, Tensor] | None = None
    ) -> list[EncodedExample]:
        """Return the data set with ``reference_states`` on those rows that have some.

        Args:
            examples: the data set.
            known: what :meth:`read` returned, so that the file is mapped only once.
        """
        states = (known or self.read())[_STATES]
        counts = [_labelled(examples[row]) for row in self.rows]
        parts = dict(zip(self.rows, torch.split(states, counts), strict=True))
        return [
            replace(example, reference_states=parts.get(row)) if row in parts else example
            for row, example in enumerate(examples)
        ]

    def head(
        self, device: torch.device, known: Mapping[str, Tensor] | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return the starting model's output head, on a device; ``known`` as in :meth:`attach`."""
        found = (known or self.read()).items()
        return self.head_of({name: value.to(device) for name, value in found if name.startswith(_HEAD)})

    def head_of(self, tensors: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the output head with these weights, as stored in the file."""

        def logits(states: Tensor) -> Tensor:
            with self.autocast():
                found = nn.functional.linear(states, tensors[_HEAD + "weight"], tensors.get(_HEAD + "bias"))
            found = found.float()
            return found if self.cap is None else self.cap * torch.tanh(found / self.cap)

        return logits

    def copy_to(self, path: Path, known: Mapping[str, Tensor] | None = None) -> StartingStates:
        """Copy the file to ``path``; from memory, where it was deleted.

        Args:
            path: the copy; an existing file is replaced.
            known: what :meth:`read` returned.

        Raises:
            FileNotFoundError: the file is gone, and nothing is ``known``.
        """
        path.unlink(missing_ok=True)
        try:
            os.link(self.path, path)
        except OSError:  # another disk, or it was deleted
            if known is not None and not self.path.exists():
                save_tensors(known, path)
            else:
                shutil.copyfile(self.path, path)
        return replace(self, path=path)


def starting_states(
    model: Any,
    examples: Sequence[EncodedExample],
    rows: Sequence[int],
    *,
    layer: int | None,
    tokenizer: Any,
    pad_id: int,
    batch_size: int,
    folder: Path,
    precision: str,
    autocast: Autocast = nullcontext,
    otherwise: Path | None = None,
) -> StartingStates:
    """Compute hidden states at the labelled tokens, or read them from disk.

    Args:
        model: the starting model, as it is before the first step.
        examples: the data set.
        rows: those of its rows that will be needed.
        layer: whose output is kept; None for the output head's input, kept with the head.
        tokenizer: the model's; part of the key under which the file is found again.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a forward pass.
        folder: of such files; created if missing.
        precision: what the model runs in; part of the key.
        autocast: opens the context in which the head runs.
        otherwise: an existing folder to use where ``folder`` is not writable or has too little space.

    Raises:
        RequestError: the model does more with its logits than scale or cap them, so they cannot be worked
            out again.
    """
    chosen = [examples[row] for row in rows]
    who = identity(model, tokenizer, weights_hash(model), precision)
    key = cache_key(who, "states", VERSION, layer, [[e.input_ids, e.labels] for e in chosen])
    config = getattr(model, "module", model).config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) if layer is None else None
    found = StartingStates(
        folder / FOLDER / f"{key}.safetensors", tuple(rows), float(cap) if cap else None, autocast
    )
    tokens = sum(map(_labelled, chosen))
    if any_process(not _is_whole(found.path, tokens)):
        head = sum(p.numel() for p in output_head(model).parameters()) if layer is None else 0
        needed = 4 * (tokens * getattr(config, "hidden_size", 0) + head)
        if otherwise is not None and any_process(
            is_first_here() and not _has_room(found.path.parent, needed)
        ):
            found = replace(found, path=otherwise / found.path.name)
        _work_out(model, chosen, found, layer, pad_id, batch_size)
    if is_first_here() and found.path.parent == folder / FOLDER:
        _tidy(found.path)
    return found


def _has_room(folder: Path, needed: int) -> bool:
    """Return whether a file of this size can be written to a folder, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return shutil.disk_usage(folder).free > needed
    except OSError:
        return False


def _tidy(used: Path) -> None:
    """Mark a file as used now, and delete the oldest where all of them take too much space."""
    try:
        os.utime(used)
        kept = used.parent.glob(PATTERN)
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in kept)
        too_much = sum(size for _, size, _ in files) - MOST_KEPT
        for last, size, path in files:
            if too_much <= 0 or last > time.time() - DAY:
                break
            path.unlink()
            too_much -= size
    except OSError:  # another process cleans up, or the disk is read-only; the run does not depend on it
        pass


def _labelled(example: EncodedExample) -> int:
    return sum(label != IGNORED for label in example.labels[1:])


def _is_whole(path: Path, tokens: int) -> bool:
    try:
        with safe_open(str(path), framework="pt") as tensors:
            stated = (tensors.metadata() or {}).get(DIGEST)
            if stated is None or tensors.get_slice(_STATES).get_shape()[0] != tokens:
                return False
        return digest_of(mapped(path)) == str(stated)
    except (OSError, SafetensorError, RuntimeError):  # torch's own, of a file that is cut
        return False


def _work_out(
    model: Any,
    examples: Sequence[EncodedExample],
    kept: StartingStates,
    layer: int | None,
    pad_id: int,
    batch_size: int,
) -> None:
    """Write the states of all examples, with at most those of one batch in memory."""
    device = next(model.parameters()).device
    starts = list(accumulate(map(_labelled, examples), initial=0))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _Writer(kept.path) as writer:
            for number, (places, batch) in enumerate(batches_by_length(examples, batch_size, pad_id)):
                there = {name: value.to(device) for name, value in batch.items()}
                states, logits = _states(model, there, layer, CHECKED if number == 0 else 1)
                if number == 0:
                    head = {} if logits is None else _head_of(model)
                    if logits is not None:
                        head = _head_for(kept, head, states[: len(logits)], logits)
                    writer.begin(head, (starts[-1], states.shape[1]), states.dtype)
                counts = [_labelled(examples[place]) for place in places]
                for place, part in zip(places, torch.split(states, counts), strict=True):
                    writer.put(starts[place], part)
    finally:
        model.train(was_training)
    on_all(writer.raise_if_failed)


class _Writer:
    """Writes states as they arrive, if this is the process that writes.

    Errors are raised at the end: until then the other processes need this one to run the model.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._error = path, None if is_first_here() else ""
        self._stack = ExitStack()
        self._file: GrowingFile | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self._error is None and kind is None:
            self._attempt(self._stack.close)
        else:
            self._stack.__exit__(kind or RunError, error or RunError(), traceback)

    def _attempt(self, work: Callable[[], Any]) -> Any:
        if self._error is not None:
            return None
        try:
            return work()
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            reason = f"could not be kept in {self._path} ({disk_reason(error)})"
            self._error = f"the starting model's predictions {reason}"
            return None

    def begin(self, head: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Open the file and write the head."""

        def opened() -> GrowingFile:
            file = self._stack.enter_context(growing_file(self._path))
            file.add(_STATES, dtype, shape)
            for name, tensor in head.items():
                file.add(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in head.items():
                file.put(name, 0, tensor)
            return file

        self._file = self._attempt(opened)

    def put(self, first: int, states: Tensor) -> None:
        """Write some rows of the states."""
        file = self._file
        if file is not None:
            self._attempt(lambda: file.put(_STATES, first, states))

    def raise_if_failed(self) -> None:
        """Raise the error that kept the states from being written."""
        if self._error:
            raise RunError(self._error)


def _states(
    model: Any, batch: dict[str, Tensor], layer: int | None, checked: int
) -> tuple[Tensor, Tensor | None]:
    """Return hidden states at the labelled tokens and, for the first ``checked``, the model's own logits."""
    if layer is not None:
        return labelled_activations(model, batch, layer).hidden, None
    caught: list[Tensor] = []
    places = Places.of(model, batch)

    def first_ones(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0])
        return (args[0][:, :checked], *args[1:])

    with head_sees(model, places.seen):
        # registered after the hook that narrows, so it sees the narrowed input
        handle = output_head(model).register_forward_pre_hook(first_ones)
        try:
            output = model(**places.inputs)
        finally:
            handle.remove()
    return caught[0].squeeze(0).float(), output.logits.squeeze(0).float()


def _head_of(model: Any) -> dict[str, Tensor]:
    head = output_head(model)
    own = {"weight": getattr(head, "weight", None), "bias": getattr(head, "bias", None)}
    return {_HEAD + name: whole(value).cpu().contiguous() for name, value in own.items() if value is not None}


def _head_for(
    kept: StartingStates, tensors: dict[str, Tensor], states: Tensor, logits: Tensor
) -> dict[str, Tensor]:
    """Return the head that computes the model's logits by itself, including a factor that follows it.

    Raises:
        RequestError: there is no such head.
    """

    def again() -> Tensor:
        return kept.head_of({name: value.to(states.device) for name, value in tensors.items()})(states)

    if kept.cap is None:
        alone = again()
        factor = float((alone * logits).sum() / alone.square().sum())
        if abs(factor - 1) > UNSCALED:
            tensors = {name: value * factor for name, value in tensors.items()}
    if float((again() - logits).abs().max()) > 0.02 * max(1.0, float(logits.abs().max())):
        what = "does more with its logits than scale or cap them, so its predictions cannot be kept"
        fix = "Use losses that do not compare predictions: --retain-loss nll, no forget loss 'undial'"
        raise RequestError(Fault("--model", what, fix))
    return tensors
