"""A Kubeflow Model Registry server that the tests start: the real program, on a PostgreSQL of its own, on 127.0.0.1.

Neither is built or fetched here. The server's container image has the program, `/model-registry`; name a copy of it in
MLFLYWHEEL_TEST_MODEL_REGISTRY. PostgreSQL is Debian's or any other, 16 or newer (the server's tables need `IS JSON`),
from MLFLYWHEEL_TEST_POSTGRESQL, a folder with `initdb` and `postgres`, or where Debian puts it; `psql` is on PATH.
"""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from control_plane import find_port

SERVER_VARIABLE = "MLFLYWHEEL_TEST_MODEL_REGISTRY"
POSTGRESQL_VARIABLE = "MLFLYWHEEL_TEST_POSTGRESQL"
OLDEST_POSTGRESQL = 16

_LOOPBACK = "127.0.0.1"
_DEBIAN = Path("/usr/lib/postgresql")
_SUPERVISOR = Path(__file__).resolve().parent / "supervise.py"
_READY_SECONDS = 60.0


def what_is_missing() -> str:
    """Say what the tests lack here, or nothing."""
    server = os.environ.get(SERVER_VARIABLE)
    if not server:
        return f"no Model Registry server. Fix: name its program, `/model-registry` in its image, in {SERVER_VARIABLE}"
    if not os.access(server, os.X_OK):
        return f"{SERVER_VARIABLE}={server} is no program. Fix: name the server's, `/model-registry` in its image"
    if shutil.which("psql") is None:
        return "no psql on PATH. Fix: install PostgreSQL's client"
    if _find_postgresql() is None:
        return (
            f"no PostgreSQL {OLDEST_POSTGRESQL} or newer. Fix: install it, or name its folder in {POSTGRESQL_VARIABLE}"
        )
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and there is no setpriv. Fix: run the tests as another user"
    return ""


class RegistryServer:
    """PostgreSQL and the server; start with `with`. Both end with the tests, even with tests that are killed.

    Attributes:
        url: The server's address.
    """

    def __init__(self) -> None:
        found = _find_postgresql()
        assert found is not None
        self._postgresql = found
        self._program = Path(os.environ[SERVER_VARIABLE]).resolve()
        self._password = secrets.token_hex(16)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="mlflywheel-registry-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End both and remove their folder."""
        # The server first: PostgreSQL waits for its clients.
        for name in ("registry", "postgres", "initdb"):
            process = self._processes.pop(name, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self) -> None:
        """Remove every model, version and artifact."""
        # Quicker than TRUNCATE, which makes new files; their properties go with them.
        self.sql(
            "; ".join(f'DELETE FROM "{table}"' for table in ("ParentContext", "Attribution", "Context", "Artifact"))
        )

    def sql(self, statement: str) -> str:
        """Run SQL on the server's database and return the rows, one a line."""
        command = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres"]
        connection = {
            "PGHOST": _LOOPBACK,
            "PGPORT": str(self._port),
            "PGUSER": "postgres",
            "PGPASSWORD": self._password,
        }
        done = subprocess.run(command, env=os.environ | connection, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def _start(self) -> None:
        # Root's folder, and another user's data in it.
        self.folder.chmod(0o711)
        data, password, home = (self.folder / name for name in ("data", "password", "home"))
        for folder in (data, home):
            folder.mkdir(mode=0o700)
        password.touch(0o600)
        password.write_text(self._password, encoding="utf-8")
        prefix: list[str] = []
        if os.geteuid() == 0:
            prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
            for path in (data, password, home):
                shutil.chown(path, "nobody", "nogroup")
        initdb = [*prefix, self._postgresql / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256"]
        self._run("initdb", [*initdb, "--pwfile", password, "-E", "UTF8", "--no-locale", "--no-sync"], {})
        if self._processes["initdb"].wait(_READY_SECONDS) != 0:
            raise RuntimeError(f"initdb:\n{self._log('initdb')}")
        self._port = find_port()
        # No socket in a folder that others can write, and nothing that makes throw-away data durable.
        database = [
            *prefix,
            self._postgresql / "postgres",
            "-D",
            data,
            "-h",
            _LOOPBACK,
            "-p",
            self._port,
            "-k",
            "",
            "-F",
        ]
        self._run("postgres", database, {})
        self._wait("postgres", lambda: self.sql("SELECT 1") == "1")

        port = find_port()
        self.url = f"http://{_LOOPBACK}:{port}"
        server = [*prefix, self._program, "proxy", "--hostname", _LOOPBACK, "--port", port]
        # The password is not among the arguments, which every user of the machine can read.
        address = f"host={_LOOPBACK} port={self._port} user=postgres password={self._password} dbname=postgres"
        settings = {
            "HOME": str(home),
            "MR_EMBEDMD_DATABASE_TYPE": "postgres",
            "MR_EMBEDMD_DATABASE_DSN": f"{address} sslmode=disable",
        }
        self._run("registry", server, settings)
        self._wait("registry", self._answers)

    def _run(self, name: str, command: list[object], settings: dict[str, str]) -> None:
        supervised = [sys.executable, _SUPERVISOR, os.getpid(), self.folder, *command]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(part) for part in supervised],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"]} | settings,
                start_new_session=True,
            )

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self._processes[name].poll() is None:
            with contextlib.suppress(RuntimeError):
                if is_ready():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{name} ended or is not ready; the end of its log:\n{self._log(name)}")

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False


def _find_postgresql() -> Path | None:
    """The folder with the newest `initdb` and `postgres` that the server can use."""
    named = os.environ.get(POSTGRESQL_VARIABLE)
    folders = [Path(named)] if named else sorted(_DEBIAN.glob("*/bin"), key=_version, reverse=True)
    if not named:
        on_path = shutil.which("initdb")
        folders += [Path(on_path).resolve().parent] if on_path else []
    return next((folder for folder in folders if _version(folder) >= OLDEST_POSTGRESQL), None)


def _version(folder: Path) -> int:
    if not all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
        return 0
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"(\d+)", said)
    return int(number[1]) if number else 0
