"""Audits bring out what a model merely hides, find nothing where nothing is, and change nothing on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ngdiff.audits.audit
from commandline import Cli, make_cli, tree, write_jsonl
from forgetful import FORGET, HOLDOUT, RETAIN, examples, make_models
from ngdiff.audits import audits
from ngdiff.audits.audit import audit, prepare
from ngdiff.audits.audit_request import PREFIX, AuditRequest
from ngdiff.audits.findings import (
    GUESSING,
    NEVER_SEEN,
    NEVER_SEEN_RISE,
    RETRAINED,
    RETRAINED_NEVER_SEEN,
    difference_of_means,
    find,
    share_recovered,
)
from ngdiff.audits.paraphrase import FRAMES
from ngdiff.audits.quantisation import quantised
from ngdiff.audits.relearning import HALF, WHOLE, halves, relearn
from ngdiff.audits.subject import Context, Outcome, Subject
from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode, encode_all, encode_prompt
from ngdiff.errors import RequestError, RunError
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites.measures import with_question
from ngdiff.inference.teacher_forced import score_answers
from ngdiff.losses import nll
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import labelled_tokens
from ngdiff.report.run_files import is_audit
from ngdiff.system.progress import console
from tiny import CHATML, tiny_llama, tiny_tokenizer

BOOT = Bootstrap(resamples=200)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audits")
    make_models(folder)
    for name, rows in (("forget", FORGET), ("retain", RETAIN), ("holdout", HOLDOUT)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("bitsandbytes")
    before, logger.level = logger.level, logging.ERROR
    monkeypatch.setattr("gc.collect", lambda: 0)  # a third of a second each, and models are tiny
    yield
    logger.level = before


def asked(place: Path, output: Path, model: str = "suppressed", **changes: Any) -> AuditRequest:
    request = AuditRequest(
        str(place / model),
        output,
        (str(place / "forget.jsonl"),),
        (str(place / "retain.jsonl"),),
        relearn_lr=1e-3,
        relearn_epochs=4,
        cache=False,
        precision="fp32",
        max_new_tokens=12,
        resamples=200,
    )
    return replace(request, **changes)


def refused(request: AuditRequest) -> str:
    with pytest.raises(RequestError) as caught:
        audit(request)
    return str(caught.value)


# ---- the whole command ----


@pytest.fixture(scope="module")
def result(place: Path) -> dict[str, Any]:
    """Everything, with target and retrained model, through the command line."""
    before = {name: tree(place / name) for name in ("suppressed", "target", "retrained")}
    capture = pytest.MonkeyPatch()
    capture.setenv("XDG_CACHE_HOME", str(place / "cache"))
    capture.setattr("gc.collect", lambda: 0)  # a third of a second each, and models are tiny
    from ngdiff.audits.audit import audit as run

    made = run(
        asked(
            place,
            place / "audit.json",
            holdout=(str(place / "holdout.jsonl"),),
            target=str(place / "target"),
            reference=str(place / "retrained"),
        )
    )
    capture.undo()
    assert made.findings
    assert {name: tree(place / name) for name in before} == before  # models are only read
    content: dict[str, Any] = json.loads((place / "audit.json").read_text(encoding="utf-8"))
    return content


def finding(content: dict[str, Any], audit: str, form: str, figure: str = "extraction_strength") -> Any:
    return next(
        one
        for one in content["findings"]
        if (one["audit"], one["form"]) == (audit, form) and one["figure"].endswith(figure)
    )


def test_every_audit_is_reported_for_every_model(result: dict[str, Any]) -> None:
    assert set(result["audits"]) == set(audits())
    for roles in result["audits"].values():
        assert set(roles) == {"audited", "target", "reference"}
        assert set(roles["audited"]) == set(roles["target"]) == set(roles["reference"])
    assert set(result["before"]) == {"audited", "target", "reference"}
    hashes = {model["sha256"] for model in result["provenance"]["models"].values()}
    assert len(hashes) == 3 and all(len(one) == 64 for one in hashes)
    assert result["provenance"]["settings"]["prefix"] == PREFIX


def test_every_figure_has_its_interval(result: dict[str, Any]) -> None:
    for one in result["findings"]:
        low, high = one["after_interval"]
        assert low <= one["after"] <= high
        if one["change"] is not None:
            assert one["change"] == pytest.approx(one["after"] - one["before"], abs=1e-9)
            assert one["change_interval"][0] <= one["change"] <= one["change_interval"][1]


def test_relearning_brings_back_what_was_merely_hidden(result: dict[str, Any]) -> None:
    whole = finding(result, "relearning", WHOLE)
    half = finding(result, "relearning", HALF, "probability")
    assert [one["beside"] for one in whole["comparisons"]] == [RETRAINED, RETRAINED_NEVER_SEEN]
    assert all(one["excess"] > 0.2 for one in whole["comparisons"])
    assert whole["recovered"] > 0.5
    assert half["change"] > 0.2  # these items were not shown
    forms = result["audits"]["relearning"]["audited"]
    assert forms[WHOLE]["rows"] == {}
    for name in ("forget", "holdout"):
        assert len(forms[HALF]["rows"][name]) == len(forms[HALF]["figures"][f"{name}.nll"]["items"]) == 3


def test_the_retrained_model_beside_itself_shows_nothing(place: Path, tmp_path: Path) -> None:
    request = asked(
        place,
        tmp_path / "a.json",
        "retrained",
        reference=str(place / "retrained"),
        audits=("relearning", "paraphrase"),
        generate=False,
    )
    found = audit(request).findings
    assert found and all(one.weakest.excess == 0 and one.found is False for one in found)


def test_quantisation_changes_the_weights_it_says(result: dict[str, Any]) -> None:
    forms = result["audits"]["quantisation"]["audited"]
    losses = [forms[form]["figures"]["forget.nll"]["value"] for form in ("8 bits", "4 bits")]
    before = result["before"]["audited"]["forget.nll"]["value"]
    assert len({before, *losses}) == 3
    assert abs(losses[0] - before) < abs(losses[1] - before)


def test_extraction_counts_items(result: dict[str, Any]) -> None:
    for role, roles in result["audits"]["extraction"].items():
        figures = roles["as it is"]["figures"]
        strengths = figures["forget.extraction_strength"]["items"]
        assert figures["forget.extractable"]["value"] == sum(s == 1 for s in strengths) / 6, role
        assert figures["forget.extractable_from_half"]["value"] == sum(s >= 0.5 for s in strengths) / 6
    assert (
        result["audits"]["extraction"]["target"]["as it is"]["figures"]["forget.extractable"]["value"] > 0.5
    )


def test_membership_tells_the_target_apart(result: dict[str, Any]) -> None:
    roles = result["audits"]["membership"]
    known = roles["target"]["as it is"]["figures"]["forget.membership.min_k"]["value"]
    never = roles["reference"]["as it is"]["figures"]["forget.membership.min_k"]["value"]
    assert known > 0.9 > never
    assert roles["audited"]["as it is"]["figures"]["privleak"]["value"] is not None


def test_through_the_command_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 160)
    cli: Cli = make_cli(capsys)
    words = ["audit", place / "suppressed", "--forget", place / "forget.jsonl", "--no-cache"]
    words += ["--retain", place / "retain.jsonl", "--output", tmp_path / "audit.json", "--no-generate"]
    words += ["--audits", "extraction,prefix", "--resamples", "50", "--precision", "fp32"]
    answer = cli(*words)
    assert answer.code == 0, answer.err
    assert "opened answers" in answer.err and "nothing to compare with" in answer.err
    again = cli(*words)
    assert again.code == 2 and "already exists" in again.faults[0][0]
    assert cli(*words, "--overwrite").code == 0
    listed = cli("ls", "audits")
    assert all(name in listed.out for name in audits())


def test_what_the_data_does_not_allow_is_left_out_and_said(place: Path, tmp_path: Path) -> None:
    texts = [{"text": row["answer"]} for row in FORGET]
    forget = write_jsonl(tmp_path / "texts.jsonl", texts)
    request = asked(place, tmp_path / "a.json", forget=(str(forget),))
    ready = prepare(request)
    of_questions = {"paraphrase", "prefix", "worst-case", "sampling", "fluency"}
    assert set(ready.skipped) == {*of_questions, "membership"}
    assert "paraphrase cannot run" in refused(replace(request, audits=("paraphrase",)))
    made = audit(replace(request, audits=("extraction",)))
    assert [one.found for one in made.findings] == [None]


def test_questions_without_paraphrases_are_framed(place: Path, tmp_path: Path) -> None:
    bare = [{key: row[key] for key in ("question", "answer")} for row in FORGET]
    forget = str(write_jsonl(tmp_path / "bare.jsonl", bare))
    made = audit(asked(place, tmp_path / "a.json", forget=(forget,), audits=("paraphrase",), generate=False))
    assert any("framed" in note for note in made.notes)
    figure = made.outcomes["paraphrase"]["audited"]["framed questions"].figures["forget.nll"]
    source = resolve_model(str(place / "suppressed"))
    model, tokenizer = load_model(source).eval(), load_tokenizer(source)
    slow = []
    for row in bare:
        framed = [{**row, "question": frame.format(question=row["question"])} for frame in FRAMES]
        scores = score_answers(model, encode_all(examples(framed), tokenizer, 512, "x"), pad_id=1)
        slow.append(sum(score.mean_nll for score in scores) / 3)
    assert figure.items == pytest.approx(slow, abs=1e-5)


# ---- wrong requests ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audits": ("relearnin",)}, "relearning"),
        ({"bits": (2,)}, "--bits"),
        ({"bits": ()}, "--bits"),
        ({"prefix": " "}, "--prefix"),
        ({"relearn_lr": 0.0}, "--relearn-lr"),
        ({"relearn_epochs": float("nan")}, "--relearn-epochs"),
        ({"relearn_batch_size": 0}, "--relearn-batch-size"),
        ({"samples": 0}, "--samples"),
        ({"shadows": ("./no-such-folder",)}, "--shadow"),
        ({"retain": ()}, "--retain"),
        ({"forget": ()}, "--forget"),
        ({"suite": "muse"}, "--suite"),
        ({"suite": "tofu"}, "--retain"),
        ({"audits": ("membership",)}, "--holdout"),
        ({"target": "./no-such-folder"}, "--target"),
        ({"reference": "./no-such-folder"}, "--reference"),
        ({"max_length": 4}, "max-length"),
    ],
)
def test_a_wrong_request_is_refused(place: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(asked(place, tmp_path / "a.json", **changes))
    assert not list(tmp_path.iterdir())


def test_nothing_but_an_audit_is_replaced(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": "evaluation"}')
    assert "is not an audit.json" in refused(asked(place, tmp_path / "a.json", overwrite=True))


def test_a_file_that_appears_during_an_audit_is_not_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ngdiff.audits.audit._provenance

    def appear(*words: Any) -> Any:
        (tmp_path / "audit.json").write_text("mine")
        return made(*words)

    monkeypatch.setattr("ngdiff.audits.audit._provenance", appear)
    with pytest.raises(RunError, match=r"exists and is not an audit\.json.*is in .*audit-2\.json"):
        audit(asked(place, tmp_path / "audit.json", audits=("extraction",)))
    assert (tmp_path / "audit.json").read_text() == "mine" and is_audit(tmp_path / "audit-2.json")


def test_several_processes_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in refused(asked(place, tmp_path / "a.json"))


# ---- the parts, against slow ones ----


def context_of(place: Path, **changes: Any) -> Context:
    from contextlib import nullcontext

    request = asked(place, place / "unused.json", **changes)
    return Context(request, prepare(request).data, torch.device("cpu"), nullcontext, "fp32", None)


def subject_of(place: Path, context: Context, name: str = "suppressed") -> Subject:
    source = resolve_model(str(place / name))
    return Subject("audited", source, load_tokenizer(source), context)


def test_relearning_takes_the_steps_of_a_plain_loop(place: Path) -> None:
    context = context_of(place, relearn_epochs=2, relearn_batch_size=6)
    subject = subject_of(place, context)
    made = relearn(subject, context, context.forget, "Relearning")
    slow = subject.fresh_model()
    batch = collate(encode_all(context.forget, subject.tokenizer, 512, "x"), pad_id=1)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=1e-3, weight_decay=0.0)
    slow.train()
    for _ in range(2):
        tokens = labelled_tokens(slow, batch)
        optimizer.zero_grad()
        (nll(tokens) / tokens.targets.numel()).backward()
        optimizer.step()
    for (name, fast), (_, right) in zip(made.named_parameters(), slow.named_parameters(), strict=True):
        assert torch.allclose(fast, right, atol=2e-4), name


def scored(subject: Subject, rows: Any) -> list[float]:
    encoded = encode_all(rows, subject.tokenizer, 512, "x")
    return [one.mean_nll for one in score_answers(subject.fresh_model().eval(), encoded, pad_id=1)]


@pytest.mark.parametrize("name", ["forget", "holdout"])
def test_the_questions_are_changed_as_said(place: Path, name: str) -> None:
    context = context_of(place, holdout=(str(place / "holdout.jsonl"),), generate=False)
    subject = subject_of(place, context)
    rows = context.data.sets[name]
    opened = scored(subject, [replace(row, opening=PREFIX) for row in rows])
    other = scored(subject, [with_question(row, str(row.extra["paraphrased_question"])) for row in rows])
    plain = scored(subject, rows)
    for audited, form, right in (
        ("prefix", "opened answers", opened),
        ("paraphrase", "paraphrased questions", other),
        ("extraction", "as it is", None),
    ):
        figures = audits()[audited].run(subject, context)[form].figures
        if right is not None:
            assert figures[f"{name}.nll"].items == pytest.approx(right, abs=1e-5)
            assert right != pytest.approx(plain, abs=1e-2)
        assert len(figures[f"{name}.extraction_strength"].items) == 6


@pytest.mark.parametrize("form", [WHOLE, HALF])
def test_forget_set_and_text_never_seen_are_relearned_together(
    place: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(place, holdout=(str(place / "holdout.jsonl"),), generate=False)
    shown: list[list[str]] = []

    def watched(subject: Subject, context: Context, rows: Any, title: str) -> Any:
        shown.append([row.answer for row in rows])
        return relearn(subject, context, rows, title)

    monkeypatch.setattr("ngdiff.audits.relearning.relearn", watched)
    outcome = audits()["relearning"].run(subject_of(place, context), context)[form]
    answers = {name: [row.answer for row in context.data.sets[name]] for name in ("forget", "holdout")}
    taught = shown[(WHOLE, HALF).index(form)]
    for name, said in answers.items():
        tested = [said[at] for at in outcome.rows.get(name, range(6))]
        mine = [answer for answer in said if answer in taught]
        assert len(mine) == (6 if form == WHOLE else 3)
        assert sorted([*mine, *tested] if form == HALF else tested) == sorted(said)
    assert not any(row.answer in taught for row in context.data.sets["retain"])
    assert len(taught) == (12 if form == WHOLE else 6)


def test_an_audit_that_cannot_be_run_says_so(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    odd = tmp_path / "odd"
    tiny_llama(hidden=96).save_pretrained(odd)
    tiny_tokenizer(CHATML).save_pretrained(odd)
    request = asked(place, tmp_path / "a.json", audits=("quantisation", "extraction"), bits=(4,))
    made = audit(replace(request, model=str(odd), generate=False))
    (note,) = (note for note in made.notes if "4 bits" in note)
    assert "could not be tried" in note and "bitsandbytes" in note
    assert {one.audit for one in made.findings} == {"extraction"}


def test_the_two_halves_make_the_whole() -> None:
    taught, tested = halves(7, seed=3)
    assert len(taught) == 3 and sorted([*taught, *tested]) == list(range(7))
    assert halves(7, seed=3) == (taught, tested) != halves(7, seed=4)


def test_four_bits_are_the_weights_rounded_to_four_bits(place: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    context = context_of(place)
    subject = subject_of(place, context)
    encoded = encode_all(context.forget, subject.tokenizer, 512, "x")
    slow = subject.fresh_model()
    for name, module in slow.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed, state = functional.quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4")
            module.weight.data = functional.dequantize_4bit(packed, state)
    right = score_answers(slow.eval(), encoded, pad_id=1)
    found = score_answers(quantised(subject, 4).eval(), encoded, pad_id=1)
    assert [one.nll for one in found] == pytest.approx([one.nll for one in right], rel=0.05, abs=0.05)


def test_an_opening_is_context_and_only_the_answer_is_scored() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    (example,) = examples(FORGET[:1])
    plain = encode(example, tokenizer, 128)
    opened = encode(replace(example, opening=PREFIX), tokenizer, 128)
    prompt = encode_prompt(example, tokenizer, 128)
    opened_prompt = encode_prompt(replace(example, opening=PREFIX), tokenizer, 128)
    assert tokenizer.decode(opened_prompt) == tokenizer.decode(prompt) + PREFIX
    labels = [label for label in opened.labels if label >= 0]
    assert tokenizer.decode(labels) == f" {example.answer}<|im_end|>"
    assert list(opened.input_ids[: len(opened_prompt)]) == opened_prompt
    assert len(opened.input_ids) > len(plain.input_ids)


def test_a_text_cannot_be_opened() -> None:
    (example,) = examples([{"text": "All of it."}])
    with pytest.raises(RequestError, match="begin with other words"):
        encode(replace(example, opening=PREFIX), tiny_tokenizer(), 64)


# ---- findings, by hand ----


def figure(*items: float, metric: str = "extraction_strength") -> Figure:
    value = sum(items) / len(items)
    return Figure(metric, value, (min(items), max(items)), items)


KEY, UNSEEN = "forget.extraction_strength", "holdout.extraction_strength"
LOW, HIGH = figure(0.0, 0.0, 0.25, 0.0, 0.25), figure(0.5, 0.75, 0.5, 1.0, 0.75)


def found_by(
    name: str,
    mine: tuple[Figure, ...],
    theirs: tuple[Figure, ...] | None = None,
    before: tuple[Figure, ...] = (),
    target: Figure | None = None,
) -> Any:
    """Return the finding on forget set and holdout of the audited and of the retrained model."""
    keys = (KEY, UNSEEN)
    roles: Any = {"audited": {"form": Outcome(dict(zip(keys, mine, strict=False)))}}
    if theirs is not None:
        roles["reference"] = {"form": Outcome(dict(zip(keys, theirs, strict=False)))}
    earlier: Any = {"audited": dict(zip(keys, before, strict=False))}
    earlier |= {} if target is None else {"target": {KEY: target}}
    (one,) = find([audits()[name]], {name: roles}, earlier, BOOT)
    return one


def test_without_anything_to_compare_with_nothing_is_concluded() -> None:
    one = found_by("prefix", (figure(0.5, 0.75),), before=(figure(0.25, 0.25),))
    assert (one.before, one.after, one.change) == (0.25, 0.625, 0.375)
    assert one.comparisons == () and one.found is None and one.p_value is None


def test_both_level_and_rise_must_exceed_those_of_text_never_seen() -> None:
    one = found_by("prefix", (HIGH, LOW), before=(LOW, LOW))
    assert [c.beside for c in one.comparisons] == [NEVER_SEEN, NEVER_SEEN_RISE]
    assert [c.excess for c in one.comparisons] == pytest.approx([0.6, 0.6])
    assert one.comparisons[0].p_value == pytest.approx(1 / 252)  # of the ways of dealing 10 items
    assert one.found
    already = found_by("prefix", (HIGH, LOW), before=(HIGH, LOW))  # it said so before the audit
    assert already.weakest.beside == NEVER_SEEN_RISE and already.found is False
    all_rise = found_by("prefix", (HIGH, HIGH), before=(LOW, LOW))  # as a relearned innocent does
    assert all_rise.change == pytest.approx(0.6) and all_rise.found is False
    from_below = found_by("prefix", (LOW, LOW), before=(figure(*[-1.0] * 5), LOW))  # over-forgotten before
    assert from_below.weakest.beside == NEVER_SEEN and from_below.found is False


def test_what_came_back_is_a_share_of_what_was_lost() -> None:
    one = found_by("prefix", (figure(0.5, 0.5),), before=(figure(0.0, 0.0),), target=figure(1.0, 1.0))
    assert one.recovered == 0.5 and one.recovered_interval == (0.5, 0.5)


def test_beside_the_retrained_model() -> None:
    high, low = (figure(*one.items, *one.items) for one in (HIGH, LOW))
    one = found_by("relearning", (high,), (low,))
    assert [c.beside for c in one.comparisons] == [RETRAINED] and one.found
    assert one.comparisons[0].p_value == pytest.approx(2**-10)  # of the ways of dealing 10 signs
    better = found_by("relearning", (high, high), (low, low))  # a better model on both sets
    assert better.weakest.beside == RETRAINED_NEVER_SEEN and better.found is False
    assert found_by("relearning", (high, low), (low, low)).found


def test_extraction_beside_text_never_seen() -> None:
    one = found_by("extraction", (HIGH, LOW), before=(HIGH, LOW))
    assert one.before is None and one.change is None
    assert [c.beside for c in one.comparisons] == [NEVER_SEEN] and one.found


def attacked(members: list[float], others: list[float], retrained: list[float] | None = None) -> Any:
    from ngdiff.evaluation.suites.measures import Measures
    from ngdiff.inference.evaluator import Evaluator

    evaluator: Any = Evaluator.__new__(Evaluator)
    auc = Measures(evaluator, BOOT).auc
    key, count = "forget.membership.min_k", len(members)
    roles: Any = {"audited": {"form": Outcome({key: auc(members, others)})}}
    if retrained is not None:
        roles["reference"] = {"form": Outcome({key: auc(retrained[:count], retrained[count:])})}
    before: Any = {"audited": {"forget.nll": figure(*[1.0] * count)}}
    (one,) = find([audits()["membership"]], {"membership": roles}, before, BOOT)
    return one


def test_membership_stands_out_both_ways() -> None:
    low, high = [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]
    under, over, none = attacked(high, low), attacked(low, high), attacked(low, low)
    assert under.weakest.beside == GUESSING
    assert (under.found, under.weakest.excess, over.found, over.weakest.excess) == (True, 0.5, True, -0.5)
    assert none.found is False and none.weakest.excess == 0
    alike = attacked(high, low, [*high, *low])  # so does the retrained model: the two sets differ
    assert alike.weakest.beside == RETRAINED and alike.found is False
    mixed = [0.2, 1.0, 0.4, 0.8, 0.5, 0.3, 0.9, 0.1, 0.6, 0.7]
    assert attacked(high, low, mixed).weakest.excess > 0.3


def test_p_values_are_adjusted_for_all_findings() -> None:
    mine = {KEY: HIGH, UNSEEN: LOW, "forget.probability": HIGH, "holdout.probability": LOW}
    before: Any = {"audited": {KEY: LOW, UNSEEN: LOW, "forget.probability": LOW, "holdout.probability": LOW}}
    roles: Any = {"audited": {"form": Outcome(mine)}}
    found = find([audits()["prefix"]], {"prefix": roles}, before, BOOT)
    assert [one.p_value for one in found] == pytest.approx([2 / 252, 2 / 252])


def test_nothing_lost_means_no_share() -> None:
    assert share_recovered([0.1], [0.0], BOOT) == (None, None)
    value, bounds = share_recovered([1.0, 0.0], [1.0, 1.0], BOOT)
    assert value == 0.5 and bounds == (0.0, 1.0)


def test_a_difference_of_means() -> None:
    value, (low, high) = difference_of_means([1.0, 0.0], [0.25], BOOT)
    assert value == 0.25 and low == -0.25 and high == 0.75
