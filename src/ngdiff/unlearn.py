"""unlearning request -> a folder with the unlearned model and its record.

The module can be called: ``ngdiff.unlearn(model, forget, retain)`` is :func:`ngdiff.from_python.unlearn`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PrinterCallback

from ngdiff.data.benchmarks import Folders
from ngdiff.data.datasets import for_stopping
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example, overlap_fault, read_examples
from ngdiff.data.long_text import counted_texts
from ngdiff.data.overlaps import (
    answer_fault,
    holdout_fault,
    part_fault,
    repeated,
    reworded,
    small_sets,
    swapped,
)
from ngdiff.data.sharing import examples_of_a_step
from ngdiff.errors import Fault, Faults, RequestError
from ngdiff.hub.card import CARD, model_card
from ngdiff.losses import LOSSES
from ngdiff.models.adapters import with_lora
from ngdiff.models.loading import (
    ModelSource,
    Precision,
    autocast_bf16,
    load_model,
    load_quantised,
    quantisation_faults,
)
from ngdiff.preparation.alternatives import alternative_faults
from ngdiff.receipts.data_key import describe, hidden, set_hash
from ngdiff.receipts.receipt import ReceiptPlan, complete_record, plan_receipt, write_receipt
from ngdiff.record import RunRecord
from ngdiff.requested import check_folder, encode_sets, find_model, read_sets, shared_setting_faults
from ngdiff.runs.saving import when_to_save, write_result
from ngdiff.runs.workplace import Asked, Workplace, may_replace, reserved
from ngdiff.settings.values import SettingError
from ngdiff.stopping.never_seen import missing_holdout
from ngdiff.system.environment import weights_hash
from ngdiff.system.output import ANSWERS, RECORD, write_json
from ngdiff.system.processes import from_main, is_main, joined, on_all
from ngdiff.system.progress import console, working
from ngdiff.system.untrusted import first_line
from ngdiff.training.answer_book import AnswerBook
from ngdiff.training.callbacks import UnlearningProgress
from ngdiff.training.config import BATCH, UnlearningConfig
from ngdiff.training.kept_sets import floor_shares, reserved_faults
from ngdiff.training.trackers import tracker_callbacks, tracker_settings
from ngdiff.training.trainer import UnlearningTrainer


@dataclass(frozen=True)
class UnlearnRequest:
    """Everything that ``ngdiff unlearn`` needs to know.

    Args:
        model: folder, hub name or ``smollm2``.
        forget: one or more sources of what to forget, joined (see :mod:`ngdiff.data.sources`).
        retain: one or more sources of what to keep.
        output: the folder to make.
        holdout: text of the forget set's kind that the model never saw.
        settings: fields of :class:`ngdiff.training.config.UnlearningConfig` that differ from their defaults.
        lora: train LoRA adapters only, and save those.
        qlora: the same, on a model whose weights are quantised to 4 bits (NF4) during training.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it; weights stay float32.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        allow_overlap: continue although forget and retain set share rows.
        overwrite: replace an earlier result, and drop another request's unfinished run.
        resume: True: resume the unfinished run of this output, or fail; False: start over; None: resume where
            there is one of the same request.
        earlier: forget sets of earlier requests, to check that none of them comes back.
        keep: further sets that must be kept, without training on them; each source has its own floor.
        sign: file of the private key to sign the receipt with.
        data_key: file of the key that hides the hashes of the data (see :mod:`ngdiff.receipts.data_key`).
        answers: how many questions of the forget set to answer before and after, for the report; 0 for none.
        trust_remote_code: run Python code that comes with the model.
        in_memory: what to call the starting model where it was given loaded, and lies in a folder for the
            run alone.
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
    folders: Folders = field(default_factory=dict)
    allow_overlap: bool = False
    overwrite: bool = False
    resume: bool | None = None
    earlier: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    sign: Path | None = None
    data_key: Path | None = None
    answers: int = 12
    trust_remote_code: bool = False
    in_memory: str | None = None

    @property
    def model_name(self) -> str:
        """What record and receipt call the starting model."""
        return self.in_memory or self.model

    @property
    def adapters(self) -> bool:
        """Whether adapters are trained rather than the model's own weights."""
        return self.lora or self.qlora


