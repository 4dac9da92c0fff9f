"""The command line. Every command is a call of `mlflywheel.client.Client`; this module reads options and prints."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mlflywheel import __version__
from mlflywheel.client import Client
from mlflywheel.commands.doctor import run_doctor
from mlflywheel.commands.explain import explain
from mlflywheel.commands.models import models_app
from mlflywheel.commands.rebuild import rebuild
from mlflywheel.commands.rollout import rollout_app
from mlflywheel.commands.submit import follow, schedules_app, submit
from mlflywheel.commands.testscore import compute_testscore
from mlflywheel.console import (
    ProgressView,
    RequestView,
    Terminal,
    describe_experiment,
    print_error,
    print_run,
    print_search,
    print_server,
)
from mlflywheel.errors import MlflywheelError, UsageError
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
    Registry,
    Runs,
    Sets,
    Split,
    read_text_file,
)
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.runs.folder import DEFAULT_RUNS
from mlflywheel.runs.runner import terminated_as_interrupt
from mlflywheel.runs.search import Execution
from mlflywheel.runs.server import ServeOptions, ignore_event

EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From a table to a registered, served and monitored model, on a laptop and on Kubeflow.",
    epilog="Exit codes: 0 done; 1 failed or unreadable data; 2 wrong usage; 3 a gate said no; 130 interrupted.",
)
app.add_typer(models_app, name="models")
app.add_typer(rollout_app, name="rollout")
app.add_typer(schedules_app, name="schedules")


def main() -> None:
    """Run the command line; a user's mistake ends in one line and an exit code."""
    try:
        app()
    except MlflywheelError as error:
        print_error(Terminal(stderr=True), str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        # Whoever was interrupted may say what it leaves behind.
        told = str(interrupt.args[0]) if interrupt.args else "what was finished is kept"
        print_error(Terminal(stderr=True), f"interrupted; {told}")
        sys.exit(EXIT_INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mlflywheel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's name, or the path of compiled YAML.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Table to run on: path or URI of CSV, CSV.gz or Parquet. A sample if left out.",
            show_default=False,
        ),
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
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what kfp and the steps print.")] = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Run a pipeline's compiled YAML on this machine.

    \b
    mlflywheel run ad-campaigns
    mlflywheel run ad-campaigns --data terms.csv.gz --map vertical=industry --json
    mlflywheel run ad-campaigns --data ads.csv --map campaign_id=ad_id --map term=text --split-terms
    mlflywheel run ad-campaigns --param num_topics=40 --param text.bigrams=false --set holdout_fraction=0.1
    mlflywheel run vehicle-prices --data listings.csv --map power=hp --prepare mileage_unit=miles
    mlflywheel run vehicle-prices --set tune=true
    """
    arguments: dict[str, Any] = dict(read_assignment("--set", item) for item in sets or [])
    for name, path in (("gates", gates), ("plan", plan), ("expectations", expectations), ("experiment", experiment)):
        if path is not None:
            arguments[name] = read_text_file(f"--{name}", path)
    console = Terminal(stderr=True)
    client = Client(runs, registry)
    with ProgressView(console, quiet or verbose) as view:
        finished = client.run(
            pipeline,
            data,
            columns=_read_maps(maps),
            prepare=_read_prepare(prepares, split_terms),
            params=nest(read_assignments("--param", params or [])),
            arguments=arguments,
            on_event=view.show,
            on_output=(lambda line: print(line, file=sys.stderr)) if verbose else None,
        )
    if as_json:
        print(json.dumps(finished.summary, indent=1))
    else:
        print_run(Terminal(), finished.summary)
    if open_report:
        typer.launch(finished.report.as_uri())
    finished.raise_for_status()


@app.command()
def tune(
    target: Annotated[str, typer.Argument(help="A pipeline's name, or the path of a Katib Experiment.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="The pipeline's table, as for run. A sample if left out.", show_default=False),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor", help="Who runs the trials: local (this machine, the default) or katib.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Read the Experiment by Katib's rules and run nothing; with --executor, also its limits."
        ),
    ] = False,
    experiment: ExperimentFile = None,
    maps: Maps = None,
    split_terms: Split = False,
    prepares: Prepares = None,
    params: Params = None,
    sets: Sets = None,
    any_command: Annotated[
        bool, typer.Option("--any-command", help="Let local trials run other programs than this package.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin a local search anew.")] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The cluster's namespace.", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Context of the kubeconfig.", show_default=False)
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="Folder of an object store that trial pods read the rows from.", show_default=False
        ),
    ] = None,
    secret: Annotated[
        str,
        typer.Option(
            "--secret", help="Secret with that store's keys: NAME or NAME:ACCESS_KEY:SECRET_KEY.", show_default=False
        ),
    ] = "",
    timeout_minutes: Annotated[
        float | None,
        typer.Option("--timeout-minutes", min=0, help="How long to wait for the cluster.", show_default=False),
    ] = None,
    cleanup: Annotated[
        str, typer.Option("--cleanup", help="When to delete the cluster's Experiment: never, on_success or always.")
    ] = "never",
    runs: Runs = DEFAULT_RUNS,
    as_json: AsJson = False,
    quiet: Quiet = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Search for parameters with a Katib Experiment, on this machine or by a cluster's Katib.

    A search that was stopped goes on where it stands when the same command is given again.

    \b
    mlflywheel tune ad-campaigns
    mlflywheel tune ad-campaigns --data terms.csv.gz --map vertical=industry --json
    mlflywheel tune my-experiment.yaml --any-command
    mlflywheel tune my-experiment.yaml --check --executor katib
    mlflywheel tune ad-campaigns --executor katib -n team --storage s3://bucket/tuning --secret store-keys
    """
    arguments: dict[str, Any] = dict(read_assignment("--set", item) for item in sets or [])
    if experiment is not None:
        arguments["experiment"] = read_text_file("--experiment", experiment)
    execution = Execution(
        executor or "local",
        any_command=any_command,
        restart=restart,
        namespace=namespace,
        context=context,
        timeout_seconds=None if timeout_minutes is None else timeout_minutes * 60,
        cleanup=cleanup,
        storage=storage,
        secret=secret,
    )
    client = Client(runs)
    if check:
        read = client.check_experiment(target, None if executor is None else execution, arguments)
        facts = describe_experiment(read)
        print(json.dumps(facts) if as_json else f"{target}: no fault found; {', '.join(map(str, facts.values()))}")
        return
    with ProgressView(Terminal(stderr=True), quiet) as view:
        found = client.tune(
            target,
            data,
            columns=_read_maps(maps),
            prepare=_read_prepare(prepares, split_terms),
            params=nest(read_assignments("--param", params or [])),
            arguments=arguments,
            execution=execution,
            progress=view.progress,
        )
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_search(Terminal(), target, found)
    if open_report:
        typer.launch(Path(found.artifacts["report"]).as_uri())


@app.command(name="compile")
def compile_pipelines(
    pipeline: Annotated[
        str | None, typer.Argument(help="A pipeline's name; all if left out.", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if the YAML is out of date.")
    ] = False,
    objects: Annotated[
        Path | None,
        typer.Option(
            "--objects", help="Folder for Pipeline and PipelineVersion objects, to commit.", show_default=False
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Written into the objects.", show_default=False)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", help="The components' image in the objects: REPOSITORY@sha256:...", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile pipelines into the YAML that runs everywhere.

    \b
    mlflywheel compile
    mlflywheel compile ad-campaigns --check
    mlflywheel compile --objects pipelines-as-objects -n team --image registry.example/components@sha256:...
    """
    client = Client()
    if objects is None and (namespace or image):
        raise UsageError(
            "compile", "--namespace or --image without --objects", "they are for objects alone", "name a folder"
        )
    differing = client.compile(pipeline, check=check)
    written = [] if objects is None or check else client.describe(objects, pipeline, namespace=namespace, image=image)
    if as_json:
        paths = [str(path) for path in written]
        print(json.dumps({"check": check, "differing": [str(path) for path in differing], "objects": paths}))
    for path in differing if not as_json else []:
        print(f"{path}: {'out of date. Fix: mlflywheel compile' if check else 'written'}")
    for path in written if not as_json else []:
        print(f"{path}: written")
    if not differing and not as_json:
        print("every pipeline.yaml is up to date")
    if check and differing:
        raise typer.Exit(1)


@app.command()
def sample(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's name.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Target: .csv, .csv.gz or .parquet.", show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            "--campaigns",
            "--listings",
            min=1,
            help="How many: campaigns, listings. The pipeline's own number if left out.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed; the same seed writes the same rows.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Write a realistic sample of a pipeline's data.

    \b
    mlflywheel sample ad-campaigns
    mlflywheel sample vehicle-prices --output listings.parquet --size 500 --seed 1
    """
    found = find_pipeline(pipeline)
    count = found.sample_size if size is None else size
    path = Client().sample(pipeline, output or Path(f"{pipeline}.csv.gz"), count, seed=seed)
    print(json.dumps({"path": str(path), found.entities: count, "seed": seed}) if as_json else path)


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or a model folder.")],
    data: Annotated[str, typer.Option("--data", help="Table to score: path or URI of CSV, CSV.gz or Parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the scores go, Parquet.")] = Path(
        "scores.parquet"
    ),
    maps: Maps = None,
    split_terms: Split = False,
    prepares: Prepares = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a table with a registered model or a model folder.

    \b
    mlflywheel score ad-campaigns@1 --data new-terms.csv --output scores.parquet
    """
    with ProgressView(Terminal(stderr=True), quiet) as view:
        scores = Client(runs, registry).score(
            model,
            data,
            output=output,
            columns=_read_maps(maps),
            prepare=_read_prepare(prepares, split_terms),
            progress=view.progress,
        )
    version = scores["model_version"][0].as_py() if scores.num_rows else None
    if as_json:
        print(json.dumps({"path": str(output), "rows": scores.num_rows, "model_version": version}))
    else:
        print(f"{output}: {scores.num_rows:,} rows scored by {version}")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or a model folder.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of HTTP; 0 takes a free one.")] = 8080,
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", min=0, max=65535, help="Port of gRPC; 0 takes a free one.")
    ] = 8081,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. There is no authentication.")
    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no requests.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open a page to try it in a browser.")] = False,
) -> None:
    """Serve a model on this machine as KServe does on a cluster, until Ctrl-C.

    \b
    mlflywheel serve ad-campaigns
    mlflywheel serve ad-campaigns@1 --open
    mlflywheel serve path/to/model --port 0 --json
    """
    options = ServeOptions(host, port, grpc_port, workers, device)
    console = Terminal(stderr=True)
    watch = None if quiet or as_json else RequestView(console)
    code = 0
    with terminated_as_interrupt(), Client(runs, registry).serve(model, options, watch or ignore_event) as server:
        print_server(console, server, as_json)
        if open_page:
            typer.launch(f"{server.url}/try")
        # Ctrl-C is how a server is meant to be stopped.
        with suppress(KeyboardInterrupt):
            code = server.wait()
    if code:
        raise typer.Exit(code)


@app.command()
def lint(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|DIR|-", help="Rendered manifests; - reads standard input.", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what KServe refuses or ignores in manifests, and for what costs availability or money.

    \b
    kubectl kustomize . | mlflywheel lint -
    mlflywheel lint rendered/ --strict --json
    """
    from mlflywheel.lint import RULES, SEVERITIES, lint_paths

    if rules:
        listed = [{"rule": r.id, "severity": r.severity, "description": r.description} for r in RULES.values()]
        print(
            json.dumps(listed)
            if as_json
            else "\n".join("{rule:<32}{severity:<9}{description}".format(**r) for r in listed)
        )
        return
    if not paths:
        raise UsageError(
            "lint", "no file", "a file, a folder or - is needed", "kubectl kustomize . | mlflywheel lint -"
        )
    found = lint_paths(["-" if path == "-" else Path(path) for path in paths])
    counts = {severity: sum(finding.severity == severity for finding in found) for severity in SEVERITIES}
    if as_json:
        print(json.dumps({**counts, "findings": [finding.to_dict() for finding in found]}, indent=1))
    else:
        for finding in found:
            print(finding)
        print(", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items()))
    if counts["error"] or (strict and counts["warning"]):
        raise typer.Exit(1)


app.command("doctor")(run_doctor)
app.command()(explain)
app.command()(rebuild)
app.command()(submit)
app.command()(follow)
app.command("testscore")(compute_testscore)


def _read_maps(maps: list[str] | None) -> dict[str, str]:
    from mlflywheel.data.ingestion import parse_mapping

    return parse_mapping(maps or [])


def _read_prepare(prepares: list[str] | None, split_terms: bool) -> dict[str, Any]:
    values = nest(read_assignments("--prepare", prepares or []), "--prepare")
    return {**values, "split_terms": True} if split_terms else values
