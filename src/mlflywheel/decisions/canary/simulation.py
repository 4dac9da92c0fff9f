"""What a policy does to simulated candidates: how often it promotes, rolls back, or does not know.

Many rollouts run in lockstep, window by window, each on its own traffic. The tests, the choice of a latency bound and
the rules of when to advance are the judge's own. A rollout stops at its decision, and the requests that its candidate
got until then are what a bad candidate costs. Windows follow each other without pause, as they do where the judge is
asked in time, and requests are independent with the rates of their window, except where a scenario says otherwise.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlflywheel.decisions.canary.judge import ACTIONS, Counts, LatencyBound, MetricTests, choose_action
from mlflywheel.decisions.canary.policy import (
    CounterMetric,
    LabelsMetric,
    LatencyMetric,
    LimitLine,
    Metric,
    Policy,
)
from mlflywheel.errors import UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.statistics.intervals import estimate_share

SCHEMA = 1
# The predictor's buckets, see serving/metrics.py; that module cannot be imported here without its server.
BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_DAY_SECONDS = 86_400.0
# Rollouts at once: enough that a window's fixed cost is shared, and few enough for the processor's cache.
_RUNS_AT_ONCE = 500
_GROUPS_WITHOUT_NAMES = ("a", "b", "c", "d", "e")
_TINY_GROUPS = 40
_TINY_SHARE = 0.01
_HARMED_SHARE = 0.1


@dataclass(frozen=True)
class Traffic:
    """The service that simulated candidates are put before.

    Args:
        requests_per_second: On average, of both arms together; more than 0.
        error_rate: Of the stable version, more than 0 and less than 1.
        latency_median_seconds: Latencies are log-normal.
        latency_sigma: Standard deviation of their natural logarithm.
        counter_rate: Bad events among the requests, for metrics of the kind counter.
        loss_rate: Wrong answers among those with labels.
        labelled_share: Answers that get a label.
        label_delay_seconds: After which time the label of an answer is known.
        label_batch_seconds: How often known labels are delivered.

    Raises:
        UsageError: A number is out of range.
    """

    requests_per_second: float = 10.0
    error_rate: float = 0.01
    latency_median_seconds: float = 0.05
    latency_sigma: float = 0.6
    counter_rate: float = 0.05
    loss_rate: float = 0.1
    labelled_share: float = 0.5
    label_delay_seconds: float = 600.0
    label_batch_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("error_rate", "counter_rate", "loss_rate", "labelled_share"):
            value = getattr(self, name)
            # Everything may have a label; not everything may be an error.
            if not 0 < value <= (1 if name == "labelled_share" else 0.999):
                raise UsageError(f"traffic, {name}", repr(value), "a number between 0 and 1 is needed", "use 0.01")
        for name in ("requests_per_second", "latency_median_seconds", "latency_sigma", "label_batch_seconds"):
            value = getattr(self, name)
            if not 0 < value < 1e9:
                raise UsageError(f"traffic, {name}", repr(value), "a number above 0 is needed", "correct it")
        if not 0 <= self.label_delay_seconds < 1e9:
            raise UsageError(
                "traffic, label_delay_seconds",
                repr(self.label_delay_seconds),
                "a number of at least 0 is needed",
                "use 600",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Moment:
    """When and where a window is, for scenarios whose rates depend on it. Arrays have the shape (rollouts,).

    Args:
        seconds: From the rollout's start to the window's middle.
        percent: The candidate's weight.
        last_percent: The policy's last weight below 100.
        phase: Between 0 and 1, drawn once a rollout: where in a day, or between two bursts, it started.
        phase_of_arm: Shape (2, rollouts), one phase for the candidate and one for the stable version.
    """

    seconds: Floats
    percent: Floats
    last_percent: float
    phase: Floats
    phase_of_arm: Floats


Factor = Callable[[Moment], Floats | float]


def _one(moment: Moment) -> float:
    return 1.0


@dataclass(frozen=True)
class Scenario:
    """How the traffic and the candidate differ from the plain traffic.

    Args:
        name: As in `SCENARIOS`, with its parameters.
        description: One line.
        requests: Factor on the requests per second.
        errors: Factor on both arms' error rate.
        candidate_errors: Factor on the candidate's error rate.
        stable_errors: Factor on the stable version's error rate.
        latency: Factor on the candidate's latencies.
        tail_latency: Factor on the candidate's latencies beyond the quantile `tail_from`.
        tail_from: A quantile.
        slow_share: Factor on the candidate's share of requests that take longer than `slow_beyond_seconds`.
        slow_beyond_seconds: One of `BOUNDS_SECONDS`.
        counter: Factor on the candidate's rate of bad events of counters.
        loss: Factor on the candidate's losses.
        harmed_loss: Factor on the candidate's losses in the harmed group, which has a tenth of the answers.
        groups: Names and shares of the groups that labels speak of; empty for the policy's own.
        missing_share: Windows without evidence.
        labels: A metric that the policy gets where it has none of its kind.
    """

    name: str
    description: str
    requests: Factor = _one
    errors: Factor = _one
    candidate_errors: Factor = _one
    stable_errors: Factor = _one
    latency: float = 1.0
    tail_latency: float = 1.0
    tail_from: float = 0.99
    slow_share: float = 1.0
    slow_beyond_seconds: float = BOUNDS_SECONDS[-1]
    counter: float = 1.0
    loss: float = 1.0
    harmed_loss: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()
    missing_share: float = 0.0
    labels: LabelsMetric | None = None


@dataclass(frozen=True)
class DrawnWindow:
    """What both arms did in one window of every rollout: whole numbers of shape (rollouts,) or (rollouts, buckets).

    Args:
        candidate_requests: Requests that the candidate got.
        stable_requests: Requests that the stable version got.
        candidate_errors: Those that failed.
        stable_errors: Those that failed.
        candidate_latency: Counts of the buckets of `BOUNDS_SECONDS`, the last for what took longer.
        stable_latency: The same of the stable version.
    """

    candidate_requests: Integers
    stable_requests: Integers
    candidate_errors: Integers
    stable_errors: Integers
    candidate_latency: Integers
    stable_latency: Integers


class TrafficSource:
    """Draws windows of a scenario's traffic for many rollouts at once.

    Args:
        traffic: The service.
        scenario: What differs.
        last_percent: The largest weight below 100 that the rollouts use.
        runs: How many rollouts.
        rng: Where randomness comes from.
    """

    def __init__(
        self, traffic: Traffic, scenario: Scenario, last_percent: float, runs: int, rng: np.random.Generator
    ) -> None:
        self.traffic = traffic
        self.scenario = scenario
        self.last_percent = last_percent
        self.rng = rng
        self._phase = rng.random(runs)
        self._phase_of_arm = rng.random((2, runs))
        self._per_second = traffic.requests_per_second
        self._stable_buckets = _share_buckets(traffic, Scenario("", ""))
        self._candidate_buckets = _share_buckets(traffic, scenario)

    def count_requests(
        self, start_seconds: Floats, length_seconds: float, percent: Floats, active: Booleans
    ) -> tuple[Integers, Integers]:
        """Return the requests of the candidate and of the stable version; none where a rollout is not active."""
        moment = self._at(start_seconds, length_seconds, percent)
        expected = self._per_second * length_seconds * np.asarray(self.scenario.requests(moment)) * active
        return self.rng.poisson(expected * percent / 100), self.rng.poisson(expected * (1 - percent / 100))

    def draw(self, start_seconds: Floats, length_seconds: float, percent: Floats, active: Booleans) -> DrawnWindow:
        """Return a window; without requests where a rollout is not active."""
        moment = self._at(start_seconds, length_seconds, percent)
        n_c, n_s = self.count_requests(start_seconds, length_seconds, percent, active)
        scenario = self.scenario
        base = self.traffic.error_rate * np.asarray(scenario.errors(moment))
        rates = [np.clip(base * factor(moment), 0, 1) for factor in (scenario.candidate_errors, scenario.stable_errors)]
        return DrawnWindow(
            n_c,
            n_s,
            self.rng.binomial(n_c, rates[0]),
            self.rng.binomial(n_s, rates[1]),
            self._spread(n_c, self._candidate_buckets),
            self._spread(n_s, self._stable_buckets),
        )

    def _spread(self, requests: Integers, buckets: Floats) -> Integers:
        # Without requests, as in most windows of a quiet service, a draw would only cost time.
        if not requests.any():
            return np.zeros((len(requests), len(buckets)), np.int64)
        return self.rng.multinomial(requests, buckets)

    def _at(self, start_seconds: Floats, length_seconds: float, percent: Floats) -> Moment:
        middle = start_seconds + length_seconds / 2
        return Moment(middle, percent, self.last_percent, self._phase, self._phase_of_arm)


@dataclass(frozen=True)
class ScenarioResult:
    """What a policy did to the candidates of one scenario. Arrays have the shape (runs,).

    Args:
        scenario: Name.
        description: One line.
        added_metric: Name of the metric that the policy got for it; empty for none.
        actions: The last action: `promote` or `rollback`, or `hold` where nothing was decided in time.
        by_deadline: Whether the deadline's action was taken for want of evidence.
        requests_exposed: Requests to the candidate before the decision.
        minutes: Until the decision.
        shown_after_requests: By metric, the candidate's requests when its margin was first shown; infinite if never.
        shown_after_minutes: The same in minutes.
        harmed_by: By metric, whether it was shown to be harmed.
    """

    scenario: str
    description: str
    added_metric: str
    actions: NDArray[np.str_]
    by_deadline: Booleans
    requests_exposed: Floats
    minutes: Floats
    shown_after_requests: dict[str, Floats] = field(default_factory=dict)
    shown_after_minutes: dict[str, Floats] = field(default_factory=dict)
    harmed_by: dict[str, Booleans] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How many rollouts."""
        return len(self.actions)

    @property
    def promotes(self) -> Booleans:
        """Where evidence promoted."""
        found: Booleans = (self.actions == "promote") & ~self.by_deadline
        return found

    @property
    def rolls_back(self) -> Booleans:
        """Where evidence rolled back."""
        found: Booleans = (self.actions == "rollback") & ~self.by_deadline
        return found

    def share(self, action: Literal["promote", "rollback"], within_requests: float = float("inf")) -> float:
        """Return the share of rollouts that evidence decided so, within that many requests to the candidate.

        Args:
            action: `promote` or `rollback`.
            within_requests: Requests to the candidate before the decision.
        """
        decided = self.promotes if action == "promote" else self.rolls_back
        return float((decided & (self.requests_exposed <= within_requests)).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; decisions of the deadline count as undecided, and again on their own."""
        values: dict[str, Any] = {"scenario": self.scenario, "runs": self.runs}
        for name, decided in (
            ("promote", self.promotes),
            ("rollback", self.rolls_back),
            ("undecided", ~self.promotes & ~self.rolls_back),
        ):
            share = estimate_share(int(decided.sum()), self.runs)
            values[f"{name}_rate"] = share.value
            values[f"{name}_rate_interval"] = [share.low, share.high]
        values |= {
            "median_requests_exposed": float(np.median(self.requests_exposed)),
            "p95_requests_exposed": float(np.quantile(self.requests_exposed, 0.95, method="inverted_cdf")),
            "median_minutes": float(np.median(self.minutes)),
            "p95_minutes": float(np.quantile(self.minutes, 0.95, method="inverted_cdf")),
            "deadline_rate": float(self.by_deadline.mean()),
            "rollback_rate_by_metric": {name: float(harmed.mean()) for name, harmed in self.harmed_by.items()},
            "added_metric": self.added_metric or None,
            "description": self.description,
        }
        return values


def _burst(period_seconds: float, length_seconds: float, factor: float) -> Factor:
    """Return a factor that holds for a while once in a period, at another time in every rollout."""

    def at(moment: Moment) -> Floats:
        return np.where((moment.seconds + moment.phase * period_seconds) % period_seconds < length_seconds, factor, 1.0)

    return at


def _burst_of_arm(arm: int, period_seconds: float, length_seconds: float, factor: float) -> Factor:
    def at(moment: Moment) -> Floats:
        place = (moment.seconds + moment.phase_of_arm[arm] * period_seconds) % period_seconds
        return np.where(place < length_seconds, factor, 1.0)

    return at


def _day(low: float, high: float, ahead: float = 0.0) -> Factor:
    """Return a factor that follows the day between two values; `ahead` is a share of the day."""

    def at(moment: Moment) -> Floats:
        place = moment.phase + moment.seconds / _DAY_SECONDS + ahead
        return low + (high - low) * (1 + np.sin(2 * np.pi * place)) / 2

    return at


def _grow(to: float, hours: float) -> Factor:
    """Return a factor that grows from 1, linearly, and stays."""

    def at(moment: Moment) -> Floats:
        return 1 + (to - 1) * np.minimum(moment.seconds / (hours * 3600), 1.0)

    return at


def _from_percent(percent: float | None, factor: float) -> Factor:
    """Return a factor that holds from a weight on; None is the last weight below 100."""

    def at(moment: Moment) -> Floats:
        return np.where(moment.percent >= (moment.last_percent if percent is None else percent), factor, 1.0)

    return at


def _always(factor: float) -> Factor:
    return lambda moment: factor


_ANSWERS = LabelsMetric(name="wrong_answers", kind="labels", margin=LimitLine(difference=0.05))
_ANSWERS_BY_GROUP = LabelsMetric(
    name="wrong_answers", kind="labels", by="group", groups=_GROUPS_WITHOUT_NAMES, margin=LimitLine(difference=0.05)
)
# Nobody listed these groups beforehand.
_ANSWERS_BY_TINY_GROUP = LabelsMetric(
    name="wrong_answers", kind="labels", by="group", margin=LimitLine(difference=0.05)
)
_FIVE_GROUPS = tuple(zip(_GROUPS_WITHOUT_NAMES, (_HARMED_SHARE, 0.15, 0.2, 0.25, 0.3), strict=True))
_MANY_GROUPS = (
    ("all others", 1 - _TINY_GROUPS * _TINY_SHARE),
    *((f"group {number:02d}", _TINY_SHARE) for number in range(1, _TINY_GROUPS + 1)),
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("aa", "the candidate equals the stable version"),
        Scenario(
            "error-x2",
            "twice as many errors from the start; also other factors and starts, as error-x3-from-25",
            candidate_errors=_always(2),
        ),
        Scenario(
            "error-x2-late", "equal until the last weight below 100, then twice the errors",
            candidate_errors=_from_percent(None, 2),
        ),
        Scenario("better", "half the errors, and 20 % faster", candidate_errors=_always(0.5), latency=0.8),
        Scenario("latency-tail", "the slowest 1 % of the candidate's requests take 3 times as long", tail_latency=3.0),
        Scenario("latency-shift", "all of the candidate's requests take 1.5 times as long", latency=1.5),
        Scenario(
            "wrong-answers",
            "20 % faster, but twice as many wrong answers, which only delayed labels tell",
            latency=0.8, loss=2.0, labels=_ANSWERS,
        ),
        Scenario(
            "group-harm",
            "three times as many wrong answers in one group of 10 %, equal in the others",
            harmed_loss=3.0, groups=_FIVE_GROUPS, labels=_ANSWERS_BY_GROUP,
        ),
        Scenario(
            "small-groups",
            f"equal, with labels of {_TINY_GROUPS} undeclared groups of {_TINY_SHARE:.0%} each",
            groups=_MANY_GROUPS, labels=_ANSWERS_BY_TINY_GROUP,
        ),
        Scenario("slow-drift", "errors grow from 1 to 5 times within 4 hours", candidate_errors=_grow(5, 4)),
        Scenario(
            "error-burst",
            "equal; both arms fail 20 times as often for 2 minutes of every 20",
            errors=_burst(1200, 120, 20),
        ),
        Scenario(
            "bursts",
            "equal; 20 times the requests for 2 minutes of every 20, with 10 times the errors in both arms",
            requests=_burst(1200, 120, 20), errors=_burst(1200, 120, 10),
        ),
        Scenario(
            "separate-bursts",
            "equal on average, but each arm fails 10 times as often in its own minute of every 20: beyond the model",
            candidate_errors=_burst_of_arm(0, 1200, 60, 10), stable_errors=_burst_of_arm(1, 1200, 60, 10),
        ),
        Scenario(
            "daily-cycle",
            "equal; requests follow the day from 0.2 to 1.8 times, errors from 0.5 to 2 times, 6 hours apart",
            requests=_day(0.2, 1.8), errors=_day(0.5, 2.0, 0.25),
        ),
        Scenario(
            "daily-cycle-x2",
            "twice as many errors in the daily cycle",
            requests=_day(0.2, 1.8), errors=_day(0.5, 2.0, 0.25), candidate_errors=_always(2),
        ),
        Scenario(
            "low-traffic",
            "equal, with as many requests an hour as else in a second: 10",
            requests=_always(1 / 3600),
        ),
        Scenario(
            "missing-evidence", "equal; 30 % of the windows have gaps or counter resets", missing_share=0.3
        ),
    )
}  # fmt: skip

_ERROR_NAME = re.compile(r"error-x(\d+(?:\.\d+)?)(?:-from-(\d+(?:\.\d+)?))?")


def find_scenario(name: str) -> Scenario:
    """Return a scenario by its name, with parameters where it takes any.

    Raises:
        UsageError: Unknown; the message lists the names.

    >>> find_scenario("error-x3-from-25").description
    '3 times as many errors from a weight of 25 % on'
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    found = _ERROR_NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            "scenario",
            repr(name),
            f"known are {', '.join(SCENARIOS)}, and error-xN or error-xN-from-PERCENT",
            "choose one of them",
        )
    factor, percent = float(found[1]), float(found[2] or 0)
    since = f"from a weight of {percent:g} % on" if found[2] else "from the start"
    return Scenario(name, f"{factor:g} times as many errors {since}", candidate_errors=_from_percent(percent, factor))


