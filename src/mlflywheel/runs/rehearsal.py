"""Rehearse a rollout on this machine: both versions as real predictors, recorded requests, the judge, a report."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflywheel import storage
from mlflywheel.decisions.canary.evidence import evidence_to_dict
from mlflywheel.decisions.canary.policy import Policy
from mlflywheel.errors import DataError, MissingExtraError, RolloutError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import verify_model_folder
from mlflywheel.reports.rehearsal import render_rehearsal
from mlflywheel.rollouts.answer_differences import read_columns
from mlflywheel.rollouts.rehearsal import (
    Answerer,
    Rehearsal,
    Reply,
    Settings,
    Undecided,
    Version,
    check_rehearsal,
    choose_window_requests,
    find_detectable,
    replay_requests,
)
from mlflywheel.rollouts.rehearsal_requests import RecordedRequest, Recording, add_labels, read_requests
from mlflywheel.runs.folder import DEFAULT_RUNS, RunFolder, new_run_id, write_json
from mlflywheel.runs.server import LocalServer, ServeOptions

REHEARSALS = "rehearsals"

_MODEL = "model"
_WARM_UP = 20
_TIMEOUT_SECONDS = 60.0
_VERSION_CHARACTERS = 12


def rehearse(
    stable: Path,
    candidate: Path,
    requests: str,
    policy: Policy,
    *,
    labels: str | None = None,
    references: tuple[str, str] | None = None,
    folder: Path | None = None,
    in_process: bool = False,
    undecided: Undecided = "pass",
    seed: int = 0,
    concurrency: int = 1,
    progress: ProgressCallback = ignore_progress,
) -> Rehearsal:
    """Send recorded requests to two versions of a model on this machine, and judge the candidate by the policy.

    Both versions are started as `mlflywheel serve` starts them, and asked over HTTP. The folder gets `report.html`,
    `rehearsal.json` and `evidence.json`, which the judge takes.

    Args:
        stable: Folder of the version in use.
        candidate: Folder of the version to be judged.
        requests: Path or URI of the recorded requests; `rollouts.rehearsal_requests` has the forms of a line.
        policy: What has to be shown.
        labels: Path or URI of labels about the requests; none if absent.
        references: What to call both versions, such as `NAME@VERSION`; the folders' names when absent.
        folder: Where to write; a new folder in `runs/rehearsals` when absent.
        in_process: Call both versions in this process: it starts faster, and leaves HTTP out.
        undecided: Whether a file that shows neither harm nor every margin passes. Before any traffic that is what
            there is to know, and the report says which harm it would have shown.
        seed: Of the order in which the versions are asked.
        concurrency: Requests at the same time, 1 to 64. Latencies are cleanest with 1.
        progress: Called with the phases `starting`, `warming up`, `replaying` and `measuring power`.

    Returns:
        The rehearsal; `raise_for_status` raises a refusal.

    Raises:
        DataError: A file cannot be read, has too few requests for the policy, or none that is answered.
        ModelError: A version cannot be served.
        RolloutError: The stable version's server ended while requests were sent.
        MissingExtraError: The extra `serving` is not installed.
    """
    started = time.monotonic()
    recording = _read(requests, labels, policy, progress)
    check_rehearsal(recording, policy, concurrency)
    versions = _describe(stable, candidate, references)
    rehearsal_id = new_run_id()
    place = _make_folder(folder, rehearsal_id)
    bounds = _read_bounds()
    read_at = time.monotonic()
    open_versions = _call_in_process if in_process else _serve
    with open_versions(stable, candidate, versions, progress) as (answerers, metadata):
        ready_at = time.monotonic()
        replay = replay_requests(
            recording,
            *answerers,
            policy,
            bounds_seconds=bounds,
            columns=read_columns(*metadata),
            seed=seed,
            concurrency=concurrency,
            warm_up=_WARM_UP,
            progress=progress,
        )
        replayed_at = time.monotonic()
    # What else would have been shown is of no use once harm is.
    is_refused = replay.verdict.action == "rollback"
    detectable = () if is_refused else find_detectable(replay, policy, seed, progress)
    seconds = {"reading": read_at - started, "starting": ready_at - read_at, "replaying": replayed_at - ready_at}
    seconds["measuring power"] = time.monotonic() - replayed_at
    size = choose_window_requests(len(recording.requests))
    warm_up = min(_WARM_UP, len(recording.requests))
    settings = Settings(seed, concurrency, in_process, warm_up, size, undecided)
    rehearsal = Rehearsal(
        rehearsal_id, *versions, recording, policy, settings, replay, detectable, seconds, place.resolve()
    )
    write_json(rehearsal.summary_path, rehearsal.to_dict())
    write_json(place / "evidence.json", evidence_to_dict(rehearsal.evidence()))
    rehearsal.report_path.write_text(render_rehearsal(rehearsal), encoding="utf-8")
    return rehearsal


def _read(requests: str, labels: str | None, policy: Policy, progress: ProgressCallback) -> Recording:
    with storage.open_binary(requests, progress) as file:
        recording = read_requests(file, storage.without_credentials(requests), policy)
    if labels is not None:
        with storage.open_binary(labels, progress) as file:
            recording = add_labels(recording, file, storage.without_credentials(labels), policy)
    return recording


def _describe(stable: Path, candidate: Path, references: tuple[str, str] | None) -> tuple[Version, Version]:
    """Verify both folders, and say what lies in them."""
    found = []
    for folder in (stable, candidate):
        manifest = verify_model_folder(folder)
        kind = manifest["format"]
        found.append(
            Version(folder.name, str(manifest["hash"]), str(manifest["model"]), f"{kind['name']} {kind['version']}")
        )
    first, second = found
    if references is not None:
        first, second = replace(first, reference=references[0]), replace(second, reference=references[1])
    elif first.reference == second.reference:
        # Two folders may have one name; their parents' names tell them apart.
        first = replace(first, reference=f"{stable.absolute().parent.name}/{first.reference}")
        second = replace(second, reference=f"{candidate.absolute().parent.name}/{second.reference}")
    return first, second


def _make_folder(folder: Path | None, rehearsal_id: str) -> Path:
    if folder is None:
        return RunFolder.create(DEFAULT_RUNS, REHEARSALS, rehearsal_id).path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RolloutError(
            str(folder), f"{error.strerror or error}", "a folder that can be written to is needed", "choose another"
        ) from None
    return folder


def _read_bounds() -> tuple[float, ...]:
    """Return the bounds of the predictor's own histogram of durations."""
    try:
        from mlflywheel.serving.metrics import SECONDS_BUCKETS
    except ImportError:
        raise MissingExtraError.of("kserve", "serving", "rehearsing a rollout") from None
    return SECONDS_BUCKETS


