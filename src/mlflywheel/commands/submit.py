"""The commands `mlflywheel submit`, `follow` and `schedules`: Kubeflow Pipelines on a cluster, as words to type."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import ProgressView, Terminal, print_error
from mlflywheel.errors import UsageError
from mlflywheel.models.parameters import nest, read_assignment, read_assignments
from mlflywheel.options import (
    AsJson,
    ExpectationsFile,
    ExperimentFile,
    GatesFile,
    Maps,
    Params,
    PlanFile,
    Prepares,
    Quiet,
    Sets,
    Split,
    read_text_file,
)
from mlflywheel.runs.runner import terminated_as_interrupt

if TYPE_CHECKING:
    from mlflywheel.cluster.pipeline_runs import SubmittedRun
    from mlflywheel.cluster.pipelines_access import Access
    from mlflywheel.cluster.pipelines_records import Schedule, Upload

_EXIT_INTERRUPTED = 130
_COLOURS = {"succeeded": "green", "failed": "red", "gate_refused": "yellow", "canceled": "red"}

Host = Annotated[
    str | None,
    typer.Option(
        "--host", help="URL of Kubeflow Pipelines; the variable KF_PIPELINES_ENDPOINT if left out.", show_default=False
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Yours, on an installation for several users.", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="Context of the kubeconfig, to go through that cluster.", show_default=False),
]
KubeflowNamespace = Annotated[
    str, typer.Option("--kubeflow-namespace", help="Where Kubeflow Pipelines is installed; not needed with --host.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with a bearer token; the variable KF_PIPELINES_SA_TOKEN_PATH names one too.",
        show_default=False,
    ),
]
CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificates to trust for --host, PEM.", show_default=False)
]
TimeoutMinutes = Annotated[
    float | None,
    typer.Option("--timeout-minutes", min=0, help="How long to watch; the run goes on.", show_default=False),
]

schedules_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Schedules on Kubeflow Pipelines; `submit --cron` makes them."
)


def submit(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's name, or the path of compiled YAML.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="URI of the table, such as s3://bucket/terms.csv.gz.", show_default=False),
    ] = None,
    maps: Maps = None,
    split_terms: Split = False,
    prepares: Prepares = None,
    params: Params = None,
    sets: Sets = None,
    gates: GatesFile = None,
    plan: PlanFile = None,
    experiment: ExperimentFile = None,
    expectations: ExpectationsFile = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="What the steps run in, REPOSITORY@sha256:...; replaces ours everywhere.",
            show_default=False,
        ),
    ] = None,
    version_name: Annotated[
        str | None,
        typer.Option("--version-name", help="Name of the version; from its content if left out.", show_default=False),
    ] = None,
    experiment_name: Annotated[
        str, typer.Option("--experiment-name", help="Kubeflow's experiment that runs belong to.")
    ] = "Default",
    run_name: Annotated[
        str | None,
        typer.Option("--run-name", help="Name of the run; pipeline and time if left out.", show_default=False),
    ] = None,
    service_account: Annotated[
        str, typer.Option("--service-account", help="Service account of the run's pods.", show_default=False)
    ] = "",
    pipeline_root: Annotated[
        str, typer.Option("--pipeline-root", help="URI of the folder for artifacts.", show_default=False)
    ] = "",
    upload_only: Annotated[bool, typer.Option("--upload-only", help="Store the pipeline, and start nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the run until it ends.")] = True,
    timeout_minutes: TimeoutMinutes = None,
    cron: Annotated[
        str | None,
        typer.Option("--cron", help='Start by itself, six fields: "0 0 6 * * *" is at six.', show_default=False),
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Start by itself, every 24h, 90m or 7d.", show_default=False)
    ] = None,
    schedule_name: Annotated[
        str, typer.Option("--schedule-name", help="Its name; the pipeline's if left out.", show_default=False)
    ] = "",
    max_concurrency: Annotated[
        int, typer.Option("--max-concurrency", min=1, max=10, help="Runs of a schedule at once.")
    ] = 1,
    no_catchup: Annotated[bool, typer.Option("--no-catchup", help="Leave out starts that were missed.")] = False,
    accept_losses: Annotated[
        bool, typer.Option("--accept-losses", help="Go on although the server does not know all settings.")
    ] = False,
    host: Host = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Upload a pipeline to Kubeflow Pipelines, and run it there, once or by a schedule.

    Nothing is sent before the settings are checked. Uploading the same content again gives the same version. Exit
    codes: 0 succeeded, 1 failed, 2 wrong usage, 3 a gate said no, 130 interrupted, and the run goes on.

    \b
    mlflywheel submit ad-campaigns --data s3://bucket/terms.csv.gz --host https://kubeflow.example/pipeline
    mlflywheel submit ad-campaigns --data s3://bucket/terms.csv.gz --context production --no-wait --json
    mlflywheel submit vehicle-prices --upload-only --image registry.example/components@sha256:...
    mlflywheel submit ad-campaigns --data s3://bucket/terms.csv.gz --cron "0 0 6 * * *" --no-catchup
    """
    from mlflywheel.cluster.pipelines_records import RunSettings, Timing, read_interval

    access = _read_access(host, namespace, context, kubeflow_namespace, token_file, ca_file)
    client, told = Client(), _Teller(quiet)
    if upload_only:
        if cron or every:
            raise UsageError("--upload-only", "given with a schedule", "one of them is meant", "leave one out")
        uploaded = client.upload(
            pipeline, image=image, version=version_name, accept_losses=accept_losses, server=access, told=told
        )
        _print_result(as_json, {"upload": uploaded.to_dict()}, _describe_upload(uploaded))
        return
    arguments: dict[str, Any] = dict(read_assignment("--set", item) for item in sets or [])
    for name, path in (("gates", gates), ("plan", plan), ("expectations", expectations), ("experiment", experiment)):
        if path is not None:
            arguments[name] = read_text_file(f"--{name}", path)
    request: dict[str, Any] = {
        "columns": _read_maps(maps),
        "prepare": _read_prepare(prepares, split_terms),
        "params": nest(read_assignments("--param", params or [])),
        "arguments": arguments,
        "settings": RunSettings(experiment_name, service_account, pipeline_root, run_name or ""),
        "image": image,
        "version": version_name,
        "accept_losses": accept_losses,
        "server": access,
        "told": told,
    }
    if cron is not None or every is not None:
        timing = Timing(
            cron, None if every is None else read_interval(every), schedule_name, max_concurrency, no_catchup
        )
        schedule = client.schedule(pipeline, timing, data, **request)
        _print_result(as_json, {"schedule": schedule.to_dict()}, _describe_schedule(schedule))
        return
    uploads: list[Upload] = []

    def show(event: Mapping[str, Any]) -> None:
        if event["event"] == "submitted":
            uploads.append(event["upload"])
            for line in (_describe_upload(event["upload"]), _describe_start(event["run"])):
                told(line)
        else:
            view.show(event)

    with _watching(told.console, quiet) as view:
        run = client.submit(
            pipeline, data, wait=wait, timeout_seconds=_seconds(timeout_minutes), on_event=show, **request
        )
    _finish(run, as_json, {"upload": uploads[0].to_dict()} if uploads else {})


