"""model and encoded examples -> the size of each one's gradient, without a backward pass for each.

One backward pass over a batch reaches the output of every layer; an example's share of a layer's gradient
needs no more than that and the layer's input. For a linear layer with inputs A (tokens, in) and output
gradients B (tokens, out) it is AᵀB, whose squared norm is the sum of (AAᵀ)∘(BBᵀ): two small products instead
of a large one, and no gradient is ever stored. Source: Goodfellow 2015, "Efficient per-example gradient
computations", arXiv 1510.01799, for sequences Li et al. 2022, arXiv 2110.05679, section 4. Embeddings tied
to the output head add a cross term. Layers of any other kind with few parameters (norms) are differentiated
one example at a time.

A model with a layer that none of this fits is run one example a backward pass, which is exact for any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

from ngdiff.data.batching import batches_by_length, collate
from ngdiff.data.encoding import EncodedExample
from ngdiff.inference.teacher_forced import Advance, AnswerScore, score_tokens
from ngdiff.models.logprobs import LabelledTokens, labelled_tokens, output_head

Norms = Float[Tensor, " rows"]

Measured = tuple[float, AnswerScore]
"""The norm of an example's gradient, and what the forward pass before it showed."""

_MOST_SMALL_PARAMETERS = 1 << 16


class Unsupported(Exception):
    """A layer's share of an example's gradient cannot be had from one batched backward pass."""


def gradient_norms(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    pad_id: int,
    batch_size: int = 4,
    advance: Advance | None = None,
) -> list[float]:
    """Return the norms alone; see :func:`norms_and_scores`."""
    found = norms_and_scores(model, examples, pad_id=pad_id, batch_size=batch_size, advance=advance)
    return [norm for norm, _ in found]


def norms_and_scores(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    pad_id: int,
    batch_size: int = 4,
    advance: Advance | None = None,
) -> list[Measured]:
    """Return the mean over all parameters, trainable or not, of each one's gradient's L2 norm.

    The gradient is that of the mean NLL of an example's answer, its last token, the end of the turn, left out
    where there are several. Mean of the norms rather than norm of the whole, and without that token, as
    OpenUnlearning does, so that figures compare; the attack is of Wang et al. 2024, arXiv 2402.17012.

    The forward pass shows how well the model knows the answer, so that is returned as well, with z-scores.
    The model is left with the gradients, hooks and mode it had.

    Args:
        model: a causal language model.
        examples: encoded examples.
        pad_id: what to pad with; any id will do.
        batch_size: sequences a pass, where the model's layers allow for it.
        advance: called with the number of examples done.
    """
    was_training = model.training
    model.eval()
    try:
        try:
            return _batched(model, examples, pad_id, batch_size, advance)
        except Unsupported:
            return _one_by_one(model, examples, pad_id, advance)
    finally:
        model.train(was_training)


@contextmanager
def _requires_grad(model: nn.Module, value: bool) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(value)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _mean_nlls(tokens: LabelledTokens) -> Tensor:
    """Return each row's mean NLL, its last token left out where there are several."""
    rows = tokens.rows
    several = torch.bincount(rows, minlength=tokens.row_count) > 1
    last = rows != torch.cat([rows[1:], rows.new_full((1,), -1)])
    zeros = torch.zeros(tokens.row_count, device=tokens.targets.device)
    counted = (~(last & several[rows])).to(zeros.dtype)
    return zeros.index_add(0, rows, -tokens.log_probs() * counted) / zeros.index_add(0, rows, counted)


def _scores(tokens: LabelledTokens) -> list[AnswerScore]:
    with torch.no_grad():
        return score_tokens(tokens, [True] * tokens.row_count)


def _one_by_one(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, advance: Advance | None
) -> list[Measured]:
    device = next(model.parameters()).device
    measured = []
    with _requires_grad(model, True), torch.enable_grad():
        parameters = list(model.parameters())
        for example in examples:
            batch = {key: value.to(device) for key, value in collate([example], pad_id).items()}
            tokens = labelled_tokens(model, batch)
            found = torch.autograd.grad(_mean_nlls(tokens).sum(), parameters, allow_unused=True)
            norms = [float(g.float().square().sum().double()) ** 0.5 for g in found if g is not None]
            measured.append((sum(norms) / len(norms), _scores(tokens)[0]))
            if advance is not None:
                advance(1)
    return measured


