"""unlearning request -> a folder with the unlearned model and its record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback

from ngdiff.alternatives import alternative_faults
from ngdiff.callbacks import ProgressCallback
from ngdiff.checkpoints import forget_older
from ngdiff.config import UnlearningConfig
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example, data_hash, overlap_fault, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.durable import disk_reason, is_disk_error
from ngdiff.environment import weights_hash
from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.evaluation.distributed import is_main
from ngdiff.finetune import with_lora
from ngdiff.losses import LOSSES
from ngdiff.models import (
    ModelSource,
    Precision,
    autocast_bf16,
    check_causal,
    check_precision,
    load_model,
    load_quantised,
    load_tokenizer,
    quantisation_faults,
    resolve_model,
    weights_bytes,
)
from ngdiff.output import RECORD, check_output, same_folder, write_json
from ngdiff.parallel import any_process, by_main, from_main, joined, on_all, raise_faults
from ngdiff.parameters import all_finite
from ngdiff.progress import console, working
from ngdiff.record import RunRecord
from ngdiff.saving import whole_state
from ngdiff.signals import wish_to_stop
from ngdiff.trainer import UnlearningTrainer
from ngdiff.unfinished import Asked, Workplace

SAVE_MINUTES = 15.0
"""From one checkpoint to the next, where nothing else is asked for."""


@dataclass(frozen=True)
class UnlearnRequest:
    """Everything that ``ngdiff unlearn`` needs to know.

    Args:
        model: folder, hub name or ``smollm2``.
        forget: one or more sources of what to forget, joined (see :mod:`ngdiff.data.sources`).
        retain: likewise, of what to keep.
        output: the folder to make.
        holdout: text of the forget set's kind that the model never saw.
        settings: fields of :class:`ngdiff.config.UnlearningConfig` that differ from their defaults.
        lora: train LoRA adapters only, and save those.
        qlora: likewise, on a model whose weights are quantised to 4 bits (NF4) while it trains.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it; weights stay float32.
        tofu_dir: folder with TOFU's JSON files.
        allow_overlap: go on although forget and retain set share rows.
        overwrite: replace an earlier result, and drop another request's unfinished run.
        resume: True: go on with the unfinished run of this output, or fail; False: start afresh; None: go on
            where there is one of the same request.
    """

    model: str
    forget: tuple[str, ...]
    retain: tuple[str, ...]
    output: Path
    holdout: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    qlora: bool = False
    precision: Precision = "auto"
    tofu_dir: Path | None = None
    allow_overlap: bool = False
    overwrite: bool = False
    resume: bool | None = None

    @property
    def adapters(self) -> bool:
        """Whether adapters are trained rather than the model's own weights."""
        return self.lora or self.qlora


@dataclass(frozen=True)
class Prepared:
    """A request found to be in order: everything but the model's weights is loaded."""

    source: ModelSource
    tokenizer: Any
    forget: list[EncodedExample]
    retain: list[EncodedExample]
    holdout: list[EncodedExample]
    config: UnlearningConfig


def prepare(request: UnlearnRequest) -> Prepared:
    """Check a request without loading the model's weights.

    Raises:
        RequestError: with every fault of the settings, the files, the output and the model.
    """
    faults: list[Fault] = []
    config = None
    try:
        check_precision(request.precision)
    except RequestError as error:
        faults += error.faults
    try:
        config = make_config(request)
    except RequestError as error:
        faults += error.faults
    source, needed = None, 0
    try:
        source = resolve_model(request.model)
        found = check_causal(source)
        found += quantisation_faults(source) if request.qlora else []
        faults += found + same_folder(request.output, source.location)
        needed = 0 if found else _room(request, weights_bytes(source) or 0)
    except RequestError as error:
        faults += error.faults
    faults += check_output(request.output, _may_replace(request), needed)
    forget = _read(request.forget, "--forget", request.tofu_dir, faults)
    retain = _read(request.retain, "--retain", request.tofu_dir, faults)
    holdout = _read(request.holdout, "--holdout", request.tofu_dir, faults)
    overlap = None if request.allow_overlap else overlap_fault(forget, retain)
    if overlap is not None:
        faults.append(overlap)
    other_answers = None if config is None else LOSSES[str(config.forget_loss)].other_answers
    if other_answers is not None and forget:
        faults += alternative_faults(forget, other_answers, "--forget")
    if faults or source is None or config is None:
        raise RequestError(faults)
    tokenizer = load_tokenizer(source)
    encoded = {}
    for where, examples in (("--forget", forget), ("--retain", retain), ("--holdout", holdout)):
        try:
            encoded[where] = encode_all(examples, tokenizer, config.max_length, where)
        except RequestError as error:
            faults += error.faults
    if faults:
        raise RequestError(faults)
    return Prepared(source, tokenizer, encoded["--forget"], encoded["--retain"], encoded["--holdout"], config)


