"""model and examples -> a model that knows the examples (a target or a retrained model)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, TrainingArguments, set_seed

from ngdiff.data.batching import ABSENT, Batch, collate, permutation
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import data_hash, to_examples
from ngdiff.data.sharing import loader
from ngdiff.data.sources import read_rows, source_path
from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.distributed import is_main, process_count
from ngdiff.evaluation.teacher_forced import AnswerScore, score_answers, summarise
from ngdiff.losses import nll
from ngdiff.models.loading import (
    ModelSource,
    Precision,
    autocast_bf16,
    check_causal,
    check_precision,
    load_model,
    load_tokenizer,
    resolve_model,
    vocabulary_faults,
    weights_bytes,
)
from ngdiff.models.logprobs import count_labelled, labelled_tokens
from ngdiff.models.saving import SAVE_MINUTES, write_result
from ngdiff.settings.config import checkpointing, minutes_fault, positive_fault, seed_fault
from ngdiff.system.environment import machine, peak_memory_gib, versions, weights_hash
from ngdiff.system.output import check_output, holds_faults, same_folder, write_json
from ngdiff.system.progress import Meter, working
from ngdiff.training.callbacks import ProgressCallback
from ngdiff.training.checkpoints import step_of
from ngdiff.training.distribution import check_sharding, share_steps
from ngdiff.training.durable import DurableTrainer
from ngdiff.training.parallel import by_main, from_main, joined, looking, on_all, raise_faults, shared, summed
from ngdiff.training.signals import wish_to_stop
from ngdiff.training.unfinished import Asked, Workplace

SCORED_AT_THE_END = 200
STATE_FILE = "finetuning_state.json"


class _Examples(Dataset[EncodedExample]):
    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.examples[index]


class LengthGroupedOrder(Sampler[int]):
    """A new random order each epoch in which neighbours have similar lengths, so that little is padding."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, span: int = 16) -> None:
        self.lengths, self.batch_size, self.seed, self.span = lengths, batch_size, seed, span
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self), self.seed, self.epoch)
        window = self.batch_size * self.span
        for start in range(0, len(order), window):
            mine = sorted(order[start : start + window], key=lambda i: self.lengths[i])
            batches = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
            # a short batch stays last: moved inside, it would shift every batch behind it
            full = len(batches) - (len(batches[-1]) < self.batch_size)
            shuffled = permutation(full, self.seed + 1, self.epoch * 7919 + start)
            for index in [*shuffled, *range(full, len(batches))]:
                yield from batches[index]


class FinetuneTrainer(DurableTrainer):
    """Minimises the mean NLL of the labelled tokens over the whole accumulated batch."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: nn.Module, args: TrainingArguments, examples: Sequence[EncodedExample], **kwargs: Any
    ) -> None:
        self.notes: list[str] = []
        self._started = time.monotonic()
        pad_id = kwargs["processing_class"].pad_token_id
        args.remove_unused_columns = False
        self._shares = shares = share_steps(args)

        def collate_share(rows: Sequence[EncodedExample]) -> Batch:
            if rows:
                return collate(rows, pad_id)
            return {**collate(examples[:1], pad_id), ABSENT: torch.ones(1)}

        super().__init__(
            model=model, args=args, train_dataset=_Examples(examples), data_collator=collate_share, **kwargs
        )
        check_sharding(self)
        self._order = LengthGroupedOrder([len(e.input_ids) for e in examples], shares.examples, args.seed)

    def get_train_dataloader(self) -> Any:
        """Return this process's share of every step's examples."""
        return loader(self, self.train_dataset, self._order, self._shares)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """Take the micro-batches of one step and count their labelled tokens together, over all processes."""
        if self.no_more_steps:
            return [], 0
        batches = list(islice(epoch_iterator, num_batches))
        mine = sum(count_labelled(batch) for batch in batches if ABSENT not in batch)
        return batches, int(summed(torch.tensor(mine, device=device)))

    def note(self, text: str) -> None:
        """Write a fallback down, for the record."""
        self.notes.append(text)

    def save_more(self, folder: Path) -> None:
        """Put notes and time into a checkpoint; the rest is transformers', or follows from the step."""
        if self.args.should_save:
            write_json({"notes": self.notes, "seconds": self.seconds}, folder / STATE_FILE)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, in s, that before a checkpoint it went on from included."""
        return time.monotonic() - self._started

    def find_checkpoint(self, asked: Any) -> Any:
        """Return the folder to go on from, having taken up its notes."""
        found = super().find_checkpoint(asked)
        if isinstance(found, str):
            earlier = json.loads((Path(found) / STATE_FILE).read_text(encoding="utf-8"))
            self._started -= earlier["seconds"]
            self.notes = [*earlier["notes"], *self.notes, f"resumed at step {step_of(Path(found))}"]
        return found

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's share of the step's mean NLL."""
        factor = 0 if ABSENT in inputs else self.accelerator.num_processes
        loss: Any = nll(labelled_tokens(model, inputs)) / num_items_in_batch * factor
        self.state.progress_note = f"loss {float(loss.detach()):.3f}"
        return loss


