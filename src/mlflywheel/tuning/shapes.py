"""Names and types of a Katib document, checked along the types of `kubeflow_katib_api` and of a Kubernetes Job.

Katib drops a field it does not know, so a misspelt `maxTrialCout` is a search without an end. Here it is refused.
"""

import re
import types
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Required, TypedDict, Union, get_args, get_origin, get_type_hints

from mlflywheel.errors import MissingExtraError, UsageError
from mlflywheel.tuning.fields import Place, shorten

_INT32 = 2**31
#: Go leaves these out when they are false or 0, and Katib's webhook then misses them in its copy of the Job.
_VANISHING_FLAGS = frozenset({"hostIPC", "hostNetwork", "hostPID", "readOnly", "stdin", "stdinOnce", "tty"})
_VANISHING_NUMBERS = frozenset(
    {"failureThreshold", "hostPort", "initialDelaySeconds", "periodSeconds", "successThreshold", "timeoutSeconds"}
)
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?", re.ASCII)
#: Lists and texts that Go writes even when they are empty.
_KEPT_EMPTY = frozenset({"containers", "storageClassName", "runtimeClassName"})


def check_experiment_spec(spec: object, place: Place) -> None:
    """Check names and types of an Experiment's `spec`, down to and without `trialTemplate.trialSpec`.

    Raises:
        UsageError: Naming the field.
        MissingExtraError: If `kubeflow_katib_api` is not installed.
    """
    try:
        from kubeflow_katib_api.models import V1beta1ExperimentSpec
    except ImportError as error:
        raise MissingExtraError.of("kubeflow-katib-api", "tuning", "reading an Experiment") from error
    _check(spec, V1beta1ExperimentSpec, place, exact=False)


class _OnExitCodes(TypedDict, total=False):
    containerName: str
    operator: Required[str]
    values: Required[list[int]]


class _OnPodCondition(TypedDict, total=False):
    type: Required[str]
    status: str


class _FailureRule(TypedDict, total=False):
    action: Required[str]
    onExitCodes: _OnExitCodes
    onPodConditions: list[_OnPodCondition]


class _FailurePolicy(TypedDict):
    rules: list[_FailureRule]


class _SuccessRule(TypedDict, total=False):
    succeededIndexes: str
    succeededCount: int


class _SuccessPolicy(TypedDict):
    rules: list[_SuccessRule]


class _JobSpec(TypedDict, total=False):
    """`batch/v1` JobSpec of Kubernetes 1.34, which Katib is built with; selector and template are checked apart."""

    activeDeadlineSeconds: int
    backoffLimit: int
    backoffLimitPerIndex: int
    completionMode: str
    completions: int
    managedBy: str
    manualSelector: bool
    maxFailedIndexes: int
    parallelism: int
    podFailurePolicy: _FailurePolicy
    podReplacementPolicy: str
    selector: Any
    successPolicy: _SuccessPolicy
    suspend: bool
    template: Required[Any]
    ttlSecondsAfterFinished: int


class _Job(TypedDict, total=False):
    apiVersion: Required[str]
    kind: Required[str]
    metadata: Any
    spec: Required[_JobSpec]
    status: Any


def check_job(job: Mapping[str, Any], place: Place) -> None:
    """Check a `batch/v1` Job as Katib's webhook does: what Go's types cannot hold, or would leave out, is refused.

    Katib reads the Job into Kubernetes' types, writes it again and refuses it if anything is lost. That strikes
    unknown fields, wrong types, null, and what Go leaves out when empty: `args: []`, `value: ""`, `tty: false`.

    Raises:
        UsageError: Naming the field.
    """
    from kubeflow_katib_api.models import (
        IoK8sApiCoreV1PodTemplateSpec,
        IoK8sApimachineryPkgApisMetaV1LabelSelector,
        IoK8sApimachineryPkgApisMetaV1ObjectMeta,
    )

    _check(job, _Job, place, exact=True)
    spec = job["spec"]
    parts = [
        (job, "metadata", IoK8sApimachineryPkgApisMetaV1ObjectMeta, place),
        (spec, "selector", IoK8sApimachineryPkgApisMetaV1LabelSelector, place.of("spec")),
        (spec, "template", IoK8sApiCoreV1PodTemplateSpec, place.of("spec")),
    ]
    for holder, name, shape, where in parts:
        if name in holder:
            _check(holder[name], shape, where.of(name), exact=True)


def _check(value: object, shape: Any, place: Place, *, exact: bool) -> None:
    """Check a value against a type: a pydantic model, a TypedDict, a list, a mapping, a scalar or a choice of them.

    Args:
        value: What was written.
        shape: The type.
        place: Where it was written.
        exact: Whether Katib refuses what Go would leave out; else null is the same as absent, as Go has it.
    """
    choices = _choices(shape)
    if Any in choices:
        return
    shape = choices[0]
    if value is None:
        raise place.error("null", f"{_name(choices)} is needed", "write a value, or remove the field")
    fields = _fields(shape)
    if fields is not None:
        _check_fields(value, fields, place, exact=exact)
    elif get_origin(shape) is list:
        if not isinstance(value, list):
            raise _wrong_type(value, choices, place)
        for index, element in enumerate(value):
            _check(element, get_args(shape)[0], place.at(index), exact=exact)
    elif get_origin(shape) is dict:
        if not isinstance(value, dict):
            raise _wrong_type(value, choices, place)
        for name, element in value.items():
            _check(element, get_args(shape)[1], place.of(name), exact=exact)
    else:
        _check_scalar(value, choices, place)