def _room(request: UnlearnRequest, weights: int) -> int:
    """Return the bytes a run writes at the most: the result, the best weights and their successor."""
    return 0 if request.adapters else 3 * weights


def _read(sources: tuple[str, ...], where: str, tofu_dir: Path | None, faults: list[Fault]) -> list[Example]:
    examples: list[Example] = []
    for source in sources:
        try:
            examples += to_examples(read_rows(source, where=where, tofu_dir=tofu_dir), where)
        except RequestError as error:
            faults += error.faults
    return examples


def make_config(request: UnlearnRequest, folder: Path | None = None) -> UnlearningConfig:
    """Build the trainer's settings from a request.

    Raises:
        RequestError: a setting does not exist or is out of range.
    """
    cuda = torch.cuda.is_available()
    settings = {
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": cuda,
        "use_cpu": not cuda,
        "examples_per_step": _examples_per_step(request.settings),
        **_saving(request.settings),
        **request.settings,
        "output_dir": str(folder or request.output),
        "bf16": autocast_bf16(request.precision)[0],
    }
    try:
        return UnlearningConfig(**settings)
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        raise RequestError(Fault("settings", str(error), "See ngdiff unlearn --help")) from error


def _examples_per_step(settings: dict[str, Any]) -> int:
    """Return what one process would take a step, so that more processes take no more."""
    product = 1
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        value = settings.get(name, getattr(UnlearningConfig, name))
        product *= value if isinstance(value, int) and value > 0 else 1  # what is wrong is said elsewhere
    return product


