"""The version in use is found in the registry, checked and loaded; what cannot be loaded says what to do."""

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from small_model import FittedCampaigns

from mlflywheel import storage
from mlflywheel.cluster.champion import choose_champion, find_predecessors
from mlflywheel.cluster.registration import RUN_ID_VARIABLE
from mlflywheel.errors import ModelFilesError, UsageError
from mlflywheel.models.contract import MANIFEST, verify_model_folder
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.registry.dossier import write_dossier

NAME = "ad-campaigns"
STATES = ("live", "approved")
STORE_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT", RUN_ID_VARIABLE)

Register = Callable[..., ModelVersion]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STORE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, fitted_campaigns: FittedCampaigns) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    fitted_campaigns.model.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def registry(tmp_path: Path) -> EmbeddedRegistry:
    return EmbeddedRegistry(tmp_path / "registry.sqlite")


@pytest.fixture
def register(folder: Path, registry: EmbeddedRegistry) -> Register:
    """Register the folder in a state; keyword arguments replace the defaults."""

    def call(key: str, *states: str, uri: str = str(folder), **changes: object) -> ModelVersion:
        values = {"hash": verify_model_folder(folder)["hash"], "metrics": {"topic_diversity": 0.9}, **changes}
        version = registry.ensure_version(NAME, uri, key=key, format_name="topics", format_version="1", **values)
        for state in states:
            version = registry.set_state(NAME, version.version, state, by="test", reason="test")
        return version

    return call


def test_the_newest_live_version_comes_before_a_newer_approved_one(registry, register):
    register("1", "approved", "live")
    register("2", "approved", "live")
    register("3", "approved")
    register("4")
    versions = registry.list_versions(NAME)
    assert choose_champion(versions, STATES).version == "2"
    assert choose_champion(versions, ("approved", "live")).version == "3"
    assert choose_champion(versions, ("candidate",)).version == "4"
    assert choose_champion(versions, ()) is None


def test_the_champion_is_loaded_and_answers_as_it_was_saved(registry, register, fitted_campaigns):
    register("1", "approved", metrics={"topic_diversity": 0.8})
    register("2", metrics={"topic_diversity": 0.7})
    with find_predecessors(registry.address, NAME, STATES) as found:
        assert found.champion.reference == "ad-campaigns@1"
        assert found.champion.model.predict(fitted_campaigns.holdout).equals(
            fitted_campaigns.model.predict(fitted_campaigns.holdout)
        )
        # No dossier was registered.
        assert found.champion.contract is None
    assert found.history == ({"topic_diversity": 0.8}, {"topic_diversity": 0.7})


def test_versions_that_nobody_approved_are_a_history_without_a_champion(registry, register):
    register("1")
    register("2", "archived")
    with find_predecessors(registry.address, NAME, STATES) as found:
        assert found.champion is None
        assert len(found.history) == 2


def test_a_first_version_has_no_predecessors_and_no_error(registry, register):
    with find_predecessors(registry.address, NAME, STATES) as found:
        assert (found.champion, found.history) == (None, ())
    assert not registry.path.exists()
    register("1", "approved")
    with find_predecessors(registry.address, "another-model", STATES) as found:
        assert (found.champion, found.history) == (None, ())


@pytest.mark.parametrize(("address", "name"), [("", NAME), ("registry.sqlite", "")])
def test_without_a_registry_or_a_name_nobody_is_asked(address, name):
    with find_predecessors(address, name, STATES) as found:
        assert found is None


