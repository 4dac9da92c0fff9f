"""How often the search for weak slices is wrong where nothing is weak, and how often it finds what is.

    python -m benchmarks.evaluation.slices                                everything: about 15 minutes on 2 cores
    python -m benchmarks.evaluation.slices --data-sets 20 --planted 5 --out x.json    does it run?
    python -m benchmarks.evaluation.slices --only speed vehicle_prices    some parts again; the others are kept

Each data set has 2,000 rows and 8 attributes: 5 of text, one of them a near copy of another, and 3 of numbers, one of
which depends on a text. That makes about 1,650 slices of 100 rows or more. Six methods look at the same data:

- `search`: what `discover_slices` does: values clipped at their 1 and 99 % quantiles, Welch's t, corrected by the
  largest t of permuted values. 99 permutations instead of 999, for time: the level is exact with either, and the power
  a little lower.
- `unclipped`: the same without clipping, and `ranks`: the same on ranks. Where nothing depends on the attributes their
  level is that of `search` by construction, so it is measured only where the spread or the skew does.
- `bonferroni`: Welch's t test of every slice, p below 5 % divided by the number of slices.
- `naive`: Welch's t test of every slice, p below 5 %.
- `split`: the 10 slices with the largest t on one half, tested on the other half by Welch's t, p below 5 % / 10.

False alarms: losses do not depend on the attributes in their mean, and a method reports something. Detection: losses of
one slice are larger by a number of standard deviations, and something is reported that shares at least half its rows
with it. `others` counts the reported slices that do not. Intervals: how often that of the reported slice with the
largest effect holds its true effect, on unclipped losses; `naive` is plus or minus 1.96 standard errors. Shares have
Wilson's 95 % intervals. Beside that: the cost of one search, and what is found on the real listings where
`../shared/data/used_cars/autoscout24_germany.csv.gz` lies beside the checkout.
"""

import argparse
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import rankdata

from mlflywheel.evaluation.conditions import Conditions, divide_columns
from mlflywheel.evaluation.discovery import choose_slices, discover_slices
from mlflywheel.evaluation.plan import DiscoveryPlan
from mlflywheel.evaluation.slice_search import Search, search_slices, select_rows
from mlflywheel.models.contract import RowMetric, RowScores
from mlflywheel.statistics.intervals import estimate_share

ROWS = 2_000
MINIMUM = 100
PERMUTATIONS = 99
TRANSFORMED = ("search", "unclipped", "ranks")
METHODS = (*TRANSFORMED, "split", "bonferroni", "naive")
ALPHA = 0.05
RESULTS = Path(__file__).parent / "results" / "slices.json"
LISTINGS = Path(__file__).resolve().parents[3] / "shared/data/used_cars/autoscout24_germany.csv.gz"
PARTS = ("false_alarms", "detections", "speed", "vehicle_prices")

Floats = NDArray[np.float64]
Random = np.random.Generator


def draw_attributes(random: Random) -> pa.Table:
    """Return 2,000 rows: texts of 2 to 12 values, skewed and correlated numbers, missing values."""
    fuel = random.choice(["gas", "diesel", "hybrid", "electric"], ROWS, p=[0.5, 0.3, 0.1, 0.1])
    engine = np.where(random.random(ROWS) < 0.97, fuel, "gas")
    make = np.minimum(random.geometric(0.2, ROWS), 12)
    region = random.integers(0, 5, ROWS)
    year = 2022 - np.minimum(random.geometric(0.2, ROWS), 20)
    power = np.where(fuel == "electric", 200.0, 100.0) * np.exp(0.4 * random.standard_normal(ROWS))
    mileage = random.lognormal(10.5, 0.8, ROWS)
    power[random.random(ROWS) < 0.06] = np.nan
    return pa.table(
        {
            "fuel": fuel.tolist(),
            "engine": engine.tolist(),
            "make": [f"make {value}" for value in make],
            "region": [f"region {value}" for value in region],
            "gear": random.choice(["manual", "automatic"], ROWS).tolist(),
            "year": year,
            "power": power,
            "mileage": mileage,
        }
    )


