"""Sequential tests of two arms that may be asked after every window: e-processes for shares and bounded means.

A candidate c and a stable version s serve the same windows k. In window k the arms have n_c and n_s requests, of which
x_c and x_s are bad. A limit L(p) = ratio * p + difference says what the candidate may do where the stable version has
rate p, and there are two one-sided null hypotheses, each about all windows together:

    above   p_c,k <= L(p_s,k) in every window; evidence against it says that the candidate is worse than allowed
    below   p_c,k >= L(p_s,k) in every window; evidence against it says that the candidate is within the limit

The stable rate p_s,k may change from window to window in any way, and so may the share of traffic: arms are compared
only inside a window.

**One window.** Take an alternative (a, b), a guess of (p_s, p_c) outside the null that is made before the outcomes are
seen. Let (a0, b0) minimise n_s KL(a || a0) + n_c KL(b || b0) over the null; it lies on the line b0 = L(a0). The bet is

    E = prod over stable requests y of q(y; a) / q(y; a0)  *  prod over candidate requests y of q(y; b) / q(y; b0)

with q(1; p) = p and q(0; p) = 1 - p. Claim: E[E] <= 1 at every point of the null.

 1. The mean of a stable factor at rate p is f_s(p) = 1 + (p - a0)(a - a0) / (a0 (1 - a0)), and f_c alike with b. Both
    are affine in p, so requests of different rates count by their mean rate.
 2. The arithmetic mean is at least the geometric mean, so
    E[E] = f_s^n_s f_c^n_c <= (1 + (n_s (f_s - 1) + n_c (f_c - 1)) / (n_s + n_c))^(n_s + n_c).
 3. n_s (f_s - 1) + n_c (f_c - 1) is minus the derivative of the divergence at (a0, b0) in the direction of (p_s, p_c).
    The null is convex and (a0, b0) is its minimum there, so that this is at most 0.

Only the means of the rates over a window's requests have to obey the null. The factor y b / b0 + (1 - y)(1 - b) /
(1 - b0) is affine in y too, so for losses y in [0, 1] the same bet is valid about their means.

**Many windows.** A weighted mean of such bets is such a bet, if the weights are fixed before the window. One expert is
idle and stakes nothing; the others hold alternatives around a guess of the stable rate that earlier windows gave. After
the window each weight grows by its expert's factor, as in Bayes' rule, and a share of all weight goes back to the prior
weights, so that an expert that lost early can still answer to a late change. The product over the windows is a
nonnegative supermartingale that starts at 1, whatever was learnt on the way. By Ville's inequality the chance that it
ever reaches 1 / alpha is at most alpha under the null, so that it may be looked at after every window, and the rollout
may stop for any reason.

What it rests on: n_c, n_s and the cut into windows do not depend on the outcomes inside the window (retries that
count as requests break this); requests are independent given their rates, so that an outage of one arm's pod counts
request by request; and the arms' requests of one window are alike, as they are with random routing. A drift that both
arms share breaks nothing.

Sources: R. J. Turner, A. Ly and P. D. Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for
optional stopping", Journal of Statistical Planning and Inference 230 (2024). R. J. Turner and P. D. Grünwald, "Exact
anytime-valid confidence intervals for contingency tables and beyond", Statistics and Probability Letters 198 (2023).
Bounded means: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86
(2024). The share that goes back: M. Herbster and M. K. Warmuth, "Tracking the best expert", Machine Learning 32 (1998).
J. Ville, "Étude critique de la notion de collectif" (1939).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflywheel.errors import UsageError

Side = Literal["above", "below"]
Floats = NDArray[np.float64]

_LOWEST_RATE = 1e-6
_HIGHEST_RATE = 0.999
# An alternative may be more extreme than a baseline: 100 times fewer errors than 1e-6.
_LOWEST_ALTERNATIVE = 1e-9
_HIGHEST_ALTERNATIVE = 1 - 1e-6
# Losses of one arm times experts that are held in memory at once: 4 million of 8 bytes are 32 MiB.
_FACTORS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Limit:
    """The line L(p) = ratio * p + difference: the rate that the candidate is held to where the stable one has rate p.

    Args:
        ratio: At least 0. With 0 the limit is a fixed rate and the stable arm says nothing.
        difference: Between -1 and 1, a difference of rates.

    Raises:
        UsageError: A number is out of range, or the line passes no point with both rates between 0 and 1.

    >>> Limit(ratio=1.5, difference=0.002).of(0.01)
    0.017
    """

    ratio: float = 1.0
    difference: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio >= 0):
            raise UsageError("limit, ratio", repr(self.ratio), "a number of at least 0 is needed", "use 1.0")
        if not (math.isfinite(self.difference) and -1 < self.difference < 1):
            raise UsageError(
                "limit, difference", repr(self.difference), "a number between -1 and 1 is needed", "use 0.0"
            )
        if self.ratio + self.difference <= 0 or (self.ratio == 0 and self.difference <= 0):
            raise UsageError(
                "limit",
                f"{self.ratio:g} * p {self.difference:+g}",
                "a limit above 0 for some rate p is needed",
                "raise the ratio or the difference",
            )

    def of(self, rate: float) -> float:
        """Return L(rate). It may lie outside [0, 1], where no candidate can be on one side of it."""
        return self.ratio * rate + self.difference


@dataclass(frozen=True)
class _Plan:
    """How the experts bet. Every choice is valid; these were chosen for power in simulations.

    Args:
        above: Odds ratios of the candidate's rate to the limit, for harm.
        below: Odds ratios of the limit to the candidate's rate, for non-inferiority.
        baselines: Multiples of the guessed stable rate, used where the limit has a difference. Without one the bets
            hardly depend on the guess, and 1 is the only multiple.
        idle_weight: Prior weight of staking nothing.
        equal_weight: Prior weight of equal arms, for non-inferiority where the limit leaves room for them.
        learner_weight: Prior weight of the candidate's own past rate.
        share: Part of the weight that goes back to the prior while the candidate's requests grow by a factor of e,
            roughly: in each window it is this times the window's part of all candidate requests so far.
        memory_events: The guess of a rate weighs the past as if it had seen at most this many bad events.
    """

    above: tuple[float, ...] = (1.25, 1.6, 2.2, 3.5, 8.0, 30.0, 200.0)
    below: tuple[float, ...] = (1.1, 1.3, 1.7, 2.5, 5.0, 20.0, 100.0)
    baselines: tuple[float, ...] = (0.7, 1.0, 1.4)
    idle_weight: float = 0.05
    equal_weight: float = 0.7
    learner_weight: float = 0.1
    share: float = 0.05
    memory_events: float = 50.0


_PLAN = _Plan()


def log_threshold(alpha: float) -> float:
    """Return the log e-value at which a null is rejected: log(1 / alpha), natural.

    Args:
        alpha: Chance of ever rejecting a true null, more than 0 and less than 1.

    Raises:
        UsageError: `alpha` is out of range.

    >>> round(log_threshold(0.05), 3)
    2.996
    """
    if not 0 < alpha < 1:
        raise UsageError("alpha", repr(alpha), "a number between 0 and 1 is needed", "use 0.05")
    return -math.log(alpha)


def growth(
    limit: Limit,
    side: Side,
    stable_rate: float,
    candidate_rate: float,
    candidate_requests: float,
    stable_requests: float,
) -> float:
    """Return the log growth of the e-process that a window brings on average if the rates were known to the bets.

    It is the best that a bet with one fixed alternative can do. Learning which alternative to take costs about 2 in
    all on top, and 1 where a candidate equal to the stable version is shown to be within a limit that leaves room.

    Args:
        limit: The limit.
        side: The null that is tested, `above` or `below`.
        stable_rate: The stable arm's rate, from 0 to 1.
        candidate_rate: The candidate's rate, from 0 to 1.
        candidate_requests: The window's candidate requests, at least 0.
        stable_requests: The window's stable requests, at least 0.

    Returns:
        Natural log per window; 0 where the rates obey the null.

    Raises:
        UsageError: An argument is out of range.

    >>> round(growth(Limit(), "above", 0.01, 0.02, 1000, 1000), 2)
    1.72
    """
    _check_side(side)
    for name, rate in (("stable_rate", stable_rate), ("candidate_rate", candidate_rate)):
        if not 0 <= rate <= 1:
            raise UsageError(
                f"growth, {name}", repr(rate), "a rate from 0 to 1 is needed", "pass bad events / requests"
            )
    for name, requests in (("candidate_requests", candidate_requests), ("stable_requests", stable_requests)):
        if not (math.isfinite(requests) and requests >= 0):
            raise UsageError(f"growth, {name}", repr(requests), "a number of at least 0 is needed", "pass a count")
    if candidate_requests == 0 or stable_requests == 0:
        return 0.0
    a = np.clip(np.array([stable_rate]), 1e-12, 1 - 1e-12)
    b = np.clip(np.array([candidate_rate]), 1e-12, 1 - 1e-12)
    n_c, n_s = np.array([float(candidate_requests)]), np.array([float(stable_requests)])
    bad_s, good_s, bad_c, good_c = _log_factors(limit, side, a, b, n_c, n_s)
    per_window = n_s * (a * bad_s + (1 - a) * good_s) + n_c * (b * bad_c + (1 - b) * good_c)
    return max(0.0, float(per_window[0]))


class EProcess:
    """Evidence against one null hypothesis, gathered window by window, for one rollout or for many in lockstep.

    Args:
        limit: The limit that the candidate is held to.
        side: `above` gathers evidence that the candidate is above the limit (harm), `below` that it is below.
        shape: () for one rollout, or (rollouts,) for simulated ones that share their number of windows.
        log_window_cap: The most that one window may add to `log_e`, so that no window decides alone; None is no cap.

    Raises:
        UsageError: An argument is out of range.

    >>> harm = EProcess(Limit(), "above")
    >>> for _ in range(20):
    ...     harm.add(candidate_events=4, candidate_requests=100, stable_events=1, stable_requests=100)
    >>> bool(harm.log_e >= log_threshold(0.001))
    True
    """

    def __init__(
        self, limit: Limit, side: Side, shape: tuple[int, ...] = (), log_window_cap: float | None = None
    ) -> None:
        _check_side(side)
        if log_window_cap is not None and not (math.isfinite(log_window_cap) and log_window_cap > 0):
            raise UsageError(
                "log_window_cap", repr(log_window_cap), "a number above 0, or None, is needed", "use log(1 / alpha) / 2"
            )
        self.limit = limit
        self.side: Side = side
        self.shape = tuple(shape)
        self.log_window_cap = log_window_cap
        self._plan = _PLAN
        rollouts = math.prod(self.shape)
        self._multiples, self._odds, self._prior = _lay_out_experts(self._plan, limit, side)
        # Experts come first, so that sums over them run along rows.
        self._weights: Floats = np.repeat(self._prior[:, None], rollouts, axis=1)
        self._log_e: Floats = np.zeros(rollouts)
        self._peak_log_e: Floats = np.zeros(rollouts)
        self._evidence_requests: Floats = np.zeros(rollouts)
        self._stable = _Rate(rollouts, self._plan.memory_events)
        self._candidate = _Rate(rollouts, self._plan.memory_events)

    @property
    def log_e(self) -> Floats:
        """The e-process now: natural log, float64 of shape `shape`, 0 before the first window."""
        return self._log_e.reshape(self.shape).copy()

    @property
    def peak_log_e(self) -> Floats:
        """The highest `log_e` after any window, which Ville's inequality is about: float64 of shape `shape`, >= 0."""
        return self._peak_log_e.reshape(self.shape).copy()

    @property
    def evidence_requests(self) -> Floats:
        """Candidate requests that were betted on: float64 of shape `shape`."""
        return self._evidence_requests.reshape(self.shape).copy()

    def add(
        self,
        candidate_events: ArrayLike,
        candidate_requests: ArrayLike,
        stable_events: ArrayLike,
        stable_requests: ArrayLike,
    ) -> None:
        """Add a window of counts. A window without requests in both arms, or without earlier stable ones, bets nothing.

        Args:
            candidate_events: The candidate's bad requests, whole numbers from 0 to `candidate_requests`; broadcast to
                `shape`, like all four.
            candidate_requests: The candidate's requests.
            stable_events: The stable version's bad requests, from 0 to `stable_requests`.
            stable_requests: The stable version's requests.

        Raises:
            UsageError: A count is negative, not whole or not finite, exceeds its requests, or has another shape.
        """
        x_c, n_c = self._read_counts("candidate", candidate_events, candidate_requests)
        x_s, n_s = self._read_counts("stable", stable_events, stable_requests)
        bets = (n_c > 0) & (n_s > 0) & (self._stable.requests > 0)
        if bets.any():
            bad_s, good_s, bad_c, good_c = self._factors(np.maximum(n_c, 1), np.maximum(n_s, 1))
            log_factor = x_s * bad_s + (n_s - x_s) * good_s + x_c * bad_c + (n_c - x_c) * good_c
            self._settle(log_factor, bets, n_c)
        self._stable.learn(x_s, n_s)
        self._candidate.learn(x_c, n_c)

    def add_losses(self, candidate_losses: ArrayLike, stable_losses: ArrayLike) -> None:
        """Add a window of losses, about whose means the limit speaks; losses of 0 and 1 give what `add` gives.

        Args:
            candidate_losses: One loss a candidate row, shape (rows,), values in [0, 1].
            stable_losses: One loss a stable row, shape (rows,), values in [0, 1].

        Raises:
            UsageError: The process has a shape, or a loss is outside [0, 1].
        """
        if self.shape != ():
            raise UsageError("add_losses", f"shape {self.shape}", "one rollout is needed", "use shape=()")
        y_c, y_s = _read_losses("candidate", candidate_losses), _read_losses("stable", stable_losses)
        n_c, n_s = np.array([float(y_c.size)]), np.array([float(y_s.size)])
        bets = (n_c > 0) & (n_s > 0) & (self._stable.requests > 0)
        if bets[0]:
            bad_s, good_s, bad_c, good_c = self._factors(n_c, n_s)
            log_factor = _sum_log_factors(y_s, bad_s, good_s) + _sum_log_factors(y_c, bad_c, good_c)
            self._settle(log_factor, bets, n_c)
        self._stable.learn(y_s.sum(keepdims=True), n_s)
        self._candidate.learn(y_c.sum(keepdims=True), n_c)

    def to_dict(self) -> dict[str, Any]:
        """Return the state of one rollout as JSON values."""
        return {
            "log_e": float(self._log_e[0]),
            "peak_log_e": float(self._peak_log_e[0]),
            "evidence_requests": float(self._evidence_requests[0]),
            "weights": [float(weight) for weight in self._weights[:, 0]],
            "stable": [float(self._stable.events[0]), float(self._stable.requests[0])],
            "candidate": [float(self._candidate.events[0]), float(self._candidate.requests[0])],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the process stood that returned `state` from `to_dict`.

        Raises:
            UsageError: It has other experts, as another version of this library may have had.
        """
        if len(state["weights"]) != len(self._prior):
            raise UsageError(
                "state of an e-process",
                f"weights of {len(state['weights'])} experts",
                f"{len(self._prior)} are needed",
                "go on with the version of mlflywheel that wrote it",
            )
        self._log_e = np.array([state["log_e"]], float)
        self._peak_log_e = np.array([state["peak_log_e"]], float)
        self._evidence_requests = np.array([state["evidence_requests"]], float)
        self._weights = np.array(state["weights"], float)[:, None]
        for rate, (events, requests) in ((self._stable, state["stable"]), (self._candidate, state["candidate"])):
            rate.events, rate.requests = np.array([events], float), np.array([requests], float)

    def _factors(self, n_c: Floats, n_s: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return each betting expert's log factors for a bad and a good request of either arm: (experts, rollouts)."""
        guess = self._stable.guess()
        a = np.clip(self._multiples[:, None] * guess, _LOWEST_RATE, _HIGHEST_RATE)
        line = np.clip(self.limit.ratio * a + self.limit.difference, _LOWEST_RATE, _HIGHEST_RATE)
        odds = self._odds[:, None] * (line / (1 - line))
        b = odds / (1 + odds)
        if self._plan.learner_weight:
            # Before the candidate has been seen there is nothing to bet on: a point on the line is inside the null.
            b[-1] = np.where(self._candidate.requests > 0, self._candidate.guess(), line[-1])
        # A ratio of 0 marks the experts of equal arms, which only exist for the side below.
        equal = self._odds == 0
        if equal.any():
            b[equal] = a[equal]
        return _log_factors(self.limit, self.side, a, np.clip(b, _LOWEST_ALTERNATIVE, _HIGHEST_ALTERNATIVE), n_c, n_s)

    def _settle(self, log_factor: Floats, bets: NDArray[np.bool_], n_c: Floats) -> None:
        """Add a window's mixed bet to the process and move the weights."""
        top = np.maximum(log_factor.max(axis=0), 0.0)
        stakes = self._weights.copy()
        stakes[0] *= np.exp(-top)
        stakes[1:] *= np.exp(log_factor - top)
        total = stakes.sum(axis=0)
        log_bet = top + np.log(total)
        if self.log_window_cap is not None:
            log_bet = np.minimum(log_bet, self.log_window_cap)
        self._log_e += np.where(bets, log_bet, 0.0)
        np.maximum(self._peak_log_e, self._log_e, out=self._peak_log_e)
        self._evidence_requests += np.where(bets, n_c, 0.0)
        # The share is a part of all requests so far, so that it does not depend on how the windows are cut.
        share = self._plan.share * n_c / np.maximum(self._evidence_requests, 1.0)
        moved = (1 - share) * (stakes / total) + share * self._prior[:, None]
        self._weights = np.where(bets, moved, self._weights)

    def _read_counts(self, arm: str, events: ArrayLike, requests: ArrayLike) -> tuple[Floats, Floats]:
        try:
            x = np.broadcast_to(np.asarray(events, dtype=np.float64), self.shape).reshape(-1)
            n = np.broadcast_to(np.asarray(requests, dtype=np.float64), self.shape).reshape(-1)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{arm} counts", str(error), f"numbers of shape {self.shape} are needed", "pass one count a rollout"
            ) from error
        # Comparisons with NaN are false, so that NaN fails here too.
        good = (x >= 0) & (x <= n) & (n < 2.0**53)
        if not (good.all() and (x == np.floor(x)).all() and (n == np.floor(n)).all()):
            wrong = int(np.argmin(good & (x == np.floor(x)) & (n == np.floor(n))))
            raise UsageError(
                f"{arm} counts",
                f"{x[wrong]:g} bad of {n[wrong]:g} requests",
                "whole numbers are needed, with 0 <= bad <= requests",
                "count both over the same window, and mark the window as missing after a counter reset",
            )
        return x, n


class _Rate:
    """A guess of an arm's rate that follows changes: past windows count less as newer bad events come in."""

    def __init__(self, rollouts: int, memory_events: float) -> None:
        self.events: Floats = np.zeros(rollouts)
        self.requests: Floats = np.zeros(rollouts)
        self._memory_events = memory_events

    def learn(self, events: Floats, requests: Floats) -> None:
        self.events = self.events + events
        self.requests = self.requests + requests
        kept = self._memory_events / np.maximum(self.events, self._memory_events)
        self.events *= kept
        self.requests *= kept

    def guess(self) -> Floats:
        # Half an event and one request, as Jeffreys' prior has them, keep the guess off 0 and 1.
        return np.clip((self.events + 0.5) / (self.requests + 1.0), _LOWEST_RATE, _HIGHEST_RATE)


def _lay_out_experts(plan: _Plan, limit: Limit, side: Side) -> tuple[Floats, Floats, Floats]:
    """Return the betting experts' multiples of the baseline, their odds ratios, and all prior weights, idle first."""
    multiples = plan.baselines if limit.difference and limit.ratio else (1.0,)
    effects = np.asarray(plan.above if side == "above" else tuple(1 / ratio for ratio in plan.below))
    idle, learner = plan.idle_weight, plan.learner_weight
    # Equal arms are within the limit at small rates or nowhere, depending on the line; an expert that is not outside
    # the null stakes nothing.
    room = side == "below" and (limit.difference > 0 or limit.ratio > 1)
    equal = plan.equal_weight if room else 0.0
    rows: list[tuple[float, float, float]] = []
    for multiple in multiples:
        part = 1 / len(multiples)
        rows += [(multiple, odds, (1 - idle - learner - equal) * part / len(effects)) for odds in effects]
        if room:
            rows.append((multiple, 0.0, equal * part))
    if learner:
        rows.append((1.0, 1.0, learner))
    table = np.asarray(rows)
    return table[:, 0].copy(), table[:, 1].copy(), np.concatenate([[idle], table[:, 2]])


def _log_factors(
    limit: Limit, side: Side, a: Floats, b: Floats, n_c: Floats, n_s: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return log(a / a0), log((1 - a) / (1 - a0)), log(b / b0) and log((1 - b) / (1 - b0)); 0 inside the null."""
    line = limit.ratio * a + limit.difference
    outside = b > line if side == "above" else b < line
    a0 = _project(limit, a, b, n_c, n_s)
    b0 = limit.ratio * a0 + limit.difference
    outside &= (a0 > 0) & (a0 < 1) & (b0 > 0) & (b0 < 1)
    a0 = np.where(outside, a0, a)
    b0 = np.where(outside, b0, b)
    shift_a, shift_b = a - a0, b - b0
    return (
        np.log1p(shift_a / a0),
        np.log1p(-shift_a / (1 - a0)),
        np.log1p(shift_b / b0),
        np.log1p(-shift_b / (1 - b0)),
    )


def _project(limit: Limit, a: Floats, b: Floats, n_c: Floats, n_s: Floats) -> Floats:
    """Return the a0 that minimises n_s KL(a || a0) + n_c KL(b || L(a0)).

    The derivative is monotone in a0 and vanishes once between a and the point where the line has the value b. Times
    a0 (1 - a0) L (1 - L) it is a cubic, on which a Newton step is taken where it stays inside the bracket, and else a
    bisection.
    """
    ratio, difference = limit.ratio, limit.difference
    if ratio == 0:
        return a
    # Only the arms' proportion matters, and shares keep the cubic's terms small.
    part_c = n_c / (n_c + n_s)
    part_s = 1 - part_c
    if ratio == 1 and difference == 0:
        return a + part_c * (b - a)
    meets = (b - difference) / ratio
    lowest, highest = max(0.0, -difference / ratio), min(1.0, (1 - difference) / ratio)
    low = np.clip(np.minimum(a, meets), lowest, highest)
    high = np.clip(np.maximum(a, meets), lowest, highest)
    # At small rates the factors 1 - a0 and 1 - L hardly matter, and without them it is a quadratic.
    half = 0.5 * (part_s * (difference - ratio * a) + part_c * ratio * (difference - b))
    constant = part_s * a * difference
    t = np.clip((np.sqrt(half * half + ratio * constant) - half) / ratio, low, high)
    part_c = part_c * ratio
    for _ in range(100):
        line = ratio * t + difference
        variance_s, variance_c = t * (1 - t), line * (1 - line)
        value = part_s * (t - a) * variance_c + part_c * (line - b) * variance_s
        slope = (
            part_s * (variance_c + (t - a) * ratio * (1 - 2 * line))
            + part_c * (ratio * variance_s + (line - b) * (1 - 2 * t))
        )  # fmt: skip
        right = value < 0
        low = np.where(right, t, low)
        high = np.where(right, high, t)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = t - value / slope
        inside = (step >= low) & (step <= high)
        step = np.where(inside, step, 0.5 * (low + high))
        # Newton squares the error: after such a step the next would be below what a float can show.
        done = bool((np.abs(step - t) <= 1e-10 * t).all())
        t = step
        if done:
            break
    return t


def _sum_log_factors(losses: Floats, bad: Floats, good: Floats) -> Floats:
    """Return each expert's sum over the rows of log(y * exp(bad) + (1 - y) * exp(good)): shape (experts, 1)."""
    total = np.zeros_like(bad)
    rows = max(1, _FACTORS_AT_ONCE // len(bad))
    for start in range(0, len(losses), rows):
        y = losses[start : start + rows]
        total += np.log1p(y * np.expm1(bad) + (1 - y) * np.expm1(good)).sum(axis=1, keepdims=True)
    return total


def _read_losses(arm: str, losses: ArrayLike) -> Floats:
    try:
        y = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{arm} losses", str(error), "numbers are needed", "pass one loss a row") from error
    if y.ndim != 1:
        raise UsageError(f"{arm} losses", f"shape {y.shape}", "one loss a row is needed", "pass one column")
    if not ((y >= 0) & (y <= 1)).all():
        raise UsageError(
            f"{arm} losses", "a value outside [0, 1]", "values from 0 to 1 are needed", "divide by the largest loss"
        )
    return y


def _check_side(side: str) -> None:
    if side not in get_args(Side):
        raise UsageError("side", repr(side), "above or below is needed", "choose one of the two")
