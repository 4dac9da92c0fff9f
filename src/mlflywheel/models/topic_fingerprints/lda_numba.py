"""Compiled kernels of variational inference for LDA; import this module only where numba is installed.

The mathematics is that of Hoffman, Blei and Bach, "Online learning for latent Dirichlet allocation", NIPS 2010, with
the multiplicative form of the update (Lee and Seung 2001) that gensim uses too, so both reach the same numbers.

Every kernel is serial and treats a row by itself in a fixed order. That is what makes the result of a campaign the
same, bit for bit, in a batch of a million and in a request of one.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Sums may be reordered into vector lanes. NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz"}


def compile_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba, and keep the machine code on disk where there is a writable place for it.

    In a container with a read-only file system numba finds no such place and raises; the kernel is then compiled once
    per process instead (2 to 4 seconds).
    """
    try:
        compiled: Callable[..., Any] = numba.njit(function, cache=True, fastmath=_FASTMATH, nogil=True)
    except RuntimeError:
        compiled = numba.njit(function, fastmath=_FASTMATH, nogil=True)
    return compiled


def _exp_digamma(x: float) -> float:
    # exp(digamma(y + 1/2)) has a fast asymptotic series without a logarithm, good to 3e-10 from y = 5.5 on. A smaller
    # x is moved there by the recurrence digamma(x) = digamma(x + 6) - P'(x) / P(x), P(x) = x (x + 1) ... (x + 5).
    if x >= 6.0:
        y = x - 0.5
        shift = 0.0
    else:
        y = x + 5.5
        p = ((((x + 15.0) * x + 85.0) * x + 225.0) * x + 274.0) * x * x + 120.0 * x
        derivative = ((((6.0 * x + 75.0) * x + 340.0) * x + 675.0) * x + 548.0) * x + 120.0
        shift = derivative / p
    r = 1.0 / y
    r2 = r * r
    series = y + r * (1 / 24 - r2 * (37 / 5760 - r2 * (10313 / 2903040 - r2 * (5509121 / 1393459200))))
    if shift > 0.0:
        return float(series * np.exp(-shift))
    return series


exp_digamma = compile_kernel(_exp_digamma)
"""`exp(digamma(x))` for x > 0, float64, relative error below 1e-9."""


def _expect_topics(counts: Any, prior: float, out: Any) -> None:
    terms, topics = counts.shape
    scales = np.zeros(topics, np.float64)
    for t in range(terms):
        for k in range(topics):
            scales[k] += np.float64(counts[t, k])
    for k in range(topics):
        scales[k] = 1.0 / exp_digamma(scales[k] + terms * prior)
    empty = exp_digamma(prior)
    for t in range(terms):
        for k in range(topics):
            count = np.float64(counts[t, k])
            value = empty if count == 0.0 else exp_digamma(count + prior)
            out[t, k] = np.float32(value * scales[k])


expect_topics = compile_kernel(_expect_topics)
"""`expect_topics(counts, prior, out)`: `exp(E[log beta])` of Dirichlet topics, float32 (V, K), written into `out`.

`counts` are the expected term counts of each topic, float32 (V, K); `prior` is eta.
"""


