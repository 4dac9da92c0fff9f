"""Run a compiled pipeline on this machine, watch it, and leave a summary and a report behind in every case."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflywheel import __version__
from mlflywheel.cluster.registration import RUN_ID_VARIABLE
from mlflywheel.cluster.tuning import SEARCHES_VARIABLE
from mlflywheel.errors import (
    DataError,
    GateRefusedError,
    MissingExtraError,
    MlflywheelError,
    RegistryError,
    RunError,
    UsageError,
    error_from_dict,
)
from mlflywheel.events import EVENTS_VARIABLE, disk_error
from mlflywheel.models.contract import Evaluation, Section
from mlflywheel.reports import Report, render_report
from mlflywheel.reproducibility import THREAD_VARIABLES
from mlflywheel.runs.folder import RunFolder, Story, compose_summary, new_run_id, write_json
from mlflywheel.storage import without_credentials

#: Folder of searches for parameters, beside the folders of the pipelines.
SEARCHES = "searches"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0
_FULL_DISK_BYTES = 1_000_000
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET_IN_QUERY = re.compile(r"&[^=&]*(sig|token|credential|secret|passw|key)[^=&]*=.", re.IGNORECASE)

EventCallback = Callable[[Mapping[str, Any]], None]


def run_pipeline(
    name: str,
    compiled: Path,
    arguments: Mapping[str, Any],
    runs: Path,
    on_event: EventCallback = lambda event: None,
    on_output: Callable[[str], None] | None = None,
    variables: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Run compiled YAML through kfp.local in a new run folder.

    Args:
        name: The pipeline's name, which names the folder.
        compiled: The compiled YAML.
        arguments: Values of the pipeline's parameters; the others keep their compiled defaults.
        runs: The folder of all runs.
        on_event: Called with every event of every step.
        on_output: Called with every line that kfp and the steps print; None leaves them to `log.txt`.
        variables: Environment variables of the steps, over those of this process; None unsets one.

    Returns:
        The summary, as `summary.json` holds it. It never raises for a failed run: the error stands in the summary.

    Raises:
        UsageError: An argument is not a parameter of the pipeline, or a required one is missing.
        MissingExtraError: kfp is not installed.
        KeyboardInterrupt: The user stopped the run; its processes are ended and its summary is written.
    """
    _check_kfp()
    values = check_arguments(compiled, arguments)
    run_id = new_run_id()
    folder = RunFolder.create(runs, name, run_id)
    started = datetime.now(UTC)
    story, error = Story(), None
    interrupted = False
    try:
        error = _watch(folder, compiled, values, run_id, story, on_event, on_output, variables or {})
    except KeyboardInterrupt:
        interrupted = True
        error = RunError("run", "stopped by the user", "nothing was lost", "start the run again")
    except OSError as failure:
        error = _explain_os_error(failure, folder)
    status = "succeeded" if error is None else "gate_refused" if isinstance(error, GateRefusedError) else "failed"
    summary = compose_summary(name, run_id, status, story, values, error)
    summary["started_at"] = started.isoformat(timespec="seconds")
    summary["environment"] = _describe_environment()
    _publish(folder, summary, story)
    if interrupted:
        raise KeyboardInterrupt
    return summary


def _check_kfp() -> None:
    from importlib.util import find_spec

    for package in ("kfp", "great_expectations"):
        if find_spec(package) is None:
            raise MissingExtraError.of(package, "pipelines", "running a pipeline")


