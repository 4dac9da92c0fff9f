"""Arithmetic on a GPU, for large batches: fingerprints of rotated LSA, and candidates for exact neighbours.

The array code runs on any module that follows NumPy: CuPy on a GPU, and NumPy itself where its tests have none. LDA's
inference stays on the CPU, and so do text, recommendations and explanations, which are most of the time of `predict`
on a catalogue of some ten thousand campaigns: a GPU is for larger ones.

Answers are those of the CPU. A fingerprint is added up in float64 there too, in another order: equal to 1e-6, and
nearly always to the last bit. A search multiplies in float32, whose rounding has a bound (`NearestVectors.rounding`):
what could be among the nearest within it is compared again on the CPU, so that neighbours are the same to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from mlflywheel.errors import MissingExtraError, UsageError

# One core computes the fingerprints of so many in 3 ms. Smaller batches keep the bits of the CPU.
LARGE_BATCH = 1024
# CUDA's context and libraries take some hundred MiB before there is any data.
FEWEST_FREE_BYTES = 2**30
_FLOAT32_UNIT = 2.0**-24
_TILE = 32
_SORTED_AT_ONCE = 1024
_ROWS_AT_ONCE = 2**15
# Products are the largest array of a search; what is selected from them takes less than as much again.
_PRODUCTS_SHARE = 4


@dataclass(frozen=True)
class Arrays:
    """A module of arrays, and what modules do not agree on.

    Args:
        xp: `cupy` or `numpy`.
        sparse: `cupyx.scipy.sparse` or `scipy.sparse`.
        to_host: Returns an array as NumPy's.
        synchronize: Waits for the device.
    """

    xp: Any
    sparse: Any
    to_host: Callable[[Any], np.ndarray]
    synchronize: Callable[[], None]


@dataclass(frozen=True)
class Device:
    """What large batches are computed on.

    Args:
        kind: `cpu` or `cuda`.
        name: The GPU's name; `NumPy` without one.
        total_bytes: Its memory, None for a CPU.
        free_bytes: As much of it as was free when it was chosen.
        arrays: Its array module; None to compute as if there were no devices at all.
        fallback: Whether the CPU may take what does not fit.
        note: Why it is a CPU, if something else was wanted.
    """

    kind: Literal["cpu", "cuda"]
    name: str = "NumPy"
    total_bytes: int | None = None
    free_bytes: int | None = None
    arrays: Arrays | None = None
    fallback: bool = False
    note: str = ""

    def __str__(self) -> str:
        """Return one line for a log.

        >>> print(Device("cuda", "NVIDIA H200", 150 * 2**30, 140 * 2**30))
        cuda: NVIDIA H200, 150.0 GiB, 140.0 GiB free
        >>> print(Device("cpu", note="no driver"))
        cpu: no driver
        """
        if self.total_bytes is None or self.free_bytes is None:
            return f"{self.kind}: {self.note or self.name}"
        return f"{self.kind}: {self.name}, {self.total_bytes / 2**30:.1f} GiB, {self.free_bytes / 2**30:.1f} GiB free"

    def load_vectors(self, vectors: np.ndarray) -> "NearestVectors | None":
        """Bring vectors to the device to be searched; None if the CPU shall do it.

        Raises:
            UsageError: They do not fit, and there is no fallback.
        """
        try:
            return None if self.arrays is None else NearestVectors(self.arrays, vectors, self.free_bytes)
        except UsageError:
            if not self.fallback:
                raise
            return None

    def load_topics(self, idf: np.ndarray, term_topic: np.ndarray, prior: np.ndarray) -> "TopicProjection | None":
        """Bring the arrays of a rotated LSA to the device; None if the CPU shall do it."""
        return None if self.arrays is None else TopicProjection(self.arrays, idf, term_topic, prior)


def choose_device(wanted: Literal["auto", "cpu", "cuda"] = "auto", fallback: bool = False) -> Device:
    """Choose what large batches are computed on.

    Args:
        wanted: `cuda` is the first GPU that CUDA shows (`CUDA_VISIBLE_DEVICES`), `auto` that one or else the CPU.
        fallback: Take the CPU where `cuda` is wanted and cannot be had; the device's note says why.

    Raises:
        UsageError: `cuda` is wanted and cannot be had: no CuPy, driver, device or memory, or it rounds like TF32.

    >>> choose_device("cpu").kind
    'cpu'
    """
    if wanted == "cpu":
        return Device("cpu")
    try:
        return _open_cuda(fallback or wanted == "auto")
    except UsageError as error:
        if wanted == "cuda" and not fallback:
            raise
        return Device("cpu", note=str(error))


def emulate_device(free_bytes: int = 2**30) -> Device:
    """Return a device that runs a GPU's array code on NumPy: slower than no device, and the same arithmetic."""
    arrays = Arrays(np, sp, np.asarray, lambda: None)
    return Device("cuda", "NumPy in place of a GPU", free_bytes, free_bytes, arrays)


