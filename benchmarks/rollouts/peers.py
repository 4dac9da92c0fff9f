"""Rules that others roll out by, on the same simulated traffic as the judge.

Only their decisions are rebuilt, from their documentation and source: weights, checks and what counts as failed.

**Flagger 1.44.0** (docs/gitbook/usage/how-it-works.md and metrics.md, pkg/controller/scheduler.go). Every `interval` it
measures the candidate's success rate and p99 over the last interval. A check that passes raises the weight by
`stepWeight`, or to the next of `stepWeights`, and promotes where it was at `maxWeight`; one that fails, as one without
traffic does, leaves the weight and is counted. The count is never taken back; at the first tick with `threshold` failed
checks it rolls back, which is an interval after the last of them.

**Argo Rollouts 1.10.0-rc1** (docs/features/analysis.md, analysis/analysis.go, utils/evaluate/evaluate.go). Steps of
setWeight and pause; a background analysis measures every `interval`. A measurement whose `successCondition` does not
hold is failed, also where the result is NaN for want of traffic; more than `failureLimit` failed ones abort. At the
end of the steps the candidate is promoted.

Both compare with fixed thresholds in their documentation. Both allow queries of one's own, so that a candidate can be
compared with the stable version: here the difference of the error rates, and the ratio of the p99s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.decisions.canary.simulation import (
    BOUNDS_SECONDS,
    DrawnWindow,
    Traffic,
    TrafficSource,
    find_scenario,
)

Floats = NDArray[np.float64]
_NEVER = float("inf")
_PART_SECONDS = 30.0


@dataclass(frozen=True)
class Rule:
    """Fixed steps with thresholds.

    Args:
        name: In tables.
        weights: Of the candidate, in percent, ascending.
        checks_a_weight: Checks before the next weight.
        unchecked_weights: How many weights pass without checks.
        interval_seconds: Between two checks, and what each looks back on.
        tolerated: Failed checks without a rollback.
        halts: Whether a failed check has to be repeated before the next weight.
        late_intervals: How long after the last failed check the rollback comes.
        is_relative: Whether thresholds are the candidate's difference of error rates and ratio of p99s to the stable
            version's, or the candidate's own values.
        error_threshold: The highest error rate, or difference, that passes.
        latency_threshold: The highest p99 in seconds, or ratio, that passes.
    """

    name: str
    weights: tuple[float, ...]
    checks_a_weight: int
    unchecked_weights: int
    interval_seconds: float
    tolerated: int
    halts: bool
    late_intervals: int
    is_relative: bool = False
    error_threshold: float = _NEVER
    latency_threshold: float = _NEVER

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "weights": list(self.weights),
            "checks_a_weight": self.checks_a_weight,
            "interval_seconds": self.interval_seconds,
            "tolerated": self.tolerated,
            "is_relative": self.is_relative,
            "error_threshold": self.error_threshold,
            "latency_threshold": self.latency_threshold,
        }


FLAGGER = Rule("Flagger", tuple(range(5, 51, 5)), 1, 0, 60, 9, True, 1, False, 0.01, 0.5)
ARGO = Rule("Argo Rollouts", (20, 40, 60, 80), 2, 1, 300, 3, False, 0, False, 0.05)
# With the steps of our default policy, and about its 18 minutes.
FLAGGER_OUR_STEPS = replace(FLAGGER, weights=(1, 5, 25, 50), interval_seconds=300)
ARGO_OUR_STEPS = replace(ARGO, weights=(1, 5, 25, 50), checks_a_weight=5, unchecked_weights=0, interval_seconds=60)


@dataclass(frozen=True)
class Outcome:
    """What a rule did: arrays of shape (runs,)."""

    rolled_back: NDArray[np.bool_]
    requests_exposed: Floats
    minutes: Floats

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "rollback_rate": float(self.rolled_back.mean()),
            "promote_rate": float((~self.rolled_back).mean()),
            "median_requests_exposed": float(np.median(self.requests_exposed)),
            "p95_requests_exposed": float(np.quantile(self.requests_exposed, 0.95, method="inverted_cdf")),
            "median_minutes": float(np.median(self.minutes)),
        }


@dataclass(frozen=True)
class Checks:
    """What checks measured: the statistics that thresholds speak of, and the candidate's requests."""

    errors: Floats
    latency: Floats
    requests: Floats


