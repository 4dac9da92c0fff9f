"""Declared slices, and the search for weak slices that nobody declared."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.data.ingestion import ingest
from mlflywheel.data.splitting import split
from mlflywheel.decisions.gates import judge, read_gates
from mlflywheel.errors import DataError
from mlflywheel.evaluation import discovery
from mlflywheel.evaluation.conditions import divide_columns
from mlflywheel.evaluation.discovery import COUNT, discover_slices
from mlflywheel.evaluation.plan import DiscoveryPlan, SlicePlan
from mlflywheel.evaluation.slice_search import name_slice, search_slices, select_rows
from mlflywheel.evaluation.slices import measure_slices
from mlflywheel.models.contract import Evaluation, RowMetric, RowScores
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.reports import Report, render_report
from mlflywheel.statistics.intervals import estimate_mean, estimate_share

LISTINGS = Path(__file__).resolve().parents[3] / "shared/data/used_cars/autoscout24_germany.csv.gz"


def score(attributes, *metrics):
    """Build row scores; a bare array is a metric `loss`."""
    found = tuple(one if isinstance(one, RowMetric) else RowMetric("loss", np.asarray(one, float)) for one in metrics)
    count = len(found[0].values)
    table = attributes if isinstance(attributes, pa.Table) else pa.table(attributes)
    return RowScores("regression", pa.array([str(row) for row in range(count)]), table, found, pa.array([0.0] * count))


def cars(seed, rows=1500):
    """Draw a generator, and attributes on which nothing depends but what a test plants."""
    random = np.random.default_rng(seed)
    return random, pa.table(
        {
            "fuel": random.choice(["gas", "diesel", "hybrid", "electric"], rows, p=[0.45, 0.35, 0.1, 0.1]).tolist(),
            "gear": random.choice(["manual", "automatic"], rows).tolist(),
            "make": [f"make {number}" for number in random.integers(0, 8, rows)],
            "year": random.integers(2001, 2021, rows),
            "power": random.lognormal(4.7, 0.4, rows),
        }
    )


def equals(attributes, column, value):
    return np.asarray(attributes[column].to_pylist()) == value


def effects(evaluation):
    return [found for found in evaluation.measurements if found.metric.startswith("slice_effect_")]


def significant(evaluation):
    return [found.slice for found in effects(evaluation) if not found.note.startswith("not significant")]


def count_weak(evaluation):
    (found,) = (one for one in evaluation.measurements if one.metric == COUNT)
    return found


# Declared slices.


def test_every_metric_is_measured_on_every_declared_slice():
    error = RowMetric("error", np.array([1.0, 2.0, 3.0, 8.0, 4.0]))
    good = RowMetric("good", np.array([1.0, 1.0, 0.0, 0.0, 1.0]), "higher", (0.0, 1.0))
    rows = score({"fuel": ["gas", "gas", "gas", "electric", None], "age": [1.0, 9.0, 5.0, 2.0, 30.0]}, error, good)
    measured = measure_slices(rows, SlicePlan(columns=["fuel", {"age": [5]}])).measurements
    assert [(one.metric, one.slice, one.value, one.count) for one in measured] == [
        ("error", "fuel=electric", 8.0, 1),
        ("error", "fuel=gas", 2.0, 3),
        ("error", "fuel=missing", 4.0, 1),
        ("good", "fuel=electric", 0.0, 1),
        ("good", "fuel=gas", pytest.approx(2 / 3), 3),
        ("good", "fuel=missing", 1.0, 1),
        ("error", "age=5 or less", 4.0, 3),
        ("error", "age=above 5", 3.0, 2),
        ("good", "age=5 or less", pytest.approx(1 / 3), 3),
        ("good", "age=above 5", 1.0, 2),
    ]
    assert {one.about for one in measured} == {"slices"}


def test_intervals_of_slices_are_students_for_numbers_and_wilsons_for_shares():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    flags = RowMetric("flag", np.array([1.0, 0.0, 1.0, 1.0]), "higher", (0.0, 1.0))
    depth = RowMetric("depth", np.array([0.5, 0.0, 1.0, 1.0]), "higher", (0.0, 1.0))
    rows = score({"fuel": ["gas"] * 4}, values, flags, depth)
    loss, flag, shade = measure_slices(rows, SlicePlan(columns=["fuel"])).measurements
    expected = estimate_mean(values), estimate_share(3, 4), estimate_mean(depth.values, bounds=(0.0, 1.0))
    assert [(one.low, one.high) for one in (loss, flag, shade)] == [(one.low, one.high) for one in expected]


def test_a_slice_of_one_row_has_a_value_and_no_interval():
    (found,) = measure_slices(score({"fuel": ["gas"]}, [3.0]), SlicePlan(columns=["fuel"])).measurements
    assert (found.value, found.low, found.high, found.count) == (3.0, None, None, 1)


def test_a_slice_without_values_is_none_and_says_why():
    rows = score({"fuel": ["gas", "gas", "electric"]}, [np.nan, np.nan, 1.0])
    empty = measure_slices(rows, SlicePlan(columns=["fuel"])).measurements[1]
    assert (empty.slice, empty.value, empty.low, empty.count) == ("fuel=gas", None, None, 0)
    assert empty.note == "no row of 2 has a value"


def test_what_the_model_measured_already_is_left_out():
    rows = score({"fuel": ["gas", "electric"]}, [1.0, 2.0])
    measured = measure_slices(rows, SlicePlan(columns=["fuel", "fuel"]), existing={("loss", "fuel=gas")})
    assert [one.slice for one in measured.measurements] == ["fuel=electric"]


def test_a_declared_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match="group column colour: not among the columns"):
        measure_slices(score({"fuel": ["gas"]}, [1.0]), SlicePlan(columns=["colour"]))


def test_declared_slices_of_no_rows_are_none():
    empty = score(pa.table({"fuel": pa.array([], pa.string())}), np.empty(0))
    assert measure_slices(empty, SlicePlan(columns=["fuel"])).measurements == ()


# Conditions.


def names_of(attributes, minimum_count=10):
    table = pa.table(attributes)
    return {column.column: column.names for column in divide_columns(table, table.column_names, minimum_count)}


def test_conditions_on_text_are_its_frequent_values():
    texts = ["a"] * 50 + ["b"] * 30 + [None] * 15 + ["c"] * 5
    assert names_of({"x": texts, "id": [str(row) for row in range(100)], "one": ["same"] * 100}) == {
        "x": ("x=a", "x=b", "x=missing")
    }


def test_conditions_on_numbers_end_at_round_numbers():
    prices = np.random.default_rng(0).lognormal(9.2, 0.7, 10_000)
    (names,) = names_of({"price": prices}, 100).values()
    assert names[0] == "price 3000 or less"
    assert "price above 10,000" in names
    assert "price above 6000 to 8000" in names


def test_conditions_on_few_numbers_are_its_values():
    (names,) = names_of({"doors": [2] * 30 + [3] * 5 + [4] * 30 + [5] * 35}).values()
    assert names == (
        "doors=2",
        "doors=4",
        "doors=5",
        "doors above 2",
        "doors 3 or less",
        "doors above 3",
        "doors 4 or less",
    )


def test_missing_numbers_are_one_condition():
    column = [1.0] * 40 + [2.0] * 40 + [None] * 10 + [float("nan")] * 5 + [float("inf")] * 5
    assert names_of({"x": column}) == {"x": ("x=1", "x=2", "x=missing")}


def test_truth_values_and_dictionaries_are_conditions_and_lists_and_bytes_are_not():
    flags = [True] * 50 + [False] * 50
    columns = {"flag": flags, "word": pa.array(["a", "b"] * 50).dictionary_encode(), "list": [[1]] * 100}
    columns["raw"] = [b"x", b"y"] * 50
    assert names_of(columns) == {"flag": ("flag=true", "flag=false"), "word": ("word=a", "word=b")}


def test_a_band_holds_for_the_rows_that_its_name_says():
    numbers = np.round(np.random.default_rng(1).normal(0.0, 3.0, 2000), 2)
    (column,) = divide_columns(pa.table({"x": numbers}), ["x"], 50)
    for place, name in enumerate(column.names):
        words = name.removeprefix("x ").split()
        high = float(words[0]) if words[-1] == "less" else float(words[3]) if "to" in words else np.inf
        low = float(words[1]) if words[0] == "above" else -np.inf
        np.testing.assert_array_equal(column.select(place), (numbers > low) & (numbers <= high), name)


# The search.


def test_the_search_equals_a_plain_one():
    random, attributes = cars(3, 400)
    losses = random.lognormal(0.0, 1.0, 400)
    columns = divide_columns(attributes, attributes.column_names, 40)
    search = search_slices(columns, losses, 40, permutations=5, seed=9)
    singles = {name: column.select(at) for column in columns for at, name in enumerate(column.names)}
    owner = {name: column.column for column in columns for name in column.names}
    masks = dict(singles)
    for left, right in combinations(singles, 2):
        both = singles[left] & singles[right]
        counts = {both.sum(), singles[left].sum(), singles[right].sum()}
        if (
            owner[left] != owner[right]
            and both.sum() >= 40
            and len(counts - {both.sum()}) == len({singles[left].sum(), singles[right].sum()})
        ):
            masks[f"{left} & {right}"] = both
    assert [name_slice(columns, parts) for parts in search.parts[: len(singles)]] == list(singles)
    assert {name_slice(columns, parts) for parts in search.parts} == set(masks)

    def compare(values):
        scaled = (values - values.mean()) / values.std()
        found = {}
        for name, mask in masks.items():
            inside, outside = scaled[mask], scaled[~mask]
            error = 0.0
            for part in (inside, outside):
                variance = part.var(ddof=1)
                error += max(variance, (len(part) * variance + 30) / (len(part) + 30)) / len(part)
            found[name] = (inside.mean() - outside.mean()) / np.sqrt(error)
        return found

    expected = compare(losses)
    for parts, statistic in zip(search.parts, search.statistic, strict=True):
        assert statistic == pytest.approx(expected[name_slice(columns, parts)])
    draw = np.random.default_rng(9)
    permuted = [list(compare(draw.permutation(losses)).values()) for _ in range(5)]
    assert search.highest == pytest.approx(sorted(max(one) for one in permuted), rel=1e-4)
    assert search.lowest == pytest.approx(sorted(-min(one) for one in permuted), rel=1e-4)


def test_only_the_first_columns_are_combined_where_that_is_asked():
    random, attributes = cars(0)
    columns = divide_columns(attributes, ["fuel", "gear", "make"], 30)
    search = search_slices(columns, random.normal(size=1500), 30, combined=2, permutations=1)
    pairs = [name_slice(columns, parts) for parts in search.parts if parts[0] != parts[1]]
    assert len(pairs) == 8
    assert not any("make" in name for name in pairs)


def test_only_a_pair_that_is_worse_than_both_of_its_parts_is_clear():
    random, attributes = cars(18, 3000)
    manual, make = equals(attributes, "gear", "manual"), equals(attributes, "make", "make 3")
    columns = divide_columns(attributes, attributes.column_names, 100)
    for losses, expected in (
        (random.normal(size=3000) + 1.0 * manual, set()),
        (random.normal(size=3000) + 1.0 * (manual & make), {"gear=manual & make=make 3"}),
    ):
        search = search_slices(columns, losses, 100, permutations=0)
        clear = search.find_clear(0.01)
        singles = search.parts[:, 0] == search.parts[:, 1]
        assert clear[singles].all()
        assert {name_slice(columns, parts) for parts in search.parts[clear & ~singles]} == expected


def test_chosen_slices_share_at_most_half_of_their_rows():
    random, attributes = cars(19, 4000)
    power = attributes["power"].to_numpy()
    # Worse the stronger the car, so that every cut is weak and adds to the others.
    losses = random.normal(size=4000) + 3.0 * np.argsort(np.argsort(power)) / 4000
    columns = divide_columns(attributes, ["power", "fuel"], 100)
    search = search_slices(columns, losses, 100, seed=0)
    chosen = discovery.choose_slices(search, columns, losses, DiscoveryPlan())
    masks = [select_rows(columns, search.parts[place]) for place in chosen]
    assert len(masks) >= 2
    for left, right in combinations(masks, 2):
        assert (left & right).sum() <= 0.5 * (left | right).sum()


def test_nothing_is_found_where_nothing_is_weak_but_rarely():
    alarms = 0
    for seed in range(200):
        random, attributes = cars(seed, 300)
        columns = divide_columns(attributes, ["fuel", "gear", "power"], 30)
        search = search_slices(columns, random.lognormal(0.0, 1.0, 300), 30, permutations=99, seed=seed)
        alarms += bool((search.p_value <= 0.05).any())
    # 10 are expected; more than 20 of 200 have a probability of 0.1 %.
    assert alarms <= 20


def test_uneven_spread_around_one_mean_is_not_weak():
    alarms = 0
    for seed in range(40):
        random, attributes = cars(seed, 600)
        losses = random.normal(size=600) * np.where(equals(attributes, "fuel", "electric"), 5.0, 1.0)
        columns = divide_columns(attributes, ["fuel", "gear", "power"], 30)
        search = search_slices(columns, losses, 30, permutations=99, seed=seed)
        alarms += bool((search.p_value <= 0.05).any())
    assert alarms <= 7


# Discovery.


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("fuel=electric", lambda a: equals(a, "fuel", "electric")),
        ("gear=manual & make=make 3", lambda a: equals(a, "gear", "manual") & equals(a, "make", "make 3")),
        ("year=missing", lambda a: np.arange(a.num_rows) % 9 == 0),
    ],
)
def test_a_planted_slice_ranks_first(seed, name, plant):
    random, attributes = cars(seed, 2000)
    planted = plant(attributes)
    if name == "year=missing":
        years = pa.array(attributes["year"].to_numpy(), mask=planted)
        attributes = attributes.set_column(attributes.column_names.index("year"), "year", years)
    losses = random.lognormal(0.0, 0.8, 2000) * np.where(planted, 2.2, 1.0)
    evaluation = discover_slices(score(attributes, losses), DiscoveryPlan(), seed)
    assert significant(evaluation)[0] in (name, " & ".join(reversed(name.split(" & "))))


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_band_is_found_by_its_quantile(seed):
    random, attributes = cars(seed, 2000)
    power = attributes["power"].to_numpy()
    planted = power > np.quantile(power, 0.9)
    losses = random.normal(size=2000) + 1.0 * planted
    evaluation = discover_slices(score(attributes, losses), DiscoveryPlan(), seed)
    first = significant(evaluation)[0]
    assert first.startswith("power above ")
    assert float(first.removeprefix("power above ")) == pytest.approx(np.quantile(power, 0.9), rel=0.06)


def test_effect_is_positive_for_worse_whichever_values_are_better():
    random, attributes = cars(0)
    weak = equals(attributes, "fuel", "electric")
    good = (random.random(1500) < np.where(weak, 0.5, 0.9)).astype(float)
    up = discover_slices(score(attributes, RowMetric("good", good, "higher", (0.0, 1.0))), DiscoveryPlan(), 0)
    down = discover_slices(score(attributes, RowMetric("bad", 1 - good, "lower", (0.0, 1.0))), DiscoveryPlan(), 0)
    (first, *_), (mirrored, *_) = effects(up), effects(down)
    assert (first.metric, first.slice, mirrored.metric) == ("slice_effect_good", "fuel=electric", "slice_effect_bad")
    assert first.value == pytest.approx(good[~weak].mean() - good[weak].mean())
    assert (first.value, first.low, first.high) == pytest.approx((mirrored.value, mirrored.low, mirrored.high))
    assert f"mean {good[weak].mean():.4g}, elsewhere {good[~weak].mean():.4g}" in first.note
    assert first.count == weak.sum()


def test_lower_end_is_above_zero_exactly_for_significant_slices():
    random, attributes = cars(1)
    losses = random.normal(size=1500) + 0.5 * equals(attributes, "fuel", "electric")
    found = effects(discover_slices(score(attributes, losses), DiscoveryPlan(), 0))
    assert {one.note.startswith("not significant") for one in found} == {True, False}
    for one in found:
        assert (one.low > 0) != one.note.startswith("not significant")
        assert one.low < one.value < one.high


def test_simultaneous_interval_is_wider_than_one_for_a_slice_that_was_named_before():
    random, attributes = cars(2)
    losses = random.normal(size=1500)
    losses += equals(attributes, "fuel", "electric")
    (found, *_) = effects(discover_slices(score(attributes, losses), DiscoveryPlan(), 0))
    inside = losses[equals(attributes, "fuel", "electric")]
    assert found.slice == "fuel=electric"
    assert found.high - found.low > 1.5 * 2 * 1.96 * inside.std() / np.sqrt(len(inside))


def test_a_part_of_a_weak_slice_is_not_reported_beside_it():
    random, attributes = cars(4, 3000)
    losses = random.normal(size=3000) + 1.0 * equals(attributes, "fuel", "diesel")
    assert significant(discover_slices(score(attributes, losses), DiscoveryPlan(), 0)) == ["fuel=diesel"]


def test_a_worse_part_of_a_weak_slice_is_reported_beside_it():
    random, attributes = cars(4, 3000)
    diesel, make = equals(attributes, "fuel", "diesel"), equals(attributes, "make", "make 3")
    losses = random.normal(size=3000) + 0.6 * diesel + 1.2 * (diesel & make)
    found = significant(discover_slices(score(attributes, losses), DiscoveryPlan(), 0))
    assert found == ["fuel=diesel & make=make 3", "fuel=diesel"]


def test_equal_columns_are_reported_once():
    random, attributes = cars(5)
    weak = equals(attributes, "fuel", "electric")
    copies = attributes.append_column("fuel_again", attributes["fuel"])
    copies = copies.append_column("is_electric", pa.array(weak))
    evaluation = discover_slices(score(copies, random.normal(size=1500) + weak), DiscoveryPlan(), 0)
    assert significant(evaluation) == ["fuel=electric"]
    assert count_weak(evaluation).value == 1.0


def test_two_weak_slices_are_both_found():
    random, attributes = cars(6, 3000)
    losses = random.normal(size=3000) + equals(attributes, "fuel", "electric") + equals(attributes, "make", "make 2")
    found = discover_slices(score(attributes, losses), DiscoveryPlan(), 0)
    assert {"fuel=electric", "make=make 2"} <= set(significant(found))


def test_a_few_absurd_rows_neither_make_a_slice_nor_hide_one():
    random, attributes = cars(7)
    losses = random.normal(size=1500) + 1.0 * equals(attributes, "fuel", "electric")
    losses[np.flatnonzero(equals(attributes, "make", "make 1"))[:3]] = 10_000.0
    assert significant(discover_slices(score(attributes, losses), DiscoveryPlan(), 0)) == ["fuel=electric"]


def test_rare_failures_are_searched_though_nearly_all_rows_are_alike():
    random, attributes = cars(8, 3000)
    failing = equals(attributes, "fuel", "electric") & (random.random(3000) < 0.09)
    assert 0 < failing.mean() < 0.01
    first, *_ = effects(discover_slices(score(attributes, failing * 1.0), DiscoveryPlan(), 0))
    assert first.slice == "fuel=electric"
    assert first.low > 0
    assert "clipped" not in first.note


def test_discovery_is_the_same_for_one_seed():
    random, attributes = cars(9)
    rows = score(attributes, random.lognormal(0.0, 1.0, 1500))
    once, again, other = (discover_slices(rows, DiscoveryPlan(), seed) for seed in (1, 1, 2))
    assert once == again
    assert [one.low for one in effects(once)] != [one.low for one in effects(other)]


def test_no_listed_slice_is_smaller_than_the_minimum_and_no_more_are_listed_than_asked():
    random, attributes = cars(10)
    rows = score(attributes, random.normal(size=1500))
    found = effects(discover_slices(rows, DiscoveryPlan(minimum_count=200, most=2), 0))
    assert len(found) == 2
    assert all(one.count >= 200 and one.note.startswith("not significant; corrected p ") for one in found)


def test_more_weak_slices_than_are_listed_are_counted():
    random, attributes = cars(11, 4000)
    losses = random.normal(size=4000)
    for number in range(4):
        losses += (1.0 + number / 2) * equals(attributes, "make", f"make {number}")
    evaluation = discover_slices(score(attributes, losses), DiscoveryPlan(most=2, conditions=1), 0)
    assert significant(evaluation) == ["make=make 3", "make=make 2"]
    assert count_weak(evaluation).value >= 3.0
    assert "Listed are the 2 with the largest effect" in evaluation.sections[0].text


def test_one_condition_and_chosen_columns_bound_the_search():
    random, attributes = cars(12)
    rows = score(attributes, random.normal(size=1500))
    found = discover_slices(rows, DiscoveryPlan(conditions=1, columns=("gear", "fuel")), 0)
    assert count_weak(found).note == "6 slices looked at"
    assert all(one.slice.split("=")[0] in ("gear", "fuel") and "&" not in one.slice for one in effects(found))


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(DataError, match="slices, discover, column colour"):
        discover_slices(score({"fuel": ["gas"]}, [1.0]), DiscoveryPlan(columns=("colour",)), 0)


def test_a_disabled_search_measures_nothing():
    assert discover_slices(score({"fuel": ["gas"]}, [1.0]), DiscoveryPlan(enabled=False), 0) == Evaluation(())


@pytest.mark.parametrize(
    ("attributes", "values", "why"),
    [
        (pa.table({"fuel": pa.array([], pa.string())}), [], "no row has a value of the metric"),
        ({"fuel": ["gas"]}, [1.0], "no condition on a column holds for 100 of 1 rows and leaves as many"),
        ({"fuel": ["a", "b"] * 150}, [np.nan] * 300, "no row has a value of the metric"),
        (pa.table({"x": pa.array([1] * 300)}).select([]), [1.0, 2.0] * 150, "no condition on a column"),
        ({"fuel": ["gas"] * 300, "id": [str(i) for i in range(300)]}, [1.0, 2.0] * 150, "no condition on a column"),
    ],
    ids=["no rows", "one row", "no values", "no attributes", "a constant and an id"],
)
def test_nothing_to_look_at_is_no_number_and_says_why(attributes, values, why):
    evaluation = discover_slices(score(attributes, values), DiscoveryPlan(), 0)
    (found,) = evaluation.measurements
    assert (found.metric, found.slice, found.value) == (COUNT, "all", None)
    assert found.note.startswith(why)
    assert why in evaluation.sections[0].text


def test_rows_of_one_value_have_no_weak_slice():
    evaluation = discover_slices(score({"fuel": ["a", "b"] * 150}, [3.0] * 300), DiscoveryPlan(), 0)
    assert [(one.metric, one.value, one.note) for one in evaluation.measurements] == [
        (COUNT, 0.0, "all rows have one value")
    ]


def test_rows_without_a_value_are_left_out():
    random, attributes = cars(13)
    losses = random.normal(size=1500) + equals(attributes, "fuel", "electric")
    losses[::10], losses[1] = np.nan, np.inf
    evaluation = discover_slices(score(attributes, losses), DiscoveryPlan(), 0)
    assert count_weak(evaluation).count == 1500 - 151
    assert significant(evaluation)[0] == "fuel=electric"
    assert "151 rows without a value are left out" in evaluation.sections[0].text


def test_of_very_many_rows_a_sample_is_searched(monkeypatch):
    monkeypatch.setattr(discovery, "_MOST_ROWS", 800)
    random, attributes = cars(14)
    evaluation = discover_slices(score(attributes, random.normal(size=1500)), DiscoveryPlan(), 0)
    assert count_weak(evaluation).count == 800


def test_an_alpha_that_permutations_cannot_reach_gives_no_interval():
    random, attributes = cars(15, 300)
    rows = score(attributes.select(["gear"]), random.normal(size=300))
    found = discover_slices(rows, DiscoveryPlan(alpha=1e-6), 0)
    assert count_weak(found).value == 0.0
    assert [(one.low, one.high) for one in effects(found)] == [(None, None)]


def test_a_gate_bounds_the_weak_slices_and_the_report_draws_them():
    random, attributes = cars(16)
    losses = random.normal(size=1500) + equals(attributes, "fuel", "electric")
    evaluation = discover_slices(score(attributes, losses), DiscoveryPlan(), 0)
    gates = read_gates("schema: 1\ngates:\n  - metric: significant_weak_slices\n    at_most: 0\n")
    assert not judge(gates, evaluation.measurements).holds
    page = render_report(Report("Evaluation", {"status": "succeeded"}, evaluation))
    assert "fuel=electric" in page
    assert "One kind of rows gets clearly worse answers than all other rows" in page


def test_selected_rows_are_those_of_the_name():
    _, attributes = cars(17)
    columns = divide_columns(attributes, ["fuel", "gear"], 30)
    names = [name for column in columns for name in column.names]
    parts = [names.index("fuel=diesel"), names.index("gear=manual")]
    expected = equals(attributes, "fuel", "diesel") & equals(attributes, "gear", "manual")
    np.testing.assert_array_equal(select_rows(columns, parts), expected)


@pytest.mark.long
@pytest.mark.skipif(not LISTINGS.is_file(), reason="needs shared/data/used_cars beside the checkout")
def test_electric_and_cheap_cars_are_found_to_be_priced_worse():
    raw = ingest(str(LISTINGS), VehiclePrice.columns, {"power": "hp", "offer_type": "offerType"}).table
    table = VehiclePrice.prepare(raw, VehiclePrice.Config())
    # A fifth of the file holds 150 electric cars, too few to tell them apart among thousands of slices; half is enough.
    parts = split(table, "random", 0.5, 0, id_column="listing_id")
    model = VehiclePrice.fit(parts.train, VehiclePrice.Params(max_iter=100, calibration_folds=2, scale_iter=30))
    evaluation = discover_slices(model.score_rows(parts.holdout), DiscoveryPlan(most=30), 0)
    found = significant(evaluation)
    assert "fuel=Electric" in found[:10]
    assert "price_band=2,000 to 5,000" in found
