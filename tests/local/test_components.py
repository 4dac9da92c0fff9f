"""The components as kfp runs them: the committed YAML, each step in a process of its own, on three small tables.

Importing what a step needs takes most of its seconds, so the three runs are shared by all tests of this file.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import LEAN_PLAN, NO_RULES
from kfp import components, local

from mlflywheel.cluster.registration import RUN_ID_VARIABLE
from mlflywheel.errors import ExpectationError, GateRefusedError, error_from_dict
from mlflywheel.events import EVENTS_VARIABLE
from mlflywheel.models.contract import load_model
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

BEFORE_THE_GATES = ["ingestion", "preparation", "validation", "splitting", "training", "evaluation"]
CAMPAIGNS = 250
#: Rows of the third table, counted from 1, that are clicked more often than they are shown.
FAULTY_ROWS = (4, 11)


@dataclass(frozen=True)
class LocalRun:
    """A finished run: the events that its steps told, kfp's error, and where everything lies."""

    folder: Path
    events: list[dict[str, Any]]
    error: str

    @property
    def registry(self) -> EmbeddedRegistry:
        return EmbeddedRegistry(self.folder / "registry.sqlite")

    def steps(self, event: str) -> list[str]:
        return [told["step"] for told in self.events if told["event"] == event]

    def facts(self, step: str) -> dict[str, Any]:
        (recorded,) = [e["facts"] for e in self.events if e["event"] == "recorded" and e["step"] == step]
        return dict(recorded)

    def tasks(self) -> set[str]:
        """Return kfp's tasks that were started."""
        return {path.name for path in (self.folder / "artifacts").glob("*/*") if path.is_dir()}

    def artifact(self, task: str, name: str) -> Path:
        (path,) = (self.folder / "artifacts").glob(f"*/{task}/{name}")
        return path

    def metadata(self, task: str, artifact: str) -> Mapping[str, Any]:
        """Return what the step wrote beside an artifact, as the launcher of a cluster reads it."""
        output = json.loads(self.artifact(task, "executor_output.json").read_text(encoding="utf-8"))
        (found,) = output["artifacts"][artifact]["artifacts"]
        return dict(found["metadata"])


def run_locally(folder: Path, table: pa.Table, **arguments: Any) -> LocalRun:
    pq.write_table(table, folder / "terms.parquet")
    events, error = folder / "events.jsonl", ""
    with pytest.MonkeyPatch.context() as environment, warnings.catch_warnings():
        environment.setenv(EVENTS_VARIABLE, str(events))
        environment.setenv(RUN_ID_VARIABLE, folder.name)
        environment.setenv("OMP_NUM_THREADS", "1")
        # kfp warns that it ignores the image and the memory limits, which is what a local run is for.
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"))
        pipeline = components.load_component_from_file(str(find_pipeline("ad-campaigns").compiled))
        try:
            pipeline(data=str(folder / "terms.parquet"), registry=str(folder / "registry.sqlite"), **arguments)
        except RuntimeError as failure:
            error = str(failure)
    return LocalRun(folder, [json.loads(line) for line in events.read_text("utf-8").splitlines()], error)


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: tmp_path_factory.mktemp(name)


@pytest.fixture(scope="module")
def held(new_folder: Callable[[str], Path]) -> LocalRun:
    """A run whose gates, the committed ones, hold."""
    return run_locally(new_folder("held"), generate_ad_campaigns(campaigns=CAMPAIGNS))


@pytest.fixture(scope="module")
def refused(new_folder: Callable[[str], Path]) -> LocalRun:
    """A run whose gate asks for more than any model gives."""
    gates = "schema: 1\ngates:\n  - {metric: coherence_c_npmi, at_least: 0.999}\n  - {metric: num_topics, at_least: 1}"
    table = generate_ad_campaigns(campaigns=80)
    given = {"gates": gates, "params": '{"num_topics": 5}', "model_name": "never"}
    given |= {"expectations": NO_RULES, "plan": LEAN_PLAN}
    return run_locally(new_folder("refused"), table, **given)


@pytest.fixture(scope="module")
def faulty(new_folder: Callable[[str], Path]) -> LocalRun:
    """A run on data that an expectation of severity error does not hold on."""
    table = generate_ad_campaigns(campaigns=30)
    clicks = table["clicks"].to_pylist()
    for row in FAULTY_ROWS:
        clicks[row - 1] = table["impressions"][row - 1].as_py() + 1
    return run_locally(new_folder("faulty"), table.set_column(4, "clicks", pa.array(clicks, pa.int64())))


@pytest.fixture(scope="module")
def version(held: LocalRun) -> ModelVersion:
    return held.registry.get("ad-campaigns", "1")


