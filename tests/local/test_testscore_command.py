"""`mlflywheel testscore` over a registry with dossiers, as a user calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from mlflywheel.commands.testscore import compute_testscore
from mlflywheel.errors import GateRefusedError, RegistryError, UsageError
from mlflywheel.registry import EmbeddedRegistry, State
from mlflywheel.registry.dossier import ADDRESS_KEY, HASH_KEY, Dossier, write_dossier

NAME = "vehicle-prices"
RECORDS = """\
schema: 1
maximum_age_days: 30
records:
- {test: D6, by: Ana, at: 2026-11-01, what: 'engine_size took three days', valid_days: 3650}
"""


def measured(metric: str, value: float, **others: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "slice": "all", "count": 100, "note": "", **others}


def make_dossier(run: str) -> Dossier:
    return Dossier(
        schema=1,
        run={"id": run, "pipeline": NAME, "trigger": "manual"},
        model={},
        data={"version": f"sha256:{run}"},
        training={"search": None},
        evaluation={
            "champion": None,
            "measurements": [measured("mdape", 0.1)],
            "gates": [measured("mdape", 0.1, holds=True, reason="")],
        },
        reproducibility={"code": {"commit": "0123456789abcdef", "dirty": False}},
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions with dossiers, of which a person approved the second."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    folder.mkdir()
    registry = EmbeddedRegistry(folder / "registry.sqlite")
    for run in ("run-1", "run-2"):
        path = folder / run / "dossier.json"
        digest = write_dossier(make_dossier(run), path)
        registry.ensure_version(
            NAME,
            f"s3://models/{run}",
            key=run,
            format_name="f",
            format_version="1",
            hash=f"sha256:{run}",
            endpoint="http://127.0.0.1:9",
            lineage={ADDRESS_KEY: path.as_uri(), HASH_KEY: digest},
        )
    registry.set_state(NAME, "2", State.APPROVED, by="Ana", reason="read the report")
    return folder


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    (tmp_path / "testscore.yaml").write_text(RECORDS, encoding="utf-8")
    return tmp_path


def call(*arguments: object) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    app.command("testscore")(compute_testscore)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_score_is_printed_by_section_with_what_limits_it_and_what_is_next(runs: Path, evidence: Path) -> None:
    result = call(f"{NAME}@2", "--runs", runs, "--evidence", evidence)
    assert result.exit_code == 0, result.output
    for line in ("Data            0.5 of 7", "Model           0.5 of 7", "ML Test Score  0.5", "next: "):
        assert line in result.output
    assert "limited by data and model" in result.output
    assert "approved by Ana: read the report" in " ".join(result.output.split())


def test_json_holds_the_score_the_sections_and_28_tests(runs: Path, evidence: Path) -> None:
    result = call(f"{NAME}@2", "--runs", runs, "--evidence", evidence, "--json")
    values = json.loads(result.output)
    assert values["reference"] == f"{NAME}@2"
    points = {test["id"]: test["points"] for test in values["tests"]}
    assert len(points) == 28
    # Both versions have the gate; the approval is of one; the record is of a person.
    assert (points["I4"], points["M1"], points["D6"], points["O5"], points["I6"]) == (1.0, 0.5, 0.5, 0.5, 0.0)
    assert values["score"] == min(values["sections"].values())


def test_a_score_below_what_is_asked_for_is_a_refusal(runs: Path, evidence: Path) -> None:
    result = call(f"{NAME}@2", "--runs", runs, "--evidence", evidence, "--at-least", "1")
    assert isinstance(result.exception, GateRefusedError)
    assert result.exception.exit_code == 3
    assert "0.5, limited by data and model; at least 1 is needed" in str(result.exception)
    assert call(f"{NAME}@2", "--runs", runs, "--evidence", evidence, "--at-least", "0.5").exit_code == 0


def test_a_page_is_written_where_asked_and_nothing_else(runs: Path, evidence: Path, tmp_path: Path) -> None:
    page = tmp_path / "score.html"
    before = sorted(runs.rglob("*"))
    assert call(NAME, "--runs", runs, "--evidence", evidence, "--output", page).exit_code == 0
    assert f"ML Test Score of {NAME}@2" in page.read_text(encoding="utf-8")
    assert sorted(runs.rglob("*")) == before


def test_evidence_beside_the_runs_is_found(runs: Path) -> None:
    without = call(f"{NAME}@2", "--runs", runs)
    assert "there is no folder" in without.output
    beside = runs.parent / "evidence" / NAME
    beside.mkdir(parents=True)
    (beside / "testscore.yaml").write_text(RECORDS, encoding="utf-8")
    assert "limited by data and model" in call(f"{NAME}@2", "--runs", runs).output


def test_a_dossier_that_was_changed_is_refused_but_that_of_another_version_only_noted(
    runs: Path, evidence: Path
) -> None:
    path = runs / "run-1" / "dossier.json"
    text = path.read_bytes()
    path.write_bytes(text.replace(b"0.1", b"0.2"))
    try:
        assert isinstance(call(f"{NAME}@1", "--runs", runs, "--evidence", evidence).exception, RegistryError)
        other = call(f"{NAME}@2", "--runs", runs, "--evidence", evidence, "--json")
        values = json.loads(other.output)
        assert values["notes"][0].startswith(f"the dossier of {NAME}@1 cannot be read: its hash is")
        assert {test["id"]: test["points"] for test in values["tests"]}["I4"] == 0.5
    finally:
        path.write_bytes(text)


def test_a_missing_folder_and_a_missing_version_are_one_line(runs: Path, tmp_path: Path) -> None:
    assert isinstance(call(NAME, "--runs", runs, "--evidence", tmp_path / "none").exception, UsageError)
    assert isinstance(call(f"{NAME}@9", "--runs", runs).exception, RegistryError)


def test_the_help_has_an_example() -> None:
    result = call("--help")
    assert "mlflywheel testscore ad-campaigns@3" in result.output
    assert "--at-least" in result.output
