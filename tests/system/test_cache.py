"""The cache of item results: what is stored comes back, and nothing else ever does."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ngdiff.system.cache import FILE, Cache, _digest, cache_key, default_folder

KEYS = {cache_key("a"): [1.5, None], cache_key("b"): {"nll": 0.1, "text": "ä\x00\U0001f600"}}


def filled(folder: Path) -> Path:
    cache = Cache(folder)
    cache.put(KEYS)
    cache.close()
    return folder / FILE


def test_round_trip_and_what_is_not_there(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = Cache(tmp_path)
    assert cache.get([*KEYS, cache_key("c")]) == KEYS
    assert cache.notes == []
    cache.close()
    assert cache.get(list(KEYS)) == {}  # closed


def test_many_keys_at_once(tmp_path: Path) -> None:
    values = {cache_key(n): n for n in range(1234)}
    cache = Cache(tmp_path)
    cache.put(values)
    assert cache.get(list(values)) == values


@pytest.mark.parametrize(
    "parts", [("a", 2), ("a", "1"), ("a", 1.5), ("a",), ("a", [1]), ("a", 1, None), (["a", 1],)]
)
def test_keys_differ_by_each_part(parts: tuple[object, ...]) -> None:
    assert cache_key(*parts) != cache_key("a", 1)
    assert cache_key("a", 1) == cache_key("a", 1)


def test_a_value_changed_on_disk_is_not_returned(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE items SET value = '[9.5, null]' WHERE value LIKE '[1.5%'")
    connection.close()
    assert list(Cache(tmp_path).get(list(KEYS))) == [cache_key("b")]


def test_a_value_that_is_no_json_is_not_returned(tmp_path: Path) -> None:
    path = filled(tmp_path)
    key = cache_key("a")
    with sqlite3.connect(path) as connection:
        for text in ("[9.5", "[" * 100_000):
            connection.execute(
                "UPDATE items SET value = ?, digest = ? WHERE key = ?", (text, _digest(key, text), key)
            )
            connection.commit()
            assert list(Cache(tmp_path).get(list(KEYS))) == [cache_key("b")]
    connection.close()


def test_its_owner_alone_reads_it(tmp_path: Path) -> None:
    path = filled(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)  # as earlier versions left it
    Cache(tmp_path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_left_and_a_fresh_one_begun(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    cache = Cache(tmp_path)
    assert "damaged" in cache.notes[0]
    cache.put(KEYS)
    assert cache.get(list(KEYS)) == KEYS
    assert (tmp_path / FILE).read_bytes() == content
    assert cache.path != tmp_path / FILE
    cache.close()


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE items (mine TEXT)")
    connection.close()
    cache = Cache(tmp_path)
    assert "not ours" in cache.notes[0]
    cache.put(KEYS)
    assert cache.get(list(KEYS)) == KEYS
    cache.close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("SELECT * FROM items").fetchall() == []
    connection.close()


def test_without_a_place_nothing_is_cached_and_a_note_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file")
    cache.put(KEYS)
    assert cache.get(list(KEYS)) == {}
    assert "nothing more is cached" in cache.notes[0]


def test_two_at_once(tmp_path: Path) -> None:
    first, second = Cache(tmp_path), Cache(tmp_path)
    first.put({cache_key("a"): 1})
    second.put({cache_key("b"): 2})
    assert first.get([cache_key("a"), cache_key("b")]) == {cache_key("a"): 1, cache_key("b"): 2}
    first.close()
    second.close()


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "ngdiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "ngdiff"
