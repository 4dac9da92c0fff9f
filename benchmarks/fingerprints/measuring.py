"""How this folder measures: CPU seconds of one thread, in pairs, with the spread of the runs beside every median."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
PACKAGES = ("numpy", "scipy", "numba", "pyarrow", "gensim", "scikit-learn", "faiss-cpu", "tomotopy")


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one quantity.

    Args:
        runs: The values in the order in which they were measured, at least one.
    """

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return the values with median, minimum and maximum, to four significant digits."""
        summary = {"median": self.median, "min": min(self.runs), "max": max(self.runs)}
        return {**{name: _shorten(value) for name, value in summary.items()}, "runs": [_shorten(x) for x in self.runs]}


@dataclass(frozen=True)
class Ratio:
    """What a peer needs, divided by what we need: above 1 we need less.

    Args:
        id: Name of the comparison, for goals and charts.
        case: The data it was measured on.
        quantity: What was measured, with its unit.
        ours: What of ours was measured.
        peer: What it is compared with.
        ours_sample: Our measurements.
        peer_sample: The peer's, as many; the pair of one position was measured one after the other.
        denormals: `flushed` or `kept`, or empty where the quantity has nothing to do with them.
        note: What a reader must know to judge it.
    """

    id: str
    case: str
    quantity: str
    ours: str
    peer: str
    ours_sample: Sample
    peer_sample: Sample
    denormals: str = ""
    note: str = ""

    @property
    def sample(self) -> Sample:
        """The ratio of each pair."""
        return Sample(tuple(b / a for a, b in zip(self.ours_sample.runs, self.peer_sample.runs, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {name: getattr(self, name) for name in ("id", "case", "quantity", "ours", "peer", "denormals", "note")}
        samples = {"ours_runs": self.ours_sample, "peer_runs": self.peer_sample, "peer_over_ours": self.sample}
        return {**values, **{name: sample.to_json() for name, sample in samples.items()}}


@dataclass(frozen=True)
class Score:
    """A measurement that is not a ratio: quality, recall, memory.

    Args:
        id: Name of the measurement.
        case: The data.
        method: What was measured.
        sample: One value a seed, or a single one.
        low: Lower end of a 95 % interval over rows, for the first value; None where there is none.
        high: Upper end of the same.
        denormals: As in `Ratio`.
        note: As in `Ratio`.
    """

    id: str
    case: str
    method: str
    sample: Sample
    low: float | None = None
    high: float | None = None
    denormals: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {name: getattr(self, name) for name in ("id", "case", "method", "denormals", "note")}
        ends = {name: None if end is None else _shorten(end) for name, end in (("low", self.low), ("high", self.high))}
        return {**values, "value": self.sample.to_json(), **ends}


@dataclass
class Findings:
    """What one measure found.

    Args:
        ratios: Comparisons.
        scores: Measurements.
        skipped: What was not measured, each with `id` and `reason`.
    """

    ratios: list[Ratio] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, id: str, reason: str) -> None:
        """Note what was left out, and why."""
        self.skipped.append({"id": id, "reason": reason})

    def to_json(self) -> dict[str, Any]:
        """Return three lists of JSON values."""
        return {
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "scores": [score.to_json() for score in self.scores],
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Setting:
    """How large a measurement is, and where its data are.

    Args:
        data_folder: Folder with `campaign_topics/`; what needs it is skipped where it is absent.
        quick: Sizes that show that everything runs, and whose figures mean nothing.
        denormals: `flushed` or `kept`: what this process does with numbers below the normal range.
    """

    data_folder: Path
    quick: bool
    denormals: str

    def choose(self, full: int, quick: int) -> int:
        """Return the size to use."""
        return quick if self.quick else full


def time_once(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds that an action took, and its result."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def time_pairs(ours: Callable[[], Any], peer: Callable[[], Any], runs: int) -> tuple[Sample, Sample, Any, Any]:
    """Measure two actions in turn, and return the CPU seconds of both and their last results.

    The one that goes first changes from run to run, so neither always finds the other's data in the caches.
    """
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for run in range(runs):
        for which in (0, 1) if run % 2 == 0 else (1, 0):
            seconds, results[which] = time_once((ours, peer)[which])
            times[which].append(seconds)
    return Sample(tuple(times[0])), Sample(tuple(times[1])), results[0], results[1]


def time_each(action: Callable[[Any], Any], items: Sequence[Any]) -> list[float]:
    """Return the CPU seconds of each call; the waiting of a busy machine is not in them."""
    seconds = []
    for item in items:
        start = time.thread_time()
        action(item)
        seconds.append(time.thread_time() - start)
    return seconds


def flush_denormals() -> bool:
    """Make this thread round results below the normal range to zero, and return whether it could.

    Adding denormal numbers costs Intel cores about a hundred cycles each, and gensim's LDA produces many: products of
    exp(digamma) of small priors, each around 1e-27. Comparing with them kept would flatter whoever avoids them, for a
    reason that a flag of the processor removes. Python has no call for it, so LLVM, which comes with numba, compiles
    one instruction.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    try:
        from llvmlite import binding as llvm
    except ImportError:
        return False
    code = """
        declare void @llvm.x86.sse.stmxcsr(ptr)
        declare void @llvm.x86.sse.ldmxcsr(ptr)
        define void @flush() {
          %slot = alloca i32
          call void @llvm.x86.sse.stmxcsr(ptr %slot)
          %old = load i32, ptr %slot
          %new = or i32 %old, 32832
          store i32 %new, ptr %slot
          call void @llvm.x86.sse.ldmxcsr(ptr %slot)
          ret void
        }
    """  # 32832 = 0x8040: flush to zero, and denormals are zeros
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    ctypes.CFUNCTYPE(None)(engine.get_function_address("flush"))()
    import numpy as np

    return float(np.float32(1e-30) * np.float32(1e-10)) == 0.0


def describe_machine() -> dict[str, str | int]:
    """Return what of the machine the figures depend on, and nothing that identifies it."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "architecture": platform.machine(),
        "processor": _name_processor(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def list_versions() -> dict[str, str]:
    """Return the versions of the packages that are measured, without those that are not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _name_processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _shorten(value: float) -> float:
    return float(f"{value:.4g}")
