"""docs/memory.md's tables: what models of 1, 8 and 70 billion parameters take, from their shapes alone.

    python -m benchmarks.memory_table    # puts the tables into docs/memory.md

The shapes are those of Llama 3.2 1B and of Llama 3.1 8B and 70B, as plain numbers. All layers of such a
model are alike, so two small models of 2 and 3 layers tell what any number of them takes.
"""

from __future__ import annotations

from dataclasses import fields, replace

from transformers import LlamaConfig

from benchmarks.pages import put
from ngdiff.planning.memory import GIB, Parts, Plan, Shapes, builder, measure, parts

VOCABULARY = 128_256
# hidden, intermediate, layers, attention heads, tied embedding; all have 8 heads of keys and values
MODELS = {
    "1B": (2048, 8192, 16, 32, True),
    "8B": (4096, 14336, 32, 32, False),
    "70B": (8192, 28672, 80, 64, False),
}
KINDS = {"full": "none", "LoRA": "lora", "QLoRA": "qlora"}
COLUMNS = {
    "weights": ("weights",),
    "both gradients": ("gradient", "second_buffer"),
    "moments": ("moments",),
    "activations": ("activations",),
    "logits, starting head": ("head", "starting_head"),
}
"""Title of each column to the parts that it adds up."""
SAVING = replace(Plan(), checkpointing=True, forget_buffer="cpu")


def config(name: str, layers: int) -> LlamaConfig:
    """Return a model's configuration with so many layers."""
    hidden, intermediate, _, heads, tied = MODELS[name]
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=tied,
    )


def shapes(name: str, plan: Plan) -> Shapes:
    """Return a model's shapes, from two models of few layers: every layer adds the same."""
    two, three = (measure(builder(config(name, layers)), plan) for layers in (2, 3))
    more = MODELS[name][2] - 2
    line = {f.name: (getattr(two, f.name), getattr(three, f.name)) for f in fields(Shapes)}
    return Shapes(**{key: low + more * (high - low) for key, (low, high) in line.items()})


def gib(count: float) -> str:
    """Write bytes as GiB."""
    value = count / GIB
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def parts_table(found: dict[tuple[str, str], Shapes]) -> str:
    """Lay out what one GPU would need, part by part, and what savings leave of it."""
    titles = (*COLUMNS, "together", "saving")
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    for (name, kind), shape in found.items():
        plan = replace(Plan(), adapters=KINDS[kind])
        whole, saved = parts(shape, plan), parts(shape, replace(SAVING, adapters=KINDS[kind]))
        cells = [gib(sum(getattr(whole, part) for part in added)) for added in COLUMNS.values()]
        lines.append(f"| {name} {kind} | {' | '.join([*cells, gib(whole.total), gib(saved.total)])} |")
    return "\n".join(lines)


def sharded_table(names: tuple[str, ...] = ("8B", "70B")) -> str:
    """Lay out full training under FSDP on 8, 16 and 32 GPUs."""
    counts = (8, 16, 32)
    lines = [
        f"| GiB on each of | {' | '.join(f'{count} GPUs' for count in counts)} |",
        "|---|---:|---:|---:|",
    ]
    for name in names:
        sharded = replace(Plan(), devices=2, sharding="fsdp")
        shape = shapes(name, sharded)
        options = {"": {}, ", layers' inputs only": {"checkpointing": True}}
        options[", and forget buffer on the CPU"] = {"checkpointing": True, "forget_buffer": "cpu"}
        for words, changes in options.items():
            found: list[Parts] = [parts(shape, replace(sharded, devices=n, **changes)) for n in counts]
            lines.append(f"| {name} full{words} | {' | '.join(gib(each.total) for each in found)} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Return each table by the name that the page has for it."""
    found = {
        (name, kind): shapes(name, replace(Plan(), adapters=adapters))
        for name in MODELS
        for kind, adapters in KINDS.items()
    }
    return {"one GPU": parts_table(found), "FSDP": sharded_table()}


def main() -> None:
    """Put the tables into the page."""
    for name, table in tables().items():
        put(name, table)


if __name__ == "__main__":
    main()
