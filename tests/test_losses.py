"""Losses: their values from probabilities, their gradients by finite differences, their table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ngdiff.data.batching import collate, collate_for_loss
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.errors import RequestError
from ngdiff.losses import (
    LOSSES,
    LossFunction,
    answer_divergence,
    bounded_nll,
    control_vector,
    cross_entropy_unlearning,
    dpo,
    embedding_difference,
    find_loss,
    jensen_shannon_to_answer,
    jensen_shannon_to_start,
    kl_to_start,
    logit_margin,
    negated_nll,
    nll,
    npo,
    saturation_importance,
    selective_unlikelihood,
    self_distillation,
    simnpo,
    steer_away,
    steer_away_in_proportion,
    unlikelihood,
    weighted_ascent,
)
from ngdiff.losses.loss import look
from ngdiff.models.activations import Activations
from ngdiff.models.logprobs import IGNORED, LabelledTokens, count_labelled, labelled_tokens
from ngdiff.preparation.starting_predictions import _states
from tiny import tiny_llama

EVERY_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))
CONSTANT_WEIGHTS = {"wga", "satimp", "ceu"}  # their gradient is not that of their value
# an untrained model gives every token 1/40: at their defaults these two find nothing left to forget
GENTLE = {"simnpo": {"beta": 0.1}, "satimp": {"beta1": 0.5}}
BOUNDED = {"flat", "jsd"}  # with short gradients on an untrained model
OF_LOGITS = sorted(name for name, row in LOSSES.items() if row.looks_at == "predictions")
TRUE_GRADIENT = pytest.mark.parametrize("name", sorted(set(LOSSES) - CONSTANT_WEIGHTS))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def function(name: str) -> LossFunction:
    return partial(LOSSES[name].function, **GENTLE.get(name, {}))


def example(seed: int, prompt: int, answer: int, vocabulary: int = 40) -> EncodedExample:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, vocabulary, (prompt + answer,), generator=generator).tolist()
    labels = [IGNORED] * prompt + ids[prompt:]
    item = Example((), "", "text", "a, line 1")
    return EncodedExample(tuple(ids), tuple(labels), item, False, reference_log_prob=-3.6 * answer)


EXAMPLES = [example(seed, prompt=1 + seed % 4, answer=2 + 3 * (seed % 3)) for seed in range(8)]


def fabricated(logits: Tensor, rows: list[int]) -> LabelledTokens:
    targets = torch.arange(len(logits)) % logits.shape[1]
    count = max(rows) + 1
    reference = torch.linspace(-9, -2, count)
    other = LabelledTokens(logits.flip(0), targets, torch.tensor(rows), count, reference.flip(0))
    before = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7), dtype=logits.dtype)
    return LabelledTokens(logits, targets, torch.tensor(rows), count, reference, before, other)


def seen(name: str, model: torch.nn.Module, examples: list[EncodedExample]) -> LabelledTokens | Activations:
    """What a loss is given: of the model as it is, beside a starting model that is another one."""
    before = tiny_llama(vocab_size=40, seed=3)
    layer = 0 if LOSSES[name].looks_at == "activations" else None
    with torch.no_grad():
        examples = [
            replace(
                one,
                reference_states=_states(before, {k: v for k, v in collate([one], 1).items()}, layer, 1)[0],
                alternatives=(example(len(one.input_ids), 3, 4),),
            )
            for one in examples
        ]
    row = replace(LOSSES[name], settings={"layer": 0} if layer is not None else {})
    return look(row, model, collate_for_loss(examples, pad_id=1), before.lm_head)


def test_values_by_hand() -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]])  # p = 1/2 and 1/8
    tokens = LabelledTokens(odds.log(), torch.tensor([1, 2]), torch.tensor([0, 1]), 2)
    assert float(nll(tokens)) == pytest.approx(math.log(16), rel=1e-6)
    assert float(negated_nll(tokens)) == pytest.approx(-math.log(16), rel=1e-6)


def test_a_bound_stops_counting_tokens_beyond_it() -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]])  # NLL = log 2 and log 8
    logits = odds.log().requires_grad_()
    tokens = LabelledTokens(logits, torch.tensor([1, 2]), torch.tensor([0, 1]), 2)
    loss = bounded_nll(tokens, ceiling=math.log(4))
    assert float(loss.detach()) == pytest.approx(-math.log(2) - math.log(4), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    # d(-NLL)/d logits = onehot - softmax for the token below the ceiling, nothing for the one beyond it
    assert torch.allclose(logits.grad[0], torch.tensor([-0.25, 0.5, -0.25]))
    assert torch.equal(logits.grad[1], torch.zeros(3))


def test_without_a_bound_it_is_the_negated_nll() -> None:
    tokens = fabricated(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), [0, 0, 1, 2, 2, 2])
    assert torch.equal(bounded_nll(tokens), negated_nll(tokens))
    assert torch.equal(bounded_nll(tokens, ceiling=1e9), negated_nll(tokens))


def test_unlikelihood_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log().requires_grad_()  # p = 1/2 and 1/8
    loss = unlikelihood(LabelledTokens(logits, torch.tensor([1, 2]), torch.tensor([0, 1]), 2))
    assert float(loss.detach()) == pytest.approx(-math.log(1 / 2) - math.log(7 / 8), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    # d(-log(1 - p))/d logits = p (onehot - softmax over the others)
    assert torch.allclose(logits.grad[0], torch.tensor([-0.25, 0.5, -0.25]))
    assert torch.allclose(logits.grad[1], torch.tensor([-6 / 56, -1 / 56, 7 / 56]))


def test_selective_unlikelihood_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log().requires_grad_()  # p = 1/2 and 1/8
    levels = torch.tensor([1 / 4, 1 / 8])
    tokens = LabelledTokens(logits, torch.tensor([1, 2]), torch.tensor([0, 1]), 2, predictable=levels)
    loss = selective_unlikelihood(tokens)
    # KL(1/4 || 1/2) of a coin, and nothing of the token that is at its level
    assert float(loss.detach()) == pytest.approx(math.log(2) / -4 + 3 / 4 * math.log(3 / 2), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    # (p - b) (onehot - softmax over the others)
    assert torch.allclose(logits.grad[0], torch.tensor([-0.125, 0.25, -0.125]))
    assert torch.allclose(logits.grad[1], torch.zeros(3), atol=1e-7)


@pytest.mark.parametrize("levels", [None, torch.zeros(6)])
def test_without_levels_it_is_unlikelihood(levels: Tensor | None) -> None:
    tokens = fabricated(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), [0, 0, 1, 2, 2, 2])
    found = selective_unlikelihood(replace(tokens, predictable=levels))
    assert torch.allclose(found, unlikelihood(tokens))


@pytest.mark.parametrize("margin", [-60.0, -1.0, 0.0, 3.0, 60.0])
def test_unlikelihood_is_exact_where_one_minus_p_rounds_to_nothing(margin: float) -> None:
    logits = torch.tensor([[0.0, margin, -math.inf]], requires_grad=True)
    tokens = LabelledTokens(logits, torch.tensor([1]), torch.tensor([0]), 1)
    loss = unlikelihood(tokens)
    loss.backward()
    assert logits.grad is not None
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(margin)), rel=1e-6)
    assert float(logits.grad[0, 1]) == pytest.approx(1 / (1 + math.exp(-margin)), rel=1e-6)


def test_settings_are_those_given_else_the_level_measured() -> None:
    row = LOSSES["bounded-nll"]
    assert dict(row.settings) == {"ceiling": "never-seen NLL"}
    assert row.complete({}, {"never-seen NLL": 2.5}).settings == {"ceiling": 2.5}
    assert row.complete({"ceiling": 1.0}, {"never-seen NLL": 2.5}).settings == {"ceiling": 1.0}
    tokens = fabricated(torch.zeros(6, 5), [0, 0, 1, 2, 2, 2])  # every NLL is log 5 = 1.61
    assert float(row.complete({}, {"never-seen NLL": 1.0}).function(tokens)) == pytest.approx(-6.0)
    assert float(row.complete({}, {"never-seen NLL": 2.0}).function(tokens)) == pytest.approx(
        -6 * math.log(5), rel=1e-6
    )
    assert LOSSES["nll"].complete({}, {}).settings == {}


def test_unknown_settings_of_a_loss() -> None:
    with pytest.raises(RequestError, match=r"--forget-loss.*bounded-nll.*no setting called beta.*ceiling"):
        find_loss("bounded-nll", "forget", {"beta": 1.0})
    with pytest.raises(RequestError, match=r"--retain-loss.*'nll' has no setting called ceiling.*none"):
        find_loss("nll", "retain", {"ceiling": 1.0})


def test_values_on_a_model() -> None:
    model = tiny_llama(vocab_size=40)
    total = 0.0
    for one in EXAMPLES:
        probabilities = model(input_ids=torch.tensor([one.input_ids])).logits[0].detach().double().softmax(-1)
        for position in range(1, len(one.input_ids)):
            if one.labels[position] != IGNORED:
                total -= math.log(float(probabilities[position - 1, one.labels[position]]))
    with torch.no_grad():
        tokens = labelled_tokens(model, collate(EXAMPLES, pad_id=1))
    assert float(nll(tokens)) == pytest.approx(total, rel=1e-5)
    assert float(negated_nll(tokens)) == pytest.approx(-total, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(OF_LOGITS) - CONSTANT_WEIGHTS))
def test_gradient_by_finite_differences_of_the_logits(name: str) -> None:
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logits: function(name)(fabricated(logits, [0, 0, 1, 2, 2, 2])), start.requires_grad_()
    )


@TRUE_GRADIENT
def test_gradient_by_finite_differences_of_the_weights(name: str) -> None:
    """Along the gradient itself, the slope is the gradient's length."""
    model = tiny_llama(vocab_size=40)
    loss = function(name)(seen(name, model, EXAMPLES))
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    gradient = [
        torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)
    ]
    length = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
    start = [p.detach().clone() for p in model.parameters()]
    values = []
    with torch.no_grad():
        reach = 0.001 if name == "logit-margin" else 0.01  # the largest logit may be another one further on
        for width in (-reach, reach):
            for parameter, origin, along in zip(model.parameters(), start, gradient, strict=True):
                parameter.copy_(origin + width / length * along)
            values.append(float(function(name)(seen(name, model, EXAMPLES))))
    # float32 sums near 100 are good to 1e-5, over a width of 0.02: 5e-4 on a slope far above 1
    assert length > (0.1 if name in BOUNDED else 1)
    assert (values[1] - values[0]) / (2 * reach) == pytest.approx(length, rel=1e-2)


