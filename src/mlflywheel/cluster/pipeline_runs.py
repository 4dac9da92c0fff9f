"""Watch a run of Kubeflow Pipelines, and say how its steps went and why one failed."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from mlflywheel.cluster.pipelines_api import NotFoundError, PipelinesApi
from mlflywheel.errors import GateRefusedError, MlflywheelError, RunError, error_from_dict

if TYPE_CHECKING:
    from mlflywheel.cluster.kubernetes_client import Connection

#: Called with `{"event": "started" | "finished" | "failed", "step": NAME, "seconds": ...}`.
EventCallback = Callable[[Mapping[str, Any]], None]
ReadLog = Callable[[str, str], str | None]
#: The component that fails where a gate said no: the API says which step failed, and not with what exit code.
REFUSING_COMPONENT = "comp-refuse-model"

_ENDED = ("succeeded", "failed", "canceled", "skipped")
#: The first pause between two looks at a run, and what it grows to.
POLL_SECONDS = (0.5, 5.0)
_LOG_LINES = 30
_LAST_LOOKS = 3
_LARGEST_TASKS_ASKED = 12
# As the server names a pod of a step, with and without retries: WORKFLOW-TEMPLATE-NUMBER.
_POD_TEMPLATES = ("system-container-impl", "retry-system-container-impl")
_FAILED_EVENT = re.compile(r"\bfailed (\{.*\})\s*$")
# 1970 is how the API writes a time that is yet to come.
_NEVER = datetime(1971, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TaskState:
    """A step of a run.

    Args:
        name: Its name in the pipeline.
        state: `pending`, `running`, `succeeded`, `failed`, `skipped` or `canceled`.
        seconds: How long it took, or has taken so far; None if it has not begun.
    """

    name: str
    state: str
    seconds: float | None


@dataclass(frozen=True)
class SubmittedRun:
    """A run on a cluster, as it was when it was last looked at.

    Args:
        run_id: Its number; `mlflywheel follow` takes it.
        name: Its name.
        pipeline: The pipeline's name; empty if it was not asked for.
        state: `pending`, `running`, `paused`, `canceling`, `succeeded`, `failed`, `gate_refused` or `canceled`.
        tasks: Its steps in the order of their start.
        link: Its page; None if the user interface's address is not known.
        artifacts: The folder of its artifacts; None if the server chose it.
        failed_task: The step that failed first.
        log: The last lines of that step.
        error: What ended the run; None if nothing did.
    """

    run_id: str
    name: str
    pipeline: str
    state: str
    tasks: tuple[TaskState, ...] = ()
    link: str | None = None
    artifacts: str | None = None
    failed_task: str | None = None
    log: tuple[str, ...] = ()
    error: MlflywheelError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in (*_ENDED, "gate_refused")

    def to_dict(self) -> dict[str, Any]:
        """Return the parts as JSON values."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "error"}
        parts |= {"tasks": [asdict(task) for task in self.tasks], "log": list(self.log)}
        return {**parts, "error": None if self.error is None else self.error.to_dict()}

    def raise_for_status(self) -> "SubmittedRun":
        """Raise what ended the run, if something did; return the run otherwise."""
        if self.error is not None:
            raise self.error
        return self

    def _repr_html_(self) -> str:
        """Show state, steps and the way to the page in a notebook."""
        rows = "".join(
            f"<tr><td>{escape(task.name)}</td><td>{task.state}</td>"
            f"<td>{'' if task.seconds is None else f'{task.seconds:.0f} s'}</td></tr>"
            for task in self.tasks
        )
        link = "" if self.link is None else f'<p><a href="{escape(self.link)}">{escape(self.link)}</a></p>'
        problem = "" if self.error is None else f"<p>{escape(str(self.error))}</p>"
        log = f"<pre>{escape(chr(10).join(self.log))}</pre>" if self.log else ""
        return f"<b>{escape(self.name)}</b> {escape(self.state)}{problem}<table>{rows}</table>{log}{link}"


