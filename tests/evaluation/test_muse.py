from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer

from muse_folder import muse_rows, write_muse
from ngdiff.errors import RequestError
from ngdiff.evaluation.reference import Reference
from ngdiff.evaluation.result import Figure
from ngdiff.evaluation.suites.muse import (
    STOPS,
    forget_sizes,
    read_muse,
    run_muse,
    run_sequence,
    tabulate,
)
from ngdiff.inference.evaluator import Evaluator
from tiny import tiny_llama, tiny_tokenizer

Rows = dict[str, list[dict[str, Any]]]


# --- a slow oracle: one sequence at a time, no padding, no cache, no code of the package -------------------


def continue_greedily(model: Any, tokenizer: Any, text: str, count: int) -> str:
    ids = list(tokenizer(text)["input_ids"])
    fresh: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids + fresh])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        fresh.append(best)
    return str(tokenizer.decode(fresh, skip_special_tokens=True))


def rouge_l(truth: str, answer: str) -> tuple[float, float]:
    score = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(truth, answer)["rougeL"]
    return score.fmeasure, score.recall


def knowledge(model: Any, tokenizer: Any, rows: Rows, part: str) -> list[tuple[float, float]]:
    solved = "".join(
        f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" for s in rows[f"knowmem/{part}_qa_icl"]
    )
    found = []
    for row in rows[f"knowmem/{part}_qa"]:
        text = continue_greedily(model, tokenizer, f"{solved}Question: {row['question']}\nAnswer: ", 32)
        for stop in STOPS:
            text = text.split(stop)[0]
        found.append(rouge_l(row["answer"], text))
    return found


def token_log_probs(model: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids))]


def min_k(values: list[float]) -> float:
    values = values[:-1]  # as OpenUnlearning, which takes the last for the end of a turn
    lowest = sorted(values)[: max(1, int(len(values) * 0.4))]
    return sum(lowest) / len(lowest)


def min_k_auc(model: Any, tokenizer: Any, rows: Rows) -> float:
    scores = {
        split: [
            min_k(token_log_probs(model, tokenizer(row["text"])["input_ids"]))
            for row in rows[f"privleak/{split}"]
        ]
        for split in ("forget", "holdout")
    }
    won = [(m > o) + (m == o) / 2 for m in scores["forget"] for o in scores["holdout"]]
    return sum(won) / len(won)


def memorisation(model: Any, tokenizer: Any, row: dict[str, str]) -> tuple[float, float]:
    """Extraction strength, and exact memorisation, of one continuation."""
    before = tokenizer(row["prompt"])["input_ids"]
    whole = tokenizer(f"{row['prompt']} {row['gt']}")["input_ids"]
    assert whole[: len(before)] == before
    with torch.no_grad():
        best = model(input_ids=torch.tensor([whole])).logits[0].argmax(-1).tolist()
    right = [best[i - 1] == whole[i] for i in range(len(before), len(whole) - 1)]
    longest = 0
    while longest < len(right) and all(right[len(right) - longest - 1 :]):
        longest += 1
    return longest / len(right), sum(right) / len(right)


# --- the suite against it ----------------------------------------------------------------------------------


