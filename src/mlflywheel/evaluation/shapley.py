"""Shapley values of any model by the package shap: a second opinion on a model's own contributions.

A model's own contributions are exact sums of what it computed. Shapley values know nothing of its inside: they are made
of its answers alone, to rows in which some columns were replaced by those of other rows (S. Lundberg and S. Lee, "A
unified approach to interpreting model predictions", NeurIPS 2017). So they check the model's own, at the cost of many
predictions a row, and like all such mixtures they ask the model about rows that may not occur. The two are different
measures and need not be equal; features that matter much should be the same ones.

They fit models that give one number a row. A campaign's topics have one input, its terms, and its own contributions
split that further.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.evaluation.contributions import (
    LOG_ODDS,
    Contributions,
    name_id_column,
    read_contributions,
    read_predictions,
)
from mlflywheel.evaluation.importance import Feature, find_features
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Model

#: Rows that stand for "not known"; more cost time in proportion, and change little.
BACKGROUND_ROWS = 50
_FEWEST_BACKGROUND_ROWS = 10
_PERMUTATIONS = 5
_PHASE = "asking the model for shap"
# shap takes two codes for one value where they differ by less than 1e-5 of themselves.
_MOST_ROWS = 20_000


def explain_with_shap(
    model: Model,
    rows: pa.Table,
    background: pa.Table,
    *,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Contributions:
    """Explain the answers to rows by Shapley values, in the quantity that the model's own contributions add up to.

    Args:
        model: A model that gives one number a row: a price, a probability.
        rows: Prepared rows to explain.
        background: Prepared rows that values are taken from where a column is hidden; 50 of them are drawn.
        permutations: Orders in which columns are revealed, there and back; two-way interactions are exact after one.
        seed: Of the drawn background and the orders.
        progress: Called with the phase `asking the model for shap`, in rows.

    Raises:
        MissingExtraError: shap is not installed.
        UsageError: The model gives several numbers a row, or answers without the explained quantity.
        DataError: Fewer than 10 background rows, or over 20,000 rows.
    """
    own = read_contributions(model, rows)
    if own.outputs_per_row > 1 or (rows.num_rows and read_predictions(model, rows.slice(0, 1), own.quantity) is None):
        raise UsageError(
            "--method shap",
            f"{type(model).__name__} gives {own.outputs_per_row} numbers a row"
            if own.outputs_per_row > 1
            else f"answers of {type(model).__name__} without {own.quantity}",
            "shap explains models that answer with one number",
            "use --method own",
        )
    named = set(own.features.to_pylist())
    features = find_features(model, rows, name_id_column(model, rows))
    read = tuple(feature for feature in features if feature.name in named) or features
    return explain_function(
        lambda table: _predict(model, table, own.quantity),
        read,
        rows,
        background,
        ids=own.ids,
        quantity=own.quantity,
        permutations=permutations,
        seed=seed,
        progress=progress,
    )


def explain_function(
    predict: Callable[[pa.Table], NDArray[np.float64]],
    features: Sequence[Feature],
    rows: pa.Table,
    background: pa.Table,
    *,
    ids: pa.Array,
    quantity: str,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Contributions:
    """Explain any function of a table by Shapley values, with columns of any type.

    Args:
        predict: Gives float64 (rows,) for a table like `rows`.
        features: What is hidden and revealed; other columns keep the values of the explained row.
        rows: Rows to explain.
        background: Rows with the same columns.
        ids: Of the rows, string.
        quantity: Name of what the function gives.
        permutations: As in `explain_with_shap`.
        seed: As in `explain_with_shap`.
        progress: As in `explain_with_shap`.

    Raises:
        MissingExtraError: shap is not installed.
        DataError: Fewer than 10 background rows, or over 20,000 rows.
    """
    shap = _import_shap()
    if background.num_rows < _FEWEST_BACKGROUND_ROWS or rows.num_rows > _MOST_ROWS:
        few = background.num_rows < _FEWEST_BACKGROUND_ROWS
        raise DataError(
            "--method shap",
            f"{background.num_rows} background rows" if few else f"{rows.num_rows:,} rows to explain",
            f"at least {_FEWEST_BACKGROUND_ROWS} are needed" if few else f"at most {_MOST_ROWS:,} can be",
            "give a table of more rows" if few else "name the rows with --row",
        )
    chosen = np.sort(np.random.default_rng([seed, 2]).permutation(background.num_rows)[:BACKGROUND_ROWS])
    hidden = background.select(rows.column_names).cast(rows.schema).take(pa.array(chosen))
    pooled = pa.concat_tables([hidden, rows]).combine_chunks()
    # shap sees matrices of numbers: each feature is the row of the pool that its value is taken from.
    codes = np.stack([_code_values(pooled, feature) for feature in features], axis=1)
    bases, amounts = np.zeros(rows.num_rows), np.zeros((rows.num_rows, len(features)))
    state = np.random.get_state()
    try:
        for row in range(rows.num_rows):
            progress(_PHASE, row, rows.num_rows)
            place = len(chosen) + row

            def ask(matrix: NDArray[Any], place: int = place) -> NDArray[np.float64]:
                return predict(_mix(pooled, features, matrix.astype(np.int64), place))

            explainer = shap.explainers.Permutation(
                ask, shap.maskers.Independent(codes[: len(chosen)], max_samples=len(chosen)), seed=seed + row
            )
            found = explainer(codes[place : place + 1], max_evals=permutations * (2 * len(features) + 1), silent=True)
            bases[row], amounts[row] = float(np.ravel(found.base_values)[0]), found.values[0]
    finally:
        # shap seeds NumPy's global generator.
        np.random.set_state(state)
    progress(_PHASE, rows.num_rows, rows.num_rows)
    return _collect(rows, features, ids, quantity, bases, amounts, predict(rows))


def _import_shap() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            # Its plots import matplotlib by names that are going away; nothing here draws with them.
            warnings.simplefilter("ignore")
            import shap
    except ImportError:
        raise MissingExtraError.of("shap", "explain", "explaining with --method shap") from None
    return shap


def _predict(model: Model, table: pa.Table, quantity: str) -> NDArray[np.float64]:
    values = read_predictions(model, table, quantity)
    assert values is not None
    if quantity == LOG_ODDS:
        from scipy.special import logit

        # Beyond this a float32 probability is 0 or 1, whose log odds are infinite.
        return np.asarray(logit(np.clip(values, 1e-7, 1.0 - 1e-7)), dtype=np.float64)
    return values


def _code_values(pooled: pa.Table, feature: Feature) -> NDArray[np.int64]:
    """Return for each row the first row that has the same values of a feature."""
    first: dict[str, int] = {}
    columns = [pooled[name].to_pylist() for name in feature.columns]
    return np.array([first.setdefault(repr(values), row) for row, values in enumerate(zip(*columns, strict=True))])


def _mix(pooled: pa.Table, features: Sequence[Feature], codes: NDArray[np.int64], place: int) -> pa.Table:
    """Build rows like one of the pool, with each feature's values from where its code says."""
    table = pooled.take(pa.array(np.full(len(codes), place)))
    for feature, own in zip(features, codes.T, strict=True):
        taken = pa.array(own)
        for name in feature.columns:
            position = table.column_names.index(name)
            table = table.set_column(position, table.schema.field(position), pooled[name].take(taken))
    return table.combine_chunks()


def _collect(
    rows: pa.Table,
    features: Sequence[Feature],
    ids: pa.Array,
    quantity: str,
    bases: NDArray[np.float64],
    amounts: NDArray[np.float64],
    total: NDArray[np.float64],
) -> Contributions:
    order = np.argsort(-np.abs(amounts), axis=1, kind="stable")
    names = pa.array([feature.name for feature in features], pa.string())
    texts = [_write_values(rows, feature) for feature in features]
    places = order * rows.num_rows + np.arange(rows.num_rows)[:, None]
    return Contributions(
        ids=ids,
        outputs=pa.array([quantity] * rows.num_rows, pa.string()),
        quantity=quantity,
        base=bases,
        total=total,
        offsets=np.arange(rows.num_rows + 1, dtype=np.int64) * len(features),
        features=names.take(pa.array(order.ravel())),
        values=pa.concat_arrays(texts).take(pa.array(places.ravel())),
        amounts=np.take_along_axis(amounts, order, axis=1).ravel(),
    )


def _write_values(rows: pa.Table, feature: Feature) -> pa.Array:
    column = rows[feature.name].combine_chunks()
    return pa.nulls(rows.num_rows, pa.string()) if pa.types.is_nested(column.type) else column.cast(pa.string())
