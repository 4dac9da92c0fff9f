"""The e-processes keep their error rates however often they are asked, and find what they should in time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mlflywheel.decisions.canary.sequential import EProcess, Limit, Side, _log_factors, _project, growth, log_threshold
from mlflywheel.errors import UsageError

EQUAL = Limit()
LIMITS = [
    EQUAL,
    Limit(1.0, 0.01),
    Limit(1.5, 0.002),
    Limit(2.0, 0.0),
    Limit(1.0, -0.05),
    Limit(3.0, -0.5),
    Limit(0.0, 0.05),
]
ALPHA_OF_ONE_IN_THREE = 0.05 / 3
Rate = float | Callable[[int], float]


@dataclass
class Simulated:
    """`exposed`: candidate requests until the e-process crossed, infinite where it never did; shape (runs,)."""

    exposed: NDArray[np.float64]

    @property
    def share_found(self) -> float:
        return float(np.isfinite(self.exposed).mean())

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.exposed, q, method="inverted_cdf"))


def simulate(
    limit: Limit,
    side: Side,
    stable: Rate,
    candidate: Rate,
    weight: Rate,
    *,
    alpha: float,
    runs: int,
    windows: int,
    requests: int,
    seed: int,
    at_every_window: Callable[[NDArray[np.float64], NDArray[np.float64]], None] | None = None,
) -> Simulated:
    rng = np.random.default_rng(seed)
    process = EProcess(limit, side, (runs,))
    exposed = np.zeros(runs)
    crossed_at = np.full(runs, np.inf)
    totals = np.zeros((4, runs))
    for k in range(windows):
        p_s, p_c, w = (value(k) if callable(value) else value for value in (stable, candidate, weight))
        n_c = rng.binomial(requests, w, runs)
        n_s = requests - n_c
        x_c, x_s = rng.binomial(n_c, p_c), rng.binomial(n_s, p_s)
        process.add(x_c, n_c, x_s, n_s)
        exposed += n_c
        totals += (x_c, n_c, x_s, n_s)
        if at_every_window is not None:
            at_every_window(totals, process.log_e)
        crossed = np.isinf(crossed_at) & (process.log_e >= log_threshold(alpha))
        crossed_at[crossed] = exposed[crossed]
    assert (np.isfinite(crossed_at) == (process.peak_log_e >= log_threshold(alpha))).all()
    return Simulated(crossed_at)


def z_test_requests(p_s: float, p_c: float, weight: float, alpha: float, power: float) -> float:
    """Return the candidate requests that a one-sided test of two shares at a fixed time needs."""
    stable_per_candidate = (1 - weight) / weight
    pooled = weight * p_c + (1 - weight) * p_s
    under_null = math.sqrt(pooled * (1 - pooled) * (1 + 1 / stable_per_candidate))
    under_alternative = math.sqrt(p_c * (1 - p_c) + p_s * (1 - p_s) / stable_per_candidate)
    reach = stats.norm.isf(alpha) * under_null + stats.norm.ppf(power) * under_alternative
    return float((reach / (p_c - p_s)) ** 2)


def null_points(limit: Limit, side: Side) -> Iterator[tuple[float, float]]:
    for p_s in np.linspace(0, 1, 21):
        line = limit.of(p_s)
        for p_c in np.append(np.linspace(0, 1, 11), np.clip(line, 0, 1)):
            if (p_c <= line) if side == "above" else (p_c >= line):
                yield p_s, p_c


def e_values_of_one_window(
    limit: Limit, side: Side, n_c: int, n_s: int, past: list[tuple[int, int, int, int]]
) -> NDArray[np.float64]:
    """Return the e-value of each outcome of a window after `past`: shape (n_c + 1, n_s + 1)."""
    x_c, x_s = (grid.ravel() for grid in np.meshgrid(np.arange(n_c + 1), np.arange(n_s + 1), indexing="ij"))
    process = EProcess(limit, side, x_c.shape)
    for window in past:
        process.add(*window)
    before = process.log_e
    process.add(x_c, n_c, x_s, n_s)
    return np.exp(process.log_e - before).reshape(n_c + 1, n_s + 1)


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_one_window_has_a_mean_of_at_most_1_under_every_null_point_by_enumeration(limit: Limit, side: Side) -> None:
    pasts = [[(1, 60, 0, 50)], [(0, 5, 10, 40), (3, 20, 8, 40)], [(40, 50, 30, 50), (0, 9, 0, 9), (1, 1, 0, 1)]]
    means = []
    for n_c, n_s in [(1, 1), (2, 9), (12, 3), (10, 10)]:
        for past in pasts:
            e_values = e_values_of_one_window(limit, side, n_c, n_s, past)
            for p_s, p_c in null_points(limit, side):
                chance_c = stats.binom.pmf(np.arange(n_c + 1), n_c, p_c)
                chance_s = stats.binom.pmf(np.arange(n_s + 1), n_s, p_s)
                means.append(chance_c @ e_values @ chance_s)
    assert max(means) <= 1 + 1e-9
    # The bets are not idle: away from the line they lose.
    assert min(means) < 0.9


def test_fixed_bet_has_a_mean_of_exactly_1_at_its_own_projection() -> None:
    a, b, n_c, n_s = 0.1, 0.4, 7, 4
    arrays = (np.array([a]), np.array([b]), np.array([float(n_c)]), np.array([float(n_s)]))
    bad_s, good_s, bad_c, good_c = (float(np.exp(part[0])) for part in _log_factors(EQUAL, "above", *arrays))
    p = (n_s * a + n_c * b) / (n_s + n_c)
    mean = (p * bad_s + (1 - p) * good_s) ** n_s * (p * bad_c + (1 - p) * good_c) ** n_c
    assert mean == pytest.approx(1.0, abs=1e-12)


def test_projection_minimises_the_divergence_on_the_line() -> None:
    rng = np.random.default_rng(3)
    for limit in LIMITS[1:-1]:
        low = max(0.0, -limit.difference / limit.ratio)
        high = min(1.0, (1 - limit.difference) / limit.ratio)
        t = np.linspace(low, high, 20_001)[1:-1]
        for _ in range(20):
            a, b = 10 ** rng.uniform(-5, -0.01, 2)
            n_c, n_s = np.round(10 ** rng.uniform(0, 3, 2))
            line = limit.of(t)
            divergence = n_s * _kl(a, t) + n_c * _kl(b, line)
            found = float(_project(limit, *(np.array([v]) for v in (a, b, n_c, n_s)))[0])
            at_found = n_s * _kl(a, found) + n_c * _kl(b, limit.of(found))
            assert at_found <= divergence.min() * (1 + 1e-9) + 1e-12


def _kl(p: float, q: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the divergence of a coin with chance p from one with chance q."""
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def daily(k: int) -> float:
    return 0.02 * 2 ** math.sin(2 * math.pi * k / 40)


