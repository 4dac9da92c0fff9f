"""How often gates on gaps between groups refuse an unchanged model, and how often they find a planted regression.

    python -m benchmarks.evaluation.fairness                 # 1,000 data sets a scenario: about 7 minutes on one core
    python -m benchmarks.evaluation.fairness --only time     # one part of the results anew
    python -m benchmarks.evaluation.fairness --quick --out quick.json

Writes `benchmarks/evaluation/results/fairness.json` and prints its tables. Every scenario draws data sets from known
rates, so the true gap and the true rise are known. Four rules look at the same data sets:

- `intervals`: what this library does: the gate refuses if the whole interval of `mlflywheel.statistics.gaps` is above
  the limit;
- `percentile`, `basic`: the same gate on a bootstrap of the rows, 1,000 resamples, of the gap or of its rise;
- `value`: the gate on the measured value alone.

`fairlearn` is the interval that `MetricFrame` bootstraps itself, on fewer data sets since it takes a second for each;
it has no comparison with another model on the same rows. `refused` is how often a gate refuses, `truth_below` and
`truth_above` how often the true value lies below or above the interval, each with Wilson's 95 % interval.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlflywheel.evaluation.exposure import measure_exposure_by_group
from mlflywheel.evaluation.fairness import measure_fairness
from mlflywheel.evaluation.group_gaps import measure_criterion
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.evaluation.plan import FairnessPlan
from mlflywheel.models.contract import RowMetric, RowScores
from mlflywheel.statistics.gaps import (
    Gap,
    Means,
    PairedMeans,
    PairedShares,
    Shares,
    measure_gap,
    measure_ratio,
    measure_ratio_fall,
    measure_rise,
)
from mlflywheel.statistics.intervals import estimate_share

RESULTS = Path(__file__).parent / "results" / "fairness.json"
PARTS = ("within", "planted", "equalized_odds", "means", "exposure", "fairlearn", "time")
RESAMPLES = 1000
LIMIT = 0.05

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """Rates of the positive answer by group, now and with the champion.

    Args:
        name: What it is about.
        sizes: Rows of each group.
        new: Selection rate of each group.
        old: That of the champion.
        agreement: From 0 (both models answer independently) to 1 (as alike as their rates allow).
        limit: Of the gate.
    """

    name: str
    sizes: tuple[int, ...]
    new: tuple[float, ...]
    old: tuple[float, ...]
    agreement: float = 0.8
    limit: float = LIMIT


def spread(base: float, *changed: tuple[int, float], groups: int) -> tuple[float, ...]:
    """Return one rate for all groups, but for some."""
    rates = [base] * groups
    for place, rate in changed:
        rates[place] = rate
    return tuple(rates)


WITHIN = (
    Scenario("equal models, no gap, limit 0", (500, 500), (0.3, 0.3), (0.3, 0.3), limit=0.0),
    Scenario("equal models, no gap", (500, 500), (0.3, 0.3), (0.3, 0.3)),
    Scenario("equal models, no gap, 4 groups", (300,) * 4, (0.3,) * 4, (0.3,) * 4),
    Scenario("equal models, no gap, 8 groups", (200,) * 8, (0.3,) * 8, (0.3,) * 8),
    Scenario("equal models, no gap, 8 groups, limit 0", (200,) * 8, (0.3,) * 8, (0.3,) * 8, limit=0.0),
    Scenario("equal gap of 0.2, limit 0", (500, 500), (0.2, 0.4), (0.2, 0.4), limit=0.0),
    Scenario("equal gap of 0.2, 4 groups", (300,) * 4, (0.2, 0.3, 0.3, 0.4), (0.2, 0.3, 0.3, 0.4)),
    Scenario("equal gap of 0.2, other groups", (200,) * 8, (0.2,) * 4 + (0.4,) * 4, (0.2, *(0.3,) * 6, 0.4), 0.5, 0.0),
    Scenario("tiny groups", (40, 60), (0.3, 0.3), (0.3, 0.3)),
    Scenario("tiny groups, models that often disagree", (40, 60), (0.3, 0.3), (0.3, 0.3), 0.2),
    Scenario("tiny groups, rare answer", (60, 60), (0.04, 0.04), (0.04, 0.04)),
    Scenario("unbalanced", (5000, 60), (0.3, 0.3), (0.3, 0.3)),
    Scenario("unbalanced, 4 groups", (3000, 300, 100, 50), (0.5,) * 4, (0.5,) * 4),
    Scenario("rise exactly at the limit", (1000, 1000), (0.3, 0.4), (0.3, 0.35)),
    Scenario("rise exactly at the limit, 4 groups", (500,) * 4, (0.3, 0.35, 0.35, 0.4), (0.3, 0.35, 0.35, 0.35)),
)
PLANTED = (
    *(
        Scenario(
            f"{groups} groups of {size:,}, rise of {rise:g}",
            (size,) * groups,
            spread(0.4, (0, 0.4 - rise), groups=groups),
            (0.4,) * groups,
            0.9,
        )
        for groups, size, rise in (
            (2, 250, 0.2),
            (2, 500, 0.15),
            (2, 500, 0.2),
            (2, 1000, 0.15),
            (2, 1000, 0.2),
            (2, 2000, 0.15),
            (4, 500, 0.2),
            (4, 1000, 0.2),
            (8, 500, 0.2),
            (8, 1000, 0.2),
            (8, 500, 0.3),
        )
    ),
    Scenario("9,000 and 500 rows, rise of 0.2", (9000, 500), (0.4, 0.2), (0.4, 0.4), 0.9),
    Scenario("gap of 0.1 grown by 0.15, 2 groups of 1,000", (1000, 1000), (0.4, 0.15), (0.4, 0.3), 0.9),
)


def draw_cells(scenario: Scenario, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows by the answers of both models, shape (groups, 4): both, new only, old only, neither."""
    return np.array(
        [random.multinomial(size, row) for size, row in zip(scenario.sizes, list_probabilities(scenario), strict=True)]
    )


