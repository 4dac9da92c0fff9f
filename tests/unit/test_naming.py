"""Topics are shown by terms that they have and others do not."""

import numpy as np
import pytest

from mlflywheel.models.topic_fingerprints.naming import join_name, name_topics, rank_terms

FEATURES = ["cheap", "drain", "heater", "plumber", "shoe", "water", "water heater"]
# Every topic uses "cheap" most; only the other terms tell them apart.
TOPIC_TERM = np.array(
    [
        [0.40, 0.10, 0.15, 0.05, 0.00, 0.12, 0.18],
        [0.60, 0.00, 0.00, 0.00, 0.40, 0.00, 0.00],
    ]
)
TERM_TOPIC = (TOPIC_TERM / TOPIC_TERM.sum(axis=0)).T


def test_a_term_that_all_topics_use_comes_behind_their_own() -> None:
    ranked = rank_terms(TOPIC_TERM, TERM_TOPIC, 3)
    assert [FEATURES[column] for column in ranked[0]] == ["water heater", "heater", "water"]
    assert FEATURES[ranked[1, 0]] == "shoe"


def test_equal_terms_stand_in_column_order() -> None:
    assert rank_terms(np.full((1, 4), 0.25), np.ones((4, 1))).tolist() == [[0, 1, 2, 3]]


def test_topics_carry_their_terms_with_probabilities() -> None:
    plumbing, shoes = name_topics(FEATURES, TOPIC_TERM, TERM_TOPIC)
    assert (plumbing.id, plumbing.name) == (0, "water heater · drain · cheap")
    assert plumbing.terms[0] == "water heater"
    assert plumbing.weights[0] == pytest.approx(0.18)
    assert shoes.terms == ("shoe", "cheap"), "terms of probability 0 are not terms of the topic"
    assert shoes.name == "shoe · cheap"


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ([], "(no terms)"),
        (["tea"], "tea"),
        (["water", "heater", "water heater", "drain", "plumber", "pipe"], "water heater · drain · plumber"),
        (["heater", "water heater", "tank heater", "drain"], "water heater · drain"),
        (["drain", "plumber", "heater", "water heater", "pipe"], "drain · plumber · water heater"),
        (["a b", "c d", "e f", "g h"], "a b · c d · e f"),
        (["給 湯", "湯 器", "修 理"], "給 湯 · 修 理"),
    ],
)
def test_a_name_joins_terms_that_share_no_word(terms: list[str], name: str) -> None:
    assert join_name(terms) == name
