"""bench request -> hashes of what its names stand for, so that nothing old is shown for something new."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ngdiff.bench.data import evaluated_files, sources
from ngdiff.bench.plan import BenchRequest
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.cache import cache_key
from ngdiff.models.loading import resolve_model

_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.py"),
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*"),
)
"""What of a model's folder decides its figures; records, evaluations and cards lie there, too."""
_BLOCK = 2**22


@dataclass(frozen=True)
class Hashes:
    """What decides the outcomes on one split, beside settings: SHA-256 (hex) of contents, wherever they lie.

    Args:
        model: the target model.
        learned: rows to forget and to keep.
        evaluated: rows of the evaluation.
        reference: the retrained model or its evaluation; None without one.
    """

    model: str
    learned: str
    evaluated: str
    reference: str | None = None


class Inputs:
    """The hashes of one request, each worked out once.

    Args:
        request: whose models and data are hashed.
    """

    def __init__(self, request: BenchRequest) -> None:
        self._request = request
        self.of = cache(self._of)
        self.model = cache(self._model)

    def _of(self, split: str) -> Hashes:
        request, reference = self._request, self._request.reference(split)
        known = None
        if reference is not None:
            is_file = reference.endswith(".json")
            known = _file_hash(Path(reference).expanduser()) if is_file else self.model(reference)
        kept = (*sources(request, split), *request.also_retain)
        rows = [[row.values for row in _rows(source, request)] for source in kept]
        evaluated = evaluated_files(request, split)
        return Hashes(self.model(request.model), _json_hash(rows), cache_key(evaluated), known)

    def _model(self, name: str) -> str:
        """Hash the files of a local model, and of what its adapter goes on; the hub has names alone."""
        source = resolve_model(name, trust_remote_code=self._request.trust_remote_code)
        if not source.is_local:
            return cache_key("hub", source.location)
        folder = Path(source.location)
        files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
        base = self.model(source.base) if source.adapter and source.base else None
        return cache_key([(path.name, _file_hash(path)) for path in files], base)


def _rows(source: str, request: BenchRequest) -> list[Any]:
    return read_rows(source, where="--tofu-dir", tofu_dir=request.tofu_dir)


def _json_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
