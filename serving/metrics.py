"""Measurements of the predictor for Prometheus, right with one process and with several.

- `mlflywheel_requests_total` (`protocol`, `code`): requests by HTTP status or gRPC code.
- `mlflywheel_request_rows_total` (`protocol`): instances answered.
- `mlflywheel_request_seconds` (`protocol`, `phase`), a histogram: duration by phase, see below.
- `mlflywheel_unknown_share`, a histogram: share of an instance's input that the model does not know.
- `mlflywheel_fallbacks_total`: instances answered with a note.
- `mlflywheel_requests_in_flight`, a gauge: requests computed or waiting now.
- `mlflywheel_model_info` (`model`, `version`, `hash`, `device`), a gauge: 1 once the model is ready.

Phases: `queue` (waiting for a thread), `decode` (parse and check), `predict`, `encode`, and `total`, which also has the
transfer of the body. Kept when they were reached; a refused request has a `total` alone or with `decode`.
Buckets of seconds: 1 ms to 10 s. Buckets of shares: 0 to 1 in steps of 0.1, with 0 and 0.05 apart.

With several workers each writes its numbers to files in `PROMETHEUS_MULTIPROC_DIR`, which the parent makes, and any of
them answers `/metrics` with the sum over all. kserve's own `request_*_seconds` are served beside ours.

prometheus_client reads `PROMETHEUS_MULTIPROC_DIR` when it is imported: import this module after it is set.
"""

import os
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from mlflywheel.serving.predictor import Exchange, Predictor

# The time of a series' first value is of no use here, and doubles the output.
disable_created_metrics()  # type: ignore[no-untyped-call]

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHARE_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

REQUESTS = Counter("mlflywheel_requests", "Requests by HTTP status or gRPC code.", ["protocol", "code"])
ROWS = Counter("mlflywheel_request_rows", "Instances answered.", ["protocol"])
SECONDS = Histogram(
    "mlflywheel_request_seconds", "Duration of requests by phase.", ["protocol", "phase"], buckets=SECONDS_BUCKETS
)
UNKNOWN = Histogram(
    "mlflywheel_unknown_share", "Share of an instance's input that the model does not know.", buckets=SHARE_BUCKETS
)
FALLBACKS = Counter("mlflywheel_fallbacks", "Instances answered with a note: the answer is empty or general.")
IN_FLIGHT = Gauge("mlflywheel_requests_in_flight", "Requests computed or waiting now.", multiprocess_mode="livesum")
# An Info metric does not work with several processes.
MODEL = Gauge(
    "mlflywheel_model_info",
    "The model that is served.",
    ["model", "version", "hash", "device"],
    multiprocess_mode="livemax",
)


def observe(exchange: "Exchange", code: str, total_seconds: float) -> None:
    """Count one request.

    Args:
        exchange: The request.
        code: HTTP status or gRPC code name.
        total_seconds: From the first byte to the answer.
    """
    REQUESTS.labels(exchange.protocol, code).inc()
    for phase, seconds in exchange.seconds.items():
        SECONDS.labels(exchange.protocol, phase).observe(seconds)
    SECONDS.labels(exchange.protocol, "total").observe(total_seconds)
    if code in ("200", "OK"):
        ROWS.labels(exchange.protocol).inc(exchange.rows)
        FALLBACKS.inc(exchange.notes)
        for share in exchange.unknown_shares:
            UNKNOWN.observe(share)


def publish(predictor: "Predictor") -> None:
    """Say which model is served."""
    MODEL.labels(predictor.name, predictor.version, predictor.model_hash, predictor.device).set(1)


def render() -> tuple[bytes, str]:
    """Return the text of `/metrics` and its content type."""
    if os.environ.get(MULTIPROCESS_VARIABLE):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
