"""What the command line draws of a rollout: weights, evidence, what happens next, and who did what."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mlflywheel.decisions.canary.evidence import ARMS, Window
from mlflywheel.rollouts.record import Record
from mlflywheel.rollouts.rehearsal import Rehearsal

_BAR_CELLS = range(6, 25)
_SPARK_WINDOWS = 24
# Names of tests are broken into lines where they are longer.
_TEST_CHARACTERS = 30
# Evidence grows without bounds; more digits than these say nothing.
_MOST_EVIDENCE = 10_000
_SPARKS = "▁▂▃▄▅▆▇█"
_COLOURS = {"promoted": "green", "rolled_back": "red", "stopped": "red", "promoting": "green", "rolling_back": "red"}


def draw_record(record: Record, now: float | None = None) -> RenderableType:
    """Return a rollout as it stands, for a terminal."""
    at = time.time() if now is None else now
    parts: list[RenderableType] = [_draw_title(record, at), _draw_steps(record)]
    if record.verdict:
        parts.append(_draw_evidence(record.verdict["findings"]))
        parts += [Text(f"not judged: {note}", "yellow") for note in record.verdict["notes"]]
    traffic = _draw_traffic(record.windows)
    if traffic is not None:
        parts.append(traffic)
    if record.message:
        waits = record.phase in ("shifting", "promoting", "rolling_back")
        parts.append(Text(f"waiting: {record.message}" if waits else record.message))
    return Group(*(part for one in parts for part in (one, Text(""))))


def print_history(console: Console, record: Record) -> None:
    """Print who did what when and why, from the oldest entry to the newest."""
    for before in record.previous:
        ended = _clock(float(before["ended"]))
        console.print(Text(f"{before['id']}  {before['candidate']}  {before['phase']}  {ended}", "dim"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("time", "who", "what", "why"):
        table.add_column(name, no_wrap=name != "why", overflow="fold")
    for entry in record.history:
        table.add_row(_clock(entry.time), entry.who, entry.what, entry.why)
    console.print(table)


def print_rehearsal(console: Console, rehearsal: Rehearsal) -> None:
    """Print what a rehearsal showed."""
    console.print(_draw_evidence(rehearsal.verdict.to_dict()["findings"]))
    console.print()
    passes = Text("passes: ", "bold green") if rehearsal.passes else Text("refused: ", "bold red")
    console.print(passes + Text(rehearsal.reason), soft_wrap=True)
    console.print(Text(f"report       {rehearsal.report_path}"), soft_wrap=True)


def draw_simulation(result: Mapping[str, Any]) -> Table:
    """Return the table of `rollout simulate`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scenario")
    for name in ("promoted", "rolled back", "undecided", "requests exposed", "95 %"):
        table.add_column(name, justify="right")
    for one in result["scenarios"]:
        table.add_row(
            one["scenario"],
            *(f"{one[name]:.1%}" for name in ("promote_rate", "rollback_rate", "undecided_rate")),
            *(_count(one[name]) for name in ("median_requests_exposed", "p95_requests_exposed")),
        )
    return table


def _draw_title(record: Record, now: float) -> Text:
    colour = _COLOURS.get(record.phase, "bold")
    title = Text(record.service, "bold") + Text(f"  {record.candidate.model or record.candidate.storage_uri}")
    title += Text(f" as {record.candidate.name}   ") + Text(record.phase.replace("_", " "), colour)
    if record.paused:
        title += Text(" (paused)", "yellow")
    if not record.has_ended:
        title += Text(f"   since {_duration(now - record.started)}")
    return title


def _draw_steps(record: Record) -> Text:
    line = Text("traffic  ")
    for number, percent in enumerate(record.policy.steps):
        is_last = number == len(record.policy.steps) - 1
        at = record.phase in ("shifting", "watching") and number == record.step
        done = number < record.step or record.phase in ("promoted", "promoting")
        if record.phase in ("rolled_back", "rolling_back"):
            style = "dim"
        else:
            style = "bold reverse" if at else ("green" if done else "dim")
        line += Text(f"{percent:g} %", style) + Text("" if is_last else " → ", "dim")
    return line


@dataclass(frozen=True)
class _Bar:
    """A bar that takes the place that there is.

    Args:
        share: Of it that is filled, 0 to 1.
        colour: Of that part.
    """

    share: float
    colour: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_BAR_CELLS[0], _BAR_CELLS[-1])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = min(_BAR_CELLS[-1], options.max_width)
        filled = round(self.share * cells)
        yield Text("█" * filled, self.colour) + Text("░" * (cells - filled), "dim")


def _draw_evidence(findings: Sequence[Mapping[str, Any]]) -> Table:
    names = [_name_test(one) for one in findings]
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Where the terminal is narrow, the bars get shorter before anything else does.
    table.add_column("test", no_wrap=max(map(len, names), default=0) <= _TEST_CHARACTERS, overflow="fold")
    for title in ("candidate", "stable", "requests"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column()
    table.add_column("evidence", no_wrap=True)
    for name, one in zip(names, findings, strict=True):
        is_harm = one["test"] == "harm"
        evidence = math.inf if one["evidence"] is None else float(one["evidence"])
        # On a logarithmic scale evidence grows evenly, and 1 is where it starts.
        share = 0.0 if evidence <= 1 else min(1.0, math.log(evidence) / math.log(one["needed"]))
        shown = f"{evidence:,.3g}" if evidence < _MOST_EVIDENCE else f"{_MOST_EVIDENCE:,}+"
        table.add_row(
            name,
            _rate(one["candidate_rate"]),
            _rate(one["stable_rate"]),
            f"{one['candidate_total']:,.0f}",
            _Bar(share, "red" if is_harm else "green"),
            f"{shown} of {one['needed']:,.3g}",
        )
    return table


def _name_test(finding: Mapping[str, Any]) -> str:
    return f"{finding['metric']}{' of ' + finding['group'] if finding['group'] else ''}: {finding['test']}"


def _draw_traffic(windows: Sequence[Window]) -> Text | None:
    if not windows:
        return None
    recent = windows[-_SPARK_WINDOWS:]
    line = Text("requests  ") + Text(_spark([one.candidate.requests for one in recent]), "cyan")
    last = recent[-1]
    seconds = max(last.end - last.start, 1e-9)
    rates = {name: getattr(last, name).requests / seconds for name in ARMS[::-1]}
    return line + Text("  " + ", ".join(f"{name} {rate:,.1f}/s" for name, rate in rates.items()))


def _spark(values: Sequence[float]) -> str:
    top = max(values) or 1.0
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(value / top * len(_SPARKS)))] for value in values)


def _rate(value: float | None) -> str:
    return "" if value is None else (f"{value:.3%}" if value < 0.01 else f"{value:.2%}")


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
