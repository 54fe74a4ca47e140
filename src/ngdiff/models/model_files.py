"""folder of a model or an adapter -> what is wrong with its files, without loading weights or running code.

Only the JSON files and the headers of the weights are read. Pickles are never opened, and Python files run
only if the user requests it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ngdiff.errors import Fault, RequestError, inert
from ngdiff.models.adapters import MOST_BYTES, config_faults
from ngdiff.system.untrusted import Unreadable, check_ordinary, first_line, load_object

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_AGAIN = "Write the model again with save_pretrained"
_FETCH = "Copy or download the file again"
ASK = "Read that code first; where you trust it, --trust-remote-code runs it"


def folder_faults(path: Path, where: str, trust_remote_code: bool = False) -> list[Fault]:
    """List what is missing from, or broken in, a local model folder.

    Args:
        path: the folder; it holds an adapter where it has an ``adapter_config.json``.
        where: the setting that named it.
        trust_remote_code: whether code that comes with the model may be run.
    """
    if strange := _strange(path):
        fix = "Remove it from the folder, or copy the model again"
        return [Fault(where, f"{path / name} {what}", fix) for name, what in strange]
    adapter = (path / ADAPTER_CONFIG).is_file()
    config = path / (ADAPTER_CONFIG if adapter else "config.json")
    if not config.is_file():
        return [Fault(where, f"{path} has no {config.name}", "Give a folder written by save_pretrained")]
    try:
        content = load_object(config, where, _AGAIN)
    except RequestError as error:
        return list(error.faults)
    faults = _adapter_faults(path, content, where) if adapter else _weight_faults(path, where)
    if not adapter:
        faults += _code_faults(path, content, where, trust_remote_code)
        faults += quantised_faults(str(path), content.get("quantization_config"), where)
        faults += _generation_faults(path, where)
    if not faults and not adapter:
        faults += _size_faults(path, content, where)
    return faults


# ---- weights ----


def _strange(folder: Path) -> list[tuple[str, str]]:
    """Return the names of special files in a folder, such as pipes, which would block a reader forever."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir():
            try:
                check_ordinary(path)
            except Unreadable as error:
                found.append((path.name, error.what))
    return found


def _adapter_faults(path: Path, content: Mapping[str, Any], where: str) -> list[Fault]:
    # peft takes adapter_model.bin, a pickle, where this one file is missing
    if not (path / ADAPTER_WEIGHTS).is_file():
        return _no_weights(path, where, ADAPTER_WEIGHTS)
    if faults := _header_faults([path / ADAPTER_WEIGHTS], where):
        return faults
    config = path / ADAPTER_CONFIG
    if config.stat().st_size > MOST_BYTES:
        return [Fault(where, f"{config} is too large for such a file", _AGAIN)]
    return config_faults(config, content, shapes(path / ADAPTER_WEIGHTS), where)