def jumping_weight(k: int) -> float:
    return (0.01, 0.05, 0.25, 0.5, 0.05)[k // 7 % 5]


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("limit", [EQUAL, Limit(1.0, 0.01), Limit(1.5, 0.002)], ids=str)
def test_true_null_is_rejected_in_at_most_alpha_of_rollouts_though_asked_after_each_window(
    limit: Limit, side: Side
) -> None:
    # On the line itself, the worst point, with a rate that moves by a factor of 4 and weights from 1 % to 50 %.
    alpha, runs = 0.05, 1000
    found = simulate(
        limit,
        side,
        daily,
        lambda k: limit.of(daily(k)),
        jumping_weight,
        alpha=alpha,
        runs=runs,
        windows=300 if limit == EQUAL else 120,
        requests=300,
        seed=11,
    )
    # Three standard errors of a share of 1,000 runs: at most 7.1 % may cross.
    assert found.share_found <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert found.share_found > 0


def test_fixed_horizon_test_on_the_same_looks_is_wrong_far_more_often_than_alpha() -> None:
    # The same simulation, so that it is known to notice a method that may not be asked often.
    ever = np.zeros(1000, dtype=bool)

    def look(totals: NDArray[np.float64], _: NDArray[np.float64]) -> None:
        x_c, n_c, x_s, n_s = totals
        pooled = (x_c + x_s) / (n_c + n_s)
        error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-9) * (1 / np.maximum(n_c, 1) + 1 / np.maximum(n_s, 1)))
        z = (x_c / np.maximum(n_c, 1) - x_s / np.maximum(n_s, 1)) / error
        ever[z > stats.norm.isf(0.05)] = True

    kept = {"alpha": 0.05, "runs": 1000, "windows": 150, "requests": 300, "seed": 5, "at_every_window": look}
    found = simulate(EQUAL, "above", 0.02, 0.02, 0.5, **kept)
    assert ever.mean() > 0.2
    assert found.share_found <= 0.071


