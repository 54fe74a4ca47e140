"""Rows of hostile and malformed evaluations, and of requests to the other commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commandline import questions, write_jsonl
from muse_folder import muse_rows, write_muse
from ngdiff.evaluation.result import EvaluationResult, Figure, write_result
from published_logs import tofu_log
from tofu_folder import make_tofu

Row = tuple[str, Callable[[Path], object], list[str], tuple[str, ...]]


def result(ratios: int = 6, suite: str = "tofu", **provenance: Any) -> EvaluationResult:
    figures = (
        {"forget.log_truth_ratio": Figure("log_truth_ratio", 0.1, None, (0.1,) * ratios)} if ratios else {}
    )
    return EvaluationResult(suite, figures, provenance, split="forget01" if suite == "tofu" else None)


def prepare_evaluations(folder: Path) -> Path:
    """Write a TOFU and a MUSE folder, a log and an evaluation."""
    make_tofu(folder / "tofu")
    write_muse(folder / "muse", muse_rows())
    (folder / "TOFU_EVAL.json").write_text(json.dumps(tofu_log(0)))
    write_result(result(), folder / "reference.json")
    return folder


def nothing(box: Path) -> None:
    """Spoil nothing."""


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    def make(box: Path) -> object:
        return (box / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def change(name: str, **values: Any) -> Callable[[Path], object]:
    def make(box: Path) -> object:
        content = json.loads((box / name).read_text())
        return (box / name).write_text(json.dumps(content | values))

    return make


def rows_of(name: str, **values: Any) -> Callable[[Path], object]:
    """Change columns of every row of a JSONL file; a column that becomes ... is taken out."""

    def make(box: Path) -> object:
        found = [json.loads(line) | values for line in (box / name).read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if value is not ...} for row in found]
        return write_jsonl(box / name, kept)

    return make


def written(suite: str = "tofu", ratios: int = 6, **provenance: Any) -> Callable[[Path], object]:
    return lambda box: write_result(result(ratios, suite, **provenance), box / "reference.json")


def other_rows(box: Path) -> None:
    written(data={"forget": {"sha256": "0" * 64}})(box)


def shortened(box: Path) -> object:
    path = box / "reference.json"
    return path.write_text(path.read_text()[:-40])


def pipe(name: str) -> Callable[[Path], object]:
    return lambda box: os.mkfifo(box / name)


TOFU = ["--suite", "tofu", "--forget", "forget01", "--tofu-dir", "tofu"]
MUSE = ["--suite", "muse", "--data", "muse"]
OWN = ["--suite", "own", "--forget", "forget.jsonl", "--retain", "retain.jsonl"]
AGAINST = [*TOFU, "--reference", "reference.json"]
PERTURBED = "tofu/forget01_perturbed.json"

EVALUATIONS: list[Row] = [
    ("no such suite", nothing, ["--suite", "tofoo"], ("--suite", "Did you mean tofu")),
    ("no such split", nothing, [*TOFU, "--forget", "forget99"], ("--forget", "forget99")),
    ("no folder", nothing, ["--suite", "tofu", "--forget", "forget01", "--tofu-dir", "gone"], ("'gone'",)),
    ("a file for the folder", nothing, [*TOFU, "--tofu-dir", "forget.jsonl"], ("forget.jsonl",)),
    ("a file missing", lambda box: (box / PERTURBED).unlink(), TOFU, ("no file forget01_perturbed.json",)),
    ("a folder for a file", lambda box: (box / PERTURBED).rename(box / "x") and (box / PERTURBED).mkdir(), TOFU,
     ("forget01_perturbed.json",)),
    ("no paraphrases", rows_of(PERTURBED, paraphrased_answer=...), TOFU, ("line 1", "paraphrased_answer")),
    ("no wrong answers", rows_of(PERTURBED, perturbed_answer=...), TOFU, ("line 1", "perturbed_answer")),
    ("empty wrong answers", rows_of(PERTURBED, perturbed_answer=[]), TOFU, ("line 6", "perturbed_answer")),
    ("one wrong answer", rows_of(PERTURBED, perturbed_answer="x"), TOFU, ("line 1", "list of wrong answers")),
    ("numbers for answers", rows_of(PERTURBED, perturbed_answer=[1, 2]), TOFU, ("line 1", "'[1, 2]'")),
    ("half a character", rows_of(PERTURBED, perturbed_answer=["\ud800"]), TOFU, ("line 1", "perturbed_answer")),
    ("a broken line", put("tofu/real_authors_perturbed.json", "{"), TOFU, ("real_authors", "not valid JSON")),
    ("no MUSE", nothing, [*MUSE, "--data", "gone"], ("--data", "'gone")),
    ("a split missing", lambda box: (box / "muse/verbmem/forget.jsonl").unlink(), MUSE, ("verbmem/forget",)),
    ("a column missing", rows_of("muse/verbmem/forget.jsonl", gt=...), MUSE, ("verbmem/forget.jsonl", "'gt'")),
    ("a number for a text", rows_of("muse/privleak/forget.jsonl", text=5), MUSE, ("line 1", "'text'", "int")),
    ("a question of nothing", rows_of("muse/knowmem/forget_qa.jsonl", question=" "), MUSE, ("'question'",)),
    ("a pipe in MUSE", lambda box: (box / "muse/verbmem/forget.jsonl").unlink() or
     os.mkfifo(box / "muse/verbmem/forget.jsonl"), MUSE, ("verbmem/forget",)),
    ("forget set missing", nothing, ["--suite", "own", "--retain", "retain.jsonl"], ("--forget", "missing")),
    ("the same rows", nothing, [*OWN[:-1], "forget.jsonl"], ("--retain", "4 rows", "Take them out")),
    ("an extra column too deep", put("forget.jsonl", '{"text": "a", "x": ' + "[" * 200 + "]" * 200 + "}"), OWN,
     ("forget.jsonl, line 1", "too deeply")),
    ("paraphrases for some", put("forget.jsonl", '{"question": "a", "answer": "b", "paraphrased_question": "c"}\n'
     '{"question": "d", "answer": "e"}\n'), OWN, ("line 2", "paraphrased_question")),
    ("quality without a reference", nothing, [*TOFU, "--require", "forget_quality"], ("--reference", "eval.json")),
    ("quality without paraphrases", nothing, [*OWN, "--require", "forget_quality"], ("perturbed_answer",)),
    ("a figure of nobody", nothing, [*TOFU, "--require", "quality"], ("--require", "forget_quality")),
    ("an option of another suite", nothing, [*OWN, "--data", "muse"], ("--data", "is not supported by")),
    ("a reference that is not there", nothing, [*TOFU, "--reference", "gone.json"], ("--reference", "gone.json")),
    ("a reference of 6 for 5", put("forget.jsonl", ""), [*AGAINST, "--forget", "forget05"], ("forget05",)),
    ("a reference of another size", written(ratios=5), AGAINST, ("5 truth ratios for the 6 items",)),
    ("a reference of another suite", written("own"), AGAINST, ("suite 'own', not 'tofu'",)),
    ("a reference without ratios", written(ratios=0), AGAINST, ("no truth ratios",)),
    ("a reference of other rows", other_rows, AGAINST, ("other rows",)),
    ("PrivLeak without the attack", nothing, [*AGAINST, "--require", "privleak"], ("min_k",)),
    ("a reference cut short", shortened, AGAINST, ("reference.json", "not valid JSON", "again")),
    ("a reference of a later version", change("reference.json", format=99), AGAINST, ("'99'", "reads 1")),
    ("a reference without figures", change("reference.json", figures=5), AGAINST, ("damaged", "again")),
    ("a reference of huge numbers", change("reference.json", figures={"a": {"metric": "nll", "value": 10**400,
     "interval": None, "items": [], "note": None, "sets": []}}), AGAINST, ("reference.json", "a number of 401 digits")),
    ("a reference too deep", put("reference.json", '{"kind": "evaluation", "x": ' + "[" * 90000), AGAINST,
     ("reference.json", "too deeply")),
    ("a reference of NaN", put("reference.json", '{"kind": "evaluation", "x": NaN}'), AGAINST, ("contains NaN",)),
    ("a reference in Latin-1", put("reference.json", b'{"kind": "evaluation", "x": "\xe9"}'), AGAINST, ("0xe9",)),
    ("a pipe for a reference", pipe("pipe.json"), [*TOFU, "--reference", "pipe.json"], ("is a pipe",)),
    ("a foreign reference", put("other.json", "{}"), [*TOFU, "--reference", "other.json"], ("not a result file",)),
    ("a record for a reference", put("record.json", '{"kind": "unlearn"}'),
     [*TOFU, "--reference", "record.json"], ("record.json", "not a result file")),
    ("a log of another size", nothing, [*TOFU, "--reference", "TOFU_EVAL.json"], ("truth ratios",)),
    ("a log of infinities", put("TOFU_EVAL.json", '{"model_utility": 1e999}'),
     [*TOFU, "--reference", "TOFU_EVAL.json"], ("model_utility", "not a finite number")),
    ("a log of endless digits", put("TOFU_EVAL.json", '{"model_utility": ' + "9" * 9000 + "}"),
     [*TOFU, "--reference", "TOFU_EVAL.json"], ("cannot be parsed",)),
    ("the output is the reference", nothing, [*AGAINST, "--output", "reference.json", "--overwrite"],
     ("is what --reference reads",)),
    ("the output is the data", nothing, [*OWN, "--output", "forget.jsonl", "--overwrite"], ("not an eval.json",)),
    ("the output is a folder", nothing, [*OWN, "--output", "model"], ("is a folder", "eval.json")),
    ("the output is a pipe", pipe("pipe"), [*OWN, "--output", "pipe"], ("--output", "pipe")),
    ("a long name", nothing, [*OWN, "--output", "x" * 999], ("--output", "too long")),
    ("a batch of nothing", nothing, [*OWN, "--batch-size", "0"], ("--batch-size", "at least 1")),
    ("a seed below 0", nothing, [*OWN, "--seed", "-1"], ("--seed", "-1")),
    ("a seed too large", nothing, [*OWN, "--seed", str(2**64)], ("--seed", "4294967295")),
    ("no resamples", nothing, [*OWN, "--resamples", "0"], ("--resamples", "at least 1")),
    ("a log folder for own data", nothing, [*OWN, "--openunlearning", "logs"], ("--openunlearning", "no layout")),
]  # fmt: skip

UNLEARNED = ["--output", "out"]
FINETUNE = ["finetune", "--model", "model", "--data", "forget.jsonl", *UNLEARNED]
RECOMPUTE = ["recompute", "TOFU_EVAL.json"]
BENCH = ["bench", "tofu", "--model", "model", *UNLEARNED, "--tofu-dir", "tofu"]


def earlier(box: Path) -> None:
    (box / "out").mkdir()
    (box / "out" / "record.json").write_text("{}")
    write_jsonl(box / "out" / "d.jsonl", questions(0, 4))


def log(box: Path) -> None:
    (box / "TOFU_EVAL.json").write_text(json.dumps(tofu_log(0)))


OTHERS: list[Row] = [
    ("finetune, data inside", earlier, [*FINETUNE, "--data", "out/d.jsonl", "--overwrite"], ("--data", "delete")),
    ("finetune, inside the model", nothing, [*FINETUNE, "--output", "model/x"], ("inside the model",)),
    ("finetune, infinite rate", nothing, [*FINETUNE, "--lr", "inf"], ("--lr", "inf")),
    ("finetune, a pipe", pipe("p.jsonl"), [*FINETUNE, "--data", "p.jsonl"], ("--data p.jsonl", "is a pipe")),
    ("finetune, all faults", put("model/tokenizer.json", "{"), [*FINETUNE, "--lr", "0", "--data", "gone.csv"],
     ("--lr", "tokenizer", "gone.csv")),
    ("merge, a whole model", nothing, ["merge", "model", *UNLEARNED], ("ADAPTER", "a full model, not an adapter")),
    ("merge, nothing", nothing, ["merge", "gone", *UNLEARNED], ("ADAPTER", "'gone'")),
    ("merge, over the adapter", nothing, ["merge", "model", "--output", "model", "--overwrite"], ("model",)),
    ("recompute, nothing", nothing, RECOMPUTE, ("LOG", "does not exist")),
    ("recompute, a pipe", pipe("TOFU_EVAL.json"), RECOMPUTE, ("LOG", "is a pipe")),
    ("recompute, a folder of none", nothing, ["recompute", "model"], ("LOG", "none of TOFU_EVAL.json")),
    ("recompute, long output", log, [*RECOMPUTE, "--output", "x" * 999], ("--output", "too long")),
    ("recompute, output there", log, [*RECOMPUTE, "--output", "forget.jsonl"], ("forget.jsonl exists",)),
    ("recompute, output under a file", log, [*RECOMPUTE, "--output", "forget.jsonl/x"], ("forget.jsonl",)),
    ("recompute, deep", put("TOFU_EVAL.json", "[" * 90000), RECOMPUTE, ("LOG", "too deeply")),
    ("recompute, UTF-16", put("TOFU_EVAL.json", "{}".encode("utf-16")), RECOMPUTE, ("LOG", "UTF-16")),
    ("recompute, two faults", nothing, [*RECOMPUTE, "--output", "model"], ("LOG", "--output")),
    ("bench, no methods", nothing, [*BENCH, "--methods", ","], ("--methods", "is empty")),
    ("bench, no such method", nothing, [*BENCH, "--methods", "ngdif"], ("--methods", "ngdiff")),
    ("bench, no such split", nothing, [*BENCH, "--splits", "forget99"], ("--splits", "forget99")),
    ("bench, no seeds", nothing, [*BENCH, "--seeds", "0"], ("--seeds",)),
    ("bench, epochs without number", nothing, [*BENCH, "--epochs", "nan"], ("--epochs",)),
    ("bench, batch of nothing", nothing, [*BENCH, "--batch-size", "0"], ("--batch-size",)),
    ("bench, output a file", nothing, [*BENCH, "--output", "forget.jsonl"], ("--output", "is a file")),
    ("bench, reference a pipe", pipe("r.json"), [*BENCH, "--reference", "r.json"], ("--reference", "r.json")),
    ("bench, --set of nothing", nothing, [*BENCH, "--set", "seed"], ("--set", "'seed'")),
    ("demo, no time", nothing, ["demo", *UNLEARNED, "--minutes", "nan"], ("--minutes",)),
    ("demo, a seed below 0", nothing, ["demo", *UNLEARNED, "--seed", "-1"], ("--seed",)),
    ("demo, output a file", nothing, ["demo", "--output", "forget.jsonl"], ("--output", "is a file")),
]  # fmt: skip
