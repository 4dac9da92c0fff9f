"""A loaded model that answers requests of every protocol: bytes or a message in, bytes or a message out.

Every protocol goes through the same three steps, `Model.Request` -> `Model.to_table` -> `Model.predict`, which are also
those of a batch, so answers are equal. Methods are called from several threads.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mlflywheel.errors import MlflywheelError, ModelError, ModelFilesError
from mlflywheel.models.contract import MANIFEST, DeviceName, Model, load_model
from mlflywheel.serving.requests import TensorRequest, check_instances, read_grpc, read_v1, read_v2
from mlflywheel.serving.tensors import (
    Encoded,
    Input,
    Output,
    choose_outputs,
    encode_output,
    list_inputs,
    list_outputs,
    to_instances,
)
from mlflywheel.serving.values import join_chunks, to_rows

if TYPE_CHECKING:
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse

#: Columns of a predicted table that metrics are made of, if it has them.
UNKNOWN_SHARE = "unknown_share"
NOTE = "note"

_VERSION_CHARACTERS = 12
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


@dataclass
class Exchange:
    """What is known about one request while it is answered, for its log line and its metrics.

    Args:
        protocol: `v1`, `v2` or `grpc`.
        request_id: From the header `x-request-id`, or made up.
        rows: Instances, once they are known.
        seconds: Duration of each phase that was reached: `queue`, `decode`, `predict`, `encode`.
        unknown_shares: The answer's column `unknown_share`, without nulls.
        notes: Rows of the answer with a note.
    """

    protocol: str
    request_id: str
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    unknown_shares: Sequence[float] = ()
    notes: int = 0
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started


@dataclass(frozen=True)
class HttpAnswer:
    """The body of an answer.

    Args:
        body: JSON, or JSON and binary data.
        json_length: Bytes of JSON if binary data follows, else None.
    """

    body: bytes
    json_length: int | None = None


class Predictor:
    """A model that was loaded, checked and warmed up.

    Args:
        model: The model.
        name: Its name in requests.
        version: Its version in answers.
        model_hash: `sha256:` over its files.
        device: Where it computes: `cpu` or `cuda`, and behind a colon more about it.
        max_rows: Most instances a request.

    Attributes:
        inputs: The model's V2 inputs.
        outputs: The model's V2 outputs.
        hashes: `Model.versions()`: in every answer, as `parameters` in V2 and gRPC.
        example: A valid instance.
    """

    def __init__(self, model: Model, name: str, version: str, model_hash: str, device: str, max_rows: int) -> None:
        self.model = model
        self.name = name
        self.version = version
        self.model_hash = model_hash
        self.device, _, self.device_note = (part.strip() for part in device.partition(":"))
        self.max_rows = max_rows
        self.example = model.example_request()
        self.inputs: tuple[Input, ...] = list_inputs(model.Request)
        # The warm-up: lazily built indexes and compiled kernels are there before the first request.
        predicted = self._predict([self.example], lambda row: "example_request()", Exchange("warm-up", ""))
        self.outputs: tuple[Output, ...] = list_outputs(predicted.schema)
        self._empty = predicted.schema.empty_table()
        # Hashes that a caller may compare, such as the dictionary's.
        self.hashes = model.versions()
        self._encode_v1(predicted)
        self._encode_tensors(predicted, self.outputs)

    @classmethod
    def load(cls, folder: Path, name: str, version: str | None, device: DeviceName, max_rows: int) -> "Predictor":
        """Load a model from a folder, and let it answer its example.

        Raises:
            ModelFilesError: There is no such folder, a file is missing, added or changed, or another format.
            ModelError: The model does not answer its own example.
            UsageError: `cuda` is wanted, and the model or the machine cannot.
        """
        folder = find_model_folder(folder)
        try:
            model = load_model(folder)
            model_hash = str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["hash"])
            model, used = model.use_device(device)
            if version is None:
                version = model_hash.removeprefix("sha256:")[:_VERSION_CHARACTERS]
            return cls(model, name, version, model_hash, used, max_rows)
        except MlflywheelError:
            raise
        except Exception as error:
            raise ModelError(
                str(folder),
                f"loading or the warm-up prediction ended with {type(error).__name__}: {error}".splitlines()[0],
                "the model must load, and answer its own example_request()",
                "load it with the library version that wrote it, or repair the model class",
            ) from error

    def answer_v1(self, body: bytes, exchange: Exchange) -> HttpAnswer:
        """Answer a V1 body.

        Raises:
            BadRequestError: The body or an instance is not what the model takes.
        """
        with exchange.phase("decode"):
            instances = read_v1(body, self.example, self.max_rows)
        predicted = self._predict(instances, lambda row: f"instances[{row}]", exchange)
        with exchange.phase("encode"):
            return HttpAnswer(self._encode_v1(predicted))

    def answer_v2(self, body: bytes, json_length: str | None, exchange: Exchange) -> HttpAnswer:
        """Answer a V2 body; `json_length` is the header that tells JSON from the binary data behind it.

        Raises:
            BadRequestError: The body or an instance is not what the model takes.
        """
        with exchange.phase("decode"):
            request = read_v2(body, json_length)
        encoded = self._answer_tensors(request, exchange)
        with exchange.phase("encode"):
            items, binary = [], []
            for tensor in encoded:
                if request.binary_outputs is None or tensor.output.name in request.binary_outputs:
                    raw = tensor.to_bytes()
                    binary.append(raw)
                    described: dict[str, Any] = {
                        "name": tensor.output.name,
                        "datatype": tensor.output.datatype,
                        "shape": list(tensor.shape),
                        "parameters": {"binary_data_size": len(raw)},
                    }
                    items.append(described)
                else:
                    items.append(tensor.to_json())
            answer: dict[str, Any] = {
                "model_name": self.name,
                "model_version": self.version,
                "id": request.id or exchange.request_id,
                "outputs": items,
            }
            if self.hashes:
                answer["parameters"] = self.hashes
            head = orjson.dumps(answer, option=_JSON_OPTIONS)
            return HttpAnswer(head + b"".join(binary), len(head) if binary else None)

    def answer_grpc(self, message: "ModelInferRequest", exchange: Exchange) -> "ModelInferResponse":
        """Answer a gRPC message, with raw contents.

        Raises:
            BadRequestError: The message or an instance is not what the model takes.
        """
        from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferResponse

        with exchange.phase("decode"):
            request = read_grpc(message)
        encoded = self._answer_tensors(request, exchange)
        with exchange.phase("encode"):
            answer = ModelInferResponse(
                model_name=self.name, model_version=self.version, id=request.id or exchange.request_id
            )
            for key, value in self.hashes.items():
                answer.parameters[key].string_param = value
            for tensor in encoded:
                answer.outputs.add(name=tensor.output.name, datatype=tensor.output.datatype, shape=tensor.shape)
                answer.raw_output_contents.append(tensor.to_bytes())
            return answer

    def list_metadata(self) -> dict[str, Any]:
        """Return the V2 metadata of the model."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self.model.format_name,
            "inputs": [declared.to_metadata() for declared in self.inputs],
            "outputs": [declared.to_metadata() for declared in self.outputs],
        }

    def _answer_tensors(self, request: TensorRequest, exchange: Exchange) -> list[Encoded]:
        started = time.perf_counter()
        outputs = choose_outputs(self.outputs, request.outputs)
        if request.binary_outputs is not None:
            choose_outputs(self.outputs, sorted(request.binary_outputs))
        instances = to_instances(request.tensors, self.inputs, self.max_rows)
        exchange.seconds["decode"] += time.perf_counter() - started
        predicted = self._predict(instances, lambda row: f"instance {row}", exchange)
        with exchange.phase("encode"):
            return self._encode_tensors(predicted, outputs)

    def _predict(self, instances: Sequence[Any], name_place: Callable[[int], str], exchange: Exchange) -> pa.Table:
        started = time.perf_counter()
        exchange.rows = len(instances)
        checked = check_instances(instances, self.model.Request, self.example, name_place)
        table = self.model.to_table(checked) if checked else None
        exchange.seconds["decode"] = exchange.seconds.get("decode", 0.0) + time.perf_counter() - started
        if table is None:
            return self._empty
        with exchange.phase("predict"):
            predicted = self.model.predict(table)
        if predicted.num_rows != len(checked):
            raise ModelError(
                f"model {self.name}",
                f"{predicted.num_rows} answers for {len(checked)} instances",
                "predict returns one row for each row",
                "repair the model class",
            )
        _note_metrics(predicted, exchange)
        return predicted

    def _encode_v1(self, predicted: pa.Table) -> bytes:
        head = {**self.hashes, "model_name": self.name, "model_version": self.version}
        return orjson.dumps({"predictions": to_rows(predicted), **head})

    def _encode_tensors(self, predicted: pa.Table, outputs: Sequence[Output]) -> list[Encoded]:
        return [encode_output(predicted[output.name], output) for output in outputs]


