"""A real Prometheus scrapes real exporters that stand in for pods: what the source counts is what was counted there."""

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.exposition import ThreadingWSGIServer

from mlflywheel.cluster.prometheus import PrometheusSource
from mlflywheel.cluster.prometheus_presets import PRESETS
from mlflywheel.decisions.canary.evidence import Arm, ArmName, Window
from mlflywheel.errors import RolloutError
from mlflywheel.serving.metrics import SECONDS_BUCKETS

PROMETHEUS = shutil.which("prometheus") or shutil.which("prometheus", path="/usr/local/bin:/usr/bin")
LAG_SECONDS = 0.5
ARMS: dict[ArmName, str] = {"stable": "ads-predictor", "candidate": "ads-v2-predictor"}
POD_NAMES = ("ads-predictor-6d4cf56db6-7xk2p", "ads-predictor-6d4cf56db6-q9wzl", "ads-v2-predictor-5b8d7c9f4-bcdfg")


class Pod:
    """An exporter with our predictor's metrics."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.port = 0
        self._server: ThreadingWSGIServer | None = None
        self.start()

    def start(self) -> None:
        """Start with all counters at 0, as a process does."""
        registry = CollectorRegistry()
        self._requests = Counter("mlflywheel_requests", "Requests.", ["protocol", "code"], registry=registry)
        self._seconds = Histogram(
            "mlflywheel_request_seconds",
            "Duration.",
            ["protocol", "phase"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._server, self._thread = start_http_server(self.port, addr="127.0.0.1", registry=registry)
        self.port = self._server.server_port

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def answer(self, requests: int, code: str = "200", seconds: float = 0.02) -> None:
        for _ in range(requests):
            self._requests.labels("v2", code).inc()
            self._seconds.labels("v2", "total").observe(seconds)
            self._seconds.labels("v2", "predict").observe(seconds / 2)


class Prometheus:
    """A server on a free port of loopback."""

    def __init__(self, folder: Path, pods: dict[str, list[Pod]]) -> None:
        targets = [
            {"targets": [f"127.0.0.1:{pod.port}"], "labels": {"namespace": pod.namespace, "pod": pod.name}}
            for pod in pods
        ]
        config = {
            "global": {"scrape_interval": "300ms", "scrape_timeout": "300ms"},
            "scrape_configs": [{"job_name": "ads", "static_configs": targets}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._log = folder / "log"
        port = find_port()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(PROMETHEUS),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self.address = f"http://127.0.0.1:{port}"

    def wait_until_scraping(self, targets: int) -> "Prometheus":
        """Wait until it is ready and all targets are scraped; it takes 5 s to find the first of them."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if len(self.ask("up==1")) == targets:
                    return self
            time.sleep(0.05)
        raise AssertionError(self._log.read_text(encoding="utf-8", errors="replace")[-2000:])

    def wait_for_scrapes(self, namespace: str) -> float:
        """Wait until all that was counted before is scraped; return the end of a window that has it."""
        counted = time.time()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            scraped = self.ask(f'timestamp(up{{namespace="{namespace}"}})')
            if min(float(one["value"][1]) for one in scraped) > counted:
                break
            time.sleep(0.05)
        return time.time() + LAG_SECONDS

    def ask(self, query: str) -> list[dict[str, Any]]:
        url = f"{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=2) as answer:
            return list(json.load(answer)["data"]["result"])

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def find_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def pods() -> Iterator[dict[str, list[Pod]]]:
    """Pods of two versions by namespace; each test has its own."""
    made = {namespace: [Pod(name, namespace) for name in POD_NAMES] for namespace in ("ads", "restarts", "dark")}
    yield made
    for pod in itertools.chain.from_iterable(made.values()):
        pod.stop()


