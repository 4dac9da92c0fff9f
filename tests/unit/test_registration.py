"""Registration: one version a run, with its lineage, from files that are what was saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_model import FittedCampaigns

from mlflywheel import __version__, images
from mlflywheel.cluster.registration import RUN_ID_VARIABLE, describe_environment, register
from mlflywheel.errors import ModelFilesError, RegistryError, UsageError
from mlflywheel.models.contract import Evaluation, Measurement
from mlflywheel.registry import EmbeddedRegistry, ModelVersion

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


@pytest.fixture
def register_again(folder: Path, registry: EmbeddedRegistry, tmp_path: Path) -> Register:
    """Register the folder; keyword arguments replace the defaults."""
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(MEASURED.to_dict()), encoding="utf-8")

    def call(uri: str = str(folder), **changes: Any) -> ModelVersion:
        arguments = {
            "name": "ad-campaigns",
            "registry": str(registry.path),
            "run_id": "run-1",
            "data": "data/terms.csv",
            "data_version": "sha256:data",
            "params": '{"seed": 3, "num_topics": 8}',
            "prepare": " ",
        }
        return register(folder, uri, evaluation, **arguments | changes)

    return call


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


def test_lineage_names_run_data_parameters_code_and_environment(register_again: Register) -> None:
    lineage = dict(register_again().lineage)
    assert lineage == {
        "run_id": "run-1",
        "data_uri": "data/terms.csv",
        "data_version": "sha256:data",
        "params": '{"num_topics": 8, "seed": 3}',
        "prepare": "{}",
        "model_class": "mlflywheel.models.topic_fingerprints.model:TopicFingerprints",
        "code_version": __version__,
        "image": images.COMPONENTS,
        **describe_environment(),
    }
    assert lineage["environment"].startswith("sha256:")


def test_credentials_of_the_data_do_not_reach_the_registry(register_again: Register) -> None:
    version = register_again(data="https://ann:pw-of-ann@example.org/terms.csv?day=3&sig=token")
    assert version.lineage["data_uri"] == "https://example.org/terms.csv?day=***&sig=***"
    assert "pw-of-ann" not in json.dumps(version.to_dict())


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


def test_local_run_s_own_id_replaces_the_one_that_kfp_invents(
    register_again: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_ID_VARIABLE, "20261121-093000-4f1a")
    version = register_again(run_id="54750346")
    assert version.key == version.lineage["run_id"] == "20261121-093000-4f1a"


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


class TestObjectStore:
    """What a server needs to read the files that Kubeflow Pipelines wrote."""

    def test_minio_becomes_s3_with_kubeflow_s_own_endpoint_and_secret(self, register_again: Register) -> None:
        version = register_again("minio://mlpipeline/v2/artifacts/model")
        assert version.uri == "s3://mlpipeline/v2/artifacts/model"
        assert version.endpoint == "http://minio-service.kubeflow:9000"
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
