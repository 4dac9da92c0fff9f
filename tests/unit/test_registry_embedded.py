"""The embedded registry: the contract, several processes, killed writers, and files that are not its own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from registry_contract import RegistryContract, register

from mlflywheel.cluster.connection import REGISTRY_VARIABLE, open_registry
from mlflywheel.errors import RegistryError, UsageError
from mlflywheel.registry.embedded import SCHEMA, EmbeddedRegistry, registry_path
from mlflywheel.registry.locations import ServingLocation, to_serving_uri
from mlflywheel.registry.records import ModelRegistry, parse_reference


@pytest.fixture
def registry(tmp_path: Path) -> EmbeddedRegistry:
    return EmbeddedRegistry(tmp_path / "runs" / "registry.sqlite")


class TestEmbeddedRegistry(RegistryContract):
    """The contract, on SQLite."""


def register_keys(path: str, keys: list[str]) -> list[tuple[str, str]]:
    """Wait until the other process is ready too, then register each key."""
    registry = EmbeddedRegistry(path)
    Path(f"{path}.{keys[0]}.ready").touch()
    deadline = time.monotonic() + 30
    while len(list(registry.path.parent.glob("*.ready"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    return [(key, register(registry, key).version) for key in keys]


def test_processes_share_numbers_and_never_a_key(registry: EmbeddedRegistry) -> None:
    registry.path.parent.mkdir()
    shared = [f"shared-{i}" for i in range(20)]
    plans = [[key for i in range(20) for key in (f"own-{p}-{i}", shared[i])] for p in range(2)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(register_keys, [str(registry.path)] * 2, plans))
    versions = dict(found[0]) | dict(found[1])
    assert all(dict(found[0])[key] == dict(found[1])[key] for key in shared)
    assert sorted(int(version) for version in versions.values()) == list(range(1, 61))
    stored = registry.list_versions("ad-campaigns")
    assert {v.key: v.version for v in stored} == versions
    assert len(stored) == 60


KILLED_WRITER = """
import os, signal, sys
from mlflywheel.registry.embedded import EmbeddedRegistry

class Killed(EmbeddedRegistry):
    def _connect(self, mode):
        connection = super()._connect(mode)
        # A small cache makes SQLite write pages to the file before the transaction is committed.
        connection.execute("PRAGMA cache_size = 1")
        connection.set_trace_callback(self.kill)
        return connection

    def kill(self, statement):
        if statement.startswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

