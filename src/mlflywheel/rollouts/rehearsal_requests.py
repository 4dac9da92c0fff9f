"""Recorded requests for a rehearsal: JSON lines in, bodies to send out.

A line is one of these:

    {"instances": [{...}, ...]}                                   a V1 body
    {"inputs": [{"name": ..., "datatype": ..., ...}, ...]}        a V2 body
    {...}                                                         one instance of the model's request
    {"body": any of the three, "request_id"?, "time"?, "path"?, "groups"?, "label"?}
    {"specversion": "1.0", "type": "org.kubeflow.serving.inference.request", "id", "data", ...}

The last one is what KServe's logger sends, as a CloudEvent in JSON; its `...response` events are left out. `path` says
V1 or V2 by its ending; the model's name in it is not used. An instance whose model has a field `body` that holds an
object must stand in a `body` itself. Blank lines are left out. The file may be compressed with gzip.

A label says what the right answer would have been, or how bad one version's answer was:

    {"metric"?: "quality", "expected": {"column": value, ...}}            one object an instance where there are several
    {"metric"?: "quality", "arm": "stable" | "candidate", "loss": 0.0 to 1.0}

A file of labels has one of these a line, with its `request_id`. `metric` may be left out where the policy has only one
metric of labels.
"""

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO, Literal

from mlflywheel.decisions.canary.evidence import ArmName
from mlflywheel.decisions.canary.policy import LabelsMetric, Policy
from mlflywheel.errors import DataError

Protocol = Literal["v1", "v2"]

_REQUEST_EVENT = "org.kubeflow.serving.inference.request"
_FIELDS = ("body", "request_id", "time", "path", "groups", "label")
_GZIP = b"\x1f\x8b"
_LONGEST_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Expectation:
    """A label.

    Args:
        metric: Name of the policy's metric; empty where the policy has none that fits.
        expected: The right values by column, one mapping an instance; None with a loss.
        arm: Whose answer the loss is about; None with `expected`.
        loss: 0 for as good as can be, 1 for as bad.
    """

    metric: str
    expected: tuple[Mapping[str, Any], ...] | None = None
    arm: ArmName | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class RecordedRequest:
    """A request to be sent again.

    Args:
        line: Its line in the file, from 1.
        request_id: From the file; made of the line where there is none.
        protocol: `v1` or `v2`.
        body: JSON, as it is sent.
        groups: Group by attribute, such as `{"locale": "de"}`.
        expectations: What is known about its answers.
    """

    line: int
    request_id: str
    protocol: Protocol
    body: bytes
    groups: Mapping[str, str] = field(default_factory=dict)
    expectations: tuple[Expectation, ...] = ()


@dataclass(frozen=True)
class Recording:
    """All recorded requests.

    Args:
        source: Where they were read.
        requests: In the order of the file.
        sha256: Of the file's bytes, `sha256:` and hexadecimal digits.
        left_out: Lines that hold no request, by what they hold.
        notes: What a reader of the report should know, such as labels of unknown requests.
    """

    source: str
    requests: tuple[RecordedRequest, ...]
    sha256: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_requests(file: BinaryIO, source: str, policy: Policy) -> Recording:
    r"""Read recorded requests.

    Args:
        file: JSON lines, perhaps compressed with gzip; seekable.
        source: What to call it in an error.
        policy: Whose metrics labels are about.

    Raises:
        DataError: A line is not as documented, an id stands twice, or there is no request; the message names the line.

    >>> from io import BytesIO
    >>> recording = read_requests(BytesIO(b'{"instances": [1]}\n{"terms": ["a"]}\n'), "requests.jsonl", Policy())
    >>> [(one.request_id, one.body) for one in recording.requests]
    [('line 1', b'{"instances":[1]}'), ('line 2', b'{"instances":[{"terms":["a"]}]}')]
    """
    requests: list[RecordedRequest] = []
    left_out: dict[str, int] = {}
    seen: dict[str, int] = {}
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    for number, values in _read_lines(file, source):
        where = f"{source}, line {number}"
        found = _read_request(values, number, where, policy)
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
            continue
        if found.request_id in seen:
            raise DataError(
                where,
                f"request id {found.request_id!r}, as in line {seen[found.request_id]}",
                "each request needs its own id",
                "remove the repeated line, or give it another id",
            )
        seen[found.request_id] = number
        requests.append(found)
    if not requests:
        raise DataError(
            source,
            "no request" + "".join(f", {count} x {kind}" for kind, count in left_out.items()),
            "at least one recorded request is needed",
            "record some, as the documentation of rehearsals shows",
        )
    return Recording(source, tuple(requests), f"sha256:{digest.hexdigest()}", left_out)


