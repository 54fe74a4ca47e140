"""model -> what it knows after a little training on the forget set, or on half of it.

A model that merely hides the forget set brings it back after a few steps; one that forgot learns it anew,
as a model that never saw it does. The retrained model under the same training says how much is learning.
Training on one half and testing the other needs no such comparison: those texts were not shown.

Source: Hu et al. 2024, "Jogging the memory of unlearned LLMs through targeted relearning attacks", arXiv
2406.13356; Lynch et al. 2024, arXiv 2402.16835; setting (one epoch, 2e-5) as in OpenUnlearning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ngdiff.audits.row import Audit, Outcome
from ngdiff.audits.subject import Context, Subject, measure, scratch_folder
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
    """Relearn all, then one half, each from the model as it was."""
    forget = list(context.forget)
    taught, tested = halves(len(forget), context.request.seed)
    plan = {WHOLE: (list(range(len(forget))), None), HALF: (taught, tuple(tested))}
    outcomes = {}
    for name, (shown, asked) in plan.items():
        if not shown:
            context.note(f"relearning, {name}: a forget set of one item has no half")
            continue
        subject.release()
        model = relearn(subject, context, [forget[place] for place in shown], f"Relearning {name}")
        with torch.no_grad():
            evaluator = subject.evaluator_of(model, weights_hash(model))
            rows = None if asked is None else [forget[place] for place in asked]
            figures = measure(evaluator, context, rows)
        outcomes[name] = Outcome(figures, asked, f"{len(shown)} examples shown")
        del model, evaluator
    return outcomes


AUDIT = Audit(
    name="relearning",
    summary="a little training on the forget set, on all of it and on half",
    paper="Hu et al. 2024, arXiv 2406.13356",
    run=run,
    settings=("relearn_lr", "relearn_epochs", "relearn_batch_size"),
    teaches=frozenset({WHOLE}),
)
