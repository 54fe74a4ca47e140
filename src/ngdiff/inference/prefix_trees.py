"""several answers to one prompt -> their tokens' likelihoods, every shared token run once.

TOFU asks of every question what the model makes of its answer, of one paraphrased and of five perturbed ones.
A chat prompt is about as long as an answer, and perturbed answers differ from one another in a few words: of
617 tokens in the seven sequences of a question of forget10, 260 are left when each common beginning is run
once, and 233 when what all prompts begin with (a template's system prompt) is run once for all.

The sequences of one prompt make a tree of tokens. It runs as one sequence in which each token sees its
ancestors only and has the position of its depth; it continues from the keys and values of the common
prefix. Models that cannot run that way, or give other likelihoods (those with a state instead of keys, or a
window), are run the plain way: some answers are first run both ways and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ngdiff.data.batching import collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.kv_cache import Prefix, cache_name, shared_prefix
from ngdiff.inference.predictions import Predictions
from ngdiff.models.logprobs import head_sees_only, labelled_tokens

_CLOSE = 1e-3
"""Nats by which a token's two likelihoods may differ (float32; in bf16 ``_CLOSE_BF16``)."""
_CLOSE_BF16 = 0.5

_CANNOT = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError)
"""What a model raises that does not take its tokens in this way."""


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
        start = _start(example)
        if start < 2:
            alone.append(row)
        else:
            together.setdefault(tuple(example.input_ids[: start - 1]), []).append(row)
    groups = [Group(tuple(rows), prompt) for prompt, rows in together.items() if len(rows) > 1]
    alone += [rows[0] for rows in together.values() if len(rows) == 1]
    return groups, sorted(alone)


def common_prefix(examples: Sequence[EncodedExample]) -> list[int]:
    """Return the tokens that all prompts begin with, where they are worth running once for all."""
    return shared_prefix([example.input_ids[: _start(example)] for example in examples])


def _start(example: EncodedExample) -> int:
    return next(place for place, label in enumerate(example.labels) if label >= 0)


@dataclass
class Agreement:
    """What comparisons of one model's two ways have found so far.

    Args:
        depths: in tokens, up to which they agree without and with a prefix that is run apart.
        refused: they do not, or the model cannot be run in this way.
    """

    depths: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    refused: bool = False


class PrefixTree:
    """The tokens of several sequences, each common beginning once, parents before children.

    Args:
        rows: of the examples, in the order of ``labels``.
        sequences: the examples themselves.
        skip: tokens at the beginning of all of them that are run elsewhere; none of them predicts a label.
    """

    def __init__(self, rows: Sequence[int], sequences: Sequence[EncodedExample], skip: int = 0) -> None:
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
            for depth, (token, label) in enumerate(pairs[skip:], skip):
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


Work = Callable[[], Predictions]


