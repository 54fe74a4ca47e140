"""Model folders: code that comes along, padding without embedding, adapters that fit, safe formats only."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from commandline import save_model
from ngdiff.errors import RequestError
from ngdiff.models.loading import (
    check_causal,
    load_model,
    load_tokenizer,
    resolve_model,
    vocabulary_faults,
)
from tiny import tiny_llama, tiny_tokenizer

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose code comes with it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = save_model(tmp_path / "odd")
    (folder / "odd.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    config |= {"model_type": "odd", "architectures": ["OddForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_that_comes_with_a_model_runs_only_where_asked_for(odd: Path) -> None:
    with pytest.raises(RequestError, match="--trust-remote-code"):
        resolve_model(str(odd))
    assert not (odd.parent / "modules").exists()
    source = resolve_model(str(odd), trust_remote_code=True)
    assert check_causal(source) == []
    model = load_model(source)
    assert type(model).__name__ == "OddForCausalLM"
    assert torch.equal(model.lm_head.weight, tiny_llama().lm_head.weight)


def test_known_models_with_code_run_their_own(tmp_path: Path) -> None:
    """``auto_map`` in the configuration of a model that transformers has itself is passed over."""
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (folder / "config.json").write_text(json.dumps(config))
    source = resolve_model(str(folder))
    assert check_causal(source) == []
    assert type(load_model(source)).__name__ == "LlamaForCausalLM"


def test_a_padding_token_beyond_the_embeddings_gives_way(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 320  # one more than the model has
    tokenizer.save_pretrained(folder)
    source = resolve_model(str(folder))
    loaded = load_tokenizer(source)
    assert vocabulary_faults(source, loaded, [5, 319]) == []
    assert loaded.pad_token_id == loaded.eos_token_id < 320
    (fault,) = vocabulary_faults(source, loaded, [5, 320])
    assert "token 320 ('[PAD]')" in fault.what and "320 embeddings" in fault.what


def test_more_embeddings_than_tokens_are_usual(tmp_path: Path) -> None:
    tiny_llama(vocab_size=512).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    source = resolve_model(str(tmp_path))
    assert vocabulary_faults(source, load_tokenizer(source), range(320)) == []


def test_an_adapter_that_fits_is_folded_in(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped = get_peft_model(load_model(resolve_model(str(base))), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    source = resolve_model(str(tmp_path / "adapter"))
    merged = load_model(source).model.layers[0].self_attn.q_proj.weight
    expected = wrapped.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    assert torch.allclose(merged, expected)
    assert not torch.allclose(merged, tiny_llama().model.layers[0].self_attn.q_proj.weight)


def test_an_adapter_on_a_model_in_the_hubs_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path / "base")
    wrapped = get_peft_model(
        load_model(resolve_model(str(base))),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/name"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    asked = []

    def cached(name: str, local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        return str(base)

    monkeypatch.setattr("socket.getaddrinfo", pytest.fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    source = resolve_model(str(tmp_path / "adapter"))
    assert check_causal(source) == []
    assert torch.equal(load_model(source).lm_head.weight, tiny_llama().lm_head.weight)
    assert asked and set(asked) == {("org/name", True)}


def test_honest_adapters_are_within_the_bounds(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    for number, settings in enumerate(
        (
            {
                "target_modules": r".*\.(q|v)_proj",
                "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 4},
                "exclude_modules": ".*1.*",
            },
            {"target_modules": "all-linear", "init_lora_weights": "pissa_niter_4"},
            {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        )
    ):
        config = LoraConfig(r=2, task_type="CAUSAL_LM", **settings)
        wrapped = get_peft_model(load_model(resolve_model(str(base))), config)
        wrapped.save_pretrained(tmp_path / f"adapter{number}")
        load_model(resolve_model(str(tmp_path / f"adapter{number}")))


SOURCES = sorted((Path(__file__).parent.parent / "src").rglob("*.py"))
UNSAFE = {
    "torch.load", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "joblib.load",
    "eval", "exec", "os.system", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive",
    "numpy.load", "np.load",
}  # fmt: skip


def test_nothing_here_opens_pickles_or_archives_or_evaluates_text() -> None:
    assert len(SOURCES) > 90
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in UNSAFE, f"{path}, line {node.lineno}"


def test_every_model_and_tokenizer_is_opened_with_a_word_on_its_code() -> None:
    """Left unset, ``transformers`` asks on the terminal."""
    seen = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                owner = ast.unparse(node.func).split(".")[0]
                if owner not in ("AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"):
                    continue
                words = {word.arg for word in node.keywords}
                assert words & {"trust_remote_code", "gguf_file"}, f"{path}, line {node.lineno}"
                if owner == "AutoModelForCausalLM" and "gguf_file" not in words:
                    assert "use_safetensors" in words, f"{path}, line {node.lineno}"
                seen += 1
    assert seen >= 5


@pytest.mark.parametrize("kind", [OSError, ValueError, Exception])
def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def load(*_: object, **__: object) -> object:
        raise kind("no route to the hub\nand much more")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", load)
    (fault,) = check_causal(resolve_model("org/name"))
    assert fault.what == "'org/name' cannot be opened: no route to the hub" and "the network" in fault.fix
