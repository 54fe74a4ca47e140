"""bench request -> hashes of the content behind its names, so that no stale result is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ngdiff.bench.suites import suite_of
from ngdiff.bench.trials import TUNING, BenchRequest
from ngdiff.data.examples import data_hash, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.models.loading import resolve_model
from ngdiff.system.cache import cache_key
from ngdiff.system.disk import sha256_file

_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.py"),
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*"),
)
"""What of a model's folder decides its figures; records, evaluations and cards lie there, too."""


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
    """The hashes of one request and the folders that its evaluations read, each computed once.

    Args:
        request: whose models and data are hashed.
    """

    def __init__(self, request: BenchRequest) -> None:
        self._request = request
        self.of = cache(self._of)
        self.model = cache(self._model)
        self.folder = cache(self._folder)

    def _of(self, split: str) -> Hashes:
        request = self._request
        steps = suite_of(request).steps(request, split)
        learned = cache_key([self._rows(one) for step in steps for one in step.all])
        if split.startswith(TUNING):  # nothing is evaluated there
            return Hashes(self.model(request.model), learned, "")
        reference = request.reference(split)
        known = None
        if reference is not None:
            is_file = reference.endswith(".json")
            known = sha256_file(Path(reference).expanduser()) if is_file else self.model(reference)
        files = suite_of(request).files(request, split)
        evaluated = cache_key(files) if files else learned
        return Hashes(self.model(request.model), learned, evaluated, known)

    def _rows(self, source: str) -> str:
        rows = read_rows(source, where="--tofu-dir", folders=self._request.folders)
        return data_hash(to_examples(rows, "--tofu-dir"))

    def _folder(self, split: str) -> Path | None:
        return suite_of(self._request).folder(self._request, split)

    def _model(self, name: str) -> str:
        """Hash the files of a local model and of its adapter's base; a hub model is hashed by name."""
        source = resolve_model(name, trust_remote_code=self._request.trust_remote_code)
        if not source.is_local:
            return cache_key("hub", source.location)
        folder = Path(source.location)
        files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
        base = self.model(source.base) if source.adapter and source.base else None
        return cache_key([(path.name, sha256_file(path)) for path in files], base)
