"""Measurements of topics and neighbours agree with their definitions, and with gensim where it has the same one."""

import numpy as np
import pytest
from scipy import sparse, stats

from mlflywheel.errors import UsageError
from mlflywheel.models.topic_fingerprints.quality import (
    find_unclear,
    measure_coherence,
    measure_diversity,
    measure_exposure,
    measure_hubness,
    measure_purity,
    measure_stability,
)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Documents of 5 groups of words that mostly keep to themselves; some are empty, words repeat inside one."""
    random = np.random.default_rng(0)
    made = []
    for document in range(300):
        group = document % 5
        own = [f"w{group}{i}" for i in random.integers(0, 8, random.integers(0, 12))]
        made.append(own + [f"w{random.integers(0, 5)}{random.integers(0, 8)}" for _ in range(len(own) // 4)])
    return made


def count(texts: list[list[str]], words: list[str]) -> sparse.csr_array:
    column = {word: number for number, word in enumerate(words)}
    rows = [row for row, text in enumerate(texts) for _ in text]
    columns = [column[word] for text in texts for word in text]
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(words)))


def test_coherence_equals_gensim_with_one_window_a_document(texts: list[list[str]]) -> None:
    from gensim.corpora import Dictionary
    from gensim.models import CoherenceModel

    words = sorted({word for text in texts for word in text})
    topics = [
        [f"w0{i}" for i in range(8)],
        [f"w1{i}" for i in range(6)],
        ["w00", "w10", "w20", "w30", "w40"],
        ["w31", "w32", "w41", "w42", "w01", "w02"],
    ]
    model = CoherenceModel(
        topics=topics, texts=texts, dictionary=Dictionary(texts), coherence="c_npmi", window_size=10**6, processes=1
    )
    found = measure_coherence([[words.index(word) for word in topic] for topic in topics], count(texts, words))
    np.testing.assert_allclose(found, model.get_coherence_per_topic(), atol=1e-9)
    assert found[0] > 0.1 > found[2]


def test_coherence_does_not_count_repeats_or_the_topics_order(texts: list[list[str]]) -> None:
    words = sorted({word for text in texts for word in text})
    once = measure_coherence([[0, 3, 9]], count([sorted(set(text)) for text in texts], words))
    many = measure_coherence([[9, 0, 3]], count(texts, words))
    np.testing.assert_allclose(once, many, rtol=1e-12)


def test_coherence_of_words_that_never_meet_is_near_minus_one() -> None:
    apart = sparse.csr_array(np.array([[1, 0], [0, 1]] * 10))
    assert measure_coherence([[0, 1]], apart)[0] == pytest.approx(-0.95, abs=0.01)


def test_coherence_is_undefined_for_one_term_and_for_an_unseen_term() -> None:
    documents = sparse.csr_array(np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]]))
    assert np.isnan(measure_coherence([[0], [0, 2], []], documents)).all()
    assert measure_coherence([], documents).shape == (0,)


def test_coherence_refuses_columns_that_do_not_exist() -> None:
    with pytest.raises(UsageError):
        measure_coherence([[0, 3]], sparse.csr_array(np.eye(3)))
    with pytest.raises(UsageError):
        measure_coherence([[0, 1]], sparse.csr_array((0, 3)))


def test_diversity_is_one_for_distinct_topics_and_falls_with_repeats() -> None:
    assert measure_diversity([[1, 2], [3, 4]]) == 1.0
    assert measure_diversity([[1, 2]] * 4) == 0.25
    assert np.isnan(measure_diversity([]))


def test_purity_equals_its_definition_row_by_row() -> None:
    random = np.random.default_rng(1)
    catalogue = random.choice(["a", "b", "c"], 40).tolist()
    labels = random.choice(["a", "b", "z"], 25).tolist()
    neighbours = random.integers(0, 40, (25, 10))
    expected = [np.mean([catalogue[j] == label for j in row]) for label, row in zip(labels, neighbours, strict=True)]
    np.testing.assert_allclose(measure_purity(neighbours, labels, catalogue), expected)


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_unknown_labels_are_never_alike(unknown: float | None) -> None:
    purity = measure_purity([[0, 1], [0, 1], [1, 1]], [unknown, "a", "a"], ["a", unknown])
    np.testing.assert_array_equal(purity, [np.nan, 1.0, np.nan])


def test_neighbours_outside_the_catalogue_are_refused() -> None:
    with pytest.raises(UsageError, match="the catalogue has rows 0 to 1"):
        measure_purity([[0, 2]], ["a"], ["a", "b"])
    with pytest.raises(UsageError):
        measure_hubness([[-1]], 2)
    with pytest.raises(UsageError):
        measure_purity([[0, 1]], ["a", "b"], ["a", "b"])


@pytest.mark.parametrize("by", ["cosine", "top_terms"])
def test_shuffled_topics_are_fully_stable(by: str) -> None:
    topics = np.random.default_rng(2).dirichlet(np.full(200, 0.05), size=12)
    order = np.random.default_rng(3).permutation(12)
    found = measure_stability(topics, topics[order] * 3.0, by="cosine" if by == "cosine" else "top_terms")
    np.testing.assert_allclose(found.per_topic, 1.0)
    assert [order[match] for match in found.matched if match is not None] == list(range(12))


def test_stability_falls_with_the_part_of_the_topics_that_changed() -> None:
    random = np.random.default_rng(4)
    first, other = random.dirichlet(np.full(500, 0.02), size=(2, 10))
    second = np.concatenate([first[:7], other[7:]])
    found = measure_stability(first, second)
    np.testing.assert_allclose(found.per_topic[:7], 1.0)
    assert found.per_topic[7:].max() < 0.5
    assert found.mean == pytest.approx(found.per_topic.mean())


def test_top_term_stability_is_the_jaccard_overlap() -> None:
    first, second = np.zeros((1, 6)), np.zeros((1, 6))
    first[0, [0, 1, 2]] = 1.0
    second[0, [1, 2, 3]] = 1.0
    assert measure_stability(first, second, by="top_terms", top=3).mean == pytest.approx(2 / 4)


def test_topic_without_a_partner_has_no_likeness() -> None:
    found = measure_stability(np.eye(3), np.eye(3)[[2, 0]])
    assert found.per_topic.tolist() == [1.0, 0.0, 1.0]
    assert found.matched == (1, None, 0)


def test_stability_refuses_other_vocabularies() -> None:
    with pytest.raises(UsageError, match="align the vocabularies"):
        measure_stability(np.eye(3), np.eye(4))


def test_hubness_equals_scipy_skewness_and_separates_a_hub() -> None:
    random = np.random.default_rng(5)
    even = random.integers(0, 100, (400, 10))
    found = measure_hubness(even, 100)
    assert found.occurrences.sum() == 4000
    assert found.skewness == pytest.approx(stats.skew(found.occurrences))
    hub = even.copy()
    hub[:, 0] = 7
    assert measure_hubness(hub, 100).skewness > 5 > abs(found.skewness)


def test_hubness_without_spread_has_no_skewness() -> None:
    found = measure_hubness([[0, 1], [2, 3]], 4)
    assert np.isnan(found.skewness)
    assert found.never_share == 0.0


def test_exposure_equals_its_definition_and_adds_up() -> None:
    random = np.random.default_rng(6)
    groups = random.choice(["large", "small"], 50, p=[0.3, 0.7]).tolist()
    neighbours = np.array([random.permutation(50)[:10] for _ in range(200)])
    found = {e.group: e for e in measure_exposure(neighbours, groups)}
    discount = 1 / np.log2(np.arange(2, 12))
    shown = sum(discount[rank] for row in neighbours for rank, j in enumerate(row) if groups[j] == "small")
    small = found["small"]
    assert small.exposure_share == pytest.approx(shown / (200 * discount.sum()))
    assert small.catalogue_share == groups.count("small") / 50
    assert small.ratio.value == pytest.approx(small.exposure_share / small.catalogue_share)
    assert sum(e.exposure_share for e in found.values()) == pytest.approx(1.0)


def test_random_lists_have_exposure_of_about_one_inside_the_interval() -> None:
    hits = 0
    groups = ["a"] * 20 + ["b"] * 30
    for seed in range(200):
        random = np.random.default_rng(seed)
        neighbours = np.array([random.permutation(50)[:5] for _ in range(60)])
        ratio = measure_exposure(neighbours, groups)[0].ratio
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low <= 1.0 <= ratio.high
    # 95 % of 200 with 4 binomial standard errors.
    assert 190 - 4 * 3.1 <= hits <= 200


def test_first_places_count_more_than_last_ones() -> None:
    first, last = measure_exposure([[0, 1, 2, 3]] * 5, ["a", "a", "b", "b"])
    assert first.ratio.value is not None
    assert last.ratio.value is not None
    assert first.ratio.value > 1.0 > last.ratio.value


def test_unknown_groups_take_their_share_and_get_no_result() -> None:
    (only,) = measure_exposure([[0, 1]] * 3, ["a", None])
    assert only.members == 1
    assert only.exposure_share == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_clusters_widen_the_interval_of_exposure() -> None:
    random = np.random.default_rng(7)
    lists = np.array([random.permutation(30)[:5] for _ in range(20)])
    neighbours, clusters = np.repeat(lists, 10, axis=0), np.repeat(np.arange(20), 10)
    groups = ["a"] * 10 + ["b"] * 20
    plain = measure_exposure(neighbours, groups)[0].ratio
    clustered = measure_exposure(neighbours, groups, clusters.tolist())[0].ratio
    assert plain.low is not None
    assert clustered.low is not None
    assert plain.value == clustered.value
    assert clustered.low < plain.low


def test_row_whose_largest_share_is_the_threshold_is_clear() -> None:
    assert find_unclear([[0.2, 0.8], [0.5, 0.5], [0.6, 0.4]], 0.6).tolist() == [False, True, False]