def simulate(
    policy: Policy,
    scenarios: Iterable[str | Scenario],
    runs: int = 1000,
    seed: int = 0,
    traffic: Traffic | None = None,
    progress: ProgressCallback = ignore_progress,
    ask_every_windows: int = 1,
) -> list[ScenarioResult]:
    """Let a policy decide about simulated candidates.

    A scenario's random numbers depend on the seed and its name alone, so that asking for one more changes no other.

    Args:
        policy: The policy.
        scenarios: Names, or scenarios of one's own.
        runs: Rollouts of each scenario, at least 1.
        seed: At least 0.
        traffic: The service; by default 10 requests a second of which 1 % fail.
        progress: Told the rollouts that are decided.
        ask_every_windows: How many windows pass from one decision to the next, at least 1.

    Returns:
        One result a scenario, in their order.

    Raises:
        UsageError: An unknown scenario, or a number out of range.

    >>> [result] = simulate(Policy(), ["error-x5"], runs=50, seed=1)
    >>> result.share("rollback") >= 0.9
    True
    """
    for name, value, least in (("runs", runs, 1), ("seed", seed, 0), ("ask_every_windows", ask_every_windows, 1)):
        if value < least:
            raise UsageError(name, repr(value), f"at least {least} is needed", f"use {max(least, 1)}")
    service = Traffic() if traffic is None else traffic
    found = [find_scenario(one) if isinstance(one, str) else one for one in scenarios]
    results = []
    for scenario in found:
        fitted = fit_policy(policy, scenario)
        rng = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
        parts: list[_Rollouts] = []
        for start in range(0, runs, _RUNS_AT_ONCE):
            rollouts = _Rollouts(fitted, scenario, service, min(_RUNS_AT_ONCE, runs - start), rng)
            done = start
            while rollouts.active.any():
                rollouts.advance(ask_every_windows)
                decided = start + int((~rollouts.active).sum())
                if decided > done:
                    done = decided
                    progress(scenario.name, done, runs)
            parts.append(rollouts)
        results.append(_join(policy, fitted, scenario, parts))
    return results


