"""Neighbours are the true ones, the same for one campaign as for many, and never the campaign itself."""

import numpy as np
import pytest

from mlflywheel.models.topic_fingerprints.neighbours import (
    NeighbourIndex,
    Neighbours,
    embed_cosine,
    embed_hellinger,
)


def name(number: int) -> str:
    return f"c{number:05d}"


def draw_unit(number: int, clusters: int = 40, spread: float = 0.5, seed: int = 0, topics: int = 50) -> np.ndarray:
    """Draw clustered unit vectors, float32 (number, topics)."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, topics))
    vectors = centres[random.integers(0, clusters, number)] + spread * random.normal(size=(number, topics))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rank_slowly(catalogue: np.ndarray, queries: np.ndarray, k: int, own: bool) -> list[list[int]]:
    exact = queries.astype(np.float64) @ catalogue.astype(np.float64).T
    found = []
    for row, values in enumerate(exact):
        order = [position for position in np.argsort(-values, kind="stable") if not (own and position == row)]
        found.append(order[:k])
    return found


def assert_same(first: Neighbours, second: Neighbours) -> None:
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.similarity, second.similarity)


@pytest.mark.parametrize("topics", [3, 8, 50, 100])
def test_neighbours_are_the_true_ones(topics: int) -> None:
    vectors = draw_unit(500, topics=topics)
    index = NeighbourIndex([name(number) for number in range(500)], vectors)
    found = index.search(vectors, 10, index.ids)
    assert found.positions.tolist() == rank_slowly(vectors, vectors, 10, own=True)
    expected = np.take_along_axis(vectors.astype(np.float64) @ vectors.astype(np.float64).T, found.positions, axis=1)
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    assert found.similarity.dtype == np.float32
    assert (np.diff(found.similarity, axis=1) <= 0).all()


@pytest.mark.parametrize("approximate", [False, True])
def test_one_query_gets_the_same_bits_as_many(approximate: bool) -> None:
    if approximate:
        pytest.importorskip("faiss", reason="needs mlflywheel[faiss]")
    vectors = draw_unit(3000)
    index = NeighbourIndex([name(number) for number in range(3000)], vectors, approximate=approximate)
    queries = draw_unit(1500, seed=1)
    together = index.search(queries, 10)
    for low, high in [(0, 1), (7, 8), (1023, 1025), (1400, 1419), (1499, 1500)]:
        part = index.search(queries[low:high], 10)
        assert_same(part, Neighbours(together.positions[low:high], together.similarity[low:high]))


def test_near_duplicates_are_ranked_by_exact_similarity_alone_and_together() -> None:
    random = np.random.default_rng(3)
    middle = draw_unit(1)[0].astype(np.float64)
    close = middle + 1e-4 * random.normal(size=(400, 50))
    vectors = (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float32)
    index = NeighbourIndex([name(number) for number in range(400)], vectors)
    together = index.search(vectors, 10, index.ids)
    assert together.positions.tolist() == rank_slowly(vectors, vectors, 10, own=True)
    for row in range(0, 400, 23):
        alone = index.search(vectors[row : row + 1], 10, [name(row)])
        assert_same(alone, Neighbours(together.positions[row : row + 1], together.similarity[row : row + 1]))


def test_equal_campaigns_stand_in_the_order_of_their_ids() -> None:
    vectors = np.repeat(draw_unit(3), 4, axis=0)
    ids = ["d", "b", "a", "c", "h", "g", "f", "e", "l", "k", "j", "i"]
    index = NeighbourIndex(ids, vectors)
    found = index.search(vectors[:1], 6)
    assert [ids[position] for position in found.positions[0]][:4] == ["a", "b", "c", "d"]
    without_own = index.search(vectors[2:3], 3, ["a"])
    assert [ids[position] for position in without_own.positions[0]] == ["b", "c", "d"]


def test_thousands_of_equal_campaigns_do_not_hide_the_others() -> None:
    base = draw_unit(40)
    vectors = np.vstack([np.repeat(base[:1], 3000, axis=0), base])
    index = NeighbourIndex([name(number) for number in range(3040)], vectors)
    assert index.search(vectors[2999:3000], 10, [name(2999)]).positions.tolist() == [list(range(10))]
    assert index.search(vectors[5:6], 10, [name(5)]).positions.tolist() == [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]]
    # Of another campaign the nearest is itself among the rest, and not one of the three thousand.
    other = index.search(base[7:8], 1)
    assert other.positions.tolist() == [[3007]]
    many = index.search(base[7:8], 3500, [name(3007)])
    assert sorted(many.positions[0, :3039].tolist()) == sorted(set(range(3040)) - {3007})


def test_own_id_is_left_out_only_where_it_is_known() -> None:
    vectors = draw_unit(20)
    index = NeighbourIndex([name(number) for number in range(20)], vectors)
    assert index.search(vectors[:1], 1).positions.tolist() == [[0]]
    assert index.search(vectors[:1], 1, [""]).positions.tolist() == [[0]]
    assert index.search(vectors[:1], 1, [name(0)]).positions.tolist() != [[0]]


def test_fewer_campaigns_than_asked_for_leave_places_empty() -> None:
    vectors = draw_unit(3)
    index = NeighbourIndex(["a", "b", "c"], vectors)
    found = index.search(vectors, 5, ["a", "b", "c"])
    assert (found.positions >= 0).sum(axis=1).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(np.isnan(found.similarity), found.positions < 0)
    assert (found.positions[:, 2:] < 0).all()


def test_a_zero_vector_has_no_neighbours() -> None:
    vectors = draw_unit(5)
    queries = np.vstack([vectors[:1], np.zeros((1, 50), dtype=np.float32)])
    found = NeighbourIndex([name(number) for number in range(5)], vectors).search(queries, 2)
    assert (found.positions[0] >= 0).all()
    assert (found.positions[1] < 0).all()
    assert np.isnan(found.similarity[1]).all()


@pytest.mark.parametrize("campaigns", [0, 1])
def test_small_catalogues_work(campaigns: int) -> None:
    vectors = draw_unit(1)[:campaigns]
    index = NeighbourIndex(["a"][:campaigns], vectors)
    found = index.search(draw_unit(2), 3)
    assert (found.positions >= 0).sum(axis=1).tolist() == [campaigns, campaigns]
    assert index.search(np.empty((0, 50), dtype=np.float32), 3).positions.shape == (0, 3)


def test_vectors_are_found_by_id() -> None:
    vectors = draw_unit(3)
    index = NeighbourIndex(["a", "b", "c"], vectors)
    np.testing.assert_array_equal(index.find("b"), vectors[1])
    assert index.find("x") is None


def test_approximate_recall_is_high_and_its_similarity_exact() -> None:
    pytest.importorskip("faiss", reason="needs mlflywheel[faiss]")
    vectors = draw_unit(20_000, clusters=300, spread=0.6)
    index = NeighbourIndex([name(number) for number in range(len(vectors))], vectors, approximate=True)
    rows = np.arange(0, 20_000, 40)
    own = [name(row) for row in rows]
    found = index.search(vectors[rows], 10, own)
    exact = NeighbourIndex(index.ids, vectors, approximate=False).search(vectors[rows], 10, own)
    same = (found.positions[:, :, None] == exact.positions[:, None, :]).any(axis=2)
    assert same.mean() >= 0.95
    both = found.positions == exact.positions
    np.testing.assert_array_equal(found.similarity[both], exact.similarity[both])
    pairs = np.einsum("ij,ikj->ik", vectors[rows].astype(np.float64), vectors[found.positions].astype(np.float64))
    np.testing.assert_allclose(found.similarity, pairs, atol=1e-7)


def test_few_vectors_can_be_searched_approximately() -> None:
    pytest.importorskip("faiss", reason="needs mlflywheel[faiss]")
    vectors = draw_unit(30)
    index = NeighbourIndex([name(number) for number in range(30)], vectors, approximate=True)
    assert index.search(vectors, 1).positions.ravel().tolist() == list(range(30))


class TestEmbedding:
    def test_centred_cosine_is_the_cosine_around_the_mean(self) -> None:
        random = np.random.default_rng(0)
        shares = random.dirichlet(np.ones(6), 5).astype(np.float32)
        mean = shares.mean(axis=0)
        unit = embed_cosine(shares, mean)
        centred = shares.astype(np.float64) - mean
        expected = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
        np.testing.assert_allclose(unit @ unit.T, expected, atol=1e-5)

    def test_the_mean_itself_has_no_direction(self) -> None:
        mean = np.array([0.2, 0.3, 0.5], dtype=np.float32)
        almost = mean + np.array([1e-8, 0, -1e-8], dtype=np.float32)
        assert not embed_cosine(np.vstack([mean, almost]), mean).any()

    def test_hellinger_is_the_sum_of_roots(self) -> None:
        shares = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], dtype=np.float32)
        unit = embed_hellinger(shares)
        np.testing.assert_allclose(unit @ unit.T, [[1.0, 0.5], [0.5, 1.0]], atol=1e-6)
