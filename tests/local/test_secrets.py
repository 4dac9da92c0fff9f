"""Canaries: passwords that a run is given, and that no byte which it leaves, prints or shows to others may hold."""

import base64
import functools
import http.server
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import LEAN_PLAN, NO_RULES, start

from mlflywheel.errors import UsageError
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.runs.runner import check_arguments

PASSWORD, SIGNATURE, TOKEN, KEY = "canary-pa55word", "canary-5ignature", "canary-t0ken", "canary-5ecret-key"
CANARIES = (PASSWORD, SIGNATURE, TOKEN, KEY)
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_SESSION_TOKEN": TOKEN,
    "MLFLYWHEEL_REGISTRY_TOKEN": TOKEN,
    "KF_PIPELINES_TOKEN": TOKEN,
    "DATABASE_URL": f"postgresql://ann:{PASSWORD}@db/registry",
}


@pytest.fixture(scope="module")
def address(sample: Path) -> Iterator[str]:
    """The sample on a web server that asks for a password."""
    handler = functools.partial(_Silent, directory=str(sample.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{sample.name}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers.get("Authorization") == f"Basic {base64.b64encode(f'ann:{PASSWORD}'.encode()).decode()}":
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def read_commands(group: int) -> set[bytes]:
    """Command lines of a process and what it started, as `ps` shows them to everybody."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    own = {group}
    for _ in range(6):
        own |= {child for child, parent in parents.items() if parent in own}
    found = set()
    for number in own - {group}:
        try:
            found.add((Path("/proc") / str(number) / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def find_canaries(folder: Path) -> dict[str, list[str]]:
    leaks: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if content[:15] == b"SQLite format 3":
                with sqlite3.connect(path) as connection:
                    content = "\n".join(connection.iterdump()).encode() + content
            found = [canary for canary in CANARIES if canary.encode() in content]
            if found:
                leaks[str(path.relative_to(folder))] = found
    return leaks


@pytest.mark.parametrize(
    "data",
    [
        f"http://ann:{PASSWORD}@127.0.0.1:1/terms.csv",
        f"https://bucket.s3.amazonaws.com/terms.csv?X-Amz-Algorithm=a&X-Amz-Signature={SIGNATURE}",
        f"https://account.blob.core.windows.net/c/terms.csv?sv=1&sig={SIGNATURE}",
        f"s3://{TOKEN}:{KEY}@bucket/terms.csv",
    ],
)
@pytest.mark.parametrize("name", ["data", "registry"])
def test_an_address_with_a_secret_is_no_argument_of_a_run(data: str, name: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_arguments(find_pipeline("ad-campaigns").compiled, {"data": "terms.csv", name: data})
    assert not any(canary in str(refused.value) for canary in CANARIES)


def test_an_address_with_an_ordinary_query_is_one() -> None:
    data = "https://example.org/export.csv?day=2026-11-01&page=3"
    assert check_arguments(find_pipeline("ad-campaigns").compiled, {"data": data})["data"] == data


@pytest.mark.long
def test_a_run_leaves_and_shows_no_secret(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "gates.yaml").write_text("schema: 1\ngates: []\n", encoding="utf-8")
    (tmp_path / "work" / "rules.json").write_text(NO_RULES, encoding="utf-8")
    (tmp_path / "work" / "plan.json").write_text(LEAN_PLAN, encoding="utf-8")
    netrc = tmp_path / "home" / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login ann password {PASSWORD}\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    child = start(
        tmp_path / "work", "--data", address, "--gates", "gates.yaml", "--expectations", "rules.json",
        "--plan", "plan.json",
        "--param", "num_topics=4",
    )  # fmt: skip
    commands: set[bytes] = set()
    printed: list[str] = []
    reader = threading.Thread(target=lambda: printed.extend(child.communicate(timeout=300)))
    reader.start()
    while reader.is_alive():
        commands |= read_commands(child.pid)
        time.sleep(0.3)
    reader.join()
    assert child.returncode == 0, printed
    assert commands
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == KEY
    assert [canary for canary in CANARIES if canary in "".join(printed)] == []
    assert find_canaries(tmp_path / "work") == {}
    assert [command for command in commands if any(canary.encode() in command for canary in CANARIES)] == []
