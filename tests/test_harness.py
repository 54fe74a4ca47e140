from __future__ import annotations

import builtins
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ngdiff.errors import RequestError
from ngdiff.evaluation.suites.harness import HarnessSettings, check_tasks, figures_of, run_tasks
from tiny import tiny_llama, tiny_tokenizer

ROWS = [
    {"question": "Where was the author born?", "choices": ["Taipei", "the mat"], "answer": 0},
    {"question": "What sat on the mat?", "choices": ["a book", "the cat"], "answer": 1},
    {"question": "What did the author write?", "choices": ["a book", "the cat sat"], "answer": 0},
    {"question": "Who helps?", "choices": ["system", "You"], "answer": 1},
]

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.5}}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_choice.yaml").write_text(CHOICE.format(file=file))
    return folder


def log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Slow: one pass a choice, one token at a time."""
    start, whole = tokenizer(context)["input_ids"], tokenizer(f"{context} {answer}")["input_ids"]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(start), len(whole)))


@pytest.mark.filterwarnings("ignore")  # what the harness warns about is not ours to fix
def test_accuracy_of_a_local_task_against_a_slow_oracle(tasks: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.train()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = run_tasks(model, tokenizer, ["tiny_choice"], HarnessSettings(include_path=tasks, batch_size=2))
    assert model.training
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    model.eval()
    right = []
    for row in ROWS:
        scores = [log_likelihood(model, tokenizer, row["question"], choice) for choice in row["choices"]]
        right.append(float(scores.index(max(scores)) == row["answer"]))
    figure = found["tiny_choice.acc"]
    assert figure.items == tuple(right)
    assert figure.value == pytest.approx(sum(right) / 4)
    mean = sum(right) / 4
    error = math.sqrt(sum((r - mean) ** 2 for r in right) / 3) / 2  # sample deviation over root of n
    assert figure.interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=1e-4)
    assert figure.note == "task version 2.5, higher is better, 0 shots, 4 items"


@pytest.mark.filterwarnings("ignore")
def test_limit_and_shots(tasks: Path) -> None:
    settings = HarnessSettings(include_path=tasks, limit=2)
    found = run_tasks(tiny_llama(), tiny_tokenizer(), ["tiny_choice"], settings)
    assert len(found["tiny_choice.acc"].items) == 2
    assert "2 items" in str(found["tiny_choice.acc"].note)


@pytest.mark.filterwarnings("ignore")
def test_unknown_tasks_are_all_named_with_suggestions(tasks: Path) -> None:
    with pytest.raises(RequestError) as error:
        check_tasks(["tiny_choise", "tiny_choice", "nothing_like_it_9"], tasks)
    said = [str(fault) for fault in error.value.faults]
    assert len(said) == 2
    assert "'tiny_choise'. Did you mean tiny_choice" in said[0]


@pytest.mark.filterwarnings("ignore")
def test_data_that_cannot_be_had(tasks: Path) -> None:
    (tasks.parent / "rows.jsonl").unlink()
    with pytest.raises(RequestError, match="data of tiny_choice could not be loaded"):
        run_tasks(tiny_llama(), tiny_tokenizer(), ["tiny_choice"], HarnessSettings(include_path=tasks))


@pytest.mark.filterwarnings("ignore")
def test_no_task_and_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    with pytest.raises(RequestError, match="no task is named"):
        check_tasks([])
    with pytest.raises(RequestError, match="there is no folder"):
        check_tasks(["mmlu"], tmp_path / "none")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        RequestError, match=r"lm-eval, which has the tasks, is not installed.*ngdiff\[lm-eval\]"
    ):
        check_tasks(["mmlu"])


def test_groups_filters_and_missing_errors() -> None:
    found = figures_of(
        {
            "results": {
                "gsm": {
                    "alias": "gsm",
                    "exact_match,strict": 0.25,
                    "exact_match_stderr,strict": "N/A",
                    "sample_len": 3,
                    "name": "gsm",
                },
            },
            "groups": {"all": {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "all"}},
            "samples": {
                "gsm": [
                    {"doc_id": 1, "filter": "strict", "exact_match": 0.0},
                    {"doc_id": 0, "filter": "strict", "exact_match": 1.0},
                    {"doc_id": 0, "filter": "flexible", "exact_match": 9.0},
                ]
            },
            "versions": {"gsm": 3.0},
            "higher_is_better": {"gsm": {"exact_match": True}},
        }
    )
    assert set(found) == {"gsm.exact_match.strict", "all.acc"}
    assert found["gsm.exact_match.strict"].items == (1.0, 0.0)
    assert found["gsm.exact_match.strict"].interval is None
    assert found["all.acc"].interval == pytest.approx((0.304, 0.696), abs=1e-3)
    assert found["all.acc"].note == "task version unknown, no direction"
