r"""The strict reader of a Katib `Experiment` (`kubeflow.org/v1beta1`): YAML or JSON in, an `Experiment` out.

What Katib refuses is refused here, at once and with the field: its webhook's rules, and those that its suggestion
services apply once the search has begun. This reader is stricter than the webhook where the webhook lets pass what
is lost, or fails later:

- Names and types. Unknown fields (Katib drops them), duplicate keys, fields in another case; a null inside a Job.
- `metadata.name` is matched to its end; Katib's own pattern is open there, and its services' names then are invalid.
- Parameters: names are unique, ASCII and without spaces; types and distributions are known (Katib has `unknown`);
  int and double have finite numbers of their kind in plain decimals, ints up to 2^53, min <= max and 0 < step <= range;
  lists are not empty and have no value twice or empty; discrete values are numbers; logarithms need min > 0, normal
  ones min < max; values have no `"`, `\`, `${` or control characters, which break the template's JSON.
- Distributions that the algorithm's service leaves out or ignores: all but uniform outside random and tpe, but for
  logUniform with grid and multivariate-tpe.
- min = max for tpe, cmaes and bayesianoptimization; doubles from 0 or below for bayesianoptimization, which draws
  their logarithm; doubles without step for grid and pbt; fractions in discrete values for hyperband.
- Settings: names that the service ignores, names twice, seeds over 2^32 - 1, and values that only fail in the search
  (hyperband's r_l below 1 and eta below 2, cmaes' sigma of 0, multivariate-tpe without candidates,
  bayesianoptimization's EIps and PIps and lbfgs without gradients, pbt's resample_probability, grids that are
  smaller than maxTrialCount). Settings are those of Katib's default services: tpe has hyperopt's, not Optuna's.
- Objective: the goal is finite; additional metrics and strategies are named once, strategies are known and for metrics
  that there are; names that Katib's default filter cannot find need a filter.
- Collector: filters are read for StdOut too, have two groups side by side and only syntax that Go's and Python's
  regular expressions share; early stopping needs StdOut or File.
- Template: every parameter has a trial parameter; names are ASCII; labels and annotations that are referred to exist;
  `${trialSpec.…}` stands in references only; the primary container is one of the Job's, which has images, and
  restartPolicy Never or OnFailure; values that the unquoted `sh -c` of Katib's collectors would break do not stand in
  a command.
- Neural architecture search (`nasConfig`, enas, darts) is not read.

What it does not see: whether images, ConfigMaps and claims exist, whether a cluster's administrator has mapped an
algorithm to another service, and what is in resources of other kinds than Job.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import API_VERSION, KIND, Experiment, ResumePolicy
from mlflywheel.tuning.fields import Place, is_finite, read_choice, shorten
from mlflywheel.tuning.rules import read_algorithm, read_counts, read_early_stopping, read_objective, read_parameters
from mlflywheel.tuning.shapes import check_experiment_spec
from mlflywheel.tuning.templates import read_collector, read_template

#: Far above any Experiment, and what PyYAML reads in seconds.
_LARGEST = 2**18
_MOST_VALUES = 100_000
_DEEPEST = 60
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_LONGEST_NAME = 40
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_RESUME_POLICIES: tuple[ResumePolicy, ...] = ("Never", "LongRunning", "FromVolume")
_METADATA = ("annotations", "labels", "name", "namespace")
#: What the API server adds to metadata; it would be refused, or mean nothing, in another cluster.
_SERVER_METADATA = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_KUBECTL_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"


def read_experiment_file(path: Path) -> Experiment:
    """Read an Experiment from a file.

    Args:
        path: A YAML or JSON file, UTF-8.

    Raises:
        UsageError: The file cannot be read, or `read_experiment` refuses it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            str(path), reason, "a file with a Katib Experiment, in UTF-8, is needed", "check the path"
        ) from error
    return read_experiment(text, str(path))


