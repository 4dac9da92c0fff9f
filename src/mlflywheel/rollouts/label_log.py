"""Delayed labels from tables: what was answered by whom, and what turned out about it later.

Two tables, each CSV, Parquet or JSON lines at any URI that `mlflywheel.storage` reads:

- Answers: `request_id`, `arm` (`stable` or `candidate`), `time`; every further column is a group, such as `locale`.
- Labels: `request_id`, `metric`, `loss` (0 for as good as can be, to 1), `time` at which the label arrived.

Times are ISO 8601 with an offset, or seconds since 1970. Both tables are read anew each time, so that they may grow.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from mlflywheel.data.ingestion import ingest
from mlflywheel.decisions.canary.evidence import ARMS, Answer, ArmName, Label, Window
from mlflywheel.errors import DataError, MlflywheelError
from mlflywheel.models.contract import Column
from mlflywheel.rollouts.interfaces import Source
from mlflywheel.storage import open_binary, without_credentials

_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
_ANSWERS = ("request_id", "arm", "time")
_LABELS = ("request_id", "metric", "loss", "time")
_Row = TypeVar("_Row")


class LabelledSource(Source):
    """Adds the labels of two tables to a source of windows.

    Args:
        windows: Where the windows come from.
        answers_uri: The table of answers.
        labels_uri: The table of labels.
    """

    def __init__(self, windows: Source, answers_uri: str, labels_uri: str) -> None:
        self._windows = windows
        self._answers_uri, self._labels_uri = answers_uri, labels_uri

    def check(self) -> str:
        """Check that both tables can be read; return how much they hold in words.

        Raises:
            DataError: One cannot, or has no rows.
        """
        return f"{len(read_answers(self._answers_uri))} answers, {len(read_labels(self._labels_uri))} labels"

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        """See `Source.read_window`."""
        return self._windows.read_window(arms, start, end, step, traffic_percent)

    def read_labels(self, since: float) -> tuple[Sequence[Answer], Sequence[Label]]:
        """See `Source.read_labels`; while a table cannot be read there are none, and what needs them is not decided."""
        try:
            labels = [label for label in read_labels(self._labels_uri) if label.time >= since]
            if not labels:
                return (), ()
            wanted = {label.request_id for label in labels}
            return [answer for answer in read_answers(self._answers_uri) if answer.request_id in wanted], labels
        except MlflywheelError:
            return (), ()


def read_answers(uri: str) -> list[Answer]:
    """Read the table of answers.

    Raises:
        DataError: It cannot be read, lacks a column, or holds a value that is none; the message names the row.
    """
    return _read(uri, _ANSWERS, _to_answer)


def read_labels(uri: str) -> list[Label]:
    """Read the table of labels, in the order of their arrival.

    Raises:
        DataError: As `read_answers`.
    """
    return sorted(_read(uri, _LABELS, _to_label), key=lambda label: label.time)


def _read(uri: str, names: Sequence[str], convert: Callable[[Mapping[str, Any], str], _Row]) -> list[_Row]:
    where = without_credentials(uri)
    lines = uri.partition("?")[0].endswith(_JSON_LINES)
    rows = _read_lines(uri, where) if lines else _read_table(uri, names)
    return [convert(row, f"{where}, {'line' if lines else 'row'} {number}") for number, row in rows]


def _read_lines(uri: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open_binary(uri) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}, line {number}", "no JSON object", "one object a line is needed", "export it again"
                )
            yield number, row


def _read_table(uri: str, names: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    columns = [Column(name, "number" if name == "loss" else "text", required=True) for name in names]
    try:
        table = ingest(uri, columns, {}).table
    except DataError as error:
        # Columns cannot be renamed here.
        fix = f"name the columns {', '.join(names)}" if "--map" in error.fix else error.fix
        raise DataError(error.where, error.seen, error.needed, fix) from error
    yield from enumerate(table.to_pylist(), start=1)


def _to_answer(row: Mapping[str, Any], where: str) -> Answer:
    arm = row.get("arm")
    if arm not in ARMS:
        raise DataError(f"{where}, arm", repr(arm), "stable or candidate is needed", "correct it")
    groups = {str(name): str(value) for name, value in row.items() if name not in _ANSWERS and value is not None}
    return Answer(
        _to_text(row, "request_id", where), "stable" if arm == "stable" else "candidate", _to_time(row, where), groups
    )


def _to_label(row: Mapping[str, Any], where: str) -> Label:
    loss = row.get("loss")
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss <= 1:
        raise DataError(f"{where}, loss", repr(loss), "a number from 0 to 1 is needed", "scale it, 0 being best")
    return Label(_to_text(row, "request_id", where), _to_text(row, "metric", where), float(loss), _to_time(row, where))


def _to_text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None or value == "" or isinstance(value, dict | list):
        raise DataError(f"{where}, {name}", repr(value), "a text is needed", "fill it in, or leave the row out")
    return str(value)


def _to_time(row: Mapping[str, Any], where: str) -> float:
    value = row.get("time")
    seconds: float | None = None
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            seconds = float(value)
        except ValueError:
            seconds = _read_iso(str(value))
    if seconds is None or not math.isfinite(seconds):
        raise DataError(
            f"{where}, time",
            repr(value),
            "a time with its offset is needed, or seconds since 1970",
            "write it as 2026-11-21T10:00:00+00:00",
        )
    return seconds


def _read_iso(text: str) -> float | None:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed.timestamp() if parsed.tzinfo is not None else None
