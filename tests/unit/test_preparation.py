"""Rows become campaigns by the written rules, whatever their order."""

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.errors import DataError
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig, prepare_campaigns
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns


def prepare(table: pa.Table | dict[str, list[Any]], **config: Any) -> pa.Table:
    raw = table if isinstance(table, pa.Table) else pa.table(table)
    return prepare_campaigns(raw, PrepareConfig.model_validate(config))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return generate_ad_campaigns(60)


@pytest.mark.parametrize("weighting", ["presence", "count", "log_impressions", "log_clicks"])
def test_the_order_of_rows_does_not_matter(rows: pa.Table, weighting: str) -> None:
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    assert prepare(shuffled, weighting=weighting).equals(prepare(rows, weighting=weighting))


def test_fractions_sum_to_the_same_bits_in_any_order() -> None:
    random = np.random.default_rng(0)
    cost = random.random(1000) * 10.0 ** random.integers(-8, 8, 1000)
    raw = pa.table({"campaign_id": ["a"] * 1000, "term": ["x"] * 1000, "cost": cost, "impressions": cost})
    reverse = raw.take(pa.array(np.arange(1000)[::-1]))
    assert prepare(raw, weighting="log_impressions").equals(prepare(reverse, weighting="log_impressions"))


def test_chunks_and_dictionaries_are_read_like_plain_columns(rows: pa.Table) -> None:
    chunked = pa.concat_tables([rows.slice(0, 7), rows.slice(7, 500), rows.slice(507)])
    encoded = pa.table({name: rows[name].dictionary_encode() for name in ("campaign_id", "term", "vertical")})
    assert prepare(chunked).equals(prepare(rows))
    assert prepare(encoded).equals(prepare(rows.select(["campaign_id", "term", "vertical"])))


def test_duplicates_and_blanks_are_not_terms() -> None:
    found = prepare(
        {
            "campaign_id": ["a", "a", "a", "a", "b", "b", None, " ", "c"],
            "term": ["[Tea]", "tea", '"TEA"', "  ", "", None, "lost", "lost", "milk"],
        }
    )
    assert found.to_pylist() == [
        {"campaign_id": "a", "terms": ["tea"], "weights": [1.0]},
        {"campaign_id": "b", "terms": [], "weights": []},
        {"campaign_id": "c", "terms": ["milk"], "weights": [1.0]},
    ]


def test_ids_stay_text() -> None:
    found = prepare({"campaign_id": ["10", "007", "9"], "term": ["x", "y", "z"]})
    assert found["campaign_id"].to_pylist() == ["007", "10", "9"]
    numbers = prepare({"campaign_id": [10, 9], "term": ["x", "y"]})
    assert numbers["campaign_id"].to_pylist() == ["10", "9"]
    assert numbers["terms"].to_pylist() == [["x"], ["y"]]


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [
        ("presence", {"tea": 1.0, "milk": 1.0}),
        ("count", {"tea": 2.0, "milk": 1.0}),
        ("log_impressions", {"tea": 1 + np.log(1 + 30), "milk": 1.0}),
        ("log_clicks", {"tea": 1 + np.log(1 + 3), "milk": 1 + np.log(1 + 5)}),
    ],
)
def test_weighting_follows_its_rule(weighting: str, weights: dict[str, float]) -> None:
    raw = {
        "campaign_id": ["a"] * 3,
        "term": ["tea", "Tea", "milk"],
        "impressions": [10, 20, None],
        "clicks": [3.0, -7.0, 5.0],
    }
    found = prepare(raw, weighting=weighting).to_pylist()[0]
    heaviest_first = sorted(weights, key=lambda term: (-weights[term], term))
    assert found["terms"] == heaviest_first
    np.testing.assert_allclose(found["weights"], [weights[term] for term in heaviest_first], rtol=1e-6)


def test_numbers_that_are_none_count_as_nothing() -> None:
    raw = {"campaign_id": ["a", "a"], "term": ["x", "y"], "impressions": [float("nan"), float("inf")]}
    found = prepare(raw, weighting="log_impressions").to_pylist()[0]
    assert found["weights"] == [1.0, 1.0]
    assert found["impressions"] == 0.0


