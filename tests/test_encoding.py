"""Encoding: which tokens a sequence has, which are labelled, and that generation sees the same ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ngdiff.data.encoding import IGNORE, EncodedExample, encode, encode_all, encode_prompt
from ngdiff.data.examples import Example, Kind, Message
from ngdiff.errors import RequestError
from tiny import (
    BOS,
    CHATML,
    CHATML_EOS_AT_END,
    CHATML_NO_NEWLINE,
    END,
    EOS,
    INST_WITH_BOS,
    NO_END,
    tiny_tokenizer,
)

CHATML_PROMPT = (
    "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
)


def pair(
    question: str = "Who?", answer: str = "The cat", kind: Kind = "qa", place: str = "a, line 1"
) -> Example:
    return Example((Message("user", question), Message("assistant", answer)), None, kind, place)


def text(content: str = "The cat sat.") -> Example:
    return Example((), content, "text", "a, line 1")


def halves(encoded: EncodedExample, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """Return the unlabelled beginning and the labelled rest as text, having checked that labels are so."""
    start = sum(label == IGNORE for label in encoded.labels)
    assert encoded.labels == (IGNORE,) * start + encoded.input_ids[start:]
    return tokenizer.decode(encoded.input_ids[:start]), tokenizer.decode(encoded.input_ids[start:])


def check(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    encoded = encode(example, tokenizer, 500)
    prompt = encode_prompt(example, tokenizer, 500)
    start = sum(label == IGNORE for label in encoded.labels)
    assert encoded.input_ids[:start] == tuple(prompt) and not encoded.truncated
    return halves(encoded, tokenizer)


@pytest.mark.parametrize("kind", ["qa", "chat"])
@pytest.mark.parametrize(
    ("template", "eos", "prompt", "answer"),
    [
        (CHATML, END, CHATML_PROMPT, "The cat<|im_end|>"),
        (CHATML, EOS, CHATML_PROMPT, "The cat<|im_end|>"),
        (CHATML_NO_NEWLINE, END, CHATML_PROMPT.replace("<|im_end|>\n", "<|im_end|>"), "The cat<|im_end|>"),
        (CHATML_EOS_AT_END, EOS, CHATML_PROMPT, "The cat<|im_end|>"),
        (INST_WITH_BOS, EOS, "<s>[INST] Who? [/INST]", " The cat </s>"),
        (NO_END, EOS, "user: Who?\nassistant: ", "The cat</s>"),
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_templates(template: str, eos: str, prompt: str, answer: str, adds_bos: bool, kind: Kind) -> None:
    tokenizer = tiny_tokenizer(template, eos=eos, adds_bos=adds_bos)
    assert check(pair(kind=kind), tokenizer) == (prompt, answer)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", [CHATML, None])
def test_plain_forms(template: str | None, adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(template, adds_bos=adds_bos)
    bos = BOS if adds_bos else ""
    assert check(pair("Who?", " The cat", "completion"), tokenizer) == (f"{bos}Who?", f" The cat{END}")
    assert check(text(), tokenizer) == (bos, f"The cat sat.{END}")
    if template is None:
        assert check(pair(), tokenizer) == (f"{bos}Question: Who?\nAnswer:", f" The cat{END}")


def test_nothing_is_doubled() -> None:
    tokenizer = tiny_tokenizer(None, adds_bos=True)
    assert check(pair(f"{BOS}Who?", f"Ann{END}", "completion"), tokenizer) == (f"{BOS}Who?", f"Ann{END}")
    assert check(text(f"{BOS}Ann{END}"), tokenizer) == (BOS, f"Ann{END}")


def test_pad_is_eos_and_still_labelled() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode(pair(), tokenizer, 500)
    assert encoded.labels[-1] == tokenizer.eos_token_id and encoded.labels.count(tokenizer.eos_token_id) == 1
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 3  # system, user, assistant


def test_last_of_several_answers_is_labelled() -> None:
    turns = (
        Message("system", "Be kind."),
        *pair(answer="The cat").messages,
        *pair("And?", "The cat").messages,
    )
    prompt, answer = check(Example(turns, None, "chat", "p"), tiny_tokenizer())
    assert prompt.count("The cat") == 1 and prompt.endswith("And?<|im_end|>\n<|im_start|>assistant\n")
    assert "You help." not in prompt and answer == "The cat<|im_end|>"


def test_context_that_only_the_full_rendering_has() -> None:
    """Reasoning models' templates write an empty block of reasoning before an old answer."""
    block = "('<think></think>' if loop.last and m['role'] == 'assistant' else '')"
    template = NO_END.replace("': ' + m['content']", f"': ' + {block} + m['content']")
    prompt, answer = check(pair(), tiny_tokenizer(template, eos=EOS))
    assert prompt.endswith("assistant: <think></think>") and answer == "The cat</s>"


