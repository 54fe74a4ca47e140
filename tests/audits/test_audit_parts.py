"""What the audits measure, against values by hand and against slow ways."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import secretive
from commandline import write_jsonl
from forgetful import examples
from ngdiff.audits import worst_case
from ngdiff.audits.audit import prepare
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.audits.findings import flipped, holm, permuted, ranks_apart
from ngdiff.audits.fluency import _under_target as under_target
from ngdiff.audits.fluency import broken, repetition
from ngdiff.audits.layers import depth
from ngdiff.audits.membership import confidence, likelihood_ratios, places, s_mia
from ngdiff.audits.sampling import KeyFacts
from ngdiff.audits.subject import Context, Subject
from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode, encode_all, encode_prompt
from ngdiff.evaluation.statistics import auc
from ngdiff.evaluation.suites.measures import with_answer, with_question
from ngdiff.inference.sampled_answers import best_of, sampled_answers
from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.models.activations import layer_states, patched_tokens, row_means, through_lens
from ngdiff.models.loading import load_tokenizer, resolve_model
from ngdiff.models.logprobs import labelled_tokens
from tiny import tiny_llama, tiny_tokenizer

# ---- chance ----


def test_p_values_by_counting() -> None:
    assert permuted([1.0, 2.0, 3.0], [0.0, 0.5, 0.0]) == 1 / 20  # the only of 20 ways that is so extreme
    assert permuted([0.0, 0.5, 0.0], [1.0, 2.0, 3.0]) == 1.0
    assert flipped([1.0, 2.0, 3.0]) == 1 / 8 and flipped([1.0, 2.0, 3.0], "two-sided") == 2 / 8
    assert permuted([1.0, 1.0], [1.0, 1.0]) == flipped([0.0, 0.0]) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([0.9, 0.8]) == [1.0, 1.0]


def test_two_aucs_by_counting() -> None:
    mine, theirs = [5.0, 6.0, 1.0, 2.0], [1.0, 5.0, 6.0, 2.0]  # two members, then two others

    def ranks(scores: list[float]) -> list[int]:
        return [sum(other <= score for other in scores) for score in scores]

    def apart(signs: Any) -> float:
        d = [sign * (a - b) for sign, a, b in zip(signs, ranks(mine), ranks(theirs), strict=True)]
        return (d[0] + d[1]) / 2 - (d[2] + d[3]) / 2

    seen = apart((1, 1, 1, 1))
    assert seen / 4 == auc(mine[:2], mine[2:]) - auc(theirs[:2], theirs[2:])
    ways = [abs(apart(signs)) >= abs(seen) - 1e-9 for signs in itertools.product((1, -1), repeat=4)]
    assert ranks_apart(mine, theirs, 2) == pytest.approx(sum(ways) / 16)


# ---- sampling ----


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    scores = [0.3, 0.0, 1.0, 0.3, 0.7]
    bests = [max(chosen) for chosen in itertools.combinations(scores, k)]
    assert best_of(scores, k) == pytest.approx(sum(bests) / len(bests), abs=1e-12)
    with pytest.raises(ValueError, match="needs 6"):
        best_of(scores, 6)


def test_samples_follow_the_models_distribution() -> None:
    model, tokenizer = tiny_llama().eval(), tiny_tokenizer()
    model.lm_head.weight.data *= 8  # else nearly uniform
    prompt = encode_prompt(secretive.FORGET_ROWS[0], tokenizer, 128)
    how: Any = {"max_new_tokens": 1, "at_once": 150, "seed": 4}
    state = torch.get_rng_state()
    drawn = sampled_answers(model, tokenizer, prompt, 600, **how)
    assert torch.equal(state, torch.get_rng_state()) and len(drawn) == 600
    assert drawn == sampled_answers(model, tokenizer, prompt, 600, **how)
    assert drawn != sampled_answers(model, tokenizer, prompt, 600, **(how | {"seed": 5}))
    with torch.no_grad():
        probs = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    expected: dict[str, float] = {}
    for token, p in enumerate(probs.tolist()):
        text = str(tokenizer.decode([token], skip_special_tokens=True)).strip()
        expected[text] = expected.get(text, 0.0) + p
    for text in sorted(expected, key=lambda one: -expected[one])[:5]:
        spread = math.sqrt(expected[text] * (1 - expected[text]) / 600)
        assert abs(drawn.count(text) / 600 - expected[text]) < 4 * spread


def test_key_facts_are_what_neither_question_nor_retain_set_has() -> None:
    (row,) = examples([{"question": "Where was Kalo born?", "answer": "Kalo was born in Zibu in 1931."}])
    facts = KeyFacts(examples([{"question": "Who?", "answer": "He was born in Oslo in 1950."}]))
    assert facts.of(row) == {"zibu", "31"}
    assert facts.share(row, "In zibu, I think") == 0.5 and facts.share(row, "Kalo was born in Oslo") == 0
    (plain,) = examples([{"question": "Is it?", "answer": "Yes he was born"}])
    assert facts.of(plain) == {"yes", "he", "was", "born"}


# ---- layers ----


def batch_of(rows: Any) -> dict[str, torch.Tensor]:
    return collate(encode_all(rows, tiny_tokenizer(), 128, "x"), pad_id=1)


def test_the_lens_at_the_last_layer_is_the_model_itself() -> None:
    model, rows = tiny_llama(layers=3).eval(), secretive.FORGET_ROWS[:3]
    with torch.no_grad():
        layers = through_lens(model, batch_of(rows))
        assert torch.allclose(layers[-1], labelled_tokens(model, batch_of(rows)).log_probs(), atol=1e-5)
        for place, row in enumerate(rows):  # one sequence at a time, by the library's own hidden states
            one = encode(row, tiny_tokenizer(), 128)
            hidden = model(input_ids=torch.tensor([one.input_ids]), output_hidden_states=True).hidden_states
            logits = model.lm_head(model.model.norm(hidden[1][0])).log_softmax(-1)
            at = [n for n in range(1, len(one.labels)) if one.labels[n] >= 0]
            slow = sum(float(logits[n - 1, one.labels[n]]) for n in at) / len(at)
            assert row_means(layers[0], batch_of(rows))[place] == pytest.approx(slow, abs=1e-5)


def test_foreign_states_are_put_where_the_answer_is_predicted() -> None:
    model, other, rows = (
        tiny_llama(layers=3).eval(),
        tiny_llama(layers=3, seed=1).eval(),
        secretive.FORGET_ROWS[:2],
    )
    batch = batch_of(rows)
    with torch.no_grad():
        whole = labelled_tokens(model, batch).log_probs()
        for layer, states in enumerate(layer_states(model, batch)):
            assert torch.allclose(patched_tokens(model, batch, layer, states).log_probs(), whole, atol=1e-5)
        foreign = layer_states(other, batch)
        last = patched_tokens(model, batch, 2, foreign[2]).log_probs()
        logits = model.lm_head(model.model.norm(foreign[2]))
        right = labelled_tokens(model, batch).targets
        assert torch.allclose(
            last, -torch.nn.functional.cross_entropy(logits, right, reduction="none"), atol=1e-5
        )
        first = patched_tokens(model, batch, 0, foreign[0]).log_probs()
        assert not torch.allclose(first, whole, atol=1e-3) and not torch.allclose(first, last, atol=1e-3)


def test_depth_by_hand() -> None:
    assert depth([1.0, 3.0, 0.05], [0.5, 3.0, 9.0]) == (0.5 + 3.0) / 4  # the last layer does not count
    assert depth([1.0, 1.0], [-2.0, 5.0]) == 0.5  # each share lies in [0, 1]
    assert depth([0.01, 0.0], [1.0, 1.0]) is None


# ---- fluency ----


def test_repetition_and_broken_words_by_hand() -> None:
    assert repetition("the the the the") == pytest.approx(2 / 3)
    assert repetition("a b a b a") == 0.5 and repetition("one two three") == repetition("word") == 0.0
    assert broken("The xqzt sat 42", {"the", "sat"}) == pytest.approx(1 / 3)
    assert broken("", {"a"}) == broken("?!", {"a"}) == 1.0 and broken("1931", {"a"}) == 0.0


# ---- membership ----


def test_likelihood_ratios_by_hand() -> None:
    assert confidence(AnswerScore(math.log(4), 1, 0, 0)) == pytest.approx(math.log(0.25 / 0.75))
    shadows = [([0.0, 2.0], [4.0]), ([2.0, 2.0], [4.0])]
    # means 1, 2, 4; squares 1, 1, 0, 0, 0, 0 over 3 degrees of freedom
    forget, holdout = likelihood_ratios(([3.0, 2.0], [3.0]), shadows)
    deviation = math.sqrt(2 / 3)
    assert forget == pytest.approx([2 / deviation, 0.0]) and holdout == pytest.approx([-1 / deviation])
    assert likelihood_ratios(([3.0], [3.0]), [([1.0], [2.0])]) == ([2.0], [1.0])


def test_the_place_between_retrained_and_target_keeps_its_direction() -> None:
    subject: Any = type("S", (), {"role": "audited"})()
    key = "forget.membership.min_k"
    for mine, place, near in ((0.9, 1.0, 0.5), (0.6, 0.0, 1.0), (0.45, -0.5, 0.75)):
        found = places({"audited": {key: mine}, "reference": {key: 0.6}, "target": {key: 0.9}}, subject)
        assert found[f"{key}.place"].value == pytest.approx(place)
        assert found[f"{key}.s_mia"].value == pytest.approx(near) == pytest.approx(s_mia(mine, 0.6))
    assert places({"audited": {key: 0.9}}, subject) == {}


# ---- worst case ----


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Context]:
    folder = tmp_path_factory.mktemp("worst")
    secretive.saved(tiny_llama(), folder / "model")
    for name in ("FORGET", "RETAIN"):
        write_jsonl(folder / f"{name}.jsonl", getattr(secretive, name)[:5])
    sources = [(str(folder / f"{name}.jsonl"),) for name in ("FORGET", "RETAIN")]
    request = AuditRequest(str(folder / "model"), folder / "a.json", *sources, cache=False, resamples=50)
    context = Context(request, prepare(request).data, torch.device("cpu"), nullcontext, "fp32", None)
    source = resolve_model(str(folder / "model"))
    return Subject("audited", source, load_tokenizer(source), context), context


def slow_nll(subject: Subject, row: Any) -> float:
    one = encode(row, subject.tokenizer, 512)
    with torch.no_grad():
        logits = subject.evaluator().model(input_ids=torch.tensor([one.input_ids])).logits[0].log_softmax(-1)
    return -sum(float(logits[n - 1, label]) for n, label in enumerate(one.labels) if label >= 0 and n)


def test_the_worst_of_all_wordings_is_the_greatest_of_each(worst: tuple[Subject, Context]) -> None:
    subject, context = worst
    figures = worst_case.run(subject, context)["worst of all wordings"].figures
    rows, ways = context.forget, worst_case.wordings(context)
    assert len(ways) == 12
    asked = {name: [way(row) for row in rows] for name, way in ways.items()}
    shots = asked["few-shot"][0].messages  # type: ignore[union-attr]
    assert [m.content for m in shots[:2]] == [m.content for m in context.data.sets["retain"][0].messages]
    assert [m.role for m in asked["system prompt 1"][0].messages] == ["system", "user", "assistant"]  # type: ignore[union-attr]
    texts = {repr(found[0]) for found in asked.values()}
    assert len(texts) == 12  # no two ask the same
    slow = []
    for place, row in enumerate(rows):
        tokens = sum(label >= 0 for label in encode(row, subject.tokenizer, 512).labels)
        slow.append(max(math.exp(-slow_nll(subject, found[place]) / tokens) for found in asked.values()))
    assert figures["forget.probability"].items == pytest.approx(slow, rel=1e-4)
    assert figures["forget.probability.worst_item"].value == pytest.approx(max(slow), rel=1e-4)
    mean, worst_mean = figures["forget.probability.mean"].value, figures["forget.probability"].value
    assert mean is not None and worst_mean is not None and mean < worst_mean


def test_options_are_asked_in_every_place(worst: tuple[Subject, Context]) -> None:
    subject, context = worst
    figures = worst_case.run(subject, context)["worst of all wordings"].figures
    rows = context.forget
    row, right = rows[1], rows[1].answer
    wrong = [rows[place].answer for place in (2, 3, 4)]
    shares = []
    for turn in range(4):
        listed = [right, *wrong][4 - turn :] + [right, *wrong][: 4 - turn]
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", listed, strict=True))
        question = f"{row.messages[-2].content}\n{lines}\nAnswer with the letter alone."
        odds = [math.exp(-slow_nll(subject, with_answer(with_question(row, question), x))) for x in "ABCD"]
        assert listed[turn] == right
        shares.append(odds[turn] / sum(odds))
    assert figures["forget.choice"].items[1] == pytest.approx(sum(shares) / 4, rel=1e-4)
    odds = []
    for text in (right, wrong[0]):
        asked = f"{row.messages[-2].content}\nProposed answer: {text}\nIs it correct? Answer yes or no."
        yes, no = (slow_nll(subject, with_answer(with_question(row, asked), word)) for word in ("Yes", "No"))
        odds.append(math.exp(no - yes))
    assert figures["forget.yes_no"].items[1] == pytest.approx(odds[0] / sum(odds), rel=1e-4)


def test_the_starting_model_judges_the_answers_and_never_the_audited_one(
    worst: tuple[Subject, Context], tmp_path: Path
) -> None:
    """Whoever stammers finds stammering probable, so the model that said it is no judge."""
    subject, context = worst
    source = resolve_model(str(secretive.saved(tiny_llama(seed=7), tmp_path / "target")))
    target = Subject("target", source, load_tokenizer(source), context)
    rows, said = context.forget, ["the the the the", " ", "in a town", "7", "the the"]
    context.subjects["target"] = target
    try:
        figures = {one.role: under_target(one, context, {"forget": said}) for one in (subject, target)}
    finally:
        del context.subjects["target"]
    slow = []
    for row, text in zip(rows, said, strict=True):
        answered = with_answer(row, text.strip() or ".")
        tokens = sum(label >= 0 for label in encode(answered, target.tokenizer, 512).labels)
        slow.append(slow_nll(target, answered) / tokens)
    for role, found in figures.items():
        assert found["forget.fluency_nll"].items == pytest.approx(slow, rel=1e-4), role


def test_wrong_options_of_the_row_come_first() -> None:
    rows = [replace(row, extra={"perturbed_answer": ["x", row.answer, "y"]}) for row in secretive.FORGET_ROWS]
    assert worst_case.options(rows, 0) == [rows[0].answer, "x", "y", rows[1].answer]
