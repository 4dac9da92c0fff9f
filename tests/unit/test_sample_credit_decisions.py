"""The made-up applications: the same for a seed everywhere, drawn by the stated process, with the planted gaps."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel.errors import UsageError
from mlflywheel.samples.credit_decisions import (
    FAULTS_FROM,
    generate_credit_decisions,
    ground_truth,
    write_sample,
)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return generate_credit_decisions(20_000)


def values(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist())


def test_equal_seeds_give_equal_tables_and_others_do_not() -> None:
    assert generate_credit_decisions(200, seed=3).equals(generate_credit_decisions(200, seed=3))
    assert not generate_credit_decisions(200, seed=3).equals(generate_credit_decisions(200, seed=4))


def test_text_of_a_seed_is_the_same_on_every_machine(tmp_path: Path) -> None:
    content = write_sample(tmp_path / "sample.csv", applications=150, seed=7).read_bytes()
    assert hashlib.sha256(content).hexdigest() == "9deab250761e67aeb29d9c9e55729b3cade9eebff563dda57da7479e3004970b"


def test_log_odds_are_the_stated_sum() -> None:
    """Of clean rows, with every column seen: what is left of the log-odds is the stated constant in each of them."""
    rows = generate_credit_decisions(FAULTS_FROM - 1).to_pylist()
    probability = ground_truth(FAULTS_FROM - 1)["probability"].to_numpy()
    checking = {"none": -0.95, "low": -0.35, "medium": 0.15, "high": 0.9}
    savings = {"below 100": -0.35, "100 to 500": 0.0, "500 to 1000": 0.35, "above 1000": 0.75}
    purpose = {"car": 0.1, "furniture": 0, "electronics": 0.2, "education": -0.35, "business": -0.15, "repairs": -0.1}
    housing = {"own": 0.3, "rent": -0.15, "free": 0.0}
    for row, chance in zip(rows, probability, strict=True):
        total = checking[row["checking_account"]] + savings[row["savings"]] + purpose[row["purpose"]]
        total += housing[row["housing"]] + 0.45 * (row["guarantor"] == "yes")
        total -= 0.045 * (row["duration_months"] - 21)
        total -= (0.22 if row["amount"] > 6000 else 0.06) * (row["amount"] - 3200) / 1000
        total += 0.11 * (min(row["employment_years"], 10) - 4)
        total -= 0.3 * (row["installment_percent"] - 3) + 0.35 * (row["open_credits"] - 1)
        total -= 0.3 * (row["age"] <= 25) + 0.2 * (row["sex"] == "female")
        assert np.log(chance / (1 - chance)) - total == pytest.approx(1.3)


def test_decisions_are_drawn_with_the_stated_probability(table: pa.Table) -> None:
    probability = ground_truth(20_000)["probability"].to_numpy()
    good = values(table, "decision") == "good"
    assert good.mean() == pytest.approx(probability.mean(), abs=0.01)
    for low in np.arange(0.2, 0.9, 0.1):
        inside = (probability >= low) & (probability < low + 0.1)
        assert good[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.04)


def test_planted_groups_are_decided_differently(table: pa.Table) -> None:
    good = values(table, "decision") == "good"
    young, female = values(table, "age") <= 25, values(table, "sex") == "female"
    assert 0.15 < young.mean() < 0.3
    assert 0.3 < female.mean() < 0.45
    assert 0.6 < good.mean() < 0.75
    assert 0.08 < good[~young].mean() - good[young].mean() < 0.25
    assert 0.02 < good[~female].mean() - good[female].mean() < 0.12


def test_some_cells_are_empty_in_large_tables_alone(table: pa.Table) -> None:
    for name, share in (("savings", 0.08), ("employment_years", 0.04), ("housing", 0.01)):
        assert table[name].null_count / table.num_rows == pytest.approx(share, abs=0.005)
    full = [name for name in table.column_names if name not in ("savings", "employment_years", "housing")]
    assert not any(table[name].null_count for name in full)
    assert not any(column.null_count for column in generate_credit_decisions(FAULTS_FROM - 1).columns)


@pytest.mark.parametrize("name", ["sample.csv", "sample.csv.gz", "sample.parquet"])
def test_equal_seeds_give_equal_bytes(name: str, tmp_path: Path) -> None:
    first = write_sample(tmp_path / "a" / name, applications=120)
    assert first.read_bytes() == write_sample(tmp_path / "b" / name, applications=120).read_bytes()


@pytest.mark.parametrize(("options", "message"), [({"applications": 0}, "applications: 0"), ({"seed": -1}, "seed: -1")])
def test_wrong_arguments_say_what_is_needed(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_sample(tmp_path / "sample.csv", **{"applications": 10, **options})
    assert not (tmp_path / "sample.csv").exists()
