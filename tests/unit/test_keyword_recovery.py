"""Hidden keywords: what is hidden, and how many come back."""

import numpy as np
import pyarrow as pa
import pytest
from small_model import FittedCampaigns

from mlflywheel.errors import UsageError
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.model import FitParams
from mlflywheel.models.topic_fingerprints.recommendation import normalize_keyword
from mlflywheel.models.topic_fingerprints.recovery import hide_keywords, measure_recovery


def campaigns(*terms: list[str] | None, weights: list[list[float] | None] | None = None) -> pa.Table:
    columns = {
        "campaign_id": pa.array([f"c{number}" for number in range(len(terms))]),
        "terms": pa.array(terms, pa.list_(pa.string())),
    }
    if weights is not None:
        columns["weights"] = pa.array(weights, pa.list_(pa.float32()))
    return pa.table(columns)


def test_a_fifth_is_hidden_and_the_rest_is_shown() -> None:
    words = [f"word{number}" for number in range(20)]
    shown, hidden = hide_keywords(campaigns(words))
    assert len(hidden[0]) == 4
    assert hidden[0] | set(shown["terms"][0].as_py()) == set(words)
    assert not hidden[0] & set(shown["terms"][0].as_py())


def test_small_and_empty_campaigns_keep_everything() -> None:
    shown, hidden = hide_keywords(campaigns(["a", "b", "c", "d"], [], None))
    assert hidden == [set(), set(), set()]
    assert shown["terms"].to_pylist() == [["a", "b", "c", "d"], [], []]


def test_near_duplicates_are_hidden_together() -> None:
    terms = ["running shoes", "shoes running", "Running Shoe", "b", "c", "d", "e"]
    for name in range(40):
        table = campaigns(terms).set_column(0, "campaign_id", pa.array([f"name{name}"]))
        shown, hidden = hide_keywords(table)
        seen = {normalize_keyword(term) for term in shown["terms"][0].as_py()}
        assert not seen & hidden[0]


def test_weights_stay_with_their_terms() -> None:
    words = [f"w{number}" for number in range(10)]
    shown, _ = hide_keywords(campaigns(words, None, weights=[[float(n) for n in range(10)], None]))
    assert [f"w{weight:.0f}" for weight in shown["weights"][0].as_py()] == shown["terms"][0].as_py()
    assert shown["weights"][1].as_py() is None


def test_the_same_keywords_are_hidden_every_time(fitted_campaigns: FittedCampaigns) -> None:
    first, second = (hide_keywords(fitted_campaigns.holdout)[1] for _ in range(2))
    assert first == second


def test_exclusive_vocabularies_give_back_what_was_hidden() -> None:
    """Ten topics with twelve keywords each, which every campaign of the topic uses: all hidden ones are findable."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(200):
        topic = number % 10
        rows.append(random.permutation([f"topic{topic}word{word}" for word in range(12)]).tolist())
    table = campaigns(*rows)
    model = TopicFingerprints.fit(table.slice(0, 150), FitParams.parse({"num_topics": 10}, "params"))
    recall, popular = measure_recovery(model, table.slice(150))
    assert recall.mean() == pytest.approx(1.0)
    assert popular.mean() < 0.3


def test_unrelated_keywords_do_not_come_back() -> None:
    """Each campaign's words are its own: there is nothing to learn, and nothing may be found."""
    table = campaigns(*[[f"own{number}word{word}" for word in range(10)] + ["shop"] for number in range(60)])
    model = TopicFingerprints.fit(table.slice(0, 40), FitParams.parse({"num_topics": 4}, "params"))
    recall, _ = measure_recovery(model, table.slice(40))
    assert np.nanmax(recall) <= 0.5
    assert np.nanmean(recall) < 0.15


def test_asked_metrics_are_those_of_the_evaluation(fitted_campaigns: FittedCampaigns) -> None:
    model, holdout = fitted_campaigns.model, fitted_campaigns.holdout
    everything = {found.metric: found for found in model.evaluate(holdout).measurements if found.slice == "all"}
    for names in (["hidden_keyword_recall_at_10", "neighbour_purity_at_10"], ["topic_diversity"], ["topic_stability"]):
        asked = model.measure(holdout, names)
        assert [found.metric for found in asked] == names
        assert [(found.value, found.low, found.count) for found in asked] == [
            (everything[name].value, everything[name].low, everything[name].count) for name in names
        ]


def test_an_unknown_metric_is_named_with_the_nearest(fitted_campaigns: FittedCampaigns) -> None:
    with pytest.raises(UsageError, match=r"metric topic_diversty: .*Fix: write topic_diversity\."):
        fitted_campaigns.model.measure(fitted_campaigns.holdout, ["topic_diversty"])
