"""Cases of a training run -> their figures and weights, on however many processes torchrun started.

The tests run the same cases in their own process and compare.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sharded_cpu
from ngdiff.data.batching import collate
from ngdiff.data.datasets import as_encoded
from ngdiff.errors import RequestError
from ngdiff.finetune import FinetuneRequest, finetune
from ngdiff.losses import nll
from ngdiff.models.logprobs import count_labelled, labelled_tokens
from ngdiff.steps.gradients import GradientPair
from ngdiff.system.environment import weights_hash
from ngdiff.system.processes import is_main, whole
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer
from ngdiff.unlearn import UnlearnRequest, unlearn
from tiny import tiny_llama, tiny_tokenizer

FORGET = [{"prompt": f"F{n:02}:", "completion": f" {'xyzuvw'[n % 6] * (2 + n % 5)}{n}"} for n in range(17)]
RETAIN = [{"prompt": f"R{n:02}:", "completion": f" {'abcdefghij'[n % 10] * (3 + n % 5)}"} for n in range(40)]
UNSEEN = [{"prompt": f"U{n}:", "completion": f" {'qrst'[n % 4] * 4}"} for n in range(5)]


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        name: of its files.
        how: ``ddp`` and ``fsdp2`` differ only where several processes run.
        lora: train adapters.
        settings: of the trainer.
        start: file with the weights to start from.
        resume: the checkpoint to go on from.
        command: ``unlearn`` or ``finetune``: make a folder of the request in ``settings`` instead.
        full_disk: FSDP writes whole copies of weights and optimizer, and no room for the first.
    """

    name: str
    how: Literal["ddp", "fsdp2"] = "ddp"
    lora: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    resume: str | None = None
    command: Literal["unlearn", "finetune"] | None = None
    full_disk: bool = False


def learn(file: Path, steps: int = 150) -> None:
    """Teach the tiny model both sets, so that there is something to forget, and keep its weights."""
    tokenizer = tiny_tokenizer(None)
    model = tiny_llama(layers=1, hidden=16)
    examples = as_encoded(FORGET + RETAIN, tokenizer, 64, "rows")
    batch = collate(examples, int(tokenizer.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (nll(labelled_tokens(model, batch)) / count_labelled(batch)).backward()
        optimizer.step()
    save_file({name: value.detach() for name, value in model.named_parameters()}, file)


def trainer_of(case: Case, folder: Path) -> UnlearningTrainer:
    """Make the trainer of a case."""
    torch.manual_seed(0)
    peft = None
    if case.lora:
        from peft import LoraConfig

        peft = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = {
        "method": "ngdiff",
        "stop_at": "none",
        "keep_utility": 0.0,
        "floors": {"general": 0.0},
        "max_steps": 20,
        "num_train_epochs": 40,
        "per_device_train_batch_size": 2,
        "max_length": 64,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "logging_strategy": "no",
        **case.settings,
    }
    if settings["method"] == "ngdiff" and "learning_rate" not in settings:
        settings = {"step_size": "auto", **settings}  # with probes from the first step on
    model = tiny_llama(layers=1, hidden=16)
    if case.start is not None:
        model.load_state_dict(load_file(case.start), strict=False)
    return UnlearningTrainer(
        model,
        UnlearningConfig(output_dir=str(folder / case.name), **settings),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=UNSEEN,
        processing_class=tiny_tokenizer(None),
        peft_config=peft,
    )


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case: the first process writes ``NAME.json`` and ``NAME.safetensors``, a command a folder."""
    if case.command is not None:
        return _command(case, folder)
    trainer = trainer_of(case, folder)
    trainer.train(resume_from_checkpoint=case.resume)
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: whole(value).contiguous().clone() for name, value in model.named_parameters()}
    found = {**trainer.record.as_json(), "hash": weights_hash(model)}
    if is_main():
        save_file(weights, folder / f"{case.name}.safetensors")
        (folder / f"{case.name}.json").write_text(json.dumps(found))
    return found


def _command(case: Case, folder: Path) -> dict[str, Any]:
    settings = {
        key: tuple(value) if isinstance(value, list) else value for key, value in case.settings.items()
    }
    if case.command == "finetune":
        finetune(FinetuneRequest(output=folder / case.name, **settings))
        return {}
    try:
        return unlearn(UnlearnRequest(output=folder / case.name, **settings)).as_json()
    except RequestError as error:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        (folder / f"{case.name}-{rank}.txt").write_text(str(error))
        return {}


def check_replicas() -> None:
    """Compare the Gramian of shards that are replicated once more (HSDP) with that of whole gradients."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    found = []
    for wrap in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        if wrap:
            fully_shard(model, mesh=mesh)
        pair = GradientPair(model.parameters())
        inputs = torch.linspace(-1, 1, 20).view(4, 5)
        with pair.task("forget"):
            (-model(inputs).square().mean()).backward()
        with pair.task("retain"):
            model(inputs).exp().mean().backward()
        found.append(pair.gramian())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)


@contextmanager
def full_disk() -> Iterator[None]:
    """Have FSDP write whole copies, and let torch find no room for that of the weights, in one process."""

    def save(content: Any, file: Any, *words: Any, **others: Any) -> None:
        if Path(str(file)).name == "pytorch_model_fsdp.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        whole_save(content, file, *words, **others)

    def gathered(accelerator: Accelerator, *words: Any, **others: Any) -> dict[str, Any]:
        found = gather(accelerator, *words, **others)
        # on an accelerator, the copy to the CPU makes plain tensors of them
        return {name: whole(value).clone() for name, value in found.items()}

    whole_save, gather = torch.save, Accelerator.get_state_dict
    full = patch.dict(os.environ, FSDP_STATE_DICT_TYPE="FULL_STATE_DICT")
    with full, patch("torch.save", save), patch.object(Accelerator, "get_state_dict", gathered):
        yield


def main() -> None:
    """Run the cases of a JSON file, in order, in the folder where it lies."""
    torch.set_num_threads(1)
    sharded_cpu.allow()
    plan = Path(sys.argv[1])
    for case in (Case(**case) for case in json.loads(plan.read_text())):
        sharded_cpu.switch(case.how == "fsdp2")
        with full_disk() if case.full_disk else nullcontext():
            run(case, plan.parent)
    if torch.distributed.get_world_size() == 2:
        check_replicas()
    torch.distributed.destroy_process_group()


def as_json(cases: list[Case]) -> str:
    """Return the content of the JSON file that :func:`main` reads."""
    return json.dumps([asdict(case) for case in cases])


if __name__ == "__main__":
    main()