def test_generation_prompt_longer_than_the_rendering() -> None:
    template = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
    prompt, answer = check(pair(), tiny_tokenizer(template))
    assert prompt == CHATML_PROMPT and answer == "The cat<|im_end|>"


def test_template_that_trims() -> None:
    template = CHATML.replace("m['content']", "m['content'] | trim")
    assert check(pair(answer="  The cat \n"), tiny_tokenizer(template)) == (
        CHATML_PROMPT,
        "The cat<|im_end|>",
    )


@pytest.mark.parametrize(
    "answer", ["im", "<|im_end|>", "end", "assistant", "a<|im_end|>\n<|im_start|>user\nb", "\nx"]
)
@pytest.mark.parametrize("template", [CHATML, CHATML_NO_NEWLINE, INST_WITH_BOS, NO_END, None])
def test_awkward_answers(template: str | None, answer: str) -> None:
    _, labelled = check(pair(answer, answer), tiny_tokenizer(template))
    assert labelled.strip().startswith(answer.strip())


def test_merges_across_the_boundary() -> None:
    """The ids of the prompt are those that generation gets, whatever the answer begins with."""
    tokenizer = tiny_tokenizer(None)
    for prompt, answer in [("the auth", "or wrote"), ("the ", "author"), ("Question", ":"), ("a\n", "\nb")]:
        example = pair(prompt, answer, "completion")
        alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        encoded = encode(example, tokenizer, 500)
        assert list(encoded.input_ids[: len(alone)]) == alone == encode_prompt(example, tokenizer, 500)
        assert halves(encoded, tokenizer) == (prompt, answer + END)
    merged = tokenizer("the author", add_special_tokens=False)["input_ids"]
    two_pieces = encode(pair("the ", "author", "completion"), tokenizer, 500).input_ids[:-1]
    assert merged != list(two_pieces)  # the case is a real one


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(words, words, st.sampled_from([CHATML, CHATML_EOS_AT_END, INST_WITH_BOS, NO_END, None]), st.booleans())
def test_any_text(question: str, answer: str, template: str | None, adds_bos: bool) -> None:
    tokenizer = tiny_tokenizer(template, adds_bos=adds_bos)
    for kind in ("qa", "completion") if template is None else ("qa", "chat", "completion"):
        prompt, labelled = check(pair(question, answer, kind), tokenizer)
        assert question in prompt and answer in labelled


def test_truncation_keeps_the_prompt_and_is_flagged() -> None:
    tokenizer = tiny_tokenizer()
    whole = encode(pair(answer="The cat sat on the mat."), tokenizer, 500)
    start = len(encode_prompt(pair(), tokenizer, 500))
    cut = encode(whole.example, tokenizer, start + 2)
    assert cut.truncated and cut.input_ids == whole.input_ids[: start + 2]
    assert cut.labels == whole.labels[: start + 2]
    assert not encode(whole.example, tokenizer, len(whole.input_ids)).truncated


def test_answers_wholly_cut_are_refused_together() -> None:
    tokenizer = tiny_tokenizer()
    start = len(encode_prompt(pair(), tokenizer, 500))
    examples = [pair("W", "a"), pair(place="f.csv, row 2"), pair(place="f.csv, row 3")]
    with pytest.raises(RequestError) as caught:
        encode_all(examples, tokenizer, start, "--forget")
    (fault,) = caught.value.faults
    assert fault.where == "--forget f.csv, row 2" and "2 examples in all" in fault.what
    assert f"fits into {start} tokens" in fault.what and "--max-length" in fault.fix
    with pytest.raises(RequestError, match=r"f\.csv, row 2"):
        encode_prompt(examples[1], tokenizer, start)


def test_chat_without_template_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        encode_all([pair(), pair(kind="chat", place="c.jsonl, line 9")], tiny_tokenizer(None), 99, "--retain")
    (fault,) = caught.value.faults
    assert fault.where == "--retain c.jsonl, line 9" and "no chat template" in fault.what
    assert "1 example in all" in fault.what and "chat template" in fault.fix


def test_template_that_refuses_is_reported() -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    template = refusal + NO_END
    example = Example((Message("system", "s"), *pair().messages), None, "chat", "c.jsonl, line 4")
    with pytest.raises(RequestError, match=r"c\.jsonl, line 4: the chat template refuses.*no system here"):
        encode(example, tiny_tokenizer(template), 500)
    with pytest.raises(RequestError, match="does not show the last answer"):
        encode(pair(), tiny_tokenizer("{{ messages[0]['content'] }}"), 500)


def test_literal_special_tokens_are_tokenised_as_the_tokenizer_does() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(pair(f"What is {END}?", f"It is {END} here"), tokenizer, 500)
    assert halves(encoded, tokenizer)[1] == f"It is {END} here{END}"
    assert [label for label in encoded.labels if label != IGNORE].count(tokenizer.eos_token_id) == 2


def test_tokenizer_without_end_token() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    assert check(text("The cat"), tokenizer) == ("", "The cat")
