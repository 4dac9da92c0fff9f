"""The commands below `mlflywheel models`: look at registered versions, decide about them, and export them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import Terminal
from mlflywheel.errors import MlflywheelError, UsageError
from mlflywheel.options import AsJson, Registry, Runs, read_text_file
from mlflywheel.registry import ModelVersion, State
from mlflywheel.reports.card import list_brief, list_objections
from mlflywheel.runs.folder import DEFAULT_RUNS

models_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at registered models, sign them off, and export them.",
    epilog="Exit codes: 0 done; 1 no such version, or no legal step; 2 wrong usage.",
)

OneVersion = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.", show_default=False)]
By = Annotated[
    str | None, typer.Option("--by", help="Who decides; this user and host if left out.", show_default=False)
]


@models_app.command("list")
def list_models(runs: Runs = DEFAULT_RUNS, registry: Registry = None, as_json: AsJson = False) -> None:
    """List registered models and their versions.

    \b
    mlflywheel models list
    mlflywheel models list --json
    """
    found = Client(runs, registry).models()
    if as_json:
        print(json.dumps([version.to_dict() for _, versions in found for version in versions], default=str))
        return
    if not found:
        print("no model is registered; run a pipeline: mlflywheel run ad-campaigns")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "state", "registered", "format", "hash"):
        table.add_column(name, no_wrap=True)
    for _, versions in found:
        for version in versions:
            created = f"{version.created_at:%Y-%m-%d %H:%M}"
            table.add_row(version.reference, str(version.state), created, version.format_name, version.hash[:19])
    # A pipe has no width; cutting names there would lose them.
    console = Terminal()
    Terminal(width=None if console.is_terminal else 200).print(table)


@models_app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the newest.")],
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Show a version: state, metrics, parameters, what it was made from, and who decided what when and why.

    \b
    mlflywheel models show ad-campaigns@1
    """
    client = Client(runs, registry)
    version = client.model(model)
    history = client.registry.history(version.name, version.version)
    values = version.to_dict()
    if as_json:
        print(json.dumps({**values, "history": [transition.to_dict() for transition in history]}, default=str))
        return
    console = Terminal()
    stored = {name: value for name, value in (("endpoint", version.endpoint), ("secret", version.secret)) if value}
    console.print(Text(version.reference, "bold") + Text(f"  {version.state}"))
    for title, entries in (
        (
            "",
            {
                "uri": version.uri,
                **stored,
                "hash": version.hash,
                "registered": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
            },
        ),
        ("Metrics", {name: f"{value:.6g}" for name, value in sorted(version.metrics.items())}),
        ("Parameters", {name: str(value) for name, value in sorted(version.parameters.items())}),
        ("Made from", dict(sorted(version.lineage.items()))),
    ):
        if not entries:
            continue
        if title:
            console.print(f"\n{title}", style="bold")
        for name, value in entries.items():
            console.print(Text(f"  {name:<40} {value}"), soft_wrap=True)
    console.print("\nHistory (UTC)", style="bold")
    for one in history:
        why = f": {one.reason}" if one.reason else ""
        console.print(Text(f"  {one.at:%Y-%m-%d %H:%M}  {one.to_state:<10} {one.by}{why}"), soft_wrap=True)


