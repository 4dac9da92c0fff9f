"""What a trial's Job comes to on one machine: what is refused, what limits hold, and which command runs."""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Experiment, Parameter
from mlflywheel.tuning.processes import can_measure_memory

TRIAL_NAME_VARIABLE = "KATIB_TRIAL_NAME"
_DEFAULT_FILE = "/var/log/katib/metrics.log"
_TEMPLATE = "spec.trialTemplate"
_JOB = f"{_TEMPLATE}.trialSpec"
_POD = f"{_JOB}.spec.template"
_REMOVE = "remove it, or run the Experiment on a cluster"

# Katib's own conditions of a Job, which it fills in where there are none.
_CONDITIONS = {
    "successCondition": 'status.conditions.#(type=="Complete")#|#(status=="True")#',
    "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
}

# Every field that may occur: what is acted on, and what means nothing on one machine. All others are refused.
_TEMPLATE_FIELDS = {
    "configMap", "failureCondition", "primaryContainerName", "primaryPodLabels", "retain", "successCondition",
    "trialParameters", "trialSpec",
}  # fmt: skip
_RESOURCE_FIELDS = {"apiVersion", "kind", "metadata", "spec"}
_METADATA_FIELDS = {"annotations", "labels", "name", "namespace"}
_JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "completions", "parallelism", "template", "ttlSecondsAfterFinished",
}  # fmt: skip
_POD_FIELDS = {
    "affinity", "automountServiceAccountToken", "containers", "enableServiceLinks", "imagePullSecrets", "nodeSelector",
    "priorityClassName", "restartPolicy", "schedulerName", "securityContext", "serviceAccount", "serviceAccountName",
    "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints",
}  # fmt: skip
_CONTAINER_FIELDS = {
    "args", "command", "env", "image", "imagePullPolicy", "name", "ports", "resources", "securityContext",
    "terminationMessagePath", "terminationMessagePolicy", "workingDir",
}  # fmt: skip
_REASONS = {
    "initContainers": "a trial is one process here, the primary container's",
    "volumes": "there are no volumes on this machine; its files are there as they are",
    "volumeMounts": "there are no volumes on this machine; its files are there as they are",
    "envFrom": "there are no Secrets and ConfigMaps on this machine",
}

# They decide which code an interpreter or the loader runs; the others of Python's are harmless.
_LOADER_VARIABLE = re.compile(r"PYTHON.*|LD_.*|DYLD_.*|PATH")
_HARMLESS_VARIABLES = frozenset(
    ("PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUNBUFFERED",
     "PYTHONUTF8")
)  # fmt: skip

_PYTHON = re.compile(r"(.*/)?python(3(\.\d+)?)?")
_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eE][+-]?[0-9]{1,2}|[KMGTPE]i|[mkMGTPE]|)")
_SUFFIXES = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12, "P": Decimal(10) ** 15, "E": Decimal(10) ** 18, "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30, "Ti": Decimal(2) ** 40, "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}  # fmt: skip
_VARIABLE = re.compile(r"\$(\$|\(([^)]*)\))")


@dataclass(frozen=True)
class Limits:
    """What a trial may take.

    Args:
        timeout_seconds: The Job's `activeDeadlineSeconds`, over all attempts; None for no end.
        memory_bytes: The container's memory limit; None for none.
        retries: The Job's `backoffLimit` where it is written; 0 otherwise.
    """

    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    retries: int = 0


@dataclass(frozen=True)
class TrialFiles:
    """Where one attempt of a trial writes.

    Args:
        log: What the trial prints.
        outside: What the command prints past Katib's redirection, which no collector reads.
        mark: Where the command says that it came to its end.
        own: The trial's own folder, for the metrics file of the File collector.
    """

    log: Path
    outside: Path
    mark: Path
    own: Path