def _infer_rows(
    indptr: Any,
    indices: Any,
    counts: Any,
    topics: Any,
    alpha: Any,
    tolerance: float,
    max_iterations: int,
    epsilon: np.float32,
    gamma: Any,
    collected: Any,
) -> None:
    rows = len(indptr) - 1
    num_topics = len(alpha)
    longest = 0
    for d in range(rows):
        longest = max(longest, indptr[d + 1] - indptr[d])
    gathered = np.empty(num_topics * longest, np.float32)
    norm = np.empty(longest, np.float32)
    weight = np.empty(longest, np.float32)
    g = np.empty(num_topics, np.float64)
    e = np.empty(num_topics, np.float64)
    active = np.empty(num_topics, np.int64)
    prior = 0.0
    for k in range(num_topics):
        prior += alpha[k]

    for d in range(rows):
        low = indptr[d]
        m = indptr[d + 1] - low
        if m == 0:
            for k in range(num_topics):
                gamma[d, k] = np.float32(alpha[k])
            continue
        total = 0.0
        for t in range(m):
            total += np.float64(counts[low + t])
        local = gathered[: num_topics * m].reshape(num_topics, m)
        for t in range(m):
            term = indices[low + t]
            for k in range(num_topics):
                local[k, t] = topics[term, k]

        scale = 1.0 / exp_digamma(prior + total)
        for k in range(num_topics):
            g[k] = alpha[k] + total / num_topics
            e[k] = exp_digamma(g[k]) * scale
            active[k] = k
        live = num_topics
        # Mass of the topics that are settled at their prior; the sum of gamma needs it.
        settled = 0.0

        for _ in range(max_iterations):
            _normalise(local, e, active, live, epsilon, norm[:m])
            for t in range(m):
                weight[t] = counts[low + t] / norm[t]
            change = 0.0
            mass = settled
            for a in range(live):
                k = active[a]
                row = local[k]
                dot = np.float32(0.0)
                for t in range(m):
                    dot += row[t] * weight[t]
                updated = alpha[k] + e[k] * np.float64(dot)
                change += abs(updated - g[k])
                g[k] = updated
                mass += updated
            scale = 1.0 / exp_digamma(mass)
            kept = 0
            for a in range(live):
                k = active[a]
                e[k] = exp_digamma(g[k]) * scale
                # No term can give topic k more than e * total / epsilon. Below this bound the topic stays at its
                # prior for good, so leaving it out changes nothing that float32 could show.
                if e[k] * total < epsilon * alpha[k] * 1e-3:
                    g[k] = alpha[k]
                    settled += alpha[k]
                else:
                    active[kept] = k
                    kept += 1
            live = kept
            if change < tolerance * num_topics:
                break

        for k in range(num_topics):
            gamma[d, k] = np.float32(g[k])
        if collected.shape[0] > 0:
            _normalise(local, e, active, live, epsilon, norm[:m])
            for t in range(m):
                term = indices[low + t]
                share = counts[low + t] / norm[t]
                for a in range(live):
                    k = active[a]
                    collected[term, k] += np.float32(e[k]) * share


def _add_topics(local: Any, e: Any, active: Any, live: int, epsilon: np.float32, norm: Any) -> None:
    m = len(norm)
    for t in range(m):
        norm[t] = epsilon
    a = 0
    # Four topics at a time: the running sum is then read and written a quarter as often.
    while a + 4 <= live:
        k0, k1, k2, k3 = active[a], active[a + 1], active[a + 2], active[a + 3]
        e0, e1, e2, e3 = np.float32(e[k0]), np.float32(e[k1]), np.float32(e[k2]), np.float32(e[k3])
        r0, r1, r2, r3 = local[k0], local[k1], local[k2], local[k3]
        for t in range(m):
            norm[t] += (e0 * r0[t] + e1 * r1[t]) + (e2 * r2[t] + e3 * r3[t])
        a += 4
    while a < live:
        k0 = active[a]
        e0 = np.float32(e[k0])
        r0 = local[k0]
        for t in range(m):
            norm[t] += e0 * r0[t]
        a += 1


_normalise = compile_kernel(_add_topics)

infer_rows = compile_kernel(_infer_rows)
"""Variational inference of CSR rows: `infer_rows(indptr, indices, counts, topics, alpha, tolerance, max_iterations,
epsilon, gamma, collected)`.

Args, beside the three arrays of a CSR matrix of n rows with float32 data: `topics` is `exp(E[log beta])`, float32
(V, K); `alpha` the prior, float64 (K,); `tolerance` and `max_iterations` end a row's iteration, by the mean absolute
change of gamma; `epsilon` is added to a term's normaliser. Results: `gamma`, float32 (n, K), and, unless it has no
rows, `collected`, float32 (V, K), to which the rows' expected term counts are added, still without the factor `topics`.
"""
