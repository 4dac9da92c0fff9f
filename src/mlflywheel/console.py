"""What the command line draws: progress while a run works, and its result."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from mlflywheel.errors import show_controls
from mlflywheel.models.parameters import flatten
from mlflywheel.reports.page import pair_references
from mlflywheel.runs.search import Search
from mlflywheel.runs.server import LocalServer
from mlflywheel.tuning.experiment import Experiment

_PLAIN_SECONDS = 2.0


class Terminal(Console):
    r"""A console that shows control characters in what it is given, as `\x1b`: names and terms come from data."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with its own control codes and none of the text's."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(show_controls(segment.text), segment.style)


class ProgressView:
    """Draws the events of a run on standard error: a live line a step on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Progress | None = None
        self._task: Any = None
        self._printed = 0.0

    def __enter__(self) -> Self:
        """Start drawing."""
        if not self._quiet and self._console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave only the lines of finished steps."""
        if self._live is not None:
            self._live.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Draw one event."""
        if self._quiet:
            return
        name = str(event.get("step", ""))
        if event["event"] == "started":
            self._start(name)
        elif event["event"] == "progress":
            self.progress(str(event["phase"]), int(event["done"]), int(event["total"]), name)
        elif event["event"] in ("finished", "failed"):
            self._finish(name, event["event"] == "finished", float(event.get("seconds") or 0.0))

    def progress(self, phase: str, done: int, total: int, name: str = "") -> None:
        """Draw how far a step is; usable as a `ProgressCallback`."""
        if self._quiet:
            return
        description = f"{name}: {phase}" if name else phase
        if self._live is not None:
            if self._task is None:
                self._task = self._live.add_task(description, total=total or None)
            self._live.update(self._task, description=description, completed=done, total=total or None)
        elif time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            share = f" {done:,} of {total:,}" if total else ""
            self._console.print(f"  {description}{share}", highlight=False, markup=False)

    def _start(self, name: str) -> None:
        self._printed = time.monotonic()
        if self._live is not None:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(name, total=None)
        else:
            self._console.print(f"{name} ...", highlight=False, markup=False)

    def _finish(self, name: str, succeeded: bool, seconds: float) -> None:
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)
            self._task = None
        mark = Text("✓ ", "green") if succeeded else Text("✗ ", "red")
        self._console.print(mark + Text(f"{name:<14}{seconds:6.1f} s"), highlight=False)


def print_run(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the result of a run: metrics beside their references, gates, and what to type next."""
    for warning in summary["data"].get("warnings") or ():
        console.print(Text("warning: ", "yellow") + Text(str(warning)), soft_wrap=True)
    cleaning = summary["data"].get("cleaning") or {}
    if cleaning:
        counted = ", ".join(f"{name} {count:,}" for name, count in cleaning.items())
        console.print(f"cleaned: {counted}", highlight=False, soft_wrap=True)
    metrics = summary["metrics"]
    if metrics:
        table = Table(title=None, box=None, pad_edge=False, header_style="bold")
        table.add_column("metric")
        table.add_column("value", justify="right")
        table.add_column("reference", justify="right")
        references = pair_references(list(metrics))
        paired = {reference for pairs in references.values() for reference, _ in pairs}
        for name in sorted(set(metrics) - paired):
            # The first one is the one to beat; the report shows the others as well.
            reference = next((f"{metrics[other]:,.4g}" for other, _ in references.get(name, ())), "")
            table.add_row(name, f"{metrics[name]:,.4g}", reference)
        console.print(table)
        console.print()
    for gate in summary["gates"]:
        if gate["holds"] is False:
            console.print(Text("gate refused: ", "red") + Text(str(gate["reason"])))
    held = sum(gate["holds"] is True for gate in summary["gates"])
    if summary["gates"]:
        console.print(f"{held} of {sum(g['holds'] is not None for g in summary['gates'])} gates hold", highlight=False)
    tuning = summary.get("tuning")
    if tuning:
        kept = "" if tuning["improved"] else "; not confirmed on other rows, so the given parameters were kept"
        console.print(
            f"tuned over {tuning['trials']} trials: {tuning['objective']} {tuning['best']:.4g} on the validation part,"
            f" {tuning['baseline']:.4g} before{kept}",
            highlight=False,
            soft_wrap=True,
        )
    model = summary["model"]
    if model:
        console.print(Text("registered   ") + Text(f"{model['name']}@{model['version']}", "bold green"))
    for name in ("scores", "report"):
        if name in summary["artifacts"]:
            console.print(Text(f"{name:<13}{summary['artifacts'][name]}"), soft_wrap=True)
    if model:
        console.print()
        console.print("Next:", style="bold")
        reference = f"{model['name']}@{model['version']}"
        for arguments in (
            f"serve {reference} --open",
            f'models approve {reference} --reason "..."',
            f"score {reference} --data FILE --output scores.parquet",
        ):
            console.print(f"  {name_command()} {arguments}", highlight=False, soft_wrap=True)


