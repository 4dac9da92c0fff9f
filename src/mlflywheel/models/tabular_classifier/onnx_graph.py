"""One ONNX graph from raw fields to the probability, for runtimes that do not have our code.

Inputs are one tensor a feature, of shape [n, 1]: numbers FLOAT with NaN for a missing one, categories STRING, trimmed,
with an empty text for a missing one. The output `probability` is FLOAT [n, 1].

The graph is written by hand, with the operators of opset 20 and ai.onnx.ml 3. It has no flags and no drivers: a runtime
that returns a probability alone cannot say what it did not know.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.errors import MissingExtraError, ModelError
from mlflywheel.models.tabular_classifier.additive import Additive
from mlflywheel.models.tabular_classifier.encoding import Category, Encoder
from mlflywheel.models.tabular_classifier.preparation import read_column, read_numbers, read_texts
from mlflywheel.models.vehicle_price.ensemble import Trees
from mlflywheel.models.vehicle_price.onnx_graph import IR_VERSION, ML_OPSET, OPSET, GraphBuilder

OUTPUT = "probability"
#: Largest difference between the probabilities of a graph and its model.
TOLERANCE = 1e-4


def build_graph(encoder: Encoder, scorer: Additive | Trees) -> bytes:
    """Return the serialised graph.

    Args:
        encoder: The features.
        scorer: Log-odds from encoded rows.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper
    except ImportError:
        raise MissingExtraError.of("onnx", "trees", "fitting a tabular classifier") from None
    graph = GraphBuilder()
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in encoder.numbers]
    inputs += [helper.make_tensor_value_info(found.name, TensorProto.STRING, ["n", 1]) for found in encoder.categories]
    if isinstance(scorer, Trees):
        columns = [_refer(name) for name in encoder.numbers]
        columns += [_look_up(graph, category, category.columns) for category in encoder.categories]
        log_odds = graph.add_trees(graph.add("Concat", columns, axis=1), scorer)
    else:
        terms = [_add_line(graph, name, scorer, position) for position, name in enumerate(encoder.numbers)]
        start = 0
        for category in encoder.categories:
            effects = scorer.effects[start : start + category.width]
            start += category.width
            terms.append(_look_up(graph, category, (category.columns @ effects).reshape(-1, 1)))
        log_odds = graph.add("Sum", [graph.number(scorer.base), *terms])
    graph.nodes.append(helper.make_node("Sigmoid", [log_odds], [OUTPUT]))
    _name_features(graph, encoder.features)
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", 1])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "tabular-classifier", inputs, outputs, graph.constants),
        producer_name="mlflywheel",
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _look_up(graph: GraphBuilder, category: Category, table: NDArray[Any]) -> str:
    """Return a category's row of a table, FLOAT [n, width]; the last two rows are for unknown and missing."""
    count = len(category.levels)
    # A feature without a level of its own still needs one key.
    code = graph.add(
        "LabelEncoder",
        [_refer(category.name)],
        "ai.onnx.ml",
        keys_strings=[*category.levels, ""],
        values_int64s=[*range(count), count + 1],
        default_int64=count,
    )
    found = graph.add("Gather", [graph.floats(table), code], axis=0)
    return graph.add("Reshape", [found, graph.ints([-1, table.shape[1]])])


def _add_line(graph: GraphBuilder, name: str, scorer: Additive, position: int) -> str:
    """Return a number's term, FLOAT [n, 1]."""
    value = _refer(name)
    ends = [graph.number(float(end[position])) for end in (scorer.low, scorer.high)]
    inside = graph.add("Min", [graph.add("Max", [value, ends[0]]), ends[1]])
    centred = graph.add("Sub", [inside, graph.number(float(scorer.centres[position]))])
    sloped = graph.add("Mul", [centred, graph.number(float(scorer.slopes[position]))])
    term = graph.add("Add", [sloped, graph.number(float(scorer.shifts[position]))])
    return graph.add("Where", [graph.add("IsNaN", [value]), graph.number(float(scorer.missing[position])), term])


def _refer(feature: str) -> str:
    """Return what a feature is called until `_name_features`: no value between nodes has such a name."""
    return f"feature:{feature}"


def _name_features(graph: GraphBuilder, features: Sequence[str]) -> None:
    """Give features their own names, and values between nodes of the same name another: a column may be `where_3`."""
    inner = {name for node in graph.nodes for name in node.output} | {tensor.name for tensor in graph.constants}
    taken = {*features, *inner}
    names = {_refer(feature): feature for feature in features}
    for name in sorted(inner & set(features)):
        free = name
        while free in taken:
            free += "_"
        taken.add(free)
        names[name] = free
    for node in graph.nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.constants:
        tensor.name = names.get(tensor.name, tensor.name)


def feed_table(encoder: Encoder, table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs for prepared rows: FLOAT and STRING, [n, 1]."""
    feed: dict[str, NDArray[Any]] = {}
    for name in encoder.numbers:
        values = read_column(table, name)
        numbers = np.full(table.num_rows, np.nan) if values is None else read_numbers(values)
        feed[name] = numbers.astype(np.float32).reshape(-1, 1)
    for category in encoder.categories:
        values = read_column(table, category.name)
        texts = [""] * table.num_rows if values is None else pc.fill_null(read_texts(values), "").to_pylist()
        feed[category.name] = np.array(texts, dtype=object).reshape(-1, 1)
    return feed


def check_graph(graph: bytes, encoder: Encoder, table: pa.Table, expected: NDArray[np.float64]) -> float:
    """Compare a graph with the model on rows.

    Args:
        graph: The serialised graph.
        encoder: Its features.
        table: Prepared rows.
        expected: The model's probabilities of them.

    Returns:
        The largest difference.

    Raises:
        ModelError: It is above 1e-4.
    """
    difference = np.abs(run_graph(graph, feed_table(encoder, table)) - expected)
    row = int(np.argmax(difference))
    worst = float(difference[row])
    if not worst <= TOLERANCE:
        raise ModelError(
            "ONNX graph",
            f"it differs from the model by {worst:.2g} in row {row}",
            f"at most {TOLERANCE:g} is needed to save a model",
            "install the versions of onnx and onnxruntime that requirements/ names",
        )
    return worst


def run_graph(graph: bytes, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return probabilities, float32 (rows,), by ONNX Runtime on one thread; several threads sum in another order.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError.of("onnxruntime", "onnx", "running an ONNX graph") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], feed)
    return np.asarray(found, dtype=np.float32).reshape(-1)
