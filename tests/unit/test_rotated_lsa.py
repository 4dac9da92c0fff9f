"""Rotated LSA recovers planted topics, and its fingerprints are exactly what their definition says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from mlflywheel.errors import ModelError
from mlflywheel.models.topic_fingerprints.quality import measure_stability
from mlflywheel.models.topic_fingerprints.rotated_lsa import (
    RotatedLsa,
    RotatedLsaParams,
    inverse_document_frequency,
    weigh_count,
)

TOPICS, TERMS, CAMPAIGNS = 8, 400, 600


def plant(seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Draw campaigns from an LDA process: counts, p(term | topic) and p(topic | campaign)."""
    random = np.random.default_rng(seed)
    topic_term = random.dirichlet(np.full(TERMS, 0.05), TOPICS)
    mixture = random.dirichlet(np.full(TOPICS, 0.1), CAMPAIGNS)
    counts = np.array([random.multinomial(60, row @ topic_term) for row in mixture])
    return sp.csr_matrix(counts.astype(np.float32)), topic_term, mixture


@pytest.fixture(scope="module")
def planted() -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    return plant()


@pytest.fixture(scope="module")
def model(planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]) -> RotatedLsa:
    return RotatedLsa.fit(planted[0], RotatedLsaParams(num_topics=TOPICS))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_topics_are_found_again(seed: int) -> None:
    counts, topic_term, mixture = plant(seed)
    model = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=TOPICS, seed=seed))
    found = measure_stability(topic_term, model.topic_term())
    # Counts are damped to their logarithm, so the frequent words of a topic weigh less than in the plan.
    assert found.per_topic.min() > 0.75
    assert found.mean > 0.87
    # A fingerprint leans towards the mixture that the campaign was drawn from.
    leading = mixture.argmax(axis=1)
    clear = mixture.max(axis=1) > 0.6
    matched = np.array(found.matched)
    assert (model.transform(counts).argmax(axis=1) == matched[leading])[clear].mean() > 0.97


def test_fingerprints_are_shares(model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]) -> None:
    shares = model.transform(planted[0])
    assert shares.dtype == np.float32
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(model.term_topic().sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(model.topic_term().sum(axis=1), 1.0, atol=1e-5)


def test_a_fingerprint_is_the_weighted_mean_of_its_terms(model: RotatedLsa) -> None:
    counts = np.zeros(TERMS, dtype=np.float32)
    counts[[3, 50, 200]] = [1, 3, 0.5]
    weights = np.log2(1 + counts) * model.idf
    expected = weights @ model.term_topic() / weights.sum()
    np.testing.assert_allclose(model.transform(sp.csr_matrix(counts))[0], expected, atol=1e-6)


def test_attribution_adds_up_to_the_share(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]
) -> None:
    counts = planted[0][:20]
    split = model.decompose(counts)
    np.testing.assert_array_equal(split.shares, model.transform(counts))
    assert not split.base.any()
    for row in range(20):
        own = slice(*counts.indptr[row : row + 2])
        parts = split.weights[own, None] * split.features[counts.indices[own]] * split.scale[row]
        assert (parts >= 0).all()
        np.testing.assert_allclose(parts.sum(axis=0), split.shares[row], atol=1e-7)


def test_parts_have_the_same_bits_alone_and_among_others(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]
) -> None:
    together, alone = model.decompose(planted[0][:20]), model.decompose(planted[0][7])
    np.testing.assert_array_equal(alone.scale[0], together.scale[7])
    np.testing.assert_array_equal(alone.weights, together.weights[slice(*planted[0].indptr[7:9])])


def test_a_row_without_terms_gets_the_mean_of_the_others(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]
) -> None:
    empty = sp.csr_matrix((2, TERMS), dtype=np.float32)
    np.testing.assert_array_equal(model.transform(empty), [model.prior, model.prior])
    np.testing.assert_allclose(model.prior, model.transform(planted[0]).mean(axis=0), atol=1e-6)
    split = model.decompose(empty)
    assert len(split.weights) == 0
    np.testing.assert_array_equal(split.base.astype(np.float32), [model.prior, model.prior])


def test_empty_rows_in_training_do_not_move_the_prior(planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]) -> None:
    half_empty = sp.csr_matrix(sp.vstack([planted[0], sp.csr_matrix(planted[0].shape, dtype=np.float32)]))
    fitted = RotatedLsa.fit(half_empty, RotatedLsaParams(num_topics=TOPICS))
    np.testing.assert_allclose(fitted.prior, fitted.transform(planted[0]).mean(axis=0), atol=1e-6)


def test_a_row_has_the_same_bits_alone_and_among_others(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]
) -> None:
    together = model.transform(planted[0])
    for row in range(0, CAMPAIGNS, 37):
        np.testing.assert_array_equal(model.transform(planted[0][row])[0], together[row])