def check_arguments(compiled: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check arguments against the pipeline's parameters, and complete them with the compiled defaults.

    Text from a command line is read as the parameter's type.

    Raises:
        UsageError: Unknown or missing parameter, a value of the wrong type, or an address that holds a password or a
            signature; or the file is not a compiled pipeline.
    """
    parameters = read_parameters(compiled)
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in parameters:
            raise UsageError(
                f"--set {name}",
                "not a parameter of the pipeline",
                f"it has {', '.join(sorted(parameters))}",
                "correct the name",
            )
        _refuse_credentials(name, value)
        values[name] = _read_value(name, value, parameters[name].get("parameterType", "STRING"))
    for name, definition in parameters.items():
        if name not in values and "defaultValue" in definition:
            default = definition["defaultValue"]
            # Compiled defaults are protobuf numbers, which have no integers.
            values[name] = int(default) if definition.get("parameterType") == "NUMBER_INTEGER" else default
        elif name not in values and not definition.get("isOptional"):
            raise UsageError(
                f"pipeline parameter {name}", "no value", "it has no default", f"give one with --set {name}=..."
            )
    return values


def _refuse_credentials(name: str, value: Any) -> None:
    """Refuse an address with a password: KFP writes every argument to logs, to its database and to command lines."""
    if not isinstance(value, str) or not _ADDRESS.match(value):
        return
    shown = without_credentials(value)
    place, _, query = value.partition("#")[0].partition("?")
    if place != shown.partition("?")[0] or _SECRET_IN_QUERY.search(f"&{query}"):
        raise UsageError(
            f"{name} {shown}",
            "the address holds a password or a signature",
            "arguments of a run stand in its logs, its report and its command lines",
            "put user and password into ~/.netrc, the keys of a store into the environment, or download the file first",
        )


def read_parameters(compiled: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters that compiled YAML declares, by name.

    Raises:
        UsageError: The file cannot be read, or is not a compiled pipeline.
    """
    import yaml

    try:
        text = Path(compiled).read_text(encoding="utf-8")
        document = next(iter(yaml.safe_load_all(text)))
        found = document["root"].get("inputDefinitions", {}).get("parameters", {})
        document["pipelineInfo"]["name"]
    except OSError as error:
        raise UsageError(
            str(compiled), f"{error.strerror}", "compiled pipeline YAML is needed", "run mlflywheel compile"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, StopIteration, UnicodeDecodeError):
        raise UsageError(
            str(compiled),
            "not a compiled pipeline",
            "YAML as the kfp compiler writes it is needed",
            "compile the pipeline with kfp 2",
        ) from None
    return dict(found)


def read_name(compiled: Path) -> str:
    """Return the name of a compiled pipeline."""
    import yaml

    read_parameters(compiled)
    return str(next(iter(yaml.safe_load_all(Path(compiled).read_text(encoding="utf-8"))))["pipelineInfo"]["name"])


def _read_value(name: str, value: Any, kind: str) -> Any:
    if kind == "STRING":
        return value if isinstance(value, str) else json.dumps(value)
    if not isinstance(value, str):
        return value
    readers: dict[str, Callable[[str], Any]] = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}
    try:
        return readers.get(kind, json.loads)(value)
    except ValueError:
        names = {"NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number", "BOOLEAN": "true or false"}
        needed = names.get(kind, "JSON")
        raise UsageError(f"--set {name}", repr(value), f"{needed} is needed", "correct the value") from None


def _watch(
    folder: RunFolder,
    compiled: Path,
    values: Mapping[str, Any],
    run_id: str,
    story: Story,
    on_event: EventCallback,
    on_output: Callable[[str], None] | None,
    variables: Mapping[str, str | None],
) -> MlflywheelError | None:
    """Start the child and follow it to its end; return what went wrong."""
    request = folder.path / "arguments.json"
    write_json(request, {"compiled": str(Path(compiled).resolve()), "arguments": values, "root": str(folder.artifacts)})
    environment = {
        # One thread: sums in another order differ in the last bits, and a model's hash with them.
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        **variables,
        EVENTS_VARIABLE: str(folder.events),
        RUN_ID_VARIABLE: run_id,
        # Beside the runs: a search that was stopped is taken up by the next run.
        SEARCHES_VARIABLE: str(folder.path.parent.parent / SEARCHES),
    }
    with folder.log.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "mlflywheel.runs.execute", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in environment.items() if value is not None},
            # A group of its own: it is ended as a whole, and Ctrl-C reaches it through us alone.
            start_new_session=True,
        )
        offset, printed = 0, 0
        try:
            with terminated_as_interrupt():
                while True:
                    ended = child.poll() is not None
                    events, offset = folder.read_events(offset)
                    for event in events:
                        story.add(event)
                        on_event(event)
                    if on_output is not None:
                        printed = _print_new(folder.log, printed, on_output)
                    if ended or _is_final(story):
                        break
                    time.sleep(_POLL_SECONDS)
        finally:
            _stop(child)
    if story.error is None and child.returncode == 0:
        return None
    return _explain(folder, story)


