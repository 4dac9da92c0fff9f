"""Registration: one version a run, with its lineage, from files that are what was saved."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_model import FittedCampaigns

from mlflywheel import __version__, images
from mlflywheel.cluster.registration import RUN_ID_VARIABLE, Findings, Origin, register
from mlflywheel.data.validation import RuleResult, ValidationResult
from mlflywheel.errors import DataError, ModelFilesError, RegistryError, UsageError
from mlflywheel.evaluation.contract import describe_contract
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.registry import EmbeddedRegistry, ModelVersion, State
from mlflywheel.registry.dossier import read_dossier
from mlflywheel.reproducibility import describe_environment

STORE_VARIABLES = (
    "MLFLYWHEEL_S3_ENDPOINT",
    "MLFLYWHEEL_S3_SECRET",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "MINIO_ENDPOINT",
    RUN_ID_VARIABLE,
)
MEASURED = Evaluation(
    (
        Measurement("topic_diversity", 0.9, count=8),
        Measurement("out_of_vocabulary_share", 0.2, slice="locale=en-GB", count=5),
        Measurement("neighbour_purity_at_10", None, note="no vertical column"),
    )
)

Register = Callable[..., ModelVersion]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STORE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path, fitted_campaigns: FittedCampaigns) -> Path:
    fitted_campaigns.model.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def registry(tmp_path: Path) -> EmbeddedRegistry:
    return EmbeddedRegistry(tmp_path / "registry.sqlite")


ORIGIN = Origin(
    run_id="run-1",
    data="data/terms.csv",
    data_version="sha256:data",
    columns='{"vertical": "industry"}',
    prepare=" ",
    expectations='{"schema": 1, "rows": []}',
    split_seed=4,
    params='{"seed": 3, "num_topics": 8}',
    pipeline="ad-campaigns",
    pipeline_spec="sha256:spec",
    trigger="ci",
)
HELD = {"metric": "topic_diversity", "slice": "all", "value": 0.9, "limit": 0.6, "relation": ">=", "holds": True}
VALIDATED = ValidationResult(
    (
        RuleResult("rows_present", "rows", "error", "passed", examples=({"id": "c-secret", "row": 1, "value": 1},)),
        RuleResult("names_known", "rows", "warn", "failed"),
        RuleResult("clicks_at_most", "prepared", "error", "skipped"),
    ),
    {"rows": 90, "prepared": 9},
    "2026-11-21",
    "campaign_id",
    "ge 1",
)


@pytest.fixture(scope="module")
def trained_in() -> dict[str, Any]:
    return describe_environment()


@pytest.fixture
def findings(tmp_path: Path, trained_in: dict[str, Any]) -> Findings:
    """Files as the steps before leave them."""
    contents: dict[str, Any] = {
        "evaluation": {**MEASURED.to_dict(), "plan": {"seed": 0}, "champion": "ad-campaigns@7"},
        "verdict": [HELD],
        "validation": VALIDATED.to_dict(),
        "environment": trained_in,
        "search": {"schema": 1, "facts": None},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return Findings(**{name: tmp_path / f"{name}.json" for name in contents})


@pytest.fixture
def register_again(folder: Path, registry: EmbeddedRegistry, findings: Findings, tmp_path: Path) -> Register:
    """Register the folder; keyword arguments replace the defaults."""

    def call(
        uri: str = str(folder), dossier_uri: str | None = None, approve: bool = False, **changes: Any
    ) -> ModelVersion:
        return register(
            folder,
            uri,
            findings,
            replace(ORIGIN, **changes),
            name="ad-campaigns",
            registry=str(registry.path),
            dossier=tmp_path / "dossier.json",
            dossier_uri=dossier_uri or str(tmp_path / "dossier.json"),
            approve=approve,
        )

    return call


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file of a step."""
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def test_version_holds_the_files_hash_format_metrics_and_facts(register_again: Register, folder: Path) -> None:
    version = register_again()
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert version.reference == "ad-campaigns@1"
    assert version.uri == f"file://{folder}"
    assert version.hash == manifest["hash"]
    assert (version.format_name, version.format_version) == ("mlflywheel-topic-fingerprints", "1")
    assert version.metrics == {"topic_diversity": 0.9}
    assert version.parameters == manifest["facts"]
    assert version.parameters["num_topics"] == 8


