"""``ngdiff ask``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ngdiff.cli.app import app
from ngdiff.cli.options import Quiet, TrustRemoteCode
from ngdiff.errors import Fault, RequestError

if TYPE_CHECKING:
    from ngdiff.models.loading import ModelSource

PROMPT = "? "
BEFORE, NOW = "before", "now"


@app.command()
def ask(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model or adapter: a folder, a hub name, or 'smollm2'.")],
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help="Question. [default: ask at a prompt, or read standard input, one question per line]"
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(help="The model before unlearning, to answer the same questions.", metavar="MODEL"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum answer length in tokens.")] = 64,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Ask a model questions, and optionally the model before unlearning as well.

    `ngdiff ask unlearned "Where was Jorisko Ostroquist born?" --before target`

    Enter the questions one at a time:

    `ngdiff ask unlearned --before target`

    Read the questions from a file, one per line:

    `ngdiff ask unlearned --before target < questions.txt`

    Answers are decoded greedily, as in 'ngdiff evaluate', and printed to standard output.
    """
    from ngdiff.cli.early import NUMBERS, model_named, refuse_names

    refuse_names(context, {**NUMBERS, "model": model_named("MODEL"), "before": model_named("--before")})
    given = [(BEFORE, "--before", before)] if before is not None else []
    asked = _load([*given, (NOW, "MODEL", model)], trust_remote_code)
    answered = False
    for text in question or _questions():
        if text.strip():
            _answer(text.strip(), asked, max_new_tokens)
            answered = True
    if not answered and not sys.stdin.isatty():
        raise RequestError(
            Fault(
                "QUESTION",
                "is missing: standard input is empty too",
                "Give a question after the model, or one a line on standard input",
            )
        )


def _questions() -> Iterator[str]:
    """Yield questions line by line, typed or from standard input."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


@dataclass(frozen=True)
class Asked:
    """A loaded model, with the title of its answers."""

    title: str
    model: Any
    tokenizer: Any

    def answer(self, question: str, max_new_tokens: int) -> str:
        """Return its greedy answer."""
        from ngdiff.data.examples import Example, Message
        from ngdiff.inference.generation import generate_answers

        # the answer of an example is not shown to the model, but is required
        turns = (Message("user", question), Message("assistant", "-"))
        example = Example(turns, None, "qa", "question")
        return generate_answers(self.model, self.tokenizer, [example], max_new_tokens=max_new_tokens)[0]


def _load(given: Sequence[tuple[str, str, str]], trust_remote_code: bool) -> list[Asked]:
    """Load each model.

    Raises:
        RequestError: one of them cannot be found or read; all faults at once.
    """
    from ngdiff.errors import Faults
    from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
    from ngdiff.system.progress import working

    faults = Faults()
    sources: list[tuple[str, str, ModelSource]] = []
    for title, where, name in given:
        with faults.collecting():
            sources.append(
                (title, name, resolve_model(name, where=where, trust_remote_code=trust_remote_code))
            )
    faults.raise_any()
    loaded = []
    for title, name, source in sources:
        with working(f"Loading {name}"):
            loaded.append(Asked(title, load_model(source), load_tokenizer(source)))
    return loaded


def _answer(question: str, asked: Sequence[Asked], max_new_tokens: int) -> None:
    """Print each model's answer; with two models, the question and each answer after its title."""
    from ngdiff.errors import printable

    if len(asked) == 1:
        typer.echo(printable(asked[0].answer(question, max_new_tokens)))
        return
    typer.echo(printable(question))
    for one in asked:
        typer.echo(f"  {one.title:<6}  {printable(one.answer(question, max_new_tokens))}")
