"""The first study: TOFU with SmolLM2-135M. Later ones begin with its target and its retrained model.

    python -m benchmarks.study targets   # knows everything; never saw the forget set
    python -m benchmarks.study runs      # NGDiff from every starting rate, GradDiff at every fixed rate
    python -m benchmarks.study tables    # figures and costs of all runs into docs/study/runs.csv

TOFU's last ``--questions`` questions are learned, the last ``--forget`` of them are to be forgotten (200:
forget05); TOFU's first 40 are never seen by any model. All is kept under ``--folder`` and skipped when it is
there already. A run with a fixed rate whose stopping rule never stepped in is the run without one, too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.evidence import STUDY, write_csv
from ngdiff.data.datasets import as_encoded
from ngdiff.finetune import FinetuneRequest, finetune
from ngdiff.inference.teacher_forced import score_answers, summarise
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.system.environment import keep_freed_memory
from ngdiff.system.output import write_json
from ngdiff.system.progress import Meter
from ngdiff.unlearn import UnlearnRequest, unlearn

NEVER_SEEN = "tofu:full[:40]"
RATES = ("1e-7", "1e-6", "1e-5", "1e-4", "1e-3")
FIXED_RATES = ("1e-5", "2e-5", "5e-5", "1e-4")
METHOD = "ngdiff-unlikelihood"
"""The default when the study of forget05 was made."""
MOST_RETAIN_MEASURED = 200
SETS = ("forget", "retain", "never_seen")


class Study:
    """Names of the data and folders of one study."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.folder.expanduser()
        self.everything = f"tofu:full[-{args.questions}:]"
        self.forget = f"tofu:full[-{args.forget}:]"
        self.retain = f"tofu:full[-{args.questions}:-{args.forget}]"
        self.epochs, self.lr = args.epochs, args.lr
        self.most_epochs: float = args.most_epochs
        self.method: str = args.method
        self.stride = max(1, (args.questions - args.forget) // MOST_RETAIN_MEASURED)

    def targets(self) -> None:
        for name, data in (("target", self.everything), ("retrained", self.retain)):
            output = self.folder / name
            if not output.exists():
                finetune(FinetuneRequest("smollm2", (data,), output, epochs=self.epochs, lr=self.lr))
            self.measure(output)

    def runs(self) -> dict[str, dict[str, Any]]:
        automatic = {
            f"ngdiff-from-{rate}": {"method": self.method, "step_size": "auto", "learning_rate": float(rate)}
            for rate in RATES
        }
        stopped = {
            f"graddiff-{rate}": {
                "method": "graddiff",
                "learning_rate": float(rate),
                "num_train_epochs": self.most_epochs,
            }
            for rate in FIXED_RATES
        }
        endless = {
            f"{name}-no-stop": {**settings, "stop_at": "none", "num_train_epochs": self.most_epochs}
            for name, settings in stopped.items()
        }
        no_stop = {"method": self.method, "stop_at": "none", "num_train_epochs": self.most_epochs}
        plain = {
            "ngdiff-plain": {"method": "ngdiff"},  # the paper's forget loss: gradient ascent
            "ngdiff-bounded": {"method": "ngdiff-bounded"},
        }
        return (
            {"ngdiff": {"method": self.method}}
            | stopped
            | endless
            | automatic
            | {"ngdiff-no-stop": no_stop}
            | plain
        )

    def run(self, name: str, settings: dict[str, Any]) -> None:
        output = self.folder / "runs" / name
        stopped = output.with_name(name.removesuffix("-no-stop"))
        if stopped != output and "learning_rate" in settings and ran_to_the_end(stopped):
            print(f"{name}: {stopped.name} ran to its end, and is the same run")
            return
        if not output.exists():
            unlearn(
                UnlearnRequest(
                    str(self.folder / "target"), (self.forget,), (self.retain,), output, settings=settings
                )
            )
        self.measure(output)

    def measure(self, model_folder: Path) -> None:
        """Write figures.json: every set's figures under one model."""
        path = model_folder / "figures.json"
        if path.exists():
            return
        source = resolve_model(str(model_folder))
        model, tokenizer = load_model(source), load_tokenizer(source)
        figures = {}
        for name, data in (("forget", self.forget), ("retain", self.retain), ("never_seen", NEVER_SEEN)):
            examples = as_encoded(data, tokenizer, 512, name)
            if name == "retain":
                examples = examples[:: self.stride]
            with Meter(f"{model_folder.name}: {name}", len(examples)) as meter:
                scores = score_answers(
                    model, examples, pad_id=tokenizer.pad_token_id, batch_size=8, advance=meter.advance
                )
            figures[name] = summarise(scores)
        write_json(figures, path)
        if model_folder.parent.name == "runs" and model_folder.name != "ngdiff":  # tofu_table evaluates that
            (model_folder / "model.safetensors").unlink()  # half a gigabyte a run; the record repeats it


def ran_to_the_end(output: Path) -> bool:
    """Say whether a run took all its steps, and its last weights are those that were kept."""
    path = output / "record.json"
    if not path.is_file():
        return False
    stop = read_json(path)["stop"]
    return bool(stop["code"] == "end" and stop["kept_step"] == stop["step"])


def keep(folder: Path, path: Path) -> None:
    """Write a line a model: figures of every set, then what the run cost and why it ended."""
    places = [folder / "target", folder / "retrained", *sorted((folder / "runs").glob("*"))]
    found = [place for place in places if (place / "figures.json").is_file()]
    figures = {place: read_json(place / "figures.json") for place in found}
    measures = ("probability", "extraction_strength", "nll")
    keys = [(part, measure) for part in SETS for measure in measures]
    head = ["model", *(f"{part}.{measure}" for part, measure in keys), *COST]
    lines = (
        [place.name, *(figures[place][part][measure] for part, measure in keys), *cost(place)]
        for place in found
    )
    write_csv(path, head, lines)


COST = ("steps", "seconds", "peak_gib", "first_rate", "last_rate", "ended", "kept_step")


def cost(place: Path) -> list[object]:
    """Return what a model took, of a run of training without rates and stop."""
    record = read_json(place / "record.json")
    if "cost" not in record:
        return [None, record["seconds"], record["peak_memory_gib"]["process"], *[None] * 4]
    rates = [step["learning_rate"] for step in record["steps"] if not step["skipped"]] or [None]
    took, stop = record["cost"], record["stop"]
    spent = [took["steps"], took["seconds"], took["peak_memory_gib"]["process"]]
    return [*spent, rates[0], rates[-1], stop["code"], stop["kept_step"]]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("targets", "runs", "tables"))
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/ngdiff/study1200"))
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--forget", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument(
        "--most-epochs", type=float, default=4.0, help="of GradDiff, and of runs without stop"
    )
    parser.add_argument("--method", default=METHOD, help="of the runs called ngdiff")
    parser.add_argument("--name", default="", help="of the study, for its file in docs/study")
    parser.add_argument("--only", nargs="*", help="names of runs")
    args = parser.parse_args()
    keep_freed_memory()
    study = Study(args)
    if args.what == "targets":
        study.targets()
    elif args.what == "runs":
        runs = study.runs()
        for name in args.only or runs:
            started = time.monotonic()
            study.run(name, runs[name])
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    else:
        name = f"runs-{args.name}.csv" if args.name else "runs.csv"
        keep(study.folder, STUDY / name)


if __name__ == "__main__":
    main()
