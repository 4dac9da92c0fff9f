"""Fitting: the encoding, the chosen algorithm, and the simpler methods that it is measured against."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import read_json
from mlflywheel.models.contract import Settings
from mlflywheel.models.tabular_classifier.additive import Additive, fit_additive
from mlflywheel.models.tabular_classifier.encoding import Encoder, Rows
from mlflywheel.models.tabular_classifier.preparation import Kind
from mlflywheel.models.vehicle_price.ensemble import Trees

#: Simpler methods, as they stand between `reference_` and a metric's name, and what people call them.
REFERENCE_NAMES = {
    "logistic": "Logistic regression on all columns",
    "strongest_columns": "Logistic regression on the three strongest columns",
    "base_rate": "The share of positives, for every row",
}
_STRONGEST = 3
_REFERENCES = "references.json"


class FitParams(Settings):
    """Parameters of `TabularClassifier.fit`."""

    algorithm: Literal["logistic", "boosted_trees"] = Field("logistic", description="what is fitted")
    C: float = Field(1.0, gt=0, le=1e6, description="of logistic: the smaller, the nearer are all terms to 0")
    learning_rate: float = Field(0.05, gt=0, le=1, description="of boosted_trees: weight of each tree")
    max_iter: int = Field(150, ge=1, le=5000, description="of boosted_trees: number of trees")
    max_leaf_nodes: int = Field(8, ge=2, le=255, description="of boosted_trees: leaves of a tree")
    min_samples_leaf: int = Field(20, ge=1, le=10_000, description="of boosted_trees: training rows that a leaf needs")
    l2_regularization: float = Field(
        1.0, ge=0, le=1e6, description="of boosted_trees: what a leaf's value is drawn to zero by"
    )
    min_category_rows: int = Field(
        5, ge=1, le=10_000, description="training rows that a category's value needs; rarer ones count as one"
    )
    max_categories: int = Field(64, ge=1, le=1000, description="values of a category that are told apart, at most")
    decision_threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which the positive class is the answer"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")


@dataclass(frozen=True)
class References:
    """Simpler methods, fitted on the same rows.

    Args:
        base_rate: Share of the positive class.
        strongest: Positions of the features of `strongest_columns`, the strongest first.
        models: Logistic regressions by name: `logistic` where the model is another, and `strongest_columns`.
    """

    base_rate: float
    strongest: tuple[int, ...]
    models: Mapping[str, Additive]

    def predict(self, rows: Rows, encoder: Encoder) -> dict[str, NDArray[np.float64]]:
        """Return each method's probabilities, float64 (rows,) by name."""
        found = {}
        for name, model in self.models.items():
            parts = model.contribute(rows.encoded, encoder.owners, len(encoder.features))
            found[name] = to_probability(model.base + parts.sum(axis=1))
        return {**found, "base_rate": np.full(len(rows.encoded), self.base_rate)}

    def write(self, folder: Path) -> None:
        """Write them as JSON."""
        content = {
            "base_rate": self.base_rate,
            "strongest": list(self.strongest),
            "models": {name: model.to_dict() for name, model in self.models.items()},
        }
        (folder / _REFERENCES).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, encoder: Encoder) -> "References":
        """Read what `write` wrote."""
        content: dict[str, Any] = read_json(folder / _REFERENCES)
        models = {name: Additive.from_dict(values, encoder) for name, values in content["models"].items()}
        return cls(
            float(content["base_rate"]),
            tuple(int(position) for position in content["strongest"]),
            {name: models[name] for name in REFERENCE_NAMES if name in models},
        )


@dataclass(frozen=True)
class Fitted:
    """What fitting learns.

    Args:
        encoder: The features.
        scorer: Log-odds from encoded rows: a linear model or trees.
        references: Simpler methods.
    """

    encoder: Encoder
    scorer: Additive | Trees
    references: References


def to_probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of log-odds, float64.

    >>> to_probability(np.array([0.0, 800.0, -800.0])).tolist()
    [0.5, 1.0, 0.0]
    """
    from scipy.special import expit

    return np.asarray(expit(log_odds), dtype=np.float64)


def fit_classifier(
    table: pa.Table,
    kinds: Mapping[str, Kind],
    positive: NDArray[np.float64],
    params: FitParams,
    progress: ProgressCallback = ignore_progress,
) -> Fitted:
    """Fit everything on one thread: sums depend on the number of threads, and a model's hash must not.

    Args:
        table: Prepared rows with a target, in an order that does not depend on chance.
        kinds: Features, in order, with the kind of each.
        positive: float64 (rows,): 1 and 0, both there.
        params: Parameters.
        progress: Called with the phase `fitting`.

    Raises:
        ModelError: No feature tells rows apart.
    """
    from threadpoolctl import threadpool_limits

    progress("fitting", 0, 3)
    encoder = Encoder.learn(table, kinds, params.min_category_rows, params.max_categories)
    if not encoder.features:
        raise ModelError(
            "training rows",
            f"no two rows differ in {', '.join(kinds)}",
            "a feature is needed that tells rows apart",
            "choose other features, or lower min_category_rows",
        )
    encoded = encoder.read(table).encoded
    progress("fitting", 1, 3)
    with threadpool_limits(1):
        logistic = fit_additive(encoder, encoded, positive, params.C)
        scorer = _fit_trees(encoded, positive, params) if params.algorithm == "boosted_trees" else logistic
        progress("fitting", 2, 3)
        strongest = _find_strongest(encoder, encoded, positive, params.C)
        models = {} if params.algorithm == "logistic" else {"logistic": logistic}
        models["strongest_columns"] = fit_additive(encoder, encoded, positive, params.C, strongest)
    progress("fitting", 3, 3)
    return Fitted(encoder, scorer, References(float(positive.mean()), strongest, models))


def _fit_trees(encoded: NDArray[np.float32], positive: NDArray[np.float64], params: FitParams) -> Trees:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=params.learning_rate,
        max_iter=params.max_iter,
        max_leaf_nodes=params.max_leaf_nodes,
        min_samples_leaf=params.min_samples_leaf,
        l2_regularization=params.l2_regularization,
        early_stopping=False,
        random_state=params.seed,
    )
    model.fit(encoded, positive)
    return Trees.from_model(model)


def _find_strongest(
    encoder: Encoder, encoded: NDArray[np.float32], positive: NDArray[np.float64], inverse_penalty: float
) -> tuple[int, ...]:
    """Return the features that explain most of the training rows each by itself, the strongest first."""
    losses = []
    for feature in range(len(encoder.features)):
        model = fit_additive(encoder, encoded, positive, inverse_penalty, (feature,))
        log_odds = model.base + model.contribute(encoded, encoder.owners, len(encoder.features)).sum(axis=1)
        # -log of the probability of what happened, without overflow.
        losses.append(float(np.logaddexp(0.0, np.where(positive > 0, -log_odds, log_odds)).mean()))
    order = np.argsort(np.array(losses), kind="stable")[:_STRONGEST]
    return tuple(int(feature) for feature in order)
