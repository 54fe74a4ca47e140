"""forget examples -> the same with other answers: refusals, those of a column, or invented by the model.

Losses that say what to answer instead of the truth (IdkNLL, IdkDPO, DPO, AltPO) need them. An example may
have several; each pass over the forget set uses the next one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import torch

from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example, Message
from ngdiff.data.sources import capped
from ngdiff.errors import Fault, RequestError
from ngdiff.inference.evaluator import identity
from ngdiff.inference.generation import answer_text, end_tokens, left_padded
from ngdiff.losses import Answers
from ngdiff.system.cache import Cache, cache_key
from ngdiff.system.environment import weights_hash
from ngdiff.system.processes import OneCache, from_main

COLUMNS = ("preferred_answer", "chosen")
"""Columns for preferred answers, in order; the second is TRL's name."""

EACH = 5
"""Most alternatives of an example, as in AltPO's paper."""

VERSION = 1
_ATTEMPTS = 3
_MOST_TOKENS = 200
_REQUEST = (
    "Here is a question and its answer.\n\nQuestion: {question}\nAnswer: {answer}\n\n"
    "Invent a different answer of the same kind and length: plausible, but with every fact changed. "
    "Write the invented answer only."
)
_REQUEST_WITHOUT_CHAT = (
    "Question: {question}\nAnswer: {answer}\n\nThe same question, answered with other, invented facts.\n"
    "Question: {question}\nAnswer:"
)


