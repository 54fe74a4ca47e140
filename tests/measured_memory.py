"""operations as they happen -> bytes of live tensors, and the most there were."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages from when an operation makes them until they are freed."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}
        for tensor in there:
            self._add(tensor)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.most = self.now

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if tensor.device.type == "meta" or self._known.get(place) == size:
            return
        self.now += size - self._known.get(place, 0)
        if place not in self._known:
            weakref.finalize(storage, self._drop, place)
        self._known[place] = size
        self.most = max(self.most, self.now)

    def _drop(self, place: int) -> None:
        self.now -= self._known.pop(place, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result
