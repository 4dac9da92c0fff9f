"""The judge: from windows, labels and a policy to promote, advance, hold or roll back, with the reasons.

Every metric is a share of bad events: errors, requests slower than a bound, losses that labels tell. Two e-processes
(`sequential`) watch each of them. The one for harm gathers evidence that the candidate is worse than its tolerance; at
1/alpha the candidate is rolled back. The one for the margin gathers evidence that it is within its margin, or better by
it; a promotion needs it at 1/alpha for every metric that is no guardrail.

Error rates, however often the judge is asked:

- An equally good candidate is rolled back with a chance of at most `alpha`: harm's alpha is divided by the number of
  metrics, and again between a metric's overall test and its groups (union bound).
- A candidate that is at or beyond the margin of any needed metric through the last step is promoted with a chance of
  at most `alpha`. All of them have to be shown, so that nothing is divided (intersection-union test: R. L. Berger,
  Technometrics 24, 1982).

Arms are compared only inside one window, or one step for labels, so that changing weights do not mix them with time.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflywheel.decisions.canary.evidence import Arm, Evidence, Histogram, JoinedLabel, Window, join_labels
from mlflywheel.decisions.canary.policy import CounterMetric, LabelsMetric, LatencyMetric, Metric, Policy
from mlflywheel.decisions.canary.sequential import EProcess, log_threshold

Action = Literal["hold", "advance", "promote", "rollback"]
ACTIONS: tuple[Action, ...] = ("hold", "advance", "promote", "rollback")
_HOLD, _ADVANCE, _PROMOTE, _ROLLBACK = range(4)

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

# Half of a metric's alpha is for its groups, where it has some; of that a tenth for groups that nobody declared.
_GROUPS_SHARE = 0.5
_UNDECLARED_SHARE = 0.1
# A quantile's bound is chosen once so many requests beyond the quantile are to be expected.
_EXPECTED_BEYOND = 2.0


@dataclass(frozen=True)
class Counts:
    """Bad events among all events of both arms, over the same time.

    Args:
        candidate_events: Whole numbers, at most `candidate_total`; of the judge's shape, like all four.
        candidate_total: Whole numbers.
        stable_events: Whole numbers, at most `stable_total`.
        stable_total: Whole numbers.
    """

    candidate_events: ArrayLike
    candidate_total: ArrayLike
    stable_events: ArrayLike
    stable_total: ArrayLike


@dataclass(frozen=True)
class Finding:
    """What one test says.

    Args:
        metric: Name of the policy's metric.
        group: The group, empty for all requests.
        test: `harm`, or `margin` for non-inferiority and superiority.
        is_reached: Whether the evidence suffices.
        evidence: The e-value, at least 0; evidence against no harm, or for the margin. Infinity is written as null.
        needed: What it has to reach: 1/alpha of this test.
        candidate_rate: Bad events among the candidate's; None before there were any.
        stable_rate: The same of the stable version.
        candidate_total: Events of the candidate that were judged.
        stable_total: The same of the stable version.
        reason: One sentence.
    """

    metric: str
    group: str
    test: Literal["harm", "margin"]
    is_reached: bool
    evidence: float
    needed: float
    candidate_rate: float | None
    stable_rate: float | None
    candidate_total: float
    stable_total: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metric": self.metric,
            "group": self.group,
            "test": self.test,
            "is_reached": self.is_reached,
            "evidence": self.evidence if math.isfinite(self.evidence) else None,
            "needed": self.needed,
            "candidate_rate": self.candidate_rate,
            "stable_rate": self.stable_rate,
            "candidate_total": self.candidate_total,
            "stable_total": self.stable_total,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Verdict:
    """What to do, and why.

    Args:
        action: What to do.
        reason: One sentence.
        findings: Every test, harm first.
        step: The step that was judged.
        requests_in_step: The candidate's requests in it.
        is_by_deadline: Whether the deadline's action was taken for want of evidence.
        notes: What kept evidence out: windows that were not judged, labels of unknown requests.
    """

    action: Action
    reason: str
    findings: tuple[Finding, ...]
    step: int
    requests_in_step: float
    is_by_deadline: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "action": self.action,
            "reason": self.reason,
            "findings": [finding.to_dict() for finding in self.findings],
            "step": self.step,
            "requests_in_step": self.requests_in_step,
            "is_by_deadline": self.is_by_deadline,
            "notes": list(self.notes),
        }


def choose_action(
    policy: Policy,
    harmed: ArrayLike,
    shown: ArrayLike,
    step: ArrayLike,
    requests_in_step: ArrayLike,
    seconds_in_step: ArrayLike,
    seconds_in_all: ArrayLike,
) -> NDArray[np.int64]:
    """Return an index into `ACTIONS` for one rollout, or for many at once.

    Harm comes first, then a promotion that is shown, then the deadline: a rollout that is decided in time is not
    undone by it.

    Args:
        policy: The policy.
        harmed: Whether a test of harm has reached its alpha.
        shown: Whether all margins that are needed are shown.
        step: The step.
        requests_in_step: The candidate's requests in it.
        seconds_in_step: Since its weight was reached.
        seconds_in_all: Since the start.
    """
    percents = np.asarray(policy.steps)
    index = np.asarray(step)
    # A dark step has no requests to wait for.
    wanted = np.where(percents[index] > 0, policy.minimum.requests, 0)
    enough = (np.asarray(requests_in_step) >= wanted) & (np.asarray(seconds_in_step) >= policy.minimum.seconds)
    is_last = index >= len(percents) - 2
    expired = np.asarray(seconds_in_all) >= policy.deadline.after_minutes * 60
    at_deadline = {"rollback": _ROLLBACK, "promote": _PROMOTE, "hold": _HOLD}[policy.deadline.action]
    return np.select(
        [np.asarray(harmed), enough & is_last & np.asarray(shown), expired, enough & ~is_last],
        [np.full(index.shape, code) for code in (_ROLLBACK, _PROMOTE, at_deadline, _ADVANCE)],
        _HOLD,
    )


class MetricTests:
    """The tests of one metric, for one rollout or for many in lockstep.

    Args:
        metric: The metric.
        policy: Its policy, for alpha.
        shape: () for one rollout, or (rollouts,).
    """

    def __init__(self, metric: Metric, policy: Policy, shape: tuple[int, ...] = ()) -> None:
        self.metric = metric
        self.shape = shape
        self._alpha = policy.alpha / len(policy.metrics)
        self._windows = policy.sustained_windows
        self._harm: dict[str, EProcess] = {}
        self._undeclared: list[str] = []
        self._totals: dict[str, Floats] = {}
        self._margin_totals: Floats = np.zeros((4, *shape))
        self.margin: EProcess | None = None
        self._margin_alpha = policy.alpha
        if metric.is_needed:
            cap = self._cap(log_threshold(policy.alpha))
            self.margin = EProcess(metric.margin_limit, "below", shape, cap)
        # They are there from the start, so that a table of findings shows them before the first window.
        for group in ("", *(metric.groups if isinstance(metric, LabelsMetric) else ())):
            self._open(group)

    def add(self, group: str, counts: Counts, at_last_step: ArrayLike) -> None:
        """Add what both arms did over the same time.

        Args:
            group: A group, empty for all requests.
            counts: What they did.
            at_last_step: Whether it counts for the margin, of the judge's shape.
        """
        self._open(group)
        values = (counts.candidate_events, counts.candidate_total, counts.stable_events, counts.stable_total)
        self._harm[group].add(*values)
        counted = np.stack([np.broadcast_to(np.asarray(value, float), self.shape) for value in values])
        self._totals[group] += counted
        if not group and self.margin is not None:
            # Without requests of the candidate a window only teaches the stable rate.
            events, requests = (np.where(at_last_step, value, 0) for value in values[:2])
            self.margin.add(events, requests, counts.stable_events, counts.stable_total)
            self._margin_totals += np.where(at_last_step, counted, 0)

    def add_losses(self, group: str, candidate: Sequence[float], stable: Sequence[float], at_last_step: bool) -> None:
        """Add losses from 0 to 1 of both arms, one a label; for one rollout. The arguments are those of `add`."""
        self._open(group)
        self._harm[group].add_losses(np.asarray(candidate, float), np.asarray(stable, float))
        counted = np.array([math.fsum(candidate), len(candidate), math.fsum(stable), len(stable)])
        self._totals[group] += counted
        if not group and self.margin is not None:
            self.margin.add_losses(np.asarray(candidate if at_last_step else (), float), np.asarray(stable, float))
            self._margin_totals += counted if at_last_step else 0

    @property
    def harmed(self) -> Booleans:
        """Whether any test of harm has ever reached its alpha, of the judge's shape."""
        reached = np.zeros(self.shape, bool)
        for group, process in self._harm.items():
            reached = reached | (process.peak_log_e >= log_threshold(self.alpha_of(group)))
        return reached

    @property
    def shown(self) -> Booleans:
        """Whether the margin is shown now, of the judge's shape; True for a guardrail."""
        if self.margin is None:
            return np.ones(self.shape, bool)
        return self.margin.log_e >= log_threshold(self._margin_alpha)

    def alpha_of(self, group: str) -> float:
        """Return the alpha of a group's test of harm; all of them add up to at most the metric's."""
        if not (isinstance(self.metric, LabelsMetric) and self.metric.by):
            return self._alpha
        if not group:
            return self._alpha * (1 - _GROUPS_SHARE)
        for_groups = self._alpha * _GROUPS_SHARE
        declared = self.metric.groups
        if group in declared:
            return for_groups * (1 - _UNDECLARED_SHARE) / len(declared)
        # 1/(k (k + 1)) over k = 1, 2, ... adds up to 1, however many groups still come.
        number = self._undeclared.index(group) + 1
        return for_groups * (_UNDECLARED_SHARE if declared else 1.0) / (number * (number + 1))

    def find(self) -> list[Finding]:
        """Return what every test says, for one rollout."""
        findings = [
            self._describe(group, "harm", process, self.alpha_of(group), float(process.peak_log_e))
            for group, process in self._harm.items()
        ]
        if self.margin is not None:
            findings.append(self._describe("", "margin", self.margin, self._margin_alpha, float(self.margin.log_e)))
        return findings

    def to_dict(self) -> dict[str, Any]:
        """Return the state of one rollout as JSON values."""
        return {
            "harm": {group: process.to_dict() for group, process in self._harm.items()},
            "margin": None if self.margin is None else self.margin.to_dict(),
            "undeclared": self._undeclared,
            "totals": {group: [float(value) for value in total] for group, total in self._totals.items()},
            "margin_totals": [float(value) for value in self._margin_totals],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `to_dict` returned."""
        for group in state["undeclared"]:
            self._open(group)
        for group, values in state["harm"].items():
            self._harm[group].restore(values)
            self._totals[group] = np.array(state["totals"][group])
        if self.margin is not None:
            self.margin.restore(state["margin"])
            self._margin_totals = np.array(state["margin_totals"])

    def _open(self, group: str) -> None:
        if group in self._harm:
            return
        if group and not (isinstance(self.metric, LabelsMetric) and group in self.metric.groups):
            self._undeclared.append(group)
        cap = self._cap(log_threshold(self.alpha_of(group)))
        self._harm[group] = EProcess(self.metric.tolerance.to_limit(), "above", self.shape, cap)
        self._totals[group] = np.zeros((4, *self.shape))

    def _cap(self, threshold: float) -> float | None:
        # One window less than wanted cannot reach the threshold from 0; as many as wanted can, also from the little
        # below 0 where the process stands after quiet windows.
        return threshold / (self._windows - 0.7) if self._windows > 1 else None

    def _describe(
        self, group: str, test: Literal["harm", "margin"], process: EProcess, alpha: float, log_evidence: float
    ) -> Finding:
        totals = self._totals[group] if test == "harm" else self._margin_totals
        bad_candidate, all_candidate, bad_stable, all_stable = (float(value) for value in totals)
        candidate = bad_candidate / all_candidate if all_candidate else None
        stable = bad_stable / all_stable if all_stable else None
        is_reached = log_evidence >= log_threshold(alpha)
        evidence = math.exp(min(log_evidence, 700.0))
        name = f"{self.metric.name} of group {group}" if group else self.metric.name
        limit = process.limit
        line = " + ".join(
            part
            for part in (
                f"{limit.ratio:g} times the stable rate" if limit.ratio != 1 else "the stable rate",
                f"{limit.difference:.2%}" if limit.difference else "",
            )
            if part
        )
        claim = f"more than {line}" if test == "harm" else f"less than {line}"
        rates = f"candidate {_share(candidate)} of {all_candidate:,.0f}, stable {_share(stable)} of {all_stable:,.0f}"
        says = "shown to be" if is_reached else "not shown to be"
        reason = f"{name} is {says} {claim}: {rates}; evidence {evidence:,.3g}, {1 / alpha:,.3g} is needed"
        return Finding(
            self.metric.name,
            group,
            test,
            is_reached,
            evidence,
            1 / alpha,
            candidate,
            stable,
            all_candidate,
            all_stable,
            reason,
        )


class LatencyBound:
    """Which bound of the histogram a quantile stands for, chosen from earlier windows of the stable version alone.

    It is chosen at the first window of a step and kept through it: a bound that followed the window's own outcomes
    would spoil the test.

    Args:
        metric: The metric.
        bounds_seconds: The histogram's bounds, ascending.
        shape: () for one rollout, or (rollouts,).
    """

    def __init__(self, metric: LatencyMetric, bounds_seconds: Sequence[float], shape: tuple[int, ...] = ()) -> None:
        self.metric = metric
        self.bounds_seconds = tuple(bounds_seconds)
        self._known: Floats = np.zeros((*shape, len(self.bounds_seconds) + 1))
        self._index: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._is_chosen: Booleans = np.zeros(shape, bool)
        self._step: NDArray[np.int64] = np.zeros(shape, np.int64)

    def count(self, step: ArrayLike, candidate: ArrayLike, stable: ArrayLike) -> tuple[Counts, Booleans]:
        """Return the requests above the bound, and for which rollouts there is a bound.

        Args:
            step: Of the judge's shape.
            candidate: Counts of the buckets, shape (..., bounds + 1).
            stable: The same of the stable version.
        """
        at, slow, fast = np.asarray(step), np.asarray(candidate, float), np.asarray(stable, float)
        self._choose(at)
        beyond = np.arange(len(self.bounds_seconds) + 1) > self._index[..., None]
        counts = Counts(
            np.where(self._is_chosen, (slow * beyond).sum(-1), 0.0),
            np.where(self._is_chosen, slow.sum(-1), 0.0),
            np.where(self._is_chosen, (fast * beyond).sum(-1), 0.0),
            np.where(self._is_chosen, fast.sum(-1), 0.0),
        )
        is_chosen = self._is_chosen
        self._known = self._known + fast
        return counts, is_chosen

    @property
    def seconds(self) -> float | None:
        """The bound of one rollout; None before there is one."""
        return self.bounds_seconds[int(self._index)] if bool(self._is_chosen) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the state of one rollout as JSON values."""
        return {
            "bounds_seconds": list(self.bounds_seconds),
            "known": [float(value) for value in self._known],
            "index": int(self._index),
            "is_chosen": bool(self._is_chosen),
            "step": int(self._step),
        }

    @classmethod
    def from_dict(cls, metric: LatencyMetric, state: Mapping[str, Any]) -> "LatencyBound":
        """Rebuild from `to_dict`."""
        bound = cls(metric, state["bounds_seconds"])
        bound._known = np.array(state["known"], float)
        bound._index = np.array(state["index"], np.int64)
        bound._is_chosen = np.array(state["is_chosen"], bool)
        bound._step = np.array(state["step"], np.int64)
        return bound

    def _choose(self, step: NDArray[np.int64]) -> None:
        bounds = np.asarray(self.bounds_seconds)
        if self.metric.seconds is not None:
            # Beyond the last bound nothing is counted apart.
            index = np.searchsorted(bounds, self.metric.seconds * (1 - 1e-9))
            self._index = np.full_like(self._index, min(index, len(bounds) - 1))
            self._is_chosen = np.full_like(self._is_chosen, bool(index < len(bounds)))
            return
        quantile = self.metric.quantile
        assert quantile is not None  # for the type checker: a metric has one of the two
        total = self._known.sum(-1)
        under = np.cumsum(self._known[..., :-1], -1) >= quantile * total[..., None]
        can = (total * (1 - quantile) >= _EXPECTED_BEYOND) & under.any(-1)
        again = can & (~self._is_chosen | (step != self._step))
        self._index = np.where(again, under.argmax(-1), self._index)
        self._step = np.where(again, step, self._step)
        self._is_chosen = self._is_chosen | again


@dataclass
class _Span:
    """The windows of one step, which follow each other."""

    start: float
    end: float
    step: int


@dataclass
class _Tally:
    """What a judge has seen beside the tests' counts."""

    requests_in_step: float = 0.0
    step: int = 0
    excluded: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Judge:
    """Folds evidence into tests, window by window; the same evidence gives the same verdict.

    Args:
        policy: The policy.
        state: From `to_dict`, to go on where another judge stopped.

    >>> from mlflywheel.decisions.canary.policy import Policy
    >>> judge = Judge(Policy())
    >>> for number in range(40):
    ...     judge.observe(Window(number * 30, number * 30 + 30, 0, 50, Arm(1000, 10), Arm(1000, 80)))
    >>> judge.decide(seconds_in_step=1200, seconds_in_all=1200).action
    'rollback'
    """

    def __init__(self, policy: Policy, state: Mapping[str, Any] | None = None) -> None:
        self.policy = policy
        self._tests = {metric.name: MetricTests(metric, policy) for metric in policy.metrics}
        self._bounds: dict[str, LatencyBound] = {}
        self._spans: list[_Span] = []
        self._tally = _Tally()
        if state:
            self._restore(state)

    def observe(self, window: Window) -> None:
        """Add a window; they come in the order of time."""
        if not self._spans or self._spans[-1].step != window.step:
            self._spans.append(_Span(window.start, window.end, window.step))
            self._tally.step, self._tally.requests_in_step = window.step, 0.0
        self._spans[-1].end = window.end
        excluded = window.excluded_because
        if excluded:
            self._tally.excluded[excluded] += 1
            return
        self._tally.requests_in_step += round(window.candidate.requests)
        for metric in self.policy.metrics:
            counts = self._count(metric, window)
            if counts is not None:
                self._tests[metric.name].add("", counts, self._is_last(window.step))

    def observe_labels(self, joined: Iterable[JoinedLabel]) -> None:
        """Add labels that arrived together, after the windows of their answers.

        Arms are compared among the answers of one step. Answers from before the first window count for nothing.
        """
        blocks: dict[tuple[str, int, str], dict[str, list[float]]] = {}
        starts = [span.start for span in self._spans]
        by = {metric.name: metric for metric in self.policy.metrics if isinstance(metric, LabelsMetric)}
        for one in joined:
            metric = by.get(one.label.metric)
            if metric is None:
                self._tally.excluded[f"labels of {one.label.metric}, which is no metric of the policy"] += 1
                continue
            index = bisect_right(starts, one.answer.time) - 1
            if index < 0:
                self._tally.excluded["labels of answers from before the rollout"] += 1
                continue
            # The last span still grows: its next window may not have been read yet.
            if index < len(starts) - 1 and one.answer.time >= self._spans[index].end:
                self._tally.excluded["labels of answers that were given while the weights changed"] += 1
                continue
            groups = [""]
            if metric.by is not None:
                group = one.answer.groups.get(metric.by)
                groups += [group] if group else []
            for group in groups:
                key = (metric.name, self._spans[index].step, group)
                block = blocks.setdefault(key, {"candidate": [], "stable": []})
                block[one.answer.arm].append(one.label.loss)
        # In this order, so that a group that nobody declared gets the same alpha in every run.
        for (name, step, group), block in sorted(blocks.items()):
            self._tests[name].add_losses(group, block["candidate"], block["stable"], self._is_last(step))

    def decide(self, seconds_in_step: float, seconds_in_all: float, step: int | None = None) -> Verdict:
        """Return what to do.

        Args:
            seconds_in_step: Since the step's weight was reached.
            seconds_in_all: Since the rollout's start.
            step: The step, if it has no window yet.
        """
        tests = self._tests.values()
        harmed = any(bool(test.harmed) for test in tests)
        shown = all(bool(test.shown) for test in tests)
        at = self._tally.step if step is None else step
        requests = self._tally.requests_in_step if at == self._tally.step else 0.0
        code = int(choose_action(self.policy, harmed, shown, at, requests, seconds_in_step, seconds_in_all))
        action = ACTIONS[code]
        findings = sorted((finding for test in tests for finding in test.find()), key=lambda one: one.test != "harm")
        is_decided = harmed or (shown and action == "promote")
        by_deadline = not is_decided and seconds_in_all >= self.policy.deadline.after_minutes * 60
        reason = self._explain(action, findings, at, requests, seconds_in_step, by_deadline)
        notes = tuple(f"{count} x {text}" for text, count in self._tally.excluded.items())
        return Verdict(action, reason, tuple(findings), at, requests, by_deadline, notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "tests": {name: test.to_dict() for name, test in self._tests.items()},
            "bounds": {name: bound.to_dict() for name, bound in self._bounds.items()},
            "spans": [[span.start, span.end, span.step] for span in self._spans],
            "step": self._tally.step,
            "requests_in_step": self._tally.requests_in_step,
            "excluded": dict(self._tally.excluded),
        }

    def _is_last(self, step: int) -> bool:
        return step >= len(self.policy.steps) - 2

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, test in self._tests.items():
            test.restore(state["tests"][name])
        for metric in self.policy.metrics:
            if isinstance(metric, LatencyMetric) and metric.name in state["bounds"]:
                self._bounds[metric.name] = LatencyBound.from_dict(metric, state["bounds"][metric.name])
        self._spans = [_Span(float(start), float(end), int(step)) for start, end, step in state["spans"]]
        self._tally = _Tally(state["requests_in_step"], state["step"], defaultdict(int, state["excluded"]))

    def _count(self, metric: Metric, window: Window) -> Counts | None:
        """Return a window's counts of a metric; None where it has none."""
        candidate, stable = window.candidate, window.stable
        if isinstance(metric, LabelsMetric):
            return None
        if isinstance(metric, LatencyMetric):
            return self._count_slow(metric, window)
        if isinstance(metric, CounterMetric):
            found = [arm.counters.get(metric.name) for arm in (candidate, stable)]
            if found[0] is None or found[1] is None:
                self._tally.excluded[f"windows without the counter {metric.name}"] += 1
                return None
            events = [_whole(one.events, one.total) for one in found if one is not None]
            if metric.better == "more":
                events = [(total - bad, total) for bad, total in events]
            return Counts(*events[0], *events[1])
        return Counts(*_whole(candidate.errors, candidate.requests), *_whole(stable.errors, stable.requests))

    def _count_slow(self, metric: LatencyMetric, window: Window) -> Counts | None:
        histograms = _share_bounds(window.candidate, window.stable)
        if histograms is None:
            self._tally.excluded[f"windows without histograms of common bounds for {metric.name}"] += 1
            return None
        candidate, stable = histograms
        bound = self._bounds.get(metric.name)
        if bound is None or bound.bounds_seconds != stable.bounds_seconds:
            bound = self._bounds[metric.name] = LatencyBound(metric, stable.bounds_seconds)
        counts, is_chosen = bound.count(window.step, np.round(candidate.counts), np.round(stable.counts))
        return counts if bool(is_chosen) else None

    def _explain(
        self,
        action: Action,
        findings: Sequence[Finding],
        step: int,
        requests: float,
        seconds: float,
        by_deadline: bool,
    ) -> str:
        policy = self.policy
        if by_deadline:
            return (
                f"no decision within {policy.deadline.after_minutes:g} minutes, and the policy then says "
                f"{policy.deadline.action}; {self._lacking(findings)}"
            )
        if action == "rollback":
            return "; ".join(one.reason for one in findings if one.test == "harm" and one.is_reached)
        if action == "promote":
            return "; ".join(one.reason for one in findings if one.test == "margin")
        at_percent = f"at {policy.steps[step]:g} %"
        if action == "advance":
            return f"{requests:,.0f} requests in {seconds:,.0f} s {at_percent} without evidence of harm"
        wanted = policy.minimum.requests if policy.steps[step] > 0 else 0
        if requests < wanted:
            return f"{requests:,.0f} requests {at_percent}, {wanted:,} are needed"
        if seconds < policy.minimum.seconds:
            return f"{seconds:,.0f} s {at_percent}, {policy.minimum.seconds:g} s are needed"
        return self._lacking(findings)

    def _lacking(self, findings: Sequence[Finding]) -> str:
        lacking = [one.reason for one in findings if one.test == "margin" and not one.is_reached]
        return "; ".join(lacking) or "all margins are shown"


def judge(
    evidence: Evidence, policy: Policy, seconds_in_step: float | None = None, seconds_in_all: float | None = None
) -> Verdict:
    """Judge all evidence at once. Pure: the same evidence and policy give the same verdict.

    Labels are added with the window in which they arrived.

    Args:
        evidence: What is known.
        policy: What it has to show.
        seconds_in_step: Time at the last window's step; by default from its first window's start to its end.
        seconds_in_all: Time since the start; by default from the first window's start to the last one's end.
    """
    folded = Judge(policy)
    join = join_labels(evidence.answers, evidence.labels)
    waiting = list(join.joined)
    for window in evidence.windows:
        folded.observe(window)
        arrived = [one for one in waiting if one.label.time <= window.end]
        waiting = waiting[len(arrived) :]
        folded.observe_labels(arrived)
    # Labels keep arriving when there is no traffic left to count.
    folded.observe_labels(waiting)
    if join.unknown:
        folded._tally.excluded["labels of requests that nobody is known to have answered"] += join.unknown
    if join.repeated:
        folded._tally.excluded["labels of answers that already had one"] += join.repeated
    if evidence.windows:
        last = evidence.windows[-1]
        first = last
        for window in reversed(evidence.windows):
            if window.step != last.step:
                break
            first = window
        seconds_in_step = last.end - first.start if seconds_in_step is None else seconds_in_step
        seconds_in_all = last.end - evidence.windows[0].start if seconds_in_all is None else seconds_in_all
    return folded.decide(seconds_in_step or 0.0, seconds_in_all or 0.0)


def _share_bounds(candidate: Arm, stable: Arm) -> tuple[Histogram, Histogram] | None:
    """Return both histograms over the bounds that they have in common; None without any."""
    if candidate.latency is None or stable.latency is None:
        return None
    if candidate.latency.bounds_seconds == stable.latency.bounds_seconds:
        return candidate.latency, stable.latency
    common = tuple(sorted({*candidate.latency.bounds_seconds} & {*stable.latency.bounds_seconds}))
    if not common:
        return None
    return _coarsen(candidate.latency, common), _coarsen(stable.latency, common)


def _coarsen(histogram: Histogram, bounds: tuple[float, ...]) -> Histogram:
    above = [histogram.total, *(histogram.count_above(bound) for bound in bounds), 0.0]
    return Histogram(bounds, tuple(before - after for before, after in pairwise(above)))


def _whole(events: float, total: float) -> tuple[float, float]:
    """Return whole counts: a source that extrapolates brings parts of a request."""
    rounded = float(round(total))
    return min(float(round(events)), rounded), rounded


def _share(rate: float | None) -> str:
    if rate is None:
        return "nothing"
    return f"{rate:.3%}" if rate < 0.01 else f"{rate:.2%}"
