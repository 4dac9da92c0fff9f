"""Logistic regression as sums that are exact: the same bits in every batch, and contributions that add up.

A linear model's log-odds are a constant and a term for each feature. Terms are counted from the training mean, so that
the constant is what is expected of a row that nothing is known of, and a feature at its mean says nothing. They are
rounded to multiples of `GRID`, whose sums are exact in float64 (`vehicle_price.ensemble`).

A number beyond the training rows counts as the nearest that they had: how the line goes on, nobody has measured.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.models.tabular_classifier.encoding import Encoder
from mlflywheel.models.vehicle_price.ensemble import GRID

_ARRAYS = ("slopes", "centres", "shifts", "missing", "low", "high", "effects")


@dataclass(frozen=True, eq=False)
class Additive:
    """A logistic regression.

    Args:
        base: Log-odds before anything is known; a multiple of `GRID`.
        slopes: float64 (numbers,): log-odds by unit.
        centres: float64 (numbers,): the training mean, where a number's term is 0.
        shifts: float64 (numbers,): what having a number adds, where training rows lacked some.
        missing: float64 (numbers,): what lacking it adds.
        low: float64 (numbers,): smallest training value.
        high: float64 (numbers,): largest training value.
        effects: float64 (other encoded columns,): what a category's value adds.
    """

    base: float
    slopes: NDArray[np.float64]
    centres: NDArray[np.float64]
    shifts: NDArray[np.float64]
    missing: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    effects: NDArray[np.float64]

    def contribute(self, encoded: NDArray[np.float32], owners: NDArray[np.int64], features: int) -> NDArray[np.float64]:
        """Return what each feature adds to `base`, float64 (rows, features); the arguments are those of trees."""
        count = len(self.slopes)
        numbers = encoded[:, :count].astype(np.float64)
        absent = np.isnan(numbers)
        inside = np.clip(np.where(absent, self.centres, numbers), self.low, self.high)
        terms = round_to_grid(self.slopes * (inside - self.centres) + self.shifts)
        result = np.zeros((len(encoded), features))
        result[:, :count] = np.where(absent, self.missing, terms)
        if len(self.effects):
            # At most one column of a category is 1, so these sums have at most one term.
            starts = np.flatnonzero(np.diff(owners[count:], prepend=-1))
            result[:, count:] = np.add.reduceat(encoded[:, count:] * self.effects, starts, axis=1)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which read back as the same bits."""
        return {"base": self.base, **{name: getattr(self, name).tolist() for name in _ARRAYS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], encoder: Encoder) -> "Additive":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: The arrays are not those of the encoder's columns.
        """
        arrays = {name: np.array(values[name], dtype=np.float64) for name in _ARRAYS}
        count = len(encoder.numbers)
        for name, array in arrays.items():
            if array.shape != ((len(encoder.owners) - count,) if name == "effects" else (count,)):
                raise ValueError(f"{name} of shape {array.shape} does not fit the encoding")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds what is no number")
        return cls(float(values["base"]), **arrays)


def fit_additive(
    encoder: Encoder,
    encoded: NDArray[np.float32],
    positive: NDArray[np.float64],
    inverse_penalty: float,
    features: Collection[int] | None = None,
) -> Additive:
    """Fit a logistic regression with a squared penalty on standardised numbers and one-hot categories.

    Args:
        encoder: What `encoded` came from.
        encoded: Training rows, float32 (rows, columns).
        positive: float64 (rows,): 1 and 0, both there.
        inverse_penalty: scikit-learn's C: the smaller, the nearer are all terms to 0.
        features: Positions of the features to read; all if None.
    """
    from sklearn.linear_model import LogisticRegression

    count = len(encoder.numbers)
    numbers = encoded[:, :count].astype(np.float64)
    absent = np.isnan(numbers)
    weight = np.maximum((~absent).sum(axis=0), 1)
    centres = np.where(absent, 0.0, numbers).sum(axis=0) / weight
    deviations = np.where(absent, 0.0, numbers - centres)
    spreads = np.sqrt((deviations**2).sum(axis=0) / weight)
    spreads = np.where(spreads > 0, spreads, 1.0)
    flags = absent.astype(np.float64)
    design = np.hstack([deviations / spreads, flags, encoded[:, count:].astype(np.float64)])
    owners = np.concatenate([np.arange(count), encoder.owners])
    used = design.min(axis=0) < design.max(axis=0)
    if features is not None:
        used &= np.isin(owners, list(features))
    weights = np.zeros(design.shape[1])
    model = LogisticRegression(C=inverse_penalty, solver="newton-cholesky", tol=1e-8, max_iter=200)
    model.fit(design[:, used], positive)
    weights[used] = model.coef_[0]
    means = design.mean(axis=0)
    base = float(model.intercept_[0]) + float((weights * means).sum())
    lacking, one_hot = weights[count : 2 * count], weights[2 * count :]
    share = means[count : 2 * count]
    owned = encoder.owners[count:]
    average = np.bincount(owned, weights=one_hot * means[2 * count :], minlength=len(encoder.features))
    limits = encoder.limits
    effects = one_hot - average[owned]
    return Additive(
        float(round_to_grid(np.array(base))),
        weights[:count] / spreads,
        centres,
        -lacking * share,
        round_to_grid(lacking * (1.0 - share)),
        limits[0],
        limits[1],
        round_to_grid(effects),
    )


def round_to_grid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest multiples of `GRID`."""
    return np.asarray(np.rint(values / GRID) * GRID, dtype=np.float64)
