"""one of several processes -> its share of the work, and the same figures and decisions on all.

With DDP every process holds all weights and, after the reducer, the same gradients. With FSDP2 parameters and
gradients are DTensors: each process holds a shard, and sums over parameters are completed over all processes.
Nothing here needs a Trainer; with a single process, everything is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Shard

from ngdiff.errors import Fault, RequestError, RunError

T = TypeVar("T")
_BUCKET = 2**25  # numbers that one all-reduce carries: 128 MiB in float32


# ---- which process this is ----


def process_count() -> int:
    """Return how many processes share the work; 1 where there is a single process."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Return whether this process writes and prints."""
    return process_rank() == 0


def is_first_process() -> bool:
    """Return whether this is the first of the processes that ``torchrun`` started, joined or not."""
    return int(os.environ.get("RANK", "0")) == 0


def my_share(order: Sequence[int]) -> list[int]:
    """Return every n-th row, so that each process has both long and short ones."""
    return list(order[process_rank() :: process_count()])


def gathered(work: Callable[[], dict[int, T]]) -> dict[int, T]:
    """Do this process's work, and return the results of all.

    An error in one process is raised in all: otherwise the others would wait forever.
    """
    if process_count() == 1:
        return work()
    outcome: tuple[dict[int, T] | None, Exception | None]
    try:
        outcome = (work(), None)
    except Exception as error:
        outcome = (None, error)
    outcomes: list[Any] = [None] * process_count()
    dist.all_gather_object(outcomes, outcome)
    if outcome[1] is not None:
        raise outcome[1]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return {row: value for results, _ in outcomes for row, value in results.items()}


# ---- tensors ----


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its storage; detached."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local()
    return tensor.detach() if tensor.requires_grad else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor; where it is sharded, every process must call this."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.full_tensor()


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter is sharded over several processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class Sums:
    """Sums over the parameters, completed over the processes that hold their shards.

    Replicated tensors (plain ones, and those of replicated dimensions of a mesh) count once.

    Args:
        parameters: all parameters of the sums, the same on every process, so that all take part in the same
            exchanges.
        count: number of sums.
    """

    def __init__(self, parameters: Sequence[Tensor], count: int) -> None:
        self._device = local(parameters[0]).device
        self._parts = {
            key: torch.zeros(count, dtype=torch.float64, device=self._device)
            for key in dict.fromkeys(spread(parameter) for parameter in parameters)
        }

    def add(self, parameter: Tensor, place: int, value: Tensor) -> None:
        """Add this process's part of one parameter to one sum."""
        self._parts[spread(parameter)][place] += value.to(self._device)

    def add_all(self, parameter: Tensor, values: Tensor) -> None:
        """Add this process's part of one parameter, or of several with the same layout, to all sums."""
        self._parts[spread(parameter)] += values.to(self._device)

    def total(self) -> Tensor:
        """Return the sums, float64 on the CPU, bitwise equal on all processes."""
        for key, part in self._parts.items():
            if key is not None:
                mesh, dims = key
                for dim in dims:
                    dist.all_reduce(part, group=mesh.get_group(dim))
        return same_everywhere(torch.stack(list(self._parts.values())).sum(dim=0)).cpu()


def spread(tensor: Tensor) -> tuple[Any, tuple[int, ...]] | None:
    """Return the mesh, and its dimensions, over which a tensor is sharded; None for a plain one."""
    if not isinstance(tensor, DTensor):
        return None
    dims = tuple(dim for dim, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    return tensor.device_mesh, dims


def check_reduced(tensors: Iterable[Tensor | None]) -> None:
    """Check that gradients have been reduced over the processes.

    Raises:
        ValueError: one of them is a partial sum.
    """
    for tensor in tensors:
        if isinstance(tensor, DTensor) and any(isinstance(part, Partial) for part in tensor.placements):
            raise ValueError("a gradient has not been reduced over the processes yet")


def same_everywhere(tensor: Tensor) -> Tensor:
    """Return the first process's tensor on all, since decisions need bitwise equal numbers."""
    if process_count() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if process_count() > 1:
        dist.all_reduce(tensor)
    return tensor


def add_up(tensors: Iterable[Tensor | None]) -> None:
    """Sum plain tensors over all processes, in place, many in one exchange; None is skipped."""
    if process_count() == 1:
        return
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is None:
            continue
        bucket = waiting.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(part.numel() for part in bucket) >= _BUCKET:
            _exchange(waiting.pop(tensor.dtype))
    for bucket in waiting.values():
        _exchange(bucket)


def _exchange(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))


# ---- models ----