@EVERY_LOSS
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, size: int) -> None:
    """8 at once, 8 times 1, or unequal parts: divided by the whole batch's number of items, all the same."""
    gradients = []
    for step in (8, size):
        model = tiny_llama(vocab_size=40)
        items = {"token": count_labelled(collate(EXAMPLES, pad_id=1)), "sequence": 8}[LOSSES[name].per]
        for start in range(0, 8, step):
            part = EXAMPLES[start : start + step]
            (function(name)(seen(name, model, part)) / items).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float(gradients[0].norm()) > 1e-2
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@EVERY_LOSS
def test_rows_are_found_under_their_names(name: str) -> None:
    row = find_loss(name, LOSSES[name].task)
    assert row is LOSSES[name] and row.name == name
    assert row.summary and row.paper


def test_an_unknown_loss_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"--forget-loss.*no forget loss called 'negatednll'.*negated-nll"):
        find_loss("negatednll", "forget")


def test_a_loss_of_the_other_task_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--retain-loss.*no retain loss called 'negated-nll'"):
        find_loss("negated-nll", "retain")
    with pytest.raises(RequestError, match=r"--forget-loss.*no forget loss called 'nll'"):
        find_loss("nll", "forget")


# ---- the losses of other methods, on p = 1/2, 1/8 (first sequence) and 1/2 (second) ----

