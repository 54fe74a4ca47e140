"""Rows of hostile and malformed requests: name, words typed (or what they stand for), words of the message."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from commandline import questions, save_model, write_jsonl
from hostile_data import LINES

# ---- files that are none ----


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other.jsonl"))
    path.with_name("other.jsonl").symlink_to(path)


def mixed_folder(path: Path, *spoil: Callable[[Path], None]) -> None:
    path.mkdir()
    (path / "a.jsonl").write_text(LINES)
    for number, make in enumerate(spoil):
        make(path / f"b{number}.jsonl")


def packed_folder(path: Path) -> None:
    mixed_folder(path)
    (path / "b.jsonl.gz").write_bytes(b"anything")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 * 2**30)


FILES: list[tuple[str, str, Callable[[Path], None], tuple[str, ...]]] = [
    ("a folder called f.jsonl", "f.jsonl", Path.mkdir, ("f.jsonl", "has no data files")),
    ("a pipe", "f.jsonl", os.mkfifo, ("f.jsonl", "is a pipe, not a file", "regular file")),
    ("a socket", "f.jsonl", socket_at, ("f.jsonl", "is a socket")),
    ("a link to a device", "f.jsonl", lambda p: p.symlink_to("/dev/zero"), ("f.jsonl", "is a device")),
    ("a link to nothing", "f.jsonl", lambda p: p.symlink_to("gone"), ("f.jsonl", "broken link", "Fix")),
    ("a link to itself", "f.jsonl", lambda p: p.symlink_to(p), ("f.jsonl", "broken link")),
    ("links in a ring", "f.jsonl", loop, ("f.jsonl", "broken link")),
    ("50 GiB of nothing", "f.jsonl", sparse, ("f.jsonl", "larger than", "Split it into smaller files")),
    ("an endless file of /proc", "f.jsonl", lambda p: p.symlink_to("/proc/self/mem"), ("cannot be read",)),
    ("a folder with a dead link", "f", lambda p: mixed_folder(p, lambda q: q.symlink_to("gone")), ("b0.jsonl",)),
    ("a folder with a pipe", "f", lambda p: mixed_folder(p, os.mkfifo), ("b0.jsonl", "is a pipe")),
    ("a folder in the folder", "f", lambda p: mixed_folder(p, Path.mkdir), ("b0.jsonl", "is a folder")),
    ("packed data in a folder", "f", packed_folder, ("b.jsonl.gz", "archive")),
]  # fmt: skip

# ---- models ----


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    return spoil


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def index(**files: object) -> Callable[[Path], None]:
    return put("model.safetensors.index.json", json.dumps({"weight_map": files}))


def code(folder: Path) -> None:
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit("config.json", model_type="evil", auto_map=auto)(folder)
    put("evil.py", f"open({str(folder.parent / 'ran')!r}, 'w')")(folder)


def tokenizer_code(folder: Path) -> None:
    edit("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]})(
        folder
    )
    put("evil.py", f"open({str(folder.parent / 'ran')!r}, 'w')")(folder)


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lying_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    first = next(name for name in header if name != "__metadata__")
    header[first]["data_offsets"] = [0, 10**12]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def endless_header(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + raw[8:])


def pipe_for(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def device_for(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to("/dev/zero")


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][5, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


ADAPTER = "adapter_config.json"


def both(*spoils: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


def adapter(base: object = "", **shapes: tuple[int, ...]) -> Callable[[Path], None]:
    """Turn the folder into an adapter on a model beside it (``base`` is a name, or "" for that model)."""

    def spoil(folder: Path) -> None:
        model = save_model(folder.parent / "base")
        (folder / "model.safetensors").unlink()
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
        settings |= {
            "target_modules": ["q_proj"],
            "base_model_name_or_path": str(model) if base == "" else base,
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        right = {
            stem.format(n, part): shape for n in (0, 1) for part, shape in (("A", (2, 32)), ("B", (32, 2)))
        }
        wanted = right | {stem.format(0, part): shape for part, shape in shapes.items()}
        tensors = {name: torch.zeros(shape) for name, shape in wanted.items() if shape}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})

    return spoil


def ring(folder: Path) -> None:
    adapter(str(folder.parent / "second"))(folder)
    adapter(str(folder))((folder.parent / "second").mkdir() or save_model(folder.parent / "second"))


def pickled_adapter(folder: Path) -> None:
    adapter()(folder)
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    torch.save({}, folder / "adapter_model.bin")


def bigger_tokenizer(folder: Path) -> None:
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["the author"])
    tokenizer.save_pretrained(folder)


def no_end(folder: Path) -> None:
    for name in ("tokenizer_config.json",):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token": None, "pad_token": None}))


TEMPLATE = "chat_template.jinja"
LOADS = True
Spoil = Callable[[Path], None]
MODELS: list[tuple[Any, ...]] = [
    ("config of the wrong type", edit("config.json", num_hidden_layers="two"), ("num_hidden_layers", "network")),
    ("config that divides by zero", edit("config.json", num_attention_heads=0), ("cannot be opened",)),
    ("a model type that is a list", edit("config.json", model_type=["llama"]), ("cannot be opened",)),
    ("no model type", edit("config.json", model_type=None), ("cannot be opened",)),
    ("deep config", put("config.json", "[" * 50_000), ("config.json", "nested too deeply", "save_pretrained")),
    ("binary config", put("config.json", b"\xff\xfe\0a"), ("config.json", "UTF-16")),
    ("a billion layers", edit("config.json", num_hidden_layers=10**9), ("declares 1000000000 layers", "have 2")),
    ("fewer than no layers", edit("config.json", num_hidden_layers=-1), ("declares -1 layers",)),
    ("too many layers", edit("config.json", num_hidden_layers=3), ("declares 3 layers", "have 2")),
    ("too few layers", edit("config.json", num_hidden_layers=1), ("layers.1.", "declares 1 layers"), LOADS),
    ("a weight is missing", lacking, ("lack 1 of its weights", "down_proj"), LOADS),
    ("another width", edit("config.json", hidden_size=64), ("shapes of its weights differ",), LOADS),
    ("more embeddings", edit("config.json", vocab_size=999), ("shapes of its weights differ",), LOADS),
    ("no such activation", edit("config.json", hidden_act="evil"), ("cannot be loaded", "evil"), LOADS),
    ("a header that lies", lying_header, ("model.safetensors", "damaged or truncated", "Copy or download")),
    ("a header without end", endless_header, ("model.safetensors", "damaged or truncated")),
    ("empty weights", put("model.safetensors", b""), ("model.safetensors", "damaged or truncated")),
    ("text for weights", put("model.safetensors", LINES), ("model.safetensors", "damaged or truncated")),
    ("an absent shard", index(a="model-2.safetensors"), ("lacks model-2.safetensors", "Copy or download")),
    ("a shard outside", index(a="../../secret.safetensors"), ("'../../secret.safetensors'", "not a file in this")),
    ("an absolute shard", index(a="/etc/passwd"), ("'/etc/passwd'", "not a file in this folder")),
    ("a shard that is a number", index(a=5), ("not an index of weight files",)),
    ("an index that is none", put("model.safetensors.index.json", "[1]"), ("index.json", "not contain a JSON object")),
    ("code of its own", code, ("auto_map", "not run", "--trust-remote-code")),
    ("a tokenizer with code", tokenizer_code, ("tokenizer", "not run", "--trust-remote-code")),
    ("a kernel from the hub", edit("config.json", attn_implementation="evil/kernel"), ("evil/kernel", "Remove")),
    ("generation config, a list", put("generation_config.json", "[]"), ("generation_config.json", "remove it")),
    ("generation config, broken", put("generation_config.json", "{"), ("generation_config.json", "not valid JSON")),
    ("generation config, nonsense", edit("generation_config.json", max_new_tokens=-5), ("max_new_tokens",)),
    ("generation config, end token", edit("generation_config.json", eos_token_id="x"), ("eos_token_id", "'x'")),
    ("a tokenizer of no JSON", put("tokenizer.json", "{"), ("tokenizer", "save_pretrained")),
    ("a tokenizer that is a list", put("tokenizer.json", "[]"), ("tokenizer", "save_pretrained")),
    ("a tokenizer without end", no_end, ("neither an end-of-sequence", "eos_token")),
    ("tokens without embeddings", bigger_tokenizer, ("token 320", "320 embeddings", "resize_token_embeddings")),
    ("a template that is broken", put(TEMPLATE, "{% for"), ("chat template", "question/answer or text")),
    ("a template that refuses", put(TEMPLATE, "{{ raise_exception('no') }}"), ("chat template refuses", "no")),
    ("a template that divides", put(TEMPLATE, "{{ 1 // 0 }}"), ("chat template refuses", "zero")),
    ("a template that reaches out", put(TEMPLATE, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
     ("chat template refuses", "unsafe")),
    ("a template that never ends",
     put(TEMPLATE, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
     ("chat template does not end", "s")),
    ("a template that leaves it out", put(TEMPLATE, "hello"), ("chat template does not show",)),
    ("a template that puts out a book", put(TEMPLATE, "{{ 'x' * 2000000 }}"), ("chat template outputs 2000000",)),
    ("a pipe for weights", pipe_for("model.safetensors"), ("model.safetensors is a pipe", "Remove it")),
    ("a pipe for a tokenizer", pipe_for("tokenizer_config.json"), ("tokenizer_config.json is a pipe",)),
    ("a device for a card", device_for("README.md"), ("README.md is a device",)),
    ("quantised weights", edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
     ("contains quantised weights (quantization_config, gptq)", "--qlora")),
    ("weights that are not finite", not_finite, ("weights that are not finite", "lm_head.weight"), LOADS),
    ("an adapter with a regex bomb", both(adapter(), edit(ADAPTER, target_modules="([a-z_.0-9]+)+!")),
     ("pattern for names of modules whose matching does not end",), LOADS),
    ("an adapter with a bomb for layers", both(adapter(), edit(ADAPTER, layers_pattern=["([a-z_.0-9]+)+!"])),
     ("whose matching does not end",), LOADS),
    ("an adapter with a bomb for ranks", both(adapter(), edit(ADAPTER, rank_pattern={"([a-z_.0-9]+)+!": 2})),
     ("whose matching does not end",), LOADS),
    ("an adapter with half a pattern", both(adapter(), edit(ADAPTER, target_modules="(")), ("pattern that is not valid",), LOADS),
    ("an adapter that iterates", both(adapter(), edit(ADAPTER, init_lora_weights="pissa_niter_99999999")),
     ("99999999 iterations",)),
    ("an adapter that quantises for ever", both(adapter(), edit(ADAPTER, loftq_config={"loftq_iter": 10**9})),
     ("1000000000 iterations",)),
    ("an adapter of a huge rank", both(adapter(), edit(ADAPTER, r=10**9)), ("rank 1000000000",)),
    ("an adapter of many layers", both(adapter(), edit(ADAPTER, layer_replication=[[0, 10**9]])),
     ("layer_replication",)),
    ("an adapter with a book for a name", both(adapter(), edit(ADAPTER, target_modules=["q" * 2**21])),
     ("too large for such a file",)),
    ("an adapter on a model of the hub", adapter("org/name"),
     ("'org/name' on the hub, which has not been downloaded", "hf download org/name")),
    ("an adapter of a lost base", adapter("gone"), ("base model", "'gone'")),
    ("an adapter of nothing", adapter(None), ("base model", "not named", "base_model_name_or_path")),
    ("an adapter of a number", adapter(5), ("base_model_name_or_path", "'5'")),
    ("adapters in a ring", ring, ("refer to each other", "Correct")),
    ("a pickled adapter", pickled_adapter, ("pickled", "adapter_model.bin", "Convert it")),
    ("an adapter of another shape", adapter(A=(2, 48)), ("does not fit its base", "shapes"), LOADS),
    ("an adapter with a gap", adapter(B=()), ("does not fit its base", "lora_B"), LOADS),
]  # fmt: skip

# ---- settings ----

YAML: list[tuple[str, str, tuple[str, ...]]] = [
    ("an anchor", "method: &a ngdiff\nrule: *a\n", ("run.yaml, line 2", "aliases")),
    ("a bomb", "a: &a [x, x]\nb: &b [*a, *a]\nforget: [*b, *b]\n", ("run.yaml, line 2", "aliases")),
    ("python code", "model: !!python/object/apply:os.system ['true']\n", ("run.yaml, line 1", "python")),
    ("a tag of someone's", "model: !evil x\n", ("run.yaml, line 1", "!evil")),
    ("a setting twice", "seed: 1\nseed: 2\n", ("run.yaml, line 2", "'seed'", "twice")),
    ("a setting under two names", "lr: 1\nlearning_rate: 2\n", ("run.yaml", "'learning_rate'", "two names")),
    ("a date of no calendar", "seed: 2020-13-45\n", ("run.yaml", "month")),
    ("no number", "seed: !!int x\n", ("run.yaml", "cannot be read")),
    ("brackets 5,000 deep", "forget: " + "[" * 5000, ("run.yaml", "nested too deeply")),
    ("two documents", "seed: 1\n---\nseed: 2\n", ("run.yaml, line 2", "document")),
    ("a tab", "a:\n\t- b\n", ("run.yaml, line 2",)),
    ("a control character", "seed: \x01\n", ("run.yaml", "not valid YAML")),
    ("a key that is a list", "[1, 2]: x\n", ("run.yaml, line 1", "not valid YAML")),
    ("a key that is a number", "5: x\n", ("run.yaml", "no setting called '5'")),
    ("a list for a name", "model: [a, b]\n", ("'model'", "Write a name")),
    ("a number for the output", "output: 2024\n", ("'output' is 2024", "quotes")),
    ("a mapping of sources", "forget: {a: b}\n", ("'forget'", "a source")),
    ("text for a number", "weight_decay: heavy\n", ("weight_decay", "'heavy'", "a number")),
    ("a number below 0", "weight_decay: -1\n", ("weight_decay", "0 or more")),
    ("infinity", "max_grad_norm: .inf\n", ("max_grad_norm", "finite")),
    ("no number at all", "keep_utility: .nan\n", ("--keep-utility", "nan")),
    ("true for a number", "seed: true\n", ("--seed", "whole number")),
    ("more than 1", "adam_beta1: 1.5\n", ("adam_beta1", "from 0 to below 1")),
    ("no such scheduler", "lr: 1e-5\nlr_scheduler_type: evil\n", ("evil", "SchedulerType")),
    ("no such expression", "trainable: '('\n", ("trainable", "regular expression")),
]  # fmt: skip

FLAGS: list[tuple[str, list[str], tuple[str, ...]]] = [
    ("an infinite rate", ["--lr", "inf"], ("--lr", "inf", "finite")),
    ("a rate of 0", ["--lr", "0"], ("--lr", "positive")),
    ("epochs without number", ["--epochs", "nan"], ("--epochs", "nan")),
    ("endless epochs", ["--epochs", "inf"], ("--epochs", "inf")),
    ("utility below 0", ["--keep-utility", "-0.1"], ("--keep-utility", "-0.1")),
    ("utility without number", ["--keep-utility", "nan"], ("--keep-utility", "nan")),
    ("a target that is infinite", ["--stop-at", "nll=inf"], ("--stop-at", "inf")),
    ("a target without number", ["--stop-at", "probability=nan"], ("--stop-at", "nan")),
    ("an even batch of nothing", ["--batch-size", "-8"], ("--batch-size", "-8")),
    ("a set of nothing", ["--set", "=5"], ("--set", "''")),
    ("a set without end", ["--set", "seed=" + "[" * 3000], ("--set", "too deeply")),
    ("a set twice", ["--set", "seed=1", "--set", "seed=2"], ("--set", "'seed' is set twice")),
    ("a slice of nothing", ["--forget", "forget.jsonl[90:]"], ("--forget", "leaves none of 4 rows")),
    ("a slice that is none", ["--forget", "forget.jsonl[a:b]"], ("--forget", "not a valid slice")),
    ("no part of TOFU", ["--forget", "tofu:../../etc/passwd"], ("--forget", "no part of TOFU")),
    ("a folder without TOFU", ["--forget", "tofu:forget01", "--set", "tofu_dir=gone"], ("gone", "forget01.json")),
    ("an empty source", ["--forget", ""], ("--forget", "is empty")),
    ("a source of control characters", ["--forget", "\x1b[2J\x9b.jsonl"], ("--forget", "\\x1b[2J\\x9b")),
    ("a hub set out of the hub", ["--forget", "a/../b"], ("--forget", "there is no file")),
]  # fmt: skip

MODEL_NAMES: list[tuple[str, str, tuple[str, ...]]] = [
    ("climbing", "org/../../secret", ("neither a folder nor a hub name",)),
    ("climbing in two parts", "org/..", ("neither a folder nor a hub name",)),
    ("two dots", "org/a..b", ("neither a folder nor a hub name",)),
    ("a URL", "https://example.org/model", ("neither a folder nor a hub name",)),
    ("spaces", "org/my model", ("neither a folder nor a hub name",)),
    ("5,000 letters", "m" * 5000, ("neither a folder nor a hub name",)),
    ("control characters", "\x1b]0;title\x07", ("\\x1b]0;title\\x07",)),
    ("a file", "forget.jsonl", ("neither a folder nor a hub name", "save_pretrained")),
    ("empty", "", ("--model", "is missing")),
]


# ---- output ----


@dataclass(frozen=True)
class Place:
    """An output folder that must not be written to: how it comes about, and what is typed for it."""

    make: Callable[[Path], object]
    words: tuple[str, ...]


def result_with(name: str) -> Callable[[Path], object]:
    """Make an earlier result that holds a file of the request."""

    def make(box: Path) -> None:
        (box / "out").mkdir()
        (box / "out" / "record.json").write_text("{}")
        write_jsonl(box / "out" / name, questions(0, 4))

    return make


def model_inside(box: Path) -> None:
    (box / "model").rename(box / "moved")
    (box / "out").mkdir()
    (box / "out" / "record.json").write_text("{}")
    (box / "moved").rename(box / "out" / "model")


OVER = "--overwrite"
OUTPUTS: list[tuple[str, Callable[[Path], object], list[str], tuple[str, ...]]] = [
    ("data inside", result_with("f.jsonl"), [OVER, "--forget", "out/f.jsonl"], ("--forget", "would delete")),
    ("a slice of data inside", result_with("f.jsonl"), [OVER, "--forget", "out/f.jsonl[1:]"], ("delete",)),
    ("the data folder", result_with("f.jsonl"), [OVER, "--forget", "out"], ("is what --forget reads",)),
    ("holdout inside", result_with("h.jsonl"), [OVER, "--holdout", "out/h.jsonl"], ("--holdout", "delete")),
    ("TOFU inside", result_with("full.json"), [OVER, "--set", "tofu_dir=out"], ("tofu_dir",)),
    ("the model inside", model_inside, [OVER, "--model", "out/model"], ("contains the model", "another folder")),
    ("inside the model", lambda box: None, ["--output", "model/out"], ("is inside the model",)),
    ("a folder of others", lambda box: write_jsonl((box / "out").mkdir() or box / "out" / "a.txt", [1]),
     [OVER], ("no record.json", "empty this one")),
    ("a link to nothing", lambda box: (box / "out").symlink_to("gone"), [], ("broken link",)),
    ("a link to itself", lambda box: (box / "out").symlink_to("out"), [], ("--output", "out")),
    ("a pipe", lambda box: os.mkfifo(box / "out"), [], ("out", "is a file")),
    ("under a pipe", lambda box: os.mkfifo(box / "p"), ["--output", "p/out"], ("p is a file",)),
    ("a long name", lambda box: None, ["--output", "x" * 999], ("too long", "another name")),
    ("a device", lambda box: None, ["--output", "/dev/null"], ("/dev/null is a file",)),
    ("in /proc", lambda box: None, ["--output", "/proc/ngdiff"], ("/proc",)),
]  # fmt: skip
