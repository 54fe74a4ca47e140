"""Long texts: which pieces they are split into, and that no token is lost or there twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngdiff.data.datasets import as_encoded, encoded, split_retain
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example, Message, data_hash, texts_of
from ngdiff.data.long_text import counted_texts, encode_pieces, in_pieces
from ngdiff.errors import RequestError
from ngdiff.receipts.data_key import describe
from tiny import BOS, CHATML, EOS, tiny_tokenizer

PLAIN = tiny_tokenizer(None, eos=EOS)
WITH_BOS = tiny_tokenizer(None, eos=EOS, adds_bos=True)


def text(content: str, place: str = "a, line 1") -> Example:
    return Example((), content, "text", place)


def pieces(content: str, window: int, tokenizer: object = PLAIN) -> list[str]:
    return [piece.answer for piece in in_pieces([text(content)], tokenizer, window, "--forget").examples]


def slow_ids(examples: Sequence[EncodedExample], opening: int, ends: bool = True) -> list[int]:
    """Return what all pieces hold, without what is put in front of each and behind the last."""
    found = [token for one in examples for token in one.input_ids[opening:]]
    return found[:-1] if ends else found


# ---- every token in exactly one piece ----


@pytest.mark.parametrize(("tokenizer", "opening"), [(PLAIN, 0), (WITH_BOS, 1)])
@given(
    content=st.text(alphabet="ab .\n!?é漢😀", min_size=1, max_size=150).filter(
        lambda found: bool(found.strip())
    ),
    window=st.integers(min_value=8, max_value=40),
)
@settings(max_examples=60, deadline=None)
def test_pieces_hold_the_tokens_of_the_whole_text_in_order(
    tokenizer: object, opening: int, content: str, window: int
) -> None:
    found = in_pieces([text(content)], tokenizer, window, "--forget")
    if found.blank:
        return
    whole = PLAIN(content, add_special_tokens=False)["input_ids"]
    parts = encode_all(found.examples, tokenizer, window, "--forget")
    assert slow_ids(parts, opening) == whole
    assert "".join(piece.answer for piece in found.examples) == content
    assert all(len(part.input_ids) <= window and not part.truncated for part in parts)
    assert [part.input_ids[-1] == PLAIN.eos_token_id for part in parts] == [False] * (len(parts) - 1) + [True]
    if opening:
        assert {part.input_ids[0] for part in parts} == {WITH_BOS.convert_tokens_to_ids(BOS)}


def test_a_text_that_fits_stays_as_it_is() -> None:
    short = text("a b")
    assert in_pieces([short], PLAIN, 8, "x").examples == [short]
    exact = text("a" * 7)  # eight tokens with the end
    assert len(PLAIN(exact.answer)["input_ids"]) == 7
    assert in_pieces([exact], PLAIN, 8, "x").examples[0].part is None
    assert len(in_pieces([text("a" * 8)], PLAIN, 8, "x").examples) == 2


# ---- where a text is split (a letter or a mark is a token; the window is 40, its last tenth 36 to 40) ----


def words(count: int) -> str:
    return "q" * count


@pytest.mark.parametrize(
    ("before", "first"),
    [
        (words(36) + "\n" + words(1) + ". " + words(40), words(36) + "\n"),  # a paragraph before a sentence
        (words(36) + ". " + words(1) + " " + words(40), words(36) + ". "),  # a sentence before a word
        (words(37) + " " + words(41), words(37) + " "),  # a word
        (words(80), words(40)),  # none: where the window ends
        (words(30) + "\n" + words(50), words(30) + "\n" + words(9)),  # a paragraph, but too early
        (words(36) + "。" + words(45), words(36) + "。"),  # a sentence that no space follows
    ],
)
def test_the_best_boundary_in_the_last_tenth(before: str, first: str) -> None:
    assert pieces(before, 40)[0] == first


def test_the_last_piece_is_no_scrap() -> None:
    found = pieces(words(41), 40)
    assert [len(piece) for piece in found] == [37, 4]


# ---- blank pieces, other rows, other tokenizers ----


def test_pieces_of_white_space_are_left_out_and_counted() -> None:
    found = in_pieces([text(words(20) + "\n" * 200 + words(20))], PLAIN, 40, "--forget")
    assert found.blank > 0 and all(piece.answer.strip() for piece in found.examples)
    assert f"--forget: {found.blank} pieces were left out: only white space" in found.notes("--forget", 40)
    assert found.examples[-1].place == f"a, line 1, piece {len(found.examples)} of {len(found.examples)}"


def test_questions_and_chats_are_not_split() -> None:
    question = Example((Message("user", "Who?"), Message("assistant", words(90))), None, "qa", "a, line 1")
    found, notes = encode_pieces([question], tiny_tokenizer(CHATML), 80, "--forget")
    assert len(found) == 1 and found[0].truncated
    (note,) = notes
    assert note.startswith("--forget: 1 answer was cut at 80 tokens")


def test_a_tokenizer_without_offsets_is_refused_for_long_texts_alone() -> None:
    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> object:
            return getattr(PLAIN, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            return PLAIN(*args, **kwargs)

    assert len(in_pieces([text("a b")], Slow(), 8, "--forget").examples) == 1
    with pytest.raises(RequestError, match="long_text=cut"):
        in_pieces([text(words(90))], Slow(), 8, "--forget")


# ---- counts and hashes are those of the texts ----


def test_record_and_receipt_count_texts_and_pieces_and_hash_the_texts() -> None:
    rows = [text(words(100)), text("a b", "a, line 2"), text(words(100), "a, line 3")]
    found, notes = encode_pieces(rows, PLAIN, 40, "--forget")
    examples = [one.example for one in found]
    assert texts_of(examples) == rows and data_hash(examples) == data_hash(rows)
    assert counted_texts(examples) == {"examples": 3, "pieces": 7}
    assert counted_texts(rows) == {"examples": 3}
    assert describe(examples, None) == {"examples": 3, "pieces": 7, "sha256": data_hash(rows)}
    assert len(describe(examples, b"k" * 32)["rows"]) == 3
    assert notes == ["--forget: 2 texts longer than 40 tokens were split into 6 pieces"]


def test_cut_is_the_old_behaviour() -> None:
    rows = [{"text": words(100)}]
    found, notes = encoded(rows, PLAIN, 40, "--forget", "cut")
    assert [len(one.input_ids) for one in found] == [40] and found[0].truncated and "cut at 40" in notes[0]
    assert len(as_encoded(rows, PLAIN, 40, "--forget")) == 3


# ---- the held-out part ----


def test_no_text_is_on_both_sides_of_the_held_out_part() -> None:
    rows = [{"text": chr(ord("a") + n) * (30 + 37 * (n % 4))} for n in range(20)]
    retain = as_encoded(rows, PLAIN, 40, "--retain")
    for seed in range(5):
        train, held_out, note = split_retain(retain, 64, seed)
        sides = [{one.example.answer[0] for one in part} for part in (train, held_out)]
        assert not sides[0] & sides[1] and len(train) + len(held_out) == len(retain) and note is None
        assert 0 < len(held_out) <= round(0.2 * len(retain)) or len(sides[1]) == 1


def test_a_few_long_texts_are_not_split_apart() -> None:
    retain = as_encoded([{"text": words(2000)}], PLAIN, 40, "--retain")
    train, held_out, note = split_retain(retain, 64, 0)
    assert train == held_out == retain and note is not None and "of 1 texts" in note


# ---- conversations that are too long ----


def chat(turns: int, system: bool = False) -> Example:
    said = [Message("system", "sys")] if system else []
    for number in range(turns):
        said += [Message("user", f"u{number}"), Message("assistant", f"a{number}")]
    return Example(tuple(said), None, "chat", "a, line 1")


@pytest.mark.parametrize("system", [False, True])
def test_a_long_conversation_keeps_its_last_turns(system: bool) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    whole = encode_all([chat(6, system)], tokenizer, 500, "x")[0]
    (short,) = encode_all([chat(6, system)], tokenizer, len(whole.input_ids) - 1, "x")
    kept = tokenizer.decode(short.input_ids)
    assert short.turns_left_out == 2 and not short.truncated
    assert "u0" not in kept and "u1" in kept and kept.endswith("a5<|im_end|>") and ("sys" in kept)
    # oracle: the conversation without its first exchange
    rest = chat(6, system).messages
    without = Example((*rest[:1], *rest[3:]) if system else rest[2:], None, "chat", "x")
    assert short.input_ids == encode_all([without], tokenizer, 500, "x")[0].input_ids


def test_a_conversation_whose_last_turns_do_not_fit_is_cut_there() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    last = encode_all([chat(1)], tokenizer, 500, "x")[0]
    long_answer = Example((*chat(3).messages[:-1], Message("assistant", words(90))), None, "chat", "x")
    (found,) = encode_all([long_answer], tokenizer, len(last.input_ids) + 10, "x")
    assert found.turns_left_out == 4 and found.truncated
    _, notes = encode_pieces([long_answer], tokenizer, len(last.input_ids) + 10, "--retain")
    assert len(notes) == 2 and "1 conversation longer than" in notes[1]
