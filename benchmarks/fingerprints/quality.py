"""Quality of fingerprints on real terms: are a campaign's neighbours of its kind, and do topics read well.

Every method is given the same word counts (`count_words`), so only the models differ. The labels are never shown to a
method.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from benchmarks.fingerprints.corpora import TOPICS, Labelled, count_words, read_farm_ads, read_onet, to_bows
from benchmarks.fingerprints.measuring import Findings, Sample, Score, Setting, time_once
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams
from mlflywheel.models.topic_fingerprints.neighbours import embed_cosine, embed_hellinger
from mlflywheel.models.topic_fingerprints.quality import measure_coherence, measure_diversity
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams
from mlflywheel.models.topic_fingerprints.text import count_features, read_bags
from mlflywheel.statistics.intervals import estimate_difference, estimate_mean

_NEIGHBOURS = 10
REFERENCE = "TF-IDF + SVD(100), words"

# Dense or sparse rows.
Vectors: TypeAlias = Any
Sets = dict[str, tuple[Labelled, Labelled | None, bool]]


@dataclass(frozen=True)
class Fitted:
    """A fitted method.

    Args:
        embed: Turns counts into vectors that are compared by cosine.
        topic_term: Weights of terms in topics, (topics, terms), for methods with readable topics.
        term_topic: p(topic | term), (terms, topics), for the same.
    """

    embed: Callable[[sp.csr_matrix], Vectors]
    topic_term: np.ndarray | None = None
    term_topic: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    """A method to measure.

    Args:
        name: For the table.
        bigrams: Whether it is given pairs of neighbouring words too.
        fit: Fits it to counts with a seed.
        seeds: Number of seeds; 1 where nothing is random.
    """

    name: str
    bigrams: bool
    fit: Callable[[sp.csr_matrix, int], Fitted]
    seeds: int


def measure(setting: Setting) -> Findings:
    """Measure everything that belongs to quality."""
    found = Findings()
    sets = _read_sets(setting, found)
    reference: dict[str, np.ndarray] = {}
    for method in _list_methods(setting.choose(3, 1)):
        fits = _Fits(method)
        purities = {name: _measure_purity(found, fits, name, *parts) for name, parts in sets.items()}
        if "campaigns" in sets:
            _measure_topics(found, fits, sets["campaigns"][0])
        reference = reference or purities
        if method.name != REFERENCE:
            _add_differences(found, method.name, purities, reference, sets)
    return found


def _read_sets(setting: Setting, found: Findings) -> Sets:
    """Return for each set the campaigns to learn from, others to look up among them, and whether siblings count."""
    sets: Sets = {}
    campaigns, occupations = read_onet(setting.data_folder), read_onet(setting.data_folder, "occupation_code")
    if campaigns is None or occupations is None:
        found.skip("quality/onet", "no O*NET terms in the data folder")
    else:
        if setting.quick:
            campaigns, occupations = campaigns.take(np.arange(0, 3000, 20)), occupations.take(np.arange(0, 900, 6))
        unseen = np.random.default_rng(0).random(len(campaigns.terms)) < 0.2
        names = np.unique(campaigns.families)
        unseen_names = names[np.random.default_rng(0).random(len(names)) < 0.2]
        apart = np.isin(campaigns.families, unseen_names)
        sets["campaigns"] = (campaigns, None, False)
        sets["campaigns, siblings left out"] = (campaigns, None, True)
        sets["occupations"] = (occupations, None, False)
        sets["unseen campaigns"] = (campaigns.take(~unseen), campaigns.take(unseen), False)
        sets["campaigns of unseen occupations"] = (campaigns.take(~apart), campaigns.take(apart), False)
    ads = read_farm_ads(setting.data_folder)
    if ads is None:
        found.skip("quality/farm-ads", "no advertisements in the data folder")
    else:
        if setting.quick:
            ads = ads.take(np.arange(0, len(ads.terms), 30))
        unseen = np.random.default_rng(0).random(len(ads.terms)) < 0.2
        sets["advertisements"] = (ads, None, False)
        sets["unseen advertisements"] = (ads.take(~unseen), ads.take(unseen), False)
    if setting.quick:
        return {name: parts for name, parts in sets.items() if name.startswith("campaigns") or name == "advertisements"}
    return sets


class _Fits:
    """Fits of one method, one for each corpus and seed, however many sets look at it."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._found: dict[tuple[int, int], tuple[Any, ...]] = {}

    def fit(self, train: Labelled, seed: int) -> tuple[Fitted, sp.csr_matrix, float, Callable[[Labelled], Any]]:
        """Return the fitted method, the counts it learned from, its CPU seconds, and what counts others' words."""
        key = (id(train), seed)
        if key not in self._found:
            vocabulary, counts, options = count_words(train.terms, self.method.bigrams)

            def count(others: Labelled) -> sp.csr_matrix:
                bags = read_bags(pa.array(others.terms, pa.list_(pa.string())))
                return count_features(bags, vocabulary, options).matrix

            seconds, fitted = time_once(lambda: self.method.fit(counts.matrix, seed))
            # The corpus is kept, so that no other can get its identity.
            self._found[key] = (fitted, counts.matrix, seconds, count, train)
        fitted, matrix, seconds, count, _ = self._found[key]
        return fitted, matrix, seconds, count


