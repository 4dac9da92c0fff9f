"""The registry that needs no server: one SQLite file, by default beside the run folders.

Every call opens the file, runs one transaction and closes it, so any number of threads and processes may share it, and
a process that is killed leaves either a whole version or none: SQLite rolls the rest back when the file is next opened.
The rollback journal is kept rather than the write-ahead log. The log needs shared memory, which network file systems
do not have, and stays behind as two more files; a registry sees a handful of writes a day, so its speed buys nothing.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from mlflywheel.errors import RegistryError, UsageError
from mlflywheel.registry.records import (
    ModelRegistry,
    ModelVersion,
    RegisteredModel,
    State,
    Transition,
    VersionDraft,
    check_same_content,
    check_transition,
)

DEFAULT_PATH = Path("runs/registry.sqlite")
SCHEMA = 1
"""Version of the tables, in the file's `user_version`. A change that older code cannot read raises it."""

# "MLFW" in ASCII, in the file's header: what `file` shows, and how another program's database is told apart.
_APPLICATION_ID = 0x4D4C4657

_TABLES = (
    """CREATE TABLE models (
        name TEXT PRIMARY KEY,
        created_at TEXT NOT NULL
    )""",
    """CREATE TABLE versions (
        name TEXT NOT NULL REFERENCES models (name),
        version INTEGER NOT NULL CHECK (version >= 1),
        key TEXT NOT NULL,
        uri TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        secret TEXT NOT NULL,
        service_account TEXT NOT NULL,
        format_name TEXT NOT NULL,
        format_version TEXT NOT NULL,
        hash TEXT NOT NULL,
        metrics TEXT NOT NULL,
        parameters TEXT NOT NULL,
        lineage TEXT NOT NULL,
        description TEXT NOT NULL,
        state TEXT NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (name, version),
        UNIQUE (name, key)
    )""",
    """CREATE TABLE transitions (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        from_state TEXT,
        to_state TEXT NOT NULL,
        at TEXT NOT NULL,
        by TEXT NOT NULL,
        reason TEXT NOT NULL,
        FOREIGN KEY (name, version) REFERENCES versions (name, version)
    )""",
)

_ALL_VERSIONS = "SELECT * FROM versions WHERE name = ? ORDER BY version"
_ONE_VERSION = "SELECT * FROM versions WHERE name = ? AND version = ?"
_TEXTS = ("name", "key", "uri", "endpoint", "secret", "service_account", "format_name", "format_version", "hash")
_MAPPINGS = ("metrics", "parameters", "lineage")


