"""The Katib executor, as far as it needs no API server; its calls meet a scripted one on the loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from kubernetes import client

from mlflywheel.cluster import kubernetes_client
from mlflywheel.cluster.katib import KatibTuner, name_experiment, with_service_account
from mlflywheel.cluster.katib_status import count_finished, read_optimal, read_status, read_trials
from mlflywheel.cluster.kubernetes_client import Cluster, Connection, DeadlinePassedError, RefusedError, connect
from mlflywheel.errors import TuningError, UsageError
from mlflywheel.tuning.experiment import Collector, Experiment, Objective, Parameter, TrialTemplate

JOB: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"labels": {"owner": "me", "empty": ""}, "annotations": {"note": "two words"}},
    "spec": {"template": {"spec": {"containers": [{"name": "trial", "image": "image", "command": ["python"]}]}}},
}
PARAMETERS = (Parameter("rate", "double", 0.1, 1.0), Parameter("method", "categorical", values=("lda", "lsa")))


def make_experiment(
    command: Sequence[str] = ("python", "-m", "train"),
    arguments: Sequence[str] = (),
    *,
    name: str = "topics",
    algorithm: str = "random",
    parameters: tuple[Parameter, ...] = PARAMETERS,
    trial_parameters: Mapping[str, str] | None = None,
    collector: str = "StdOut",
    container: str = "trial",
) -> Experiment:
    job = deepcopy(JOB)
    written = job["spec"]["template"]["spec"]["containers"][0]
    written["command"] = list(command)
    written["args"] = list(arguments)
    references = dict(trial_parameters or {"rate": "rate", "method": "method"})
    return Experiment(
        name=name,
        objective=Objective("minimize", "loss"),
        algorithm=algorithm,
        settings={},
        parameters=parameters,
        template=TrialTemplate(container, references, job),
        collector=Collector(collector),
        document={"metadata": {"name": name}, "spec": {"trialTemplate": {"trialSpec": job}}},
    )


# What is refused.


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["python", "-m", "train", "--rate=${trialParameters.rate}"], ["--method", "${trialParameters.method}"]),
        (["sh", "-c", 'python train.py --title "two words" | tee log'], []),
        (["bash", "-c", "set -e\npython train.py"], []),
        (["bash", "train.sh"], []),
        (["./train", "s3://bucket/a,b", "x=1", "50%"], []),
    ],
)
def test_commands_that_a_shell_leaves_alone_pass(command: list[str], arguments: list[str]) -> None:
    KatibTuner().check(make_experiment(command, arguments))


@pytest.mark.parametrize(
    ("command", "arguments", "seen"),
    [
        ([], ["--rate", "1"], "no command"),
        (["python", "train.py", "two words"], [], "'two words'"),
        (["python", "train.py"], ['{"rate": 1}'], "rate"),
        (["python", "*.py"], [], "'*.py'"),
        (["python", "$(DATA)"], [], "DATA"),
        (["python", "${HOME}"], [], "HOME"),
        (["python", "~/train.py"], [], "train.py"),
        (["python", ""], [], "''"),
        (["RATE=1", "python"], [], "begins with RATE=1"),
        (["sh"], [], "sh alone"),
        (["sh", "-c", "python train.py", "x"], [], "2 words after sh -c"),
        (["sh", "-c"], [], "0 words after sh -c"),
        (["sh", "-c", "python train.py\n"], [], "ends in"),
        (["sh", "-c", "python train.py &"], [], "ends in"),
        (["sh", "-c", "python train.py # the model"], [], "ends in"),
        (["/bin/sh", "-c", "python train.py"], [], "'python train.py'"),
    ],
)
def test_commands_that_katib_would_change_are_refused(command: list[str], arguments: list[str], seen: str) -> None:
    with pytest.raises(UsageError) as caught:
        KatibTuner().check(make_experiment(command, arguments))
    assert seen in caught.value.seen


@pytest.mark.parametrize(
    ("value", "reference", "parameters"),
    [
        ("two words", "method", (Parameter("method", "categorical", values=("lda", "two words")),)),
        ("", "method", (Parameter("method", "categorical", values=("lda", "")),)),
        ("two words", "${trialSpec.Annotations[note]}", PARAMETERS),
        ("", "${trialSpec.Labels[empty]}", PARAMETERS),
    ],
)
def test_values_that_a_shell_would_change_are_refused(
    value: str, reference: str, parameters: tuple[Parameter, ...]
) -> None:
    experiment = make_experiment(
        ["python", "${trialParameters.given}"], parameters=parameters, trial_parameters={"given": reference}
    )
    with pytest.raises(UsageError, match=value or "an empty word"):
        KatibTuner().check(experiment)


def test_collectors_that_leave_commands_alone_need_none() -> None:
    KatibTuner().check(make_experiment([], collector="Push"))


def test_collector_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no trial of Katib ever ends"):
        KatibTuner().check(make_experiment(collector="None"))


def test_unknown_primary_container_is_refused() -> None:
    with pytest.raises(UsageError, match="container other: not in the trial's pod"):
        KatibTuner().check(make_experiment(container="other"))


@pytest.mark.parametrize(
    ("algorithm", "drawn"),
    [
        ("random", {"uniform", "logUniform", "normal", "logNormal"}),
        ("tpe", {"uniform", "logUniform", "normal", "logNormal"}),
        ("grid", {"uniform", "logUniform"}),
        ("multivariate-tpe", {"uniform", "logUniform"}),
        ("cmaes", {"uniform"}),
        ("sobol", {"uniform"}),
        ("hyperband", {"uniform"}),
        ("bayesianoptimization", {"logUniform"}),
    ],
)
def test_distributions_that_an_algorithm_does_not_draw_are_refused(algorithm: str, drawn: set[str]) -> None:
    refused = set()
    for distribution in ("uniform", "logUniform", "normal", "logNormal"):
        rate = Parameter("rate", "double", 0.1, 1.0, distribution=distribution)
        try:
            KatibTuner().check(make_experiment(algorithm=algorithm, parameters=(rate, PARAMETERS[1])))
        except UsageError as error:
            refused.add((error.where, error.seen.split(",")[0]))
    left = {"uniform", "logUniform", "normal", "logNormal"} - drawn
    assert refused == {("topics: spec.parameters rate", f"distribution {name}") for name in left}


@pytest.mark.parametrize("options", [{"cleanup": "sometimes"}, {"timeout_seconds": 0.0}])
def test_options_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        KatibTuner(**options)


# What is sent.


@pytest.mark.parametrize(
    ("name", "begins"),
    [("topics", "topics-"), ("a" * 40, "a" * 31 + "-"), ("a" * 30 + "-bcd", "a" * 30 + "-")],
)
def test_name_fits_katib_and_follows_the_spec(name: str, begins: str) -> None:
    experiment = make_experiment(name=name)
    given = name_experiment(experiment)
    assert given.startswith(begins)
    assert len(given) <= 40
    assert "--" not in given
    assert given == name_experiment(make_experiment(name=name))
    assert given != name_experiment(make_experiment(["python", "other"], name=name))


def test_service_account_reaches_the_pods_and_makes_another_search() -> None:
    experiment = make_experiment()
    changed = with_service_account(experiment, "trainer")
    for spec in (changed.document["spec"]["trialTemplate"]["trialSpec"], changed.template.spec):
        assert spec["spec"]["template"]["spec"]["serviceAccountName"] == "trainer"
    assert "serviceAccountName" not in json.dumps(experiment.document)
    assert name_experiment(changed) != name_experiment(experiment)
    KatibTuner(service_account="trainer").check(changed)
    with pytest.raises(UsageError, match="serviceAccountName trainer, and other is given"):
        KatibTuner(service_account="other").check(changed)


def test_namespace_that_nobody_names_is_refused(server: "ScriptedServer") -> None:
    with pytest.raises(UsageError, match="no namespace"):
        KatibTuner(client=server.api).search(make_experiment())


# What is read.


def make_trial(number: int, status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": f"trial-{number}", "creationTimestamp": f"2026-01-01T00:00:{10 - number:02d}Z"},
        "spec": {"parameterAssignments": [{"name": "rate", "value": "0.5"}]},
        "status": dict(status),
    }


def conditions(*kinds: str) -> list[dict[str, str]]:
    now = "2026-01-01T00:00:00Z"
    times = {"lastUpdateTime": now, "lastTransitionTime": now}
    return [{"type": kind, "status": "True", "reason": "r", "message": f"it is {kind}", **times} for kind in kinds]


def observe(**values: str) -> dict[str, Any]:
    return {"metrics": [{"name": "loss", **{"min": "unavailable", "max": "unavailable", "latest": ""} | values}]}


@pytest.mark.parametrize(
    ("values", "strategy", "expected"),
    [
        ({"min": "0.1", "max": "0.9", "latest": "0.5"}, "min", 0.1),
        ({"min": "0.1", "max": "0.9", "latest": "0.5"}, "max", 0.9),
        ({"min": "0.1", "max": "0.9", "latest": "0.5"}, "latest", 0.5),
        ({"latest": "0.5"}, "min", 0.5),
        ({"latest": ""}, "min", None),
        ({"latest": "nan"}, "latest", None),
        ({"min": "0.1", "max": "0.9", "latest": ""}, "latest", None),
        ({"min": "0.1", "max": "0.9", "latest": ""}, "min", 0.1),
        ({"min": "-inf", "max": "0.9", "latest": "0.9"}, "min", None),
    ],
)
def test_objective_is_the_strategys_value_if_it_is_finite(
    values: dict[str, str], strategy: Any, expected: float | None
) -> None:
    objective = Objective("minimize", "loss", strategies={"loss": strategy})
    status = {"conditions": conditions("Created", "Succeeded"), "observation": observe(**values)}
    (trial,) = read_trials(objective, [make_trial(0, status)])
    assert trial.objective == expected
    assert ("not a finite number" in trial.message) == (expected is None)


def test_trials_are_numbered_as_they_were_created() -> None:
    trials = read_trials(Objective("minimize", "loss"), [make_trial(number, {}) for number in range(3)])
    assert [(trial.number, trial.name) for trial in trials] == [(0, "trial-2"), (1, "trial-1"), (2, "trial-0")]
    assert [trial.status for trial in trials] == ["running"] * 3
    assert trials[0].parameters == {"rate": "0.5"}


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (["Created", "Running"], "running"),
        (["Created", "Succeeded"], "succeeded"),
        (["Created", "Failed"], "failed"),
        (["Created", "Killed", "Failed"], "killed"),
        (["Created", "EarlyStopped"], "early_stopped"),
        (["Created", "MetricsUnavailable"], "metrics_unavailable"),
    ],
)
def test_conditions_say_how_a_trial_stands(kinds: list[str], status: str) -> None:
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:30Z"}
    (trial,) = read_trials(Objective("minimize", "loss"), [make_trial(0, {"conditions": conditions(*kinds), **times})])
    assert trial.status == status
    assert trial.seconds == 90.0


def test_status_of_a_new_experiment_is_empty() -> None:
    status = read_status({"metadata": {"name": "e"}})
    assert (status.conditions, count_finished(status), read_optimal(Objective("minimize", "x"), None)) == (
        None,
        0,
        None,
    )


def test_status_of_another_shape_is_an_error() -> None:
    with pytest.raises(TuningError, match="Experiment e: a status that cannot be read"):
        read_status({"metadata": {"name": "e"}, "status": {"trials": "four"}})


# How the API server is spoken to.


class ScriptedServer:
    """Answers with what it is given, in order; the last answer stands for all that follow."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                status, body, headers = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        configuration = client.Configuration(host=f"http://127.0.0.1:{self._server.server_port}")
        configuration.retries = False
        configuration.proxy = None
        self.api = client.ApiClient(configuration)

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self.api.rest_client.pool_manager.clear()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    started = ScriptedServer()
    yield started
    started.stop()