def read_run(
    found: Mapping[str, Any], ui: str | None, *, pipeline: str = "", steps: Iterable[str] | None = None
) -> SubmittedRun:
    """Read the API's description of a run.

    Args:
        found: The description.
        ui: What links are put behind; None if nobody could open them.
        pipeline: The pipeline's name.
        steps: Names of the steps that run something; None leaves out the server's own ones as far as known by name.
    """
    run_id = str(found["run_id"])
    root = str((found.get("runtime_config") or {}).get("pipeline_root") or "")
    return SubmittedRun(
        run_id,
        str(found.get("display_name") or ""),
        pipeline,
        str(found.get("state") or "pending").lower(),
        tuple(_read_tasks(found, None if steps is None else set(steps))),
        None if ui is None else f"{ui}/#/runs/details/{run_id}",
        f"{root.rstrip('/')}/{pipeline}/{run_id}" if root and pipeline else None,
    )


def follow_run(
    api: PipelinesApi,
    run_id: str,
    on_event: EventCallback = lambda event: None,
    timeout_seconds: float | None = None,
    read_log: ReadLog | None = None,
    poll_seconds: tuple[float, float] = POLL_SECONDS,
) -> SubmittedRun:
    """Watch a run until it ends.

    Args:
        api: The server.
        run_id: Number of the run.
        on_event: Called when a step starts and ends.
        timeout_seconds: How long to watch; for ever if None. 0 looks once.
        read_log: Called with the run's number and a step's name for what the step printed, where the server does not
            have it.
        poll_seconds: The first pause between two looks, and what it grows to.

    Returns:
        The run, failed or not; `raise_for_status` raises what ended it.

    Raises:
        RunError: There is no such run, the server refused, or the time is over; the run goes on then.
        KeyboardInterrupt: The user stopped watching; the run goes on, and the message says how to follow it.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    pause, spec = poll_seconds[0], None
    known: dict[str, str] = {}
    try:
        while True:
            found = _ask(api, run_id)
            if spec is None:
                spec = _read_specification(api, found)
            run = read_run(found, api.ui, pipeline=spec.pipeline, steps=spec.components)
            _tell(run.tasks, known, on_event)
            if run.has_ended:
                # The server stores the state of a run before those of its steps.
                for _ in range(_LAST_LOOKS):
                    states = {task.state for task in run.tasks}
                    if not states & {"pending", "running"} and (run.state != "failed" or "failed" in states):
                        break
                    time.sleep(min(poll_seconds[0], 0.5))
                    found = _ask(api, run_id)
                    run = read_run(found, api.ui, pipeline=spec.pipeline, steps=spec.components)
                _tell(run.tasks, known, on_event)
                return _explain(api, run, found, spec, read_log)
            if deadline is not None and time.monotonic() >= deadline:
                if timeout_seconds == 0:
                    return run
                raise RunError(
                    f"run {run_id}",
                    f"{run.state} after {(timeout_seconds or 0) / 60:g} minutes",
                    "it goes on, and nobody watches",
                    f"follow it with mlflywheel follow {run_id}",
                )
            left = pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic()))
            time.sleep(left)
            pause = min(pause * 1.5, poll_seconds[1])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the run goes on; follow it with mlflywheel follow {run_id} and the same options of the server"
        ) from None


def read_pod_log(connection: "Connection", namespace: str, run_id: str, task: str) -> str | None:
    """Return what the failed pod of a step printed, from Kubernetes itself; None if that is not to be had.

    Args:
        connection: The cluster of the run.
        namespace: Where its pods are.
        run_id: Number of the run.
        task: Name of the step.
    """
    from kubernetes.client import ApiException, CoreV1Api
    from urllib3.exceptions import HTTPError

    core = CoreV1Api(connection.api)
    try:
        pods = core.list_namespaced_pod(
            namespace, label_selector=f"pipeline/runid={run_id}", field_selector="status.phase=Failed"
        ).items
        named = [pod for pod in pods if _is_of_task(pod.metadata.annotations or {}, task)]
        newest = max(named or pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        if newest is None:
            return None
        return str(
            core.read_namespaced_pod_log(newest.metadata.name, namespace, container="main", tail_lines=_LOG_LINES * 4)
        )
    except (ApiException, HTTPError):
        return None


def _is_of_task(annotations: Mapping[str, str], task: str) -> bool:
    name = annotations.get("workflows.argoproj.io/node-name", "")
    return re.search(rf"\.{re.escape(task)}(-driver|\.executor(\(\d+\))?)?$", name) is not None


@dataclass(frozen=True)
class _Specification:
    """What the compiled pipeline says: its name, and the component of each step that runs something."""

    pipeline: str
    components: Mapping[str, str] | None


def _ask(api: PipelinesApi, run_id: str) -> dict[str, Any]:
    try:
        return api.get(f"runs/{run_id}")
    except NotFoundError as error:
        raise RunError(
            f"run {run_id}", f"{api.where} has none: {error}", "the number of a run is needed", "copy it from its page"
        ) from None


def _read_specification(api: PipelinesApi, found: Mapping[str, Any]) -> _Specification:
    specification = found.get("pipeline_spec")
    reference = found.get("pipeline_version_reference") or {}
    if not specification and reference.get("pipeline_version_id"):
        path = f"pipelines/{reference.get('pipeline_id')}/versions/{reference['pipeline_version_id']}"
        try:
            specification = api.get(path).get("pipeline_spec")
        except (NotFoundError, MlflywheelError):
            # Somebody deleted the version; the run is there all the same.
            specification = None
    specification = (specification or {}).get("pipeline_spec", specification) or {}
    if not specification:
        return _Specification("", None)
    components = specification.get("components") or {}
    steps = {
        name: str((task.get("componentRef") or {}).get("name") or "")
        for part in (specification.get("root") or {}, *components.values())
        for name, task in ((part.get("dag") or {}).get("tasks") or {}).items()
        if "dag" not in components.get((task.get("componentRef") or {}).get("name"), {})
    }
    return _Specification(str((specification.get("pipelineInfo") or {}).get("name") or ""), steps)


def _read_tasks(found: Mapping[str, Any], steps: set[str] | None) -> Iterator[TaskState]:
    """Return the steps, one entry each: those of a loop's turns are taken together."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in (found.get("run_details") or {}).get("task_details") or ():
        by_name.setdefault(_step_of(entry, steps), []).append(entry)
    by_name.pop("", None)
    ordered = sorted(by_name.items(), key=lambda item: min(map(_order, item[1])))
    for name, entries in ordered:
        # A step that was left out has no state at all.
        states = [str(one.get("state") or "skipped").lower() for one in entries]
        state = next((s for s in ("failed", "running", "canceled", "pending", "succeeded") if s in states), "skipped")
        starts = [moment for one in entries if (moment := _time(one.get("start_time")))]
        ends = [moment for one in entries if (moment := _time(one.get("end_time")))]
        seconds = None
        if starts and state != "skipped":
            last = max(ends) if ends and state != "running" else datetime.now(UTC)
            seconds = max(0.0, (last - min(starts)).total_seconds())
        yield TaskState(name, state, seconds)


