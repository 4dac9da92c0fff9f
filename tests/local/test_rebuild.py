"""`mlflywheel rebuild`: a registered version is trained again from its dossier, and what is missing is named before.

The version was trained by calls of the library in one process, so the rebuild also shows that a pipeline of many
processes makes the same bits.
"""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from mlflywheel import Client
from mlflywheel.commands.rebuild import print_rebuild, rebuild
from mlflywheel.errors import DataError, ModelError, RegistryError, UsageError
from mlflywheel.evaluation import read_plan
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline, find_pipeline
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.registry.dossier import Dossier, read_dossier, write_dossier
from mlflywheel.reproducibility import THREAD_VARIABLES, Difference, compare_models, hash_specification
from mlflywheel.runs.rebuild import Rebuild, compose_arguments
from mlflywheel.runs.runner import check_arguments

# Other than every default, so that a rebuild without them is noticed.
PARAMS = {"num_topics": 7, "seed": 5}
SETTINGS = {"params": PARAMS, "split_seed": 3, "holdout_fraction": 0.3}
TRAIN = Path(__file__).with_name("train_directly.py")

app = typer.Typer()
app.command()(rebuild)


@dataclass(frozen=True)
class Registered:
    """A version, the client whose registry holds it, and the table that it was trained on."""

    client: Client
    version: ModelVersion
    data: Path

    @property
    def dossier(self) -> Path:
        return Path(self.version.lineage["dossier"].removeprefix("file://"))

    @property
    def document(self) -> dict[str, Any]:
        return dict(read_dossier(self.version) or {})

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--runs", str(self.client.runs)])

    def rebuilds(self) -> list[Path]:
        return sorted(self.client.runs.glob("rebuilds/*"))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Registered:
    folder = tmp_path_factory.mktemp("rebuild")
    data = folder / "terms.csv.gz"
    data.write_bytes(sample.read_bytes())
    client = Client(folder / "runs")
    command = [sys.executable, str(TRAIN), str(data), str(client.runs), json.dumps(SETTINGS)]
    subprocess.run(command, check=True, env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")})
    return Registered(client, client.model("ad-campaigns@1"), data)


@pytest.fixture(scope="module")
def rebuilt(registered: Registered) -> Result:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLYWHEEL_TRIGGER", "scheduled")
        return registered.call("ad-campaigns@1", "--json")


@pytest.fixture
def derive(registered: Registered, tmp_path: Path) -> Callable[..., ModelVersion]:
    """Register a version whose dossier is that of the run, changed."""

    def call(change: Callable[[dict[str, Any]], None]) -> ModelVersion:
        document = json.loads(json.dumps(registered.document))
        change(document)
        path = tmp_path / "dossier.json"
        lineage = {"dossier": f"file://{path}", "dossier_hash": write_dossier(Dossier(**document), path)}
        return register_as(registered, tmp_path.name, lineage)

    return call


def register_as(registered: Registered, key: str, lineage: dict[str, str]) -> ModelVersion:
    return registered.client.registry.ensure_version(
        "derived", registered.version.uri, key=key, format_name="x", format_version="1", hash="sha256:0",
        lineage=lineage,
    )  # fmt: skip


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Put a file back as it was."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


def describe(error: BaseException | None) -> str:
    assert error is not None
    return str(error)


class TestSameMachine:
    def test_hash_is_the_same(self, registered: Registered, rebuilt: Result) -> None:
        assert rebuilt.exit_code == 0, rebuilt.output
        verdict = json.loads(rebuilt.stdout)
        assert verdict["outcome"] == "same"
        assert verdict["rebuilt_hash"] == verdict["recorded_hash"] == registered.version.hash
        assert verdict["reference"] == "ad-campaigns@1"
        assert all(pair["recorded"] == pair["rebuilt"] for pair in verdict["metrics"])
        assert {pair["metric"] for pair in verdict["metrics"]} == set(registered.version.metrics)

    def test_verdict_lies_in_a_folder_of_its_own(self, registered: Registered, rebuilt: Result) -> None:
        verdict = json.loads(rebuilt.stdout)
        folder = registered.client.runs / "rebuilds" / verdict["rebuild_id"]
        assert json.loads((folder / "rebuild.json").read_text(encoding="utf-8")) == verdict
        assert len(list(folder.glob(f"ad-campaigns/{verdict['rebuilt']['run_id']}/summary.json"))) == 1

    def test_registry_of_the_runs_is_left_alone(self, registered: Registered, rebuilt: Result) -> None:
        assert [found.version for found in registered.client.registry.list_versions("ad-campaigns")] == ["1"]

    def test_progress_is_told_and_nothing_else_is_printed_with_json(self, rebuilt: Result) -> None:
        assert "training" in rebuilt.stderr
        json.loads(rebuilt.stdout)


@pytest.fixture(scope="module")
def document(registered: Registered, rebuilt: Result) -> dict[str, Any]:
    """The dossier that the run of the rebuild registered."""
    folder = Path(json.loads(rebuilt.stdout)["path"]).parent
    return dict(read_dossier(EmbeddedRegistry(folder / "registry.sqlite").get("ad-campaigns", "1")) or {})


class TestDossierOfARun:
    """The run of a rebuild registers too, and so writes what every run of the pipeline writes."""

    def test_it_says_what_was_asked_for(self, document: dict[str, Any], registered: Registered) -> None:
        compiled = find_pipeline("ad-campaigns").compiled.read_text(encoding="utf-8")
        assert document["run"]["pipeline"] == "ad-campaigns"
        assert document["run"]["pipeline_spec"] == hash_specification(compiled)
        assert document["run"]["trigger"] == "scheduled"
        assert document["data"]["uri"] == str(registered.data)
        assert document["data"]["version"] == registered.document["data"]["version"]
        assert document["data"]["split"] == {"method": "random", "column": "", "seed": 3, "holdout_fraction": 0.3}
        assert type(document["data"]["split"]["seed"]) is int
        assert document["training"] == registered.document["training"]
        assert document["training"]["params"] == PARAMS

    def test_it_says_what_was_found(self, document: dict[str, Any], registered: Registered) -> None:
        assert document["model"] == registered.document["model"]
        assert document["data"]["rows"]["prepared"] == 150
        assert document["data"]["validation"]["status"] == "passed"
        assert document["evaluation"]["gates"] == []
        assert document["evaluation"]["champion"] is None
        overall = [one for one in document["evaluation"]["measurements"] if one["slice"] == "all"]
        measured = {one["metric"]: one["value"] for one in overall}
        assert registered.version.metrics.items() <= measured.items()

    def test_environment_is_that_of_the_training(self, document: dict[str, Any]) -> None:
        made = document["reproducibility"]
        assert made["threads"]["variables"]["OMP_NUM_THREADS"] == "1"
        assert {pool["library"] for pool in made["threads"]["pools"]} >= {"openblas"}
        assert {pool["threads"] for pool in made["threads"]["pools"]} == {1}
        assert (made["seeds"]["split"], made["seeds"]["seed"]) == (3, 5)


class TestInputs:
    def test_deleted_dossier_is_named(self, registered: Registered) -> None:
        with restored(registered.dossier):
            registered.dossier.unlink()
            found = registered.call("ad-campaigns@1")
        assert type(found.exception) is DataError
        assert describe(found.exception).startswith(f"dossier of ad-campaigns@1, file://{registered.dossier}")

    def test_tampered_dossier_is_refused(self, registered: Registered) -> None:
        with restored(registered.dossier):
            text = registered.dossier.read_text(encoding="utf-8")
            registered.dossier.write_text(text.replace('"seed":3', '"seed":4'), encoding="utf-8")
            found = registered.call("ad-campaigns@1")
        assert type(found.exception) is RegistryError
        assert f"{registered.version.lineage['dossier_hash']} is registered" in describe(found.exception)

    def test_data_with_one_other_cell_is_refused_with_both_versions(
        self, registered: Registered, tmp_path: Path
    ) -> None:
        rows = list(csv.reader(gzip.decompress(registered.data.read_bytes()).decode().splitlines()))
        place = rows[0].index("impressions")
        rows[5][place] = str(int(rows[5][place]) + 1)
        changed = tmp_path / "terms.csv"
        with changed.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        before = registered.rebuilds()
        found = registered.call("ad-campaigns@1", "--data", str(changed))
        assert type(found.exception) is DataError
        message = describe(found.exception)
        assert registered.version.lineage["data_version"] in message
        assert message.count("sha256:") == 2
        assert message.startswith(str(changed))
        assert registered.rebuilds() == before

    def test_data_that_is_gone_is_named_with_the_way_out(self, registered: Registered) -> None:
        before = registered.rebuilds()
        with restored(registered.data):
            registered.data.unlink()
            found = registered.call("ad-campaigns@1")
        assert type(found.exception) is DataError
        assert describe(found.exception).startswith(str(registered.data))
        assert "--data" in describe(found.exception)
        assert registered.rebuilds() == before

    def test_address_without_its_credentials_asks_for_another(self, derive: Callable[..., ModelVersion]) -> None:
        def mask(document: dict[str, Any]) -> None:
            document["data"]["uri"] = "https://example.org/terms.csv?sig=***"

        version = derive(mask)
        with pytest.raises(DataError, match="the recorded address has no credentials"):
            self.rebuild(version)

    def test_unknown_version_lists_those_that_there_are(self, registered: Registered) -> None:
        found = registered.call("ad-campaigns@9")
        assert type(found.exception) is RegistryError
        assert "versions of ad-campaigns: 1" in describe(found.exception)

    def test_version_without_a_dossier_cannot_be_rebuilt(self, registered: Registered, tmp_path: Path) -> None:
        version = register_as(registered, tmp_path.name, {})
        with pytest.raises(RegistryError, match="registered without a dossier"):
            self.rebuild(version)

    def test_pipeline_of_somebody_else_has_to_be_named(self, derive: Callable[..., ModelVersion]) -> None:
        version = derive(lambda document: document["run"].update(pipeline="churn"))
        with pytest.raises(UsageError, match=r"pipeline churn: not a pipeline of this library.*--compiled FILE"):
            self.rebuild(version)

    def test_yaml_of_another_pipeline_is_refused(self, registered: Registered) -> None:
        other = find_pipeline("vehicle-prices").compiled
        found = registered.call("ad-campaigns@1", "--compiled", str(other))
        assert type(found.exception) is UsageError
        assert "the pipeline vehicle-prices; ad-campaigns@1 was made by ad-campaigns" in describe(found.exception)

    def test_tolerance_is_looked_at_before_any_work(self, registered: Registered) -> None:
        found = registered.call("ad-campaigns@1", "--tolerance", "2")
        assert type(found.exception) is UsageError

    def test_every_difference_is_named_before_the_data_is_read(self, derive: Callable[..., ModelVersion]) -> None:
        def change(document: dict[str, Any]) -> None:
            document["data"]["uri"] = "/nowhere/terms.csv"
            document["run"]["pipeline_spec"] = "sha256:other"
            made = document["reproducibility"]
            made["python"] = "3.1.4"
            made["packages"]["numpy"] = "0.1"
            made["code"]["source"] = "sha256:other"
            made["image"] = {"reference": "repo/a:1", "digest": "sha256:12"}
            made["hardware"]["instructions"] = "x86-64-v9"

        version, told = derive(change), []
        with pytest.raises(DataError, match=r"/nowhere/terms\.csv"):
            self.rebuild(version, on_event=told.append)
        (event,) = told
        assert event["event"] == "checked"
        subjects = {difference["subject"] for difference in event["differences"]}
        named = {"pipeline", "python", "package numpy", "code", "image digest", "instructions"}
        assert named <= subjects

    @pytest.fixture(autouse=True)
    def keep_client(self, registered: Registered) -> None:
        self.client = registered.client

    def rebuild(self, version: ModelVersion, **options: Any) -> Rebuild:
        return self.client.rebuild(version.reference, **options)


def test_rebuild_asks_the_pipeline_for_the_training_and_nothing_beside_it(
    registered: Registered, tmp_path: Path
) -> None:
    compiled = find_pipeline("ad-campaigns").compiled
    declared = check_arguments(compiled, {"data": "x"})
    given = compose_arguments(registered.document, declared, "terms.csv", tmp_path / "registry.sqlite")
    values = check_arguments(compiled, given)
    assert (values["tune"], values["deploy"], values["approve"]) == (False, False, False)
    assert values["registry"] == str(tmp_path / "registry.sqlite")
    assert json.loads(values["params"]) == PARAMS
    assert json.loads(values["gates"])["gates"] == []
    assert (values["split_seed"], values["holdout_fraction"]) == (3, 0.3)
    assert values["pipeline_spec"] == registered.document["run"]["pipeline_spec"]


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_plan_is_the_recorded_one_without_what_takes_long(
    pipeline: Pipeline, registered: Registered, tmp_path: Path
) -> None:
    plan = read_plan((pipeline.folder / "evaluation.yaml").read_text(encoding="utf-8"))
    document = {**registered.document, "evaluation": {"plan": plan.model_dump(mode="json")}}
    given = read_plan(compose_arguments(document, {"plan": {}}, "x.csv", tmp_path)["plan"])
    assert (given.fairness, given.champion, given.seed) == (plan.fairness, plan.champion, plan.seed)
    assert given.slices.columns == plan.slices.columns
    assert not given.slices.discover.enabled
    assert given.explanations.rows == 0


@pytest.fixture
def different(tmp_path: Path) -> Rebuild:
    differences = (Difference("package numpy", "1", "2"),)
    comparison = compare_models("sha256:a", "sha256:b", {"m": 1.0, "n": 3}, {"m": 2.0, "n": 3}, differences)
    at = datetime(2026, 11, 21, tzinfo=UTC)
    return Rebuild("a@1", "id", comparison, differences, {"run_id": "r"}, tmp_path, "manual", at)


def test_different_model_fails_with_its_reason(different: Rebuild) -> None:
    with pytest.raises(ModelError, match="a different model: the hash differs, and so does package numpy") as raised:
        different.raise_for_status()
    assert raised.value.exit_code == 1


def test_verdict_is_shown_with_both_values_of_every_metric(different: Rebuild) -> None:
    console = Console(file=StringIO(), width=120)
    print_rebuild(console, different)
    lines = console.file.getvalue().splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["m", "1", "2", "±", "0.01", "beyond"],
        ["n", "3", "3", "±", "0.03", "equal"],
    ]
    assert "different  the hash differs, and so does package numpy; beyond the tolerance of 0.01 is m" in lines
