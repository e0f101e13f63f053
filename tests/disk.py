"""What tests write is gone when they end: they need not wait until the disk has it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from sqlite3 import dbapi2
from typing import Any


def wait_for_no_disk() -> None:
    """In this process, files and SQLite databases are written without waiting for the disk; only a power cut would lose anything by it."""
    plain = sqlite3.connect

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = plain(*arguments, **named)
        with suppress(sqlite3.Error):  # what is no database is told by the statement that the test is about
            connection.execute("PRAGMA synchronous=OFF")
        return connection

    os.fsync = os.fdatasync = lambda _: None
    sqlite3.connect = dbapi2.connect = connect