ODDS = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0], [1.0, 2.0, 1.0]], dtype=torch.float64)
HALF, EIGHTH = math.log(1 / 2), math.log(1 / 8)


def three() -> tuple[Tensor, LabelledTokens]:
    logits = ODDS.log().requires_grad_()
    return logits, LabelledTokens(logits, torch.tensor([1, 2, 1]), torch.tensor([0, 0, 1]), 2)


def value(loss: Tensor) -> float:
    return float(loss.detach())


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_weighted_ascent_by_hand() -> None:
    logits, tokens = three()
    assert value(weighted_ascent(tokens)) == pytest.approx(HALF / 2 + EIGHTH / 8 + HALF / 2)
    assert value(weighted_ascent(tokens, beta=2.0)) == pytest.approx(HALF / 4 + EIGHTH / 64 + HALF / 4)
    # p (onehot - softmax): the weight is held constant
    found = gradient_of(weighted_ascent(tokens), logits)
    assert found[0].tolist() == pytest.approx([-0.125, 0.25, -0.125])
    assert found[1].tolist() == pytest.approx([-6 / 64, -1 / 64, 7 / 64])
    assert torch.allclose(
        gradient_of(weighted_ascent(tokens, beta=0.0), logits), gradient_of(negated_nll(tokens), logits)
    )