def test_lineage_names_run_data_parameters_code_environment_and_dossier(
    register_again: Register, tmp_path: Path, trained_in: dict[str, Any]
) -> None:
    lineage = dict(register_again().lineage)
    assert lineage.pop("dossier_hash").startswith("sha256:")
    assert lineage == {
        "run_id": "run-1",
        "data_uri": "data/terms.csv",
        "data_version": "sha256:data",
        "params": '{"num_topics": 8, "seed": 3}',
        "prepare": "{}",
        "model_class": "mlflywheel.models.topic_fingerprints.model:TopicFingerprints",
        "code_version": __version__,
        "image": images.COMPONENTS,
        "python": trained_in["python"],
        "platform": trained_in["platform"],
        "environment": trained_in["packages_hash"],
        "dossier": f"file://{tmp_path}/dossier.json",
    }


def test_credentials_of_the_data_do_not_reach_the_registry(register_again: Register, tmp_path: Path) -> None:
    version = register_again(data="https://ann:pw-of-ann@example.org/terms.csv?day=3&sig=token")
    assert version.lineage["data_uri"] == "https://example.org/terms.csv?day=***&sig=***"
    assert "pw-of-ann" not in json.dumps(version.to_dict())
    assert "pw-of-ann" not in (tmp_path / "dossier.json").read_text(encoding="utf-8")


def test_registering_a_run_again_gives_the_same_version(register_again: Register, registry: EmbeddedRegistry) -> None:
    first = register_again()
    assert register_again() == first
    assert len(registry.list_versions("ad-campaigns")) == 1


def test_another_run_makes_another_version(register_again: Register) -> None:
    assert [register_again(run_id=f"run-{number}").version for number in (1, 2, 1)] == ["1", "2", "1"]


def test_a_run_cannot_stand_for_other_data(register_again: Register) -> None:
    register_again()
    with pytest.raises(RegistryError, match="data_version"):
        register_again(data_version="sha256:other")


def change(folder: Path) -> None:
    path = next(file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "manifest.json")
    path.write_bytes(path.read_bytes() + b" ")


def add(folder: Path) -> None:
    (folder / "extra.json").write_text("{}", encoding="utf-8")


def remove(folder: Path) -> None:
    next(file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "manifest.json").unlink()


@pytest.mark.parametrize(
    ("tamper", "seen"), [(change, "changed since it was saved"), (add, "not in the manifest"), (remove, "missing")]
)
def test_tampered_folder_is_refused_and_nothing_registered(
    tamper: Callable[[Path], None],
    seen: str,
    register_again: Register,
    folder: Path,
    registry: EmbeddedRegistry,
) -> None:
    tamper(folder)
    with pytest.raises(ModelFilesError) as refused:
        register_again()
    assert refused.value.seen == seen
    assert registry.list_models() == []


def test_folder_without_a_manifest_is_refused(register_again: Register, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelFilesError, match="a saved model has a manifest"):
        register_again()


def test_relative_folder_is_refused(register_again: Register) -> None:
    with pytest.raises(UsageError, match="no scheme that a server can read"):
        register_again("out/model")


@pytest.fixture
def dossier(register_again: Register) -> Mapping[str, Any]:
    found = read_dossier(register_again())
    assert found is not None
    return found


