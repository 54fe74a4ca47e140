"""model and examples -> a model that knows the examples (a target or a retrained model)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from ngdiff.data.benchmarks import Folders, as_text
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import data_hash
from ngdiff.data.long_text import counted_texts
from ngdiff.errors import Fault, Faults
from ngdiff.inference.teacher_forced import AnswerScore, score_answers, summarise
from ngdiff.models.adapters import with_lora
from ngdiff.models.loading import (
    ModelSource,
    Precision,
    autocast_bf16,
    load_model,
)
from ngdiff.requested import check_folder, encode_sets, find_model, read_sets, shared_setting_faults
from ngdiff.runs.saving import SAVE_MINUTES, write_result
from ngdiff.runs.workplace import Asked, Workplace, may_replace, reserved
from ngdiff.settings.faults import minutes_fault, positive_fault
from ngdiff.system.environment import machine, peak_memory_gib, versions
from ngdiff.system.processes import is_main, joined, looking, on_all, process_count, shared
from ngdiff.system.progress import Meter, console, working
from ngdiff.training.callbacks import ProgressCallback
from ngdiff.training.config import checkpointing
from ngdiff.training.finetuning import FinetuneTrainer

SCORED_AT_THE_END = 200


@dataclass(frozen=True)
class FinetuneRequest:
    """Everything that ``ngdiff finetune`` needs to know.

    Args:
        model: folder, hub name or ``smollm2``.
        data: one or more sources (see :mod:`ngdiff.data.sources`), joined in order.
        output: the folder to make.
        epochs: passes over the data.
        lr: peak learning rate; warmed up over the first 5% of the steps, then decayed to 0 by a cosine.
        batch_size: sequences per optimizer step, over all processes.
        max_length: tokens of prompt and answer together; longer answers are cut.
        long_text: ``split`` running text that is longer into pieces, or ``cut`` it there.
        seed: of the order of the data and of any new weights.
        lora: train LoRA adapters only, and save those.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it; weights stay float32.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        overwrite: replace an earlier result, and drop another request's unfinished run.
        save_steps: optimizer steps between two checkpoints; None to save by time.
        save_minutes: minutes between two checkpoints; 0 for never.
        resume: True: resume the unfinished run of this output, or fail; False: start over; None: resume where
            there is one of the same request.
        trust_remote_code: run Python code that comes with the model.
    """

    model: str
    data: tuple[str, ...]
    output: Path
    epochs: float = 5.0
    lr: float = 1e-4
    batch_size: int = 8
    max_length: int = 512
    long_text: str = "split"
    seed: int = 0
    lora: bool = False
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    folders: Folders = field(default_factory=dict)
    overwrite: bool = False
    save_steps: int | None = None
    save_minutes: float = SAVE_MINUTES
    resume: bool | None = None
    trust_remote_code: bool = False


def finetune(request: FinetuneRequest) -> Path:
    """Fine-tune a model on the answers of a data set and save it with a record.

    Raises:
        RequestError: something in the request is wrong; nothing was written.
    """
    with joined():
        return _finetune(request)


def _finetune(request: FinetuneRequest) -> Path:
    place = Workplace(request.output)
    on_all(lambda: place.settle(request.overwrite) if is_main() else None)
    source, tokenizer, examples, notes = on_all(lambda: _prepare(request))
    asked = Asked(_settings(request), {"data": data_hash([e.example for e in examples])}, None)
    on_all(lambda: place.goes_on(asked, resume=request.resume, overwrite=request.overwrite))
    with working(f"Loading {request.model}"):
        model = load_model(source)
    for note in notes:
        console.print(f"Note: {note}.", highlight=False, markup=False, soft_wrap=True)
    with reserved(place, request, asked, model, 2 * model.get_memory_footprint()) as reservation:
        if request.lora:
            model = with_lora(model, request.seed)
        trainer = _trainer(model, tokenizer, examples, request, place.run)
        trainer.wish = reservation.wish
        trainer.train(resume_from_checkpoint=reservation.going_on or None)
        seconds = trainer.seconds
        scores = _scores(trainer, examples, tokenizer.pad_token_id)
        record = _record(request, examples, summarise(scores), len(scores), seconds)
        notes = [*notes, *trainer.notes, *([] if place.unguarded is None else [place.unguarded])]
        record |= {"request_sha256": reservation.asked.sha256, "notes": notes}
        write_result(place, trainer.accelerator.unwrap_model(trainer.model), tokenizer, record)
        on_all(lambda: place.finish() if is_main() else None)
    return request.output


def _scores(
    trainer: FinetuneTrainer, examples: Sequence[EncodedExample], pad_id: int
) -> Sequence[AnswerScore]:
    scored = examples[:: max(1, len(examples) // SCORED_AT_THE_END)][:SCORED_AT_THE_END]
    with Meter("Scoring what it learned", len(scored)) as meter, looking(trainer.model_wrapped) as model:

        def advance(count: int) -> None:
            meter.advance(min(count * process_count(), meter.total - meter.done))

        def score(mine: list[EncodedExample]) -> list[AnswerScore]:
            return score_answers(
                model,
                mine,
                pad_id=pad_id,
                autocast=trainer.compute_loss_context_manager,
                advance=advance,
                share_prompts=process_count() == 1,
            )

        return shared(scored, score)


def _settings(request: FinetuneRequest) -> dict[str, Any]:
    """Return the settings as the record keeps them: plain JSON values."""
    settings = {**asdict(request), "folders": as_text(request.folders)}
    return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}


def _prepare(request: FinetuneRequest) -> tuple[ModelSource, Any, list[EncodedExample], list[str]]:
    """Check a request without loading the model's weights.

    Raises:
        RequestError: with every fault of the settings, the files, the output and the model.
    """
    faults = Faults(_setting_faults(request))
    model = find_model(request.model, faults, trust_remote_code=request.trust_remote_code)
    source = None if model is None else model[0]
    reads, replaces = {"--data": request.data}, may_replace(request)

    def room(weights: int) -> int:
        return 0 if request.lora else weights

    check_folder(request.output, replaces, source, room, reads, request.folders, faults)
    sets = read_sets({"data": request.data}, request.folders, faults)
    faults.raise_any()
    assert model is not None
    encoded, notes = encode_sets(sets, model, request.max_length, faults, request.long_text)
    faults.raise_any()
    return *model, encoded["data"], notes


def _setting_faults(request: FinetuneRequest) -> list[Fault]:
    found = (
        positive_fault("--lr", request.lr, "such as 1e-4"),
        positive_fault("--epochs", request.epochs, "such as 5"),
        minutes_fault(request.save_minutes),
    )
    return shared_setting_faults(request) + [fault for fault in found if fault is not None]


def _trainer(
    model: nn.Module, tokenizer: Any, examples: list[EncodedExample], request: FinetuneRequest, folder: Path
) -> FinetuneTrainer:
    bf16, _ = autocast_bf16(request.precision)
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=request.epochs,
        learning_rate=request.lr,
        per_device_train_batch_size=request.batch_size,
        **checkpointing(request.gradient_checkpointing),
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        bf16=bf16,
        seed=request.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no" if request.save_steps is None else "steps",
        save_steps=request.save_steps or 500,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    callbacks = [ProgressCallback("Fine-tuning")]
    trainer = FinetuneTrainer(model, args, examples, processing_class=tokenizer, callbacks=callbacks)
    trainer.save_minutes = request.save_minutes if request.save_steps is None else 0.0
    trainer.remove_callback(PrinterCallback)  # it writes to stdout what the progress bar shows
    return trainer


def _record(
    request: FinetuneRequest,
    examples: list[EncodedExample],
    figures: dict[str, float],
    scored: int,
    seconds: float,
) -> dict[str, Any]:
    rows = [encoded.example for encoded in examples]
    return {
        "kind": "finetune",
        "settings": _settings(request),
        "precision": autocast_bf16(request.precision)[1],
        "data": {**counted_texts(rows), "sha256": data_hash(rows)},
        "figures_on_training_data": {**figures, "examples_scored": scored},
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib(),
        "versions": versions(),
        "machine": machine(),
    }
