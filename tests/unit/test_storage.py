"""Reading and writing URIs, against real folders, a real HTTP server and an S3 server on this machine."""

import base64
import errno
import http.server
import importlib
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from mlflywheel import storage
from mlflywheel.errors import DataError, MissingExtraError, UsageError

CONTENT = b"campaign_id,term\n1,shoes\n"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*os.environ,):
        if name.startswith(("AWS_", "MINIO_", "FSSPEC_", "MLFLYWHEEL_STORAGE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # Without this, botocore asks the metadata server of a cloud for credentials.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    authorizations: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.authorizations.append(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        status = {"/missing.csv": 404, "/secret.csv": 403, "/broken.csv": 500}.get(path, 200)
        self.send_response(status)
        # `/cut.csv` promises more than it sends.
        self.send_header("Content-Length", str(len(CONTENT) + (100 if path == "/cut.csv" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.authorizations.clear()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read(uri: str) -> bytes:
    with storage.open_binary(uri) as file:
        return file.read()


# Credentials


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ann:pw@example.org:8443/a@b.csv", "https://example.org:8443/a@b.csv"),
        ("https://ann:p@w@example.org/a.csv", "https://example.org/a.csv"),
        ("https://ann:p/w@example.org/a.csv", "https://example.org/a.csv"),
        (
            "https://example.org/a.csv?X-Amz-Signature=abc&day=3",
            "https://example.org/a.csv?X-Amz-Signature=***&day=***",
        ),
        ("https://example.org/a.csv?c2VjcmV0#x", "https://example.org/a.csv?***"),
        ("s3://KEY:ab/cd+ef@bucket/a.csv", "s3://bucket/a.csv"),
        ("s3://bucket/a.csv?X-Amz-Signature=abc", "s3://bucket/a.csv?X-Amz-Signature=***"),
        ("ftp://ann:pw@example.org/a.csv", "ftp://example.org/a.csv"),
        ("s3://bucket/what?.csv", "s3://bucket/what?.csv"),
        ("data/a@b?c=d.csv", "data/a@b?c=d.csv"),
        ("file:///data/a@b.csv", "file:///data/a@b.csv"),
    ],
)
def test_credentials_are_removed_and_nothing_else(uri: str, shown: str) -> None:
    assert storage.without_credentials(uri) == shown


@pytest.mark.parametrize("protocol", ["http", "https", "s3", "minio", "gs", "ftp"])
def test_no_error_repeats_a_password(protocol: str, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIO_ENDPOINT", f"127.0.0.1:{closed_port}")
    uri = f"{protocol}://ann:hunter2@127.0.0.1:{closed_port}/a.csv?sig=hunter3"
    with pytest.raises(DataError) as caught:
        read(uri)
    assert "hunter" not in str(caught.value)
    assert "hunter" not in repr(caught.value.to_dict())


# Local files


def test_a_path_and_a_file_uri_are_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "my data #1.csv"
    path.write_bytes(CONTENT)
    for uri in (str(path), path.as_uri(), f"file://localhost{path.as_uri().removeprefix('file://')}"):
        with storage.local_copy(uri) as found:
            assert found == path
        assert storage.exists(uri)
    assert path.exists()


def test_a_missing_local_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.csv: no such file; .* Fix: check the spelling"):
        read(str(tmp_path / "missing.csv"))
    assert not storage.exists(str(tmp_path / "missing.csv"))


def test_a_folder_instead_of_a_file_names_a_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_bytes(CONTENT)
    with pytest.raises(DataError, match=r"a folder; one file is needed.*for example terms.csv"):
        read(str(tmp_path))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe or a device"):
        read(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT)
    path.chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        read(str(path))


def test_permission_errors_and_full_disks_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(DataError, match=r"permission denied.*change the permissions"):
        read(str(path))
    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(OSError, match="No space left"):
        read(str(path))


@pytest.mark.parametrize("uri", ["", " ", "a\0b.csv"])
def test_nothing_and_nul_are_wrong_usage(uri: str) -> None:
    with pytest.raises(UsageError, match="a path or a URI is needed"):
        read(uri)


def test_a_file_uri_with_two_slashes_is_corrected() -> None:
    with pytest.raises(DataError, match=r"Fix: write file:///data/a.csv"):
        read("file://data/a.csv")


# Memory


def test_memory_files_are_copied_and_the_copy_is_removed(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/folder/a.csv", CONTENT)
    seen: list[tuple[str, int, int]] = []
    with storage.local_copy("memory://folder/a.csv", lambda *event: seen.append(event)) as copy:
        assert copy.read_bytes() == CONTENT
    assert not copy.exists()
    assert seen[-1] == ("downloading", len(CONTENT), len(CONTENT))
    assert storage.exists("memory://folder/a.csv")
    assert not storage.exists("memory://folder/b.csv")


def test_a_remote_folder_instead_of_a_file_is_an_error(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/folder/a.csv", CONTENT)
    with pytest.raises(DataError, match=r"memory://folder: a folder;.*for example a.csv"):
        read("memory://folder")
    with pytest.raises(DataError, match="no such file"):
        read("memory://other/b.csv")


def test_an_error_in_the_body_passes_through_unchanged(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/a.csv", CONTENT)
    with pytest.raises(FileNotFoundError, match="mine"), storage.local_copy("memory://a.csv"):
        raise FileNotFoundError("mine")


@pytest.mark.parametrize("where", ["memory://models/one", "folder"])
def test_a_folder_comes_back_as_it_went(where: str, tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "manifest.json").write_text("{}")
    (source / "deep" / "weights.npy").write_bytes(bytes(range(256)))
    uri = where if "://" in where else str(tmp_path / where)
    storage.upload_folder(source, uri)
    storage.download_folder(uri, tmp_path / "target")
    found = {p.relative_to(tmp_path / "target").as_posix(): p.read_bytes() for p in (tmp_path / "target").rglob("*.*")}
    assert found == {"manifest.json": b"{}", "deep/weights.npy": bytes(range(256))}
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755


def test_a_failed_download_leaves_no_folder(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    for uri in ("memory://nothing", str(tmp_path / "nothing"), "https://127.0.0.1/model"):
        with pytest.raises(DataError):
            storage.download_folder(uri, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_object_name_cannot_climb_out_of_the_target(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/models/good", b"x")
    memory.store["/models/../evil"] = memory.store["/models/good"]
    with pytest.raises(DataError, match="names must stay inside the folder"):
        storage.download_folder("memory://models", tmp_path / "inner" / "target")
    assert not (tmp_path / "inner" / "evil").exists()


def test_a_filled_target_is_left_alone(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/models/a", b"x")
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UsageError, match="not an empty folder"):
        storage.download_folder("memory://models", tmp_path)
    assert (tmp_path / "mine").read_text() == "keep"


# The web


def test_a_web_file_is_downloaded(server: str) -> None:
    assert read(f"http://{server}/a.csv?day=3") == CONTENT


def test_a_password_in_a_web_address_is_used(server: str) -> None:
    assert read(f"http://ann:pw@{server}/a.csv") == CONTENT
    assert _Handler.authorizations[-1] == "Basic " + base64.b64encode(b"ann:pw").decode()


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("missing.csv", "HTTP 404, no such file"),
        ("secret.csv", "HTTP 403, permission denied"),
        ("broken.csv", "HTTP 500"),
        ("cut.csv", "the connection broke off in the middle"),
    ],
)
def test_web_errors_say_what_happened(server: str, path: str, seen: str) -> None:
    with pytest.raises(DataError) as caught:
        read(f"http://{server}/{path}")
    assert (caught.value.where, caught.value.seen) == (f"http://{server}/{path}", seen)


def test_a_refused_connection_is_an_error(closed_port: int) -> None:
    with pytest.raises(DataError, match="no connection; a server that answers is needed"):
        read(f"http://127.0.0.1:{closed_port}/a.csv")


@pytest.mark.parametrize("uri", ["http://[bad/a.csv", "http:///a.csv", "http://127.0.0.1:99999/a.csv"])
def test_a_malformed_web_address_is_an_error(uri: str) -> None:
    with pytest.raises(DataError, match="not a valid address"):
        read(uri)


def test_nothing_is_uploaded_to_the_web(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(UsageError, match="a web address"):
        storage.upload_folder(tmp_path, "https://127.0.0.1/models")


# Object stores


def test_unknown_protocols_are_refused() -> None:
    for uri in ("ftp://127.0.0.1/a.csv", "reference://x", "simplecache::memory://a"):
        with pytest.raises(DataError):
            read(uri)
    with pytest.raises(DataError, match="unknown protocol ftp; known ones are file, http, https, s3, minio"):
        read("ftp://127.0.0.1/a.csv")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # `fsspec.registry` is also the name of a mapping in it.
    registry = importlib.import_module("fsspec.registry")._registry
    for uri, package, extra in (("s3://bucket/a.csv", "s3fs", "s3"), ("gs://bucket/a.csv", "gcsfs", "gcs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(registry, uri[:2], raising=False)
        monkeypatch.delitem(registry, "gcs", raising=False)
        with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*'mlflywheel\[{extra}\]'"):
            read(uri)


def test_minio_without_a_server_names_the_variable() -> None:
    with pytest.raises(DataError, match=r"no server is known for minio://.*Fix: set MINIO_ENDPOINT"):
        read("minio://bucket/a.csv")


def test_endpoints_come_from_the_environment() -> None:
    both = {"MINIO_ENDPOINT": "minio:9000", "AWS_ENDPOINT_URL": "https://store.example.org/"}
    assert storage.s3_endpoint("minio", both) == "http://minio:9000"
    assert storage.s3_endpoint("s3", both) == "https://store.example.org"
    assert (
        storage.s3_endpoint("minio", {"AWS_ENDPOINT_URL": "https://store.example.org"}) == "https://store.example.org"
    )
    assert storage.s3_endpoint("s3", {}) is None


def test_a_silent_object_store_is_an_error_within_seconds(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIO_ENDPOINT", f"127.0.0.1:{closed_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MLFLYWHEEL_STORAGE_ATTEMPTS", "2")
    started = time.monotonic()
    with pytest.raises(DataError, match="no connection"):
        read("minio://bucket/a.csv")
    assert time.monotonic() - started < 30


def test_an_object_store_serves_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        monkeypatch.setenv("MINIO_ENDPOINT", f"{host}:{port}")
        with pytest.raises(DataError, match=r"no credentials in the environment.*Fix: set AWS_ACCESS_KEY_ID"):
            read("minio://bucket/a.csv")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        (tmp_path / "source" / "deep").mkdir(parents=True)
        (tmp_path / "source" / "deep" / "a.csv").write_bytes(CONTENT)
        storage.upload_folder(tmp_path / "source", "minio://bucket/models/one")
        assert read("minio://bucket/models/one/deep/a.csv") == CONTENT
        assert storage.exists("minio://bucket/models/one/deep/a.csv")
        assert not storage.exists("minio://bucket/models/two")
        storage.download_folder("minio://bucket/models/one", tmp_path / "target")
        assert (tmp_path / "target" / "deep" / "a.csv").read_bytes() == CONTENT
        # The same server under its other name.
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        assert read("s3://bucket/models/one/deep/a.csv") == CONTENT
        with pytest.raises(DataError, match="no such file"):
            read("minio://bucket/other.csv")
        with pytest.raises(DataError, match="there is no bucket other"):
            read("minio://other/a.csv")
        with pytest.raises(DataError, match=r"a folder; one file is needed.*for example deep"):
            read("minio://bucket/models/one")
    finally:
        s3.stop()