@pytest.fixture(scope="module")
def scores(held: LocalRun) -> pa.Table:
    return pq.read_table(held.facts("scoring")["artifacts"]["scores"])


class TestHeld:
    def test_every_step_starts_and_finishes_in_order(self, held: LocalRun) -> None:
        steps = [*BEFORE_THE_GATES, "extension", "registration", "scoring"]
        assert held.error == ""
        assert held.steps("started") == held.steps("finished") == steps
        assert held.steps("failed") == []

    def test_training_tells_its_progress(self, held: LocalRun) -> None:
        told = [event for event in held.events if event["event"] == "progress" and event["step"] == "training"]
        assert {event["phase"] for event in told} >= {"vocabulary"}
        assert all(0 <= event["done"] <= event["total"] for event in told if event["total"])

    def test_facts_of_the_data_agree(self, held: LocalRun) -> None:
        ingested, split = held.facts("ingestion")["data"], held.facts("splitting")["data"]
        assert ingested["rows"] == pq.read_metadata(held.folder / "terms.parquet").num_rows
        assert ingested["version"].startswith("sha256:")
        assert split["train"] + split["holdout"] == held.facts("preparation")["data"]["entities"] == CAMPAIGNS
        assert held.metadata("ingest-data", "rows") == {
            "version": ingested["version"],
            "rows": ingested["rows"],
            "source": str(held.folder / "terms.parquet"),
        }

    def test_validation_leaves_a_page_and_counts(self, held: LocalRun) -> None:
        page = Path(held.facts("validation")["artifacts"]["validation"]).read_text("utf-8")
        assert page.lstrip().lower().startswith("<!doctype html>")
        counts = held.metadata("validate-data", "metrics")
        assert counts["expectations_failed"] == 0
        assert counts["expectations_passed"] > 10

    def test_metrics_are_the_same_everywhere(self, held: LocalRun, version: ModelVersion) -> None:
        recorded = held.facts("evaluation")["metrics"]
        assert held.metadata("evaluate-model", "metrics") == recorded
        assert version.metrics == recorded
        assert recorded["out_of_vocabulary_share"] > 0

    def test_training_logs_texts_and_numbers(self, held: LocalRun, version: ModelVersion) -> None:
        logged = held.metadata("train-model", "metrics")
        assert (logged["algorithm"], logged["num_topics"]) == ("rotated-lsa", 50)
        assert held.facts("training")["parameters"]["num_topics"] == 50

    def test_run_is_registered_once_under_its_own_id(self, held: LocalRun, version: ModelVersion) -> None:
        assert held.registry.list_versions("ad-campaigns") == [version]
        assert version.key == held.folder.name
        assert held.facts("registration")["model"] == {"name": "ad-campaigns", "version": "1", "uri": version.uri}
        assert version.lineage["data_version"] == held.facts("ingestion")["data"]["version"]

    def test_registered_model_is_the_one_with_all_campaigns(self, held: LocalRun, version: ModelVersion) -> None:
        assert version.uri == f"file://{held.artifact('extend-model', 'extended')}"
        assert version.hash == held.metadata("extend-model", "extended")["hash"]
        assert version.hash != held.metadata("train-model", "fitted")["hash"]
        assert version.parameters["catalogue_campaigns"] == CAMPAIGNS

    def test_gates_are_shown_as_a_table(self, held: LocalRun) -> None:
        table = held.artifact("evaluate-model", "gate_table").read_text("utf-8")
        assert "| coherence_c_npmi | all |" in table
        assert "refused" not in table

    def test_scores_have_the_documented_columns_and_types(self, scores: pa.Table) -> None:
        evidence = pa.struct([("neighbours", pa.list_(pa.string())), ("topics", pa.list_(pa.int32()))])
        expected = {
            "campaign_id": pa.string(),
            "fingerprint": pa.list_(pa.float32(), 50),
            "topics": pa.list_(
                pa.struct(
                    [
                        ("id", pa.int32()),
                        ("name", pa.string()),
                        ("weight", pa.float32()),
                        ("terms", pa.list_(pa.string())),
                    ]
                )
            ),
            "neighbours": pa.list_(pa.struct([("campaign_id", pa.string()), ("similarity", pa.float32())])),
            "recommended": pa.list_(
                pa.struct([("term", pa.string()), ("score", pa.float32()), ("evidence", evidence)])
            ),
            "unknown_share": pa.float32(),
            "note": pa.string(),
            "model_version": pa.string(),
        }
        assert {field.name: field.type for field in scores.schema} == expected

    def test_every_campaign_is_scored_by_the_registered_version(self, held: LocalRun, scores: pa.Table) -> None:
        campaigns = set(
            pq.read_table(held.folder / "terms.parquet", columns=["campaign_id"])["campaign_id"].to_pylist()
        )
        assert sorted(scores["campaign_id"].to_pylist()) == sorted(campaigns)
        assert set(scores["model_version"].to_pylist()) == {"ad-campaigns@1"}
        assert held.metadata("score-table", "scores") == {"rows": CAMPAIGNS, "model_version": "ad-campaigns@1"}

    def test_fingerprints_are_shares(self, scores: pa.Table) -> None:
        shares = scores["fingerprint"].combine_chunks().flatten().to_numpy().reshape(CAMPAIGNS, 50)
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)

    def test_campaigns_have_other_campaigns_as_neighbours(self, scores: pa.Table) -> None:
        for row in scores.select(["campaign_id", "neighbours", "note"]).to_pylist():
            ids = [neighbour["campaign_id"] for neighbour in row["neighbours"]]
            assert row["campaign_id"] not in ids
            assert len(ids) == len(set(ids)) == (0 if row["note"] else 10)

    def test_registered_files_give_the_same_scores(
        self, held: LocalRun, version: ModelVersion, scores: pa.Table
    ) -> None:
        model = load_model(Path(version.uri.removeprefix("file://")))
        prepared = pq.read_table(held.artifact("prepare-table", "table")).slice(5, 1)
        alone = model.predict(prepared).to_pylist()[0]
        assert alone == {key: value for key, value in scores.slice(5, 1).to_pylist()[0].items() if key in alone}


