"""A real run, killed again and again, against the same run left alone.

    python -m benchmarks.kill_runs [--kills 20] [--seed 0] [--steps 60]

``ngdiff unlearn`` is started on a tiny model (with dropout, so that random states count), killed by SIGKILL,
and started again with the same command until it ends; then the next one begins, until all kills are spent.
Moments are drawn evenly from the time that a run works once all is loaded, its end included. Every other kill
then waits for the next checkpoint and falls inside its writing, known by the folder that exists only
meanwhile. Each result is compared with that of an undisturbed run: all files bit for bit but the record and
what holds its hash or notes (receipt, card, report), the record in all but times, memory and the notes that
say where it was resumed. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tiny_model import save_questions, save_tiny_model
from ngdiff.hub.card import CARD
from ngdiff.receipts.hashes import RECEIPT
from ngdiff.runs.workplace import ASKED_FILE, Workplace
from ngdiff.system.output import RECORD

SAVE_EVERY = 3
MOST_STARTS = 10


@dataclass
class Kill:
    """One kill: how long after the start, at which checkpoint, and whether inside the writing of one."""

    after: float
    checkpoint: str
    inside: bool


def command(folder: Path, output: Path, steps: int) -> list[str]:
    words = [sys.executable, "-m", "ngdiff", "unlearn", "--model", str(folder / "model")]
    words += ["--forget", str(folder / "forget.jsonl"), "--retain", str(folder / "retain.jsonl")]
    words += ["--output", str(output), "--save-steps", str(SAVE_EVERY), "--max-steps", str(steps)]
    # a target out of reach, so that there are checks and best weights, and no early end
    return [*words, "--stop-at", "nll=99", "--keep-utility", "0", "--batch-size", "4", "--method", "ngdiff"]


def prepare(folder: Path) -> None:
    save_tiny_model(folder / "model")
    save_questions(folder / "forget.jsonl", 0, 20)
    save_questions(folder / "retain.jsonl", 100, 60)


def start(words: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def writing(place: Workplace) -> bool:
    """Say whether a checkpoint is being written, or was when the process was killed."""
    return place.run.is_dir() and any(place.run.glob(".checkpoint-*.partial"))


def claim(place: Workplace) -> int:
    """Tell one process's hold of the folder from another's: each writes anew what it was asked."""
    with suppress(FileNotFoundError):
        return (place.folder / ASKED_FILE).stat().st_mtime_ns
    return 0


def kill_once(words: list[str], place: Workplace, wait: float, inside: bool) -> Kill | None:
    """Start, and kill ``wait`` seconds after work began, or then at the next checkpoint; None: it ended."""
    before, began = claim(place), 0.0
    process = start(words)
    while process.poll() is None:
        # what the last process left half done is cleared away before the claim, so what is seen is new
        if not began and claim(place) not in (0, before):
            began = time.monotonic()
        if began and time.monotonic() - began >= wait and (not inside or writing(place)):
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = sorted(int(path.name[11:]) for path in place.run.glob("checkpoint-*"))
            last = str(done[-1]) if done else "none"
            return Kill(time.monotonic() - began, last, writing(place))
        time.sleep(0.0005)
    expect_done(process)
    return None


def expect_done(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode not in (0, 3):  # 3: the target, which is out of reach, was not reached
        raise SystemExit(f"exit code {process.returncode}:\n{errors.decode(errors='replace')}")


def time_whole(words: list[str], place: Workplace) -> float:
    """Run undisturbed; return the seconds from where all is loaded to the end."""
    process, began = start(words), 0.0
    while process.poll() is None:
        began = began or (time.monotonic() if claim(place) else 0.0)
        time.sleep(0.001)
    expect_done(process)
    return time.monotonic() - began


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without times, memory, and the notes that say where it was resumed."""
    steps = [{k: v for k, v in step.items() if k != "seconds"} for step in record["steps"]]
    cost = {k: v for k, v in record["cost"].items() if k not in ("seconds", "peak_memory_gib")}
    notes = [note for note in record["notes"] if not note.startswith("resumed at step")]
    rest = {k: v for k, v in record.items() if k != "finished"}
    return {**rest, "steps": steps, "cost": cost, "notes": notes}


def differences(found: Path, expected: Path) -> list[str]:
    """Say in what a result differs from another one."""
    there = {p.relative_to(expected) for p in expected.rglob("*") if p.is_file()}
    here = {p.relative_to(found) for p in found.rglob("*") if p.is_file()}
    differing = [f"only one has {path}" for path in sorted(there ^ here)]
    for path in sorted(there & here):
        if (
            path.name not in (RECORD, RECEIPT, CARD, "report.html")
            and (found / path).read_bytes() != (expected / path).read_bytes()
        ):
            differing.append(f"{path} differs")
    mine, other = (comparable(json.loads((p / RECORD).read_text())) for p in (found, expected))
    return differing + [f"the record's {key} differ" for key in other if mine.get(key) != other[key]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        whole = time_whole(command(folder, folder / "whole", asked.steps), Workplace(folder / "whole"))
        digest = hashlib.sha256((folder / "whole" / "model.safetensors").read_bytes()).hexdigest()
        print(f"undisturbed: {asked.steps} steps, {whole:.1f} s of work, model.safetensors {digest[:16]}")
        kills, ended, wrong = 0, 0, []
        while kills < asked.kills or not ended or wrong:
            output = folder / f"killed-{ended}"
            words, place, here = command(folder, output, asked.steps), Workplace(output), 0
            while not output.exists():
                inside, wait = kills % 2 == 1, draw.uniform(0, whole)
                if kills >= asked.kills or here >= MOST_STARTS:
                    expect_done(start(words))
                    continue
                kill = kill_once(words, place, wait, inside)
                if kill is not None:
                    kills, here = kills + 1, here + 1
                    where = "inside a checkpoint" if kill.inside else "between checkpoints"
                    print(f"kill {kills}: after {kill.after:.2f} s, {where}; last whole: {kill.checkpoint}")
                assert not output.exists() or (output / RECORD).exists()
            found = differences(output, folder / "whole")
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            wrong = found + [f"{path} was left behind" for path in left]
            ended += 1
            print(f"run {ended} killed {here} times: {'; '.join(wrong) or 'bit for bit the undisturbed one'}")
            if wrong:
                sys.exit(1)
        print(f"{kills} kills, {ended} runs to the end, none differs")


if __name__ == "__main__":
    main()
