"""Splitting: who lands on which side, and what moves them."""

import hashlib
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.data.splitting import split
from mlflywheel.errors import DataError, UsageError


def campaigns(count: int, start: int = 0) -> pa.Table:
    ids = range(start, start + count)
    return pa.table(
        {
            "campaign_id": [f"c{i}" for i in ids],
            "account": [f"a{i % 101}" if i % 10 else None for i in ids],
            "day": pa.array([date(2024, 1, 1 + i % 28) for i in ids], pa.date32()),
        }
    )


def ids(table: pa.Table) -> list[str]:
    names: list[str] = table["campaign_id"].to_pylist()
    return names


@pytest.mark.parametrize(("method", "column"), [("random", None), ("grouped", "account"), ("temporal", "day")])
def test_every_row_is_on_exactly_one_side(method: str, column: str | None) -> None:
    table = campaigns(1000)
    parts = split(table, method, 0.2, 7, column)
    assert sorted(ids(parts.train) + ids(parts.holdout)) == sorted(ids(table))
    assert parts.train.schema == parts.holdout.schema == table.schema
    assert parts.train.num_rows > parts.holdout.num_rows > 0


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_random_shares_are_as_near_as_the_documentation_says(fraction: float) -> None:
    shares = np.array([split(campaigns(2000), "random", fraction, seed).holdout.num_rows / 2000 for seed in range(50)])
    deviation = np.sqrt(fraction * (1 - fraction) / 2000)
    assert abs(shares.mean() - fraction) < 4 * deviation / np.sqrt(50)
    assert 0.7 * deviation < shares.std() < 1.4 * deviation


def test_a_campaign_stays_on_its_side_when_rows_come_go_or_move() -> None:
    table = campaigns(500)
    held_out = set(ids(split(table, "random", 0.3, 1).holdout))
    more = split(pa.concat_tables([campaigns(700, start=500), table]), "random", 0.3, 1)
    assert set(ids(more.holdout)) & set(ids(table)) == held_out
    fewer = split(table.slice(100, 200), "random", 0.3, 1)
    assert set(ids(fewer.holdout)) == held_out & set(ids(table.slice(100, 200)))
    shuffled = split(table.take(np.random.default_rng(0).permutation(500)), "random", 0.3, 1)
    assert set(ids(shuffled.holdout)) == held_out


def test_a_larger_fraction_only_adds_campaigns() -> None:
    table = campaigns(500)
    parts = [set(ids(split(table, "random", fraction, 1).holdout)) for fraction in (0.1, 0.2, 0.6)]
    assert parts[0] < parts[1] < parts[2]


def test_another_seed_is_another_split() -> None:
    table = campaigns(500)
    first, second = (set(ids(split(table, "random", 0.5, seed).holdout)) for seed in (1, 2))
    assert 0.3 < len(first & second) / len(first) < 0.7


def test_the_split_of_known_campaigns_does_not_change() -> None:
    def falls_below(text: str) -> bool:
        digest = hashlib.blake2b(f"0:{text}".encode(), digest_size=8, person=b"id").digest()
        return int.from_bytes(digest, "big") < 0.3 * 2**64

    assert ids(split(campaigns(20), "random", 0.3, 0).holdout) == ["c4", "c7", "c18"]
    assert [f"c{i}" for i in range(20) if falls_below(f"c{i}")] == ["c4", "c7", "c18"]
    assert ids(split(campaigns(20), "grouped", 0.3, 0, "account").holdout) == [
        "c1",
        "c2",
        "c4",
        "c6",
        "c7",
        "c8",
        "c11",
        "c18",
    ]


def test_rows_keep_their_order_and_one_id_stays_together() -> None:
    table = pa.concat_tables([campaigns(50), campaigns(50)])
    for part in (parts := split(table, "random", 0.4, 3)).train, parts.holdout:
        positions = [int(name[1:]) for name in ids(part)]
        half = len(positions) // 2
        assert positions[:half] == positions[half:] == sorted(set(positions))


def test_ids_may_be_numbers_or_dictionaries_and_have_another_name() -> None:
    text = pa.table({"key": [str(i) for i in range(100)]})
    numbers = pa.table({"key": list(range(100))})
    encoded = pa.table({"key": text["key"].dictionary_encode()})
    expected = split(text, "random", 0.4, 0, id_column="key").holdout["key"].to_pylist()
    for table in (numbers, encoded):
        found = split(table, "random", 0.4, 0, id_column="key").holdout["key"].to_pylist()
        assert [str(key) for key in found] == expected


def test_split_keeps_groups_together() -> None:
    parts = split(campaigns(3000), "grouped", 0.3, 5, "account")
    train, holdout = (set(part["account"].drop_null().to_pylist()) for part in (parts.train, parts.holdout))
    assert train
    assert holdout
    assert not train & holdout


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    parts = split(campaigns(3000), "grouped", 0.3, 5, "account")
    alone = parts.holdout["account"].null_count
    assert abs(alone / 300 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 300)
    # They fall as in a random split: by their ids.
    random = split(campaigns(3000), "random", 0.3, 5)
    assert [i for i in ids(parts.holdout) if i.endswith("0")] == [i for i in ids(random.holdout) if i.endswith("0")]


def test_a_group_does_not_fall_with_an_id_of_the_same_text() -> None:
    names = [f"x{i}" for i in range(400)]
    by_id = split(pa.table({"campaign_id": names}), "random", 0.5, 0)
    by_group = split(pa.table({"campaign_id": names, "group": names}), "grouped", 0.5, 0, "group")
    assert 0.3 < len(set(ids(by_id.holdout)) & set(ids(by_group.holdout))) / 200 < 0.7


