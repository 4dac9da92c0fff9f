"""What a step tells the outside world while it works: progress, facts for the summary, and how it ended.

A component runs in a process of its own: a subprocess on a laptop, a pod on a cluster. `step` gives it one channel.
With the environment variable `MLFLYWHEEL_EVENTS` (a file path, set by the local runner) every event is appended there
as one JSON line, which the runner reads to draw progress and to write `summary.json`, also when the run fails. Without
it, on a cluster, the same events are plain log lines on standard error.

    {"time": 1764.2, "step": "training", "event": "started"}
    {"time": 1765.0, "step": "training", "event": "progress", "phase": "rotation", "done": 3, "total": 20}
    {"time": 1766.1, "step": "training", "event": "recorded", "facts": {"metrics": {"terms": 812}}}
    {"time": 1766.2, "step": "training", "event": "finished", "seconds": 2.0, "cpu_seconds": 1.9}
    {"time": 1766.2, "step": "training", "event": "failed", "error": {...}, "seconds": 2.0}
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflywheel.errors import DataError, MlflywheelError

EVENTS_VARIABLE = "MLFLYWHEEL_EVENTS"
_EVENTS_PER_SECOND = 5.0

ProgressCallback = Callable[[str, int, int], None]
"""Called as `progress(phase, done, total)`; `total` 0 means that the amount of work is unknown."""


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Do nothing: the progress callback for callers that do not watch."""


class Step:
    """The running step, as its code sees it: callable as a `ProgressCallback`, and a place to record facts."""

    def __init__(self, name: str, emit: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self._emit = emit
        self._last_progress = float("-inf")
        self._last_phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `phase` are finished; rate-limited, so call it as often as needed."""
        now = time.monotonic()
        unfinished = done < total or total == 0
        if phase == self._last_phase and unfinished and now - self._last_progress < 1.0 / _EVENTS_PER_SECOND:
            return
        self._last_progress, self._last_phase = now, phase
        self._emit({"event": "progress", "phase": phase, "done": done, "total": total})

    def record(self, **facts: Any) -> None:
        """Record facts for `summary.json`: nested mappings of JSON values, merged key by key over the run."""
        self._emit({"event": "recorded", "facts": facts})


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Run the body as the step `name`: announce it, time it, and report how it ended.

    An error of ours ends the process with its own exit code and one line on standard error, without a traceback: it is
    the user's to act on. Running out of disk is one of those. Any other exception is a defect and passes through.

    Args:
        name: The step's name, as it stands in `summary.json` under `seconds`.
    """
    emit = _emitter(name)
    started, started_cpu = time.monotonic(), time.process_time()
    emit({"event": "started"})
    try:
        yield Step(name, emit)
    except MlflywheelError as error:
        _fail(emit, error, started)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
            _fail(emit, disk_error(str(error.filename or "the run folder")), started)
        emit({"event": "failed", "error": describe_defect(name, error), "seconds": time.monotonic() - started})
        raise
    emit(
        {
            "event": "finished",
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - started_cpu,
        }
    )


def _fail(emit: Callable[[dict[str, Any]], None], error: MlflywheelError, started: float) -> None:
    emit({"event": "failed", "error": error.to_dict(), "seconds": time.monotonic() - started})
    print(error, file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


# ENOSPC and EDQUOT by number: the names are missing on some platforms.
_DISK_ERRNOS = (28, 122)


def disk_error(where: str) -> DataError:
    """Return the error for a disk that is full."""
    return DataError(
        where,
        "no space is left on the device",
        "the run writes its artifacts there",
        "free space, or choose another folder with --runs",
    )


def describe_defect(name: str, error: BaseException) -> dict[str, Any]:
    """Describe an exception that is not ours, in the shape of `MlflywheelError.to_dict`."""
    from mlflywheel.errors import RunError

    text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    described = RunError(
        f"step {name}", text, "the step was expected to finish", "read the traceback in log.txt in the run folder"
    ).to_dict()
    described["defect"] = True
    return described


def _emitter(name: str) -> Callable[[dict[str, Any]], None]:
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        return _FileEmitter(Path(path), name)
    return _LogEmitter(name)


class _FileEmitter:
    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __call__(self, event: dict[str, Any]) -> None:
        line = _dump({"time": time.time(), "step": self._name, **event})
        # One write of one line in append mode: steps of a parallel loop may share the file. A full disk must not
        # hide the error that is being reported, so a failed write is dropped.
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            print(f"{self._path}: event not written: {error}", file=sys.stderr)


class _LogEmitter:
    def __init__(self, name: str) -> None:
        self._name = name
        self._log = logging.getLogger("mlflywheel")
        if not self._log.handlers and not logging.getLogger().handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._log.addHandler(handler)
            self._log.setLevel(logging.INFO)

    def __call__(self, event: dict[str, Any]) -> None:
        fields = {key: value for key, value in event.items() if key != "event"}
        self._log.info("%s %s %s", self._name, event["event"], _dump(fields))


def _dump(value: Any) -> str:
    """Return one line of strict JSON. NaN and infinity, which JSON lacks, become null."""
    try:
        return json.dumps(value, default=_to_json, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else _without_nan(_to_json(value))


def _to_json(value: Any) -> Any:
    """Turn NumPy scalars and paths into JSON values; anything else is a defect of the caller."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def merge_facts(into: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Merge recorded facts into a summary: mappings key by key, everything else replaced.

    >>> summary = {"metrics": {"a": 1}}
    >>> merge_facts(summary, {"metrics": {"b": 2}})
    >>> summary
    {'metrics': {'a': 1, 'b': 2}}
    """
    for key, value in facts.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge_facts(into[key], value)
        else:
            into[key] = value
