"""The V2 (Open Inference Protocol) form of any model's requests and answers.

V2 knows rectangular tensors only, so a mapping is needed. It follows from the model contract alone:

Inputs come from `Model.Request`; every input has the shape [n] for n instances ([n, 1] is taken too):

| field of the request  | tensor                                                                       |
| --------------------- | ---------------------------------------------------------------------------- |
| text, date, enum      | BYTES: the text itself, UTF-8                                                |
| boolean               | BOOL                                                                         |
| whole number          | INT64                                                                        |
| number                | FP64                                                                         |
| anything else         | BYTES: one JSON document an element, such as `["plumber", "drain"]`          |

A field with a default may be left out; then every instance has the default. Where a field may be null, an element may
be null in V2 JSON; a JSON document may be `null` in every encoding.

Outputs come from the schema of the table that `Model.predict` returns, one tensor a column:

| column                         | tensor                                                              |
| ------------------------------ | ------------------------------------------------------------------- |
| string                         | BYTES [n]; null becomes an empty text                               |
| bool, int8..int64, uint8..     | BOOL, INT8..INT64, UINT8.. [n]; nulls have no form and are an error |
| float16 and float32, float64   | FP32, FP64 [n]; null becomes NaN                                    |
| fixed_size_list of a number    | the same with [n, k]                                                |
| anything else                  | BYTES [n]: one JSON document an element; null becomes `null`        |

In V2 JSON, NaN is written as null, because JSON has no NaN, and an FP32 as the shortest decimal that reads back as the
same float32. Binary data is little-endian and row-major; a BYTES element is its length (4 bytes, little-endian) and its
bytes.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import BaseModel

from mlflywheel.errors import ModelError
from mlflywheel.serving.refusals import BadRequestError, describe
from mlflywheel.serving.values import join_chunks, to_python

#: NumPy's type for each V2 datatype but BYTES.
NUMBER_TYPES = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_DATATYPES_OF_JSON = {"string": "BYTES", "boolean": "BOOL", "integer": "INT64", "number": "FP64"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Input:
    """One input tensor, of shape [n].

    Args:
        name: The request's field.
        datatype: BYTES, BOOL, INT64 or FP64.
        is_json: Whether an element is a JSON document.
        required: Whether it must be sent.
    """

    name: str
    datatype: str
    is_json: bool
    required: bool

    def to_metadata(self) -> dict[str, Any]:
        """Return it as model metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1]}


@dataclass(frozen=True)
class Output:
    """One output tensor, of shape [n] or [n, size].

    Args:
        name: The column.
        datatype: A V2 datatype.
        is_json: Whether an element is a JSON document.
        size: Length of a fixed-size list, None for a plain column.
    """

    name: str
    datatype: str
    is_json: bool
    size: int | None = None

    def to_metadata(self) -> dict[str, Any]:
        """Return it as model metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1] if self.size is None else [-1, self.size]}


@dataclass(frozen=True)
class Tensor:
    """A tensor as it was sent: flat elements, row-major; BYTES as `str` or `bytes`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]


@dataclass(frozen=True)
class Encoded:
    """A tensor of an answer: a numeric array of the declared shape, or texts."""

    output: Output
    shape: tuple[int, ...]
    data: "np.ndarray | list[str]"

    def to_json(self) -> dict[str, Any]:
        """Return the V2 JSON object, whose `data` orjson writes with `OPT_SERIALIZE_NUMPY`."""
        data = self.data if isinstance(self.data, list) else np.ascontiguousarray(self.data.reshape(-1))
        return {
            "name": self.output.name,
            "datatype": self.output.datatype,
            "shape": list(self.shape),
            "data": data,
        }

    def to_bytes(self) -> bytes:
        """Return the V2 binary form."""
        if isinstance(self.data, list):
            parts = []
            for text in self.data:
                encoded = text.encode()
                parts += [_LENGTH.pack(len(encoded)), encoded]
            return b"".join(parts)
        raw: bytes = self.data.astype(NUMBER_TYPES[self.output.datatype], copy=False).tobytes()
        return raw


def list_inputs(request: type[BaseModel]) -> tuple[Input, ...]:
    """Return the input tensors of a request.

    >>> class Listing(BaseModel):
    ...     title: str
    ...     doors: int | None = None
    ...     tags: list[str] = []
    >>> [(i.name, i.datatype, i.is_json, i.required) for i in list_inputs(Listing)]
    [('title', 'BYTES', False, True), ('doors', 'INT64', False, False), ('tags', 'BYTES', True, False)]
    """
    schema = request.model_json_schema(mode="validation")
    required = set(schema.get("required", ()))
    inputs = []
    for name, field in schema.get("properties", {}).items():
        kind = _kind_of(field, schema.get("$defs", {}))
        datatype = _DATATYPES_OF_JSON.get(kind or "")
        inputs.append(Input(name, datatype or "BYTES", datatype is None, name in required))
    return tuple(inputs)


