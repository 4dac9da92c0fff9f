"""Events: what a step tells while it works, and how it ends the process."""

import errno
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflywheel import events
from mlflywheel.errors import DataError, ExpectationError, GateRefusedError, UsageError, error_from_dict
from mlflywheel.events import EVENTS_VARIABLE, Step, describe_defect, merge_facts, step

FULL_DEVICE = Path("/dev/full")


@pytest.fixture
def events_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(path))
    return path


def refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def collect() -> tuple[Step, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return Step("training", told.append), told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock of the module by one that stands still until it is moved."""
    seconds = [100.0]

    def move(by: float) -> None:
        seconds[0] += by

    monkeypatch.setattr(events.time, "monotonic", lambda: seconds[0])
    return move


class TestFile:
    def test_step_tells_its_start_its_facts_and_its_end(self, events_file: Path) -> None:
        with step("training") as running:
            running("rotation", 1, 2)
            running.record(metrics={"terms": 812})
        told = read(events_file)
        assert [event["event"] for event in told] == ["started", "progress", "recorded", "finished"]
        assert {event["step"] for event in told} == {"training"}
        assert told[1] | {"phase": "rotation", "done": 1, "total": 2} == told[1]
        assert told[2]["facts"] == {"metrics": {"terms": 812}}
        assert [event["time"] for event in told] == sorted(event["time"] for event in told)
        assert 0 <= told[3]["seconds"] < 60

    def test_steps_append_to_one_file(self, events_file: Path) -> None:
        for name in ("ingestion", "training"):
            with step(name):
                pass
        assert [event["step"] for event in read(events_file)] == ["ingestion", "ingestion", "training", "training"]

    def test_text_with_line_breaks_stays_one_line(self, events_file: Path) -> None:
        text = "zwei\nZeilen\u2028und\x85mehr – 跑鞋"
        with step("ingestion") as running:
            running.record(data={"uri": text})
        assert events_file.read_bytes().count(b"\n") == 3
        assert read(events_file)[1]["facts"]["data"]["uri"] == text

    def test_numpy_scalars_and_paths_are_written_as_json(self, events_file: Path, tmp_path: Path) -> None:
        with step("evaluation") as running:
            running("scoring", np.int64(3), np.int32(4))
            running.record(
                metrics={"a": np.float32(0.5), "b": np.int64(7), "c": np.float64(0.25)},
                holds=np.bool_(True),
                artifacts={"scores": tmp_path / "scores"},
            )
        _, progress, recorded, _ = read(events_file)
        assert (progress["done"], progress["total"]) == (3, 4)
        assert recorded["facts"] == {
            "metrics": {"a": 0.5, "b": 7, "c": 0.25},
            "holds": True,
            "artifacts": {"scores": str(tmp_path / "scores")},
        }

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")], ids=repr)
    def test_numbers_that_json_lacks_become_null(self, events_file: Path, number: float) -> None:
        with step("evaluation") as running:
            running.record(metrics={"bad": number, "good": np.float32(0.5)}, rows=[number, 1, "a", None, True, (2.5,)])
        assert read(events_file)[1]["facts"] == {
            "metrics": {"bad": None, "good": 0.5},
            "rows": [None, 1, "a", None, True, [2.5]],
        }

    def test_value_that_is_no_json_is_a_defect_of_the_step(self, events_file: Path) -> None:
        with pytest.raises(TypeError, match="set is not a JSON value"), step("training") as running:
            running.record(metrics={1, 2})
        assert read(events_file)[-1]["error"]["seen"] == "TypeError: set is not a JSON value"

    def test_processes_that_share_the_file_do_not_tear_lines(self, events_file: Path) -> None:
        code = (
            "import sys; from mlflywheel.events import step\n"
            "with step(sys.argv[1]) as running:\n"
            "    for i in range(50): running.record(text=sys.argv[1] * 20_000, number=i)\n"
        )
        workers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abc"]
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
        told = read(events_file)
        assert len(told) == 3 * 52
        for event in told:
            if event["event"] == "recorded":
                assert event["facts"]["text"] == event["step"] * 20_000

    def test_file_that_cannot_be_written_does_not_stop_the_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "missing" / "events.jsonl"))
        done = False
        with step("training"):
            done = True
        assert done
        assert "events.jsonl: event not written" in capsys.readouterr().err


class TestThrottling:
    def test_fast_progress_is_told_five_times_a_second(self, clock: Callable[[float], None]) -> None:
        running, told = collect()
        for done in range(1000):
            running("rotation", done, 1000)
            clock(0.01)
        assert 40 <= len(told) <= 51

    def test_progress_of_unknown_length_is_throttled_too(self, clock: Callable[[float], None]) -> None:
        running, told = collect()
        for done in range(1000):
            running("downloading", done, 0)
            clock(0.01)
        assert 40 <= len(told) <= 51

    def test_slow_progress_is_told_every_time(self, clock: Callable[[float], None]) -> None:
        running, told = collect()
        for done in range(10):
            running("rotation", done, 100)
            clock(0.3)
        assert [event["done"] for event in told] == list(range(10))

    @pytest.mark.usefixtures("clock")
    def test_new_phase_and_its_end_are_told_at_once(self) -> None:
        running, told = collect()
        for phase in ("vocabulary", "rotation"):
            for done in range(11):
                running(phase, done, 10)
        assert [(event["phase"], event["done"]) for event in told] == [
            ("vocabulary", 0),
            ("vocabulary", 10),
            ("rotation", 0),
            ("rotation", 10),
        ]


def run_step(body: str, events_file: Path | None) -> "subprocess.CompletedProcess[str]":
    """Run a step in a process of its own, as a component does."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    imports = "from mlflywheel.errors import *\nfrom mlflywheel.events import step\n"
    code = f"{imports}with step('training') as running:\n{lines}\n"
    environment = {name: value for name, value in os.environ.items() if name != EVENTS_VARIABLE}
    if events_file is not None:
        environment[EVENTS_VARIABLE] = str(events_file)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


class TestEnd:
    @pytest.mark.parametrize("cls", [UsageError, ExpectationError, GateRefusedError])
    def test_our_error_is_one_line_with_its_exit_code(self, tmp_path: Path, cls: type[DataError]) -> None:
        file = tmp_path / "events.jsonl"
        ended = run_step(f"raise {cls.__name__}('terms.csv', '0 rows', 'a row is needed', 'export it again')", file)
        assert ended.returncode == cls.exit_code
        assert ended.stderr == "terms.csv: 0 rows; a row is needed. Fix: export it again.\n"
        assert ended.stdout == ""
        failed = read(file)[-1]
        assert (failed["event"], failed["error"]["type"]) == ("failed", cls.__name__)
        assert type(error_from_dict(failed["error"])) is cls
        assert failed["seconds"] >= 0

    def test_defect_keeps_its_traceback_and_is_described(self, tmp_path: Path) -> None:
        file = tmp_path / "events.jsonl"
        ended = run_step("{}['missing']", file)
        assert ended.returncode == 1
        assert "Traceback (most recent call last)" in ended.stderr
        assert "KeyError: 'missing'" in ended.stderr
        error = read(file)[-1]["error"]
        assert error["defect"] is True
        assert (error["where"], error["seen"]) == ("step training", "KeyError: 'missing'")

    def test_interrupt_passes_through(self, events_file: Path) -> None:
        with pytest.raises(KeyboardInterrupt), step("training"):
            raise KeyboardInterrupt
        assert [event["event"] for event in read(events_file)] == ["started"]

    def test_without_the_variable_events_are_log_lines(self) -> None:
        ended = run_step("running('rotation', 2, 20)\nrunning.record(metrics={'terms': 812})", None)
        assert ended.returncode == 0
        told = [line.split(maxsplit=2)[2] for line in ended.stderr.splitlines()]
        assert told[:3] == [
            "training started {}",
            'training progress {"phase": "rotation", "done": 2, "total": 20}',
            'training recorded {"facts": {"metrics": {"terms": 812}}}',
        ]
        assert told[3].startswith('training finished {"seconds": ')

    def test_without_the_variable_an_error_of_ours_is_logged_too(self) -> None:
        ended = run_step("raise GateRefusedError('gates', '1 refused', 'all must hold', 'look it up')", None)
        assert ended.returncode == 3
        assert "training failed" in ended.stderr
        assert ended.stderr.endswith("\ngates: 1 refused; all must hold. Fix: look it up.\n")
        assert "Traceback" not in ended.stderr

    def test_log_lines_leave_an_application_s_own_logging_alone(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv(EVENTS_VARIABLE, raising=False)
        with caplog.at_level(logging.INFO), step("scoring"):
            pass
        assert caplog.messages[0] == "scoring started {}"
        assert logging.getLogger("mlflywheel").handlers == []


@pytest.mark.skipif(not FULL_DEVICE.is_char_device(), reason="/dev/full is a device of Linux")
class TestFullDisk:
    def test_python_s_write_becomes_a_data_error(self, tmp_path: Path) -> None:
        file = tmp_path / "events.jsonl"
        ended = run_step("with open('/dev/full', 'w') as out:\n    out.write('scores')", file)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "no space is left on the device" in ended.stderr
        error = error_from_dict(read(file)[-1]["error"])
        assert type(error) is DataError
        assert error.fix == "free space, or choose another folder with --runs"

    def test_arrow_s_write_becomes_a_data_error(self, events_file: Path, tmp_path: Path) -> None:
        # A link, because pyarrow removes the file that it could not write, and must not remove the device.
        link = tmp_path / "scores.parquet"
        link.symlink_to(FULL_DEVICE)
        table = pa.table({"noise": np.random.default_rng(0).random(100_000)})
        with pytest.raises(SystemExit) as ended, step("scoring"):
            pq.write_table(table, link)
        assert ended.value.code == 1
        assert read(events_file)[-1]["error"]["type"] == "DataError"

    def test_error_is_printed_though_its_event_finds_no_room(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv(EVENTS_VARIABLE, str(FULL_DEVICE))
        with pytest.raises(SystemExit), step("scoring"):
            raise OSError(errno.ENOSPC, "No space left on device", "scores.parquet")
        assert capsys.readouterr().err.splitlines()[-1].startswith("scores.parquet: no space is left on the device; ")

    def test_other_operating_system_errors_stay_defects(self, events_file: Path) -> None:
        with pytest.raises(PermissionError), step("scoring"):
            raise PermissionError(errno.EACCES, "Permission denied", "scores.parquet")
        assert read(events_file)[-1]["error"]["defect"] is True

    def test_a_quota_counts_as_a_full_disk(self, events_file: Path) -> None:
        with pytest.raises(SystemExit), step("scoring"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        assert read(events_file)[-1]["error"]["where"] == "the run folder"


def test_description_of_a_defect_is_one_short_line() -> None:
    described = describe_defect("training", ValueError("a" * 2000 + "\nsecond line"))
    assert len(described["seen"]) == 500
    assert "second line" not in described["message"]
    assert described["type"] == "RunError"


def test_merge_joins_mappings_at_every_depth_and_replaces_the_rest() -> None:
    summary: dict[str, Any] = {"data": {"rows": 1, "spans": {"a": 1}}, "gates": [1, 2], "model": {"name": "x"}}
    merge_facts(summary, {"data": {"entities": 2, "spans": {"b": 2}}, "gates": [3], "model": None, "new": {"c": 3}})
    assert summary == {
        "data": {"rows": 1, "entities": 2, "spans": {"a": 1, "b": 2}},
        "gates": [3],
        "model": None,
        "new": {"c": 3},
    }
