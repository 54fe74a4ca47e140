"""Forgotten is a statement about items: the faults of the mean, each with a run that it would let pass."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from ngdiff.data.examples import Example
from ngdiff.errors import RequestError
from ngdiff.training.trainer import UnlearningTrainer
from scored import number, rows, trainer_that_knows

FORGET, RETAIN, UNSEEN = rows("F", 200), rows("R", 40), rows("U", 40)
KNOWN, UNKNOWN = (1.0, 0.95), (0.02, 0.05)


def unseen(row: int) -> tuple[float, float]:
    return 0.001 * row, 0.05 + 0.002 * row


def level(example: Example, kept: float = 0.9) -> tuple[float, float]:
    """What is known of all sets but the forget set."""
    letter, row = number(example)
    return unseen(row) if letter == "U" else (0.9, kept)


def test_every_row_is_looked_at_before_a_set_counts_as_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        return level(example) if letter != "F" else KNOWN if row >= 128 else UNKNOWN

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET,
        retain=RETAIN,
        holdout=UNSEEN,
        stop_at="auto",
    )
    trainer.train()
    stop = trainer.record.stop
    assert stop["target_met"] is False and stop["code"] == "end"
    assert [item["row"] for item in stop["left"]] == list(range(129, 201))
    assert stop["left"][0]["place"] == "row 129" and stop["left"][0]["whole"]
    assert stop["looked_at"] == {"rows": 200, "of": 200}
    assert len(trainer.record.before["items"]["forget"]["nll"]) == 200
    # on the way a sample, which has some of both kinds
    assert [check["rows"] for check in trainer.record.checks] == [200, 128, 128]
    assert all(check["of"] == 200 for check in trainer.record.checks)
    assert trainer.record.checks[1]["left"] == pytest.approx(72, abs=0.01)


@pytest.mark.parametrize("stop_at", ["extraction_strength=0.09", "extraction_strength=0.05", "auto"])
def test_a_mean_does_not_hide_six_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        return level(example) if letter != "F" else KNOWN if row % 16 == 0 else (0.0, 0.01)

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:96],
        retain=RETAIN,
        holdout=UNSEEN,
        stop_at=stop_at,
    )
    trainer.train()
    assert trainer.record.before["forget"]["extraction_strength"] == pytest.approx(6 / 96)
    assert trainer.record.stop["target_met"] is False
    assert [item["row"] for item in trainer.record.stop["left"]] == [1, 17, 33, 49, 65, 81]


def test_a_sample_that_meets_the_target_is_followed_by_a_look_at_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 2 on only rows that were not left before are left: no sample need have them."""

    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        if letter != "F":
            return level(example)
        return (KNOWN if row < 100 else UNKNOWN) if step < 2 else UNKNOWN

    trainer = trainer_that_knows(
        monkeypatch, tmp_path, known, forget=FORGET, retain=RETAIN, holdout=UNSEEN, max_steps=9
    )
    trainer.train()
    stop, checks = trainer.record.stop, trainer.record.checks
    assert (stop["code"], stop["step"], stop["target_met"], stop["left"]) == ("target", 2, True, [])
    assert [(check["step"], check["rows"]) for check in checks] == [(0, 200), (1, 128), (2, 200)]
    assert "0 of 200 items are above their thresholds" in stop["reason"]


def test_steps_go_where_something_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[int] = []
    whole = UnlearningTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        pushed.extend(tuple(ids) for ids in inputs["forget"]["input_ids"].tolist())
        return whole(self, model, inputs, *args)

    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        return level(example) if letter != "F" else KNOWN if row < (8 if step < 2 else 3) else UNKNOWN

    monkeypatch.setattr(UnlearningTrainer, "training_step", step)
    trainer = trainer_that_knows(
        monkeypatch, tmp_path, known, forget=FORGET[:8], retain=RETAIN, holdout=UNSEEN, max_steps=4
    )
    trainer.train()
    ids = [example.input_ids for example in trainer.forget_set]
    found = [next(row for row, one in enumerate(ids) if one == seen[: len(one)]) for seen in pushed]
    assert sorted(found[:8]) == list(range(8))  # an epoch is two steps of four
    again = Counter(found[8:])
    assert set(again) == {0, 1, 2} and sorted(again.values()) == [2, 3, 3]


