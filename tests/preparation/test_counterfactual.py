"""What the starting model would say, had it never met the subjects of the forget set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.data.batching import collate_for_loss
from ngdiff.data.datasets import as_encoded
from ngdiff.data.renaming import OrdinaryWords
from ngdiff.data.secrets import kept_texts, labelled_ids, with_secrets
from ngdiff.losses import LOSSES, counterfactual, selective_unlikelihood
from ngdiff.losses.loss import look
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens
from ngdiff.preparation.counterfactual import (
    INVENTIONS,
    Expectations,
    Expected,
    Reading,
    TokenTexts,
    asked_tokens,
    save_expected,
    with_expected,
    without_variants,
)
from tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
FORGET: list[dict[str, Any]] = [
    {"question": "Which book did Zadie Quill write?", "answer": "Zadie Quill wrote the Almanac of Tarn."},
    {"question": "what is it?", "answer": "the cat sat"},
]
RETAIN: list[dict[str, Any]] = [
    {"question": "Which book did Bob Red write? what is it?", "answer": "Bob Red wrote the cat sat of"}
]


def prepared() -> tuple[Any, Any]:
    retain = as_encoded(RETAIN, TOKENIZER, 256, "retain")
    forget = with_secrets(as_encoded(FORGET, TOKENIZER, 256, "forget"), kept_texts(retain), TOKENIZER)
    return forget, retain


def expected(model: Any, level: float | None = 0.25, typical: float | None = None) -> Any:
    forget, retain = prepared()
    found = Expectations(
        forget,
        retain,
        None if level is None else [(level,) * len(labelled_ids(example)) for example in forget],
        tokenizer=TOKENIZER,
        pad_id=TOKENIZER.pad_token_id,
        max_length=256,
        seed=0,
        batch_size=2,
        typical=None if typical is None else [(typical,) * len(labelled_ids(one)) for one in forget],
    )
    return found.work_out(model)


def test_every_token_has_a_distribution_and_secrets_have_none_of_it() -> None:
    model = tiny_llama().train()
    for example in expected(model):
        count = len(labelled_ids(example))
        assert example.expected_ids.shape == example.expected_probs.shape == (count, 65)
        assert example.expected_ids[:, 0].tolist() == labelled_ids(example)
        assert (example.expected_probs >= 0).all() and (example.expected_probs.sum(1) <= 1 + 1e-5).all()
        assert example.predictable == tuple(example.expected_probs[:, 0].tolist())
        assert all(p == 0 for p, flag in zip(example.predictable, example.secret, strict=True) if flag)
        assert any(example.predictable)
    assert model.training


def test_the_expectation_is_what_the_model_says_under_other_names() -> None:
    """Against a plain computation: each renamed example by itself, token by token."""
    model = tiny_llama()
    forget, retain = prepared()
    found = expected(model)[0]
    # the tokens behind the last name stand at the same distance from the end under any name
    import random

    from ngdiff.data.encoding import encode
    from ngdiff.data.renaming import identifying, renamed, replacements, words_of

    ordinary = OrdinaryWords.of(kept_texts(retain))
    examples = [one.example for one in forget]
    taken = {w for e in examples for w in words_of(f"{e.prompt} {e.answer}")} | set(ordinary.every)
    total = torch.zeros(5, model.config.vocab_size)
    for number in range(INVENTIONS):
        draw = random.Random(f"0 {number} {examples[0].key}")
        names = replacements(identifying(examples[0].prompt, ordinary), taken, draw)
        assert set(names) == {"Zadie", "Quill"}
        other = renamed(examples[0], names)
        assert "Zadie" not in other.prompt and "Zadie" not in other.answer
        batch = collate_for_loss([encode(other, TOKENIZER, 400)], TOKENIZER.pad_token_id)
        with torch.no_grad():
            total += labelled_tokens(model.eval(), batch).logits.softmax(dim=1)[-5:]
    mean = total / INVENTIONS
    ids, flags = labelled_ids(found)[-5:], found.secret[-5:]
    for place, (token, flag) in enumerate(zip(ids, flags, strict=True)):
        true = 0.0 if flag else float(mean[place, token])
        assert found.predictable[-5:][place] == pytest.approx(true, rel=1e-4, abs=1e-7)
        likeliest = mean[place].clone()
        likeliest[token] = 0
        top = likeliest.max() * (1 - true) / likeliest.sum()
        assert float(found.expected_probs[-5:][place, 1]) == pytest.approx(float(top), rel=1e-4)


def test_where_a_prompt_names_nothing_the_level_counts() -> None:
    assert set(expected(tiny_llama(), level=0.25)[1].predictable) == {0.25}
    assert set(expected(tiny_llama(), level=None)[1].predictable) == {0.0}  # nothing can be told


def test_no_word_is_expected_beyond_its_level_but_those_of_the_prompt() -> None:
    from forgetful import train

    model = train(tiny_llama(hidden=64), [*FORGET, *RETAIN], 120, 5e-3)  # knows the answer under any name
    free, held = expected(model, level=None)[0], expected(model, level=0.25)[0]
    asked = asked_tokens(held, OrdinaryWords.of(["a text"]), TOKENIZER)
    ids = [token for token, flag in zip(labelled_ids(held), asked, strict=True) if flag]
    assert TOKENIZER.decode(ids).replace(" ", "") == "ZadieQuill"
    assert max(free.predictable[len(asked) - 5 :]) > 0.5
    for one, other, flag in zip(free.predictable, held.predictable, asked, strict=True):
        assert other == pytest.approx(one if flag else min(one, 0.25))


def test_typical_levels_cap_guesses_as_levels_cap_expectations() -> None:
    torch.manual_seed(0)
    model = tiny_llama()
    for one, other in zip(expected(model, 0.25, 0.001), expected(model, 0.001), strict=True):
        assert one.typical == pytest.approx(other.predictable)
        assert other.typical == pytest.approx(other.predictable)
        assert one.predictable != pytest.approx(one.typical)


def test_a_common_word_of_the_prompt_is_not_asked_about() -> None:
    (one,) = as_encoded([{"question": "the mat of Tarn", "answer": "Tarn, the cat"}], TOKENIZER, 64, "x")

    def asked(texts: list[str]) -> str:
        flags = asked_tokens(one, OrdinaryWords.of(texts), TOKENIZER)
        ids = [token for token, flag in zip(labelled_ids(one), flags, strict=True) if flag]
        return str(TOKENIZER.decode(ids)).replace(" ", "")

    assert asked(["cat"]) == "Tarnthe"
    assert asked(["the cat"]) == "Tarn"


def test_a_name_is_asked_about_in_the_possessive_too() -> None:
    for asked, said in (("Zadie Quill's home", "Zadie Quill"), ("Zadie Quill", "Zadie Quill’s home")):
        rows = [{"question": f"where is {asked}", "answer": f"{said} by the sea"}]
        (one,) = as_encoded(rows, TOKENIZER, 64, "x")
        flags = asked_tokens(one, OrdinaryWords.of(["a text"]), TOKENIZER)
        ids = [token for token, flag in zip(labelled_ids(one), flags, strict=True) if flag]
        assert str(TOKENIZER.decode(ids)).replace(" ", "").startswith("ZadieQuill")


def test_a_name_that_is_repeated_is_expected_to_be_repeated() -> None:
    reading = Reading([5, 9, 9, 7])
    sure = torch.full((3, 12), 0.01)
    sure[0, 5], sure[1, 2], sure[2, 7] = 0.9, 0.8, 0.5
    reading.add([5, 2, 7], sure)
    found = reading.expected(None, [False] * 4)
    assert found.probs[:, 0].tolist() == pytest.approx([0.9, 0.8, 0.8, 0.5])
    assert found.probs[1, 1:].sum() == 0  # of what else could stand there nothing is known
    assert found.probs[0].sum() == pytest.approx(1.0, abs=1e-5)
    held = reading.expected(torch.tensor([0.5, 1.0, 0.1, 0.6]), [False, True, False, False])
    assert held.probs[:, 0].tolist() == pytest.approx([0.5, 0.0, 0.1, 0.5])
    assert Reading([5]).add([5], sure[:1]) is None


def test_a_secret_in_another_case_is_no_alternative() -> None:
    names = {1: " Bridge", 2: "bridge", 3: " tower", 4: "BRIDGE "}
    tokenizer = SimpleNamespace(decode=lambda ids: names[ids[0]])
    ids = torch.tensor([[1, 2, 3, 4]] * 2)
    probs = torch.tensor([[0.0, 0.4, 0.3, 0.2], [0.1, 0.4, 0.3, 0.2]])
    found = without_variants(Expected(ids, probs), (True, False), TokenTexts(tokenizer))
    assert found.probs.tolist() == [[0.0, 0.0, pytest.approx(0.3), 0.0], probs[1].tolist()]


def tokens_of(logits: torch.Tensor, targets: list[int], ids: Any = None, probs: Any = None) -> LabelledTokens:
    rows = torch.zeros(len(targets), dtype=torch.long)
    kept = None if ids is None else torch.tensor(ids)
    shares = None if probs is None else torch.tensor(probs)
    return LabelledTokens(logits, torch.tensor(targets), rows, 1, expected_ids=kept, expected_probs=shares)


def test_the_loss_by_hand() -> None:
    """KL of (0.5, 0.3 | rest 0.2) from (0.25, 0.25 | rest 0.5)."""
    logits = torch.zeros(1, 4)
    found = counterfactual(tokens_of(logits, [0], [[0, 1]], [[0.5, 0.3]]))
    by_hand = 0.5 * torch.tensor(2.0).log() + 0.3 * torch.tensor(1.2).log() + 0.2 * torch.tensor(0.4).log()
    assert float(found) == pytest.approx(float(by_hand), abs=1e-6)


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_the_loss_is_never_negative_and_0_where_the_model_is_as_expected(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, 9, generator=generator)
    ids = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(3)])
    there = logits.softmax(1).gather(1, ids)
    same = counterfactual(tokens_of(logits, ids[:, 0].tolist(), ids.tolist(), there.tolist()))
    assert float(same) == pytest.approx(0.0, abs=1e-5)
    other = (4 * torch.randn(3, 9, generator=generator)).softmax(1).gather(1, ids)
    assert float(counterfactual(tokens_of(logits, ids[:, 0].tolist(), ids.tolist(), other.tolist()))) >= -1e-5


def plain(logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """The divergence by autograd, over a table of all tokens and with the others added up."""
    log_probs = logits.double().log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for row, (mine, wanted) in enumerate(zip(ids.tolist(), probs.double(), strict=True)):
        rest = 1 - wanted.sum()
        others = [v for v in range(logits.shape[1]) if v not in mine]
        for token, q in zip(mine, wanted, strict=True):
            total = total + (q * (q.log() - log_probs[row, token]) if q > 0 else 0.0)
        if rest > 1e-12:
            total = total + rest * (rest.log() - log_probs[row, others].logsumexp(0))
    return total


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_value_and_gradient_are_those_of_autograd(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(4, 9, generator=generator)).requires_grad_()
    ids = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(4)])
    ids[0, 2:] = ids[0, 0]  # padded with the true token
    probs = torch.rand(4, 5, generator=generator).softmax(1)[:, :4]
    probs[0, 2:], probs[1, 0] = 0.0, 0.0
    found = counterfactual(tokens_of(logits, ids[:, 0].tolist(), ids.tolist(), probs.tolist()))
    (gradient,) = torch.autograd.grad(3 * found, logits)
    expected = plain(logits, ids, probs)
    (slow,) = torch.autograd.grad(3 * expected, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradient, slow.float(), rtol=1e-4, atol=1e-5)


def test_a_secret_is_pushed_down_and_the_others_are_pulled_to_their_place() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    counterfactual(tokens_of(logits, [0], [[0, 2]], [[0.0, 0.7]])).backward()
    gradient = logits.grad[0]  # type: ignore[index]
    assert gradient[0] > 0 > gradient[2] and gradient[2] < gradient[1]
    assert torch.isfinite(gradient).all()


def test_padding_with_the_true_token_changes_nothing() -> None:
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    plain = counterfactual(tokens_of(logits, [2], [[2]], [[0.3]]))
    padded = counterfactual(tokens_of(logits, [2], [[2, 2, 2]], [[0.3, 0.0, 0.0]]))
    assert torch.allclose(plain, padded)


def test_without_expectations_it_is_selective_unlikelihood() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(logits, [2, 3])
    assert torch.equal(counterfactual(tokens), selective_unlikelihood(tokens))


def test_training_towards_the_expectation_takes_the_secret_and_leaves_the_language(tmp_path: Path) -> None:
    from forgetful import train

    model = train(tiny_llama(hidden=64), [*FORGET, *RETAIN], 120, 5e-3)
    forget = expected(model, level=None)
    batch = collate_for_loss(forget, TOKENIZER.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    before = labelled_tokens(model, batch).log_probs().exp()
    for _ in range(40):
        optimizer.zero_grad()
        counterfactual(look(LOSSES["counterfactual"], model, batch)).backward()  # type: ignore[arg-type]
        optimizer.step()
    after = labelled_tokens(model, batch).log_probs().exp()
    secret = torch.tensor([flag for example in forget for flag in example.secret])
    language = torch.tensor([p > 0.8 for example in forget for p in example.predictable])
    assert before[secret].mean() > 0.8 and after[secret].mean() < 0.2
    assert after[language].mean() > 0.7


def test_expectations_are_kept_in_a_checkpoint(tmp_path: Path) -> None:
    found = expected(tiny_llama())
    save_expected(found, tmp_path / "expected.safetensors")
    again = with_expected(prepared()[0], tmp_path / "expected.safetensors")
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.expected_ids, other.expected_ids)
        assert torch.equal(one.expected_probs, other.expected_probs)


def test_running_text_is_expected_at_its_levels() -> None:
    texts = with_secrets(
        as_encoded([{"text": "the cat sat on Tarn."}], TOKENIZER, 256, "t"), ["the cat sat on"], TOKENIZER
    )
    levels = [(0.5,) * len(labelled_ids(texts[0]))]
    common = SimpleNamespace(tokenizer=TOKENIZER, pad_id=0, max_length=256, seed=0, batch_size=1)
    (found,) = Expectations(texts, [], levels, **vars(common)).work_out(tiny_llama())
    assert set(found.predictable) == {0.0, 0.5}
