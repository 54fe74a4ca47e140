"""YAML file, ``--set`` pairs and flags -> one unlearning request, or everything that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ngdiff.errors import Fault, RequestError, unknown_name

if TYPE_CHECKING:
    from ngdiff.models import Precision
    from ngdiff.unlearn import UnlearnRequest

Found = tuple[dict[str, Any], list[Fault]]
"""Settings under their own names, and what is wrong with the others."""

# request fields that a configuration file may set beside the trainer's settings
SOURCE_KEYS = ("forget", "retain", "holdout")
FLAG_KEYS = ("lora", "qlora", "allow_overlap")
REQUEST_KEYS = ("model", "output", "precision", "tofu_dir", *SOURCE_KEYS, *FLAG_KEYS)
NEEDED = ("model", "forget", "retain", "output")
ALIASES = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
ALIASES |= {"eval_every": "evaluate_every", "eval_items": "evaluate_items"}
# trainer settings that a flag decides
DECIDED_BY = {"output_dir": "output", "bf16": "precision", "fp16": "precision"}


def gather(config: Path | None, pairs: Sequence[str], flags: Mapping[str, Any]) -> Found:
    """Lay flags over ``--set`` pairs over a configuration file, and collect every fault.

    Args:
        config: YAML file, if any.
        pairs: ``name=value`` texts.
        flags: values by the name of their flag (``lr``) or setting; None, False and empty lists say nothing.
    """
    given, faults = ({}, []) if config is None else _from_config(config)
    more, wrong = _from_pairs(pairs)
    said = {key: value for key, value in flags.items() if value is not None and value is not False}
    given |= more
    given |= {ALIASES.get(key, key): value for key, value in said.items() if value not in ([], ())}
    mend = "Give it as a flag or in --config; see ngdiff unlearn --help"
    missing = [Fault(f"--{name}", "is missing", mend) for name in NEEDED if not given.get(name)]
    return given, [*faults, *wrong, *missing]


def to_request(
    given: Mapping[str, Any], overwrite: bool = False, resume: bool | None = None
) -> UnlearnRequest:
    """Build the request from settings that :func:`gather` returned."""
    from ngdiff.unlearn import UnlearnRequest

    return UnlearnRequest(
        model=str(given.get("model", "")),
        forget=_sources(given.get("forget", ())),
        retain=_sources(given.get("retain", ())),
        output=Path(str(given.get("output", ""))),
        holdout=_sources(given.get("holdout", ())),
        settings={key: value for key, value in given.items() if key not in REQUEST_KEYS},
        lora=bool(given.get("lora")),
        qlora=bool(given.get("qlora")),
        precision=cast("Precision", str(given.get("precision", "auto"))),  # checked with all the rest
        tofu_dir=Path(str(given["tofu_dir"])) if given.get("tofu_dir") else None,
        allow_overlap=bool(given.get("allow_overlap")),
        overwrite=overwrite,
        resume=resume,
    )


def _sources(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, named as on the command line (with ``_`` or ``-``).

    Raises:
        RequestError: the file is missing, is no YAML mapping, or names settings that do not exist.
    """
    return _or_raise(_from_config(path))


def parse_set(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are YAML.

    Raises:
        RequestError: a pair has no ``=``, its value is no YAML, or there is no such setting.
    """
    return _or_raise(_from_pairs(pairs))


def _or_raise(found: Found) -> dict[str, Any]:
    settings, faults = found
    if faults:
        raise RequestError(faults)
    return settings


def _from_config(path: Path) -> Found:
    import yaml

    try:
        loaded = _from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Fault("--config", f"{path} cannot be read: {error}", "Check the path")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        what = f"is no YAML ({getattr(error, 'problem', None) or error})"
        return {}, [Fault(f"--config {at}", what, "Write one 'setting: value' a line")]
    if not isinstance(loaded, dict):
        return {}, [Fault("--config", f"{path} is no mapping", "Write one 'setting: value' a line")]
    return _checked(loaded, f"--config {path}")


def _from_pairs(pairs: Sequence[str]) -> Found:
    import yaml

    settings, faults = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            settings[name] = _from_yaml(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            faults.append(Fault("--set", f"{pair!r} is no setting", "Write --set name=value"))
            settings.pop(name, None)
    checked, wrong = _checked(settings, "--set")
    return checked, [*faults, *wrong]


def _from_yaml(text: str) -> Any:
    """Read YAML, with 1e-5 as the number it is in YAML 1.2; PyYAML alone takes it for a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.load(text, Loader)


def _checked(loaded: Mapping[Any, Any], where: str) -> Found:
    """Return the settings under their own names, and what is wrong; a null leaves the default."""
    from ngdiff.config import UnlearningConfig

    names = {key: str(key).strip().replace("-", "_") for key in loaded}
    settings = {ALIASES.get(names[key], names[key]): value for key, value in loaded.items()}
    known = {*REQUEST_KEYS, *(field.name for field in fields(UnlearningConfig) if field.init)} - set(
        DECIDED_BY
    )
    faults, good = [], {}
    for key, value in settings.items():
        if key in DECIDED_BY:
            faults.append(Fault(where, f"{key!r} is not set here", f"Use {DECIDED_BY[key]!r}"))
        elif key not in known:
            faults.append(unknown_name(where, "setting", key, {*known, *ALIASES}))
        elif key in FLAG_KEYS and not isinstance(value, bool | None):
            faults.append(Fault(where, f"{key!r} is {value!r}", "Write true or false"))
        elif key in SOURCE_KEYS and not _is_sources(value):
            faults.append(Fault(where, f"{key!r} is {value!r}", "Write a source, or a list of sources"))
        elif value is not None:
            good[key] = value
    return good, faults


def _is_sources(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str) for item in items)