@dataclass(frozen=True)
class TrialCommand:
    """What one attempt of a trial runs.

    Args:
        words: Program and arguments.
        variables: Environment variables that the template sets.
        folder: Working folder; None for the caller's.
        output: File for standard output and standard error.
        metrics: File that the metrics are read from.
        mark: File that a shell writes at the command's end; None where there is no shell.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str]
    folder: Path | None
    output: Path
    metrics: Path
    mark: Path | None = None


def check_job(experiment: Experiment, files: TrialFiles, any_command: bool) -> None:
    """Refuse a trial template that one machine cannot run as a cluster does.

    Args:
        experiment: The search.
        files: Where its first trial would write.
        any_command: Whether other commands than this package's are allowed.

    Raises:
        UsageError: With the field, the reason and what would do.
    """
    _check_template(experiment)
    for assignments in _example_assignments(experiment.parameters):
        job = experiment.template.render(assignments, f"{experiment.name}-00000000")
        _check_rendered(experiment, job)
        read_limits(experiment, job)
        build_command(experiment, job, files, any_command)


def read_limits(experiment: Experiment, job: Mapping[str, Any]) -> Limits:
    """Read a rendered Job's limits.

    Raises:
        UsageError: One is no number, or cannot be kept on this machine.
    """
    spec = _mapping(experiment, f"{_JOB}.spec", job.get("spec"))
    timeout = _whole_number(experiment, f"{_JOB}.spec.activeDeadlineSeconds", spec.get("activeDeadlineSeconds"), 1)
    retries = _whole_number(experiment, f"{_JOB}.spec.backoffLimit", spec.get("backoffLimit"), 0)
    place = _container_place(experiment)
    resources = _mapping(experiment, f"{place}.resources", _container(experiment, job).get("resources"))
    limits = _mapping(experiment, f"{place}.resources.limits", resources.get("limits"))
    memory = None
    if "memory" in limits:
        memory = _quantity(experiment, f"{place}.resources.limits.memory", limits["memory"])
        if not can_measure_memory():
            _refuse(
                experiment,
                f"{place}.resources.limits.memory",
                str(limits["memory"]),
                "this system does not show how much memory a process uses, so the limit cannot be kept",
                "remove it, or run on Linux",
            )
    return Limits(timeout, memory, retries or 0)


def build_command(experiment: Experiment, job: Mapping[str, Any], files: TrialFiles, any_command: bool) -> TrialCommand:
    """Return what a rendered Job's primary container comes to.

    Katib joins command and arguments with spaces, without quotes, and appends its redirection and its mark for `sh -c`.
    The same is done here. So what a cluster would not collect is not collected here either: in `sh -c "a; b"` the
    redirection takes the output of `b` alone. This package's own commands are started directly, if their words are
    such that a shell would change nothing.

    Args:
        experiment: The search.
        job: A trial's rendered Job.
        files: Where it writes.
        any_command: Whether other commands than this package's are allowed.

    Raises:
        UsageError: The command is not one that may or can run here.
    """
    place = _container_place(experiment)
    container = _container(experiment, job)
    words = [
        *_texts(experiment, f"{place}.command", container.get("command")),
        *_texts(experiment, f"{place}.args", container.get("args")),
    ]
    if not container.get("command"):
        _refuse(
            experiment,
            f"{place}.command",
            "none",
            "what the image would run is not known here",
            "write the command out",
        )
    variables = _read_variables(experiment, place, container, job, any_command)
    folder = _read_folder(experiment, place, container)
    metrics = files.log
    if experiment.collector.kind == "File":
        metrics, words, variables = _move_metrics(experiment, files, words, variables)
    own = _own_command(words)
    if own is None and not any_command:
        _refuse(
            experiment,
            f"{place}.command",
            shlex.join(words)[:200],
            "without leave only mlflywheel's own commands run on this machine",
            "read the command, and allow it with --any-command",
        )
    if own is not None:
        expanded = [expand_variables(word, variables) for word in own]
        if "--any-command" in expanded and not any_command:
            _refuse(
                experiment,
                f"{place}.command",
                "--any-command",
                "a trial must not give itself leave for other commands",
                "read the command, and allow it with --any-command",
            )
        unsafe = [word for word in expanded if shlex.quote(word) != word]
        if unsafe:
            _refuse(
                experiment,
                f"{place}.command",
                f"the word {unsafe[0]!r}",
                "Katib joins the words without quotes, and its shell would take this one apart",
                "hand the value over in an environment variable",
            )
        return TrialCommand((sys.executable, "-m", *expanded), variables, folder, files.log, metrics)
    shell = ["sh", "-c"]
    if words[0] in ("sh", "bash"):
        if len(words) < 2:
            _refuse(experiment, f"{place}.command", words[0], "Katib cannot read a shell alone", "write -c after it")
        if words[1] == "-c":
            shell, words = words[:2], words[2:]
    text = expand_variables(" ".join(words), variables)
    output = files.log
    if experiment.collector.kind == "StdOut":
        output = files.outside
        text += f" 1>{shlex.quote(str(metrics))} 2>&1"
    text += f" && echo completed > {shlex.quote(str(files.mark))}"
    return TrialCommand((*shell, text), variables, folder, output, metrics, files.mark)


def expand_variables(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does it in commands, arguments and variables: unknown names stay, `$$` is `$`.

    >>> expand_variables("--trial=$(TRIAL) $(OTHER) $$(TRIAL) $HOME", {"TRIAL": "a-1"})
    '--trial=a-1 $(OTHER) $(TRIAL) $HOME'
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        return variables.get(found[2], found[0])

    return _VARIABLE.sub(replace, text)


def read_quantity(text: str) -> int:
    """Read a Kubernetes quantity as a number of bytes, rounded up.

    >>> read_quantity("512Mi"), read_quantity("1.5G"), read_quantity("1e3")
    (536870912, 1500000000, 1000)

    Raises:
        ValueError: It is none.
    """
    found = _QUANTITY.fullmatch(text)
    try:
        if found is None:
            raise InvalidOperation
        number, suffix = Decimal(found[1]), found[2]
    except InvalidOperation:
        raise ValueError(f"{text!r} is no quantity") from None
    if suffix in _SUFFIXES:
        return math.ceil(number * _SUFFIXES[suffix])
    return math.ceil(number.scaleb(int(suffix[1:])))


def _check_template(experiment: Experiment) -> None:
    spec = _mapping(experiment, "spec", experiment.document.get("spec"))
    template = _mapping(experiment, _TEMPLATE, spec.get("trialTemplate"))
    if experiment.template.spec is None or template.get("configMap") is not None:
        _refuse(
            experiment,
            f"{_TEMPLATE}.configMap",
            "a template in a ConfigMap",
            "there are no ConfigMaps on this machine",
            "write the Job as trialSpec",
        )
    _check_fields(experiment, _TEMPLATE, template, _TEMPLATE_FIELDS)
    for field, default in _CONDITIONS.items():
        if template.get(field) not in (None, default):
            _refuse(
                experiment,
                f"{_TEMPLATE}.{field}",
                json.dumps(template[field]),
                "on this machine a Job succeeds with exit code 0 alone",
                _REMOVE,
            )
    kind = (experiment.template.spec.get("apiVersion"), experiment.template.spec.get("kind"))
    if kind != ("batch/v1", "Job"):
        _refuse(experiment, f"{_JOB}.kind", f"{kind[0]} {kind[1]}", "only a batch/v1 Job runs on one machine", _REMOVE)
    if experiment.collector.kind not in ("StdOut", "File"):
        _refuse(
            experiment,
            "spec.metricsCollectorSpec.collector.kind",
            experiment.collector.kind,
            "StdOut and File are read on this machine",
            "print the metrics, and use StdOut",
        )


def _check_rendered(experiment: Experiment, job: Mapping[str, Any]) -> None:
    _check_fields(experiment, _JOB, job, _RESOURCE_FIELDS)
    _check_metadata(experiment, _JOB, job)
    spec = _mapping(experiment, f"{_JOB}.spec", job.get("spec"))
    _check_fields(experiment, f"{_JOB}.spec", spec, _JOB_FIELDS)
    for field in ("parallelism", "completions"):
        if spec.get(field, 1) != 1:
            _refuse(
                experiment,
                f"{_JOB}.spec.{field}",
                json.dumps(spec[field]),
                "a trial is one process on this machine",
                "set it to 1, and parallelTrialCount for more trials at once",
            )
    template = _mapping(experiment, _POD, spec.get("template"))
    _check_fields(experiment, _POD, template, {"metadata", "spec"})
    _check_metadata(experiment, _POD, template)
    pod = _mapping(experiment, f"{_POD}.spec", template.get("spec"))
    _check_fields(experiment, f"{_POD}.spec", pod, _POD_FIELDS)
    if pod.get("restartPolicy") != "Never":
        _refuse(
            experiment,
            f"{_POD}.spec.restartPolicy",
            json.dumps(pod.get("restartPolicy")),
            "a process is not restarted in its place here, and Kubernetes accepts no Job without the field",
            "set it to Never, and backoffLimit for further attempts",
        )
    containers = pod.get("containers")
    if not isinstance(containers, list) or len(containers) != 1:
        _refuse(
            experiment,
            f"{_POD}.spec.containers",
            f"{len(containers)} containers" if isinstance(containers, list) else json.dumps(containers),
            "a trial is one process here, the primary container's",
            "leave the others out",
        )
    place, container = _container_place(experiment), _container(experiment, job)
    _check_fields(experiment, place, container, _CONTAINER_FIELDS)
    resources = _mapping(experiment, f"{place}.resources", container.get("resources"))
    _check_fields(experiment, f"{place}.resources", resources, {"limits", "requests"})
    for kind, kept in (("limits", {"cpu", "memory"}), ("requests", {"cpu", "memory", "ephemeral-storage"})):
        where = f"{place}.resources.{kind}"
        for name, amount in _mapping(experiment, where, resources.get(kind)).items():
            if name in kept:
                continue
            device = "devices are not divided among trials here; each sees what this process sees"
            _refuse(
                experiment,
                f"{where}.{name}",
                str(amount),
                device if "/" in name else "it cannot be kept on this machine",
                _REMOVE,
            )


def _check_metadata(experiment: Experiment, place: str, resource: Mapping[str, Any]) -> None:
    metadata = _mapping(experiment, f"{place}.metadata", resource.get("metadata"))
    _check_fields(experiment, f"{place}.metadata", metadata, _METADATA_FIELDS)


def _check_fields(experiment: Experiment, place: str, values: Mapping[str, Any], known: set[str]) -> None:
    for field, value in values.items():
        if field not in known and value not in (None, [], {}):
            needed = _REASONS.get(field, "it has no meaning on one machine, and nothing is ignored")
            _refuse(experiment, f"{place}.{field}", json.dumps(value)[:80], needed, _REMOVE)


def _read_variables(
    experiment: Experiment, place: str, container: Mapping[str, Any], job: Mapping[str, Any], any_command: bool
) -> dict[str, str]:
    variables: dict[str, str] = {}
    entries = container.get("env") or []
    if not isinstance(entries, list):
        _refuse(experiment, f"{place}.env", json.dumps(entries)[:80], "a list is needed", "write name and value")
    for entry in entries:
        values = _mapping(experiment, f"{place}.env", entry)
        name = values.get("name")
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            _refuse(experiment, f"{place}.env", json.dumps(name), "a variable needs a name", "write name and value")
        where = f"{place}.env.{name}"
        if values.get("valueFrom") is not None:
            _refuse(
                experiment,
                where,
                f"valueFrom {', '.join(_mapping(experiment, where, values['valueFrom']))}",
                "there are no Secrets, ConfigMaps and pods on this machine",
                f"export {name} before the call, which trials inherit, and leave the entry out",
            )
        _check_fields(experiment, where, values, {"name", "value", "valueFrom"})
        value = values.get("value") or ""
        if not isinstance(value, str) or "\0" in value:
            _refuse(experiment, where, json.dumps(value)[:80], "Kubernetes takes text alone", "write it in quotes")
        if not any_command and _LOADER_VARIABLE.fullmatch(name) and name not in _HARMLESS_VARIABLES:
            _refuse(
                experiment,
                where,
                repr(value)[:80],
                "it decides which code runs",
                "read it, and allow it with --any-command",
            )
        variables[name] = expand_variables(value, variables)
    variables[TRIAL_NAME_VARIABLE] = str(job["metadata"]["name"])
    return variables


def _read_folder(experiment: Experiment, place: str, container: Mapping[str, Any]) -> Path | None:
    written = container.get("workingDir")
    if not written:
        return None
    if not isinstance(written, str) or not Path(written).is_absolute() or not Path(written).is_dir():
        _refuse(
            experiment,
            f"{place}.workingDir",
            str(written),
            "an absolute path of a folder of this machine is needed",
            "create it, or remove the field: a trial then runs in the folder of the call",
        )
    return Path(written)


def _move_metrics(
    experiment: Experiment, files: TrialFiles, words: Sequence[str], variables: Mapping[str, str]
) -> tuple[Path, list[str], dict[str, str]]:
    """Give a trial a metrics file of its own, since trials share this machine's files."""
    path = experiment.collector.path or _DEFAULT_FILE
    pattern = re.compile(rf"(?<![\w./-]){re.escape(path)}(?![\w/-]|\.\w)")
    if not any(pattern.search(text) for text in (*words, *variables.values())):
        _refuse(
            experiment,
            "spec.metricsCollectorSpec.source.fileSystemPath.path",
            path,
            "it has to occur in command, args or env, where every trial gets a file of its own instead",
            "hand the path to the command, or print the metrics and use StdOut",
        )
    moved = files.own / Path(path).name
    if shlex.quote(str(moved)) != str(moved):
        _refuse(
            experiment,
            "the folder of the search",
            str(files.own.parent),
            "the metrics file's path goes into a command without quotes",
            "choose a folder without spaces and special characters",
        )
    return (
        moved,
        [pattern.sub(lambda found: str(moved), word) for word in words],
        {name: pattern.sub(lambda found: str(moved), value) for name, value in variables.items()},
    )


