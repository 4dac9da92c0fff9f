"""Evidence from Prometheus, over its HTTP API; Thanos, Mimir and VictoriaMetrics speak it too.

For each arm and kind of count one instant query asks for the raw samples around the window (`selector[range]`), and
`mlflywheel.cluster.prometheus_counts` takes their differences: whole numbers, of which consecutive windows lose none.
Whatever is missing makes a gap: no answer, an error or a warning of the server, no scrape, an old one, values that are
no numbers, histograms with different bounds, a server whose clock is not ours.

That a counter has no series means no requests only if the arm was scraped, as `up` says it: a counter with labels
appears at its first request.

Source: Prometheus' HTTP API, `/api/v1/query`, with its JSON.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from mlflywheel.cluster.prometheus_counts import (
    MissingError,
    Scrapes,
    Series,
    check_scraped_once,
    measure_histogram,
    measure_rise,
)
from mlflywheel.cluster.prometheus_presets import PRESETS, fill, pods_of
from mlflywheel.decisions.canary.evidence import ARMS, Arm, ArmName, Counter, Histogram, Window
from mlflywheel.errors import MissingExtraError, RolloutError, UsageError
from mlflywheel.rollouts.interfaces import Source

try:
    import urllib3
except ImportError as error:
    raise MissingExtraError.of("urllib3", "cluster", "evidence from Prometheus") from error

# How far back a series is looked for: whether a pod is new, or was not scraped for a while.
_LOOKBACK_SECONDS = 300.0
_CLOCK_TOLERANCE_SECONDS = 30.0
# After a failure, so that a tick with many windows does not wait for each of them.
_PAUSE_SECONDS = 5.0
_MOST_BYTES = 64 * 2**20
_GAP_CHARACTERS = 300
_KINDS = ("requests", "errors", "latency", "up")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,251}[a-z0-9])?")
_PLACEHOLDER = re.compile(r"\$([a-z]+)")
_SELECTOR = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*(\{[^{}]*\})?\s*")
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_MATCHER = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")


class PrometheusSource(Source):
    """Reads windows from a Prometheus server.

    Args:
        address: The server, such as `http://prometheus.monitoring:9090`; a path in front of `/api/v1` is kept.
        preset: Whose metrics: `mlflywheel`, `kserve`, `knative` (since 1.19), `knative-opencensus` (until 1.18),
            `istio` or `envoy-gateway`. See `mlflywheel.cluster.prometheus_presets`.
        namespace: Of the service.
        service: The InferenceService's name.
        queries: Other queries than the preset's, by `requests`, `errors`, `latency` and `up`. Each is a vector
            selector of counters, without functions, in which `$arm`, `$namespace`, `$service` and `$pods` are filled
            in. An empty `latency` stands for none. `latency_seconds` may say how many seconds one unit of `le` has.
        counters: Queries for the policy's metrics of kind `counter`, by their names:
            `{"fallbacks": {"events": SELECTOR, "total": SELECTOR}}`.
        bearer_token_file: File with a token for the server; read again for each call, since tokens rotate.
        ca_file: Certificates to trust, PEM; else the system's.
        stale_seconds: How old the newest sample at a window's start and end may be; two intervals of scrapes or more.
        lag_seconds: How long a scrape may take until its samples can be read. Windows are read so much earlier.
        timeout_seconds: Limit for one call to connect, and again for it to answer. Each call is tried twice.

    Raises:
        UsageError: An argument cannot be meant. No call is made here: a server that is down at the wrong moment must
            not end a rollout. `check` makes them.
    """

    def __init__(
        self,
        address: str,
        preset: str = "mlflywheel",
        namespace: str = "default",
        service: str = "",
        queries: Mapping[str, str | float] | None = None,
        *,
        counters: Mapping[str, Mapping[str, str]] | None = None,
        bearer_token_file: Path | str | None = None,
        ca_file: Path | str | None = None,
        stale_seconds: float = 90.0,
        lag_seconds: float = 5.0,
        timeout_seconds: float = 10.0,
    ) -> None:
        if preset not in PRESETS:
            raise UsageError(
                f"preset {preset!r}", "unknown", f"one of {', '.join(PRESETS)} is needed", "choose one of them"
            )
        self._queries = _Queries.read(preset, queries or {}, counters or {})
        self._preset = preset
        self._values = {
            "namespace": _check_name("namespace", namespace),
            "service": _check_name("service", service) if service else "",
        }
        self._stale_seconds = _check_seconds("stale_seconds", stale_seconds, 0.001)
        self._lag_seconds = _check_seconds("lag_seconds", lag_seconds, 0.0)
        self._api = _Api(address, bearer_token_file, ca_file, _check_seconds("timeout_seconds", timeout_seconds, 0.001))
        self._failed_at = -math.inf
        self._failure = ""

    def check(self) -> str:
        """Check that the server answers, has our time and accepts every query; return what it is in words.

        Raises:
            RolloutError: It does not.
        """
        where = f"Prometheus {self._api.address}"
        try:
            now = self._read_clock()
        except MissingError as error:
            raise RolloutError(
                where,
                str(error),
                "a server that answers is needed for evidence",
                "check the address, the token and the network policy; from outside the cluster: "
                "kubectl port-forward --namespace monitoring service/prometheus-operated 9090",
            ) from None
        for kind, query in self._queries.all().items():
            try:
                self._api.query(f"{self._fill(query, self._values['service'] or 'none')}[1m]", now)
            except MissingError as error:
                raise RolloutError(
                    f"{where}, query for {kind}", str(error), "the server must accept it", f"correct {query}"
                ) from None
        return f"{where}, metrics of {self._preset}"

    def read_window(
        self, arms: Mapping[ArmName, str], start: float, end: float, step: int, traffic_percent: float
    ) -> Window:
        """See `Source.read_window`."""
        empty = Window(start, end, step, traffic_percent, Arm(), Arm())
        if time.monotonic() - self._failed_at < _PAUSE_SECONDS:
            return replace(empty, gap=self._failure)
        try:
            now = self._read_clock()
            ahead = end - self._lag_seconds - now
            if ahead > 0:
                raise MissingError(f"the window's end is {ahead:.1f} s ahead of the server's clock")
        except MissingError as error:
            return replace(empty, gap=self._remember(f"Prometheus {self._api.address}: {error}"))
        counts: dict[str, _Counts] = {}
        gaps = []
        for name in ARMS:
            percent = traffic_percent if name == "candidate" else 100 - traffic_percent
            try:
                counts[name] = self._read_arm(arms.get(name, ""), start, end, percent)
            except _NoAnswerError as error:
                gaps.append(self._remember(f"Prometheus {self._api.address}: {error}"))
                break
            except MissingError as error:
                gaps.append(f"{name} {arms.get(name, '')}: {error}")
        gaps.extend([] if gaps else _find_contradictions(counts["stable"], counts["candidate"], self._queries))
        read = {name: _to_arm(counts.get(name), counts) for name in ARMS}
        window = replace(empty, stable=read["stable"], candidate=read["candidate"])
        if not gaps:
            return window
        text = "; ".join(gaps)
        # What contradicts itself is not shown as if it were counted.
        return replace(
            empty if len(counts) == len(ARMS) else window,
            gap=text if len(text) <= _GAP_CHARACTERS else f"{text[:_GAP_CHARACTERS]}…",
        )

    def _read_arm(self, arm: str, start: float, end: float, percent: float) -> "_Counts":
        if not _NAME.fullmatch(arm):
            raise MissingError("no name of a Deployment, Service or revision is known yet")
        # In milliseconds, as Prometheus has them: else rounding could count a sample in two windows, or in none.
        start, end = round(start - self._lag_seconds, 3), round(end - self._lag_seconds, 3)
        span = math.ceil((end - start + max(_LOOKBACK_SECONDS, 2 * self._stale_seconds)) * 1000)
        found = {
            kind: self._api.query(f"{self._fill(query, arm)}[{span}ms]", end)
            for kind, query in self._queries.all().items()
        }
        up = found.pop("up", [])
        scrapes = Scrapes([one for series in found.values() for one in series], up, start, end, self._stale_seconds)
        if not scrapes.is_any:
            if percent <= 0:
                return _Counts(0.0, 0.0, None, {}, False, frozenset())
            hint = PRESETS[self._preset].hint
            names = " or ".join(_metric_of(query) for query in (self._queries.requests, self._queries.up) if query)
            raise MissingError(f"no series of {names} for it" + (f" ({hint})" if hint else ""))
        try:
            scrapes.check()
        except MissingError:
            if percent > 0:
                raise
            # It may be scaled to 0, and without traffic there is nothing to miss.
            return _Counts(0.0, 0.0, None, {}, False, frozenset())
        check_scraped_once(found["requests"], scrapes)
        rises = {kind: measure_rise(series, scrapes) for kind, series in found.items() if kind != "latency"}
        reset = any(rise.reset for rise in rises.values())
        requests = rises["requests"].value
        histogram: Histogram | None = None
        if found.get("latency"):
            histogram, began_again = measure_histogram(found["latency"], scrapes, self._queries.latency_seconds)
            reset = reset or began_again
        elif "latency" in found and requests > 0:
            raise MissingError(f"{requests:g} requests, and no series of {_metric_of(self._queries.latency)}")
        for labels in (one.labels for one in found["requests"]):
            lacking = [name for name in self._queries.error_labels if name not in labels]
            if lacking:
                raise MissingError(f"the requests have no label {lacking[0]}, by which errors are told")
        counters = {
            name: (rises[f"{name}.events"].value, rises[f"{name}.total"].value) for name in self._queries.counters
        }
        return _Counts(
            requests,
            rises["errors"].value,
            histogram,
            counters,
            reset,
            frozenset(kind for kind, series in found.items() if series),
        )

    def _fill(self, query: str, arm: str) -> str:
        # A backslash would have to be doubled inside PromQL's quotes; the names and their patterns have none.
        return fill(query, {**self._values, "arm": arm, "pods": pods_of(arm)})

    def _read_clock(self) -> float:
        now = self._api.read_time()
        apart = now - time.time()
        if abs(apart) > _CLOCK_TOLERANCE_SECONDS:
            side = "ahead of" if apart > 0 else "behind"
            raise MissingError(f"its clock is {abs(apart):.0f} s {side} ours")
        return now

    def _remember(self, text: str) -> str:
        self._failed_at, self._failure = time.monotonic(), text[:_GAP_CHARACTERS]
        return self._failure


class _NoAnswerError(MissingError):
    """The server did not answer, or refused."""


@dataclass(frozen=True)
class _Counts:
    requests: float
    errors: float
    latency: Histogram | None
    counters: Mapping[str, tuple[float, float]]
    reset: bool
    seen: frozenset[str]


@dataclass(frozen=True)
class _Queries:
    requests: str
    errors: str
    latency: str
    up: str
    latency_seconds: float
    counters: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(
        cls, preset: str, given: Mapping[str, str | float], counters: Mapping[str, Mapping[str, str]]
    ) -> "_Queries":
        base = PRESETS[preset]
        for kind in given:
            if kind not in (*_KINDS, "latency_seconds"):
                raise UsageError(
                    f"queries, {kind}", "unknown", f"one of {', '.join(_KINDS)}, latency_seconds is needed", "remove it"
                )
        seconds = given.get("latency_seconds", base.latency_seconds)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise UsageError(
                "queries, latency_seconds",
                repr(seconds),
                "the seconds in one unit of le are needed",
                "write 0.001 for milliseconds",
            )
        texts = {kind: str(given.get(kind, getattr(base, kind))) for kind in _KINDS}
        if not texts["errors"]:
            raise UsageError(
                f"preset {preset}, queries, errors",
                "nothing: its metrics do not count errors",
                "errors must be counted, or a candidate that only fails would pass",
                "give a selector such as "
                '\'istio_requests_total{destination_workload="$arm",response_code=~"5.."}\', or use another preset',
            )
        for kind, query in texts.items():
            if query or kind == "requests":
                _check_query(f"queries, {kind}", query)
        for name, parts in counters.items():
            if set(parts) != {"events", "total"}:
                raise UsageError(
                    f"counters, {name}",
                    f"{', '.join(parts) or 'nothing'}",
                    "events and total are needed",
                    "give a selector for each",
                )
            for part, query in parts.items():
                _check_query(f"counters, {name}.{part}", query)
        return cls(**texts, latency_seconds=float(seconds), counters=counters)

    def all(self) -> dict[str, str]:
        own = {kind: getattr(self, kind) for kind in _KINDS}
        parts = {f"{name}.{part}": query for name, both in self.counters.items() for part, query in both.items()}
        return {kind: query for kind, query in (own | parts).items() if query}

    @property
    def error_labels(self) -> list[str]:
        """Labels that tell errors among the requests; a wrong one would find no errors, ever."""
        if _metric_of(self.errors) != _metric_of(self.requests):
            return []
        return [name for name in _labels_of(self.errors) if name not in _labels_of(self.requests)]

    def may_be_absent(self, kind: str) -> bool:
        """Whether a counter without any series can be one that nothing has raised yet."""
        if kind == "errors":
            return _metric_of(self.errors) == _metric_of(self.requests)
        both = self.counters[kind.rpartition(".")[0]]
        return kind.endswith(".events") and _metric_of(both["events"]) == _metric_of(both["total"])


def _find_contradictions(stable: _Counts, candidate: _Counts, queries: _Queries) -> list[str]:
    gaps = []
    for kind in ("errors", *(f"{name}.{part}" for name in queries.counters for part in ("events", "total"))):
        seen = kind in stable.seen | candidate.seen
        if not seen and stable.requests + candidate.requests > 0 and not queries.may_be_absent(kind):
            metric = _metric_of(queries.all()[kind])
            gaps.append(f"no series of {metric} for either arm; a counter has to be exported with 0 too")
    for name, arm in (("stable", stable), ("candidate", candidate)):
        if arm.errors > arm.requests and not arm.reset:
            gaps.append(f"{name}: {arm.errors:g} errors of {arm.requests:g} requests")
        for counter, (events, total) in arm.counters.items():
            if events > total and not arm.reset:
                gaps.append(f"{name}: {counter} has {events:g} events of {total:g}")
    if stable.latency is not None and candidate.latency is not None:
        ours, theirs = stable.latency.bounds_seconds, candidate.latency.bounds_seconds
        if ours != theirs:
            gaps.append(f"the histogram's bounds differ: {_show(ours)} s for stable, {_show(theirs)} s for candidate")
    return gaps


def _to_arm(counts: _Counts | None, both: Mapping[str, _Counts]) -> Arm:
    if counts is None:
        return Arm()
    latency = counts.latency
    if latency is None and counts.requests == 0:
        other = next((one.latency for one in both.values() if one.latency is not None), None)
        if other is not None:
            latency = Histogram(other.bounds_seconds, (0.0,) * len(other.counts))
    return Arm(
        counts.requests,
        min(counts.errors, counts.requests),
        latency,
        {name: Counter(min(events, total), total) for name, (events, total) in counts.counters.items()},
        counts.reset,
    )


class _Api:
    """The server's queries."""

    def __init__(
        self, address: str, token_file: Path | str | None, ca_file: Path | str | None, timeout_seconds: float
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(
                f"Prometheus {address!r}",
                "not the address of a server",
                "http:// or https:// with a host is needed",
                "write it as http://prometheus.monitoring:9090",
            )
        if parts.username is not None:
            raise UsageError(
                "Prometheus' address",
                "it holds credentials, and would be kept in the rollout's record",
                "an address without them is needed",
                "give a bearer token in a file",
            )
        if ca_file is not None and not Path(ca_file).is_file():
            raise UsageError(
                f"ca_file {ca_file}", "no such file", "certificates are needed, PEM", "mount them, or leave it out"
            )
        self.address = address.rstrip("/")
        self._url = self.address.removesuffix("/api/v1") + "/api/v1/query"
        self._token_file = Path(token_file) if token_file is not None else None
        self._timeout_seconds = timeout_seconds
        # A query changes nothing, so it may be sent twice.
        retries = urllib3.Retry(
            total=1, status_forcelist=(502, 503, 504), allowed_methods=("POST",), backoff_factor=0.2,
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        self._pool = urllib3.PoolManager(
            retries=retries,
            timeout=urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds),
            ca_certs=str(ca_file) if ca_file is not None else None,
        )

    def read_time(self) -> float:
        """Return the server's time, seconds since 1970."""
        data = self._ask({"query": "time()"})
        try:
            return float(data["result"][1])
        except (TypeError, ValueError, IndexError, KeyError):
            raise _NoAnswerError("an answer without a time; Prometheus' HTTP API is needed") from None

    def query(self, expression: str, at: float) -> list[Series]:
        """Return the samples of a range selector."""
        data = self._ask({"query": expression, "time": f"{at:.3f}"})
        result = data.get("result")
        if data.get("resultType") != "matrix" or not isinstance(result, list):
            raise _NoAnswerError(f"an answer of type {data.get('resultType')!r} where samples are needed")
        try:
            return [_read_series(one) for one in result]
        except (TypeError, ValueError, KeyError, AttributeError):
            raise _NoAnswerError("samples in another form than Prometheus' HTTP API has them") from None

    def _ask(self, form: Mapping[str, str]) -> Mapping[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        if self._token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token_file.read_text(encoding='utf-8').strip()}"
            except (OSError, ValueError) as error:
                raise _NoAnswerError(f"its token {self._token_file} cannot be read ({type(error).__name__})") from None
        body = urlencode({**form, "timeout": f"{max(1, math.ceil(self._timeout_seconds))}s"})
        try:
            answer = self._pool.request(
                "POST", self._url, headers=headers, body=body, redirect=False, preload_content=False
            )
            try:
                content = answer.read(_MOST_BYTES + 1, decode_content=True)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise _NoAnswerError(
                f"no answer ({type(reason).__name__}: {str(reason).rpartition(': ')[2][:120]})"
            ) from None
        if len(content) > _MOST_BYTES:
            answer.close()
            raise _NoAnswerError(f"an answer of more than {_MOST_BYTES // 2**20} MiB")
        return _read_answer(answer.status, content)


def _read_answer(status: int, content: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        if status in (301, 302, 303, 307, 308, 401, 403):
            raise _NoAnswerError(f"HTTP {status}; a bearer token that may query is needed")
        raise _NoAnswerError(f"HTTP {status} and no JSON; Prometheus' HTTP API is needed")
    if status != 200 or values.get("status") != "success":
        raise _NoAnswerError(f"HTTP {status}, {values.get('errorType') or 'error'}: {str(values.get('error'))[:160]}")
    if values.get("warnings"):
        raise MissingError(f"the server warns: {str(values['warnings'][0])[:160]}")
    data = values.get("data")
    if not isinstance(data, dict):
        raise _NoAnswerError("an answer without data; Prometheus' HTTP API is needed")
    return data


def _read_series(values: Mapping[str, Any]) -> Series:
    labels = {str(name): str(value) for name, value in values["metric"].items()}
    if "values" not in values:
        name = labels.get("__name__", "a series")
        raise MissingError(f"{name} is a native histogram; classic buckets are needed")
    return Series(labels, [(float(at), float(value)) for at, value in values["values"]])


def _check_query(where: str, query: str) -> None:
    unquoted = _TEXT.sub('""', query)
    found = _SELECTOR.fullmatch(unquoted)
    if not unquoted.strip() or not found or not (found[1] or found[2]):
        raise UsageError(
            where,
            repr(query[:100]),
            "a vector selector of a counter is needed: a name with matchers, without functions and ranges",
            "leave out rate, increase, sum and [ ]: differences are taken and summed here",
        )
    for name in _PLACEHOLDER.findall(query):
        if name not in ("arm", "namespace", "service", "pods"):
            raise UsageError(
                where,
                f"the placeholder ${name}",
                "$arm, $namespace, $service and $pods are filled in",
                "use one of them",
            )


def _metric_of(query: str) -> str:
    found = _SELECTOR.fullmatch(_TEXT.sub('""', query))
    return (found[1] if found else None) or query


def _labels_of(query: str) -> list[str]:
    return _MATCHER.findall(_TEXT.sub('""', query))


def _check_name(where: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(where, repr(name), "a name of Kubernetes is needed", "use small letters, digits and dashes")
    return name


def _check_seconds(where: str, seconds: float, least: float) -> float:
    if not least <= seconds < math.inf:
        raise UsageError(where, f"{seconds:g}", f"seconds of at least {least:g} are needed", "correct it")
    return seconds


def _show(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)