def _check_fields(value: object, fields: Mapping[str, tuple[Any, bool]], place: Place, *, exact: bool) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(value, (dict,), place)
    for name, element in value.items():
        if name not in fields:
            raise place.of(name).unknown("field", name, fields)
        if element is None and not exact:
            continue
        shape, required = fields[name]
        _check(element, shape, place.of(name), exact=exact)
        if exact and _vanishes(name, element, shape):
            raise place.of(name).error(
                str(element).lower() if isinstance(element, bool) else repr(element),
                "it must not be empty"
                if required
                else "Katib refuses a Job with a field that Go leaves out when it is empty",
                f"write {name}" if required else "remove the field",
            )
    if exact:
        for name, (shape, required) in fields.items():
            if required and name not in value:
                raise place.of(name).error("nothing", f"{_name(_choices(shape))} is needed", f"write {name}")


def _check_scalar(value: object, choices: tuple[Any, ...], place: Place) -> None:
    fits = (
        (isinstance(value, str) and str in choices)
        or (isinstance(value, bool) and bool in choices)
        or (isinstance(value, int) and not isinstance(value, bool) and (int in choices or float in choices))
        or (isinstance(value, float) and float in choices)
    )
    if not fits:
        raise _wrong_type(value, choices, place)
    name = place.path.rpartition(".")[2]
    if name.endswith("TrialCount") and isinstance(value, int) and not -_INT32 <= value < _INT32:
        raise place.error(shorten(value), "a number of 32 bits is needed", "write a smaller number")
    if isinstance(value, str) and _is_quantity(choices) and not _QUANTITY.fullmatch(value):
        raise place.error(shorten(value), "a quantity such as 500m, 2 or 4Gi is needed", "write a quantity")


def _vanishes(name: str, value: object, shape: Any) -> bool:
    """Return whether Go leaves a field out because its value is empty; pointers and structs it keeps."""
    if name in _KEPT_EMPTY:
        return False
    if isinstance(value, bool):
        return not value and name in _VANISHING_FLAGS
    if isinstance(value, int):
        return value == 0 and name in _VANISHING_NUMBERS
    return value in ("", []) or (value == {} and get_origin(_choices(shape)[0]) is dict)


def _is_quantity(choices: tuple[Any, ...]) -> bool:
    return float in choices and str in choices


def _choices(shape: Any) -> tuple[Any, ...]:
    """Return the types a value may have, without None, annotations and the models' wrappers of two types."""
    origin = get_origin(shape)
    if origin is Annotated or origin is Required:
        return _choices(get_args(shape)[0])
    if origin in (Union, types.UnionType):
        return tuple(choice for part in get_args(shape) if part is not type(None) for choice in _choices(part))
    if shape is datetime:
        return (str,)
    # A quantity such as 500m, and a port by number or name.
    wrapped = getattr(shape, "model_fields", {}).get("actual_instance")
    return (shape,) if wrapped is None else _choices(wrapped.annotation)


def _fields(shape: Any) -> dict[str, tuple[Any, bool]] | None:
    """Return a mapping type's fields, each with its type and whether it is required; None for other types."""
    models = getattr(shape, "model_fields", None)
    if models is not None:
        return {field.alias or name: (field.annotation, field.is_required()) for name, field in models.items()}
    required = getattr(shape, "__required_keys__", None)
    if required is not None:
        return {name: (kind, name in required) for name, kind in get_type_hints(shape).items()}
    return None


def _name(choices: tuple[Any, ...]) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if float in choices:
        choices = tuple(choice for choice in choices if choice is not int)
    kinds = ["a list" if get_origin(choice) is list else names.get(choice, "a mapping") for choice in choices]
    return " or ".join(dict.fromkeys(kinds))


def _wrong_type(value: object, choices: tuple[Any, ...], place: Place) -> UsageError:
    kinds = {
        bool: f"{str(value).lower()} without quotes",
        int: f"the number {shorten(value)}",
        float: f"the number {shorten(value)}",
        str: f"the text {shorten(value)}",
        list: "a list",
        dict: "a mapping",
    }
    fix = f"write {_name(choices)}"
    if str in choices and isinstance(value, bool | int | float):
        fix = f'put it in quotes: "{str(value).lower()}"'
    elif isinstance(value, str) and "${trialParameters." in value:
        fix = "leave the placeholder to text fields such as args and env"
    return place.error(kinds[type(value)], f"{_name(choices)} is needed", fix)
