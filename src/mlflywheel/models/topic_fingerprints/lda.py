"""LDA topics with a seeded start and deterministic fingerprints, compatible with gensim.

Latent Dirichlet allocation (Blei, Ng and Jordan, JMLR 2003) fitted by online variational Bayes (Hoffman, Blei and
Bach, NIPS 2010): the algorithm of `gensim.models.LdaModel`, with three differences that matter more than its settings.

- Training starts from topics found by a linear method, not from noise. A random start ends in a poor optimum that more
  passes do not leave.
- Inference starts at `gamma = alpha + n / K`. gensim draws a random start for each call, so the same campaign gets
  another fingerprint each time.
- With numba installed, the inner loops run compiled. Without it, gensim runs them, from the same starts, and the
  fingerprints agree to 1e-4 for 99 % of campaigns (near a watershed of two optima, rounding decides).

`Lda.to_gensim` returns an ordinary gensim model.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from mlflywheel.errors import MissingExtraError, ModelError, ModelFilesError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import read_array, read_json
from mlflywheel.models.contract import Settings
from mlflywheel.models.topic_fingerprints.attribution import Decomposition

FloatArray = NDArray[np.float32]

# gensim adds the resolution of its own number type, float32, to a term's normaliser. A smaller value moves
# fingerprints by several hundredths, so this is a constant of the method and not a safeguard.
EPSILON = np.finfo(np.float32).eps

_MOST_ROTATED_TOPICS = 100
_SEED_ROWS = 10_000
_NMF_ITERATIONS = 20
_SCORED_AT_ONCE = 100_000
_ROWS_PER_PROGRESS = 500
# Rows of products that stay in a core's cache.
_MULTIPLIED_AT_ONCE = 1024


class LdaParams(Settings):
    """Parameters of `Lda`.

    Args:
        num_topics: Number of topics K. A fit on fewer campaigns or terms than this has fewer.
        passes: Passes over the campaigns. After a seeded start, more than 2 or 3 made the held-out score worse.
        chunk_size: Campaigns per update of the topics; at most a quarter of the campaigns is used.
        seed: Seed of the start, of the order of the campaigns and of the split in `Lda.perplexity`.
        seeding: What the start is: `varimax` (rotated LSA; above 100 topics `nmf` is used), or `nmf` (non-negative
            matrix factorisation).
        engine: `numba`, `gensim`, or `auto`: numba where it is installed.
        decay: Exponent of the learning rate `(offset + updates) ** -decay`.
        offset: Slows down the first updates, so that they do not wash out the start.
        alpha: Dirichlet prior of a campaign's topics, the same for every topic; 1 / K if None.
        eta: Dirichlet prior of a topic's terms, the same for every term; 1 / K if None.
        tolerance: A fingerprint is finished when its gamma, in terms, changes by less than this on average.
        max_iterations: A fingerprint is finished after so many iterations at the latest.
        training_tolerance: The same as `tolerance`, while training.
        training_max_iterations: The same as `max_iterations`, while training.

    >>> LdaParams(num_topics=20).passes
    2
    """

    num_topics: int = Field(default=50, ge=2, le=500)
    passes: int = Field(default=2, ge=1, le=100)
    chunk_size: int = Field(default=2000, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    seeding: Literal["varimax", "nmf"] = "varimax"
    engine: Literal["auto", "numba", "gensim"] = "auto"
    decay: float = Field(default=0.5, ge=0.5, le=1.0)
    offset: float = Field(default=6.0, ge=1.0, le=1e6)
    alpha: float | None = Field(default=None, gt=0.0, le=1e3)
    eta: float | None = Field(default=None, gt=0.0, le=1e3)
    tolerance: float = Field(default=1e-4, gt=0.0, le=1.0)
    max_iterations: int = Field(default=500, ge=1, le=100_000)
    training_tolerance: float = Field(default=1e-3, gt=0.0, le=1.0)
    training_max_iterations: int = Field(default=50, ge=1, le=100_000)


class Lda:
    """Fitted LDA topics.

    Args:
        params: The parameters of the fit.
        topic_counts: Expected number of occurrences of each term in each topic, without the prior: (K, V), >= 0.
    """

    def __init__(self, params: LdaParams, topic_counts: NDArray[Any]) -> None:
        self.params = params
        self._topic_counts = np.ascontiguousarray(topic_counts, dtype=np.float32)
        self.num_topics, self.num_terms = self._topic_counts.shape
        self.alpha, self.eta = _priors(params, self.num_topics)
        self._expected = _expect_topics(self._topic_counts, self.eta)
        self._engine = _find_engine(params.engine)(self.num_topics, self.num_terms, params)

    @classmethod
    def fit(
        cls,
        counts: csr_matrix,
        params: LdaParams,
        progress: ProgressCallback = ignore_progress,
        start: NDArray[Any] | None = None,
    ) -> Self:
        """Fit topics to campaigns.

        Args:
            counts: How often each term occurs in each campaign: (n, V), finite, >= 0. Rows may be empty.
            params: Parameters. With fewer than `num_topics` non-empty campaigns, or terms, there are fewer topics.
            progress: Called with the phases `seeding` and `training`.
            start: Topics to start from instead of `params.seeding`: expected term counts, (K, V), >= 0. K is theirs.

        Raises:
            ModelError: No campaign has a term, or a count is negative or not finite.
            MissingExtraError: `engine="numba"` without numba.

        >>> counts = csr_matrix(np.array([[3, 2, 0, 0], [2, 3, 0, 0], [0, 0, 3, 2], [0, 0, 2, 3]], dtype=np.float32))
        >>> lda = Lda.fit(counts, LdaParams(num_topics=2, seeding="nmf", engine="gensim"))
        >>> shares = lda.transform(counts)
        >>> bool((shares.argmax(axis=1)[:2] != shares.argmax(axis=1)[2:]).all())
        True
        """
        engine = _find_engine(params.engine)
        counts = _checked(counts, None)
        used = counts[np.diff(counts.indptr) > 0]
        if used.shape[0] == 0 or used.data.max() <= 0:
            raise ModelError(
                "terms of the campaigns",
                f"{counts.shape[0]} campaigns without a known term",
                "LDA needs at least one term",
                "add campaigns, or loosen the limits on how often a term must occur",
            )
        if start is None:
            progress("seeding", 0, 1)
            start = seed_topics(used, params)
            progress("seeding", 1, 1)
        elif start.ndim != 2 or start.shape[1] != counts.shape[1] or not (start.min() >= 0 and start.max() < np.inf):
            raise ModelError(
                "start of LDA",
                f"an array of shape {start.shape}, or a negative or non-finite value",
                f"(K, {counts.shape[1]}) counts, finite and not negative, are needed",
                "pass topics over the same terms",
            )
        # Campaigns often come sorted by account or vertical. Updates from one vertical at a time would pull the topics
        # to and fro.
        order = np.random.default_rng(params.seed).permutation(used.shape[0])
        start = np.ascontiguousarray(start, dtype=np.float32)
        trained = engine(start.shape[0], start.shape[1], params).train(used[order], start, progress)
        return cls(params, trained)

    def transform(self, counts: csr_matrix) -> FloatArray:
        """Infer the topic shares of campaigns.

        A row's result does not depend on the other rows, bit for bit. The first call of a process compiles the
        kernels where numba could not keep them on disk (2 to 4 seconds), so a server should make one on loading.

        Args:
            counts: (n, V), finite, >= 0, with the terms of the fit.

        Returns:
            Shares, (n, K), > 0, rows sum to 1 up to float32. An empty row gives the prior mean, 1 / K each.

        Raises:
            ModelError: Another number of terms, or a count is negative or not finite.
        """
        return _to_shares(self._engine.infer(_checked(counts, self.num_terms), self._expected))

    def topic_term(self) -> FloatArray:
        """Return p(term | topic): (K, V), rows sum to 1."""
        smoothed = self._topic_counts.astype(np.float64) + self.eta
        return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True), dtype=np.float32)

    def term_topic(self) -> FloatArray:
        """Return p(topic | term), for naming and showing topics: (V, K), rows sum to 1."""
        smoothed = self._topic_counts.T.astype(np.float64) + self.eta
        return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True), dtype=np.float32)

    def decompose(self, counts: csr_matrix) -> Decomposition:
        """Return the topic shares of campaigns, with what each count brings to them; the base is what the prior brings.

        The shares are `gamma / sum(gamma)` with `gamma_k = alpha + sum_t n_t phi_tk`, so each term's part is known.

        Args:
            counts: (n, V), as for `transform`.

        Raises:
            ModelError: As for `transform`.
        """
        counts = _checked(counts, self.num_terms)
        gamma = self._engine.infer(counts, self._expected)
        exact = gamma.astype(np.float64)
        gained = np.maximum(exact - self.alpha, 0.0)
        norms = _multiply_rows(counts, self._exact_expected, _exp_digamma(exact))
        weights = np.divide(counts.data, norms, out=np.zeros_like(norms), where=norms > 0)
        # phi belongs to the finished gamma, and gamma to the phi one iteration before: equal up to the tolerance. The
        # scale takes up that difference, so that the parts add up to the shares exactly.
        weighted = csr_matrix((weights, counts.indices, counts.indptr), shape=counts.shape)
        sums = np.asarray(weighted @ self._exact_expected)
        scale = np.divide(gained, sums, out=np.zeros_like(sums), where=sums > 0)
        totals = exact.sum(axis=1, keepdims=True)
        base = (exact - np.where(sums > 0, gained, 0.0)) / totals
        return Decomposition(_to_shares(gamma), weights, self._exact_expected, scale / totals, base)

    @cached_property
    def _exact_expected(self) -> NDArray[np.float64]:
        """As float64, so that one campaign does not convert all of it."""
        return self._expected.astype(np.float64)

    def perplexity(self, counts: csr_matrix) -> float:
        """Score held-out campaigns by document completion; lower is better.

        The terms of each campaign are split in two halves at random (seeded). Topic shares are inferred from one half,
        and the other is scored: `exp(-mean log p)` over its occurrences (Wallach et al., ICML 2009, section 4.2).

        Args:
            counts: (n, V). Campaigns with a single term take no part.

        Returns:
            Perplexity, 1 or more; NaN where no campaign has two terms.
        """
        counts = _checked(counts, self.num_terms)
        seen, scored = _split_terms(counts, self.params.seed)
        if scored.nnz == 0:
            return math.nan
        shares = self.transform(seen)
        term_given_topic = np.ascontiguousarray(self.topic_term().T)
        rows = np.repeat(np.arange(scored.shape[0]), np.diff(scored.indptr))
        log_likelihood = 0.0
        for low in range(0, scored.nnz, _SCORED_AT_ONCE):
            part = slice(low, low + _SCORED_AT_ONCE)
            chances = np.einsum("ij,ij->i", shares[rows[part]], term_given_topic[scored.indices[part]])
            log_likelihood += float(np.dot(scored.data[part].astype(np.float64), np.log(chances.astype(np.float64))))
        return math.exp(-log_likelihood / float(scored.data.sum(dtype=np.float64)))

    def to_gensim(self, id2word: Mapping[int, str]) -> Any:
        """Return the same topics as a `gensim.models.LdaModel`.

        Its inference agrees with `transform` from the same start; its own start is random.

        Args:
            id2word: The term of each column; it must name all V of them.

        Raises:
            ModelError: `id2word` has other columns than the model.
        """
        from gensim.models import LdaModel

        if set(id2word) != set(range(self.num_terms)):
            raise ModelError(
                "id2word",
                f"{len(id2word)} terms",
                f"the columns 0 to {self.num_terms - 1} are needed",
                "pass the vocabulary of the fit",
            )
        model = LdaModel(
            id2word=dict(id2word), dtype=np.float32, **_gensim_settings(self.params, self.num_topics, training=False)
        )
        _set_topics(model, self._topic_counts)
        return model

    def write(self, folder: Path) -> None:
        """Write `lda.json` and `topic_counts.npy` into an existing folder."""
        facts = {"params": self.params.model_dump(), "num_topics": self.num_topics, "num_terms": self.num_terms}
        (folder / "lda.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        np.save(folder / "topic_counts.npy", self._topic_counts, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            ModelFilesError: A file is missing, unreadable or contradicts the other.
        """
        try:
            facts = read_json(folder / "lda.json")
            params = LdaParams.model_validate(facts["params"])
            topic_counts = read_array(
                folder / "topic_counts.npy", np.float32, (facts["num_topics"], facts["num_terms"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFilesError(
                str(folder),
                f"{type(error).__name__}: {error}".splitlines()[0],
                "lda.json and topic_counts.npy are needed",
                "copy the whole folder again",
            ) from error
        return cls(params, topic_counts)


def seed_topics(counts: csr_matrix, params: LdaParams) -> FloatArray:
    """Find the topics to start from.

    Args:
        counts: Campaigns, (n, V), without empty rows.
        params: `num_topics`, `seed` and `seeding` are used.

    Returns:
        Expected term counts, (K, V) with K at most `min(num_topics, n, V)`; their sum is about that of `counts`.
    """
    num_topics = min(params.num_topics, *counts.shape)
    if num_topics == 1:
        return np.asarray(counts.sum(axis=0), dtype=np.float32).reshape(1, -1)
    if params.seeding == "varimax" and num_topics <= _MOST_ROTATED_TOPICS:
        return _seed_by_rotation(counts, num_topics, params.seed)
    return _seed_by_factorisation(counts, num_topics, params.seed)


def _seed_by_rotation(counts: csr_matrix, num_topics: int, seed: int) -> FloatArray:
    from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams

    rotated = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=num_topics, seed=seed), ignore_progress)
    topics = rotated.topic_term()
    # The same mass for each topic. Sharing out each term's own occurrences instead scored worse (O*NET: perplexity
    # 676 against 651).
    return np.ascontiguousarray(topics * (counts.sum(dtype=np.float64) / len(topics)), dtype=np.float32)


def _seed_by_factorisation(counts: csr_matrix, num_topics: int, seed: int) -> FloatArray:
    import warnings

    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import normalize

    if counts.shape[0] > _SEED_ROWS:
        chosen = np.random.default_rng(seed).choice(counts.shape[0], _SEED_ROWS, replace=False)
        sample = counts[np.sort(chosen)]
    else:
        sample = counts
    weighted = sample.astype(np.float32)
    containing = np.bincount(weighted.indices, minlength=weighted.shape[1])
    rarity = np.log((1 + weighted.shape[0]) / (1 + containing)) + 1
    weighted.data = (np.log1p(weighted.data) * rarity[weighted.indices]).astype(np.float32)
    weighted = normalize(weighted)
    # A start need not have converged. Where it fits exactly, scikit-learn takes the root of a rounding error below 0.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        nmf = NMF(num_topics, init="nndsvda", solver="cd", max_iter=_NMF_ITERATIONS, random_state=seed)
        shares = nmf.fit_transform(weighted)
    sums = shares.sum(axis=1, keepdims=True)
    shares = np.divide(shares, sums, out=np.full_like(shares, 1 / num_topics), where=sums > 0)
    found = np.asarray((sample.T @ shares).T, dtype=np.float64)
    found *= counts.sum(dtype=np.float64) / max(found.sum(), np.finfo(np.float64).tiny)
    return np.ascontiguousarray(found, dtype=np.float32)


class _Engine(Protocol):
    """Inference and training for topics of one shape."""

    def __init__(self, num_topics: int, num_terms: int, params: LdaParams) -> None: ...

    def infer(self, counts: csr_matrix, expected: FloatArray) -> FloatArray:
        """Return gamma, (n, K), from `exp(E[log beta])`, (V, K)."""

    def train(self, counts: csr_matrix, start: FloatArray, progress: ProgressCallback) -> FloatArray:
        """Return expected term counts, (K, V), from those to start with."""


class _NumbaEngine:
    def __init__(self, num_topics: int, num_terms: int, params: LdaParams) -> None:
        self._params = params
        self._alpha, self._eta = _priors(params, num_topics)
        self._priors = np.full(num_topics, self._alpha)
        self._nothing = np.empty((0, num_topics), np.float32)

    def infer(self, counts: csr_matrix, expected: FloatArray) -> FloatArray:
        return self._run(counts, expected, self._params.tolerance, self._params.max_iterations, self._nothing)

    def _run(
        self, counts: csr_matrix, expected: FloatArray, tolerance: float, max_iterations: int, collected: FloatArray
    ) -> FloatArray:
        from mlflywheel.models.topic_fingerprints.lda_numba import infer_rows

        gamma = np.empty((counts.shape[0], len(self._priors)), np.float32)
        # One type for each argument: another one, or a read-only array, would be compiled again.
        infer_rows(
            np.require(counts.indptr, np.int64, ("C", "W")),
            np.require(counts.indices, np.int32, ("C", "W")),
            np.require(counts.data, np.float32, ("C", "W")),
            expected,
            self._priors,
            float(tolerance),
            int(max_iterations),
            EPSILON,
            gamma,
            collected,
        )
        return gamma

    def train(self, counts: csr_matrix, start: FloatArray, progress: ProgressCallback) -> FloatArray:
        from mlflywheel.models.topic_fingerprints.lda_numba import expect_topics

        params = self._params
        rows = counts.shape[0]
        chunk = _chunk_rows(rows, params.chunk_size)
        # (V, K): the kernels read all topics of one term at a time.
        topics = np.ascontiguousarray(start.T)
        expected = np.empty_like(topics)
        expect_topics(topics, self._eta, expected)
        seen_rows = 0
        for number in range(params.passes):
            for low in range(0, rows, chunk):
                part = counts[low : low + chunk]
                collected = np.zeros_like(topics)
                self._run(part, expected, params.training_tolerance, params.training_max_iterations, collected)
                # The learning rate of gensim: later passes start at a later update, and do not count again.
                rate = (params.offset + number + seen_rows / chunk) ** -params.decay
                collected *= expected
                collected *= np.float32(rate * rows / part.shape[0])
                topics *= np.float32(1.0 - rate)
                topics += collected
                expect_topics(topics, self._eta, expected)
                if number == 0:
                    seen_rows += part.shape[0]
                progress("training", number * rows + low + part.shape[0], params.passes * rows)
        return np.ascontiguousarray(topics.T)


class _GensimEngine:
    def __init__(self, num_topics: int, num_terms: int, params: LdaParams) -> None:
        self._params = params
        self._num_topics, self._num_terms = num_topics, num_terms
        self._model: Any = None

    def _new_model(self, training: bool) -> Any:
        from gensim.utils import FakeDict

        settings = _gensim_settings(self._params, self._num_topics, training)
        return _steady_lda()(id2word=FakeDict(self._num_terms), dtype=np.float32, **settings)

    def infer(self, counts: csr_matrix, expected: FloatArray) -> FloatArray:
        if self._model is None:
            self._model = self._new_model(training=False)
        # A copy for each call: gensim keeps the source of its starts in the model, and calls may be concurrent.
        model = copy.copy(self._model)
        model.expElogbeta = expected.T
        gamma = np.empty((counts.shape[0], self._num_topics), np.float32)
        # One campaign per call, so that a campaign's numbers come from the same arrays alone and in a batch.
        for row, bow in enumerate(_Bows(counts)):
            gamma[row] = model.inference([bow])[0][0]
        return gamma

    def train(self, counts: csr_matrix, start: FloatArray, progress: ProgressCallback) -> FloatArray:
        model = self._new_model(training=True)
        _set_topics(model, start)
        rows = counts.shape[0]
        model.update(_Bows(counts, progress, self._params.passes), chunksize=_chunk_rows(rows, self._params.chunk_size))
        return np.asarray(model.state.sstats, dtype=np.float32)


class _Bows:
    """The rows of a CSR matrix as gensim's bags of words, made one at a time: as lists they take 12 times the space."""

    def __init__(self, counts: csr_matrix, progress: ProgressCallback = ignore_progress, passes: int = 1) -> None:
        self._counts = counts
        self._progress = progress
        self._total = passes * counts.shape[0]
        self._done = 0

    def __len__(self) -> int:
        return int(self._counts.shape[0])

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        indptr, indices, data = self._counts.indptr.tolist(), self._counts.indices, self._counts.data
        for low, high in pairwise(indptr):
            yield list(zip(indices[low:high].tolist(), data[low:high].tolist(), strict=True))
            self._done += 1
            if self._done % _ROWS_PER_PROGRESS == 0 or self._done == self._total:
                self._progress("training", self._done, self._total)


class _Starts:
    """Stands where gensim expects a random generator, and hands it the starts of a chunk."""

    def __init__(self, starts: FloatArray) -> None:
        self._starts = starts

    def gamma(self, shape: float, scale: float, size: tuple[int, int]) -> FloatArray:
        return self._starts


@cache
def _steady_lda() -> Any:
    from gensim.models import LdaModel

    class SteadyLda(LdaModel):  # type: ignore[misc]  # gensim has no types
        """gensim's model with the start `alpha + n / K` in place of a random one."""

        random_state: Any

        def inference(self, chunk: Any, collect_sstats: bool = False) -> Any:
            sizes = np.array([sum(count for _, count in bow) for bow in chunk], dtype=np.float32)
            generator = self.random_state
            self.random_state = _Starts(self.alpha + sizes[:, None] / np.float32(self.num_topics))
            try:
                # In one whole test run numpy warned here of an invalid value in a product. The result was not seen,
                # the cause was not found, and 150 repetitions alone did not warn. A warning can come from what a kernel
                # reads and drops, so it is the result that decides.
                with np.errstate(invalid="ignore"):
                    gamma, statistics = super().inference(chunk, collect_sstats=collect_sstats)
            finally:
                self.random_state = generator
            if not (np.isfinite(gamma).all() and (statistics is None or np.isfinite(statistics).all())):
                raise ModelError(
                    "lda, engine gensim",
                    "a result that is not a number",
                    "finite topics are needed",
                    "fit the model again",
                )
            return gamma, statistics

    return SteadyLda


def _find_engine(choice: str) -> type[_Engine]:
    if choice == "gensim":
        return _GensimEngine
    try:
        # Not `find_spec`: an installed numba may still refuse the NumPy beside it.
        import_module("numba")
    except ImportError:
        if choice == "numba":
            raise MissingExtraError.of("numba", "fast", "LDA with engine numba") from None
        return _GensimEngine
    return _NumbaEngine


def _gensim_settings(params: LdaParams, num_topics: int, training: bool) -> dict[str, Any]:
    alpha, eta = _priors(params, num_topics)
    return {
        "num_topics": num_topics,
        "alpha": [alpha] * num_topics,
        "eta": eta,
        "decay": params.decay,
        "offset": params.offset,
        "passes": params.passes,
        "eval_every": None,
        "iterations": params.training_max_iterations if training else params.max_iterations,
        "gamma_threshold": params.training_tolerance if training else params.tolerance,
        "random_state": params.seed,
    }


def _set_topics(model: Any, topic_counts: FloatArray) -> None:
    model.state.sstats[...] = topic_counts
    model.sync_state()


def _priors(params: LdaParams, num_topics: int) -> tuple[float, float]:
    alpha = 1.0 / num_topics if params.alpha is None else params.alpha
    eta = 1.0 / num_topics if params.eta is None else params.eta
    return alpha, eta


def _chunk_rows(rows: int, chunk_size: int) -> int:
    # A quarter of the campaigns, but not so few that an update is noise. Then chunks of equal size: a small last one
    # would weigh as much as the others.
    most = min(chunk_size, max(math.ceil(rows / 4), min(rows, 100)))
    return math.ceil(rows / math.ceil(rows / most))


def _expect_topics(topic_counts: FloatArray, eta: float) -> FloatArray:
    # The same for both engines, so that a fitted model is the same object whichever runs it.
    smoothed = topic_counts.T.astype(np.float64) + eta
    return np.ascontiguousarray(_exp_digamma(smoothed) / _exp_digamma(smoothed.sum(axis=0)), dtype=np.float32)


def _to_shares(gamma: FloatArray) -> FloatArray:
    shares: FloatArray = gamma / gamma.sum(axis=1, keepdims=True)
    return shares


def _multiply_rows(
    counts: csr_matrix, expected: NDArray[np.float64], topics: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the product of its term's row and its campaign's row for each stored count, float64 (counts,)."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    products = np.empty(counts.nnz)
    for low in range(0, counts.nnz, _MULTIPLIED_AT_ONCE):
        part = slice(low, low + _MULTIPLIED_AT_ONCE)
        products[part] = (expected[counts.indices[part]] * topics[rows[part]]).sum(axis=1)
    return products


def _exp_digamma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import digamma

    return np.asarray(np.exp(digamma(x)))


def _checked(counts: csr_matrix, num_terms: int | None) -> csr_matrix:
    if counts.format != "csr" or counts.dtype != np.float32:
        counts = csr_matrix(counts, dtype=np.float32)
    if num_terms is not None and counts.shape[1] != num_terms:
        raise ModelError(
            "terms of the campaigns",
            f"{counts.shape[1]} columns",
            f"the model was fitted on {num_terms} terms",
            "count terms with the vocabulary of the model",
        )
    data = counts.data
    if data.size and not (data.min() >= 0 and data.max() < np.inf):
        raise ModelError(
            "terms of the campaigns",
            "a count that is negative or not a number",
            "counts are finite and not negative",
            "correct the counts",
        )
    indices = counts.indices
    if indices.size and not (indices.min() >= 0 and indices.max() < counts.shape[1]):
        # SciPy does not look, and the kernels would read past the end of the topics.
        raise ModelError(
            "terms of the campaigns",
            "a column number out of range",
            f"columns 0 to {counts.shape[1] - 1} are needed",
            "build the matrix with the vocabulary of the model",
        )
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    return counts


def _split_terms(counts: csr_matrix, seed: int) -> tuple[csr_matrix, csr_matrix]:
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    order = np.lexsort((np.random.default_rng(seed).random(counts.nnz), rows))
    place = np.empty(counts.nnz, dtype=np.int64)
    place[order] = np.arange(counts.nnz) - counts.indptr[rows]
    second = place % 2 == 1
    return _only(counts, rows, ~second), _only(counts, rows, second)


def _only(counts: csr_matrix, rows: NDArray[np.int64], chosen: NDArray[np.bool_]) -> csr_matrix:
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows[chosen], minlength=counts.shape[0]))))
    return csr_matrix((counts.data[chosen], counts.indices[chosen], indptr), shape=counts.shape)
