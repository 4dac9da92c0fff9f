"""Fitting: encodings without leakage, the two ensembles, and the calibration of ranges."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Settings
from mlflywheel.models.vehicle_price.encoding import Encoder, Listings, Schema, encode_out_of_fold, fit_encoder
from mlflywheel.models.vehicle_price.ensemble import Trees
from mlflywheel.models.vehicle_price.intervals import Intervals, calibrate, group_rows, mask_listings

_SMALLEST_RESIDUAL = 1e-3
# A scale is a mean of few numbers with a long tail.
_SCALE_LEAF_ROWS = 50


class FitParams(Settings):
    """Parameters of `VehiclePrice.fit`."""

    learning_rate: float = Field(0.08, gt=0, le=1, description="weight of each tree")
    max_iter: int = Field(400, ge=1, le=5000, description="trees of the price")
    max_leaf_nodes: int = Field(63, ge=2, le=255, description="leaves of a tree")
    min_samples_leaf: int = Field(15, ge=1, le=10_000, description="training rows that a leaf needs")
    max_features: float = Field(0.5, gt=0, le=1, description="share of the columns that a split chooses from")
    l2_regularization: float = Field(0.0, ge=0, le=1e6, description="what a leaf's value is drawn to zero by")
    loss: Literal["squared_error", "absolute_error"] = Field("squared_error", description="error of the log price")
    smoothing: float = Field(2.0, ge=0.01, le=1000, description="listings that a category's prior counts as")
    min_category_rows: int = Field(2, ge=1, le=1000, description="a category with fewer training rows is unknown")
    masked_share: float = Field(
        0.1, ge=0.02, le=1, description="training rows that are also learned from with fields missing"
    )
    coverage: float = Field(0.9, ge=0.5, le=0.99, description="share of listings that the range should hold")
    scale_iter: int = Field(100, ge=1, le=2000, description="trees of the range")
    scale_leaf_nodes: int = Field(15, ge=2, le=255, description="leaves of a tree of the range")
    encoding_folds: int = Field(10, ge=2, le=50, description="folds that training rows are encoded by")
    calibration_folds: int = Field(
        3, ge=2, le=20, description="folds that the range is calibrated by; each costs a fit"
    )
    review_below_confidence: float = Field(
        0.3, ge=0, le=1, description="an answer with a lower confidence is marked for review"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")


@dataclass(frozen=True)
class Fitted:
    """What fitting learns.

    Args:
        encoder: Numbers of the categories.
        prices: The ensemble of the log price.
        scales: The ensemble of the log scale.
        intervals: The calibrated range.
    """

    encoder: Encoder
    prices: Trees
    scales: Trees
    intervals: Intervals


@dataclass(frozen=True)
class _Fold:
    """What a fold's rows got from a model of the other folds; masked copies behind the rows themselves."""

    encoded: NDArray[np.float32]
    residuals: NDArray[np.float64]
    groups: NDArray[np.int64]


def fit_prices(
    schema: Schema,
    listings: Listings,
    prices: NDArray[np.float64],
    params: FitParams,
    progress: ProgressCallback = ignore_progress,
) -> Fitted:
    """Fit everything.

    Folds are fitted side by side on as many threads as there are processors, each fit on one thread: sums inside a fit
    depend on the number of its threads, so the result does not depend on the machine.

    Args:
        schema: The features.
        listings: Training rows, in an order that does not depend on chance.
        prices: Their prices, all above 0; at least `params.calibration_folds` rows.
        params: Parameters.
        progress: Called with the phase `fitting`, one unit a fit.
    """
    from threadpoolctl import threadpool_limits

    log_price = np.log(prices)
    folds = _draw_folds(len(prices), params.calibration_folds, [params.seed, 0])
    total = 2 * (params.calibration_folds + 1)
    progress("fitting", 0, total)
    threads = max(1, min(params.calibration_folds + 1, os.cpu_count() or 1))
    # BLAS, too: the encodings' ridge is a product of matrices.
    with threadpool_limits(1), ThreadPoolExecutor(threads, initializer=_use_one_thread) as pool:
        whole = pool.submit(_fit_whole, schema, listings, log_price, params)
        fitting = [
            pool.submit(_fit_fold, schema, listings, log_price, folds, fold, params)
            for fold in range(params.calibration_folds)
        ]
        parts = []
        for done, future in enumerate(fitting, start=1):
            parts.append(future.result())
            progress("fitting", done, total)
        encoder, trees = whole.result()
        progress("fitting", params.calibration_folds + 1, total)
        scaling = [pool.submit(_fit_scale, parts, fold, params) for fold in [*range(params.calibration_folds), None]]
        scales = [future.result() for future in scaling]
    progress("fitting", total, total)
    own_scales = zip(scales[: params.calibration_folds], parts, strict=True)
    log_scale = np.concatenate([found.predict(part.encoded) for found, part in own_scales])
    residuals = np.concatenate([part.residuals for part in parts])
    groups = np.concatenate([part.groups for part in parts])
    return Fitted(encoder, trees, scales[-1], calibrate(residuals, log_scale, groups, params.coverage, prices))


