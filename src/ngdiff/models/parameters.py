"""a model's parameters -> how a step changed them, and a copy of the best ones."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as _read_parts
from torch.distributed.checkpoint.state_dict_saver import save as _write_parts

from ngdiff.errors import Fault, RequestError, RunError
from ngdiff.system.disk import disk_reason, is_disk_error
from ngdiff.system.processes import (
    Sums,
    any_process,
    barrier,
    from_main,
    is_main,
    is_sharded,
    local,
    on_all,
    process_count,
    same_everywhere,
    spread,
)

K = TypeVar("K")
SAMPLE = 1_000_000
BEST_FILE = "best.safetensors"
BEST_FOLDER = "best"


class ChangeMeter:
    """Measures the actual effect of a step on the trainable parameters, on an evenly spread sample of them.

    In low precision most small updates are rounded away, so that a step leaves the weights unchanged. And an
    optimizer that rescales each coordinate, such as Adam, does not step along the gradient, so whether a loss
    falls along its update has to be measured. Each process samples its own part of sharded parameters; all
    return the same.
    """

    def __init__(self, model: nn.Module, sample: int = SAMPLE) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in self._parameters)
        self._stride = max(1, total // sample)
        self._before: list[Tensor] = []
        self._reached: list[Tensor] = []
        self._update: list[Tensor] | None = None

    def _groups(self) -> list[list[int]]:
        """Return groups of indices of parameters that one operation can process together."""
        alike: dict[Any, list[int]] = {}
        for number, parameter in enumerate(self._parameters):
            alike.setdefault((spread(parameter), parameter.dtype, parameter.device), []).append(number)
        return list(alike.values())

    def _thin(self, tensor: Tensor) -> Tensor:
        return local(tensor).flatten()[:: self._stride]

    def _sample(self) -> list[Tensor]:
        """Copy the sample, one tensor for each group of parameters."""
        return [torch.cat([self._thin(self._parameters[n]) for n in group]) for group in self._groups()]

    def sample(self, gradient: Sequence[Tensor | None]) -> list[Tensor]:
        """Copy the sampled part of a gradient, group by group; None stands for zeros."""
        found = []
        for group in self._groups():
            parts = []
            for number in group:
                place, part = self._thin(self._parameters[number]), gradient[number]
                parts.append(torch.zeros_like(place) if part is None else self._thin(part).to(place.device))
            found.append(torch.cat([part.float() for part in parts]))
        return found

    def before(self) -> None:
        """Keep the sample, and note where there is a gradient; without any gradient, all of it counts."""
        self._before = self._sample()
        gradients = [parameter.grad for parameter in self._parameters]
        if all(gradient is None for gradient in gradients):
            self._reached = [torch.ones_like(values, dtype=torch.bool) for values in self._before]
        else:
            self._reached = [values != 0 for values in self.sample(gradients)]
        self._update = None

    def after(self) -> float:
        """Return the share of the sample's coordinates with a gradient that differ now, in [0, 1]."""
        return self.measured({})[0]

    def descent(self, gradient: Sequence[Tensor]) -> float:
        """Return the cosine between minus the applied update and a gradient sampled before it.

        Positive: to first order the step lowered that gradient's loss. 0 where one of the two is zero.
        Call after :meth:`after`.
        """
        if self._update is None:
            raise ValueError("no step has been measured: call before() and after() around it")
        sums = Sums(self._parameters, 3)
        for group, update, part in zip(self._groups(), self._update, gradient, strict=True):
            sums.add_all(self._parameters[group[0]], _inner_products(update, part))
        return _descent(sums.total().tolist())

    def measured(self, gradients: Mapping[K, Sequence[Tensor]]) -> tuple[float, dict[K, float]]:
        """Return the results of :meth:`after` and :meth:`descent`, with one exchange and one device sync.

        Args:
            gradients: as :meth:`sample` returned them before the step, by name.
        """
        now = self._sample()
        self._update = [
            after.float() - before.float() for before, after in zip(self._before, now, strict=True)
        ]
        sums = Sums(self._parameters, 2 + 3 * len(gradients))
        for place, group in enumerate(self._groups()):
            reached = self._reached[place]
            changed = ((self._before[place] != now[place]) & reached).sum()
            inner = [_inner_products(self._update[place], parts[place]) for parts in gradients.values()]
            counts = torch.stack([changed, reached.sum()]).double()
            sums.add_all(self._parameters[group[0]], torch.cat([counts, *inner]))
        changed, reachable, *products = sums.total().tolist()
        descents = {
            name: _descent(products[3 * number : 3 * number + 3]) for number, name in enumerate(gradients)
        }
        return float(changed / max(1, reachable)), descents


def _inner_products(update: Tensor, gradient: Tensor) -> Tensor:
    left, right = update.double(), gradient.double()
    return torch.stack([torch.dot(left, left), torch.dot(right, right), torch.dot(left, right)])


def _descent(products: Sequence[float]) -> float:
    update_square, gradient_square, inner = products
    norms = float(update_square**0.5 * gradient_square**0.5)
    return -float(inner) / norms if norms > 0 else 0.0