def read_experiment(source: str, where: str = "experiment") -> Experiment:
    """Read an Experiment from YAML or JSON, by Katib's rules and those of this module.

    Defaults are filled in as Katib does, in the typed parts; `Experiment.document` stays as it was written, without
    `status` and what a server adds to `metadata`.

    Args:
        source: One YAML document, or JSON.
        where: What the source is called in errors, as a file's name.

    Raises:
        UsageError: Names the source and the field, as in `experiment.yaml, spec.parameters[2].feasibleSpace.min`.
        MissingExtraError: If `kubeflow_katib_api` is not installed.

    >>> read_experiment("kind: Experiment", "e.yaml")
    Traceback (most recent call last):
        ...
    mlflywheel.errors.UsageError: e.yaml, apiVersion: nothing; it is kubeflow.org/v1beta1. Fix: write it so.
    """
    root = Place(where)
    if len(source.encode("utf-8", "surrogatepass")) > _LARGEST:
        raise root.error(f"more than {_LARGEST} bytes", "an Experiment is smaller", "make it smaller")
    document = _Copier().copy(_parse(source, root), root, 0)
    if not isinstance(document, dict):
        seen = "nothing" if document is None else "no mapping"
        raise root.error(seen, "a mapping with apiVersion, kind, metadata and spec is needed", "write an Experiment")
    for name, needed in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(name) != needed:
            seen = shorten(document[name]) if name in document else "nothing"
            raise root.of(name).error(seen, f"it is {needed}", "write it so")
    for name in document:
        if name not in ("apiVersion", "kind", "metadata", "spec", "status"):
            raise root.of(name).unknown("field", name, ("apiVersion", "kind", "metadata", "spec"))
    document.pop("status", None)
    metadata = _read_metadata(document.get("metadata"), root.of("metadata"))
    document["metadata"] = metadata
    spec, place = document.get("spec"), root.of("spec")
    if not isinstance(spec, dict):
        raise place.error("nothing" if spec is None else "no mapping", "a spec is needed", "write a mapping")
    if spec.get("nasConfig") is not None:
        needed = "neural architecture search is not read"
        raise place.of("nasConfig").error("nasConfig", needed, "write parameters, or hand the file to Katib itself")
    check_experiment_spec(spec, place)
    return _build(document, spec, metadata["name"], place)


def _build(document: dict[str, Any], spec: Mapping[str, Any], name: str, place: Place) -> Experiment:
    objective = read_objective(spec, place)
    parallel_trials, max_trials, max_failed_trials = read_counts(spec, place)
    parameters = read_parameters(spec, place)
    algorithm, settings = read_algorithm(spec, parameters, parallel_trials, max_trials, place)
    collector = read_collector(spec, objective, place)
    return Experiment(
        name,
        objective,
        algorithm,
        settings,
        parameters,
        read_template(spec, parameters, collector, place),
        parallel_trials,
        max_trials,
        max_failed_trials,
        read_early_stopping(spec, collector, place),
        collector,
        document,
        read_choice(spec.get("resumePolicy") or "Never", _RESUME_POLICIES, place.of("resumePolicy")),
    )


def _read_metadata(values: object, place: Place) -> dict[str, Any]:
    """Return name, namespace, labels and annotations, checked."""
    if not isinstance(values, dict):
        seen = "nothing" if values is None else "no mapping"
        raise place.error(seen, "metadata with a name is needed", "write metadata with a name")
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name in _SERVER_METADATA or (value is None and name in _METADATA):
            continue
        if name in ("name", "namespace"):
            if not isinstance(value, str):
                raise place.of(name).error(shorten(value), "text is needed", f"write a {name} in quotes")
        elif name in ("labels", "annotations"):
            value = _read_labels(value, place.of(name))
        else:
            raise place.of(name).unknown("field", name, _METADATA)
        kept[name] = value
    name = kept.get("name", "")
    needed = f"at most {_LONGEST_NAME} of a-z, 0-9 and -, from a letter to a letter or digit, are needed"
    if not name:
        raise place.of("name").error("nothing", needed, "write a name")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise place.of("name").error(
            shorten(name), needed, "write a shorter name" if _NAME.fullmatch(name) else "rename it"
        )
    if "namespace" in kept and not _NAMESPACE.fullmatch(kept["namespace"]):
        needed = "a namespace has at most 63 of a-z, 0-9 and -"
        raise place.of("namespace").error(shorten(kept["namespace"]), needed, "write a namespace, or remove it")
    return kept