@models_app.command("approve")
def approve_model(
    model: OneVersion,
    reason: Reason = "",
    by: By = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Approve a candidate, so that it may be rolled out; print what that rests on and what stands against it.

    \b
    mlflywheel models approve ad-campaigns@2 --reason "gates hold, weak slices agreed with sales"
    mlflywheel models approve ad-campaigns@2 --reason "reviewed" --by ann@example.org --json
    """
    client = Client(runs, registry)
    before = client.model(model).state
    approved = client.approve(model, reason, by=by)
    dossier, unread = _read_dossier(approved)
    against = (unread,) if unread else list_objections(approved, dossier)
    lines = list_brief(dossier)
    if as_json:
        rests_on = [{"question": one.question, "answer": one.answer, "gates": list(one.gates)} for one in lines]
        _print_json(client, approved, {"rests_on": rests_on, "against": list(against)})
        return
    console = Terminal()
    for line in lines:
        console.print(Text(line.question, "bold"))
        console.print(Text(f"  {line.answer}"), soft_wrap=True)
    if against:
        console.print(Text("What stands against it, or was not looked at", "bold"))
        for one in against:
            console.print(Text(f"  - {one}"), soft_wrap=True)
    _print_decision(client, approved, before)


@models_app.command("withdraw")
def withdraw_approval(
    model: OneVersion,
    reason: Reason = "",
    by: By = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Take an approval back: the version is a candidate again.

    \b
    mlflywheel models withdraw ad-campaigns@2 --reason "labels of May were wrong"
    """
    client = Client(runs, registry)
    _tell(client, client.withdraw, model, reason, by, as_json)


@models_app.command("archive")
def archive_model(
    model: OneVersion,
    reason: Reason = "",
    by: By = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Put a version away: it may not be rolled out any more. Its files stay.

    \b
    mlflywheel models archive ad-campaigns@1 --reason "replaced by ad-campaigns@2"
    """
    client = Client(runs, registry)
    _tell(client, client.archive, model, reason, by, as_json)


@models_app.command("restore")
def restore_model(
    model: OneVersion,
    reason: Reason = "",
    by: By = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Take an archived version back as a candidate, to be approved again.

    \b
    mlflywheel models restore ad-campaigns@1 --reason "ad-campaigns@2 has to go"
    """
    client = Client(runs, registry)
    _tell(client, client.restore, model, reason, by, as_json)


@models_app.command("card")
def print_card(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the newest.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where it goes: .html for a page, else Markdown.", show_default=False),
    ] = None,
    testscore: Annotated[
        Path | None,
        typer.Option("--testscore", help="What `mlflywheel testscore --json` printed of it.", show_default=False),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's model card as Markdown, or write it as Markdown or a page.

    \b
    mlflywheel models card ad-campaigns@2
    mlflywheel models card ad-campaigns@2 --output card.html
    """
    client = Client(runs, registry)
    version = client.model(model)
    card = client.card(
        version.reference, output, testscore=None if testscore is None else _read_score(testscore, version)
    )
    if as_json:
        facts = {"reference": version.reference, "path": None if output is None else str(output)}
        print(json.dumps(facts | ({"card": card} if output is None else {})))
    elif output is None:
        print(card, end="")
    else:
        print(output)


@models_app.command("export")
def export_model(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or a model folder.")],
    triton: Annotated[Path, typer.Option("--triton", help="Model repository of a Triton server; made if missing.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Its name there; the registered one if left out.", show_default=False)
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Its number there; the registered one.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where Triton computes: cpu or cuda.")] = "cpu",
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's ONNX graph for a stock server, which then answers without this library.

    \b
    mlflywheel models export vehicle-prices@1 --triton repository/
    mlflywheel models export model-folder/ --triton repository/ --name prices --version 2 --device cuda
    """
    if device not in ("cpu", "cuda"):
        raise UsageError("--device", device, "cpu or cuda is needed", "choose one of these")
    written = Client(runs, registry).export(
        model, triton, name=name, version=version, device="cuda" if device == "cuda" else "cpu"
    )
    print(json.dumps({"path": str(written)}) if as_json else written)


def _tell(
    client: Client,
    decide: Callable[..., ModelVersion],
    model: str,
    reason: str,
    by: str | None,
    as_json: bool,
) -> None:
    before = client.model(model).state
    decided = decide(model, reason, by=by)
    if as_json:
        _print_json(client, decided, {})
    else:
        _print_decision(client, decided, before)


def _print_json(client: Client, version: ModelVersion, more: Mapping[str, Any]) -> None:
    history = client.registry.history(version.name, version.version)
    told = {**version.to_dict(), **more, "history": [one.to_dict() for one in history]}
    print(json.dumps(told, default=str))


def _print_decision(client: Client, version: ModelVersion, before: State) -> None:
    if version.state == before:
        unchanged = f"Nothing changed, and no reason was written down: it was {before} already."
        Terminal().print(unchanged, highlight=False, markup=False, soft_wrap=True)
    last = client.registry.history(version.name, version.version)[-1]
    why = f": {last.reason}" if last.reason else ""
    told = f"{version.reference} is {version.state} since {last.at:%Y-%m-%d %H:%M} UTC, by {last.by}{why}"
    Terminal().print(told, highlight=False, markup=False, soft_wrap=True)


def _read_score(path: Path, version: ModelVersion) -> Mapping[str, Any]:
    text = read_text_file("--testscore", path)
    try:
        score = json.loads(text)
    except ValueError:
        score = None
    seen = score.get("reference") if isinstance(score, dict) else None
    if not isinstance(score, dict) or seen != version.reference:
        raise UsageError(
            f"--testscore {path}",
            f"the score of {seen}" if seen else "no test score",
            f"that of {version.reference} is needed",
            f"mlflywheel testscore {version.reference} --json > {path}",
        )
    return score


def _read_dossier(version: ModelVersion) -> tuple[Mapping[str, Any] | None, str]:
    """Return a version's dossier, and why it could not be read: a decision does not hang on it."""
    from mlflywheel.registry.dossier import read_dossier

    try:
        return read_dossier(version), ""
    except MlflywheelError as error:
        return None, str(error)
