"""A rollout's record in a file."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlflywheel.decisions.canary.policy import Policy
from mlflywheel.errors import DataError, ForeignEditError, RolloutError
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Candidate
from mlflywheel.rollouts.record import Entry, Record


def make_record(**changes: object) -> Record:
    record = Record(
        id="r1",
        service="team/ads",
        candidate=Candidate("s3://models/2", "v2"),
        policy=Policy(),
        source={},
        started=1_790_000_000.0,
        **{name: 1_790_000_000.0 for name in ("phase_started",) if name in Record.__dataclass_fields__},
    )
    return replace(record, **changes)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "state" / "rollout.json")


def test_nothing_is_there_before_the_first_rollout(store: FileStore) -> None:
    assert store.load() is None


def test_what_was_saved_is_loaded(store: FileStore) -> None:
    with store.lock("ann"):
        first = store.save(make_record().tell(Entry(1.0, "ann", "start")))
        assert store.load() == first
        second = store.save(replace(first, message="waiting"))
    assert store.load() == second
    assert first.version != second.version
    assert second.version.startswith("sha256:")


def test_write_over_somebody_elses_is_refused(store: FileStore) -> None:
    with store.lock("ann"):
        stale = store.save(make_record())
        store.save(replace(stale, message="newer"))
        with pytest.raises(ForeignEditError, match="changed after it was read"):
            store.save(replace(stale, message="older"))
        with pytest.raises(ForeignEditError, match="there already"):
            store.save(make_record(id="r2"))
        found = store.load()
        assert found is not None
        assert found.message == "newer"
        store.path.unlink()
        with pytest.raises(ForeignEditError, match="deleted"):
            store.save(found)


def test_without_the_lock_nothing_is_written(store: FileStore) -> None:
    with pytest.raises(RolloutError, match="the lock is not held"):
        store.save(make_record())
    with store.lock("ann"):
        pass
    with pytest.raises(RolloutError, match="the lock is not held"):
        store.save(make_record())
    assert not store.path.exists()


def test_second_holder_is_told_who_was_first(store: FileStore) -> None:
    other = FileStore(store.path)
    with (
        store.lock("ann"),
        pytest.raises(RolloutError, match=rf"held by ann \(process {os.getpid()} on .*\) since 20"),
        other.lock("bob"),
    ):
        pass
    with other.lock("bob"):
        other.save(make_record())


def test_lock_ends_with_an_error_in_the_block(store: FileStore) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("ann"):
        raise ZeroDivisionError
    with store.lock("bob"):
        pass


def test_lock_of_a_killed_process_is_free_at_once(store: FileStore) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlflywheel.rollouts.file_store import FileStore\n"
        "with FileStore(Path(sys.argv[1])).lock('carl'):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RolloutError, match="carl"), store.lock("ann"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with store.lock("ann"):
        pass


def test_reader_meets_whole_records_only(store: FileStore) -> None:
    seen: list[Record] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            found = FileStore(store.path).load()
            if found is not None:
                seen.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with store.lock("ann"):
            record = make_record()
            for number in range(30):
                record = store.save(replace(record, message=f"{number} " + "x" * 100_000))
    finally:
        ended.set()
        reader.join()
    assert seen
    assert all(len(one.message) > 100_000 for one in seen)
    # Nothing is left beside the record and its lock.
    assert {path.name for path in store.path.parent.iterdir()} == {"rollout.json", ".rollout.json.lock"}


def test_file_that_is_no_record_is_refused(store: FileStore) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"\xff{}")
    with pytest.raises(DataError, match="no record of a rollout"):
        store.load()


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(tmp_path / "file" / "rollout.json")
    with pytest.raises(RolloutError, match="cannot be locked"), store.lock("ann"):
        pass
    with pytest.raises(RolloutError, match="cannot be read"):
        store.load()
