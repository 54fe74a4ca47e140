"""What an unlearned model lost: knowledge or language. Needs a retrained model, which tells the two apart.

python -m benchmarks.token_kinds --target TARGET --retrained RETRAINED --forget 'tofu:full[-200:]' \\
    --retain 'tofu:full[-1200:-200]' NAME=MODEL NAME=MODEL... --title "Token kinds, forget05"

A token of the forget answers that the retrained model finds improbable is knowledge, one that it finds
probable is language. For each kind: the mean probability under every model. Beside it how well the counts of
``ngdiff.preparation.predictable``, which need no retrained model, tell the two apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.pages import put
from ngdiff.data.batching import collate
from ngdiff.data.datasets import as_encoded
from ngdiff.data.encoding import EncodedExample
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import labelled_tokens
from ngdiff.preparation.predictable import Counts, with_predictable
from ngdiff.stopping.never_seen import invented

KINDS = (
    ("knowledge: p < 0.1", 0.0, 0.1),
    ("0.1 to 0.5", 0.1, 0.5),
    ("0.5 to 0.9", 0.5, 0.9),
    ("language: p > 0.9", 0.9, 1.1),
)
ROWS = 8


def probabilities(model: nn.Module, examples: Sequence[EncodedExample], pad_id: int) -> Tensor:
    """Return the probability of each labelled token, in reading order."""
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(examples), ROWS):
            tokens = labelled_tokens(model, collate(examples[start : start + ROWS], pad_id))
            found.append(tokens.log_probs().exp())
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="NAME=FOLDER of unlearned models")
    parser.add_argument("--target", required=True)
    parser.add_argument("--retrained", required=True)
    parser.add_argument("--forget", required=True)
    parser.add_argument("--retain", required=True)
    parser.add_argument("--title", help="of the table in the documentation; only printed without")
    args = parser.parse_args()
    named = dict(text.split("=", 1) for text in args.models)
    folders = {"target": args.target, "retrained": args.retrained, **named}
    tokenizer = load_tokenizer(resolve_model(args.target))
    pad_id = int(tokenizer.pad_token_id or 0)
    forget, retain = (as_encoded(data, tokenizer, 512, "data") for data in (args.forget, args.retain))
    unseen = invented(forget, tokenizer, 512).examples
    found: dict[str, Tensor] = {}
    for name, folder in folders.items():
        model = load_model(resolve_model(str(Path(folder).expanduser()))).eval()
        found[name] = probabilities(model, forget, pad_id)
        if name == "target":
            before = probabilities(model, unseen, pad_id).tolist()
    levelled = with_predictable(forget, list(retain), unseen, before)
    levels = torch.tensor([level for example in levelled for level in example.predictable or ()])
    counts = Counts(retain)
    parts = torch.tensor([both for example in forget for both in counts.parts(example)])
    told = {"n-grams": parts[:, 0], "the question": parts[:, 1], "the levels": levels}
    text = table(found, told)
    print(text)
    if args.title:
        put(args.title, text)


def table(found: dict[str, Tensor], told: dict[str, Tensor]) -> str:
    """Return the Markdown table, and a line on how well the counts and the levels tell the kinds apart."""
    levels = told["the levels"]
    truth, names = found["retrained"], [name for name in found if name != "retrained"]
    lines = [
        f"| token, by its p under the retrained model | tokens | retrained | level | {' | '.join(names)} |",
        "|---" * (len(names) + 4) + "|",
    ]
    for kind, low, high in KINDS:
        mine = (truth >= low) & (truth < high)
        means = [truth, levels, *(found[name] for name in names)]
        cells = " | ".join(f"{float(values[mine].mean()):.2f}" for values in means)
        lines.append(f"| {kind} | {int(mine.sum())} | {cells} |")
    clear = (truth < 0.1) | (truth > 0.9)
    areas = ", ".join(
        f"{name} {roc_auc_score((truth[clear] > 0.9).numpy(), values[clear].numpy()):.2f}"
        for name, values in told.items()
    )
    return "\n".join([*lines, "", f"What tells knowledge from language, by AUC: {areas}."])


if __name__ == "__main__":
    main()
