"""Evidence from Prometheus, against a server that answers with the JSON of its HTTP API."""

import importlib.util
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from prometheus_client import REGISTRY, generate_latest

from mlflywheel.cluster.prometheus import PrometheusSource
from mlflywheel.cluster.prometheus_presets import PRESETS, pods_of
from mlflywheel.decisions.canary.evidence import Arm, ArmName, Counter, Window
from mlflywheel.errors import RolloutError, UsageError

ARMS: dict[ArmName, str] = {"stable": "ads-predictor", "candidate": "ads-v2-predictor"}
STABLE, OTHER, CANARY = (
    "ads-predictor-6d4cf56db6-7xk2p",
    "ads-predictor-6d4cf56db6-q9wzl",
    "ads-v2-predictor-5b8d7c9f4-bcdfg",
)
# Samples at these seconds before the window's end, which is 60 s after its start.
SCRAPES = (90, 75, 60, 45, 30, 15, 0)


class FakePrometheus:
    """Answers range selectors from series in memory, as the documentation of the HTTP API shows it."""

    def __init__(self) -> None:
        self.series: list[tuple[dict[str, str], list[tuple[float, float | str]]]] = []
        self.clock_ahead_seconds = 0.0
        self.warnings: list[str] = []
        self.answer: Callable[[dict[str, str]], tuple[int, bytes] | None] = lambda form: None
        self.requests: list[tuple[dict[str, str], dict[str, str]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One packet an answer: the second of two would wait for an acknowledgement.
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {name: values[0] for name, values in parse_qs(body).items()}
                fake.requests.append((form, dict(self.headers)))
                status, content = fake.answer(form) or (200, json.dumps(fake.evaluate(form)).encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def add(self, name: str, pod: str, *values: float | str | None, ages: tuple[float, ...] = SCRAPES, **labels: str):
        """Add a series of a pod; None for no sample, a single value for the same at all times."""
        if len(values) == 1:
            values = values * len(ages)
        samples = [(END - age, value) for age, value in zip(ages, values, strict=True) if value is not None]
        target = {"namespace": "ads", "pod": pod, "job": "ads", "instance": f"{pod}:8080"}
        self.series.append(({"__name__": name, **target, **labels}, samples))

    def evaluate(self, form: dict[str, str]) -> dict[str, Any]:
        if form["query"] == "time()":
            now = time.time() + self.clock_ahead_seconds
            return {"status": "success", "data": {"resultType": "scalar", "result": [now, str(now)]}}
        found = re.fullmatch(r"(\w+)\{(.*)\}\[(?:(\d+)ms|1m)\]", form["query"])
        assert found, form["query"]
        matchers = re.findall(r'(\w+)(=~|=)"([^"]*)"', found[2])
        at, span = float(form["time"]), int(found[3] or 60_000) / 1000
        result = []
        for labels, samples in self.series:
            matches = labels["__name__"] == found[1] and all(
                re.fullmatch(value, labels.get(name, "")) if kind == "=~" else labels.get(name, "") == value
                for name, kind, value in matchers
            )
            within = [[when, str(value)] for when, value in samples if at - span <= when <= at]
            if matches and within:
                result.append({"metric": labels, "values": within})
        answer = {"status": "success", "data": {"resultType": "matrix", "result": result}}
        return answer | ({"warnings": self.warnings} if self.warnings else {})


END = float(int(time.time()) - 20)


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    server = FakePrometheus()
    yield server
    server.stop()


def add_pod(fake: FakePrometheus, pod: str, requests: float, errors: float = 0, slow: float = 0) -> None:
    """A pod that was scraped all the time; all it answered falls between the 3rd and the 4th scrape."""
    fake.add("up", pod, 1)
    good = requests - errors
    fake.add("mlflywheel_requests_total", pod, *[100] * 3, *[100 + good] * 4, code="200", protocol="v2")
    if errors:
        fake.add("mlflywheel_requests_total", pod, *[None] * 3, *[errors] * 4, code="500", protocol="v2")
    for bound, count in (("0.1", requests - slow), ("1.0", requests), ("+Inf", requests)):
        fake.add(
            "mlflywheel_request_seconds_bucket", pod, *[100] * 3, *[100 + count] * 4, le=bound, phase="total"
        )  # fmt: skip


def add_both(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950, errors=9, slow=50)
    add_pod(fake, CANARY, 50, errors=1, slow=2)


def read(fake: FakePrometheus, percent: float = 5.0, arms: dict[ArmName, str] = ARMS, **options: Any) -> Window:
    source = PrometheusSource(fake.address, namespace="ads", service="ads", lag_seconds=0.0, **options)
    return source.read_window(arms, END - 60, END, 1, percent)


def without(fake: FakePrometheus, name: str, **labels: str) -> None:
    fake.series = [
        one
        for one in fake.series
        if one[0]["__name__"] != name or any(one[0].get(key) != value for key, value in labels.items())
    ]


def test_both_arms_are_counted_exactly(fake: FakePrometheus) -> None:
    add_both(fake)
    window = read(fake)
    assert window.excluded_because == ""
    assert (window.stable.requests, window.stable.errors) == (950.0, 9.0)
    assert (window.candidate.requests, window.candidate.errors) == (50.0, 1.0)
    assert window.stable.latency is not None
    assert window.stable.latency.bounds_seconds == (0.1, 1.0)
    assert window.stable.latency.counts == (900.0, 50.0, 0.0)
    assert (window.start, window.end, window.step, window.traffic_percent) == (END - 60, END, 1, 5.0)


def test_consecutive_windows_count_every_request_once(fake: FakePrometheus) -> None:
    fake.add("up", STABLE, 1)
    fake.add("up", CANARY, 1)
    for pod in (STABLE, CANARY):
        fake.add("mlflywheel_requests_total", pod, 100, 103, 110, 117, 125, 131, 140, code="200")
    source = PrometheusSource(fake.address, namespace="ads", lag_seconds=0.0, queries={"latency": ""})
    windows = [source.read_window(ARMS, END - 70 + 23.3 * n, END - 70 + 23.3 * (n + 1), 1, 5) for n in range(3)]
    assert [window.gap for window in windows] == ["", "", ""]
    # From the sample 75 s before the end to the one 15 s before it.
    assert sum(window.stable.requests for window in windows) == 131 - 103


def test_the_service_of_another_name_is_not_counted(fake: FakePrometheus) -> None:
    add_both(fake)
    add_pod(fake, "ads-v2-predictor-predictor-6d4cf56db6-7xk2p", 1000)
    add_pod(fake, "more-ads-predictor-6d4cf56db6-7xk2p", 1000)
    assert read(fake).stable.requests == 950.0
    assert read(fake).candidate.requests == 50.0


def test_pods_of_a_long_name_are_found() -> None:
    # 58 characters of `NAME-HASH-` are kept in front of the random ones.
    name = "a-service-with-a-name-that-is-as-long-as-possible-predictor"[:52]
    pod = f"{name}-6d4cf56db6-"[:58] + "7xk2p"
    assert re.fullmatch(pods_of(name), pod)
    assert not re.fullmatch(pods_of(name), f"{name}-v2-predictor-6d4cf56db6-7xk2p")


def test_a_new_pod_counts_in_full(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("up", OTHER, *[None] * 5, 1, 1)
    fake.add("mlflywheel_requests_total", OTHER, *[None] * 5, 5, 30, code="200")
    for bound in ("0.1", "1.0", "+Inf"):
        fake.add("mlflywheel_request_seconds_bucket", OTHER, *[None] * 5, 5, 30, le=bound, phase="total")
    window = read(fake)
    assert (window.stable.requests, window.excluded_because) == (980.0, "")


def test_a_restart_is_marked_and_counts_what_is_known(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1)
    fake.add("mlflywheel_requests_total", CANARY, 90, 95, 100, 120, 5, 9, 9, code="200")
    window = read(fake, queries={"latency": ""})
    assert window.candidate == Arm(29.0, reset=True)
    assert window.excluded_because == "counters of candidate were reset"


def test_a_restart_that_only_shows_in_a_lost_series_is_marked(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1)
    fake.add("mlflywheel_requests_total", CANARY, 9, 10, 10, 12, 15, 40, 60, code="200")
    fake.add("mlflywheel_requests_total", CANARY, 1, 1, 1, 2, None, None, None, code="500")
    window = read(fake, queries={"latency": ""})
    assert window.candidate.reset
    assert window.candidate.errors == 1.0


def test_a_pod_that_is_gone_counts_until_its_last_scrape(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("up", OTHER, 1, 1, 1, 1, None, None, None)
    fake.add("mlflywheel_requests_total", OTHER, 10, 10, 10, 14, None, None, None, code="200")
    window = read(fake, stale_seconds=20)
    assert (window.stable.requests, window.excluded_because) == (954.0, "")


def test_the_names_of_the_presets_are_those_that_the_predictors_export() -> None:
    from mlflywheel.serving import metrics

    metrics.REQUESTS.labels("v2", "200").inc(0)
    metrics.SECONDS.labels("v2", "total")
    exported = generate_latest(REGISTRY).decode()
    ours = PRESETS["mlflywheel"]
    assert 'mlflywheel_requests_total{code="200",' in exported
    assert ours.requests.startswith("mlflywheel_requests_total{")
    assert re.search(r'mlflywheel_request_seconds_bucket\{le="0.001",phase="total"', exported)
    assert ours.latency.startswith("mlflywheel_request_seconds_bucket{")
    spec = importlib.util.find_spec("kserve")
    assert spec is not None
    assert spec.origin is not None
    # Read, since importing it parses the command line.
    theirs = Path(spec.origin).with_name("metrics.py").read_text(encoding="utf-8")
    assert '"request_predict_seconds"' in theirs
    assert PRESETS["kserve"].latency.startswith("request_predict_seconds_bucket{")


def test_an_arm_without_traffic_may_be_scaled_to_zero(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1, 1, 1, 1, None, None, None)
    fake.add("mlflywheel_requests_total", CANARY, 10, 10, 10, 10, None, None, None, code="200")
    window = read(fake, percent=0, stale_seconds=20)
    assert (window.gap, window.stable.requests, window.candidate.requests) == ("", 950.0, 0.0)


def test_an_arm_whose_last_pod_is_gone_is_a_gap(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1, 1, 1, 1, None, None, None)
    fake.add("mlflywheel_requests_total", CANARY, 10, 10, 10, 14, None, None, None, code="200")
    window = read(fake, stale_seconds=20)
    assert window.gap == "candidate ads-v2-predictor: the last scrape was 45 s before the window's end"
    assert window.candidate == Arm()


@pytest.mark.parametrize(
    ("up", "counts", "gap"),
    [
        ((1, 1, 1, 1, 1, 0, 0), (9, 9, 9, 9, 9, None, None), f"{CANARY}:8080 cannot be scraped"),
        ((0, 0, 0, 0, 1, 1, 1), (None, None, None, None, 900, 910, 920), f"{CANARY}:8080 could not be scraped before"),
        ((1, 1, 1, None, None, None, None), (9, 9, 9, None, None, None, None), "no scrape between the window's start"),
        ((None, None, None, 1, 1, 1, 1), (None, None, None, 900, 910, 920, 930), "nothing was scraped before"),
    ],
)
def test_an_arm_that_was_not_watched_all_the_time_is_a_gap(
    fake: FakePrometheus, up: tuple[float | None, ...], counts: tuple[float | None, ...], gap: str
) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, *up)
    fake.add("mlflywheel_requests_total", CANARY, *counts, code="200")
    window = read(fake, stale_seconds=20)
    assert window.gap.startswith(f"candidate ads-v2-predictor: {gap}")
    assert window.candidate == Arm()


def test_an_outage_around_the_start_is_a_gap(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    for name, values in (("up", (1, 1, 1)), ("mlflywheel_requests_total", (9, 500, 600))):
        fake.add(name, CANARY, *values, ages=(200, 30, 0), **({} if name == "up" else {"code": "200"}))
    assert "was not scraped for 140 s before the window" in read(fake).gap


def test_no_series_is_no_traffic_if_the_arm_is_scraped(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1)
    window = read(fake)
    assert window.gap == ""
    assert window.candidate.requests == 0.0
    assert window.candidate.latency is not None
    assert window.candidate.latency.counts == (0.0, 0.0, 0.0)


def test_no_series_and_no_scrape_is_a_gap_unless_there_is_no_traffic(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    assert read(fake).gap.startswith("candidate ads-v2-predictor: no series of mlflywheel_requests_total or up for it")
    assert read(fake, percent=0).gap == ""
    # All traffic on the candidate: now it is stable that may be gone.
    assert read(fake, percent=100).gap.startswith("candidate")


def test_the_other_arm_is_still_shown_beside_a_gap(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    window = read(fake)
    assert (window.stable.requests, window.candidate) == (950.0, Arm())


def test_values_that_are_no_numbers_are_a_gap(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1)
    fake.add("mlflywheel_requests_total", CANARY, 1, 1, 1, "NaN", 1, 1, 1, code="200")
    assert "a value that is not a number" in read(fake).gap


def test_histograms_that_differ_are_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    without(fake, "mlflywheel_request_seconds_bucket", pod=CANARY, le="1.0")
    window = read(fake)
    assert window.gap == "the histogram's bounds differ: 0.1, 1 s for stable, 0.1 s for candidate"
    assert (window.stable, window.candidate) == (Arm(), Arm())
    add_pod(fake, OTHER, 10)
    fake.series[-1][0]["le"] = "2.0"
    assert "the histogram's bounds differ between series (0.1, 1, inf and 0.1, 1, 2)" in read(fake).gap


def test_requests_without_their_latency_are_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    without(fake, "mlflywheel_request_seconds_bucket", pod=CANARY)
    assert (
        read(fake).gap == "candidate ads-v2-predictor: 50 requests, and no series of mlflywheel_request_seconds_bucket"
    )


def test_a_native_histogram_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)

    def answer(form: dict[str, str]) -> tuple[int, bytes] | None:
        if "bucket" not in form["query"]:
            return None
        result = [{"metric": {"__name__": "h"}, "histograms": [[END, {"count": "1"}]]}]
        return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()

    fake.answer = answer
    assert "native histogram" in read(fake).gap


def test_a_pod_that_is_scraped_twice_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("up", CANARY, 1, job="annotations")
    fake.add("mlflywheel_requests_total", CANARY, *[100] * 3, *[149] * 4, job="annotations", code="200", protocol="v2")
    assert f"{CANARY} is scraped twice (ads {CANARY}:8080 and annotations {CANARY}:8080)" in read(fake).gap


def test_what_else_is_scraped_of_a_pod_does_not_matter(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("up", CANARY, 0, job="sidecar", instance=f"{CANARY}:9000")
    assert read(fake).gap == ""


def test_a_label_for_errors_that_the_requests_lack_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    window = read(fake, queries={"errors": 'mlflywheel_requests_total{pod=~"$pods",namespace="ads",status=~"5.."}'})
    assert window.gap.startswith("stable ads-predictor: the requests have no label status, by which errors are told")


def test_errors_of_a_metric_that_nobody_exports_are_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    assert (
        "no series of failures_total for either arm"
        in read(fake, queries={"errors": 'failures_total{pod=~"$pods"}'}).gap
    )


def test_more_errors_than_requests_are_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("failures_total", CANARY, *[0] * 3, *[51] * 4)
    fake.add("failures_total", STABLE, 0)
    window = read(fake, queries={"errors": 'failures_total{pod=~"$pods"}'})
    assert window.gap == "candidate: 51 errors of 50 requests"
    assert window.candidate == Arm()


def test_counters_of_the_policy_are_counted(fake: FakePrometheus) -> None:
    add_both(fake)
    for pod, events in ((STABLE, 30), (CANARY, 4)):
        fake.add("mlflywheel_fallbacks_total", pod, *[7] * 3, *[7 + events] * 4)
        fake.add("mlflywheel_request_rows_total", pod, *[0] * 3, *[10 * events] * 4, protocol="v2")
    counters = {
        "fallbacks": {
            "events": 'mlflywheel_fallbacks_total{namespace="$namespace",pod=~"$pods"}',
            "total": 'mlflywheel_request_rows_total{namespace="$namespace",pod=~"$pods"}',
        }
    }
    window = read(fake, counters=counters)
    assert window.gap == ""
    assert window.stable.counters == {"fallbacks": Counter(30.0, 300.0)}
    assert window.candidate.counters == {"fallbacks": Counter(4.0, 40.0)}


def test_a_series_of_a_process_before_the_last_restart_begins_again_at_0(fake: FakePrometheus) -> None:
    add_both(fake)
    # Errors of the process before; the new one has its first only now.
    fake.add("mlflywheel_requests_total", CANARY, 40, None, None, None, 45, 46, 46, code="503", protocol="v2")
    assert read(fake).candidate.errors == 1.0 + 46.0


def test_a_restart_with_no_sample_after_it_is_marked(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("mlflywheel_requests_total", CANARY, 4, 4, 4, None, None, None, None, code="503", protocol="v2")
    window = read(fake)
    assert (window.candidate.errors, window.candidate.reset) == (1.0, True)


def test_a_pod_that_replaces_one_that_was_gone_is_a_gap(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    for name, labels in (("up", {}), ("mlflywheel_requests_total", {"code": "200"})):
        fake.add(name, CANARY, 1, 1, ages=(110, 95), **labels)
        fake.add(name, CANARY.replace("bcdfg", "hjklm"), 1, 1, ages=(15, 0), **labels)
    window = read(fake, stale_seconds=20)
    assert window.gap == "candidate ads-v2-predictor: the last scrape was 35 s before the window"


def test_the_scrape_of_something_else_does_not_stand_for_the_counters(fake: FakePrometheus) -> None:
    add_pod(fake, STABLE, 950)
    fake.add("up", CANARY, 1, 1, 1, None, None, None, None)
    fake.add("mlflywheel_requests_total", CANARY, 9, 9, 9, None, None, None, None, code="200")
    fake.add("up", CANARY, 1, job="sidecar", instance=f"{CANARY}:9000")
    assert "no scrape between the window's start and its end" in read(fake).gap


def test_bounds_of_pods_that_are_gone_do_not_matter(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.add("up", OTHER, 1, 1, None, None, None, None, None)
    for bound in ("0.3", "+Inf"):
        fake.add("mlflywheel_request_seconds_bucket", OTHER, 7, 7, *[None] * 5, le=bound, phase="total")
    assert read(fake).gap == ""


def test_more_events_than_their_total_are_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    for pod in (STABLE, CANARY):
        fake.add("events_total", pod, *[0] * 3, *[3] * 4)
        fake.add("all_total", pod, *[0] * 3, *[2] * 4)
    counters = {"odd": {"events": 'events_total{pod=~"$pods"}', "total": 'all_total{pod=~"$pods"}'}}
    window = read(fake, counters=counters)
    assert window.gap == "stable: odd has 3 events of 2; candidate: odd has 3 events of 2"


# What each system's documentation and source say that its series look like.
_SERIES: dict[str, tuple[str, dict[str, str], dict[str, str], str]] = {
    "knative": (
        "http_server_request_duration_seconds_count",
        {"http_response_status_code": "200"},
        {"http_response_status_code": "502"},
        "http_server_request_duration_seconds_bucket",
    ),
    "knative-opencensus": (
        "revision_request_count",
        {"response_code_class": "2xx", "response_code": "200", "namespace_name": "ads"},
        {"response_code_class": "5xx", "response_code": "502", "namespace_name": "ads"},
        "revision_request_latencies_bucket",
    ),
    "istio": (
        "istio_requests_total",
        {"response_code": "200", "reporter": "destination", "destination_workload_namespace": "ads"},
        {"response_code": "503", "reporter": "destination", "destination_workload_namespace": "ads"},
        "istio_request_duration_milliseconds_bucket",
    ),
    "envoy-gateway": (
        "envoy_cluster_upstream_rq_xx",
        {"envoy_response_code_class": "2"},
        {"envoy_response_code_class": "5"},
        "envoy_cluster_upstream_rq_time_bucket",
    ),
}


@pytest.mark.parametrize("preset", _SERIES)
def test_presets_find_the_series_of_their_system(fake: FakePrometheus, preset: str) -> None:
    requests, good, bad, buckets = _SERIES[preset]
    arms: dict[ArmName, str] = {"stable": "ads-predictor-00001", "candidate": "ads-predictor-00002"}
    for arm, count in (("ads-predictor-00001", 40.0), ("ads-predictor-00002", 4.0)):
        pod = f"{arm}-deployment-7d9c5b8f4-x2kqz"
        own = {
            "knative": {},
            "knative-opencensus": {"revision_name": arm, "pod_name": pod},
            "istio": {"destination_workload": f"{arm}-deployment"},
            "envoy-gateway": {"envoy_cluster_name": f"service/ads/{arm}/80", "instance": "proxy"},
        }[preset]
        where = "envoy-ads-gw-1234" if preset == "envoy-gateway" else pod
        place = {"namespace": "envoy-gateway-system"} if preset == "envoy-gateway" else {}
        if preset != "envoy-gateway" or arm.endswith("1"):
            fake.add("up", where, 1, **place, **({"instance": "proxy"} if place else {}))
        fake.add(requests, where, *[1] * 3, *[1 + count] * 4, **place, **own, **good)
        fake.add(requests, where, *[1] * 3, *[2] * 4, **place, **own, **bad)
        unit = PRESETS[preset].latency_seconds
        rest = {name: value for name, value in good.items() if "code" not in name}
        for bound in (0.05 / unit, 1 / unit, "+Inf"):
            text = bound if isinstance(bound, str) else f"{bound:g}"
            fake.add(buckets, where, *[1] * 3, *[2 + count] * 4, le=text, **place, **own, **rest)
    window = read(fake, preset=preset, arms=arms)
    assert window.gap == ""
    assert (window.stable.requests, window.stable.errors) == (41.0, 1.0)
    assert (window.candidate.requests, window.candidate.errors) == (5.0, 1.0)
    assert window.candidate.latency is not None
    assert window.candidate.latency.bounds_seconds == (0.05, 1.0)
    assert window.candidate.latency.counts == (5.0, 0.0, 0.0)


def test_kserve_needs_its_errors_from_elsewhere(fake: FakePrometheus) -> None:
    with pytest.raises(UsageError, match="its metrics do not count errors"):
        read(fake, preset="kserve")
    for pod, count in ((STABLE, 40.0), (CANARY, 4.0)):
        fake.add("up", pod, 1)
        fake.add("request_predict_seconds_count", pod, *[0] * 3, *[count] * 4, model_name="ads")
        fake.add("failures_total", pod, *[0] * 3, *[1] * 4)
        for bound in ("0.5", "+Inf"):
            fake.add("request_predict_seconds_bucket", pod, *[0] * 3, *[count] * 4, le=bound, model_name="ads")
    window = read(fake, preset="kserve", queries={"errors": 'failures_total{pod=~"$pods"}'})
    assert (window.gap, window.candidate.requests, window.candidate.errors) == ("", 4.0, 1.0)


@pytest.mark.parametrize(
    ("status", "content", "gap"),
    [
        (500, b"oops", "HTTP 500 and no JSON"),
        (
            503,
            b'{"status": "error", "errorType": "timeout", "error": "query timed out"}',
            "HTTP 503, timeout: query timed",
        ),
        (200, b'{"status": "error", "errorType": "execution", "error": "too many"}', "HTTP 200, execution: too many"),
        (302, b"", "HTTP 302; a bearer token that may query is needed"),
        (200, b"<html>", "HTTP 200 and no JSON"),
        (200, b'{"status": "success"}', "an answer without data"),
        (200, b'{"status": "success", "data": {"resultType": "vector", "result": []}}', "an answer of type 'vector'"),
        (200, b'{"status": "success", "data": {"resultType": "matrix", "result": [{}]}}', "samples in another form"),
    ],
)
def test_an_answer_that_is_none_is_a_gap(fake: FakePrometheus, status: int, content: bytes, gap: str) -> None:
    add_both(fake)
    fake.answer = lambda form: (status, content) if "errors" in form["query"] or "code=~" in form["query"] else None
    window = read(fake)
    assert f"Prometheus {fake.address}: {gap}" in window.gap
    assert (window.stable, window.candidate) == (Arm(), Arm())


def test_one_failed_call_is_tried_again(fake: FakePrometheus) -> None:
    add_both(fake)
    answers = [(503, b"busy")]
    fake.answer = lambda form: answers.pop() if answers else None
    assert read(fake).gap == ""


def test_a_warning_of_the_server_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    fake.warnings = ["store 2 did not answer"]
    assert "the server warns: store 2 did not answer" in read(fake).gap


def test_a_server_that_hangs_is_a_gap_and_asked_again_only_later(fake: FakePrometheus) -> None:
    add_both(fake)

    def hang(form: dict[str, str]) -> None:
        time.sleep(0.5)

    fake.answer = hang
    source = PrometheusSource(fake.address, namespace="ads", lag_seconds=0, timeout_seconds=0.1)
    first = source.read_window(ARMS, END - 60, END, 1, 5)
    assert "no answer (ReadTimeoutError" in first.gap
    asked = len(fake.requests)
    assert source.read_window(ARMS, END - 60, END, 1, 5).gap == first.gap
    assert len(fake.requests) == asked == 2


@pytest.mark.parametrize(("ahead", "gap"), [(45.0, "its clock is 45 s ahead of ours"), (-45.0, "is 45 s behind ours")])
def test_a_clock_that_is_not_ours_is_a_gap(fake: FakePrometheus, ahead: float, gap: str) -> None:
    add_both(fake)
    fake.clock_ahead_seconds = ahead
    assert gap in read(fake).gap
    fake.clock_ahead_seconds = 25.0
    assert read(fake).gap == ""


def test_a_window_that_has_not_ended_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    source = PrometheusSource(fake.address, namespace="ads", lag_seconds=0)
    now = time.time()
    assert "ahead of the server's clock" in source.read_window(ARMS, now - 30, now + 10, 1, 5).gap


def test_windows_are_read_with_their_lag(fake: FakePrometheus) -> None:
    add_both(fake)
    source = PrometheusSource(fake.address, namespace="ads", lag_seconds=5)
    assert source.read_window(ARMS, END - 55, END + 5, 1, 5).candidate.requests == 50.0
    assert {form["time"] for form, _ in fake.requests if "time" in form} == {f"{END:.3f}"}


def test_the_token_is_read_for_every_call(fake: FakePrometheus, tmp_path: Path) -> None:
    add_both(fake)
    token = tmp_path / "token"
    token.write_text("first\n")
    source = PrometheusSource(fake.address, namespace="ads", bearer_token_file=token, lag_seconds=0)
    source.check()
    token.write_text("second\n")
    assert source.read_window(ARMS, END - 60, END, 1, 5).gap == ""
    sent = [headers["Authorization"] for _, headers in fake.requests]
    assert (sent[0], sent[-1]) == ("Bearer first", "Bearer second")
    token.unlink()
    assert "its token" in source.read_window(ARMS, END - 60, END, 1, 5).gap


def test_an_arm_without_a_name_is_a_gap(fake: FakePrometheus) -> None:
    add_both(fake)
    assert "no name" in read(fake, arms={"stable": "ads-predictor", "candidate": ""}).gap
    assert "no name" in read(fake, arms={"stable": "ads-predictor", "candidate": '"} or up{x="'}).gap


def test_a_server_that_is_not_there_is_told_before_the_rollout(fake: FakePrometheus) -> None:
    assert PrometheusSource(fake.address).check() == f"Prometheus {fake.address}, metrics of mlflywheel"
    fake.clock_ahead_seconds = 60
    with pytest.raises(RolloutError, match=r"its clock is 60 s ahead of ours; .*Fix: check the address"):
        PrometheusSource(fake.address).check()
    gone = PrometheusSource("http://127.0.0.1:9", timeout_seconds=1)
    with pytest.raises(RolloutError, match=r"Prometheus http://127.0.0.1:9: no answer \(NewConnectionError"):
        gone.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "prometheus:9090"}, "not the address of a server"),
        ({"address": "http://me:secret@prometheus:9090"}, "it holds credentials"),
        ({"preset": "nginx"}, "one of mlflywheel, kserve"),
        ({"namespace": "Ads"}, "namespace: 'Ads'"),
        ({"queries": {"requests": "sum(rate(requests_total[5m]))"}}, "without functions and ranges"),
        ({"queries": {"requests": "requests_total[5m]"}}, "without functions and ranges"),
        ({"queries": {"requests": ""}}, "without functions and ranges"),
        ({"queries": {"errors": 'requests_total{pod="$pod"}'}}, r"the placeholder \$pod"),
        ({"queries": {"errors": ""}}, "errors must be counted"),
        ({"queries": {"error": "x"}}, "queries, error: unknown"),
        ({"queries": {"latency_seconds": 0}}, "seconds in one unit of le"),
        ({"counters": {"fallbacks": {"events": "x"}}}, "events and total are needed"),
        ({"stale_seconds": 0}, "stale_seconds"),
        ({"ca_file": "/no/such/file"}, "certificates are needed"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrometheusSource(**{"address": "http://127.0.0.1:9", **options})
