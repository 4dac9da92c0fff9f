"""Measuring probabilities and classes on held-out rows, beside simpler methods that the model must be better than.

| metric | what it is | interval |
|---|---|---|
| `auc` | chance that a positive row has a higher probability than another row | DeLong |
| `log_loss` | mean of -log of the probability of what happened | Student's t |
| `brier` | mean squared difference of probability and class | Student's t |
| `accuracy`, `error` | share of rows whose answer is right, or wrong | Wilson |
| `recall` | share of positive rows that are called positive | Wilson |
| `precision` | share of rows called positive that are | Wilson |
| `positive_share` | share of rows called positive | Wilson |
| `calibration_difference` | mean probability minus share of positive rows | Student's t |
| `expected_calibration_error` | the same by tenths of the probability, sizes averaged | none |

`auc`, `error`, `recall` and `precision` are measured by the values of every text column with few values, too.
`expected_calibration_error` is above 0 for perfect probabilities, since the share of a tenth scatters: it is something
to look at, not to gate.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, choose_measurements
from mlflywheel.models.tabular_classifier.encoding import Encoder
from mlflywheel.models.tabular_classifier.fitting import FitParams, References
from mlflywheel.models.tabular_classifier.preparation import ROW_ID, TARGET
from mlflywheel.models.tabular_classifier.ranking import estimate_auc
from mlflywheel.statistics.intervals import Interval, estimate_mean, estimate_share

#: A text column with more values than this is no slice.
MOST_VALUES = 12
#: Groups of equally many rows, by rising probability, of the calibration.
TENTHS = 10
_SURE = 1e-15
_PHASE = "measuring"


class ClassModel(Protocol):
    """What the evaluation needs of a model."""

    params: FitParams

    @property
    def encoder(self) -> Encoder:
        """The features."""

    @property
    def references(self) -> References:
        """Simpler methods, fitted on the model's training rows."""

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Return `probability` and `label` of prepared rows."""


@dataclass(frozen=True)
class Scored:
    """What held-out rows got, one entry a row.

    Args:
        table: Prepared rows with a target.
        answers: What the model predicted for them.
        truth: 1 for the positive class, 0 for the other, float64.
        probability: The model's, float64.
        references: Probabilities by simpler methods.
        threshold: Probability from which the positive class is the answer.
    """

    table: pa.Table
    answers: pa.Table
    truth: NDArray[np.float64]
    probability: NDArray[np.float64]
    references: Mapping[str, NDArray[np.float64]]
    threshold: float


def evaluate_classifier(model: ClassModel, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
    """Measure a model on rows that it was not fitted on.

    Args:
        model: The fitted model.
        table: Prepared held-out rows. Those without a target are left out; none at all, or one class alone, is a
            defined case, whose undefined measurements are None.
        progress: Called with the phase `measuring`.

    Raises:
        DataError: The table has no column `target`.
    """
    from mlflywheel.models.tabular_classifier.sections import build_sections

    progress(_PHASE, 0, 3)
    scored = score(model, table)
    progress(_PHASE, 1, 3)
    measurements = list(_measure(scored))
    measurements += _measure_slices(scored)
    progress(_PHASE, 2, 3)
    sections = build_sections(scored, measurements)
    progress(_PHASE, 3, 3)
    return Evaluation(tuple(measurements), sections)


def measure_classifier(model: ClassModel, table: pa.Table, metrics: Collection[str]) -> tuple[Measurement, ...]:
    """Measure some overall metrics, as a search for parameters asks for them: without slices and the report."""
    return choose_measurements(_measure(score(model, table)), metrics)


def score_rows(model: ClassModel, table: pa.Table) -> RowScores:
    """Measure every row that has a target by itself; see `Model.score_rows`."""
    scored = score(model, table)
    truth = scored.truth
    called = scored.probability >= scored.threshold
    attributes = [name for name in scored.table.column_names if name not in (ROW_ID, TARGET)]
    return RowScores(
        task="classification",
        ids=scored.table[ROW_ID].cast(pa.string()).combine_chunks(),
        attributes=scored.table.select(attributes).replace_schema_metadata(None),
        metrics=(
            RowMetric("log_loss", measure_log_loss(truth, scored.probability)),
            RowMetric("error", (called != (truth > 0)).astype(np.float64), "lower", (0.0, 1.0)),
        ),
        answers=scored.answers["label"].combine_chunks(),
        truth=truth,
        probability=scored.probability,
        references={name: measure_log_loss(truth, found) for name, found in scored.references.items()},
    )


def score(model: ClassModel, table: pa.Table) -> Scored:
    """Predict the rows that have a target, by the model and by simpler methods.

    Raises:
        DataError: The table has no column `target`.
    """
    if TARGET not in table.column_names:
        raise DataError(
            "held-out rows",
            f"no column {TARGET}",
            "a classifier is measured on rows whose class is known",
            "prepare a table with the target's column (--prepare target=)",
        )
    labelled = table.filter(pc.is_valid(table[TARGET]))
    answers = model.predict(labelled)
    return Scored(
        labelled,
        answers,
        np.array(labelled[TARGET].to_numpy(), dtype=np.float64),
        np.array(answers["probability"].to_numpy(), dtype=np.float64),
        model.references.predict(model.encoder.read(labelled), model.encoder),
        model.params.decision_threshold,
    )


def measure_log_loss(truth: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log of the probability of what happened, float64 (rows,); probabilities are kept off 0 and 1 by 1e-15.

    >>> measure_log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.0])).round(3).tolist()
    [0.693, 0.0]
    """
    happened = np.where(truth > 0, probability, 1.0 - probability)
    return np.asarray(0.0 - np.log(np.clip(happened, _SURE, 1.0)), dtype=np.float64)