def _measure_purity(
    found: Findings, fits: _Fits, name: str, train: Labelled, queries: Labelled | None, without_families: bool
) -> np.ndarray:
    """Add the purity of each seed, and return the first seed's by row."""
    others = train if queries is None else queries
    by_row, same_family = [], []
    for seed in range(fits.method.seeds):
        fitted, counts, _, count = fits.fit(train, seed)
        asked = counts if queries is None else count(queries)
        nearest = _find_nearest(
            fitted.embed(asked), fitted.embed(counts), others, train, queries is None, without_families
        )
        by_row.append((train.labels[nearest] == others.labels[:, None]).mean(axis=1))
        same_family.append(float((train.families[nearest[:, 0]] == others.families).mean()))
    interval = estimate_mean(by_row[0], others.families)
    values = Sample(tuple(float(rows.mean()) for rows in by_row))
    found.scores.append(Score("quality/purity", name, fits.method.name, values, interval.low, interval.high))
    if name == "campaigns":
        found.scores.append(Score("quality/same-occupation", name, fits.method.name, Sample(tuple(same_family))))
    return by_row[0]


def _find_nearest(
    asked: Vectors, catalogue: Vectors, others: Labelled, train: Labelled, same_rows: bool, without_families: bool
) -> np.ndarray:
    """Return the exact nearest rows of the catalogue by cosine, nearest first."""
    similarity = _unit(asked) @ _unit(catalogue).T
    similarity = np.asarray(similarity.toarray() if sp.issparse(similarity) else similarity, dtype=np.float64)
    if same_rows:
        np.fill_diagonal(similarity, -9.0)
    if without_families:
        similarity[others.families[:, None] == train.families[None, :]] = -9.0
    nearest = np.argpartition(-similarity, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    order = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(nearest, order, axis=1))


def _unit(vectors: Vectors) -> Vectors:
    if sp.issparse(vectors):
        from sklearn.preprocessing import normalize

        return sp.csr_matrix(normalize(vectors))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def _measure_topics(found: Findings, fits: _Fits, train: Labelled) -> None:
    """Measure the topics' top 10 single words by weight, and by weight times the square of p(topic | word).

    Pairs of words are left out: "water heater" always comes with "water", which would count as coherence.
    """
    method = fits.method
    vocabulary, _, _ = count_words(train.terms, method.bigrams)
    single = np.array([" " not in word for word in vocabulary.words])
    scores: dict[str, list[float]] = {}
    for seed in range(method.seeds):
        fitted, counts, seconds, _ = fits.fit(train, seed)
        scores.setdefault("quality/fit-seconds", []).append(seconds)
        if fitted.topic_term is None or fitted.term_topic is None:
            continue
        weights = np.where(single, fitted.topic_term, -1.0)
        for ranking, values in (("weight", weights), ("relevance", weights * np.square(fitted.term_topic.T))):
            top = np.argsort(-values, axis=1, kind="stable")[:, :10]
            coherence = measure_coherence(top.tolist(), sp.csr_array(counts))
            scores.setdefault(f"quality/npmi-by-{ranking}", []).append(float(np.nanmean(coherence)))
            scores.setdefault(f"quality/diversity-by-{ranking}", []).append(measure_diversity(top.tolist()))
    for name, found_values in scores.items():
        found.scores.append(Score(name, "campaigns", method.name, Sample(tuple(found_values))))


