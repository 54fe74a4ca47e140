"""model -> what it knows after a little training on the forget set, or on half of it.

A model that merely hides the forget set brings it back after a few steps; one that forgot learns it anew,
as a model that never saw it does. So text that the model never saw is relearned with it, in the same run and
as often: to a model that saw neither, the two sets are alike, and only what it knew already makes one of
them rise faster. The other half was not shown, yet a model learns from one half how the other is written;
never-seen text shows how much of its rise is that.

Source: Hu et al. 2024, "Jogging the memory of unlearned LLMs through targeted relearning attacks", arXiv
2406.13356; Lynch et al. 2024, arXiv 2402.16835; setting (one epoch, 2e-5) as in OpenUnlearning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ngdiff.audits.subject import Audit, Context, Outcome, Subject, measure, scratch_folder
from ngdiff.data.batching import permutation
from ngdiff.data.encoding import encode_all
from ngdiff.data.examples import Example
from ngdiff.system.environment import weights_hash
from ngdiff.training.callbacks import ProgressCallback
from ngdiff.training.finetuning import FinetuneTrainer

WHOLE, HALF = "all of it", "half of it, the rest tested"


def relearn(subject: Subject, context: Context, examples: Sequence[Example], title: str) -> Any:
    """Return a copy of the model that was trained on some examples; nothing is saved.

    AdamW at a constant rate without weight decay, batches of ``relearn_batch_size``, no gradient clipping.
    """
    request = context.request
    model = subject.fresh_model()
    encoded = encode_all(examples, subject.tokenizer, request.max_length, "--forget")
    with scratch_folder() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=request.relearn_epochs,
            learning_rate=request.relearn_lr,
            per_device_train_batch_size=request.relearn_batch_size,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=context.precision == "bf16",
            seed=request.seed,
            use_cpu=context.device.type == "cpu",
            dataloader_pin_memory=context.device.type == "cuda",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        progress = [ProgressCallback(title)]
        trainer = FinetuneTrainer(
            model, args, encoded, processing_class=subject.tokenizer, callbacks=progress
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.accelerator.unwrap_model(trainer.model)


def halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split the places of a forget set at random into those to train on and those to test, in order."""
    order = permutation(count, seed, 0)
    return sorted(order[: count // 2]), sorted(order[count // 2 :])


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Relearn all, then one half, each from the model as it was; never-seen text is relearned with it."""
    sets = {name: list(rows) for name, rows in context.tested.items()}
    split = {name: halves(len(rows), context.request.seed) for name, rows in sets.items()}
    everything = {name: list(range(len(rows))) for name, rows in sets.items()}
    first, second = ({name: parts[half] for name, parts in split.items()} for half in (0, 1))
    outcomes = {}
    for title, taught, tested in ((WHOLE, everything, everything), (HALF, first, second)):
        if not all(taught.values()):
            context.note(f"relearning, {title}: a set of one item has no half")
            continue
        subject.release()
        shown = [sets[name][place] for name, places in taught.items() for place in places]
        model = relearn(subject, context, shown, f"Relearning {title}")
        asked = {name: [sets[name][place] for place in places] for name, places in tested.items()}
        with torch.no_grad():
            evaluator = subject.evaluator_of(model, weights_hash(model))
            figures = measure(evaluator, context, {**asked, "retain": context.data.sets["retain"]})
        rows = {} if title == WHOLE else {name: tuple(places) for name, places in tested.items()}
        counts = " and ".join(f"{len(places)} of {name}" for name, places in taught.items())
        outcomes[title] = Outcome(figures, rows, f"examples shown: {counts}")
        del model, evaluator
    return outcomes


AUDIT = Audit(
    name="relearning",
    summary="a little training on the forget set, on all of it and on half",
    paper="Hu et al. 2024, arXiv 2406.13356",
    run=run,
    settings=("relearn_lr", "relearn_epochs", "relearn_batch_size"),
)
