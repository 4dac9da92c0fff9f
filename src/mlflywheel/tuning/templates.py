"""Rules on an Experiment's trial template and metrics collector: Katib's webhook, and what fails after it.

Names and types are checked already (`shapes`). Sources, at Katib 0.19.0: `pkg/webhook/v1beta1/experiment/validator`,
`pkg/webhook/v1beta1/pod`, `pkg/controller.v1beta1/experiment/manifest`, `cmd/metricscollector/v1beta1`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Collector, Objective, Parameter, TrialTemplate
from mlflywheel.tuning.fields import Place, needed_mapping, needed_text, read_whole, shorten
from mlflywheel.tuning.metrics import compile_filter
from mlflywheel.tuning.shapes import check_job

COLLECTORS = ("Custom", "File", "PrometheusMetric", "Push", "StdOut", "TensorFlowEvent")
#: Collectors that make Katib rewrite the primary container's command to one unquoted line for `sh -c`.
_REWRITING = ("StdOut", "File", "TensorFlowEvent")
_TRIAL_PARAMETER = re.compile(r"[^{}\"\\<>&]+")
_PLACEHOLDER = re.compile(r"\$\{trialParameters\..+?\}")
_METADATA = re.compile(r"\$\{trialSpec\.(?P<key>[A-Za-z]*)(?:\[(?P<index>.+)\])?\}")
_METADATA_KEYS = ("Name", "Namespace", "Kind", "APIVersion", "Labels", "Annotations")
#: What Katib's default filter can find as a metric's name.
_FOUND_METRIC = re.compile(r"[A-Za-z0-9_|-]+")
_BREAKS_SHELL = re.compile(r"[\s'\"\\$`;&|<>()*?]|^[#~]")
_COMPLETE = 'status.conditions.#(type=="Complete")#|#(status=="True")#'
_SUCCEEDED = 'status.conditions.#(type=="Succeeded")#|#(status=="True")#'
_FAILED = 'status.conditions.#(type=="Failed")#|#(status=="True")#'
#: A trial's kind to its default conditions of success and failure.
_CONDITIONS: Mapping[str, tuple[str, str]] = {
    "Job": (_COMPLETE, _FAILED),
    "TrainJob": (_COMPLETE, _FAILED),
    "MPIJob": (_SUCCEEDED, _FAILED),
    "PyTorchJob": (_SUCCEEDED, _FAILED),
    "TFJob": (_SUCCEEDED, _FAILED),
    "XGBoostJob": (_SUCCEEDED, _FAILED),
}


def read_collector(spec: Mapping[str, Any], objective: Objective, place: Place) -> Collector:
    """Read `spec.metricsCollectorSpec`, with Katib's defaults, and check that it can find the metrics."""
    place = place.of("metricsCollectorSpec")
    values = spec.get("metricsCollectorSpec") or {}
    collector, source = values.get("collector"), values.get("source") or {}
    # A collector without a kind is none of Katib's, while no collector is StdOut.
    collector = {"kind": "StdOut"} if collector is None else collector
    kind, files = collector.get("kind") or "", source.get("fileSystemPath") or {}
    if kind not in COLLECTORS:
        raise place.of("collector").of("kind").unknown("kind of collector", kind, COLLECTORS)
    path_place = place.of("source").of("fileSystemPath")
    path: str | None = None
    form = "TEXT"
    if kind == "File":
        path = files.get("path") or "/var/log/katib/metrics.log"
        form = files.get("format") or "TEXT"
        _check_path(path, files.get("kind") or "File", ("File",), path_place)
        if form not in ("TEXT", "JSON"):
            raise path_place.of("format").error(shorten(form), "TEXT or JSON is needed", "write one of them")
        if form == "JSON" and source.get("filter") is not None:
            needed = "a file of format JSON has no filter"
            raise place.of("source").of("filter").error("a filter", needed, "remove filter, or write format: TEXT")
    elif kind == "TensorFlowEvent":
        path = files.get("path") or "/var/log/katib/tfevent/"
        _check_path(path, files.get("kind") or "Directory", ("Directory",), path_place)
        if files.get("format"):
            raise path_place.of("format").error(
                shorten(files["format"]), "TensorFlowEvent has no format", "remove format"
            )
    elif kind == "PrometheusMetric":
        _check_prometheus(source.get("httpGet") or {}, place.of("source").of("httpGet"))
    elif kind == "Custom":
        if collector.get("customCollector") is None:
            where = place.of("collector").of("customCollector")
            raise where.error("nothing", "kind Custom needs a container", "write customCollector")
        if files:
            path = files.get("path")
            _check_path(path or "", files.get("kind") or "", ("File", "Directory"), path_place)
    filters = tuple((source.get("filter") or {}).get("metricsFormat") or ())
    for index, pattern in enumerate(filters):
        _check_filter(pattern, place.of("source").of("filter").of("metricsFormat").at(index))
    if kind in _REWRITING:
        _check_metric_names(objective, kind in ("StdOut", "File") and form == "TEXT" and not filters, place)
    return Collector(kind, path, "JSON" if form == "JSON" else "TEXT", filters)