@pytest.fixture(scope="module")
def prometheus(pods: dict[str, list[Pod]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if PROMETHEUS is None:
        pytest.skip("no prometheus here; Debian's package prometheus has it")
    targets = list(itertools.chain.from_iterable(pods.values()))
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    try:
        yield server.wait_until_scraping(len(targets))
    finally:
        server.stop()


def source_of(server: Prometheus, namespace: str) -> PrometheusSource:
    return PrometheusSource(
        server.address, "mlflywheel", namespace, "ads", stale_seconds=2.0, lag_seconds=LAG_SECONDS, timeout_seconds=2.0
    )


def read(source: PrometheusSource, start: float, end: float) -> Window:
    time.sleep(max(0.0, end - LAG_SECONDS + 0.3 - time.time()))
    return source.read_window(ARMS, start, end, 1, 20.0)


def test_counts_are_exactly_what_the_pods_counted(prometheus: Prometheus, pods: dict[str, list[Pod]]) -> None:
    one, two, canary = pods["ads"]
    # Both pods of stable have a history; the candidate had no request, so that its counters do not exist yet.
    one.answer(1000)
    two.answer(7, code="500")
    source = source_of(prometheus, "ads")
    assert "mlflywheel" in source.check()
    start = prometheus.wait_for_scrapes("ads")
    one.answer(123, seconds=0.02)
    two.answer(40, seconds=0.2)
    two.answer(3, code="503", seconds=30.0)
    canary.answer(11, seconds=0.02)
    canary.answer(2, code="INTERNAL", seconds=0.02)
    canary.answer(5, code="404", seconds=0.0005)
    middle = prometheus.wait_for_scrapes("ads")
    first = read(source, start, middle)
    assert first.gap == ""
    assert first.excluded_because == ""
    assert (first.stable.requests, first.stable.errors) == (166.0, 3.0)
    assert (first.candidate.requests, first.candidate.errors) == (18.0, 2.0)
    assert first.stable.latency is not None
    assert first.candidate.latency is not None
    assert first.stable.latency.bounds_seconds == SECONDS_BUCKETS
    stable = dict(zip(first.stable.latency.bounds_seconds, first.stable.latency.counts, strict=False))
    assert (stable[0.025], stable[0.25], first.stable.latency.counts[-1]) == (123.0, 40.0, 3.0)
    assert first.stable.latency.total == 166.0
    assert first.candidate.latency.counts[0] == 5.0
    assert first.candidate.latency.total == 18.0

    # The next window starts where this one ended, and counts nothing twice.
    one.answer(9)
    end = prometheus.wait_for_scrapes("ads")
    second = read(source, middle, end)
    assert (second.stable.requests, second.candidate.requests, second.gap) == (9.0, 0.0, "")


def test_a_restarted_pod_is_a_reset_and_a_killed_one_a_gap(prometheus: Prometheus, pods: dict[str, list[Pod]]) -> None:
    _, two, canary = pods["restarts"]
    canary.answer(50)
    two.answer(5)
    source = source_of(prometheus, "restarts")
    start = prometheus.wait_for_scrapes("restarts")
    canary.answer(10)
    prometheus.wait_for_scrapes("restarts")
    canary.stop()
    canary.start()
    canary.answer(4)
    middle = prometheus.wait_for_scrapes("restarts")
    restarted = read(source, start, middle)
    assert restarted.candidate.reset
    assert not restarted.stable.reset
    # What was scraped counts, before and after.
    assert restarted.candidate.requests == 14.0
    assert "candidate" in restarted.excluded_because

    canary.answer(3)
    two.answer(1)
    after = prometheus.wait_for_scrapes("restarts")
    whole = read(source, middle, after)
    assert (whole.candidate.requests, whole.excluded_because) == (3.0, "")

    canary.stop()
    end = prometheus.wait_for_scrapes("restarts")
    killed = read(source, after, end)
    assert killed.gap == f"candidate ads-v2-predictor: 127.0.0.1:{canary.port} cannot be scraped"
    assert killed.candidate == Arm()


def test_a_stopped_prometheus_is_a_gap(tmp_path: Path) -> None:
    if PROMETHEUS is None:
        pytest.skip("no prometheus here; Debian's package prometheus has it")
    server = Prometheus(tmp_path, [])
    try:
        server.wait_until_scraping(0)
        source = source_of(server, "ads")
        source.check()
        now = time.time()
        assert "no series" in source.read_window(ARMS, now - 2, now, 1, 20.0).gap
    finally:
        server.stop()
    down = source.read_window(ARMS, now - 2, now, 1, 20.0)
    assert down.gap.startswith(f"Prometheus {server.address}: no answer")
    assert (down.stable, down.candidate) == (Arm(), Arm())
    with pytest.raises(RolloutError, match="no answer"):
        source.check()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_server_accepts_the_queries_of_every_preset(prometheus: Prometheus, preset: str) -> None:
    queries = {"errors": 'failures_total{pod=~"$pods"}'} if preset == "kserve" else {}
    source = PrometheusSource(prometheus.address, preset, "ads", "ads", queries)
    assert source.check() == f"Prometheus {prometheus.address}, metrics of {preset}"


def test_a_query_that_the_server_refuses_is_found_before_the_rollout(prometheus: Prometheus) -> None:
    source = PrometheusSource(prometheus.address, queries={"errors": 'mlflywheel_requests_total{code=~"5(.."}'})
    with pytest.raises(RolloutError, match=r"query for errors: HTTP 400, bad_data.*missing closing"):
        source.check()


def test_an_arm_that_is_not_scraped_is_a_gap_unless_it_has_no_traffic(
    prometheus: Prometheus, pods: dict[str, list[Pod]]
) -> None:
    stable, *_ = pods["dark"]
    stable.answer(5)
    source = source_of(prometheus, "dark")
    start = prometheus.wait_for_scrapes("dark")
    stable.answer(5)
    end = prometheus.wait_for_scrapes("dark")
    time.sleep(0.3)
    arms: dict[ArmName, str] = {"stable": "ads-predictor", "candidate": "ads-v3-predictor"}
    missing = source.read_window(arms, start, end, 1, 20.0)
    assert missing.gap.startswith("candidate ads-v3-predictor: no series of mlflywheel_requests_total or up for it (")
    dark = source.read_window(arms, start, end, 0, 0.0)
    assert (dark.gap, dark.stable.requests, dark.candidate.requests) == ("", 5.0, 0.0)