@pytest.fixture
def ask(server: ScriptedServer) -> Callable[..., Any]:
    """`ask(answer, ...)` gets an Experiment from a server that answers so."""

    def call(*answers: tuple[int, Any, dict[str, str]], deadline: float | None = None, **options: Any) -> Any:
        server.answers = list(answers)
        given = {"is_own": False, "pause_seconds": 0.001, "unavailable_seconds": 5.0, **options}
        cluster = Cluster(Connection(server.api, None, "a test"), TuningError, "the manifest", **given)
        return cluster.call(
            "get",
            "experiments.kubeflow.org",
            "here",
            lambda api: client.CustomObjectsApi(api).get_namespaced_custom_object(
                "kubeflow.org", "v1beta1", "here", "experiments", "e"
            ),
            deadline,
        )

    return call


def refusal(code: int, message: str, **details: str) -> tuple[int, Any, dict[str, str]]:
    return code, {"kind": "Status", "code": code, "message": message, "details": details}, {}


GOOD = (200, {"kind": "Experiment"}, {})


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_server_that_is_away_is_asked_again(ask: Callable[..., Any], server: ScriptedServer, code: int) -> None:
    lines: list[str] = []
    assert ask(refusal(code, "wait."), refusal(code, "wait."), GOOD, told=lines.append) == {"kind": "Experiment"}
    assert len(server.paths) == 3
    assert lines == [
        f"waiting for the API server, 5 s at the most: HTTP {code}: wait",
        "the API server answers again",
    ]