def _check_path(path: str, kind: str, kinds: tuple[str, ...], place: Place) -> None:
    if kind not in kinds:
        raise place.of("kind").error(shorten(kind), f"{' or '.join(kinds)} is needed", f"write kind: {kinds[0]}")
    if not path.startswith("/"):
        raise place.of("path").error(shorten(path), "an absolute path is needed", "write a path that starts with /")


def _check_prometheus(get: Mapping[str, Any], place: Place) -> None:
    path, port = get.get("path") or "/metrics", get.get("port") or 8080
    if not path.startswith("/"):
        raise place.of("path").error(shorten(path), "an absolute path is needed", "write a path that starts with /")
    number = read_whole(str(port)) if isinstance(port, int | str) else None
    if number is None or not 0 < number < 2**16:
        raise place.of("port").error(shorten(port), "a port from 1 to 65535 is needed", "write such a number")


def _check_metric_names(objective: Objective, by_default_filter: bool, place: Place) -> None:
    where = Place(place.file, "spec.objective")
    for index, name in enumerate(objective.metrics):
        field = where.of("additionalMetricNames").at(index - 1) if index else where.of("objectiveMetricName")
        if by_default_filter and not _FOUND_METRIC.fullmatch(name):
            needed = "Katib's default filter finds names of A-Z, a-z, 0-9, _ and -"
            raise field.error(shorten(name), needed, "rename the metric, or set source.filter.metricsFormat")
        if ";" in name:
            raise field.error(shorten(name), "Katib joins metric names with ;", "rename the metric")


def _check_filter(pattern: str, place: Place) -> None:
    fix = r"write one such as ([\w-]+)\s*:\s*([0-9.eE+-]+)"
    if ";" in pattern:
        raise place.error(shorten(pattern), "Katib joins filters with ;", fix)
    try:
        compiled = compile_filter(pattern)
    except UsageError as error:
        raise place.error(error.seen, error.needed, error.fix) from None
    # A group inside the first one would be taken for the value.
    if _count_top_groups(_strip_classes(compiled.pattern)) < 2:
        raise place.error(shorten(pattern), "two groups side by side are needed, for name and value", fix)


def _strip_classes(pattern: str) -> str:
    r"""Return a pattern with escaped characters and sets replaced, so that every parenthesis left is syntax.

    >>> _strip_classes(r"([\w-]+)\((?:[()])")
    '(_+)_(?:_)'
    """
    return re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "_", pattern, flags=re.DOTALL)


def _count_top_groups(bare: str) -> int:
    """Return how many capturing groups begin outside every other before one begins inside another.

    The first two groups are name and value, so a group inside the first one would be taken for the value.
    """
    inside: list[bool] = []
    count = 0
    for found in re.finditer(r"\((\?P?<\w+>|\?)?|\)", bare):
        if found[0] == ")":
            if inside:
                inside.pop()
        elif found[1] == "?":
            inside.append(False)
        elif any(inside):
            if count < 2:
                return count
            inside.append(True)
        else:
            count += 1
            inside.append(True)
    return count


