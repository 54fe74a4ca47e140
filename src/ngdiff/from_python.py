"""model, forget set and retain set, as Python has them -> a folder with the unlearned model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.outcome import verdict
from ngdiff.record import RunRecord
from ngdiff.settings import SHORT
from ngdiff.settings.fields import setting_names
from ngdiff.settings.identity import FROM_MEMORY
from ngdiff.settings.values import in_python

_SHORT_NAMES = {short: name for name, short in SHORT.items()}
_SETS = ("forget", "retain", "holdout", "earlier", "keep")


@dataclass(frozen=True)
class Unlearned:
    """A finished run.

    Args:
        output: the folder with the model, its tokenizer, ``record.json`` and ``receipt.json``.
        record: every step of the run, as ``record.json`` keeps it.
    """

    output: Path
    record: RunRecord

    @cached_property
    def model(self) -> Any:
        """The unlearned model, in float32; it is loaded when it is first asked for."""
        from ngdiff.models.loading import load_model, resolve_model

        return load_model(resolve_model(str(self.output), "output"))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from ngdiff.models.loading import load_tokenizer, resolve_model

        return load_tokenizer(resolve_model(str(self.output), "output"), "output")

    @property
    def verdict(self) -> str:
        """The verdict on the run, in one line."""
        return verdict(self.record.stop, self.record.after["forget"]).line

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page about the run, by default ``report.html`` in its folder; return where it is."""
        from ngdiff.report.page import write_report

        return write_report(self.output, None if path is None else Path(path))


def unlearn(
    model: Any,
    forget: Any,
    retain: Any,
    output: str | Path = "unlearned",
    tokenizer: Any = None,
    **options: Any,
) -> Unlearned:
    """Make a model forget one data set and keep another, and save it with record and receipt.

    Args:
        model: the name or the folder of a causal language model, or a loaded ``transformers`` model. A loaded
            one is left as it is: the run works on a copy that it saves and reads back in float32, which takes
            as much temporary disk and memory again. Record and receipt then state the hash of its weights,
            and not where it came from.
        forget: what to forget: a source (a file, a folder, a hub data set, ``tofu:NAME``), a list of sources,
            a ``datasets.Dataset`` or a list of rows. Rows are kept in a temporary file while the run lasts.
        retain: what to keep, in the same forms.
        output: the folder to make.
        tokenizer: of a loaded model; by default that of the folder or hub name it was loaded from.
        options: ``holdout``, ``earlier`` and ``keep`` (more data), any other field of
            :class:`ngdiff.unlearn.UnlearnRequest` such as ``lora=True`` or ``overwrite=True``, and any
            setting of :class:`ngdiff.UnlearningConfig` such as ``method="npo"`` or ``learning_rate=1e-5``.

    Raises:
        RequestError: with everything that is wrong; nothing was written.
    """
    from ngdiff.unlearn import UnlearnRequest
    from ngdiff.unlearn import unlearn as run

    given = {_SHORT_NAMES.get(name, name): value for name, value in options.items()}
    known = {field.name for field in fields(UnlearnRequest)} - {"settings", "in_memory"}
    settings = {name: value for name, value in given.items() if name not in known}
    strangers = sorted(set(settings) - setting_names())
    if strangers:
        everything = {*known, *setting_names(), *_SHORT_NAMES}
        raise RequestError([unknown_name(name, "option", name, everything) for name in strangers])
    if faults := _model_faults(model, tokenizer, given):
        raise RequestError(faults)
    others = {name: value for name, value in given.items() if name in known and name not in _SETS}
    data = {"forget": forget, "retain": retain} | {name: given.get(name, ()) for name in _SETS[2:]}
    with tempfile.TemporaryDirectory(prefix="ngdiff-") as folder:
        sources: dict[str, Any] = {
            name: _sources(value, Path(folder) / f"{name}.jsonl") for name, value in data.items()
        }
        if not isinstance(model, (str, Path)):
            others["in_memory"] = f"{type(model).__name__}{FROM_MEMORY}"
            model = _saved(model, tokenizer, Path(folder) / "model")
        request = UnlearnRequest(
            model=str(model), output=Path(output), settings=settings, **sources, **others
        )
        try:
            record = run(request)
        except RequestError as error:
            raise RequestError(in_python(error.faults, of_trainer=False)) from error
    return Unlearned(Path(output), record)


def _model_faults(model: Any, tokenizer: Any, given: Mapping[str, Any]) -> list[Fault]:
    """Say why a model cannot be taken as it was given."""
    if isinstance(model, (str, Path)):
        fix = "Omit it: the tokenizer lies with the model"
        return [] if tokenizer is None else [Fault("tokenizer", "belongs to a loaded model", fix)]
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config"):
        fix = "Give model.merge_and_unload(), or the adapter's folder"
        return [Fault("model", "is a loaded model with adapters", fix)]
    if not isinstance(model, PreTrainedModel):
        fix = "Give the name or the folder of a model, or a loaded transformers model"
        return [Fault("model", f"is of type {type(model).__name__}", fix)]
    found = []
    if getattr(model.config, "quantization_config", None) is not None:
        fix = "Give the model's name or folder, with qlora=True to train in 4 bits"
        found.append(Fault("model", "is a loaded model whose weights are quantised", fix))
    for name in ("lora", "qlora"):
        if given.get(name):
            what = "makes adapters, which name the folder of their base, and a loaded model has none"
            found.append(Fault(name, what, "Save the model with save_pretrained, and give its folder"))
    return found


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a loaded model and its tokenizer to a folder of the run's own.

    Raises:
        RequestError: there is no tokenizer, or no room.
    """
    from ngdiff.training.inputs import tokenizer_of_loaded

    tokenizer = tokenizer_of_loaded(model, "tokenizer") if tokenizer is None else tokenizer
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        what = f"cannot be copied to {folder.parent} ({error.strerror or error})"
        fix = "Set TMPDIR to a folder with room for the model, or give the model's folder"
        raise RequestError(Fault("model", what, fix)) from error
    return folder


def _sources(data: Any, file: Path) -> tuple[str, ...]:
    """Return the sources that data are, or the file that their rows are written to."""
    if isinstance(data, (str, Path)):
        return (str(data),)
    items = list(data)
    if all(isinstance(item, (str, Path)) for item in items):
        return tuple(map(str, items))
    _write_rows(items, file)
    return (str(file),)


def _write_rows(rows: Iterable[Any], file: Path) -> None:
    if not all(isinstance(row, Mapping) for row in rows):
        what = "is neither a source, nor a list of sources, nor a list of rows"
        fix = 'Give a file, or rows such as {"question": "...", "answer": "..."}'
        raise RequestError(Fault(file.stem, what, fix))
    text = "".join(json.dumps(dict(row), ensure_ascii=True) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