@pytest.mark.parametrize(
    ("weight", "most_at_95_percent", "most_times_z_test"),
    [(0.5, 8_500, 2.0), (0.25, 6_500, 2.0), (0.05, 4_600, 2.0), (0.01, 4_400, 2.0)],
)
def test_doubled_errors_are_found_within_10_000_candidate_requests_at_any_weight(
    weight: float, most_at_95_percent: int, most_times_z_test: float
) -> None:
    found = simulate(
        EQUAL,
        "above",
        0.01,
        0.02,
        weight,
        alpha=ALPHA_OF_ONE_IN_THREE,
        runs=1000,
        windows=100,
        requests=round(100 / weight),
        seed=7,
    )
    fixed = z_test_requests(0.01, 0.02, weight, ALPHA_OF_ONE_IN_THREE, 0.95)
    assert found.share_found >= 0.95
    assert found.quantile(0.95) <= most_at_95_percent
    assert found.quantile(0.95) <= most_times_z_test * fixed
    # Most rollouts end before a test at a fixed time would have been allowed to look.
    assert found.quantile(0.5) < fixed


def test_doubled_errors_are_found_within_10_000_candidate_requests_on_a_ramp() -> None:
    found = simulate(
        EQUAL,
        "above",
        daily,
        lambda k: 2 * daily(k),
        lambda k: (0.01, 0.05, 0.25, 0.5)[min(3, k // 30)],
        alpha=ALPHA_OF_ONE_IN_THREE,
        runs=1000,
        windows=200,
        requests=300,
        seed=7,
    )
    assert found.quantile(0.95) <= 10_000


@pytest.mark.parametrize(
    ("limit", "weight", "most_at_95_percent"),
    [
        (Limit(1.0, 0.01), 0.5, 4_500),
        (Limit(1.0, 0.01), 0.05, 3_200),
        (Limit(1.5, 0.002), 0.5, 12_500),
        (Limit(1.5, 0.002), 0.05, 6_500),
    ],
    ids=str,
)
def test_equal_arms_are_shown_to_be_within_a_limit(limit: Limit, weight: float, most_at_95_percent: int) -> None:
    found = simulate(
        limit,
        "below",
        0.01,
        0.01,
        weight,
        alpha=0.05,
        runs=500,
        windows=100,
        requests=round(most_at_95_percent / 100 / weight),
        seed=9,
    )
    assert found.share_found >= 0.95


def test_late_regression_is_found_after_many_good_requests() -> None:
    # 100,000 good candidate requests come first; then the errors double.
    found = simulate(
        EQUAL,
        "above",
        0.01,
        lambda k: 0.01 if k < 200 else 0.02,
        0.5,
        alpha=ALPHA_OF_ONE_IN_THREE,
        runs=500,
        windows=260,
        requests=1000,
        seed=13,
    )
    late = found.exposed[found.exposed > 100_000] - 100_000
    assert len(late) >= 490
    assert np.quantile(late, 0.5, method="inverted_cdf") < 9_000
    assert np.quantile(late, 0.95, method="inverted_cdf") < 15_000


def test_long_good_time_costs_no_more_than_the_idle_expert() -> None:
    # Prior weight 0.05 of idling, and 0.05 * log(1,000) for the share that went back: -3.4.
    process = EProcess(EQUAL, "above")
    for _ in range(1000):
        process.add(1, 1000, 100, 1000)
    assert -3.5 < process.log_e < -2
    assert process.peak_log_e == 0


def test_broken_candidate_is_found_in_a_few_requests() -> None:
    process = EProcess(EQUAL, "above")
    process.add(0, 0, 10, 1000)
    process.add(5, 5, 2, 100)
    assert process.log_e > log_threshold(0.001)


def test_growth_is_what_a_process_gains_on_average() -> None:
    # Between what the best bet gains and the 3 that it may cost to find out which bet that is.
    rng = np.random.default_rng(17)
    for limit, side, p_s, p_c in [
        (EQUAL, "above", 0.01, 0.03),
        (Limit(1.5, 0.002), "below", 0.05, 0.04),
        (Limit(1.0, 0.01), "below", 0.02, 0.02),
    ]:
        process = EProcess(limit, side, (400,))
        for _ in range(60):
            process.add(rng.binomial(500, p_c, 400), 500, rng.binomial(1500, p_s, 400), 1500)
        best = 59 * growth(limit, side, p_s, p_c, 500, 1500)
        assert 0.8 * best - 3 < process.log_e.mean() < best


def test_growth_is_0_where_the_null_is_true_or_an_arm_is_empty() -> None:
    assert growth(EQUAL, "above", 0.02, 0.01, 100, 100) == 0
    assert growth(Limit(1.0, 0.01), "below", 0.01, 0.02, 100, 100) == 0
    assert growth(EQUAL, "above", 0.01, 0.02, 0, 100) == 0
    assert growth(EQUAL, "above", 0.0, 1.0, 10, 10) == pytest.approx(20 * math.log(2), rel=1e-6)


def test_losses_of_0_and_1_give_what_counts_give() -> None:
    rng = np.random.default_rng(2)
    for limit, side in [(EQUAL, "above"), (Limit(1.5, 0.002), "below")]:
        counts, losses = EProcess(limit, side), EProcess(limit, side)
        for _ in range(20):
            y_c, y_s = rng.random(40) < 0.1, rng.random(90) < 0.05
            counts.add(y_c.sum(), 40, y_s.sum(), 90)
            losses.add_losses(y_c.astype(float), y_s.astype(float))
            assert losses.log_e == pytest.approx(float(counts.log_e), abs=1e-9)
        assert losses.evidence_requests == counts.evidence_requests == 19 * 40


def test_losses_between_0_and_1_keep_alpha_and_show_a_worse_mean() -> None:
    rng = np.random.default_rng(4)
    ends = []
    for mean_c in (0.2, 0.3):
        crossed = 0
        for _ in range(100):
            process = EProcess(EQUAL, "above")
            for _ in range(30):
                process.add_losses(rng.beta(4 * mean_c, 4 * (1 - mean_c), 20), rng.beta(0.8, 3.2, 40))
            crossed += bool(process.peak_log_e >= log_threshold(0.05))
        ends.append(crossed / 100)
    assert ends[0] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert ends[1] >= 0.95


def test_rollouts_in_lockstep_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(6)
    for limit, side in [(EQUAL, "above"), (Limit(1.0, 0.01), "below"), (Limit(0.0, 0.05), "above")]:
        together = EProcess(limit, side, (3,))
        alone = [EProcess(limit, side) for _ in range(3)]
        for _ in range(30):
            n_c, n_s = rng.integers(0, 40, 3), rng.integers(0, 200, 3)
            x_c, x_s = rng.binomial(n_c, 0.1), rng.binomial(n_s, 0.05)
            together.add(x_c, n_c, x_s, n_s)
            for i, one in enumerate(alone):
                one.add(x_c[i], n_c[i], x_s[i], n_s[i])
        assert together.log_e == pytest.approx([float(one.log_e) for one in alone], abs=1e-9)
        assert together.evidence_requests.tolist() == [float(one.evidence_requests) for one in alone]
        assert alone[0].log_e.shape == ()
        assert together.log_e.shape == (3,)


def test_finer_windows_change_the_evidence_little() -> None:
    whole, cut = EProcess(EQUAL, "above"), EProcess(EQUAL, "above")
    for process in (whole, cut):
        process.add(10, 1000, 10, 1000)
    for _ in range(20):
        whole.add(20, 1000, 10, 1000)
        for _ in range(10):
            cut.add(2, 100, 1, 100)
    assert whole.log_e > 20
    assert cut.log_e == pytest.approx(float(whole.log_e), abs=0.5)


def test_windows_that_tell_nothing_bet_nothing_and_still_teach_the_baseline() -> None:
    process = EProcess(EQUAL, "above")
    process.add(50, 50, 0, 0)
    process.add(50, 50, 1, 100)  # the first stable requests: no baseline yet
    process.add(0, 0, 1, 100)
    assert process.log_e == 0
    assert process.evidence_requests == 0
    process.add(50, 50, 1, 100)
    assert process.log_e > 10
    assert process.evidence_requests == 50


def test_one_window_adds_at_most_its_cap() -> None:
    capped, free = EProcess(EQUAL, "above", log_window_cap=2.0), EProcess(EQUAL, "above")
    for process in (capped, free):
        process.add(0, 10, 10, 1000)
        process.add(100, 100, 10, 1000)
    assert free.log_e > 100
    assert capped.log_e == pytest.approx(2.0)
    before = float(capped.log_e)
    capped.add(0, 1000, 10, 1000)
    assert capped.log_e < before
    assert capped.peak_log_e == pytest.approx(2.0)


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_numbers_stay_finite_at_extreme_rates_and_sizes(limit: Limit, side: Side) -> None:
    # Warnings are errors in this suite, so that an overflow or a division by 0 would fail here too.
    windows = [(0, 10**7, 0, 10**7), (10**7, 10**7, 0, 1), (0, 1, 10**7, 10**7), (10, 10**7, 10, 10**7), (1, 1, 1, 1)]
    process = EProcess(limit, side)
    for window in windows * 3:
        process.add(*window)
        assert np.isfinite(process.log_e)
        assert process.peak_log_e >= max(0.0, float(process.log_e))


@pytest.mark.parametrize(
    "counts",
    [(-1, 10, 0, 10), (11, 10, 0, 10), (0, 10, math.nan, 10), (0, math.inf, 0, 10), (0.5, 10, 0, 10), ("a", 1, 0, 1)],
)
def test_counts_that_cannot_be_are_refused(counts: tuple[float, float, float, float]) -> None:
    process = EProcess(EQUAL, "above")
    with pytest.raises(UsageError):
        process.add(*counts)
    assert process.evidence_requests == 0


def test_arguments_out_of_range_are_refused() -> None:
    for ratio, difference in [(-1, 0), (math.nan, 0), (1, 1), (1, math.inf), (0, 0), (0.5, -0.6)]:
        with pytest.raises(UsageError):
            Limit(ratio, difference)
    for alpha in (0, 1, math.nan):
        with pytest.raises(UsageError):
            log_threshold(alpha)
    with pytest.raises(UsageError):
        EProcess(EQUAL, "beside")
    with pytest.raises(UsageError):
        EProcess(EQUAL, "above", log_window_cap=0)
    with pytest.raises(UsageError):
        EProcess(EQUAL, "above", (2,)).add([1, 2, 3], 10, 1, 10)
    with pytest.raises(UsageError):
        growth(EQUAL, "above", 1.5, 0.1, 10, 10)
    with pytest.raises(UsageError):
        growth(EQUAL, "above", 0.1, 0.1, -1, 10)
    with pytest.raises(UsageError):
        EProcess(EQUAL, "above").add_losses([0.5, 1.5], [0.5])
    with pytest.raises(UsageError):
        EProcess(EQUAL, "above", (2,)).add_losses([0.5], [0.5])