def read_template(
    spec: Mapping[str, Any], parameters: Sequence[Parameter], collector: Collector, place: Place
) -> TrialTemplate:
    """Read `spec.trialTemplate`, with the default conditions, and check what it takes from the search space."""
    place = place.of("trialTemplate")
    values = needed_mapping(spec, "trialTemplate", place, "primaryContainerName, trialParameters and trialSpec")
    container = needed_text(values, "primaryContainerName", place)
    resource, config = values.get("trialSpec"), values.get("configMap")
    if (resource is None) == (config is None):
        seen = "neither trialSpec nor configMap" if resource is None else "both trialSpec and configMap"
        raise place.error(seen, "one of them is needed", "write trialSpec" if resource is None else "remove one")
    if values.get("trialParameters") is None:
        raise place.of("trialParameters").error(
            "nothing", "the template's parameters are needed", "write name and reference of each"
        )
    if resource is None:
        for field in ("configMapName", "configMapNamespace", "templatePath"):
            needed_text(config or {}, field, place.of("configMap"))
    else:
        _check_resource(resource, container, place.of("trialSpec"))
    kind = "" if resource is None else resource["kind"]
    defaults = _CONDITIONS.get(kind, ("", ""))
    success, failure = values.get("successCondition") or defaults[0], values.get("failureCondition") or defaults[1]
    for field, condition in (("successCondition", success), ("failureCondition", failure)):
        if not condition:
            needed = f"Katib has a default for the kinds {', '.join(sorted(_CONDITIONS))} in a trialSpec"
            raise place.of(field).error("nothing", needed, f"write {field}")
    references = _read_trial_parameters(values["trialParameters"], parameters, resource, place.of("trialParameters"))
    if resource is not None:
        _check_placeholders(resource, references, parameters, collector, place)
    return TrialTemplate(container, references, resource, bool(values.get("retain")), success, failure)


def _check_resource(resource: Mapping[str, Any], container: str, place: Place) -> None:
    for field in ("apiVersion", "kind"):
        if not isinstance(resource.get(field), str) or not resource[field]:
            raise place.of(field).error(shorten(resource.get(field)), "text is needed", f"write {field}")
    metadata = resource.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise place.of("metadata").error(shorten(metadata), "a mapping is needed", "write a mapping, or remove it")
    for field in ("name", "namespace"):
        if (metadata or {}).get(field):
            where = place.of("metadata").of(field)
            raise where.error(shorten((metadata or {})[field]), f"Katib sets a trial's {field}", f"remove {field}")
    if (resource["apiVersion"], resource["kind"]) != ("batch/v1", "Job"):
        return
    check_job(resource, place)
    pod = resource["spec"]["template"].get("spec")
    where = place.of("spec").of("template").of("spec")
    if pod is None:
        raise where.error("nothing", "a pod spec is needed", "write spec with containers")
    names = [entry["name"] for entry in pod["containers"]]
    if container not in names:
        raise Place(place.file, "spec.trialTemplate.primaryContainerName").unknown(
            "container", container, names, fix="write the name of a container in trialSpec"
        )
    for index, entry in enumerate(pod["containers"]):
        if "image" not in entry:
            raise where.of("containers").at(index).of("image").error("nothing", "an image is needed", "write image")
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        seen = shorten(pod["restartPolicy"]) if "restartPolicy" in pod else "nothing, which means Always"
        raise where.of("restartPolicy").error(seen, "a Job's pod has Never or OnFailure", "write restartPolicy: Never")


def _read_trial_parameters(
    entries: Sequence[Mapping[str, Any]],
    parameters: Sequence[Parameter],
    resource: Mapping[str, Any] | None,
    place: Place,
) -> dict[str, str]:
    searched = [parameter.name for parameter in parameters]
    references: dict[str, str] = {}
    for index, entry in enumerate(entries):
        where = place.at(index)
        name, reference = needed_text(entry, "name", where), needed_text(entry, "reference", where)
        if not name.isascii() or not name.isprintable() or not _TRIAL_PARAMETER.fullmatch(name):
            needed = 'a name of ASCII characters without {, }, ", \\, <, > and & is needed'
            raise where.of("name").error(shorten(name), needed, "rename it, here and in trialSpec")
        if name in references:
            raise where.of("name").error(f"{shorten(name)} a second time", "names are unique", "rename one of them")
        if reference in references.values():
            fix = "remove the entry, and use the other one's placeholder twice"
            raise where.of("reference").error(f"{shorten(reference)} a second time", "references are unique", fix)
        if reference not in searched:
            _check_metadata_reference(reference, searched, resource, where.of("reference"))
        references[name] = reference
    for missing in searched:
        if missing not in references.values():
            needed = "every parameter of the search has a trial parameter, or Katib cannot make a trial"
            raise place.error(f"no reference to {shorten(missing)}", needed, f"add one with reference: {missing}")
    return references


