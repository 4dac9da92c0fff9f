"""What a policy needs before a rollout starts: how many requests, and how long, to show its margins or find harm.

The numbers are quantiles of simulated rollouts (`simulation`), so that steps, minimum times, the number of metrics and
the judge's own rules are in them. A formula would not know when the weights change.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflywheel.decisions.canary.policy import CounterMetric, ErrorsMetric, LabelsMetric, LatencyMetric, Metric, Policy
from mlflywheel.decisions.canary.simulation import (
    BOUNDS_SECONDS,
    Scenario,
    ScenarioResult,
    Traffic,
    share_beyond,
    simulate,
)
from mlflywheel.errors import UsageError
from mlflywheel.events import ProgressCallback, ignore_progress

# A rollout that takes long is simulated in longer windows than it will have, so that there are about this many: where
# evidence is cut hardly matters to it, and the plan takes seconds.
_WINDOWS = 100
# For a guess of how long it takes: requests at the last weight.
_TYPICAL_REQUESTS = 2000
_LEAST_WINDOWS = 48


@dataclass(frozen=True)
class Need:
    """How many requests to the candidate, and how many minutes, suffice with the policy's power.

    Args:
        requests: None if the deadline or another decision comes first too often.
        minutes: None with `requests`.
        probability: The share of simulated rollouts that got there at all.
    """

    requests: int | None
    minutes: float | None
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"requests": self.requests, "minutes": self.minutes, "probability": self.probability}


@dataclass(frozen=True)
class MetricPlan:
    """What one metric needs.

    Args:
        metric: Name.
        stable_rate: Of the stable version.
        harmed_rate: The candidate's rate for `to_find`.
        to_show: To show the margin where the arms are equal; None for a guardrail.
        to_find: To show harm where the candidate has the harmed rate.
        promoted_rate: The share of those harmed candidates that is promoted.
    """

    metric: str
    stable_rate: float
    harmed_rate: float
    to_show: Need | None
    to_find: Need
    promoted_rate: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metric": self.metric,
            "stable_rate": self.stable_rate,
            "harmed_rate": self.harmed_rate,
            "to_show": None if self.to_show is None else self.to_show.to_dict(),
            "to_find": self.to_find.to_dict(),
            "promoted_rate": self.promoted_rate,
        }


@dataclass(frozen=True)
class Plan:
    """What a rollout needs with some traffic.

    Args:
        traffic: What was assumed.
        power: The policy's.
        deadline_minutes: The policy's.
        to_promote: An equal candidate.
        metrics: Each metric on its own.
        runs: Simulated rollouts behind each number.
        seed: Of the simulation.
    """

    traffic: Traffic
    power: float
    deadline_minutes: float
    to_promote: Need
    metrics: tuple[MetricPlan, ...]
    runs: int
    seed: int

    def describe(self) -> str:
        """Return the plan as sentences, one a line."""
        head = f"With {self.traffic.requests_per_second:g} requests a second"
        if self.to_promote.requests is None:
            lines = [
                f"{head} this policy promotes {self.to_promote.probability:.0%} of equal candidates within "
                f"{_minutes(self.deadline_minutes)}; {self.power:.0%} are wanted. More traffic, a wider margin or a "
                "later deadline is needed."
            ]
        else:
            lines = [
                f"{head} this policy needs about {_say(self.to_promote)} to promote an equal candidate with a "
                f"probability of {self.power:.0%}."
            ]
        for one in self.metrics:
            if one.to_show is None:
                lines.append(f"{one.metric} is a guardrail: nothing has to be shown for it.")
            elif one.to_show.requests is None:
                lines.append(
                    f"{one.metric}: its margin is shown for {one.to_show.probability:.0%} of equal candidates before "
                    f"the rollout ends; {self.power:.0%} are wanted."
                )
            else:
                lines.append(f"{one.metric}: about {_say(one.to_show)} to show the margin where both have "
                             f"{_rate(one.stable_rate)}.")  # fmt: skip
            worse = f"a candidate with {_rate(one.harmed_rate)} instead of {_rate(one.stable_rate)}"
            if one.to_find.requests is None:
                lines.append(
                    f"{one.metric}: {worse} is rolled back with a probability of {one.to_find.probability:.0%}, and "
                    f"promoted with one of {one.promoted_rate:.0%}."
                )
            else:
                lines.append(f"{one.metric}: about {_say(one.to_find)} to roll back {worse}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "schema": 1,
            "traffic": self.traffic.to_dict(),
            "power": self.power,
            "deadline_minutes": self.deadline_minutes,
            "to_promote": self.to_promote.to_dict(),
            "metrics": [one.to_dict() for one in self.metrics],
            "runs": self.runs,
            "seed": self.seed,
        }


def plan(
    policy: Policy,
    requests_per_second: float,
    stable_error_rate: float = 0.01,
    harmed_factor: float = 2.0,
    traffic: Traffic | None = None,
    runs: int = 400,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Plan:
    """Return what a policy needs with some traffic, by simulating it.

    With 400 runs the probability behind a number is right to about 0.03 (two standard errors at a power of 0.9).

    Args:
        policy: The policy.
        requests_per_second: Of both arms together, more than 0.
        stable_error_rate: Of the stable version, between 0 and 1.
        harmed_factor: How many times as high a rate is to be found, more than 1; a rate is at most 1.
        traffic: What else is known of the service, such as its latencies; the two numbers above replace its own.
        runs: Rollouts a simulation, at least 50.
        seed: At least 0.
        progress: Told the rollouts that are decided.

    Raises:
        UsageError: A number is out of range.

    >>> plan(Policy(), requests_per_second=20, runs=50).to_promote.requests > 500
    True
    """
    if runs < 50:
        raise UsageError("runs", repr(runs), "at least 50 are needed", "use 400")
    if not 1 < harmed_factor < math.inf:
        raise UsageError("harmed_factor", repr(harmed_factor), "a number above 1 is needed", "use 2")
    service = replace(traffic or Traffic(), requests_per_second=requests_per_second, error_rate=stable_error_rate)
    scenarios = [Scenario("plan", "equal"), *(_harm(metric, service, harmed_factor) for metric in policy.metrics)]
    equal, *harmed = simulate(_coarsen(policy, service), scenarios, runs, seed, service, progress)
    needs = []
    for metric, result in zip(policy.metrics, harmed, strict=True):
        rate = _stable_rate(metric, service)
        to_show = (equal.shown_after_requests[metric.name], equal.shown_after_minutes[metric.name])
        needs.append(
            MetricPlan(
                metric.name,
                rate,
                min(1.0, rate * harmed_factor),
                _need(*to_show, policy.power) if metric.is_needed else None,
                _need_where(result.rolls_back, result, policy.power),
                result.share("promote"),
            )
        )
    return Plan(
        service,
        policy.power,
        policy.deadline.after_minutes,
        _need_where(equal.promotes, equal, policy.power),
        tuple(needs),
        runs,
        seed,
    )


def _coarsen(policy: Policy, traffic: Traffic) -> Policy:
    per_second = traffic.requests_per_second / 100
    takes = _TYPICAL_REQUESTS / (per_second * policy.steps[-2]) + sum(
        max(policy.minimum.seconds, policy.minimum.requests / (per_second * percent))
        for percent in policy.steps[:-1]
        if percent
    )
    longest = policy.deadline.after_minutes * 60 / _LEAST_WINDOWS
    seconds = max(policy.window_seconds, min(takes / _WINDOWS, longest))
    return policy.model_copy(update={"window_seconds": seconds})


def _harm(metric: Metric, traffic: Traffic, factor: float) -> Scenario:
    name = f"plan {metric.name}"
    if isinstance(metric, LatencyMetric):
        return Scenario(name, "slower", slow_share=factor, slow_beyond_seconds=_bound(metric, traffic))
    if isinstance(metric, CounterMetric):
        return Scenario(name, "more events", counter=factor)
    if isinstance(metric, LabelsMetric):
        return Scenario(name, "more losses", loss=factor)
    return Scenario(name, "more errors", candidate_errors=lambda moment: factor)


def _stable_rate(metric: Metric, traffic: Traffic) -> float:
    if isinstance(metric, ErrorsMetric):
        return traffic.error_rate
    if isinstance(metric, LatencyMetric):
        return share_beyond(traffic, _bound(metric, traffic))
    return traffic.counter_rate if isinstance(metric, CounterMetric) else traffic.loss_rate


def _bound(metric: LatencyMetric, traffic: Traffic) -> float:
    """Return the bound that the judge takes where it knows the latencies well."""
    if metric.seconds is not None:
        above = [bound for bound in BOUNDS_SECONDS if bound >= metric.seconds * (1 - 1e-9)]
    else:
        assert metric.quantile is not None  # for the type checker: a metric has one of the two
        above = [bound for bound in BOUNDS_SECONDS if 1 - share_beyond(traffic, bound) >= metric.quantile]
    return above[0] if above else BOUNDS_SECONDS[-1]


def _need_where(reached: NDArray[np.bool_], result: ScenarioResult, power: float) -> Need:
    return _need(np.where(reached, result.requests_exposed, np.inf), np.where(reached, result.minutes, np.inf), power)


def _need(requests: NDArray[np.float64], minutes: NDArray[np.float64], power: float) -> Need:
    """Return the quantiles of what was needed; infinite where it was not reached."""
    probability = float(np.isfinite(requests).mean())
    at = float(np.quantile(requests, power, method="higher"))
    if not math.isfinite(at):
        return Need(None, None, probability)
    return Need(math.ceil(at), float(np.quantile(minutes, power, method="higher")), probability)


def _say(need: Need) -> str:
    assert need.requests is not None  # for the type checker: asked before
    assert need.minutes is not None
    return f"{need.requests:,} requests to the candidate ({_minutes(need.minutes)})"


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _rate(rate: float) -> str:
    return f"{100 * rate:.2g} %"
