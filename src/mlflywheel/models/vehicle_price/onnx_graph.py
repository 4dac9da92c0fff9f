"""One ONNX graph from raw fields to price, low and high, for runtimes that do not have our code.

Inputs are one tensor a feature, of shape [n, 1]: numbers FLOAT with NaN for a missing one, categories STRING with an
empty text for a missing one. Units are those of the prepared table (kilometres, horsepower). Texts must be trimmed, and
be spelled as in the training rows, in lower case or in upper case; other spellings count as unknown. Values outside the
possible ranges count as missing. Outputs `price`, `low` and `high` are FLOAT [n, 1].

The graph is written by hand, with the operators of opset 20 and ai.onnx.ml 3. It has no flags, confidence or drivers: a
runtime that returns a price alone cannot say that it guessed. Callers can see it by the width of the range.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.errors import MissingExtraError, ModelError
from mlflywheel.models.vehicle_price.encoding import SEPARATOR, Encoder, Schema
from mlflywheel.models.vehicle_price.ensemble import Trees
from mlflywheel.models.vehicle_price.intervals import BEYOND_PRICES, GROUPS, LOG_SCALE_BOUNDS, Intervals
from mlflywheel.models.vehicle_price.preparation import Range, read_column

if TYPE_CHECKING:
    import onnx

OUTPUTS = ("price", "low", "high")
OPSET = 20
ML_OPSET = 3
IR_VERSION = 9
#: Largest relative difference between a graph and its model.
TOLERANCE = 1e-4


def build_graph(
    encoder: Encoder,
    prices: Trees,
    scales: Trees,
    intervals: Intervals,
    valid: Mapping[str, Range],
    seen: Mapping[str, Range],
) -> bytes:
    """Return the serialised graph.

    Args:
        encoder: Numbers of the categories.
        prices: The ensemble of the log price.
        scales: The ensemble of the log scale.
        intervals: Quantiles and bounds.
        valid: Possible values of each number; a value outside counts as missing.
        seen: Values of each number in the training rows; outside, the range is that of a missing value.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper
    except ImportError:
        raise MissingExtraError.of("onnx", "trees", "fitting a vehicle-price model") from None
    graph = GraphBuilder()
    schema = encoder.schema
    inputs, columns, scale_columns, absent = [], [], [], []
    for name in schema.numbers:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]))
        value = graph.keep_inside(name, valid[name])
        columns.append(value)
        inside = graph.keep_inside(value, seen[name])
        scale_columns.append(inside)
        absent.append(graph.add("IsNaN", [inside]))
    keys: dict[str, str] = {}
    for position, name in enumerate(schema.categories):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.STRING, ["n", 1]))
        values = graph.look_up(encoder, position, keys)
        columns.append(values)
        scale_columns.append(values)
        first = graph.add("Slice", [values, graph.ints([0]), graph.ints([1]), graph.ints([1])])
        absent.append(graph.add("IsNaN", [first]))
    log_price = graph.add_trees(graph.add("Concat", columns, axis=1), prices)
    log_price = graph.add("Clip", [log_price, *map(graph.number, intervals.log_bounds)])
    log_scale = graph.add_trees(graph.add("Concat", scale_columns, axis=1), scales)
    scale = graph.add("Exp", [graph.add("Clip", [log_scale, *map(graph.number, LOG_SCALE_BOUNDS)])])
    counted = graph.add("Cast", [graph.add("Concat", absent, axis=1)], to=TensorProto.INT64)
    total = graph.add("ReduceSum", [counted, graph.ints([1])], keepdims=1)
    group = graph.add("Min", [total, graph.ints([GROUPS - 1])])
    room = float(np.log(BEYOND_PRICES))
    down = graph.add("Mul", [graph.add("Gather", [graph.floats(intervals.below), group]), scale])
    up = graph.add("Mul", [graph.add("Gather", [graph.floats(intervals.above), group]), scale])
    low = graph.add("Max", [graph.add("Sub", [log_price, down]), graph.number(intervals.log_bounds[0] - room)])
    high = graph.add("Min", [graph.add("Add", [log_price, up]), graph.number(intervals.log_bounds[1] + room)])
    for logarithm, name in zip((log_price, low, high), OUTPUTS, strict=True):
        graph.nodes.append(helper.make_node("Exp", [logarithm], [name]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in OUTPUTS]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "vehicle-price", inputs, outputs, graph.constants),
        producer_name="mlflywheel",
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