def _read_labels(values: object, place: Place) -> dict[str, str]:
    if not isinstance(values, dict):
        raise place.error(shorten(values), "a mapping of text to text is needed", "write a mapping, or remove it")
    for name, value in values.items():
        if not isinstance(value, str):
            raise place.of(name).error(shorten(value), "text is needed", "put it in quotes")
    return {name: value for name, value in values.items() if name != _KUBECTL_ANNOTATION}


class _DuplicateKeyError(Exception):
    """A mapping names a key twice; the message is the key."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the plain scalars that kubectl reads, and without duplicate keys.

    `1e-3` is a number to kubectl and text to PyYAML, `1:30` and dates are the other way round.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; here merged keys are not yet in it, so that they may be replaced."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                identity = (key.tag, key.value)
                if identity in seen:
                    raise _DuplicateKeyError(f"line {key.start_mark.line + 1}: {key.value!r}")
                seen.add(identity)
        return node


_REPLACED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def _parse(source: str, place: Place) -> object:
    """Parse JSON or one YAML document into plain values."""
    try:
        if source.lstrip().startswith("{"):
            try:
                return json.loads(source, object_pairs_hook=_refuse_duplicates)
            except json.JSONDecodeError:
                # A YAML flow mapping begins like JSON.
                pass
        return _parse_yaml(source, place)
    except _DuplicateKeyError as error:
        raise place.error(f"{error} a second time", "every key stands once in a mapping", "remove one") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise place.error(f"{line}{error.problem}", "YAML or JSON is needed", "mend it there") from None
    # PyYAML's constructors let these pass for tags that a value does not fit, such as !!bool 5.
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise place.error(shorten(str(error)), "YAML or JSON of plain values is needed", "mend it") from None
    except RecursionError:
        raise _too_large(place, "lists or mappings inside each other without end") from None


def _parse_yaml(source: str, place: Place) -> object:
    loader = _Loader(source)
    try:
        documents = []
        while loader.check_node():
            node = loader.get_node()
            # kubectl skips an empty document.
            if not (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
                documents.append(node)
        if len(documents) > 1:
            raise place.error(
                f"{len(documents)} documents", "one Experiment is needed", "put each in a file of its own"
            )
        return loader.construct_document(documents[0]) if documents else None
    finally:
        loader.dispose()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise _DuplicateKeyError(repr(name))
        values[name] = value
    return values


class _Copier:
    """Copies plain values, so that what YAML's aliases share is apart, and refuses what JSON cannot hold."""

    def __init__(self) -> None:
        self._count = 0

    def copy(self, value: object, place: Place, depth: int) -> Any:
        """Return a copy of a value.

        Args:
            value: What was parsed.
            place: Where it stands.
            depth: How many lists and mappings it stands in.
        """
        self._count += 1
        # A few aliases of aliases are more values than a memory holds, and an alias of itself never ends.
        if self._count > _MOST_VALUES or depth > _DEEPEST:
            root = Place(place.file)
            raise _too_large(root, f"more than {_MOST_VALUES} values, or {_DEEPEST} levels, with aliases written out")
        if isinstance(value, dict):
            copied = {}
            for name, element in value.items():
                if not isinstance(name, str):
                    raise place.error(f"the key {shorten(name)}", "keys are text", f'write "{name}" in quotes')
                self._check_text(name, place)
                copied[name] = self.copy(element, place.of(name), depth + 1)
            return copied
        if isinstance(value, list):
            return [self.copy(element, place.at(index), depth + 1) for index, element in enumerate(value)]
        if isinstance(value, str):
            self._check_text(value, place)
        elif isinstance(value, int | float):
            if not is_finite(value) or (isinstance(value, int) and abs(value) >= 2**63):
                raise place.error(shorten(value), "a number that JSON holds is needed", "write a finite number")
        elif value is not None:
            kind = type(value).__name__
            raise place.error(f"a value of type {kind}", "text, numbers, lists and mappings are needed", "write text")
        return value

    def _check_text(self, text: str, place: Place) -> None:
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise place.error(shorten(text), "text without NUL and lone surrogates is needed", "remove the character")


def _too_large(place: Place, seen: str) -> UsageError:
    return place.error(seen, "an Experiment is smaller", "write it without")