def settle(model: nn.Module) -> None:
    """Release gathered weights that a forward pass without a backward pass leaves.

    FSDP2 keeps the last layers' weights gathered until the backward pass. Without one, the next forward pass
    would use these rather than the shards, which a probe or an optimizer may have changed meanwhile.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def looking(wrapped: nn.Module) -> Iterator[nn.Module]:
    """Yield the model to measure with, for forward passes without backward passes.

    That is the model without DDP, whose forward pass would exchange buffers, but with FSDP2, which must
    gather weights: then every process must run the same number of passes.
    """
    model = wrapped
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        assert isinstance(wrapped.module, nn.Module)
        model = wrapped.module
    try:
        yield model
    finally:
        settle(model)


@contextmanager
def no_exchange(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Keep DDP from exchanging gradients of the passes inside the block; FSDP2 always exchanges them.

    FSDP2 would store both tasks' unexchanged gradients together.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(True)
        yield
    elif wanted and isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


# ---- work and words ----


def shared(rows: Sequence[T], work: Callable[[list[T]], Sequence[Any]]) -> list[Any]:
    """Let every process do its share of the rows; return all results, in order, on all of them.

    All shares have the same length, with the last row repeated where needed, since a sharded model's forward
    passes need every process.
    """
    count, rank = process_count(), process_rank()
    if count == 1 or not rows:
        return list(work(list(rows)))
    each = -(-len(rows) // count)
    places = [min(rank + count * turn, len(rows) - 1) for turn in range(each)]
    found = gathered(lambda: dict(zip(places, work([rows[p] for p in places]), strict=True)))
    return [found[place] for place in range(len(rows))]


def from_main(value: T) -> T:
    """Return the first process's value (any that pickles) on all."""
    if process_count() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(box, 0)
    result: T = box[0]
    return result


def from_each(value: T) -> list[T]:
    """Return every process's value (any that pickles), by rank, on all; all must call this."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    dist.all_gather_object(found, value)
    return found


def any_process(flag: bool) -> bool:
    """Return whether the flag is set on any process; all must call this."""
    return any(from_each(flag))


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun or accelerate launch started, unless joined; leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    from accelerate.state import AcceleratorState, PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield
    finally:
        state.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # later code must join again


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise the faults, if there are any.

    Raises:
        RequestError: there are faults.
    """
    if faults:
        raise RequestError(faults)


def on_all(work: Callable[[], T]) -> T:
    """Do something on every process and return its own result; an error in one ends all.

    Raises:
        RequestError: a process found faults in its request.
        RunError: a process could not continue.
        Exception: whatever else went wrong here; the other processes raise a RunError that names it.
    """
    if process_count() == 1:
        return work()
    result: T | None = None
    faults: tuple[Fault, ...] = ()
    broken = ""
    unexpected: Exception | None = None
    try:
        result = work()
    except RequestError as error:
        faults = error.faults
    except RunError as error:
        broken = str(error)
    except Exception as error:
        unexpected, broken = error, f"another process failed ({type(error).__name__}: {error})"
    everywhere = from_each((faults, broken))
    if unexpected is not None:
        raise unexpected
    for found, text in everywhere:
        raise_faults(found)
        if text:
            raise RunError(text)
    return result  # type: ignore[return-value]


@contextmanager
def by_main(open_it: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Let the first process open and close something; yield its value, which must pickle, on all.

    It closes after the others have finished the block, and they continue when it has closed.

    Raises:
        RequestError: on all, where opening it raised one on the first process.
    """
    with ExitStack() as stack:
        mine = on_all(lambda: stack.enter_context(open_it()) if is_main() else None)
        yield from_main(mine)  # type: ignore[misc]
        barrier()
    barrier()


def is_first_here() -> bool:
    """Return whether this is the first process of its machine, which writes the machine's files."""
    return process_count() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0


def barrier() -> None:
    """Wait for all processes."""
    if process_count() > 1:
        dist.barrier()


class OneCache:
    """A cache that the first process reads and writes for all, so that all of them do the same work.

    Args:
        cache: opened on the first process; None on the others.
    """

    def __init__(self, cache: Any | None) -> None:
        self._cache = cache
        self.notes: list[str] = [] if cache is None else cache.notes

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of those keys that the first process finds."""
        return from_main({} if self._cache is None else self._cache.get(keys))

    def put(self, values: Mapping[str, Any]) -> None:
        """Store values, on the first process."""
        if self._cache is not None:
            self._cache.put(values)

    def close(self) -> None:
        """Close the file."""
        if self._cache is not None:
            self._cache.close()
