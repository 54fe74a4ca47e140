"""TOFU -> how near each method comes to the retrained model, on every column at once.

    python -m benchmarks.goals --split forget10 --jobs 6 --batch-size 32          # one data-centre GPU
    python -m benchmarks.goals --split forget01 --questions 400 --folder runs/01  # two cores

The target learns TOFU's last ``--questions`` questions (4,000: all of it), the retrained model the same
without the split. Each method then unlearns by its own command, ``--jobs`` of them side by side, and all are
evaluated over all items. What already exists is not made again, so an interrupted study continues where it
stopped. Where not all of TOFU is learned, the suite asks retain questions that were learned, of the last 400,
since the others have no wrong answers. ``docs/decisions.md`` says what of a method was chosen on which data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ngdiff.bench.distance import distance
from ngdiff.data.sources import read_rows

ALL = 4000
HOLDOUT = 48
"""Of TOFU's first questions, where they are not learned, to measure the level of never-seen text on."""
SIZES = {"forget01": 40, "forget05": 200, "forget10": 400}
METHODS = ("ngdiff-counterfactual", "ngdiff-selective-kl", "ngdiff-kl", "ngdiff", "graddiff", "npo")
RATES = {"graddiff": "2e-5", "npo": "5e-5"}
"""Fixed rates that differ from a method's usual one; chosen on an earlier target (docs/results.md)."""
COLUMNS = {
    "forget.probability": "forget P",
    "forget.extraction_strength": "forget ES",
    "forget.rouge": "forget ROUGE",
    "forget.truth_ratio": "forget truth ratio",
    "retain.probability": "retain P",
    "real_authors.rouge": "real authors ROUGE",
    "world_facts.rouge": "world facts ROUGE",
    "model_utility": "model utility",
    "forget_quality": "forget quality",
}
Figures = dict[str, float]


