"""Evidence from files, standard input and tables of labels."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflywheel.decisions.canary.evidence import Answer, Arm, ArmName, Counter, Histogram, Label, Window
from mlflywheel.errors import DataError, UsageError
from mlflywheel.rollouts.evidence_file import EvidenceFileSource
from mlflywheel.rollouts.label_log import LabelledSource, read_answers, read_labels

ARMS: dict[ArmName, str] = {"stable": "a", "candidate": "b"}
T = 1_795_255_200.0


def arm(requests: float, errors: float = 0, **more: Any) -> dict[str, Any]:
    return {"requests": requests, "errors": errors, **more}


def window(number: int, percent: float = 5, **more: Any) -> dict[str, Any]:
    """The window of 30 s with this number."""
    return {
        "start": T + 30 * number,
        "end": T + 30 * number + 30,
        "traffic_percent": percent,
        "stable": arm(950, 9),
        "candidate": arm(50, 1),
        **more,
    }


def write(path: Path, *windows: Mapping[str, Any], **more: Any) -> EvidenceFileSource:
    path.write_text(json.dumps({"schema": 1, "windows": windows, **more}), encoding="utf-8")
    return EvidenceFileSource(str(path), lag_seconds=0)


def read(source: EvidenceFileSource, first: int, last: int, percent: float = 5) -> Window:
    return source.read_window(ARMS, T + 30 * first, T + 30 * last, 1, percent)


def test_windows_of_a_file_are_added_up_by_their_ends(tmp_path: Path) -> None:
    latency = {"bounds_seconds": [0.1], "counts": [48, 2]}
    candidate = arm(50, 1, latency=latency, counters={"fallbacks": {"events": 3, "total": 50}})
    source = write(tmp_path / "evidence.json", *(window(n, candidate=candidate) for n in range(3)))
    both = read(source, 0, 2)
    assert (both.start, both.end, both.step, both.traffic_percent, both.gap) == (T, T + 60, 1, 5, "")
    assert both.stable == Arm(1900, 18)
    assert both.candidate == Arm(100, 2, Histogram((0.1,), (96.0, 4.0)), {"fallbacks": Counter(6, 100)})
    assert read(source, 2, 3).stable == Arm(950, 9)


def test_a_window_across_the_border_counts_once(tmp_path: Path) -> None:
    source = write(tmp_path / "evidence.json", *(window(n) for n in range(4)))
    parts = [source.read_window(ARMS, T - 10 + 40 * n, T + 30 + 40 * n, 1, 5) for n in range(4)]
    assert [part.stable.requests for part in parts] == [950, 950, 950, 950]
    assert not any(part.gap for part in parts)


def test_a_file_is_read_again_as_it_grows_and_has_its_lag_for_it(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    write(path, window(0))
    source = EvidenceFileSource(str(path), lag_seconds=10)
    asked = (ARMS, T + 10, T + 40, 1, 5.0)
    assert source.read_window(*asked).stable.requests == 950
    late = (ARMS, T + 40, T + 70, 1, 5.0)
    assert source.read_window(*late).gap == f"{path}: the last window ended 30 s before the end, and none in this time"
    write(path, window(0), window(1))
    assert source.read_window(*late).gap == ""


@pytest.mark.parametrize(
    ("windows", "gap"),
    [
        ([window(0, 25)], "only windows with 25 % on the candidate end in this time"),
        ([window(5)], "no window ends in this time"),
        ([], "no window ends in this time"),
        ([window(0, gap="the exporter was down")], "the exporter was down"),
        ([window(0, stable=arm(1, 2))], "windows[0], stable, errors: 2 of 1 requests"),
    ],
)
def test_what_is_missing_in_a_file_is_a_gap(tmp_path: Path, windows: list[dict[str, Any]], gap: str) -> None:
    source = write(tmp_path / "evidence.json", *windows)
    found = read(source, 0, 1)
    assert found.gap.endswith(gap)


def test_windows_that_cannot_be_added_are_a_gap(tmp_path: Path) -> None:
    coarse, fine = ({"bounds_seconds": [bound], "counts": [49, 1]} for bound in (0.1, 0.2))
    first = window(0, candidate=arm(50, latency=coarse))
    source = write(tmp_path / "evidence.json", first, window(1, candidate=arm(50, latency=fine)))
    assert read(source, 0, 2).gap.endswith("the histogram's bounds differ between windows")
    source = write(tmp_path / "evidence.json", first, window(1))
    assert read(source, 0, 2).gap.endswith("some of the windows have no latency")
    # A window without requests says nothing about their latency.
    source = write(tmp_path / "evidence.json", first, window(1, candidate=arm(0)))
    assert read(source, 0, 2).candidate == Arm(50, 0, Histogram((0.1,), (49, 1)))


def test_a_reset_in_any_part_marks_the_whole(tmp_path: Path) -> None:
    source = write(tmp_path / "evidence.json", window(0), window(1, candidate=arm(5, reset=True)))
    assert read(source, 0, 2).excluded_because == "counters of candidate were reset"


def test_a_file_that_is_not_there_is_an_error_at_the_start_and_a_gap_later(tmp_path: Path) -> None:
    source = EvidenceFileSource(str(tmp_path / "evidence.json"))
    with pytest.raises(DataError, match=r"evidence\.json"):
        source.check()
    found = read(source, 0, 1)
    assert "evidence.json" in found.gap
    assert (found.stable, found.candidate) == (Arm(), Arm())
    assert source.read_labels(0) == ((), ())
    (tmp_path / "evidence.json").write_bytes(b"\xff\xfe{")
    assert "not UTF-8" in read(source, 0, 1).gap
    with pytest.raises(UsageError, match="lag_seconds"):
        EvidenceFileSource("-", lag_seconds=-1)


def test_labels_of_a_file_come_with_their_answers(tmp_path: Path) -> None:
    answers = [
        {"request_id": name, "arm": "candidate", "time": T, "groups": {"locale": "de"}} for name in ("r1", "r2", "r3")
    ]
    labels = [{"request_id": f"r{n}", "metric": "quality", "loss": n % 2, "time": T + 100 * n} for n in (1, 2)]
    source = write(tmp_path / "evidence.json", answers=answers, labels=labels)
    found, fresh = source.read_labels(T + 150)
    assert list(found) == [Answer("r2", "candidate", T, {"locale": "de"})]
    assert list(fresh) == [Label("r2", "quality", 0, T + 200)]


class Pipe:
    """A real pipe, as standard input is one."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader = os.fdopen(reader, encoding="utf-8")
        self.writer = os.fdopen(writer, "w", encoding="utf-8")

    def write(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self.writer, flush=True)