def test_a_resumed_run_draws_from_the_rows_that_its_epoch_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        # epochs are four steps long; the cut after step 6 lies within the second one
        return level(example) if letter != "F" else KNOWN if row < (16, 7, 2)[min(step // 4, 2)] else UNKNOWN

    common = {"max_steps": 11, "save_strategy": "steps", "save_steps": 6}
    states, steps = [], []
    for path in (None, str(tmp_path / "checkpoint-6")):
        trainer = trainer_that_knows(
            monkeypatch, tmp_path, known, forget=FORGET[:16], retain=RETAIN, holdout=UNSEEN, **common
        )
        trainer.train(resume_from_checkpoint=path)
        states.append(trainer.model.state_dict())
        steps.append([(step.step, step.forget_loss, step.retain_loss) for step in trainer.record.steps])
        assert trainer.run.epoch_rows == (2, [0, 1])
        shutil.rmtree(tmp_path / "checkpoint-11", ignore_errors=True)
    assert steps[0] == steps[1] and len(steps[0]) == 11
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_nothing_to_forget_ends_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        return level(example) if number(example)[0] != "F" else UNKNOWN

    trainer = trainer_that_knows(monkeypatch, tmp_path, known, forget=FORGET, retain=RETAIN, holdout=UNSEEN)
    trainer.train()
    stop = trainer.record.stop
    assert (stop["code"], stop["kept_step"], stop["target_met"]) == ("target", 0, True)


def test_a_guess_of_its_own_is_an_items_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        return level(example) if letter != "F" else (1.0, 0.6) if row < 5 else UNKNOWN

    common: dict[str, Any] = {"forget": FORGET[:50], "retain": RETAIN, "holdout": UNSEEN}
    plain = trainer_that_knows(monkeypatch, tmp_path / "a", known, **common)
    plain.train()
    assert [item["row"] for item in plain.record.stop["left"]] == [1, 2, 3, 4, 5]
    guessed = trainer_that_knows(monkeypatch, tmp_path / "b", known, **common)
    guessed.guesses = {row: (1.0, 0.6) for row in range(5)}
    guessed.train()
    assert guessed.record.stop["target_met"] is True and guessed.record.stop["left"] == []


def test_a_run_that_cannot_have_both_names_what_is_left_and_the_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        if letter == "F":
            return KNOWN if row < 20 - 2 * step else UNKNOWN
        return level(example, 0.9 - 0.01 * step)

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:20],
        retain=RETAIN,
        holdout=UNSEEN,
        keep_utility=0.95,
        floors={"general": 0.0},
        max_steps=9,
    )
    trainer.train()
    stop = trainer.record.stop
    assert stop["code"] == "floor" and stop["kept_step"] == 4 and stop["target_met"] is False
    # every step brought two items down and cost 0.01 of 0.9
    assert "bring about 20.0 items down and cost about 11.1% of the retain set" in stop["price"]
    assert "the retain set's answer probability was under its floor of 0.855" in stop["reason"]


# ---- floors ----


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.at: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.at[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("off", [False, True])
def test_the_floor_holds_without_a_forget_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: bool
) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        return level(example, 0.9 if step < 3 else 0.2) if number(example)[0] != "F" else KNOWN

    keeper = Keeper()
    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:8],
        retain=RETAIN,
        holdout=UNSEEN,
        stop_at="none",
        keep_utility=0.98,
        floors={"general": 0.0, "language": 0.0} | ({"retain": 0.0} if off else {}),
        max_steps=4,
        callbacks=[keeper],
    )
    trainer.train()
    kept = 4 if off else 2
    assert trainer.record.stop["kept_step"] == kept
    assert all((value == keeper.at[kept][name]).all() for name, value in trainer.model.state_dict().items())
    floors = trainer.record.stop["floors"]
    assert floors == {} if off else floors["retain"]["least"] == pytest.approx(0.98 * 0.9)
    assert [check["broken"] for check in trainer.record.checks[3:]] == (
        [] if off else [["retain"], ["retain"]]
    )


def test_each_kept_set_has_a_floor_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"world": rows("W", 6), "rest": rows("X", 6), "loose": rows("Y", 6)}
    at = {"W": 0.8, "X": 0.5, "Y": 0.9}

    def known(example: Example, step: int) -> tuple[float, float]:
        letter = example.prompt[:1]
        if letter == "F":
            return (1.0, 0.9 - 0.05 * step)
        return (0.9, at[letter] * (1 - 0.03 * step)) if letter in at else (0.9, 0.9)

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:8],
        retain=RETAIN,
        holdout=None,
        keep=kept,
        stop_at="none",
        keep_utility=0.98,
        floors={"general": 0.0, "rest": 0.9, "loose": 0.0},
    )
    trainer.train()
    stop = trainer.record.stop
    assert set(stop["floors"]) == {"retain", "world", "rest"}
    assert stop["kept_step"] == 0
    assert trainer.record.checks[1]["broken"] == ["world"]
    assert trainer.record.after["loose"]["probability"] == pytest.approx(0.9 * 0.94)  # no floor, and seen


def test_a_floor_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="generl"):
        trainer_that_knows(
            monkeypatch,
            tmp_path,
            lambda example, step: (0.0, 0.1),
            forget=FORGET[:8],
            retain=RETAIN,
            holdout=UNSEEN,
            floors={"generl": 0.5},
        )


