"""The record of a rollout in a file: for rollouts behind a proxy on one machine."""

import fcntl
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mlflywheel.errors import ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Store
from mlflywheel.rollouts.record import Record, read_record


class FileStore(Store):
    """Keeps the record in one JSON file, on a file system of this machine.

    The file is replaced as a whole, so that a reader or a crash never meets half a record. The lock is the kernel's, on
    a second file beside it: it ends with its process, however that ends.

    Args:
        path: The file. Its folder is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._is_held = False

    def load(self) -> Record | None:
        """Return the newest rollout's record; None if there was none.

        Raises:
            DataError: The file holds no record.
            RolloutError: The file cannot be read.
        """
        content = self._read()
        return (
            None if content is None else read_record(content.decode(errors="replace"), str(self.path), _hash(content))
        )

    def save(self, record: Record) -> Record:
        """Write a record, and return it with its new `version`: the SHA-256 of the file.

        Raises:
            ForeignEditError: The file is not what it was when the record was loaded.
            RolloutError: The lock is not held, or the file cannot be written.
        """
        self.require_lock()
        content = self._read()
        found = "" if content is None else _hash(content)
        if found != record.version:
            seen = "it is there already" if not record.version else "it was changed after it was read"
            raise ForeignEditError(
                str(self.path),
                seen if found else "it was deleted after it was read",
                "a rollout's record is written by mlflywheel alone",
                "look at it with mlflywheel rollout status, then run the same command again",
            )
        content = f"{record.to_json()}\n".encode()
        try:
            self._replace(content)
        except OSError as error:
            raise self._unusable("written", error) from error
        return replace(record, version=_hash(content))

    def require_lock(self) -> None:
        """Return if the lock is held.

        Raises:
            RolloutError: It is not.
        """
        if not self._is_held:
            raise _not_held(str(self.path))

    @contextmanager
    def lock(self, holder: str) -> Iterator[None]:
        """Hold the rollout alone, until the end of the block or of the process.

        Args:
            holder: Who, as others are told.

        Raises:
            RolloutError: Somebody else holds it, or the lock file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._lock_path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._unusable("locked", error) from error
        with file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RolloutError(
                    str(self.path),
                    f"held by {_describe_holder(file.read())}",
                    "one process moves a rollout at a time; the lock ends with that process",
                    "wait for it, or end it",
                ) from None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            file.truncate(0)
            file.write(json.dumps({"holder": holder, "pid": os.getpid(), "host": socket.gethostname(), "since": since}))
            file.flush()
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False
                # Emptied, not removed: a process that has it open already would lock a file that nobody else finds.
                file.truncate(0)

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", error) from error

    def _replace(self, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        # The new name has to outlive a power cut as well.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _unusable(self, done: str, error: OSError) -> RolloutError:
        return RolloutError(
            str(self.path),
            f"it cannot be {done} ({error.strerror or error})",
            "the rollout's record lies there",
            "choose another path, or see to it that this one can be read and written",
        )


def _hash(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _not_held(where: str) -> RolloutError:
    return RolloutError(
        where,
        "the lock is not held",
        "a record is written under it alone",
        "run this inside `with store.lock(holder):`",
    )


def _describe_holder(text: str) -> str:
    """Say who holds the lock; a holder that was caught between locking and writing is unknown."""
    try:
        found = json.loads(text)
        return f"{found['holder']} (process {found['pid']} on {found['host']}) since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