def follow(
    run_id: Annotated[str, typer.Argument(help="Number of the run, as submit printed it.")],
    timeout_minutes: TimeoutMinutes = None,
    host: Host = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Watch a run on Kubeflow Pipelines until it ends; exit codes as those of submit.

    \b
    mlflywheel follow 5f0c3a1e-9d57-4c59-8c0c-2f4a3d4b6c10 --context production
    mlflywheel follow 5f0c3a1e-9d57-4c59-8c0c-2f4a3d4b6c10 --timeout-minutes 0 --json
    """
    access = _read_access(host, namespace, context, kubeflow_namespace, token_file, ca_file)
    told = _Teller(quiet)
    with _watching(told.console, quiet) as view:
        run = Client().follow(
            run_id, timeout_seconds=_seconds(timeout_minutes), on_event=view.show, server=access, told=told
        )
    _finish(run, as_json, {})


@schedules_app.command(name="list")
def list_schedules(
    host: Host = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """List the schedules on Kubeflow Pipelines.

    \b
    mlflywheel schedules list --context production
    """
    access = _read_access(host, namespace, context, kubeflow_namespace, token_file, ca_file)
    found = Client().schedules(server=access)
    if as_json:
        print(json.dumps([schedule.to_dict() for schedule in found], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("schedule", "when", "state", "made by", "id"):
        # A number that was cut off could not be copied.
        table.add_column(column, no_wrap=column == "id", min_width=36 if column == "id" else None)
    for one in found:
        state = "enabled" if one.is_enabled else "disabled"
        maker = "mlflywheel" if one.fingerprint else "another program"
        table.add_row(*(Text(text) for text in (one.name, one.when, state, maker, one.schedule_id)))
    Terminal().print(table if found else "no schedule")


@schedules_app.command(name="delete")
def delete_schedule(
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    host: Host = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeflow_namespace: KubeflowNamespace = "kubeflow",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete the schedules of a name; the runs that they started stay.

    \b
    mlflywheel schedules delete ad-campaigns --context production
    """
    access = _read_access(host, namespace, context, kubeflow_namespace, token_file, ca_file)
    deleted = Client().delete_schedule(name, server=access)
    told = "\n".join(f"deleted {one.name} ({one.when}) {one.schedule_id}" for one in deleted)
    _print_result(as_json, {"deleted": [one.to_dict() for one in deleted]}, told)


class _Teller:
    """Prints lines on standard error, so that standard output holds the result alone."""

    def __init__(self, quiet: bool) -> None:
        self.console = Terminal(stderr=True)
        self._quiet = quiet

    def __call__(self, line: str) -> None:
        if not self._quiet or line.startswith("warning"):
            self.console.print(Text(line), soft_wrap=True)


def _read_access(
    host: str | None,
    namespace: str | None,
    context: str | None,
    kubeflow_namespace: str,
    token_file: Path | None,
    ca_file: Path | None,
) -> "Access":
    from mlflywheel.cluster.pipelines_access import Access

    return Access(host, context, namespace, kubeflow_namespace, token_file, ca_file)


def _read_maps(maps: list[str] | None) -> dict[str, str]:
    from mlflywheel.data.ingestion import parse_mapping

    return parse_mapping(maps or [])


def _read_prepare(prepares: list[str] | None, split_terms: bool) -> dict[str, Any]:
    values = nest(read_assignments("--prepare", prepares or []), "--prepare")
    return {**values, "split_terms": True} if split_terms else values


@contextmanager
def _watching(console: Console, quiet: bool) -> Iterator[ProgressView]:
    """Draw progress; an interruption says how to go on, which typer would swallow."""
    try:
        with terminated_as_interrupt(), ProgressView(console, quiet) as view:
            yield view
    except KeyboardInterrupt as interrupt:
        told = str(interrupt.args[0]) if interrupt.args else "whether a run was started, its page tells"
        print_error(console, f"interrupted; {told}")
        raise typer.Exit(_EXIT_INTERRUPTED) from None


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else minutes * 60


def _finish(run: "SubmittedRun", as_json: bool, beside: Mapping[str, Any]) -> None:
    """Print a run, and end with what ended it."""
    if as_json:
        print(json.dumps({**beside, "run": run.to_dict()}, indent=1))
    else:
        _print_run(Terminal(), run)
    run.raise_for_status()


def _print_run(console: Console, run: "SubmittedRun") -> None:
    for line in run.log:
        console.print(Text("  " + line, "dim"), soft_wrap=True)
    took = Text(f"  step {run.failed_task}" if run.failed_task else "")
    console.print(Text(run.state.replace("_", " "), _COLOURS.get(run.state, "bold")) + took)
    for name, value in (("run", run.run_id), ("page", run.link), ("artifacts", run.artifacts)):
        if value:
            console.print(Text(f"{name:<13}{value}"), soft_wrap=True)
    if not run.has_ended:
        console.print(Text(f"{'follow it':<13}mlflywheel follow {run.run_id}"), soft_wrap=True)


def _print_result(as_json: bool, result: Mapping[str, Any], told: str) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        Terminal().print(Text(told), soft_wrap=True)


def _describe_upload(upload: "Upload") -> str:
    told = "uploaded" if upload.is_new else "there already"
    return f"{upload.pipeline}: version {upload.version} {told}" + (f"  {upload.link}" if upload.link else "")


def _describe_start(run: "SubmittedRun") -> str:
    return f"run {run.run_id} started" + (f"  {run.link}" if run.link else "")


def _describe_schedule(schedule: "Schedule") -> str:
    told = f"schedule {schedule.name} {schedule.outcome}: {schedule.when}"
    return told + (f"  {schedule.link}" if schedule.link else "")