def _is_final(story: Story) -> bool:
    """Return whether waiting for KFP's retries is pointless: the user has to act first."""
    if story.error is None or story.error.get("defect"):
        return False
    return not isinstance(error_from_dict(story.error), RegistryError)


def _explain(folder: RunFolder, story: Story) -> MlflywheelError:
    if story.error is not None and not story.error.get("defect"):
        return error_from_dict(story.error)
    if _disk_is_full(folder):
        return disk_error(str(folder.path))
    if story.error is not None:
        return error_from_dict(story.error)
    running = [step["name"] for step in story.steps if step["status"] == "running"]
    where = f"step {running[-1]}" if running else "kfp"
    return RunError(where, "ended without an error of its own", "the step was expected to finish", f"read {folder.log}")


def _disk_is_full(folder: RunFolder) -> bool:
    if shutil.disk_usage(folder.path).free < _FULL_DISK_BYTES:
        return True
    try:
        tail = folder.log.read_bytes()[-20_000:]
    except OSError:
        return False
    return b"No space left on device" in tail


def _explain_os_error(failure: OSError, folder: RunFolder) -> MlflywheelError:
    if _disk_is_full(folder):
        return disk_error(str(folder.path))
    return DataError(
        str(failure.filename or folder.path),
        f"{failure.strerror or failure}",
        "a run writes to its folder",
        "choose another folder with --runs",
    )


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, but in the main thread alone: no other one may handle signals."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End the child and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and _group_lives(child):
            time.sleep(0.02)
        if not _group_lives(child):
            break
    child.wait()


def _group_lives(child: "subprocess.Popen[bytes]") -> bool:
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _print_new(log: Path, printed: int, on_output: Callable[[str], None]) -> int:
    with log.open("rb") as file:
        file.seek(printed)
        data = file.read()
    end = data.rfind(b"\n") + 1
    for line in data[:end].decode("utf-8", "replace").splitlines():
        on_output(line)
    return printed + end


def _publish(folder: RunFolder, summary: dict[str, Any], story: Story) -> None:
    """Put scores, report and summary at the top of the run folder; on a full disk, as much as there is room for."""
    artifacts = summary["artifacts"]
    try:
        if "scores" in artifacts:
            artifacts["scores"] = str(_link(Path(artifacts["scores"]), folder.path / "scores.parquet"))
        if "validation" in artifacts:
            artifacts["validation"] = str(_link(Path(artifacts["validation"]), folder.path / "validation.html"))
        summary["artifacts"] = {"report": str(folder.report), "log": str(folder.log), **artifacts}
        folder.report.write_text(render_run(folder, summary, story), encoding="utf-8")
        write_json(folder.summary, summary)
    except OSError as failure:
        # The run's own error is the more useful one, if there is one.
        if summary["error"] is None:
            summary["status"], summary["error"] = "failed", _explain_os_error(failure, folder).to_dict()


def _link(source: Path, target: Path) -> Path:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def render_run(folder: RunFolder, summary: Mapping[str, Any], story: Story) -> str:
    """Render the report of a run from its summary and the JSON that its steps left."""
    artifacts = summary["artifacts"]
    evaluation = _read_json(artifacts.get("evaluation"))
    relative = {name: os.path.relpath(path, folder.path) for name, path in artifacts.items()}
    steps = [{**step, "error": summary["error"] if step["status"] == "failed" else None} for step in story.steps]
    return render_report(
        Report(
            str(summary["pipeline"]),
            {**summary, "artifacts": relative},
            _add_sections(evaluation, *(_read_json(artifacts.get(name)) for name in ("search", "rollout"))),
            _read_json(artifacts.get("validation_results")),
            steps,
        )
    )


def _add_sections(evaluation: Any, *others: Any) -> Evaluation | None:
    """Put the parts of other steps behind the model's own part of the report."""
    measured = None if evaluation is None else Evaluation.from_dict(evaluation)
    sections = tuple(Section(**section) for other in others if other is not None for section in other["sections"])
    if not sections:
        return measured
    return replace(measured, sections=measured.sections + sections) if measured else Evaluation((), sections)


def _read_json(path: str | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _describe_environment() -> dict[str, str]:
    import platform

    threads = {name: os.environ.get(name, "1") for name in THREAD_VARIABLES}
    return {
        "mlflywheel": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "threads": ", ".join(f"{name}={value}" for name, value in threads.items()),
    }
