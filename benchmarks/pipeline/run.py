"""What KFP's wrappers cost: the pipeline through `mlflywheel run`, against the same steps in one plain script.

    python -m benchmarks.pipeline.run                    a sample of 80,000 campaigns
    python -m benchmarks.pipeline.run --campaigns 300    to see that it works

Both sides run the same functions on the same data with one thread. The plain script imports everything once and hands
tables over in memory; the pipeline starts a process for each step and goes through Parquet. Compared are the CPU
seconds of each step, and those of the whole with all processes and imports; in one run, one after the other.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "pipeline.json"
LONG_STEP_SECONDS = 30.0
GOAL = 1.1
_TABLE_START = "<!-- pipeline: written by benchmarks.pipeline.run -->"
_TABLE_END = "<!-- end of pipeline -->"


def run_plain(data: str) -> None:
    """Run the steps in this process, and print the seconds of each as JSON."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds[name] = time.process_time() - started

    from mlflywheel.data.ingestion import ingest
    from mlflywheel.data.splitting import split
    from mlflywheel.data.validation import read_suite, validate
    from mlflywheel.decisions.gates import read_gates
    from mlflywheel.evaluation import evaluate
    from mlflywheel.models.topic_fingerprints import TopicFingerprints
    from mlflywheel.pipelines.catalog import find_pipeline
    from mlflywheel.scoring import score, write_scores

    folder = find_pipeline("ad-campaigns").folder
    with timed("ingestion"):
        rows = ingest(data, TopicFingerprints.columns, {}).table
    with timed("preparation"):
        table = TopicFingerprints.prepare(rows, TopicFingerprints.Config())
    with timed("validation"):
        suite = read_suite((folder / "expectations.json").read_text(encoding="utf-8"), "expectations.json")
        validate(rows, table, suite).raise_for_errors()
    with timed("splitting"):
        parts = split(table, "random", 0.2, 0)
    with timed("training"):
        model = TopicFingerprints.fit(parts.train, TopicFingerprints.Params())
    with timed("evaluation"):
        evaluate(model, parts.holdout, read_gates((folder / "gates.yaml").read_text(encoding="utf-8")))
    with timed("extension"):
        model = model.extend(parts.holdout)
    with timed("scoring"), tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / "model")
        write_scores(score(model, table, "plain"), Path(scratch) / "scores.parquet")
    print(json.dumps(seconds))


def call_in(folder: str, arguments: list[str]) -> tuple[dict[str, Any], float]:
    """Run Python with one thread; return the JSON that it prints, and the CPU seconds of it and its children."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True, cwd=folder
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(printed), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_steps(run: Path) -> dict[str, float]:
    """Return the CPU seconds of each step of a run, from its events."""
    events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return {event["step"]: event["cpu_seconds"] for event in events if event["event"] == "finished"}


def run_both(campaigns: int, out: Path) -> dict[str, Any]:
    """Run both sides, print the comparison, write it and return it."""
    with tempfile.TemporaryDirectory() as scratch:
        from mlflywheel.samples.ad_campaigns import write_sample

        data = str(write_sample(Path(scratch) / "terms.parquet", campaigns=campaigns))
        plain, plain_whole = call_in(scratch, [str(Path(__file__).resolve()), "--plain", data])
        plain["all"] = plain_whole
        summary, whole = call_in(
            scratch, ["-m", "mlflywheel", "run", "ad-campaigns", "--data", data, "--json", "--quiet"]
        )
        steps = {**read_steps(Path(summary["artifacts"]["log"]).parent), "all": whole}
    rows = [
        {
            "step": name,
            "plain_cpu_seconds": plain[name],
            "pipeline_cpu_seconds": steps[name],
            "ratio": steps[name] / plain[name],
        }
        for name in plain
    ]
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.pipeline.run --campaigns {campaigns}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, one thread",
        "versions": {name: version(name) for name in ("mlflywheel", "kfp", "great-expectations", "gensim", "pyarrow")},
        "campaigns": campaigns,
        "rows": rows,
    }
    print(f"{'step':<14}{'plain CPU-s':>14}{'pipeline CPU-s':>16}{'ratio':>8}")
    for row in rows:
        times = f"{row['plain_cpu_seconds']:>14.1f}{row['pipeline_cpu_seconds']:>16.1f}{row['ratio']:>8.2f}"
        print(f"{row['step']:<14}{times}   {describe_goal(row)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def write_table(result: dict[str, Any], page: Path) -> None:
    """Put the comparison as a table between the markers of a page."""
    lines = [
        f"`{result['command']}`, {result['machine']}, {result['measured']}.",
        "",
        "| step | plain script, CPU-s | pipeline, CPU-s | ratio | |",
        "|---|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        name = "all, with imports" if row["step"] == "all" else row["step"]
        numbers = f"{row['plain_cpu_seconds']:.1f} | {row['pipeline_cpu_seconds']:.1f} | {row['ratio']:.2f}"
        lines.append(f"| {name} | {numbers} | {describe_goal(row)} |")
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_TABLE_START)
    _, after = rest.split(_TABLE_END)
    page.write_text("\n".join([before + _TABLE_START, *lines, _TABLE_END + after]), encoding="utf-8")


def describe_goal(row: dict[str, Any]) -> str:
    """Return whether a step meets the goal, empty for one that is too short to be judged."""
    if row["plain_cpu_seconds"] <= LONG_STEP_SECONDS or row["step"] == "all":
        return ""
    return f"goal {GOAL} {'met' if row['ratio'] <= GOAL else 'not met'}"


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaigns", type=int, default=80_000, help="size of the sample")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--plain", metavar="DATA", help="run the plain side only, on this table")
    options = parser.parse_args()
    if options.plain:
        run_plain(options.plain)
    else:
        result = run_both(options.campaigns, options.out)
        if options.out == RESULTS:
            write_table(result, FOLDER.parent / "README.md")


if __name__ == "__main__":
    main()