def _saving(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return when to save, where the request does not say it all: by the clock, or every so many steps."""
    if "save_strategy" in settings:
        return {}
    if "save_steps" in settings:
        return {"save_strategy": "steps"}
    return {"save_minutes": SAVE_MINUTES}


def unlearn(request: UnlearnRequest) -> RunRecord:
    """Make a model forget, and save it with its record.

    Returns:
        The record, as it stands in ``record.json``.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
    """
    with joined():
        return _unlearn(request)


def _unlearn(request: UnlearnRequest) -> RunRecord:
    place = Workplace(request.output)
    kept = from_main(on_all(lambda: _settled(place, request) if is_main() else None))
    if kept is not None:
        return kept
    ready = on_all(lambda: prepare(request))
    asked = Asked(settings_of(request, ready.config), data_hashes(ready), None)
    on_all(lambda: place.goes_on(asked, resume=request.resume, overwrite=request.overwrite))
    with working(f"Loading {request.model}"):
        model = load_quantised(ready.source) if request.qlora else load_model(ready.source)
    room = _room(request, model.get_memory_footprint())
    on_all(lambda: raise_faults(check_output(request.output, _may_replace(request), room)))
    # with FSDP2 the first process alone may have read the weights
    hashed = replace(asked, model=from_main(weights_hash(model) if is_main() else ""))
    if request.adapters:
        model = with_lora(model)
    claim = partial(place.claimed, hashed, resume=request.resume, overwrite=request.overwrite)
    with by_main(claim) as going_on, wish_to_stop() as wish:
        trainer = UnlearningTrainer(
            model,
            make_config(request, place.run),
            forget_dataset=ready.forget,
            retain_dataset=ready.retain,
            holdout_dataset=ready.holdout or None,
            processing_class=ready.tokenizer,
            callbacks=[ProgressCallback("Unlearning")],
        )
        trainer.remove_callback(PrinterCallback)  # it writes to stdout what the progress bar shows
        trainer.wish = wish
        console.print(_plan(trainer), highlight=False)
        trainer.train(resume_from_checkpoint=going_on or None)
        final = trainer.accelerator.unwrap_model(trainer.model)
        _complete(trainer.record, request, ready, hashed, weights_hash(final))
        write_result(place, final, ready.tokenizer, trainer.record.as_json())
        if is_main():
            place.finish()
    return trainer.record


def _settled(place: Workplace, request: UnlearnRequest) -> RunRecord | None:
    """Put a finished result in its place; return its record, if it is this request's and nothing is left."""
    if not place.settle():
        return None
    kept = json.loads((request.output / RECORD).read_text(encoding="utf-8"))
    ready = prepare(replace(request, overwrite=True))
    then = Asked(kept["settings"], {name: entry["sha256"] for name, entry in kept["data"].items()}, None)
    if then.differences(Asked(settings_of(request, ready.config), data_hashes(ready), None)):
        return None
    record = RunRecord()
    record.load_state_dict(kept)
    return record


def _plan(trainer: UnlearningTrainer) -> str:
    args = trainer.args
    rate = "automatic learning rate" if args.automatic else f"learning rate {args.learning_rate:g}"
    return (
        f"{args.method}: {len(trainer._forget)} to forget, {len(trainer._retain)} to keep "
        f"({len(trainer._held_out)} more held out), rule {args.rule}, {rate}, stop at {args.stop_at}"
    )


def settings_of(request: UnlearnRequest, config: UnlearningConfig) -> dict[str, Any]:
    """Return the settings as the record keeps them: plain JSON values."""
    settings = {
        "model": request.model,
        "forget": list(request.forget),
        "retain": list(request.retain),
        "holdout": list(request.holdout),
        "lora": request.lora,
        "qlora": request.qlora,
        "precision": request.precision,
        "autocast": "bf16" if config.bf16 else "none",
        **request.settings,
        "method": config.method,
        "forget_loss": config.forget_loss,
        "retain_loss": config.retain_loss,
        "rule": config.rule,
        "rule_settings": config.rule_settings,
        "step_size": config.step_size,
        "learning_rate": config.learning_rate,
        "optimizer": str(config.optim),
        "batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "seed": config.seed,
        "stop_at": config.stop_at,
        "keep_utility": config.keep_utility,
        "max_length": config.max_length,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def data_hashes(ready: Prepared) -> dict[str, str]:
    """Return the SHA-256 of each data set there is, by its role."""
    sets = {"forget": ready.forget, "retain": ready.retain, "holdout": ready.holdout}
    return {name: data_hash([e.example for e in examples]) for name, examples in sets.items() if examples}


def write_result(place: Workplace, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    """Write model, tokenizer and record where they wait for being put in their place.

    Every process has to call it; the first one writes.

    Raises:
        RunError: a weight is not finite, or the disk would not take the result, even without the older
            checkpoints.
    """
    if any_process(not all_finite(model)):
        raise RunError("a weight is not finite, so no model was saved")
    state = whole_state(model)
    on_all(lambda: _write(place, model, state, tokenizer, record) if is_main() else None)


def _write(
    place: Workplace, model: Any, state: dict[str, Any] | None, tokenizer: Any, record: dict[str, Any]
) -> None:
    for last_try in (False, True):
        try:
            shutil.rmtree(place.result, ignore_errors=True)
            place.result.mkdir()
            model.save_pretrained(place.result, state_dict=state)
            tokenizer.save_pretrained(place.result)
            write_json(record, place.result / RECORD)
            return
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            shutil.rmtree(place.result, ignore_errors=True)
            if last_try:
                what = f"the model could not be saved ({disk_reason(error)})"
                raise RunError(f"{what}; no half of it was left behind") from error
            forget_older(place.run, 1)


def _complete(record: RunRecord, request: UnlearnRequest, ready: Prepared, asked: Asked, after: str) -> None:
    config = ready.config
    record.request_sha256 = asked.sha256
    record.settings = dict(asked.settings)
    record.note(f"precision: {autocast_bf16(request.precision)[1]}")
    truncated = sum(example.truncated for example in [*ready.forget, *ready.retain])
    if truncated:
        record.note(f"{truncated} answers were cut at {config.max_length} tokens")
    counts = {"forget": len(ready.forget), "retain": len(ready.retain), "holdout": len(ready.holdout)}
    record.data = {name: {"examples": counts[name], "sha256": digest} for name, digest in asked.data.items()}
    record.model = {"name": request.model, "sha256_before": asked.model, "sha256_after": after}
    if request.qlora:  # the hash of quantised weights says nothing of the model that was quantised
        record.model |= {"sha256_before": None, "sha256_before_quantised": asked.model}


def _may_replace(request: UnlearnRequest) -> bool:
    """Say whether an earlier result may go: now, or when the run that is gone on with was begun."""
    return request.overwrite or (request.resume is not False and Workplace(request.output).may_replace)