class TestRefused:
    def test_gate_is_named_with_its_value_and_limit(self, refused: LocalRun) -> None:
        (failed,) = [event for event in refused.events if event["event"] == "failed"]
        error = error_from_dict(failed["error"])
        value = refused.facts("evaluation")["metrics"]["coherence_c_npmi"]
        assert failed["step"] == "gates"
        assert type(error) is GateRefusedError
        assert error.exit_code == 3
        assert error.seen.startswith(f"1 of 2 do not hold: coherence_c_npmi {value:.4g} (")
        assert ") is below 0.999 on slice all: top 10 terms of each topic" in error.seen

    def test_kfp_fails_in_the_task_that_refuses(self, refused: LocalRun) -> None:
        assert "refuse-model" in refused.error
        assert refused.steps("started") == [*BEFORE_THE_GATES, "gates"]
        assert refused.steps("finished") == BEFORE_THE_GATES

    def test_nothing_is_registered_or_scored(self, refused: LocalRun) -> None:
        assert refused.registry.list_models() == []
        assert not refused.tasks() & {"extend-model", "register-model", "score-table"}

    def test_evaluation_and_gates_are_left_to_look_at(self, refused: LocalRun) -> None:
        table = refused.artifact("evaluate-model", "gate_table").read_text("utf-8").splitlines()
        assert "**refused**: coherence_c_npmi" in table[2]
        assert [gate["holds"] for gate in refused.facts("evaluation")["gates"]] == [False, True]

    def test_parameters_reach_the_model(self, refused: LocalRun) -> None:
        assert refused.metadata("train-model", "metrics")["num_topics"] == 5


@pytest.mark.long
class TestFaulty:
    def test_validation_fails_before_anything_is_split_or_trained(self, faulty: LocalRun) -> None:
        assert "validate-data" in faulty.error
        assert faulty.steps("started") == ["ingestion", "preparation", "validation"]
        assert faulty.steps("failed") == ["validation"]
        assert faulty.tasks() == {"ingest-data", "prepare-table", "validate-data"}

    def test_error_names_the_rule_the_rows_and_their_ids(self, faulty: LocalRun) -> None:
        failed = faulty.events[-1]
        error = error_from_dict(failed["error"])
        rows = pq.read_table(faulty.folder / "terms.parquet")
        assert type(error) is ExpectationError
        assert f"clicks_at_most_impressions: 2 of {rows.num_rows:,} rows" in error.seen
        for row in FAULTY_ROWS:
            shown = rows.slice(row - 1, 1).to_pylist()[0]
            assert f"row {row}, id {shown['campaign_id']}: " in error.seen
            assert f"clicks {shown['clicks']}" in error.seen

    def test_page_is_there_although_the_step_failed(self, faulty: LocalRun) -> None:
        files = faulty.facts("validation")["artifacts"]
        assert "clicks_at_most_impressions" in Path(files["validation"]).read_text("utf-8")
        results = json.loads(Path(files["validation_results"]).read_text("utf-8"))
        assert (results["status"], results["errors"]) == ("failed", 1)

    def test_nothing_is_registered(self, faulty: LocalRun) -> None:
        assert faulty.registry.list_models() == []