def _use_one_thread() -> None:
    """Limit OpenMP in the calling thread: its number of threads is a setting of each."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="openmp")


def _draw_folds(rows: int, folds: int, seed: list[int]) -> NDArray[np.int64]:
    """Return the fold of each row; folds are as large as each other, to one row."""
    drawn: NDArray[np.int64] = np.random.default_rng(seed).permutation(np.arange(rows) % folds)
    return drawn


def _fit_whole(
    schema: Schema, listings: Listings, log_price: NDArray[np.float64], params: FitParams
) -> tuple[Encoder, Trees]:
    """Fit the encoder and the ensemble of the price."""
    encoder = fit_encoder(schema, listings, log_price, params.smoothing, params.min_category_rows)
    folds = _draw_folds(len(log_price), params.encoding_folds, [params.seed, 4])
    encoded = encode_out_of_fold(schema, listings, log_price, folds, params.smoothing, params.min_category_rows)
    return encoder, _fit_ensemble(encoder, listings, encoded, log_price, params)


def _fit_ensemble(
    encoder: Encoder,
    listings: Listings,
    encoded: NDArray[np.float32],
    log_price: NDArray[np.float64],
    params: FitParams,
) -> Trees:
    """Fit the ensemble of the price on rows and on masked copies of some of them."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    random = np.random.default_rng([params.seed, 1])
    copied = np.flatnonzero(random.random(len(log_price)) < params.masked_share)
    masked = mask_listings(listings.take(copied), encoder.schema, random)
    lost = np.column_stack([np.isnan(masked.numbers), masked.codes < 0])
    # What is left of a copy keeps the numbers that hold nothing of its own price.
    copies = np.where(lost[:, encoder.owners], np.float32(np.nan), encoded[copied])
    model = HistGradientBoostingRegressor(
        loss=params.loss,
        learning_rate=params.learning_rate,
        max_iter=params.max_iter,
        max_leaf_nodes=params.max_leaf_nodes,
        min_samples_leaf=params.min_samples_leaf,
        max_features=params.max_features,
        l2_regularization=params.l2_regularization,
        early_stopping=False,
        random_state=params.seed,
    )
    model.fit(_fill_empty(np.concatenate([encoded, copies])), np.concatenate([log_price, log_price[copied]]))
    return Trees.from_model(model)


def _fill_empty(encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the columns with zeros in those without a value, which scikit-learn refuses; nothing splits by them."""
    return np.where(np.isnan(encoded).all(axis=0), np.float32(0), encoded)


def _fit_fold(
    schema: Schema,
    listings: Listings,
    log_price: NDArray[np.float64],
    folds: NDArray[np.int64],
    fold: int,
    params: FitParams,
) -> _Fold:
    """Fit on the other folds, and predict this one: its rows as they are, and a masked copy of each."""
    others, own = folds != fold, folds == fold
    encoder, trees = _fit_whole(schema, listings.take(others), log_price[others], params)
    rows = listings.take(own)
    masked = mask_listings(rows, schema, np.random.default_rng([params.seed, 2, fold]))
    encoded, residuals, groups = [], [], []
    for part in (rows, masked):
        numbers = encoder.encode(part)
        encoded.append(numbers)
        residuals.append(log_price[own] - trees.predict(numbers))
        groups.append(group_rows(count_absent(part, encoder)))
    return _Fold(np.concatenate(encoded), np.concatenate(residuals), np.concatenate(groups))


def count_absent(listings: Listings, encoder: Encoder) -> NDArray[np.int64]:
    """Return the number of features of each row that are missing or unknown."""
    absent: NDArray[np.int64] = np.isnan(listings.numbers).sum(axis=1) + (~encoder.is_known(listings)).sum(axis=1)
    return absent


def _fit_scale(parts: Sequence[_Fold], left_out: int | None, params: FitParams) -> Trees:
    """Fit the ensemble of the log scale on all folds but one."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    used = [part for number, part in enumerate(parts) if number != left_out]
    model = HistGradientBoostingRegressor(
        loss="gamma",
        max_iter=params.scale_iter,
        max_leaf_nodes=params.scale_leaf_nodes,
        min_samples_leaf=_SCALE_LEAF_ROWS,
        early_stopping=False,
        random_state=params.seed,
    )
    size = np.abs(np.concatenate([part.residuals for part in used]))
    # Gamma regression takes no zeros.
    model.fit(_fill_empty(np.concatenate([part.encoded for part in used])), np.maximum(size, _SMALLEST_RESIDUAL))
    return Trees.from_model(model)
