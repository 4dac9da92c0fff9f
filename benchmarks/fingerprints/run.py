"""Run the measurements, print them and write them as JSON.

From the repository's root, with the extras `fast` and `faiss` and the group `benchmarks` installed:

    python -m benchmarks.fingerprints.run --data-folder ../shared/data
    python -m benchmarks.fingerprints.chart
"""

import argparse
import datetime
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fingerprints.goals import judge
from benchmarks.fingerprints.measuring import (
    THREAD_VARIABLES,
    Setting,
    describe_machine,
    flush_denormals,
    list_versions,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results") / "full.json"
SCHEMA = 1
MEASURES = ("quality", "training", "inference", "neighbours", "text")
# These also run with denormal numbers kept, to show what they cost.
_BOTH_WAYS = ("training", "inference")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code."""
    options = _read_arguments(arguments)
    if options.worker:
        return _work(options)
    results = run(
        options.only or MEASURES, options.data_folder, options.quick, sys.argv[1:] if arguments is None else arguments
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(format_results(results))
    return 0


def run(measures: Sequence[str], data_folder: Path, quick: bool, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, each measure in a process of its own with one thread, and return the results as JSON values.

    Args:
        measures: Some of `MEASURES`.
        data_folder: Folder with the real data; what needs it is skipped where it is absent.
        quick: Sizes that show that everything runs; the figures mean nothing.
        arguments: What to record as the command's arguments.
    """
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.fingerprints.run", *arguments]),
        "quick": quick,
        "machine": describe_machine(),
        "versions": list_versions(),
        "threads": 1,
        "clock": "CPU seconds of the process",
        "seconds": {},
        "ratios": [],
        "scores": [],
        "skipped": [],
    }
    for measure in measures:
        for denormals in ("flushed", "kept") if measure in _BOTH_WAYS else ("flushed",):
            started = time.monotonic()
            found = _run_worker(measure, data_folder, quick, denormals)
            for part in ("ratios", "scores", "skipped"):
                results[part] += [row for row in found[part] if row not in results[part]]
            results["seconds"][f"{measure}, denormals {denormals}"] = round(time.monotonic() - started, 1)
    results["goals"] = judge(results)
    return results


def format_results(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    lines = ["", "peer / ours (above 1: ours needs less)   median [min - max] runs"]
    for row in results["ratios"]:
        ratio = row["peer_over_ours"]
        lines.append(
            f"  {row['id']:34} {row['denormals'][:7]:8}{ratio['median']:9.3g} [{ratio['min']:.3g} - {ratio['max']:.3g}]"
            f" {len(ratio['runs'])}   {row['case']}"
        )
    lines.append("\nmeasurements")
    for row in results["scores"]:
        value = row["value"]
        ends = "" if row["low"] is None else f" ({row['low']:.4g} - {row['high']:.4g})"
        lines.append(f"  {row['id']:34} {value['median']:9.4g}{ends}   {row['method']}   {row['case']}")
    lines.append("\ngoals")
    for goal in results["goals"]:
        state = {True: "met", False: "NOT MET", None: "not measured"}[goal["met"]]
        lines.append(f"  {state:13} {goal['figure']} {goal['side']} {goal['limit']}   {goal['goal']}   {goal['case']}")
    lines += [f"skipped: {row['id']}: {row['reason']}" for row in results["skipped"]]
    return "\n".join(lines)


def _run_worker(measure: str, data_folder: Path, quick: bool, denormals: str) -> dict[str, Any]:
    # The number of threads is read when NumPy is imported, and peers must not warm each other's caches and pools.
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.fingerprints.run", "--worker", measure, "--denormals", denormals]
        command += ["--data-folder", str(data_folder.resolve()), "--out", str(out), *(["--quick"] if quick else [])]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _work(options: argparse.Namespace) -> int:
    denormals = options.denormals
    if denormals == "flushed" and not flush_denormals():
        denormals = "kept"
    # NumPy notes that denormals are gone when it is asked for the limits of its types.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")
    measure = importlib.import_module(f"benchmarks.fingerprints.{options.worker}").measure
    found = measure(Setting(options.data_folder, options.quick, denormals)).to_json()
    options.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fingerprints.run", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, help="measure only these")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write (default: results/full.json)")
    parser.add_argument(
        "--data-folder", type=Path, default=ROOT.parent / "shared" / "data", help="folder with campaign_topics/"
    )
    parser.add_argument("--worker", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--denormals", choices=("flushed", "kept"), default="flushed", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.worker and options.out == RESULTS and (options.quick or options.only):
        parser.error("--quick and --only need --out: the committed results are one full run")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
