"""Recommended keywords: whose they are, in which order, and that one row gets what a batch gets."""

import numpy as np
import pytest

from mlflywheel.errors import UsageError
from mlflywheel.models.topic_fingerprints.recommendation import (
    KeywordCatalogue,
    Recommendation,
    normalize_keyword,
    recommend,
)


def terms_of(found: list[Recommendation]) -> list[str]:
    return [r.term for r in found]


@pytest.fixture(scope="module")
def world() -> tuple[KeywordCatalogue, list[list[str]], np.ndarray, np.ndarray, np.ndarray]:
    """200 campaigns of 8 subjects, each with 20 of its subject's 60 words and 5 of 30 that everybody uses."""
    random = np.random.default_rng(0)
    terms, subject = [], random.integers(0, 8, 200)
    for own in subject:
        words = [f"s{own} w{i}" for i in random.permutation(60)[:20]] + [
            f"head w{i}" for i in random.permutation(30)[:5]
        ]
        terms.append(words)
    prints = random.dirichlet(np.full(8, 0.5), 200) * 0.3
    prints[np.arange(200), subject] += 0.7
    unit = prints / np.linalg.norm(prints, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -1.0)
    neighbours = np.argsort(-alike, axis=1, kind="stable")[:, :10]
    catalogue = KeywordCatalogue.build([f"c{i}" for i in range(200)], terms)
    topics = np.zeros((len(catalogue.keywords), 8))
    for row, keyword in enumerate(catalogue.keywords):
        if keyword.startswith("head"):
            topics[row] = 1 / 8
        else:
            topics[row, int(keyword[1])] = 1.0
    return (
        catalogue.with_topics(topics),
        terms,
        neighbours,
        np.take_along_axis(alike, neighbours, axis=1),
        prints,
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Running Shoes", "shoes running"),
        ("running shoe", "running  shoes"),
        ("boxes", "box"),
        ("batteries", "Battery"),
        ("dresses", "dress"),
        ("watches", "watch"),
        ("+red +shoes", "[red shoe]"),
        ("\uff33\uff28\uff2f\uff25\uff33", "shoe"),  # full-width letters
        ("shoe shoe", "shoe"),
    ],
)
def test_near_duplicates_share_a_key(left: str, right: str) -> None:
    assert normalize_keyword(left) == normalize_keyword(right)


@pytest.mark.parametrize(
    ("left", "right"), [("C++", "C"), ("C#", "C"), ("bus", "bu"), ("red shoes", "shoes"), ("靴", "鞄"), ("?", "!")]
)
def test_different_keywords_have_different_keys(left: str, right: str) -> None:
    assert normalize_keyword(left) != normalize_keyword(right)


def test_own_terms_and_their_near_duplicates_are_not_recommended() -> None:
    catalogue = KeywordCatalogue.build(["a", "b"], [["running shoes", "boots"], ["Shoe, running", "tea"]])
    (found,) = recommend(catalogue, [["Running Shoe"]], [[0, 1]], [[0.9, 0.9]])
    assert sorted(terms_of(found)) == ["boots", "tea"]


def test_near_duplicates_are_one_recommendation_in_the_commonest_spelling() -> None:
    catalogue = KeywordCatalogue.build(["a", "b", "c"], [["red shoe"], ["red shoes"], ["red shoes", "Shoes red"]])
    (found,) = recommend(catalogue, [["tea"]], [[0, 1, 2]], [[0.9, 0.8, 0.7]])
    assert [(r.term, r.neighbours) for r in found] == [("red shoes", ("a", "b", "c"))]


def test_evidence_names_exactly_the_neighbours_that_use_a_term(
    world: tuple[KeywordCatalogue, list[list[str]], np.ndarray, np.ndarray, np.ndarray],
) -> None:
    catalogue, terms, neighbours, similarities, prints = world
    for row, found in enumerate(recommend(catalogue, terms, neighbours, similarities, prints)):
        assert len(found) == 10
        for r in found:
            assert r.neighbours == tuple(f"c{j}" for j in neighbours[row] if r.term in terms[j])
            assert r.term not in terms[row]
            assert 0.0 < r.score <= 1.0
        assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def test_topics_name_what_campaign_and_term_share(
    world: tuple[KeywordCatalogue, list[list[str]], np.ndarray, np.ndarray, np.ndarray],
) -> None:
    catalogue, terms, neighbours, similarities, prints = world
    for found in recommend(catalogue, terms, neighbours, similarities, prints):
        for r in found:
            if r.term.startswith("s"):
                assert r.topics == (int(r.term[1]),)
            else:
                assert 1 <= len(r.topics) <= 3
    assert all(r.topics == () for f in recommend(catalogue, terms, neighbours, similarities) for r in f)


def test_one_row_gets_the_same_bits_as_a_batch(
    world: tuple[KeywordCatalogue, list[list[str]], np.ndarray, np.ndarray, np.ndarray],
) -> None:
    catalogue, terms, neighbours, similarities, prints = world
    batch = recommend(catalogue, terms, neighbours, similarities, prints)
    for row in range(0, 200, 7):
        part = slice(row, row + 1)
        assert recommend(catalogue, terms[part], neighbours[part], similarities[part], prints[part])[0] == batch[row]


def test_order_of_own_terms_and_of_the_catalogues_lists_changes_nothing(
    world: tuple[KeywordCatalogue, list[list[str]], np.ndarray, np.ndarray, np.ndarray],
) -> None:
    catalogue, terms, neighbours, similarities, _ = world
    turned = [list(reversed(words)) for words in terms]
    again = KeywordCatalogue.build(catalogue.campaign_ids, turned)
    assert again.keywords == catalogue.keywords
    assert recommend(again, turned, neighbours, similarities) == recommend(catalogue, terms, neighbours, similarities)