def _add_differences(
    found: Findings, method: str, purities: dict[str, np.ndarray], reference: dict[str, np.ndarray], sets: Sets
) -> None:
    """Add what a method's purity is above the reference's, on the same rows, with its interval."""
    for name, rows in purities.items():
        train, queries, _ = sets[name]
        families = (train if queries is None else queries).families
        interval = estimate_difference(rows, reference[name], families)
        if interval.value is not None:
            found.scores.append(
                Score(
                    "quality/purity-above-reference",
                    name,
                    method,
                    Sample((interval.value,)),
                    interval.low,
                    interval.high,
                    note=f"reference: {REFERENCE}; seed 0; interval over occupations",
                )
            )


def _list_methods(seeds: int) -> list[Method]:
    return [
        # The reference comes first: the others are compared with it.
        Method(REFERENCE, False, _fit_svd, seeds),
        Method("TF-IDF + SVD(100), words and pairs", True, _fit_svd, seeds),
        Method("TF-IDF, words", False, _fit_tfidf, 1),
        Method("TF-IDF, words and pairs", True, _fit_tfidf, 1),
        Method("gensim LdaModel, stock, 10 passes", False, _fit_stock_lda, 1),
        Method("scikit-learn NMF, words", False, _fit_nmf, 1),
        Method("rotated-lsa (default)", True, lambda counts, seed: _fit_rotated(counts, seed, 1), seeds),
        Method("rotated-lsa, no refinement", True, lambda counts, seed: _fit_rotated(counts, seed, 0), 1),
        Method("rotated-lsa, words", False, lambda counts, seed: _fit_rotated(counts, seed, 1), 1),
        Method("lda", True, _fit_lda, seeds),
        Method("lda, words", False, _fit_lda, 1),
    ]


def _fit_tfidf(counts: sp.csr_matrix, seed: int) -> Fitted:
    from sklearn.feature_extraction.text import TfidfTransformer

    weighting = TfidfTransformer(sublinear_tf=True).fit(counts)
    return Fitted(weighting.transform)


def _fit_svd(counts: sp.csr_matrix, seed: int) -> Fitted:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    weighting = TfidfTransformer(sublinear_tf=True).fit(counts)
    svd = TruncatedSVD(100, random_state=seed).fit(weighting.transform(counts))
    return Fitted(lambda other: svd.transform(weighting.transform(other)))


def _fit_nmf(counts: sp.csr_matrix, seed: int) -> Fitted:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfTransformer

    weighting = TfidfTransformer(sublinear_tf=True).fit(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = NMF(TOPICS, init="nndsvd", random_state=seed).fit(weighting.transform(counts))
    weights = model.components_
    return Fitted(
        lambda other: model.transform(weighting.transform(other)),
        weights,
        (weights / np.maximum(weights.sum(axis=0), 1e-12)).T,
    )


def _fit_stock_lda(counts: sp.csr_matrix, seed: int) -> Fitted:
    from gensim.models import LdaModel
    from gensim.utils import FakeDict

    # The usual filter against words that stand almost everywhere.
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    kept = np.flatnonzero(frequency <= 0.3 * counts.shape[0])
    model = LdaModel(to_bows(sp.csr_matrix(counts[:, kept])), TOPICS, FakeDict(len(kept)), passes=10, random_state=seed)

    def embed(other: sp.csr_matrix) -> np.ndarray:
        gamma = model.inference(to_bows(sp.csr_matrix(other[:, kept])))[0]
        return embed_hellinger(gamma / gamma.sum(axis=1, keepdims=True))

    weights = np.zeros((TOPICS, counts.shape[1]))
    weights[:, kept] = model.get_topics()
    return Fitted(embed, weights, (weights / np.maximum(weights.sum(axis=0), 1e-12)).T)


def _fit_rotated(counts: sp.csr_matrix, seed: int, refinements: int) -> Fitted:
    params = RotatedLsaParams(num_topics=TOPICS, seed=seed, refinements=refinements)
    return _to_fitted(RotatedLsa.fit(counts, params), counts)


def _fit_lda(counts: sp.csr_matrix, seed: int) -> Fitted:
    model = Lda.fit(counts, LdaParams(num_topics=TOPICS, seed=seed))
    return Fitted(lambda other: embed_hellinger(model.transform(other)), model.topic_term(), model.term_topic())


def _to_fitted(model: Any, counts: sp.csr_matrix) -> Fitted:
    mean = model.transform(counts).mean(axis=0)
    return Fitted(lambda other: embed_cosine(model.transform(other), mean), model.topic_term(), model.term_topic())
