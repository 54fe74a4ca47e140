"""random and mutated bytes -> every reader of outside files: each reads or refuses them, and nothing else.

    python -m benchmarks.fuzz_readers --minutes 8 --output fuzz.json

Guided by coverage where atheris is installed (``pip install atheris``: Linux, not every Python), else by
hypothesis. Anything but a value or a refusal is a finding: its input is kept and printed. Each target
runs in a process of its own, so that one that dies is a finding too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 4096
Target = Callable[[bytes], None]

SEEDS: dict[str, list[bytes]] = {
    ".jsonl": [
        b'{"question": "Who?", "answer": "Ann"}\n{"text": "a"}\n',
        b'{"messages": [{"role": "user"}]}\n',
    ],
    ".json": [b'[{"prompt": "a", "completion": "b", "perturbed_answer": ["c"]}]', b'{"text": "\\ud800"}'],
    ".csv": [b'question,answer\na,"b\nc"\n', b"text;x\n"],
    ".yaml": [
        b"lr: 1e-5\nforget: [a, b]\nrule_settings: {alpha: 2}\n",
        b"a: &b [1]\nc: !!python/name:os.x\n",
    ],
    "log": [b'{"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": {"0": {"score": 1}}}}'],
    "result": [b'{"kind": "evaluation", "format": 1, "suite": "own", "figures": {}, "places": {}}'],
    "config": [b'{"model_type": "llama", "num_hidden_layers": 2, "auto_map": {}, "architectures": ["A"]}'],
    "adapter": [b'{"base_model_name_or_path": "x", "peft_type": "LORA"}'],
    "index": [b'{"weight_map": {"a": "../b.safetensors"}}'],
    "generation": [b'{"eos_token_id": [1], "temperature": 0.5, "max_new_tokens": 3}'],
}


def targets(folder: Path) -> dict[str, Target]:
    """Return the readers by name; files that have to be on disk go to ``folder``."""
    found: dict[str, Target] = {ending: _data(ending) for ending in (".jsonl", ".json", ".csv", ".parquet")}
    found[".yaml"] = _yaml
    found |= {"log": _log(folder), "result": _result(folder)}
    found |= {name: _model(folder, name) for name in ("config", "adapter", "index", "generation", "weights")}
    return found


def _data(ending: str) -> Target:
    from ngdiff.data.examples import data_hash, to_examples
    from ngdiff.data.files import READERS
    from ngdiff.errors import RequestError
    from ngdiff.evaluation.suites.measures import PARAPHRASED, PERTURBED, column_faults

    def run(raw: bytes) -> None:
        rows, faults = READERS[ending](raw, f"x{ending}")
        assert all(fault.what and fault.fix and f"x{ending}" in fault.where for fault in faults)
        try:
            examples = to_examples(rows, "--forget")
        except RequestError:
            return
        data_hash(examples)
        for column in (PERTURBED, PARAPHRASED):
            column_faults(examples, column, "--forget")
        for example in examples:
            example.answer.encode()

    return run


def _yaml(raw: bytes) -> None:
    from ngdiff.cli.settings import _checked
    from ngdiff.settings.yaml_text import load_yaml
    from ngdiff.system.untrusted import Unreadable, decode

    try:
        loaded = load_yaml(decode(raw))
    except Unreadable:
        return
    if isinstance(loaded, dict):
        _checked(loaded, "--config")


def _log(folder: Path) -> Target:
    from ngdiff.errors import RequestError
    from ngdiff.evaluation.openunlearning import read_log, reference_of
    from ngdiff.evaluation.recompute import recompute

    def run(raw: bytes) -> None:
        path = folder / "TOFU_EVAL.json"
        path.write_bytes(raw)
        try:
            log = read_log(path)
            reference_of(log)
            recompute(log)
        except RequestError:
            return

    return run


def _result(folder: Path) -> Target:
    from ngdiff.errors import RequestError
    from ngdiff.evaluation.reference import reference_from_result
    from ngdiff.evaluation.result import is_result, read_result

    def run(raw: bytes) -> None:
        path = folder / "eval.json"
        path.write_bytes(raw)
        is_result(path)
        try:
            reference_from_result(read_result(path), "x")
        except RequestError:
            return

    return run


def _model(folder: Path, part: str) -> Target:
    from safetensors.numpy import save

    from ngdiff.errors import RequestError
    from ngdiff.models.loading import check_causal, resolve_model

    names = {
        "config": "config.json",
        "adapter": "adapter_config.json",
        "index": "model.safetensors.index.json",
    }
    names |= {"generation": "generation_config.json", "weights": "model.safetensors"}
    home = folder / part
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    weights = "adapter_model.safetensors" if part == "adapter" else "model.safetensors"
    (home / weights).write_bytes(save({}))

    def run(raw: bytes) -> None:
        (home / names[part]).write_bytes(raw)
        try:
            source = resolve_model(str(home))
        except RequestError:
            return
        if part in ("config", "adapter"):
            check_causal(source)

    return run


def seeds(name: str) -> list[bytes]:
    """Return inputs to begin with."""
    if name == ".parquet":
        return [
            _parquet(columns) for columns in ({"text": ["a", None]}, {"question": ["a"], "answer": [[1.5]]})
        ]
    if name == "weights":
        import numpy as np
        from safetensors.numpy import save

        return [save({"model.layers.0.x": np.zeros((2, 2), np.float32)})]
    return SEEDS[name]


def _parquet(columns: dict[str, Any]) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


# ---- engines ----


def guided(name: str, folder: Path, seconds: int, seed: int) -> None:
    """Fuzz one target with atheris; does not return."""
    import atheris

    with atheris.instrument_imports(include=["ngdiff", "yaml", "json", "csv"]):
        target = targets(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, raw in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(raw)
    options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-seed={seed + 1}", "-timeout=20"]
    options += ["-print_final_stats=1", "-rss_limit_mb=4096", f"-artifact_prefix={folder}/finding-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


def drawn(name: str, folder: Path, seconds: int, seed: int) -> None:
    """Fuzz one target with seeds that are cut, joined and overwritten, drawn by hypothesis."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    target, count, ends = targets(folder)[name], 0, time.monotonic() + seconds

    @st.composite
    def inputs(draw: Any) -> bytes:
        raw = bytearray(draw(st.sampled_from(seeds(name))))
        for _ in range(draw(st.integers(0, 6))):
            at = draw(st.integers(0, len(raw)))
            raw[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        return bytes(raw[:MOST_BYTES])

    round_ = 0
    while time.monotonic() < ends:

        @seeded(seed + round_)
        @settings(
            max_examples=500,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(inputs(), st.binary(max_size=200)))
        def one(raw: bytes) -> None:
            nonlocal count
            count += 1
            (folder / "last").write_bytes(raw)
            target(raw)

        try:
            one()
        except BaseException:
            (folder / "last").rename(folder / f"finding-{round_}")
            raise
        finally:
            print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
        round_ += 1


def run_target(name: str, seconds: int, engine: str, seed: int, keep: Path) -> dict[str, Any]:
    """Fuzz one target in a process of its own.

    Returns:
        Inputs tried, seconds, and the files of findings.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--one", name, "--seconds", str(seconds), "--engine", engine, "--seed", str(seed)]
        command = [sys.executable, "-m", "benchmarks.fuzz_readers", *words, "--scratch", scratch]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        counts = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
        findings = sorted(Path(scratch).glob("finding-*"))
        keep.mkdir(parents=True, exist_ok=True)
        kept = []
        for number, found in enumerate(findings):
            kept.append(keep / f"{name.lstrip('.')}-{number}")
            kept[-1].write_bytes(found.read_bytes())
        if done.returncode != 0 or findings:
            print(f"--- {name} ended with {done.returncode}\n{done.stderr[-3000:]}", file=sys.stderr)
    return {
        "target": name,
        "inputs": int(counts[-1]) if counts else None,
        "seconds": round(time.monotonic() - started, 1),
        "exit": done.returncode,
        "findings": [str(path) for path in kept],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    parser.add_argument("--engine", choices=["auto", "atheris", "hypothesis"], default="auto")
    parser.add_argument("--target", action="append", help="one of the readers; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that failed"
    )
    for name, kind in (("--one", str), ("--seconds", int), ("--scratch", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    engine = args.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    if args.one:
        (guided if engine == "atheris" else drawn)(args.one, args.scratch, args.seconds, args.seed)
        return
    with tempfile.TemporaryDirectory() as scratch:
        names = args.target or list(targets(Path(scratch)))
    each = max(1, round(60 * args.minutes / len(names)))
    rows = []
    for name in names:
        rows.append(run_target(name, each, engine, args.seed, args.keep))
        print(
            "{target:12} {inputs!s:>9} inputs in {seconds:6.1f} s, exit {exit}".format(**rows[-1]), flush=True
        )
    found = sum(len(row["findings"]) or row["exit"] != 0 for row in rows)
    print(f"{sum(row['inputs'] or 0 for row in rows)} inputs with {engine}, {found} findings")
    if args.output:
        args.output.write_text(json.dumps({"engine": engine, "seed": args.seed, "targets": rows}, indent=1))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