class BestWeights:
    """Keeps one copy of the trainable parameters on disk, to be restored.

    The first process writes it. Where parameters are sharded, each process writes its own part
    (``torch.distributed.checkpoint``), so that none ever holds all of them; all processes must then share the
    folder.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._place: Path | None = None

    def _named(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def save(self) -> None:
        """Replace the copy by the current parameters; all processes must call it.

        Raises:
            RunError: they could not be written; the earlier copy stays.
        """
        place = self._own_folder()
        if is_sharded(self._model):
            fresh = place / f"{BEST_FOLDER}.new"
            try:
                _write_parts(self._named(), checkpoint_id=fresh, no_dist=process_count() == 1)
            except CheckpointException as error:  # not an Exception; every process raises it
                _end(next(iter(error.failures.values()))[0])
            if is_main():
                shutil.rmtree(place / BEST_FOLDER, ignore_errors=True)
                fresh.rename(place / BEST_FOLDER)
            barrier()
        else:
            on_all(lambda: self._write(place) if is_main() else None)

    def _write(self, place: Path) -> None:
        fresh = place / f"{BEST_FILE}.new"
        try:
            save_file({name: value.cpu().contiguous() for name, value in self._named().items()}, fresh)
        except (OSError, SafetensorError) as error:
            fresh.unlink(missing_ok=True)
            _end(error)
        fresh.replace(place / BEST_FILE)

    def copy_to(self, folder: Path) -> None:
        """Write the copy, where there is one, to a checkpoint's folder."""
        if self._place is None:
            return
        if (self._place / BEST_FOLDER).is_dir():
            shutil.copytree(self._place / BEST_FOLDER, folder / BEST_FOLDER)
        elif (self._place / BEST_FILE).is_file():
            shutil.copyfile(self._place / BEST_FILE, folder / BEST_FILE)

    def take(self, folder: Path) -> None:
        """Replace the copy by the one in a checkpoint's folder, where there is one."""
        sharded, plain = (folder / BEST_FOLDER).is_dir(), (folder / BEST_FILE).is_file()
        if not any_process(sharded or plain):
            return
        place = self._own_folder()
        if is_main():
            if sharded:
                shutil.copytree(folder / BEST_FOLDER, place / BEST_FOLDER, dirs_exist_ok=True)
            else:
                shutil.copyfile(folder / BEST_FILE, place / BEST_FILE)
        barrier()

    def _own_folder(self) -> Path:
        if self._place is None:
            made = None
            if is_main():
                self._folder.mkdir(parents=True, exist_ok=True)
                made = Path(tempfile.mkdtemp(prefix=".best-", dir=self._folder))
            self._place = from_main(made)
        assert self._place is not None
        return self._place

    def restore(self, share: float = 1.0) -> None:
        """Move the parameters to the kept ones, or a share of the way there; does nothing where none were
        kept.

        Args:
            share: 1 restores the kept parameters; one half stops in the middle of the straight line to them.
        """
        if self._place is None:
            return
        with torch.no_grad():
            if from_main((self._place / BEST_FOLDER).is_dir()):
                self._restore_parts(self._place / BEST_FOLDER, share)
            else:
                self._restore_whole(self._place / BEST_FILE, share)

    def _restore_parts(self, folder: Path, share: float) -> None:
        named = self._named()
        kept = named if share == 1 else {name: torch.empty_like(value) for name, value in named.items()}
        _read_parts(kept, checkpoint_id=folder, no_dist=process_count() == 1)
        if share != 1:
            for name, parameter in named.items():
                parameter.lerp_(kept[name], share)

    def _restore_whole(self, file: Path, share: float) -> None:
        if is_main():
            with safe_open(str(file), framework="pt") as kept:
                for name, parameter in self._named().items():
                    value = kept.get_tensor(name)
                    if share == 1:
                        parameter.copy_(value)
                    else:
                        parameter.lerp_(value.to(parameter), share)
        for parameter in self._named().values():
            same_everywhere(parameter)

    def discard(self) -> None:
        """Delete the copy."""
        if self._place is not None and is_main():
            shutil.rmtree(self._place, ignore_errors=True)
        self._place = None


def _end(error: BaseException) -> NoReturn:
    """End the run with a sentence, or with the error itself where the disk did not cause it.

    Raises:
        RunError: the sentence.
    """
    if not is_disk_error(error):
        raise error
    raise RunError(f"the best weights so far could not be written ({disk_reason(error)})") from error


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """Return whether every weight of this process's part of a model is finite."""
    extremes: list[Tensor] = []
    for parameter in model.parameters():
        mine = parameter.detach()
        mine = mine.to_local() if hasattr(mine, "to_local") else mine  # a DTensor's own shard
        if mine.is_floating_point() and mine.numel() > 0:
            extremes += [value.float() for value in torch.aminmax(mine)]  # both are NaN where one is
    gathered = [extreme.to(extremes[0].device) for extreme in extremes]
    return not gathered or bool(torch.stack(gathered).isfinite().all())


def train_only(model: nn.Module, pattern: str) -> None:
    """Freeze all parameters except trainable ones whose names match a regular expression.

    Raises:
        RequestError: it matches no name.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    kept = {name for name in names if re.search(pattern, name)}
    if not kept:
        what = f"{pattern!r} matches no trainable parameter"
        raise RequestError(
            Fault("--set trainable", what, f"Parameter names look like {names[0]!r} and {names[-1]!r}")
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
