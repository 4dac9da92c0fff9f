"""Evidence from a file that something else writes, or from standard input.

A file is read anew for each window, as `mlflywheel.decisions.canary.evidence` documents it, and may hold labels.
Standard input, or any stream, has one window a line:

    {"start": 1795255200, "end": 1795255230, "traffic_percent": 5,
     "stable": {"requests": 950, "errors": 9}, "candidate": {"requests": 50, "errors": 1}}

Whoever writes cuts time into windows of its own. One of them belongs to the window that is asked for in which it ends,
`lag_seconds` later, so that each counts once; several are added up. One of another weight is left out.
"""

import json
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TextIO

from mlflywheel.decisions.canary.evidence import (
    ARMS,
    Answer,
    Arm,
    ArmName,
    Counter,
    Evidence,
    Histogram,
    Label,
    Window,
    read_evidence,
    window_from_dict,
)
from mlflywheel.errors import DataError, MlflywheelError, UsageError
from mlflywheel.rollouts.interfaces import Source
from mlflywheel.storage import open_binary, without_credentials

_SAME_PERCENT = 0.5
_KEPT_WINDOWS = 10_000
_GAP_CHARACTERS = 300


class EvidenceFileSource(Source):
    """Reads windows and labels that something else wrote.

    Args:
        place: A file at any URI that `mlflywheel.storage` reads; a stream has its lines read by a thread of its own,
            one window a line.
        lag_seconds: How long after its end a window may be written.

    Raises:
        UsageError: The lag is negative.
    """

    def __init__(self, place: str | TextIO, *, lag_seconds: float = 10.0) -> None:
        if not 0 <= lag_seconds < float("inf"):
            raise UsageError("lag_seconds", f"{lag_seconds:g}", "seconds of at least 0 are needed", "correct it")
        self._lag_seconds = lag_seconds
        self._lines = _Lines(place) if not isinstance(place, str) else None
        self._uri = place if isinstance(place, str) else ""
        self._where = without_credentials(place) if isinstance(place, str) else "standard input"

    def check(self) -> str:
        """Check that the file can be read; return what it is in words.

        Raises:
            DataError: It cannot.
        """
        if self._lines is None:
            self._read_file()
        return self._where

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        """See `Source.read_window`. The arms' names do not matter: the file says which is which."""
        empty = Window(start, end, step, traffic_percent, Arm(), Arm())
        first, last = start - self._lag_seconds, end - self._lag_seconds
        try:
            windows = self._lines.read() if self._lines is not None else self._read_file().windows
        except MlflywheelError as error:
            return replace(empty, gap=_shorten(f"{error.where}: {error.seen}"))
        own = [window for window in windows if first < window.end <= last]
        fitting = [window for window in own if abs(window.traffic_percent - traffic_percent) <= _SAME_PERCENT]
        if not fitting:
            seen = "no window ends"
            if own:
                seen = f"only windows with {own[-1].traffic_percent:g} % on the candidate end"
            elif windows and windows[-1].end <= last:
                seen = f"the last window ended {last - windows[-1].end:.0f} s before the end, and none"
            elif self._lines is not None and self._lines.has_ended:
                seen = "it has ended, and no window ends"
            return replace(empty, gap=_shorten(f"{self._where}: {seen} in this time"))
        gap = next((window.gap for window in fitting if window.gap), "")
        try:
            both = {name: _add([getattr(window, name) for window in fitting]) for name in ARMS}
        except _DifferError as error:
            return replace(empty, gap=_shorten(f"{self._where}: {error}"))
        return replace(empty, stable=both["stable"], candidate=both["candidate"], gap=_shorten(gap))

    def read_labels(self, since: float) -> tuple[Sequence[Answer], Sequence[Label]]:
        """See `Source.read_labels`; a file that cannot be read has no labels, and `read_window` says so."""
        if self._lines is not None:
            return (), ()
        try:
            evidence = self._read_file()
        except MlflywheelError:
            return (), ()
        labels = [label for label in evidence.labels if label.time >= since]
        wanted = {label.request_id for label in labels}
        return [answer for answer in evidence.answers if answer.request_id in wanted], labels

    def _read_file(self) -> Evidence:
        with open_binary(self._uri) as file:
            content = file.read()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise DataError(
                self._where, "not UTF-8", "a JSON document is needed", "export the evidence again"
            ) from None
        return read_evidence(text, self._where)


class _DifferError(Exception):
    """Windows that cannot be added up."""


class _Lines:
    """A stream's windows. A thread reads them, since nothing else can wait for a line and for a tick's end at once."""

    def __init__(self, stream: TextIO) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._windows: list[Window] = []
        self._number = 0
        self._broken: DataError | None = None
        self.has_ended = False
        threading.Thread(target=self._follow, args=(stream,), name="evidence", daemon=True).start()

    def read(self) -> Sequence[Window]:
        """Return the windows that came so far.

        Raises:
            DataError: A line is none, or the windows overlap; the rest is not read, since it may mean something else.
        """
        while self._broken is None and not self._queue.empty():
            line = self._queue.get()
            if line is None:
                self.has_ended = True
                break
            self._number += 1
            if line.strip():
                self._take(line, f"standard input, line {self._number}")
        if self._broken is not None:
            raise self._broken
        return self._windows

    def _take(self, line: str, where: str) -> None:
        try:
            window = window_from_dict(json.loads(line, parse_constant=_refuse_constant), where)
            if self._windows and window.start < self._windows[-1].end:
                raise DataError(
                    where,
                    f"it starts {self._windows[-1].end - window.start:g} s before the end of the window above",
                    "windows must follow each other without overlap",
                    "write them in the order of time",
                )
        except DataError as error:
            self._broken = error
        except (ValueError, RecursionError) as error:
            self._broken = DataError(
                where, f"not JSON ({error})", "one window a line is needed", "write each window as one line of JSON"
            )
        else:
            self._windows = [*self._windows, window][-_KEPT_WINDOWS:]

    def _follow(self, stream: TextIO) -> None:
        try:
            for line in stream:
                self._queue.put(line)
        except (OSError, ValueError) as error:
            self._queue.put(f"cannot be read any more: {type(error).__name__}")
        self._queue.put(None)


def _add(arms: Sequence[Arm]) -> Arm:
    if len(arms) == 1:
        return arms[0]
    asked = [arm for arm in arms if arm.requests > 0]
    latencies = [arm.latency for arm in asked]
    known = [one for one in latencies if one is not None]
    if len({one.bounds_seconds for one in known}) > 1:
        raise _DifferError("the histogram's bounds differ between windows")
    if len(known) not in (0, len(asked)):
        raise _DifferError("some of the windows have no latency")
    names = {name for arm in asked for name in arm.counters}
    for name in names:
        if not all(name in arm.counters for arm in asked):
            raise _DifferError(f"some of the windows do not count {name}")
    latency = None
    if known:
        sums = tuple(sum(values) for values in zip(*(one.counts for one in known), strict=True))
        latency = Histogram(known[0].bounds_seconds, sums)
    elif not asked:
        latency = next((arm.latency for arm in arms if arm.latency is not None), None)
    return Arm(
        sum(arm.requests for arm in arms),
        sum(arm.errors for arm in arms),
        latency,
        {
            name: Counter(
                sum(arm.counters[name].events for arm in asked), sum(arm.counters[name].total for arm in asked)
            )
            for name in sorted(names)
        },
        any(arm.reset for arm in arms),
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _shorten(text: str) -> str:
    return text if len(text) <= _GAP_CHARACTERS else f"{text[:_GAP_CHARACTERS]}…"