@dataclass(frozen=True)
class Prepared:
    """A valid request, with everything loaded except the model's weights."""

    source: ModelSource
    tokenizer: Any
    forget: list[EncodedExample]
    retain: list[EncodedExample]
    holdout: list[EncodedExample]
    config: UnlearningConfig
    receipt: ReceiptPlan
    keep: dict[str, list[EncodedExample]] = field(default_factory=dict)
    earlier: dict[int, list[EncodedExample]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare(request: UnlearnRequest) -> Prepared:
    """Check a request without loading the model's weights.

    Raises:
        RequestError: with every fault of the settings, the files, the output and the model.
    """
    faults = Faults(shared_setting_faults(request) + _answer_count_faults(request))
    config = faults.attempt(lambda: make_config(request), None)
    model = find_model(request.model, faults, trust_remote_code=request.trust_remote_code)
    if model is not None:
        model = replace(model[0], name=request.model_name), model[1]
    source = None if model is None else model[0]
    if source is not None and request.qlora:
        faults += quantisation_faults(source)
    named = _named(request)
    reads = {f"--{name}": sources for name, sources in named.items()}
    replaces = may_replace(request)
    check_folder(request.output, replaces, source, partial(room, request), reads, request.folders, faults)
    sets = _read(request, named, faults)
    faults += _set_faults(request, sets)
    if config is not None:
        with faults.collecting():
            floor_shares(config, list(sets.keep))
    receipt = _plan_receipt(request, source, sets, faults)
    if config is not None:
        faults += _answer_faults(config, sets)
    faults.raise_any()
    assert model is not None and config is not None
    every = {"forget": sets.forget, "retain": sets.retain, "holdout": sets.holdout}
    every |= {_earlier(number): examples for number, examples in receipt.earlier.items()}
    every |= {f"keep {name}": examples for name, examples in sets.keep.items()}
    encoded, notes = encode_sets(every, model, config.max_length, faults, config.long_text)
    faults.raise_any()
    forget, retain, holdout = (encoded[name] for name in ("forget", "retain", "holdout"))
    if config.examples_per_step is None:
        config.examples_per_step = examples_of_a_step(len(forget))
    keep = {name: encoded[f"keep {name}"] for name in sets.keep}
    earlier = {number: encoded[_earlier(number)] for number in receipt.earlier}
    notes += forewarnings(sets.forget, sets.retain)
    lacking = None if holdout else missing_holdout(forget)
    notes += [] if lacking is None else [lacking]
    data = forget, retain, holdout
    return Prepared(*model, *data, config, receipt, keep, earlier, tuple(notes))


@dataclass(frozen=True)
class _Sets:
    """The examples of a request, by their role."""

    forget: list[Example]
    retain: list[Example]
    holdout: list[Example]
    keep: dict[str, list[Example]]


def _answer_count_faults(request: UnlearnRequest) -> list[Fault]:
    if type(request.answers) is int and request.answers >= 0:
        return []
    return [Fault("--set answers", f"is {request.answers!r}", "Give a whole number; 0 disables the answers")]


def _named(request: UnlearnRequest) -> dict[str, Sequence[str]]:
    """Return the sources of every set by the name of the option that gives them."""
    return {name: getattr(request, name) for name in ("forget", "retain", "holdout", "earlier", "keep")}


def _read(request: UnlearnRequest, named: dict[str, Sequence[str]], faults: Faults) -> _Sets:
    """Read every set but the earlier ones, which belong to the receipt."""
    sets = read_sets({name: named[name] for name in ("forget", "retain", "holdout")}, request.folders, faults)
    kept = {
        name: read_examples((source,), "--keep", request.folders, faults)
        for name, source in kept_names(request.keep).items()
    }
    return _Sets(**sets, keep=kept)


def _set_faults(request: UnlearnRequest, sets: _Sets) -> list[Fault]:
    """Return what sets share although they may not, and which names are reserved."""
    checks = () if request.allow_overlap else (overlap_fault, answer_fault, part_fault)
    found = [check(sets.forget, sets.retain) for check in checks]
    found.append(holdout_fault(sets.holdout, sets.forget, sets.retain))
    return [fault for fault in found if fault is not None] + reserved_faults(list(sets.keep))


def _plan_receipt(
    request: UnlearnRequest, source: ModelSource | None, sets: _Sets, faults: Faults
) -> ReceiptPlan:
    return plan_receipt(
        source,
        earlier=request.earlier,
        sign=request.sign,
        data_key=request.data_key,
        folders=request.folders,
        retain=() if request.allow_overlap else sets.retain,
        in_memory=request.in_memory is not None,
        faults=faults,
    )


def _answer_faults(config: UnlearningConfig, sets: _Sets) -> list[Fault]:
    """Return faults where a loss needs other answers that the forget set does not have."""
    wanted = LOSSES[str(config.forget_loss)].other_answers
    return alternative_faults(sets.forget, wanted, "--forget") if wanted is not None and sets.forget else []


def _earlier(number: int) -> str:
    return f"earlier (request {number})"


def forewarnings(forget: Sequence[Example], retain: Sequence[Example]) -> tuple[str, ...]:
    """Return notes on a request's sets that are no faults, but should be known before the run."""
    found = (repeated(forget), reworded(forget, retain), swapped(len(forget), len(retain)))
    return (*(note for note in found if note is not None), *small_sets(len(forget), len(retain)))


def kept_names(sources: Sequence[str]) -> dict[str, str]:
    """Return the sources of ``--keep`` by the names of their floors: the file's, without its ending."""
    found: dict[str, str] = {}
    for source in sources:
        stem = re.split(r"[/\\:]", source.rstrip("/"))[-1].partition(".")[0] or "kept"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found[name] = source
    return found


def room(request: UnlearnRequest, weights: int) -> int:
    """Return the most bytes that a run writes: the result, the best weights and their successor."""
    return 0 if request.adapters else 3 * weights


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
        **when_to_save(request.settings),
        **request.settings,
        "output_dir": str(folder or request.output),
        "bf16": autocast_bf16(request.precision)[0],
    }
    faults = Faults()
    settings |= faults.attempt(
        lambda: tracker_settings(request.settings, request.output), {"report_to": "none"}
    )
    try:
        config = UnlearningConfig(**settings)
    except SettingError as error:
        raise RequestError([*faults, *error.flags]) from error
    except RequestError as error:
        raise RequestError([*faults, *error.faults]) from error
    except (TypeError, ValueError, AttributeError, LookupError, OSError, ImportError, RuntimeError) as error:
        raise RequestError(
            [*faults, Fault("settings", first_line(error), "See ngdiff unlearn --help")]
        ) from error
    faults.raise_any()
    return config


