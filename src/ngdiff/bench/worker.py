"""one trial's specification (JSON) -> its record and evaluation; a process of its own.

python -m ngdiff.bench.worker TRIAL_FOLDER

It ends with the process that started it: its standard input is a pipe from there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
import threading
from pathlib import Path
from typing import Any

from ngdiff.errors import Interrupted
from ngdiff.system.output import write_json

SPEC, RECORD, EVALUATION, GENERAL = "spec.json", "record.json", "evaluation.json", "general.json"


def main() -> None:
    """Unlearn, where the specification says so, and evaluate what came out."""
    from ngdiff.cli.app import quiet_libraries
    from ngdiff.system.environment import keep_freed_memory

    quiet_libraries()
    keep_freed_memory()
    folder = Path(sys.argv[1])
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    model = spec["model"]
    if spec["unlearn"] is not None:
        model = str(folder / "model")
        if not (folder / "model" / RECORD).exists():
            _unlearn(spec["unlearn"], folder)
        shutil.copyfile(folder / "model" / RECORD, folder / RECORD)
    if spec["evaluate"] is not None:
        _evaluate(model, spec["evaluate"], folder)
        _general(model, spec["evaluate"], folder)
    if not spec["keep_model"]:
        shutil.rmtree(folder / "model", ignore_errors=True)


def _unlearn(spec: dict[str, Any], folder: Path) -> None:
    from ngdiff.unlearn import UnlearnRequest, unlearn

    unlearn(
        UnlearnRequest(
            forget=(spec.pop("forget"),),
            retain=(spec.pop("retain"), *spec.pop("also_retain", ())),
            output=folder / "model",
            folders=_paths(spec.pop("folders")),
            **spec,
            answers=0,  # its evaluation has them
        )
    )


def _evaluate(model: str, spec: dict[str, Any], folder: Path) -> None:
    from ngdiff.evaluation.evaluate import evaluate
    from ngdiff.evaluation.request import EvaluateRequest

    evaluate(
        EvaluateRequest(
            model=model,
            suite="tofu",
            output=folder / EVALUATION,
            forget=(spec["split"],),
            reference=spec["reference"],
            folders=_paths(spec["folders"]),
            batch_size=spec["batch_size"],
            paraphrases=spec["paraphrases"],
            gradient_norms=spec["gradient_norms"],
            precision=spec["precision"],
            overwrite=True,
            trust_remote_code=spec["trust_remote_code"],
        )
    )


def _paths(folders: dict[str, str]) -> dict[str, Path]:
    return {name: Path(folder) for name, folder in folders.items()}


def _general(model: str, spec: dict[str, Any], folder: Path) -> None:
    """Score general knowledge: forty plain questions of the world, shipped with the project."""
    import torch

    from ngdiff.data.datasets import as_encoded
    from ngdiff.evaluation.teacher_forced import score_answers, summarise
    from ngdiff.invented.people import general_knowledge_rows
    from ngdiff.models.loading import autocast_bf16, load_model, load_tokenizer, resolve_model

    source = resolve_model(model, trust_remote_code=spec["trust_remote_code"])
    tokenizer, loaded = load_tokenizer(source), load_model(source)
    if torch.cuda.is_available():
        loaded.to("cuda")
    examples = as_encoded(general_knowledge_rows(), tokenizer, 512, "general knowledge")
    bf16, _ = autocast_bf16(spec["precision"])
    scores = score_answers(
        loaded,
        examples,
        pad_id=int(tokenizer.pad_token_id or 0),
        batch_size=spec["batch_size"],
        autocast=lambda: torch.autocast(next(loaded.parameters()).device.type, torch.bfloat16, enabled=bf16),
    )
    write_json(summarise(scores), folder / GENERAL)


def _end_with_parent() -> None:
    """End this process when the pipe on standard input closes: the process at its other end is gone."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return  # started by hand

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(128 + signal.SIGTERM)  # as after a kill: what was saved is resumed from

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    try:
        main()
    except Interrupted as ending:
        sys.exit(128 + ending.signum)