def _batched(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    pad_id: int,
    batch_size: int,
    advance: Advance | None,
) -> list[Measured]:
    device = next(model.parameters()).device
    measured: dict[int, Measured] = {}
    with _requires_grad(model, False), torch.enable_grad():
        for rows, batch in batches_by_length(examples, batch_size, pad_id):
            # padded: the norms of an example are read off the rows that each layer sees
            on_device = {key: value.to(device) for key, value in batch.items() if key != "real"}
            with _Watch(model, on_device) as watch:
                tokens = labelled_tokens(model, on_device)
                _mean_nlls(tokens).sum().backward()  # type: ignore[no-untyped-call]
                norms = watch.mean_norms()
            for row, norm, score in zip(rows, norms.tolist(), _scores(tokens), strict=True):
                measured[row] = norm, score
            if advance is not None:
                advance(len(rows))
    return [measured[row] for row in range(len(examples))]


class _Watch:
    """Sees each layer's input and the gradient of its output, and gathers the squared norms they imply.

    Args:
        model: all of whose parameters are frozen, so that the backward pass computes no gradient of theirs.
        batch: one batch.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.rows = batch["input_ids"].shape[0]
        self.squares: list[Norms] = []  # of one parameter each
        self.seen: set[nn.Module] = set()
        self.embedded: Tensor | None = None  # gradient of the embedding's output
        self.head: tuple[Tensor, Tensor] | None = None
        self.head_squares: Norms | None = None
        self._head, self._embedding = output_head(model), _embedding(model)
        self._tied = self._head.weight is self._embedding.weight
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        owners = [m for m in self.model.modules() if any(True for _ in m.parameters(recurse=False))]
        _check_sharing(owners, {self._head, self._embedding} if self._tied else set())
        for module in owners:
            self._handles.append(module.register_forward_hook(self._hook(module)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module in self.seen:
                raise Unsupported(f"{type(module).__name__} runs twice in one pass")
            if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise Unsupported(f"{type(module).__name__} is not a function of one tensor")
            self.seen.add(module)
            if module is self._embedding and not output.requires_grad:
                output.requires_grad_(True)  # where the backward pass ends
            share = self._share(module, args[0].detach())
            if not output.requires_grad:
                raise Unsupported(f"{type(module).__name__} depends on no token of the examples")
            output.register_hook(share)  # type: ignore[no-untyped-call]

        return hook

    def _share(self, module: nn.Module, inputs: Tensor) -> Callable[[Tensor], None]:
        """Return what to call with the gradient of the layer's output."""
        if module is self._head:
            return lambda gradient: self._keep_head(module, inputs[0], gradient[0])
        if inputs.shape[0] != self.rows:
            raise Unsupported(f"{type(module).__name__} mixes examples")
        if isinstance(module, nn.Embedding):
            if module is self._embedding:
                return self._keep_embedded
            table = module
            return lambda gradient: self._add([_embedding_squares(inputs, _kept(table, inputs, gradient))])
        if inputs.shape[:2] != self.batch["input_ids"].shape:
            raise Unsupported(f"{type(module).__name__} sees no sequences")
        if isinstance(module, (nn.Linear, Conv1D)):
            bias = module.bias is not None
            return lambda gradient: self._add(_linear_squares(inputs, gradient, bias))
        if sum(p.numel() for p in module.parameters(recurse=False)) > _MOST_SMALL_PARAMETERS:
            raise Unsupported(f"{type(module).__name__} is of an unknown kind")
        if next(module.children(), None) is not None:
            raise Unsupported(f"{type(module).__name__} has parts and parameters of its own")
        return lambda gradient: self._add(_small_squares(module, inputs, gradient))

    def _add(self, squares: Sequence[Norms]) -> None:
        self.squares += [each.double() for each in squares]

    def _keep_embedded(self, gradient: Tensor) -> None:
        self.embedded = _kept(self._embedding, self.batch["input_ids"], gradient)

    def _keep_head(self, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        """Split the head's tokens, which come in one row, by example."""
        self.head = inputs.float(), gradient.detach().float()
        owner = self._token_rows()
        has_bias = getattr(module, "bias", None) is not None
        found = []
        for row in range(self.rows):
            mine = (owner == row).nonzero().squeeze(1)
            squares = _linear_squares(self.head[0][mine][None], self.head[1][mine][None], has_bias)
            found.append(torch.cat(squares))
        self.head_squares, *bias = torch.stack(found, dim=1).double()
        self._add(bias)

    def _token_rows(self) -> Tensor:
        labelled = self.batch["labels"][:, 1:] >= 0
        return labelled.nonzero(as_tuple=True)[0]

    def mean_norms(self) -> Norms:
        """Return the mean over parameters of the norms, once the backward pass is through."""
        if self.embedded is None or self.head is None or self.head_squares is None:
            raise Unsupported("the embedding or the head was not reached")
        ids = self.batch["input_ids"]
        embedding = _embedding_squares(ids, self.embedded).double()
        if self._tied:  # one parameter with the gradients of both
            self._add([embedding + self.head_squares + 2 * self._cross_term(ids).double()])
        else:
            self._add([embedding, self.head_squares])
        return torch.stack(self.squares).clamp(min=0).sqrt().mean(dim=0)

    def _cross_term(self, ids: Tensor) -> Norms:
        """Return <gradient as an embedding, gradient as a head> of the shared matrix.

        The embedding adds e_s to the row of token s, and the head adds b_t[v] h_t to every row v, so that it
        is the sum over s and t of b_t[id_s] <e_s, h_t>.
        """
        assert self.embedded is not None and self.head is not None
        hidden, gradient = self.head
        owner, found = self._token_rows(), []
        for row in range(self.rows):
            mine = (owner == row).nonzero().squeeze(1)
            chosen = gradient[mine].index_select(1, ids[row])  # (labelled, length)
            found.append((chosen * (hidden[mine] @ self.embedded[row].T)).sum())
        return torch.stack(found)


def _embedding(model: nn.Module) -> nn.Embedding:
    find = getattr(getattr(model, "module", model), "get_input_embeddings", None)
    found = find() if callable(find) else None
    if not isinstance(found, nn.Embedding):
        raise Unsupported("the model has no plain embedding")
    return found


def _check_sharing(owners: Sequence[nn.Module], tied: set[nn.Module]) -> None:
    seen: set[int] = set()
    for module in owners:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen and module not in tied:
                raise Unsupported(f"{type(module).__name__} shares parameters with another layer")
            seen.add(id(parameter))


def _linear_squares(
    inputs: Float[Tensor, "rows length in"], gradient: Float[Tensor, "rows length out"], bias: bool
) -> list[Norms]:
    """Return |AᵀB|² of each row, by whichever products are smaller, and the bias's, where there is one."""
    a, b = inputs.float(), gradient.detach().float()
    length, size = a.shape[1], a.shape[2] * b.shape[2]
    if length * (a.shape[2] + b.shape[2]) < size:
        squares = ((a @ a.mT) * (b @ b.mT)).sum(dim=(1, 2))
    else:
        squares = (a.mT @ b).square().sum(dim=(1, 2))
    return [squares.clamp(min=0), *([b.sum(dim=1).square().sum(dim=1)] if bias else [])]


def _kept(table: nn.Embedding, ids: Tensor, gradient: Tensor) -> Tensor:
    """Leave out the table's padding token, whose row gets no gradient in PyTorch, at any position."""
    found = gradient.detach().float()
    if table.padding_idx is None:
        return found
    return found * (ids != table.padding_idx).unsqueeze(-1)


def _embedding_squares(ids: Tensor, gradient: Tensor) -> Norms:
    """Return the squared norm of what each row adds to the table: tokens that repeat add up."""
    g = gradient.detach().float()
    same = (ids[:, :, None] == ids[:, None, :]).float()
    return ((g @ g.mT) * same).sum(dim=(1, 2)).clamp(min=0)


def _small_squares(module: nn.Module, inputs: Tensor, gradient: Tensor) -> Sequence[Norms]:
    """Differentiate a small layer one example at a time, all at once; the squared norms by parameter."""
    own = {name: p.detach() for name, p in module.named_parameters(recurse=False)}

    def of_one(x: Tensor, g: Tensor) -> Tensor:
        _, pull, *_ = vjp(lambda parameters: functional_call(module, parameters, (x,)), own)
        (found,) = pull(g)
        return torch.stack([value.float().square().sum() for value in found.values()])

    handles = dict(module._forward_hooks)
    module._forward_hooks.clear()  # ours must not see this call
    try:
        with torch.no_grad():
            squares: Tensor = vmap(of_one)(inputs, gradient.detach())
            return squares.unbind(dim=1)
    finally:
        module._forward_hooks.update(handles)
