"""A rehearsal's logic: recorded requests, differing answers, windows, the verdict, what could have been shown."""

import base64
import gzip
import json
import math
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mlflywheel.decisions.canary.evidence import evidence_to_dict, read_evidence
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import DataError, GateRefusedError, UsageError
from mlflywheel.reports.rehearsal import render_rehearsal
from mlflywheel.rollouts.answer_differences import (
    Column,
    DifferenceTally,
    compare,
    measure_loss,
    read_columns,
    read_rows,
)
from mlflywheel.rollouts.rehearsal import (
    Answerer,
    Rehearsal,
    Replay,
    Reply,
    Settings,
    Undecided,
    Version,
    check_rehearsal,
    find_detectable,
    replay_requests,
)
from mlflywheel.rollouts.rehearsal_requests import (
    RecordedRequest,
    Recording,
    add_labels,
    read_requests,
)

LOGGED = {"specversion": "1.0", "type": "org.kubeflow.serving.inference.request"}
BOUNDS = (0.001, 0.01, 0.1, 1.0)
POLICY = Policy()
LABELS = read_policy(
    "schema: 1\nmetrics: [{name: errors, kind: errors}, {name: quality, kind: labels, by: locale, groups: [de]}]"
)


def read(*lines: Any, policy: Policy = POLICY) -> Recording:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return read_requests(BytesIO(text.encode()), "requests.jsonl", policy)


def record(count: int, **others: Any) -> Recording:
    return read(*({"request_id": f"r{number}", "body": {"x": number}, **others} for number in range(count)))


def answer(values: Callable[[int], Any] = lambda x: x, seconds: float = 0.005) -> Answerer:
    """Answer requests of `record` with a column `y`."""

    def ask(request: RecordedRequest) -> Reply:
        x = json.loads(request.body)["instances"][0]["x"]
        return Reply(200, json.dumps({"predictions": [{"y": values(x)}]}).encode(), seconds)

    return ask


def fail(answerer: Answerer, when: Callable[[int], bool], status: int | None = 500) -> Answerer:
    def ask(request: RecordedRequest) -> Reply:
        if when(json.loads(request.body)["instances"][0]["x"]):
            body = b"" if status is None else b'{"error": "no such luck"}'
            return Reply(status, body, 0.005, "ConnectionResetError" if status is None else "")
        return answerer(request)

    return ask


def replay(recording: Recording, stable: Answerer, candidate: Answerer, **options: Any) -> Replay:
    settings: dict[str, Any] = {"policy": POLICY, "bounds_seconds": BOUNDS, "warm_up": 0, **options}
    return replay_requests(recording, stable, candidate, settings.pop("policy"), **settings)


# Requests


def test_every_form_of_a_line_becomes_a_body() -> None:
    tensor = {"name": "terms", "datatype": "BYTES", "shape": [1], "data": ["[]"]}
    v2 = {"inputs": [tensor]}
    recording = read(
        {"instances": [{"x": 1}, {"x": 2}]},
        "",
        v2,
        {"x": 3},
        {"request_id": "mine", "time": "2026-11-21T10:00:00Z", "path": "/v2/models/m/infer", "body": v2},
        {"body": {"x": 4}, "groups": {"locale": "de"}},
    )
    assert [(one.line, one.request_id, one.protocol) for one in recording.requests] == [
        (1, "line 1", "v1"),
        (3, "line 3", "v2"),
        (4, "line 4", "v1"),
        (5, "mine", "v2"),
        (6, "line 6", "v1"),
    ]
    assert json.loads(recording.requests[0].body) == {"instances": [{"x": 1}, {"x": 2}]}
    assert json.loads(recording.requests[2].body) == {"instances": [{"x": 3}]}
    assert recording.requests[4].groups == {"locale": "de"}