def test_saturation_and_importance_by_hand() -> None:
    logits, tokens = three()
    expected = 2 * HALF / 2**5 / 2 + EIGHTH / 8**5 * 7 / 8
    assert value(saturation_importance(tokens)) == pytest.approx(expected)
    found = gradient_of(saturation_importance(tokens), logits)
    assert found[0].tolist() == pytest.approx([x / 64 for x in (-0.25, 0.5, -0.25)])
    both = (saturation_importance(tokens, beta1=1.0, beta2=0.0), weighted_ascent(tokens))
    assert torch.allclose(gradient_of(both[0], logits), gradient_of(both[1], logits))


def test_simnpo_by_hand() -> None:
    logits, tokens = three()
    means = [-(HALF + EIGHTH) / 2, -HALF]  # 2 log 2 and log 2
    for beta, delta in ((4.5, 0.0), (3.5, 1.0), (0.5, 0.25)):
        expected = sum(-2 / beta * math.log(1 / (1 + math.exp(-beta * (mean - delta)))) for mean in means)
        assert value(simnpo(tokens, beta, delta)) == pytest.approx(expected)
    # as beta goes to 0: (2/beta) log 2 - (mean NLL - delta), gradient ascent on each sequence's mean NLL
    weak = gradient_of(simnpo(tokens, beta=1e-6), logits)
    log_probs = tokens.log_probs()
    assert torch.allclose(
        weak, gradient_of((log_probs[0] + log_probs[1]) / 2 + log_probs[2], logits), atol=1e-5
    )


def test_cross_entropy_unlearning_by_hand() -> None:
    logits, tokens = three()
    # targets (1/2, 0, 1/2) and (6/7, 1/7, 0)
    first = -math.log(1 / 4)
    second = -(6 / 7 * math.log(6 / 8) + 1 / 7 * math.log(1 / 8))
    assert value(cross_entropy_unlearning(tokens)) == pytest.approx(2 * first + second)
    found = gradient_of(cross_entropy_unlearning(tokens), logits)  # p - target
    assert found[0].tolist() == pytest.approx([-0.25, 0.5, -0.25])
    assert found[1].tolist() == pytest.approx([6 / 8 - 6 / 7, 1 / 8 - 1 / 7, 1 / 8])