def _open_cuda(fallback: bool) -> Device:
    try:
        cupy, sparse = import_module("cupy"), import_module("cupyx.scipy.sparse")
    except ModuleNotFoundError as error:
        if error.name not in ("cupy", "cupyx"):
            raise _refuse(
                f"CuPy does not load: {error}", "a complete CuPy is needed", "pip install 'mlflywheel[gpu]'"
            ) from None
        raise MissingExtraError.of("cupy", "gpu", "device cuda") from None
    except ImportError as error:
        raise _refuse(
            f"CuPy does not load: {error}", "a complete CuPy is needed", "pip install 'mlflywheel[gpu]'"
        ) from None
    runtime = cupy.cuda.runtime
    try:
        devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise _refuse(
            str(error), "a GPU and NVIDIA's driver are needed", "install the driver, or choose device cpu"
        ) from None
    if not devices:
        raise _refuse("CUDA shows no device", "a GPU is needed", "set CUDA_VISIBLE_DEVICES, or choose device cpu")
    name = runtime.getDeviceProperties(0)["name"].decode()
    free, total = runtime.memGetInfo()
    if free < FEWEST_FREE_BYTES:
        raise _refuse(
            f"{name} has {free / 2**20:.0f} MiB free",
            f"{FEWEST_FREE_BYTES / 2**20:.0f} MiB are needed",
            "end what else runs on it, or choose device cpu",
        )
    arrays = Arrays(cupy, sparse, cupy.asnumpy, lambda: cupy.cuda.Device().synchronize())
    _check_arithmetic(arrays, name)
    return Device("cuda", name, total, free, arrays, fallback)


def _refuse(seen: str, needed: str, fix: str) -> UsageError:
    return UsageError("device cuda", seen.splitlines()[0], needed, fix)