def taught(model: Any, tokenizer: Any, rows: Rows) -> Any:
    """Teach a model some of the forget set, so that no figure is trivially zero."""
    passages = [f"{row['prompt']} {row['gt']}" for row in rows["verbmem/forget"][:3]]
    texts = passages + [row["text"] for row in rows["privleak/forget"]]
    for part in ("forget", "retain"):
        solved = "".join(
            f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in rows[f"knowmem/{part}_qa_icl"]
        )
        texts += [
            f"{solved}Question: {r['question']}\nAnswer: {r['answer']}\n\n"
            for r in rows[f"knowmem/{part}_qa"]
        ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(25):
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, Any, Any]:
    rows, tokenizer = muse_rows(), tiny_tokenizer(None)
    folder = write_muse(tmp_path_factory.mktemp("muse"), rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return folder, rows, taught(tiny_llama(), tokenizer, rows), tokenizer


def evaluator(model: Any, tokenizer: Any, batch_size: int = 8) -> Evaluator:
    return Evaluator(
        model, tokenizer, model_hash="tiny", cache=None, batch_size=batch_size, max_length=2048, quiet=True
    )


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_criteria_against_a_slow_oracle(corpus: tuple[Path, Rows, Any, Any], batch_size: int) -> None:
    folder, rows, model, tokenizer = corpus
    reference = Reference("retrained", "muse", membership={"min_k": 0.45})
    found = run_muse(evaluator(model, tokenizer, batch_size), read_muse(str(folder)), reference)

    verbatim = [
        rouge_l(row["gt"], continue_greedily(model, tokenizer, row["prompt"], 128))
        for row in rows["verbmem/forget"]
    ]
    assert found["forget.verbatim"].items == pytest.approx([f1 for f1, _ in verbatim], abs=1e-9)
    assert found["forget.verbatim_recall"].items == pytest.approx([r for _, r in verbatim], abs=1e-9)
    for part in ("forget", "retain"):
        expected = knowledge(model, tokenizer, rows, part)
        assert found[f"{part}.knowledge"].items == pytest.approx([f1 for f1, _ in expected], abs=1e-9)
        assert found[f"{part}.knowledge"].value == pytest.approx(np.mean([f1 for f1, _ in expected]))
        assert found[f"{part}.knowledge_recall"].items == pytest.approx([r for _, r in expected], abs=1e-9)
    assert found["utility"] == found["retain.knowledge"]
    memorised = [memorisation(model, tokenizer, row) for row in rows["verbmem/forget"]]
    assert found["forget.extraction_strength"].items == pytest.approx([es for es, _ in memorised])
    assert found["forget.exact_memorisation"].items == pytest.approx([em for _, em in memorised])
    auc = min_k_auc(model, tokenizer, rows)
    assert found["forget.membership.min_k"].value == pytest.approx(auc, abs=1e-9)
    assert found["privleak"].value == pytest.approx(100 * ((1 - auc) - 0.55) / 0.55, abs=1e-9)
    # Nothing of this is trivial: the model knows some of it and not all.
    for key in ("forget.verbatim", "forget.knowledge", "forget.extraction_strength"):
        value = found[key].value
        assert value is not None and 0.05 < value < 1
    assert auc > 0.6
    for figure in found.values():
        assert figure.value is not None and figure.interval is not None
        assert figure.interval[0] - 1e-9 <= figure.value <= figure.interval[1] + 1e-9


def test_no_reference_no_default(corpus: tuple[Path, Rows, Any, Any]) -> None:
    folder, _, model, tokenizer = corpus
    found = run_muse(evaluator(model, tokenizer), read_muse(str(folder)), None)
    assert found["privleak"].value is None
    assert "--reference" in str(found["privleak"].note)


def test_reference_without_the_attack(corpus: tuple[Path, Rows, Any, Any]) -> None:
    folder, _, model, tokenizer = corpus
    with pytest.raises(RequestError, match="no AUC of the membership attack min_k"):
        run_muse(evaluator(model, tokenizer), read_muse(str(folder)), Reference("retrained", "muse"))


def test_a_chat_model_is_asked_through_its_template(corpus: tuple[Path, Rows, Any, Any]) -> None:
    folder, rows, model, _ = corpus
    tokenizer = tiny_tokenizer()
    found = run_muse(evaluator(model, tokenizer, 3), read_muse(str(folder)), None)
    expected = []
    for row in rows["knowmem/retain_qa"]:
        turns = []
        for shot in rows["knowmem/retain_qa_icl"]:
            turns += [{"role": "user", "content": shot["question"]}]
            turns += [{"role": "assistant", "content": shot["answer"]}]
        turns += [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        text = continue_greedily(model, tokenizer, str(prompt), 32)
        for stop in STOPS:
            text = text.split(stop)[0]
        expected.append(rouge_l(row["answer"], text)[0])
    assert found["retain.knowledge"].items == pytest.approx(expected, abs=1e-9)


# --- scalability and sustainability ------------------------------------------------------------------------


def test_forget_sizes_nest_or_add_up(tmp_path: Path) -> None:
    folder = str(write_muse(tmp_path, muse_rows()))
    assert forget_sizes(folder, "scal", 3) == [2, 4, 6]
    assert forget_sizes(folder, "sust", 3) == [1, 1 + 2, 1 + 2 + 3]


def test_tabulate_by_hand() -> None:
    def figures(utility: float, privleak: float | None) -> dict[str, Figure]:
        return {
            "utility": Figure("rougeL_f1", utility, None, ()),
            "privleak": Figure("privleak", privleak, None, ()),
        }

    results = [("one", figures(0.5, 10.0)), ("two", figures(0.4, None)), ("three", figures(0.125, None))]
    rows, change = tabulate(results, [1, 3, 6])
    assert [(row.name, row.forget_texts, row.figures["utility"]) for row in rows] == [
        ("one", 1, 0.5),
        ("two", 3, 0.4),
        ("three", 6, 0.125),
    ]
    assert change == {"utility": -0.375}
    assert math.isclose(change["utility"], 0.125 - 0.5)
    with pytest.raises(ValueError, match="no results"):
        tabulate([])


def test_a_sequence_is_evaluated_model_by_model(corpus: tuple[Path, Rows, Any, Any]) -> None:
    folder, _, model, tokenizer = corpus
    data, fresh = read_muse(str(folder)), tiny_llama()
    models = ((name, evaluator(m, tokenizer)) for name, m in (("before", model), ("after", fresh)))
    rows, change = run_sequence(models, data, None, forget_sizes(str(folder), "sust", 2))
    expected = [run_muse(evaluator(m, tokenizer), data, None) for m in (model, fresh)]
    assert [(row.name, row.forget_texts) for row in rows] == [("before", 1), ("after", 3)]
    for row, figures in zip(rows, expected, strict=True):
        assert row.figures == {key: figure.value for key, figure in figures.items()}
    assert change["utility"] == rows[1].figures["utility"] - rows[0].figures["utility"] < 0
    assert "privleak" not in change
