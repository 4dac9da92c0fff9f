"""`mlflywheel testscore`: the ML Test Score of a registered version, from evidence."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import Terminal
from mlflywheel.errors import DataError, GateRefusedError
from mlflywheel.options import AsJson, Registry, Runs
from mlflywheel.runs.folder import DEFAULT_RUNS
from mlflywheel.testscore import SECTIONS, ScoredTest, TestScore, render_page, score_registered

# What commands leave among the runs.
_WRITTEN = ("rebuilds/*/rebuild.json", "rehearsals/*/rehearsal.json")
_EFFORTS = {1: "write it down or switch it on", 2: "run a command", 3: "build it"}
_COLOURS = {0.0: "red", 0.5: "yellow", 1.0: "green"}


def compute_testscore(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the newest.")],
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            "--evidence",
            help="Folder or file of evidence; repeatable. If left out: evidence/NAME beside the runs, and the "
            "rebuilds and rehearsals among the runs.",
            show_default=False,
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option("--at-least", min=0, max=7, help="Exit with 3 if the score is lower.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write it as a page, HTML.", show_default=False)
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Compute the ML Test Score of a registered version from evidence: 28 tests, the lowest of four sections counts.

    \b
    mlflywheel testscore ad-campaigns@3
    mlflywheel testscore vehicle-prices@1 --evidence ci/ --evidence rollouts/ --output score.html
    mlflywheel testscore ad-campaigns --at-least 2 --json
    """
    client = Client(runs, registry)
    version = client.model(model)
    beside = runs.parent / "evidence" / version.name
    given = _list_evidence(runs, beside) if evidence is None else evidence
    found = score_registered(client.registry, version, given, datetime.now(UTC))
    if output is not None:
        _write_page(output, found)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    else:
        console = Terminal()
        # A pipe has no width; folding cells there would tear words apart.
        print_score(Terminal(width=None if console.is_terminal else 140), found)
        if evidence is None and not beside.is_dir():
            console.print(Text(f"note: there is no folder {beside}; --evidence names another"), soft_wrap=True)
    if at_least is not None and found.score < at_least:
        raise GateRefusedError(
            f"ML Test Score of {found.reference}",
            f"{found.score:g}, limited by {' and '.join(found.limiting)}",
            f"at least {at_least:g} is needed",
            f"earn points there first: {', '.join(test.id for test in found.next_points())}",
        )


def _list_evidence(runs: Path, beside: Path) -> list[Path]:
    """Return where evidence lies unless somebody says otherwise."""
    written = [path for pattern in _WRITTEN for path in sorted(runs.glob(pattern))]
    return [*([beside] if beside.is_dir() else []), *written]


def print_score(console: Console, score: TestScore) -> None:
    """Print a score: a table a section, what limits it, and the cheapest next points."""
    sections = score.sections
    for name in SECTIONS:
        console.print(Text(f"{name.capitalize():<16}{sections[name]:g} of 7", "bold"))
        table = Table(box=None, pad_edge=False, show_header=False)
        for style in ("dim", ""):
            table.add_column(style=style, no_wrap=True)
        table.add_column(justify="left", ratio=2)
        table.add_column(style="dim", ratio=3)
        for test in score.tests:
            if test.section == name:
                table.add_row(
                    test.id, Text(f"{test.points:g}", _COLOURS[test.points]), Text(test.title), Text(_tell(test))
                )
        console.print(table)
        console.print()
    console.print(Text(f"ML Test Score  {score.score:g}", "bold") + Text(f"  {score.band}"), soft_wrap=True)
    console.print(f"limited by {' and '.join(score.limiting)}", highlight=False)
    # What does not count for an open test stands beside it.
    beside = {f"{test.id}: {text}" for test in score.tests if not test.evidence for text in test.remarks[:1]}
    for note in score.notes:
        if note in beside:
            continue
        console.print(Text("note: ", "yellow") + Text(note), soft_wrap=True)
    steps = score.next_points()
    if steps:
        console.print()
    for test in steps:
        console.print(
            Text("next: ", "green") + Text(f"{test.id} ({_EFFORTS[test.effort]}): {test.missing}"), soft_wrap=True
        )


def _tell(test: ScoredTest) -> str:
    """Return in short what the points rest on, or why there are none; the page and the JSON say where it stands."""
    if test.evidence:
        kinds = list(dict.fromkeys(one.kind for one in test.evidence))
        return f"{test.evidence[0].what} [{', '.join(kinds)}]"
    return f"does not count: {test.remarks[0]}" if test.remarks else ""


def _write_page(path: Path, score: TestScore) -> None:
    try:
        path.write_text(render_page(score), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"--output {path}",
            error.strerror or str(error),
            "a path that can be written to is needed",
            "choose another",
        ) from None
