"""Which figure of running text tells best when it can no longer be extracted.

    python -m benchmarks.text_measures [--forget SOURCE] [--unseen SOURCE] [--texts 48] [--window 256]

A small model (4 layers, 128 wide, a tokenizer of 2,000 words trained on the texts) learns the first half of
the texts by heart. Then each of four forget losses pushes it away from them, step by step. At every step all
candidates are measured, and beside them what MUSE measures and a user sees: the greedy continuation of a
beginning, by ROUGE-L F1. A candidate is better the less is left of that where it first says "forgotten", that
is, where its 95th percentile comes down to that of texts never seen, and the closer it follows it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ngdiff.data.batching import collate
from ngdiff.data.datasets import as_encoded
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.item_scores import rouge
from ngdiff.inference.teacher_forced import extraction_strength, verbatim
from ngdiff.invented.kinds import invented_rows
from ngdiff.losses import LOSSES
from ngdiff.models.logprobs import labelled_tokens

PREFIX, CONTINUATION = 64, 64
"""Tokens of a beginning, and of what is to follow; MUSE takes 200 and 128 of texts four times as long."""


def tokenizer_for(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="</s>")


def small_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
        )
    )


def continuation(correct: torch.Tensor) -> float:
    """Share of the tokens behind the beginning that come out right before the first wrong one."""
    behind = correct[PREFIX - 1 : PREFIX - 1 + CONTINUATION]
    return float(behind.int().cumprod(0).sum()) / len(behind)


CANDIDATES: dict[str, Callable[[torch.Tensor], float]] = {
    "extraction strength (1 - k/n)": extraction_strength,
    "continuation of the beginning": continuation,
    "longest continuation (verbatim)": verbatim,
    "exact memorisation": lambda correct: float(correct.float().mean()),
}


@torch.no_grad()
def measured(model: LlamaForCausalLM, pieces: Sequence[EncodedExample]) -> dict[str, list[float]]:
    """Return every candidate for every piece, and the probability."""
    model.eval()
    found: dict[str, list[float]] = {name: [] for name in (*CANDIDATES, "probability")}
    for piece in pieces:
        tokens = labelled_tokens(model, collate([piece], 0))
        correct = tokens.correct()
        for name, measure in CANDIDATES.items():
            found[name].append(measure(correct))
        found["probability"].append(float(tokens.log_probs().mean().exp()))
    return found


@torch.no_grad()
def rouges(model: LlamaForCausalLM, pieces: Sequence[EncodedExample], tokenizer: object) -> list[float]:
    """Return ROUGE-L F1 of each piece's greedy continuation."""
    model.eval()
    begun = torch.tensor([piece.input_ids[:PREFIX] for piece in pieces])
    said = model.generate(
        begun,
        attention_mask=torch.ones_like(begun),
        max_new_tokens=CONTINUATION,
        min_new_tokens=CONTINUATION,
        do_sample=False,
        pad_token_id=0,
    )
    return [
        rouge(
            tokenizer.decode(piece.input_ids[PREFIX : PREFIX + CONTINUATION]),  # type: ignore[attr-defined]
            tokenizer.decode(row[PREFIX:]),  # type: ignore[attr-defined]
        ).rougeL_f1
        for piece, row in zip(pieces, said.tolist(), strict=True)
    ]


def learn(model: LlamaForCausalLM, pieces: Sequence[EncodedExample], epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(order), 8):
            batch = collate([pieces[row] for row in order[start : start + 8]], 0)
            loss = -labelled_tokens(model, batch).log_probs().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def forget(
    model: LlamaForCausalLM, pieces: Sequence[EncodedExample], loss: str, steps: int, lr: float
) -> object:
    """Push a model away from the pieces; yields after every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    row = LOSSES[loss]
    for step in range(steps):
        yield step
        model.train()
        first = 8 * step % len(pieces)
        batch = collate((list(pieces) + list(pieces))[first : first + 8], 0)
        tokens = labelled_tokens(model, batch)
        (row.complete({}, {"never-seen NLL": 5.0}).function(tokens) / len(tokens.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()


def tell(name: str, states: Sequence[dict[str, list[float]]], seen: dict[str, list[float]]) -> None:
    """Print, for each candidate, what is left where it first says "forgotten"."""
    for candidate in [*CANDIDATES, "probability"]:
        level = float(np.quantile(seen[candidate], 0.95, method="higher"))
        share = [fmean(value > level for value in state[candidate]) for state in states]
        met = next((place for place, left in enumerate(share) if left <= 0.05), None)
        every = [value for state in states for value in state[candidate]]
        follows = spearmanr(every, [value for state in states for value in state["rouge"]]).statistic
        if met is None:
            print(f"| {name} | {candidate} | {level:.3f} | never | | | {follows:.2f} |")
            continue
        left = states[met]["rouge"]
        beyond = fmean(value > float(np.quantile(seen["rouge"], 0.95, method="higher")) for value in left)
        print(
            f"| {name} | {candidate} | {level:.3f} | {met} | {fmean(left):.3f} | {beyond:.0%} "
            f"| {follows:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--forget")
    parser.add_argument("--unseen")
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def texts(source: str | None, seed: int) -> list[str]:
        if source is None:
            return [row["answer"] for row in invented_rows("text", args.texts, args.window, seed)]
        return [str(row.values["text"]) for row in read_rows(source, where=source)][: args.texts]

    known, other = texts(args.forget, 1), texts(args.unseen, 2)
    tokenizer = tokenizer_for([*known, *other])

    def whole_pieces(found: Sequence[str]) -> list[EncodedExample]:
        rows = [{"text": text} for text in found if text.strip()]
        encoded = as_encoded(rows, tokenizer, args.window, "texts")
        return [one for one in encoded if len(one.input_ids) > PREFIX + CONTINUATION][: args.texts]

    learned, unseen = whole_pieces(known), whole_pieces(other)
    model = small_model(len(tokenizer))
    learn(model, learned, args.epochs)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    seen = measured(model, unseen) | {"rouge": rouges(model, unseen, tokenizer)}
    start = measured(model, learned) | {"rouge": rouges(model, learned, tokenizer)}
    print(f"{len(learned)} pieces learned, {len(unseen)} never seen")
    for candidate in start:
        print(
            f"  {candidate}: learned {fmean(start[candidate]):.3f}, never seen {fmean(seen[candidate]):.3f}"
        )
    print("| forget loss | figure | level | step | ROUGE-L left | items beyond | rank correlation |")
    print("|---|---|---|---|---|---|---|")
    for loss, lr in (("negated-nll", 1e-4), ("unlikelihood", 3e-4), ("ceu", 3e-4)):
        model.load_state_dict(weights)
        states = []
        for _ in forget(model, learned, loss, args.steps, lr):
            states.append(measured(model, learned) | {"rouge": rouges(model, learned, tokenizer)})
        tell(loss, states, seen)


if __name__ == "__main__":
    main()