def _examples_per_step(settings: dict[str, Any]) -> int | None:
    """Return the examples per step of one process, which more processes share; None if not given."""
    usual = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1}
    if not any(settings.get(name) is not None for name in usual):
        return None
    product = 1
    for name, default in usual.items():
        value = settings.get(name, default)
        product *= value if isinstance(value, int) and value > 0 else 1  # faults are reported elsewhere
    return product


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
    with working(f"Loading {request.model_name}"):
        model = load_quantised(ready.source) if request.qlora else load_model(ready.source)
    needed = room(request, model.get_memory_footprint())
    with reserved(place, request, asked, model, needed) as reservation:
        if request.adapters:
            model = with_lora(model, ready.config.seed)
        unseen, split = for_stopping(ready.holdout)
        trainer = UnlearningTrainer(
            model,
            make_config(request, place.run),
            forget_dataset=ready.forget,
            retain_dataset=ready.retain,
            holdout_dataset=unseen or None,
            earlier_datasets={f"earlier {number}": e for number, e in ready.earlier.items()},
            keep_datasets=ready.keep,
            allow_overlap=True,  # overlaps have been checked
            processing_class=ready.tokenizer,
            callbacks=tracker_callbacks(request.settings, request.output),
        )
        for note in [*ready.notes, *([split] if split else [])]:
            trainer.record.note(note)
        progress = UnlearningProgress(trainer)
        trainer.add_callback(progress)
        trainer.remove_callback(PrinterCallback)  # it writes to stdout what the progress bar shows
        trainer.wish = reservation.wish
        console.print(_plan(trainer), highlight=False, soft_wrap=True)
        for note in ready.notes:
            console.print(f"Note: {note}.", highlight=False, markup=False, soft_wrap=True)
        book = AnswerBook(trainer, request.answers)
        trainer.train(resume_from_checkpoint=reservation.going_on or None)
        if place.unguarded is not None:
            trainer.record.note(place.unguarded)
        progress.catch_up()
        answers = book.compare()
        final = trainer.accelerator.unwrap_model(trainer.model)
        _complete(trainer.record, request, ready, reservation.asked, weights_hash(final))
        shown = trainer.record if ready.receipt.data_key is None else hidden(trainer.record)
        card = model_card(shown, request.output.name, request.adapters)

        def write_papers(folder: Path) -> None:
            (folder / CARD).write_text(card, encoding="utf-8")
            if answers is not None:
                write_json(answers, folder / ANSWERS)
            write_receipt(folder, ready.receipt)

        write_result(place, final, ready.tokenizer, shown.as_json(), write_papers)
        on_all(lambda: place.finish() if is_main() else None)
    return trainer.record