def _step_of(entry: Mapping[str, Any], steps: set[str] | None) -> str:
    """Return the step that an entry is about; empty for the server's own doings."""
    name = str(entry.get("display_name") or "")
    if steps is None:
        ours = re.search(r"(^root$|-driver$|^executor|^condition-|^for-loop-|^iteration-)", name) is None
        return name if ours and entry.get("child_tasks") else ""
    if name in steps:
        return name
    # The driver decides what a step works on; if it fails, the step itself never begins.
    owner = name.removesuffix("-driver")
    return owner if owner != name and owner in steps and entry.get("state") == "FAILED" else ""


def _tell(tasks: Sequence[TaskState], known: dict[str, str], on_event: EventCallback) -> None:
    for task in tasks:
        before = known.get(task.name)
        if task.state == before or task.state in ("pending", "skipped"):
            continue
        known[task.name] = task.state
        if before is None:
            on_event({"event": "started", "step": task.name})
        if task.state in _ENDED:
            event = "finished" if task.state == "succeeded" else "failed"
            on_event({"event": event, "step": task.name, "seconds": task.seconds or 0.0})


def _explain(
    api: PipelinesApi, run: SubmittedRun, found: Mapping[str, Any], spec: _Specification, read_log: ReadLog | None
) -> SubmittedRun:
    """Add why a run failed."""
    if run.state == "succeeded":
        return run
    if run.state != "failed":
        told = f"follow its page {run.link}" if run.link else "ask who stopped it"
        return replace(run, error=RunError(f"run {run.run_id}", run.state, "it was expected to succeed", told))
    failed = next((task.name for task in run.tasks if task.state == "failed"), None)
    text = None
    if failed is not None:
        text = _find_log(api, run.run_id, failed, found) or (read_log(run.run_id, failed) if read_log else None)
    text = None if text is None else api.redact(text)
    log = tuple((text or "").rstrip().splitlines()[-_LOG_LINES:])
    reported = _find_error(text or "")
    is_refusal = failed is not None and (spec.components or {}).get(failed, "").startswith(REFUSING_COMPONENT)
    if reported is None:
        message = str((found.get("error") or {}).get("message") or "").strip().rstrip(".")
        where = f"step {failed} of run {run.run_id}" if failed else f"run {run.run_id}"
        look = run.link or f"mlflywheel follow {run.run_id} --context NAME, which reads the pod's log"
        fix = "read the log below" if log else f"look at {look}"
        kind = GateRefusedError if is_refusal else RunError
        seen = "a gate said no" if is_refusal else message or "failed"
        reported = kind(where, seen, "every gate has to hold" if is_refusal else "it was expected to finish", fix)
    state = "gate_refused" if isinstance(reported, GateRefusedError) else "failed"
    return replace(run, state=state, failed_task=failed, log=log, error=reported)