Killed(sys.argv[1]).ensure_version(
    "ad-campaigns", "/srv/m", key="killed", format_name="f", format_version="1", hash="h", description="x" * 100_000
)
"""


@pytest.mark.parametrize("existing", [0, 1])
@pytest.mark.parametrize("statement", ["INSERT INTO versions", "INSERT INTO transitions", "COMMIT"])
def test_killed_writer_leaves_no_half_version(registry: EmbeddedRegistry, statement: str, existing: int) -> None:
    if existing:
        register(registry)
    run = [sys.executable, "-c", KILLED_WRITER, str(registry.path), statement]
    assert subprocess.run(run, check=False).returncode == -signal.SIGKILL
    assert registry.path.exists()
    assert len(registry.list_models()) == existing
    made = register(registry, "after")
    assert made.version == str(existing + 1)
    assert len(registry.list_versions("ad-campaigns")) == existing + 1
    assert len(registry.history("ad-campaigns", made.version)) == 1


def test_writer_killed_at_any_moment_leaves_whole_versions(registry: EmbeddedRegistry) -> None:
    script = (
        "import sys; from mlflywheel.registry.embedded import EmbeddedRegistry\n"
        "r = EmbeddedRegistry(sys.argv[1])\n"
        "for i in range(10_000):\n"
        "    r.ensure_version('m', '/srv/m', key=f'{sys.argv[2]}-{i}', format_name='f', format_version='1', hash='h')\n"
        "    print(i, flush=True)\n"
    )
    confirmed = 0
    for attempt in range(3):
        run = [sys.executable, "-c", script, str(registry.path), str(attempt)]
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(5 + attempt):
                process.stdout.readline()
            process.kill()
            confirmed += 5 + attempt + len(process.stdout.readlines())
    versions = registry.list_versions("m")
    assert [v.version for v in versions] == [str(i + 1) for i in range(len(versions))]
    # At most the one that was under way in each process was stored without being reported.
    assert confirmed <= len(versions) <= confirmed + 3
    assert all(len(registry.history("m", v.version)) == 1 for v in versions)


def test_reading_creates_nothing(registry: EmbeddedRegistry) -> None:
    assert registry.list_models() == []
    assert "not created yet" in registry.check()
    with pytest.raises(RegistryError, match="no model m; registered models: none"):
        registry.get("m")
    assert not registry.path.parent.exists()


def test_empty_file_is_an_empty_registry(registry: EmbeddedRegistry) -> None:
    registry.path.parent.mkdir()
    registry.path.touch()
    assert registry.list_models() == []
    assert register(registry).version == "1"
    assert registry.check().endswith("registry.sqlite, 1 version")


def test_newer_schema_is_refused_with_the_upgrade(registry: EmbeddedRegistry) -> None:
    register(registry)
    connection = sqlite3.connect(registry.path)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    for call in (registry.list_models, lambda: register(registry, "run-2")):
        with pytest.raises(RegistryError, match=f"schema {SCHEMA + 1}") as caught:
            call()
        assert "upgrade mlflywheel" in caught.value.fix


def test_database_of_another_program_is_left_alone(registry: EmbeddedRegistry) -> None:
    registry.path.parent.mkdir()
    connection = sqlite3.connect(registry.path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = registry.path.read_bytes()
    for call in (registry.list_models, lambda: register(registry)):
        with pytest.raises(RegistryError, match="another program"):
            call()
    assert registry.path.read_bytes() == before


def test_file_that_is_no_database_is_refused(registry: EmbeddedRegistry) -> None:
    registry.path.parent.mkdir()
    registry.path.write_text("name,version\n" * 100)
    for call in (registry.list_models, registry.check, lambda: register(registry)):
        with pytest.raises(RegistryError, match="not a readable SQLite database") as caught:
            call()
        assert "backup" in caught.value.fix


def test_damaged_pages_are_reported(registry: EmbeddedRegistry) -> None:
    for i in range(30):
        register(registry, f"run-{i}")
    content = registry.path.read_bytes()
    registry.path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(RegistryError, match="not a readable SQLite database"):
        registry.list_versions("ad-campaigns")


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RegistryError, match="its folder cannot be created"):
        register(EmbeddedRegistry(tmp_path / "runs" / "registry.sqlite"))


def test_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    for call in (EmbeddedRegistry(tmp_path).list_models, lambda: register(EmbeddedRegistry(tmp_path))):
        with pytest.raises(RegistryError, match="cannot be opened for this"):
            call()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_registry_can_be_read_and_not_changed(registry: EmbeddedRegistry) -> None:
    register(registry)
    registry.path.chmod(0o444)
    registry.path.parent.chmod(0o555)
    try:
        assert registry.get("ad-campaigns").version == "1"
        with pytest.raises(RegistryError, match="must be writable"):
            register(registry, "run-2")
        with pytest.raises(RegistryError, match="must be writable"):
            register(EmbeddedRegistry(registry.path.with_name("other.sqlite")))
    finally:
        registry.path.parent.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_folder_that_nobody_can_write_to_is_refused() -> None:
    with pytest.raises(RegistryError, match=r"/proc/registry\.sqlite: it cannot be opened for this"):
        register(EmbeddedRegistry("/proc/registry.sqlite"))


def test_waiting_for_another_writer_ends_with_an_error(registry: EmbeddedRegistry) -> None:
    register(registry)
    other = sqlite3.connect(registry.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RegistryError, match=r"another process has held it for 0\.1 s"):
            register(EmbeddedRegistry(registry.path, timeout_seconds=0.1), "run-2")
    finally:
        other.close()
    assert register(registry, "run-2").version == "2"


def test_only_one_of_two_decisions_is_taken(registry: EmbeddedRegistry) -> None:
    register(registry)
    registry.set_state("ad-campaigns", "1", "approved", by="ann")
    registry.set_state("ad-campaigns", "1", "archived", by="bob")
    with pytest.raises(RegistryError, match="archived cannot become live"):
        registry.set_state("ad-campaigns", "1", "live", by="ann")


def test_odd_characters_in_the_path_name_one_file(tmp_path: Path) -> None:
    registry = EmbeddedRegistry(tmp_path / "a?mode=ro#b %20" / "ü.sqlite")
    register(registry)
    assert [p.name for p in registry.path.parent.iterdir()] == ["ü.sqlite"]


def test_registry_is_a_file_with_a_mark(registry: EmbeddedRegistry) -> None:
    register(registry)
    assert registry.path.read_bytes()[68:72] == b"MLFW"
    assert [p.name for p in registry.path.parent.iterdir()] == ["registry.sqlite"]


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("sqlite:///srv/r.sqlite", "/srv/r.sqlite"),
        ("sqlite:////srv/r.sqlite", "/srv/r.sqlite"),
        ("runs/r.sqlite", "runs/r.sqlite"),
    ],
)
def test_addresses_name_files(address: str, path: str) -> None:
    assert registry_path(address) == Path(path)


@pytest.mark.parametrize("address", ["sqlite://r.sqlite", "sqlite:///", "postgresql://host/db", ""])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not an address of a registry"):
        registry_path(address)


def test_open_registry_follows_argument_then_variable_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)

    def path_of(registry: ModelRegistry) -> Path:
        assert isinstance(registry, EmbeddedRegistry)
        return registry.path

    assert path_of(open_registry()) == tmp_path / "runs" / "registry.sqlite"
    monkeypatch.setenv(REGISTRY_VARIABLE, "sqlite:///srv/r.sqlite")
    assert path_of(open_registry()) == Path("/srv/r.sqlite")
    assert path_of(open_registry(tmp_path / "x")) == tmp_path / "x"


@pytest.mark.parametrize("text", ["", "@1", "name@", "a@b@c"])
def test_reference_needs_name_and_version(text: str) -> None:
    with pytest.raises(UsageError, match="not NAME@VERSION"):
        parse_reference(text)


def test_addresses_that_a_server_reads_pass_unchanged() -> None:
    for uri in ("gs://b/k", "pvc://claim/k", "hf://org/model", "https://host/m.tar", "file:///srv/m"):
        assert to_serving_uri(uri, secret="s") == ServingLocation(uri, "", "s")
    assert to_serving_uri("s3://b/k/") == ServingLocation("s3://b/k")


@pytest.mark.parametrize(
    ("uri", "endpoint", "named"),
    [
        ("minio://b/k", "minio:9000", "not an http:// or https:// URL"),
        ("s3://b/k", "https://ann:pw@minio", "carries credentials"),
        ("s3://id:key@b/k", "", "carries credentials"),
        ("gs://b/k", "https://minio", "only minio:// and s3:// have an endpoint"),
        ("s3:///k", "", "no bucket"),
        ("minio://b/k?region=x", "http://m", "it has a query"),
        ("ftp://b/k", "", "no scheme that a server can read"),
        ("", "", "no scheme that a server can read"),
    ],
)
def test_address_that_no_server_can_read_is_refused(uri: str, endpoint: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_serving_uri(uri, endpoint)
    assert named in str(caught.value)
    assert "key@" not in str(caught.value)


def test_errors_survive_json(registry: EmbeddedRegistry) -> None:
    with pytest.raises(RegistryError) as caught:
        registry.get("m", "1")
    assert json.loads(json.dumps(caught.value.to_dict()))["exit_code"] == 1