Measure = Callable[[NDArray[np.int64], NDArray[np.int64], Floats, NDArray[np.bool_]], Checks]


def estimate_p99(counts: NDArray[np.int64]) -> Floats:
    """Return the p99 as Prometheus' histogram_quantile does: linear inside a bucket, NaN without requests."""
    cumulated = np.cumsum(counts, axis=-1)
    total = cumulated[..., -1:]
    rank = 0.99 * total
    place = (cumulated < rank).sum(-1)
    bounds = np.asarray(BOUNDS_SECONDS)
    last = len(bounds)
    inside = np.minimum(place, last - 1)
    upper, lower = bounds[inside], np.where(inside > 0, bounds[np.maximum(inside - 1, 0)], 0.0)
    before = np.where(inside > 0, np.take_along_axis(cumulated, np.maximum(inside - 1, 0)[..., None], -1)[..., 0], 0)
    held = np.take_along_axis(counts, inside[..., None], -1)[..., 0]
    found = lower + (upper - lower) * (rank[..., 0] - before) / np.maximum(held, 1)
    return np.where(total[..., 0] > 0, np.where(place >= last, bounds[-1], found), np.nan)


def measure_window(window: DrawnWindow, is_relative: bool) -> Checks:
    """Return what a check over a window says; NaN where there was no traffic."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = window.candidate_errors / window.candidate_requests
        latency = estimate_p99(window.candidate_latency)
        if is_relative:
            errors = errors - window.stable_errors / window.stable_requests
            latency = latency / estimate_p99(window.stable_latency)
    return Checks(errors, latency, window.candidate_requests.astype(float))


def walk(rule: Rule, runs: int, measure: Measure) -> Outcome:
    """Roll out by a rule."""
    weight = np.zeros(runs, np.int64)
    in_weight = np.zeros(runs, np.int64)
    failed = np.zeros(runs, np.int64)
    now = np.zeros(runs)
    exposed = np.zeros(runs)
    active = np.ones(runs, bool)
    rolled_back = np.zeros(runs, bool)
    visits = np.zeros(runs, np.int64)
    while active.any():
        checks = measure(weight, visits, now, active)
        exposed += checks.requests * active
        now += rule.interval_seconds * active
        # A comparison with NaN is false: a check without traffic fails.
        passes = (checks.errors <= rule.error_threshold) & (checks.latency <= rule.latency_threshold)
        fails = active & ~passes & (weight >= rule.unchecked_weights)
        failed += fails
        visits += active
        in_weight += active & ~(fails & rule.halts)
        ended = active & (failed > rule.tolerated)
        if rule.late_intervals and ended.any():
            late = measure(weight, visits, now, ended)
            exposed += late.requests * ended
            now += rule.interval_seconds * ended
        rolled_back |= ended
        active = active & ~ended
        advances = active & (in_weight >= rule.checks_a_weight)
        weight = np.where(advances, weight + 1, weight)
        in_weight = np.where(advances, 0, in_weight)
        visits = np.where(advances, 0, visits)
        active = active & (weight < len(rule.weights))
        weight = np.minimum(weight, len(rule.weights) - 1)
    return Outcome(rolled_back, exposed, now / 60)


def simulate_rule(rule: Rule, scenario: str, runs: int, seed: int, traffic: Traffic | None = None) -> Outcome:
    """Roll out a scenario's candidates by a rule."""
    percents = np.asarray(rule.weights, float)
    rng = np.random.default_rng([seed, 1])
    source = TrafficSource(traffic or Traffic(), find_scenario(scenario), float(percents[-1]), runs, rng)

    def measure(weight: NDArray[np.int64], visits: NDArray[np.int64], now: Floats, active: NDArray[np.bool_]) -> Checks:
        # In parts, so that a burst can be shorter than an interval.
        parts = math.ceil(rule.interval_seconds / _PART_SECONDS)
        length = rule.interval_seconds / parts
        drawn = [source.draw(now + part * length, length, percents[weight], active) for part in range(parts)]
        names = [field.name for field in fields(DrawnWindow)]
        window = DrawnWindow(**{name: sum(getattr(one, name) for one in drawn) for name in names})
        return measure_window(window, rule.is_relative)

    return walk(rule, runs, measure)


