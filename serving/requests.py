"""From bytes to instances: V1 JSON, V2 JSON and V2 binary bodies, gRPC messages, and the model's own rules.

Nothing here knows HTTP or gRPC; a body that cannot be meant raises `BadRequestError`, which says where it is wrong.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaValidator

from mlflywheel.serving.refusals import BadRequestError, describe
from mlflywheel.serving.tensors import Tensor, check_rows, flatten, read_binary

if TYPE_CHECKING:
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest

_MAX_NUMBER = 2**63

#: Parts of a pydantic core schema that hold values of the model, not schemas.
_NO_SCHEMAS = frozenset({"config", "default", "expected", "metadata", "serialization"})

#: Field of `InferTensorContents` for each datatype; FP16 has none and must be sent raw.
_CONTENT_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class TensorRequest:
    """A V2 request.

    Args:
        id: What the client calls it, empty if nothing.
        tensors: Inputs.
        outputs: Names of the requested outputs, all if empty.
        binary_outputs: The outputs to send as binary data; None is all of them.
    """

    id: str
    tensors: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    binary_outputs: frozenset[str] | None


def parse_json(body: "bytes | memoryview", where: str, fix: str) -> Any:
    """Parse one JSON document.

    Raises:
        BadRequestError: Not JSON; NaN and lone surrogates are not.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            where,
            f"not JSON ({error.msg} at character {error.pos})" if len(body) else "empty",
            "one JSON object in UTF-8 is needed",
            fix,
        ) from None


def read_v1(body: bytes, example: Mapping[str, Any], max_rows: int) -> list[Any]:
    """Return the instances of a V1 body, still unchecked.

    Raises:
        BadRequestError: Not JSON, no list `instances`, or too many.
    """
    fix = f'send {{"instances": [{orjson.dumps(example).decode()}]}}'
    parsed = parse_json(body, "body", fix)
    if not isinstance(parsed, dict):
        raise BadRequestError("body", describe(parsed), "an object with `instances` is needed", fix)
    if "instances" not in parsed:
        raise BadRequestError("body", describe(parsed), "`instances` is needed", fix)
    instances = parsed["instances"]
    if not isinstance(instances, list):
        raise BadRequestError("instances", describe(instances), "a list is needed", fix)
    check_rows(len(instances), max_rows, "instances")
    return instances


def read_v2(body: bytes, json_length: str | None) -> TensorRequest:
    """Read a V2 body.

    Args:
        body: JSON, followed by binary data if a length is given.
        json_length: The header `inference-header-content-length`, None if it was not sent.

    Raises:
        BadRequestError: The body is not what the protocol says.
    """
    view = memoryview(body)
    if json_length is not None:
        if not re.fullmatch(r"[0-9]{1,10}", json_length) or int(json_length) > len(body):
            raise BadRequestError(
                "header inference-header-content-length",
                json_length[:40],
                f"the length of the JSON in this body of {len(body)} bytes is needed",
                "send the number of bytes before the binary data",
            )
        view = view[: int(json_length)]
    fix = "send the JSON first, and its length in the header inference-header-content-length if binary data follows"
    parsed = parse_json(view, "body", fix)
    if not isinstance(parsed, dict):
        raise BadRequestError("body", describe(parsed), "an object with `inputs` is needed", "send an object")
    name = _read_text(parsed, "id", "body", optional=True)
    parameters = _read_object(parsed, "parameters", "body")
    binary = memoryview(body)[len(view) :]
    tensors = []
    for position, item in enumerate(_read_list(parsed, "inputs", "body")):
        tensor, used = _read_tensor(item, f"inputs[{position}]", binary)
        tensors.append(tensor)
        binary = binary[used:]
    if not tensors:
        raise BadRequestError("inputs", "an empty list", "at least one input is needed", "send the model's inputs")
    if len(binary):
        raise BadRequestError(
            "body",
            f"{len(binary)} bytes that belong to no input",
            "the parameters `binary_data_size` of the inputs add up to the binary data",
            "correct them",
        )
    outputs, asked = [], {}
    for position, item in enumerate(_read_list(parsed, "outputs", "body", optional=True)):
        where = f"outputs[{position}]"
        if not isinstance(item, dict):
            raise BadRequestError(where, describe(item), "an object with `name` is needed", "correct it")
        output = _read_text(item, "name", where)
        outputs.append(output)
        asked[output] = _read_truth(_read_object(item, "parameters", where), "binary_data", where)
    everything = _read_truth(parameters, "binary_data_output", "body") or False
    if everything and not outputs:
        return TensorRequest(name, tuple(tensors), (), None)
    chosen = frozenset(output for output, wanted in asked.items() if (everything if wanted is None else wanted))
    return TensorRequest(name, tuple(tensors), tuple(outputs), chosen)


def _read_tensor(item: Any, where: str, binary: memoryview) -> tuple[Tensor, int]:
    """Return a tensor, and how many bytes of the binary data it takes."""
    if not isinstance(item, dict):
        raise BadRequestError(where, describe(item), "an object with name, shape, datatype and data", "correct it")
    name = _read_text(item, "name", where)
    datatype = _read_text(item, "datatype", where)
    shape = _read_list(item, "shape", where)
    if not all(type(size) is int and 0 <= size < _MAX_NUMBER for size in shape):
        raise BadRequestError(f"{where}.shape", "not whole numbers", "sizes from 0 are needed", "correct it")
    parameters = _read_object(item, "parameters", where)
    size = parameters.get("binary_data_size")
    if size is None:
        data = _read_list(item, "data", where)
        return Tensor(name, datatype, tuple(shape), flatten(data, len(shape))), 0
    if "data" in item:
        raise BadRequestError(where, "data and binary_data_size", "one of them is needed", "remove one")
    if type(size) is not int or not 0 <= size <= len(binary):
        raise BadRequestError(
            f"{where}.parameters.binary_data_size",
            describe(size),
            f"{len(binary)} bytes of binary data are left",
            "send the size of this input's data",
        )
    return Tensor(name, datatype, tuple(shape), read_binary(binary[:size], datatype, where)), size


