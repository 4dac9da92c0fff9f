"""Whether the best trial's parameters are better than the given ones, asked on rows that did not choose them.

The best of many noisy values is better than it will be again: on three data sets, 24 trials of a search raised the
validation value and not the held-out one (benchmarks/README.md). So both parameter sets are fitted again, on several
splits of the rows that trials were fitted on and not judged on, and compared pair by pair.

Rows repeat between the splits, so the differences are not independent; their variance is corrected for that as by
Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003). How often equal parameters are
taken for better, and better ones found, is simulated in `tests/unit/test_confirmation.py`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlflywheel.data.splitting import split
from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.tuning.experiment import Objective
from mlflywheel.tuning.trial import TrialInput, cut_validation, fit_and_measure

if TYPE_CHECKING:
    import pyarrow as pa

#: How often parameters that are no better may be taken for better.
ALPHA = 0.1
# Of the validation fraction: a temporal split has no seed, so that its border moves instead.
_TEMPORAL_SHARES = (0.6, 0.8, 1.0, 1.2, 1.4)


@dataclass(frozen=True)
class Confirmation:
    """What came of fitting both parameter sets again.

    Args:
        differences: The objective with the best trial's parameters less that with the given ones, by split, turned so
            that above zero is better.
        mean: Their mean.
        p_value: How likely such a mean or a larger one is if neither set is better; None for fewer than two splits.
        confirmed: Whether the best trial's parameters are taken: the p value is below `ALPHA`.
        failure: Why the parameters could not be fitted on a split, empty if they could.
    """

    differences: tuple[float, ...]
    mean: float | None
    p_value: float | None
    confirmed: bool
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "differences": list(self.differences)}


def confirm(
    given: TrialInput,
    best: Mapping[str, Any],
    objective: Objective,
    table: "pa.Table",
    splits: int = 5,
    progress: ProgressCallback = ignore_progress,
) -> Confirmation:
    """Fit the given and the best trial's parameters on several splits, and compare.

    Args:
        given: What the trials had in common; `params` are the given parameters.
        best: The complete parameters of the best trial.
        objective: What is compared.
        table: The training rows.
        splits: How many; at most five for a temporal split.
        progress: Called with the phase `confirmation`.
    """
    rows = cut_validation(given, table).train
    asked = given.model_copy(update={"metrics": (objective.metric,)})
    fractions = [given.validation_fraction] * splits
    if given.split_method == "temporal":
        fractions = [min(0.9, share * given.validation_fraction) for share in _TEMPORAL_SHARES[:splits]]
    differences: list[float] = []
    for number, fraction in enumerate(fractions):
        progress("confirmation", number, len(fractions))
        # Seeds that neither the pipeline's split nor the trials' has used.
        seed = given.split_seed + 2 + number
        parts = split(rows, given.split_method, fraction, seed, given.split_column or None, rows.column_names[0])
        try:
            after, before = (fit_and_measure(asked, params, parts)[objective.metric] for params in (best, given.params))
        except ModelError as error:
            return Confirmation(tuple(differences), None, None, False, str(error))
        differences.append(after - before if objective.direction == "maximize" else before - after)
    progress("confirmation", len(fractions), len(fractions))
    return judge(differences, given.validation_fraction)


def judge(differences: Sequence[float], validation_fraction: float) -> Confirmation:
    """Decide by the corrected resampled t-test, one-sided.

    Args:
        differences: One a split; above zero is better.
        validation_fraction: Share of the rows that each was measured on.

    >>> judge([0.02, 0.03, 0.025, 0.02, 0.03], 0.25).confirmed
    True
    >>> judge([0.02, -0.03, 0.025, -0.02, 0.03], 0.25).confirmed
    False
    """
    if len(differences) < 2:
        return Confirmation(tuple(differences), differences[0] if differences else None, None, False)
    from scipy.stats import t

    mean, count = statistics.fmean(differences), len(differences)
    correction = 1.0 / count + validation_fraction / (1.0 - validation_fraction)
    scale = math.sqrt(correction * statistics.variance(differences, mean))
    # Without any scatter, such as where both are perfect, the sign alone decides.
    statistic = mean / scale if scale else math.copysign(math.inf, mean) if mean else 0.0
    p_value = float(t.sf(statistic, count - 1))
    return Confirmation(tuple(differences), mean, p_value, p_value < ALPHA)