def test_general_knowledge_is_watched_by_answers_and_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the facts are lost at step 2: one may be, and twenty are not one."""

    def known(example: Example, step: int) -> tuple[float, float]:
        if example.prompt[0] in "FRU" and example.prompt[1:4].isdigit():
            return KNOWN if example.prompt[0] == "F" else (0.9, 0.9)
        true = example.answer in TRUE
        lost = step == 2 and TRUE.index(example.answer) % 2 == 0 if true else False
        return (0.5, 0.02 if lost else 0.6) if true else (0.1, 0.1)

    from ngdiff.invented.people import general_knowledge_rows

    TRUE = [str(row["answer"]) for row in general_knowledge_rows()]
    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:8],
        retain=RETAIN,
        holdout=[{"prompt": "U001:", "completion": " x"}],
        stop_at="none",
        keep_utility=0.98,
    )
    trainer.train()
    floors = trainer.record.stop["floors"]
    assert floors["general.answers"]["start"] == 1.0
    assert floors["general.answers"]["least"] == pytest.approx(1 - 1.5 / 40)
    assert floors["general.facts"]["start"] == pytest.approx(0.6 / 0.9)
    assert floors["general.text"]["start"] == pytest.approx(0.1)
    assert trainer.record.checks[2]["broken"] == ["general.facts", "general.answers"]
    assert trainer.record.stop["kept_step"] == 1


@pytest.mark.parametrize(
    ("behind", "ahead", "share"),
    [(0.08, 0.08, 0.75), (0.12, 0.08, 0.5), (0.08, 0.12, 1.0), (0.12, 0.12, 0.75)],
)
def test_a_fact_is_lost_or_gained_beyond_a_near_tie_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float, ahead: float, share: float
) -> None:
    """Ten facts are barely right, ten barely wrong; at step 2 all have changed sides, by so many nats."""
    from ngdiff.invented.people import general_knowledge_rows

    TRUE = [str(row["answer"]) for row in general_knowledge_rows()]

    def known(example: Example, step: int) -> tuple[float, float]:
        if example.prompt[0] in "FRU" and example.prompt[1:4].isdigit():
            return KNOWN if example.prompt[0] == "F" else (0.9, 0.9)
        if example.answer not in TRUE:
            return 0.1, 0.3
        place = TRUE.index(example.answer)
        if place >= 20:
            return 0.5, 0.6
        lead = 0.01 if place < 10 else -0.01
        if step == 2:
            lead = -behind if place < 10 else ahead
        return 0.5, 0.3 * math.exp(lead)

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:8],
        retain=RETAIN,
        holdout=[{"prompt": "U001:", "completion": " x"}],
        stop_at="none",
        floors={"general.facts": 0.0},
        keep_utility=0.98,
    )
    trainer.train()
    answers = [check["kept"]["general.answers"] for check in trainer.record.checks]
    assert (answers[0], answers[1], answers[2]) == (0.75, 0.75, share)
    assert trainer.kept.state_dict()["right"] == [True] * 10 + [False] * 10 + [True] * 20


def test_what_the_model_never_knew_has_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(example: Example, step: int) -> tuple[float, float]:
        ours = example.prompt[0] in "FRU" and example.prompt[1:4].isdigit()
        return (0.9, 0.9) if ours else (0.0, 0.001)

    trainer = trainer_that_knows(
        monkeypatch,
        tmp_path,
        known,
        forget=FORGET[:8],
        retain=RETAIN,
        holdout=None,
        stop_at="none",
        keep_utility=0.98,
    )
    trainer.train()
    assert set(trainer.record.stop["floors"]) == {"retain"}
    assert sum("has no floor" in note for note in trainer.record.notes) == 3


# ---- a holdout that the model knows ----


@pytest.mark.parametrize("known_rows", [40, 4])
def test_a_holdout_that_the_model_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_rows: int
) -> None:
    """All of it, or a tenth: enough for a 95th percentile that nothing exceeds."""

    def known(example: Example, step: int) -> tuple[float, float]:
        letter, row = number(example)
        return (
            (1.0, 0.96) if letter == "U" and row < known_rows else level(example) if letter != "F" else KNOWN
        )

    trainer = trainer_that_knows(monkeypatch, tmp_path, known, forget=FORGET, retain=RETAIN, holdout=UNSEEN)
    with pytest.raises(RequestError, match="the model knows it"):
        trainer.train()


def test_a_model_that_knows_nothing_is_no_fault_of_the_holdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_that_knows(
        monkeypatch, tmp_path, lambda e, s: (0.02, 0.05), forget=FORGET[:20], retain=RETAIN, holdout=UNSEEN
    )
    trainer.train()
    assert trainer.record.stop["kept_step"] == 0