def test_the_version_of_the_run_itself_is_no_predecessor(registry, register, monkeypatch):
    register("1", "approved")
    register("run-2", "approved")
    monkeypatch.setenv(RUN_ID_VARIABLE, "run-2")
    with find_predecessors(registry.address, NAME, STATES) as found:
        assert found.champion.reference == "ad-campaigns@1"
        assert len(found.history) == 1


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of an empty object store on this machine, which only `minio://` is told of."""
    server_module = pytest.importorskip("moto.server")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("MINIO_ENDPOINT", f"http://{host}:{port}")
        bucket = urllib.request.Request(f"http://{host}:{port}/champions", method="PUT")
        urllib.request.urlopen(bucket, timeout=10).close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_a_champion_in_a_store_is_downloaded_and_removed_afterwards(
    registry, register, folder, store, monkeypatch, tmp_path
):
    storage.upload_folder(folder, "minio://champions/1")
    version = register("1", "approved", uri="minio://champions/1", endpoint=store, secret="keys")
    # What the registration makes of it is no address of the server that only MINIO_ENDPOINT names.
    assert version.uri == "s3://champions/1"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    seen = []
    with find_predecessors(registry.address, NAME, STATES, lambda *event: seen.append(event)) as found:
        assert found.champion.reference == "ad-campaigns@1"
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    assert seen[-1][0] == "downloading"

    register("2", "approved", uri="minio://champions/2", endpoint=store, secret="keys")
    error = refuse(registry)
    assert error.where == "champion ad-campaigns@2 (approved)"
    assert "champions/2: no files under it" in error.seen
    assert "archive ad-campaigns@2" in error.fix


def refuse(registry: EmbeddedRegistry) -> ModelFilesError:
    with pytest.raises(ModelFilesError) as raised, find_predecessors(registry.address, NAME, STATES):
        pass
    return raised.value


def test_a_champion_whose_files_are_gone_names_version_and_both_ways_out(registry, register, folder):
    register("1", "approved", "live")
    shutil.rmtree(folder)
    error = refuse(registry)
    assert error.where == "champion ad-campaigns@1 (live)"
    assert "missing" in error.seen
    assert error.fix.startswith("point at the folder") or "copy" in error.fix
    assert error.fix.endswith("or archive ad-campaigns@1, and an older version or none is the champion")


def test_other_files_than_the_registered_ones_are_refused(registry, register):
    register("1", "approved", hash="sha256:0")
    error = refuse(registry)
    assert "model hash sha256:" in error.seen
    assert error.needed == "sha256:0 is registered"
    assert error.fix.startswith("restore the files of that version; or archive")


def test_a_changed_file_is_refused(registry, register, folder):
    register("1", "approved")
    changed = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    changed.write_bytes(b"other")
    assert changed.name in refuse(registry).seen


def test_a_class_that_is_not_installed_is_refused_by_name(registry, register, folder):
    register("1", "approved")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["model"] = "their_package.models:TheirModel"
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    error = refuse(registry)
    assert "their_package.models:TheirModel" in error.seen
    assert error.fix.startswith("install the package that registers it")
    assert "archive ad-campaigns@1" in error.fix


def test_the_contract_is_the_one_that_was_registered(registry, register, tmp_path):
    parts = {name: {} for name in ("run", "data", "training", "evaluation", "reproducibility")}
    contract = {"version": "1", "request": {"properties": {"terms": {}}}}
    document = {"schema": 1, "model": {"contract": contract}, **parts}
    digest = write_dossier(document, tmp_path / "dossier.json")
    register("1", "approved", lineage={"dossier": str(tmp_path / "dossier.json"), "dossier_hash": digest})
    with find_predecessors(registry.address, NAME, STATES) as found:
        assert found.champion.contract == contract


def test_a_dossier_that_is_gone_is_refused(registry, register, tmp_path):
    lineage = {"dossier": str(tmp_path / "gone.json"), "dossier_hash": "sha256:0"}
    register("1", "approved", lineage=lineage)
    assert "gone.json" in refuse(registry).seen


def test_keys_are_not_sent_to_a_server_that_only_the_record_names(registry, register):
    register("1", "approved", uri="minio://bucket/model", endpoint="http://store.example:9000", secret="keys")
    error = refuse(registry)
    assert "http://store.example:9000" in error.seen
    assert error.fix.startswith("set AWS_ENDPOINT_URL_S3 to http://store.example:9000, and the keys of the secret keys")


def test_a_state_that_is_none_is_refused(registry, register):
    register("1", "approved")
    with pytest.raises(UsageError, match="production"), find_predecessors(registry.address, NAME, ["production"]):
        pass


def test_a_champion_scores_the_rows_that_a_new_model_is_measured_on(registry, register, fitted_campaigns):
    register("1", "approved")
    with find_predecessors(registry.address, NAME, STATES) as found:
        scores = found.champion.model.score_rows(fitted_campaigns.holdout)
    assert scores.ids.equals(fitted_campaigns.holdout["campaign_id"].cast(pa.string()).combine_chunks())
