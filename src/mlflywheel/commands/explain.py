"""The command `mlflywheel explain`: what single answers of a model are made of."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import ProgressView, Terminal
from mlflywheel.errors import DataError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.parameters import nest, read_assignments
from mlflywheel.options import AsJson, Maps, Prepares, Quiet, Registry, Runs, Split
from mlflywheel.runs.folder import DEFAULT_RUNS

if TYPE_CHECKING:
    from mlflywheel.evaluation.contributions import Contributions

_METHODS = ("own", "shap")
_PARTS_SHOWN = 10
_HALF_BAR = 12
_FEATURES_SHOWN = 20


def explain(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or a model folder.")],
    data: Annotated[str, typer.Option("--data", help="Table to explain: path or URI of CSV, CSV.gz or Parquet.")],
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="ID", help="A row to explain, by its id; repeatable.", show_default=False),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=1, help="How many rows are shown where none is named.")] = 3,
    method: Annotated[
        str,
        typer.Option("--method", help="own: the model's exact contributions; shap: Shapley values from its answers."),
    ] = "own",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where explanations go, Parquet: all rows, or those named.", show_default=False
        ),
    ] = None,
    maps: Maps = None,
    split_terms: Split = False,
    prepares: Prepares = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Explain answers of a model: what every feature brings to each of them.

    The base and the contributions of a row add up to its answer, on the scale that is shown.

    \b
    mlflywheel explain vehicle-prices@1 --data listings.csv --row l000017
    mlflywheel explain ad-campaigns --data new-terms.csv --row c0042 --row c0043 --json
    mlflywheel explain vehicle-prices --data listings.csv --output explanations.parquet
    mlflywheel explain vehicle-prices --data listings.csv --row l000017 --method shap
    """
    from mlflywheel.data.ingestion import parse_mapping
    from mlflywheel.scoring import write_scores

    settings = nest(read_assignments("--prepare", prepares or []), "--prepare")
    # Asking for shap takes a second for two rows; a look at a table must not take an hour.
    limit = show if method == "shap" and not rows and output is None else None
    with ProgressView(Terminal(stderr=True), quiet) as view:
        found, version = explain_data(
            Client(runs, registry),
            model,
            data,
            rows=rows or (),
            method=method,
            most=limit,
            columns=parse_mapping(maps or []),
            prepare={**settings, "split_terms": True} if split_terms else settings,
            progress=view.progress,
        )
    if output is not None:
        table = found.to_table()
        table = table.append_column("model_version", [[version] * table.num_rows])
        try:
            write_scores(table, output)
        except OSError as error:
            raise DataError(
                str(output), f"{error.strerror or error}", "a file that can be written is needed",
                "choose another --output",
            ) from None  # fmt: skip
    shown = found.rows if rows else min(show, found.rows)
    if as_json:
        print(json.dumps(describe_contributions(found, version, method, shown, output), indent=1))
    else:
        print_contributions(Terminal(), found, version, shown)
        if output is not None:
            print(f"{output}: {found.rows:,} rows explained")


def explain_data(
    client: Client,
    model: str | Path,
    data: str | Path,
    *,
    rows: Collection[str] = (),
    method: str = "own",
    most: int | None = None,
    columns: Mapping[str, str] | None = None,
    prepare: Mapping[str, Any] | None = None,
    progress: ProgressCallback = ignore_progress,
) -> "tuple[Contributions, str]":
    """Explain the answers to a table's rows.

    Args:
        client: Where models are found.
        model: NAME, NAME@VERSION, or a folder.
        data: Path or URI of the table.
        rows: Ids of the rows to explain; all of them if none is named.
        method: `own` for the model's own contributions; `shap` for Shapley values, whose background are other rows of
            the table.
        most: Explain so many rows at most, the first ones; None for all.
        columns: Our column names to the table's.
        prepare: Preparation settings on top of those that the registered model was trained with.
        progress: Progress callback.

    Returns:
        The contributions, and NAME@VERSION of the model, or a folder's hash.

    Raises:
        UsageError: Another method, or a model that shap cannot explain.
        DataError: The table cannot be read, has no rows, or not the ones that are named.
        MissingExtraError: shap is not installed.
    """
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.evaluation.contributions import pick_rows, read_contributions
    from mlflywheel.evaluation.shapley import explain_with_shap

    if method not in _METHODS:
        raise UsageError("--method", method, f"{' or '.join(_METHODS)} is needed", "choose one of these")
    uri = str(data)
    if not uri:
        raise UsageError("--data", "empty", "a path or URI is needed", "name a table")
    uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
    with client._load(str(model), progress) as (loaded, reference, trained_with):
        settings = type(loaded).Config.parse({**trained_with, **(prepare or {})}, "preparation settings")
        ingested = ingest(
            uri, type(loaded).columns, dict(columns or {}), progress, other_columns=type(loaded).other_columns
        )
        table = type(loaded).prepare(ingested.table, settings, progress)
        if not table.num_rows:
            raise DataError(
                str(data), "no row is left after preparing", "a row to explain is needed", "check the table"
            )
        chosen = pick_rows(loaded, table, rows)
        chosen = chosen if most is None else chosen.slice(0, most)
        if method == "shap":
            return explain_with_shap(loaded, chosen, table, progress=progress), reference
        return read_contributions(loaded, chosen), reference


