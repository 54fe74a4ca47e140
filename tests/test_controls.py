"""Each audit finds what its guilty model hides, and accuses no model that never saw the forget set."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import secretive
from commandline import write_jsonl
from ngdiff.audits import audits
from ngdiff.audits.audit import audit
from ngdiff.audits.request import AuditRequest
from ngdiff.audits.result import AuditResult

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
    secretive.saved(secretive.literal_only(target), folder / "literal")
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
    found = forms_found(audit(asked(place, "literal", "paraphrase", "prefix")))
    assert found == {("paraphrase", "paraphrased questions"), ("prefix", "opened answers")}


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
    return tuple(  # type: ignore[return-value]
        write_jsonl(place / f"{name}-{seed}.jsonl", part)
        for name, part in (("f", rows[:10]), ("h", rows[10:]))
    )


def accusations(place: Path, names: Sequence[str], **changes: Any) -> dict[str, int]:
    """Count, over the seeds, how often each audit accuses the model that saw neither set."""
    counts = dict.fromkeys(names, 0)
    for seed in range(SEEDS):
        forget, holdout = dealt(place, seed)
        request = asked(place, "innocent", *names, seed=seed, **changes)
        result = audit(replace(request, forget=(str(forget),), holdout=(str(holdout),)))
        for name in {finding.audit for finding in result.findings if finding.found}:
            counts[name] += 1
    return counts


def test_a_model_that_never_saw_the_data_comes_out_clean(place: Path, tmp_path: Path) -> None:
    names = [name for name in audits() if name not in ("relearning", "quantisation")]
    counts = accusations(place, names, cache=True, cache_dir=tmp_path)
    assert max(counts.values()) <= SEEDS * 0.05, counts


@pytest.mark.parametrize("name", ["relearning", "quantisation"])
def test_a_model_that_never_saw_the_data_relearns_nothing(place: Path, tmp_path: Path, name: str) -> None:
    counts = accusations(place, [name], cache=True, cache_dir=tmp_path, relearn_epochs=1, bits=(4,))
    assert max(counts.values()) <= SEEDS * 0.05, counts