@dataclass(frozen=True)
class FinetuneRequest:
    """Everything that ``ngdiff finetune`` needs to know.

    Args:
        model: folder, hub name or ``smollm2``.
        data: one or more sources (see :mod:`ngdiff.data.sources`), joined in order.
        output: the folder to make.
        epochs: passes over the data.
        lr: peak learning rate; warmed up over the first 5% of the steps, then decayed to 0 by a cosine.
        batch_size: sequences an optimizer step, over all processes.
        max_length: tokens of prompt and answer together; longer answers are cut.
        seed: of the order of the data and of any new weights.
        lora: train LoRA adapters only, and save those.
        gradient_checkpointing: work activations out again in the backward pass instead of keeping them.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it; weights stay float32.
        tofu_dir: folder with TOFU's JSON files.
        overwrite: replace an earlier result, and drop another request's unfinished run.
        save_steps: optimizer steps from one checkpoint to the next; None to go by the clock.
        save_minutes: minutes from one checkpoint to the next; 0 for never.
        resume: True: go on with the unfinished run of this output, or fail; False: start afresh; None: go on
            where there is one of the same request.
        trust_remote_code: run Python code that comes with the model.
    """

    model: str
    data: tuple[str, ...]
    output: Path
    epochs: float = 5.0
    lr: float = 1e-4
    batch_size: int = 8
    max_length: int = 512
    seed: int = 0
    lora: bool = False
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    tofu_dir: Path | None = None
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
    on_all(lambda: place.settle() if is_main() else None)
    source, tokenizer, examples = on_all(lambda: _prepare(request))
    asked = Asked(_settings(request), {"data": data_hash([e.example for e in examples])}, None)
    on_all(lambda: place.goes_on(asked, resume=request.resume, overwrite=request.overwrite))
    with working(f"Loading {request.model}"):
        model = load_model(source)
    needed = 2 * model.get_memory_footprint()
    on_all(lambda: raise_faults(check_output(request.output, _may_replace(request), needed)))
    # with FSDP2 the first process alone may have read the weights
    hashed = replace(asked, model=from_main(weights_hash(model) if is_main() else ""))
    if request.lora:
        model = with_lora(model, request.seed)
    claim = partial(place.claimed, hashed, resume=request.resume, overwrite=request.overwrite)
    with by_main(claim) as going_on, wish_to_stop() as wish:
        trainer = _trainer(model, tokenizer, examples, request, place.run)
        trainer.wish = wish
        trainer.train(resume_from_checkpoint=going_on or None)
        seconds = trainer.seconds
        scores = _scores(trainer, examples, tokenizer.pad_token_id)
        record = _record(request, examples, summarise(scores), len(scores), seconds)
        record |= {"request_sha256": hashed.sha256, "notes": trainer.notes}
        write_result(place, trainer.accelerator.unwrap_model(trainer.model), tokenizer, record)
        if is_main():
            place.finish()
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
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}


def _may_replace(request: FinetuneRequest) -> bool:
    return request.overwrite or (request.resume is not False and Workplace(request.output).may_replace)


def _prepare(request: FinetuneRequest) -> tuple[ModelSource, Any, list[EncodedExample]]:
    faults = _setting_faults(request)
    source, rows, needed = None, [], 0
    try:
        source = resolve_model(request.model, trust_remote_code=request.trust_remote_code)
        faults += check_causal(source) + same_folder(request.output, source.location)
        needed = 0 if faults or request.lora else weights_bytes(source) or 0
    except RequestError as error:
        faults += error.faults
    faults += check_output(request.output, _may_replace(request), needed)
    faults += holds_faults(request.output, local_sources({"--data": request.data}, request.tofu_dir))
    for data in request.data:
        try:
            rows += to_examples(read_rows(data, where="--data", tofu_dir=request.tofu_dir), "--data")
        except RequestError as error:
            faults += error.faults
    tokenizer = tokenizer_of(source, faults)
    if faults or source is None:
        raise RequestError(faults)
    examples = encode_all(rows, tokenizer, request.max_length, "--data")
    used = (token for example in examples for token in example.input_ids)
    if faults := vocabulary_faults(source, tokenizer, used):
        raise RequestError(faults)
    return source, tokenizer, examples


def tokenizer_of(source: ModelSource | None, faults: list[Fault]) -> Any:
    """Load the tokenizer of a model that was found, or add to the faults why it cannot be read."""
    if source is None:
        return None
    try:
        return load_tokenizer(source)
    except RequestError as error:
        faults += error.faults
        return None


def local_sources(named: Mapping[str, Sequence[str]], tofu_dir: Path | None) -> list[tuple[str, str]]:
    """Return setting and path of all files and folders that sources read."""
    found = [(flag, source_path(source)) for flag, sources in named.items() for source in sources]
    folder = [] if tofu_dir is None else [("--tofu-dir", str(tofu_dir))]
    return [(flag, path) for flag, path in found if path is not None] + folder


def _setting_faults(request: FinetuneRequest) -> list[Fault]:
    faults: list[Fault] = []
    try:
        check_precision(request.precision)
    except RequestError as error:
        faults += error.faults
    found = (
        positive_fault("--lr", request.lr, "such as 1e-4"),
        positive_fault("--epochs", request.epochs, "such as 5"),
        seed_fault(request.seed),
        minutes_fault(request.save_minutes),
    )
    return faults + [fault for fault in found if fault is not None]


def with_lora(model: nn.Module, seed: int = 0, rank: int = 16) -> Any:
    """Wrap a model so that only LoRA adapters on its linear layers train (alpha = 2 * rank, no dropout)."""
    from peft import LoraConfig, get_peft_model

    set_seed(seed)  # adapters begin at random

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


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
    return {
        "kind": "finetune",
        "settings": _settings(request),
        "precision": autocast_bf16(request.precision)[1],
        "data": {"examples": len(examples), "sha256": data_hash([e.example for e in examples])},
        "figures_on_training_data": {**figures, "examples_scored": scored},
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib(),
        "versions": versions(),
        "machine": machine(),
    }
