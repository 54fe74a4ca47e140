"""YAML file, ``--set`` pairs and flags -> one unlearning request, or everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ngdiff.data.benchmarks import folder_options, folders_of
from ngdiff.data.layouts import parse_columns, written_columns
from ngdiff.data.sources import with_columns
from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.settings import SHORT
from ngdiff.settings.fields import setting_names
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
REQUEST_KEYS = ("answers", "columns", *NAME_KEYS, *SOURCE_KEYS, *FLAG_KEYS)
NEEDED = ("model", "forget", "retain", "output")
ALIASES = {short: name for name, short in SHORT.items()}
REPLACED = {
    "lr_start": "Give --lr with --set step_size=auto or step_size=gen: the search begins at that rate",
    "floor": "Give it as --set floors.NAME=SHARE",
    "eval_every": "Give it as --set eval_steps=STEPS",
    "evaluate_every": "Give it as --set eval_steps=STEPS",
    "evaluate_items": "Give it as --set eval_items=ITEMS",
}
"""Settings of earlier versions, and what to give instead."""
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
    given: dict[str, Any] = {}
    faults: list[Fault] = []
    unread = False
    if config is not None:
        try:
            given, faults = _checked(load_settings(config, "--config"), f"--config {config}")
        except RequestError as error:
            faults, unread = list(error.faults), True
    more, wrong = _from_pairs(pairs, given)
    said = {key: value for key, value in flags.items() if value is not None and value is not False}
    given |= more
    given |= {ALIASES.get(key, key): value for key, value in said.items() if value not in ([], ())}
    wrong += _map_columns(given)
    fix = "Give it as a flag or in the file of --config; see ngdiff unlearn --help"
    needed = () if unread else NEEDED  # nobody knows what a file that cannot be read would have given
    missing = [Fault(f"--{name}", "is missing", fix) for name in needed if not given.get(name)]
    return given, [*faults, *wrong, *missing]


def _map_columns(given: dict[str, Any]) -> list[Fault]:
    """Write the mapping of columns, where there is one, into the sources that it is meant for."""
    asked = given.pop("columns", None)
    if not asked:
        return []
    text = written_columns(asked) if isinstance(asked, dict) else str(asked)
    try:
        mapped = parse_columns(text)
    except RequestError as error:
        return list(error.faults)
    for key in SOURCE_KEYS:
        if given.get(key):
            given[key] = [with_columns(source, mapped) for source in source_list(given[key])]
    return []


def to_request(
    given: Mapping[str, Any], overwrite: bool = False, resume: bool | None = None
) -> UnlearnRequest:
    """Build the request from settings that :func:`gather` returned."""
    from ngdiff.unlearn import UnlearnRequest

    files: dict[str, Any] = {key: Path(str(given[key])) if given.get(key) else None for key in PATH_KEYS}
    return UnlearnRequest(
        model=str(given.get("model", "")),
        forget=source_list(given.get("forget", ())),
        retain=source_list(given.get("retain", ())),
        output=Path(str(given.get("output", ""))),
        holdout=source_list(given.get("holdout", ())),
        settings={key: value for key, value in given.items() if key not in REQUEST_KEYS},
        lora=bool(given.get("lora")),
        qlora=bool(given.get("qlora")),
        precision=cast("Precision", str(given.get("precision", "auto"))),  # checked with all the rest
        earlier=source_list(given.get("earlier", ())),
        keep=source_list(given.get("keep", ())),
        folders=folders_of(given),
        **files,
        allow_overlap=bool(given.get("allow_overlap")),
        overwrite=overwrite,
        resume=resume,
        answers=given.get("answers", UnlearnRequest.answers),
        trust_remote_code=bool(given.get("trust_remote_code")),
    )


def source_list(value: Any) -> tuple[str, ...]:
    """Return the sources that a setting names: one text or a list of them."""
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def parse_set(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are YAML.

    Raises:
        RequestError: a pair has no ``=``, its value is not valid YAML, or there is no such setting.
    """
    settings, faults = _from_pairs(pairs)
    if faults:
        raise RequestError(faults)
    return settings


def _from_config(path: Path) -> Found:
    try:
        loaded = load_settings(path, "--config")
    except RequestError as error:
        return {}, list(error.faults)
    return _checked(loaded, f"--config {path}")


def _from_pairs(pairs: Sequence[str], below: Mapping[str, Any] | None = None) -> Found:
    """Read pairs; ``group.name=value`` sets one entry of a mapping, such as ``floors``, given ``below``."""
    settings: dict[str, Any] = {}
    names: set[str] = set()
    faults = []
    fix = "Write --set name=value"
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            loaded = load_yaml(value)
        except Unreadable as error:
            faults.append(Fault("--set", f"{pair!r} is not a setting: the value {error.what}", fix))
            continue
        group, dot, entry = name.partition(".")
        if not equals or (dot and not entry):
            faults.append(Fault("--set", f"{pair!r} is not a setting", fix))
        elif name in names or (group if dot else name) in names:
            faults.append(Fault("--set", f"{name!r} is set twice", "Keep one of them"))
        elif dot:
            start = (below or {}).get(group)
            settings.setdefault(group, dict(start) if isinstance(start, dict) else {})[entry] = loaded
        else:
            settings[name] = loaded
        names.add(name)
    checked, wrong = _checked(settings, "--set")
    return checked, [*faults, *wrong]


def _checked(loaded: Mapping[Any, Any], where: str) -> Found:
    """Return the settings under their own names, and what is wrong; a null leaves the default."""
    names = {key: str(key).strip().replace("-", "_") for key in loaded}
    settings = {ALIASES.get(names[key], names[key]): value for key, value in loaded.items()}
    known = known_settings()
    own = [ALIASES.get(name, name) for name in names.values()]
    faults = [
        Fault(where, f"{key!r} is set twice, under two names", "Keep one of them")
        for key in dict.fromkeys(key for key in own if own.count(key) > 1)
    ]
    good = {}
    for key, value in settings.items():
        if key in DECIDED_BY:
            faults.append(Fault(where, f"{key!r} cannot be set here", f"Use {DECIDED_BY[key]!r}"))
        elif key in REPLACED:
            faults.append(Fault(where, f"there is no setting called {key!r}", REPLACED[key]))
        elif key not in known:
            faults.append(unknown_name(where, "setting", key, {*known, *ALIASES}))
        elif key in FLAG_KEYS and not isinstance(value, bool | None):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write true or false"))
        elif key in SOURCE_KEYS and not _is_sources(value):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write a source, or a list of sources"))
        elif key in NAME_KEYS and not isinstance(value, str | None):
            faults.append(Fault(where, f"{key!r} is {_shown(value)}", "Write a name, in quotes if necessary"))
        elif value is not None:
            good[key] = value
    return good, faults


def known_settings() -> set[str]:
    """Return the names of all settings that ``--set`` and a file of settings take."""
    return {*REQUEST_KEYS, *setting_names()} - set(DECIDED_BY)


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _is_sources(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str) for item in items)
