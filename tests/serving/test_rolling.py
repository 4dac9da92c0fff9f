"""Predictors are replaced one after the other behind a real proxy, and no request fails.

The proxy is HAProxy, set so that only the drain can explain the result:

- It retries nothing and redispatches nothing (`retries 0`), and its counters are checked: a request that met a closing
  connection or a closed port would be a failed request.
- It asks `/v2/models/NAME/ready` of each predictor five times a second, and one other answer than 200 takes the
  predictor out of the rotation. `--drain_delay_seconds` is longer than that, which is the one rule that a proxy, a
  Service or a mesh has to keep: while it has not heard of the end yet, requests are still answered.

The control kills a predictor instead. Requests fail then, so the load would show what the drain keeps away.
"""

import asyncio
import csv
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer

Start = Callable[..., RunningServer]

# Debian keeps it where PATH of ordinary users does not look.
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin")
_PAUSE_SECONDS = 0.05
DRAIN = "--drain_delay_seconds=1.5"
CONFIGURATION = """
global
    maxconn 2000
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout check 5s
frontend clients
    bind fd@{descriptor}
    stats enable
    stats uri /proxy
    default_backend predictors
backend predictors
    balance roundrobin
    option httpchk GET /v2/models/campaigns/ready
    http-check expect status 200
    default-server check inter 200ms fall 1 rise 1
    server first {first}
    server second {second}
"""


class Proxy:
    """HAProxy before two predictors, on a free port of this machine."""

    def __init__(self, folder: Path, first: RunningServer, second: RunningServer) -> None:
        assert HAPROXY is not None
        file = folder / "haproxy.cfg"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            hosts = [server.url.removeprefix("http://") for server in (first, second)]
            file.write_text(CONFIGURATION.format(descriptor=listening.fileno(), first=hosts[0], second=hosts[1]))
            self._process = subprocess.Popen(
                [HAPROXY, "-db", "-q", "-f", str(file)], pass_fds=[listening.fileno()], stderr=subprocess.PIPE
            )

    def read_state(self) -> dict[str, dict[str, str]]:
        """Return HAProxy's own counters of each predictor."""
        try:
            lines = httpx.get(f"{self.url}/proxy;csv").text.removeprefix("# ").splitlines()
        except httpx.TransportError:
            return {}
        return {row["svname"]: row for row in csv.DictReader(lines) if row["pxname"] == "predictors"}

    def wait_until(self, name: str, status: str) -> None:
        until = time.monotonic() + 20
        while self.read_state().get(name, {}).get("status") != status:
            assert time.monotonic() < until, self.read_state()
            assert self._process.poll() is None, self._process.stderr
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stderr is not None
        self._process.stderr.close()


class Load:
    """Clients that send one request after the other until told to stop, one of them large ones."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/models/campaigns:predict"
        self._stopping = False
        self.outcomes: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._thread.join()

    @property
    def failures(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if not outcome.startswith("version ")}

    def wait_for(self, outcome: str, more: int = 5) -> None:
        """Wait until an outcome was seen some more times."""
        wanted, until = self.outcomes[outcome] + more, time.monotonic() + 20
        while self.outcomes[outcome] < wanted:
            assert time.monotonic() < until, self.outcomes
            time.sleep(0.01)

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            await asyncio.gather(*(self._send(client, rows) for rows in (1, 1, 1, 1, 1, 60)))

    async def _send(self, client: httpx.AsyncClient, rows: int) -> None:
        body = {"instances": [{"terms": [f"term{row}", "emergency plumber", "drain"]} for row in range(rows)]}
        while not self._stopping:
            try:
                response = await client.post(self._url, json=body)
                answer = response.json() if response.status_code == 200 else {}
                whole = len(answer.get("predictions", [])) == rows
                self.outcomes[f"version {answer['model_version']}" if whole else f"status {response.status_code}"] += 1
            except httpx.TransportError as error:
                self.outcomes[type(error).__name__] += 1
            # Leaves the successor some processor time to start in.
            await asyncio.sleep(_PAUSE_SECONDS)


@pytest.fixture
def pair(start: Start, tmp_path: Path) -> Iterator[tuple[Proxy, dict[str, RunningServer]]]:
    """Two predictors of version 1, and the proxy before them."""
    if HAPROXY is None:
        pytest.skip("no haproxy here; Debian's package haproxy has it")
    servers = {name: start(DRAIN, "--model_version=1") for name in ("first", "second")}
    for server in servers.values():
        server.wait_until_ready()
    proxy = Proxy(tmp_path, **servers)
    try:
        for name in servers:
            proxy.wait_until(name, "UP")
        yield proxy, servers
    finally:
        proxy.stop()


@pytest.mark.long
def test_predictors_are_replaced_under_load_and_no_request_fails(
    start: Start, pair: tuple[Proxy, dict[str, RunningServer]]
) -> None:
    proxy, servers = pair
    with Load(proxy.url) as load:
        load.wait_for("version 1")
        for name, old in servers.items():
            # The same port again, as a Service sees a pod of the same name.
            port = old.url.rpartition(":")[2]
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(20) == 0
            assert old.wait_for(lambda old=old: old.events("stopped"))[0]["cut_off"] == 0
            assert proxy.read_state()[name]["status"] == "DOWN"
            servers[name] = start(DRAIN, "--model_version=2", f"--http_port={port}").wait_until_ready()
            proxy.wait_until(name, "UP")
            load.wait_for("version 2")
        state = proxy.read_state()
        assert load.failures == {}
        # Nothing was repeated or moved, and no connection to a predictor failed.
        assert {counts[key] for counts in state.values() for key in ("wretr", "wredis", "econ", "eresp")} == {"0"}

        # The control: the same load notices a predictor that does not drain.
        servers["first"].process.kill()
        proxy.wait_until("first", "DOWN")
        load.wait_for("version 2")
    assert sum(load.failures.values()) > 0


@pytest.mark.long
def test_a_long_request_is_answered_after_sigterm(start: Start) -> None:
    running = start("--max_rows=1000").wait_until_ready()
    rows = [{"terms": [f"word{row} number{term} plumber" for term in range(100)]} for row in range(1000)]
    answers: list[httpx.Response] = []
    request = threading.Thread(target=lambda: answers.append(running.predict(rows)))
    request.start()
    running.wait_for(lambda: "requests_in_flight 1.0" in running.get("/metrics").text)
    assert running.stop(signal.SIGTERM) == 0
    request.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["predictions"]) == 1000
    assert running.events("draining")[0]["in_flight"] == 1
    assert running.events("stopped")[0]["cut_off"] == 0
