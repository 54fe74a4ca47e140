"""results of single items -> a file that stores them, so that an interrupted evaluation can continue.

One SQLite file. A key is the SHA-256 of everything that determines a value: weights, configuration,
tokenizer, kind and version of the measurement, settings, versions of the libraries, and the token ids. The
value of a key never changes. Values are committed as they arrive, so a process may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "evaluations.sqlite"
_VARIABLES = 500  # SQLite's oldest limit on placeholders in a statement is 999
_MOST_DAMAGED = 100
_WAIT_SECONDS = 60.0


def default_folder() -> Path:
    """Return ``ngdiff`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ngdiff"


def cache_key(*parts: object) -> str:
    """Return the SHA-256 (hex) of JSON values, which must not hold objects of other kinds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """Item results by key.

    A damaged file is kept and a new one started beside it (``evaluations-2.sqlite``...), as ``notes`` says.
    Where the disk is full or the file cannot be written, the evaluation continues without it.

    Args:
        folder: folder of the file; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._connection: sqlite3.Connection | None = None
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _open(self) -> None:
        for number in range(1, _MOST_DAMAGED):
            self.path = self.folder / (FILE if number == 1 else f"evaluations-{number}.sqlite")
            try:
                self._connection = _connect(self.path)
            except sqlite3.OperationalError:
                raise  # locked, read-only, no room: the file itself may be sound
            except sqlite3.DatabaseError as error:
                self._note(f"the cache {self.path} is damaged ({error}) and is not used; it can be deleted")
            else:
                return
        raise sqlite3.DatabaseError("every file is damaged")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _give_up(self, error: Exception) -> None:
        self.close()
        self._note(f"nothing more is cached in {self.folder} ({error})")

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of those keys that the file has."""
        found: dict[str, Any] = {}
        unique = list(dict.fromkeys(keys))
        for start in range(0, len(unique), _VARIABLES):
            if self._connection is None:
                break
            part = unique[start : start + _VARIABLES]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value, digest FROM items WHERE key IN ({marks})"
            try:
                rows = self._connection.execute(query, part).fetchall()
            except sqlite3.OperationalError as error:
                self._note(f"the cache {self.path} could not be read ({error})")
                continue
            except sqlite3.DatabaseError as error:
                self._give_up(error)
                break
            for key, value, digest in rows:
                if isinstance(value, str) and digest == _digest(key, value):
                    with contextlib.suppress(ValueError, RecursionError):  # not JSON: it is measured again
                        found[key] = json.loads(value)
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Store values and commit them."""
        if self._connection is None or not values:
            return
        rows = []
        for key, value in values.items():
            text = json.dumps(value, allow_nan=False)
            rows.append((key, text, _digest(key, text)))
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; nothing is cached afterwards."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _digest(key: str, value: str) -> str:
    """Return a digest of a row, since SQLite does not detect changed bytes inside a value."""
    return hashlib.sha256(f"{key} {value}".encode()).hexdigest()[:16]


def _connect(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(OSError):  # SQLite says what is wrong with the file
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)  # it holds answers
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, check_same_thread=False)
    try:
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS items"
                " (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"
            )
        columns = [row[1] for row in connection.execute("PRAGMA table_info(items)")]
        if columns != ["key", "value", "digest"]:
            raise sqlite3.DatabaseError("its table is not ours")
        connection.execute("SELECT key FROM items LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection
