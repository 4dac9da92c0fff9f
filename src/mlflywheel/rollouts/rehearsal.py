"""A rehearsal: recorded requests go to both versions, and the judge of a rollout looks at what they did.

Nothing is routed and no user waits. What differs from a rollout:

- Every request goes to both versions, one after the other in random order, so that a slow moment of the machine hits
  both alike. The arms' outcomes are then paired. Pairs that go along, as answers to the same request do, make a
  difference by chance rarer than the judge assumes, so that it errs on the side of saying nothing.
- Windows are cut by numbers of requests, and the policy's minimum of seconds and its deadline do not apply.
- An answer 4xx is nobody's error where both versions refuse the request, and an error of the version that alone
  refuses it. Live traffic cannot tell the two apart.
- A file that ends without a decision leaves the verdict at `hold`. `find_detectable` says what the requests would have
  shown.
"""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflywheel.decisions.canary.evidence import (
    ARMS,
    Answer,
    Arm,
    ArmName,
    Evidence,
    Histogram,
    JoinedLabel,
    Label,
    Window,
)
from mlflywheel.decisions.canary.judge import Counts, Finding, Judge, MetricTests, Verdict
from mlflywheel.decisions.canary.policy import CounterMetric, LabelsMetric, LatencyMetric, Metric, Policy
from mlflywheel.errors import DataError, GateRefusedError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.rollouts.answer_differences import Column, DifferenceTally, Row, measure_loss, name_columns, read_rows
from mlflywheel.rollouts.rehearsal_requests import Expectation, RecordedRequest, Recording

SCHEMA = 1

Outcome = Literal["answered", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "refused", "failed")
Undecided = Literal["pass", "refuse"]

_WINDOW_REQUESTS = 50
_MOST_WINDOWS = 200
_MOST_CONCURRENCY = 64
_EXAMPLES = 10
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
# Simulated rehearsals for one guess of a rate, and windows of each: a second or so for the whole search.
_SIMULATIONS = 200
_SIMULATED_WINDOWS = 40
_HALVINGS = 9


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    Args:
        status: HTTP status; None if there was no answer.
        body: Of the answer.
        seconds: From sending to the last byte, as the client saw it.
        problem: Why there is no answer.
    """

    status: int | None
    body: bytes
    seconds: float
    problem: str = ""


Answerer = Callable[[RecordedRequest], Reply]
"""One version. With a concurrency above 1, several threads call it."""


@dataclass(frozen=True)
class Example:
    """A request that went wrong.

    Args:
        request_id: The request.
        line: Its line in the file.
        stable: What the stable version said: `200`, or status and message.
        candidate: The same of the candidate.
    """

    request_id: str
    line: int
    stable: str
    candidate: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "request_id": self.request_id,
            "line": self.line,
            "stable": self.stable,
            "candidate": self.candidate,
        }


@dataclass(frozen=True)
class Detectable:
    """What a test of harm would have shown with these requests.

    Args:
        metric: Name of the policy's metric.
        requests: The candidate's requests, or labels, that were judged.
        stable_rate: The stable version's share of bad ones; None where nothing was judged.
        candidate_rate: The smallest share of the candidate's that is shown with `power`; None if no share is.
        power: The chance, from 0 to 1.
        bound_seconds: What the shares are slower than, of a latency metric whose bound was chosen.
        why_not: Why nothing was judged; empty if something was.
    """

    metric: str
    requests: float
    stable_rate: float | None
    candidate_rate: float | None
    power: float
    bound_seconds: float | None = None
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metric": self.metric,
            "requests": self.requests,
            "stable_rate": self.stable_rate,
            "candidate_rate": self.candidate_rate,
            "power": self.power,
            "bound_seconds": self.bound_seconds,
            "why_not": self.why_not,
        }

    def __str__(self) -> str:
        """Return it as a sentence without a full stop."""
        if self.why_not:
            return f"{self.metric} was not judged: {self.why_not}"
        what = self.metric if self.bound_seconds is None else f"{self.metric} (slower than {self.bound_seconds:g} s)"
        if self.candidate_rate is None:
            return f"{what}: {self.requests:,.0f} are too few to show any share with a chance of {self.power:.0%}"
        return (
            f"{what}: a share of {self.candidate_rate:.2%}, where the stable version has {self.stable_rate:.2%}, "
            f"would have been shown with a chance of {self.power:.0%}"
        )


@dataclass
class Replay:
    """What the replay of a recording brought.

    Args:
        verdict: The judge's, after the last request.
        windows: In the order of time.
        trail: After each window: requests so far, and the evidence by test of harm, named `metric` or `metric, group`:
            log(e-value) / log(needed), so that 1 refuses.
        outcomes: Requests by the stable version's outcome and the candidate's.
        differences: Of the requests that both answered.
        candidate_problems: Requests that only the candidate did not answer.
        stable_problems: Requests that only the stable version did not answer.
        shared_problems: Requests that neither answered.
        seconds: Of each request, by arm.
        losses: Mean loss by metric and arm, with the number of labels.
        bounds_seconds: The bound that each latency metric was judged at.
        decided_after: Requests before the first window after which the verdict was rollback; None if it never was.
        labels_unused: Labels that no metric of the policy is about.
    """

    verdict: Verdict
    differences: DifferenceTally
    windows: list[Window] = field(default_factory=list)
    trail: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    outcomes: Counter[tuple[Outcome, Outcome]] = field(default_factory=Counter)
    candidate_problems: list[Example] = field(default_factory=list)
    stable_problems: list[Example] = field(default_factory=list)
    shared_problems: list[Example] = field(default_factory=list)
    seconds: dict[ArmName, list[float]] = field(default_factory=lambda: {"stable": [], "candidate": []})
    losses: dict[str, dict[ArmName, list[float]]] = field(default_factory=dict)
    bounds_seconds: dict[str, float] = field(default_factory=dict)
    decided_after: int | None = None
    labels_unused: int = 0

    @property
    def requests(self) -> int:
        """How many were replayed."""
        return sum(self.outcomes.values())

    def count(self, stable: Outcome | None = None, candidate: Outcome | None = None) -> int:
        """Return how many requests had these outcomes; None stands for any."""
        return sum(
            number
            for (one, other), number in self.outcomes.items()
            if stable in (None, one) and candidate in (None, other)
        )

    def errors(self, arm: ArmName) -> int:
        """Return how many requests count as this arm's errors."""
        return int(sum(getattr(window, arm).errors for window in self.windows))

    def latency(self, arm: ArmName) -> dict[str, float]:
        """Return quantiles of the seconds, as the client saw them."""
        values = np.asarray(self.seconds[arm])
        return {f"p{quantile * 100:g}": float(np.quantile(values, quantile)) for quantile in _QUANTILES}


