"""How often the comparison with the version in use errs, and what a trend over versions adds to it.

    python -m benchmarks.evaluation.champion                          # 2,000 data sets a scenario: about 5 minutes
    python -m benchmarks.evaluation.champion --quick --out quick.json # few data sets: does it run?
    python -m benchmarks.evaluation.champion --only trend             # some parts again; the others are kept

Writes `benchmarks/evaluation/results/champion.json` and prints its tables. Shares have Wilson's 95 % intervals. Parts:

- `coverage`: how often the true loss lies above and below the 95 % interval of paired losses (2.5 % each would be
  right), for the interval of `mlflywheel.evaluation.paired`, for Student's, and for BCa up to 600 rows (500 data sets).
- `non_inferiority`: how often the gate `judge: interval` with `at_most` the margin refuses an equal model, and lets one
  pass that is worse by exactly the margin, or by twice the margin. The loss is spread over the rows, or `rare`: of few
  rows that lose all there is to lose; of relative errors, of one row in a hundred. `harm` is how often
  `judge: whole_interval` with the same limit refuses.
- `slices`: how often one of 20 slices refuses an equal model, by both kinds of gate, with a limit of 0 or 0.02.
- `trend`: how often a trend is found where there is none, by the distribution of the values, also over 20 releases in
  a row that are each tested over the last 10; and a decline of equal steps over 10 releases that each pass the gate
  against the version before, by the size of the steps and of the noise of each version's own measurement.
- `models`: real models, where `../shared/data` lies beside the checkout: refits that must pass, and damaged ones.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import special

from mlflywheel.evaluation.champion import compare_with_champion
from mlflywheel.evaluation.paired import estimate_loss, required_rows
from mlflywheel.evaluation.plan import ChampionPlan
from mlflywheel.evaluation.trend import estimate_decline
from mlflywheel.models.contract import RowScores
from mlflywheel.statistics.intervals import Interval, estimate_mean, estimate_share

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "champion.json"
SEED = 20261121
ROWS = (50, 100, 200, 600, 2500)
BCA_SETS = 500

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def share(found: Sequence[bool] | NDArray[np.bool_]) -> dict[str, float]:
    """Return a share of the data sets with Wilson's interval."""
    of = estimate_share(int(np.sum(found)), len(found))
    values = {
        name: round(float(value or 0.0), 4) for name, value in (("share", of.value), ("low", of.low), ("high", of.high))
    }
    return {**values, "data_sets": of.count}


