"""Unlearning in a plain PyTorch loop: a gradient pair, a rule and GeN's learning rate; no Trainer.

Run it: ``python examples/plain_loop.py``. It makes a tiny random Llama on the spot and needs no downloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ngdiff.losses import LossFunction, negated_nll, nll
from ngdiff.models.logprobs import count_labelled, labelled_tokens
from ngdiff.steps.gen import GenRate
from ngdiff.steps.gradients import GradientPair
from ngdiff.steps.weighting import make_rule

Batch = dict[str, Tensor]  # input_ids, attention_mask and labels, each of shape (rows, length)
Batches = Sequence[Batch]  # the micro-batches of one optimizer step
Report = Callable[[int, float, float, float], object]
RATE = 0.01  # to begin with; a model of useful size needs about 1e-5


def backpropagate(model: nn.Module, batches: Batches, loss_of: LossFunction) -> float:
    """Add the gradient of the mean loss to ``parameter.grad``; the mean is over all micro-batches' tokens."""
    tokens = sum(count_labelled(batch) for batch in batches)
    mean = 0.0
    for batch in batches:
        loss = loss_of(labelled_tokens(model, batch)) / tokens
        loss.backward()
        mean += float(loss.detach())
    return mean


@torch.no_grad()
def retain_loss_now(model: nn.Module, batches: Batches) -> float:
    """Measure the mean retain loss at the present weights."""
    model.eval()
    total = sum(float(nll(labelled_tokens(model, batch))) for batch in batches)
    model.train()
    return total / sum(count_labelled(batch) for batch in batches)


def unlearn(
    model: nn.Module,
    forget_batches: Iterator[Batches],
    retain_batches: Iterator[Batches],
    probe_batches: Iterator[Batches],
    steps: int,
    report: Report = print,
) -> None:
    """Forget one set and keep another; each iterator yields what one optimizer step needs.

    Every tenth step the retain loss is measured at -1, 0 and +1 times the learning rate, on examples that the
    step itself did not use, and the rate moves towards the minimum of the parabola through the three.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    pair = GradientPair(model.parameters())
    rule = make_rule("ngdiff")
    rate = GenRate(optimizer, start=RATE)
    model.train()
    for step in range(1, steps + 1):
        pair.clear()
        with pair.task("forget"):
            forget_loss = backpropagate(model, next(forget_batches), negated_nll)
        with pair.task("retain"):
            retain_loss = backpropagate(model, next(retain_batches), nll)
        pair.combine(rule(pair.gramian()))
        rate.step(pair, partial(retain_loss_now, model, next(probe_batches)))
        report(step, forget_loss, retain_loss, optimizer.param_groups[0]["lr"])


def count(starts: range, stride: int) -> Batch:
    """Make sequences that count up (or down) from each start, modulo 64."""
    ids = torch.stack([(start + stride * torch.arange(12)) % 64 for start in starts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def main() -> None:
    """Teach a tiny model to keep counting up by 1 and to unlearn counting down by 3."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    config.num_attention_heads = config.num_key_value_heads = 4
    model = LlamaForCausalLM(config)
    forget = [count(range(0, 32), -3)]
    retain, probe = [count(range(0, 64, 2), 1)], [count(range(1, 64, 2), 1)]

    def report(step: int, forget_loss: float, retain_loss: float, rate: float) -> None:
        if step % 5 == 0:
            print(f"step {step}: forget {forget_loss:.2f}, retain {retain_loss:.2f}, rate {rate:.1e}")

    unlearn(model, repeat(forget), repeat(retain), repeat(probe), steps=30, report=report)


if __name__ == "__main__":
    main()