class PrefixTrees:
    """The sequences of one set of examples that share tokens, ready to run.

    Args:
        model: in eval mode; called without gradients.
        examples: all of them.
        groups: those that share a prompt.
        alone: rows of the rest; where there is a prefix they are trees of their own.
        pad_id: what to pad with.
        prefix: tokens that all prompts begin with.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[EncodedExample],
        groups: Sequence[Group],
        alone: list[int],
        pad_id: int,
        prefix: Sequence[int] = (),
    ) -> None:
        self.model, self.examples, self._pad_id = model, examples, pad_id
        self._prefix = Prefix(model, prefix)
        self.alone = [] if prefix else alone
        sets = [group.rows for group in groups] + [(row,) for row in alone if prefix]
        self._trees = sorted(map(self._tree, sets), key=lambda tree: -len(tree))
        self._device = next(model.parameters()).device

    @classmethod
    def of(
        cls,
        model: nn.Module,
        examples: Sequence[EncodedExample],
        pad_id: int,
        agreement: Agreement | None = None,
    ) -> PrefixTrees | None:
        """Return the trees of these examples, or ``None`` where nothing is shared or the model cannot.

        Args:
            model: in eval mode.
            examples: all of them.
            pad_id: what to pad with.
            agreement: what is known of the model's two ways; the comparison is left out up to a depth that
                it covers.
        """
        known = Agreement() if agreement is None else agreement
        groups, alone = group_by_prompt(examples)
        for prefix in dict.fromkeys((tuple(common_prefix(examples)), ())):
            if known.refused or not (groups or prefix):
                return None
            try:
                sharing = cls(model, examples, groups, alone, pad_id, prefix)
            except _CANNOT:
                continue  # without the prefix, then
            if sharing._agrees(known):
                return sharing
        return None

    def _tree(self, rows: Sequence[int]) -> PrefixTree:
        return PrefixTree(rows, [self.examples[row] for row in rows], len(self._prefix))

    def _agrees(self, known: Agreement) -> bool:
        """Run two answers of the deepest and of the shallowest tree both ways and compare."""
        by_depth = sorted(self._trees, key=lambda tree: -max(tree.depths))
        depth = max(by_depth[0].depths)
        apart = bool(self._prefix)
        if depth <= known.depths[apart]:
            return True
        ends = [by_depth[0], by_depth[-1]] if len(by_depth) > 1 else by_depth
        pairs = [self._tree(sorted(tree.rows, key=self._length)[-2:]) for tree in ends]
        rows = [self.examples[row] for pair in pairs for row in pair.rows]
        batch = {key: value.to(self._device) for key, value in collate(rows, self._pad_id).items()}
        plain = labelled_tokens(self.model, batch).log_probs()
        try:
            shared = self._run(pairs).log_probs()
        except _CANNOT:
            known.refused = not apart
            return False
        low = torch.is_autocast_enabled(self._device.type) or next(self.model.parameters()).element_size() < 4
        both = torch.stack([plain, shared])
        if not bool(both.isfinite().all()):
            return False  # the plain way names the item
        agrees = bool((plain - shared).abs().max() <= (_CLOSE_BF16 if low else _CLOSE))
        if agrees:
            known.depths[apart] = depth
        known.refused = not agrees and not apart
        return agrees

    def _length(self, row: int) -> int:
        return len(self.examples[row].input_ids)

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], Work]]:
        """Yield rows and what to call for their predictions, largest trees first.

        A batch, padding included, contains no more tokens than ``batch_size`` whole sequences would.
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

    def _batch(self, trees: Sequence[PrefixTree]) -> tuple[list[int], Work]:
        chosen = tuple(trees)
        return [row for tree in chosen for row in tree.rows], lambda: self._run(chosen)

    def _run(self, trees: Sequence[PrefixTree]) -> Predictions:
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
        settings: dict[str, Any] = {"use_cache": False}
        if self._prefix:
            nothing = torch.zeros(len(trees), dtype=torch.long, device=self._device)
            settings = {"use_cache": True, cache_name(self.model): self._prefix.cache(nothing)}
        with head_sees_only(self.model, heads.to(self._device)):
            output: Any = self.model(
                input_ids=ids.to(self._device),
                attention_mask=self._additive(seen),
                position_ids=positions.to(self._device),
                **settings,
            )
        return self._spread(output.logits.squeeze(0), heads, trees)

    def _additive(self, seen: Tensor) -> Float[Tensor, "trees 1 nodes keys"]:
        """Return 0 where a node sees another or the prefix, the type's lowest number elsewhere."""
        dtype = next(self.model.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return nn.functional.pad(mask, (len(self._prefix), 0)).unsqueeze(1).to(self._device)

    def _spread(self, logits: Tensor, heads: Tensor, trees: Sequence[PrefixTree]) -> Predictions:
        """Give each sequence the predictions of the nodes on its path."""
        place = heads.flatten().cumsum(0).sub(1).view_as(heads)
        paths = [(number, labels) for number, tree in enumerate(trees) for labels in tree.labels]
        chosen = [int(place[number, node]) for number, labels in paths for node, _ in labels]
        targets = [target for _, labels in paths for _, target in labels]
        rows = [row for row, (_, labels) in enumerate(paths) for _ in labels]
        nodes, target_ids, owners = (
            torch.tensor(part, device=self._device) for part in (chosen, targets, rows)
        )
        return Predictions(logits, nodes, target_ids, owners, len(paths))