def _check_arithmetic(arrays: Arrays, name: str) -> None:
    """Compute both things once, since CuPy loads its libraries late; refuse products of fewer bits than float32's."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(256, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = sp.csr_matrix(random.integers(0, 3, (256, 64)).astype(np.float32))
    try:
        nearest = NearestVectors(arrays, vectors, None)
        columns, values = nearest.find(vectors, 8)
        TopicProjection(arrays, vectors[0], np.abs(vectors[:64]), vectors[0])(counts)
    except Exception as error:
        # CuPy has no common class for a missing library, a kernel that does not compile and an error of a library.
        seen = f"{name}: {type(error).__name__}: {error or 'no message'}"
        raise _refuse(seen, "CuPy with CUDA's libraries is needed", "pip install 'mlflywheel[gpu]'") from error
    exact = np.take_along_axis(vectors.astype(np.float64) @ vectors.T.astype(np.float64), columns, axis=1)
    if np.abs(values - exact).max() > nearest.rounding:
        raise _refuse(
            f"{name} multiplies float32 with fewer bits, as TF32 does",
            "float32 arithmetic is needed",
            "unset CUPY_TF32 and NVIDIA_TF32_OVERRIDE",
        )


class TopicProjection:
    """Fingerprints of rotated LSA: counts times p(topic | term), as `RotatedLsa.transform` computes them.

    Args:
        arrays: The array module.
        idf: Inverse document frequencies, float32 (terms,).
        term_topic: p(topic | term), float32 (terms, topics).
        prior: The fingerprint of an empty row, float32 (topics,).
    """

    def __init__(self, arrays: Arrays, idf: np.ndarray, term_topic: np.ndarray, prior: np.ndarray) -> None:
        self._arrays = arrays
        # float64, since a GPU waits for memory here and not for arithmetic. The order of columns is cuSPARSE's.
        self._idf = arrays.xp.asarray(idf.astype(np.float64))
        self._term_topic = arrays.xp.asfortranarray(arrays.xp.asarray(term_topic.astype(np.float64)))
        self._prior = arrays.xp.asarray(prior.astype(np.float64))

    def __call__(self, counts: sp.csr_matrix) -> np.ndarray:
        """Return fingerprints, float32 (campaigns, topics).

        Args:
            counts: CSR (campaigns, terms), columns sorted within a row.
        """
        shares = np.empty((counts.shape[0], self._term_topic.shape[1]), dtype=np.float32)
        for low in range(0, counts.shape[0], _ROWS_AT_ONCE):
            part = counts[low : low + _ROWS_AT_ONCE]
            shares[low : low + _ROWS_AT_ONCE] = self._arrays.to_host(self._project(part))
        return shares

    def _project(self, counts: sp.csr_matrix) -> Any:
        xp = self._arrays.xp
        if not counts.nnz:
            return xp.broadcast_to(self._prior, (counts.shape[0], len(self._prior))).astype(xp.float32)
        indices = xp.asarray(counts.indices.astype(np.int32))
        weights = xp.log1p(xp.asarray(counts.data).astype(xp.float64)) / np.log(2.0) * self._idf[indices]
        indptr = xp.asarray(counts.indptr.astype(np.int32))
        shares = self._arrays.sparse.csr_matrix((weights, indices, indptr), shape=counts.shape) @ self._term_topic
        totals = shares.sum(axis=1, keepdims=True)
        shares = xp.where(totals > 0, shares / xp.where(totals > 0, totals, 1.0), self._prior)
        return xp.ascontiguousarray(shares.astype(xp.float32))


class NearestVectors:
    """The largest dot products of queries with vectors that stay on the device.

    Args:
        arrays: The array module.
        vectors: Unit vectors, float32 (n, topics).
        free_bytes: Memory to plan with; None for a few vectors.

    Raises:
        UsageError: The vectors do not fit.
    """

    def __init__(self, arrays: Arrays, vectors: np.ndarray, free_bytes: int | None) -> None:
        self._arrays = arrays
        self._count, topics = vectors.shape
        # So that rows of products divide into tiles without a copy.
        width = -(-self._count // _TILE) * _TILE
        row_bytes = 4 * width * _PRODUCTS_SHARE
        rest = None if free_bytes is None else free_bytes - 8 * topics * width
        if rest is not None and rest < row_bytes:
            raise _refuse(
                f"{self._count} vectors and one query's products do not fit into {(free_bytes or 0) / 2**20:.0f} MiB",
                f"{(8 * topics * width + row_bytes) / 2**20:.0f} MiB are needed",
                "end what else runs on it, or choose device cpu",
            )
        self._rows_at_once = _ROWS_AT_ONCE if rest is None else min(_ROWS_AT_ONCE, rest // row_bytes)
        padded = np.zeros((width, topics), dtype=np.float32)
        padded[: self._count] = vectors
        self._vectors = arrays.xp.asarray(padded)
        #: By how much a product may be off at most, however it is added up: n u for n products (Higham, Accuracy and
        #: Stability of Numerical Algorithms, 2002, section 3.1), and a little for lengths that are not quite 1.
        self.rounding = 1.01 * (topics + 2) * _FLOAT32_UNIT

    def find(self, queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest products of each query.

        Args:
            queries: Unit vectors, float32 (queries, topics).
            width: How many of each, at most the number of vectors.

        Returns:
            The vectors' positions, int64 (queries, width), and the products, float32, the largest first. Another
            vector's product is at most the last one's.
        """
        positions = np.empty((len(queries), width), dtype=np.int64)
        products = np.empty((len(queries), width), dtype=np.float32)
        for low in range(0, len(queries), self._rows_at_once):
            part = slice(low, low + self._rows_at_once)
            found, values = self._find(self._arrays.xp.asarray(queries[part]), width)
            positions[part], products[part] = self._arrays.to_host(found), self._arrays.to_host(values)
        return positions, products

    def _find(self, queries: Any, width: int) -> tuple[Any, Any]:
        xp = self._arrays.xp
        products = xp.matmul(queries, self._vectors.T)
        products[:, self._count :] = -np.inf
        found = select_largest(xp, products, width)
        return found, xp.take_along_axis(products, found, axis=1)


def select_largest(xp: Any, values: Any, count: int) -> Any:
    """Return the columns of the largest values of each row, the largest first.

    Sorting whole rows would take longer than computing them. The largest `count` values lie in at most as many of any
    tiles, those with the largest maxima, which are found the same way.

    Args:
        xp: The array module.
        values: float32 (rows, columns).
        count: How many, at most the number of columns.

    Returns:
        int64 (rows, count). Of equal values, which ones are among them depends on the module.

    >>> select_largest(np, np.array([[0.1, 0.7, 0.4]], dtype=np.float32), 2).tolist()
    [[1, 2]]
    """
    rows, columns = values.shape
    if columns <= max(_SORTED_AT_ONCE, 2 * count * _TILE):
        return xp.argsort(-values, axis=1)[:, :count]
    if columns % _TILE:
        padding = xp.full((rows, _TILE - columns % _TILE), -np.inf, dtype=values.dtype)
        values = xp.concatenate([values, padding], axis=1)
    # A tile is every n-th column, so that neighbouring threads read neighbouring numbers.
    apart = values.shape[1] // _TILE
    tiles = select_largest(xp, values.reshape(rows, _TILE, apart).max(axis=1), count)
    inside = (tiles[:, None, :] + apart * xp.arange(_TILE)[None, :, None]).reshape(rows, -1)
    order = xp.argsort(-xp.take_along_axis(values, inside, axis=1), axis=1)[:, :count]
    return xp.take_along_axis(inside, order, axis=1)