class GraphBuilder:
    """Nodes and constants under construction; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node of one output."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """Add a tensor."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        """Add a float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32))

    def floats(self, values: NDArray[Any]) -> str:
        """Add float32 values."""
        return self.constant(np.asarray(values, dtype=np.float32))

    def ints(self, values: list[int]) -> str:
        """Add int64 values."""
        return self.constant(np.array(values, dtype=np.int64))

    def keep_inside(self, value: str, ends: Range) -> str:
        """Replace what is outside by NaN; NaN is neither below nor above, and stays."""
        low, high = (self.number(end) for end in ends)
        outside = self.add("Or", [self.add("Less", [value, low]), self.add("Greater", [value, high])])
        return self.add("Where", [outside, self.number(float("nan")), value])

    def look_up(self, encoder: Encoder, position: int, keys: dict[str, str]) -> str:
        """Return a category's numbers, FLOAT [n, statistics]."""
        schema = encoder.schema
        name = schema.categories[position]
        levels = schema.levels[position]
        parent = name == "model" and "make" in schema.categories
        key = self.add(
            "LabelEncoder", [name], "ai.onnx.ml", default_string="", **_spellings(schema, position, last=parent)
        )
        if parent:
            joined = self.add("StringConcat", [keys["make"], self._text(SEPARATOR)])
            full = self.add("StringConcat", [joined, key])
        else:
            full = keys[name] = key
        code = self.add(
            "LabelEncoder",
            [full],
            "ai.onnx.ml",
            keys_strings=list(levels),
            values_int64s=list(range(len(levels))),
            default_int64=len(levels),
        )
        table = encoder.values[position]
        unknown = np.full((1, table.shape[1]), np.nan, dtype=np.float32)
        found = self.add("Gather", [self.constant(np.vstack([table, unknown])), code], axis=0)
        return self.add("Reshape", [found, self.ints([-1, table.shape[1]])])

    def _text(self, text: str) -> str:
        return self.constant(np.array([text], dtype=object))

    def add_trees(self, columns: str, trees: Trees) -> str:
        """Add an ensemble, FLOAT [n, 1]."""
        owner = np.searchsorted(trees.roots, np.arange(len(trees.value)), side="right") - 1
        start = trees.roots[owner]
        leaf = trees.left == np.arange(len(trees.value))
        own = (np.arange(len(trees.value)) - start).tolist()
        return self.add(
            "TreeEnsembleRegressor",
            [columns],
            "ai.onnx.ml",
            n_targets=1,
            aggregate_function="SUM",
            post_transform="NONE",
            base_values=[trees.baseline],
            nodes_treeids=owner.tolist(),
            nodes_nodeids=own,
            nodes_featureids=trees.feature.tolist(),
            nodes_values=trees.threshold.tolist(),
            nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
            nodes_truenodeids=np.where(leaf, 0, trees.left - start).tolist(),
            nodes_falsenodeids=np.where(leaf, 0, trees.right - start).tolist(),
            nodes_missing_value_tracks_true=trees.missing_left.astype(int).tolist(),
            target_treeids=owner[leaf].tolist(),
            target_nodeids=np.asarray(own)[leaf].tolist(),
            target_ids=[0] * int(leaf.sum()),
            target_weights=trees.value[leaf].tolist(),
        )


def _spellings(schema: Schema, position: int, last: bool) -> dict[str, list[str]]:
    """Return the accepted spellings of a category with the key of each; of a model, the part behind its make."""
    found: dict[str, str] = {}
    for key, text in zip(schema.levels[position], schema.spellings[position], strict=True):
        if last:
            key, text = key.rpartition(SEPARATOR)[2], text.rpartition(SEPARATOR)[2]
        for spelling in (text, key, text.upper()):
            found.setdefault(spelling, key)
    return {"keys_strings": list(found), "values_strings": list(found.values())}


def feed_table(schema: Schema, table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs for prepared rows: FLOAT and STRING, [n, 1]."""
    feed: dict[str, NDArray[Any]] = {}
    for name in schema.features:
        values = read_column(table, name)
        if name in schema.numbers:
            found = np.full(table.num_rows, np.nan) if values is None else values.to_numpy(zero_copy_only=False)
            feed[name] = found.astype(np.float32).reshape(-1, 1)
        else:
            texts = [""] * table.num_rows if values is None else pc.fill_null(values, "").to_pylist()
            feed[name] = np.array(texts, dtype=object).reshape(-1, 1)
    return feed


def check_graph(graph: bytes, schema: Schema, table: pa.Table, expected: Mapping[str, NDArray[np.float64]]) -> float:
    """Compare a graph with the model on rows.

    Args:
        graph: The serialised graph.
        schema: Its features.
        table: Prepared rows.
        expected: The model's `price`, `low` and `high` of them.

    Returns:
        The largest relative difference.

    Raises:
        ModelError: It is above 1e-4.
    """
    found = run_graph(graph, feed_table(schema, table))
    worst, where = 0.0, ""
    for name in OUTPUTS:
        difference = np.abs(found[name] - expected[name]) / expected[name]
        row = int(np.argmax(difference))
        if not difference[row] <= worst:
            worst, where = float(difference[row]), f"{name} of row {row}: {found[name][row]} and {expected[name][row]}"
    if not worst <= TOLERANCE:
        raise ModelError(
            "ONNX graph",
            f"it differs from the model by {worst:.2g} ({where})",
            f"at most {TOLERANCE:g} is needed to save a model",
            "install the versions of onnx and onnxruntime that requirements/ names",
        )
    return worst


def run_graph(graph: bytes, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Run a graph by ONNX Runtime on one thread; several threads sum in another order.

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
    found = session.run(list(OUTPUTS), feed)
    return {name: np.asarray(values).reshape(-1) for name, values in zip(OUTPUTS, found, strict=True)}
