"""What a search has done so far, in one SQLite file that survives a killed process: the search goes on from there.

A trial is written when it is asked for, before it starts, and again when it has ended. Asks and tells are numbered in
one sequence, so that the algorithm can be taken through the very same steps again.

Every commit is synced: what was committed outlasts a power failure. A write-ahead log needs one sync for it, a rollback
journal four, which on a busy disk is most of a short trial's time. The file is opened exclusively, so that the log does
without shared memory, which network file systems lack; a second process has no business in it anyway.
"""

import fcntl
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflywheel.errors import TuningError
from mlflywheel.tuning.processes import lives
from mlflywheel.tuning.search import MetricSummary, Reason, Trial

FILE_NAME = "search.sqlite"
LOCK_NAME = "lock"
SCHEMA = 1
"""Version of the tables, in the file's `user_version`. A change that older code cannot read raises it."""

# "MLFT" in ASCII, in the file's header: how another program's database is told apart.
_APPLICATION_ID = 0x4D4C4654
_RESTART = "start the search again with --restart"
# A process that was killed a moment ago still shows as alive.
_DYING_SECONDS = 0.5
_LOCK_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.02

_TABLES = (
    """CREATE TABLE search (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        key TEXT NOT NULL,
        document TEXT NOT NULL,
        versions TEXT NOT NULL,
        started_at REAL NOT NULL,
        reason TEXT
    )""",
    """CREATE TABLE trials (
        number INTEGER PRIMARY KEY CHECK (number >= 0),
        name TEXT NOT NULL UNIQUE,
        parameters TEXT NOT NULL,
        asked INTEGER NOT NULL UNIQUE,
        told INTEGER UNIQUE,
        status TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        objective REAL,
        metrics TEXT NOT NULL,
        reported TEXT NOT NULL,
        seconds REAL,
        message TEXT NOT NULL,
        log TEXT NOT NULL
    )""",
)
_COLUMNS = (
    "number", "name", "parameters", "asked", "told", "status", "attempts", "objective", "metrics", "reported",
    "seconds", "message", "log",
)  # fmt: skip
_WRITE_TRIAL = (
    f"INSERT INTO trials ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)}) "
    f"ON CONFLICT (number) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[1:])}"
)


@dataclass(frozen=True)
class StoredTrial:
    """A trial as it is stored.

    Args:
        trial: The trial; its log is an absolute path.
        asked: Where its suggestion stands in the sequence of asks and tells, from 0.
        told: Where its result stands there; None while it runs, and for a trial that was killed at the search's end.
        attempts: How many processes were started for it.
        reported: The objective's values in the order in which they were printed.
    """

    trial: Trial
    asked: int
    told: int | None = None
    attempts: int = 0
    reported: tuple[float, ...] = ()


@dataclass(frozen=True)
class StoredSearch:
    """What is stored of a search itself.

    Args:
        key: What tells it from other searches.
        document: The Experiment it was started with.
        versions: Packages to versions, of those that decide what is suggested.
        reason: Why it ended; None while it goes on.
    """

    key: str
    document: Mapping[str, Any]
    versions: Mapping[str, str]
    reason: Reason | None = None