def share_beyond(traffic: Traffic, bound_seconds: float) -> float:
    """Return the stable version's share of requests that take longer than one of `BOUNDS_SECONDS`.

    >>> round(share_beyond(Traffic(), 0.05), 3)
    0.5
    """
    return float(_share_buckets(traffic, Scenario("", ""))[BOUNDS_SECONDS.index(bound_seconds) + 1 :].sum())


def results_to_dict(
    policy: Policy, results: Sequence[ScenarioResult], seed: int, traffic: Traffic | None = None
) -> dict[str, Any]:
    """Return results as JSON values, with all that is needed to repeat them."""
    return {
        "schema": SCHEMA,
        "policy": policy.to_dict(),
        "seed": seed,
        "runs": results[0].runs if results else 0,
        "traffic": (Traffic() if traffic is None else traffic).to_dict(),
        "scenarios": [result.to_dict() for result in results],
    }


def fit_policy(policy: Policy, scenario: Scenario) -> Policy:
    """Return the policy, with the scenario's labels metric where it needs one and the policy has none of the kind."""
    needed = scenario.labels
    if needed is None:
        return policy
    for metric in policy.metrics:
        if isinstance(metric, LabelsMetric) and (needed.by is None or metric.by is not None):
            return policy
    taken = {metric.name for metric in policy.metrics}
    name = needed.name
    while name in taken:
        name += "_2"
    return policy.model_copy(update={"metrics": (*policy.metrics, needed.model_copy(update={"name": name}))})


