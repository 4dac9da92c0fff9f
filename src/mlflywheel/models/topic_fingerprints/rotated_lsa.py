"""Rotated LSA: readable topics by varimax rotation of a truncated SVD, and fingerprints that are linear in the terms.

1. Z: TF-IDF of the counts, `log2(1 + count) * idf`, rows of unit length.
2. Truncated SVD of Z by gensim's streaming-capable `stochastic_svd`, then varimax rotation of the loadings, fitted on
   the heaviest terms, with signs flipped to positive skew. Rotation of a sparse factor model recovers its topics: Rohe
   and Zeng, "Vintage factor analysis with varimax performs statistical inference", JRSS B 2023, arXiv:2004.05387.
3. W = the positive part of Z L, rows summing to 1; lambda = W' Z; Q = p(topic | term), lambda with columns normalised.
   One refinement (`refinements=1`) repeats this from W = the part of Z Q above the corpus mean. It raised neighbour
   purity on O*NET terms and lowered it on farm advertisements (benchmarks/fingerprints; docs/adr/0004).
4. The fingerprint of a campaign is the TF-IDF-weighted mean of its terms' rows of Q. It is non-negative, sums to 1, is
   one sparse product, and every share is a sum of one contribution for each term.
"""

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from pydantic import Field
from threadpoolctl import threadpool_limits

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import read_array
from mlflywheel.models.contract import Settings
from mlflywheel.models.topic_fingerprints.attribution import Decomposition
from mlflywheel.models.topic_fingerprints.device import LARGE_BATCH, Device, TopicProjection

if TYPE_CHECKING:
    from gensim.models import LsiModel, TfidfModel


class RotatedLsaParams(Settings):
    """Parameters of rotated LSA."""

    num_topics: int = Field(50, ge=2, le=100, description="topics; fewer are used where the corpus is smaller")
    seed: int = Field(0, ge=0, description="seed of the randomised SVD")
    smoothing: float = Field(
        0.1, ge=0, description="pulls p(topic | term) of rare terms towards the corpus mean; more suits tiny campaigns"
    )
    refinements: int = Field(1, ge=0, le=5, description="repetitions of the topic estimate from its own fingerprints")
    power_iterations: int = Field(4, ge=0, le=20, description="of the randomised SVD; more is more exact")
    rotation_terms: int = Field(5000, ge=100, description="heaviest terms that the rotation is fitted on")
    rotation_steps: int = Field(200, ge=1, description="most steps of the rotation")


