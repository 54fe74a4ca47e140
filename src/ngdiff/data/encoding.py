"""`examples -> token ids and labels`: chat templates, plain forms, and where the answer begins and ends.

Rules:

- Labels come from positions, never from comparing ids with the padding token: ``pad == eos`` masks nothing.
- What generation sees is what training saw: the ids of the prompt are those of the prompt tokenised alone,
  even where a token could merge across the boundary to the answer.
- One end token. Whatever a template writes after the end of the answer's turn (ChatML's newline, an extra
  ``</s>``) is dropped, so that no second end token is labelled.
- Of several assistant turns, the last is labelled and the earlier ones are context.
- Data that holds a literal special token, such as ``<|im_end|>``, is tokenised as the tokenizer does with any
  text, which for most tokenizers is the special token's own id.
- A conversation that is too long loses its first turns, except the system message; an answer that is
  still too long is cut. Running text is split first, see :mod:`ngdiff.data.long_text`.

Chat templates are untrusted. ``transformers`` runs them in Jinja's sandbox, which blocks attributes that lead
out of it, but not nested loops that practically never end; so they have a time limit here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ngdiff.data.examples import Example, Message, Part
from ngdiff.errors import Fault, RequestError
from ngdiff.system.untrusted import OutOfTime, first_line, time_limit

LongText = Literal["split", "cut"]
"""How a text longer than the window is treated."""

IGNORE = -100
"""The label of tokens that do not count in a loss."""

# A placeholder for the answer, to find where the template puts it.
_MARK = "(the answer goes here)"


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example.

    Args:
        input_ids: prompt and answer, without padding, at most ``max_length``.
        labels: of the same length: the id on the answer and its end token, ``-100`` elsewhere.
        example: what was encoded.
        truncated: whether part of the answer was cut off.
        reference_log_prob: log-probability of the answer under the starting model, in nats, summed over its
            tokens; see :mod:`ngdiff.preparation.starting_predictions`.
        reference_states: hidden states of the starting model, of shape (labelled tokens, width).
        alternatives: other answers to the same prompt; see :mod:`ngdiff.preparation.alternatives`.
        predictable: how probable each labelled token would be to somebody who never saw the answer; see
            :mod:`ngdiff.preparation.predictable`.
        secret: whether each labelled token can be known from the answer alone; see
            :mod:`ngdiff.data.secrets`.
        expected_ids: tokens that would be probable in place of each labelled one, itself first, of shape
            (labelled tokens, kept); see :mod:`ngdiff.preparation.counterfactual`.
        expected_probs: their probabilities, of the same shape.
        typical: how probable each labelled token would be in the geometric mean over never-seen ones like it,
            which a guess of the whole answer is made of.
        turns_left_out: first turns of the conversation that did not fit.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: Example
    truncated: bool
    reference_log_prob: float | None = None
    reference_states: Tensor | None = field(default=None, compare=False, repr=False)
    alternatives: tuple[EncodedExample, ...] = ()
    predictable: tuple[float, ...] | None = None
    secret: tuple[bool, ...] | None = None
    expected_ids: Tensor | None = field(default=None, compare=False, repr=False)
    expected_probs: Tensor | None = field(default=None, compare=False, repr=False)
    typical: tuple[float, ...] | None = None
    turns_left_out: int = 0


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedExample:
    """Encode one example; see ``encode_all``."""
    return encode_all([example], tokenizer, max_length, where="max_length")[0]


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    where: str,
    end_token: bool = True,
) -> list[EncodedExample]:
    """Encode examples, one by one, cutting answers from the right at ``max_length`` tokens.

    Args:
        examples: what to encode. Question/answer and chat rows use the tokenizer's chat template; without
            one, question/answer rows read ``Question: …``, line break, ``Answer: …``. Completions and texts
            are not changed. Plain forms begin with the tokenizer's beginning token where it adds one
            itself; all end in one end token. All tokens of a text are labelled.
        tokenizer: fast or slow.
        max_length: most tokens of prompt and answer together.
        where: the setting that named the data, such as ``--forget``, for faults.
        end_token: whether plain forms end in an end token; False for excerpts of longer texts.

    Raises:
        RequestError: for chat rows without a chat template, rows the template refuses, and rows whose prompt
            leaves no room for any of the answer; each with a count and the first place.
    """
    dialect = _Dialect(tokenizer, end_token)
    encoded: list[EncodedExample] = []
    tally = _Tally(where)
    for example in examples:
        pieces = _fitting_pieces(dialect, example, max_length, tally)
        if pieces is None:
            continue
        prompt, answer, left_out = pieces
        ids = (prompt + answer)[:max_length]
        labels = ([IGNORE] * len(prompt) + answer)[:max_length]
        truncated = len(prompt) + len(answer) > max_length
        encoded.append(EncodedExample(tuple(ids), tuple(labels), example, truncated, turns_left_out=left_out))
    tally.raise_if_any()
    return encoded


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """Return the ids from which the answer is generated: those before the first label of ``encode``.

    For a text, these are the beginning token alone, or none.

    Raises:
        RequestError: as ``encode_all``.
    """
    tally = _Tally("max_length")
    pieces = _fitting_pieces(_Dialect(tokenizer), example, max_length, tally)
    tally.raise_if_any()
    assert pieces is not None
    return pieces[0]


class TextTokens:
    """How one tokenizer reads running text.

    Args:
        tokenizer: fast or slow.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._dialect = _Dialect(tokenizer)
        self.opening = self._dialect.opening
        """The ids that it puts before a text."""
        self.ends = 0 if self._dialect.eos is None else 1
        """Tokens that follow a text."""

    def too_long(self, example: Example, max_length: int) -> bool:
        """Return whether a text has more tokens than that, including those before and after it."""
        text = example.answer
        if len(text.encode()) + len(self.opening) + self.ends <= max_length:
            return False  # no tokenizer has more tokens than bytes
        pieces = self._dialect.pieces(example)
        return not isinstance(pieces, str) and _length(pieces) > max_length

    def starts(self, example: Example) -> list[int] | None:
        """Return the character that each token begins at; None where the tokenizer does not return it."""
        places = self._dialect.places(example.answer)
        return None if places is None else places[1]


