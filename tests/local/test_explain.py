"""`mlflywheel explain` on registered models: a readable view, JSON, Parquet, and one line for a user's mistake."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mlflywheel.cli import app, main
from mlflywheel.models.contract import Model
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns
from mlflywheel.samples.vehicle_prices import generate_vehicle_prices

QUICK = {"max_iter": 20, "scale_iter": 2, "calibration_folds": 2, "encoding_folds": 3}


def register(runs: Path, name: str, model: Model, prepare: str = "{}") -> None:
    folder = runs / name
    digest = model.save(folder)
    EmbeddedRegistry(runs / "registry.sqlite").ensure_version(
        name,
        folder.as_uri(),
        key=f"run-{name}",
        format_name=model.format_name,
        format_version=model.format_version,
        hash=digest,
        metrics={},
        lineage={"prepare": prepare},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry of two models, and a table for each."""
    folder = tmp_path_factory.mktemp("explain")
    listings = generate_vehicle_prices(listings=400)
    csv.write_csv(listings.slice(0, 60), folder / "listings.csv")
    csv.write_csv(listings.slice(0, 0), folder / "empty.csv")
    prices = VehiclePrice.prepare(listings, VehiclePrice.Config())
    register(folder / "runs", "vehicle-prices", VehiclePrice.fit(prices, VehiclePrice.Params.model_validate(QUICK)))
    terms = generate_ad_campaigns(campaigns=60)
    csv.write_csv(terms, folder / "terms.csv")
    campaigns = TopicFingerprints.prepare(terms, TopicFingerprints.Config())
    model = TopicFingerprints.fit(campaigns, TopicFingerprints.Params.model_validate({"num_topics": 5}))
    register(folder / "runs", "ad-campaigns", model, '{"split_terms": false}')
    return folder


def call(place: Path, model: str, table: str, *arguments: str) -> str:
    command = ["explain", model, "--data", str(place / table), "--runs", str(place / "runs"), "--quiet", *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def read_json(place: Path, model: str, table: str, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(place, model, table, "--json", *arguments))
    return found


def test_the_parts_of_a_named_row_are_shown_with_bars(place: Path) -> None:
    shown = call(place, "vehicle-prices@1", "listings.csv", "--row", "v-000003")
    lines = shown.splitlines()
    assert lines[0] == "v-000003  vehicle-prices@1"
    assert lines[1].startswith("log_price ")
    assert "from a base of" in lines[1]
    assert "year = " in shown
    assert "█" in shown
    assert "Mean absolute" not in shown


def test_the_view_of_many_rows_ends_with_what_the_model_goes_by(place: Path) -> None:
    shown = call(place, "ad-campaigns", "terms.csv", "--show", "2")
    assert shown.count("ad-campaigns@1") == 2
    assert "smaller outputs are not shown" in shown
    assert "Mean absolute contribution to share over 60 rows" in shown


def test_json_holds_parts_that_add_up(place: Path) -> None:
    found = read_json(place, "vehicle-prices@1", "listings.csv", "--row", "v-000003", "--row", "v-000005")
    assert (found["model_version"], found["method"], found["rows"]) == ("vehicle-prices@1", "own", 2)
    assert [one["id"] for one in found["explanations"]] == ["v-000003", "v-000005"]
    for one in found["explanations"]:
        (output,) = one["outputs"]
        total = output["base"] + sum(part["contribution"] for part in output["contributions"])
        assert total == pytest.approx(output["log_price"], abs=1e-12)
    assert found["features"][0]["mean_absolute_contribution"] > 0
    campaigns = read_json(place, "ad-campaigns@1", "terms.csv", "--show", "1")
    assert (campaigns["rows"], campaigns["quantity"], len(campaigns["explanations"])) == (60, "share", 1)
    assert len(campaigns["explanations"][0]["outputs"]) == 5


def test_parquet_holds_all_rows(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "explanations.parquet"
    assert f"{target}: 60 rows explained" in call(place, "ad-campaigns@1", "terms.csv", "--output", str(target))
    table = pq.read_table(target)
    assert table.num_rows == 60 * 5
    assert set(table["model_version"].to_pylist()) == {"ad-campaigns@1"}
    row = table.slice(7, 1).to_pylist()[0]
    assert row["base"] + sum(part["contribution"] for part in row["contributions"]) == pytest.approx(row["share"])


@pytest.mark.long
def test_shap_tells_the_same_story(place: Path) -> None:
    pytest.importorskip("shap", reason="the extra explain is not installed")
    rows = ("--row", "v-000003")
    own, theirs = (
        read_json(place, "vehicle-prices@1", "listings.csv", *rows, "--method", method) for method in ("own", "shap")
    )
    first, second = (found["explanations"][0]["outputs"][0] for found in (own, theirs))
    assert first["log_price"] == second["log_price"]
    total = second["base"] + sum(part["contribution"] for part in second["contributions"])
    assert np.isclose(total, second["log_price"])


@pytest.mark.parametrize(
    ("model", "table", "arguments", "code", "told"),
    [
        ("vehicle-prices@1", "listings.csv", ["--row", "v-00003"], 1, "Fix: write v-0000"),
        ("vehicle-prices@1", "no-such.csv", [], 1, "no such file"),
        ("vehicle-prices@1", "empty.csv", [], 1, "0 rows"),
        ("vehicle-prices@1", "listings.csv", ["--method", "lime"], 2, "own or shap is needed"),
        ("vehicle-prices@9", "listings.csv", [], 1, "vehicle-prices"),
        ("ad-campaigns@1", "terms.csv", ["--method", "shap"], 2, "gives 5 numbers a row"),
        ("ad-campaigns@1", "listings.csv", [], 1, "--map"),
    ],
    ids=["row", "file", "empty", "method", "version", "shap", "columns"],
)
def test_a_mistake_is_one_line_with_a_fix(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    table: str,
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    command = ["explain", model, "--data", str(place / table), "--runs", str(place / "runs"), "--quiet", *arguments]
    monkeypatch.setattr(sys, "argv", ["mlflywheel", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == code
    assert error.startswith("error: ")
    assert told in error
    assert "Fix: " in error
    assert len(error.splitlines()) == 1


def test_help_has_an_example_and_json() -> None:
    shown = CliRunner().invoke(app, ["explain", "--help"])
    assert shown.exit_code == 0
    assert "mlflywheel explain vehicle-prices@1 --data listings.csv --row l000017" in shown.output
    assert "--json" in shown.output
