"""The folder of a run: what lies in it, and the summary that is composed from its events."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflywheel.errors import DataError, MlflywheelError
from mlflywheel.events import merge_facts

SUMMARY_SCHEMA = 1
DEFAULT_RUNS = Path("runs")
_LONGEST_PARAMETER = 200


def new_run_id(now: datetime | None = None) -> str:
    """Return an id that sorts by time and does not clash: `20261121-093000-4f1a`.

    >>> len(new_run_id(datetime(2026, 11, 21, tzinfo=UTC)))
    20
    """
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class RunFolder:
    """`runs/<pipeline>/<run id>/`."""

    path: Path

    @classmethod
    def create(cls, runs: Path, pipeline: str, run_id: str) -> "RunFolder":
        """Make the folder.

        Raises:
            DataError: It cannot be made there.
        """
        path = Path(runs) / pipeline / run_id
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise DataError(
                str(path),
                f"{error.strerror or error}",
                "a run needs a folder that it can write to",
                "choose another with --runs",
            ) from None
        return cls(path.resolve())

    @property
    def events(self) -> Path:
        """One JSON line an event."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """What kfp and the steps printed."""
        return self.path / "log.txt"

    @property
    def summary(self) -> Path:
        """The result as JSON."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The result as a page."""
        return self.path / "report.html"

    @property
    def artifacts(self) -> Path:
        """Where kfp puts what the steps write."""
        return self.path / "artifacts"

    def read_events(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the complete events from a byte offset on, and the offset behind them.

        A line that a killed or full-disk writer left half is skipped.
        """
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        return list(_parse(data[:end])), offset + end


def _parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


@dataclass
class Story:
    """What the events of a run tell: the steps in their order, the recorded facts, and the first error."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        name = str(event.get("step", ""))
        if event["event"] == "started":
            # A retried step starts again: its last try counts.
            self.steps = [step for step in self.steps if step["name"] != name]
            self.steps.append({"name": name, "status": "running", "started": event.get("time"), "seconds": None})
        elif event["event"] == "recorded":
            merge_facts(self.facts, event.get("facts", {}))
        elif event["event"] in ("finished", "failed"):
            for step in self.steps:
                if step["name"] == name:
                    step["status"] = event["event"]
                    step["seconds"] = event.get("seconds")
            if event["event"] == "failed":
                self.error = dict(event.get("error") or {})
            elif self.error is not None and self.error.get("step") == name:
                self.error = None
            if event["event"] == "failed" and self.error is not None:
                self.error["step"] = name


def compose_summary(
    pipeline: str, run_id: str, status: str, story: Story, arguments: Mapping[str, Any], error: MlflywheelError | None
) -> dict[str, Any]:
    """Compose `summary.json` from a run's story.

    Args:
        pipeline: Its name.
        run_id: The run.
        status: `succeeded`, `gate_refused` or `failed`.
        story: What the events told.
        arguments: The pipeline's arguments; long texts are left out, since they stand in `arguments.json`.
        error: What ended the run, None if nothing did.
    """
    facts = story.facts
    short = {
        name: value
        for name, value in arguments.items()
        if not isinstance(value, str) or len(value) <= _LONGEST_PARAMETER
    }
    return {
        "schema": SUMMARY_SCHEMA,
        "pipeline": pipeline,
        "run_id": run_id,
        "status": status,
        "error": None if error is None else error.to_dict(),
        "data": {
            "uri": arguments.get("data"),
            "version": None,
            "rows": None,
            "entities": None,
            **facts.get("data", {}),
        },
        "parameters": {**short, **facts.get("parameters", {})},
        "metrics": facts.get("metrics", {}),
        "gates": facts.get("gates", []),
        "champion": facts.get("champion"),
        "tuning": facts.get("tuning"),
        "rollout": facts.get("rollout"),
        "model": facts.get("model"),
        "artifacts": facts.get("artifacts", {}),
        "seconds": {step["name"]: round(step["seconds"], 3) for step in story.steps if step["seconds"] is not None},
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON, all or nothing."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
