"""Calling `mlflywheel run` as a user does."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A suite without rules, for runs that ask about something else: importing Great Expectations takes seconds.
NO_RULES = '{"schema": 1}'
#: A plan that leaves out what takes longest to measure, for the same runs.
LEAN_PLAN = '{"schema": 1, "slices": {"discover": {"enabled": false}}, "explanations": {"rows": 0}}'


@dataclass(frozen=True)
class Finished:
    """What a call of the command line left behind."""

    code: int
    output: str
    errors: str
    folder: Path
    pipeline: str = "ad-campaigns"

    @property
    def summary(self) -> dict[str, Any]:
        paths = list(self.folder.glob(f"runs/{self.pipeline}/*/summary.json"))
        assert len(paths) == 1, self.errors
        found: dict[str, Any] = json.loads(paths[0].read_text(encoding="utf-8"))
        return found

    @property
    def report(self) -> str:
        return next(self.folder.glob(f"runs/{self.pipeline}/*/report.html")).read_text(encoding="utf-8")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, *arguments: str, pipeline: str = "ad-campaigns") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mlflywheel", "run", pipeline, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        # A test run in the background ignores Ctrl-C, and so would its children.
        preexec_fn=_heed_interrupts,
    )


def run(folder: Path, *arguments: str, pipeline: str = "ad-campaigns") -> Finished:
    folder.mkdir(parents=True, exist_ok=True)
    child = start(folder, *arguments, pipeline=pipeline)
    output, errors = child.communicate(timeout=400)
    return Finished(child.returncode, output, errors, folder, pipeline)