def add_labels(recording: Recording, file: BinaryIO, source: str, policy: Policy) -> Recording:
    """Join a file of labels with the requests that they are about.

    Raises:
        DataError: A line is not as documented, or no label is about any of the requests.
    """
    by_id: dict[str, list[Expectation]] = {}
    for number, values in _read_lines(file, source):
        where = f"{source}, line {number}"
        request_id = values.pop("request_id", None)
        if not isinstance(request_id, str) or not request_id:
            raise DataError(f"{where}, request_id", _show(request_id), "a text is needed", "write the request's id")
        by_id.setdefault(request_id, []).append(_read_expectation(values, where, policy))
    known = {request.request_id for request in recording.requests}
    unknown = len(by_id.keys() - known)
    if not by_id.keys() & known:
        raise DataError(
            source,
            f"labels of {len(by_id):,} requests, none of which stands in {recording.source}",
            "labels of the recorded requests are needed",
            "write the same request_id in both files",
        )
    requests = tuple(
        replace(request, expectations=(*request.expectations, *by_id.get(request.request_id, ())))
        for request in recording.requests
    )
    notes = (f"labels of {unknown:,} requests that are not among the recorded ones",) if unknown else ()
    return replace(recording, requests=requests, notes=(*recording.notes, *notes))


def _read_lines(file: BinaryIO, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    is_compressed = file.read(2) == _GZIP
    file.seek(0)
    lines: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if is_compressed else file
    number = 0
    try:
        while line := lines.readline(_LONGEST_LINE_BYTES):
            number += 1
            where = f"{source}, line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    where, f"not JSON ({error})", "one JSON object a line is needed", "correct or remove the line"
                ) from None
            if not isinstance(values, dict):
                raise DataError(where, _show(values), "a JSON object is needed", "correct or remove the line")
            yield number, values
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{source}, after line {number}", f"broken gzip ({error})", "a whole file is needed", "copy it again"
        ) from None


def _read_request(values: dict[str, Any], line: int, where: str, policy: Policy) -> RecordedRequest | str:
    """Return a request, or what else the line holds."""
    if isinstance(values.get("specversion"), str) and isinstance(values.get("type"), str):
        if values["type"] != _REQUEST_EVENT:
            return f"event {values['type']}"
        request_id = values.get("id") or f"line {line}"
        if not isinstance(request_id, str):
            raise DataError(f"{where}, id", _show(request_id), "a text is needed", "quote it")
        protocol, body = _read_body(_read_event_data(values, where), None, f"{where}, data")
        return RecordedRequest(line, request_id, protocol, body)
    if not isinstance(values.get("body"), dict):
        protocol, body = _read_body(values, None, where)
        return RecordedRequest(line, f"line {line}", protocol, body)
    for name in values:
        if name not in _FIELDS:
            raise DataError(
                f"{where}, {name}",
                "an unknown field beside body",
                f"known are {', '.join(_FIELDS)}",
                "remove it; an instance that has a field body is written in a body of its own",
            )
    request_id = values.get("request_id") or f"line {line}"
    if not isinstance(request_id, str):
        raise DataError(f"{where}, request_id", _show(request_id), "a text is needed", "quote it")
    groups = values.get("groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, str) for group in groups.values()):
        raise DataError(f"{where}, groups", _show(groups), "an object of texts is needed", 'write {"locale": "de"}')
    _check_time(values.get("time"), where)
    protocol, body = _read_body(values["body"], values.get("path"), f"{where}, body")
    label = values.get("label")
    expectations = () if label is None else (_read_expectation(label, f"{where}, label", policy),)
    return RecordedRequest(line, request_id, protocol, body, groups, expectations)


def _read_event_data(event: Mapping[str, Any], where: str) -> Any:
    """Return a CloudEvent's data, which may be an object, a text of JSON, or base64 of one."""
    data = event.get("data")
    try:
        if "data_base64" in event:
            data = base64.b64decode(str(event["data_base64"]), validate=True).decode()
        return json.loads(data, parse_constant=_refuse_constant) if isinstance(data, str) else data
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}, data", f"not JSON ({error})", "a V1 or V2 body is needed", "remove the line"
        ) from None