def _kind_of(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str | None:
    """Return the JSON type of a field's value that is not null, None if it has several."""
    if "$ref" in field:
        return _kind_of(definitions.get(str(field["$ref"]).rpartition("/")[2], {}), definitions)
    choices = [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
    if choices:
        kinds = {_kind_of(choice, definitions) for choice in choices}
        return kinds.pop() if len(kinds) == 1 else None
    kind = field.get("type")
    return kind if isinstance(kind, str) else None


def list_outputs(schema: pa.Schema) -> tuple[Output, ...]:
    """Return the output tensors of a predicted table.

    >>> schema = pa.schema([("shares", pa.list_(pa.float32(), 3)), ("near", pa.list_(pa.string()))])
    >>> [(o.name, o.datatype, o.is_json, o.size) for o in list_outputs(schema)]
    [('shares', 'FP32', False, 3), ('near', 'BYTES', True, None)]
    """
    return tuple(_describe_output(field.name, field.type) for field in schema)


def _describe_output(name: str, kind: pa.DataType) -> Output:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Output(name, "BYTES", False)
    if pa.types.is_fixed_size_list(kind):
        inner = _number_type(kind.value_type)
        return Output(name, inner, False, kind.list_size) if inner else Output(name, "BYTES", True)
    plain = _number_type(kind)
    return Output(name, plain or "BYTES", plain is None)


def _number_type(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "BOOL"
    if pa.types.is_integer(kind):
        return f"{'U' if str(kind).startswith('u') else ''}INT{kind.bit_width}"
    if pa.types.is_floating(kind):
        return "FP64" if pa.types.is_float64(kind) else "FP32"
    return None


def choose_outputs(known: Sequence[Output], names: Sequence[str]) -> tuple[Output, ...]:
    """Return the requested outputs, all of them if none is named.

    Raises:
        BadRequestError: An unknown name, or one twice.
    """
    by_name = {output.name: output for output in known}
    for position, name in enumerate(names):
        if name not in by_name:
            raise BadRequestError(
                f"outputs[{position}]",
                f"no output is named {name[:100]!r}",
                f"there are {', '.join(by_name)}",
                _suggest(name, by_name, "leave `outputs` out to get all of them"),
            )
        if name in names[:position]:
            raise BadRequestError(f"outputs[{position}]", f"{name} a second time", "each name once", "remove one")
    return tuple(by_name[name] for name in names) or tuple(known)


def _suggest(name: str, known: Mapping[str, Any], otherwise: str) -> str:
    near = get_close_matches(name, known, n=1)
    return f"write {near[0]}" if near else otherwise


def encode_output(column: pa.ChunkedArray, output: Output) -> Encoded:
    """Turn one column of the answer into its tensor.

    Raises:
        ModelError: A null in a column of whole numbers or booleans.
    """
    array = join_chunks(column)
    shape = (len(array),) if output.size is None else (len(array), output.size)
    if output.is_json:
        return Encoded(output, shape, [orjson.dumps(value).decode() for value in to_python(array)])
    if output.datatype == "BYTES":
        return Encoded(output, shape, ["" if text is None else text for text in array.to_pylist()])
    dtype = NUMBER_TYPES[output.datatype]
    if output.size is not None:
        if array.null_count:
            _check_can_be_null(output)
            empty = [None] * output.size
            array = pa.array([empty if row is None else row for row in array.to_pylist()], array.type)
        array = array.values.slice(array.offset * output.size, len(array) * output.size)
    if array.null_count:
        _check_can_be_null(output)
    return Encoded(output, shape, array.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(shape))


def _check_can_be_null(output: Output) -> None:
    if not output.datatype.startswith("FP"):
        raise ModelError(
            f"column {output.name}",
            "a null",
            f"{output.datatype} has no null",
            "return a column of floats or texts from predict, or ask over V1",
        )


def to_instances(tensors: Sequence[Tensor], inputs: Sequence[Input], max_rows: int) -> list[dict[str, Any]]:
    """Turn input tensors into instances, as V1 has them.

    Raises:
        BadRequestError: An unknown, missing or repeated input, another datatype or shape than the metadata says, data
            that does not fit the shape, too many rows, or an element that is not UTF-8 or not JSON.
    """
    known = {declared.name: declared for declared in inputs}
    required = [declared.name for declared in inputs if declared.required]
    seen: set[str] = set()
    rows: int | None = None
    for tensor in tensors:
        where = f"input {tensor.name[:100]}"
        if tensor.name not in known:
            raise BadRequestError(
                where,
                "the model has no such input",
                f"it has {', '.join(known)}",
                _suggest(tensor.name, known, "remove it"),
            )
        if tensor.name in seen:
            raise BadRequestError(where, "sent twice", "each input once", "remove one")
        seen.add(tensor.name)
        declared = known[tensor.name]
        if tensor.datatype != declared.datatype:
            raise BadRequestError(
                where,
                f"datatype {tensor.datatype[:100]}",
                f"{declared.datatype} is needed",
                f"send {declared.datatype}" + (" with one JSON document an element" if declared.is_json else ""),
            )
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise BadRequestError(
                f"{where}, shape",
                str(list(tensor.shape[:8])),
                "[n] is needed, one element an instance",
                "send each instance's list as one JSON document" if declared.is_json else "send a flat tensor",
            )
        if rows is not None and tensor.shape[0] != rows:
            raise BadRequestError(
                f"{where}, shape",
                f"{tensor.shape[0]} instances, where the inputs before it have {rows}",
                "all inputs have one element an instance",
                "make the inputs equally long",
            )
        rows = tensor.shape[0]
        check_rows(rows, max_rows, where)
        if len(tensor.data) != rows:
            raise BadRequestError(
                f"{where}, data",
                f"{len(tensor.data)} elements",
                f"shape {list(tensor.shape)} has {rows}",
                "make shape and data agree",
            )
    for name in required:
        if name not in seen:
            raise BadRequestError("inputs", f"no input {name}", f"{', '.join(required)} is needed", f"send {name}")
    instances: list[dict[str, Any]] = [{} for _ in range(rows or 0)]
    for tensor in tensors:
        declared = known[tensor.name]
        for row, value in enumerate(tensor.data):
            instances[row][tensor.name] = _read_element(value, declared, row)
    return instances


def check_rows(rows: int, max_rows: int, where: str) -> None:
    """Refuse more rows than the server takes.

    Raises:
        BadRequestError: Too many.
    """
    if rows > max_rows:
        raise BadRequestError(
            where, f"{rows} instances", f"at most {max_rows} are taken", f"split them into requests of {max_rows}"
        )


def _read_element(value: Any, declared: Input, row: int) -> Any:
    where = f"input {declared.name}[{row}]"
    if value is None:
        # Whether null is allowed is the request's own rule.
        return None
    if declared.datatype != "BYTES":
        return _read_number(value, declared.datatype, where)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadRequestError(where, f"not UTF-8 at byte {error.start}", "UTF-8 is needed", "encode it") from None
    if not isinstance(value, str):
        needed = "a text with one JSON document is needed" if declared.is_json else "a text is needed"
        raise BadRequestError(where, describe(value), needed, "put it in quotes")
    if not declared.is_json:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            where, f"not JSON ({error.msg} at character {error.pos})", "one JSON document is needed", "write it as JSON"
        ) from None


def _read_number(value: Any, datatype: str, where: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    wanted: tuple[type, ...] = {"BOOL": (bool,), "INT64": (int,)}.get(datatype, (int, float))
    if isinstance(value, bool) != (datatype == "BOOL") or not isinstance(value, wanted):
        names = {"BOOL": "true or false", "INT64": "a whole number"}
        raise BadRequestError(where, describe(value), f"{names.get(datatype, 'a number')} is needed", "correct it")
    return value


def read_binary(raw: "bytes | memoryview", datatype: str, where: str) -> list[Any]:
    """Read the elements of one tensor's binary data.

    Raises:
        BadRequestError: An unknown datatype, or bytes that do not divide into elements.
    """
    if datatype == "BYTES":
        return _read_texts(bytes(raw), where)
    if datatype not in NUMBER_TYPES:
        raise BadRequestError(
            where, f"datatype {datatype[:100]}", f"known are {', '.join(['BYTES', *NUMBER_TYPES])}", "correct it"
        )
    dtype = NUMBER_TYPES[datatype]
    if len(raw) % dtype.itemsize:
        raise BadRequestError(
            where, f"{len(raw)} bytes", f"{datatype} has {dtype.itemsize} bytes an element", "send whole elements"
        )
    if datatype == "BOOL":
        return [byte != 0 for byte in bytes(raw)]
    numbers: list[Any] = np.frombuffer(raw, dtype).tolist()
    return numbers


def _read_texts(raw: bytes, where: str) -> list[bytes]:
    texts: list[bytes] = []
    start = 0
    while start < len(raw):
        after = start + _LENGTH.size
        length = _LENGTH.unpack_from(raw, start)[0] if after <= len(raw) else None
        if length is None or after + length > len(raw):
            raise BadRequestError(
                where,
                f"element {len(texts)} ends after the data",
                "each element is its length (4 bytes, little-endian) and its bytes",
                "send whole elements",
            )
        texts.append(raw[after : after + length])
        start = after + length
    return texts


def flatten(data: Sequence[Any], dimensions: int) -> list[Any]:
    """Flatten V2 JSON data, which may be nested as deep as its shape is long, or flat.

    >>> flatten([["a"], ["b"]], 2)
    ['a', 'b']
    """
    flat = list(data)
    for _ in range(max(0, min(dimensions, 8) - 1)):
        if not flat or not all(isinstance(item, list) for item in flat):
            break
        flat = [item for inner in flat for item in inner]
    return flat
