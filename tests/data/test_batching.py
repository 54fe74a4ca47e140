"""Padding and orders: what is padded, who meets whom, and that every pass visits everything once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.data.batching import (
    PairCollator,
    PairedDataset,
    PairSampler,
    RetainStream,
    Stream,
    batches_by_length,
    collate,
    little_padding,
    permutation,
)
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example
from ngdiff.training.finetuning import LengthGroupedOrder

EOS = 1


def example(ids: list[int], prompt: int) -> EncodedExample:
    labels = [-100] * prompt + ids[prompt:]
    return EncodedExample(tuple(ids), tuple(labels), Example((), "", "text", "a, line 1"), False)


def of_length(length: int) -> EncodedExample:
    return example([7] * length, 1)


def test_collate_by_hand_with_the_end_token_as_padding() -> None:
    batch = collate([example([5, EOS, 6, EOS], 2), example([8, EOS], 1), example([EOS], 0)], pad_id=EOS)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5, EOS, 6, EOS], [8, EOS, EOS, EOS], [EOS, EOS, EOS, EOS]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
        "labels": [[-100, -100, 6, EOS], [-100, EOS, -100, -100], [EOS, -100, -100, -100]],
        "real": [0, 1, 2, 3, 4, 5, 8],
        "labelled": [
            1,
            2,
            4,
        ],  # nothing predicts the first of a sequence
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_pair_collator_keeps_the_tasks_apart() -> None:
    forget, retain = [of_length(3), of_length(5)], [of_length(4), of_length(2), of_length(6)]
    data = PairedDataset(forget, retain)
    assert len(data) == 2
    batch = PairCollator(pad_id=EOS)([data[1, 2], data[0, 1]])
    assert set(batch) == {"forget", "retain", "retain_rows"}
    assert batch["forget"]["attention_mask"].sum(1).tolist() == [5, 3]
    assert batch["retain"]["attention_mask"].sum(1).tolist() == [6, 2]
    assert batch["retain_rows"].tolist() == [2, 1]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), size=st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_batches_by_length_hold_every_example_once(lengths: list[int], size: int) -> None:
    examples = [of_length(length) for length in lengths]
    visited: list[int] = []
    for rows, batch in batches_by_length(examples, size, pad_id=EOS):
        assert 1 <= len(rows) <= size
        assert batch["attention_mask"].sum(1).tolist() == [lengths[row] for row in rows]
        visited += rows
    assert sorted(visited) == list(range(len(lengths)))
    assert [lengths[row] for row in visited] == sorted(lengths, reverse=True)


# --- streams and pairs -----------------------------------------------------------------------------------


@given(size=st.integers(1, 30), seed=st.integers(0, 2**40))
@settings(deadline=None, max_examples=25)
def test_a_stream_visits_everything_once_a_cycle(size: int, seed: int) -> None:
    stream = Stream(size, seed)
    for cycle in range(3):
        visited = [stream[position] for position in range(cycle * size, (cycle + 1) * size)]
        assert sorted(visited) == list(range(size))


def test_a_stream_depends_on_seed_and_position_alone() -> None:
    straight = [Stream(20, 5)[position] for position in range(100)]
    stream = Stream(20, 5)
    jumping = list(range(100))
    random.Random(0).shuffle(jumping)
    assert all(stream[position] == straight[position] for position in jumping)
    cycles = [tuple(straight[start : start + 20]) for start in range(0, 100, 20)]
    assert len(set(cycles)) == 5, "each cycle has an order of its own"
    assert [Stream(20, 6)[position] for position in range(100)] != straight


def test_a_stream_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    assert permutation(50, seed=3, cycle=2) == permutation(50, seed=3, cycle=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def epochs(sampler: PairSampler, count: int) -> list[list[tuple[int, int]]]:
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


@pytest.mark.parametrize(("forget", "retain"), [(7, 7), (5, 13), (13, 5), (4, 1)])
def test_pairs(forget: int, retain: int) -> None:
    sampler = PairSampler(forget, retain, seed=3)
    assert len(sampler) == forget
    found = epochs(sampler, retain)
    # each pass visits every forget row once, and says which pass it is
    for number, epoch in enumerate(found):
        assert sorted(f for f, _ in epoch) == list(range(number * forget, (number + 1) * forget))
    # forget * retain positions: the retain stream, read on across epochs, makes `forget` whole cycles
    stream = [r for epoch in found for _, r in epoch]
    cycles = [stream[start : start + retain] for start in range(0, len(stream), retain)]
    assert len(cycles) == forget
    assert all(sorted(cycle) == list(range(retain)) for cycle in cycles)


def test_pairs_change_from_epoch_to_epoch_and_come_back_with_set_epoch() -> None:
    sampler = PairSampler(10, 10, seed=3)
    first = epochs(sampler, 3)
    assert first[0] != first[1] != first[2] != first[0]
    sampler.set_epoch(1)
    assert list(sampler) == first[1] == list(sampler)
    fresh = PairSampler(10, 10, seed=3)
    fresh.set_epoch(2)
    assert list(fresh) == first[2]
    assert epochs(PairSampler(10, 10, seed=4), 3) != first


def test_each_pass_takes_the_next_alternative() -> None:
    others = tuple(of_length(length) for length in (2, 3, 4))
    several, one = replace(of_length(5), alternatives=others), replace(of_length(5), alternatives=others[:1])
    data = PairedDataset([several, one], [of_length(6)])
    for turn in range(5):
        assert data[2 * turn, 0][0].alternatives == (others[turn % 3],)
        assert data[2 * turn + 1, 0][0].alternatives == others[:1]
    batch = PairCollator(pad_id=EOS)([data[2, 0], data[3, 0]])
    assert batch["forget"]["other"]["attention_mask"].sum(1).tolist() == [3, 2]


def test_forget_and_retain_examples_are_not_always_the_same_couples() -> None:
    """Equal sizes must not mean equal orders."""
    met = Counter((f % 10, r) for epoch in epochs(PairSampler(10, 10, seed=0), 20) for f, r in epoch)
    assert max(met.values()) < 10
    assert len(met) > 60  # 200 draws from 100 couples: 87 expected


# --- fine-tuning's order ---------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 7),
    span=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=50)
def test_length_grouped_order_is_a_permutation(
    lengths: list[int], batch_size: int, span: int, epoch: int
) -> None:
    order = LengthGroupedOrder(lengths, batch_size, seed=1, span=span)
    order.set_epoch(epoch)
    found = list(order)
    assert len(order) == len(lengths)
    assert sorted(found) == list(range(len(lengths)))
    assert list(order) == found


def lengths_in_batches(order: LengthGroupedOrder, batch_size: int) -> list[list[int]]:
    flat = [order.lengths[index] for index in order]
    return [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]


@pytest.mark.parametrize("count", [256, 251, 129, 27])
def test_length_grouped_batches_do_not_overlap_within_a_window(count: int) -> None:
    """A window of four batches is cut from its own sorted lengths, also where the last batch is short."""
    lengths = [random.Random(i).randrange(1, 300) for i in range(count)]
    batches = lengths_in_batches(LengthGroupedOrder(lengths, 8, seed=0, span=4), 8)
    for start in range(0, len(batches), 4):
        window = sorted(batches[start : start + 4], key=min)
        assert all(max(low) <= min(high) for low, high in pairwise(window))


def test_length_grouped_batches_waste_little_and_come_in_random_order() -> None:
    lengths = [random.Random(i).randrange(1, 300) for i in range(512)]
    order = LengthGroupedOrder(lengths, 8, seed=0)
    batches = lengths_in_batches(order, 8)
    padding = sum(8 * max(batch) - sum(batch) for batch in batches)
    shuffled = random.Random(0).sample(lengths, len(lengths))
    random_padding = sum(8 * max(shuffled[i : i + 8]) - sum(shuffled[i : i + 8]) for i in range(0, 512, 8))
    assert padding < random_padding / 5
    longest = [max(batch) for batch in batches[:16]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_length_grouped_order_changes_with_epoch_and_seed() -> None:
    lengths = [random.Random(i).randrange(1, 300) for i in range(64)]
    order = LengthGroupedOrder(lengths, 8, seed=0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first
    assert list(LengthGroupedOrder(lengths, 8, seed=1)) != first


def test_little_padding() -> None:
    examples = [of_length(length) for length in (30, 10, 12, 28, 11, 29, 10, 30, 5)]
    found = [[len(e.input_ids) for e in batch] for batch in little_padding(examples, 8)]
    assert found == [[5, 10, 10, 11], [12, 28, 29, 30], [30]]
    even = [of_length(length) for length in (20, 19, 20, 19)]
    assert [len(batch) for batch in little_padding(even, 4)] == [4]
    assert [len(batch) for batch in little_padding(even[:1], 4)] == [1]
    assert little_padding([], 4) == []


def test_every_second_retain_row_is_general_text_and_each_order_visits_all() -> None:
    found = [RetainStream(6, 3, seed=5)[position] for position in range(12)]
    general = [row for row in found if row >= 6]
    own = [row for row in found if row < 6]
    assert [place for place, row in enumerate(found) if row >= 6] == [1, 3, 5, 7, 9, 11]
    assert sorted(general) == [6, 6, 7, 7, 8, 8] and sorted(general[:3]) == [6, 7, 8]
    assert own == [Stream(6, 5)[position] for position in range(6)]
    assert [RetainStream(6, 0, seed=5)[position] for position in range(9)] == [
        Stream(6, 5)[position] for position in range(9)
    ]
