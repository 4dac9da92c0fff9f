"""The commands below `mlflywheel rollout`: what `mlflywheel.Client.rollout` and the judge offer, as words to type."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.live import Live
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.console import ProgressView, Terminal, print_error
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import GateRefusedError, MlflywheelError, RolloutError, UsageError
from mlflywheel.models.parameters import nest, read_assignment, read_assignments
from mlflywheel.options import AsJson, Quiet, Registry, Runs, read_text_file
from mlflywheel.rollout_console import draw_record, draw_simulation, print_history, print_rehearsal
from mlflywheel.rollouts.interfaces import Candidate, Source, Target
from mlflywheel.rollouts.record import Record
from mlflywheel.rollouts.rollout import Rollout, seconds_to_next_tick
from mlflywheel.runs.folder import DEFAULT_RUNS
from mlflywheel.runs.runner import terminated_as_interrupt

if TYPE_CHECKING:
    from mlflywheel.cluster.rollouts import ServiceRollout
    from mlflywheel.registry import ModelRegistry

_EXIT_INTERRUPTED = 130

rollout_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Roll out a new version beside the one in use, and let evidence decide.",
    epilog="Exit codes: 0 moved on, or promoted; 1 failed, or stopped by somebody else's change; 2 wrong usage; "
    "3 rolled back, not approved, or refused in a rehearsal.",
)

Service = Annotated[str, typer.Argument(help="Name of the InferenceService.")]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Its namespace; the kubeconfig's own if left out.", show_default=False),
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.", show_default=False)]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="What it may cost and has to show, YAML.", show_default=False)
]
Why = Annotated[str, typer.Option("--why", help="The reason, for the history.", show_default=False)]
CandidateName = Annotated[
    str | None,
    typer.Option("--candidate", help="NAME@VERSION in the registry, or NAME for the newest.", show_default=False),
]
CandidateUri = Annotated[
    str | None,
    typer.Option("--uri", help="The candidate's address, where it is in no registry.", show_default=False),
]
ShortName = Annotated[
    str | None,
    typer.Option("--name", help="Short name of the candidate; v and its version if left out.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="A field of the predictor to change with it; repeatable.",
        show_default=False,
    ),
]  # fmt: skip
Prometheus = Annotated[
    str | None, typer.Option("--prometheus", help="Address of Prometheus, the evidence.", show_default=False)
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="Whose metrics: mlflywheel, kserve, knative, ...", show_default=False),
]
Queries = Annotated[
    list[str] | None,
    typer.Option("--query", metavar="NAME=SELECTOR", help="Another series for it; repeatable.", show_default=False),
]
Counters = Annotated[
    list[str] | None,
    typer.Option(
        "--counter",
        metavar="METRIC.events=SELECTOR",
        help="Series of a counter metric, and METRIC.total=SELECTOR; repeatable.",
        show_default=False,
    ),
]
Answers = Annotated[
    str | None, typer.Option("--answers", help="Table of who answered which request, for labels.", show_default=False)
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="Table of losses by request id, which may grow.", show_default=False)
]
EvidenceFile = Annotated[
    Path | None,
    typer.Option(
        "--evidence",
        help="Windows as JSON instead of Prometheus; - reads lines from standard input.",
        show_default=False,
    ),
]


@rollout_app.command()
def start(
    service: Service,
    candidate: CandidateName = None,
    uri: CandidateUri = None,
    name: ShortName = None,
    overrides: Overrides = None,
    policy: PolicyFile = None,
    prometheus: Prometheus = None,
    preset: Preset = None,
    queries: Queries = None,
    counters: Counters = None,
    evidence: EvidenceFile = None,
    answers: Answers = None,
    labels: Labels = None,
    namespace: Namespace = None,
    context: Context = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change first, and write nothing.")
    ] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Stay and move it on until it has ended.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Start the rollout of a candidate; `step` or `watch` move it on.

    \b
    mlflywheel rollout start ad-campaigns --candidate ad-campaigns@2 --prometheus http://prometheus.monitoring:9090
    mlflywheel rollout start ad-campaigns --candidate ad-campaigns@2 --policy rollout.yaml -n team --dry-run
    mlflywheel rollout start ad-campaigns --uri s3://models/ads/2 --name v2 --prometheus http://localhost:9090 --watch
    """
    if str(evidence) == "-" and not follow:
        raise UsageError(
            "--evidence -", "without --watch", "standard input ends with this process", "add --watch, or name a file"
        )
    source = _describe_source(prometheus, preset, queries, counters, evidence)
    source |= {name: value for name, value in (("answers", answers), ("labels", labels)) if value}
    rollout = _open(service, namespace, context, source)
    read = _read_policy(policy)
    chosen = _choose(Client(runs, registry), rollout, candidate, uri, name, overrides, read)
    if dry_run:
        _print_dry_run(rollout, chosen, read, as_json)
        return
    with _giving_lock_back(rollout, "status", "says whether it was started"):
        record = rollout.start(chosen, read, source)
    # Not before: what is refused needs no evidence.
    _check_source(rollout.source)
    if not source:
        _warn("no source of evidence: the rollout waits for its deadline. Fix: add --prometheus URL")
    if follow:
        _follow(rollout, as_json, quiet, _find_registry(runs, registry))
        return
    _print_record(record, as_json)