def describe_contributions(
    found: "Contributions", version: str, method: str, shown: int, output: Path | None = None
) -> dict[str, Any]:
    """Return explanations as JSON values: the shown rows in full, and the features over all explained rows."""
    from mlflywheel.evaluation.contributions import summarize_contributions

    width = found.outputs_per_row
    return {
        "model_version": version,
        "method": method,
        "quantity": found.quantity,
        "rows": found.rows,
        "path": None if output is None else str(output),
        "features": [
            {"feature": one.feature, "mean_absolute_contribution": one.mean_absolute, "rows": one.count}
            for one in summarize_contributions(found)[:_FEATURES_SHOWN]
        ],
        "explanations": [{"id": found.ids[row * width].as_py(), "outputs": found.of_row(row)} for row in range(shown)],
    }


def print_contributions(console: Console, found: "Contributions", version: str, shown: int) -> None:
    """Print the first rows with bars, and the features over all rows where there are more."""
    from mlflywheel.evaluation.contributions import choose_outputs, describe, summarize_contributions

    # A folder's hash is as long as a line.
    version = version[:19] if version.startswith("sha256:") else version
    for row in range(shown):
        name = found.ids[row * found.outputs_per_row].as_py() or f"row {row + 1}"
        console.print(Text(str(name), "bold") + Text(f"  {version}", "dim"), highlight=False, soft_wrap=True)
        explained = found.of_row(row)
        chosen = choose_outputs(explained, found.quantity)
        for one in chosen:
            total, base = one[found.quantity], one["base"]
            heading = f"{found.quantity} {total:.4g}" if len(explained) == 1 else f"{one['output']}: {total:.4g}"
            plain = describe(found.quantity, total), describe(found.quantity, base)
            told = f"{heading}{_bracket(plain[0])}, from a base of {base:.4g}{_bracket(plain[1])}"
            console.print(Text(told), highlight=False, soft_wrap=True)
            console.print(_draw_parts(found.quantity, one["contributions"]))
        if len(explained) > len(chosen):
            console.print(f"{len(explained) - len(chosen)} smaller outputs are not shown", style="dim")
        console.print()
    if found.rows > shown:
        summary = [one for one in summarize_contributions(found)[:_FEATURES_SHOWN] if one.mean_absolute]
        told = f"Mean absolute contribution to {found.quantity} over {found.rows:,} rows"
        console.print(Text(told, "bold"), highlight=False)
        lines = [(one.feature, one.mean_absolute, f"{one.mean_absolute:.4g}", "") for one in summary]
        console.print(_draw_bars(lines))


def _bracket(text: str) -> str:
    return f" ({text})" if text else ""


def _draw_parts(quantity: str, parts: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the largest contributions of one answer, and sum up the others."""
    from mlflywheel.evaluation.contributions import describe_factor, name_part

    parts = [part for part in parts if part["contribution"]]
    amounts = [float(part["contribution"]) for part in parts]
    lines: list[tuple[str, float | None, str, str]] = [
        (name_part(part), amount, f"{amount:+.4g}", describe_factor(quantity, amount))
        for part, amount in zip(parts[:_PARTS_SHOWN], amounts, strict=False)
    ]
    rest = sum(amounts[_PARTS_SHOWN:])
    if amounts[_PARTS_SHOWN:]:
        # Without a bar: as the sum of many it would make all others look small.
        more = f"{len(amounts) - _PARTS_SHOWN} more together"
        lines.append((more, None, f"{rest:+.4g}", describe_factor(quantity, rest)))
    return _draw_bars(lines or [("nothing changes the base", None, "", "")])


def _draw_bars(lines: Sequence[tuple[str, float | None, str, str]]) -> Table:
    """Draw (name, amount, amount as text, note) with bars to both sides of a middle line, if any is below 0."""
    amounts = [amount for _, amount, _, _ in lines if amount is not None]
    largest = max((abs(amount) for amount in amounts), default=1.0)
    signed = any(amount < 0 for amount in amounts)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(overflow="ellipsis", no_wrap=True, max_width=44)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    for name, amount, written, note in lines:
        below, above = "", ""
        if amount is not None:
            length = round(_HALF_BAR * abs(amount) / largest)
            below = ("█" * length or "▕") if amount < 0 else ""
            above = ("█" * length or "▏") if amount > 0 else ""
        left = Text(below.rjust(_HALF_BAR), "red") if signed else Text()
        table.add_row(Text(f"  {name}"), left + Text(above.ljust(_HALF_BAR), "green"), written, note)
    return table
