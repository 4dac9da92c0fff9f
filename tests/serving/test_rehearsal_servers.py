"""Rehearsals with real models: as servers of this machine, and in this process."""

import copy
import gzip
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mlflywheel.decisions.canary.evidence import read_evidence
from mlflywheel.decisions.canary.judge import judge
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import DataError, GateRefusedError, ModelError
from mlflywheel.models.contract import load_model
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.model import FitParams
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
from mlflywheel.rollouts.rehearsal_requests import RecordedRequest
from mlflywheel.runs.rehearsal import HttpAnswerer, rehearse
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

BROKEN = Path(__file__).parent / "rehearsal_models"
# A fixed bound: on a busy machine the 99th percentile of a few requests is the machine's own.
POLICY = read_policy(
    """
schema: 1
metrics:
  - {name: errors, kind: errors}
  - {name: slow, kind: latency, seconds: 0.1}
"""
)
LABELS_POLICY = read_policy(
    """
schema: 1
metrics:
  - {name: errors, kind: errors}
  - {name: quality, kind: labels, by: parity}
"""
)


@pytest.fixture(scope="session")
def campaigns() -> pa.Table:
    raw = generate_ad_campaigns(campaigns=120)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    return TopicFingerprints.prepare(named, PrepareConfig())


@pytest.fixture(scope="session")
def retrained_model(campaigns: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrained") / "model"
    TopicFingerprints.fit(campaigns, FitParams.parse({"num_topics": 8, "seed": 5}, "params")).save(folder)
    return folder


@pytest.fixture
def installed_broken_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of broken models can be imported here and by servers that are started."""
    monkeypatch.syspath_prepend(str(BROKEN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BROKEN), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
    yield
    sys.modules.pop("broken_campaigns", None)


def save_as(kind: str, saved_model: Path, folder: Path) -> Path:
    """Save a model again as one of the broken classes."""
    import broken_campaigns

    model = copy.copy(load_model(saved_model))
    model.__class__ = getattr(broken_campaigns, kind)
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def requests(campaigns: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 requests in every form, every tenth of which both versions refuse."""
    rng = random.Random(0)
    lines: list[Any] = []
    for number, terms in enumerate((campaigns["terms"].to_pylist() * 2)[:150]):
        chosen = rng.sample(terms, min(len(terms), 5))
        instance = {"campaign_id": f"new-{number}", "terms": chosen}
        tensor = {"name": "terms", "datatype": "BYTES", "shape": [1], "data": [json.dumps(chosen)]}
        v2 = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        if number % 10 == 9:
            lines.append({"request_id": f"r{number}", "body": {"terms": 3}})
        elif number % 3 == 0:
            lines.append({"instances": [instance, instance]})
        elif number % 3 == 1:
            lines.append(v2)
        else:
            lines.append(instance)
    path = tmp_path_factory.mktemp("requests") / "requests.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def test_a_version_passes_beside_itself_and_differs_in_nothing(
    saved_model: Path, requests: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    found = rehearse(
        saved_model, saved_model, str(requests), POLICY, folder=tmp_path, progress=lambda *event: seen.append(event)
    )
    assert found.passes
    assert found.raise_for_status() is found
    assert found.replay.outcomes == {("answered", "answered"): 135, ("refused", "refused"): 15}
    assert (found.replay.errors("stable"), found.replay.errors("candidate")) == (0, 0)
    assert found.replay.differences.differing_requests == 0
    assert found.replay.differences.rows == 135 + sum(number % 10 != 9 for number in range(0, 150, 3))
    assert {"fingerprint", "neighbours", "recommended"} <= found.replay.differences.columns.keys()
    assert seen[-1][0] == "measuring power"
    assert ("replaying", 150, 150) in seen
    summary = json.loads((tmp_path / "rehearsal.json").read_text())
    assert (summary["schema"], summary["passes"], summary["requests"]["count"]) == (1, True, 150)
    assert summary["stable"]["hash"] == json.loads((saved_model / "manifest.json").read_text())["hash"]
    # What was not judged is said too, and what was would have shown something.
    errors = next(one for one in found.detectable if one.metric == "errors")
    assert errors.candidate_rate is not None
    assert 0.01 < errors.candidate_rate < 0.2
    page = found.report_path.read_text()
    assert "Where answers differ" in page
    assert "Largest differences" not in page


@pytest.mark.long
def test_a_candidate_that_raises_on_some_requests_is_refused(
    installed_broken_models: None, saved_model: Path, requests: Path, tmp_path: Path
) -> None:
    broken = save_as("RaisingCampaigns", saved_model, tmp_path / "broken")
    found = rehearse(saved_model, broken, str(requests), POLICY, folder=tmp_path / "out")
    assert found.verdict.action == "rollback"
    assert not found.passes
    assert found.replay.errors("stable") == 0
    failed = found.replay.count("answered", "failed")
    assert found.replay.errors("candidate") == failed > 30
    # The first window only teaches the stable rate, and one window alone decides nothing.
    assert found.replay.decided_after == 150
    assert found.replay.count("answered", "answered") == found.replay.differences.requests
    assert found.replay.differences.differing_requests == 0
    with pytest.raises(GateRefusedError, match="errors is shown to be more than the stable rate") as refused:
        found.raise_for_status()
    assert refused.value.exit_code == 3
    page = found.report_path.read_text()
    assert "A gate refused this model" in page
    assert "500 request" in page
    # The windows stand in a file that gives the judge the same verdict, whatever the policy says about time.
    evidence = read_evidence((tmp_path / "out" / "evidence.json").read_text())
    assert judge(evidence, POLICY).action == "rollback"


@pytest.mark.long
def test_a_slow_candidate_is_refused_by_its_latency_alone(
    installed_broken_models: None, saved_model: Path, requests: Path, tmp_path: Path
) -> None:
    slow = save_as("SlowCampaigns", saved_model, tmp_path / "slow")
    found = rehearse(saved_model, slow, str(requests), POLICY, folder=tmp_path / "out", in_process=True, concurrency=2)
    assert found.verdict.action == "rollback"
    reached = [one.metric for one in found.verdict.findings if one.test == "harm" and one.is_reached]
    assert reached == ["slow"]
    assert found.replay.errors("candidate") == 0
    assert found.replay.differences.differing_requests == 0
    assert found.replay.latency("candidate")["p90"] > 0.1
    assert found.replay.bounds_seconds == {"slow": 0.1}


@pytest.fixture(scope="session")
def retrained(
    saved_model: Path, retrained_model: Path, requests: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("retrained-out")
    references = ("campaigns@1", "campaigns@2")
    return rehearse(
        saved_model, retrained_model, str(requests), POLICY, references=references, folder=folder, in_process=True
    )


def test_a_retrained_candidate_passes_and_its_differences_are_shown(retrained: Any) -> None:
    differences = retrained.replay.differences
    assert retrained.passes
    assert differences.differing_requests == differences.requests == 135
    columns = differences.to_dict()["columns"]
    assert columns["fingerprint"]["kind"] == "vector"
    assert 0 < columns["fingerprint"]["gap"]["max"] <= 1
    # Keywords come from similar campaigns, so that many stay.
    assert columns["recommended"]["kind"] == "list"
    assert 0.2 < columns["recommended"]["overlap"]["mean"] < 1
    assert columns["unknown_share"]["differing"] == columns["note"]["differing"] == 0
    assert len(differences.worst) == 10
    distances = [one.distance for one in differences.worst]
    assert distances == sorted(distances, reverse=True)


def test_the_report_shows_both_answers_and_needs_no_network(retrained: Any) -> None:
    page = retrained.report_path.read_text()
    assert "campaigns@2 beside campaigns@1" in page
    assert "Largest differences" in page
    worst = retrained.replay.differences.worst[0]
    assert worst.request_id in page
    assert "This section is not drawn" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.long
def test_the_same_seed_asks_in_the_same_order(saved_model: Path, requests: Path, tmp_path: Path) -> None:
    runs = [
        rehearse(saved_model, saved_model, str(requests), POLICY, folder=tmp_path / name, in_process=True, seed=3)
        for name in ("a", "b")
    ]
    first, second = (run.to_dict() for run in runs)
    for volatile in ("id", "latency_seconds", "seconds", "verdict", "reason", "detectable"):
        first.pop(volatile), second.pop(volatile)
    assert first == second


def test_worse_answers_are_refused_by_labels(
    saved_model: Path, retrained_model: Path, campaigns: pa.Table, tmp_path: Path
) -> None:
    # The stable version's own first topic is the right one, and the candidate names its topics otherwise.
    terms = (campaigns["terms"].to_pylist() * 2)[:150]
    stable = load_model(saved_model)
    table = stable.to_table([stable.Request(terms=one) for one in terms])
    lines, labels = [], []
    for number, (one, row) in enumerate(zip(terms, stable.predict(table).to_pylist(), strict=True)):
        groups = {"parity": "odd" if number % 2 else "even"}
        lines.append({"request_id": f"r{number}", "body": {"terms": one}, "groups": groups})
        expected = {"topics": [row["topics"][0]["name"]]}
        labels.append({"request_id": f"r{number}", "expected": expected})
    paths = [tmp_path / "requests.jsonl", tmp_path / "labels.jsonl"]
    for path, values in zip(paths, (lines, labels), strict=True):
        path.write_text("\n".join(map(json.dumps, values)))
    found = rehearse(
        saved_model,
        retrained_model,
        str(paths[0]),
        LABELS_POLICY,
        labels=str(paths[1]),
        folder=tmp_path / "out",
        in_process=True,
    )
    assert found.verdict.action == "rollback"
    assert found.replay.losses["quality"]["stable"] == [0.0] * 150
    assert sum(found.replay.losses["quality"]["candidate"]) / 150 > 0.05
    groups = {one.group for one in found.verdict.findings if one.metric == "quality"}
    assert groups == {"", "odd", "even"}


def test_a_candidate_that_cannot_be_loaded_is_an_error_with_its_own_words(
    installed_broken_models: None, saved_model: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = save_as("RaisingCampaigns", saved_model, tmp_path / "broken")
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(BROKEN)])
    with pytest.raises(ModelError, match="saved by broken_campaigns:RaisingCampaigns"):
        rehearse(saved_model, broken, str(requests), POLICY, folder=tmp_path / "out", in_process=True)


def test_too_few_requests_for_the_policy_are_refused_before_anything_starts(saved_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"terms": ["a"]}\n' * 49)
    with pytest.raises(DataError, match=r"49 requests; the policy's minimum is 50"):
        rehearse(saved_model, saved_model, str(path), Policy(), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class ForgetfulHandler(BaseHTTPRequestHandler):
    """Answers one request a connection, and closes it without having said so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *values: Any) -> None:
        pass


def test_a_connection_that_the_server_closed_meanwhile_is_no_error() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ForgetfulHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    ask = HttpAnswerer("127.0.0.1", server.server_port)
    try:
        replies = []
        for number in range(3):
            replies.append(ask(RecordedRequest(1, "r", "v1", b"%d" % number)))
            # Until the end of the connection has arrived.
            time.sleep(0.05)
        assert [(one.status, one.body) for one in replies] == [(200, b"0"), (200, b"1"), (200, b"2")]
    finally:
        ask.close()
        server.shutdown()
        thread.join()
        server.server_close()
    reply = ask(RecordedRequest(1, "r", "v1", b""))
    assert reply.status is None
    assert reply.problem.startswith("ConnectionRefusedError")
