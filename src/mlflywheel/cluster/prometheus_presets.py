r"""Where Prometheus has the counts of a canary: the metrics of our predictor, of kserve, and of what routes to them.

A query is a vector selector: a metric's name with matchers, without functions. The source takes differences of the
raw counters by itself, since `increase()` extrapolates and its result is no count. `$arm`, `$namespace`, `$service`
and `$pods` are filled in: the name of the arm's Deployment, Service or revision, the service's namespace and name, and
a regular expression for the names of the arm's pods.

Where a preset counts matters:

- `mlflywheel` and `kserve` are counted in the pods. What no pod answered, such as a 503 of the gateway, is not seen.
- `knative` and `knative-opencensus` are counted by the queue-proxy in front of the pod's server, so that a crashed
  server's requests count as errors.
- `istio` is counted by the sidecar of the arm's pods.
- `envoy-gateway` is counted by the gateway, and has all requests that came from outside, retries among them. It needs
  one cluster for each backend: Envoy Gateway 1.9 with `mergeBackends: {}` in its EnvoyProxy. Without it there is one
  cluster for each rule of a route, which both arms share, and nothing that tells them apart.

kserve's ModelServer counts no errors, and with several workers each `/metrics` is one worker's: give `errors` from
elsewhere, and serve with one worker.

Sources: `mlflywheel.serving.metrics`; `kserve/metrics.py` of kserve 0.21; Knative Serving 1.23
(`pkg/queue/sharedmain/otel.go`, `handlers.go`) and its documentation up to 1.18; Envoy Gateway 1.9
(`irBackendClusterName` in `internal/gatewayapi/helpers.go`) and Envoy's cluster statistics; Istio's Standard Metrics.
The names of all but `mlflywheel` and `kserve` were read there, and not tried on a cluster.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Of Kubernetes' `rand.SafeEncodeString` and `rand.String`: without vowels, so no word of a longer name is taken for it.
_HASH = "[bcdfghjklmnpqrstvwxz2456789]"
# The API server cuts the part of a generated name before its 5 random characters.
_GENERATED_BASE_CHARACTERS = 58
_HASH_CHARACTERS = 10


@dataclass(frozen=True)
class Preset:
    """Names of metrics.

    Args:
        requests: All requests that were answered.
        errors: Those answered with an error of the server's; empty if it is not known.
        latency: The buckets of a classic histogram, with `le`.
        up: Whether what counts is scraped, by `job` and `instance`.
        latency_seconds: Seconds in one unit of `le`.
        hint: What to look at if there is no series.
    """

    requests: str
    errors: str
    latency: str
    up: str
    latency_seconds: float = 1.0
    hint: str = ""


_PODS = 'namespace="$namespace",pod=~"$pods"'
_SCRAPED = f"up{{{_PODS}}}"

PRESETS: Mapping[str, Preset] = {
    "mlflywheel": Preset(
        requests=f"mlflywheel_requests_total{{{_PODS}}}",
        errors=f"mlflywheel_requests_total{{{_PODS},"
        'code=~"5..|UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"}',
        latency=f'mlflywheel_request_seconds_bucket{{{_PODS},phase="total"}}',
        up=_SCRAPED,
        hint="the PodMonitor of manifests/components/monitoring brings them",
    ),
    "kserve": Preset(
        requests=f"request_predict_seconds_count{{{_PODS}}}",
        errors="",
        latency=f"request_predict_seconds_bucket{{{_PODS}}}",
        up=_SCRAPED,
        hint="serving.kserve.io/enable-prometheus-scraping adds the annotations for it",
    ),
    "knative": Preset(
        requests=f"http_server_request_duration_seconds_count{{{_PODS}}}",
        errors=f'http_server_request_duration_seconds_count{{{_PODS},http_response_status_code=~"5.."}}',
        latency=f"http_server_request_duration_seconds_bucket{{{_PODS}}}",
        up=_SCRAPED,
        hint="Knative has them since 1.19 at the queue-proxy's port 9091; before that, use knative-opencensus",
    ),
    "knative-opencensus": Preset(
        requests='revision_request_count{namespace_name="$namespace",revision_name="$arm"}',
        errors='revision_request_count{namespace_name="$namespace",revision_name="$arm",response_code_class="5xx"}',
        latency='revision_request_latencies_bucket{namespace_name="$namespace",revision_name="$arm"}',
        up=_SCRAPED,
        latency_seconds=0.001,
        hint="Knative had them until 1.18 at the queue-proxy's port 9091; since then, use knative",
    ),
    "istio": Preset(
        requests='istio_requests_total{reporter="destination",destination_workload_namespace="$namespace",'
        'destination_workload=~"$arm(-deployment)?"}',
        errors='istio_requests_total{reporter="destination",destination_workload_namespace="$namespace",'
        'destination_workload=~"$arm(-deployment)?",response_code=~"5.."}',
        latency='istio_request_duration_milliseconds_bucket{reporter="destination",'
        'destination_workload_namespace="$namespace",destination_workload=~"$arm(-deployment)?"}',
        up=_SCRAPED,
        latency_seconds=0.001,
        hint="the arm's pods need Istio's sidecar",
    ),
    "envoy-gateway": Preset(
        requests='envoy_cluster_upstream_rq_xx{envoy_cluster_name=~"service/$namespace/$arm/[0-9]+(/.+)?"}',
        errors='envoy_cluster_upstream_rq_xx{envoy_cluster_name=~"service/$namespace/$arm/[0-9]+(/.+)?",'
        'envoy_response_code_class="5"}',
        latency='envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=~"service/$namespace/$arm/[0-9]+(/.+)?"}',
        up='up{namespace="envoy-gateway-system",pod=~"envoy-.+"}',
        latency_seconds=0.001,
        hint="each arm has a cluster of its own only with mergeBackends in Envoy Gateway's EnvoyProxy",
    ),
}


def pods_of(arm: str) -> str:
    """Return a regular expression, anchored as PromQL does it, for the names of a Deployment's or revision's pods.

    >>> bool(re.fullmatch(pods_of("ads-predictor"), "ads-predictor-6d4cf56db6-7xk2p"))
    True
    >>> bool(re.fullmatch(pods_of("ads-predictor"), "ads-predictor-v2-predictor-6d4cf56db6-7xk2p"))
    False
    >>> bool(re.fullmatch(pods_of("ads-predictor-00002"), "ads-predictor-00002-deployment-7d9c5b8f4-x2kqz"))
    True
    """
    return f"{_generated(arm)}|{_generated(f'{arm}-deployment')}"


def fill(query: str, values: Mapping[str, str]) -> str:
    """Put values in the places of a query.

    >>> fill('up{namespace="$namespace"}', {"namespace": "ads"})
    'up{namespace="ads"}'
    """
    return re.sub(r"\$([a-z]+)", lambda found: values[found[1]], query)


def _generated(deployment: str) -> str:
    if len(f"{deployment}-") + _HASH_CHARACTERS + 1 <= _GENERATED_BASE_CHARACTERS:
        return f"{deployment}-{_HASH}{{1,{_HASH_CHARACTERS}}}-{_HASH}{{5}}"
    cut = f"{deployment}-"[:_GENERATED_BASE_CHARACTERS]
    return f"{cut}[-{_HASH[1:-1]}]{{5,{_HASH_CHARACTERS + 7}}}"