def divide_by_probability(scored: Scored) -> list[NDArray[np.int64]]:
    """Return the rows of each tenth, by rising probability; fewer where there are fewer rows."""
    order = np.argsort(scored.probability, kind="stable")
    return [part for part in np.array_split(order, TENTHS) if len(part)]


def list_slices(table: pa.Table) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield column, value and rows of every slice: each value of text columns with at least 2 and at most 12."""
    for name in table.column_names:
        if name == ROW_ID or not pa.types.is_string(table.schema.field(name).type):
            continue
        values = np.array([value or "missing" for value in table[name].to_pylist()], dtype=object)
        distinct = sorted(set(values))
        if 2 <= len(distinct) <= MOST_VALUES:
            for value in distinct:
                yield name, value, values == value


def _measure(scored: Scored) -> Iterator[Measurement]:
    """Measure all rows: the model, and every reference by the same metrics."""
    truth, probability = scored.truth, scored.probability
    rows = np.ones(len(truth), dtype=bool)
    for prefix, found in (("", probability), *((f"reference_{name}_", one) for name, one in scored.references.items())):
        yield _measure_auc(f"{prefix}auc", truth, found)
        yield _measurement(f"{prefix}log_loss", estimate_mean(measure_log_loss(truth, found)))
        yield _measurement(f"{prefix}brier", estimate_mean((found - truth) ** 2, bounds=(0.0, 1.0)))
        yield from _measure_answers(truth, found >= scored.threshold, rows, prefix)
    yield _measurement("positive_share", _share(probability >= scored.threshold))
    note = "mean probability minus share of positive rows"
    yield _measurement("calibration_difference", estimate_mean(probability - truth), note=note)
    error = None
    if len(truth):
        parts = divide_by_probability(scored)
        error = float(sum(abs((probability[part] - truth[part]).sum()) for part in parts) / len(truth))
    note = f"by {TENTHS} groups of equally many rows; above 0 by chance alone"
    yield Measurement("expected_calibration_error", error, count=len(truth), note=note)


def _measure_slices(scored: Scored) -> Iterator[Measurement]:
    called = scored.probability >= scored.threshold
    for column, value, rows in list_slices(scored.table):
        name = f"{column}={value}"
        yield _measure_auc("auc", scored.truth[rows], scored.probability[rows], name)
        for found in _measure_answers(scored.truth, called, rows, "", name):
            if found.metric != "accuracy":
                yield found


def _measure_auc(
    metric: str, truth: NDArray[np.float64], probability: NDArray[np.float64], name: str = "all"
) -> Measurement:
    unscored = int((~np.isfinite(probability)).sum())
    if unscored:
        # A rank of what is no number is nobody's: without a value, gates refuse.
        return Measurement(metric, None, name, len(truth), note=f"{unscored} rows have no probability")
    found = estimate_auc(truth, probability)
    note = ""
    if found.value is None:
        note = "rows of one class" if len(truth) else "no rows"
    elif found.low is None:
        note = "no interval: the classes do not overlap, or one has a single row"
    return _measurement(metric, found, name, note)


def _measure_answers(
    truth: NDArray[np.float64],
    called: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    prefix: str = "",
    name: str = "all",
) -> Iterator[Measurement]:
    positive, said = truth[rows] > 0, called[rows]
    right = positive == said
    yield _measurement(f"{prefix}accuracy", _share(right), name)
    yield _measurement(f"{prefix}error", _share(~right), name)
    note = "" if positive.any() else "no positive row"
    yield _measurement(f"{prefix}recall", _share(said[positive]), name, note)
    note = "" if said.any() else "no row is called positive"
    yield _measurement(f"{prefix}precision", _share(positive[said]), name, note)


def _share(rows: NDArray[np.bool_]) -> Interval:
    return estimate_share(int(np.count_nonzero(rows)), len(rows))


def _measurement(metric: str, interval: Interval, name: str = "all", note: str = "") -> Measurement:
    return Measurement(metric, interval.value, name, interval.count, interval.low, interval.high, note)
