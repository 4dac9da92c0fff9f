"""What explanations cost and say: permutation importance, the models' own contributions, and shap beside them.

    python -m benchmarks.evaluation.explanations                                samples and real files: 5 minutes
    python -m benchmarks.evaluation.explanations --quick --out quick.json       small sizes: does it run?

Real files are read from `--data-folder` (default `../shared/data`), and left out with a note where they are not there.
shap is measured where it is installed. Four questions:

- Cost: importance with the default plan (up to 1,000 held-out rows, 3 permutations of each column) in seconds for 1,000
  rows, and beside one scoring of the same rows; contributions beside `predict` of the same rows; shap beside `predict`.
  CPU seconds of one thread, the median of three runs; ratios are of runs in turns.
- Agreement: Spearman's rank correlation between mean absolute contributions and permutation importance, and between
  either and shap, on the columns that both name.
- A planted driver: tables whose columns are independent, of which one alone makes the truth. How often it ranks first.
- Intervals of the importance: how often they hold the true value of a linear model, beside Student's interval of the
  rows' own rises, which takes each row to count once.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.evaluation.contributions import compare_rankings, read_contributions, summarize_contributions
from mlflywheel.evaluation.importance import estimate_rise, measure_importance
from mlflywheel.evaluation.plan import ExplanationPlan
from mlflywheel.evaluation.shapley import explain_with_shap
from mlflywheel.models.contract import load_model_class
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns
from mlflywheel.samples.credit_decisions import generate_credit_decisions
from mlflywheel.samples.vehicle_prices import generate_vehicle_prices
from mlflywheel.statistics.intervals import estimate_mean

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results" / "explanations.json"
_RUNS = 3
_ROWS = 1000
_SHAP_ROWS = 20
_DRIVERS = ("year", "mileage_km", "power_hp", "make", "fuel")
_QUICK_FIT = {"max_iter": 40, "scale_iter": 2, "calibration_folds": 2, "encoding_folds": 3}


@dataclass(frozen=True)
class Case:
    """A table and a model of it.

    Args:
        name: Of the case.
        model: Entry point of the model class.
        table: Raw rows, None where a file is not there.
        prepare: Preparation settings.
        params: Parameters of the fit.
    """

    name: str
    model: str
    table: pa.Table | None
    prepare: Mapping[str, Any]
    params: Mapping[str, Any]


def list_cases(data: Path, quick: bool) -> list[Case]:
    """Return the cases: a sample and a real file of each model."""
    sizes = (400, 600, 600) if quick else (3000, 6000, 4000)
    trees = {"max_iter": 40} if quick else {}
    credit = {"target": "credit", "positive": 2, "not_features": ["age", "personal_status"]}
    cases = [
        Case("campaigns, sample", "topic-fingerprints", generate_ad_campaigns(campaigns=sizes[0]), {}, {}),
        Case("listings, sample", "vehicle-price", generate_vehicle_prices(listings=sizes[1]), {}, trees),
        Case("credit, sample", "tabular-classifier", generate_credit_decisions(applications=sizes[2]), {}, {}),
    ]
    if quick:
        return cases
    trees = {"algorithm": "boosted_trees"}
    return [
        *cases,
        Case("campaigns, O*NET", "topic-fingerprints", _read(data, "campaign_topics/onet27_campaign_terms.csv.gz",
             "topic-fingerprints"), {}, {}),
        Case("listings, AutoScout24", "vehicle-price", _read(data, "used_cars/autoscout24_germany.csv.gz",
             "vehicle-price"), {}, {}),
        Case("credit, German, logistic", "tabular-classifier", _read(data, "fairness/german_credit.csv",
             "tabular-classifier"), credit, {}),
        Case("credit, German, trees", "tabular-classifier", _read(data, "fairness/german_credit.csv",
             "tabular-classifier"), credit, trees),
    ]  # fmt: skip


def _read(data: Path, name: str, model: str) -> pa.Table | None:
    path = data / name
    if not path.exists():
        return None
    found = load_model_class(model)
    if found.other_columns:
        from pyarrow import csv

        return csv.read_csv(path)
    columns = {"power": "hp"} if "autoscout" in name else {}
    return ingest(str(path), found.columns, columns).table


def measure_case(case: Case) -> dict[str, Any]:
    """Fit a model on four fifths of a table, and measure explanations on the rest."""
    if case.table is None:
        return {"case": case.name, "left_out": "the file is not there"}
    found = load_model_class(case.model)
    prepared = found.prepare(case.table, found.Config.parse(case.prepare, "benchmark"))
    parts = split(prepared, "random", 0.2, seed=0)
    model = found.fit(parts.train, found.Params.parse(case.params, "benchmark"))
    holdout = parts.holdout.slice(0, _ROWS).combine_chunks()
    rows = model.score_rows(holdout)
    assert rows is not None
    plan = ExplanationPlan(rows=_ROWS)
    importance = measure_importance(model, holdout, rows, plan)
    timed = time_in_turns(
        {
            "importance": lambda: measure_importance(model, holdout, rows, plan),
            "score_rows": lambda: model.score_rows(holdout),
            "contributions": lambda: read_contributions(model, holdout),
            "predict": lambda: model.predict(holdout),
        }
    )
    thousands = holdout.num_rows / 1000
    values = {one.slice.removeprefix("feature="): one.value for one in importance.measurements if one.value is not None}
    own_table = read_contributions(model, holdout)
    own = rank(own_table)
    result: dict[str, Any] = {
        "case": case.name,
        "training_rows": parts.train.num_rows,
        "held_out_rows": holdout.num_rows,
        "features": len(values),
        "importance_cpu_seconds_per_1000_rows": timed["importance"] / thousands,
        "importance_over_score_rows": timed["importance"] / timed["score_rows"],
        "contributions_cpu_seconds_per_1000_rows": timed["contributions"] / thousands,
        "contributions_over_predict": timed["contributions"] / timed["predict"],
        "importance": values,
        "largest_contributions": dict(list(own.items())[:10]),
        "own_against_importance": compare_rankings(own, values),
    }
    if find_spec("shap") is not None and own_table.outputs_per_row == 1:
        few = holdout.slice(0, _SHAP_ROWS)
        started = time.process_time()
        theirs = rank(explain_with_shap(model, few, parts.train))
        seconds = (time.process_time() - started) / few.num_rows
        result |= {
            "shap_cpu_seconds_per_row": seconds,
            "shap_over_predict": seconds * 1000 / (timed["predict"] / thousands),
            "shap_rows": few.num_rows,
            "shap_against_own_of_the_same_rows": compare_rankings(theirs, rank(read_contributions(model, few))),
            "shap_against_importance": compare_rankings(theirs, values),
        }
    return result


def rank(found: Any) -> dict[str, float]:
    """Return the mean absolute contribution of every feature, the largest first."""
    return {one.feature: one.mean_absolute for one in summarize_contributions(found)}


def time_in_turns(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median CPU seconds of each call, run in turns; everything is warm after the first turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(_RUNS + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def plant_driver(driver: str, rows: int, seed: int) -> pa.Table:
    """Return prepared listings whose columns are independent, with a price that one column alone makes.

    Columns are those of the sample, each in an order of its own; the price rises with the column's rank.
    """
    found = load_model_class("vehicle-price")
    table = found.prepare(generate_vehicle_prices(listings=rows, seed=seed), found.Config.parse({}, "benchmark"))
    random = np.random.default_rng(seed)
    for name in table.column_names:
        if name not in ("listing_id", "flags"):
            at = table.column_names.index(name)
            table = table.set_column(at, name, table[name].take(pa.array(random.permutation(table.num_rows))))
    values = np.array([str(value) for value in table[driver].to_pylist()])
    numbers = table[driver].to_pylist() if pa.types.is_floating(table[driver].type) else None
    keys = values if numbers is None else np.array([np.nan if one is None else one for one in numbers])
    ranks = np.unique(keys, return_inverse=True)[1]
    price = np.exp(9.0 + 1.5 * ranks / max(1, ranks.max()) + 0.1 * random.normal(size=table.num_rows))
    return table.set_column(table.column_names.index("price"), "price", pa.array(price))


def count_first(seeds: int, rows: int) -> dict[str, Any]:
    """Count how often the planted driver ranks first, by permutation and by the model's own contributions."""
    found = load_model_class("vehicle-price")
    first = {"importance": 0, "own": 0, "shap": 0}
    asked = 0
    for driver in _DRIVERS:
        for seed in range(seeds):
            parts = split(plant_driver(driver, rows, seed), "random", 0.3, seed=seed)
            model = found.fit(parts.train, found.Params.parse({**_QUICK_FIT, "seed": seed}, "benchmark"))
            scores = model.score_rows(parts.holdout)
            assert scores is not None
            measured = measure_importance(model, parts.holdout, scores, ExplanationPlan(), seed)
            first["importance"] += measured.measurements[0].slice == f"feature={driver}"
            first["own"] += next(iter(rank(read_contributions(model, parts.holdout)))) == driver
            if find_spec("shap") is not None and seed < 2:
                asked += 1
                few = parts.holdout.slice(0, 5)
                first["shap"] += next(iter(rank(explain_with_shap(model, few, parts.train, permutations=1)))) == driver
    trials = seeds * len(_DRIVERS)
    return {"rows": rows, "drivers": list(_DRIVERS), "trials": trials, "first": first, "trials_of_shap": asked}