class TestDossier:
    """What is written down of a version, and that a retry writes it again."""

    def test_run_and_model(self, dossier: Mapping[str, Any], folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert dossier["schema"] == 1
        assert dossier["run"] == {
            "id": "run-1",
            "pipeline": "ad-campaigns",
            "pipeline_spec": "sha256:spec",
            "trigger": "ci",
        }
        model = dict(dossier["model"])
        contract = model.pop("contract")
        assert model == {
            "name": "ad-campaigns",
            "class": "mlflywheel.models.topic_fingerprints.model:TopicFingerprints",
            "format": {"name": "mlflywheel-topic-fingerprints", "version": "1"},
            "hash": manifest["hash"],
            "facts": manifest["facts"],
        }
        assert set(contract) == {"version", "request", "response", "example", "columns"}

    def test_contract_has_the_columns_of_the_model_s_own_answer(
        self, dossier: Mapping[str, Any], fitted_campaigns: FittedCampaigns
    ) -> None:
        answer = fitted_campaigns.model.predict(fitted_campaigns.holdout).schema
        described = describe_contract(type(fitted_campaigns.model), answer)
        assert dossier["model"]["contract"] == json.loads(json.dumps(described))

    def test_data_and_validation(self, dossier: Mapping[str, Any]) -> None:
        data = dict(dossier["data"])
        validation = data.pop("validation")
        assert data == {
            "uri": "data/terms.csv",
            "version": "sha256:data",
            "columns": {"vertical": "industry"},
            "prepare": {},
            "rows": {"rows": 90, "prepared": 9},
            "split": {"method": "random", "column": "", "seed": 4, "holdout_fraction": 0.2},
        }
        assert validation.pop("suite_hash").startswith("sha256:")
        assert validation == {
            "status": "passed",
            "expectations": 3,
            "passed": 1,
            "failed": [{"name": "names_known", "severity": "warn"}],
            "skipped": ["clicks_at_most"],
            "checker": "ge 1",
            "suite": {"schema": 1, "rows": []},
        }
        assert "c-secret" not in json.dumps(dossier)

    def test_training_evaluation_and_seeds(self, dossier: Mapping[str, Any], trained_in: dict[str, Any]) -> None:
        training, evaluation = dossier["training"], dossier["evaluation"]
        assert training["params"] == {"num_topics": 8, "seed": 3}
        assert training["settings"]["algorithm"] == "rotated-lsa"
        assert training["search"] is None
        assert (evaluation["plan"], evaluation["champion"]) == ({"seed": 0}, "ad-campaigns@7")
        assert evaluation["gates"] == [HELD]
        assert evaluation["measurements"] == MEASURED.to_dict()["measurements"]
        assert dossier["reproducibility"]["seeds"] == {"split": 4, "seed": 3}
        assert {k: v for k, v in dossier["reproducibility"].items() if k != "seeds"} == trained_in

    def test_retry_writes_the_same_bytes(self, register_again: Register, tmp_path: Path) -> None:
        register_again()
        first = (tmp_path / "dossier.json").read_bytes()
        (tmp_path / "dossier.json").unlink()
        register_again()
        assert (tmp_path / "dossier.json").read_bytes() == first

    def test_retry_with_another_address_keeps_the_first(
        self, register_again: Register, registry: EmbeddedRegistry
    ) -> None:
        first = register_again(dossier_uri="s3://store/first/dossier")
        again = register_again(dossier_uri="s3://store/second/dossier")
        assert again.lineage["dossier"] == first.lineage["dossier"] == "s3://store/first/dossier"
        assert len(registry.list_versions("ad-campaigns")) == 1

    def test_address_is_one_that_others_can_read(self, register_again: Register) -> None:
        version = register_again("minio://mlpipeline/model", "minio://mlpipeline/v2/dossier")
        assert version.lineage["dossier"] == "s3://mlpipeline/v2/dossier"

    def test_search_is_what_the_tuning_found(self, register_again: Register, findings: Findings) -> None:
        rewrite(findings.search, lambda search: {**search, "facts": {"trials": 12, "best": 0.4}, "sections": ["x"]})
        found = read_dossier(register_again())
        assert found is not None
        assert found["training"]["search"] == {"trials": 12, "best": 0.4}

    @pytest.mark.parametrize("name", ["evaluation", "environment", "validation"])
    def test_missing_file_of_a_step_registers_nothing(
        self, name: str, register_again: Register, findings: Findings, registry: EmbeddedRegistry
    ) -> None:
        getattr(findings, name).unlink()
        with pytest.raises(DataError, match=rf"{name}\.json: No such file"):
            register_again()
        assert registry.list_models() == []


class TestApproval:
    """A run may approve what it registers, where a gate was judged and all of them held."""

    def test_it_is_asked_for(self, register_again: Register) -> None:
        assert register_again().state == State.CANDIDATE

    def test_version_is_approved_in_the_name_of_the_run(
        self, register_again: Register, registry: EmbeddedRegistry
    ) -> None:
        version = register_again(approve=True)
        assert version.state == State.APPROVED
        last = registry.history("ad-campaigns", version.version)[-1]
        assert (last.by, last.reason) == ("run run-1", "every gate held")

    @pytest.mark.parametrize(
        "gates", [[], [{**HELD, "holds": None}], [HELD, {**HELD, "holds": False}]], ids=["none", "skipped", "refused"]
    )
    def test_gates_that_do_not_all_hold_approve_nothing(
        self, gates: list[Any], register_again: Register, findings: Findings
    ) -> None:
        rewrite(findings.verdict, lambda verdict: gates)
        assert register_again(approve=True).state == State.CANDIDATE

    @pytest.mark.parametrize("states", [("approved", "live"), ("approved", "candidate"), ("archived",)])
    def test_retry_leaves_what_a_person_decided(
        self, states: tuple[str, ...], register_again: Register, registry: EmbeddedRegistry
    ) -> None:
        register_again()
        for state in states:
            registry.set_state("ad-campaigns", "1", state, by="ann", reason="looked at it")
        assert register_again(approve=True).state == states[-1]


class TestObjectStore:
    """What a server needs to read the files that Kubeflow Pipelines wrote."""

    def test_minio_becomes_s3_with_kubeflow_s_own_endpoint_and_secret(self, register_again: Register) -> None:
        version = register_again("minio://mlpipeline/v2/artifacts/model")
        assert version.uri == "s3://mlpipeline/v2/artifacts/model"
        assert version.endpoint == "http://seaweedfs.kubeflow:9000"
        assert version.secret == "mlpipeline-minio-artifact"

    @pytest.mark.parametrize(
        ("variables", "endpoint"),
        [
            ({"MINIO_ENDPOINT": "minio.store:9000"}, "http://minio.store:9000"),
            ({"AWS_ENDPOINT_URL": "https://s3.example.org"}, "https://s3.example.org"),
            (
                {"AWS_ENDPOINT_URL": "http://a.example.org", "AWS_ENDPOINT_URL_S3": "http://b.example.org"},
                "http://b.example.org",
            ),
            (
                {"MINIO_ENDPOINT": "minio:9000", "MLFLYWHEEL_S3_ENDPOINT": "https://outside.example.org"},
                "https://outside.example.org",
            ),
        ],
        ids=["without-scheme", "aws", "aws-s3-first", "ours-first"],
    )
    def test_endpoint_comes_from_the_environment(
        self,
        variables: dict[str, str],
        endpoint: str,
        register_again: Register,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert register_again("minio://mlpipeline/model").endpoint == endpoint

    def test_secret_s_name_comes_from_the_environment(
        self, register_again: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLYWHEEL_S3_SECRET", "team-a-store")
        assert register_again("minio://mlpipeline/model").secret == "team-a-store"

    def test_s3_of_another_provider_keeps_its_endpoint(
        self, register_again: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.org")
        version = register_again("s3://models/ad-campaigns")
        assert (version.uri, version.endpoint) == ("s3://models/ad-campaigns", "https://s3.example.org")

    def test_amazon_s_own_s3_needs_neither(self, register_again: Register) -> None:
        version = register_again("s3://models/ad-campaigns")
        assert (version.endpoint, version.secret) == ("", "")

    def test_variables_of_a_store_do_not_reach_a_local_path(
        self, register_again: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINIO_ENDPOINT", "minio:9000")
        monkeypatch.setenv("MLFLYWHEEL_S3_SECRET", "team-a-store")
        version = register_again()
        assert (version.endpoint, version.secret) == ("", "")
