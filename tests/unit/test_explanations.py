"""Explanations add up to what `predict` says, for both algorithms."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_campaigns import campaigns_of, plant_campaigns

from mlflywheel.errors import ModelError
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints

ALGORITHMS = ("rotated-lsa", "lda")


@pytest.fixture(scope="module", params=ALGORITHMS)
def model(request: pytest.FixtureRequest) -> TopicFingerprints:
    params = FitParams.model_validate({"num_topics": 8, "algorithm": request.param})
    return TopicFingerprints.fit(plant_campaigns(), params)


@pytest.fixture(scope="module")
def strangers() -> pa.Table:
    """Campaigns with weights, an unknown term, and one without any known term."""
    table = plant_campaigns(12, seed=9, prefix="new")
    rows = table.to_pylist()
    random = np.random.default_rng(0)
    for row in rows:
        row["terms"].append("zyzzyva quux")
        row["weights"] = random.uniform(0.2, 5, len(row["terms"])).tolist()
    rows[3]["terms"], rows[3]["weights"] = ["zyzzyva"], [1.0]
    return pa.Table.from_pylist(rows, schema=table.schema)


def total(row: dict[str, Any]) -> float:
    return float(row["base"] + sum(part["contribution"] for part in row["terms"]))


def test_contributions_add_up_to_every_share(model: TopicFingerprints, strangers: pa.Table) -> None:
    predicted = np.array(model.predict(strangers)["fingerprint"].to_pylist())
    rows = model.explain(strangers).to_pylist()
    assert [row["campaign_id"] for row in rows] == np.repeat(
        strangers["campaign_id"].to_pylist(), model.num_topics
    ).tolist()
    assert [row["topic"] for row in rows[: model.num_topics]] == [topic.name for topic in model.named]
    np.testing.assert_allclose([total(row) for row in rows], predicted.ravel(), atol=1e-6)
    np.testing.assert_allclose([row["share"] for row in rows], predicted.ravel(), atol=1e-6)
    for row in rows:
        parts = [part["contribution"] for part in row["terms"]]
        assert parts == sorted(parts, reverse=True)
        assert all(part > 0 for part in parts)


def test_a_topic_is_driven_by_its_own_terms(model: TopicFingerprints) -> None:
    campaign = campaigns_of(["travel3 travel4", "shoes1 shoes2", "unheard of"])
    rows = model.explain(campaign).to_pylist()
    for stem in ("travel", "shoes"):
        topics = {topic.id for topic in model.named if stem in topic.terms[0]}
        drivers = {row["terms"][0]["term"] for row in rows if row["topic_id"] in topics}
        assert drivers
        assert all(stem in driver for driver in drivers)
    assert all(part["term"] != "unheard of" for row in rows for part in row["terms"])


def test_the_terms_of_a_topic_are_the_first_of_its_explanation(model: TopicFingerprints, strangers: pa.Table) -> None:
    explained = {(row["campaign_id"], row["topic_id"]): row["terms"] for row in model.explain(strangers).to_pylist()}
    listed = 0
    for answer in model.predict(strangers).to_pylist():
        for topic in answer["topics"]:
            parts = explained[answer["campaign_id"], topic["id"]]
            assert topic["terms"] == [part["term"] for part in parts if part["contribution"] > 0][:3]
            listed += len(topic["terms"])
    assert listed > 3 * strangers.num_rows


def test_terms_that_bring_the_same_stand_in_the_order_of_the_alphabet(model: TopicFingerprints) -> None:
    campaign = campaigns_of(["travel3?", "travel3", "travel3 ~", "travel3!"])
    (answer,) = model.predict(campaign).to_pylist()
    assert answer["topics"][0]["terms"] == ["travel3", "travel3 ~", "travel3!"]
    parts = model.explain(campaign)["terms"][answer["topics"][0]["id"]].as_py()
    assert [part["term"] for part in parts] == ["travel3", "travel3 ~", "travel3!", "travel3?"]


def test_an_explanation_has_the_same_bits_alone_and_among_others(model: TopicFingerprints, strangers: pa.Table) -> None:
    together = model.explain(strangers)
    for position in (0, 3, 7):
        alone = model.explain(strangers.slice(position, 1))
        assert alone.equals(together.slice(position * model.num_topics, model.num_topics).combine_chunks())


def test_a_campaign_without_known_terms_is_all_base(model: TopicFingerprints, strangers: pa.Table) -> None:
    rows = [row for row in model.explain(strangers).to_pylist() if row["campaign_id"] == "new0003"]
    assert len(rows) == model.num_topics
    assert all(row["terms"] == [] for row in rows)
    assert sum(row["base"] for row in rows) == pytest.approx(1.0, abs=1e-5)


def test_terms_that_bring_the_same_words_share_their_contribution(model: TopicFingerprints) -> None:
    table = pa.table(
        {
            "campaign_id": ["a"],
            "terms": [["travel3", "travel3!", "shoes1"]],
            "weights": pa.array([[3.0, 1.0, 1.0]], pa.list_(pa.float32())),
        }
    )
    for row in model.explain(table).to_pylist():
        parts = {part["term"]: part["contribution"] for part in row["terms"]}
        if "travel3" in parts:
            assert parts["travel3"] == pytest.approx(3 * parts["travel3!"], rel=1e-5)


def test_nothing_is_explained_by_no_rows(model: TopicFingerprints, strangers: pa.Table) -> None:
    nothing = model.explain(strangers.slice(0, 0))
    assert nothing.num_rows == 0
    assert nothing.schema.equals(model.explain(strangers.slice(0, 1)).schema)
    near = model.catalogue["campaign_id"][0].as_py()
    empty = model.explain_similarity(strangers.slice(0, 0), near)
    assert empty.num_rows == 0
    assert empty.schema.equals(model.explain_similarity(strangers.slice(0, 1), near).schema)


def test_contributions_add_up_to_every_listed_similarity(model: TopicFingerprints, strangers: pa.Table) -> None:
    for position, answer in enumerate(model.predict(strangers).to_pylist()):
        for near in answer["neighbours"][:3]:
            (row,) = model.explain_similarity(strangers.slice(position, 1), near["campaign_id"]).to_pylist()
            assert row["similarity"] == pytest.approx(near["similarity"], abs=2e-6)
            assert total(row) == pytest.approx(near["similarity"], abs=2e-6)


def test_similarity_is_driven_by_what_two_campaigns_share(model: TopicFingerprints) -> None:
    other = next(row for row in model.catalogue.to_pylist() if row["vertical"] == "travel")
    campaign = campaigns_of(["shoes1 shoes2", "common1", other["terms"][-1], "unheard of"])
    (row,) = model.explain_similarity(campaign, other["campaign_id"]).to_pylist()
    assert row["terms"][0]["term"] == other["terms"][-1]
    shown = {part["term"]: part["contribution"] for part in row["terms"]}
    assert shown["unheard of"] == 0
    assert shown[other["terms"][-1]] > 0.3 * row["similarity"]


def test_a_campaign_without_direction_is_similar_to_nobody(model: TopicFingerprints) -> None:
    near = model.catalogue["campaign_id"][0].as_py()
    (row,) = model.explain_similarity(campaigns_of(["zyzzyva"]), near).to_pylist()
    assert (row["similarity"], row["base"]) == (0.0, 0.0)
    assert sum(part["contribution"] for part in row["terms"]) == 0.0


def test_similarity_to_a_stranger_cannot_be_explained(model: TopicFingerprints, strangers: pa.Table) -> None:
    extended = model.extend(campaigns_of(["zyzzyva"]))
    for name in ("nobody", "q0"):
        with pytest.raises(ModelError, match=f"campaign {name}: not in the catalogue, or without a known term"):
            extended.explain_similarity(strangers.slice(0, 1), name)