def draw_prices(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Differences of absolute relative errors of two equally good models whose errors share a heavy tail."""
    shared = 0.1 * random.standard_t(4, rows)
    ours, theirs = (np.abs(np.expm1(shared + random.normal(0, 0.055, rows))).clip(max=5) for _ in range(2))
    return np.asarray(ours - theirs)


def draw_shares(worse: float, better: float) -> Draw:
    """Differences of a truth value that gets wrong in a share of the rows, and right in another."""

    def draw(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
        at = random.random(rows)
        return np.where(at < worse, 1.0, np.where(at < worse + better, -1.0, 0.0))

    return draw


def draw_purities(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Differences of two purities of ten neighbours, two of which both models find."""
    likely = random.beta(4, 1, rows)
    return np.asarray((random.binomial(8, likely) - random.binomial(8, likely)) / 10)


def draw_rare(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Small noise, and a loss of 0.5 in one row of a hundred."""
    return random.normal(0, 0.03, rows) + 0.5 * (random.random(rows) < 0.01)


#: Losses of rows, their true mean, and the largest that one row can have.
POPULATIONS: Mapping[str, tuple[Draw, float, float | None]] = {
    "relative errors, equal": (draw_prices, 0.0, None),
    "relative errors, 1 row in 100 loses 0.5": (draw_rare, 0.005, None),
    "truth values, 5 % change either way": (draw_shares(0.05, 0.05), 0.0, 1.0),
    "truth values, 6 % worse, 2 % better": (draw_shares(0.06, 0.02), 0.04, 1.0),
    "truth values, 2 % worse, none better": (draw_shares(0.02, 0.0), 0.02, 1.0),
    "purities, equal": (draw_purities, 0.0, 1.0),
}


def measure_coverage(sets: int) -> list[dict[str, Any]]:
    """Compare three intervals of the same losses."""
    table = []
    for name, (draw, true, span) in POPULATIONS.items():
        for rows in ROWS:
            random = np.random.default_rng([SEED, rows])
            found: dict[str, list[Interval]] = {"ours": [], "student": [], "bca": []}
            for number in range(sets):
                losses = draw(random, rows)
                found["ours"].append(estimate_loss(losses, span))
                found["student"].append(estimate_mean(losses))
                if rows <= 600 and number < min(sets, BCA_SETS):
                    found["bca"].append(estimate_mean(losses, method="bca", seed=number))
            for method, intervals in found.items():
                if intervals:
                    low = np.array([one.low for one in intervals], dtype=np.float64)
                    high = np.array([one.high for one in intervals], dtype=np.float64)
                    table.append(
                        {
                            "losses": name,
                            "rows": rows,
                            "interval": method,
                            "true_loss_above": share(high < true),
                            "true_loss_below": share(low > true),
                            "median_width": round(float(np.median(high - low)), 5),
                        }
                    )
    return table


def measure_non_inferiority(sets: int) -> list[dict[str, Any]]:
    """Let equal and worse models through the gate."""
    table = []
    cases: tuple[tuple[str, Draw, float | None, tuple[float, ...]], ...] = (
        ("absolute relative error", draw_prices, None, (0.0025, 0.005, 0.01)),
        ("share within 10 %", draw_shares(0.07, 0.07), 1.0, (0.02, 0.03, 0.05)),
        ("neighbour purity", draw_purities, 1.0, (0.02, 0.03, 0.04)),
    )
    for metric, draw, span, margins in cases:
        deviation = float(draw(np.random.default_rng(SEED), 400_000).std())
        for margin in margins:
            for rows in (100, 300, 1000, 2500, 9000):
                random = np.random.default_rng([SEED, rows, round(margin * 10_000)])
                outcome: dict[str, list[Interval]] = {}
                for _ in range(sets):
                    losses = draw(random, rows)
                    rare = random.random(rows) < 0.01
                    for times in (0, 1, 2):
                        shifted, few = _worsen(losses, rare, margin * times, metric, random)
                        outcome.setdefault(f"shifted by {times}", []).append(estimate_loss(shifted, span))
                        if times:
                            outcome.setdefault(f"rare by {times}", []).append(estimate_loss(few, span))
                passed = {key: share([_high(one) <= margin for one in found]) for key, found in outcome.items()}
                harm = {key: share([_low(one) > margin for one in found]) for key, found in outcome.items()}
                table.append(
                    {
                        "metric": metric,
                        "deviation": round(deviation, 4),
                        "margin": margin,
                        "rows": rows,
                        "required_rows": required_rows(margin, deviation, span),
                        "equal_blocked": share([_high(one) > margin for one in outcome["shifted by 0"]]),
                        "at_margin_passed": passed["shifted by 1"],
                        "at_margin_rare_passed": passed["rare by 1"],
                        "twice_margin_passed": passed["shifted by 2"],
                        "twice_margin_rare_passed": passed["rare by 2"],
                        "harm_refuses_equal": harm["shifted by 0"],
                        "harm_refuses_twice_margin": harm["shifted by 2"],
                    }
                )
    return table


def _worsen(
    losses: NDArray[np.float64],
    rare: NDArray[np.bool_],
    loss: float,
    metric: str,
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the losses with a mean loss added, spread over the rows and of few rows; the mean before is 0."""
    if metric == "absolute relative error":
        return losses + loss, losses + rare * loss * 100
    few = np.where(random.random(len(losses)) < loss, 1.0, losses)
    if metric == "neighbour purity":
        return np.minimum(losses + 0.1 * (random.random(len(losses)) < 10 * loss), 1.0), few
    # A truth value loses all or nothing.
    return few, few


def _high(found: Interval) -> float:
    assert found.high is not None
    return found.high


def _low(found: Interval) -> float:
    assert found.low is not None
    return found.low


def measure_slices(sets: int) -> list[dict[str, Any]]:
    """Ask of 20 slices of an equal model whether any is refused."""
    table = []
    for rows in (50, 100, 400):
        random = np.random.default_rng([SEED, rows])
        refused: dict[str, list[bool]] = {}
        for _ in range(max(1, sets // 2)):
            found = [estimate_loss(draw_prices(random, rows)) for _ in range(20)]
            for limit in (0.0, 0.02):
                refused.setdefault(f"whole_interval at {limit:g}", []).append(any(_low(one) > limit for one in found))
            refused.setdefault("interval at 0.02", []).append(any(_high(one) > 0.02 for one in found))
        table.append({"rows": rows, "slices": 20, **{key: share(values) for key, values in refused.items()}})
    return table


def measure_trends(sets: int) -> dict[str, Any]:
    """Look for trends where there are none, and for slow declines that no step shows."""
    alarms = []
    for count in (4, 5, 6, 8, 11, 16):
        for name, draw in {
            "normal": lambda random, count: random.normal(size=count),
            "Student's t, 2 degrees": lambda random, count: random.standard_t(2, count),
            "neighbours correlated by 0.3": lambda random, count: _autoregress(random, count, 0.3),
            "neighbours correlated by 0.6": lambda random, count: _autoregress(random, count, 0.6),
        }.items():
            random = np.random.default_rng([SEED, count])
            found = [estimate_decline(draw(random, count)).low > 0 for _ in range(sets)]
            alarms.append({"versions": count, "values": name, "alarm": share(found)})
    random = np.random.default_rng(SEED)
    ever = []
    for _ in range(max(1, sets // 2)):
        values = random.normal(size=20)
        ever.append(any(estimate_decline(values[max(0, last - 10) : last + 1]).low > 0 for last in range(3, 20)))
    return {
        "alarms": alarms,
        "any_alarm_in_20_releases": share(ever),
        "declines": _measure_declines(sets),
    }


def _measure_declines(sets: int) -> list[dict[str, Any]]:
    """A metric that gets worse by one step a release; the gate of each step is 0.005 by paired losses of 9,000 rows."""
    table = []
    margin, releases, error = 0.005, 10, 0.055 / np.sqrt(9000)
    t = float(special.ndtri(0.975))
    for step in (0.0, 0.001, 0.002, 0.003):
        for noise in (0.0015, 0.003, 0.006):
            random = np.random.default_rng([SEED, round(step * 1e5), round(noise * 1e5)])
            by_step, by_trend, missed, estimates = [], [], [], []
            for _ in range(sets):
                losses = step + random.normal(0, error, releases)
                values = step * np.arange(releases + 1) + random.normal(0, noise, releases + 1)
                found = estimate_decline(values)
                by_step.append(bool((losses + t * error > margin).any()))
                by_trend.append(found.low > 0)
                missed.append(not by_step[-1] and by_trend[-1])
                estimates.append(found.total)
            table.append(
                {
                    "step": step,
                    "total": step * releases,
                    "noise_of_a_version": noise,
                    "any_step_refused": share(by_step),
                    "trend_found": share(by_trend),
                    "only_the_trend_found_it": share(missed),
                    "median_estimate": round(float(np.median(estimates)), 4),
                }
            )
    return table


def _autoregress(random: np.random.Generator, count: int, correlation: float) -> NDArray[np.float64]:
    values = random.normal(size=count)
    for place in range(1, count):
        values[place] = correlation * values[place - 1] + np.sqrt(1 - correlation**2) * values[place]
    return values


def measure_models(folder: Path, quick: bool) -> dict[str, Any]:
    """Compare refits and damaged models of real data with a champion."""
    found: dict[str, Any] = {}
    listings, terms = folder / "used_cars" / "autoscout24_germany.csv.gz", folder / "campaign_topics"
    found["vehicle_prices"] = _compare_prices(listings, quick) if listings.is_file() else "no data"
    terms = terms / "onet27_campaign_terms.csv.gz"
    found["ad_campaigns"] = _compare_campaigns(terms, quick) if terms.is_file() else "no data"
    return found


def _compare_prices(path: Path, quick: bool) -> list[dict[str, Any]]:
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.data.splitting import split
    from mlflywheel.models.vehicle_price import VehiclePrice

    raw = ingest(str(path), VehiclePrice.columns, {"power": "hp", "offer_type": "offerType"}).table
    table = VehiclePrice.prepare(raw.slice(0, 8000) if quick else raw, VehiclePrice.Config())
    parts = split(table, "random", 0.2, 0, id_column="listing_id")
    train = parts.train

    def fit(rows: pa.Table, seed: int = 0) -> RowScores:
        params = {"max_iter": 20 if quick else 150, "calibration_folds": 2, "scale_iter": 60, "seed": seed}
        return VehiclePrice.fit(rows, VehiclePrice.Params.model_validate(params)).score_rows(parts.holdout)

    champion, random = fit(train), np.random.default_rng(SEED)
    fifth = np.sort(random.choice(train.num_rows, train.num_rows // 5, replace=False))
    models = {
        "another seed": lambda: fit(train, 1),
        "a bootstrap resample": lambda: fit(train.take(pa.array(random.integers(0, train.num_rows, train.num_rows)))),
        "a fifth of the listings": lambda: fit(train.take(pa.array(fifth))),
        "without mileage": lambda: fit(train.drop_columns(["mileage_km"])),
    }
    return [_describe(name, make(), champion) for name, make in models.items()]


def _compare_campaigns(path: Path, quick: bool) -> list[dict[str, Any]]:
    from pyarrow import csv

    from mlflywheel.data.splitting import split
    from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
    from mlflywheel.models.topic_fingerprints.preparation import PrepareConfig, prepare_campaigns

    types = dict.fromkeys(["campaign_id", "term"], pa.string())
    raw = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
    table = prepare_campaigns(raw.select(["campaign_id", "term", "vertical"]), PrepareConfig()).combine_chunks()
    table = table.slice(0, 800) if quick else table
    parts = split(table, "random", 0.2, 0)
    train, params = parts.train, FitParams(num_topics=10 if quick else 50)

    def fit(rows: pa.Table) -> RowScores:
        # What goes into service looks all campaigns up, whatever its topics were learned from.
        return TopicFingerprints.fit(rows, params).extend(table).score_rows(parts.holdout)

    champion, random = fit(train), np.random.default_rng(SEED)
    alone = TopicFingerprints.fit(train, params).score_rows(parts.holdout)
    found = [_describe("the same, its catalogue without the held-out campaigns", alone, champion)]
    for number in range(3):
        drawn = np.sort(random.integers(0, train.num_rows, train.num_rows))
        found.append(_describe(f"a bootstrap resample, {number + 1}", fit(train.take(pa.array(drawn))), champion))
    return [*found, _describe("half of the words dropped", fit(_drop_words(train)), champion)]


def _drop_words(table: pa.Table) -> pa.Table:
    def keep(word: str) -> bool:
        return hashlib.blake2b(word.lower().encode()).digest()[0] >= 128

    terms = [
        [kept for term in own if (kept := " ".join(filter(keep, term.split())))] for own in table["terms"].to_pylist()
    ]
    weights = pa.array([[1.0] * len(own) for own in terms], pa.list_(pa.float32()))
    columns = {"terms": pa.array(terms, pa.list_(pa.string())), "weights": weights}
    return pa.table({name: columns.get(name, table[name]) for name in table.column_names})


def _describe(name: str, rows: RowScores, champion: RowScores) -> dict[str, Any]:
    measured = compare_with_champion(rows, champion, "champion@1", ChampionPlan(), []).measurements
    values = {
        found.metric: [None if number is None else round(number, 4) for number in (found.value, found.low, found.high)]
        for found in measured
    }
    return {"model": name, "rows": len(rows.ids), **values}


def main() -> None:
    """Run the parts, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="20 data sets and small models")
    parser.add_argument("--only", nargs="+", choices=["coverage", "non_inferiority", "slices", "trend", "models"])
    parser.add_argument("--data-folder", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sets = 20 if options.quick else options.data_sets
    parts: dict[str, Callable[[], Any]] = {
        "coverage": lambda: measure_coverage(sets),
        "non_inferiority": lambda: measure_non_inferiority(sets),
        "slices": lambda: measure_slices(sets),
        "trend": lambda: measure_trends(sets),
        "models": lambda: measure_models(options.data_folder, options.quick),
    }
    kept = (
        json.loads(options.out.read_text(encoding="utf-8"))["parts"] if options.only and options.out.is_file() else {}
    )
    for name, run in parts.items():
        if not options.only or name in options.only:
            started = time.monotonic()
            kept[name] = run()
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    document = {
        "command": "python -m benchmarks.evaluation.champion",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
        "versions": {"python": platform.python_version(), **{of: version(of) for of in ("numpy", "scipy")}},
        "parts": kept,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(kept)


def show(parts: Mapping[str, Any]) -> None:
    """Print the tables."""
    for row in parts.get("coverage", ()):
        above, below = row["true_loss_above"]["share"], row["true_loss_below"]["share"]
        print(
            f"{row['losses']:42} {row['rows']:5} {row['interval']:8} {above:.3f} {below:.3f} {row['median_width']:.4f}"
        )
    for row in parts.get("non_inferiority", ()):
        shares = " ".join(f"{key} {of['share']:.3f}" for key, of in row.items() if isinstance(of, dict))
        print(f"{row['metric']:24} {row['margin']:.4f} {row['rows']:5} (needs {row['required_rows']}) {shares}")
    for row in parts.get("slices", ()):
        print(row["rows"], {key: of["share"] for key, of in row.items() if isinstance(of, dict)})
    trend = parts.get("trend", {})
    for row in trend.get("alarms", ()):
        print(f"{row['versions']:3} {row['values']:30} {row['alarm']['share']:.3f}")
    print("any alarm in 20 releases", trend.get("any_alarm_in_20_releases"))
    for row in trend.get("declines", ()):
        shares = " ".join(f"{key} {of['share']:.3f}" for key, of in row.items() if isinstance(of, dict))
        print(f"step {row['step']} noise {row['noise_of_a_version']} {shares} estimate {row['median_estimate']}")
    for name, rows in parts.get("models", {}).items():
        for row in rows if isinstance(rows, list) else [rows]:
            print(name, row)


if __name__ == "__main__":
    main()
