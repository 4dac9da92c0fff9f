"""Whether a GPU gives the CPU's fingerprints and neighbours, and in what time.

    python benchmarks/gpu/check.py                               on a machine with a GPU: a few minutes
    python benchmarks/gpu/check.py --array-module numpy --quick  the same code without one

It needs the repository's files, NumPy, SciPy, scikit-learn and CuPy, and nothing else of what the package depends on.
All data is made up and seeded: shares of 50 topics drawn from a Dirichlet distribution, and counts of 60 terms a
campaign, frequent ones more often. A time is the median of five runs after one that is not counted, from arrays in the
machine's memory to arrays in the machine's memory. It ends with status 1 where answers differ.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.sparse as sp
import sklearn
from threadpoolctl import threadpool_limits

SOURCE = Path(__file__).resolve().parents[2] / "src"
K = 10
LIMIT = 1e-5
RUNS = 5
_TOPICS = 50
_TERMS = 30_000
_TERMS_PER_CAMPAIGN = 60
_BLOCK = 1024


def load(name: str) -> Any:
    """Load a module of the package by its file: importing it by name would import what this machine may not have."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    path = SOURCE / "mlflywheel" / "models" / "topic_fingerprints" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"check_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def draw_shares(rows: int, concentration: float, random: np.random.Generator) -> np.ndarray:
    """Draw topic shares, float32 (rows, topics)."""
    drawn = random.standard_gamma(concentration, (rows, _TOPICS)) + 1e-9
    return (drawn / drawn.sum(axis=1, keepdims=True)).astype(np.float32)


def draw_counts(rows: int, random: np.random.Generator) -> sp.csr_matrix:
    """Draw counts, CSR float32 (rows, terms), columns sorted; the same term drawn twice counts 2."""
    columns = (_TERMS * random.random(rows * _TERMS_PER_CAMPAIGN) ** 2).astype(np.int32)
    indptr = np.arange(0, len(columns) + 1, _TERMS_PER_CAMPAIGN, dtype=np.int32)
    counts = sp.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, indptr), shape=(rows, _TERMS))
    counts.sum_duplicates()
    return counts