@cache
def refusals() -> tuple[str, ...]:
    """Return the project's own list of ways to say that one does not know."""
    text = resources.files("ngdiff.data").joinpath("refusals.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


def alternative_faults(examples: Sequence[Example], source: Answers, where: str) -> list[Fault]:
    """Return what keeps a data set from having other answers, before any long work.

    Args:
        examples: the forget set.
        source: where the answers come from.
        where: the setting that named the data, for faults.
    """
    texts = [example for example in examples if example.kind == "text"]
    if texts:
        what = f"running text has no question to answer differently ({len(texts)} rows)"
        fix = "Give question and answer columns, or use a method that needs no other answers, such as npo"
        return [Fault(f"{where} {texts[0].place}", what, fix)]
    if source != "preferred":
        return []
    faults = []
    missing = [example for example in examples if not _preferred(example)]
    if missing:
        what = f"a preferred answer is missing in {len(missing)} of {len(examples)} rows"
        fix = (
            f"Add a column {COLUMNS[0]!r} with what should be answered instead; 'idkdpo' prefers refusals "
            "and 'altpo' answers that the model invents, and neither needs a column"
        )
        faults.append(Fault(f"{where} {missing[0].place}", what, fix))
    return capped(faults, where)


def _preferred(example: Example) -> str | None:
    for column in COLUMNS:
        value = example.extra.get(column)
        if isinstance(value, str) and value.strip():
            return value
    return None


def with_alternatives(
    examples: Sequence[EncodedExample], source: Answers, *, tokenizer: Any, max_length: int, seed: int
) -> list[EncodedExample]:
    """Return the examples with answers from the list of refusals or from their own column.

    Args:
        examples: the forget set.
        source: ``refusals`` or ``preferred``.
        tokenizer: the model's.
        max_length: longest sequence, in tokens.
        seed: decides which refusals an example gets.

    Raises:
        RequestError: the data has no questions, or lacks the column.
    """
    faults = alternative_faults([e.example for e in examples], source, "--forget")
    if faults:
        raise RequestError(faults)
    answers: list[list[str]] = []
    for encoded in examples:
        if source == "preferred":
            answers.append([str(_preferred(encoded.example))])
        else:
            draw = random.Random(f"{seed} {encoded.example.key}")
            answers.append(draw.sample(refusals(), EACH))
    return _answered(examples, answers, tokenizer, max_length)


def _answered(
    examples: Sequence[EncodedExample], answers: Sequence[Sequence[str]], tokenizer: Any, max_length: int
) -> list[EncodedExample]:
    flat = [
        _with_answer(encoded.example, answer)
        for encoded, mine in zip(examples, answers, strict=True)
        for answer in mine
    ]
    others = iter(encode_all(flat, tokenizer, max_length, "other answers"))
    return [
        replace(encoded, alternatives=tuple(next(others) for _ in mine))
        for encoded, mine in zip(examples, answers, strict=True)
    ]


def _with_answer(example: Example, answer: str) -> Example:
    """Return the example with another answer, which begins with the white space of the true one."""
    true = example.messages[-1].content
    opening = true[: len(true) - len(true.lstrip())]
    last = Message(example.messages[-1].role, opening + answer.strip())
    return replace(example, messages=(*example.messages[:-1], last))


def with_invented(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    tokenizer: Any,
    max_length: int,
    seed: int,
    each: int,
    batch_size: int,
    remembered: Cache | OneCache,
    precision: str,
    advance: Callable[[int], object] | None = None,
) -> tuple[list[EncodedExample], int]:
    """Return the examples with answers that the model itself invents, by sampling at temperature 1.

    The model is asked, in its own chat template where it has one, for a plausible answer with other facts.
    An answer that is empty or true is drawn again; after three attempts a refusal replaces it.
    Source: Mekala et al. 2024, arXiv 2409.13474, section 3.2; the wording of the request is our own.

    Args:
        model: the starting model.
        examples: the forget set.
        tokenizer: the model's.
        max_length: longest sequence, in tokens.
        seed: of the sampling.
        each: answers per example.
        batch_size: sequences a forward pass.
        remembered: where answers are remembered, under the hash of the model and of the request.
        precision: what the model runs in; part of the key.
        advance: called with the number of answers done, for a progress bar.

    Returns:
        The examples, and how many answers had to be replaced by refusals.
    """
    who = identity(model, tokenizer, weights_hash(model), precision)
    asked = [_request(encoded.example, tokenizer) for encoded in examples for _ in range(each)]
    keys = [cache_key(who, "invented", VERSION, seed, place % each, ids) for place, ids in enumerate(asked)]
    answers: dict[str, str] = {key: str(value) for key, value in remembered.get(keys).items()}
    true = [encoded.example.answer.strip() for encoded in examples for _ in range(each)]
    for attempt in range(_ATTEMPTS):
        missing = [place for place, key in enumerate(keys) if key not in answers]
        missing.sort(key=lambda place: -len(asked[place]))
        for start in range(0, len(missing), batch_size):
            places = missing[start : start + batch_size]
            most = max(len(examples[place // each].labels) for place in places)
            said = from_main(
                _sample(model, tokenizer, [asked[place] for place in places], most, (seed, attempt, start))
            )
            good = {
                keys[place]: text
                for place, text in zip(places, said, strict=True)
                if text and text != true[place]
            }
            remembered.put(good)
            answers |= good
            if advance is not None:
                advance(len(good))
    refused = 0
    found: list[list[str]] = []
    for row, encoded in enumerate(examples):
        draw = random.Random(f"{seed} {encoded.example.key}")
        mine = [answers.get(keys[row * each + n]) for n in range(each)]
        refused += mine.count(None)
        found.append([draw.choice(refusals()) if text is None else text for text in mine])
    return _answered(examples, found, tokenizer, max_length), refused


def _request(example: Example, tokenizer: Any) -> list[int]:
    question, answer = example.prompt, example.answer.strip()
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": _REQUEST.format(question=question, answer=answer)}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(_REQUEST_WITHOUT_CHAT.format(question=question, answer=answer))["input_ids"])


def _sample(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], most: int, seeds: tuple[int, int, int]
) -> list[str]:
    """Draw one answer per prompt; the caller's random state does not change."""
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in left_padded(prompts, int(tokenizer.pad_token_id or 0)))
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seeds[0] * 1_000_003 + seeds[1] * 1_009 + seeds[2])
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=min(most, _MOST_TOKENS),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=int(tokenizer.pad_token_id or 0),
                eos_token_id=sorted(end_tokens(model, tokenizer)) or None,
            )
    finally:
        model.train(was_training)
    stops = () if tokenizer.chat_template else ("\n",)
    return [answer_text(tokenizer, row, stops) for row in output[:, ids.shape[1] :].tolist()]