def _check_metadata_reference(
    reference: str, searched: Sequence[str], resource: Mapping[str, Any] | None, place: Place
) -> None:
    found = _METADATA.fullmatch(reference)
    if found is None:
        raise place.unknown("parameter", reference, searched, fix="write the name of a parameter, or add the parameter")
    key, index = found["key"], found["index"]
    if key not in _METADATA_KEYS:
        raise place.unknown("field of trialSpec", key, _METADATA_KEYS)
    if (index is not None) != (key in ("Labels", "Annotations")):
        needed = "Labels and Annotations have a key in brackets, the others have none"
        raise place.error(shorten(reference), needed, "write such as ${trialSpec.Labels[team]}")
    if resource is None or index is None:
        return
    values = (resource.get("metadata") or {}).get(key.lower()) or {}
    if not isinstance(values, dict) or not isinstance(values.get(index), str):
        known = values if isinstance(values, dict) else ()
        raise place.unknown(f"key in trialSpec.metadata.{key.lower()}", index, known, fix="add it there")


def _check_placeholders(
    resource: Mapping[str, Any],
    references: Mapping[str, str],
    parameters: Sequence[Parameter],
    collector: Collector,
    place: Place,
) -> None:
    texts = list(_walk_texts(resource, place.of("trialSpec"), False))
    for index, name in enumerate(references):
        if not any(f"${{trialParameters.{name}}}" in text for _, text, _ in texts):
            where = place.of("trialParameters").at(index).of("name")
            needed = f"trialSpec has no ${{trialParameters.{name}}}"
            raise where.error(shorten(name), needed, "write the placeholder into trialSpec, or remove the entry")
    values = _substituted(resource, references, parameters)
    for where, text, in_command in texts:
        left = text
        for name, substituted in values.items():
            placeholder = f"${{trialParameters.{name}}}"
            if placeholder not in text:
                continue
            left = left.replace(placeholder, "")
            broken = next((value for value in substituted if _BREAKS_SHELL.search(value)), None)
            if in_command and broken is not None and collector.kind in _REWRITING:
                needed = f"Katib's {collector.kind} collector runs the command by sh -c, unquoted, which this breaks"
                raise where.error(
                    f"{placeholder} with the value {shorten(broken)}", needed, "pass it by env, or rename the value"
                )
        unknown = _PLACEHOLDER.search(left)
        if unknown:
            name = unknown[0].removeprefix("${trialParameters.").removesuffix("}")
            raise where.unknown("trial parameter", name, references, fix="add it to trialParameters")
        if "${trialSpec." in left:
            needed = "${trialSpec.…} stands in the reference of a trial parameter only"
            raise where.error(shorten(text), needed, "add a trial parameter for it, and write ${trialParameters.…}")


def _substituted(
    resource: Mapping[str, Any], references: Mapping[str, str], parameters: Sequence[Parameter]
) -> dict[str, tuple[str, ...]]:
    """Return the texts that may take each trial parameter's place, as far as they are not plain numbers or names."""
    by_name = {parameter.name: parameter.values for parameter in parameters}
    substituted: dict[str, tuple[str, ...]] = {}
    for name, reference in references.items():
        found = None if reference in by_name else _METADATA.fullmatch(reference)
        if found is not None and found["index"] is not None:
            substituted[name] = (str(resource["metadata"][found["key"].lower()][found["index"]]),)
        else:
            substituted[name] = by_name.get(reference, ())
    return substituted


def _walk_texts(value: object, place: Place, in_command: bool) -> Iterator[tuple[Place, str, bool]]:
    """Yield every text of a resource, keys too, with its place and whether it is part of a command."""
    if isinstance(value, str):
        yield place, value, in_command
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _walk_texts(element, place.at(index), in_command)
    elif isinstance(value, dict):
        for name, element in value.items():
            yield place.of(name), name, False
            yield from _walk_texts(element, place.of(name), in_command or name in ("command", "args"))