@dataclass(frozen=True)
class Version:
    """One of the two versions.

    Args:
        reference: `NAME@VERSION`, or the folder's name.
        hash: `sha256:` over the model's files.
        model: Its class.
        format: Name and version of its files' format.
    """

    reference: str
    hash: str
    model: str
    format: str

    def to_dict(self) -> dict[str, str]:
        """Return JSON values."""
        return {"reference": self.reference, "hash": self.hash, "model": self.model, "format": self.format}


@dataclass(frozen=True)
class Settings:
    """How a rehearsal was run.

    Args:
        seed: Of the order in which the versions were asked, and of simulations.
        concurrency: Requests at the same time.
        in_process: Whether the versions were called in this process, and not asked over HTTP.
        warm_up: Requests to each version before the first that counts.
        window_requests: Requests a window.
        undecided: What a file without a decision means.
    """

    seed: int
    concurrency: int
    in_process: bool
    warm_up: int
    window_requests: int
    undecided: Undecided

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "seed": self.seed,
            "concurrency": self.concurrency,
            "in_process": self.in_process,
            "warm_up": self.warm_up,
            "window_requests": self.window_requests,
            "undecided": self.undecided,
        }


@dataclass(frozen=True)
class Rehearsal:
    """A finished rehearsal.

    Args:
        id: Unique among rehearsals.
        stable: The version in use.
        candidate: The version to be judged.
        recording: The requests.
        policy: What was judged by.
        settings: How.
        replay: What happened.
        detectable: What the requests would have shown, one a metric; empty once harm is shown.
        seconds: Duration of each phase.
        folder: Where its files lie.
    """

    id: str
    stable: Version
    candidate: Version
    recording: Recording
    policy: Policy
    settings: Settings
    replay: Replay
    detectable: tuple[Detectable, ...]
    seconds: Mapping[str, float]
    folder: Path

    @property
    def verdict(self) -> Verdict:
        """The judge's verdict: `promote`, `rollback` or `hold`."""
        return self.replay.verdict

    @property
    def passes(self) -> bool:
        """Whether the candidate may get traffic."""
        action = self.verdict.action
        return action == "promote" or (action != "rollback" and self.settings.undecided == "pass")

    @property
    def report_path(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def summary_path(self) -> Path:
        """`to_dict` as a file."""
        return self.folder / "rehearsal.json"

    @property
    def reason(self) -> str:
        """Why it passes or not, without a full stop."""
        action = self.verdict.action
        if action == "rollback":
            after = self.replay.decided_after
            return f"harm is shown after {after or self.replay.requests:,} requests: {self.verdict.reason}"
        if action == "promote":
            return f"every margin is shown with {self.replay.requests:,} requests: {self.verdict.reason}"
        shown = "; ".join(str(one) for one in self.detectable)
        return f"no harm is shown in {self.replay.requests:,} requests, and not every margin either; {shown}"

    @property
    def refusal(self) -> GateRefusedError | None:
        """The error that stands for a refusal; None if it passes."""
        if self.passes:
            return None
        harmed = self.verdict.action == "rollback"
        return GateRefusedError(
            f"rehearsal of {self.candidate.reference} beside {self.stable.reference}",
            self.reason,
            "no evidence of harm is accepted" if harmed else "every margin of the policy has to be shown",
            "read the report, and repair the candidate" if harmed else "record more requests, or pass the undecided",
        )

    def raise_for_status(self) -> "Rehearsal":
        """Raise the refusal, if there is one (exit code 3); return the rehearsal otherwise."""
        refusal = self.refusal
        if refusal is not None:
            raise refusal
        return self

    def evidence(self) -> Evidence:
        """Return the windows, as `decisions.canary.judge` takes them; labels are not among them."""
        return Evidence(tuple(self.replay.windows))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `rehearsal.json` holds them."""
        replay = self.replay
        return {
            "schema": SCHEMA,
            "id": self.id,
            "passes": self.passes,
            "reason": self.reason,
            "verdict": self.verdict.to_dict(),
            "decided_after_requests": replay.decided_after,
            "detectable": [one.to_dict() for one in self.detectable],
            "stable": self.stable.to_dict(),
            "candidate": self.candidate.to_dict(),
            "requests": {
                "source": self.recording.source,
                "sha256": self.recording.sha256,
                "count": replay.requests,
                "left_out": dict(self.recording.left_out),
                "outcomes": [
                    {"stable": one, "candidate": other, "requests": number}
                    for (one, other), number in sorted(replay.outcomes.items())
                ],
            },
            "errors": {
                **{arm: replay.errors(arm) for arm in ARMS},
                "only_candidate": [one.to_dict() for one in replay.candidate_problems],
                "only_stable": [one.to_dict() for one in replay.stable_problems],
                "both": [one.to_dict() for one in replay.shared_problems],
            },
            "latency_seconds": {arm: replay.latency(arm) for arm in ARMS},
            "latency_bounds_seconds": dict(replay.bounds_seconds),
            "labels": {
                metric: {
                    arm: {"count": len(losses), "mean_loss": sum(losses) / len(losses) if losses else None}
                    for arm, losses in arms.items()
                }
                for metric, arms in replay.losses.items()
            },
            "differences": replay.differences.to_dict(),
            "notes": self.notes,
            "settings": self.settings.to_dict(),
            "policy": self.policy.to_dict(),
            "seconds": dict(self.seconds),
        }

    @property
    def notes(self) -> list[str]:
        """What kept requests, labels or windows out."""
        left_out = [f"{count:,} lines left out: {kind}" for kind, count in self.recording.left_out.items()]
        unused = self.replay.labels_unused
        labels = [f"{unused:,} labels: the policy has no metric of kind labels"] if unused else []
        return [*left_out, *self.recording.notes, *labels, *self.verdict.notes]


def choose_window_requests(requests: int) -> int:
    """Return how many requests make a window: 50, or as many as make at most 200 windows.

    >>> choose_window_requests(1_000), choose_window_requests(100_000)
    (50, 500)
    """
    return max(_WINDOW_REQUESTS, math.ceil(requests / _MOST_WINDOWS))


def check_rehearsal(recording: Recording, policy: Policy, concurrency: int) -> None:
    """Refuse what could not be judged, before anything is started.

    Raises:
        UsageError: The concurrency is out of range.
        DataError: Fewer requests than the policy's minimum.
    """
    if not 1 <= concurrency <= _MOST_CONCURRENCY:
        raise UsageError(
            "concurrency", str(concurrency), f"1 to {_MOST_CONCURRENCY} requests at once are possible", "use 1"
        )
    if len(recording.requests) < policy.minimum.requests:
        raise DataError(
            recording.source,
            f"{len(recording.requests):,} requests",
            f"the policy's minimum is {policy.minimum.requests:,}",
            "record more requests, or lower minimum.requests in the policy",
        )


def replay_requests(
    recording: Recording,
    stable: Answerer,
    candidate: Answerer,
    policy: Policy,
    *,
    bounds_seconds: Sequence[float],
    columns: Mapping[str, Column] | None = None,
    seed: int = 0,
    concurrency: int = 1,
    warm_up: int = 20,
    progress: ProgressCallback = ignore_progress,
    clock: Callable[[], float] = time.time,
) -> Replay:
    """Send every request to both versions, and judge what they did.

    All requests are sent, also after a decision: the report is about all of them.

    Args:
        recording: The requests.
        stable: The version in use.
        candidate: The version to be judged.
        policy: What has to be shown.
        bounds_seconds: Bounds of the latency histograms, ascending.
        columns: What both versions declare about their answers.
        seed: Of the order within each pair.
        concurrency: Pairs at the same time; the two requests of a pair never are.
        warm_up: The first so many requests go to both versions once before they count.
        progress: Called with the phases `warming up` and `replaying`.
        clock: Seconds since 1970.

    Raises:
        DataError: Nothing was answered, or a label names a column that no answer has.
    """
    requests = recording.requests
    rng = random.Random(seed)
    stable_first = [rng.random() < 0.5 for _ in requests]

    def ask(index: int) -> tuple[Reply, Reply]:
        request = requests[index]
        if stable_first[index]:
            first = stable(request)
            return first, candidate(request)
        other = candidate(request)
        return stable(request), other

    for number in range(min(warm_up, len(requests))):
        ask(number)
        progress("warming up", number + 1, min(warm_up, len(requests)))

    judge = Judge(policy.model_copy(update={"minimum": policy.minimum.model_copy(update={"seconds": 0.0})}))
    step = len(policy.steps) - 2
    replay = Replay(judge.decide(0.0, 0.0, step), DifferenceTally(columns or {}))
    size = choose_window_requests(len(requests))
    tally = _Tally(replay, tuple(bounds_seconds))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(concurrency)) if concurrency > 1 else None
        for begin in range(0, len(requests), size):
            block = range(begin, min(begin + size, len(requests)))
            start = clock()
            pairs = []
            for index, pair in zip(block, pool.map(ask, block) if pool else map(ask, block), strict=True):
                pairs.append((requests[index], *pair))
                progress("replaying", index + 1, len(requests))
            window, joined = tally.add(pairs, start, max(clock(), start + 1e-3), step)
            judge.observe(window)
            judge.observe_labels(joined)
            replay.verdict = judge.decide(0.0, 0.0)
            if replay.verdict.action == "rollback" and replay.decided_after is None:
                replay.decided_after = block[-1] + 1
            replay.trail.append((block[-1] + 1, _weigh(replay.verdict.findings)))
    for name, bound in judge.to_dict()["bounds"].items():
        if bound["is_chosen"]:
            replay.bounds_seconds[name] = bound["bounds_seconds"][bound["index"]]
    _check_answers(replay, recording)
    return replay


def _weigh(findings: Sequence[Finding]) -> dict[str, float]:
    """Return how near each test of harm is to its threshold, on a log scale: 0 is no evidence, 1 refuses."""
    return {
        f"{one.metric}, {one.group}" if one.group else one.metric: math.log(max(one.evidence, 1.0))
        / math.log(one.needed)
        for one in findings
        if one.test == "harm"
    }


def _check_answers(replay: Replay, recording: Recording) -> None:
    """Refuse a rehearsal in which the stable version answered nothing: it would say nothing about the candidate."""
    if replay.count(stable="answered"):
        return
    first = (replay.shared_problems or replay.stable_problems)[0]
    raise DataError(
        recording.source,
        f"the stable version answers none of the {replay.requests:,} requests; line {first.line}: {first.stable}",
        "requests that the stable version answers are needed",
        "see that they were recorded for this model",
    )


@dataclass
class _Tally:
    """Adds up the pairs of one window after the other."""

    replay: Replay
    bounds_seconds: tuple[float, ...]

    def add(
        self, pairs: Sequence[tuple[RecordedRequest, Reply, Reply]], start: float, end: float, step: int
    ) -> tuple[Window, list[JoinedLabel]]:
        errors: dict[ArmName, int] = {"stable": 0, "candidate": 0}
        seconds: dict[ArmName, list[float]] = {"stable": [], "candidate": []}
        joined: list[JoinedLabel] = []
        for request, *replies in pairs:
            outcomes, rows, words = zip(*(_read_reply(reply, request) for reply in replies), strict=True)
            self.replay.outcomes[outcomes] += 1
            self._note_answers(request, outcomes, rows, words)
            for arm, reply, own, other in zip(ARMS, replies, outcomes, reversed(outcomes), strict=True):
                errors[arm] += own == "failed" or (own == "refused" and other == "answered")
                seconds[arm].append(reply.seconds)
            joined += self._join(request, outcomes, rows, start)
        for arm in ARMS:
            self.replay.seconds[arm] += seconds[arm]
        stable, candidate = (Arm(len(pairs), errors[arm], self._count(seconds[arm])) for arm in ARMS)
        window = Window(start, end, step, 50.0, stable, candidate)
        self.replay.windows.append(window)
        return window, joined

    def _count(self, seconds: Sequence[float]) -> Histogram:
        # A bucket holds what is at most its bound, as Prometheus' `le` does.
        places = np.searchsorted(np.asarray(self.bounds_seconds), np.asarray(seconds), side="left")
        counts = np.bincount(places, minlength=len(self.bounds_seconds) + 1)
        return Histogram(self.bounds_seconds, tuple(float(count) for count in counts))

    def _note_answers(
        self,
        request: RecordedRequest,
        outcomes: Sequence[Outcome],
        rows: Sequence[Sequence[Row]],
        words: Sequence[str],
    ) -> None:
        replay = self.replay
        stable, candidate = (outcome == "answered" for outcome in outcomes)
        if stable and candidate:
            replay.differences.add(request.line, request.request_id, rows[0], rows[1])
            return
        listed = replay.candidate_problems if stable else replay.stable_problems
        if not stable and not candidate:
            listed = replay.shared_problems
        if len(listed) < _EXAMPLES:
            listed.append(Example(request.request_id, request.line, *words))

    def _join(
        self, request: RecordedRequest, outcomes: Sequence[Outcome], rows: Sequence[Sequence[Row]], start: float
    ) -> list[JoinedLabel]:
        """Return what the request's labels say about both answers; a request that nobody answered says nothing."""
        joined: list[JoinedLabel] = []
        if "answered" not in outcomes:
            return joined
        seen: set[tuple[str, ArmName]] = set()
        for one in request.expectations:
            if not one.metric:
                self.replay.labels_unused += 1
            _check_columns(one, request, [row for found in rows for row in found])
            for arm, outcome, found in zip(ARMS, outcomes, rows, strict=True):
                if one.arm not in (None, arm) or (one.metric, arm) in seen:
                    continue
                seen.add((one.metric, arm))
                loss = _measure(one, found) if outcome == "answered" else 1.0
                self.replay.losses.setdefault(one.metric or "(no metric)", {"stable": [], "candidate": []})[arm].append(
                    loss
                )
                if one.metric:
                    answer = Answer(request.request_id, arm, start, request.groups)
                    joined.append(JoinedLabel(answer, Label(request.request_id, one.metric, loss, start)))
        return joined


def _read_reply(reply: Reply, request: RecordedRequest) -> tuple[Outcome, list[Row], str]:
    """Return what a reply is, its rows if it is an answer, and what it says in words."""
    if reply.status is None:
        return "failed", [], f"no answer: {reply.problem}"
    if reply.status == 200:
        try:
            return "answered", read_rows(reply.body, request.protocol), "200"
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            return "failed", [], f"200, and no {request.protocol.upper()} answer ({error})"
    is_refused = 400 <= reply.status < 500
    return "refused" if is_refused else "failed", [], f"{reply.status} {_shorten(_read_message(reply.body))}".strip()


def _read_message(body: bytes) -> str:
    """Return the message of an error, which servers of V1 and V2 send as `{"error": ...}`."""
    try:
        message = json.loads(body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        message = None
    return message if isinstance(message, str) else body[:2_000].decode("utf-8", "replace")


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}…"


def _check_columns(expectation: Expectation, request: RecordedRequest, rows: Sequence[Row]) -> None:
    known = name_columns(rows)
    for expected in expectation.expected or ():
        for name in expected:
            if known and name not in known:
                raise DataError(
                    f"label of request {request.request_id}",
                    f"column {name!r}",
                    f"answers have {', '.join(known)}",
                    "correct the name",
                )


def _measure(expectation: Expectation, rows: Sequence[Row]) -> float:
    if expectation.expected is None:
        return expectation.loss
    expected = expectation.expected
    if len(expected) != len(rows):
        return 1.0
    losses = [measure_loss(one, row) for one, row in zip(expected, rows, strict=True)]
    return min(1.0, sum(losses) / len(losses))


def find_detectable(
    replay: Replay, policy: Policy, seed: int = 0, progress: ProgressCallback = ignore_progress
) -> tuple[Detectable, ...]:
    """Return what the replayed requests would have shown, one a metric, by simulating the judge's own tests.

    The stable version keeps its observed share of bad requests in both simulated arms' windows, the candidate gets a
    larger one; the smallest that is shown with the policy's power is searched for. Requests are drawn independently,
    and labels count as right or wrong, so that the numbers are rather too large for losses in between.

    Args:
        replay: What was replayed.
        policy: Its policy.
        seed: Of the simulation.
        progress: Called with the phase `measuring power`.
    """
    found = []
    for number, metric in enumerate(policy.metrics):
        finding = next(one for one in replay.verdict.findings if one.metric == metric.name and one.test == "harm")
        rate: float | None = None
        why_not = ""
        if finding.candidate_total and finding.stable_total and finding.stable_rate is not None:
            sizes = _guess_windows(finding, replay)
            rate = _search_rate(metric, policy, sizes, finding.stable_rate, seed)
        else:
            why_not = _explain_silence(metric, replay)
        bound = replay.bounds_seconds.get(metric.name)
        found.append(
            Detectable(metric.name, finding.candidate_total, finding.stable_rate, rate, policy.power, bound, why_not)
        )
        progress("measuring power", number + 1, len(policy.metrics))
    return tuple(found)


def _explain_silence(metric: Metric, replay: Replay) -> str:
    if isinstance(metric, LatencyMetric):
        if metric.seconds is not None:
            return f"no bound of the histogram is at least {metric.seconds:g} s"
        needed = math.ceil(2 / (1 - (metric.quantile or 0.0)))
        return (
            f"its bound is chosen from earlier requests, {needed:,} of which are needed; there were {replay.requests:,}"
        )
    if isinstance(metric, LabelsMetric):
        return "there are no labels of it"
    return "a rehearsal counts no such events" if isinstance(metric, CounterMetric) else "nothing was counted"


def _guess_windows(finding: Finding, replay: Replay) -> list[int]:
    """Return judged requests by window, neighbours put together where there are many windows."""
    windows = [int(window.candidate.requests) for window in replay.windows]
    total, judged = sum(windows), int(finding.candidate_total)
    # Latency is judged from the window on before which its bound was chosen; labels may be fewer, or repeat requests.
    shares = [round(judged * size / total) for size in windows]
    if judged <= total:
        shares, missing = [], total - judged
        for size in windows:
            shares.append(max(0, size - missing))
            missing = max(0, missing - size)
    per_window = math.ceil(len(shares) / _SIMULATED_WINDOWS)
    grouped = groupby(enumerate(shares), key=lambda one: one[0] // per_window)
    return [size for size in (sum(size for _, size in group) for _, group in grouped) if size > 0]


def _search_rate(metric: Metric, policy: Policy, sizes: Sequence[int], stable_rate: float, seed: int) -> float | None:
    """Return the smallest rate above the tolerance that is shown with the policy's power, to a few percent."""

    def find_power(rate: float) -> float:
        rng = np.random.default_rng(seed)
        tests = MetricTests(metric, policy, (_SIMULATIONS,))
        for size in sizes:
            stable = rng.binomial(size, stable_rate, _SIMULATIONS)
            tests.add("", Counts(rng.binomial(size, rate, _SIMULATIONS), size, stable, size), at_last_step=True)
        return float(tests.harmed.mean())

    allowed = metric.tolerance.to_limit().of(stable_rate)
    low, high = max(allowed, 0.1 / sum(sizes)), 1.0
    if low >= 1 or find_power(high) < policy.power:
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if find_power(middle) < policy.power:
            low = middle
        else:
            high = middle
    return high
