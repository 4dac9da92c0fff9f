"""What one trial does: fit a model with given parameters on a part of the training rows, and measure it on the rest.

`python -m mlflywheel.tuning.trial num_topics=40 text.bigrams=false` is the command of a trial template. Everything
else comes from the environment variable `MLFLYWHEEL_TRIAL`, a JSON object (`TrialInput`): trial pods get no artifacts
of a pipeline, and Katib joins a command's words into `sh -c` without quoting, which a variable survives.

It prints one line a metric, `name=0.8125`: a finite plain decimal, since Katib takes `nan` for a value and then makes
that trial the best. If there is no such number, it prints an error and exits with another code than 0.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mlflywheel.errors import MlflywheelError, ModelError, UsageError
from mlflywheel.models.contract import Measurement, Settings, load_model_class
from mlflywheel.models.parameters import merge, nest, read_assignments

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflywheel.data.splitting import Split

MODULE = "mlflywheel.tuning.trial"
INPUT_VARIABLE = "MLFLYWHEEL_TRIAL"


class TrialInput(Settings):
    """What every trial of a search has in common.

    The validation part is cut from the training rows by the pipeline's own split method, so that the rows that the
    final evaluation holds out are never seen by the search.
    """

    data: str = Field(description="path or URI of the prepared training rows, Parquet")
    model: str = Field(description="model class, by entry point name or as module:Class")
    metrics: tuple[str, ...] = Field(min_length=1, description="what to print, the objective first")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters that the search does not change")
    split_method: str = Field("random", description="random, grouped or temporal")
    split_column: str = Field("", description="the group or time column of the grouped and temporal methods")
    split_seed: int = Field(0, description="seed of the split that made the training rows")
    validation_fraction: float = Field(0.25, gt=0, lt=1, description="share of the training rows to measure on")


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read a trial's words into nested parameters.

    Raises:
        UsageError: A word is not `name=value`, or names a parameter again.

    >>> read_overrides(["num_topics=40", "algorithm=lda", "text.bigrams=false"])
    {'num_topics': 40, 'algorithm': 'lda', 'text': {'bigrams': False}}
    """
    return nest(read_assignments("trial argument", words), "trial argument")


def run_trial(given: TrialInput, overrides: Mapping[str, Any], table: "pa.Table | None" = None) -> dict[str, float]:
    """Fit with some parameters, and measure.

    Args:
        given: What all trials of the search have in common.
        overrides: The trial's own parameters, nested.
        table: The training rows, if the caller has read them already.

    Returns:
        Finite values by metric, in the order of `given.metrics`.

    Raises:
        ModelError: A metric has no finite value on these rows; the message says why.
        UsageError: The model has no such parameter or metric.
    """
    params = merge(given.params, overrides)
    # What the model refuses is told before the rows are read.
    load_model_class(given.model).Params.parse(params, "trial parameters")
    return fit_and_measure(given, params, cut_validation(given, read_rows(given.data) if table is None else table))


def fit_and_measure(given: TrialInput, params: Mapping[str, Any], parts: "Split") -> dict[str, float]:
    """Fit with complete parameters on one part, and measure `given.metrics` on the other; errors as for `run_trial`."""
    model_class = load_model_class(given.model)
    fitted = model_class.fit(parts.train, model_class.Params.parse(params, "trial parameters"))
    return {found.metric: _finite(found) for found in fitted.measure(parts.holdout, given.metrics)}


def cut_validation(given: TrialInput, table: "pa.Table") -> "Split":
    """Cut the validation part from the training rows, the same one for every trial."""
    from mlflywheel.data.splitting import split

    # The random split orders ids by a hash; by the same seed they would stand as they did in the first split, and the
    # validation part would be what lies next to the held-out rows.
    seed = given.split_seed + 1
    column = given.split_column or None
    return split(table, given.split_method, given.validation_fraction, seed, column, table.column_names[0])


def read_rows(uri: str) -> "pa.Table":
    """Read prepared rows from a path or URI."""
    import pyarrow.parquet as pq

    from mlflywheel import storage

    with storage.local_copy(uri) as path:
        return pq.read_table(path)


def _finite(measured: Measurement) -> float:
    if measured.value is None or not math.isfinite(measured.value):
        reason = f" ({measured.note})" if measured.note else ""
        raise ModelError(
            f"metric {measured.metric}",
            f"{measured.value} on {measured.count} validation rows{reason}",
            "a search compares finite values",
            "choose another objectiveMetricName in the experiment, or bring what the metric needs",
        )
    return measured.value


def format_metric(name: str, value: float) -> str:
    """Return the line that Katib's collector reads, without an exponent.

    >>> format_metric("loss", 1.5e-07)
    'loss=0.00000015'
    """
    import numpy as np

    return f"{name}={np.format_float_positional(value, trim='-')}"


def main(words: Sequence[str]) -> int:
    """Run the trial that the command line and the environment describe; return the exit code."""
    try:
        if not os.environ.get(INPUT_VARIABLE):
            raise UsageError(
                INPUT_VARIABLE,
                "not set",
                "a trial reads its data and its model from this variable",
                "start the search with mlflywheel tune or the tuning component, which set it",
            )
        given = TrialInput.parse(os.environ[INPUT_VARIABLE], INPUT_VARIABLE)
        for name, value in run_trial(given, read_overrides(words)).items():
            print(format_metric(name, value), flush=True)
    except MlflywheelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