def test_texts_are_split_into_words_when_asked_for() -> None:
    raw = {"campaign_id": ["a", "b", "c"], "term": ["Hot hot  water", None, " "], "clicks": [4, 1, 1]}
    found = prepare(raw, split_terms=True, weighting="log_clicks")
    assert found["terms"].to_pylist() == [["hot", "water"], [], []]
    np.testing.assert_allclose(found["weights"].to_pylist()[0], [1 + np.log(9), 1 + np.log(5)], rtol=1e-6)


def test_declared_attributes_are_the_most_frequent_value() -> None:
    found = prepare(
        {
            "campaign_id": ["a", "a", "a", "b", "b", "c"],
            "term": list("uvwxyz"),
            "vertical": ["travel", "travel", "shoes", "shoes", "dentistry", None],
            "locale": [None, "de-DE", None, "en-US", "en-US", "en-US"],
            "as_of": [datetime.date(2026, 1, day) for day in (1, 2, 2, 3, 3, 3)],
        }
    )
    assert found["vertical"].to_pylist() == ["travel", "dentistry", None]
    assert found["locale"].to_pylist() == ["de-DE", "en-US", "en-US"]
    assert found["as_of"].to_pylist() == [datetime.date(2026, 1, day) for day in (2, 3, 3)]


def test_traffic_is_summed() -> None:
    raw = {
        "campaign_id": ["b", "a", "a", "a"],
        "term": ["x", "x", "", None],
        "impressions": [1, 2, 3, None],
        "clicks": [0, 1, 1, 1],
        "cost": [0.5, 0.25, None, 1.0],
    }
    found = prepare(raw)
    assert found.select(["impressions", "clicks", "cost"]).to_pylist() == [
        {"impressions": 5.0, "clicks": 3.0, "cost": 1.25},
        {"impressions": 1.0, "clicks": 0.0, "cost": 0.5},
    ]


def test_other_columns_are_kept_where_no_campaign_has_two_values() -> None:
    found = prepare(
        {
            "campaign_id": ["a", "a", "b", "c"],
            "term": list("wxyz"),
            "account": ["one", "one", "two", None],
            "budget": [1.5, None, 2.5, 2.5],
            "active": [True, True, False, None],
            "match_type": ["exact", "broad", "exact", "exact"],
            "empty": [None, None, None, None],
            "labels": [["l"], ["l"], ["m"], []],
        }
    )
    assert found.column_names == ["campaign_id", "terms", "weights", "account", "budget", "active", "empty"]
    assert found["account"].to_pylist() == ["one", "two", None]
    assert found["budget"].to_pylist() == [1.5, 2.5, 2.5]
    assert found["active"].to_pylist() == [True, False, None]
    assert found["empty"].to_pylist() == [None, None, None]


def test_columns_named_like_the_result_do_not_replace_it() -> None:
    found = prepare({"campaign_id": ["a"], "term": ["x"], "terms": ["other"], "weights": [7], "kind": ["keyword"]})
    assert found.to_pylist() == [{"campaign_id": "a", "terms": ["x"], "weights": [1.0]}]


@pytest.mark.parametrize("missing", [column.name for column in COLUMNS if column.required])
def test_a_missing_column_is_named_with_the_option_that_maps_it(missing: str) -> None:
    raw = {name: ["x"] for name in ("campaign_id", "term", "extra") if name != missing}
    with pytest.raises(DataError, match=f"column {missing}: .*Fix: map it \\(--map {missing}="):
        prepare(raw)


def test_a_weighting_without_its_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"weighting=log_clicks: no column clicks;.*weighting=presence"):
        prepare({"campaign_id": ["a"], "term": ["x"]}, weighting="log_clicks")


@pytest.mark.parametrize("ids", [[], [None, None], ["", "  "]])
def test_rows_without_an_id_are_refused(ids: list[str | None]) -> None:
    raw = pa.table({"campaign_id": pa.array(ids, pa.string()), "term": pa.array(["x"] * len(ids), pa.string())})
    with pytest.raises(DataError, match=r"no row has one.*--map campaign_id="):
        prepare(raw)
