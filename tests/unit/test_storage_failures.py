"""Object stores that refuse, break off, answer late or not at all: what is said, how long it takes, what is left.

Against moto, which checks signatures and permissions here, and a proxy before it that fails on purpose.
"""

import errno
import hashlib
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty_store import Fault, FaultyProxy, Store, run_proxy, run_store

from mlflywheel import storage
from mlflywheel.errors import DataError, UsageError
from mlflywheel.storage import s3
from mlflywheel.storage.patience import ATTEMPTS_VARIABLE, CONNECT_VARIABLE, READ_VARIABLE, read_patience

SMALL = b"campaign_id,term\n1,shoes\n" * 40
# Three blocks, the last one short.
LARGE = hashlib.shake_256(b"seed").digest(2 * s3.BLOCK_BYTES + 12_345)
QUIET = 0.3


@dataclass(frozen=True)
class Users:
    """A store, and who may do what in it."""

    store: Store
    owner: dict[str, str]
    reader: dict[str, str]


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    with run_store("bucket") as store:
        owner = store.create_user("owner", "s3:*")
        reader = store.create_user("reader", "s3:GetObject")
        for key, data in (("a.csv", SMALL), ("large.bin", LARGE), ("empty.csv", b""), ("model/weights.npy", SMALL)):
            store.client().put_object(Bucket="bucket", Key=key, Body=data)
        store.client().put_object(Bucket="bucket", Key="model/manifest.json", Body=b"{}")
        with store.checked():
            yield Users(store, owner, reader)