class SearchState:
    """The file of one search. One process has it open at a time, which `hold` sees to.

    Args:
        folder: The search's folder, which exists. The file is created at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._folder = folder
        with self._explained():
            self._connection = sqlite3.connect(
                f"file:{quote(str(self.path.resolve()))}?mode=rwc", uri=True, isolation_level=None, timeout=5.0
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "SearchState":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read_search(self) -> StoredSearch | None:
        """Return what is stored of the search; None if nothing is.

        Raises:
            TuningError: The file is damaged.
        """
        with self._explained(), self._read():
            row = self._connection.execute("SELECT key, document, versions, reason FROM search").fetchone()
            if row is None:
                return None
            return StoredSearch(row["key"], json.loads(row["document"]), json.loads(row["versions"]), row["reason"])

    def read_trials(self) -> list[StoredTrial]:
        """Return every trial, by number.

        Raises:
            TuningError: The file is damaged.
        """
        with self._explained(), self._read():
            rows = self._connection.execute("SELECT * FROM trials ORDER BY number").fetchall()
            return [self._to_trial(row) for row in rows]

    def start(self, search: StoredSearch) -> None:
        """Write a new search.

        Raises:
            TuningError: The file cannot be written.
        """
        with self._transaction():
            self._connection.execute(
                "INSERT INTO search (one, key, document, versions, started_at) VALUES (1, ?, ?, ?, ?)",
                (search.key, _dump(search.document), _dump(search.versions), time.time()),
            )

    def write(self, trials: Sequence[StoredTrial], reason: Reason | None = None) -> None:
        """Write new and changed trials, and why the search ended, all or nothing.

        Raises:
            TuningError: The file cannot be written.
        """
        with self._transaction():
            self._connection.executemany(_WRITE_TRIAL, [_to_row(stored) for stored in trials])
            if reason is not None:
                self._connection.execute("UPDATE search SET reason = ?", (reason,))

    def _prepare(self) -> None:
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and (tables or schema or application):
            raise TuningError(
                str(self.path),
                "a SQLite database of another program",
                "a file that a search wrote is needed",
                "choose another folder for searches",
            )
        if schema > SCHEMA:
            raise TuningError(
                str(self.path),
                f"schema {schema}",
                f"this version of mlflywheel reads schema {SCHEMA}",
                f"upgrade mlflywheel, or {_RESTART}",
            )
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if not schema:
            with self._transaction():
                for statement in _TABLES:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                # SQLite has already rolled back after some errors, such as a full disk.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    @contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _explain(self, error: sqlite3.Error) -> TuningError:
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        kind = "_".join(name.split("_")[:2])
        if kind == "SQLITE_FULL":
            return TuningError(
                str(self.path), "no space is left on the device", "a trial takes a few kilobytes", "free space"
            )
        if kind in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"):
            return TuningError(
                str(self.path),
                f"it cannot be written ({error})",
                "the file and its folder must be writable",
                "change the permissions, or choose another folder for searches",
            )
        if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return TuningError(
                str(self.path),
                "another program has it open",
                "one process writes at a time",
                "end the program that has the file open",
            )
        return self._damaged(f"{name}: {error}")

    def _damaged(self, seen: str) -> TuningError:
        return TuningError(
            str(self.path),
            f"not readable ({seen})",
            "the state of this search is needed to go on",
            f"restore the file, or {_RESTART}",
        )

    def _to_trial(self, row: sqlite3.Row) -> StoredTrial:
        trial = Trial(
            name=row["name"],
            number=row["number"],
            parameters=json.loads(row["parameters"]),
            status=row["status"],
            metrics=tuple(MetricSummary(**metric) for metric in json.loads(row["metrics"])),
            objective=row["objective"],
            seconds=row["seconds"],
            message=row["message"],
            # Only the file's name is stored: a folder may be moved.
            log=str(self._folder.resolve() / "trials" / row["log"]) if row["log"] else "",
        )
        return StoredTrial(trial, row["asked"], row["told"], row["attempts"], tuple(json.loads(row["reported"])))


def remove_state(folder: Path) -> None:
    """Delete a search's file, and what SQLite may have left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        (folder / (FILE_NAME + suffix)).unlink(missing_ok=True)


def order_steps(trials: Sequence[StoredTrial]) -> list[tuple[StoredTrial, bool]]:
    """Return asks and tells in the order in which they happened, as trials with whether the step is a tell.

    >>> first = StoredTrial(Trial("a", 0, {}, "succeeded"), asked=0, told=2)
    >>> second = StoredTrial(Trial("b", 1, {}), asked=1)
    >>> [(stored.trial.name, told) for stored, told in order_steps([first, second])]
    [('a', False), ('b', False), ('a', True)]
    """
    steps = [(stored.asked, stored, False) for stored in trials]
    steps += [(stored.told, stored, True) for stored in trials if stored.told is not None]
    return [(stored, told) for _, stored, told in sorted(steps, key=lambda step: step[0])]


@contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Keep a search's folder for this process alone while the body runs.

    The lock belongs to the open file: a process that inherits the descriptor keeps it, also after this one was killed.

    Args:
        folder: The search's folder; created if it is not there.

    Yields:
        The descriptor that holds the lock.

    Raises:
        TuningError: Another process works on the search, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # "a": to open must not empty it, since it names who has the lock.
        file = (folder / LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise TuningError(
            str(folder),
            f"it cannot be written ({error.strerror})",
            "a folder that can be written is needed",
            "choose another folder for searches",
        ) from error
    with closing(file):
        _lock(file.fileno(), folder)
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield file.fileno()


def _lock(descriptor: int, folder: Path) -> None:
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, host = _read_holder(folder / LOCK_NAME)
            # If the holder was killed, its watchdog is still ending its trials.
            gone = pid is not None and host == socket.gethostname() and not lives(pid)
            patience = _LOCK_WAIT_SECONDS if gone else _DYING_SECONDS
            if time.monotonic() - started < patience:
                time.sleep(_POLL_SECONDS)
                continue
            raise TuningError(
                str(folder),
                f"process {pid or 'unknown'} on {host or 'an unknown host'} works on this search",
                "one process runs a search at a time",
                "wait for it, or end it",
            ) from None
        return


def _read_holder(path: Path) -> tuple[int | None, str]:
    pid, _, host = path.read_text(encoding="utf-8").strip().partition(" ")
    return int(pid) if pid.isdecimal() else None, host


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)


def _to_row(stored: StoredTrial) -> dict[str, Any]:
    trial = stored.trial
    return {
        "number": trial.number,
        "name": trial.name,
        "parameters": _dump(dict(trial.parameters)),
        "asked": stored.asked,
        "told": stored.told,
        "status": trial.status,
        "attempts": stored.attempts,
        "objective": trial.objective,
        "metrics": _dump([asdict(metric) for metric in trial.metrics]),
        "reported": _dump(stored.reported),
        "seconds": trial.seconds,
        "message": trial.message,
        "log": Path(trial.log).name,
    }
