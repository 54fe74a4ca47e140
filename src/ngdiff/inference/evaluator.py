"""model, tokenizer and cache -> what was measured on each item of named data sets."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
import transformers

from ngdiff.data.encoding import encode_all, encode_prompt
from ngdiff.data.examples import Example
from ngdiff.errors import EvaluationError
from ngdiff.inference.generation import (
    answer_text,
    end_tokens,
    generate_answers,
    is_plain_greedy,
    until,
)
from ngdiff.inference.gradient_norm import norms_and_scores
from ngdiff.inference.prefix_trees import Agreement, group_by_prompt
from ngdiff.inference.teacher_forced import AnswerScore, score_answers
from ngdiff.system.cache import Cache, cache_key
from ngdiff.system.environment import weights_hash
from ngdiff.system.processes import gathered, is_main, my_share
from ngdiff.system.progress import Meter

T = TypeVar("T")

CODE_VERSIONS = {"score": 5, "generate": 1, "gradient_norm": 3}
"""Counted up when a measurement's code changes what it gives; part of every cache key."""

BATCHES_A_CHUNK = 16
"""What is measured between two writes to the cache."""

TOGETHER = "all generation"
"""The pass in which several sets' prompts are answered."""

PROMPTS_A_SEQUENCE = 8
"""A decoding step reads all weights for one token a row, and needs little memory: more rows at once."""


