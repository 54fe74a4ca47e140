"""Peak memory of a few NGDiff steps -> what each option that saves memory saves.

    python -m benchmarks.memory_options                      # on a CPU: peak resident memory
    python -m benchmarks.memory_options --device cuda --hidden 2048 --layers 16

Each setting runs in a process of its own, on a Llama with random weights. On a CPU a forget buffer ``cpu``
lies in the same memory as all the rest, so nothing is saved there: its effect shows on a GPU only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """One way to hold what a step needs."""

    name: str
    forget_buffer: str = "device"
    gradient_checkpointing: bool = False
    lora: bool = False


SETTINGS = (
    Setting("full"),
    Setting("full, forget buffer bf16", forget_buffer="bf16"),
    Setting("full, forget buffer cpu", forget_buffer="cpu"),
    Setting("full, gradient checkpointing", gradient_checkpointing=True),
    Setting("full, checkpointing and bf16", forget_buffer="bf16", gradient_checkpointing=True),
    Setting("LoRA", lora=True),
    Setting("LoRA, gradient checkpointing", lora=True, gradient_checkpointing=True),
)


def measure(setting: Setting, args: argparse.Namespace) -> dict[str, float]:
    """Run a few steps; return peak memory in GiB and the model's parameters in millions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ngdiff.models.adapters import with_lora
    from ngdiff.steps.gradients import GradientPair
    from ngdiff.steps.weighting import make_rule
    from ngdiff.system.environment import peak_memory_gib

    torch.manual_seed(0)
    size = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = LlamaForCausalLM(size).to(args.device)
    count = sum(parameter.numel() for parameter in model.parameters())
    if setting.lora:
        model = with_lora(model)
    if setting.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    before = peak_memory_gib()
    pair = GradientPair(model.parameters(), setting.forget_buffer)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(pair.parameters, lr=1e-5)
    rule = make_rule("ngdiff")
    ids = torch.randint(args.vocabulary, (args.batch, args.length), device=args.device)
    for _ in range(args.steps):
        pair.clear()
        for _ in range(args.accumulation):
            for task, sign in (("forget", -1), ("retain", 1)):
                with pair.task(task):  # type: ignore[arg-type]
                    (sign * model(input_ids=ids, labels=ids, use_cache=False).loss).backward()
        pair.combine(rule(pair.gramian()))
        optimizer.step()
    where = "accelerator" if args.device == "cuda" else "process"
    peak = peak_memory_gib()[where]
    return {"peak": peak, "above the model": peak - before[where], "parameters": count / 1e6}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name, value in (("hidden", 512), ("layers", 12), ("vocabulary", 8192), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("batch", 4), ("accumulation", 2), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(Setting(**json.loads(args.only)), args)))
        return
    print("| setting | peak, GiB | above the model, GiB |\n|---|---|---|")
    for setting in SETTINGS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory_options",
            *sys.argv[1:],
            "--only",
            json.dumps(asdict(setting)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {setting.name} | {found['peak']:.2f} | {found['above the model']:.2f} |", flush=True)
    print(
        f"\n{found['parameters']:.0f}M parameters: {4 * found['parameters'] * 1e6 / GIB:.2f} GiB in float32"
    )


if __name__ == "__main__":
    main()