def calibrate(rule: Rule, false_alarm_rate: float, runs: int, seed: int) -> Rule:
    """Return the rule with thresholds at which it rolls back at most that share of equal candidates.

    Both thresholds lie at the same quantile of what equal candidates' checks measure, and that quantile is bisected.
    The checks are drawn once, for every weight.
    """
    percents = np.asarray(rule.weights, float)
    checks = rule.checks_a_weight + (rule.tolerated + 2 if rule.halts else 0)
    rng = np.random.default_rng([seed, 2])
    source = TrafficSource(Traffic(), find_scenario("aa"), float(percents[-1]), runs, rng)
    everywhere, start = np.ones(runs, bool), np.zeros(runs)
    pool = [
        [
            measure_window(
                source.draw(start, rule.interval_seconds, np.full(runs, percent), everywhere), rule.is_relative
            )
            for _ in range(checks)
        ]
        for percent in percents
    ]
    errors = np.array([[one.errors for one in row] for row in pool])
    latency = np.array([[one.latency for one in row] for row in pool])
    index = np.arange(runs)

    def measure(weight: NDArray[np.int64], visits: NDArray[np.int64], now: Floats, active: NDArray[np.bool_]) -> Checks:
        at = np.minimum(visits, checks - 1)
        return Checks(errors[weight, at, index], latency[weight, at, index], np.zeros(runs))

    ordered = [np.sort(values[np.isfinite(values)]) for values in (errors, latency)]

    def fit(passing: float) -> Rule:
        at = [float(values[min(int(passing * len(values)), len(values) - 1)]) for values in ordered]
        return replace(rule, error_threshold=at[0], latency_threshold=at[1])

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if walk(fit(middle), runs, measure).rolled_back.mean() <= false_alarm_rate:
            high = middle
        else:
            low = middle
    return fit(high)


def decide_once(scenario: str, requests_an_arm: int, critical: float, runs: int, seed: int) -> Outcome:
    """Give both arms a planned number of requests, then compare the error rates once: a z-test of two proportions."""
    rng = np.random.default_rng([seed, 3])
    traffic = Traffic()
    per_second = traffic.requests_per_second / 2
    source = TrafficSource(traffic, find_scenario(scenario), 50, runs, rng)
    window = source.draw(np.zeros(runs), requests_an_arm / per_second, np.full(runs, 50.0), np.ones(runs, bool))
    z = compare(window.candidate_errors, window.candidate_requests, window.stable_errors, window.stable_requests)
    return Outcome(
        z > critical, window.candidate_requests.astype(float), np.full(runs, requests_an_arm / per_second / 60)
    )


def decide_every_window(
    scenario: str, windows: int, window_seconds: float, critical: float, runs: int, seed: int
) -> Outcome:
    """Compare all counts so far after every window, and stop at the first significant one: the common mistake."""
    rng = np.random.default_rng([seed, 4])
    source = TrafficSource(Traffic(), find_scenario(scenario), 50, runs, rng)
    totals = np.zeros((4, runs))
    active = np.ones(runs, bool)
    now, exposed = np.zeros(runs), np.zeros(runs)
    for _ in range(windows):
        drawn = source.draw(now, window_seconds, np.full(runs, 50.0), active)
        totals += [drawn.candidate_errors, drawn.candidate_requests, drawn.stable_errors, drawn.stable_requests]
        exposed += drawn.candidate_requests
        now += window_seconds * active
        active = active & (compare(*totals) <= critical)
    return Outcome(~active, exposed, now / 60)


def compare(candidate_bad: Any, candidate_all: Any, stable_bad: Any, stable_all: Any) -> Floats:
    """Return the z statistic of two proportions with a pooled variance; 0 without events."""
    n_c, n_s = np.maximum(candidate_all, 1), np.maximum(stable_all, 1)
    pooled = (candidate_bad + stable_bad) / (n_c + n_s)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n_c + 1 / n_s))
    z: Floats = np.where(spread > 0, (candidate_bad / n_c - stable_bad / n_s) / np.where(spread > 0, spread, 1), 0.0)
    return z