def test_retry_after_is_kept_to(ask: Callable[..., Any]) -> None:
    began = time.monotonic()
    ask((429, "slow down", {"Retry-After": "1"}), GOOD)
    assert time.monotonic() - began >= 1.0


def test_page_of_a_login_is_no_answer(ask: Callable[..., Any]) -> None:
    with pytest.raises(TuningError, match=r"no answer for .*the answer is no JSON object: <html>log in"):
        ask((200, "<html>log in</html>", {}), unavailable_seconds=0.05)


def test_server_that_stays_away_is_given_up(ask: Callable[..., Any], server: ScriptedServer) -> None:
    with pytest.raises(TuningError, match="no answer for 0 s: HTTP 503: wait"):
        ask(refusal(503, "wait"), unavailable_seconds=0.1)
    assert len(server.paths) > 3


def test_deadline_comes_before_patience_ends(ask: Callable[..., Any]) -> None:
    with pytest.raises(DeadlinePassedError, match="HTTP 503: wait"):
        ask(refusal(503, "wait"), deadline=time.monotonic() + 0.05)


def test_missing_permission_is_an_error_at_once(ask: Callable[..., Any], server: ScriptedServer) -> None:
    with pytest.raises(TuningError, match=r"Role with the verb get on experiments\.kubeflow\.org") as caught:
        ask(refusal(403, 'User "me" cannot get resource "experiments" in API group "kubeflow.org"'))
    assert caught.value.fix == "kubectl apply -k the manifest"
    assert len(server.paths) == 1