def _own_command(words: Sequence[str]) -> list[str] | None:
    """Return what follows `python -m` if this is one of this package's own commands."""
    if words[0] == "mlflywheel":
        return list(words)
    if len(words) > 2 and _PYTHON.fullmatch(words[0]) and words[1] == "-m":
        package, _, _ = words[2].partition(".")
        return list(words[2:]) if package == "mlflywheel" else None
    return None


def _example_assignments(parameters: Sequence[Parameter]) -> Iterator[dict[str, str]]:
    """Yield assignments in which every listed value occurs once: what a command may look like."""
    first = {
        parameter.name: parameter.values[0] if parameter.values else f"{parameter.low or 0:g}"
        for parameter in parameters
    }
    yield first
    for parameter in parameters:
        for value in parameter.values[1:]:
            yield {**first, parameter.name: value}


def _container_place(experiment: Experiment) -> str:
    return f"{_POD}.spec.containers[{experiment.template.primary_container}]"


def _container(experiment: Experiment, job: Mapping[str, Any]) -> Mapping[str, Any]:
    container = experiment.template.container(job)
    if container is None:
        _refuse(
            experiment,
            f"{_TEMPLATE}.primaryContainerName",
            experiment.template.primary_container,
            "no container of the Job has this name",
            "name one that is there",
        )
    return container


def _mapping(experiment: Experiment, place: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _refuse(experiment, place, json.dumps(value)[:80], "a mapping is needed", "correct the field")
    return value


def _texts(experiment: Experiment, place: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        _refuse(experiment, place, json.dumps(value)[:80], "a list of text is needed", "write every word in quotes")
    return list(value)


def _whole_number(experiment: Experiment, place: str, value: Any, lowest: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        _refuse(
            experiment, place, json.dumps(value)[:80], f"a whole number from {lowest} is needed", "correct the field"
        )
    return value


def _quantity(experiment: Experiment, place: str, value: Any) -> int:
    try:
        number = read_quantity(str(value))
    except ValueError:
        number = 0
    if number <= 0:
        _refuse(experiment, place, str(value), "a quantity of bytes is needed, such as 512Mi", "correct the field")
    return number


def _refuse(experiment: Experiment, field: str, seen: str, needed: str, fix: str) -> NoReturn:
    raise UsageError(f"experiment {experiment.name}, {field}", seen, needed, fix)
