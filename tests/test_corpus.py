"""The invented corpus: MUSE's layout, nested and disjoint requests, facts that the texts tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from ngdiff.data.muse_corpus import read_split
from ngdiff.evaluation.suites.muse import forget_sizes, read_muse
from ngdiff.invented.corpus import CorpusSize, corpus_people, invent_corpus, write_corpus

SMALL = CorpusSize(request=2, retain=5, holdout=3, questions=2)


def texts(corpus: dict[str, list[dict[str, str]]], place: str) -> list[str]:
    return [row["text"] for row in corpus[place]]


def test_the_suite_reads_it(tmp_path: Path) -> None:
    folder = write_corpus(invent_corpus(SMALL), tmp_path)
    data = read_muse(str(folder))
    assert len(data.passages) == 2
    assert len(data.questions["forget"]) == 4
    assert len(data.questions["retain"]) == 10
    assert len(data.texts["holdout"]) == 3
    assert forget_sizes(str(folder), "scal", 4) == forget_sizes(str(folder), "sust", 4) == [2, 4, 6, 8]
    assert read_split(str(folder), "raw", "retain1", "--data")


def test_larger_requests_hold_the_smaller_and_later_ones_are_disjoint() -> None:
    corpus = invent_corpus(SMALL)
    later = [set(texts(corpus, f"sust/forget_{step}")) for step in range(1, 5)]
    for step in range(1, 5):
        assert set(texts(corpus, f"scal/forget_{step}")) == set().union(*later[:step])
        assert len(later[step - 1]) == 2
    assert texts(corpus, "raw/forget") == texts(corpus, "sust/forget_1") == texts(corpus, "privleak/forget")
    everything = [text for step in later for text in step]
    everything += [t for split in ("retain1", "retain2", "holdout") for t in texts(corpus, f"raw/{split}")]
    assert len(set(everything)) == len(everything)


def test_the_texts_tell_what_the_questions_ask() -> None:
    corpus = invent_corpus(SMALL)
    told = {
        "forget": " ".join(texts(corpus, "raw/forget")),
        "retain": " ".join(texts(corpus, "raw/retain1") + texts(corpus, "raw/retain2")),
    }
    for part, text in told.items():
        assert all(row["answer"] in text for row in corpus[f"knowmem/{part}_qa"])
        assert not any(row["answer"] in text for row in corpus[f"knowmem/{part}_qa_icl"])
    for passage, text in zip(corpus["verbmem/forget"], texts(corpus, "raw/forget"), strict=True):
        assert f"{passage['prompt']} {passage['gt']}" == text


def test_people_are_those_of_the_corpus() -> None:
    corpus, people = invent_corpus(SMALL), corpus_people(SMALL)
    for step in range(1, 5):
        pairs = zip(people[f"forget_{step}"], texts(corpus, f"sust/forget_{step}"), strict=True)
        assert all(person.name in text for person, text in pairs)
    everyone = [person.name for group in people.values() for person in group]
    assert not any(name in text for name in everyone for text in texts(corpus, "raw/holdout"))


def test_same_seed_same_corpus() -> None:
    assert invent_corpus(SMALL, 3) == invent_corpus(SMALL, 3)
    assert invent_corpus(SMALL, 3) != invent_corpus(SMALL, 4)


@pytest.mark.parametrize("wrong", [{"request": 0}, {"retain": 1}, {"questions": 7}, {"request": 60}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="CorpusSize"):
        CorpusSize(**wrong)