def test_logged_cloud_events_are_requests_and_their_responses_are_left_out() -> None:
    event = {**LOGGED, "source": "s"}
    packed = base64.b64encode(b'{"instances": [3]}').decode()
    recording = read(
        {**event, "id": "a", "data": {"instances": [1]}},
        {**event, "id": "b", "data": '{"instances": [2]}'},
        {**event, "id": "c", "data_base64": packed},
        {**event, "id": "a", "type": "org.kubeflow.serving.inference.response", "data": {"predictions": [1]}},
    )
    assert [(one.request_id, one.body) for one in recording.requests] == [
        ("a", b'{"instances":[1]}'),
        ("b", b'{"instances":[2]}'),
        ("c", b'{"instances":[3]}'),
    ]
    assert recording.left_out == {"event org.kubeflow.serving.inference.response": 1}


def test_a_compressed_file_is_read_and_a_cut_one_names_the_line() -> None:
    data = gzip.compress(b'{"x": 1}\n{"x": 2}\n')
    assert len(read_requests(BytesIO(data), "r.gz", POLICY).requests) == 2
    with pytest.raises(DataError, match=r"r\.gz, after line \d: broken gzip"):
        read_requests(BytesIO(data[:-6]), "r.gz", POLICY)


def test_a_v2_body_is_asked_for_in_json() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    output = {"name": "y", "parameters": {"binary_data": True, "other": 1}}
    body = {"inputs": [tensor], "outputs": [output], "parameters": {"binary_data_output": True}}
    sent = json.loads(read(body).requests[0].body)
    assert sent["parameters"] == {}
    assert sent["outputs"] == [{"name": "y", "parameters": {"other": 1}}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{x}", "line 2: not JSON"),
        ("[1]", "line 2: [1]; a JSON object"),
        ('{"x": NaN}', "line 2: not JSON (NaN is not a JSON number)"),
        ({"body": {"x": 1}, "lable": {}}, "line 2, lable: an unknown field beside body"),
        ({"body": {"x": 1}, "request_id": 7}, "line 2, request_id: 7"),
        ({"body": {"x": 1}, "request_id": "line 1"}, "line 2: request id 'line 1', as in line 1"),
        ({"body": {"x": 1}, "path": "/v1/models/m:explain"}, "line 2, path: '/v1/models/m:explain'"),
        ({"body": {"x": 1}, "time": "yesterday"}, "line 2, time: 'yesterday'"),
        ({"body": {"x": 1}, "groups": {"a": 1}}, "line 2, groups"),
        ({"body": {"x": 1}, "label": {"loss": 1, "metric": "quality"}}, "line 2, label, metric: 'quality'; the"),
        ({"body": {"x": 1}, "label": {"loss": 2, "arm": "stable"}}, "line 2, label, loss: 2"),
        ({"body": {"x": 1}, "label": {"loss": 1}}, "both versions answer every request"),
        ({"body": {"x": 1}, "label": {"expected": []}}, "line 2, label, expected: []"),
        ({**LOGGED, "data": "x"}, "line 2, data: not JSON"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read({"x": 1}, line)
    assert f"requests.jsonl, {message}" in str(caught.value) or message in str(caught.value)
    assert "requests.jsonl, line 2" in str(caught.value)


def test_a_file_without_a_request_says_what_it_holds() -> None:
    with pytest.raises(DataError, match="no request, 1 x event a"):
        read({"specversion": "1.0", "type": "a"})


def test_labels_of_a_file_join_by_request_id_and_unknown_ones_are_counted() -> None:
    lines = b'{"request_id": "r1", "expected": {"y": 1}}\n{"request_id": "zz", "arm": "stable", "loss": 0.5}\n'
    joined = add_labels(record(2), BytesIO(lines), "labels.jsonl", LABELS)
    assert [len(one.expectations) for one in joined.requests] == [0, 1]
    assert joined.requests[1].expectations[0].metric == "quality"
    assert joined.notes == ("labels of 1 requests that are not among the recorded ones",)
    with pytest.raises(DataError, match=r"none of which stands in requests\.jsonl"):
        add_labels(record(2), BytesIO(lines.splitlines()[1]), "labels.jsonl", LABELS)


def test_too_few_requests_and_impossible_concurrency_are_refused() -> None:
    with pytest.raises(DataError, match="49 requests; the policy's minimum is 50"):
        check_rehearsal(record(49), POLICY, 1)
    check_rehearsal(record(50), POLICY, 64)
    with pytest.raises(UsageError, match="65"):
        check_rehearsal(record(50), POLICY, 65)


# Differences


@pytest.mark.parametrize(
    ("stable", "candidate", "distance"),
    [
        (1.0, 1.0, 0.0),
        (10.0, 8.0, 0.2),
        (1.0, -1.0, 1.0),
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([1.0, 0.0], [0.0, 1.0], math.sqrt(2) / 2),
        ([1.0], [1.0, 2.0], 1.0),
        (["a", "b"], ["b", "a"], 0.01),
        (["a", "b"], ["a", "c", "d", "e"], 0.75),
        ([], [], 0.0),
        ([], ["a"], 1.0),
        ([5, 9], [9, 5], 0.01),
        ("a", "b", 1.0),
        (None, None, 0.0),
        (None, 1.0, 1.0),
        (True, 1, 1.0),
        ({"a": 1.0, "b": "x"}, {"a": 2.0, "b": "x"}, 0.25),
    ],
)
def test_distances(stable: Any, candidate: Any, distance: float) -> None:
    assert compare(stable, candidate).distance == pytest.approx(distance)
    assert compare(candidate, stable).distance == pytest.approx(distance)


def test_declared_float32_is_compared_as_float32() -> None:
    outputs = [[{"name": "s", "datatype": kind, "shape": [-1, 2]}] for kind in ("FP32", "FP64")]
    columns = read_columns({"outputs": outputs[0]}, {"outputs": outputs[1]})
    assert columns["s"] == Column(("FP32", "FP64"), is_vector=True)
    assert compare([0.1, 1], [0.10000000149011612, 1], columns["s"]).distance == 0
    assert compare([0.1, 1], [0.10000000149011612, 1]).distance > 0


def test_items_of_lists_are_known_by_names_and_not_by_scores() -> None:
    stable = [{"id": "a", "score": 0.9, "why": ["x"]}, {"id": "b", "score": 0.5, "why": []}]
    candidate = [{"id": "a", "score": 0.7, "why": ["y"]}, {"id": "c", "score": 0.5, "why": []}]
    found = compare(stable, candidate)
    assert (found.overlap, found.gap) == (0.5, pytest.approx(0.2))


def test_v2_answers_become_rows() -> None:
    outputs = [
        {"name": "vector", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]},
        {"name": "list", "datatype": "BYTES", "shape": [2], "data": ['["a"]', "[]"]},
        {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["[not json", ""]},
    ]
    assert read_rows(json.dumps({"outputs": outputs}).encode(), "v2") == [
        {"vector": [1, 2], "list": ["a"], "text": "[not json"},
        {"vector": [3, 4], "list": [], "text": ""},
    ]
    shorter = {**outputs[1], "shape": [1], "data": [""]}
    for broken in ({"outputs": [{**outputs[0], "data": [1]}]}, {"outputs": [outputs[0], shorter]}, [], {}):
        with pytest.raises(ValueError, match=r"outputs|elements"):
            read_rows(json.dumps(broken).encode(), "v2")


def test_the_tally_counts_columns_rows_and_requests_and_keeps_the_worst() -> None:
    tally = DifferenceTally({}, worst=2)
    assert not tally.add(1, "same", [{"y": 1.0, "z": "a"}], [{"y": 1.0, "z": "a"}])
    assert tally.add(2, "small", [{"y": 1.0, "z": "a"}], [{"y": 0.9, "z": "a"}])
    assert tally.add(3, "large", [{"y": 1.0, "z": "a"}] * 2, [{"y": 1.0, "z": "a"}, {"y": 0.0, "z": "b"}])
    assert tally.add(4, "middle", [{"y": 1.0, "z": "a"}], [{"y": 0.5, "z": "a", "new": 1}])
    assert tally.add(5, "shorter", [{"y": 1.0, "z": "a"}] * 2, [{"y": 1.0, "z": "a"}])
    found = tally.to_dict()
    assert (found["requests"], found["differing_requests"], found["rows"], found["differing_rows"]) == (5, 4, 6, 3)
    assert found["other_lengths"] == 1
    assert found["columns"]["y"]["differing"] == 3
    assert found["columns"]["y"]["gap"]["max"] == 1.0
    assert found["columns"]["new"] == {**found["columns"]["new"], "missing": 1, "differing": 1}
    assert [(one.request_id, one.instance) for one in tally.worst] == [("large", 1), ("middle", 0)]
    assert [column for column, *_ in tally.worst[0].columns] == ["y", "z"]


def test_kept_answers_lose_contact_data_where_they_are_written() -> None:
    tally = DifferenceTally({})
    tally.add(1, "r", [{"to": "jane.doe@example.com"}], [{"to": None}])
    assert "jane.doe" not in json.dumps(tally.to_dict())


@pytest.mark.parametrize(
    ("expected", "row", "loss"),
    [
        ({"y": 1}, {"y": 1}, 0),
        ({"y": 1}, {"y": 2}, 1),
        ({"y": 1}, {"y": True}, 1),
        ({"y": 2.0}, {"y": 1.0}, 0.5),
        ({"y": ["a", "b"]}, {"y": ["b"]}, 0.5),
        ({"y": []}, {"y": []}, 0),
        ({"y": []}, {"y": ["a"]}, 1),
        ({"y": [{"id": "a"}]}, {"y": [{"id": "a", "score": 0.1}]}, 0),
        ({"y": ["a"]}, {"y": None}, 1),
        ({"y": 1, "z": "b"}, {"y": 1, "z": "c"}, 0.5),
    ],
)
def test_losses_from_expected_values(expected: Any, row: Any, loss: float) -> None:
    assert measure_loss(expected, row) == pytest.approx(loss)


# The replay


def test_equal_versions_are_never_refused() -> None:
    rng = random.Random(1)
    for seed in range(40):
        delays = {number: rng.expovariate(200) for number in range(300)}

        def ask(request: RecordedRequest, delays: dict[int, float] = delays) -> Reply:
            x = json.loads(request.body)["instances"][0]["x"]
            # Both versions fail on the same requests; how long they take is chance.
            status = 500 if x % 25 == 0 else 200
            return Reply(status, b'{"predictions": []}', delays[x] * rng.uniform(0.5, 2.0))

        found = replay(record(300), ask, ask, seed=seed)
        assert found.verdict.action != "rollback"
        assert found.errors("stable") == found.errors("candidate") == 12


def test_more_errors_of_the_candidate_are_refused_and_of_the_stable_version_are_not() -> None:
    broken = fail(answer(), lambda x: x % 10 == 3)
    found = replay(record(500), answer(), broken)
    assert found.verdict.action == "rollback"
    assert found.decided_after is not None
    assert 100 < found.decided_after < 500
    assert found.requests == 500
    assert (found.errors("stable"), found.errors("candidate")) == (0, 50)
    assert [one.candidate for one in found.candidate_problems] == ["500 no such luck"] * 10
    assert replay(record(500), broken, answer()).verdict.action != "rollback"


def test_one_window_decides_nothing() -> None:
    # All errors fall into one window, the second.
    found = replay(record(50 * 6), answer(), fail(answer(), lambda x: 50 <= x < 100))
    assert found.verdict.action == "hold"
    assert [window.candidate.errors for window in found.windows] == [0, 50, 0, 0, 0, 0]


def test_no_answer_counts_as_an_error_and_what_is_no_answer_of_the_protocol_too() -> None:
    silent = fail(answer(), lambda x: x % 2 == 0, status=None)
    found = replay(record(60), answer(), silent)
    assert found.errors("candidate") == 30
    assert found.candidate_problems[0].candidate == "no answer: ConnectionResetError"
    found = replay(record(60), answer(), lambda request: Reply(200, b"<html>", 0.01))
    assert found.errors("candidate") == 60
    assert "200, and no V1 answer" in found.candidate_problems[0].candidate


def test_a_request_that_both_refuse_is_nobodys_error_and_a_lone_refusal_is() -> None:
    stable = fail(answer(), lambda x: x % 10 == 0, status=400)
    candidate = fail(answer(), lambda x: x % 5 == 0, status=422)
    found = replay(record(100), stable, candidate)
    assert found.outcomes == {("answered", "answered"): 80, ("refused", "refused"): 10, ("answered", "refused"): 10}
    assert (found.errors("stable"), found.errors("candidate")) == (0, 10)
    broken = fail(answer(), lambda x: x % 10 == 0, status=500)
    found = replay(record(100), stable, broken)
    assert (found.errors("stable"), found.errors("candidate")) == (0, 10)


def test_a_stable_version_that_answers_nothing_makes_no_rehearsal() -> None:
    refusing = fail(answer(), lambda x: True, status=400)
    with pytest.raises(DataError, match="answers none of the 60 requests; line 1: 400 no such luck"):
        replay(record(60), refusing, refusing)


def test_slow_answers_are_refused_by_the_bound_that_the_stable_version_chose() -> None:
    def slow(request: RecordedRequest) -> Reply:
        x = json.loads(request.body)["instances"][0]["x"]
        return answer(seconds=0.5 if x % 5 == 0 else 0.005)(request)

    found = replay(record(600), answer(), slow)
    assert found.verdict.action == "rollback"
    assert found.bounds_seconds == {"latency_p99": 0.01}
    assert found.latency("candidate")["p90"] == 0.5
    # A bucket holds what is at most its bound.
    assert found.windows[0].stable.latency is not None
    assert replay(record(60), answer(seconds=0.01), answer()).windows[0].stable.latency.counts == (0, 50, 0, 0, 0)  # type: ignore[union-attr]


def test_both_versions_are_asked_in_random_order_that_the_seed_fixes() -> None:
    def find_order(seed: int) -> str:
        asked: list[str] = []

        def note(name: str) -> Answerer:
            def ask(request: RecordedRequest) -> Reply:
                asked.append(name)
                return answer()(request)

            return ask

        replay(record(200), note("s"), note("c"), seed=seed)
        return "".join(asked)

    order = find_order(0)
    pairs = [order[place : place + 2] for place in range(0, 400, 2)]
    assert set(pairs) == {"sc", "cs"}
    assert 70 < pairs.count("sc") < 130
    assert order == find_order(0) != find_order(1)


def test_warm_up_requests_are_sent_and_not_counted() -> None:
    asked: list[str] = []

    def ask(request: RecordedRequest) -> Reply:
        asked.append(request.request_id)
        # Cold at first.
        return answer(seconds=5.0 if len(asked) <= 40 else 0.005)(request)

    found = replay(record(60), ask, ask, warm_up=20)
    assert len(asked) == 2 * (20 + 60)
    assert found.requests == 60
    assert found.latency("stable")["p100"] == 0.005


def test_concurrency_changes_nothing_but_the_time() -> None:
    broken = fail(answer(lambda x: x + 1), lambda x: x % 10 == 3)
    one, many = (replay(record(220), answer(), broken, concurrency=number, clock=lambda: 0.0) for number in (1, 8))
    assert one.windows == many.windows
    assert one.verdict == many.verdict
    assert one.differences.to_dict() == many.differences.to_dict()
    assert [window.candidate.requests for window in one.windows] == [50, 50, 50, 50, 20]


def test_the_windows_are_valid_evidence() -> None:
    ticks = iter(range(1_000))
    found = replay(record(120), answer(), answer(), clock=lambda: float(next(ticks)))
    values = evidence_to_dict(make_rehearsal(found).evidence())
    assert read_evidence(json.dumps(values)).windows == tuple(found.windows)
    assert {window.step for window in found.windows} == {len(POLICY.steps) - 2}


def test_losses_of_labels_refuse_a_candidate_and_no_answer_is_the_worst() -> None:
    label = {"metric": "quality", "expected": {"y": 1}}
    lines = [{"body": {"x": x}, "label": label, "groups": {"locale": "de"}} for x in range(300)]
    recording = read(*lines, policy=LABELS)
    right, wrong = answer(lambda x: 1), answer(lambda x: x % 3)
    found = replay(recording, right, wrong, policy=LABELS)
    assert found.verdict.action == "rollback"
    assert (sum(found.losses["quality"]["stable"]), sum(found.losses["quality"]["candidate"])) == (0, 200)
    harmed = {(one.metric, one.group) for one in found.verdict.findings if one.test == "harm" and one.is_reached}
    assert harmed == {("quality", ""), ("quality", "de")}
    found = replay(recording, right, fail(right, lambda x: x == 7), policy=LABELS)
    assert sum(found.losses["quality"]["candidate"]) == 1
    with pytest.raises(DataError, match="column 'y'; answers have z"):
        replay(recording, *[lambda request: Reply(200, b'{"predictions": [{"z": 1}]}', 0.01)] * 2, policy=LABELS)


def test_a_loss_in_the_file_is_about_one_version() -> None:
    lines = [{"body": {"x": x}, "label": {"arm": "candidate", "loss": 0.5}} for x in range(60)]
    found = replay(read(*lines, policy=LABELS), answer(), answer(), policy=LABELS)
    assert found.losses["quality"] == {"stable": [], "candidate": [0.5] * 60}
    assert replay(read(*lines), answer(), answer()).labels_unused == 60


def test_what_would_have_been_shown_gets_smaller_with_more_requests() -> None:
    rates = []
    for count in (200, 800):
        errors, latency = find_detectable(replay(record(count), answer(), answer()), POLICY)
        assert errors.candidate_rate is not None
        rates.append(errors.candidate_rate)
        assert errors.power == POLICY.power
    assert 0.005 < rates[1] < rates[0] / 2 < 0.1
    assert latency.bound_seconds == 0.01
    # The bound is chosen from earlier windows, and 200 requests are none that were judged.
    _, latency = find_detectable(replay(record(200), answer(), answer()), POLICY)
    assert "200 of which are needed; there were 200" in str(latency)


def test_a_rate_said_to_be_shown_is_shown() -> None:
    detectable = find_detectable(replay(record(400), answer(), answer()), POLICY)[0]
    assert detectable.candidate_rate is not None
    rng = random.Random(2)
    shown = 0
    for _ in range(60):
        bad = {x for x in range(400) if rng.random() < detectable.candidate_rate}
        shown += replay(record(400), answer(), fail(answer(), bad.__contains__)).verdict.action == "rollback"
    # 54 are to be expected, and 46 are three standard deviations less.
    assert shown >= 46


# The result


def make_rehearsal(found: Replay, undecided: Undecided = "pass", recording: Recording | None = None) -> Rehearsal:
    recording = recording or record(max(found.requests, 1))
    version = Version("campaigns@1", "sha256:00", "m:M", "f 1")
    settings = Settings(0, 1, True, 0, 50, undecided)
    detectable = () if found.verdict.action == "rollback" else find_detectable(found, POLICY)
    return Rehearsal(
        "id", version, version, recording, POLICY, settings, found, detectable, {"replaying": 1.0}, Path("runs")
    )


def test_a_file_without_a_decision_passes_or_not_as_asked_and_says_what_it_would_have_shown() -> None:
    found = replay(record(120), answer(), answer())
    assert found.verdict.action == "hold"
    rehearsal = make_rehearsal(found)
    assert rehearsal.passes
    assert "would have been shown with a chance of 90%" in rehearsal.reason
    refused = make_rehearsal(found, "refuse")
    assert not refused.passes
    with pytest.raises(GateRefusedError) as caught:
        refused.raise_for_status()
    assert caught.value.exit_code == 3


def test_a_shown_margin_passes_whatever_undecided_says() -> None:
    found = replay(record(4_000), answer(), answer())
    assert found.verdict.action == "promote"
    assert make_rehearsal(found, "refuse").passes


def test_the_summary_is_strict_json_and_the_page_shows_errors_and_differences() -> None:
    candidate = fail(answer(lambda x: [f"<b>{x}", "shared"]), lambda x: x % 4 == 0)
    found = replay(record(200), answer(lambda x: ["shared", "other"]), candidate)
    rehearsal = make_rehearsal(found)
    values = json.loads(json.dumps(rehearsal.to_dict(), allow_nan=False))
    assert (values["schema"], values["passes"], values["verdict"]["action"]) == (1, False, "rollback")
    assert values["errors"]["candidate"] == 50
    assert values["differences"]["columns"]["y"]["overlap"]["mean"] == 0.5
    page = render_rehearsal(rehearsal)
    assert "This section is not drawn" not in page
    assert "A gate refused this model" in page
    assert "500 no such luck" in page
    assert "<b>1" not in page
    assert "&lt;b&gt;1" in page
