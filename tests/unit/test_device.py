"""On a GPU the answers are those of the CPU. Without a GPU the same array code runs on NumPy."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from planted_campaigns import campaigns_of, plant_campaigns

from mlflywheel.errors import MissingExtraError, UsageError
from mlflywheel.models.topic_fingerprints import device as devices
from mlflywheel.models.topic_fingerprints.device import (
    LARGE_BATCH,
    Device,
    NearestVectors,
    choose_device,
    emulate_device,
    select_largest,
)
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.neighbours import NeighbourIndex, Neighbours
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def device() -> Device:
    """The GPU where there is one."""
    found = choose_device("auto")
    return found if found.kind == "cuda" else emulate_device()


def draw_unit(number: int, topics: int = 50, clusters: int = 60, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(clusters, topics))[random.integers(0, clusters, number)]
    vectors += spread * random.normal(size=(number, topics))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def assert_same(first: Neighbours, second: Neighbours) -> None:
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.similarity, second.similarity)


def search_both(vectors: np.ndarray, queries: np.ndarray, k: int, device: Device) -> tuple[Neighbours, Neighbours]:
    ids = [f"c{number:06d}" for number in range(len(vectors))]
    there = NeighbourIndex(ids, vectors, approximate=None, device=device).search(queries, k, ids[: len(queries)])
    return there, NeighbourIndex(ids, vectors, approximate=False).search(queries, k, ids[: len(queries)])


class TestNeighbours:
    @pytest.mark.parametrize(("number", "k"), [(1, 3), (5, 3), (5, 9), (500, 10), (4001, 1), (4001, 10), (2500, 60)])
    def test_are_those_of_the_cpu_bit_for_bit(self, number: int, k: int, device: Device) -> None:
        vectors = draw_unit(number)
        assert_same(*search_both(vectors, vectors[:300], k, device))

    @pytest.mark.parametrize("topics", [2, 8, 100])
    def test_do_not_depend_on_the_number_of_topics(self, topics: int, device: Device) -> None:
        vectors = draw_unit(1200, topics)
        assert_same(*search_both(vectors, vectors[:200], 10, device))

    @pytest.mark.parametrize("number", [200, 1500])
    def test_that_float32_cannot_tell_apart_are_told_apart(self, number: int, device: Device) -> None:
        middle = draw_unit(1)[0].astype(np.float64)
        close = middle + 1e-4 * np.random.default_rng(3).normal(size=(number, 50))
        vectors = (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float32)
        assert (vectors @ vectors[0] > 1 - 3e-6).all()
        assert_same(*search_both(vectors, vectors[:60], 10, device))

    def test_equal_vectors_stand_in_the_order_of_their_ids(self, device: Device) -> None:
        vectors = np.repeat(draw_unit(400), 5, axis=0)
        assert_same(*search_both(vectors, vectors[:50], 12, device))

    def test_a_zero_query_has_none(self, device: Device) -> None:
        vectors = draw_unit(1100)
        queries = np.vstack([vectors[:1], np.zeros((1, 50), dtype=np.float32)])
        there, here = search_both(vectors, queries, 3, device)
        assert_same(there, here)
        assert (there.positions[1] == -1).all()

    def test_blocks_of_any_size_give_the_same(self, device: Device) -> None:
        assert device.arrays is not None
        vectors = draw_unit(3000)
        roomy = NearestVectors(device.arrays, vectors, 2**30)
        tight = NearestVectors(device.arrays, vectors, 8 * 50 * 3008 + 3 * 16 * 3008)
        assert (tight._rows_at_once, roomy._rows_at_once > 300) == (3, True)
        found = roomy.find(vectors[:20], 15)
        for column, product in zip(found, tight.find(vectors[:20], 15), strict=True):
            np.testing.assert_allclose(column, product, atol=1e-6)

    def test_products_are_within_their_bound(self, device: Device) -> None:
        assert device.arrays is not None
        vectors = draw_unit(2000)
        nearest = NearestVectors(device.arrays, vectors, None)
        positions, products = nearest.find(vectors[:100], 40)
        exact = vectors[:100].astype(np.float64) @ vectors.T.astype(np.float64)
        assert np.abs(np.take_along_axis(exact, positions, axis=1) - products).max() <= nearest.rounding < 1e-5
        np.testing.assert_allclose(np.sort(exact, axis=1)[:, ::-1][:, :40], products, atol=1e-5)


class TestSelecting:
    @pytest.mark.parametrize("columns", [3, 1024, 1025, 4096, 40_000, 100_003])
    @pytest.mark.parametrize("count", [1, 3, 17])
    def test_finds_the_largest(self, columns: int, count: int, device: Device) -> None:
        if count > columns:
            count = columns
        assert device.arrays is not None
        values = np.random.default_rng(columns).normal(size=(4, columns)).astype(np.float32)
        found = select_largest(device.arrays.xp, device.arrays.xp.asarray(values), count)
        expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(device.arrays.to_host(found), expected)

    def test_equal_values_cost_no_larger_one_its_place(self, device: Device) -> None:
        assert device.arrays is not None
        values = np.zeros((2, 50_000), dtype=np.float32)
        values[0, 31::997] = 1.0
        values[1, 49_999] = 0.5
        found = device.arrays.to_host(select_largest(device.arrays.xp, device.arrays.xp.asarray(values), 60))
        assert set(np.flatnonzero(values[0])) <= set(found[0].tolist())
        assert found[1, 0] == 49_999
        assert all(len(set(row)) == 60 for row in found.tolist())


@pytest.fixture(scope="module")
def counts() -> scipy.sparse.csr_matrix:
    """More rows than a small batch has, the first three of them empty."""
    counts = scipy.sparse.random(LARGE_BATCH + 50, 700, 0.05, "csr", dtype=np.float32, random_state=0)
    counts.data = np.ceil(counts.data * 4) / 2
    counts.data[: counts.indptr[3]] = 0.0
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts


class TestFingerprints:
    def test_are_those_of_the_cpu(self, counts: scipy.sparse.csr_matrix, device: Device) -> None:
        topics = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=20))
        here, there = topics.transform(counts), topics.on_device(device).transform(counts)
        assert there.dtype == np.float32
        np.testing.assert_allclose(there, here, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(there[:3], [topics.prior] * 3)
        np.testing.assert_array_equal(topics.on_device(device).decompose(counts).shares, there)

    def test_small_batches_stay_on_the_cpu(self, counts: scipy.sparse.csr_matrix) -> None:
        broken = Device("cuda", arrays=devices.Arrays(np, None, np.asarray, lambda: None))
        topics = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=20))
        few = counts[: LARGE_BATCH - 1]
        np.testing.assert_array_equal(topics.on_device(broken).transform(few), topics.transform(few))
        with pytest.raises(AttributeError):
            topics.on_device(broken).transform(counts)

    def test_no_terms_at_all_give_the_prior(self, counts: scipy.sparse.csr_matrix, device: Device) -> None:
        topics = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=20))
        empty = scipy.sparse.csr_matrix((LARGE_BATCH, 700), dtype=np.float32)
        np.testing.assert_array_equal(topics.on_device(device).transform(empty), [topics.prior] * LARGE_BATCH)


class TestModel:
    @pytest.mark.parametrize("algorithm", ["rotated-lsa", "lda"])
    def test_answers_are_those_of_the_cpu(self, algorithm: str, device: Device, tmp_path: Path) -> None:
        model = TopicFingerprints.fit(plant_campaigns(300), FitParams(num_topics=8, algorithm=algorithm))
        moved = model.to_device(device)
        assert (model.device, moved.device) == (None, device)
        asked = pa.concat_tables(
            [plant_campaigns(LARGE_BATCH, seed=4, prefix="x").select([0, 1, 2]), campaigns_of([], ["zyzzyva"])]
        )
        here, there = model.predict(asked), moved.predict(asked)
        assert there.schema == here.schema
        shares = [np.array(scored["fingerprint"].to_pylist()) for scored in (there, here)]
        np.testing.assert_allclose(*shares, atol=1e-5, rtol=0)
        for one, other in zip(there.to_pylist(), here.to_pylist(), strict=True):
            assert [near["campaign_id"] for near in one["neighbours"]] == [
                near["campaign_id"] for near in other["neighbours"]
            ]
            similarity = [[near["similarity"] for near in row["neighbours"]] for row in (one, other)]
            np.testing.assert_allclose(*similarity, atol=1e-5, rtol=0)
        # Few campaigns get the same bits, and so do those that go into the catalogue.
        assert moved.predict(asked.slice(0, 30)).equals(model.predict(asked.slice(0, 30)))
        assert moved.extend(asked).device is device
        assert moved.extend(asked).save(tmp_path / "a") == model.extend(asked).save(tmp_path / "b")
        assert TopicFingerprints.load(tmp_path / "a").device is None

    def test_what_does_not_fit_is_refused_or_left_to_the_cpu(self) -> None:
        model = TopicFingerprints.fit(plant_campaigns(60), FitParams(num_topics=4))
        small = emulate_device(1000)
        with pytest.raises(UsageError, match="do not fit into 0 MiB"):
            model.to_device(small).predict(plant_campaigns(3))
        willing = Device("cuda", arrays=small.arrays, free_bytes=1000, fallback=True)
        asked = plant_campaigns(3, prefix="x")
        assert model.to_device(willing).predict(asked).equals(model.predict(asked))


class FakeCudaError(RuntimeError):
    """Stands for CuPy's error of the CUDA runtime."""


