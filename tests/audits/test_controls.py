"""Each audit finds what its guilty model hides, and accuses no model that never saw the forget set."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import secretive
from commandline import write_jsonl
from ngdiff.audits import audits
from ngdiff.audits.audit import audit
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.audits.audit_result import AuditResult
from ngdiff.audits.findings import find
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.statistics import auc

SEEDS = 20


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("bitsandbytes")
    before, logger.level = logger.level, logging.ERROR
    monkeypatch.setattr(gc, "collect", lambda: 0)  # a third of a second each, and models are tiny
    yield
    logger.level = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    for name in ("forget", "retain", "holdout"):
        write_jsonl(folder / f"{name}.jsonl", getattr(secretive, name.upper()))
    secretive.saved(secretive.innocent(), folder / "innocent")
    target = secretive.target()
    secretive.saved(target, folder / "target")
    secretive.saved(secretive.suppressed(target), folder / "suppressed")
    secretive.saved(secretive.rounded_away(target), folder / "rounded")
    for name in ("literal_only", "by_chance", "last_layer_hides", "stammering"):
        secretive.saved(getattr(secretive, name)(target), folder / name)
    return folder


def asked(place: Path, model: str, *names: str, **changes: Any) -> AuditRequest:
    request = AuditRequest(
        str(place / model),
        place / "audit.json",
        (str(place / "forget.jsonl"),),
        (str(place / "retain.jsonl"),),
        (str(place / "holdout.jsonl"),),
        audits=names,
        relearn_lr=1e-3,
        relearn_epochs=3,
        cache=False,
        precision="fp32",
        generate=False,
        gradient_norms=False,
        max_new_tokens=12,
        resamples=200,
        overwrite=True,
    )
    return replace(request, **changes)


def forms_found(result: AuditResult) -> set[tuple[str, str]]:
    return {(finding.audit, finding.form) for finding in result.findings if finding.found}


# ---- guilty ----


def test_knowledge_one_epoch_away_is_relearned(place: Path) -> None:
    found = forms_found(audit(asked(place, "suppressed", "relearning")))
    assert found == {
        ("relearning", "all of it"),
        ("relearning", "half of it, the rest tested"),
    }


def test_knowledge_behind_other_words_and_behind_a_prefix(place: Path) -> None:
    found = forms_found(audit(asked(place, "literal_only", "paraphrase", "prefix", "worst-case")))
    assert found == {
        ("paraphrase", "paraphrased questions"),
        ("prefix", "opened answers"),
        ("worst-case", "worst of all wordings"),
    }


def test_knowledge_that_greedy_decoding_hides_is_sampled(place: Path) -> None:
    changes: Any = {"generate": True, "samples": 8}
    result = audit(asked(place, "by_chance", "sampling", **changes))
    assert forms_found(result) == {("sampling", "best of 8 samples")}
    greedy = result.before["audited"]["forget.rouge"].value
    figures = result.outcomes["sampling"]["audited"]["best of 8 samples"].figures
    leaks = [figures[f"forget.leak_rouge{ending}"].value for ending in ("_1", "_4", "")]
    assert greedy is not None and greedy < 0.2 and leaks == sorted(leaks, key=lambda x: x or 0)
    assert leaks[-1] is not None and leaks[-1] > 0.8


def test_knowledge_behind_the_last_layer_is_read(place: Path) -> None:
    result = audit(asked(place, "last_layer_hides", "layers", "extraction"))
    assert forms_found(result) == {("layers", "as it is")}


def test_answers_that_stammer_are_noticed(place: Path) -> None:
    changes: Any = {"generate": True, "target": str(place / "target"), "max_new_tokens": 24}
    result = audit(asked(place, "stammering", "fluency", **changes))
    assert {f.figure for f in result.findings if f.found} == {"forget.repetition", "forget.fluency_nll"}


def test_unlearning_in_the_last_steps_alone_is_shallow(place: Path) -> None:
    given: Any = {"target": str(place / "target"), "reference": str(place / "innocent")}
    depths = {}
    for name in ("target", "suppressed", "innocent"):
        figures = (
            audit(asked(place, name, "layers", **given)).outcomes["layers"]["audited"]["as it is"].figures
        )
        depths[name] = figures["forget.unlearning_depth"].value
    assert depths["target"] == 0 and depths["innocent"] == pytest.approx(1)
    assert 0.02 < depths["suppressed"] < 0.8


def test_knowledge_hidden_in_high_precision_is_rounded_free(place: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = audit(asked(place, "rounded", "quantisation", "extraction"))
    assert forms_found(result) == {("quantisation", "4 bits")}


def test_a_model_that_forgot_nothing_is_extracted_and_told_apart(place: Path) -> None:
    found = forms_found(audit(asked(place, "target", "extraction", "membership")))
    assert found == {("extraction", "as it is"), ("membership", "as it is")}


# ---- innocent ----


def dealt(place: Path, seed: int) -> tuple[Path, Path]:
    """Deal what no model saw to forget set and holdout anew."""
    rows = [*secretive.FORGET, *secretive.HOLDOUT]
    random.Random(seed).shuffle(rows)
    files = (("f", rows[:10]), ("h", rows[10:]))
    forget, holdout = (write_jsonl(place / f"{name}-{seed}.jsonl", part) for name, part in files)
    return forget, holdout


def test_a_model_that_never_saw_the_data_relearns_nothing(place: Path) -> None:
    accused = 0
    for seed in range(SEEDS):
        forget, holdout = dealt(place, seed)
        request = asked(place, "innocent", "relearning", seed=seed, relearn_epochs=1)
        result = audit(replace(request, forget=(str(forget),), holdout=(str(holdout),)))
        accused += any(finding.found for finding in result.findings)
    assert accused <= SEEDS * 0.05


Dealt = dict[str, Figure]


def dealt_figures(figures: Mapping[str, Figure], order: Sequence[int]) -> Dealt:
    """Deal the items of forget set and holdout anew, as if the rows had been: nothing is learned here."""
    found = {}
    for key, mine in figures.items():
        unseen = figures.get(key.replace("forget.", "holdout.", 1))
        if mine.metric == "auc":
            items = [mine.items[at] for at in order]
            scores = [float(item or 0) for item in items]
            found[key] = replace(mine, value=auc(scores[:10], scores[10:]), items=tuple(items))
        elif key.startswith("forget.") and unseen is not None and len(mine.items) == len(unseen.items) == 10:
            pool = [*mine.items, *unseen.items]
            parts = [[float(pool[at] or 0) for at in order[half]] for half in (slice(10), slice(10, 20))]
            for name, part in zip((key, key.replace("forget.", "holdout.", 1)), parts, strict=True):
                found[name] = replace(mine, value=sum(part) / 10, items=tuple(part))
    return found


def test_a_model_that_never_saw_the_data_comes_out_clean(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("ngdiff.audits.findings.PERMUTATIONS", 499)  # of thousands of tests
    names = [name for name in audits() if name != "relearning"]
    result = audit(asked(place, "innocent", *names, generate=True, samples=4))
    assert set(result.outcomes) == set(names)
    accused = dict.fromkeys(["any", *names], 0)
    for seed in range(SEEDS):
        order = random.Random(seed).sample(range(20), 20)
        before: Any = {"audited": dealt_figures(result.before["audited"], order)}
        outcomes: Any = {
            name: {
                "audited": {
                    form: replace(outcome, figures=dealt_figures(outcome.figures, order))
                    for form, outcome in roles["audited"].items()
                }
            }
            for name, roles in result.outcomes.items()
        }
        for name in names:  # each as if it were the only one
            found = find([audits()[name]], outcomes, before, Bootstrap(50))
            assert found, name
            accused[name] += any(finding.found for finding in found)
        together = find([audits()[name] for name in names], outcomes, before, Bootstrap(50))
        accused["any"] += any(finding.found for finding in together)
    assert max(accused.values()) <= SEEDS * 0.05, accused