class _Rollouts:
    """Rollouts of one policy and scenario, in lockstep by windows; each has its own clock and step."""

    def __init__(
        self, policy: Policy, scenario: Scenario, traffic: Traffic, runs: int, rng: np.random.Generator
    ) -> None:
        self.policy = policy
        self._percents = np.asarray(policy.steps, float)
        self._rng = rng
        self._missing_share = scenario.missing_share
        self._source = TrafficSource(traffic, scenario, float(self._percents[-2]), runs, rng)
        self._tests = [MetricTests(metric, policy, (runs,)) for metric in policy.metrics]
        self._bounds = {
            metric.name: LatencyBound(metric, BOUNDS_SECONDS, (runs,))
            for metric in policy.metrics
            if isinstance(metric, LatencyMetric)
        }
        self._labels = {
            metric.name: _Labels(metric, policy, scenario, traffic, runs, rng)
            for metric in policy.metrics
            if isinstance(metric, LabelsMetric)
        }
        self._counter_rates = (min(traffic.counter_rate * scenario.counter, 1.0), traffic.counter_rate)
        self._step = np.zeros(runs, np.int64)
        self._now = np.zeros(runs)
        self._entered = np.zeros(runs)
        self._requests_in_step = np.zeros(runs)
        self._windows = 0
        self.active = np.ones(runs, bool)
        self.actions = np.full(runs, "hold", dtype="<U8")
        self.by_deadline = np.zeros(runs, bool)
        self.exposed = np.zeros(runs)
        # Requests and minutes.
        self.shown_after = {metric.name: np.full((2, runs), np.inf) for metric in policy.metrics}
        self.harmed_by = {metric.name: np.zeros(runs, bool) for metric in policy.metrics}
        self._settle(self.active)

    def advance(self, ask_every_windows: int) -> None:
        """Let a window pass, and decide where it is time to."""
        percent = self._percents[self._step]
        length = self.policy.window_seconds
        drawn = self._source.draw(self._now, length, percent, self.active)
        self._now += np.where(self.active, length, 0.0)
        self.exposed += drawn.candidate_requests
        # A window without evidence passes; its requests were answered all the same.
        judged = self.active
        if self._missing_share:
            judged = judged & (self._rng.random(len(judged)) >= self._missing_share)
        self._requests_in_step += drawn.candidate_requests * judged
        for tests in self._tests:
            self._add(tests, drawn, judged)
        self._windows += 1
        if self._windows % ask_every_windows == 0:
            self._decide()

    def _add(self, tests: MetricTests, drawn: DrawnWindow, judged: Booleans) -> None:
        metric = tests.metric
        n_c, n_s = drawn.candidate_requests * judged, drawn.stable_requests * judged
        at_last = self._step >= len(self._percents) - 2
        if isinstance(metric, LabelsMetric):
            labels = self._labels[metric.name]
            # Answers and their labels are known whether or not the window's counters are.
            labels.answer(self._windows, self._step, drawn.candidate_requests, drawn.stable_requests)
            for group, step, counts in labels.deliver(self._windows, self.active):
                tests.add(group, counts, step >= len(self._percents) - 2)
        elif isinstance(metric, LatencyMetric):
            held = judged[:, None]
            bound = self._bounds[metric.name]
            counts, _ = bound.count(self._step, drawn.candidate_latency * held, drawn.stable_latency * held)
            tests.add("", counts, at_last)
        elif isinstance(metric, CounterMetric):
            rate_c, rate_s = self._counter_rates
            tests.add("", Counts(self._rng.binomial(n_c, rate_c), n_c, self._rng.binomial(n_s, rate_s), n_s), at_last)
        else:
            tests.add("", Counts(drawn.candidate_errors * judged, n_c, drawn.stable_errors * judged, n_s), at_last)
        name = metric.name
        if tests.margin is not None:
            first = self.active & tests.shown & np.isinf(self.shown_after[name][0])
            self.shown_after[name][:, first] = np.stack([self.exposed, self.now_minutes])[:, first]
        self.harmed_by[name] |= tests.harmed & self.active

    def _decide(self) -> None:
        harmed = np.logical_or.reduce(list(self.harmed_by.values()))
        shown = np.logical_and.reduce([tests.shown for tests in self._tests])
        codes = choose_action(
            self.policy, harmed, shown, self._step, self._requests_in_step, self._now - self._entered, self._now
        )
        actions = np.asarray(ACTIONS)[codes]
        expired = self._now >= self.policy.deadline.after_minutes * 60
        known = harmed | (shown & (actions == "promote"))
        decided = self.active & ((actions == "promote") | (actions == "rollback") | (expired & (actions == "hold")))
        self.actions[decided] = actions[decided]
        self.by_deadline |= decided & expired & ~known
        self.active = self.active & ~decided
        advances = self.active & (actions == "advance")
        self._step[advances] += 1
        self._entered = np.where(advances, self._now, self._entered)
        self._requests_in_step = np.where(advances, 0.0, self._requests_in_step)
        if advances.any():
            self._settle(advances)

    def _settle(self, where: Booleans) -> None:
        """Let the time pass that a change of weights gets; its requests are exposed and not judged."""
        length = self.policy.settle_seconds
        if length > 0:
            requests, _ = self._source.count_requests(self._now, length, self._percents[self._step], where)
            self.exposed += requests
            self._now = self._now + np.where(where, length, 0.0)

    @property
    def now_minutes(self) -> Floats:
        """Minutes since each rollout's start."""
        return self._now / 60


