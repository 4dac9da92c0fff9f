"""What is read from routes, and how differences between specs are found and attributed."""

import pytest

from mlflywheel.cluster.inference_services import (
    MISSING,
    InferenceService,
    find_changes,
    find_writer,
    is_ours,
    make_patch,
    name_predictor,
)
from mlflywheel.cluster.knative_canary import read_traffic
from mlflywheel.cluster.standard_canary import count_replicas, read_shares


def route(*rules: dict[str, int | None], **more: object) -> dict[str, object]:
    refs = [
        {
            "backendRefs": [
                {"name": name} | ({} if weight is None else {"weight": weight}) for name, weight in one.items()
            ]
        }
        for one in rules
    ]
    return {"metadata": {"generation": 3}, "spec": {"rules": refs}, **more}


def test_shares_are_parts_of_the_sum_of_weights() -> None:
    shares = read_shares([route({"a": 30, "b": 10}), route({"a": 3, "b": 1}, {"a": 75, "b": 25})], ["x", "y"])
    assert (shares.percent, shares.problem) == ({"a": 75.0, "b": 25.0}, "")


def test_backend_without_a_weight_has_one() -> None:
    assert read_shares([route({"a": None, "b": 1})], ["x"]).percent == {"a": 50.0, "b": 50.0}


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ([None], "HTTPRoute x, which is not there"),
        ([route({"a": 1}, {"b": 1})], "to agree"),
        ([route({"a": 0})], "leads nowhere"),
        ([route()], "to get rules"),
    ],
)
def test_routes_that_do_not_say_one_thing_are_no_evidence(routes: list[dict[str, object] | None], problem: str) -> None:
    shares = read_shares(routes, ["x"])
    assert problem in shares.problem
    assert shares.percent == {}


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"status": "True"}, ""),
        ({"status": "True", "observedGeneration": 3}, ""),
        ({"status": "True", "observedGeneration": 2}, "the gateway to take up HTTPRoute x"),
        ({"status": "False", "reason": "NotAllowed"}, "the gateway to accept HTTPRoute x: NotAllowed"),
    ],
)
def test_gateway_has_to_know_the_weights(condition: dict[str, object], problem: str) -> None:
    status = {"parents": [{"conditions": [{"type": "Accepted", **condition}]}]}
    assert read_shares([route({"a": 1}, status=status)], ["x"]).problem.startswith(problem)
    assert bool(read_shares([route({"a": 1}, status=status)], ["x"]).problem) == bool(problem)


def test_replicas_are_rounded_up_and_never_none() -> None:
    assert [count_replicas(10, percent) for percent in (0, 1, 10, 11, 50, 100)] == [1, 1, 1, 2, 5, 10]


def test_patch_turns_one_spec_into_the_other_and_lists_are_whole() -> None:
    before = {"predictor": {"a": 1, "b": {"c": 1}, "gone": 1}, "canary": [{"x": 1}]}
    after = {"predictor": {"a": 1, "b": {"c": 2}, "new": {"d": 1}}}
    assert make_patch(before, after) == {"predictor": {"b": {"c": 2}, "gone": None, "new": {"d": 1}}, "canary": None}
    assert make_patch(after, after) == {}


def test_changes_name_the_innermost_field() -> None:
    changes = list(find_changes({"p": {"a": 1}, "canary": [1]}, {"p": {"a": 1, "n": {"x": 2}}}))
    assert [(one.field, one.before, one.after) for one in changes] == [
        ("spec.canary", [1], MISSING),
        ("spec.p.n.x", MISSING, 2),
    ]


def test_writer_of_a_field_is_known_and_writers_of_the_status_do_not_count() -> None:
    fields = {"f:spec": {"f:predictor": {"f:minReplicas": {}}}}
    entries = [
        {"manager": "status-writer", "subresource": "status", "fieldsV1": fields, "time": "t0"},
        {"manager": "kubectl-edit", "fieldsV1": fields, "time": "t1"},
        {"manager": "mlflywheel-rollout", "fieldsV1": {"f:spec": {"f:canary": {}}}, "time": "t2"},
    ]
    seen = InferenceService({"metadata": {"name": "ad", "managedFields": entries}})
    assert find_writer(seen, ["predictor", "minReplicas"]) == "kubectl-edit at t1"
    assert is_ours(seen, ["canary"])
    assert not is_ours(seen, ["predictor", "minReplicas"])
    assert find_writer(seen, ["predictor", "timeout"]) == ""


def test_mode_is_read_from_status_before_the_annotation_with_its_legacy_names() -> None:
    def mode(status: dict[str, str], annotation: str) -> str | None:
        metadata = {"name": "ad", "annotations": {"serving.kserve.io/deploymentMode": annotation}}
        return InferenceService({"metadata": metadata, "status": status}).mode

    assert mode({}, "RawDeployment") == "Standard"
    assert mode({"deploymentMode": "Serverless"}, "Standard") == "Knative"
    assert mode({"deploymentMode": "ModelMesh"}, "") == "ModelMesh"
    assert mode({}, "") is None
    assert name_predictor("ad", "v2") == "ad-v2-predictor"


def test_traffic_of_a_revision_with_two_entries_is_their_sum() -> None:
    traffic = [{"revisionName": "r1", "percent": 20, "latestRevision": True}, {"revisionName": "r1", "percent": 80}]
    status = {"components": {"predictor": {"traffic": traffic}}}
    assert read_traffic(InferenceService({"metadata": {}, "status": status})).percent == {"r1": 100.0}