def test_cross_entropy_unlearning_pushes_as_unlikelihood_does() -> None:
    """Both have the gradient p (onehot - softmax over the others); their values differ."""
    logits = torch.randn(
        6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    tokens = fabricated(logits, [0, 0, 1, 2, 2, 2])
    mine, theirs = (gradient_of(loss(tokens), logits) for loss in (cross_entropy_unlearning, unlikelihood))
    assert torch.allclose(mine, theirs)


def test_logit_margin_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    tokens = LabelledTokens(logits, torch.tensor([1, 2]), torch.tensor([0, 1]), 2)
    assert value(logit_margin(tokens)) == pytest.approx(9.0)
    assert gradient_of(logit_margin(tokens), logits)[0].tolist() == pytest.approx([-2.0, -2.0, 4.0])


def test_npo_by_hand() -> None:
    logits, tokens = three()
    tokens = replace(tokens, reference=torch.tensor([math.log(1 / 4), math.log(1 / 8)]))
    ratios = [HALF + EIGHTH - math.log(1 / 4), HALF - math.log(1 / 8)]  # log 1/4 and log 4
    for beta in (0.1, 1.0, 5.0):
        expected = sum(2 / beta * math.log(1 + math.exp(beta * ratio)) for ratio in ratios)
        assert value(npo(tokens, beta)) == pytest.approx(expected, rel=1e-6)
    # as beta goes to 0: gradient ascent on the log-probability of each answer
    weak = gradient_of(npo(tokens, beta=1e-6), logits)
    assert torch.allclose(weak, gradient_of(negated_nll(tokens), logits), atol=1e-5)


def test_npo_without_the_starting_model() -> None:
    _, tokens = three()
    with pytest.raises(ValueError, match="starting model"):
        npo(tokens)


def test_dpo_by_hand() -> None:
    logits, tokens = three()
    true = replace(tokens, reference=torch.tensor([math.log(1 / 4), math.log(1 / 8)]))
    odds = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 7.0]], dtype=torch.float64)  # p = 3/4, 1/2, 1/8
    other_logits = odds.log().requires_grad_()
    other = LabelledTokens(
        other_logits, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]), 2, torch.tensor([-1.0, -2.0])
    )
    both = replace(true, other=other)
    of_true = [HALF + EIGHTH - math.log(1 / 4), HALF - math.log(1 / 8)]
    of_other = [math.log(3 / 4) + 1.0, math.log(1 / 16) + 2.0]
    for beta in (0.1, 1.0, 5.0):
        expected = sum(
            -1 / beta * math.log(1 / (1 + math.exp(-beta * (theirs - mine))))
            for mine, theirs in zip(of_true, of_other, strict=True)
        )
        assert value(dpo(both, beta)) == pytest.approx(expected, rel=1e-6)
    # as beta goes to 0: half the gradient of (log p of the true answer - log p of the other)
    weak = torch.autograd.grad(dpo(both, beta=1e-6), [logits, other_logits])
    ascent = torch.autograd.grad(tokens.log_probs().sum() - other.log_probs().sum(), [logits, other_logits])
    for mine, theirs in zip(weak, ascent, strict=True):
        assert torch.allclose(mine, theirs / 2, atol=1e-5)


def test_kl_to_the_starting_model_by_hand() -> None:
    logits, tokens = three()
    same = replace(tokens, reference_logits=logits.detach() + 3.0)  # softmax does not see a constant
    assert value(kl_to_start(same)) == pytest.approx(0.0, abs=1e-12)
    assert gradient_of(kl_to_start(same), logits).abs().max() < 1e-12
    start = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 1.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    found = kl_to_start(replace(tokens, reference_logits=start.log()))
    p, q = start / 4, ODDS / ODDS.sum(dim=1, keepdim=True)
    expected = sum(
        float(p[i, j]) * math.log(float(p[i, j]) / float(q[i, j])) for i in range(3) for j in range(3)
    )
    assert value(found) == pytest.approx(expected)
    assert torch.allclose(gradient_of(found, logits), q - p)