def _weight_faults(path: Path, where: str) -> list[Fault]:
    """List weight files that are missing, outside the folder, or cut short."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        return _no_weights(path, where, "*.safetensors")
    wanted: set[str] = set()
    for index in sorted(path.glob("*.safetensors.index.json")):
        try:
            named = load_object(index, where, _AGAIN).get("weight_map")
        except RequestError as error:
            return list(error.faults)
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            return [Fault(where, f"{index} is not an index of weight files", _AGAIN)]
        wanted |= set(named.values())
    outside = sorted(name for name in wanted if not _plain_name(name))
    if outside:
        what = f"{path} has an index that names {outside[0]!r}, which is not a file in this folder"
        return [Fault(where, what, "Do not use this model, or write it again with save_pretrained")]
    lost = sorted(name for name in wanted if not (path / name).is_file())
    if lost:
        what = f"{path} lacks {', '.join(lost[:5])}{' ...' * (len(lost) > 5)}, which its index names"
        return [Fault(where, what, "Copy or download the missing files")]
    return _header_faults(files, where)


def _plain_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name and "\0" not in name and name != ".."


def _no_weights(path: Path, where: str, wanted: str) -> list[Fault]:
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
    if pickled:
        what = f"{path} contains only pickled weights ({', '.join(pickled)}), which can run code when opened"
        fix = "Convert it where you trust it: model.save_pretrained(folder) writes safetensors"
        return [Fault(where, what, fix)]
    return [Fault(where, f"{path} contains no {wanted} file", "Give a folder written by save_pretrained")]


def _header_faults(files: list[Path], where: str) -> list[Fault]:
    faults = []
    for file in files:
        try:
            count_numbers(file)
        except (SafetensorError, OSError) as error:
            faults.append(Fault(where, f"{file} is damaged or truncated ({first_line(error)})", _FETCH))
    return faults


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, from its header."""
    with safe_open(str(file), framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def count_numbers(file: Path) -> int:
    """Count the numbers in a safetensors file from its header."""
    return sum(math.prod(shape) for shape in shapes(file).values())


def first_not_finite(file: Path) -> str | None:
    """Return the first tensor of a safetensors file that holds NaN or an infinity; None where none does."""
    with safe_open(str(file), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                return str(name)
    return None


# ---- configuration ----


def _code_faults(path: Path, config: Mapping[str, Any], where: str, trusted: bool) -> list[Fault]:
    """Return a fault where the configuration names code that the user did not allow to run."""
    if trusted:
        return []
    faults = []
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in json.dumps(config.get(key)):
            what = f"{path / 'config.json'} asks for {key} {str(config[key])[:80]!r}, code from the hub"
            faults.append(Fault(where, what, f"Remove that line. {ASK}"))
    if config.get("auto_map") and not known_type(config.get("model_type")):
        what = f"{path} comes with custom code (auto_map in config.json), which is not run"
        faults.append(Fault(where, what, ASK))
    return faults


def quantised_faults(name: str, settings: object, where: str) -> list[Fault]:
    """Return a fault for weights that were stored quantised, which can be neither trained nor compared."""
    if not settings:
        return []
    how = settings.get("quant_method") if isinstance(settings, Mapping) else None
    kind = f", {inert(str(how))[:40]}" if how else ""
    what = f"{name!r} contains quantised weights (quantization_config{kind})"
    return [Fault(where, what, "Give the model that it was made from; --qlora quantises it for the training")]


def known_type(model_type: object) -> bool:
    """Return whether transformers itself implements a model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


def _generation_faults(path: Path, where: str) -> list[Fault]:
    file = path / "generation_config.json"
    if not file.exists():
        return []
    fix = "Correct the file, or remove it to use the model's defaults"
    try:
        content = load_object(file, where, fix)
    except RequestError as error:
        return list(error.faults)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = content.get(key)
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            return [Fault(where, f"{file} has {str(value)[:40]!r} as {key}", fix)]
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(content)
    except Exception as error:  # whichever error its checks and constructors raise, the file caused it
        return [Fault(where, f"{file} cannot be used ({first_line(error)})", fix)]
    return []


_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def _size_faults(path: Path, config: Mapping[str, Any], where: str) -> list[Fault]:
    """Compare the configured number of layers with the weights.

    ``transformers`` fills missing weights with random numbers, omits the weights of layers that the
    configuration does not count, and would build a billion layers if it said so.
    """
    count = config.get("num_hidden_layers")
    if not isinstance(count, int) or isinstance(count, bool):
        return []
    names = [name for file in path.glob("*.safetensors") for name in shapes(file)]
    layers = {int(found[1]) for name in names if (found := _LAYER.search(name))}
    there = max(layers) + 1 if layers else None
    if count < 1 or count > 100 * max(1, len(names)) or (there is not None and count > there):
        declared = f"{path / 'config.json'} declares {count} layers"
        what = f"{declared}, but the weights have {there or 'no numbered layers'}"
        return [Fault(where, what, "Copy or download the model again: the two do not belong together")]
    return []


def missing_weights(info: Mapping[str, Any], layers: object) -> str | None:
    """Return how a model and the weights that it was loaded from do not match, if they do not.

    Args:
        info: what ``from_pretrained(..., output_loading_info=True)`` reported.
        layers: the configuration's number of layers.

    Returns:
        A sentence: missing weights, which would be random numbers, or omitted layers.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        return f"the files lack {len(missing)} of its weights, the first {missing[0]}"
    numbered = ((name, _LAYER.search(name)) for name in sorted(info.get("unexpected_keys") or ()))
    if isinstance(layers, int):
        for name, found in numbered:
            if found and int(found[1]) >= layers:
                return f"the files contain {name}, but config.json declares {layers} layers"
    return None


# ---- adapters ----


def base_name(path: Path, where: str = "--model") -> str | None:
    """Read an adapter's name for its base model.

    Raises:
        RequestError: the name is not a text.
    """
    content = load_object(path / ADAPTER_CONFIG, where, _AGAIN)
    name = content.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        what = f"{path / ADAPTER_CONFIG} has {str(name)[:40]!r} as base_model_name_or_path"
        raise RequestError(Fault(where, what, "Write the name or folder of the base model there"))
    return name or None


def chained(start: Path, where: str, follow: Callable[[str], Path | None]) -> Fault | None:
    """Return a fault where adapters name each other as their base, without a model at the end.

    Args:
        start: folder of the first adapter.
        where: the setting that named it.
        follow: the name of a base model to its folder, or ``None`` where there is no such folder.
    """
    seen: set[Path] = set()
    folder: Path | None = start
    while folder is not None and (folder / ADAPTER_CONFIG).is_file():
        if folder.resolve() in seen:
            fix = "Correct base_model_name_or_path in adapter_config.json"
            return Fault(where, f"{start} and its base models refer to each other", fix)
        seen.add(folder.resolve())
        name = base_name(folder, where)
        folder = None if name is None else follow(name)
    return None