def _fitting_pieces(
    dialect: _Dialect, example: Example, max_length: int, tally: _Tally
) -> tuple[list[int], list[int], int] | None:
    """Return the ids of prompt and answer and the turns left out, or add what is wrong to ``tally``."""
    pieces, left_out = dialect.pieces(example), 0
    if example.kind == "chat" and not isinstance(pieces, str) and _length(pieces) > max_length:
        pieces, left_out = _last_turns(dialect, example, pieces, max_length)
    if isinstance(pieces, str):
        fix = "Use a tokenizer whose chat template fits, or give question/answer or text rows"
        tally.add(pieces, fix, example)
        return None
    if len(pieces[0]) >= max_length:
        what = f"no part of the answer fits into {max_length} tokens after the prompt"
        tally.add(what, "Raise --max-length or shorten the prompts", example)
        return None
    return *pieces, left_out


def _length(pieces: tuple[list[int], list[int]]) -> int:
    return len(pieces[0]) + len(pieces[1])


def _last_turns(
    dialect: _Dialect, example: Example, whole: tuple[list[int], list[int]], max_length: int
) -> tuple[tuple[list[int], list[int]], int]:
    """Leave out as few of the first turns as needed for the rest to fit; the system message stays.

    The rest begins with a turn of the user, at the latest with the last one.
    """
    turns = example.messages
    first = 1 if turns[0].role == "system" else 0
    begins = [place for place in range(first + 1, len(turns) - 1) if turns[place].role == "user"]

    def after(place: int) -> tuple[list[int], list[int]] | str:
        return dialect.pieces(replace(example, messages=(*turns[:first], *turns[place:])))

    def fits(place: int) -> bool:
        pieces = after(place)
        return isinstance(pieces, str) or _length(pieces) <= max_length

    if not begins:
        return whole, 0
    place = begins[min(bisect_left(begins, True, key=fits), len(begins) - 1)]
    pieces = after(place)
    return (whole, 0) if isinstance(pieces, str) else (pieces, place - first)


