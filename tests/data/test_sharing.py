"""Shares of a step: together they are the step, in order, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ngdiff.data.batching import PairedDataset, PairSampler, even_parts
from ngdiff.data.datasets import as_encoded
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.sharing import ShareOfSteps, StepShares, examples_of_a_step
from ngdiff.record import RunRecord
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.launch import share_steps
from tiny import tiny_tokenizer


class InOrder:
    """As many numbers as there are, in order."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(self.size))


@given(
    size=st.integers(1, 60),
    examples=st.integers(1, 20),
    largest=st.integers(1, 8),
    processes=st.integers(1, 9),
)
def test_shares_are_the_step(size: int, examples: int, largest: int, processes: int) -> None:
    shares = StepShares.of(examples, largest, processes)
    assert shares.micro_batch <= largest
    ranks = [ShareOfSteps(InOrder(size), shares, rank) for rank in range(processes)]
    batches = [list(rank) for rank in ranks]
    assert {len(mine) for mine in batches} == {len(ranks[0])}  # nobody waits for a pass that never comes
    turns = list(zip(*batches, strict=True))
    assert [row for turn in turns for mine in turn for row in mine] == list(range(size))
    assert all(len(mine) <= largest for turn in turns for mine in turn)
    for step in range(-(-size // examples)):  # what transformers takes for one step is one step
        taken = turns[step * shares.accumulation : (step + 1) * shares.accumulation]
        rows = [row for turn in taken for mine in turn for row in mine]
        assert rows == list(range(size))[step * examples : (step + 1) * examples]


def test_one_process_cuts_as_transformers_does() -> None:
    shares = StepShares.of(8 * 4, 8, 1)
    assert (shares.micro_batch, shares.accumulation, shares.idle) == (8, 4, 0)


def test_more_processes_take_smaller_parts() -> None:
    assert StepShares.of(8, 8, 4) == StepShares(8, 2, 1, 4)
    assert StepShares.of(32, 8, 2) == StepShares(32, 8, 2, 2)
    assert StepShares.of(8, 8, 3).idle == 0  # 3, 3 and 2
    assert StepShares.of(4, 8, 6).idle == 2


def _args(**others: int) -> SimpleNamespace:
    settings = {"n_gpu": 1, "_n_gpu": 1, "world_size": 1, "gradient_accumulation_steps": 1}
    return SimpleNamespace(**{**settings, "per_device_train_batch_size": 8, **others})


def test_a_step_is_kept_where_it_was_asked_for() -> None:
    for processes, batch, accumulation in ((1, 8, 4), (2, 8, 2), (8, 4, 1), (5, 7, 1)):
        args, record = (
            _args(world_size=processes, gradient_accumulation_steps=4, examples_per_step=32),
            RunRecord(),
        )
        shares = share_steps(args, record)
        assert shares.examples == 32 and record.notes == []
        assert args.per_device_train_batch_size == shares.micro_batch == batch
        assert args.gradient_accumulation_steps == shares.accumulation == accumulation


def test_a_step_grows_with_the_processes_as_in_transformers() -> None:
    assert share_steps(_args(world_size=4, examples_per_step=0)).examples == 32
    assert share_steps(_args(world_size=4)).examples == 8  # ngdiff finetune's batch is a step's


def test_processes_that_wait_are_noted() -> None:
    record = RunRecord()
    share_steps(_args(world_size=6, examples_per_step=4), record)
    assert record.notes[0].startswith("4 examples a step cannot be shared evenly by 6 processes: 2 wait")


def test_one_process_uses_one_gpu() -> None:
    args, record = _args(n_gpu=2), RunRecord()
    share_steps(args, record)
    assert args._n_gpu == 1 and "torchrun" in record.notes[0]


def test_an_epoch_is_that_of_the_order() -> None:
    mine = [ShareOfSteps(PairSampler(6, 10, 0), StepShares.of(4, 2, 2), rank) for rank in (0, 1)]
    for share in mine:
        share.set_epoch(3)
    alone = PairSampler(6, 10, 0)
    alone.set_epoch(3)
    turns = zip(*mine, strict=True)
    assert [pair for turn in turns for part in turn for pair in part] == list(alone)


def test_even_parts_go_round() -> None:
    rows = [{"prompt": "q:", "completion": " " + "ab" * length} for length in (5, 3, 9, 4, 7)]
    examples = as_encoded(rows, tiny_tokenizer(None), 64, "rows")
    parts = even_parts(examples, 2, 2)
    assert len(parts) == 4
    lengths = [len(example.input_ids) for part in parts for example in part]
    assert lengths == sorted(len(example.input_ids) for example in examples)
    assert max(map(len, parts)) <= 2
    assert [len(part) for part in even_parts(examples[:1], 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("forget", "examples"),
    [(1, 8), (40, 8), (104, 8), (105, 16), (200, 16), (300, 24), (400, 32), (9999, 32)],
)
def test_a_step_goes_by_the_size_of_the_forget_set_where_nobody_said(forget: int, examples: int) -> None:
    assert examples_of_a_step(forget) == examples
    shares = share_steps(_args(world_size=2, examples_per_step=None), forget=forget)
    assert (shares.examples, shares.micro_batch * shares.accumulation) == (examples, examples // 2)


def test_a_batch_that_was_given_is_what_a_step_takes(tmp_path: Path) -> None:
    def asked(**settings: int) -> int | None:
        return UnlearningConfig(output_dir=str(tmp_path), use_cpu=True, **settings).examples_per_step

    assert asked() is None
    assert asked(per_device_train_batch_size=8) == asked(gradient_accumulation_steps=1) == 0
    assert asked(per_device_train_batch_size=4, examples_per_step=12) == 12


@given(size=st.integers(1, 40), examples=st.integers(1, 20), largest=st.integers(1, 8))
def test_an_arranged_step_has_the_same_examples(size: int, examples: int, largest: int) -> None:
    shares = StepShares.of(examples, largest, 1)
    plain = list(ShareOfSteps(InOrder(size), shares, 0))
    arranged = list(ShareOfSteps(InOrder(size), shares, 0, lambda step: step[::-1]))
    assert [len(rows) for rows in plain] == [len(rows) for rows in arranged]
    for first in range(0, len(plain), shares.accumulation):
        one, other = (
            [row for rows in cut[first:][: shares.accumulation] for row in rows] for cut in (plain, arranged)
        )
        assert other == one[::-1]


def test_a_step_is_arranged_by_length_each_set_by_itself() -> None:
    tokenizer = tiny_tokenizer()

    def of(lengths: list[int]) -> list[EncodedExample]:
        rows = [{"prompt": "a", "completion": " ".join("b" * length)} for length in lengths]
        return list(as_encoded(rows, tokenizer, 512, "set"))

    dataset = PairedDataset(of([9, 2, 5]), of([1, 8, 3, 4]))
    assert dataset.arranged([(0, 3), (1, 1), (2, 0)]) == [(1, 0), (2, 3), (0, 1)]
    assert dataset.arranged([(6, 3), (7, 1), (8, 0)]) == [(7, 0), (8, 3), (6, 1)]  # in the third pass
