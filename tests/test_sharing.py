"""Shares of a step: together they are the step, in order, whatever the number of processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ngdiff.data.batching import PairSampler, even_parts
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example, Message
from ngdiff.data.sharing import ShareOfSteps, StepShares


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
    size=st.integers(1, 60), examples=st.integers(1, 20), largest=st.integers(1, 8), processes=st.integers(1, 9)
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


def test_an_epoch_is_that_of_the_order() -> None:
    mine = [ShareOfSteps(PairSampler(6, 10, 0), StepShares.of(4, 2, 2), rank) for rank in (0, 1)]
    for share in mine:
        share.set_epoch(3)
    alone = PairSampler(6, 10, 0)
    alone.set_epoch(3)
    turns = zip(*mine, strict=True)
    assert [pair for turn in turns for part in turn for pair in part] == list(alone)


def _example(length: int) -> EncodedExample:
    example = Example((Message("user", "q"), Message("assistant", "a")))
    return EncodedExample(tuple(range(length)), tuple(range(length)), example, False)


def test_even_parts_go_round() -> None:
    examples = [_example(length) for length in (5, 3, 9, 4, 7)]
    parts = even_parts(examples, 2, 2)
    assert len(parts) == 4
    assert [len(e.input_ids) for part in parts for e in part] == [3, 4, 5, 7, 9]
    assert max(map(len, parts)) <= 2
    assert [len(part) for part in even_parts(examples[:1], 2, 3)] == [0, 0, 1]