class Jobs:
    """Runs commands of the project, several at a time, each with a log of its own.

    Args:
        folder: where logs go.
        most: commands at a time.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder / "logs", most
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self, commands: Mapping[str, Sequence[object]]) -> None:
        """Run all of them to their end; exit code 3 (the target was missed) is a result, too.

        Raises:
            SystemExit: one of them failed; its log is named.
        """
        waiting, running = list(commands.items()), {}
        while waiting or running:
            while waiting and len(running) < self.most:
                name, words = waiting.pop(0)
                log = (self.folder / f"{name}.log").open("w", encoding="utf-8")
                command = [sys.executable, "-m", "ngdiff", *map(str, words)]
                running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), log
                print(f"{name}: {' '.join(command[2:])}", flush=True)
            for name, (process, log) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                log.close()
                del running[name]
                if code not in (0, 3):
                    for other, _ in running.values():
                        other.terminate()
                    raise SystemExit(f"{name} failed with exit code {code}: see {self.folder / name}.log")
            time.sleep(0.2)


class Goals:
    """Folders and commands of one study."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.folder.expanduser()
        self.jobs = Jobs(self.folder, args.jobs)
        size = SIZES[args.split]
        self.learned = f"tofu:full[-{args.questions}:]" if args.questions < ALL else "tofu:full"
        self.kept = (
            f"tofu:full[-{args.questions}:-{size}]" if args.questions < ALL else f"tofu:full[:-{size}]"
        )
        self.methods = [name for name in args.methods.split(",") if name]

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, methods: Sequence[str]) -> None:
        """Add what says which models are made."""
        parser.add_argument("--split", choices=SIZES, default="forget01")
        parser.add_argument(
            "--questions", type=int, default=ALL, help="TOFU's last questions that are learned"
        )
        parser.add_argument("--methods", default=",".join(methods))
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--folder", type=Path, default=Path("runs/goals"))
        parser.add_argument("--jobs", type=int, default=1, help="commands that run side by side")
        parser.add_argument("--epochs", default="12", help="passes over the forget set at the most")
        parser.add_argument(
            "--batch-size", help="examples of a forward pass; the device's memory allows more than 8"
        )
        parser.add_argument("--target-epochs", default="8")
        parser.add_argument("--target-lr", default="4e-4")
        parser.add_argument("--target-batch", default="32")

    def run(self) -> dict[str, Figures]:
        """Make what is missing; return every model's figures."""
        self.make()
        self._evaluate(["retrained"], ())
        self._evaluate(["target", *self.methods], ("--reference", self._evaluation("retrained")))
        return {name: self._figures(name) for name in ("target", "retrained", *self.methods)}

    def make(self) -> None:
        """Make the models that are missing."""
        args = self.args
        common = ["--epochs", args.target_epochs, "--lr", args.target_lr, "--batch-size", args.target_batch]
        data = {"target": self.learned, "retrained": self.kept}
        self.jobs.run(
            {
                f"finetune-{name}": [
                    *("finetune", "--model", args.model, "--data", part),
                    *("--output", self.folder / name, *common),
                ]
                for name, part in data.items()
                if not (self.folder / name).exists()
            }
        )
        batch = ["--batch-size", args.batch_size] if args.batch_size else []
        self.jobs.run(
            {
                f"unlearn-{name}": self._unlearn(name) + batch
                for name in self.methods
                if not (self.folder / name).exists()
            }
        )

    def _unlearn(self, name: str) -> list[object]:
        rate = ["--lr", RATES[name]] if name in RATES else []
        size = SIZES[self.args.split]
        first = slice(size, size + HOLDOUT)  # those before are audited with
        unseen = f"tofu:full[{first.start}:{first.stop}]"
        holdout = ["--holdout", unseen] if first.stop <= ALL - self.args.questions else []
        return [
            *(
                "unlearn",
                "--method",
                name,
                "--model",
                self.folder / "target",
                "--forget",
                f"tofu:{self.args.split}",
            ),
            *("--retain", self.kept, "--output", self.folder / name, "--epochs", self.args.epochs, *rate),
            *holdout,
        ]

    def asked(self) -> Path | None:
        """Return a folder of TOFU to ask from, where not all of the suite's retain set was learned."""
        if self.args.questions >= ALL:
            return None
        folder, size = self.folder / "tofu", SIZES[self.args.split]
        folder.mkdir(exist_ok=True)
        with_wrong = f"tofu:forget10_perturbed[-{min(self.args.questions, 400)}:-{size}]"
        parts = {
            f"{self.args.split}_perturbed": f"tofu:{self.args.split}_perturbed",
            "retain_perturbed": with_wrong if size < 400 else self.kept,
            **{f"{name}_perturbed": f"tofu:{name}_perturbed" for name in ("real_authors", "world_facts")},
        }
        for name, source in parts.items():
            rows = [json.dumps(row.values) for row in read_rows(source, where="--questions")]
            (folder / f"{name}.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return folder

    def _evaluation(self, name: str) -> Path:
        return Path(self.folder / f"{name}.eval.json")

    def _evaluate(self, names: Sequence[str], more: Sequence[object]) -> None:
        folder = self.asked()
        more = [*more, *(() if folder is None else ("--tofu-dir", folder))]
        self.jobs.run(
            {
                f"evaluate-{name}": [
                    *("evaluate", self.folder / name, "--suite", "tofu", "--forget", self.args.split, *more),
                    *("--output", self._evaluation(name)),
                ]
                for name in names
                if not self._evaluation(name).exists()
            }
        )

    def _figures(self, name: str) -> Figures:
        figures = json.loads(self._evaluation(name).read_text(encoding="utf-8"))["figures"]
        return {key: one["value"] for key, one in figures.items() if one["value"] is not None}


def table(figures: Mapping[str, Figures], folder: Path) -> str:
    """Return one row a model in Markdown: its columns, its distance from the retrained one, how it ended."""
    head = ["", *COLUMNS.values(), "distance", "decided by", "steps", "items left", "ended"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, found in figures.items():
        cells = ["" if key not in found else f"{found[key]:.3g}" for key in COLUMNS]
        far = distance(found, figures["target"], figures["retrained"])
        cells += ["", ""] if far is None else [f"{far.value:.2f}", far.part]
        lines.append(f"| {' | '.join([name, *cells, *_ending(folder / name / 'record.json')])} |")
    return "\n".join(lines)


def _ending(path: Path) -> list[str]:
    record = json.loads(path.read_text(encoding="utf-8"))
    if "stop" not in record:  # a fine-tuned model
        return ["", "", ""]
    return [str(record["cost"]["steps"]), str(len(record["stop"].get("left") or ())), record["stop"]["code"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Goals.add_arguments(parser, METHODS)
    study = Goals(parser.parse_args())
    text = table(study.run(), study.folder)
    (study.folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
