"""this checkout and an earlier commit -> real tokens a second of a training step of each, in turns.

    python -m benchmarks.against 21a33b2 [--method ngdiff] [--steps 16] [--threads 2]
        [--model smollm2] [--forget tofu:forget01] [--retain 'tofu:retain99[:400]']

Each version trains in a process of its own, through :class:`ngdiff.UnlearningTrainer`, with its defaults but
for a fixed rate. Only one of them works at a time: they take a step in turn, so that other load hits both
alike. What a step holds may differ (the earlier one draws other rows), so tokens that are not padding are
counted, and divided by the seconds between the beginning and the end of the step. Prints medians, and the
median of the ratios of neighbouring steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2


# ---- one version: a process that takes a step whenever it is told to ----


def work(args: argparse.Namespace) -> None:
    """Train; before each step wait for a line, after it print its real tokens and seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    import ngdiff
    from ngdiff.system import environment

    environment.keep_freed_memory()
    torch.set_num_threads(args.threads)
    tokens, start = 0, 0.0

    class InTurn(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal tokens, start
            sys.stdin.readline()
            tokens, start = 0, time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            print(json.dumps([tokens, time.perf_counter() - start]), flush=True)

    class Counting(ngdiff.UnlearningTrainer):
        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            nonlocal tokens
            tokens += sum(int(inputs[task]["attention_mask"].sum()) for task in ("forget", "retain"))
            return super().training_step(model, inputs, *more, **named)

    rows = {name: json.loads(Path(args.rows).read_text())[name] for name in ("forget", "retain")}
    with tempfile.TemporaryDirectory() as folder:
        config = ngdiff.UnlearningConfig(
            output_dir=folder,
            method=args.method,
            learning_rate=1e-6,
            step_size="fixed",
            stop_at="none",
            max_steps=args.steps + WARM_UP,
            per_device_train_batch_size=8,
            bf16=args.bf16,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        Counting(
            AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            config,
            forget_dataset=rows["forget"],
            retain_dataset=rows["retain"],
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[InTurn()],
        ).train()


class Version:
    """One version's process.

    Args:
        source: the ``src`` folder of the version.
        words: what the process is told.
    """

    def __init__(self, source: Path, words: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - open while the process runs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.against", "--work", *words],
            cwd=source,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def step(self) -> float:
        """Let it take one step; return its real tokens a second.

        Raises:
            SystemExit: the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("["):
                tokens, seconds = json.loads(line)
                return float(tokens / seconds)
        self.log.seek(0)
        raise SystemExit(f"a version ended early:\n{self.log.read()[-3000:]}")


def rows_of(source: str) -> list[dict[str, str]]:
    """Return questions and answers of a source."""
    from ngdiff.data.sources import read_rows

    found = read_rows(source, where=source)
    return [{name: str(row.values[name]) for name in ("question", "answer")} for row in found]


def main() -> None:
    """Print tokens a second of both versions, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="the earlier commit")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="ngdiff")
    parser.add_argument("--forget", default="tofu:forget01")
    parser.add_argument("--retain", default="tofu:retain99[:400]")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    if args.commit is None:
        parser.error("name the earlier commit")
    from ngdiff.models.loading import load_model, load_tokenizer, resolve_model

    with tempfile.TemporaryDirectory(prefix="ngdiff-against-") as name:
        folder = Path(name)
        earlier, rows = folder / "earlier", folder / "rows.json"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", earlier, args.commit], cwd=ROOT, check=True
        )
        try:
            rows.write_text(json.dumps({"forget": rows_of(args.forget), "retain": rows_of(args.retain)}))
            source, model = resolve_model(args.model), folder / "model"
            load_model(source).save_pretrained(model)
            load_tokenizer(source).save_pretrained(model)
            words = ["--rows", rows, "--model", model]
            words += ["--method", args.method, "--steps", args.steps, "--threads", args.threads]
            words += ["--bf16" if args.bf16 else "--no-bf16"]
            versions = [Version(place / "src", list(map(str, words))) for place in (ROOT, earlier)]
            pairs = [tuple(version.step() for version in versions) for _ in range(args.steps + WARM_UP)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=ROOT, check=True)
    kept = pairs[WARM_UP:]
    for label, column in zip(("this checkout", args.commit), zip(*kept, strict=True), strict=True):
        print(f"{label}: {statistics.median(column):.0f} real tokens a second (median of {len(column)})")
    print(f"ratio: {statistics.median(now / then for now, then in kept):.2f} (median of pairs)")


if __name__ == "__main__":
    main()