def _find_log(api: PipelinesApi, run_id: str, task: str, found: Mapping[str, Any]) -> str | None:
    """Ask the server for the log of a step's pod, whose name the API does not tell but its parts."""
    entries = (found.get("run_details") or {}).get("task_details") or ()
    owners = [one for one in entries if one.get("display_name") == task and one.get("state") == "FAILED"]
    # Attempts stand below an entry `executor`, which does not say whose it is; a failed one is this step's.
    owners += [one for one in entries if one.get("display_name") == "executor" and one.get("state") == "FAILED"]
    nodes = [str(child.get("pod_name") or "") for one in owners for child in one.get("child_tasks") or ()]
    for node in list(dict.fromkeys(filter(None, reversed(nodes))))[:_LARGEST_TASKS_ASKED]:
        workflow, _, number = node.rpartition("-")
        for template in _POD_TEMPLATES:
            text = api.read_log(run_id, f"{workflow}-{template}-{number}")
            if text is not None:
                return text
    return None


def _find_error(log: str) -> MlflywheelError | None:
    """Return the error that a step of ours reported as its last event."""
    for line in reversed(log.splitlines()):
        match = _FAILED_EVENT.search(line)
        if match is None:
            continue
        try:
            error = json.loads(match[1])["error"]
            return error_from_dict(error)
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _time(text: Any) -> datetime | None:
    if not text:
        return None
    found = datetime.fromisoformat(str(text))
    return found if found > _NEVER else None


def _order(entry: Mapping[str, Any]) -> tuple[datetime, datetime]:
    far = datetime.max.replace(tzinfo=UTC)
    return _time(entry.get("start_time")) or far, _time(entry.get("end_time")) or far