def describe_experiment(experiment: Experiment) -> dict[str, Any]:
    """Return an Experiment in short."""
    trials = "all of them" if experiment.max_trials is None else experiment.max_trials
    return {
        "name": experiment.name,
        "objective": f"{experiment.objective.direction} {experiment.objective.metric}",
        "algorithm": experiment.algorithm,
        "trials": f"{trials} trials, {experiment.parallel_trials} at once",
        "parameters": f"{len(experiment.parameters)} parameters",
        "hash": experiment.spec_hash,
    }


def print_search(console: Console, target: str, search: Search) -> None:
    """Print the result of a search: the best trial beside what it began from, and what to type next."""
    result, tuned = search.result, search.tuned
    best = result.best
    if best is not None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("parameter")
        table.add_column("best", justify="right")
        for name, value in best.parameters.items():
            table.add_row(name, _shorten(value))
        console.print(table)
        console.print()
        console.print(Text(f"{result.objective.metric}  {best.objective:.6g}", "bold"), f"by {best.name}")
    if tuned is not None:
        console.print(f"with the given parameters: {tuned.baseline:.6g}", highlight=False)
        if tuned.confirmation is not None and tuned.confirmation.mean is not None:
            splits = len(tuned.confirmation.differences)
            console.print(
                f"on {splits} splits of other rows the best differs by {tuned.confirmation.mean:+.4g} on average,"
                f" above 0 is better (p = {tuned.confirmation.p_value:.2g})",
                highlight=False,
            )
        if not tuned.improved:
            console.print("not confirmed to be better, so the given parameters are kept", highlight=False)
    counts = {status: result.count(status) for status in dict.fromkeys(trial.status for trial in result.trials)}
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    taken = f", {result.resumed} taken over from an earlier call" if result.resumed else ""
    console.print(f"{len(result.trials)} trials: {told}{taken}", highlight=False)
    console.print(Text(f"{'report':<13}{search.artifacts['report']}"), soft_wrap=True)
    if tuned is not None and tuned.improved:
        console.print()
        console.print("Next, with the same --data:", style="bold")
        words = " ".join(f"--param {name}={_quote(value)}" for name, value in flatten(tuned.params).items())
        console.print(f"  {name_command()} run {target} {words}", highlight=False, soft_wrap=True)


class RequestView:
    """Prints a line for each request that a server answers, and what else it has to say."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Print one log line of the server."""
        if event.get("event") == "request":
            rows, total = event.get("rows", 0), event["milliseconds"]["total"]
            line = f"{event['protocol']:<6}{event['status']!s:<5}{rows:>6} rows {total:>9.1f} ms"
            self._console.print(line, highlight=False, markup=False)
        elif event.get("level") in ("warning", "error"):
            told = {key: value for key, value in event.items() if key not in ("time", "level")}
            self._console.print(Text(json.dumps(told, default=str), "yellow"), soft_wrap=True)


def print_server(console: Console, server: LocalServer, as_json: bool) -> None:
    """Print where a server answers, and a request to paste."""
    predict = f"{server.url}/v1/models/{server.name}:predict"
    example = server.example()
    if as_json:
        grpc = f"{server.options.host}:{server.grpc_port}"
        told = {"url": server.url, "grpc": grpc, "model": server.name, "predict": predict, "example": example}
        print(json.dumps(told), flush=True)
        return
    console.print(Text("serving  ") + Text(server.url, "bold green") + Text(f"   gRPC {server.grpc_port}"))
    console.print(f"try it   {server.url}/try    docs  {server.url}/docs", highlight=False, soft_wrap=True)
    console.print()
    data = shlex.quote(json.dumps({"instances": [example]}))
    console.print(f"curl {predict} -d {data}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _shorten(value: str) -> str:
    try:
        return value if len(value) <= 12 else f"{float(value):.6g}"
    except ValueError:
        return value


def _quote(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def name_command() -> str:
    """Return what to type for this program: its name where the shell finds it, else the path that was typed."""
    if shutil.which("mlflywheel"):
        return "mlflywheel"
    typed = Path(sys.argv[0])
    return os.path.relpath(typed) if typed.name == "mlflywheel" else "python -m mlflywheel"


def print_error(console: Console, message: str) -> None:
    """Print an error in one piece."""
    console.print(Text("error: ", "bold red") + Text(message), soft_wrap=True, highlight=False)
