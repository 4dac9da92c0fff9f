"""Compiled kernels of `ensemble`; import this module only where numba is installed.

The sums are exact (`ensemble`), so the order of the terms does not matter. Every kernel is serial and releases the GIL.
"""

from collections.abc import Callable
from typing import Any

import numba

_BLOCK_ROWS = 128


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile, and keep the machine code on disk where there is a writable place for it."""
    try:
        compiled: Callable[..., Any] = numba.njit(function, cache=True, nogil=True)
    except RuntimeError:
        compiled = numba.njit(function, nogil=True)
    return compiled


def _predict_rows(
    encoded: Any,
    feature: Any,
    threshold: Any,
    left: Any,
    right: Any,
    missing_left: Any,
    value: Any,
    roots: Any,
    baseline: float,
    result: Any,
) -> None:
    # One tree for a block of rows after the other: a tree's nodes stay in the fastest cache.
    for start in range(0, encoded.shape[0], _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, encoded.shape[0])
        for row in range(start, stop):
            result[row] = baseline
        for tree in range(roots.shape[0]):
            for row in range(start, stop):
                node = roots[tree]
                while left[node] != node:
                    x = encoded[row, feature[node]]
                    # NaN is the one number that differs from itself.
                    goes_left = x <= threshold[node] or (x != x and missing_left[node])
                    node = left[node] if goes_left else right[node]
                result[row] += value[node]


def _contribute_rows(
    encoded: Any,
    feature: Any,
    threshold: Any,
    left: Any,
    right: Any,
    missing_left: Any,
    value: Any,
    roots: Any,
    owners: Any,
    result: Any,
) -> None:
    for start in range(0, encoded.shape[0], _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, encoded.shape[0])
        for tree in range(roots.shape[0]):
            for row in range(start, stop):
                node = roots[tree]
                while left[node] != node:
                    asked = feature[node]
                    x = encoded[row, asked]
                    goes_left = x <= threshold[node] or (x != x and missing_left[node])
                    below = left[node] if goes_left else right[node]
                    result[row, owners[asked]] += value[below] - value[node]
                    node = below


predict_rows = _compile(_predict_rows)
contribute_rows = _compile(_contribute_rows)