def test_rows_without_an_id_fall_one_by_one() -> None:
    table = pa.table({"campaign_id": pa.array([None] * 1000, pa.string()), "row": list(range(1000))})
    parts = split(table, "random", 0.5, 0)
    assert 400 < parts.holdout.num_rows < 600


def test_temporal_holds_out_the_newest_rows_oldest_first() -> None:
    table = campaigns(280).take(np.random.default_rng(0).permutation(280))
    parts = split(table, "temporal", 0.25, 0, "day")
    train, holdout = parts.train["day"].to_pylist(), parts.holdout["day"].to_pylist()
    assert max(train) < min(holdout)
    assert len(holdout) == 70
    assert train == sorted(train)
    assert holdout == sorted(holdout)
    first_day = [name for name, day in zip(ids(table), table["day"].to_pylist(), strict=True) if day == min(train)]
    assert ids(parts.train)[: len(first_day)] == first_day


@pytest.mark.parametrize(
    ("times", "fraction", "held_out"),
    [
        ([1, 2, 2, 2, 3], 0.2, 1),
        ([1, 2, 2, 2, 3], 0.4, 1),
        ([1, 2, 2, 2, 3], 0.6, 4),
        ([1, 2, 2, 2, 3], 0.99, 4),
        ([1, 1, 1, 1, 2], 0.9, 1),
        ([1, 2, 2], 0.01, 2),
        ([1, 2, 2, 3, 3], 0.6, 2),
    ],
)
def test_temporal_ties_stay_together_at_the_nearest_border(times: list[int], fraction: float, held_out: int) -> None:
    table = pa.table({"campaign_id": [str(i) for i in range(len(times))], "day": times})
    assert split(table, "temporal", fraction, 0, "day").holdout.num_rows == held_out


def test_temporal_reads_dates_times_numbers_and_iso_texts() -> None:
    days = [date(2024, 2, 1), date(2023, 12, 31), date(2024, 1, 15)]
    for values in (
        pa.array(days, pa.date32()),
        pa.array([datetime(day.year, day.month, day.day, 1) for day in days], pa.timestamp("ms")),
        pa.array([str(day) for day in days]),
        pa.array([str(day) for day in days]).dictionary_encode(),
        pa.array([2.5, 0.5, 1.5]),
    ):
        parts = split(pa.table({"day": values, "row": [0, 1, 2]}), "temporal", 0.3, 0, "day")
        assert (parts.train["row"].to_pylist(), parts.holdout["row"].to_pylist()) == ([1, 2], [0])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_two_campaigns_fill_both_sides(seed: int, fraction: float) -> None:
    parts = split(campaigns(2), "random", fraction, seed)
    assert (parts.train.num_rows, parts.holdout.num_rows) == (1, 1)


@pytest.mark.parametrize(("method", "column"), [("random", None), ("grouped", "account"), ("temporal", "day")])
def test_one_row_is_for_training_and_no_rows_stay_none(method: str, column: str | None) -> None:
    for count in (0, 1):
        parts = split(campaigns(count), method, 0.5, 0, column)
        assert (parts.train.num_rows, parts.holdout.num_rows) == (count, 0)
        assert parts.holdout.column_names == ["campaign_id", "account", "day"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "stratified"}, "one of random, grouped, temporal is needed"),
        ({"holdout_fraction": 0.0}, "above 0 and below 1"),
        ({"holdout_fraction": 1.0}, "above 0 and below 1"),
        ({"holdout_fraction": float("nan")}, "above 0 and below 1"),
        ({"column": "account"}, "it uses no column"),
        ({"method": "grouped"}, "the column of the groups is needed"),
        ({"method": "temporal"}, "the column of the times is needed"),
        ({"method": "grouped", "column": "none"}, "split column none: not in the table; the table has campaign_id"),
        ({"method": "temporal", "column": "none"}, "split column none: not in the table"),
        ({"id_column": "none"}, "split column none: not in the table"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(arguments: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"method": "random", "holdout_fraction": 0.2, "seed": 0} | arguments
    for count in (1, 10):
        with pytest.raises(UsageError, match=message):
            split(campaigns(count), **values)


def test_data_that_cannot_fill_two_sides_is_an_error() -> None:
    table = pa.table({"campaign_id": ["a", "a"], "account": ["x", "x"], "day": [1, 1]})
    for method, column, where in (
        ("random", None, "campaign_id"),
        ("grouped", "account", "account"),
        ("temporal", "day", "day"),
    ):
        with pytest.raises(DataError, match=f"column {where}: 2 rows .*two .* are needed"):
            split(table, method, 0.5, 0, column)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([1.0, None, 2.0]), "1 of 3 rows have no time"),
        (pa.array([1.0, float("nan"), 2.0]), "1 of 3 rows have no time"),
        (pa.array(["2024-01-01", "soon", "2024-01-02"]), "ISO dates are needed"),
    ],
)
def test_times_that_are_missing_or_unreadable_are_an_error(times: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(pa.table({"day": times}), "temporal", 0.5, 0, "day")


def test_columns_of_lists_order_nothing() -> None:
    table = pa.table({"campaign_id": ["a", "b"], "terms": [["x"], ["y"]]})
    for method in ("grouped", "temporal"):
        with pytest.raises(UsageError, match="column terms: type list"):
            split(table, method, 0.5, 0, "terms")


def test_first_column_is_the_id_where_none_is_named() -> None:
    table = campaigns(300).rename_columns({"campaign_id": "listing_id"})
    assert table.column_names[0] == "listing_id"
    found = split(table, "random", 0.3, 1).holdout["listing_id"].to_pylist()
    assert found == ids(split(campaigns(300), "random", 0.3, 1, None, "campaign_id").holdout)
