"""`TabularClassifier`: rows of any table in, the probability of a class with its drivers out."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import check_texts, read_json
from mlflywheel.models.contract import Column, Evaluation, Measurement, Model, RowScores, Settings
from mlflywheel.models.tabular_classifier.additive import Additive
from mlflywheel.models.tabular_classifier.encoding import Encoder, Rows
from mlflywheel.models.tabular_classifier.fitting import FitParams, Fitted, References, fit_classifier, to_probability
from mlflywheel.models.tabular_classifier.onnx_graph import build_graph, check_graph
from mlflywheel.models.tabular_classifier.preparation import (
    COLUMNS,
    ROW_ID,
    TARGET,
    Facts,
    PrepareConfig,
    prepare_rows,
    read_column,
    read_texts,
    suggest,
)
from mlflywheel.models.tabular_classifier.requests import RowRequest, RowResponse, tabulate_requests
from mlflywheel.models.vehicle_price.ensemble import Trees

FEWEST_ROWS = 20
_DRIVERS_SHOWN = 5
_PREDICT_BLOCK = 16_384


@dataclass(frozen=True)
class Training:
    """What a model remembers of its training table.

    Args:
        rows: Rows with a target.
        positives: Those of the positive class.
        target: The target's column.
        positive: Text of the positive class.
        negative: Text of the other one.
        attributes: Columns that it did not see.
    """

    rows: int
    positives: int
    target: str
    positive: str
    negative: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Classified:
    """What rows got, one entry a row.

    Args:
        rows: The rows as arrays.
        contributions: What each feature adds to the log-odds, float64 (rows, features); exact sums (`GRID`).
        log_odds: Of the positive class, float64.
        probability: The same as a probability.
    """

    rows: Rows
    contributions: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    probability: NDArray[np.float64]


class TabularClassifier(Model):
    """Two classes of the rows of any table, by logistic regression or boosted trees, with exact drivers.

    Predictions are computed from the model's arrays (`additive`, `vehicle_price.ensemble`), exactly the same for a
    batch and for one row. `model.onnx` holds the same model for other runtimes (`onnx_graph`); the two are compared on
    every training row before a model exists.

    Args:
        params: The parameters of the fit.
        fitted: Encoder, model and simpler methods.
        training: What is remembered of the training table.
        graph: The serialised ONNX graph.

    Attributes:
        onnx_difference: Largest difference between the probabilities of the graph and of this model on the training
            rows; None for a model that was loaded. It is not saved, since it may differ between processors.
    """

    format_name = "mlflywheel-tabular-classifier"
    format_version = "1"
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    other_columns = True
    Params = FitParams
    Config = PrepareConfig
    Request = RowRequest
    Response = RowResponse

    def __init__(self, params: FitParams, fitted: Fitted, training: Training, graph: bytes) -> None:
        self.params = params
        self.fitted = fitted
        self.training = training
        self.graph = graph
        self.onnx_difference: float | None = None
        self._feature_names = pa.array(self.encoder.features, pa.string())

    @property
    def encoder(self) -> Encoder:
        """The features that the model reads."""
        return self.fitted.encoder

    @property
    def references(self) -> References:
        """Simpler methods, fitted on the same rows."""
        return self.fitted.references

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Name and type columns; see `preparation.prepare_rows`."""
        if not isinstance(config, PrepareConfig):
            config = PrepareConfig.model_validate(config.model_dump(exclude_unset=True))
        return prepare_rows(raw, config, progress)

    @classmethod
    def describe_table(cls, table: pa.Table) -> dict[str, int]:
        """Count rows without a target, repeated rows, and cells that are no numbers."""
        facts = Facts.read(table) or Facts()
        counts = {"without_target": facts.without_target, "repeated_rows": facts.repeated}
        return {**counts, **{f"unreadable_{name}": count for name, count in facts.unreadable.items()}}

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        """Learn from the rows that have a target.

        Args:
            table: Prepared rows, with the metadata of preparing; their order does not matter.
            params: `FitParams`.
            progress: Called with the phases `fitting` and `checking the ONNX graph`.

        Raises:
            ModelError: There is no target, or one class, or fewer than 20 rows have one; no feature tells rows apart;
                or the ONNX graph differs from the model by more than 1e-4.
            MissingExtraError: onnx or onnxruntime is not installed.
        """
        fit_params = FitParams.model_validate(params.model_dump())
        facts = Facts.read(table)
        if facts is None:
            raise ModelError(
                "training rows",
                "no facts of preparing in the table's metadata",
                "they say which columns are features and which the model must not see",
                "fit on what TabularClassifier.prepare returns",
            )
        table, positive = _select_labelled(table, facts)
        fitted = fit_classifier(table, facts.kinds, positive, fit_params, progress)
        training = Training(
            len(positive), int(positive.sum()), facts.target, facts.positive, facts.negative, facts.attributes
        )
        progress("checking the ONNX graph", 0, 1)
        model = cls(fit_params, fitted, training, build_graph(fitted.encoder, fitted.scorer))
        model.onnx_difference = max(
            check_graph(model.graph, model.encoder, rows, model.classify(rows).probability)
            for rows in (table, _hide_cells(table, model.encoder, fit_params.seed))
        )
        progress("checking the ONNX graph", 1, 1)
        return model

    def classify(self, table: pa.Table) -> Classified:
        """Score prepared rows, as arrays; `predict` makes a table of it."""
        rows = self.encoder.read(table)
        scorer = self.fitted.scorer
        contributions = scorer.contribute(rows.encoded, self.encoder.owners, len(self.encoder.features))
        log_odds = scorer.base + contributions.sum(axis=1)
        return Classified(rows, contributions, log_odds, to_probability(log_odds))

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Classify rows.

        Args:
            table: Prepared rows; columns that are not there are missing in every row.
            progress: Called with the phase `scoring`.

        Returns:
            `row_id` string; `probability` float64, of the positive class; `label` string, the positive class from the
            decision threshold on; `flags` list<string>; `drivers` list of (feature, value, contribution), at most five,
            those that move the log-odds most first.
        """
        blocks = []
        for start in range(0, max(1, table.num_rows), _PREDICT_BLOCK):
            progress("scoring", start, table.num_rows)
            blocks.append(self._predict_block(table.slice(start, _PREDICT_BLOCK)))
        progress("scoring", table.num_rows, table.num_rows)
        return blocks[0] if len(blocks) == 1 else pa.concat_tables(blocks).combine_chunks()

    def _predict_block(self, table: pa.Table) -> pa.Table:
        found = self.classify(table)
        order = _order_drivers(found)[:, :_DRIVERS_SHOWN]
        return pa.table(
            {
                ROW_ID: _read_ids(table),
                "probability": pa.array(found.probability),
                "label": self.label(found.probability),
                "flags": self._list_flags(found.rows),
                "drivers": self._list_drivers(table, found, order),
            }
        )

    def label(self, probability: NDArray[np.float64]) -> pa.Array:
        """Return the class of each probability as text."""
        names = np.array([self.training.negative, self.training.positive], dtype=object)
        return pa.array(names[(probability >= self.params.decision_threshold).astype(np.int64)], pa.string())

    def _list_flags(self, rows: Rows) -> pa.ListArray:
        encoder = self.encoder
        masks: dict[str, NDArray[np.bool_]] = {}
        missing = np.isnan(rows.numbers)
        low, high = encoder.limits
        beyond = (rows.numbers < low) | (rows.numbers > high)
        for position, name in enumerate(encoder.numbers):
            masks[f"missing_{name}"] = missing[:, position] & ~rows.unreadable[:, position]
            masks[f"unreadable_{name}"] = rows.unreadable[:, position]
            masks[f"{name}_beyond_training"] = beyond[:, position]
        for position, category in enumerate(encoder.categories):
            masks[f"missing_{category.name}"] = rows.codes[:, position] == len(category.levels) + 1
            masks[f"unknown_{category.name}"] = rows.codes[:, position] == len(category.levels)
        matrix = np.column_stack(list(masks.values()))
        offsets = np.concatenate([[0], np.cumsum(matrix.sum(axis=1))])
        values = pc.take(pa.array(list(masks), pa.string()), pa.array(np.nonzero(matrix)[1]))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def _list_drivers(self, table: pa.Table, found: Classified, order: NDArray[np.int64]) -> pa.ListArray:
        rows = table.num_rows
        chosen = order.ravel()
        place = chosen * rows + np.repeat(np.arange(rows), order.shape[1])
        texts = pc.take(pa.concat_arrays(self._write_values(table, found.rows)), pa.array(place))
        parts = np.take_along_axis(found.contributions, order, axis=1).ravel()
        arrays = [pc.take(self._feature_names, pa.array(chosen)), texts, pa.array(parts)]
        offsets = np.arange(rows + 1, dtype=np.int32) * order.shape[1]
        listed = pa.StructArray.from_arrays(arrays, ["feature", "value", "contribution"])
        return pa.ListArray.from_arrays(pa.array(offsets), listed)

    def _write_values(self, table: pa.Table, rows: Rows) -> list[pa.Array]:
        """Return each feature's values as texts, null where missing."""
        written = []
        for name in self.encoder.numbers:
            values = read_column(table, name)
            written.append(pa.nulls(table.num_rows, pa.string()) if values is None else read_texts(values))
        for category in self.encoder.categories:
            values = read_column(table, category.name)
            written.append(pa.nulls(table.num_rows, pa.string()) if values is None else read_texts(values))
        return written

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        """Measure probabilities and classes on held-out rows, beside simpler methods; see `evaluation`."""
        from mlflywheel.models.tabular_classifier.evaluation import evaluate_classifier

        return evaluate_classifier(self, table, progress)

    def measure(
        self, table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
    ) -> tuple[Measurement, ...]:
        """Measure some overall metrics; see `evaluation`."""
        from mlflywheel.models.tabular_classifier.evaluation import measure_classifier

        return measure_classifier(self, table, metrics)

    def score_rows(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> RowScores:
        """Measure every row that has a target by itself; see `evaluation`."""
        from mlflywheel.models.tabular_classifier.evaluation import score_rows

        return score_rows(self, table)

    def explain(self, table: pa.Table) -> pa.Table:
        """Attribute every row's log-odds to all features.

        Returns:
            One row a row: `row_id`; `probability`; `log_odds`; `base_log_odds`, what is expected before anything is
            known; `drivers`, all features as (feature, value, contribution), the strongest first. The base plus the
            contributions is the log-odds, to the last bit, in whatever order they are added.
        """
        found = self.classify(table)
        return pa.table(
            {
                ROW_ID: _read_ids(table),
                "probability": pa.array(found.probability),
                "log_odds": pa.array(found.log_odds),
                "base_log_odds": pa.array(np.full(table.num_rows, self.fitted.scorer.base)),
                "drivers": self._list_drivers(table, found, _order_drivers(found)),
            }
        )

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return the algorithm, the sizes, what is predicted, and how far the ONNX graph of a new model is from it."""
        scorer = self.fitted.scorer
        facts: dict[str, str | int | float | bool] = {
            "algorithm": self.params.algorithm,
            "training_rows": self.training.rows,
            "training_positive_share": self.training.positives / self.training.rows,
            "target": self.training.target,
            "positive": self.training.positive,
            "features": ", ".join(self.encoder.features),
            "not_features": ", ".join(self.training.attributes),
            "encoded_columns": len(self.encoder.owners),
            "decision_threshold": self.params.decision_threshold,
            "seed": self.params.seed,
        }
        if isinstance(scorer, Trees):
            facts["trees"] = len(scorer.roots)
        if self.onnx_difference is not None:
            facts["onnx_difference"] = self.onnx_difference
        return facts

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        """Return a row of the credit sample; a model of another table answers it too, with every feature missing."""
        return {
            "row_id": "example",
            "values": {
                "purpose": "car",
                "duration_months": 24,
                "amount": 3500,
                "savings": "100 to 500",
                "employment_years": 4,
                "housing": "rent",
            },
        }

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        """Turn requests into rows; `predict` finds what is missing or unknown in them."""
        return tabulate_requests(
            [
                instance if isinstance(instance, RowRequest) else RowRequest.model_validate(instance.model_dump())
                for instance in instances
            ]
        )

    def write(self, folder: Path) -> None:
        """Write settings, encoding and linear models as JSON, trees as npy, and the ONNX graph."""
        _write_json(
            folder / "model.json",
            {
                "params": self.params.model_dump(mode="json"),
                "training": asdict(self.training),
                "encoding": self.encoder.to_dict(),
            },
        )
        scorer = self.fitted.scorer
        if isinstance(scorer, Trees):
            (folder / "trees").mkdir()
            scorer.write(folder / "trees")
        else:
            _write_json(folder / "logistic.json", scorer.to_dict())
        self.references.write(folder)
        (folder / "model.onnx").write_bytes(self.graph)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote."""
        model = read_json(folder / "model.json")
        encoder = Encoder.from_dict(model["encoding"])
        scorer: Additive | Trees
        if (folder / "trees").is_dir():
            scorer = Trees.read(folder / "trees", len(encoder.owners))
        else:
            values = read_json(folder / "logistic.json")
            scorer = Additive.from_dict(values, encoder)
        kept = model["training"]
        check_texts([kept["target"], kept["positive"], kept["negative"], *kept["attributes"]], "training")
        if not all(type(kept[name]) is int for name in ("rows", "positives")) or kept["rows"] < 1:
            raise ValueError("the training rows are not counted")
        found = cls(
            FitParams.model_validate(model["params"]),
            Fitted(encoder, scorer, References.read(folder, encoder)),
            Training(**{**kept, "attributes": tuple(kept["attributes"])}),
            (folder / "model.onnx").read_bytes(),
        )
        # The kernels are compiled now, not by the first request.
        found.classify(cls.to_table([]))
        return found


def _order_drivers(found: Classified) -> NDArray[np.int64]:
    """Return each row's features by the size of their contribution, equal ones in the order of the features."""
    return np.argsort(-np.abs(found.contributions), axis=1, kind="stable")


def _read_ids(table: pa.Table) -> pa.Array:
    ids = read_column(table, ROW_ID)
    if ids is None:
        return pa.array([""] * table.num_rows, pa.string())
    return pc.fill_null(ids.cast(pa.string()), "")


def _select_labelled(table: pa.Table, facts: Facts) -> tuple[pa.Table, NDArray[np.float64]]:
    """Return the rows with a target, sorted by id, and their ones and zeros.

    Raises:
        ModelError: There are too few, or of one class; the message says what the target's column holds.
    """
    if not facts.target:
        raise ModelError(
            "target column",
            f"it is none of {', '.join(facts.columns)}",
            "a classifier learns from rows whose class is known",
            "name the target's column with --prepare target=",
        )
    where = f"target column {facts.target}"
    held = ", ".join(f"{text} ({count})" for text, count in facts.values.items()) or "no value"
    labelled = table.filter(pc.is_valid(table[TARGET])) if TARGET in table.column_names else table.slice(0, 0)
    if facts.positive and facts.values and facts.positive not in facts.values:
        otherwise = f"name another one: --prepare positive={next(iter(facts.values))}"
        raise ModelError(
            where,
            f"its values are {held}",
            f"rows of the positive class {facts.positive} are needed",
            suggest(facts.positive, list(facts.values), otherwise),
        )
    if labelled.num_rows < FEWEST_ROWS or not facts.positive:
        raise ModelError(
            where,
            f"its values are {held}; {labelled.num_rows} training rows can be learned from",
            f"two classes and at least {FEWEST_ROWS} rows are needed",
            "check the column and the setting positive, or get more rows",
        )
    # By the id, then by what else tells rows of one id apart.
    order = [(name, "ascending") for name in labelled.column_names]
    labelled = labelled.replace_schema_metadata(None).sort_by(order).combine_chunks()
    positive = np.array(labelled[TARGET].to_numpy(), dtype=np.float64)
    if positive.min() == positive.max():
        raise ModelError(
            where,
            f"every training row is {facts.positive if positive[0] else facts.negative}",
            "rows of two classes are needed",
            "check the setting positive, or get rows of the other class",
        )
    return labelled, positive


def _hide_cells(table: pa.Table, encoder: Encoder, seed: int) -> pa.Table:
    """Return rows in which each cell is missing, or a text nobody has seen, with a chance of one in four."""
    random = np.random.default_rng([seed, 1])
    for name in encoder.features:
        hidden = pa.array(random.random(table.num_rows) < 0.25)
        filler = pa.scalar(None, pa.float64()) if name in encoder.numbers else pa.scalar("\u00a7 unknown")
        table = table.set_column(table.column_names.index(name), name, pc.if_else(hidden, filler, table[name]))
    return table.combine_chunks()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