def _read_body(body: Any, path: Any, where: str) -> tuple[Protocol, bytes]:
    if not isinstance(body, dict):
        raise DataError(where, _show(body), "a JSON object is needed", "write the request's body")
    is_v2 = isinstance(body.get("inputs"), list) and all(
        isinstance(one, dict) and {"name", "datatype", "shape"} <= one.keys() for one in body["inputs"]
    )
    is_v1 = isinstance(body.get("instances"), list)
    if path is not None:
        is_v1 = isinstance(path, str) and path.endswith(":predict")
        is_v2 = isinstance(path, str) and path.endswith("/infer")
        if not (is_v1 or is_v2):
            raise DataError(
                f"{where.removesuffix('body')}path",
                _show(path),
                "it ends with :predict (V1) or /infer (V2)",
                "leave requests of other paths out",
            )
    if is_v2:
        return "v2", _write(_ask_for_json(body))
    return "v1", _write(body if is_v1 else {"instances": [body]})


def _ask_for_json(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a V2 body that asks for no binary data in the answer, which could not be compared by value."""
    asked = dict(body)
    if isinstance(asked.get("parameters"), dict):
        asked["parameters"] = {k: v for k, v in asked["parameters"].items() if k != "binary_data_output"}
    if isinstance(asked.get("outputs"), list):
        asked["outputs"] = [_without_binary(output) for output in asked["outputs"]]
    return asked


def _without_binary(output: Any) -> Any:
    if not (isinstance(output, dict) and isinstance(output.get("parameters"), dict)):
        return output
    return {**output, "parameters": {k: v for k, v in output["parameters"].items() if k != "binary_data"}}


def _read_expectation(label: Any, where: str, policy: Policy) -> Expectation:
    if not isinstance(label, dict):
        raise DataError(where, _show(label), "an object is needed", 'write {"expected": {"COLUMN": VALUE}}')
    for name in label:
        if name not in ("metric", "expected", "arm", "loss"):
            raise DataError(
                f"{where}, {name}", "an unknown field", "known are metric, expected, arm, loss", "remove it"
            )
    metric = _choose_metric(label.get("metric"), where, policy)
    if "expected" in label:
        if "loss" in label or "arm" in label:
            raise DataError(where, "expected and a loss", "one of them is needed", "remove one")
        expected = label["expected"]
        rows: Sequence[Any] = expected if isinstance(expected, list) else [expected]
        if not rows or not all(isinstance(row, dict) and row for row in rows):
            raise DataError(
                f"{where}, expected",
                _show(expected),
                "an object of values by column is needed, or a list of one an instance",
                'write {"COLUMN": VALUE}',
            )
        return Expectation(metric, tuple(rows))
    arm, loss = label.get("arm"), label.get("loss")
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss <= 1:
        raise DataError(
            f"{where}, loss", _show(loss), "a number from 0 to 1 is needed, or `expected`", "write one of the two"
        )
    if arm not in ("stable", "candidate"):
        raise DataError(
            f"{where}, arm",
            _show(arm),
            "stable or candidate is needed: both versions answer every request, and a loss is about one answer",
            "say whose answer the loss is about, or write `expected` in its place",
        )
    return Expectation(metric, None, "stable" if arm == "stable" else "candidate", float(loss))


def _choose_metric(name: Any, where: str, policy: Policy) -> str:
    known = [metric.name for metric in policy.metrics if isinstance(metric, LabelsMetric)]
    if name is None:
        if len(known) > 1:
            raise DataError(
                f"{where}, metric",
                "nothing",
                f"the policy has several metrics of labels: {', '.join(known)}",
                "say which one the label is about",
            )
        return known[0] if known else ""
    if not isinstance(name, str) or name not in known:
        raise DataError(
            f"{where}, metric",
            _show(name),
            f"the policy's metrics of labels are needed: {', '.join(known) or 'it has none'}",
            "correct the name, or add a metric of kind labels to the policy",
        )
    return name


def _check_time(value: Any, where: str) -> None:
    """Refuse what is no time. Requests are sent in the file's order and not at their times."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}, time", _show(value), "ISO 8601 or seconds since 1970 are needed", "correct it, or leave it out"
        ) from None


def _write(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