class EmbeddedRegistry(ModelRegistry):
    """A registry in one SQLite file.

    The file and its folder are created with the first version; until then the registry is empty.

    Args:
        path: The file.
        timeout_seconds: How long to wait while another process writes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     registry = EmbeddedRegistry(Path(folder) / "registry.sqlite")
    ...     version = registry.ensure_version(
    ...         "ad-campaigns", "/srv/models/1", key="run-1", format_name="topics", format_version="1", hash="sha256:0"
    ...     )
    ...     registry.set_state("ad-campaigns", "1", State.APPROVED, by="doctest").state
    <State.APPROVED: 'approved'>
    """

    def __init__(self, path: Path | str = DEFAULT_PATH, timeout_seconds: float = 30.0) -> None:
        self.path = Path(path).absolute()
        self.address = str(path)
        self._timeout_seconds = timeout_seconds

    def check(self) -> str:
        """See `ModelRegistry.check`."""
        if not self.path.exists():
            return f"embedded registry {self.address}, not created yet"
        count = len(self._select("SELECT 1 FROM versions"))
        return f"embedded registry {self.address}, {count} version{'' if count == 1 else 's'}"

    def list_models(self) -> list[RegisteredModel]:
        """See `ModelRegistry.list_models`."""
        rows = self._select("SELECT name, created_at FROM models ORDER BY name")
        return [RegisteredModel(name=row["name"], created_at=datetime.fromisoformat(row["created_at"])) for row in rows]

    def history(self, name: str, version: str) -> list[Transition]:
        """See `ModelRegistry.history`."""
        self.get(name, version)
        rows = self._select(
            "SELECT * FROM transitions WHERE name = ? AND version = ? ORDER BY number", (name, int(version))
        )
        return [
            Transition(
                from_state=State(row["from_state"]) if row["from_state"] is not None else None,
                to_state=State(row["to_state"]),
                at=datetime.fromisoformat(row["at"]),
                by=row["by"],
                reason=row["reason"],
            )
            for row in rows
        ]

    def _versions(self, name: str) -> list[ModelVersion] | None:
        # A model is created together with its first version, so no versions means no model.
        return [_to_version(row) for row in self._select(_ALL_VERSIONS, (name,))] or None

    def _ensure(self, draft: VersionDraft, by: str) -> ModelVersion:
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT * FROM versions WHERE name = ? AND key = ?", (draft.name, draft.key)
            ).fetchone()
            if row is not None:
                existing = _to_version(row)
                check_same_content(self.address, draft, existing)
                return existing
            now = datetime.now(UTC).isoformat()
            connection.execute("INSERT OR IGNORE INTO models (name, created_at) VALUES (?, ?)", (draft.name, now))
            (number,) = connection.execute(
                "SELECT coalesce(max(version), 0) + 1 FROM versions WHERE name = ?", (draft.name,)
            ).fetchone()
            values = {
                **{name: getattr(draft, name) for name in _TEXTS},
                **{name: json.dumps(getattr(draft, name), allow_nan=False) for name in _MAPPINGS},
                "version": number,
                "description": draft.description,
                "state": str(State.CANDIDATE),
                "created_at": now,
            }
            connection.execute(
                f"INSERT INTO versions ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})",
                values,
            )
            _add_transition(connection, draft.name, number, None, State.CANDIDATE, now, by, "")
            row = connection.execute(_ONE_VERSION, (draft.name, number)).fetchone()
        return _to_version(row)

    def _set_state(self, name: str, version: str, state: State, by: str, reason: str) -> ModelVersion:
        self.get(name, version)
        with self._transaction() as connection:
            where = (name, int(version))
            current = _to_version(connection.execute(_ONE_VERSION, where).fetchone())
            if current.state == state:
                return current
            check_transition(self.address, current.reference, current.state, state)
            connection.execute("UPDATE versions SET state = ? WHERE name = ? AND version = ?", (str(state), *where))
            now = datetime.now(UTC).isoformat()
            _add_transition(connection, name, int(version), current.state, state, now, by, reason)
            row = connection.execute(_ONE_VERSION, where).fetchone()
        return _to_version(row)

    def _select(self, statement: str, values: tuple[str | int, ...] = ()) -> list[sqlite3.Row]:
        """Read rows; none where the file, or its tables, are not there yet."""
        if not self.path.exists():
            return []
        with self._opened("rw") as connection:
            # One statement is one transaction; the schema is checked by its own, and never goes back.
            return connection.execute(statement, values).fetchall() if self._has_tables(connection) else []

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file, create what is missing, run the body in one transaction, and close the file.

        The write lock is taken at once: to read first and then to write can fail when two processes do it at the same
        time, without waiting.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(
                self.address,
                f"its folder cannot be created ({error.strerror})",
                "a folder that can be written is needed",
                "choose another file with --registry",
            ) from error
        with self._opened("rwc") as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not self._has_tables(connection):
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {SCHEMA}")
                yield connection
                connection.execute("COMMIT")
            finally:
                # SQLite has already rolled back after some errors, such as a full disk.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect(mode)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _connect(self, mode: str) -> sqlite3.Connection:
        # SQLite opens a file that may only be read as read-only with `rw`, which `rwc` would otherwise create.
        uri = f"file:{quote(str(self.path))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=self._timeout_seconds, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and (tables or schema):
            raise RegistryError(
                self.address,
                "a SQLite database of another program",
                "a file that this registry wrote is needed",
                "choose another file with --registry",
            )
        if schema > SCHEMA:
            raise RegistryError(
                self.address,
                f"schema {schema}",
                f"this version of mlflywheel reads schema {SCHEMA}",
                "upgrade mlflywheel, or use the version that wrote the file",
            )
        return bool(schema)

    def _explain(self, error: sqlite3.Error) -> RegistryError:
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        kind = "_".join(name.split("_")[:2])
        if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return RegistryError(
                self.address,
                f"another process has held it for {self._timeout_seconds:g} s",
                "one process writes at a time",
                "repeat the command, or end the process that has the file open",
            )
        if kind in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return RegistryError(
                self.address,
                f"not a readable SQLite database ({error})",
                "a file that this registry wrote is needed",
                "restore it from a backup, or choose another file with --registry",
            )
        if kind in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"):
            return RegistryError(
                self.address,
                f"it cannot be opened for this ({error})",
                "the file and its folder must be writable to register or change a version",
                "change the permissions, or choose another file with --registry",
            )
        if kind == "SQLITE_FULL":
            return RegistryError(
                self.address, "no space is left on the device", "a version takes a few kilobytes", "free space"
            )
        return RegistryError(
            self.address,
            f"{name}: {error}",
            "the database was expected to answer",
            "check the disk, then restore the file from a backup",
        )


def registry_path(address: str) -> Path:
    """Read `sqlite:///ABSOLUTE.sqlite`, or a plain path.

    Raises:
        UsageError: Another scheme, a relative `sqlite://` address, or no file named.

    >>> registry_path("sqlite:///srv/registry.sqlite").as_posix()
    '/srv/registry.sqlite'
    """
    scheme, separator, rest = address.partition("://")
    if not separator and address:
        return Path(address)
    if scheme == "sqlite" and rest.strip("/") and rest.startswith("/"):
        return Path("/" + rest.lstrip("/"))
    raise UsageError(
        f"registry {address!r}",
        "not an address of a registry",
        "a path, sqlite:///ABSOLUTE/PATH, http://HOST or https://HOST is needed",
        "write it in one of these forms",
    )


def _add_transition(
    connection: sqlite3.Connection,
    name: str,
    version: int,
    from_state: State | None,
    to_state: State,
    at: str,
    by: str,
    reason: str,
) -> None:
    connection.execute(
        "INSERT INTO transitions (name, version, from_state, to_state, at, by, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, version, from_state and str(from_state), str(to_state), at, by, reason),
    )


def _to_version(row: sqlite3.Row) -> ModelVersion:
    return ModelVersion(
        **{name: row[name] for name in _TEXTS},
        **{name: json.loads(row[name]) for name in _MAPPINGS},
        version=str(row["version"]),
        description=row["description"],
        state=State(row["state"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )
