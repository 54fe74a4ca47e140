"""A model's parameters -> which of them a step changed, and a copy of the best ones."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SAMPLE = 1_000_000
BEST_FILE = "best.safetensors"


class ChangeMeter:
    """Measures the share of trainable parameters that a step really changes, on an evenly spread sample.

    In low precision most small updates round away: the weights stay what they were although a step was taken.
    """

    def __init__(self, model: nn.Module, sample: int = SAMPLE) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in self._parameters)
        self._stride = max(1, total // sample)
        self._before: list[Tensor] = []

    def _sample(self) -> list[Tensor]:
        return [parameter.detach().flatten()[:: self._stride] for parameter in self._parameters]

    def before(self) -> None:
        """Keep the sample."""
        self._before = [values.clone() for values in self._sample()]

    def after(self) -> float:
        """Return the share of the sample that differs now, in [0, 1]."""
        pairs = list(zip(self._before, self._sample(), strict=True))
        changed = torch.stack([(before != after).sum() for before, after in pairs]).sum()
        return float(changed) / sum(before.numel() for before, _ in pairs)


class BestWeights:
    """Keeps one copy of the trainable parameters on disk, to go back to."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._file: Path | None = None

    def _named(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def save(self) -> None:
        """Replace the copy by the present parameters."""
        file = self._own_file()
        fresh = file.with_suffix(".new")
        save_file({name: value.cpu().contiguous() for name, value in self._named().items()}, fresh)
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
