"""Submission to Kubeflow Pipelines, against a stand-in, or against the server that MLFLYWHEEL_TEST_KFP_API names."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_stand_in import SECRET, Gate, Node, PipelinesStandIn, make_pipeline, play

from mlflywheel.client import Client
from mlflywheel.cluster import kubeflow_pipelines
from mlflywheel.cluster.kubeflow_pipelines import KubeflowPipelines
from mlflywheel.cluster.pipelines_access import Access, open_api
from mlflywheel.cluster.pipelines_api import COOKIES_VARIABLE
from mlflywheel.cluster.pipelines_compatibility import check_size
from mlflywheel.cluster.pipelines_records import RunSettings, Timing, Upload, read_interval
from mlflywheel.errors import DataError, GateRefusedError, RunError, UsageError
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline

REAL = os.environ.get("MLFLYWHEEL_TEST_KFP_API") or None
QUICK = (0.01, 0.02)
DATA = {"data": "s3://bucket/terms.csv"}
on_stand_in = pytest.mark.skipif(REAL is not None, reason="needs a server that is not the real one")


@pytest.fixture(autouse=True)
def _keep_out_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_UI_ENDPOINT", COOKIES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kubeflow_pipelines, "_LOOKUP_SECONDS", (0.01, 0.02, 0.03))


@pytest.fixture(scope="module")
def stand_in() -> Iterator[PipelinesStandIn | None]:
    if REAL is not None:
        yield None
        return
    with PipelinesStandIn() as server:
        yield server


@pytest.fixture
def gate(stand_in: PipelinesStandIn | None) -> Iterator[Gate]:
    """What stands before the server, which the code under test speaks to."""
    with Gate(REAL or (stand_in.url if stand_in else "")) as gate:
        yield gate


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pipelines(gate: Gate, told: list[str]) -> Iterator[KubeflowPipelines]:
    api = open_api(Access(gate.url), told.append)
    yield KubeflowPipelines(api)
    api.close()


@pytest.fixture
def name() -> str:
    return f"small-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def uploaded(pipelines: KubeflowPipelines, name: str) -> Upload:
    return pipelines.upload(make_pipeline(name), "small.yaml")


def count_runs(pipelines: KubeflowPipelines, name: str) -> int:
    found = pipelines.api.get(
        "runs",
        filter=json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]}),
    )
    return len(found.get("runs") or ())


def test_the_same_content_is_one_version(pipelines: KubeflowPipelines, gate: Gate, name: str) -> None:
    text = make_pipeline(name)
    first, again = pipelines.upload(text, "small.yaml"), pipelines.upload(text + "# a comment\n", "small.yaml")
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.version_id, again.hash) == (first.version_id, first.hash)
    assert first.version == f"{name}-{first.hash.removeprefix('sha256:')[:12]}"
    changed = pipelines.upload(make_pipeline(name, "other"), "small.yaml")
    assert changed.is_new
    assert changed.pipeline_id == first.pipeline_id
    assert changed.version != first.version
    assert first.link == f"{gate.url}/#/pipelines/details/{first.pipeline_id}/version/{first.version_id}"


def test_a_version_name_with_another_content_is_refused(pipelines: KubeflowPipelines, name: str) -> None:
    pipelines.upload(make_pipeline(name), "small.yaml", "release-1")
    assert not pipelines.upload(make_pipeline(name), "small.yaml", "release-1").is_new
    with pytest.raises(UsageError, match="another content") as refused:
        pipelines.upload(make_pipeline(name, "other"), "small.yaml", "release-1")
    assert "--version-name" in refused.value.fix


@pytest.mark.parametrize("path", ["pipelines$", "upload_version"])
def test_an_upload_whose_answer_is_lost_is_found(
    pipelines: KubeflowPipelines, gate: Gate, name: str, path: str
) -> None:
    gate.lost.append(("POST", path))
    uploaded = pipelines.upload(make_pipeline(name), "small.yaml")
    assert gate.lost == []
    assert gate.paths("POST").count("/apis/v2beta1/pipelines") == 1
    assert gate.paths("POST").count("/apis/v2beta1/pipelines/upload_version") == 1
    assert uploaded.pipeline == name


def test_a_run_gets_its_parameters(pipelines: KubeflowPipelines, uploaded: Upload) -> None:
    settings = RunSettings("team", "trainer", "s3://bucket/pipelines", "first")
    run = pipelines.start(uploaded, {**DATA, "confirmations": 2}, settings)
    found = pipelines.api.get(f"runs/{run.run_id}")
    assert found["runtime_config"] == {
        "parameters": {**DATA, "confirmations": 2}, "pipeline_root": "s3://bucket/pipelines",
    }  # fmt: skip
    assert (found["service_account"], found["display_name"]) == ("trainer", "first")
    assert found["pipeline_version_reference"]["pipeline_version_id"] == uploaded.version_id
    assert pipelines.api.get("experiments", page_size=50)["experiments"][-1]["display_name"]
    assert (run.state, run.name, run.pipeline) == ("pending", "first", uploaded.pipeline)
    assert run.artifacts == f"s3://bucket/pipelines/{uploaded.pipeline}/{run.run_id}"
    assert "first" in run._repr_html_()


def test_a_lost_answer_starts_no_second_run(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    name = uuid.uuid4().hex
    gate.lost.append(("POST", "/runs"))
    run = pipelines.start(uploaded, DATA, RunSettings(name=name))
    assert gate.lost == []
    assert run.name == name
    assert count_runs(pipelines, name) == 1


def test_a_server_that_is_away_is_asked_again(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    name = uuid.uuid4().hex
    gate.once.append(("POST .*/runs", 503, "text/plain", "no healthy upstream"))
    gate.once.append(("GET .*/experiments", 502, "text/plain", "bad gateway"))
    assert pipelines.start(uploaded, DATA, RunSettings(name=name)).name == name
    assert count_runs(pipelines, name) == 1


def test_what_the_server_refuses_is_told_in_its_words(pipelines: KubeflowPipelines, uploaded: Upload) -> None:
    with pytest.raises(RunError, match="parameter data is not optional"):
        pipelines.start(uploaded, {}, RunSettings())
    with pytest.raises(RunError, match="confirmations requires type double or integer"):
        pipelines.start(uploaded, {**DATA, "confirmations": "two"}, RunSettings())


def test_a_schedule_is_kept_and_replaced(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    daily = Timing(cron="0 0 6 * * *", no_catchup=True)
    first = pipelines.schedule(uploaded, DATA, RunSettings(), daily)
    assert (first.outcome, first.when, first.name, first.no_catchup) == (
        "created", "0 0 6 * * *", uploaded.pipeline, True,
    )  # fmt: skip
    kept = pipelines.schedule(uploaded, DATA, RunSettings(), daily)
    assert (kept.outcome, kept.schedule_id) == ("kept", first.schedule_id)
    gate.requests.clear()
    changed = pipelines.schedule(uploaded, DATA, RunSettings(), Timing(every_seconds=read_interval("24h")))
    assert (changed.outcome, changed.when, changed.max_concurrency) == ("replaced", "every 86400 s", 1)
    order = [method for method, path, _ in gate.requests if "recurringruns" in path and method != "GET"]
    assert order == ["POST", "DELETE"]
    assert [one.schedule_id for one in pipelines.schedules(uploaded.pipeline)] == [changed.schedule_id]
    assert [one.schedule_id for one in pipelines.delete_schedule(uploaded.pipeline)] == [changed.schedule_id]
    with pytest.raises(RunError, match="has none"):
        pipelines.delete_schedule(uploaded.pipeline)


def test_a_lost_answer_makes_no_second_schedule(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    gate.lost.append(("POST", "/recurringruns"))
    made = pipelines.schedule(uploaded, DATA, RunSettings(), Timing(cron="@daily"))
    assert made.outcome == "created"
    assert len(pipelines.schedules(uploaded.pipeline)) == 1


def test_a_schedule_of_somebody_else_is_not_replaced(pipelines: KubeflowPipelines, uploaded: Upload) -> None:
    made = pipelines.schedule(uploaded, DATA, RunSettings(), Timing(cron="@daily"))
    body = pipelines.api.get("recurringruns", page_size=100)["recurringRuns"][-1]
    keys = ("pipeline_version_reference", "runtime_config", "trigger", "mode", "max_concurrency", "experiment_id")
    pipelines.api.post("recurringruns", {**{key: body[key] for key in keys}, "display_name": made.name})
    with pytest.raises(UsageError, match="another program"):
        pipelines.schedule(uploaded, DATA, RunSettings(), Timing(cron="@weekly"))
    assert len(pipelines.delete_schedule(made.name)) == 2


def test_a_disabled_schedule_is_told_of(pipelines: KubeflowPipelines, uploaded: Upload, told: list[str]) -> None:
    made = pipelines.schedule(uploaded, DATA, RunSettings(), Timing(cron="@daily"))
    pipelines.api.post(f"recurringruns/{made.schedule_id}:disable", {})
    assert not pipelines.schedule(uploaded, DATA, RunSettings(), Timing(cron="@daily")).is_enabled
    assert "disabled" in told[-1]


@pytest.mark.parametrize(
    "timing", [{}, {"cron": "0 6 * * *"}, {"every_seconds": 0}, {"cron": "@daily", "every_seconds": 9}]
)
def test_a_schedule_that_cannot_be_meant_is_refused(timing: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError):
        Timing(**timing)


def test_five_fields_of_cron_get_the_missing_one() -> None:
    with pytest.raises(UsageError, match="six") as refused:
        Timing(cron="0 6 * * *")
    assert refused.value.fix == 'write --cron "0 0 6 * * *"'


def test_the_steps_of_a_run_are_told(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    events: list[Mapping[str, Any]] = []
    train = Node("3", "train-model", "Running", ("4",))
    play(gate.target, run.run_id, "Running", Node("1", "root-driver", "Succeeded"), train)
    looked = pipelines.follow(run.run_id, events.append, 0)
    assert [(task.name, task.state) for task in looked.tasks] == [("train-model", "running")]
    assert events == [{"event": "started", "step": "train-model"}]
    play(
        gate.target, run.run_id, "Succeeded", Node("3", "train-model", "Succeeded"), Node("4", "executor", "Succeeded"),
        Node("5", "refuse-model", "Omitted"),
    )  # fmt: skip
    ended = pipelines.follow(run.run_id, events.append, poll_seconds=QUICK)
    assert ended.state == "succeeded"
    assert [(task.name, task.state, task.seconds) for task in ended.tasks] == [
        ("train-model", "succeeded", 12.0), ("refuse-model", "skipped", None),
    ]  # fmt: skip
    assert events[1:] == [
        {"event": "started", "step": "train-model"}, {"event": "finished", "step": "train-model", "seconds": 12.0},
    ]  # fmt: skip
    assert ended.raise_for_status() is ended
    assert json.loads(json.dumps(ended.to_dict()))["tasks"][0]["name"] == "train-model"


def test_a_failed_step_is_named(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    play(gate.target, run.run_id, "Failed", Node("3", "train-model", "Failed", ("4",)), Node("4", "executor", "Failed"))
    ended = pipelines.follow(run.run_id, poll_seconds=QUICK)
    assert (ended.state, ended.failed_task) == ("failed", "train-model")
    with pytest.raises(RunError, match="step train-model") as failed:
        ended.raise_for_status()
    assert f"/#/runs/details/{run.run_id}" in failed.value.fix


def test_a_step_whose_driver_fails_is_named(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    play(
        gate.target, run.run_id, "Failed", Node("3", "train-model-driver", "Failed"),
        Node("4", "train-model", "Omitted"),
    )  # fmt: skip
    assert pipelines.follow(run.run_id, poll_seconds=QUICK).failed_task == "train-model"


def test_a_gate_that_said_no_is_no_failure(pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    play(
        gate.target, run.run_id, "Failed", Node("3", "train-model", "Succeeded"), Node("4", "refuse-model", "Failed"),
    )  # fmt: skip
    ended = pipelines.follow(run.run_id, poll_seconds=QUICK)
    assert ended.state == "gate_refused"
    with pytest.raises(GateRefusedError) as refused:
        ended.raise_for_status()
    assert refused.value.exit_code == 3


@on_stand_in
def test_the_error_of_a_step_is_read_from_its_log(
    pipelines: KubeflowPipelines, gate: Gate, uploaded: Upload, stand_in: PipelinesStandIn
) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    error = DataError("s3://bucket/terms.csv", "0 rows", "at least 1 row is needed", "export it again")
    event = json.dumps({"error": error.to_dict(), "seconds": 0.1})
    stand_in.logs["small-x1-retry-system-container-impl-6"] = (
        f"2026-11-21 17:00:00,000 ingestion started {{}}\n2026-11-21 17:00:01,000 ingestion failed {event}\n{error}\n"
    )
    play(
        gate.target, run.run_id, "Failed", Node("3", "train-model", "Failed", ("4",)),
        Node("4", "executor", "Failed", ("5", "6")), Node("5", "executor(0)", "Failed"),
        Node("6", "executor(1)", "Failed"),
    )  # fmt: skip
    ended = pipelines.follow(run.run_id, poll_seconds=QUICK)
    assert isinstance(ended.error, DataError)
    assert str(ended.error) == str(error)
    assert ended.log[-1] == str(error)


def test_watching_ends_and_the_run_goes_on(pipelines: KubeflowPipelines, uploaded: Upload) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())
    with pytest.raises(RunError, match="goes on") as over:
        pipelines.follow(run.run_id, timeout_seconds=0.05, poll_seconds=QUICK)
    assert f"mlflywheel follow {run.run_id}" in over.value.fix
    with pytest.raises(RunError, match="has none"):
        pipelines.follow("no-such-run")


def test_an_interruption_says_how_to_go_on(
    pipelines: KubeflowPipelines, uploaded: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipelines.start(uploaded, DATA, RunSettings())

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"goes on; follow it with mlflywheel follow {run.run_id}"):
        pipelines.follow(run.run_id)


def test_a_platform_document_is_kept_or_refused(pipelines: KubeflowPipelines, gate: Gate, name: str) -> None:
    text = make_pipeline(name)
    assert pipelines.upload(text + SECRET.format(setting="activeDeadlineSeconds"), "small.yaml").is_new
    unknown = text + SECRET.format(setting="settingOfTomorrow")
    with pytest.raises(UsageError, match="dropped the platform document"):
        pipelines.upload(unknown, "small.yaml")
    # What was stored without its secrets does not stay.
    assert [path for path in gate.paths("DELETE") if "/versions/" in path]
    assert pipelines.upload(unknown, "small.yaml", accept_losses=True).is_new


@on_stand_in
def test_an_older_server_is_told_before_the_upload(name: str) -> None:
    text = make_pipeline(name) + SECRET.format(setting="activeDeadlineSeconds")
    told: list[str] = []
    with PipelinesStandIn("2.14.3") as older, Gate(older.url) as gate:
        api = open_api(Access(gate.url), told.append)
        with pytest.raises(UsageError) as refused:
            KubeflowPipelines(api).upload(text, "small.yaml")
        assert "pipelineConfig.activeDeadlineSeconds (known since 2.17.0)" in refused.value.seen
        assert "exec-train-model.secretAsEnv.optional (known since 2.15.0): the step fails" in refused.value.seen
        assert gate.paths("POST") == []
        KubeflowPipelines(api).upload(make_pipeline(name), "small.yaml")
        assert "2.14.3 is older than the kfp 2.17.0" in told[-1]
        api.close()


def test_a_field_that_is_gone_is_a_loss_as_well(pipelines: KubeflowPipelines, name: str) -> None:
    with pytest.raises(UsageError, match=r"resourceTtl .*gone since 2\.17\.0"):
        pipelines.upload(make_pipeline(name) + SECRET.format(setting="resourceTtl"), "small.yaml")


def test_a_file_that_is_too_large_is_refused() -> None:
    check_size("x" * 1000, "small.yaml")
    with pytest.raises(UsageError, match=r"33\.0 MiB.*32 MiB"):
        check_size("x" * 33 * 2**20, "large.yaml")


@on_stand_in
def test_an_installation_for_several_users_needs_a_namespace(name: str) -> None:
    with PipelinesStandIn(is_multi_user=True) as server, Gate(server.url) as gate:
        without, inside = open_api(Access(gate.url)), open_api(Access(gate.url, namespace="team-a"))
        with pytest.raises(UsageError, match="no namespace is known"):
            KubeflowPipelines(without).upload(make_pipeline(name), "small.yaml")
        gate.requests.clear()
        KubeflowPipelines(inside).start(
            KubeflowPipelines(inside).upload(make_pipeline(name), "small.yaml"), DATA, RunSettings()
        )
        lists = [
            path for method, path, _ in gate.requests if method == "GET" and ("names/" in path or "experim" in path)
        ]
        assert lists
        assert all("namespace=team-a" in path for path in lists)
        without.close()
        inside.close()


@pytest.mark.parametrize(
    ("status", "kind", "body", "seen", "fix"),
    [
        (401, "application/json", '{"code":16,"message":"no user identity header"}', "who asks", "--token-file"),
        (403, "application/json", '{"code":7,"message":"User is nobody"}', "not permitted: User", "kubeflow-edit"),
        (
            403, "application/json",
            '{"kind":"Status","message":"services \\"ml-pipeline:http\\" is forbidden: cannot get services/proxy"}',
            "not permitted", "Role",
        ),
        (200, "text/html", "<!DOCTYPE html><title>Dex</title>", "login", "--token-file"),
        (302, "text/html", "", "redirect to login.example", "--context"),
        (404, "text/plain", "404 page not found", "HTTP 404", "/pipeline"),
        (404, "text/html", "<html>", "HTTP 404", "/pipeline"),
        (200, "application/json", "[]", "no JSON object", "--host"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_fix(
    pipelines: KubeflowPipelines, gate: Gate, status: int, kind: str, body: str, seen: str, fix: str
) -> None:
    gate.instead.append(("healthz", status, kind, body))
    with pytest.raises(RunError) as refused:
        pipelines.server()
    assert seen in refused.value.seen
    assert fix in refused.value.fix


def test_a_server_that_cannot_be_reached_is_told(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for url, seen, fix in (
        ("http://127.0.0.1:1", "refused", "port-forward"),
        (gate.url.replace("http:", "https:"), "no TLS", "http://"),
    ):
        api = open_api(Access(url))
        api.patience_seconds = 0.0
        with pytest.raises(RunError) as failed:
            KubeflowPipelines(api).server()
        assert seen in failed.value.seen
        assert fix in failed.value.fix
        api.close()


def test_secrets_are_sent_and_never_shown(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("first-token\n")
    monkeypatch.setenv("MLFLYWHEEL_PIPELINES_COOKIES", "authservice_session=the-session")
    api = open_api(Access(gate.url, token_file=token))
    api.get("healthz")
    token.write_text("second-token\n")
    gate.instead.append(("healthz", 403, "text/plain", "bad second-token and the-session"))
    with pytest.raises(RunError) as refused:
        api.get("healthz")
    assert [headers.get("Authorization") for _, _, headers in gate.requests] == [
        "Bearer first-token", "Bearer second-token",
    ]  # fmt: skip
    assert gate.requests[0][2]["Cookie"] == "authservice_session=the-session"
    assert "second-token" not in str(refused.value)
    assert "the-session" not in str(refused.value)
    assert "first-token" not in repr(api)
    api.close()


@pytest.mark.parametrize(
    ("access", "match"),
    [
        (Access("https://user:secret@kubeflow.example"), "user or password"),
        (Access("ftp://kubeflow.example"), "not a URL"),
        (Access("http://127.0.0.1:1", context="kind"), "together with --context"),
        (Access("http://127.0.0.1:1", token_file=Path("missing")), "token file missing"),
        (Access("http://127.0.0.1:1", ca_file=Path("missing")), "no file missing"),
        (Access(), "no host"),
    ],
)
def test_an_access_that_cannot_be_meant_is_refused(
    access: Access, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=match) as refused:
        open_api(access)
    assert "secret" not in str(refused.value)


def test_a_token_over_plain_http_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    told: list[str] = []
    for host in (
        "http://kubeflow.example",
        "http://127.0.0.1:8888",
        "http://ml-pipeline.kubeflow.svc.cluster.local:8888",
    ):
        open_api(Access(host, token_file=tmp_path / "token"), told.append).close()
    assert len(told) == 1
    assert "unencrypted to kubeflow.example" in told[0]


@pytest.fixture
def through_cluster(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    """The gate as the API server of a cluster, which a kubeconfig leads to."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "team",
        "clusters": [{"name": "c", "cluster": {"server": gate.url}}],
        "users": [{"name": "u", "user": {"token": "cluster-token"}}],
        "contexts": [{"name": "team", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    gate.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    return Access(context="team")


def test_a_kubeconfig_leads_through_the_cluster(gate: Gate, name: str, tmp_path: Path, through_cluster: Access) -> None:
    compiled = tmp_path / "small.yaml"
    compiled.write_text(make_pipeline(name))
    uploaded = Client().upload(compiled, server=through_cluster)
    assert uploaded.is_new
    assert uploaded.link is None
    assert {headers.get("authorization") for _, _, headers in gate.requests} == {"Bearer cluster-token"}


def test_a_log_that_the_server_lost_is_read_from_the_pod(gate: Gate, name: str, through_cluster: Access) -> None:
    api = open_api(through_cluster)
    pipelines = KubeflowPipelines(api)
    run = pipelines.start(pipelines.upload(make_pipeline(name), "small.yaml"), DATA, RunSettings())
    play(gate.target, run.run_id, "Failed", Node("3", "train-model", "Failed", ("4",)), Node("4", "executor", "Failed"))
    pods = [
        {
            "metadata": {
                "name": pod,
                "creationTimestamp": f"2026-11-21T17:00:0{second}Z",
                "annotations": {"workflows.argoproj.io/node-name": f"small-x1.root.{step}.executor"},
            }
        }
        for second, (pod, step) in enumerate([("pod-of-train", "train-model"), ("pod-of-another", "score-table")])
    ]
    gate.instead.append(("pods[?].*runid", 200, "application/json", json.dumps({"kind": "PodList", "items": pods})))
    gate.instead.append(("pods/pod-of-train/log", 200, "text/plain", "one\ntwo cluster-token\n"))
    ended = pipelines.follow(run.run_id, poll_seconds=QUICK)
    assert ended.log == ("one", "two ***")
    api.close()


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_every_pipeline_of_the_library_is_taken(gate: Gate, pipelines: KubeflowPipelines, pipeline: Pipeline) -> None:
    image = f"registry.example/team/components@sha256:{uuid.uuid4().hex * 2}"
    events: list[Mapping[str, Any]] = []
    run = Client().submit(pipeline.name, "s3://bucket/t.csv", image=image, server=gate.url, on_event=events.append)
    assert run.state == "pending"
    uploaded = events[0]["upload"]
    assert pipelines.api.get(f"runs/{run.run_id}")["runtime_config"]["parameters"]["data"] == "s3://bucket/t.csv"
    version = pipelines.api.get(f"pipelines/{uploaded.pipeline_id}/versions/{uploaded.version_id}")["pipeline_spec"]
    version = version.get("pipeline_spec", version)
    assert {one["container"]["image"] for one in version["deploymentSpec"]["executors"].values()} == {image}
    assert "ghcr.io/mlflywheel" not in json.dumps(version)
    timing = Timing(cron="0 0 6 * * *", name=f"{pipeline.name}-{run.run_id}")
    made = pipelines.schedule(uploaded, {"data": "s3://bucket/t.csv"}, RunSettings(), timing)
    assert pipelines.delete_schedule(timing.name) == [replace(made, outcome="")]


def test_a_schedule_says_in_its_runs_that_it_started_them(
    gate: Gate, pipelines: KubeflowPipelines, name: str, tmp_path: Path
) -> None:
    compiled = tmp_path / "small.yaml"
    compiled.write_text(make_pipeline(name))
    made = Client().schedule(compiled, Timing(cron="@daily"), "s3://bucket/t.csv", server=gate.url)
    (stored,) = pipelines._list(
        "recurringruns", "recurringRuns", {"operation": "EQUALS", "key": "display_name", "string_value": made.name}
    )
    assert stored["runtime_config"]["parameters"] == {"data": "s3://bucket/t.csv", "trigger": "scheduled"}
    assert [one.name for one in Client().schedules(server=gate.url) if one.name == name] == [name]
    assert len(Client().delete_schedule(name, server=gate.url)) == 1
