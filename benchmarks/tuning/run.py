"""What the local executor of searches costs beside Optuna alone, and what the ad-campaign search finds.

    python -m benchmarks.tuning.run                                the cost: half a minute
    python -m benchmarks.tuning.run --study                        also what is found: half an hour on 2 cores
    python -m benchmarks.tuning.run --quick --out quick.json       small sizes: does it run?

The cost is that of trials that do nothing: `sh -c "echo loss=..."`. Beside it stand the same processes started one
after the other without any search, and Optuna's own study, with the same sampler, seed and number of trials: in memory
with a Python function, and in SQLite with the same process in the function, which is what can be resumed. The study
runs the committed search on a sample and, where the folder is given, on O*NET's and on farm advertisements' terms, and
measures the default parameters and those that were found on the campaigns that neither has seen.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "tuning.json"
ROOT = FOLDER.parents[1]
_START, _END = "<!-- tuning: written by benchmarks.tuning.run -->", "<!-- end of tuning -->"
_SPACE = {"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 1.0)}
_COMMAND = "echo loss=0.5"

STUDIES: dict[str, tuple[str, list[str]]] = {
    "sample": ("", []),
    "O*NET": ("campaign_topics/onet27_campaign_terms.csv.gz", []),
    "farm advertisements": (
        "campaign_topics/farm_ads.csv.gz",
        ["--map", "campaign_id=ad_id", "--map", "term=tokens", "--map", "vertical=label", "--split-terms"],
    ),
}


def write_experiment(trials: int, parallel: int) -> str:
    """Return an Experiment of trials that do nothing."""
    return json.dumps(
        {
            "apiVersion": "kubeflow.org/v1beta1",
            "kind": "Experiment",
            "metadata": {"name": "nothing"},
            "spec": {
                "objective": {"type": "minimize", "objectiveMetricName": "loss"},
                "algorithm": {
                    "algorithmName": "multivariate-tpe",
                    "algorithmSettings": [{"name": "random_state", "value": "0"}],
                },
                "parallelTrialCount": parallel,
                "maxTrialCount": trials,
                "parameters": [
                    {
                        "name": name,
                        "parameterType": "double",
                        "feasibleSpace": {"min": str(low), "max": str(high)},
                    }
                    for name, (low, high) in _SPACE.items()
                ],
                "trialTemplate": {
                    "primaryContainerName": "trial",
                    "trialParameters": [{"name": name, "reference": name} for name in _SPACE],
                    "trialSpec": {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "spec": {
                            "template": {
                                "spec": {
                                    "restartPolicy": "Never",
                                    "containers": [
                                        {
                                            "name": "trial",
                                            "image": "unused",
                                            "command": ["sh", "-c", _COMMAND],
                                            # Katib wants every parameter in the template; these change nothing.
                                            "env": [
                                                {"name": name, "value": f"${{trialParameters.{name}}}"}
                                                for name in _SPACE
                                            ],
                                        }
                                    ],
                                }
                            }
                        },
                    },
                },
            },
        }
    )


def time_calls(call: Callable[[], None], runs: int) -> list[float]:
    """Return the wall-clock seconds of repeated calls."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def run_processes(trials: int) -> None:
    """Start the same processes one after the other."""
    for _ in range(trials):
        subprocess.run(["sh", "-c", _COMMAND], stdout=subprocess.PIPE, check=True)


def run_local(trials: int, parallel: int) -> None:
    """Search with the local executor."""
    from mlflywheel.tuning.local import LocalTuner
    from mlflywheel.tuning.reader import read_experiment

    with tempfile.TemporaryDirectory() as folder:
        result = LocalTuner(Path(folder), any_command=True).search(read_experiment(write_experiment(trials, parallel)))
    assert result.count("succeeded") == trials


