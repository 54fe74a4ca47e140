"""several answers to one prompt -> their tokens' likelihoods, every shared token run once.

TOFU asks of every question what the model makes of its answer, of one paraphrased and of five perturbed ones.
A chat prompt is about as long as an answer, and perturbed answers differ from one another in a few words: of
616 tokens in the seven sequences of a question of forget10, 250 are left when each common beginning is run
once.

The sequences of one prompt make a tree of tokens. It runs as one sequence in which each token sees its
ancestors only and stands at the position of its depth. Models that cannot be run that way, or that give other
likelihoods (those with a state instead of keys, or a window), are run the plain way: some answers are always
done both ways first and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.logprobs import LabelledTokens, head_sees_only, labelled_tokens

_CLOSE = 1e-3
"""Nats by which a token's two likelihoods may differ (float32; in bf16 ``_CLOSE_BF16``)."""
_CLOSE_BF16 = 0.5


@dataclass(frozen=True)
class Group:
    """Answers to one prompt.

    Args:
        rows: of the examples.
        prompt: token ids that all of them begin with, up to the one before the last of the prompt.
    """

    rows: tuple[int, ...]
    prompt: tuple[int, ...]


def group_by_prompt(examples: Sequence[EncodedExample]) -> tuple[list[Group], list[int]]:
    """Return the groups of two or more with one prompt, and the rows that are in none."""
    together: dict[tuple[int, ...], list[int]] = {}
    alone = []
    for row, example in enumerate(examples):
        start = next(place for place, label in enumerate(example.labels) if label >= 0)
        if start < 2:
            alone.append(row)
        else:
            together.setdefault(tuple(example.input_ids[: start - 1]), []).append(row)
    groups = [Group(tuple(rows), prompt) for prompt, rows in together.items() if len(rows) > 1]
    alone += [rows[0] for rows in together.values() if len(rows) == 1]
    return groups, sorted(alone)


