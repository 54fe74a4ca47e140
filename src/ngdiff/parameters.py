"""A model's parameters -> which of them a step changed and where to, and a copy of the best ones."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ngdiff.disk import disk_reason, is_disk_error
from ngdiff.errors import Fault, RequestError, RunError

SAMPLE = 1_000_000
BEST_FILE = "best.safetensors"


class ChangeMeter:
    """Measures what a step really does to the trainable parameters, on an evenly spread sample of them.

    In low precision most small updates round away: the weights stay what they were although a step was taken.
    And an optimizer that rescales each coordinate, such as Adam, steps along something else than the gradient
    it was given, so whether a loss falls along its update has to be measured.
    """

    def __init__(self, model: nn.Module, sample: int = SAMPLE) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in self._parameters)
        self._stride = max(1, total // sample)
        self._before: list[Tensor] = []
        self._reached: list[Tensor] = []
        self._update: Tensor | None = None

    def _sample(self) -> list[Tensor]:
        return [parameter.detach().flatten()[:: self._stride] for parameter in self._parameters]

    def sample(self, gradient: Sequence[Tensor | None]) -> Tensor:
        """Copy a gradient's part that belongs to the sample; None stands for zeros."""
        parts = [
            torch.zeros_like(place) if part is None else part.detach().flatten()[:: self._stride]
            for part, place in zip(gradient, self._sample(), strict=True)
        ]
        return torch.cat([part.to(parts[0].device, torch.float32) for part in parts])

    def before(self) -> None:
        """Keep the sample, and which of it a gradient reaches; without any gradient, all counts."""
        self._before = [values.clone() for values in self._sample()]
        gradients = [parameter.grad for parameter in self._parameters]
        nowhere = all(gradient is None for gradient in gradients)
        self._reached = [
            torch.full_like(values, nowhere, dtype=torch.bool)
            if gradient is None
            else gradient.detach().flatten()[:: self._stride] != 0
            for values, gradient in zip(self._before, gradients, strict=True)
        ]
        self._update = None

    def after(self) -> float:
        """Return the share of the sample's coordinates with a gradient that differ now, in [0, 1]."""
        pairs = list(zip(self._before, self._sample(), strict=True))
        device = pairs[0][0].device
        counts = [
            torch.stack([((before != after) & reached).sum(), reached.sum()]).to(device)
            for (before, after), reached in zip(pairs, self._reached, strict=True)
        ]
        changed, reachable = torch.stack(counts).sum(dim=0).tolist()
        steps = [(after.float() - before.float()).to(device) for before, after in pairs]
        self._update = torch.cat(steps)
        return float(changed / max(1, reachable))

    def descent(self, gradient: Tensor) -> float:
        """Return the cosine between minus the applied update and a gradient sampled before it.

        Positive: to first order the step lowered that gradient's loss. 0 where one of the two is zero.
        Call after :meth:`after`.
        """
        if self._update is None:
            raise ValueError("no step has been measured: call before() and after() around it")
        norms = float(self._update.norm()) * float(gradient.norm())
        return -float(self._update.double() @ gradient.double()) / norms if norms > 0 else 0.0


class BestWeights:
    """Keeps one copy of the trainable parameters on disk, to go back to."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._file: Path | None = None

    def _named(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def save(self) -> None:
        """Replace the copy by the present parameters.

        Raises:
            RunError: the disk did not take them; the copy is what it was.
        """
        file = self._own_file()
        fresh = file.with_suffix(".new")
        try:
            save_file({name: value.cpu().contiguous() for name, value in self._named().items()}, fresh)
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            fresh.unlink(missing_ok=True)
            raise RunError(f"the best weights so far could not be written ({disk_reason(error)})") from error
        fresh.replace(file)

    def copy_to(self, folder: Path) -> None:
        """Put the copy, where there is one, into a checkpoint's folder."""
        if self._file is not None:
            shutil.copyfile(self._file, folder / BEST_FILE)

    def take(self, folder: Path) -> None:
        """Replace the copy by the one in a checkpoint's folder, where there is one."""
        if (folder / BEST_FILE).is_file():
            shutil.copyfile(folder / BEST_FILE, self._own_file())

    def _own_file(self) -> Path:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = Path(tempfile.mkdtemp(prefix=".best-", dir=self._folder)) / BEST_FILE
        return self._file

    def restore(self) -> None:
        """Copy the kept parameters back into the model; does nothing where none were kept."""
        if self._file is None:
            return
        with torch.no_grad(), safe_open(str(self._file), framework="pt") as kept:
            for name, parameter in self._named().items():
                parameter.copy_(kept.get_tensor(name))

    def discard(self) -> None:
        """Delete the copy."""
        if self._file is not None:
            shutil.rmtree(self._file.parent, ignore_errors=True)
            self._file = None


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """Say whether every weight of this process's part of a model is a number, neither infinite nor NaN."""
    extremes: list[Tensor] = []
    for parameter in model.parameters():
        mine = parameter.detach()
        mine = mine.to_local() if hasattr(mine, "to_local") else mine  # a DTensor's own shard
        if mine.is_floating_point() and mine.numel() > 0:
            extremes += [value.float() for value in torch.aminmax(mine)]  # both are NaN where one is
    gathered = [extreme.to(extremes[0].device) for extreme in extremes]
    return not gathered or bool(torch.stack(gathered).isfinite().all())


def train_only(model: nn.Module, pattern: str) -> None:
    """Freeze all parameters but the trainable ones in whose names a regular expression is found.

    Raises:
        RequestError: it is found in no name.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    kept = {name for name in names if re.search(pattern, name)}
    if not kept:
        what = f"{pattern!r} is found in the name of no trainable parameter"
        raise RequestError(
            Fault("--set trainable", what, f"Names are such as {names[0]!r} and {names[-1]!r}")
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