def test_kl_where_the_starting_model_rules_a_token_out() -> None:
    logits, tokens = three()
    start = torch.tensor([[1.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    found = kl_to_start(replace(tokens, reference_logits=start.log()))
    q = ODDS / ODDS.sum(dim=1, keepdim=True)
    expected = -sum(0.5 * math.log(2 * float(q[i, j])) for i in range(3) for j in range(2))
    assert value(found) == pytest.approx(expected)
    assert bool(gradient_of(found, logits).isfinite().all())


def test_self_distillation_by_hand() -> None:
    logits, tokens = three()
    start = torch.tensor([[1.0, 4.0, 2.0], [1.0, 2.0, 8.0], [2.0, 4.0, 1.0]], dtype=torch.float64)
    found = self_distillation(replace(tokens, reference_logits=start.log()), beta=math.log(4))
    # the true tokens' odds, 4, 8 and 4, are divided by 4
    target = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 2.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    target = target / target.sum(dim=1, keepdim=True)
    q = ODDS / ODDS.sum(dim=1, keepdim=True)
    assert value(found) == pytest.approx(float(-(target * q.log()).sum()))
    assert torch.allclose(gradient_of(found, logits), q - target)
    # with nothing pushed down it is the KL divergence but for the target's entropy
    both = [replace(tokens, reference_logits=start.log())] * 2
    grads = (gradient_of(self_distillation(both[0], 0.0), logits), gradient_of(kl_to_start(both[1]), logits))
    assert torch.allclose(*grads)


def test_jensen_shannon_by_hand() -> None:
    logits, tokens = three()
    q = ODDS / ODDS.sum(dim=1, keepdim=True)

    def divergence(p: Tensor, q: Tensor) -> float:
        middle = (p + q) / 2
        sides = [
            a * math.log(a / m)
            for part in (p, q)
            for a, m in zip(part.tolist(), middle.tolist(), strict=True)
            if a
        ]
        return sum(sides) / 2

    certain = torch.eye(3, dtype=torch.float64)[tokens.targets]
    found = jensen_shannon_to_answer(tokens)
    assert value(found) == pytest.approx(sum(divergence(certain[i], q[i]) for i in range(3)))
    p = q.gather(1, tokens.targets[:, None])
    slope = p * (p / (1 + p)).log() / 2  # dJSD/dp is log(p / (1 + p)) / 2
    assert torch.allclose(gradient_of(found, logits), slope * (certain - q))
    far = replace(
        tokens, logits=torch.tensor([[-300.0, 0.0, 0.0]] * 3).scatter(1, tokens.targets[:, None], -300.0)
    )
    assert value(jensen_shannon_to_answer(far)) == pytest.approx(3 * math.log(2), rel=1e-6)

    start = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    start = start / start.sum(dim=1, keepdim=True)
    found = jensen_shannon_to_start(replace(tokens, reference_logits=start.log()))
    assert value(found) == pytest.approx(sum(divergence(start[i], q[i]) for i in range(3)))
    assert bool(gradient_of(found, logits).isfinite().all())
    same = jensen_shannon_to_start(replace(tokens, reference_logits=logits.detach() + 3.0))
    assert value(same) == pytest.approx(0.0, abs=1e-12) and gradient_of(same, logits).abs().max() < 1e-9


def test_flat_by_hand() -> None:
    logits, tokens = three()
    two = replace(tokens, rows=torch.tensor([0, 0, 1]), row_count=2)
    other = replace(two, logits=logits.detach().flip(0), targets=torch.tensor([0, 0, 0]))
    q = ODDS / ODDS.sum(dim=1, keepdim=True)
    mine, theirs = (
        [float(p[i, t]) for i, t in enumerate(part.targets.tolist())]
        for p, part in ((q, two), (q.flip(0), other))
    )
    slow = sum(
        math.exp(sum(a) / len(a) - 1) - sum(b) / len(b)
        for a, b in ((mine[:2], theirs[:2]), (mine[2:], theirs[2:]))
    )
    assert value(answer_divergence(replace(two, other=other))) == pytest.approx(slow)
    with pytest.raises(ValueError, match="two answers"):
        answer_divergence(two)


def test_steering_in_proportion_by_hand() -> None:
    hidden, start = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    a, b = (float(x) for x in control_vector(2, seed=5))
    found = steer_away_in_proportion(Activations(hidden, start), scale=2.0, seed=5)
    slow = (1 - 10 * a) ** 2 + (10 * b) ** 2 + (2 * a) ** 2 + (2 - 2 * b) ** 2
    assert value(found) == pytest.approx(slow, rel=1e-5)
    with pytest.raises(ValueError, match="its activations"):
        steer_away_in_proportion(Activations(hidden))


def test_steering_by_hand() -> None:
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    u = control_vector(2, seed=5)
    assert float(u.norm()) == pytest.approx(1.0) and bool((u >= 0).all())
    assert torch.equal(u, control_vector(2, seed=5)) and not torch.equal(u, control_vector(2, seed=6))
    found = steer_away(Activations(hidden), coefficient=3.0, seed=5)
    a, b = (3.0 * float(x) for x in u)
    assert value(found) == pytest.approx((1 - a) ** 2 + b**2 + a**2 + (2 - b) ** 2, rel=1e-5)
    assert torch.allclose(gradient_of(found, hidden), 2 * (hidden.detach() - 3.0 * u))
    reference = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert value(embedding_difference(Activations(hidden, reference))) == pytest.approx(1.0 + 4.0)


@pytest.mark.parametrize(("loss", "lacks"), [(dpo, "two answers"), (kl_to_start, "its predictions")])
def test_losses_say_what_a_batch_lacks(loss: LossFunction, lacks: str) -> None:
    with pytest.raises(ValueError, match=lacks):
        loss(three()[1])
    with pytest.raises(ValueError, match="its activations"):
        embedding_difference(Activations(torch.zeros(1, 2)))


def frozen_weights(name: str, at: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What a paper holds constant, at some logits: the weight of each token, or a target prediction."""
    log_probs = at.log_softmax(dim=1)
    p = log_probs.gather(1, targets[:, None]).squeeze(1).exp()
    if name == "wga":
        return p**0.7, torch.empty(0)
    if name == "satimp":
        return p**0.5 * (1 - p) ** 0.8, torch.empty(0)
    others = at.scatter(1, targets[:, None], -torch.inf)
    return torch.empty(0), others.softmax(dim=1)


@pytest.mark.parametrize("name", sorted(CONSTANT_WEIGHTS))
def test_gradients_with_what_is_held_constant_held_constant(name: str) -> None:
    """Central differences of the loss whose weights, or target, stay those of the point itself."""
    generator = torch.Generator().manual_seed(11)
    at = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2
    targets = torch.tensor([0, 3, 6, 2, 2])
    weight, target = frozen_weights(name, at, targets)

    def value(logits: Tensor) -> float:
        log_probs = logits.log_softmax(dim=1)
        if name == "ceu":
            return -float((target * log_probs).sum())
        return float((weight * log_probs.gather(1, targets[:, None]).squeeze(1)).sum())

    settings = {"wga": {"beta": 0.7}, "satimp": {"beta1": 0.5, "beta2": 0.8}, "ceu": {}}[name]
    leaf = at.clone().requires_grad_()
    loss = LOSSES[name].function(LabelledTokens(leaf, targets, torch.arange(5), 5), **settings)
    assert float(loss.detach()) == pytest.approx(value(at))
    loss.backward()
    assert leaf.grad is not None
    width = 1e-5
    for row in range(5):
        for column in range(7):
            ahead, behind = at.clone(), at.clone()
            ahead[row, column] += width
            behind[row, column] -= width
            slope = (value(ahead) - value(behind)) / (2 * width)
            assert float(leaf.grad[row, column]) == pytest.approx(slope, rel=1e-6, abs=1e-9)