def _note_metrics(predicted: pa.Table, exchange: Exchange) -> None:
    names = predicted.column_names
    if UNKNOWN_SHARE in names and pa.types.is_floating(predicted.schema.field(UNKNOWN_SHARE).type):
        shares = join_chunks(predicted[UNKNOWN_SHARE]).drop_null().to_numpy(zero_copy_only=False)
        exchange.unknown_shares = shares[np.isfinite(shares)].tolist()
    if NOTE in names:
        exchange.notes = predicted.num_rows - predicted[NOTE].null_count
        if pa.types.is_string(predicted.schema.field(NOTE).type):
            exchange.notes -= pc.sum(pc.equal(predicted[NOTE], "")).as_py() or 0


def find_model_folder(folder: Path) -> Path:
    """Return the folder with the manifest: this one, or the only one in it that has a manifest.

    A model that is copied from a store arrives in the mounted folder itself or one level below, by the URI's ending.

    Raises:
        ModelFilesError: No folder, or no manifest.
    """
    try:
        below = sorted(path for path in folder.iterdir() if (path / MANIFEST).is_file())
    except OSError as error:
        raise ModelFilesError(
            str(folder),
            "no such folder" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)),
            "the folder of a saved model is needed",
            "check --model_dir, or the storageUri of the InferenceService",
        ) from error
    return below[0] if len(below) == 1 and not (folder / MANIFEST).exists() else folder