@pytest.fixture
def proxy(users: Users, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The store behind a proxy, with the owner's keys and little patience in the environment."""
    for name in (*os.environ,):
        if name.startswith(("AWS_", "MINIO_", "MLFLYWHEEL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    given = {**users.owner, CONNECT_VARIABLE: str(QUIET), READ_VARIABLE: str(QUIET), ATTEMPTS_VARIABLE: "2"}
    for name, value in {**given, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    with run_proxy(users.store.address) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        # Enough for a busy machine; the tests of silence ask for less.
        monkeypatch.setenv(READ_VARIABLE, "20")
        monkeypatch.setenv(CONNECT_VARIABLE, "20")
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("manifest.json", "index.npy", "zebra.parquet"):
        (source / name).write_bytes(SMALL)
    return source


def read(uri: str) -> bytes:
    with storage.open_binary(uri) as file:
        return file.read()


def refuse(uri: str = "s3://bucket/a.csv") -> DataError:
    with pytest.raises(DataError) as caught:
        read(uri)
    assert caught.value.exit_code == 1
    assert caught.value.where == uri
    return caught.value


@contextmanager
def listening(handle: Any = None) -> Iterator[int]:
    """A port that takes connections, and does what `handle` does with them; nothing by default."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                if handle is not None:
                    handle(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in taken:
        connection.close()


# Whole transfers


@pytest.mark.parametrize(("key", "data"), [("a.csv", SMALL), ("large.bin", LARGE), ("empty.csv", b"")])
def test_files_of_any_size_come_as_they_are(proxy: FaultyProxy, key: str, data: bytes) -> None:
    seen: list[tuple[str, int, int]] = []
    with storage.open_binary(f"s3://bucket/{key}", lambda *event: seen.append(event)) as file:
        assert file.read() == data
    assert seen[-1] == ("downloading", len(data), len(data))


def test_a_large_file_goes_up_in_parts_and_comes_back(proxy: FaultyProxy, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "large.bin").write_bytes(LARGE)
    storage.upload_folder(tmp_path / "up", "s3://bucket/parts")
    assert sum("partNumber" in path for method, path in proxy.requests if method == "PUT") == 3
    storage.download_folder("s3://bucket/parts", tmp_path / "down")
    assert (tmp_path / "down" / "large.bin").read_bytes() == LARGE


def test_a_folder_is_not_mixed_with_one_whose_name_begins_alike(
    users: Users, proxy: FaultyProxy, tmp_path: Path
) -> None:

    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a").write_bytes(SMALL)
    storage.upload_folder(tmp_path / "up", "s3://bucket/marked")
    storage.upload_folder(tmp_path / "up", "s3://bucket/marked10")
    storage.download_folder("s3://bucket/marked", tmp_path / "down")
    assert [path.name for path in (tmp_path / "down").rglob("*")] == ["a"]


# Refusals


@pytest.mark.parametrize(
    ("variable", "value", "seen", "fix"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hunter2", "refused the signature (HTTP 403 SignatureDoesNotMatch)", "AWS_SECRET"),
        ("AWS_ACCESS_KEY_ID", "AKIAHUNTER2", "does not know the access key (HTTP 403 InvalidAccess", "AWS_ACCESS_KEY"),
        ("AWS_SESSION_TOKEN", "hunter2", "refused the session token (HTTP 400 InvalidToken)", "AWS_SESSION_TOKEN"),
    ],
)
def test_wrong_credentials_name_the_variable_and_no_secret(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, seen: str, fix: str
) -> None:
    monkeypatch.setenv(variable, value)
    error = refuse()
    assert f"{proxy.endpoint} {seen}" in error.seen
    assert fix in error.fix
    assert "in a pod" in error.fix
    assert "hunter" not in str(error).lower()
    # An answer to HEAD says nothing, so that the reason is asked for.
    with pytest.raises(DataError) as asked:
        storage.exists("s3://bucket/a.csv")
    assert asked.value.seen == error.seen


def test_missing_credentials_are_told_from_wrong_ones(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = refuse()
    assert error.seen == "no credentials in the environment"
    assert "mount the secret" in error.fix
    assert proxy.requests == []


def test_permissions_name_what_is_missing(
    users: Users, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    for name, value in users.reader.items():
        monkeypatch.setenv(name, value)
    # Reading needs no right to list.
    assert read("s3://bucket/a.csv") == SMALL
    with pytest.raises(DataError, match=r"permission denied for PutObject \(HTTP 403 AccessDenied\); s3:PutObject on"):
        storage.upload_folder(folder, "s3://bucket/forbidden")
    with pytest.raises(DataError, match=r"permission denied for ListObjectsV2 .*s3:ListBucket on it is needed"):
        storage.download_folder("s3://bucket/model", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_bucket_and_a_missing_key_are_told_apart(proxy: FaultyProxy, tmp_path: Path, folder: Path) -> None:
    error = refuse("s3://nobucket/a.csv")
    assert error.seen == f"there is no bucket nobucket at {proxy.endpoint}"
    assert "AWS_ENDPOINT_URL" in error.fix
    with pytest.raises(DataError, match="there is no bucket nobucket"):
        storage.download_folder("s3://nobucket/model", tmp_path / "model")
    with pytest.raises(DataError, match="there is no bucket nobucket"):
        storage.upload_folder(folder, "s3://nobucket/model")
    assert refuse("s3://bucket/none.csv").seen == "no such file"
    assert not storage.exists("s3://bucket/none.csv")
    with pytest.raises(DataError, match="no files under it"):
        storage.download_folder("s3://bucket/none", tmp_path / "model")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("fault", "seen", "fix"),
    [
        (Fault(400, "ExpiredToken"), "the credentials have expired (HTTP 400 ExpiredToken)", "AWS_SESSION_TOKEN"),
        (Fault(403, "RequestTimeTooSkewed"), "says that the time is wrong", "set the clock"),
        (Fault(400, "AuthorizationHeaderMalformed"), "the bucket is somewhere else", "AWS_REGION"),
        (Fault(301, "PermanentRedirect"), "redirects every request", "AWS_REGION"),
        (Fault(418, "Teapot"), "answered HTTP 418 Teapot", "AWS_ENDPOINT_URL"),
    ],
)
def test_an_answer_is_said_in_words_and_not_repeated(proxy: FaultyProxy, fault: Fault, seen: str, fix: str) -> None:
    proxy.choose = lambda method, path, number: fault
    error = refuse()
    assert seen in error.seen
    assert fix in error.fix
    assert fault.status == 301 or len(proxy.requests) == 1


# Failures that pass


@pytest.mark.parametrize(
    "fault",
    [
        Fault(503, "SlowDown"),
        Fault(500, "InternalError"),
        Fault(cut_after=100),
        Fault(shorten_to=100),
    ],
    ids=["slow-down", "internal-error", "cut", "shortened"],
)
def test_a_failure_that_passes_is_overcome(proxy: FaultyProxy, tmp_path: Path, fault: Fault) -> None:
    # The second block of a large file, and one of the files of a folder.
    proxy.choose = _fail_second_get(fault)
    assert read("s3://bucket/large.bin") == LARGE
    proxy.fail_first(1, fault, "GET", "weights.npy")
    storage.download_folder("s3://bucket/model", tmp_path / "model")
    assert (tmp_path / "model" / "weights.npy").read_bytes() == SMALL


def _fail_second_get(fault: Fault) -> Any:
    seen = [0]
    lock = threading.Lock()

    def choose(method: str, path: str, number: int) -> Fault | None:
        with lock:
            seen[0] += method == "GET"
            return fault if seen[0] == 2 else None

    return choose


def test_an_upload_overcomes_a_refusal(proxy: FaultyProxy, folder: Path, tmp_path: Path) -> None:
    proxy.fail_first(1, Fault(503, "SlowDown", reached=True), "PUT")
    storage.upload_folder(folder, "s3://bucket/repeated")
    proxy.choose = lambda method, path, number: None
    storage.download_folder("s3://bucket/repeated", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault(503, "SlowDown"), "answered HTTP 503 SlowDown, 2 times"),
        (Fault(500, "InternalError"), "answered HTTP 500 InternalError, 2 times"),
        (Fault(cut_after=100), "the connection broke off in the middle"),
        (Fault(shorten_to=100), "the bytes that came have another checksum"),
    ],
    ids=["slow-down", "internal-error", "cut", "shortened"],
)
def test_a_failure_that_stays_is_an_error_and_leaves_nothing(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, seen: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    proxy.choose = lambda method, path, number: fault if "list-type" not in path else None
    error = refuse()
    assert seen in error.seen
    assert len(proxy.requests) == 2
    with pytest.raises(DataError):
        storage.download_folder("s3://bucket/model", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(users: Users, proxy: FaultyProxy) -> None:
    key = "changing.bin"
    put = users.store.client()
    with _unchecked(users.store):
        put.put_object(Bucket="bucket", Key=key, Body=LARGE)

    def choose(method: str, path: str, number: int) -> Fault | None:
        if method == "GET" and number == 2:
            with _unchecked(users.store):
                put.put_object(Bucket="bucket", Key=key, Body=LARGE[::-1])
        return None

    proxy.choose = choose
    assert "another file was written under this name" in refuse(f"s3://bucket/{key}").seen


@contextmanager
def _unchecked(store: Store) -> Iterator[None]:
    store.set_open_requests("inf")
    try:
        yield
    finally:
        store.set_open_requests("0")


# Networks


def test_a_silent_store_is_given_up_in_the_time_that_is_configured(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(READ_VARIABLE, str(QUIET))
    proxy.choose = lambda method, path, number: Fault(delay_seconds=2)
    started = time.monotonic()
    error = refuse()
    # Two attempts, and a pause of a second at most between them.
    assert 2 * QUIET <= time.monotonic() - started < 10
    assert error.seen == f"{proxy.endpoint} was silent for {QUIET:g} s"
    assert READ_VARIABLE in error.needed
    assert len(proxy.requests) == 2


def test_a_store_that_accepts_and_never_answers_is_given_up(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(READ_VARIABLE, str(QUIET))
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "1")
    with listening() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        assert f"was silent for {QUIET:g} s" in refuse().seen
        assert time.monotonic() - started < 5


def test_hosts_that_are_not_there_name_the_variable(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for endpoint, seen in (
            (refused, f"no connection to {refused}"),
            ("http://no-such-host.invalid:9000", "the host of http://no-such-host.invalid:9000 is not known"),
        ):
            monkeypatch.setenv("MINIO_ENDPOINT", endpoint)
            error = refuse("minio://bucket/a.csv")
            assert error.seen == seen
            assert "correct MINIO_ENDPOINT" in error.fix


def test_tls_where_there_is_none_and_certificates_of_strangers_are_refused(
    users: Users, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{proxy.address}")
    error = refuse()
    assert f"no encrypted connection to https://{proxy.address}" in error.seen
    assert "write http:// in AWS_ENDPOINT_URL" in error.fix
    assert "AWS_CA_BUNDLE" in error.fix

    certificate, key = _make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def shake_hands(connection: socket.socket) -> None:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    with listening(shake_hands) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        assert "CERTIFICATE_VERIFY_FAILED" in refuse().seen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert refuse().seen == f"no connection to http://127.0.0.1:{port}"


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "store.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "store.key").write_bytes(private)
    return folder / "store.crt", folder / "store.key"


@pytest.mark.parametrize(
    ("variable", "value", "seen"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999", "'http://127.0.0.1:99999'"),
        ("AWS_ENDPOINT_URL", "ftp://127.0.0.1", "'ftp://127.0.0.1'"),
        ("AWS_ENDPOINT_URL", "http://ann:hunter2@127.0.0.1", "it holds credentials"),
        ("AWS_CA_BUNDLE", "/nowhere/ca.crt", "no file /nowhere/ca.crt"),
        (READ_VARIABLE, "0", "'0'"),
        (CONNECT_VARIABLE, "nan", "'nan'"),
        (ATTEMPTS_VARIABLE, "2.5", "'2.5'"),
    ],
)
def test_variables_that_cannot_be_meant_are_refused(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, seen: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as caught:
        read("s3://bucket/a.csv")
    assert (caught.value.where, caught.value.seen) == (variable, seen)
    assert "hunter2" not in str(caught.value)
    assert proxy.requests == []


def test_the_default_patience_ends_within_minutes() -> None:
    patience = read_patience({})
    longest = patience.attempts * max(patience.connect_seconds, patience.read_seconds) + 3 * 20
    assert longest <= 180


# Disks


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _largest_file(s3.BLOCK_BYTES + 1000):
        error = refuse("s3://bucket/large.bin")
    assert "the disk here is full" in error.seen
    assert "TMPDIR" in error.fix
    assert "ephemeral-storage" in error.fix
    with _largest_file(100), pytest.raises(DataError, match="the disk here is full"):
        storage.download_folder("s3://bucket/model", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_not_downloaded(proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: small)
    with pytest.raises(DataError, match=r"the disk here is full .*10 are free"):
        storage.download_folder("s3://bucket/model", tmp_path / "model")
    assert [path for method, path in proxy.requests if "list-type" not in path] == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts a disk of its own")
def test_a_real_full_disk_says_so(proxy: FaultyProxy, tmp_path: Path) -> None:
    """A disk of 64 KiB in a mount namespace, whose room is taken after it was asked for."""
    program = (
        "import shutil, sys\n"
        "from mlflywheel import storage\n"
        "big = shutil.disk_usage('/')._replace(free=10**12)\n"
        "shutil.disk_usage = lambda path: big\n"
        "with storage.local_copy('s3://bucket/large.bin'): pass\n"
    )
    script = f'mount -t tmpfs -o size=64k none "{tmp_path}" && TMPDIR="{tmp_path}" "{sys.executable}" -c "$0"'
    command = ["unshare", "--mount", "sh", "-c", script, program]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "DataError: s3://bucket/large.bin: the disk here is full" in ended.stderr.replace("mlflywheel.errors.", "")
    assert f"[Errno {errno.ENOSPC}] No space left on device" in ended.stderr


# Half models


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_an_upload_that_is_interrupted_leaves_no_manifest(
    users: Users, proxy: FaultyProxy, folder: Path, allowed: int
) -> None:
    place = f"half-{allowed}"
    puts = [0]
    lock = threading.Lock()

    def choose(method: str, path: str, number: int) -> Fault | None:
        with lock:
            puts[0] += method == "PUT"
            return Fault(500, "InternalError") if method == "PUT" and puts[0] > allowed else None

    proxy.choose = choose
    with pytest.raises(DataError, match="answered HTTP 500 InternalError, 2 times"):
        storage.upload_folder(folder, f"s3://bucket/{place}")
    proxy.choose = lambda method, path, number: None
    assert not storage.exists(f"s3://bucket/{place}/manifest.json")


def test_the_manifest_goes_up_after_every_other_file(proxy: FaultyProxy, folder: Path) -> None:
    storage.upload_folder(folder, "s3://bucket/ordered")
    put = [path.partition("?")[0].rpartition("/")[2] for method, path in proxy.requests if method == "PUT"]
    assert put[-1] == "manifest.json"
    assert sorted(put) == sorted(path.name for path in folder.iterdir())


def test_a_local_copy_is_never_seen_half(folder: Path, tmp_path: Path) -> None:
    with _largest_file(100), pytest.raises(OSError, match="File too large"):
        storage.upload_folder(folder, str(tmp_path / "target"))
    assert list((tmp_path / "target").iterdir()) == []


def test_readers_do_not_disturb_each_other(proxy: FaultyProxy, tmp_path: Path) -> None:
    def fetch(number: int) -> bytes:
        if number % 2:
            return read("s3://bucket/large.bin")
        storage.download_folder("s3://bucket/model", tmp_path / f"model-{number}")
        return (tmp_path / f"model-{number}" / "weights.npy").read_bytes()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(fetch, range(6)))
    assert found == [SMALL, LARGE] * 3


def test_files_come_side_by_side_and_within_bounds(users: Users, proxy: FaultyProxy, tmp_path: Path) -> None:
    client = users.store.client()
    with _unchecked(users.store):
        for number in range(40):
            client.put_object(Bucket="bucket", Key=f"many/{number}", Body=b"x")
    proxy.choose = lambda method, path, number: Fault(delay_seconds=0.02)
    storage.download_folder("s3://bucket/many", tmp_path / "many")
    assert 4 <= proxy.most_in_flight <= 16
    assert len(list((tmp_path / "many").iterdir())) == 40
