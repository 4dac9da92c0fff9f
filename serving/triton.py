"""A model repository for NVIDIA Triton: the ONNX graph of a saved model, with the configuration that describes it.

    REPOSITORY/
      NAME/
        config.pbtxt        names, types and shapes of the graph's inputs and outputs
        VERSION/model.onnx  the graph, byte for byte as it was saved

Triton computes the graph and nothing else. What a model does before and after it (checking a request, flags, notes,
drivers) has no place there; `mlflywheel.serving` is for that.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflywheel.errors import MissingExtraError, ModelFilesError, UsageError
from mlflywheel.models.contract import verify_model_folder

CONFIG = "config.pbtxt"
GRAPH = "model.onnx"
MAX_BATCH_SIZE = 1024

#: ONNX Runtime's names of element types, and Triton's.
_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph.

    Args:
        name: Its name.
        type: Triton's name of its element type: `TYPE_FP32`.
        dims: Its shape; -1 where it may differ from call to call.
    """

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives.

    Args:
        inputs: In the graph's order.
        outputs: In the graph's order.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batches(self) -> bool:
        """Whether the first dimension of everything is free, so that Triton may join requests along it."""
        return all(tensor.dims[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


def write_repository(
    model: Path,
    repository: Path,
    name: str,
    *,
    version: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    instances: int = 1,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> Path:
    """Write a saved model's graph into a model repository, beside what is there.

    A version that is there already is replaced only by the same graph. The configuration is written last and describes
    the newest version: by default Triton serves that one alone.

    Args:
        model: Folder of a saved model with one ONNX file; its checksums are verified.
        repository: The repository; made if missing.
        name: The model's name in requests, and its folder's.
        version: Its number, at least 1.
        device: `cpu` or `cuda`: `KIND_CPU` or `KIND_GPU`.
        instances: How many requests are computed at once, on each GPU or on the CPU.
        max_batch_size: Most rows that Triton joins into one call, if the graph takes any number of rows.

    Returns:
        The model's folder in the repository.

    Raises:
        UsageError: The name, a number or the version cannot be meant.
        ModelFilesError: The folder is no saved model, or does not hold exactly one graph that ONNX Runtime reads.
        MissingExtraError: onnxruntime is not installed.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,127}", name):
        raise UsageError("name", repr(name[:140]), "a name that can be a folder is needed", "use letters, digits and -")
    for what, number in (("version", version), ("instances", instances), ("max_batch_size", max_batch_size)):
        if number < 1:
            raise UsageError(what, str(number), "at least 1 is needed", "write 1 or more")
    graph = find_graph(Path(model))
    config = describe_model(name, read_signature(graph), device, instances, max_batch_size)
    folder = Path(repository) / name
    target = folder / str(version)
    if (target / GRAPH).exists() and (target / GRAPH).read_bytes() != graph.read_bytes():
        raise UsageError(
            str(target), "holds another graph", "a version stays what it is", "write it as another version"
        )
    partial = folder / f".partial-{os.getpid()}"
    try:
        if not (target / GRAPH).exists():
            partial.mkdir(parents=True)
            shutil.copyfile(graph, partial / GRAPH)
            partial.rename(target)
        written = folder / f".{CONFIG}.partial-{os.getpid()}"
        written.write_text(config, encoding="utf-8")
        written.replace(folder / CONFIG)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def find_graph(model: Path) -> Path:
    """Return the one ONNX file of a saved model.

    Raises:
        ModelFilesError: No saved model, or another number of such files.
    """
    graphs = sorted(str(name) for name in verify_model_folder(model)["files"] if str(name).endswith(".onnx"))
    if len(graphs) != 1:
        raise ModelFilesError(
            str(model),
            f"{len(graphs)} ONNX files" + (f": {', '.join(graphs)}" if graphs else ""),
            "Triton's repository holds one graph a model",
            "serve this model with mlflywheel.serving",
        )
    return model / graphs[0]


def read_signature(graph: Path) -> Signature:
    """Return the inputs and outputs of a graph, as ONNX Runtime sees them.

    Raises:
        ModelFilesError: ONNX Runtime does not take the file, or a value of it is no tensor.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError.of("onnxruntime", "onnx", "writing a model repository for Triton") from None
    _refuse_external_data(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common class of their own.
        raise ModelFilesError(
            str(graph),
            f"{error}".splitlines()[0][:300],
            "a graph that ONNX Runtime runs is needed",
            "save the model again",
        ) from None
    return Signature(
        tuple(_describe(graph, value) for value in session.get_inputs()),
        tuple(_describe(graph, value) for value in session.get_outputs()),
    )


def _refuse_external_data(graph: Path) -> None:
    """Refuse a graph whose weights lie in other files: it would choose which files the server reads."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError.of("onnx", "onnx", "writing a model repository for Triton") from None
    try:
        content = onnx.load_model(str(graph), load_external_data=False)
    except Exception as error:
        # A parser's own, which has no class in common with the others.
        raise ModelFilesError(
            str(graph), f"no ONNX graph ({type(error).__name__})", "a graph is needed", "save the model again"
        ) from None
    # Tensors stand among the initializers, in attributes of nodes, and in graphs that are such attributes.
    pending = [content.graph]
    pending_nodes = [node for function in content.functions for node in function.node]
    while pending or pending_nodes:
        tensors = []
        if pending:
            part = pending.pop()
            tensors = [
                *part.initializer,
                *(half for one in part.sparse_initializer for half in (one.values, one.indices)),
            ]
            pending_nodes.extend(part.node)
        for attribute in (attribute for node in pending_nodes for attribute in node.attribute):
            tensors += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
            pending += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
        pending_nodes = []
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise ModelFilesError(
                    str(graph),
                    f"the tensor {tensor.name[:60]!r} lies in another file",
                    "a graph holds its own weights",
                    "save the model again",
                )


def _describe(graph: Path, value: Any) -> Tensor:
    if value.type not in _TYPES:
        raise ModelFilesError(
            str(graph),
            f"{value.name} is {value.type}",
            "Triton takes tensors",
            "serve this model with mlflywheel.serving",
        )
    return Tensor(value.name, _TYPES[value.type], tuple(size if isinstance(size, int) else -1 for size in value.shape))


def describe_model(
    name: str, signature: Signature, device: Literal["cpu", "cuda"], instances: int, max_batch_size: int
) -> str:
    """Return the text of `config.pbtxt`.

    One thread a call, as in the model's own predictor: sums in another order differ in their last bits.

    >>> rows = Signature((Tensor("year", "TYPE_FP32", (-1, 1)),), (Tensor("price", "TYPE_FP32", (-1, 1)),))
    >>> print(describe_model("cars", rows, "cpu", 1, 8).splitlines()[2])
    max_batch_size: 8
    """
    # Triton keeps the dimension that it joins requests along out of the shapes.
    first = 1 if signature.batches else 0
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch_size if first else 0}"]
    lines += _list_tensors("input", signature.inputs, first) + _list_tensors("output", signature.outputs, first)
    kind = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    lines += ["instance_group [", f"  {{ count: {instances} kind: {kind} }}", "]"]
    if first:
        lines.append("dynamic_batching { }")
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "1" }} }}')
    return "\n".join(lines) + "\n"


def _list_tensors(field: str, tensors: Sequence[Tensor], first: int) -> list[str]:
    items = [
        f'  {{ name: "{tensor.name}" data_type: {tensor.type} dims: [ {", ".join(map(str, tensor.dims[first:]))} ] }}'
        for tensor in tensors
    ]
    return [f"{field} [", *[f"{item}," for item in items[:-1]], *items[-1:], "]"]
