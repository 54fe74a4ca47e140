"""Log-probabilities of labelled tokens, against the model run on each sequence alone, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ngdiff.data.batching import Batch, collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.models.logprobs import IGNORED, LabelledTokens, count_labelled, labelled_tokens, output_head
from tiny import tiny_llama

EOS = 1


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=40).eval()


def example(prompt: Sequence[int], answer: Sequence[int]) -> EncodedExample:
    ids = (*prompt, *answer)
    labels = (*[IGNORED] * len(prompt), *answer)
    return EncodedExample(ids, labels, Example((), "", "text", "a, line 1"), False)


# prompts hold end tokens, as chat templates write them; the last is labelled throughout, as texts are
EXAMPLES = [
    example([5, 6, EOS, 7], [8, 9, 10, EOS]),
    example([5, EOS], [11, EOS]),
    example([12, 13, 14, EOS, 15, 16, EOS, 17], [18, 19, 20, 21, 22, EOS]),
    example([], [23, 24, 25]),
]


def slow(model: LlamaForCausalLM, one: EncodedExample) -> tuple[list[Tensor], list[bool]]:
    """Log-probability of each labelled token of one unpadded sequence, and whether it is the argmax."""
    logits = model(input_ids=torch.tensor([one.input_ids])).logits[0]
    values, correct = [], []
    for position in range(1, len(one.input_ids)):
        token = one.labels[position]
        if token != IGNORED:
            before = logits[position - 1].double()
            values.append(torch.log_softmax(before, dim=0)[token])
            correct.append(int(before.argmax()) == token)
    return values, correct


@pytest.mark.parametrize("pad_id", [EOS, 3])
@pytest.mark.parametrize("chosen", [[0], [1, 2], [0, 1, 2, 3], [3, 2, 1, 0]])
def test_as_each_sequence_alone(model: LlamaForCausalLM, pad_id: int, chosen: list[int]) -> None:
    examples = [EXAMPLES[i] for i in chosen]
    with torch.no_grad():
        tokens = labelled_tokens(model, collate(examples, pad_id))
        expected = [slow(model, one) for one in examples]
    log_probs, correct = tokens.log_probs(), tokens.correct()
    torch.testing.assert_close(
        log_probs.double(), torch.stack([v for values, _ in expected for v in values]), rtol=1e-5, atol=1e-5
    )
    assert correct.tolist() == [right for _, rights in expected for right in rights]
    labelled = [[token for token in one.labels[1:] if token != IGNORED] for one in examples]
    assert tokens.targets.tolist() == [token for row in labelled for token in row]
    assert tokens.rows.tolist() == [row for row, mine in enumerate(labelled) for _ in mine]
    assert tokens.row_count == len(examples)
    assert tokens.logits.shape == (len(log_probs), 40)


def test_gradient_is_that_of_the_full_logits() -> None:
    fast, full = tiny_llama(vocab_size=40), tiny_llama(vocab_size=40)
    labelled_tokens(fast, collate(EXAMPLES, EOS)).log_probs().sum().backward()
    for one in EXAMPLES:
        for value in slow(full, one)[0]:
            value.backward(retain_graph=True)
    for (name, ours), theirs in zip(fast.named_parameters(), full.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert float(theirs.grad.abs().max()) > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_only_labelled_positions_reach_the_head(model: LlamaForCausalLM) -> None:
    seen = []
    handle = model.lm_head.register_forward_hook(
        lambda _, args, output: seen.append((args[0].shape, output.shape))
    )
    try:
        batch = collate(EXAMPLES, EOS)
        tokens = labelled_tokens(model, batch)
    finally:
        handle.remove()
    count = 4 + 2 + 6 + 2  # the first token of a text has nothing to predict it from
    assert seen == [((1, count, 32), (1, count, 40))]
    assert len(tokens.targets) == count_labelled(batch) == count


def test_the_head_is_left_as_it_was(model: LlamaForCausalLM) -> None:
    ids = torch.tensor([EXAMPLES[0].input_ids])
    before = model(input_ids=ids).logits
    labelled_tokens(model, collate(EXAMPLES, EOS))
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model(input_ids=ids).logits, before)


def test_the_head_is_left_as_it_was_after_an_exception(model: LlamaForCausalLM) -> None:
    batch = collate(EXAMPLES, EOS)
    batch["input_ids"][0, 0] = 999  # no such token
    with pytest.raises(IndexError):
        labelled_tokens(model, batch)
    assert not model.lm_head._forward_pre_hooks


def test_a_scaled_head_keeps_its_scale(model: LlamaForCausalLM) -> None:
    """What a model does to its logits behind the head stays in."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, **inputs: object) -> object:
            output = self.inner(**inputs)
            output.logits = output.logits * 0.5
            return output

    batch = collate(EXAMPLES, EOS)
    torch.testing.assert_close(
        labelled_tokens(Scaled(), batch).logits, labelled_tokens(model, batch).logits * 0.5
    )


def test_a_wrapped_model_is_unwrapped_for_its_head_only(model: LlamaForCausalLM) -> None:
    class Wrapper(nn.Module):
        """Keeps the model where DistributedDataParallel does."""

        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, **inputs: object) -> object:
            return self.module(**inputs)

    batch = collate(EXAMPLES, EOS)
    assert output_head(Wrapper()) is model.lm_head
    torch.testing.assert_close(labelled_tokens(Wrapper(), batch).logits, labelled_tokens(model, batch).logits)


def test_a_model_without_head_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(TypeError, match="Linear has no output head"):
        labelled_tokens(nn.Linear(2, 2), collate(EXAMPLES, EOS))
    with pytest.raises(TypeError, match="LlamaModel has no output head"):
        labelled_tokens(model.model, collate(EXAMPLES, EOS))


def test_log_probs_by_hand() -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]])
    tokens = LabelledTokens(odds.log(), torch.tensor([1, 2]), torch.tensor([0, 0]), 1)
    torch.testing.assert_close(tokens.log_probs().exp(), torch.tensor([0.5, 0.125]))
    assert tokens.correct().tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ([[IGNORED, 4, 5], [IGNORED, IGNORED, 6]], 3),
        ([[4, 5, 6]], 2),  # the first token cannot be predicted
        ([[4, IGNORED, IGNORED]], 0),
        ([[IGNORED, 0, EOS]], 2),  # ids 0 and of the end token are labels like any other
    ],
)
def test_count_labelled(labels: list[list[int]], count: int) -> None:
    batch: Batch = {"labels": torch.tensor(labels)}
    assert count_labelled(batch) == count