class RotatedLsa:
    """A fitted rotated LSA.

    Args:
        idf: Inverse document frequencies, float32 (terms,).
        term_topic: Q, p(topic | term), float32 (terms, topics), rows summing to 1.
        topic_weight: lambda, float32 (topics, terms), non-negative.
        loadings: The rotated orthonormal loadings L, float32 (terms, topics), as a gensim `LsiModel` holds them.
        prior: Fingerprint of a campaign without known terms, float32 (topics,): the mean over the training campaigns
            that have one.
    """

    def __init__(
        self,
        idf: np.ndarray,
        term_topic: np.ndarray,
        topic_weight: np.ndarray,
        loadings: np.ndarray,
        prior: np.ndarray,
    ) -> None:
        self.idf = idf
        self._term_topic = term_topic
        self._topic_weight = topic_weight
        self._loadings = loadings
        self.prior = prior
        self._projection: TopicProjection | None = None

    def on_device(self, device: Device) -> "RotatedLsa":
        """Return the same topics, which compute the fingerprints of large batches on a device."""
        moved = copy.copy(self)
        moved._projection = device.load_topics(self.idf, self._term_topic, self.prior)
        return moved

    @property
    def num_topics(self) -> int:
        """Number of topics really fitted."""
        return int(self._term_topic.shape[1])

    @classmethod
    def fit(
        cls, counts: sp.csr_matrix, params: RotatedLsaParams, progress: ProgressCallback = ignore_progress
    ) -> "RotatedLsa":
        """Learn topics from counts.

        Args:
            counts: Non-negative counts or weights, CSR (campaigns, terms).
            params: Parameters.
            progress: Called with the phases `topics` and `rotation`.

        Raises:
            ModelError: There are no counts at all.
        """
        if counts.nnz == 0:
            raise ModelError(
                "rotated-lsa",
                "no campaign has a known term",
                "at least one term in two campaigns is needed",
                "lower text.minimum_campaigns to 1, or bring more terms",
            )
        # The last bits of BLAS results may depend on the number of threads, and a saved model's hash on the last bits.
        with threadpool_limits(1):
            return cls._fit(sp.csr_matrix(counts, dtype=np.float64), params, progress)

    @classmethod
    def _fit(cls, counts: sp.csr_matrix, params: RotatedLsaParams, progress: ProgressCallback) -> "RotatedLsa":
        idf = inverse_document_frequency(counts)
        z = _weigh(counts, idf)
        lengths = np.sqrt(np.asarray(z.multiply(z).sum(axis=1)))
        z = sp.csr_matrix(z.multiply(1.0 / np.where(lengths > 0, lengths, 1.0)))
        progress("topics", 0, 3)
        basis = _left_singular_vectors(z, params)
        progress("topics", 1, 3)
        loadings = _rotate(basis, np.asarray(z.sum(axis=0)).ravel(), params, progress)
        progress("topics", 2, 3)
        weight, term_topic = _weigh_terms(z, np.maximum(z @ loadings, 0.0), params.smoothing)
        for _ in range(params.refinements):
            weight, term_topic = _weigh_terms(z, _above_mean(_normalise_rows(z @ term_topic)), params.smoothing)
        progress("topics", 3, 3)
        # Rank topics by how much of the corpus they cover, so that topic 0 is the largest; drop those that cover none.
        cover = weight.sum(axis=1)
        order = np.argsort(-cover, kind="stable")
        order = order[cover[order] > 0]
        weight = weight[order]
        fitted = cls(
            idf.astype(np.float32),
            np.ascontiguousarray(_topic_given_term(weight, params.smoothing), dtype=np.float32),
            weight.astype(np.float32),
            np.ascontiguousarray(loadings[:, order], dtype=np.float32),
            np.zeros(len(order), dtype=np.float32),
        )
        used = sp.csr_matrix(counts)[np.diff(counts.indptr) > 0]
        fitted.prior = fitted.transform(used).mean(axis=0, dtype=np.float64).astype(np.float32)
        return fitted

    def transform(self, counts: sp.csr_matrix) -> np.ndarray:
        """Return fingerprints, float32 (campaigns, topics), non-negative with rows summing to 1.

        Each row depends on its own counts alone and is added up in column order, so a campaign gets the same bits by
        itself as among others. A row without counts gets the prior. A GPU adds up in another order: large batches
        may then differ in the last bit.
        """
        return self._share(counts, None)

    def _share(self, counts: sp.csr_matrix, weights: sp.csr_matrix | None) -> np.ndarray:
        if self._projection is not None and counts.shape[0] >= LARGE_BATCH:
            return self._projection(counts)
        weights = _weigh(counts, self.idf) if weights is None else weights
        shares = np.asarray(weights @ self._exact_term_topic)
        totals = shares.sum(axis=1, keepdims=True)
        return np.where(totals > 0, shares / np.where(totals > 0, totals, 1.0), self.prior).astype(np.float32)

    @cached_property
    def _exact_term_topic(self) -> np.ndarray:
        """Q as float64: sums of many terms stay exact, and scoring one campaign does not convert all of it."""
        return self._term_topic.astype(np.float64)

    @cached_property
    def _term_totals(self) -> np.ndarray:
        """The rows' sums: 1 up to float32, which the parts of a share must not be off by."""
        return np.asarray(self._exact_term_topic.sum(axis=1))

    def topic_term(self) -> np.ndarray:
        """Return p(term | topic), float32 (topics, terms)."""
        return _normalise_rows(self._topic_weight)

    @property
    def num_terms(self) -> int:
        """Number of terms that it was fitted on."""
        return len(self.idf)

    def term_topic(self) -> np.ndarray:
        """Return p(topic | term), float32 (terms, topics)."""
        return self._term_topic

    def decompose(self, counts: sp.csr_matrix) -> Decomposition:
        """Return fingerprints with what each count brings to them; the base is zero, or the prior of an empty row."""
        weights = _weigh(counts, self.idf)
        totals = np.asarray(weights @ self._term_totals)[:, None]
        scale = np.where(totals > 0, 1.0 / np.where(totals > 0, totals, 1.0), 0.0)
        return Decomposition(
            self._share(counts, weights),
            weights.data,
            self._exact_term_topic,
            np.broadcast_to(scale, (len(scale), self.num_topics)),
            np.where(totals > 0, 0.0, self.prior.astype(np.float64)),
        )

    def to_gensim(self, id2word: dict[int, str]) -> "tuple[TfidfModel, LsiModel]":
        """Return plain gensim models: the TF-IDF weighting, and the rotated loadings as an `LsiModel`.

        `LsiModel[TfidfModel[bow]]` gives the signed rotated coordinates Z L of a campaign.
        """
        from gensim.models import LsiModel, TfidfModel

        tfidf = TfidfModel(wlocal=weigh_count, normalize=True, id2word=id2word)
        tfidf.idfs = {column: float(value) for column, value in enumerate(self.idf)}
        tfidf.eps = 0.0
        lsi = LsiModel(id2word=id2word, num_topics=self.num_topics)
        lsi.projection.u = self._loadings.astype(np.float64)
        # LsiModel shows and scales by singular values, which a rotated basis has not: the topics' weights rank alike.
        lsi.projection.s = np.linalg.norm(self._topic_weight.astype(np.float64), axis=1)
        return tfidf, lsi

    def write(self, folder: Path) -> None:
        """Write the arrays as npy files and the sizes as JSON."""
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        (folder / "rotated_lsa.json").write_text(json.dumps({"num_topics": self.num_topics}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "RotatedLsa":
        """Read what `write` wrote.

        Raises:
            ValueError: The arrays do not fit each other.
        """
        idf = read_array(folder / "idf.npy", np.float32, (None,))
        prior = read_array(folder / "prior.npy", np.float32, (None,))
        terms, topics = len(idf), len(prior)
        return cls(
            idf,
            read_array(folder / "term_topic.npy", np.float32, (terms, topics)),
            read_array(folder / "topic_weight.npy", np.float32, (topics, terms)),
            read_array(folder / "loadings.npy", np.float32, (terms, topics)),
            prior,
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "idf": self.idf,
            "term_topic": self._term_topic,
            "topic_weight": self._topic_weight,
            "loadings": self._loadings,
            "prior": self.prior,
        }


def weigh_count(count: Any) -> Any:
    """Return the local TF-IDF weight: `log2(1 + count)`, 1 for one use and defined for fractional weights.

    >>> float(weigh_count(1.0)), float(weigh_count(3.0))
    (1.0, 2.0)
    """
    # Not log2(1 + count), which is 0 for a weight below the resolution of 1.
    return np.log1p(np.asarray(count)) / np.log(2.0)


def inverse_document_frequency(counts: sp.csr_matrix) -> np.ndarray:
    """Return smoothed inverse document frequencies, `ln((1 + n) / (1 + df)) + 1`, float64 (terms,)."""
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    inverse: np.ndarray = np.log((1.0 + counts.shape[0]) / (1.0 + frequency)) + 1.0
    return inverse


def _weigh(counts: sp.csr_matrix, idf: np.ndarray) -> sp.csr_matrix:
    weights = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    weights.data = weigh_count(weights.data) * idf.astype(np.float64)[weights.indices]
    return weights


def _left_singular_vectors(z: sp.csr_matrix, params: RotatedLsaParams) -> np.ndarray:
    """Return orthonormal term loadings, float64 (terms, topics), with as many topics as the corpus supports.

    `LsiModel` computes the same, but forgets its seed when it is given a sparse matrix (gensim 4.4), so we call its
    solver directly.
    """
    from gensim.models.lsimodel import stochastic_svd

    rank = min(params.num_topics, *z.shape)
    loadings, _ = stochastic_svd(
        sp.csc_matrix(z.T),
        rank,
        num_terms=z.shape[1],
        extra_dims=min(50, max(0, min(z.shape) - rank)),
        power_iters=params.power_iterations,
        dtype=np.float64,
        random_seed=params.seed,
    )
    return np.asarray(loadings)


def _rotate(
    loadings: np.ndarray, term_weight: np.ndarray, params: RotatedLsaParams, progress: ProgressCallback
) -> np.ndarray:
    """Rotate loadings by varimax (Kaiser 1958), fitted on the heaviest terms; flip each column to positive skew."""
    heaviest = np.argsort(-term_weight, kind="stable")[: params.rotation_terms]
    fitted = loadings[heaviest]
    rotation = np.eye(fitted.shape[1])
    criterion = 0.0
    for step in range(params.rotation_steps):
        progress("rotation", step, params.rotation_steps)
        rotated = fitted @ rotation
        squared = rotated * rotated
        gradient = fitted.T @ (rotated * (squared - squared.mean(axis=0)))
        left, singular, right = np.linalg.svd(gradient)
        rotation = left @ right
        if singular.sum() < criterion * (1 + 1e-6):
            break
        criterion = singular.sum()
    progress("rotation", params.rotation_steps, params.rotation_steps)
    result = loadings @ rotation
    sign = np.sign((result**3).sum(axis=0))
    return np.asarray(result * np.where(sign == 0, 1.0, sign))


def _weigh_terms(z: sp.csr_matrix, membership: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lambda (topics, terms) and p(topic | term) (terms, topics) of campaigns with these memberships."""
    weight = np.asarray(sp.csr_matrix(z.T) @ _normalise_rows(membership)).T
    return weight, _topic_given_term(weight, smoothing)


def _topic_given_term(weight: np.ndarray, smoothing: float) -> np.ndarray:
    """Return p(topic | term), (terms, topics), from lambda (topics, terms), smoothed towards the corpus mean.

    The mean that a term is smoothed by is the topic's mean weight, so a term that few campaigns use says little.
    """
    smoothed = weight + smoothing * weight.mean(axis=1, keepdims=True)
    totals = smoothed.sum(axis=0)
    uniform = np.full(weight.shape[0], 1.0 / weight.shape[0])
    return np.where(totals[:, None] > 0, smoothed.T / np.where(totals > 0, totals, 1.0)[:, None], uniform)


def _above_mean(shares: np.ndarray) -> np.ndarray:
    """Return what rows have above the mean; a row that is the mean, as in a corpus of equal campaigns, stays itself."""
    above = np.maximum(shares - shares.mean(axis=0), 0.0)
    return np.where(above.sum(axis=1, keepdims=True) > 1e-9, above, shares)


def _normalise_rows(matrix: np.ndarray) -> np.ndarray:
    totals = matrix.sum(axis=1, keepdims=True)
    return np.asarray(matrix / np.where(totals > 0, totals, 1.0))