@dataclass(frozen=True)
class _Answers:
    """Answers of one window that will get labels."""

    window: int
    step: Integers
    candidate: Integers
    stable: Integers


class _Labels:
    """Labels that come later than their answers, and in batches, as exports do."""

    def __init__(
        self,
        metric: LabelsMetric,
        policy: Policy,
        scenario: Scenario,
        traffic: Traffic,
        runs: int,
        rng: np.random.Generator,
    ) -> None:
        self._rng = rng
        self._steps = len(policy.steps)
        self._share = traffic.labelled_share
        self._delay_windows = int(np.ceil(traffic.label_delay_seconds / policy.window_seconds))
        self._batch_windows = max(1, int(np.ceil(traffic.label_batch_seconds / policy.window_seconds)))
        self._waiting: list[_Answers] = []
        names = metric.groups or _GROUPS_WITHOUT_NAMES
        groups = scenario.groups or tuple((name, 1 / len(names)) for name in names)
        if scenario.groups and metric.groups and scenario.harmed_loss != 1:
            # The policy's own groups, of which the first is harmed.
            rest = (1 - _HARMED_SHARE) / max(1, len(metric.groups) - 1)
            groups = tuple((name, _HARMED_SHARE if not index else rest) for index, name in enumerate(metric.groups))
        if metric.by is None:
            groups = (("", 1.0),)
        self._names = [name for name, _ in groups]
        shares = np.asarray([share for _, share in groups])
        self._shares = shares / shares.sum()
        self._stable_loss = np.full(len(groups), traffic.loss_rate)
        self._candidate_loss = np.minimum(self._stable_loss * scenario.loss, 1.0)
        self._candidate_loss[0] = min(1.0, self._candidate_loss[0] * scenario.harmed_loss)

    def answer(self, window: int, step: Integers, candidate: Integers, stable: Integers) -> None:
        """Note a window's answers."""
        self._waiting.append(
            _Answers(
                window, step.copy(), self._rng.binomial(candidate, self._share), self._rng.binomial(stable, self._share)
            )
        )

    def deliver(self, window: int, active: Booleans) -> Iterable[tuple[str, int, Counts]]:
        """Yield the groups' counts that are known by now, those of the answers of one step at a time."""
        if (window + 1) % self._batch_windows:
            return
        known = [one for one in self._waiting if one.window + self._delay_windows <= window]
        self._waiting = self._waiting[len(known) :]
        drawn: list[tuple[str, int, Counts]] = []
        for step in range(self._steps):
            n_c, n_s = np.zeros((2, len(active)), np.int64)
            for one in known:
                here = (one.step == step) & active
                n_c += np.where(here, one.candidate, 0)
                n_s += np.where(here, one.stable, 0)
            if not (n_c.any() or n_s.any()):
                continue
            of_c, of_s = self._rng.multinomial(n_c, self._shares), self._rng.multinomial(n_s, self._shares)
            bad_c, bad_s = self._rng.binomial(of_c, self._candidate_loss), self._rng.binomial(of_s, self._stable_loss)
            drawn.append(("", step, Counts(bad_c.sum(-1), n_c, bad_s.sum(-1), n_s)))
            drawn += [
                (name, step, Counts(bad_c[:, index], of_c[:, index], bad_s[:, index], of_s[:, index]))
                for index, name in enumerate(self._names)
                if name
            ]
        # As the judge adds them: step by step within a group.
        yield from sorted(drawn, key=lambda one: (one[1], one[0]))