_Opened = tuple[tuple[Answerer, Answerer], tuple[Mapping[str, Any], Mapping[str, Any]]]


@contextmanager
def _serve(
    stable: Path, candidate: Path, versions: tuple[Version, Version], progress: ProgressCallback
) -> Iterator[_Opened]:
    """Yield both versions as servers of this machine, with their metadata."""
    progress("starting", 0, 2)
    options = ServeOptions(http_port=0, grpc_port=0)
    with ExitStack() as stack:
        servers = []
        # Both load at the same time.
        for folder, version in zip((stable, candidate), versions, strict=True):
            servers.append(LocalServer(folder, _MODEL, _shorten(version.hash), options))
            stack.callback(servers[-1].stop)
        for number, server in enumerate(servers, start=1):
            server.wait_until_ready()
            progress("starting", number, 2)
        first, second = (HttpAnswerer(server.options.host, server.http_port) for server in servers)
        stack.callback(first.close)
        stack.callback(second.close)
        guarded = _guard(first, versions[0])
        yield (guarded, second), (first.read_metadata(), second.read_metadata())


def _guard(answer: "HttpAnswerer", version: Version) -> Answerer:
    """Return an answerer that ends the rehearsal once the stable version's server is gone.

    A candidate whose server ends is refused by its errors. Without the stable version's there is nothing to compare.
    """

    def ask(request: RecordedRequest) -> Reply:
        reply = answer(request)
        if reply.status is None and reply.problem.startswith(ConnectionRefusedError.__name__):
            raise RolloutError(
                f"stable version {version.reference}",
                f"its server is gone; request {request.request_id} was not answered",
                "it has to answer all recorded requests",
                "serve it with mlflywheel serve, send it this request, and read its log",
            )
        return reply

    return ask


