"""A range around each price whose coverage was measured, wider where the model has less to go by.

Residuals of training rows come from models that were fitted without them (folds). A second, small ensemble learns how
large they are, from the same features: on the logarithm of the price, its gamma regression gives the expected absolute
residual, the scale. Residuals divided by their scales are the scores of conformal prediction, and their outer quantiles
become the range's ends: `price * exp(scale * quantile)` (locally weighted split conformal prediction: Lei et al.,
"Distribution-free predictive inference for regression", JASA 2018; scores across folds: Barber et al., "Predictive
inference with the jackknife+", Annals of Statistics 2021). Both ends are calibrated apart, because listings that cost
much less than their like are further off than those that cost more.

Rows with masked fields are part of all that: training and calibration rows get copies in which fields are missing or a
make is unknown. Quantiles are kept by how many fields are absent (Mondrian groups: Vovk et al., "Algorithmic learning
in a random world", 2005): none, one, and more; each is wider than the one before by a tenth at least.

What is guaranteed, strictly, is less than what is measured: scores of different folds come from different models, and
the model in use saw all rows. Coverage on held-out rows is therefore a metric (`interval_coverage`), with a gate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.models.vehicle_price.encoding import Listings, Schema

#: Groups of rows by absent fields: none, one, two or more.
GROUPS = 3
#: A range's end is at least this many scales away from the price, so that low < price < high always holds.
_SMALLEST_QUANTILE = 0.05
# A group's range is wider than that of the group before it by at least so much: a row that lacks a field which tells
# little would else, by the noise of its scale, sometimes get a narrower range than the same row with the field.
_WIDER_BY_GROUP = 1.1
#: Bounds on the logarithm of the scale: residuals of 0.03 % and of a factor 20.
LOG_SCALE_BOUNDS = (math.log(3e-4), math.log(3.0))
#: A price stays within this factor of the training prices, and a range within its square.
BEYOND_PRICES = 2.0
_CONFIDENCE_POINTS = 40
_CLOSE = 0.1
_SINGLE_MASKS = 0.5
_MASKED_FIELD_SHARE = 0.35


@dataclass(frozen=True)
class Intervals:
    """What turns a log price and a log scale into a range.

    Args:
        coverage: The share of listings that the range should hold.
        below: float64 (`GROUPS`,): scales from the price down to the low end, by group.
        above: The same, up to the high end.
        lowest: Smallest training price.
        highest: Largest training price.
        widths: float64 (points,): log(high / low), ascending.
        close_shares: float64 (points,): share of calibration rows with such a width whose price was within 10 %.
    """

    coverage: float
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    lowest: float
    highest: float
    widths: NDArray[np.float64]
    close_shares: NDArray[np.float64]

    @property
    def log_bounds(self) -> tuple[float, float]:
        """Bounds on a log price."""
        return math.log(self.lowest / BEYOND_PRICES), math.log(self.highest * BEYOND_PRICES)

    def clip(self, log_price: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log prices inside the bounds."""
        clipped: NDArray[np.float64] = np.clip(log_price, *self.log_bounds)
        return clipped

    def spread(
        self, log_price: NDArray[np.float64], log_scale: NDArray[np.float64], groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the logarithms of both ends, float64 (rows,).

        Args:
            log_price: Log prices, clipped.
            log_scale: What the scale's ensemble predicts.
            groups: Group of each row, as `group_rows` says.
        """
        scale = np.exp(np.clip(log_scale, *LOG_SCALE_BOUNDS))
        lowest, highest = self.log_bounds
        room = math.log(BEYOND_PRICES)
        low = np.maximum(log_price - self.below[groups] * scale, lowest - room)
        high = np.minimum(log_price + self.above[groups] * scale, highest + room)
        return low, high

    def trust(self, log_low: NDArray[np.float64], log_high: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expected share of listings with such a width whose price is within 10 %."""
        shares: NDArray[np.float64] = np.interp(log_high - log_low, self.widths, self.close_shares)
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "coverage": self.coverage,
            "below": self.below.tolist(),
            "above": self.above.tolist(),
            "lowest": self.lowest,
            "highest": self.highest,
            "widths": self.widths.tolist(),
            "close_shares": self.close_shares.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Intervals":
        """Rebuild from `to_dict`.

        Raises:
            ValueError: Not one number a group, not one share a width, or a number that is none.
        """
        arrays = {
            name: np.array(values[name], dtype=np.float64) for name in ("below", "above", "widths", "close_shares")
        }
        points = arrays["widths"].shape
        if any(arrays[name].shape != (GROUPS,) for name in ("below", "above")) or len(points) != 1 or points == (0,):
            raise ValueError("the intervals have the wrong number of groups or of widths")
        if arrays["close_shares"].shape != points or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("the intervals' shares do not fit their widths, or are no numbers")
        if not 0 < float(values["lowest"]) <= float(values["highest"]) < math.inf:
            raise ValueError("the intervals' bounds are no prices")
        return cls(
            coverage=float(values["coverage"]),
            lowest=float(values["lowest"]),
            highest=float(values["highest"]),
            **arrays,
        )


def group_rows(absent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row's group from its number of absent fields.

    >>> group_rows(np.array([0, 1, 5])).tolist()
    [0, 1, 2]
    """
    return np.minimum(absent, GROUPS - 1)


def calibrate(
    residuals: NDArray[np.float64],
    log_scale: NDArray[np.float64],
    groups: NDArray[np.int64],
    coverage: float,
    prices: NDArray[np.float64],
) -> Intervals:
    """Choose the quantiles of each group.

    Args:
        residuals: Log of the true price minus the predicted one, by a model that did not see the row.
        log_scale: Log scale of the row, from an ensemble that did not see it either.
        groups: Group of each row. A group without enough rows takes the widest quantiles of those before it.
        coverage: Above 0 and below 1.
        prices: Training prices.
    """
    scores = residuals / np.exp(np.clip(log_scale, *LOG_SCALE_BOUNDS))
    tail = (1.0 - coverage) / 2.0
    below, above = np.zeros(GROUPS), np.zeros(GROUPS)
    for group in range(GROUPS):
        own = scores[groups == group]
        if math.ceil((len(own) + 1) * (1.0 - tail)) > len(own):
            own = np.array([])
        below[group] = _outer_quantile(-own, tail) if len(own) else below[:group].max(initial=_widest(-scores))
        above[group] = _outer_quantile(own, tail) if len(own) else above[:group].max(initial=_widest(scores))
    for group in range(1, GROUPS):
        below[group] = max(below[group], below[group - 1] * _WIDER_BY_GROUP)
        above[group] = max(above[group], above[group - 1] * _WIDER_BY_GROUP)
    scale = np.exp(np.clip(log_scale, *LOG_SCALE_BOUNDS))
    widths = (below[groups] + above[groups]) * scale
    close = np.abs(np.expm1(-residuals)) <= _CLOSE
    points, shares = _relate(widths, close)
    return Intervals(coverage, below, above, float(prices.min()), float(prices.max()), points, shares)


def _widest(scores: NDArray[np.float64]) -> float:
    return float(max(_SMALLEST_QUANTILE, scores.max(initial=_SMALLEST_QUANTILE)))


def _outer_quantile(scores: NDArray[np.float64], tail: float) -> float:
    """Return the conformal quantile: the ceil((n + 1) (1 - tail))-th smallest score."""
    rank = math.ceil((len(scores) + 1) * (1.0 - tail))
    return max(_SMALLEST_QUANTILE, float(np.partition(scores, rank - 1)[rank - 1]))


def _relate(widths: NDArray[np.float64], close: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points of a falling line from a range's width to the share of rows within 10 %."""
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(widths, kind="stable")
    parts = np.array_split(order, min(_CONFIDENCE_POINTS, max(1, len(order) // 50)))
    points = np.array([widths[part].mean() for part in parts])
    shares = np.array([close[part].mean() for part in parts])
    weights = np.array([len(part) for part in parts], dtype=np.float64)
    falling = IsotonicRegression(increasing=False, y_min=0.0, y_max=1.0).fit_transform(
        points, shares, sample_weight=weights
    )
    return points, np.asarray(falling, dtype=np.float64)


def mask_listings(listings: Listings, schema: Schema, random: np.random.Generator) -> Listings:
    """Return a copy in which each row lacks at least one field.

    Half of the rows lose one field, each as likely as the others; the rest lose each field with a chance of 35 %, and
    at least one. A lost make takes the model along, since a model's name is read together with its make.

    Args:
        listings: Rows.
        schema: Their features.
        random: Source of the choices.
    """
    rows, features = len(listings.numbers), len(schema.features)
    single = random.integers(0, features, rows)
    chosen = np.zeros((rows, features), dtype=bool)
    chosen[np.arange(rows), single] = True
    many = random.random((rows, features)) < _MASKED_FIELD_SHARE
    chosen |= many & (random.random(rows) >= _SINGLE_MASKS)[:, None]
    return mask_fields(listings, schema, chosen)


def mask_fields(listings: Listings, schema: Schema, chosen: NDArray[np.bool_]) -> Listings:
    """Return a copy without the chosen fields, bool (rows, features)."""
    chosen = chosen.copy()
    features = schema.features
    if "make" in features and "model" in features:
        chosen[:, features.index("model")] |= chosen[:, features.index("make")]
    width = len(schema.numbers)
    return Listings(
        np.where(chosen[:, :width], np.nan, listings.numbers), np.where(chosen[:, width:], -1, listings.codes)
    )