def pretend_cupy(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ModuleType:
    """Put NumPy where CuPy is looked for, with a CUDA runtime that says what a test needs: no machine here has it."""
    module = ModuleType("cupy")
    module.__dict__.update({name: getattr(np, name) for name in np.__all__ if name != "test"})
    runtime = SimpleNamespace(
        CUDARuntimeError=FakeCudaError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": b"NVIDIA Test"},
        memGetInfo=lambda: (2**33, 2**34),
    )
    module.cuda = SimpleNamespace(runtime=runtime, Device=lambda: SimpleNamespace(synchronize=lambda: None))
    module.asnumpy = np.asarray
    for name, value in changes.items():
        setattr(runtime if hasattr(runtime, name) else module, name, value)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.sparse", scipy.sparse)
    return module


def refuse_driver() -> int:
    raise FakeCudaError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")


def multiply_shortened(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Multiply as TF32 does: 10 bits of each factor."""
    shortened = [(part.view(np.int32) & ~0x1FFF).view(np.float32) for part in (first, np.ascontiguousarray(second))]
    return shortened[0] @ shortened[1]


def fail_to_load(*args: Any) -> Any:
    raise ImportError("libcublas.so.12: cannot open shared object file")


REFUSALS = {
    "driver": ({"getDeviceCount": refuse_driver}, "cudaErrorInsufficientDriver.*install the driver"),
    "device": ({"getDeviceCount": lambda: 0}, "CUDA shows no device; a GPU is needed.*CUDA_VISIBLE_DEVICES"),
    "memory": ({"memGetInfo": lambda: (2**28, 2**34)}, "NVIDIA Test has 256 MiB free; 1024 MiB are needed"),
    "tf32": ({"matmul": multiply_shortened}, "NVIDIA Test multiplies float32 with fewer bits.*unset CUPY_TF32"),
    "library": ({"matmul": fail_to_load}, r"NVIDIA Test: ImportError: libcublas.*mlflywheel\[gpu\]"),
}


class TestChoosing:
    def test_a_gpu_is_taken_and_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_cupy(monkeypatch)
        for wanted in ("auto", "cuda"):
            found = choose_device(wanted)
            assert str(found) == "cuda: NVIDIA Test, 16.0 GiB, 8.0 GiB free"
            assert found.arrays is not None
            assert found.fallback == (wanted == "auto")
        assert choose_device("cpu") == Device("cpu")

    @pytest.mark.parametrize("reason", REFUSALS)
    def test_what_is_missing_is_named(self, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
        changes, message = REFUSALS[reason]
        pretend_cupy(monkeypatch, **changes)
        with pytest.raises(UsageError, match=message) as refused:
            choose_device("cuda")
        for found in (choose_device("auto"), choose_device("cuda", fallback=True)):
            assert (found.kind, found.arrays, found.note) == ("cpu", None, str(refused.value))
            assert str(found) == f"cpu: {refused.value}"

    def test_without_cupy_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(sys, "meta_path", [_Without("cupy"), *sys.meta_path])
        with pytest.raises(MissingExtraError, match=r"cupy is not installed.*pip install 'mlflywheel\[gpu\]'"):
            choose_device("cuda")
        assert "cupy is not installed" in choose_device("auto").note

    def test_an_incomplete_cupy_is_not_called_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(sys, "meta_path", [_Without("cupy", "libcudart.so.12: not found"), *sys.meta_path])
        with pytest.raises(UsageError, match="CuPy does not load: libcudart"):
            choose_device("cuda")

    def test_a_cpu_is_no_device_to_compute_on(self) -> None:
        vectors = draw_unit(30)
        cpu = choose_device("cpu")
        assert cpu.load_vectors(vectors) is None
        assert cpu.load_topics(vectors[0], vectors, vectors[0]) is None
        assert_same(*search_both(vectors, vectors, 3, cpu))


class _Without:
    """A finder by which one package is not installed, or does not load."""

    def __init__(self, name: str, error: str = "") -> None:
        self._name, self._error = name, error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self._name:
            raise ImportError(self._error) if self._error else ModuleNotFoundError(f"No module {name}", name=name)


def test_check_script_runs_with_numpy_in_place_of_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "check.py"), "--array-module", "numpy", "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"same_neighbours": true' in done.stdout