def test_hidden_terms_come_back_more_often_than_by_counting_neighbours_alone() -> None:
    # Half of each list of neighbours is of another subject: similarity and common terms must tell them apart.
    random = np.random.default_rng(1)
    full = [[f"s{i % 5} w{w}" for w in random.permutation(30)[:15]] for i in range(150)]
    kept, hidden = [t[:12] for t in full], [t[12:] for t in full]
    catalogue = KeywordCatalogue.build([str(i) for i in range(150)], full)
    same = np.array([random.permutation([j for j in range(150) if j % 5 == i % 5 and j != i])[:5] for i in range(150)])
    other = np.array([random.permutation([j for j in range(150) if j % 5 != i % 5])[:5] for i in range(150)])
    neighbours = np.concatenate([other, same], axis=1)
    found = recommend(catalogue, kept, neighbours, np.full((150, 10), 0.8))
    recall = np.mean([len(set(terms_of(f)) & set(h)) / 3 for f, h in zip(found, hidden, strict=True)])
    counted = []
    for row in range(150):
        users = np.asarray(catalogue.use[neighbours[row]].sum(axis=0)).ravel()
        users[[catalogue.columns[normalize_keyword(t)] for t in kept[row]]] = 0
        best = np.lexsort((np.arange(len(users)), -users))[:10]
        counted.append(len({catalogue.keywords[c] for c in best} & set(hidden[row])) / 3)
    assert recall > np.mean(counted) + 0.05


def test_rarer_term_wins_at_equal_support() -> None:
    catalogue = KeywordCatalogue.build(
        ["a", "b", "c", "d"], [["email", "saddle"], ["email", "saddle"], ["email"], ["email"]]
    )
    (found,) = recommend(catalogue, [["horse"]], [[0, 1]], [[0.9, 0.8]])
    assert terms_of(found) == ["saddle", "email"]


def test_nearer_neighbour_wins_and_equal_scores_are_alphabetical() -> None:
    catalogue = KeywordCatalogue.build(["a", "b"], [["zebra", "yak"], ["ant"]])
    (found,) = recommend(catalogue, [["horse"]], [[0, 1]], [[0.9, 0.6]])
    assert terms_of(found) == ["yak", "zebra", "ant"]


def test_neighbour_with_common_terms_wins_at_equal_similarity() -> None:
    catalogue = KeywordCatalogue.build(["a", "b"], [["ant", "apple"], ["horse", "saddle"]])
    (found,) = recommend(catalogue, [["horse"]], [[0, 1]], [[0.9, 0.9]])
    assert terms_of(found)[0] == "saddle"


def test_preferred_support_puts_single_neighbours_last() -> None:
    catalogue = KeywordCatalogue.build(["a", "b", "c"], [["brand"], ["common"], ["common"]])
    arguments = ([["horse"]], [[0, 1, 2]], [[0.99, 0.3, 0.3]])
    assert terms_of(recommend(catalogue, *arguments)[0]) == ["brand", "common"]
    assert terms_of(recommend(catalogue, *arguments, preferred_support=2)[0]) == ["common", "brand"]


@pytest.mark.parametrize("similarity", [0.0, -0.5, float("nan")])
def test_neighbour_that_is_not_alike_has_no_say(similarity: float) -> None:
    catalogue = KeywordCatalogue.build(["a", "b"], [["ant", "bee"], ["bee"]])
    (found,) = recommend(catalogue, [["horse"]], [[0, 1]], [[similarity, 0.5]])
    assert [(r.term, r.neighbours) for r in found] == [("bee", ("b",))]
    assert recommend(catalogue, [["horse"]], [[0, 1]], [[similarity, similarity]]) == [[]]


def test_limit_is_kept_and_empty_inputs_give_empty_lists() -> None:
    catalogue = KeywordCatalogue.build(["a"], [["ant", "bee", "cat"]])
    assert len(recommend(catalogue, [[]], [[0]], [[0.5]], limit=2)[0]) == 2
    assert recommend(catalogue, [], np.empty((0, 3)), np.empty((0, 3))) == []
    assert recommend(catalogue, [["x"]], np.empty((1, 0)), np.empty((1, 0))) == [[]]
    assert recommend(catalogue, [["ant", "bee", "cat"]], [[0]], [[0.5]]) == [[]]
    assert recommend(KeywordCatalogue.build(["a"], [[" "]]), [["x"]], [[0]], [[0.5]]) == [[]]


def test_arguments_that_do_not_fit_are_refused() -> None:
    catalogue = KeywordCatalogue.build(["a"], [["ant"]])
    with pytest.raises(UsageError, match="the catalogue has rows 0 to 0"):
        recommend(catalogue, [["x"]], [[1]], [[0.5]])
    with pytest.raises(UsageError, match="one row of neighbours"):
        recommend(catalogue, [["x"]], [[0]], [[0.5, 0.4]])
    with pytest.raises(UsageError, match="given for a catalogue without topics"):
        recommend(catalogue, [["x"]], [[0]], [[0.5]], [[1.0]])
    with pytest.raises(UsageError, match="is needed"):
        recommend(catalogue.with_topics([[0.5, 0.5]]), [["x"]], [[0]], [[0.5]], [[1.0]])
    with pytest.raises(UsageError, match="one row for each of 1 keywords"):
        catalogue.with_topics([[1.0], [1.0]])
    with pytest.raises(UsageError, match="limit"):
        recommend(catalogue, [["x"]], [[0]], [[0.5]], limit=0)
    with pytest.raises(UsageError, match="1 ids and 2 lists"):
        KeywordCatalogue.build(["a"], [["ant"], ["bee"]])