class HttpAnswerer:
    """A predictor behind HTTP; each thread keeps one connection open.

    Args:
        host: Where it listens.
        port: On which port.
        timeout_seconds: Longest wait for a part of an answer.
    """

    def __init__(self, host: str, port: int, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        self._host, self._port, self._timeout_seconds = host, port, timeout_seconds
        self._local = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def __call__(self, request: RecordedRequest) -> Reply:
        """Send a request, and wait for the answer."""
        path = f"/v1/models/{_MODEL}:predict" if request.protocol == "v1" else f"/v2/models/{_MODEL}/infer"
        headers = {"content-type": "application/json"}
        started = time.perf_counter()
        try:
            status, body = self._exchange("POST", path, request.body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._close_own()
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
            return Reply(None, b"", time.perf_counter() - started, problem)
        return Reply(status, body, time.perf_counter() - started)

    def read_metadata(self) -> Mapping[str, Any]:
        """Return the model's V2 metadata; nothing if it has none."""
        try:
            status, body = self._exchange("GET", f"/v2/models/{_MODEL}", None, {})
            found = json.loads(body) if status == 200 else {}
        except (OSError, http.client.HTTPException, ValueError):
            self._close_own()
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._ask(connection, method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # The server may close an idle connection at any time; on a new one the request is sent for the first
                # time as far as it knows.
                self._close_own()
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)
        self._local.connection = connection
        self._opened.append(connection)
        return self._ask(connection, method, path, body, headers)

    @staticmethod
    def _ask(
        connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()

    def _close_own(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._opened.remove(connection)
            del self._local.connection


@contextmanager
def _call_in_process(
    stable: Path, candidate: Path, versions: tuple[Version, Version], progress: ProgressCallback
) -> Iterator[_Opened]:
    """Yield both versions as predictors of this process, with their metadata."""
    try:
        from mlflywheel.serving.predictor import Predictor
    except ImportError:
        raise MissingExtraError.of("kserve", "serving", "rehearsing a rollout") from None
    from mlflywheel.serving.arguments import ServeArguments

    predictors = []
    progress("starting", 0, 2)
    for folder, version in zip((stable, candidate), versions, strict=True):
        max_rows = ServeArguments(_MODEL, folder).max_rows
        predictors.append(Predictor.load(folder, _MODEL, _shorten(version.hash), "auto", max_rows))
        progress("starting", len(predictors), 2)
    first, second = predictors
    yield (_call(first), _call(second)), (first.list_metadata(), second.list_metadata())


def _call(predictor: Any) -> Answerer:
    """Return a version that is called and not asked over HTTP, with the statuses that HTTP would give."""
    from mlflywheel.serving.predictor import Exchange
    from mlflywheel.serving.refusals import RefusalError

    def answer(request: RecordedRequest) -> Reply:
        exchange = Exchange(request.protocol, request.request_id)
        ask: Callable[[], Any] = (
            (lambda: predictor.answer_v1(request.body, exchange))
            if request.protocol == "v1"
            else (lambda: predictor.answer_v2(request.body, None, exchange))
        )
        started = time.perf_counter()
        try:
            status, body = 200, ask().body
        except RefusalError as error:
            status, body = error.http_status, str(error).encode("utf-8", "replace")
        except (DataError, UsageError) as error:
            status, body = 400, str(error).encode("utf-8", "replace")
        except Exception as error:
            # A defect of a version is what a rehearsal is to find.
            status, body = 500, f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        return Reply(status, body, time.perf_counter() - started)

    return answer


def _shorten(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_VERSION_CHARACTERS]