def _read_text(values: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> str:
    value = values.get(key, "" if optional else None)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequestError(f"{where}.{key}", _seen(values, key), "a text is needed", f"send `{key}`")
    return value


def _read_list(values: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> list[Any]:
    value = values.get(key, [] if optional else None)
    if optional and value is None:
        return []
    if not isinstance(value, list):
        raise BadRequestError(f"{where}.{key}", _seen(values, key), "a list is needed", f"send `{key}`")
    return value


def _read_object(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{where}.{key}", describe(value), "an object is needed", "correct it or leave it out")
    return value


def _read_truth(parameters: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(f"{where}.parameters.{key}", describe(value), "true or false is needed", "correct it")
    return value


def _seen(values: Mapping[str, Any], key: str) -> str:
    return describe(values[key]) if key in values else "missing"


def read_grpc(message: "ModelInferRequest") -> TensorRequest:
    """Read a gRPC request, with raw contents or typed ones.

    Raises:
        BadRequestError: The contents do not fit the inputs.
    """
    raw = message.raw_input_contents
    if not message.inputs:
        raise BadRequestError("inputs", "none", "at least one input is needed", "send the model's inputs")
    if raw and len(raw) != len(message.inputs):
        raise BadRequestError(
            "raw_input_contents",
            f"{len(raw)} of them for {len(message.inputs)} inputs",
            "one an input is needed",
            "send all inputs raw, or none",
        )
    tensors = []
    for position, item in enumerate(message.inputs):
        where = f"inputs[{position}]"
        shape = tuple(item.shape)
        if any(size < 0 for size in shape):
            raise BadRequestError(f"{where}.shape", str(list(shape[:8])), "sizes from 0 are needed", "correct it")
        if raw:
            if item.HasField("contents"):
                raise BadRequestError(where, "contents and raw_input_contents", "one of them", "remove one")
            data = read_binary(raw[position], item.datatype, where)
        else:
            data = _read_contents(item, where)
        tensors.append(Tensor(item.name, item.datatype, shape, data))
    return TensorRequest(message.id, tuple(tensors), tuple(output.name for output in message.outputs), None)


def _read_contents(item: Any, where: str) -> list[Any]:
    field = _CONTENT_FIELDS.get(item.datatype)
    if field is None:
        raise BadRequestError(
            where,
            f"datatype {item.datatype[:100]}",
            f"known are {', '.join(_CONTENT_FIELDS)}, and FP16 in raw_input_contents",
            "correct it",
        )
    for used, _ in item.contents.ListFields():
        if used.name != field:
            raise BadRequestError(
                f"{where}.contents", f"{used.name} for {item.datatype}", f"{field} is needed", f"fill {field}"
            )
    return list(getattr(item.contents, field))


def check_instances(
    instances: Sequence[Any], request: type[BaseModel], example: Mapping[str, Any], name_place: Callable[[int], str]
) -> list[BaseModel]:
    """Check instances against the model's request.

    Args:
        instances: One object an instance.
        request: `Model.Request`.
        example: A valid instance, shown in the error.
        name_place: Names an instance in an error: `instances[3]`.

    Raises:
        BadRequestError: The first instance that does not fit; the message names the place inside it.
    """
    checked = []
    validator = _build_validator(request)
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise BadRequestError(
                name_place(row),
                describe(instance),
                "an object is needed",
                f"send it as {orjson.dumps(example).decode()}",
            )
        try:
            checked.append(validator.validate_python(instance))
        except ValidationError as error:
            raise _explain(error, request, example, name_place(row)) from None
    return checked


@cache
def _build_validator(request: type[BaseModel]) -> SchemaValidator:
    """Return a validator that stops at the first wrong item of a list; only the first error is told.

    pydantic's own collects all of them, which takes hundreds of times the memory of the body. It is still what reads
    models inside the request.
    """
    return SchemaValidator(_stop_at_first(request.__pydantic_core_schema__))


def _stop_at_first(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_stop_at_first(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: item if key in _NO_SCHEMAS else _stop_at_first(item) for key, item in schema.items()}
    if found.get("type") in ("list", "tuple", "set", "frozenset"):
        found["fail_fast"] = True
    return found


def _explain(
    error: ValidationError, request: type[BaseModel], example: Mapping[str, Any], place: str
) -> BadRequestError:
    first = error.errors(include_url=False)[0]
    where = place + "".join(f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in first["loc"])
    kind, message, seen = first["type"], first["msg"], describe(first.get("input"))
    if kind == "missing":
        return BadRequestError(where, "missing", "it is needed", f"send it as in {orjson.dumps(example).decode()}")
    if kind == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), request.model_fields, n=1)
        fix = f"write {near[0]}" if near else "remove it"
        return BadRequestError(where, "not a known name", f"known are {', '.join(request.model_fields)}", fix)
    if kind in ("value_error", "assertion_error"):
        # A model's own rule: `what was seen: what to do`.
        text = message.partition(", ")[2] or message
        found, _, fix = text.partition(": ")
        return BadRequestError(where, found, "this does not fit the model's request", fix or "correct it")
    needed = message.removeprefix("Input should be ")
    needed = f"{needed} is needed" if needed != message else message[:1].lower() + message[1:]
    return BadRequestError(where, seen, needed, "correct this value")
