"""The closing lines: what is left, by its place, and what it would cost."""

from __future__ import annotations

from ngdiff.cli.run_summary import left_lines

LEFT = [{"row": n, "place": f"f.jsonl, line {n}", "whole": n == 2} for n in range(1, 13)]


def test_what_is_left_is_named_up_to_a_number() -> None:
    stop = {"target_met": False, "left": LEFT, "looked_at": {"rows": 40, "of": 40}, "price": "it would cost"}
    first, second, third = left_lines(stop)
    assert first.startswith("Left above their thresholds: 12 of 40 items: f.jsonl, line 1; f.jsonl, line 2; ")
    assert first.endswith("f.jsonl, line 10; and 2 more, all in record.json.")
    assert second == "Reproduced word for word: 1 of them."
    assert third == "By the last checks, it would cost."


def test_nothing_is_left_and_nothing_was_asked() -> None:
    stop = {"target_met": True, "left": [], "looked_at": {"rows": 40, "of": 40}, "price": None}
    assert left_lines(stop) == ["Left above their thresholds: 0 of 40 items."]
    assert left_lines({"target_met": None, "left": []}) == []