def run_optuna(trials: int, process: bool) -> None:
    """Search with Optuna alone: in memory with a function, or in SQLite with a process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: "optuna.Trial") -> float:
        for name, (low, high) in _SPACE.items():
            trial.suggest_float(name, low, high)
        if not process:
            return 0.5
        printed = subprocess.run(["sh", "-c", _COMMAND], stdout=subprocess.PIPE, check=True, text=True).stdout
        return float(printed.partition("=")[2])

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=0)
        storage = f"sqlite:///{folder}/study.sqlite" if process else None
        study = optuna.create_study(storage=storage, sampler=sampler, direction="minimize")
        study.optimize(objective, n_trials=trials)


def measure_cost(trials: int, runs: int) -> dict[str, Any]:
    """Measure all sides, in turns."""
    run_local(2, 1)
    run_optuna(2, process=False)
    sides: dict[str, Callable[[], None]] = {
        "processes alone": lambda: run_processes(trials),
        "local executor, 1 at once": lambda: run_local(trials, 1),
        "local executor, 2 at once": lambda: run_local(trials, 2),
        "Optuna in memory, no process": lambda: run_optuna(trials, process=False),
        "Optuna in SQLite, with the process": lambda: run_optuna(trials, process=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, call in sides.items():
            seconds[name] += time_calls(call, 1)
    one, alone = seconds["local executor, 1 at once"], seconds["processes alone"]
    memory, sqlite = seconds["Optuna in memory, no process"], seconds["Optuna in SQLite, with the process"]
    overhead = [1e3 * (a - b - c) / trials for a, b, c in zip(one, alone, memory, strict=True)]
    return {
        "trials": trials,
        "runs": runs,
        "seconds": seconds,
        # Beside the process itself and the sampling: start, log, metrics, state on disk.
        "overhead_milliseconds_per_trial": overhead,
        "sqlite_optuna_over_ours": [b / a for a, b in zip(one, sqlite, strict=True)],
    }


def run_study(name: str, data_folder: Path | None) -> dict[str, Any] | None:
    """Run the pipeline with its defaults and with the committed search; None where the data is missing."""
    file, options = STUDIES[name]
    data: list[str] = []
    if file:
        if data_folder is None or not (data_folder / file).exists():
            return None
        data = ["--data", str(data_folder / file), *options]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            kind: json.loads(
                subprocess.run(
                    [sys.executable, "-m", "mlflywheel", "run", "ad-campaigns", *data, *words, "--json", "--quiet"],
                    stdout=subprocess.PIPE,
                    cwd=folder,
                    check=False,
                ).stdout
            )
            for kind, words in (
                ("defaults", []),
                ("best trial", ["--set", "tune=true", "--set", "confirmations=0"]),
                # Takes up the same search.
                ("tuned", ["--set", "tune=true"]),
            )
        }
        measured = {kind: read_measurements(run) for kind, run in runs.items()}
    tuning = runs["tuned"]["tuning"]
    return {
        "data": name,
        "search": {
            key: tuning[key]
            for key in ("objective", "trials", "baseline", "best", "best_parameters", "confirmation", "improved")
        },
        "search_seconds": runs["best trial"]["seconds"]["tuning"],
        "confirmation_seconds": runs["tuned"]["seconds"]["tuning"],
        "held_out": measured,
    }


def read_measurements(run: dict[str, Any]) -> dict[str, Any]:
    """Return the held-out measurements that the table shows, with their intervals."""
    evaluation = json.loads(Path(run["artifacts"]["evaluation"]).read_text(encoding="utf-8"))
    shown = ("neighbour_purity_at_10", "hidden_keyword_recall_at_10", "coherence_c_npmi", "topic_diversity")
    return {
        found["metric"]: {key: found[key] for key in ("value", "low", "high", "count")}
        for found in evaluation["measurements"]
        if found["slice"] == "all" and found["metric"] in shown
    }


def format_tables(result: dict[str, Any]) -> list[str]:
    """Return the results as Markdown."""
    cost = result["cost"]
    trials = cost["trials"]
    lines = [
        f"`{result['command']}`, {result['machine']}, {result['measured']}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f". {trials} trials that do nothing, median of {cost['runs']} runs in turns.",
        "",
        "| | seconds | ms a trial |",
        "|---|---:|---:|",
    ]
    for name, seconds in cost["seconds"].items():
        middle = statistics.median(seconds)
        lines.append(f"| {name} | {middle:.2f} | {1e3 * middle / trials:.1f} |")
    overhead = statistics.median(cost["overhead_milliseconds_per_trial"])
    ratio = statistics.median(cost["sqlite_optuna_over_ours"])
    lines += [
        "",
        f"A trial costs {overhead:.1f} ms beside its process and its sampling. Optuna in SQLite with the same process,"
        f" one at a time, takes {ratio:.1f} times as long as the local executor, one at a time.",
    ]
    if result["studies"]:
        lines += [
            "",
            f"The ad-campaign search, {result['studies'][0]['search']['objective']}; held out means campaigns that "
            "neither search nor training has seen, with 95 % intervals.",
            "",
            "| data | trials | search, s | validation: defaults, best trial | held out: defaults "
            "| held out: best trial | confirmed | held out: tuned |",
            "|---|---:|---:|---:|---:|---:|---|---:|",
        ]
    for study in result["studies"]:
        search = study["search"]
        held = [
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**study["held_out"][kind][search["objective"]])
            for kind in ("defaults", "best trial", "tuned")
        ]
        confirmation = search["confirmation"]
        asked = "not asked" if confirmation is None else f"p = {confirmation['p_value']:.2f}"
        lines.append(
            f"| {study['data']} | {search['trials']} | {study['search_seconds']:.0f} "
            f"| {search['baseline']:.3f}, {search['best']:.3f} | {held[0]} | {held[1]} "
            f"| {'yes' if search['improved'] else 'no'}, {asked} | {held[2]} |"
        )
    return lines


def write_tables(result: dict[str, Any], page: Path) -> None:
    """Put the tables between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(_START)
    _, after = rest.split(_END)
    page.write_text("\n".join([before + _START, *format_tables(result), _END + after]), encoding="utf-8")


def main() -> None:
    """Read the options, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help="also run the ad-campaign search")
    parser.add_argument(
        "--data-folder", type=Path, default=ROOT.parent / "shared" / "data", help="has campaign_topics/"
    )
    parser.add_argument("--quick", action="store_true", help="few trials, one run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args()
    cost = measure_cost(*((10, 1) if options.quick else (100, 5)))
    studies = [run_study(name, options.data_folder) for name in STUDIES] if options.study else []
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.tuning.run" + (" --study" if options.study else ""),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("mlflywheel", "optuna", "SQLAlchemy")},
        "cost": cost,
        "studies": [study for study in studies if study is not None],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.out == RESULTS:
        write_tables(result, FOLDER.parent / "README.md")
    print("\n".join(format_tables(result)))


if __name__ == "__main__":
    main()