def test_tiny_and_huge_weights_are_weights(model: RotatedLsa) -> None:
    columns = [3, 50]
    for weight in (1e-30, 1e-6, 1e30):
        row = sp.csr_matrix(([weight, weight], ([0, 0], columns)), shape=(1, TERMS), dtype=np.float32)
        ones = sp.csr_matrix(([1.0, 1.0], ([0, 0], columns)), shape=(1, TERMS), dtype=np.float32)
        np.testing.assert_allclose(model.transform(row), model.transform(ones), atol=1e-6)


def test_topics_stand_by_size(model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]) -> None:
    cover = model._topic_weight.sum(axis=1)
    assert (np.diff(cover) <= 0).all()


@pytest.mark.parametrize(
    ("counts", "most_topics"),
    [
        (np.array([[2.0, 1.0, 0.0]]), 1),
        (np.array([[1.0]]), 1),
        (np.tile([[2.0, 1.0, 0.0, 1.0]], (30, 1)), 1),
        (np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), 2),
        (np.vstack([np.eye(6), np.zeros((3, 6))]), 6),
        (np.repeat(np.eye(3), 5, axis=0), 3),
    ],
    ids=["one campaign", "one term", "identical campaigns", "two campaigns", "nothing shared", "three groups"],
)
@pytest.mark.parametrize("refinements", [0, 1])
def test_odd_corpora_have_as_many_topics_as_they_support(
    counts: np.ndarray, most_topics: int, refinements: int
) -> None:
    matrix = sp.csr_matrix(counts.astype(np.float32))
    model = RotatedLsa.fit(matrix, RotatedLsaParams(num_topics=50, refinements=refinements))
    assert 1 <= model.num_topics <= most_topics
    shares = model.transform(matrix)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    # Every topic that is left is a distribution over terms.
    np.testing.assert_allclose(model.topic_term().sum(axis=1), 1.0, atol=1e-5)
    same = (counts[:, None, :] == counts[None, :, :]).all(axis=2)
    np.testing.assert_array_equal(same, (shares[:, None, :] == shares[None, :, :]).all(axis=2))


def test_groups_that_share_nothing_are_topics() -> None:
    counts = sp.csr_matrix(np.kron(np.eye(3), np.ones((5, 4))).astype(np.float32))
    shares = RotatedLsa.fit(counts, RotatedLsaParams(num_topics=3, smoothing=0)).transform(counts)
    np.testing.assert_allclose(np.sort(shares, axis=1), [[0, 0, 1]] * 15, atol=1e-5)


def test_no_counts_are_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="minimum_campaigns"):
        RotatedLsa.fit(sp.csr_matrix((3, 4), dtype=np.float32), RotatedLsaParams())


def test_inverse_document_frequency_is_as_written() -> None:
    counts = sp.csr_matrix(np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 2.0]]))
    np.testing.assert_allclose(inverse_document_frequency(counts), [1 + np.log(4 / 4), 1 + np.log(4 / 2)])
    np.testing.assert_allclose(weigh_count(np.array([0.0, 1.0, 7.0])), [0, 1, 3], atol=1e-12)


def test_gensim_gives_the_rotated_coordinates(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray]
) -> None:
    from gensim.matutils import corpus2dense

    counts = planted[0][:30]
    tfidf, lsi = model.to_gensim({column: f"term{column}" for column in range(TERMS)})
    bows = [list(zip(row.indices.tolist(), row.data.tolist(), strict=True)) for row in counts]
    found = corpus2dense(lsi[tfidf[bows]], num_terms=TOPICS).T
    z = np.log2(1 + counts.toarray().astype(np.float64)) * model.idf
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(found, z @ model._loadings, atol=1e-5)
    # The loadings are orthonormal, so these are coordinates and not only numbers.
    np.testing.assert_allclose(model._loadings.T @ model._loadings, np.eye(TOPICS), atol=1e-5)
    assert [word for word, _ in lsi.show_topic(0, topn=3)]


def test_files_give_the_same_fingerprints(
    model: RotatedLsa, planted: tuple[sp.csr_matrix, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model.write(tmp_path)
    read = RotatedLsa.read(tmp_path)
    np.testing.assert_array_equal(read.transform(planted[0]), model.transform(planted[0]))
    np.testing.assert_array_equal(read.topic_term(), model.topic_term())


def test_processes_with_other_thread_counts_learn_the_same_bits() -> None:
    program = (
        "import hashlib, numpy as np, scipy.sparse as sp\n"
        "from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams\n"
        "counts = sp.random(1000, 2000, 0.01, random_state=1, format='csr', dtype=np.float32)\n"
        "model = RotatedLsa.fit(counts, RotatedLsaParams())\n"
        "print(hashlib.sha256(model.transform(counts).tobytes()).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads, seed in (("1", "1"), ("2", "2"))
    }
    assert len(found) == 1