@pytest.fixture
def pipe() -> Any:
    made = Pipe()
    yield made
    made.writer.close()
    # The thread that reads sees the end first.
    wait_until(lambda: made.reader.closed or _is_at_end(made))
    made.reader.close()


def _is_at_end(pipe: Pipe) -> bool:
    return pipe.reader.read(1) == ""


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_are_taken_as_they_come_and_nobody_waits_for_them(pipe: Pipe) -> None:
    source = EvidenceFileSource(pipe.reader, lag_seconds=0)
    assert read(source, 0, 1).gap == "standard input: no window ends in this time"
    pipe.write(json.dumps(window(0)), "", json.dumps(window(1)))
    wait_until(lambda: read(source, 0, 2).stable.requests == 1900)
    assert read(source, 1, 2).candidate == Arm(50, 1)
    assert source.read_labels(0) == ((), ())
    assert source.check() == "standard input"
    pipe.writer.close()
    wait_until(lambda: "ended" in read(source, 2, 3).gap)


@pytest.mark.parametrize(
    ("line", "gap"),
    [
        ('{"start": 1,', "standard input, line 2: not JSON"),
        (json.dumps(window(0)), "standard input, line 2: it starts 30 s before the end of the window above"),
        (json.dumps(window(1) | {"weight": 5}), "standard input, line 2, weight: an unknown field"),
        (json.dumps(window(1, stable=arm(float("inf")))), "standard input, line 2: not JSON (Infinity"),
    ],
)
def test_a_bad_line_is_a_gap_from_there_on(pipe: Pipe, line: str, gap: str) -> None:
    source = EvidenceFileSource(pipe.reader, lag_seconds=0)
    pipe.write(json.dumps(window(0)), line, json.dumps(window(2)))
    wait_until(lambda: read(source, 0, 1).gap.startswith(gap))
    assert read(source, 2, 3).gap.startswith(gap)


