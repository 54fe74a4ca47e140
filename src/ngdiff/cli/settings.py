"""YAML file, ``--set`` pairs and flags -> one unlearning request, or everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ngdiff.data.benchmarks import folder_options, folders_of
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.settings.yaml_text import load_settings, load_yaml
from ngdiff.system.untrusted import Unreadable

if TYPE_CHECKING:
    from ngdiff.models.loading import Precision
    from ngdiff.unlearn import UnlearnRequest

Found = tuple[dict[str, Any], list[Fault]]
"""Settings under their own names, and what is wrong with the others."""

# request fields that a configuration file may set beside the trainer's settings
SOURCE_KEYS = ("forget", "retain", "holdout", "earlier", "keep")
PATH_KEYS = ("sign", "data_key")
NAME_KEYS = ("model", "output", "precision", "push_to_hub", *PATH_KEYS, *folder_options())
FLAG_KEYS = ("lora", "qlora", "allow_overlap", "private", "trust_remote_code")
REQUEST_KEYS = ("answers", *NAME_KEYS, *SOURCE_KEYS, *FLAG_KEYS)
NEEDED = ("model", "forget", "retain", "output")
ALIASES = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
ALIASES |= {"eval_every": "evaluate_every", "eval_items": "evaluate_items"}
# trainer settings that a flag decides
DECIDED_BY = {"output_dir": "output", "bf16": "precision", "fp16": "precision"}
DECIDED_BY |= dict.fromkeys(
    ("hub_token", "push_to_hub_token"), "hf auth login"
)  # a record is no place for it
DECIDED_BY |= dict.fromkeys(
    ("hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "push_to_hub_model_id"), "push_to_hub"
)


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
    if given.get("floor"):
        floors, bad = _floors(given.pop("floor"))
        given["floors"] = {**given.get("floors", {}), **floors}
        wrong += bad
    fix = "Give it as a flag or in --config; see ngdiff unlearn --help"
    missing = [Fault(f"--{name}", "is missing", fix) for name in NEEDED if not given.get(name)]
    return given, [*faults, *wrong, *missing]


def _floors(pairs: Sequence[str]) -> Found:
    """Read ``NAME=SHARE`` texts."""
    found: dict[str, Any] = {}
    faults = []
    for pair in pairs:
        name, equals, share = pair.rpartition("=")
        try:
            found[name] = float(share)
        except ValueError:
            equals = ""
        if not equals or not name:
            faults.append(Fault("--floor", f"{pair!r} is no floor", "Write NAME=SHARE, such as general=0.95"))
            found.pop(name, None)
    return found, faults


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
        earlier=_sources(given.get("earlier", ())),
        keep=_sources(given.get("keep", ())),
        folders=folders_of(given),
        **{key: Path(str(given[key])) if given.get(key) else None for key in PATH_KEYS},
        allow_overlap=bool(given.get("allow_overlap")),
        overwrite=overwrite,
        resume=resume,
        answers=given.get("answers", UnlearnRequest.answers),
        trust_remote_code=bool(given.get("trust_remote_code")),
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
    try:
        loaded = load_settings(path, "--config")
    except RequestError as error:
        return {}, list(error.faults)
    return _checked(loaded, f"--config {path}")


def _from_pairs(pairs: Sequence[str]) -> Found:
    settings: dict[str, Any] = {}
    faults = []
    fix = "Write --set name=value"
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            loaded = load_yaml(value)
        except Unreadable as error:
            faults.append(Fault("--set", f"{pair!r} is no setting: the value {error.what}", fix))
            continue
        if not equals:
            faults.append(Fault("--set", f"{pair!r} is no setting", fix))
        elif name in settings:
            faults.append(Fault("--set", f"{name!r} is set twice", "Keep one of them"))
        else:
            settings[name] = loaded
    checked, wrong = _checked(settings, "--set")
    return checked, [*faults, *wrong]


def _checked(loaded: Mapping[Any, Any], where: str) -> Found:
    """Return the settings under their own names, and what is wrong; a null leaves the default."""
    from ngdiff.training.config import UnlearningConfig

    names = {key: str(key).strip().replace("-", "_") for key in loaded}
    settings = {ALIASES.get(names[key], names[key]): value for key, value in loaded.items()}
    known = {*REQUEST_KEYS, *(field.name for field in fields(UnlearningConfig) if field.init)} - set(
        DECIDED_BY
    )
    own = [ALIASES.get(name, name) for name in names.values()]
    faults = [
        Fault(where, f"{key!r} is set twice, under two names", "Keep one of them")
        for key in dict.fromkeys(key for key in own if own.count(key) > 1)
    ]
    good = {}
    for key, value in settings.items():
        if key in DECIDED_BY:
            faults.append(Fault(where, f"{key!r} is not set here", f"Use {DECIDED_BY[key]!r}"))
        elif key not in known:
            faults.append(unknown_name(where, "setting", key, {*known, *ALIASES}))
        elif key in FLAG_KEYS and not isinstance(value, bool | None):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write true or false"))
        elif key in SOURCE_KEYS and not _is_sources(value):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write a source, or a list of sources"))
        elif key in NAME_KEYS and not isinstance(value, str | None):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write a name, in quotes if need be"))
        elif value is not None:
            good[key] = value
    return good, faults


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _is_sources(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str) for item in items)
