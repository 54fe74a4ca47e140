"""What ``ngdiff evaluate`` needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ngdiff.data.benchmarks import Folders
from ngdiff.models.loading import Precision


@dataclass(frozen=True)
class EvaluateRequest:
    """One evaluation of one model.

    Args:
        model: folder, hub name or ``smollm2``.
        suite: name of a row of the table of suites.
        output: the JSON file to write.
        forget: own data: sources of the forget set; TOFU: ``forget01``, ``forget05`` or ``forget10``.
        retain: own data: sources of the retain set.
        holdout: text of the forget set's kind that the model never saw, for membership inference.
        data: the corpus of the ``muse`` suite: ``news``, ``books`` or a folder.
        tasks: of the ``lm-eval`` suite.
        reference: the retrained model (folder or hub name), its ``eval.json``, or a log of another code.
        require: keys of figures without which the evaluation is refused.
        folders: benchmarks, such as ``tofu``, to folders that hold their data.
        batch_size: sequences a forward pass.
        max_length: longest sequence in tokens; ``None`` for the suite's own.
        long_text: ``own``: ``split`` running text that is longer into pieces, or ``cut`` it there.
        max_new_tokens: longest generated answer.
        seed: of the bootstrap intervals.
        resamples: of the bootstrap intervals.
        paraphrases: also ask the paraphrased questions, where the data has them.
        gradient_norms: also run the membership attack by gradient norm.
        cache: remember item results, so that an interrupted evaluation resumes.
        cache_dir: folder of the cache.
        precision: ``auto`` takes bf16 autocast where the machine is fast at it.
        overwrite: replace an earlier result.
        limit: most items of each task of ``lm-eval``.
        openunlearning: folder to make with the same figures in OpenUnlearning's layout.
        trust_remote_code: run Python code that comes with the model or the reference.
    """

    model: str
    suite: str
    output: Path
    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()
    data: str | None = None
    tasks: tuple[str, ...] = ()
    reference: str | None = None
    require: tuple[str, ...] = ()
    folders: Folders = field(default_factory=dict)
    batch_size: int = 8
    max_length: int | None = None
    long_text: str = "split"
    max_new_tokens: int = 200
    seed: int = 0
    resamples: int = 2000
    paraphrases: bool = True
    gradient_norms: bool = True
    cache: bool = True
    cache_dir: Path | None = None
    precision: Precision = "auto"
    overwrite: bool = False
    limit: int | None = None
    openunlearning: Path | None = None
    trust_remote_code: bool = False