def _share_buckets(traffic: Traffic, scenario: Scenario) -> Floats:
    """Return the candidate's share of requests in each bucket of `BOUNDS_SECONDS`, and beyond the last."""
    from scipy import special

    median, sigma = traffic.latency_median_seconds, traffic.latency_sigma

    def below(seconds: Floats) -> Floats:
        found: Floats = special.ndtr(np.log(seconds / median) / sigma)
        return found

    bounds = np.asarray(BOUNDS_SECONDS)
    under = below(bounds / scenario.latency)
    if scenario.tail_latency != 1:
        # Up to the quantile latencies stay, and beyond it they take so many times as long.
        beyond = below(bounds / scenario.latency / scenario.tail_latency) - scenario.tail_from
        under = np.minimum(under, scenario.tail_from) + np.maximum(beyond, 0.0)
    if scenario.slow_share != 1:
        place = BOUNDS_SECONDS.index(scenario.slow_beyond_seconds)
        slow = 1 - under[place]
        wanted = min(1.0, slow * scenario.slow_share)
        under = np.where(
            bounds <= bounds[place], under * (1 - wanted) / under[place], 1 - (1 - under) * wanted / max(slow, 1e-300)
        )
    shares = np.diff(np.concatenate([[0.0], np.clip(under, 0, 1), [1.0]]))
    # Differences of rounded numbers can be a hair below 0.
    shares = np.maximum(shares, 0.0)
    normed: Floats = shares / shares.sum()
    return normed


def _join(policy: Policy, fitted: Policy, scenario: Scenario, parts: Sequence[_Rollouts]) -> ScenarioResult:
    def names(metrics: Sequence[Metric]) -> list[str]:
        return [metric.name for metric in metrics]

    added = [name for name in names(fitted.metrics) if name not in names(policy.metrics)]
    return ScenarioResult(
        scenario.name,
        scenario.description,
        added[0] if added else "",
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.by_deadline for part in parts]),
        np.concatenate([part.exposed for part in parts]),
        np.concatenate([part.now_minutes for part in parts]),
        {name: np.concatenate([part.shown_after[name][0] for part in parts]) for name in names(fitted.metrics)},
        {name: np.concatenate([part.shown_after[name][1] for part in parts]) for name in names(fitted.metrics)},
        {name: np.concatenate([part.harmed_by[name] for part in parts]) for name in names(fitted.metrics)},
    )