@rollout_app.command()
def step(
    service: Service,
    namespace: Namespace = None,
    context: Context = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Do one tick: a few changes at the most, and no waiting. Safe to repeat, and to kill at any moment.

    Nothing is done where there is no rollout, or where it has ended, so that a CronJob may go on calling it.

    \b
    mlflywheel rollout step ad-campaigns -n team --json
    """
    rollout = _open(service, namespace, context)
    before = rollout.store.load()
    if before is None:
        _print_nothing(rollout.service, as_json)
        return
    with _giving_lock_back(rollout, "step", "goes on with it"):
        record = rollout.step()
    _print_record(record, as_json)
    if not before.has_ended:
        _tell_registry(_find_registry(runs, registry), record)
        _raise_end(record)


@rollout_app.command()
def watch(
    service: Service,
    namespace: Namespace = None,
    context: Context = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Move a rollout on until it has ended, and show weights and evidence meanwhile.

    With --json, one line for every tick. Ctrl-C leaves the rollout as it stands; the same command goes on with it. The
    registry is told how it ended, also if it had ended before and the registry does not know.

    \b
    mlflywheel rollout watch ad-campaigns -n team
    """
    _follow(_open(service, namespace, context), as_json, quiet, _find_registry(runs, registry))


@rollout_app.command()
def status(service: Service, namespace: Namespace = None, context: Context = None, as_json: AsJson = False) -> None:
    """Show how a rollout stands. Changes nothing.

    \b
    mlflywheel rollout status ad-campaigns -n team --json
    """
    record = _open(service, namespace, context).status()
    if as_json:
        print(json.dumps(record.to_dict(), indent=1))
    else:
        Terminal().print(draw_record(record))


@rollout_app.command()
def promote(
    service: Service, why: Why = "", namespace: Namespace = None, context: Context = None, as_json: AsJson = False
) -> None:
    """Make the candidate the version in use, whatever the evidence says. `step` or `watch` carry it out.

    \b
    mlflywheel rollout promote ad-campaigns --why "fixes an incident"
    """
    rollout = _open(service, namespace, context)
    with _giving_lock_back(rollout, "status", "says whether it was ordered"):
        record = rollout.promote(why)
    _print_record(record, as_json)


@rollout_app.command()
def rollback(
    service: Service, why: Why = "", namespace: Namespace = None, context: Context = None, as_json: AsJson = False
) -> None:
    """Give all traffic back to the version in use. `step` or `watch` carry it out.

    \b
    mlflywheel rollout rollback ad-campaigns --why "customers complain"
    """
    rollout = _open(service, namespace, context)
    with _giving_lock_back(rollout, "status", "says whether it was ordered"):
        record = rollout.roll_back(why)
    _print_record(record, as_json)


@rollout_app.command()
def pause(
    service: Service,
    why: Why = "",
    resume: Annotated[bool, typer.Option("--resume", help="End the pause.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Stay at the present weight. Evidence is still read, and harm still rolls back.

    \b
    mlflywheel rollout pause ad-campaigns --why "holidays"
    mlflywheel rollout pause ad-campaigns --resume
    """
    rollout = _open(service, namespace, context)
    with _giving_lock_back(rollout, "status", "says whether it was ordered"):
        record = rollout.resume(why) if resume else rollout.pause(why)
    _print_record(record, as_json)


@rollout_app.command()
def history(service: Service, namespace: Namespace = None, context: Context = None, as_json: AsJson = False) -> None:
    """Show who did what when and why, with the judge's evidence.

    \b
    mlflywheel rollout history ad-campaigns -n team --json
    """
    record = _open(service, namespace, context).status()
    if as_json:
        values = record.to_dict()
        print(json.dumps({name: values[name] for name in ("service", "id", "history", "previous")}, indent=1))
    else:
        print_history(Terminal(), record)


@rollout_app.command()
def render(
    service: Service,
    candidate: CandidateName = None,
    uri: CandidateUri = None,
    name: ShortName = None,
    overrides: Overrides = None,
    policy: PolicyFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder, a file for each step.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Print the manifests of each step, to be committed where a GitOps tool applies them. Changes nothing.

    \b
    mlflywheel rollout render ad-campaigns --candidate ad-campaigns@2 --policy rollout.yaml --output steps/
    """
    rollout = _open(service, namespace, context)
    read = _read_policy(policy)
    chosen = _choose(Client(runs, registry), rollout, candidate, uri, name, overrides, read)
    memo = rollout.actuator.begin(chosen)
    targets = [Target("weight", float(percent)) for percent in read.steps] + [Target("promoted")]
    rendered = [(target, list(rollout.actuator.render(chosen, target, memo))) for target in targets]
    if as_json:
        print(json.dumps([{"target": str(target), "manifests": manifests} for target, manifests in rendered], indent=1))
        return
    for number, (target, manifests) in enumerate(rendered, start=1):
        text = "---\n".join(yaml.safe_dump(dict(manifest), sort_keys=False) for manifest in manifests)
        if output is None:
            print(f"---\n# {number}: {target}\n{text}", end="")
            continue
        output.mkdir(parents=True, exist_ok=True)
        share = f"{target.traffic_percent:g}-percent" if target.kind == "weight" else target.kind
        path = output / f"{number:02}-{share}.yaml"
        path.write_text(f"# {target}\n{text}", encoding="utf-8")
        print(path)


@rollout_app.command()
def simulate(
    policy: PolicyFile = None,
    scenarios: Annotated[
        list[str] | None,
        typer.Option("--scenario", help="Names, separated by commas; all of them if left out.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--runs", min=1, help="Simulated rollouts of each scenario.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same numbers.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--traffic", metavar="NAME=VALUE", help="Such as requests_per_second=50; repeatable.", show_default=False
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the scenarios and exit.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Simulate what a policy does: how often it promotes and rolls back, and how many requests that exposes.

    \b
    mlflywheel rollout simulate
    mlflywheel rollout simulate --policy rollout.yaml --scenario aa,error-x2 --runs 1000 --seed 7 --json
    mlflywheel rollout simulate --scenario aa,error-x3 --traffic requests_per_second=50 --traffic error_rate=0.002
    """
    from mlflywheel.decisions.canary.simulation import SCENARIOS, Traffic, results_to_dict
    from mlflywheel.decisions.canary.simulation import simulate as run_simulation

    if listed:
        told = {name: scenario.description for name, scenario in SCENARIOS.items()}
        print(json.dumps(told) if as_json else "\n".join(f"{name:<20}{text}" for name, text in told.items()))
        return
    names = [name for one in scenarios or [] for name in one.split(",") if name] or list(SCENARIOS)
    traffic = _make_traffic(Traffic, settings)
    read = _read_policy(policy)
    with ProgressView(Terminal(stderr=True), quiet) as view:
        results = run_simulation(read, names, count, seed, traffic, progress=view.progress)
    result = results_to_dict(read, results, seed, traffic)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        Terminal().print(draw_simulation(result))


@rollout_app.command()
def rehearse(
    stable: Annotated[str, typer.Option("--stable", help="The version in use: NAME, NAME@VERSION or a folder.")],
    candidate: Annotated[str, typer.Option("--candidate", help="The version to be judged, named alike.")],
    requests: Annotated[str, typer.Option("--requests", help="Recorded requests, JSON lines; path or URI.")],
    policy: PolicyFile = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Losses by request id; path or URI.", show_default=False)
    ] = None,
    undecided: Annotated[str, typer.Option("--undecided", help="What no decision means: pass or refuse.")] = "pass",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Without servers: faster to start, and leaves HTTP out.")
    ] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=64, help="Requests at the same time.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order in which the versions are asked.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report.", show_default=False)
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Send recorded requests to both versions on this machine, and let the same judge say what it would say.

    Exit code 3 refuses the candidate, before it gets any traffic.

    \b
    mlflywheel rollout rehearse --stable ad-campaigns@1 --candidate ad-campaigns@2 --requests requests.jsonl
    mlflywheel rollout rehearse --stable old/ --candidate new/ --requests s3://logs/day.jsonl.gz --undecided refuse
    """
    if undecided not in ("pass", "refuse"):
        raise UsageError("--undecided", undecided, "pass or refuse is needed", "choose one of these")
    with ProgressView(Terminal(stderr=True), quiet) as view:
        done = Client(runs, registry).rehearse(
            stable,
            candidate,
            requests,
            policy=_read_policy(policy),
            labels=labels,
            undecided="refuse" if undecided == "refuse" else "pass",
            in_process=in_process,
            concurrency=concurrency,
            seed=seed,
            folder=output,
            progress=view.progress,
        )
    if as_json:
        print(json.dumps(done.to_dict(), indent=1))
    else:
        print_rehearsal(Terminal(), done)
    if open_report:
        typer.launch(done.report_path.as_uri())
    done.raise_for_status()


@rollout_app.command()
def plan(
    policy: PolicyFile = None,
    rate: Annotated[float, typer.Option("--requests-per-second", min=0, help="Of both versions together.")] = 10.0,
    error_rate: Annotated[float, typer.Option("--error-rate", min=0, max=1, help="Of the version in use.")] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Say how many requests and minutes a policy needs with your traffic.

    \b
    mlflywheel rollout plan --requests-per-second 50 --error-rate 0.002
    mlflywheel rollout plan --policy rollout.yaml --json
    """
    from mlflywheel.decisions.canary.planning import plan as make_plan

    made = make_plan(_read_policy(policy), rate, stable_error_rate=error_rate)
    if as_json:
        print(json.dumps(made.to_dict(), indent=1))
    else:
        print(made.describe())


def _open(
    service: str, namespace: str | None, context: str | None, source: Mapping[str, Any] | None = None
) -> "ServiceRollout":
    console = Terminal(stderr=True)
    return Client().rollout(
        service,
        namespace=namespace,
        context=context,
        source=source,
        told=lambda line: console.print(line, highlight=False, markup=False),
    )


def _describe_source(
    prometheus: str | None,
    preset: str | None,
    queries: list[str] | None,
    counters: list[str] | None,
    evidence: Path | None,
) -> dict[str, Any]:
    if prometheus is not None and evidence is not None:
        raise UsageError("--evidence", "beside --prometheus", "one source is needed", "leave one out")
    if prometheus is None and (preset or queries):
        raise UsageError(
            "--preset and --query", "without --prometheus", "its address is needed", "add --prometheus URL"
        )
    if evidence is not None:
        return {"kind": "file", "path": "-" if str(evidence) == "-" else str(evidence.absolute())}
    if prometheus is None:
        return {}
    source: dict[str, Any] = {"kind": "prometheus", "address": prometheus}
    if preset:
        source["preset"] = preset
    if queries:
        source["queries"] = dict(read_assignment("--query", item) for item in queries)
    if counters:
        source["counters"] = nest(dict(read_assignment("--counter", item) for item in counters), "--counter")
    return source


def _check_source(source: Source) -> None:
    """Say what evidence there is, or warn: a server that is down now may be up when it is needed."""
    check = getattr(source, "check", None)
    if check is None:
        return
    try:
        Terminal(stderr=True).print(f"evidence: {check()}", highlight=False, markup=False, soft_wrap=True)
    except MlflywheelError as error:
        _warn(str(error))


def _choose(
    client: Client,
    rollout: "ServiceRollout",
    candidate: str | None,
    uri: str | None,
    name: str | None,
    overrides: list[str] | None,
    policy: Policy,
) -> Candidate:
    if (candidate is None) == (uri is None):
        raise UsageError(
            "rollout start",
            "--candidate and --uri" if candidate else "neither --candidate nor --uri",
            "one of them says what to roll out",
            "add --candidate NAME@VERSION" if candidate is None else "leave one out",
        )
    changes = nest(read_assignments("--set", overrides or []), "--set")
    if uri is not None:
        if name is None:
            raise UsageError("--name", "nothing", "a short name is needed with --uri", "add --name v2")
        return Candidate(uri, name, "", changes)
    return client.candidate(str(candidate), name=name, overrides=changes, service=rollout, policy=policy)


def _find_registry(runs: Path, registry: str | None) -> "ModelRegistry | None":
    """Return the registry that is named, or that lies beside the runs; None where there is none."""
    if registry or os.environ.get("MLFLYWHEEL_REGISTRY") or (runs / "registry.sqlite").exists():
        return Client(runs, registry).registry
    return None


def _tell_registry(registry: "ModelRegistry | None", record: Record) -> None:
    """Write how a rollout ended into the registry; what cannot be written is a warning, and undoes nothing."""
    from mlflywheel.cluster.deployment import tell_registry

    if not record.candidate.model or record.phase not in ("promoted", "rolled_back"):
        return
    if registry is None:
        namespace, _, name = record.service.rpartition("/")
        again = f"mlflywheel rollout watch {name} -n {namespace} --registry ADDRESS"
        ended = record.phase.replace("_", " ")
        _warn(f"no registry was named, so none says that {record.candidate.model} is {ended}. Fix: {again}")
        return
    changes, warning = tell_registry(registry, record)
    for change in changes:
        Terminal(stderr=True).print(f"registry: {change}", highlight=False, markup=False, soft_wrap=True)
    if warning:
        _warn(warning)


def _read_policy(path: Path | None) -> Policy:
    return Policy() if path is None else read_policy(read_text_file("--policy", path), str(path))


def _make_traffic(kind: Any, settings: list[str] | None) -> Any:
    values = read_assignments("--traffic", settings or [])
    known = kind.__dataclass_fields__
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"--traffic {name}", "not known", f"there is {', '.join(known)}", "choose one of these")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"--traffic {name}", repr(value), "a number is needed", f"write {name}=10")
    return kind(**values)


def _print_dry_run(rollout: Rollout, candidate: Candidate, policy: Policy, as_json: bool) -> None:
    memo = rollout.actuator.begin(candidate)
    target = Target("weight", float(policy.steps[0]))
    before = list(rollout.actuator.render(candidate, Target("rolled_back"), memo))
    after = list(rollout.actuator.render(candidate, target, memo))
    if as_json:
        print(json.dumps({"target": str(target), "before": before, "after": after}, indent=1))
        return
    old, new = (
        "---\n".join(yaml.safe_dump(dict(manifest), sort_keys=False) for manifest in manifests).splitlines()
        for manifests in (before, after)
    )
    for line in unified_diff(old, new, "now", str(target), lineterm=""):
        print(line)


@contextmanager
def _giving_lock_back(rollout: Rollout, command: str, does: str) -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that nobody has to wait until the lock runs out, and say what next.

    Typer would end without a word.
    """
    try:
        with terminated_as_interrupt():
            yield
    except KeyboardInterrupt:
        namespace, _, name = rollout.service.rpartition("/")
        again = f"`mlflywheel rollout {command} {name} -n {namespace}` {does}"
        print_error(Terminal(stderr=True), f"interrupted; the rollout stays as it stands: {again}")
        raise typer.Exit(_EXIT_INTERRUPTED) from None


def _follow(rollout: Rollout, as_json: bool, quiet: bool, registry: "ModelRegistry | None") -> None:
    with _giving_lock_back(rollout, "watch", "goes on with it"):
        record = _watch(rollout, as_json, quiet)
    if record is not None:
        _tell_registry(registry, record)
        _raise_end(record)


def _watch(rollout: Rollout, as_json: bool, quiet: bool) -> Record | None:
    console = Terminal(stderr=as_json)
    record = None
    if as_json or quiet or not console.is_terminal:
        shown = ""
        for record in rollout.watch():
            line = f"{record.phase.replace('_', ' ')} at {record.traffic_percent:g} %: {record.message}"
            if as_json:
                print(json.dumps(_shorten(record)), flush=True)
            elif line != shown and not quiet:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
                shown = line
    else:
        with Live(console=console, refresh_per_second=2) as live, suppress(StopIteration):
            ticks = rollout.watch(_wait_in_view(live, rollout))
            while True:
                record = next(ticks)
                live.update(draw_record(record))
    return record


def _wait_in_view(live: Live, rollout: Rollout) -> Any:
    def wait(seconds: float) -> None:
        """Sleep, and keep the clock of the view going."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
            live.refresh()

    return wait


def _raise_end(record: Record) -> None:
    if record.phase == "rolled_back":
        raise GateRefusedError(
            f"rollout of {record.service}",
            f"{record.candidate.model or record.candidate.storage_uri} was rolled back: {record.message}",
            "the candidate has to be as good as its policy says",
            "see `mlflywheel rollout history` for the evidence",
        )
    if record.phase == "stopped":
        raise RolloutError(
            f"rollout of {record.service}",
            f"stopped: {record.message}",
            "nobody else may change the service meanwhile",
            "put the service in order, and start the rollout again",
        )


def _shorten(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "service": record.service,
        "candidate": record.candidate.model or record.candidate.storage_uri,
        "phase": record.phase,
        "step": record.step,
        "traffic_percent": record.traffic_percent,
        "paused": record.paused,
        "message": record.message,
        "verdict": dict(record.verdict) or None,
        "next_tick_seconds": None if record.has_ended else seconds_to_next_tick(record, time.time()),
    }


def _print_nothing(service: str, as_json: bool) -> None:
    print(json.dumps({"service": service, "phase": None}) if as_json else f"{service}: no rollout, nothing to do")


def _print_record(record: Record, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_shorten(record), indent=1))
    else:
        Terminal().print(draw_record(record))


def _warn(text: str) -> None:
    Terminal(stderr=True).print(Text("warning: ", "yellow") + Text(text), soft_wrap=True)
