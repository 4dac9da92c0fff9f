"""What a search leaves behind, in its SQLite file."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from mlflywheel.errors import TuningError
from mlflywheel.tuning.search import MetricSummary, Trial
from mlflywheel.tuning.state import (
    FILE_NAME,
    SCHEMA,
    SearchState,
    StoredSearch,
    StoredTrial,
    hold,
    order_steps,
    remove_state,
)

SEARCH = StoredSearch("sha256:0", {"spec": {"parameters": [1, "é"]}}, {"optuna": "5.0"})


def trial(folder: Path, number: int, told: int | None = None) -> StoredTrial:
    return StoredTrial(
        Trial(
            f"search-{number}",
            number,
            {"x": "0.1", "kind": "ä b"},
            "succeeded" if told is not None else "running",
            (MetricSummary("loss", 0.1, 0.9, 0.30000000000000004),),
            0.1,
            1.5,
            "a message",
            str(folder.resolve() / "trials" / f"{number}.log"),
        ),
        asked=2 * number,
        told=told,
        attempts=2,
        reported=(0.9, 0.1, 0.30000000000000004),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    stored = [trial(tmp_path, 0, told=1), trial(tmp_path, 1)]
    with SearchState(tmp_path) as state:
        assert state.read_search() is None
        state.start(SEARCH)
        state.write(stored)
    with SearchState(tmp_path) as state:
        assert state.read_search() == SEARCH
        assert state.read_trials() == stored


def test_a_trial_that_is_written_again_is_replaced(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.start(SEARCH)
        state.write([trial(tmp_path, 0)])
        state.write([trial(tmp_path, 0, told=7)], "ExperimentMaxTrialsReached")
        found = state.read_search()
        assert found is not None
        assert found.reason == "ExperimentMaxTrialsReached"
        assert state.read_trials() == [trial(tmp_path, 0, told=7)]


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.start(SEARCH)
        state.write([trial(tmp_path, 0)])
        # Two trials cannot stand at the same place of the sequence.
        clash = StoredTrial(Trial("other", 9, {}), asked=0)
        with pytest.raises(TuningError):
            state.write([trial(tmp_path, 1), clash], "ExperimentFailed")
        assert state.read_trials() == [trial(tmp_path, 0)]
        found = state.read_search()
        assert found is not None
        assert found.reason is None


def test_a_value_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state, pytest.raises(ValueError, match="JSON"):
        state.write([StoredTrial(Trial("a", 0, {}), 0, reported=(math.nan,))])


def test_a_log_is_found_after_the_folder_was_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with SearchState(old) as state:
        state.write([trial(old, 0)])
    old.rename(new)
    with SearchState(new) as state:
        assert state.read_trials()[0].trial.log == str(new.resolve() / "trials" / "0.log")


def test_steps_come_in_the_order_in_which_they_happened(tmp_path: Path) -> None:
    first, second = trial(tmp_path, 0, told=3), trial(tmp_path, 1, told=None)
    third = StoredTrial(Trial("c", 2, {}), asked=4)
    steps = [(stored.trial.number, told) for stored, told in order_steps([third, second, first])]
    assert steps == [(0, False), (1, False), (0, True), (2, False)]


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as one" * 20, b"SQLite"])
def test_a_file_that_is_no_database_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(TuningError, match=r"search\.sqlite: not readable .*--restart"):
        SearchState(tmp_path)


def test_a_damaged_page_is_an_error_and_not_an_empty_search(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.start(SEARCH)
        state.write([trial(tmp_path, number) for number in range(200)])
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(TuningError, match="not readable"), SearchState(tmp_path) as state:
        state.read_trials()


def test_a_text_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.write([trial(tmp_path, 0)])
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE trials SET parameters = '{'")
    with SearchState(tmp_path) as state, pytest.raises(TuningError, match="JSONDecodeError"):
        state.read_trials()


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("CREATE TABLE precious (x)")
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(TuningError, match="another program"):
        SearchState(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    SearchState(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(TuningError, match=f"schema {SCHEMA + 1}; this version of mlflywheel reads schema {SCHEMA}"):
        SearchState(tmp_path)


def test_a_removed_state_leaves_nothing_of_itself(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.start(SEARCH)
        remove_state(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_held_folder_is_refused_to_others_with_the_pid(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "search"),
        pytest.raises(TuningError, match=f"process {os.getpid()} on "),
        hold(tmp_path / "search"),
    ):
        pass
    with hold(tmp_path / "search"):
        pass


def test_a_folder_is_free_only_when_the_heirs_of_a_killed_holder_are_gone(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from mlflywheel.tuning.state import hold\n"
        "with hold(Path(sys.argv[1])) as lock:\n"
        "    subprocess.Popen(['sleep', '0.6'], pass_fds=(lock,), stdout=subprocess.DEVNULL)\n"
        "    print('held', flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
    started = time.monotonic()
    with hold(tmp_path):
        assert 0.2 < time.monotonic() - started < 5


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match="cannot be written"), hold(tmp_path / "file" / "search"):
        pass


def test_documents_are_stored_as_plain_json(tmp_path: Path) -> None:
    with SearchState(tmp_path) as state:
        state.start(SEARCH)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        (document,) = connection.execute("SELECT document FROM search").fetchone()
    assert json.loads(document) == SEARCH.document
