"""`mlflywheel run` as a user types it: the committed YAML in a child process, its summary, scores and registration."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import LEAN_PLAN, NO_RULES, Finished, run

from mlflywheel import Client
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry import EmbeddedRegistry

# Loose where a small sample cannot reach what a real catalogue can.
GATES = '{"schema": 1, "gates": [{"metric": "coherence_c_npmi", "at_least": %s}]}'


@pytest.fixture(scope="module")
def succeeded(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    (folder / "gates.yaml").write_text(GATES % "-1", encoding="utf-8")
    return run(
        folder,
        "--data",
        str(sample),
        "--gates",
        "gates.yaml",
        "--param",
        "num_topics=12",
        "--set",
        "split_seed=3",
        "--json",
    )


def test_run_prints_the_summary_that_it_wrote(succeeded: Finished) -> None:
    assert succeeded.code == 0, succeeded.errors
    summary = json.loads(succeeded.output)
    assert summary == succeeded.summary
    assert summary["status"] == "succeeded"
    assert summary["error"] is None
    assert summary["data"]["entities"] == 150
    assert summary["data"]["version"].startswith("sha256:")
    assert summary["parameters"]["num_topics"] == 12
    assert summary["parameters"]["split_seed"] == 3
    assert {"neighbour_purity_at_10", "reference_neighbour_purity_at_10", "topic_stability"} <= set(summary["metrics"])
    assert [gate["holds"] for gate in summary["gates"]] == [True]
    assert summary["model"]["version"] == "1"
    assert summary["tuning"] is None
    assert "tuning" not in summary["seconds"]
    assert set(summary["seconds"]) >= {"ingestion", "preparation", "validation", "splitting", "training", "scoring"}
    assert all(Path(path).exists() for path in summary["artifacts"].values())


def test_progress_goes_to_standard_error_without_kfp_noise(succeeded: Finished) -> None:
    assert "✓ training" in succeeded.errors
    assert "KFP" not in succeeded.errors
    assert "Task" not in succeeded.errors


def test_scores_have_the_documented_columns(succeeded: Finished) -> None:
    scores = pq.read_table(succeeded.summary["artifacts"]["scores"])
    assert scores.num_rows == 150
    assert scores.schema.field("fingerprint").type == pa.list_(pa.float32(), 12)
    assert scores.column_names[:5] == ["campaign_id", "fingerprint", "topics", "neighbours", "recommended"]
    assert set(scores["model_version"].to_pylist()) == {"ad-campaigns@1"}
    for row in scores.slice(0, 20).to_pylist():
        assert sum(row["fingerprint"]) == pytest.approx(1.0, abs=1e-5)
        assert row["campaign_id"] not in [neighbour["campaign_id"] for neighbour in row["neighbours"]]
        similarities = [neighbour["similarity"] for neighbour in row["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)


def test_registered_version_traces_back_to_data_and_run(succeeded: Finished) -> None:
    version = EmbeddedRegistry(succeeded.folder / "runs" / "registry.sqlite").get("ad-campaigns", "1")
    assert version.lineage["run_id"] == succeeded.summary["run_id"]
    assert version.lineage["data_version"] == succeeded.summary["data"]["version"]
    assert json.loads(version.lineage["params"]) == {"num_topics": 12}
    model = Client(succeeded.folder / "runs").load_model("ad-campaigns@1")
    assert model.describe()["catalogue_campaigns"] == 150


def test_report_is_self_contained_and_names_the_version(succeeded: Finished) -> None:
    assert "ad-campaigns@1" in succeeded.report
    assert 'src="http' not in succeeded.report
    assert 'href="http' not in succeeded.report


@pytest.mark.long
def test_a_second_run_of_the_same_data_by_the_path_of_the_yaml_gives_the_same_model(
    succeeded: Finished, sample: Path
) -> None:
    runs = succeeded.folder / "runs"
    again = Client(runs).run(
        find_pipeline("ad-campaigns").compiled,
        sample,
        params={"num_topics": 12},
        arguments={"gates": GATES % "-1", "split_seed": 3, "expectations": NO_RULES, "plan": LEAN_PLAN},
    )
    first, second = (EmbeddedRegistry(runs / "registry.sqlite").get("ad-campaigns", number) for number in "12")
    assert again.raise_for_status().model == "ad-campaigns@2"
    assert first.hash == second.hash
    assert again.metrics == json.loads(succeeded.output)["metrics"]


def test_refused_gate_is_exit_code_3_and_registers_nothing(tmp_path: Path, sample: Path) -> None:
    (tmp_path / "gates.yaml").write_text(GATES % "0.9999", encoding="utf-8")
    words = ["--gates", "gates.yaml", "--param", "num_topics=12"]
    words += ["--set", f"expectations={NO_RULES}", "--set", f"plan={LEAN_PLAN}"]
    finished = run(tmp_path, "--data", str(sample), *words)
    assert finished.code == 3
    assert "coherence_c_npmi" in finished.errors.splitlines()[-1]
    assert "0.9999" in finished.errors.splitlines()[-1]
    assert finished.summary["status"] == "gate_refused"
    assert finished.summary["model"] is None
    assert finished.summary["gates"][0]["holds"] is False
    assert "scoring" not in finished.summary["seconds"]
    assert "refused" in finished.report.lower()
    assert EmbeddedRegistry(tmp_path / "runs" / "registry.sqlite").list_models() == []
