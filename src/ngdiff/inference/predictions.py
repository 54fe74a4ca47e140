"""logits at the nodes that predict labelled tokens -> likelihood of each token, and the most probable one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_AT_ONCE = 64
"""Rows of logits worked on at a time, so that what is in between stays small."""

_BLOCK = 256


@dataclass(frozen=True)
class Predictions:
    """What a model says of labelled tokens, some of which follow the same text.

    Args:
        logits: scores over the vocabulary at each node of the text.
        nodes: the node that predicts each token.
        targets: the labelled token ids.
        rows: which sequence of the batch each token belongs to, in reading order.
        row_count: number of sequences in the batch.
    """

    logits: Float[Tensor, "nodes vocab"]
    nodes: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    rows: Int[Tensor, " tokens"]
    row_count: int

    def log_probs(self) -> Float[Tensor, " tokens"]:
        """Return log p(token | text before it), in nats, computed in float32."""
        highest, above = [], []
        for start in range(0, len(self.logits), _AT_ONCE):
            part = self.logits[start : start + _AT_ONCE].float()
            top = part.amax(dim=1, keepdim=True)
            highest.append(top.squeeze(1))
            above.append((part - top).exp_().sum(dim=1).log())
        if not highest:
            return self.logits.new_zeros(0, dtype=torch.float32)
        chosen = self.logits[self.nodes, self.targets].float()
        # The highest is taken off first: where the token is the sure one, nothing then cancels.
        return (chosen - torch.cat(highest)[self.nodes]) - torch.cat(above)[self.nodes]

    def likeliest(self) -> Int[Tensor, " tokens"]:
        """Return the most probable token in the place of each."""
        return likeliest(self.logits)[self.nodes]


def likeliest(logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """Return the argmax of each row, the first of equals, as ``torch.argmax`` does.

    On a CPU that takes ten times as long as a maximum, so the block with the maximum is found first.
    """
    vocab = logits.shape[1]
    whole = vocab - vocab % _BLOCK
    if logits.device.type != "cpu" or whole == 0:
        return logits.argmax(dim=1)
    tops = [logits[:, :whole].view(len(logits), -1, _BLOCK).amax(dim=2)]
    if whole < vocab:
        tops.append(logits[:, whole:].amax(dim=1, keepdim=True))
    start = torch.cat(tops, dim=1).argmax(dim=1, keepdim=True) * _BLOCK
    block = (start + torch.arange(_BLOCK)).clamp(max=vocab - 1)
    return start.squeeze(1) + logits.gather(1, block).argmax(dim=1)