def count_covered(simulations: int) -> list[dict[str, Any]]:
    """Count intervals that hold the true importance of x for y = x + noise: 2, with the squared error and var(x) 1."""
    found = []
    for rows, repeats in ((50, 3), (150, 1), (150, 3), (500, 3), (1000, 3)):
        held = {"with_both_roles": 0, "own_rises_alone": 0}
        for seed in range(simulations):
            random = np.random.default_rng([rows, repeats, seed])
            x = random.normal(size=rows)
            y = x + 0.5 * random.normal(size=rows)
            orders = [random.permutation(rows) for _ in range(repeats)]
            rises = np.stack([(x[order] - y) ** 2 - (x - y) ** 2 for order in orders])
            for name, interval in (
                ("with_both_roles", estimate_rise(rises, orders)),
                ("own_rises_alone", estimate_mean(rises.mean(axis=0))),
            ):
                assert interval.low is not None
                assert interval.high is not None
                held[name] += interval.low <= 2.0 <= interval.high
        shares = {name: count / simulations for name, count in held.items()}
        found.append({"rows": rows, "permutations": repeats, "simulations": simulations, **shares})
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.evaluation.explanations" + (" --quick" if arguments.quick else ""),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: _version(name) for name in ("numpy", "pyarrow", "scikit-learn", "shap")},
        "cases": [],
    }
    for case in list_cases(arguments.data_folder, arguments.quick):
        results["cases"].append(measure_case(case))
        print(json.dumps({key: value for key, value in results["cases"][-1].items() if not isinstance(value, dict)}))
    results["planted_driver"] = count_first(1 if arguments.quick else 10, 300 if arguments.quick else 700)
    print(json.dumps(results["planted_driver"]))
    results["coverage"] = count_covered(100 if arguments.quick else 2000)
    print(json.dumps(results["coverage"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
