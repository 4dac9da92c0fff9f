"""The command `mlflywheel rebuild`: `mlflywheel.Client.rebuild` as words to type."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import ProgressView, Terminal
from mlflywheel.options import AsJson, Quiet, Registry, Runs
from mlflywheel.runs.folder import DEFAULT_RUNS
from mlflywheel.runs.rebuild import Rebuild

_SHOWN_DIFFERENCES = 12
_SHOWN_CHARACTERS = 60
_COLOURS = {"same": "green", "equivalent": "yellow", "different": "red"}


def rebuild(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the newest.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Another place of the same data; where it was if left out.", show_default=False),
    ] = None,
    compiled: Annotated[
        Path | None,
        typer.Option("--compiled", help="Compiled YAML of a pipeline that is not this library's.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Share by which metrics may differ where the hash need not repeat.")
    ] = 0.01,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what kfp and the steps print.")] = False,
) -> None:
    """Train a registered version again from its dossier, and compare hash and metrics.

    What differs from the recorded environment is told before the work begins. Exit code 1 says that the data is gone
    or another one, or that the model came out different.

    \b
    mlflywheel rebuild ad-campaigns@1
    mlflywheel rebuild ad-campaigns@1 --data s3://bucket/terms.csv.gz --tolerance 0.005 --json
    mlflywheel rebuild churn@3 --compiled churn.yaml
    """
    console = Terminal(stderr=True)
    with ProgressView(console, quiet or verbose) as view:

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "checked" and not quiet:
                _print_differences(console, event["differences"])
            view.show(event)

        finished = Client(runs, registry).rebuild(
            model,
            data=data,
            compiled=compiled,
            tolerance=tolerance,
            progress=view.progress,
            on_event=show,
            on_output=(lambda line: print(line, file=sys.stderr)) if verbose else None,
        )
    if as_json:
        print(json.dumps(finished.to_dict(), indent=1))
    else:
        print_rebuild(Terminal(), finished)
    finished.raise_for_status()


def _print_differences(console: Console, differences: list[dict[str, Any]]) -> None:
    """Print what is not as it was recorded; what can change bits first."""
    if not differences:
        console.print("code, packages, machine and pipeline are as they were recorded", highlight=False)
        return
    ordered = sorted(differences, key=lambda found: not found["changes_bits"])
    for found in ordered[:_SHOWN_DIFFERENCES]:
        mark = Text("differs  ", "yellow") if found["changes_bits"] else Text("noted    ", "dim")
        told = f"{found['subject']}: recorded {_shorten(found['recorded'])}, here {_shorten(found['found'])}"
        console.print(mark + Text(told), soft_wrap=True)
    if len(ordered) > _SHOWN_DIFFERENCES:
        console.print(f"         and {len(ordered) - _SHOWN_DIFFERENCES} more, in rebuild.json", highlight=False)


def print_rebuild(console: Console, finished: Rebuild) -> None:
    """Print the metrics of both models, and what they mean."""
    comparison = finished.comparison
    if comparison.metrics:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("metric")
        for name in ("recorded", "rebuilt", "allowed"):
            table.add_column(name, justify="right")
        table.add_column("")
        for pair in comparison.metrics:
            equal = pair.recorded == pair.rebuilt
            outcome = Text("equal" if equal else "within", "green") if pair.holds else Text("beyond", "red")
            table.add_row(
                pair.metric, f"{pair.recorded:,.6g}", f"{pair.rebuilt:,.6g}", f"± {pair.allowed:.2g}", outcome
            )
        console.print(table)
        console.print()
    console.print(Text(comparison.outcome, f"bold {_COLOURS[comparison.outcome]}") + Text(f"  {comparison.reason}"))
    console.print(Text(f"{'recorded':<13}{finished.reference}  {comparison.recorded_hash}"), soft_wrap=True)
    console.print(Text(f"{'rebuilt':<13}run {finished.summary['run_id']}  {comparison.rebuilt_hash}"), soft_wrap=True)
    console.print(Text(f"{'verdict':<13}{finished.path}"), soft_wrap=True)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
