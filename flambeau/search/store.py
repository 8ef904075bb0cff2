"""One SQLite file that many processes of a machine share: every change is a transaction, nothing is half written.

Write-ahead-log mode: a killed process leaves the last whole state. (That log does not work over network file systems.)
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


class StoreError(ValueError):
    """A file that cannot be read, or is not what was expected."""


@dataclass(frozen=True)
class Kind:
    """What a file holds: its name in messages, the mark in the SQLite header, version and tables, its errors."""

    name: str
    application_id: int
    format: int
    schema: str
    error: type[StoreError] = StoreError


class Store:
    """The file `path`, made when missing unless `create` is False; without a path in memory, for this process only.

    A file that is damaged, is not SQLite, or belongs to another program raises the error of its kind and is left
    untouched. Threads share one connection; a forked child opens its own.
    """

    def __init__(self, path: Path | None, kind: Kind, create: bool = True) -> None:
        self.path, self.kind = path, kind
        self._lock = threading.RLock()
        self.connection, self._pid = open_store(path, kind, create), os.getpid()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens at once or not at all, in this and every other process. Nested: one transaction."""
        with self._lock:
            if self._pid != os.getpid():  # a forked child must not share its parent's connection
                if self.path is None:
                    raise self.kind.error(f"a {self.kind.name} in memory serves one process only; give it a path")
                self.connection, self._pid = open_store(self.path, self.kind, create=False), os.getpid()
            if self.connection.in_transaction:
                yield self.connection
                return
            with sqlite_errors(self.path, self.kind):
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self.connection
                except BaseException:
                    self.connection.rollback()
                    raise
                self.connection.commit()


def open_store(path: Path | None, kind: Kind, create: bool) -> sqlite3.Connection:
    """A connection to a store that is known to be whole and ours."""
    if path is not None and not path.exists():
        if not create:
            raise kind.error(f"{path}: no such {kind.name} file")
        create_store(path, kind)
    with sqlite_errors(path, kind):
        # others wait as long as a transaction takes; a dead process holds no lock
        connection = sqlite3.connect(path or ":memory:", timeout=3600, isolation_level=None, check_same_thread=False)
        try:
            if path is None:
                connection.executescript(kind.schema)
                return connection
            if connection.execute("PRAGMA application_id").fetchone()[0] != kind.application_id:
                raise kind.error(f"{path}: empty, or an SQLite file of another program; not a {kind.name}")
            (format,) = connection.execute("PRAGMA user_version").fetchone()
            if format != kind.format:
                raise kind.error(f"{path}: {kind.name} format {format}; this version reads format {kind.format}")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise kind.error(f"{path}: damaged: {verdict}")
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
    return connection


def create_store(path: Path, kind: Kind) -> None:
    """Make an empty store appear at `path` whole, also if several processes do so at once (the first one wins)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        connection = sqlite3.connect(partial, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(kind.schema)
        connection.execute(f"PRAGMA application_id = {kind.application_id}")
        connection.execute(f"PRAGMA user_version = {kind.format}")
        connection.close()
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def sqlite_errors(path: str | os.PathLike[str] | None, kind: Kind) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # damage may hit the text of SQLite's own answers
        raise kind.error(f"{path or kind.name + ' in memory'}: cannot be used as a {kind.name}: {error}") from error
