"""Boosted trees as plain arrays: predictions and exact contributions, the same bits in every batch and on every path.

Two things make results exact:

- Inputs and thresholds are float32. scikit-learn's thresholds are float64; each is cast down to the largest float32
  that is not above it, which leaves `x <= threshold` as it is for every float32 x.
- Values of nodes are rounded to multiples of 2**-36 (1.5e-11). Sums of such numbers below 2**16 are exact in float64,
  so they do not depend on the order of the terms: rows and trees may be summed in any way, in NumPy or compiled code,
  and contributions add up to the prediction exactly.

A contribution is what the steps of a row's path add: walking from the root to the leaf, each split changes the mean of
the training rows in the node, and the change belongs to the feature that is asked (Saabas, "Interpreting random
forests", 2014; the package treeinterpreter). It is exact and fast, but favours features that are asked last where
features act together; SHAP values (Lundberg et al. 2020) do not, and cost the square of a tree's depth more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.models.arrays import read_array

#: Node values are multiples of this.
GRID = 2.0**-36
_BLOCK_VALUES = 2**21
_TYPES = {
    "feature": np.int32,
    "threshold": np.float32,
    "left": np.int32,
    "right": np.int32,
    "missing_left": np.bool_,
    "value": np.float64,
    "roots": np.int32,
}
_ARRAYS = tuple(_TYPES)


@dataclass(frozen=True, eq=False)
class Trees:
    """Nodes of all trees, one after the other; a leaf's children are the leaf itself.

    Args:
        feature: int32 (nodes,): the encoded column that is asked; 0 in a leaf.
        threshold: float32 (nodes,): at most this goes left.
        left: int32 (nodes,): absolute index of the node.
        right: int32 (nodes,).
        missing_left: bool (nodes,): where NaN goes.
        value: float64 (nodes,): a leaf's value; elsewhere the mean of the training rows below. Multiples of `GRID`.
        roots: int32 (trees,).
        depth: Steps from a root to the deepest leaf.
        baseline: What is added to the sum of the leaves; a multiple of `GRID`.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float64]
    roots: NDArray[np.int32]
    depth: int
    baseline: float

    @property
    def base(self) -> float:
        """What is predicted before anything is asked: the mean over the training rows."""
        return self.baseline + float(self.value[self.roots].sum())

    @classmethod
    def from_model(cls, model: Any) -> "Trees":
        """Take the trees out of a fitted `HistGradientBoostingRegressor` without categorical features.

        Raises:
            ValueError: It splits by a category.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS[:-1]}
        roots, start, depth = [], 0, 0
        for (predictor,) in model._predictors:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise ValueError("a tree splits by a category")
            leaf = nodes["is_leaf"].astype(bool)
            own = np.arange(len(nodes), dtype=np.int32)
            left = np.where(leaf, own, nodes["left"].astype(np.int32))
            right = np.where(leaf, own, nodes["right"].astype(np.int32))
            parts["feature"].append(np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32))
            parts["threshold"].append(np.where(leaf, np.float32(0), cast_down(nodes["num_threshold"])))
            parts["left"].append(left + np.int32(start))
            parts["right"].append(right + np.int32(start))
            parts["missing_left"].append(nodes["missing_go_to_left"].astype(bool))
            parts["value"].append(_average(nodes["value"], nodes["count"], leaf, left, right))
            depth = max(depth, int(nodes["depth"].max()))
            roots.append(start)
            start += len(nodes)
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        baseline = _round(np.asarray(model._baseline_prediction, dtype=np.float64).ravel()[0])
        return cls(**joined, roots=np.array(roots, dtype=np.int32), depth=depth, baseline=float(baseline))

    def predict(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return predictions, float64 (rows,), for float32 (rows, columns)."""
        kernels = _compile()
        if kernels is not None:
            result = np.empty(len(encoded))
            kernels[0](encoded, *self._arrays(), self.baseline, result)
            return result
        result = np.empty(len(encoded))
        for start, stop in self._blocks(len(encoded)):
            nodes = self._descend(encoded[start:stop], None)
            result[start:stop] = self.baseline + self.value[nodes].sum(axis=1)
        return result

    def contribute(self, encoded: NDArray[np.float32], owners: NDArray[np.int64], features: int) -> NDArray[np.float64]:
        """Return what each feature adds to `base`, float64 (rows, features).

        Args:
            encoded: float32 (rows, columns).
            owners: The feature of each column.
            features: Number of features.
        """
        result = np.zeros((len(encoded), features))
        kernels = _compile()
        if kernels is not None:
            kernels[1](encoded, *self._arrays(), owners, result)
            return result
        for start, stop in self._blocks(len(encoded)):
            self._descend(encoded[start:stop], (owners, result[start:stop]))
        return result

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.feature, self.threshold, self.left, self.right, self.missing_left, self.value, self.roots

    def _blocks(self, rows: int) -> list[tuple[int, int]]:
        size = max(1, _BLOCK_VALUES // max(1, len(self.roots)))
        return [(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _descend(
        self, encoded: NDArray[np.float32], add: tuple[NDArray[np.int64], NDArray[np.float64]] | None
    ) -> NDArray[np.int32]:
        """Return the leaf of every row in every tree, and add each step's change to the feature that was asked."""
        rows = np.arange(len(encoded))[:, None]
        nodes = np.broadcast_to(self.roots, (len(encoded), len(self.roots)))
        for _ in range(self.depth):
            asked = self.feature[nodes]
            values = encoded[rows, asked]
            goes_left = (values <= self.threshold[nodes]) | (np.isnan(values) & self.missing_left[nodes])
            below = np.where(goes_left, self.left[nodes], self.right[nodes])
            if add is not None:
                owners, result = add
                place = (rows * result.shape[1] + owners[asked]).ravel()
                change = (self.value[below] - self.value[nodes]).ravel()
                result += np.bincount(place, weights=change, minlength=result.size).reshape(result.shape)
            nodes = below
        return nodes

    def write(self, folder: Path) -> None:
        """Write one npy file an array."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        np.save(folder / "baseline.npy", np.array([self.baseline]), allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, columns: int) -> "Trees":
        """Read what `write` wrote.

        Args:
            folder: The folder.
            columns: Number of encoded columns.

        Raises:
            ValueError: The arrays are no trees: an index leads nowhere, or a path has no end.
        """
        arrays = {name: read_array(folder / f"{name}.npy", dtype, (None,)) for name, dtype in _TYPES.items()}
        baseline = float(read_array(folder / "baseline.npy", np.float64, (1,))[0])
        return cls(**arrays, depth=_check_trees(arrays, columns), baseline=baseline)


def cast_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 that is not above each float64.

    >>> float(np.float32(0.1)) <= 0.1, float(cast_down(np.array([0.1]))[0]) <= 0.1
    (False, True)
    """
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    return np.where(near.astype(np.float64) > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def _round(values: Any) -> Any:
    return np.rint(np.asarray(values, dtype=np.float64) / GRID) * GRID


def _average(
    values: NDArray[np.float64],
    counts: NDArray[Any],
    leaf: NDArray[np.bool_],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Return leaf values, and for other nodes the mean over the training rows below."""
    result = np.where(leaf, values, 0.0).astype(np.float64)
    count = counts.astype(np.float64)
    # scikit-learn appends children behind their parent.
    for node in np.flatnonzero(~leaf)[::-1]:
        a, b = left[node], right[node]
        result[node] = (count[a] * result[a] + count[b] * result[b]) / (count[a] + count[b])
    rounded: NDArray[np.float64] = _round(result)
    return rounded


def _check_trees(arrays: dict[str, NDArray[Any]], columns: int) -> int:
    nodes = len(arrays["value"])
    if any(len(arrays[name]) != nodes for name in _ARRAYS[:-1]):
        raise ValueError("the arrays of the trees have different lengths")
    own = np.arange(nodes)
    for name in ("left", "right"):
        if (arrays[name] < own).any() or (arrays[name] >= nodes).any():
            raise ValueError(f"{name} leads out of the trees")
    for name, end in (("roots", nodes), ("feature", columns)):
        if (arrays[name] < 0).any() or (arrays[name] >= end).any():
            raise ValueError(f"{name} leads out of the arrays")
    depth = np.zeros(nodes, dtype=np.int64)
    for node in own[(arrays["left"] != own) | (arrays["right"] != own)]:
        for child in (arrays["left"][node], arrays["right"][node]):
            if child == node:
                raise ValueError("a split leads to itself")
            depth[child] = depth[node] + 1
    return int(depth.max(initial=0))


@cache
def _compile() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Return the compiled kernels, or None where numba is not installed; the results are the same."""
    try:
        from mlflywheel.models.vehicle_price import trees_numba
    except ImportError:
        return None
    return trees_numba.predict_rows, trees_numba.contribute_rows