def project(counts: sp.csr_matrix, idf: np.ndarray, term_topic: np.ndarray) -> np.ndarray:
    """Compute fingerprints as `RotatedLsa.transform` does; no row here is empty."""
    weights = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    weights.data = np.log1p(weights.data) / np.log(2.0) * idf[weights.indices]
    shares = weights @ term_topic
    return np.asarray(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def project_in_threads(counts: sp.csr_matrix, idf: np.ndarray, term_topic: np.ndarray, threads: int) -> np.ndarray:
    """Compute the same, a block of campaigns a thread: SciPy itself uses one."""
    lows = np.linspace(0, counts.shape[0], threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(
            lambda part: project(part, idf, term_topic), map(counts.__getitem__, map(slice, lows, lows[1:]))
        )
        return np.concatenate(list(parts))


def measure(work: Callable[[], Any], synchronize: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Return wall seconds of `RUNS` runs after a first one: their median, and all of them."""
    seconds = []
    for _ in range(RUNS + 1):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return {"median_seconds": statistics.median(seconds[1:]), "runs": [round(value, 5) for value in seconds[1:]]}


def check_fingerprints(device: Any, campaigns: int, threads: int, random: np.random.Generator) -> dict[str, Any]:
    """Compare fingerprints, and time them."""
    counts = draw_counts(campaigns, random)
    idf = random.uniform(1, 10, _TERMS).astype(np.float32)
    term_topic = draw_shares(_TERMS, 0.1, random)
    exact_idf, exact_topics = idf.astype(np.float64), term_topic.astype(np.float64)
    on_device = device.load_topics(idf, term_topic, np.full(_TOPICS, 1 / _TOPICS, dtype=np.float32))
    there, here = on_device(counts), project(counts, exact_idf, exact_topics)
    return {
        "campaigns": campaigns,
        "stored_counts": int(counts.nnz),
        "largest_difference": float(np.abs(there - here).max()),
        "share_of_equal_bits": float((there == here).mean()),
        "cpu_1_thread": measure(lambda: project(counts, exact_idf, exact_topics)),
        f"cpu_{threads}_threads": measure(lambda: project_in_threads(counts, exact_idf, exact_topics, threads)),
        "gpu": measure(lambda: on_device(counts), device.arrays.synchronize),
    }


def check_neighbours(
    device: Any, neighbours: Any, campaigns: int, asked: int, threads: int, random: np.random.Generator
) -> dict[str, Any]:
    """Compare exact neighbours, and time them: of some campaigns on both, of all on the GPU."""
    shares = draw_shares(campaigns, 0.2, random)
    vectors = neighbours.embed_cosine(shares, shares.mean(axis=0, dtype=np.float64).astype(np.float32))
    ids = [f"c{number:07d}" for number in range(campaigns)]
    cpu = neighbours.NeighbourIndex(ids, vectors, approximate=False)
    gpu = neighbours.NeighbourIndex(ids, vectors, device=device)
    queries, own = vectors[:asked], ids[:asked]
    here, there = cpu.search(queries, K, own), gpu.search(queries, K, own)
    found: dict[str, Any] = {
        "campaigns": campaigns,
        "queries": asked,
        "same_neighbours": bool((here.positions == there.positions).all()),
        "same_bits": bool((here.similarity == there.similarity).all()),
        "largest_difference": float(np.abs(here.similarity - there.similarity).max()),
    }
    for number in (1, threads):
        with threadpool_limits(number):
            found[f"cpu_{number}_thread{'s' * (number > 1)}"] = measure(lambda: cpu.search(queries, K, own))
    synchronize = device.arrays.synchronize
    found["gpu"] = measure(lambda: gpu.search(queries, K, own), synchronize)
    found["gpu_all_campaigns"] = measure(lambda: gpu.search(vectors, K, ids), synchronize)
    found["gpu_stages_of_one_block"] = time_stages(device, vectors)
    return found


def time_stages(device: Any, vectors: np.ndarray) -> dict[str, Any]:
    """Time what the device alone does for one block of queries, with arrays that stay there."""
    xp, synchronize = device.arrays.xp, device.arrays.synchronize
    nearest = device.load_vectors(vectors)
    catalogue, block = xp.asarray(vectors), xp.asarray(vectors[:_BLOCK])
    width = min(K + 17, len(vectors))
    select_largest = sys.modules["check_device"].select_largest
    products = xp.matmul(block, catalogue.T)
    return {
        "queries": len(block),
        "product": measure(lambda: xp.matmul(block, catalogue.T), synchronize),
        "selection": measure(lambda: select_largest(xp, products, width), synchronize),
        "both_and_copies": measure(lambda: nearest.find(vectors[:_BLOCK], width), synchronize),
    }


def main() -> int:
    """Run the check, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--array-module", choices=("cupy", "numpy"), default="cupy")
    parser.add_argument("--campaigns", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=8192, help="campaigns whose neighbours the CPU searches too")
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="3,000 campaigns and 256 queries")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    campaigns, asked = (3000, 256) if options.quick else (options.campaigns, options.queries)
    devices, neighbours = load("device"), load("neighbours")
    device = devices.choose_device("cuda") if options.array_module == "cupy" else devices.emulate_device(2**33)
    random = np.random.default_rng(0)
    found = {
        "device": str(device),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (np, scipy, sklearn, device.arrays.xp)},
        },
        "fingerprints": check_fingerprints(device, campaigns, options.threads, random),
        "neighbours": check_neighbours(device, neighbours, campaigns, asked, options.threads, random),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    differ = [name for name in ("fingerprints", "neighbours") if not found[name]["largest_difference"] <= LIMIT]
    if differ or not found["neighbours"]["same_neighbours"]:
        print(f"The answers differ: {', '.join(differ) or 'other neighbours'}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
