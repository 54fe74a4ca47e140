"""model -> what it knows with its weights in 8 and in 4 bits.

Unlearning moves weights a little; rounding them coarsely can undo it. 8 bits are LLM.int8(), 4 bits are NF4
without double quantisation, both by bitsandbytes, as ``transformers`` loads them.

Source: Zhang et al. 2025, "Catastrophic failure of LLM unlearning via quantization", ICLR, arXiv 2410.16454.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ngdiff.audits.subject import Audit, Context, Outcome, Subject, measure, scratch_folder
from ngdiff.models.loading import fast_bf16
from ngdiff.system.progress import working

WIDTHS = (8, 4)


def configuration(bits: int) -> BitsAndBytesConfig:
    """Return how weights are held in 8 or 4 bits."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if fast_bf16() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


@contextmanager
def plain_folder(subject: Subject) -> Iterator[str]:
    """Yield a folder or hub name with whole safetensors weights: adapters and GGUFs are written out first."""
    source = subject.source
    if not (source.adapter or source.gguf_file):
        yield source.location
        return
    with scratch_folder() as folder:
        subject.fresh_model().save_pretrained(folder)
        yield folder


class CannotQuantise(Exception):
    """bitsandbytes cannot hold or run a model in so many bits; the message says why."""


def quantised(subject: Subject, bits: int) -> Any:
    """Load the model with its weights in so many bits, and see that it runs.

    Raises:
        CannotQuantise: it does not, as where the weights of a layer do not fill its blocks.
    """
    where: Any = subject.context.device.index or 0 if subject.context.device.type == "cuda" else "cpu"
    with plain_folder(subject) as folder, working(f"Loading {subject.source.name} in {bits} bits"):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                quantization_config=configuration(bits),
                device_map={"": where},
                use_safetensors=True,
                trust_remote_code=subject.source.trust_remote_code,
                dtype=torch.float32,
            )
            with torch.no_grad(), subject.context.autocast():
                model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError, AssertionError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CannotQuantise(
                f"bitsandbytes cannot run {subject.source.name} in {bits} bits: {first}"
            ) from error
    return model


def run(subject: Subject, context: Context) -> dict[str, Outcome]:
    """Measure the model at each width that it runs in."""
    outcomes = {}
    for bits in context.request.bits:
        subject.evaluator()  # which knows the weights' hash
        subject.release()
        try:
            model = quantised(subject, bits)
        except CannotQuantise as error:
            context.note(f"quantisation in {bits} bits could not be tried: {error}")
            continue
        # the packed codes alone do not tell two models apart, their scales do: the hash is of what was packed
        evaluator = subject.evaluator_of(model, f"{subject.sha256} in {bits} bits")
        with torch.no_grad():
            outcomes[f"{bits} bits"] = Outcome(measure(evaluator, context, context.measured))
        del model, evaluator
    return outcomes


def missing(data: object) -> str | None:
    """Return why the audit cannot run where the library is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes, which holds weights in few bits, is not installed (pip install 'ngdiff[qlora]')"
    return None


AUDIT = Audit(
    name="quantisation",
    summary="weights in 8 and in 4 bits (LLM.int8(), NF4)",
    paper="Zhang et al. 2025, arXiv 2410.16454",
    run=run,
    settings=("bits",),
    missing=missing,
)