def _column(attributes: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(attributes[name].to_pylist())


def _spread_unevenly(random: Random, attributes: pa.Table) -> Floats:
    return random.standard_normal(ROWS) * np.where(_column(attributes, "fuel") == "electric", 3.0, 1.0)


def _skew_unevenly(random: Random, attributes: pa.Table) -> Floats:
    return np.where(
        _column(attributes, "fuel") == "electric", random.gamma(0.25, 4.0, ROWS), random.exponential(1.0, ROWS)
    )


#: Losses without a weak slice. In the last two a tenth of the rows, one value of a text, has the mean of all others and
#: another distribution: three times the spread; or many small losses and a few large ones, of twice the spread.
NULLS: Mapping[str, Callable[[Random, pa.Table], Floats]] = {
    "normal": lambda random, attributes: random.standard_normal(ROWS),
    "lognormal, sigma 1": lambda random, attributes: random.lognormal(0.0, 1.0, ROWS),
    "absolute Student, 2.5 degrees": lambda random, attributes: np.abs(random.standard_t(2.5, ROWS)),
    "0 or 1, 5 % ones": lambda random, attributes: (random.random(ROWS) < 0.05).astype(np.float64),
    "normal, uneven spread": _spread_unevenly,
    "gamma, uneven skew": _skew_unevenly,
}

#: Planted slices, by about how many of the rows they hold.
PLANTS: Mapping[str, Callable[[pa.Table], NDArray[np.bool_]]] = {
    "one value, 10 %": lambda attributes: _column(attributes, "fuel") == "hybrid",
    "two values, 10 %": lambda attributes: (
        (_column(attributes, "region") == "region 1") & (_column(attributes, "gear") == "manual")
    ),
    "value and band, 6 %": lambda attributes: (
        (_column(attributes, "fuel") == "diesel") & (_column(attributes, "mileage") > 75_000)
    ),
}
#: Of the losses' standard deviation.
EFFECTS = (0.3, 0.5, 0.8)
SHAPES: Mapping[str, Callable[[Random], Floats]] = {
    "normal": lambda random: random.standard_normal(ROWS),
    "lognormal, sigma 1": lambda random: random.lognormal(0.0, 1.0, ROWS) / np.sqrt((np.e - 1) * np.e),
}


def _clip(losses: Floats) -> Floats:
    # A metric with bounds, such as 0 or 1, is not clipped.
    if len(np.unique(losses)) == 2:
        return losses
    return np.clip(losses, *np.quantile(losses, [0.01, 0.99]))


def _test(search: Search, losses: Floats, chosen: NDArray[np.int64] | None = None) -> Floats:
    """Return one-sided p values of Welch's t test, as anybody would compute them."""
    scaled = (losses - losses.mean()) / losses.std()
    at = np.arange(len(search.count)) if chosen is None else chosen
    count, total, squares, rows = search.count[at], search.total[at], search.squares[at], len(scaled)
    rest = rows - count
    inside, outside = total / count, -total / rest
    first = (squares - count * inside**2) / (count - 1) / count
    second = (rows - squares - rest * outside**2) / (rest - 1) / rest
    freedom = (first + second) ** 2 / (first**2 / (count - 1) + second**2 / (rest - 1))
    return np.asarray(stdtr(freedom, -(inside - outside) / np.sqrt(first + second)))


def _split(columns: list[Conditions], losses: Floats, random: Random) -> list[list[int]]:
    """Choose slices on half of the rows, and return the conditions of those that the other half confirms."""
    order = random.permutation(ROWS)
    halves = []
    for half in np.array_split(order, 2):
        part = [Conditions(one.column, one.atoms[half], one.names, one.holds) for one in columns]
        # Slices are the same in both halves only by their conditions, so the count is asked of the whole.
        halves.append((search_slices(part, losses[half], MINIMUM // 4, permutations=0), losses[half]))
    (first, _), (second, values) = halves
    candidates = first.parts[np.argsort(-first.statistic, kind="stable")[:10]].tolist()
    place = {tuple(parts): at for at, parts in enumerate(second.parts.tolist())}
    known = [parts for parts in candidates if tuple(parts) in place]
    p = _test(second, values, np.array([place[tuple(parts)] for parts in known], dtype=np.int64))
    return [parts for parts, value in zip(known, p, strict=True) if value <= ALPHA / 10]


def _report(
    columns: list[Conditions], losses: Floats, random: Random, seed: int, *, permuted: tuple[str, ...]
) -> tuple[dict[str, list[list[int]]], Search]:
    """Return what every method reports, as conditions, and the unclipped search."""
    plan = DiscoveryPlan(minimum_count=MINIMUM, most=1, alpha=ALPHA)
    reported: dict[str, list[list[int]]] = {}
    transforms = {"search": _clip, "unclipped": np.asarray, "ranks": rankdata}
    for name in permuted:
        values = transforms[name](losses)
        search = search_slices(columns, values, MINIMUM, permutations=PERMUTATIONS, seed=seed)
        chosen = [at for at in choose_slices(search, columns, values, plan) if search.p_value[at] <= ALPHA]
        chosen.sort(key=lambda at: -search.difference[at])
        reported[name] = search.parts[np.array(chosen, dtype=np.int64)].tolist()
    plain = search_slices(columns, losses, MINIMUM, permutations=0)
    p = _test(plain, losses)
    reported["bonferroni"] = plain.parts[p <= ALPHA / len(p)].tolist()
    reported["naive"] = plain.parts[p <= ALPHA].tolist()
    reported["split"] = _split(columns, losses, random)
    return reported, plain


def alarm_once(case: str, seed: int) -> dict[str, Any]:
    """Draw one data set without a weak slice, and return which methods report one."""
    random = np.random.default_rng([seed, sorted(NULLS).index(case)])
    attributes = draw_attributes(random)
    columns = divide_columns(attributes, attributes.column_names, MINIMUM)
    losses = NULLS[case](random, attributes)
    reported, search = _report(columns, losses, random, seed, permuted=TRANSFORMED if "uneven" in case else ("search",))
    return {"slices": len(search.count), **{method: bool(found) for method, found in reported.items()}}


def detect_once(plant: str, shape: str, effect: float, seed: int) -> dict[str, Any]:
    """Plant one weak slice, and return which methods find it, what else they report, and how true intervals are."""
    random = np.random.default_rng([seed, sorted(PLANTS).index(plant), sorted(SHAPES).index(shape)])
    attributes = draw_attributes(random)
    columns = divide_columns(attributes, attributes.column_names, MINIMUM)
    planted = PLANTS[plant](attributes)
    losses = SHAPES[shape](random) + effect * planted
    reported, _ = _report(columns, losses, random, seed, permuted=TRANSFORMED)
    answer: dict[str, Any] = {}
    for method, found in reported.items():
        shared = [_overlap(select_rows(columns, parts), planted) >= 0.5 for parts in found]
        answer[method] = {"found": any(shared), "first": bool(shared and shared[0]), "others": shared.count(False)}
    answer["intervals"] = _cover(columns, losses, planted, effect, reported["unclipped"], seed)
    return answer


def _overlap(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    return float((left & right).sum() / (left | right).sum())


def _cover(
    columns: list[Conditions],
    losses: Floats,
    planted: NDArray[np.bool_],
    effect: float,
    reported: list[list[int]],
    seed: int,
) -> dict[str, bool] | None:
    """Return whether the interval of the slice with the largest effect of those reported holds its true effect."""
    if not reported:
        return None
    search = search_slices(columns, losses, MINIMUM, permutations=PERMUTATIONS, seed=seed)
    inside = select_rows(columns, reported[0])
    true = effect * (planted[inside].mean() - planted[~inside].mean())
    place = int(np.flatnonzero((search.parts == reported[0]).all(axis=1))[0])
    scale = losses.std()
    value, error = search.difference[place] * scale, search.error[place] * scale
    below, above = search.find_limits(ALPHA)
    return {
        "simultaneous": bool(value - below * error <= true <= value + above * error),
        "naive": bool(abs(value - true) <= 1.96 * error),
    }


def _share(flags: list[bool]) -> dict[str, float | int | None]:
    share = estimate_share(sum(flags), len(flags))
    return {"share": share.value, "low": share.low, "high": share.high, "data_sets": share.count}


def measure_alarms(data_sets: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Return how often each method reports something where nothing is weak."""
    alarms: dict[str, Any] = {}
    for case in NULLS:
        found = list(pool.map(partial(alarm_once, case), range(data_sets), chunksize=5))
        methods = [method for method in METHODS if method in found[0]]
        alarms[case] = {method: _share([one[method] for one in found]) for method in methods}
        alarms[case]["slices"] = float(np.mean([one["slices"] for one in found]))
        print(case, {method: alarms[case][method]["share"] for method in methods}, flush=True)
    return alarms


def measure_detections(data_sets: int, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Return how often each method finds a planted slice, for each size, effect and shape of losses."""
    detections: list[dict[str, Any]] = []
    for shape, plant, effect in product(SHAPES, PLANTS, EFFECTS):
        answers = list(pool.map(partial(detect_once, plant, shape, effect), range(data_sets), chunksize=5))
        row: dict[str, Any] = {"losses": shape, "slice": plant, "effect": effect}
        for method in METHODS:
            row[method] = {
                **_share([one[method]["found"] for one in answers]),
                "others": float(np.mean([one[method]["others"] for one in answers])),
            }
        row["search"]["ranked_first"] = _share([one["search"]["first"] for one in answers])
        covered = [one["intervals"] for one in answers if one["intervals"] is not None]
        row["intervals"] = {kind: _share([one[kind] for one in covered]) for kind in ("simultaneous", "naive")}
        detections.append(row)
        print(shape, plant, effect, {method: row[method]["share"] for method in METHODS}, flush=True)
    return detections


def measure_speed() -> dict[str, Any]:
    """Return what one search of 10,000 rows and 15 attributes costs with all 999 permutations, the best of three."""
    random = np.random.default_rng(0)
    rows = 10_000
    numbers = {f"number {at}": random.lognormal(8.0, 1.0, rows) for at in range(10)}
    texts = {f"text {at}": [f"v{value}" for value in np.minimum(random.geometric(0.25, rows), 12)] for at in range(5)}
    values = random.lognormal(0.0, 1.0, rows)
    table = pa.table({**numbers, **texts})
    ids, answers = pa.array([str(row) for row in range(rows)]), pa.array(values)
    scores = RowScores("regression", ids, table, (RowMetric("loss", values),), answers)
    costs = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        evaluation = discover_slices(scores, DiscoveryPlan(), 0)
        costs.append((time.perf_counter() - wall, time.process_time() - cpu))
    tracemalloc.start()
    discover_slices(scores, DiscoveryPlan(), 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "rows": rows,
        "attributes": 15,
        "looked_at": evaluation.measurements[0].note,
        "wall_seconds": round(min(wall for wall, _ in costs), 2),
        "cpu_seconds": round(min(cpu for _, cpu in costs), 2),
        "peak_mib": round(peak / 2**20),
    }


def measure_prices() -> list[dict[str, Any]] | None:
    """Return what is found on real listings, held out by a fifth and by half; None where the file is not there."""
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.data.splitting import split
    from mlflywheel.models.vehicle_price import VehiclePrice

    if not LISTINGS.is_file():
        return None
    raw = ingest(str(LISTINGS), VehiclePrice.columns, {"power": "hp", "offer_type": "offerType"}).table
    table = VehiclePrice.prepare(raw, VehiclePrice.Config())
    found = []
    for share in (0.2, 0.5):
        parts = split(table, "random", share, 0, id_column="listing_id")
        model = VehiclePrice.fit(parts.train, VehiclePrice.Params())
        scores = model.score_rows(parts.holdout)
        start = time.process_time()
        evaluation = discover_slices(scores, DiscoveryPlan(most=30), 0)
        found.append(
            {
                "holdout_share": share,
                "rows": len(scores.ids),
                "search_cpu_seconds": round(time.process_time() - start, 2),
                "measurements": [asdict(measurement) for measurement in evaluation.measurements],
            }
        )
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=1_000, help="for each case without a weak slice")
    parser.add_argument("--planted", type=int, default=150, help="for each planted slice, effect and shape of losses")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these, and keep the others")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    measured: dict[str, Any] = {name: kept[name] for name in PARTS if name in kept}
    with ProcessPoolExecutor(arguments.workers) as pool:
        if "false_alarms" in arguments.only:
            measured["false_alarms"] = measure_alarms(arguments.data_sets, pool)
        if "detections" in arguments.only:
            measured["detections"] = measure_detections(arguments.planted, pool)
    if "speed" in arguments.only:
        measured["speed"] = measure_speed()
    if "vehicle_prices" in arguments.only:
        measured["vehicle_prices"] = measure_prices()
    document = {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.evaluation.slices",
        "rows": ROWS,
        "minimum_count": MINIMUM,
        "permutations": PERMUTATIONS,
        "alpha": ALPHA,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("mlflywheel", "numpy", "scipy")},
        **measured,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
