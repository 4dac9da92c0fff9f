"""`mlflywheel doctor`: what would get in the way here, and how to mend it."""

import json

import typer
from rich.console import Console
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.options import AsJson, Registry, Runs
from mlflywheel.runs.folder import DEFAULT_RUNS


def run_doctor(runs: Runs = DEFAULT_RUNS, registry: Registry = None, as_json: AsJson = False) -> None:
    """Look at this installation, and say what would get in the way and how to mend it.

    \b
    mlflywheel doctor
    """
    from mlflywheel.doctor import examine

    findings = list(examine(runs, Client(runs, registry).registry))
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"problems": problems, "findings": [finding.to_dict() for finding in findings]}))
    else:
        console = Console()
        marks = {"ok": Text("✓", "green"), "note": Text("–", "yellow"), "problem": Text("✗", "red")}
        for finding in findings:
            console.print(marks[finding.status] + Text(f" {finding.subject:<22}{finding.text}"), soft_wrap=True)
            if finding.fix:
                console.print(Text(f"  Fix: {finding.fix}"), soft_wrap=True)
    if problems:
        raise typer.Exit(1)