class _Tally:
    """Faults of many examples, one for each kind with a count and the first place."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, fix: str, example: Example) -> None:
        self.found.setdefault((what, fix), []).append(example.place)

    def raise_if_any(self) -> None:
        faults = [
            Fault(f"{self.where} {places[0]}", f"{what} ({_examples(len(places))} in all)", fix)
            for (what, fix), places in self.found.items()
        ]
        if faults:
            raise RequestError(faults)


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"


class _Dialect:
    """How one tokenizer treats text: its template, its special tokens, what it puts before a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token: bool = True) -> None:
        self.tokenizer = tokenizer
        self.endless: str | None = None
        self.end_token = end_token
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.specials = frozenset({*added, *map(str, tokenizer.all_special_tokens)} - {""})
        self.opening = self._opening()
        self.eos: int | None = tokenizer.eos_token_id
        self._read: tuple[str, tuple[list[int], list[int]] | None] = ("", None)

    def ids(self, text: str, specials: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=specials, verbose=False)["input_ids"])

    def places(self, text: str) -> tuple[list[int], list[int]] | None:
        """Return the ids of a text, and the character each begins at; None where they are not known.

        The last text is cached, since the pieces of one text follow one another.
        """
        if not self.tokenizer.is_fast:
            return None
        if self._read[1] is None or self._read[0] != text:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            starts = list(accumulate((int(start) for start, _ in found["offset_mapping"]), max))
            self._read = text, (list(found["input_ids"]), starts)
        return self._read[1]

    def _opening(self) -> list[int]:
        """Return the ids that the tokenizer puts before plain text."""
        bare, full = self.ids("a"), self.ids("a", specials=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def pieces(self, example: Example) -> tuple[list[int], list[int]] | str:
        """Return the ids of prompt and answer, including the end token, or what is wrong."""
        if example.opening:
            return self._opened(example)
        if example.part is not None:
            return self._part(example.part)
        if example.kind == "text":
            return self._plain("", example.answer)
        if example.kind == "completion":
            return self._plain(example.prompt, example.answer)
        if self.tokenizer.chat_template:
            return self._templated(example)
        if example.kind == "qa":
            # The space goes with the answer's first word: that is the token a model would produce.
            return self._plain(f"Question: {example.prompt}\nAnswer:", f" {example.answer}")
        return "the tokenizer has no chat template for 'messages' rows"

    def _opened(self, example: Example) -> tuple[list[int], list[int]] | str:
        """Move the words that the answer is made to begin with to the prompt.

        A token that merges them with the answer's first word belongs to the answer.
        """
        if example.kind == "text":
            return "a text has no answer that could begin with other words"
        alone = self.pieces(_beginning(example, example.opening))
        whole = self.pieces(_beginning(example, f"{example.opening} {example.answer}"))
        if isinstance(alone, str):
            return alone
        if isinstance(whole, str):
            return whole
        (prompt, answer), opening = whole, alone[1]
        same = 0
        while same < min(len(opening), len(answer) - 1) and opening[same] == answer[same]:
            same += 1
        return prompt + answer[:same], answer[same:]

    def _plain(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        before, behind = self._tokenised(prompt, answer)
        start = before or behind
        if start[: len(self.opening)] != self.opening:
            before = self.opening + before
        elif not prompt:  # a text that contains its own beginning token
            before, behind = self.opening, behind[len(self.opening) :]
        return before, self._ended(behind, self.eos) if self.end_token else behind

    def _part(self, part: Part) -> tuple[list[int], list[int]] | str:
        """Return the tokens that begin inside the part, as they are in the whole text."""
        text = part.whole.answer
        places = self.places(text)
        if places is None:
            return "the tokenizer does not return the positions of tokens in a text"
        ids, starts = places
        mine = ids[bisect_left(starts, part.start) : bisect_left(starts, part.stop)]
        if part.start == 0 and mine[: len(self.opening)] == self.opening:
            mine = mine[len(self.opening) :]  # it contains its own beginning token
        last = part.stop == len(text) and self.end_token
        return list(self.opening), self._ended(mine, self.eos) if last else mine

    def _ended(self, answer: list[int], end: int | None) -> list[int]:
        """Append the end token, unless there is none or the data itself ends in it."""
        return answer if end is None or answer[-1:] == [end] else [*answer, end]

    def _tokenised(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Tokenise prompt and answer so that the prompt's ids are those of the prompt alone.

        The answer's ids are the ones it has behind the prompt, unless a token merges across the boundary.
        """
        if not prompt:
            return [], self.ids(answer)
        before, whole = self.ids(prompt), self.ids(prompt + answer)
        if whole[: len(before)] == before and len(whole) > len(before):
            return before, whole[len(before) :]
        return before, self.ids(answer)

    def _templated(self, example: Example) -> tuple[list[int], list[int]] | str:
        turns = [{"role": message.role, "content": message.content} for message in example.messages]
        if self.endless:
            return self.endless
        try:
            opened = self._rendered(turns[:-1], answer_next=True)
            marked = self._rendered([*turns[:-1], {"role": "assistant", "content": _MARK}])
            full = self._rendered(turns)
        except TemplateFault as error:
            what = f"the chat template {error}"
            self.endless = what if error.endless else None  # do not wait again
            return what
        head, found, tail = marked.rpartition(_MARK)
        kept = full.startswith(head) and full.endswith(tail) and len(full) > len(head) + len(tail)
        if not (found and kept):
            return "the chat template does not show the last answer as it is"
        answer = full[len(head) : len(full) - len(tail)]
        # White space between the generation prompt and the answer is the model's to produce; anything else
        # there (an empty block of reasoning, say) is context.
        if head.startswith(opened) and not head[len(opened) :].strip():
            head, answer = opened, head[len(opened) :] + answer
        between, end = self._end_of_turn(tail)
        before, behind = self._tokenised(head, answer + between)
        return before, self._ended(behind, self.eos if end is None else end)

    def _rendered(self, turns: list[dict[str, str]], answer_next: bool = False) -> str:
        return render(self.tokenizer, turns, answer_next)

    def _end_of_turn(self, tail: str) -> tuple[str, int | None]:
        """Return the text before the first special token of ``tail``, and that token's id."""
        starts = [(tail.find(token), -len(token), token) for token in self.specials if token in tail]
        if not starts:
            return "", None
        start, _, token = min(starts)
        return tail[:start], int(self.tokenizer.convert_tokens_to_ids(token))


def _beginning(example: Example, answer: str) -> Example:
    """Return the example with another answer and without prescribed first words."""
    return replace(example, messages=(*example.messages[:-1], Message("assistant", answer)), opening="")


# ---- chat templates ----


MOST_SECONDS = 10.0
"""Limit for one conversation; an ordinary template takes a thousandth of a second."""
MOST_ADDED = 100_000
"""Characters that a template may add to the messages, which it may repeat once."""


class TemplateFault(Exception):
    """A chat template that refuses the messages, fails on them, or (``endless``) does not end."""

    def __init__(self, what: str, endless: bool = False) -> None:
        super().__init__(what)
        self.endless = endless


def render(tokenizer: Any, turns: Sequence[dict[str, str]], answer_next: bool = False) -> str:
    """Render a conversation with the tokenizer's chat template.

    Raises:
        TemplateFault: the template raises something, takes longer than :data:`MOST_SECONDS` (detected only in
            the main thread of a process), or outputs far more than it was given.
    """
    try:
        with time_limit(MOST_SECONDS):
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    except OutOfTime:
        raise TemplateFault(f"does not end within {MOST_SECONDS:g} s", endless=True) from None
    except Exception as error:  # a template is a program: it can raise anything
        raise TemplateFault(f"refuses the messages ({first_line(error)})") from error
    if not isinstance(text, str):
        raise TemplateFault("gives no text")
    said = sum(len(turn["content"]) for turn in turns)
    if len(text) > 2 * said + MOST_ADDED:
        raise TemplateFault(f"outputs {len(text)} characters for messages of {said}", endless=True)
    return text
