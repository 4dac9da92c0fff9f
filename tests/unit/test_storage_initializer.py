"""What KServe's storage initializer makes of the addresses and secrets that a registration leaves.

KServe's webhook turns annotations and entries of a secret into the environment of the initializer
(kserve `pkg/credentials/s3/s3_secret.go` and `utils.go`, restated in `_to_environment`); its Python package
`kserve-storage` then downloads. The package is run here where it is installed: it needs no server of KServe's, but
brings the clients of five clouds, so the development group leaves it out.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from faulty_store import Store, run_store

from mlflywheel import storage
from mlflywheel.errors import ModelFilesError, UsageError
from mlflywheel.models.contract import load_model, verify_model_folder
from mlflywheel.registry import ServingLocation, to_serving_uri
from mlflywheel.registry.locations import to_readable_uri

_DOWNLOAD = "import sys; from kserve_storage import Storage; Storage.download(sys.argv[1], sys.argv[2])"
_ENTRIES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
needs_kserve_storage = pytest.mark.skipif(find_spec("kserve_storage") is None, reason="kserve-storage is not installed")


def _to_environment(annotations: Mapping[str, str], entries: Mapping[str, str]) -> dict[str, str]:
    """Return the initializer's environment as KServe's webhook builds it."""
    given = {name.removeprefix("serving.kserve.io/s3-"): value for name, value in annotations.items()}
    environment = {name: entries[name] for name in _ENTRIES}
    endpoint = given.get("endpoint", "")
    if endpoint:
        scheme, separator, host = endpoint.partition("://")
        if separator:
            environment |= {"S3_USE_HTTPS": "1" if scheme == "https" else "0", "S3_ENDPOINT": host}
        else:
            environment |= {"S3_USE_HTTPS": given.get("usehttps", ""), "S3_ENDPOINT": endpoint}
            endpoint = f"{'http' if given.get('usehttps') == '0' else 'https'}://{endpoint}"
        environment["AWS_ENDPOINT_URL"] = endpoint
    if given.get("verifyssl"):
        environment["S3_VERIFY_SSL"] = given["verifyssl"]
    if given.get("region"):
        environment["AWS_DEFAULT_REGION"] = given["region"]
    return environment


@pytest.mark.parametrize("endpoint", ["http://minio-service.kubeflow:9000", "https://store.example.org"])
def test_the_annotations_lead_kserve_to_the_endpoint_of_the_version(endpoint: str) -> None:
    location = to_serving_uri("minio://mlpipeline/v2/model", endpoint, "mlpipeline-minio-artifact")
    environment = _to_environment(location.secret_annotations(), dict.fromkeys(_ENTRIES, "x"))
    assert environment["AWS_ENDPOINT_URL"] == endpoint
    assert environment["S3_VERIFY_SSL"] == ("1" if endpoint.startswith("https") else "0")


def test_amazon_needs_only_the_region() -> None:
    assert to_serving_uri("s3://models/1").secret_annotations("eu-central-1") == {
        "serving.kserve.io/s3-region": "eu-central-1"
    }


@pytest.mark.parametrize(
    ("s3", "minio", "read"),
    [
        ("", "minio:9000", "minio://models/1"),
        ("http://minio:9000", "", "s3://models/1"),
        ("http://minio:9000", "minio:9000", "s3://models/1"),
        # Data lies elsewhere, artifacts in Kubeflow's store.
        ("https://data.example.org", "minio:9000", "minio://models/1"),
        # Reached by another name than inside the cluster.
        ("http://127.0.0.1:9000", "", "s3://models/1"),
        ("", "127.0.0.1:9000", "minio://models/1"),
    ],
)
def test_a_version_is_read_where_the_variables_lead(
    s3: str, minio: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("MINIO_ENDPOINT", minio)
    assert to_readable_uri("s3://models/1", "http://minio:9000") == read
    assert to_readable_uri("gs://models/1") == "gs://models/1"


def test_keys_are_not_sent_to_a_server_that_only_a_record_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"no variable names that server here.*AWS_ENDPOINT_URL_S3 to http://minio"):
        to_readable_uri("s3://models/1", "http://minio:9000")
    # Amazon's own needs no name.
    assert to_readable_uri("s3://models/1") == "s3://models/1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, dict[str, str]]]:
    from mlflywheel.models.topic_fingerprints import TopicFingerprints
    from mlflywheel.models.topic_fingerprints.model import FitParams
    from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
    from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

    raw = generate_ad_campaigns(campaigns=60)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    folder = tmp_path_factory.mktemp("initializer") / "model"
    prepared = TopicFingerprints.prepare(named, PrepareConfig())
    TopicFingerprints.fit(prepared, FitParams.parse({"num_topics": 4}, "params")).save(folder)
    with run_store("models") as running:
        # The initializer asks for the bucket's head first: Amazon allows that with s3:ListBucket, moto by its own name.
        keys = running.create_user("kserve", "s3:GetObject", "s3:ListBucket", "s3:HeadBucket")
        client = running.client()
        for version in ("1", "10"):
            for path in (path for path in folder.rglob("*") if path.is_file()):
                client.upload_file(str(path), "models", f"ads/{version}/{path.relative_to(folder).as_posix()}")
        with running.checked():
            yield running, keys


def _initialize(location: ServingLocation, keys: Mapping[str, str], target: Path) -> "subprocess.CompletedProcess[str]":
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    environment = {**kept, **_to_environment(location.secret_annotations(), keys), "NO_PROXY": "127.0.0.1"}
    words = [sys.executable, "-c", _DOWNLOAD, location.uri, str(target)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


@needs_kserve_storage
def test_the_storage_initializer_downloads_a_model_that_loads(
    store: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    running, keys = store
    location = to_serving_uri("minio://models/ads/10", running.endpoint, "model-store")
    ended = _initialize(location, keys, tmp_path / "models")
    assert ended.returncode == 0, ended.stderr
    model = load_model(tmp_path / "models")
    assert model.predict(model.to_table([model.Request.model_validate(model.example_request())])).num_rows == 1


@needs_kserve_storage
def test_the_storage_initializer_refuses_wrong_keys(store: tuple[Store, dict[str, str]], tmp_path: Path) -> None:
    running, keys = store
    location = to_serving_uri("minio://models/ads/10", running.endpoint, "model-store")
    ended = _initialize(location, {**keys, "AWS_SECRET_ACCESS_KEY": "wrong"}, tmp_path / "models")
    assert ended.returncode != 0
    assert not (tmp_path / "models" / "manifest.json").exists()


@needs_kserve_storage
def test_the_storage_initializer_mixes_versions_whose_names_begin_alike_unless_a_slash_ends_them(
    store: tuple[Store, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, keys = store
    location = to_serving_uri("minio://models/ads/1", running.endpoint)
    assert _initialize(location, keys, tmp_path / "mixed").returncode == 0
    # It takes the address for a prefix of names: those of version 10 come too. The manifest notices.
    with pytest.raises(ModelFilesError, match=r"0/.*: not in the manifest"):
        verify_model_folder(tmp_path / "mixed")
    ended = _initialize(ServingLocation(f"{location.uri}/", location.endpoint), keys, tmp_path / "alone")
    assert ended.returncode == 0, ended.stderr
    verify_model_folder(tmp_path / "alone")
    # Read by us, a folder is a folder.
    for name, value in {**keys, "AWS_ENDPOINT_URL": running.endpoint}.items():
        monkeypatch.setenv(name, value)
    storage.download_folder("s3://models/ads/1", tmp_path / "ours")
    verify_model_folder(tmp_path / "ours")