def test_other_403_is_told_as_it_is(ask: Callable[..., Any]) -> None:
    with pytest.raises(TuningError, match="exceeded quota") as caught:
        ask(refusal(403, "exceeded quota: objects"))
    assert "Role" not in str(caught.value)


def test_permission_that_was_there_before_is_waited_for(ask: Callable[..., Any]) -> None:
    granted = {("get", "experiments.kubeflow.org")}
    forbidden = refusal(403, 'User "me" cannot get resource "experiments"')
    assert ask(forbidden, forbidden, (404, "404 page not found\n", {}), GOOD, _granted=granted) == {
        "kind": "Experiment"
    }


def test_credentials_that_are_not_accepted_are_an_error(ask: Callable[..., Any]) -> None:
    with pytest.raises(TuningError, match="does not accept the credentials of a test"):
        ask(refusal(401, "Unauthorized"))


def test_other_refusals_are_the_callers(ask: Callable[..., Any]) -> None:
    with pytest.raises(RefusedError) as missing:
        ask(refusal(404, 'experiments "e" not found', name="e", kind="experiments"))
    assert not missing.value.is_unknown_kind
    with pytest.raises(RefusedError) as unknown:
        ask((404, "404 page not found\n", {}))
    assert unknown.value.is_unknown_kind
    with pytest.raises(RefusedError, match="HTTP 400: no such algorithm"):
        ask(refusal(400, "no such algorithm"))


def test_address_where_nobody_listens_is_told(server: ScriptedServer) -> None:
    server.stop()
    tuner = KatibTuner(client=server.api, namespace="here", poll_seconds=0.01, unavailable_seconds=0.1)
    with pytest.raises(TuningError, match=r"no answer for 0 s: .*Connection refused") as caught:
        tuner.search(make_experiment())
    assert "127.0.0.1" in caught.value.where


# Which cluster.


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No pod, and a kubeconfig with two contexts."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [
            {"name": "first", "context": {"cluster": "c", "user": "u", "namespace": "mine"}},
            {"name": "second", "context": {"cluster": "c", "user": "u"}},
        ],
        "current-context": "first",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def test_kubeconfig_gives_the_namespace_of_its_context(outside: Path) -> None:
    current, second = connect(), connect("second")
    assert (current.namespace, second.namespace) == ("mine", None)
    assert current.source == f"context first of {outside}"
    assert current.api.configuration.host == "https://127.0.0.1:1"


def test_unknown_context_is_refused(outside: Path) -> None:
    with pytest.raises(UsageError, match="context third is needed"):
        connect("third")


@pytest.mark.parametrize("content", ["", "a: [", "[]", "clusters: []\ncurrent-context: ''\n"])
def test_broken_kubeconfig_is_refused(outside: Path, content: str) -> None:
    outside.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="kubeconfig"):
        connect()


def test_missing_kubeconfig_is_refused(outside: Path) -> None:
    outside.unlink()
    with pytest.raises(UsageError, match="no pod, and no kubeconfig at"):
        connect()


def test_pod_uses_its_service_account(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "serviceaccount"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(kubernetes_client, "SERVICE_ACCOUNT_FOLDER", folder)
    with pytest.raises(UsageError, match="automountServiceAccountToken"):
        connect()
    folder.mkdir()
    for name, text in {"token": "secret", "namespace": "profile", "ca.crt": Path(certifi.where()).read_text()}.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = connect()
    assert (found.namespace, found.source) == ("profile", "the pod's service account")
    assert found.api.configuration.host == "https://10.0.0.1:443"
    assert connect("first").namespace == "mine"
