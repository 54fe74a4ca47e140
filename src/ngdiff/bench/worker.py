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
    from ngdiff.system.environment import keep_freed_memory
    from ngdiff.system.terminal import quiet_libraries

    quiet_libraries()
    keep_freed_memory()
    folder = Path(sys.argv[1])
    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    model = spec["model"]
    if spec["unlearn"] is not None:
        model = _unlearn_in_a_row(spec, folder)
        shutil.copyfile(Path(model) / RECORD, folder / RECORD)
    if spec["evaluate"] is not None:
        _evaluate(model, spec["evaluate"], folder)
        _general(model, spec["evaluate"], folder)
    if not spec["keep_model"]:
        for made in folder.glob("model*"):
            shutil.rmtree(made, ignore_errors=True)


def _unlearn_in_a_row(spec: dict[str, Any], folder: Path) -> str:
    """Unlearn one request after another, each from the model of the one before; return the last one's.

    After each but the last the model is evaluated, into a folder of its own.
    """
    model, steps = str(spec["model"]), spec["unlearn"].pop("steps")
    for number, step in enumerate(steps, 1):
        made = folder / ("model" if number == len(steps) else f"model-{number}")
        if not (made / RECORD).exists():
            _unlearn(model, step, dict(spec["unlearn"]), made)
        model = str(made)
        after = folder / f"after-{number}"
        if spec["evaluate"] is not None and number < len(steps) and not (after / EVALUATION).exists():
            after.mkdir(exist_ok=True)
            _evaluate(model, spec["evaluate"], after)
    return model


def _unlearn(model: str, step: dict[str, list[str]], spec: dict[str, Any], output: Path) -> None:
    from ngdiff.unlearn import UnlearnRequest, unlearn

    unlearn(
        UnlearnRequest(
            model=model,
            forget=tuple(step["forget"]),
            retain=tuple(step["retain"]),
            holdout=tuple(step["holdout"]),
            output=output,
            folders=_paths(spec.pop("folders")),
            **spec,
            answers=0,  # its evaluation has them
        )
    )


def _evaluate(model: str, spec: dict[str, Any], folder: Path) -> None:
    from ngdiff.evaluation.evaluate import evaluate
    from ngdiff.evaluation.request import EvaluateRequest

    asked: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in spec["request"].items()
    }
    evaluate(
        EvaluateRequest(
            model=model,
            output=folder / EVALUATION,
            **{**asked, "folders": _paths(spec["request"]["folders"])},
            batch_size=spec["batch_size"],
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
    from ngdiff.inference.teacher_forced import score_answers, summarise
    from ngdiff.invented.people import general_knowledge_rows
    from ngdiff.models.loading import autocast_in, load_model, load_tokenizer, resolve_model

    source = resolve_model(model, trust_remote_code=spec["trust_remote_code"])
    tokenizer, loaded = load_tokenizer(source), load_model(source)
    if torch.cuda.is_available():
        loaded.to("cuda")
    examples = as_encoded(general_knowledge_rows(), tokenizer, 512, "general knowledge")
    autocast, _, _ = autocast_in(spec["precision"], loaded.device)
    scores = score_answers(
        loaded,
        examples,
        pad_id=int(tokenizer.pad_token_id or 0),
        batch_size=spec["batch_size"],
        autocast=autocast,
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
