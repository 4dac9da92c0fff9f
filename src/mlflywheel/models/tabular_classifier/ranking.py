"""How well probabilities rank rows: the area under the ROC curve with DeLong's interval."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflywheel.errors import UsageError
from mlflywheel.statistics.intervals import Interval


def estimate_auc(positive: ArrayLike, score: ArrayLike, confidence: float = 0.95) -> Interval:
    """Estimate the chance that a positive row has a higher score than another row, ties counted half.

    The variance is DeLong's, which assumes independent rows and nothing of the scores' distribution. The interval is
    made on the logit of the area, so that it stays between 0 and 1.

    Args:
        positive: Shape (rows,): true or 1 for the positive class.
        score: Shape (rows,): the higher, the likelier; finite.
        confidence: Nominal coverage, between 0 and 1.

    Returns:
        The interval; all of it is None with rows of one class. `low` and `high` are None with fewer than two rows of a
        class, or where every positive row, or none, is above all others: then the rows do not tell how sure that is.
        Simulated coverage of 95 % intervals is in `tests/unit/test_tabular_classifier_evaluation.py`.

    Raises:
        UsageError: Shapes differ, or a score is not finite.

    Sources: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, "Comparing the areas under two or more correlated
    receiver operating characteristic curves", Biometrics 44 (1988); computed by midranks as in X. Sun and W. Xu, "Fast
    implementation of DeLong's algorithm", IEEE Signal Processing Letters 21 (2014).

    >>> estimate_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
    0.75
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    truth = np.asarray(positive, dtype=np.float64) > 0
    scores = np.asarray(score, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != scores.shape or not np.isfinite(scores).all():
        raise UsageError(
            "estimate_auc",
            f"classes of shape {truth.shape} and scores of shape {scores.shape}",
            "one class and one finite score a row are needed",
            "leave out rows without a score",
        )
    above, below = scores[truth], scores[~truth]
    count = len(scores)
    if not len(above) or not len(below):
        return Interval(None, None, None, count)
    together = rankdata(np.concatenate([above, below]))
    # For each positive row the share of others that it is above, and for each other row the share it is below.
    wins: NDArray[np.float64] = (together[: len(above)] - rankdata(above)) / len(below)
    losses: NDArray[np.float64] = 1.0 - (together[len(above) :] - rankdata(below)) / len(above)
    area = float(wins.mean())
    if len(above) < 2 or len(below) < 2 or not 0.0 < area < 1.0:
        return Interval(area, None, None, count)
    variance = float(wins.var(ddof=1)) / len(above) + float(losses.var(ddof=1)) / len(below)
    half = float(ndtri(0.5 + confidence / 2)) * math.sqrt(variance) / (area * (1.0 - area))
    middle = math.log(area / (1.0 - area))
    low, high = (1.0 / (1.0 + math.exp(-end)) for end in (middle - half, middle + half))
    return Interval(area, low, high, count)