class Evaluator:
    """Measures one model, item by item; nothing that is in the cache is measured again.

    Args:
        model: a causal language model; its mode is restored after each pass.
        tokenizer: its tokenizer.
        model_hash: SHA-256 of the weights; computed where it is not given and there is a cache.
        cache: where results are remembered, or ``None``.
        batch_size: sequences a forward pass; changes no figure beyond rounding.
        max_length: longest sequence in tokens.
        max_new_tokens: longest answer that is generated, in tokens.
        autocast: opens the context in which the model runs.
        precision: the name of that context, for the cache.
        quiet: show no progress.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        model_hash: str = "",
        cache: Cache | None = None,
        batch_size: int = 8,
        max_length: int = 512,
        max_new_tokens: int = 200,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        precision: str = "fp32",
        quiet: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.batch_size, self.max_length, self.max_new_tokens = batch_size, max_length, max_new_tokens
        self.autocast, self.precision, self.quiet = autocast, precision, quiet
        self.seconds: dict[str, float] = {}
        self.cached: dict[str, int] = {}
        self.said: dict[str, list[dict[str, str]]] = {}
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._agreement = Agreement()
        self._shown: dict[tuple[tuple[int, ...], tuple[int, ...]], AnswerScore] = {}
        self._identity = ""
        if cache is not None:
            self._identity = identity(model, tokenizer, model_hash or weights_hash(model), precision)

    # ---- the three measurements ----

    def score(
        self,
        name: str,
        examples: Sequence[Example],
        z_scores: bool | Sequence[bool] = False,
        end_token: bool = True,
    ) -> list[AnswerScore]:
        """Score each example's answer under teacher forcing.

        What the forward passes of ``gradient_norms`` have shown already is not run again.

        Args:
            name: of the pass, ``SET KIND``, for progress and ``seconds``.
            examples: with the answers to score.
            z_scores: also standardise each token's log-probability, for min-k++; of all, or as each row says.
            end_token: whether the end token belongs to the answer of plain forms.

        Raises:
            EvaluationError: the model gives an item no finite likelihood; it names the first such.
        """
        encoded = encode_all(examples, self.tokenizer, self.max_length, name, end_token)
        wanted = [z_scores] * len(examples) if isinstance(z_scores, bool) else z_scores
        keys = [self._key("score", z, e.input_ids, e.labels) for z, e in zip(wanted, encoded, strict=True)]

        def measure(rows: Sequence[int]) -> list[Any]:
            found = score_answers(
                self.model,
                [encoded[row] for row in rows],
                pad_id=self._pad_id,
                batch_size=self.batch_size,
                autocast=self.autocast,
                z_scores=[wanted[row] for row in rows],
                agreement=self._agreement,
            )
            for row, score in zip(rows, found, strict=True):
                _check_finite(name, examples[row], score)
            return [asdict(score) for score in found]

        known = {}
        for row, (e, z) in enumerate(zip(encoded, wanted, strict=True)):
            shown = self._shown.get((e.input_ids, e.labels))
            if shown is not None:
                known[row] = asdict(shown if z else replace(shown, z_scores=())), False
        groups, alone = group_by_prompt(encoded)  # answers to one prompt stay together: they share its pass
        units = [*(list(group.rows) for group in groups), *([row] for row in alone)]
        units = [[row for row in unit if row not in known] for unit in units]
        order = _longest_first([unit for unit in units if unit], [len(e.input_ids) for e in encoded])
        found = self._all(name, keys, order, measure, known, fits=_is_score)
        return [_score_from(value) for value in found]

    def generate(
        self,
        name: str,
        examples: Sequence[Example],
        max_new_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        scores: Sequence[AnswerScore] | None = None,
    ) -> list[str]:
        """Answer each example's prompt by greedy decoding.

        Teacher forcing shows the first tokens that greedy decoding writes, up to where the answer parts from
        them; where ``scores`` are given, only what comes behind is generated.

        Args:
            name: as in ``score``.
            examples: whose prompts to answer.
            max_new_tokens: longest answer; the evaluator's own where it is not given.
            stop_strings: texts before which an answer ends.
            scores: what ``score`` gave for the same examples.
        """
        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        prompts = [encode_prompt(example, self.tokenizer, self.max_length) for example in examples]
        own = _generation_settings(self.model)
        keys = [self._key("generate", most, list(stop_strings), own, prompt) for prompt in prompts]

        starts = self._foretold(len(examples), scores)

        def measure(rows: Sequence[int]) -> list[Any]:
            with self.autocast():
                return list(
                    generate_answers(
                        self.model,
                        self.tokenizer,
                        [examples[row] for row in rows],
                        max_new_tokens=most,
                        batch_size=PROMPTS_A_SEQUENCE * self.batch_size,
                        max_length=self.max_length,
                        stop_strings=stop_strings,
                        starts=[starts[row] for row in rows],
                    )
                )

        ends = end_tokens(self.model, self.tokenizer)
        known = {}
        for row, start in enumerate(starts):
            said = until(start, ends)[:most]
            if len(said) == most or len(said) < len(start):
                known[row] = answer_text(self.tokenizer, said, stop_strings), False
        open_rows = [row for row in range(len(prompts)) if row not in known]
        units = _longest_first([[row] for row in open_rows], [len(prompt) for prompt in prompts])
        found = self._all(name, keys, units, measure, known, PROMPTS_A_SEQUENCE, fits=_is_text)
        texts = [str(text) for text in found]
        self._keep_said(name, examples, texts)
        return texts

    def _keep_said(self, name: str, examples: Sequence[Example], texts: Sequence[str]) -> None:
        self.said[name.removesuffix(" generation")] = [
            {"place": e.place, "question": e.prompt, "truth": e.answer, "answer": text}
            for e, text in zip(examples, texts, strict=True)
        ]

    def generate_sets(
        self, sets: Mapping[str, tuple[Sequence[Example], Sequence[AnswerScore]]]
    ) -> dict[str, list[str]]:
        """Answer the prompts of several sets in one go, so that the last long answers do not run alone.

        Args:
            sets: name to examples and what ``score`` gave for them.

        Returns:
            The answers of each set; ``seconds`` has its share by the number of its rows.
        """
        examples = [example for rows, _ in sets.values() for example in rows]
        scores = [score for _, found in sets.values() for score in found]
        answers = iter(self.generate(TOGETHER, examples, scores=scores) if examples else [])
        seconds, cached = self.seconds.pop(TOGETHER, 0.0), self.cached.pop(TOGETHER, 0)
        for name, (rows, _) in sets.items():
            part = len(rows) / len(examples) if examples else 0.0
            self.seconds[f"{name} generation"] = seconds * part
            self.cached[f"{name} generation"] = round(cached * part)
        self.said.pop(TOGETHER, None)
        found = {name: [next(answers) for _ in rows] for name, (rows, _) in sets.items()}
        for name, (rows, _) in sets.items():
            self._keep_said(name, rows, found[name])
        return found

    def _foretold(self, count: int, scores: Sequence[AnswerScore] | None) -> list[tuple[int, ...]]:
        """Return the first tokens of the answers, as far as teacher forcing has shown them."""
        if scores is None or not is_plain_greedy(self.model):
            return [()] * count
        return [score.greedy for score in scores]

    def gradient_norms(self, name: str, examples: Sequence[Example]) -> list[float]:
        """Return the norm of the gradient of each answer's mean NLL, over all parameters.

        Raises:
            EvaluationError: a norm is not finite; it names the first such item.
        """
        encoded = encode_all(examples, self.tokenizer, self.max_length, name)
        keys = [self._key("gradient_norm", e.input_ids, e.labels) for e in encoded]

        def measure(rows: Sequence[int]) -> list[Any]:
            with self.autocast():
                found = norms_and_scores(
                    self.model,
                    [encoded[row] for row in rows],
                    pad_id=self._pad_id,
                    batch_size=max(1, self.batch_size // 2),  # a backward pass keeps every activation
                )
            for row, (norm, score) in zip(rows, found, strict=True):
                _check_finite(name, examples[row], score)
                if not math.isfinite(norm):
                    raise EvaluationError(f"the gradient of {examples[row].place} ({name}) is not finite")
            return [[norm, asdict(score)] for norm, score in found]

        units = _longest_first([[row] for row in range(len(encoded))], [len(e.input_ids) for e in encoded])
        norms = []
        for e, (norm, score) in zip(
            encoded, self._all(name, keys, units, measure, fits=_is_norm), strict=True
        ):
            self._shown[e.input_ids, e.labels] = _score_from(score)
            norms.append(float(norm))
        return norms

    # ---- cache, processes, progress ----

    def _key(self, kind: str, *parts: object) -> str:
        if self.cache is None:
            return ""
        return cache_key(self._identity, kind, CODE_VERSIONS[kind], *parts)

    def _all(
        self,
        name: str,
        keys: Sequence[str],
        units: Sequence[Sequence[int]],
        measure: Callable[[Sequence[int]], list[Any]],
        known: dict[int, tuple[Any, bool]] | None = None,
        rows_a_sequence: int = 1,
        *,
        fits: Callable[[Any], bool],
    ) -> list[Any]:
        """Return one JSON value a row: known, in the cache (where it ``fits``), or measured."""
        chunk = BATCHES_A_CHUNK * self.batch_size * rows_a_sequence
        my_units = [units[place] for place in my_share(range(len(units)))]
        mine = [row for unit in my_units for row in unit]

        def work() -> dict[int, tuple[Any, bool]]:
            stored = self.cache.get([keys[row] for row in mine]) if self.cache is not None else {}
            stored = {key: value for key, value in stored.items() if fits(value)}
            found = {row: (stored[keys[row]], True) for row in mine if keys[row] in stored}
            missing = [[row for row in unit if row not in found] for unit in my_units]
            with self._meter(name, len(mine)) as advance:
                advance(len(found))
                for rows in _chunks(missing, chunk):
                    values = measure(rows)
                    if self.cache is not None:
                        self.cache.put({keys[row]: v for row, v in zip(rows, values, strict=True)})
                    found |= {row: (value, False) for row, value in zip(rows, values, strict=True)}
                    advance(len(rows))
            return found

        started = time.perf_counter()
        found = (known or {}) | gathered(work)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.cached[name] = self.cached.get(name, 0) + sum(old for _, old in found.values())
        return [found[row][0] for row in range(len(keys))]

    @contextmanager
    def _meter(self, name: str, total: int) -> Iterator[Callable[[int], object]]:
        if self.quiet or not is_main():
            yield lambda count: None
            return
        with Meter(name, total) as meter:
            yield meter.advance


def _longest_first(units: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Sequence[int]]:
    return sorted(units, key=lambda unit: -max(lengths[row] for row in unit))


def _chunks(units: Sequence[Sequence[int]], size: int) -> Iterator[Sequence[int]]:
    """Yield the rows of whole units, at least ``size`` at a time."""
    rows: list[int] = []
    for unit in units:
        rows += unit
        if len(rows) >= size:
            yield rows
            rows = []
    if rows:
        yield rows


def _check_finite(name: str, example: Example, score: AnswerScore) -> None:
    numbers = (score.nll, *score.log_probs, *score.z_scores)
    if not all(math.isfinite(number) for number in numbers):
        what = f"the likelihood of {example.place} ({name}) is not finite"
        raise EvaluationError(f"{what}; so no metric is computed from it")


def _score_from(value: dict[str, Any]) -> AnswerScore:
    tuples = {key: tuple(value[key]) for key in ("log_probs", "z_scores", "greedy")}
    return AnswerScore(**(value | tuples))


def _is_score(value: Any) -> bool:
    """Return whether a value from the cache can be what was put there: the file may have been edited."""
    try:
        score = _score_from(value)
        numbers = (score.nll, score.tokens, score.extraction_strength, score.exact_memorisation)
        return all(
            _is_number(number) for number in (*numbers, *score.log_probs, *score.z_scores, *score.greedy)
        )
    except (LookupError, TypeError):
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_norm(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and _is_score(value[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _generation_settings(model: Any) -> dict[str, str]:
    """Return the model's own settings of generation, such as the ids at which an answer ends."""
    settings = getattr(getattr(model, "module", model), "generation_config", None)
    found = {} if settings is None else settings.to_dict()
    return {key: str(value) for key, value in found.items() if key != "transformers_version"}


def identity(model: Any, tokenizer: Any, model_hash: str, precision: str) -> str:
    """Return the SHA-256 of what decides a model's answers apart from the tokens it is given.

    That is its weights, their type, its configuration, the kind of device, the precision, the tokenizer, and
    the versions of the libraries. Names and paths are left out.
    """
    inner = getattr(model, "module", model)
    config = inner.config.to_dict() if hasattr(inner, "config") else {}
    first = next(inner.parameters())
    passing = {"_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype"}
    return cache_key(
        model_hash,
        {key: str(value) for key, value in config.items() if key not in passing},
        [str(first.dtype), first.device.type, precision],
        _tokenizer_hash(tokenizer),
        [torch.__version__, transformers.__version__],
    )


def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = [tokenizer.pad_token_id, tokenizer.eos_token_id, str(tokenizer.chat_template)]
    return hashlib.sha256(f"{whole}{template}".encode()).hexdigest()