def list_probabilities(scenario: Scenario) -> Numbers:
    """Return the probabilities of the four cells in each group."""
    new, old = np.array(scenario.new), np.array(scenario.old)
    both = scenario.agreement * np.minimum(new, old) + (1 - scenario.agreement) * new * old
    return np.stack([both, new - both, old - both, 1 - new - old + both], axis=1).clip(0.0)


def resample_cells(cells: NDArray[np.int64], random: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Bootstrap the rows of each group, and return both models' shares, shape (resamples, groups) each."""
    sizes = cells.sum(axis=1)
    drawn = np.stack([random.multinomial(n, row / n, size=RESAMPLES) for row, n in zip(cells, sizes, strict=True)], 1)
    return (drawn[..., 0] + drawn[..., 1]) / sizes, (drawn[..., 0] + drawn[..., 2]) / sizes


class Tally:
    """Counts how often a rule refuses, and how often its interval misses the truth."""

    def __init__(self, truth: float, limit: float) -> None:
        self._truth, self._limit = truth, limit
        self._refused = self._below = self._above = self._number = 0

    def add(self, low: float, high: float | None = None) -> None:
        """Count one data set; a rule without an interval gives its value as the low end."""
        self._number += 1
        # Rounding must not make a truth at an end a miss.
        self._refused += low > self._limit + 1e-12
        self._below += low > self._truth + 1e-12
        self._above += high is not None and high < self._truth - 1e-12

    def report(self, interval: bool = True) -> dict[str, Any]:
        """Return shares with their intervals."""
        found = {"refused": self._share(self._refused)}
        if interval:
            found |= {"truth_below": self._share(self._below), "truth_above": self._share(self._above)}
            found["covered"] = self._share(self._number - self._below - self._above)
        return {"data_sets": self._number, **found}

    def _share(self, count: int) -> list[float]:
        share = estimate_share(count, self._number)
        return [round(float(part), 4) for part in (share.value, share.low, share.high) if part is not None]


def simulate(scenario: Scenario, data_sets: int, seed: int) -> dict[str, Any]:
    """Simulate the gap, the ratio, the rise and the fall of selection rates."""
    random = np.random.default_rng(seed)
    new, old = np.array(scenario.new), np.array(scenario.old)
    gap, rise = float(np.ptp(new)), float(np.ptp(new) - np.ptp(old))
    ratio, fall = float(new.min() / new.max()), float(old.min() / old.max() - new.min() / new.max())
    tallies = {
        "gap": {rule: Tally(gap, gap) for rule in ("intervals", "percentile", "basic", "value")},
        "rise": {rule: Tally(rise, scenario.limit) for rule in ("intervals", "percentile", "basic", "value")},
        # A ratio is refused below a limit: all its signs are turned round here.
        "ratio": {"intervals": Tally(-ratio, -ratio)},
        "fall": {"intervals": Tally(fall, max(fall, 0.0))},
    }
    for _ in range(data_sets):
        cells = draw_cells(scenario, random)
        paired = PairedShares(*cells.T)
        for metric, found in (("gap", measure_gap(paired.new)), ("rise", measure_rise(paired))):
            value, low, high = read(found)
            tallies[metric]["intervals"].add(low, high)
            tallies[metric]["value"].add(value)
        one, two = measure_ratio(paired.new), measure_ratio_fall(paired)
        if one.value is not None:
            _, low, high = read(one)
            tallies["ratio"]["intervals"].add(-high, -low)
        if two.value is not None:
            _, low, high = read(two)
            tallies["fall"]["intervals"].add(low, high)
        shares, before = resample_cells(cells, random)
        gaps = np.ptp(shares, axis=1)
        for metric, resampled, truth in (
            ("gap", gaps, float(np.ptp(paired.new_values))),
            ("rise", gaps - np.ptp(before, axis=1), float(np.ptp(paired.new_values) - np.ptp(paired.old_values))),
        ):
            low, high = (float(end) for end in np.quantile(resampled, [0.025, 0.975]))
            tallies[metric]["percentile"].add(low, high)
            tallies[metric]["basic"].add(2 * truth - high, 2 * truth - low)
    return {
        "scenario": scenario.name,
        "sizes": list(scenario.sizes),
        "new": list(scenario.new),
        "old": list(scenario.old),
        "limit": scenario.limit,
        "true_gap": round(gap, 4),
        "true_rise": round(rise, 4),
        **{
            metric: {rule: tally.report(rule != "value") for rule, tally in rules.items()}
            for metric, rules in tallies.items()
        },
    }


def read(found: Gap) -> tuple[float, float, float]:
    """Return value and ends of a gap that is defined."""
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high


def simulate_odds(groups: int, size: int, planted: float, data_sets: int, seed: int) -> dict[str, Any]:
    """Simulate equalized odds: rates of true and false positives, of which one group loses some true ones."""
    random = np.random.default_rng(seed)
    names = ["true"] * groups + ["false"] * groups
    old = [0.7] * groups + [0.2] * groups
    new = list(old)
    new[0] -= planted
    sizes = [int(size * 0.4)] * groups + [size - int(size * 0.4)] * groups
    scenario = Scenario(" ".join(names), tuple(sizes), tuple(new), tuple(old), 0.9)
    families = [range(groups), range(groups, 2 * groups)]
    gap, rise = Tally(planted, LIMIT), Tally(planted, LIMIT)
    for _ in range(data_sets):
        paired = PairedShares(*draw_cells(scenario, random).T)
        gap.add(*read(measure_gap(paired.new, families=families))[1:])
        rise.add(*read(measure_rise(paired, families=families))[1:])
    name = f"{groups} groups of {size:,}, true positive rate {planted:g} lower in one"
    return {"scenario": name, "true_gap": planted, "gap": gap.report(), "rise": rise.report()}


def simulate_means(groups: int, size: int, planted: float, skewed: bool, data_sets: int, seed: int) -> dict[str, Any]:
    """Simulate the mean error of rows, whose spread is 1, and the champion's, of which half the noise is the same."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), size)
    gap, rise = Tally(planted, planted), Tally(planted, 0.1)
    for _ in range(data_sets):
        noise = random.normal(size=(3, len(codes)))
        parts = np.sqrt(0.5) * (noise[:2] + noise[2])
        if skewed:
            # Log-normal with a mean of 1 and a standard deviation of 1.
            sigma = np.sqrt(np.log(2.0))
            parts = np.exp(sigma * parts - sigma**2 / 2)
        new = parts[0] + np.where(codes == 0, planted, 0.0)
        gap.add(*read(measure_gap(Means(new, codes, groups)))[1:])
        rise.add(*read(measure_rise(PairedMeans(new, parts[1], codes, groups)))[1:])
    shape = "log-normal" if skewed else "normal"
    name = f"{shape}, {groups} groups of {size:,}, mean {planted:g} standard deviations higher in one"
    return {"scenario": name, "true_gap": planted, "gap": gap.report(), "rise": rise.report()}


def simulate_exposure(queries: int, planted: float, data_sets: int, seed: int) -> dict[str, Any]:
    """Simulate lists of 5 from a catalogue of three groups, whose entries resemble each other within a list."""
    random = np.random.default_rng(seed)
    catalogue = pa.table({"id": [str(n) for n in range(300)], "tier": ["a"] * 100 + ["b"] * 100 + ["c"] * 100})
    old = np.array([1, 1, 1]) / 3
    new = old + np.array([planted, -planted, 0.0]) / 3
    grouping = Grouping(name="tier")
    gap, rise = Tally(2 * planted, 0.2), Tally(2 * planted, 0.2)
    for number in range(data_sets):
        taste = np.stack([random.dirichlet(6 * old, queries), random.dirichlet(6 * new, queries)])
        groups = (
            (random.random((2, queries, 5))[..., None] > np.cumsum(taste, axis=-1)[:, :, None, :]).sum(-1).clip(0, 2)
        )
        entries = groups * 100 + random.integers(0, 100, size=groups.shape)
        ids = pa.array([str(n) for n in range(queries)])
        both = []
        for lists in entries:
            answers = pa.array([[str(n) for n in row] for row in lists.tolist()], pa.list_(pa.string()))
            metric = RowMetric("purity", np.zeros(queries), "higher", (0.0, 1.0))
            both.append(RowScores("recommendation", ids, pa.table({"x": ids}), (metric,), answers, catalogue=catalogue))
        _, columns, criteria = measure_exposure_by_group(both[1], [grouping], 50, 0.95, both[0], number)
        found = {m.metric: m for m in measure_criterion(criteria[0], columns, 0.95, "") if m.slice != "all"}
        for name, tally in (("exposure_gap", gap), ("exposure_gap_rise", rise)):
            one = found[name]
            assert one.low is not None
            tally.add(one.low, one.high)
    name = f"{queries} lists, three groups, gap of ratios {2 * planted:g}"
    return {"scenario": name, "true_gap": 2 * planted, "gap": gap.report(), "rise": rise.report()}


def compare_with_fairlearn(scenario: Scenario, data_sets: int, resamples: int, seed: int) -> dict[str, Any]:
    """Hold fairlearn's own bootstrap of the gap against ours, on the same data sets."""
    from fairlearn.metrics import MetricFrame, selection_rate

    random = np.random.default_rng(seed)
    truth = float(np.ptp(scenario.new))
    tallies = {"intervals": Tally(truth, truth), "fairlearn": Tally(truth, truth)}
    seconds = {"intervals": 0.0, "fairlearn": 0.0}
    groups = np.repeat([f"g{place}" for place in range(len(scenario.sizes))], scenario.sizes)
    for number in range(data_sets):
        decided = np.concatenate(
            [random.random(n) < rate for n, rate in zip(scenario.sizes, scenario.new, strict=True)]
        ).astype(int)
        start = time.process_time()
        counts = np.array([decided[groups == name].sum() for name in np.unique(groups)])
        _, low, high = read(measure_gap(Shares(counts, scenario.sizes)))
        seconds["intervals"] += time.process_time() - start
        tallies["intervals"].add(low, high)
        start = time.process_time()
        frame = MetricFrame(
            metrics=selection_rate,
            y_true=decided,
            y_pred=decided,
            sensitive_features=groups,
            n_boot=resamples,
            ci_quantiles=[0.025, 0.975],
            random_state=number,
        )
        ends = frame.difference_ci(method="between_groups")
        seconds["fairlearn"] += time.process_time() - start
        tallies["fairlearn"].add(float(ends[0]), float(ends[1]))
    return {
        "scenario": scenario.name,
        "true_gap": truth,
        "resamples": resamples,
        **{
            rule: {**tally.report(), "cpu_seconds_a_data_set": round(seconds[rule] / data_sets, 5)}
            for rule, tally in tallies.items()
        },
    }


def time_a_measurement(rows: int, seed: int) -> dict[str, Any]:
    """Return the CPU seconds of all measurements of a classification with a champion, and of fairlearn's bootstrap."""
    from fairlearn.metrics import MetricFrame, selection_rate

    random = np.random.default_rng(seed)
    truth = (random.random(rows) < 0.4).astype(np.float64)
    names = pa.table({"a": random.choice(list("xyz"), rows).tolist(), "b": random.choice(list("uv"), rows).tolist()})
    ids = pa.array([str(n) for n in range(rows)])

    def score(noise: Numbers) -> RowScores:
        probability = np.clip(0.3 + 0.4 * truth + 0.2 * noise, 0.0, 1.0)
        metric = RowMetric("absolute_error", np.abs(probability - truth), "lower", (0.0, 1.0))
        answers = pa.array(np.where(probability >= 0.5, "yes", "no").tolist())
        return RowScores("classification", ids, names, (metric,), answers, truth, probability)

    new, old = score(random.normal(size=rows)), score(random.normal(size=rows))
    plan = FairnessPlan.parse({"groups": [{"name": "a"}, {"name": "b"}]}, "plan")
    measure_fairness(new, plan, old)
    start = time.process_time()
    found = measure_fairness(new, plan, old)
    ours = time.process_time() - start
    resamples = 5
    start = time.process_time()
    MetricFrame(
        metrics=selection_rate,
        y_true=truth.astype(int),
        y_pred=(np.asarray(new.probability) >= 0.5).astype(int),
        sensitive_features=np.asarray(names["a"].to_pylist()),
        n_boot=resamples,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    return {
        "rows": rows,
        "measurements": len(found.measurements),
        "cpu_seconds_of_all": round(ours, 3),
        "fairlearn_cpu_seconds_a_resample_of_one_metric": round((time.process_time() - start) / resamples, 3),
    }


def run(data_sets: int, fairlearn_data_sets: int, rows: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run everything, or some parts, and return the results."""
    odds = ((2, 500, 0.0), (4, 500, 0.0), (2, 3000, 0.2), (4, 3000, 0.2))
    means = (
        (2, 60, 0.0, False),
        (2, 60, 0.0, True),
        (4, 200, 0.0, True),
        (8, 200, 0.0, True),
        (2, 500, 0.5, True),
        (4, 500, 0.5, True),
    )
    exposures = ((100, 0.0), (400, 0.0), (1000, 0.35))
    parts: list[tuple[str, list[Callable[[], dict[str, Any]]]]] = [
        ("within", [partial(simulate, one, data_sets, number) for number, one in enumerate(WITHIN)]),
        ("planted", [partial(simulate, one, data_sets, 100 + number) for number, one in enumerate(PLANTED)]),
        ("equalized_odds", [partial(simulate_odds, *one, data_sets, 200 + number) for number, one in enumerate(odds)]),
        ("means", [partial(simulate_means, *one, data_sets, 300 + number) for number, one in enumerate(means)]),
        (
            "exposure",
            [partial(simulate_exposure, *one, data_sets, 400 + number) for number, one in enumerate(exposures)],
        ),
        (
            "fairlearn",
            [partial(compare_with_fairlearn, WITHIN[at], fairlearn_data_sets, 100, 500 + at) for at in (1, 3, 8)],
        ),
        ("time", [partial(time_a_measurement, rows, 600)]),
    ]
    results: dict[str, Any] = {
        "command": "python -m benchmarks.evaluation.fairness",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("numpy", "scipy", "fairlearn")},
        "data_sets": data_sets,
        "bootstrap_resamples": RESAMPLES,
        "confidence": 0.95,
    }
    for name, calls in parts:
        if only and name not in only:
            continue
        start = time.perf_counter()
        results[name] = [call() for call in calls]
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return results


def format_tables(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""

    def share(found: Mapping[str, Any], key: str) -> str:
        value, low, high = found[key]
        return f"{value:.1%} ({low:.1%} to {high:.1%})"

    lines = [
        "| within the limit | true rise | limit | intervals | percentile | basic | value |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for part in ("within", "planted"):
        if part == "planted":
            lines += ["", "| planted | true rise | limit | intervals | percentile | basic | value |"]
            lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for one in results[part]:
            rules = [share(one["rise"][rule], "refused") for rule in ("intervals", "percentile", "basic", "value")]
            lines.append(f"| {one['scenario']} | {one['true_rise']:g} | {one['limit']:g} | {' | '.join(rules)} |")
    lines += ["", "| interval holds the truth | gap | gap, percentile | gap, basic | ratio | rise | fall |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for one in (*results["within"], *results["planted"]):
        parts = [("gap", "intervals"), ("gap", "percentile"), ("gap", "basic"), ("ratio", "intervals")]
        parts += [("rise", "intervals"), ("fall", "intervals")]
        cells = [f"{one[metric][rule]['covered'][0]:.1%}" for metric, rule in parts]
        lines.append(f"| {one['scenario']} | {' | '.join(cells)} |")
    lines += ["", "| other measurements | gap: truth below | gap: covered | rise: refused | rise: covered |"]
    lines += ["|---|--:|--:|--:|--:|"]
    for part in ("equalized_odds", "means", "exposure"):
        for one in results[part]:
            cells = [share(one["gap"], "truth_below"), share(one["gap"], "covered")]
            cells += [share(one["rise"], "refused"), share(one["rise"], "covered")]
            lines.append(f"| {part.replace('_', ' ')}: {one['scenario']} | {' | '.join(cells)} |")
    lines += ["", "| gap's interval lies above the truth | intervals | fairlearn | seconds each |", "|---|--:|--:|--:|"]
    for one in results["fairlearn"]:
        seconds = [f"{one[rule]['cpu_seconds_a_data_set']:.2g}" for rule in ("intervals", "fairlearn")]
        cells = [share(one[rule], "truth_below") for rule in ("intervals", "fairlearn")]
        lines.append(f"| {one['scenario']} | {' | '.join(cells)} | {' and '.join(seconds)} |")
    for one in results["time"]:
        lines += [
            "",
            f"{one['rows']:,} rows: {one['measurements']} measurements in {one['cpu_seconds_of_all']} CPU seconds; "
            f"fairlearn {one['fairlearn_cpu_seconds_a_resample_of_one_metric']} a resample of one metric.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 data sets: does it run?")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="these parts; others stay as they are")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    results = run(20, 2, 2000, asked.only) if asked.quick else run(1000, 40, 100_000, asked.only)
    if asked.only:
        results = {**json.loads(asked.out.read_text(encoding="utf-8")), **results}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(format_tables(results))


if __name__ == "__main__":
    main()