def _settled(place: Workplace, request: UnlearnRequest) -> RunRecord | None:
    """Move a finished result into place; return its record, if it is this request's."""
    if not place.settle(request.overwrite):
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
    rate = {
        "auto": "automatic learning rate",
        "gen": f"GeN's learning rate from {args.learning_rate}",
        "fixed": f"learning rate {args.learning_rate}",
    }[str(args.step_size)]
    forget, keep = _counted(trainer.forget_set), _counted(trainer.retain_set[: trainer.own_retain])
    return (
        f"{args.method}: {forget} to forget, {keep} to keep ({_measured_on(trainer)}), rule {args.rule}, "
        f"{rate}, stop at {args.stop_at}"
    )


def _counted(examples: Sequence[EncodedExample]) -> str:
    counts = counted_texts([encoded.example for encoded in examples])
    pieces = f" (in {counts['pieces']} pieces)" if "pieces" in counts else ""
    return f"{counts['examples']}{pieces}"


def _measured_on(trainer: UnlearningTrainer) -> str:
    """Return on which retain examples utility is measured."""
    if trainer.held_out_set[0] is trainer.retain_set[0]:
        return "too few to hold any out, so utility is measured on these"
    return f"{_counted(trainer.held_out_set)} more are held out to measure utility on"


def settings_of(request: UnlearnRequest, config: UnlearningConfig) -> dict[str, Any]:
    """Return the settings as the record keeps them: plain JSON values."""
    settings = {
        "model": request.model_name,
        "forget": list(request.forget),
        "retain": list(request.retain),
        "holdout": list(request.holdout),
        "keep": list(request.keep),
        "lora": request.lora,
        "qlora": request.qlora,
        "precision": request.precision,
        "autocast": "bf16" if config.bf16 else "none",
        "trust_remote_code": request.trust_remote_code,
        **request.settings,
        "method": config.method,
        "forget_loss": config.forget_loss,
        "retain_loss": config.retain_loss,
        "rule": config.rule,
        "rule_settings": config.rule_settings,
        "step_size": config.step_size,
        "learning_rate": config.learning_rate,
        "optimizer": str(getattr(config.optim, "value", config.optim)),
        "batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "examples_per_step": config.examples_per_step,
        "seed": config.seed,
        "stop_at": config.stop_at,
        "keep_utility": config.keep_utility,
        "floors": config.floors,
        "num_train_epochs": config.num_train_epochs,
        "max_length": config.max_length,
        "long_text": config.long_text,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def data_hashes(ready: Prepared) -> dict[str, str]:
    """Return the SHA-256 of each data set, by its role."""
    return hashes_of(data_sets(ready), ready.receipt.data_key)


def hashes_of(sets: Mapping[str, Sequence[EncodedExample]], key: bytes | None = None) -> dict[str, str]:
    """Return the SHA-256 of each data set that has examples, by its role."""
    return {name: set_hash([e.example for e in examples], key) for name, examples in sets.items() if examples}


def data_sets(ready: Prepared) -> dict[str, list[EncodedExample]]:
    """Return all sets of a request, by the role that record and receipt know them by."""
    sets = {"forget": ready.forget, "retain": ready.retain, "holdout": ready.holdout}
    return sets | {f"keep {name}": examples for name, examples in ready.keep.items()}


def _complete(record: RunRecord, request: UnlearnRequest, ready: Prepared, asked: Asked, after: str) -> None:
    record.note(f"precision: {autocast_bf16(request.precision)[1]}")
    model = {"name": request.model_name, "sha256_before": asked.model, "sha256_after": after}
    if request.qlora:  # the hash of quantised weights says nothing of the model that was quantised
        model |= {"sha256_before": None, "sha256_before_quantised": asked.model}
    state_request(record, asked, data_sets(ready), model, ready.receipt)


def state_request(
    record: RunRecord,
    asked: Asked,
    sets: Mapping[str, Sequence[EncodedExample]],
    model: dict[str, Any],
    receipt: ReceiptPlan,
) -> None:
    """Put into the record of a run that has ended what was asked, of which model and about which data."""
    record.request_sha256 = asked.sha256
    record.settings = dict(asked.settings)
    record.data = {
        name: describe([e.example for e in examples], receipt.data_key)
        for name, examples in sets.items()
        if examples
    }
    record.model = model
    complete_record(record, receipt)


class _Callable(ModuleType):
    """A module that is called like the function of the same name in ``ngdiff``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("ngdiff.from_python").unlearn(*args, **options)


sys.modules[__name__].__class__ = _Callable