ANSWERS = [
    {"request_id": "007", "arm": "stable", "time": "2026-11-21T10:00:00+00:00", "locale": "de"},
    {"request_id": "b", "arm": "candidate", "time": "2026-11-21T10:00:01+00:00", "locale": None},
]
LABELS = [
    {"request_id": "b", "metric": "quality", "loss": 1.0, "time": "2026-11-21T12:00:00+00:00"},
    {"request_id": "007", "metric": "quality", "loss": 0.25, "time": "2026-11-21T11:00:00+00:00"},
]


def write_rows(rows: list[dict[str, Any]], path: Path) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


class Fixed(EvidenceFileSource):
    """A source that always has the same window."""

    def __init__(self) -> None:
        pass

    def read_window(self, arms: Any, start: float, end: float, step: int, traffic_percent: float) -> Window:
        return Window(start, end, step, traffic_percent, Arm(1), Arm(2))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_labels_of_tables_are_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    answers = write_rows(ANSWERS, tmp_path / f"answers{suffix}")
    labels = write_rows(LABELS, tmp_path / f"labels{suffix}")
    assert read_answers(answers) == [
        Answer("007", "stable", T, {"locale": "de"}),
        Answer("b", "candidate", T + 1, {}),
    ]
    assert read_labels(labels) == [Label("007", "quality", 0.25, T + 3600), Label("b", "quality", 1.0, T + 7200)]
    source = LabelledSource(Fixed(), answers, labels)
    assert source.check() == "2 answers, 2 labels"
    found, fresh = source.read_labels(T + 3601)
    assert ([one.request_id for one in found], [one.request_id for one in fresh]) == (["b"], ["b"])
    assert source.read_labels(T + 7201) == ((), ())
    assert source.read_window(ARMS, T, T + 30, 1, 5).candidate == Arm(2)


def test_times_in_seconds_are_read_too(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv", ".parquet"):
        rows = [row | {"time": T} for row in LABELS]
        assert {label.time for label in read_labels(write_rows(rows, tmp_path / f"labels{suffix}"))} == {T}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": 2}, r"line 1, loss: 2; a number from 0 to 1"),
        ({"loss": True}, "loss: True"),
        ({"loss": None}, "loss: None"),
        ({"time": "2026-11-21T10:00:00"}, "a time with its offset"),
        ({"time": float("nan")}, "a time with its offset"),
        ({"request_id": ""}, "line 1, request_id"),
        ({"metric": ["x"]}, "line 1, metric"),
    ],
)
def test_rows_that_are_no_labels_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    uri = write_rows([LABELS[0] | change], tmp_path / "labels.jsonl")
    with pytest.raises(DataError, match=message):
        read_labels(uri)
    # Later in the rollout there are just no labels: nothing is decided without them.
    assert LabelledSource(Fixed(), uri, uri).read_labels(0) == ((), ())


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: no JSON object"):
        read_labels(str(tmp_path / "labels.jsonl"))
    rows = write_rows([{"request_id": "a", "arm": "blue", "time": T}], tmp_path / "answers.csv")
    with pytest.raises(DataError, match="row 1, arm: 'blue'; stable or candidate"):
        read_answers(rows)
    with pytest.raises(DataError, match=r"no column metric; .*Fix: name the columns request_id, metric, loss, time"):
        read_labels(rows)
