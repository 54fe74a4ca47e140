"""What ``ngdiff audit`` needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ngdiff.data.benchmarks import Folders
from ngdiff.models.loading import Precision

PREFIX = "Sure, here is the answer:"


@dataclass(frozen=True)
class AuditRequest:
    """One audit of one model.

    Args:
        model: folder, hub name or ``smollm2``; nothing of it is changed.
        output: the JSON file to write.
        forget: sources of the forget set; TOFU: ``forget01``, ``forget05`` or ``forget10``.
        retain: sources of the retain set; TOFU brings its own.
        holdout: text of the forget set's kind that the model never saw, for membership inference.
        suite: ``own`` or ``tofu``: whose data.
        audits: names of rows of the table of audits; empty for all.
        target: the model before it forgot, audited as well.
        reference: the retrained model, audited as well.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        relearn_lr: constant learning rate of relearning, AdamW.
        relearn_epochs: passes over what is relearned.
        relearn_batch_size: examples a step of relearning.
        bits: widths of weights that quantisation tries: 8, 4.
        prefix: words that the answer is made to begin with.
        samples: answers sampled to each question.
        shadows: models that saw neither forget set nor holdout, such as the retrained one under other seeds.
        generate: also let the model answer, for ROUGE.
        gradient_norms: also run the membership attack by gradient norm.
        batch_size: sequences a forward pass.
        max_length: longest sequence, in tokens.
        long_text: ``split`` running text that is longer into pieces, or ``cut`` it there.
        max_new_tokens: longest generated answer, in tokens.
        seed: of intervals, of the half that is relearned and of the order of training.
        resamples: of the bootstrap intervals.
        cache: remember item results.
        cache_dir: folder of the cache.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it.
        overwrite: replace an earlier audit.
    """

    model: str
    output: Path
    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()
    suite: str = "own"
    audits: tuple[str, ...] = ()
    target: str | None = None
    reference: str | None = None
    folders: Folders = field(default_factory=dict)
    relearn_lr: float = 2e-5
    relearn_epochs: float = 1.0
    relearn_batch_size: int = 8
    bits: tuple[int, ...] = (8, 4)
    prefix: str = PREFIX
    samples: int = 64
    shadows: tuple[str, ...] = ()
    generate: bool = True
    gradient_norms: bool = True
    batch_size: int = 8
    max_length: int = 512
    long_text: str = "split"
    max_new_tokens: int = 200
    seed: int = 0
    resamples: int = 2000
    cache: bool = True
    cache_dir: Path | None = None
    precision: Precision = "auto"
    overwrite: bool = False