class PrefixTree:
    """The tokens of several sequences, each common beginning once, parents before children.

    Args:
        rows: of the examples, in the order of ``labels``.
        sequences: the examples themselves.
    """

    def __init__(self, rows: Sequence[int], sequences: Sequence[EncodedExample]) -> None:
        self.rows = tuple(rows)
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.labels: list[list[tuple[int, int]]] = []
        """For each sequence, the nodes that predict its labelled tokens, with these tokens."""
        children: dict[tuple[int, int], int] = {}
        for sequence in sequences:
            node, predicts = -1, []
            pairs = list(zip(sequence.input_ids, sequence.labels, strict=True))
            for depth, (token, label) in enumerate(pairs):
                if label >= 0 and node >= 0:
                    predicts.append((node, label))
                if depth == len(pairs) - 1:
                    break  # nothing comes after the last token, so it need not run
                key = (node, token)
                if key not in children:
                    children[key] = len(self.ids)
                    self.ids.append(token)
                    self.depths.append(depth)
                    self.parents.append(node)
                node = children[key]
            self.labels.append(predicts)

    def __len__(self) -> int:
        return len(self.ids)

    def seen(self) -> Tensor:
        """Return which nodes each node sees: itself and its ancestors; bool of shape (nodes, nodes)."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


class PrefixTrees:
    """The groups of one set of examples, ready to run.

    Args:
        model: in eval mode; called without gradients.
        examples: all of them.
        groups: those that share.
        alone: rows of the rest.
        pad_id: what to pad with.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[EncodedExample],
        groups: Sequence[Group],
        alone: list[int],
        pad_id: int,
    ) -> None:
        self.model, self.examples, self.alone, self._pad_id = model, examples, alone, pad_id
        self._trees = sorted((self._tree(group.rows) for group in groups), key=lambda tree: -len(tree))
        self._device = next(model.parameters()).device

    @classmethod
    def of(cls, model: nn.Module, examples: Sequence[EncodedExample], pad_id: int) -> PrefixTrees | None:
        """Return the trees of these examples, or ``None`` where nothing is shared or the model cannot."""
        groups, alone = group_by_prompt(examples)
        if not groups:
            return None
        sharing = cls(model, examples, groups, alone, pad_id)
        return sharing if sharing._agrees() else None

    def _tree(self, rows: Sequence[int]) -> PrefixTree:
        return PrefixTree(rows, [self.examples[row] for row in rows])

    def _agrees(self) -> bool:
        """Run two answers of the deepest and of the shallowest tree both ways and compare."""
        by_depth = sorted(self._trees, key=lambda tree: -max(tree.depths))
        ends = [by_depth[0], by_depth[-1]] if len(by_depth) > 1 else by_depth
        pairs = [self._tree(sorted(tree.rows, key=self._length)[-2:]) for tree in ends]
        rows = [self.examples[row] for pair in pairs for row in pair.rows]
        batch = {key: value.to(self._device) for key, value in collate(rows, self._pad_id).items()}
        plain = labelled_tokens(self.model, batch).log_probs()
        try:
            shared = self._run(pairs).log_probs()
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
            return False
        low = torch.is_autocast_enabled(self._device.type) or next(self.model.parameters()).element_size() < 4
        both = torch.stack([plain, shared])
        if not bool(both.isfinite().all()):
            return False  # the plain way names the item
        return bool((plain - shared).abs().max() <= (_CLOSE_BF16 if low else _CLOSE))

    def _length(self, row: int) -> int:
        return len(self.examples[row].input_ids)

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], Callable[[], LabelledTokens]]]:
        """Yield rows and what to call for their likelihoods, largest trees first.

        A batch, padding included, holds no more tokens than ``batch_size`` whole sequences would.
        """
        waiting: list[PrefixTree] = []
        room = 0
        for tree in self._trees:
            if waiting and len(waiting[0]) > room:
                yield self._batch(waiting)
                waiting = []
            if not waiting:
                room = batch_size * (max(tree.depths) + 1)
            waiting.append(tree)
            room -= len(waiting[0])
        if waiting:
            yield self._batch(waiting)

    def _batch(self, trees: Sequence[PrefixTree]) -> tuple[list[int], Callable[[], LabelledTokens]]:
        chosen = tuple(trees)
        return [row for tree in chosen for row in tree.rows], lambda: self._run(chosen)

    def _run(self, trees: Sequence[PrefixTree]) -> LabelledTokens:
        longest = max(map(len, trees))
        shape = (len(trees), longest)
        ids = torch.full(shape, self._pad_id, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself
        heads = torch.zeros(shape, dtype=torch.bool)
        for place, tree in enumerate(trees):
            size = len(tree)
            ids[place, :size] = torch.tensor(tree.ids)
            positions[place, :size] = torch.tensor(tree.depths)
            seen[place, :size, :size] = tree.seen()
            heads[place, [node for labels in tree.labels for node, _ in labels]] = True
        on_device = heads.to(self._device)
        with head_sees_only(self.model, on_device):
            output: Any = self.model(
                input_ids=ids.to(self._device),
                attention_mask=self._additive(seen),
                position_ids=positions.to(self._device),
                use_cache=False,
            )
        return self._spread(output.logits.squeeze(0), heads, trees)

    def _additive(self, seen: Tensor) -> Float[Tensor, "trees 1 nodes nodes"]:
        """Return 0 where a node sees another, the type's lowest number elsewhere."""
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return mask.unsqueeze(1).to(self._device)

    def _spread(self, logits: Tensor, heads: Tensor, trees: Sequence[PrefixTree]) -> LabelledTokens:
        """Give each sequence the predictions of the nodes on its path."""
        place = heads.flatten().cumsum(0).sub(1).view_as(heads)
        paths = [(number, labels) for number, tree in enumerate(trees) for labels in tree.labels]
        chosen = [int(place[number, node]) for number, labels in paths for node, _ in labels]
        targets = [target for _, labels in paths for _, target in labels]
        rows = [row for row, (_, labels) in enumerate(paths) for _ in labels]
        indices, target_ids, owners = (
            torch.tensor(part, device=self._device) for part in (chosen, targets, rows)
        )
        return LabelledTokens(logits.index_select(0, indices).float(), target_ids, owners, len(paths))
