"""The memory arithmetic against what real steps of small models take, and the command that shows it."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import memory_table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

import ngdiff.preparation.counterfactual
import ngdiff.training.trainer
from commandline import Cli
from measured_memory import LiveBytes
from ngdiff import UnlearningConfig, UnlearningTrainer
from ngdiff.methods import METHODS
from ngdiff.models import head
from ngdiff.models.adapters import with_lora
from ngdiff.models.packing import attention_as_on_a_gpu, register
from ngdiff.models.parameters import ChangeMeter
from ngdiff.planning.memory import (
    GIB,
    NF4,
    Estimator,
    Plan,
    Shapes,
    builder,
    host_bytes,
    measure,
    parts,
    savings,
    second_buffer_bytes,
    weight_bytes,
    with_method,
)
from tiny import tiny_llama, tiny_tokenizer

BATCH, LENGTH = 4, 96


def small_config(layers: int = 4) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )


class Restart(TrainerCallback):
    """Forgets the peak at each step's beginning, and keeps it at its end."""

    def __init__(self, live: LiveBytes) -> None:
        self.live, self.peaks = live, list[int]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.live.restart()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.peaks.append(self.live.most)


def measured_peak(folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Train for real and return the most bytes of tensors in the second step, when the moments are there."""
    torch.set_num_threads(1)
    meter = functools.partial(
        ChangeMeter, sample=1000
    )  # its million samples are as many as this model's weights
    monkeypatch.setattr(ngdiff.training.trainer, "ChangeMeter", meter)
    monkeypatch.setattr(UnlearningTrainer, "CHECK_SIZE", 4)
    # expectations lie in the host's memory; here that is the device's, and the model is small beside them
    monkeypatch.setattr(ngdiff.preparation.counterfactual, "KEPT", 1)
    model: nn.Module = AutoModelForCausalLM.from_config(small_config())
    if plan.adapters == "lora":
        model = with_lora(model)
    texts = [{"text": " ".join(f"cat{n}sat{i % 11}" for i in range(LENGTH))} for n in range(48)]
    args = UnlearningConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=plan.bf16,
        max_steps=2,
        stop_at="none",
        keep_utility=0.0,
        hold_general=False,  # whose texts this tokenizer of bytes makes longer than those of the plan
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=2,
        max_length=plan.length,
        long_text="cut",  # so many examples as the plan has, each of its length
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        **({"gradient_checkpointing": True} if plan.checkpointing else {}),
        **settings,
    )
    live = LiveBytes(model.parameters())
    watch = Restart(live)
    trainer = UnlearningTrainer(
        model,
        args,
        forget_dataset=texts[:16],
        retain_dataset=texts[16:],
        holdout_dataset=[{"text": "the cat sat on a mat today"}],
        processing_class=tiny_tokenizer(None),
        callbacks=[watch],
    )
    with live, attention_as_on_a_gpu():  # for which a CPU stands in here
        trainer.train()
    return watch.peaks[1]


PLAIN = Plan(batch_size=BATCH, length=LENGTH, bf16=False)
SELECTIVE = replace(PLAIN, forget_loss="selective-unlikelihood")
SPARED: dict[str, Any] = {"method": "ngdiff-selective-kl", "step_size": "auto", "learning_rate": 1e-6}
PLANS: dict[str, tuple[Plan, dict[str, Any]]] = {
    "the default": (PLAIN, {"step_size": "auto", "learning_rate": 1e-6}),
    "float32": (SELECTIVE, SPARED),
    "bf16": (replace(SELECTIVE, bf16=True), SPARED),
    "checkpointing": (replace(SELECTIVE, bf16=True, checkpointing=True), SPARED),
    "lora": (replace(SELECTIVE, adapters="lora"), SPARED),
    "one gradient": (
        replace(PLAIN, two_gradients=False, automatic=False, forget_loss="negated-nll", retain_loss="nll"),
        {"method": "graddiff", "learning_rate": 1e-5},
    ),
    "logits in parts": (SELECTIVE, SPARED),
    "held by the starting model": (
        replace(SELECTIVE, retain_loss="kl"),
        {**SPARED, "retain_loss": "kl"},
    ),
}


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PLANS)
def test_the_sum_is_the_measured_peak(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, settings = PLANS[name]
    if name == "logits in parts":
        monkeypatch.setattr(head, "AT_ONCE", 4 * 1024 * 40)
    predicted = parts(measure(builder(small_config()), plan), plan)
    without_gpu = predicted.total - predicted.context
    assert 0.95 < without_gpu / measured_peak(tmp_path, plan, monkeypatch, **settings) < 1.12


def test_kept_bytes_are_those_of_a_real_pass() -> None:
    """The run on fake tensors against saved-tensor hooks on real ones, to the byte."""
    plan = replace(PLAIN, bf16=True)
    model = AutoModelForCausalLM.from_config(small_config())
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # without padding transformers makes no mask at all
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16), attention_as_on_a_gpu():
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    real = sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in known)
    shapes = measure(builder(small_config()), plan)
    assert shapes.kept + shapes.outside == real


def test_counts_by_hand() -> None:
    shapes = measure(builder(small_config()), PLAIN)
    model = AutoModelForCausalLM.from_config(small_config())
    assert shapes.parameters == shapes.trainable == sum(p.numel() for p in model.parameters())
    assert shapes.inputs == 4 * BATCH * LENGTH * 128 * 4
    lora = measure(builder(small_config()), replace(PLAIN, adapters="lora"))
    per_layer = 16 * (4 * 128 + 2 * (128 + 64) + 2 * (128 + 384) + (384 + 128))  # q, o; k, v; gate, up; down
    assert lora.trainable == 4 * per_layer
    assert lora.parameters == shapes.parameters + lora.trainable


def test_large_models_have_their_known_sizes() -> None:
    counts = {name: memory_table.shapes(name, Plan()).parameters for name in ("1B", "8B")}
    assert counts == {"1B": 1_235_814_400, "8B": 8_030_261_248}  # Llama 3.2 1B and Llama 3.1 8B


def test_a_loss_that_compares_predictions_pays_for_the_starting_model_s() -> None:
    plain, held = (
        measure(builder(small_config()), replace(PLAIN, forget_loss="unlikelihood", retain_loss=name))
        for name in ("nll", "kl")
    )
    logits = BATCH * (LENGTH - 1) * 1024 * 4
    assert plain.starting_head == 0 and held.starting_head == 1024 * 128 * 4
    # the starting model's logits, their log-softmax and the gradient, of which unlikelihood keeps two
    assert held.head - plain.head == pytest.approx(logits, rel=0.01)
    assert parts(held, PLAIN).total - parts(plain, PLAIN).total == held.starting_head + held.head - plain.head
    shared = replace(PLAIN, devices=4, sharding="fsdp")
    assert parts(held, shared).starting_head == held.starting_head  # each device has all of it


def test_layers_add_the_same() -> None:
    """What the page takes from models of 2 and 3 layers is what one of 6 has."""
    two, three, six = (measure(builder(small_config(n)), PLAIN) for n in (2, 3, 6))
    for field in fields(Shapes):
        low, high = getattr(two, field.name), getattr(three, field.name)
        assert low + 4 * (high - low) == getattr(six, field.name), field.name


SHAPES = Shapes(1000, 800, 0, 0, 100, kept=600, kept_by_a_layer=50, inputs=40, outside=7, head=90)


def test_parts_by_hand() -> None:
    whole = parts(SHAPES, Plan())
    assert (whole.weights, whole.gradient, whole.second_buffer, whole.moments) == (4000, 3200, 3200, 6400)
    assert (whole.activations, whole.head, whole.communication) == (607, 90, 0)
    assert whole.total == 4000 + 3200 + 3200 + 6400 + 607 + 90 + whole.context
    assert parts(SHAPES, Plan(checkpointing=True)).activations == 40 + 50 + 7
    shared = parts(SHAPES, Plan(devices=8, sharding="fsdp"))
    assert (shared.weights, shared.gradient, shared.second_buffer, shared.moments) == (500, 400, 400, 800)
    assert shared.communication == 3 * 2 * 100
    assert parts(SHAPES, Plan(devices=8)).communication == 3200


def test_a_way_uphill_keeps_a_copy_of_what_is_trained() -> None:
    flat, uphill = (parts(SHAPES, Plan(sharpens=sharpens)) for sharpens in (False, True))
    assert uphill.weights - flat.weights == uphill.total - flat.total == 4 * SHAPES.trainable
    assert with_method(Plan(), "npo-sam").sharpens and with_method(Plan(), "npo-sam").two_gradients
    assert not with_method(Plan(), "npo").sharpens


def test_second_buffer() -> None:
    sizes = {keep: second_buffer_bytes(100, Plan(forget_buffer=keep)) for keep in ("device", "bf16", "cpu")}
    assert sizes == {"device": 400, "bf16": 200, "cpu": 0}
    assert second_buffer_bytes(100, Plan(two_gradients=False, automatic=False)) == 0
    assert second_buffer_bytes(100, Plan(two_gradients=False, automatic=True)) == 400
    assert host_bytes(SHAPES, Plan(forget_buffer="cpu")) == 4 * 1600 + 4 * 800
    assert host_bytes(SHAPES, Plan(devices=8)) == 8 * 4 * 1600
    assert host_bytes(SHAPES, Plan(devices=8, sharding="fsdp")) == 4 * 1600


def test_methods_pay_for_what_they_use() -> None:
    assert with_method(Plan(), "ngdiff").two_gradients and with_method(Plan(), "ngdiff").automatic
    graddiff = with_method(Plan(), "graddiff")
    assert not graddiff.two_gradients and not graddiff.automatic
    for name in METHODS:  # every method's loss can be counted
        plan = with_method(replace(PLAIN, batch_size=1, length=16), name)
        assert measure(builder(small_config(1)), plan).head > 0


def test_four_bits_against_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 1024)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    held = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == pytest.approx(NF4 * weight.numel(), rel=1e-3)
    shapes = measure(builder(small_config()), replace(PLAIN, adapters="qlora"))
    per_layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384
    assert shapes.quantised == 4 * per_layer and shapes.largest == 128 * 384
    unpacked = 2 * shapes.largest
    rest = shapes.parameters - shapes.quantised
    assert weight_bytes(shapes) == 4 * rest + round(NF4 * shapes.quantised) + unpacked


def test_savings_take_less_and_less() -> None:
    estimator = Estimator(builder(small_config(2)))
    plan = replace(PLAIN, bf16=True, devices=4)
    steps = list(savings(plan))
    assert [words for words, _ in steps] == [
        *("--fsdp", "--gradient-checkpointing", "--forget-buffer bf16", "--forget-buffer cpu"),
        *("--batch-size 2", "--batch-size 1", "--lora", "--qlora"),
    ]  # fmt: skip
    totals = [estimator.estimate(step).parts.total for step in (plan, *(step for _, step in steps[:-1]))]
    assert totals == sorted(totals, reverse=True)
    limit = totals[2] / GIB
    tried = list(estimator.until_it_fits(plan, limit))
    assert [found.fits(limit) for found in tried] == [False, True]


# ---- the command and the page ----


def test_the_command_reads_the_configuration_alone(cli: Cli, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    answer = cli("plan", "--model", tmp_path / "model", "--memory", "1")
    assert answer.code == 0
    count = sum(p.numel() for p in tiny_llama().parameters())
    assert "It fits" in answer.out and f"{count:,} parameters, {count:,} of them train" in answer.out
    answer = cli(
        "plan", "--model", tmp_path / "model", "--memory", "0.5", "--gpus", "2", "--precision", "fp32"
    )
    assert "It does not fit" in answer.out and "and --fsdp" in answer.out
    assert "Nothing more can be enabled" in answer.out  # half a GiB goes to the GPU's context


def test_wrong_plans(cli: Cli, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    wrong = (
        "--gpus",
        "0",
        "--memory",
        "-1",
        "--batch-size",
        "0",
        "--max-length",
        "1",
        "--answer-length",
        "-3",
    )
    names = ("--forget-buffer", "disk", "--precision", "fp8", "--method", "nodiff", "--qlora", "--fsdp")
    answer = cli("plan", "--model", tmp_path / "nowhere", *wrong, *names)
    assert answer.code == 2
    assert len(answer.faults) == 10


def test_the_page_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    register()  # as any forward pass of a training step does: GPUs are unaffected
    for name, table in memory_table.tables().items():
        assert f"<!-- begin: {name} -->\n{table}\n<!-- end: {name} -->" in page
