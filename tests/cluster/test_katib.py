"""Searches by Katib on a real API server, with a stand-in for Katib's controllers."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from control_plane import Cluster, ControlPlane, wait_until
from katib_stand_in import GROUP, VERSION, KatibStandIn, Outcome
from kubernetes import client

from mlflywheel.cluster.katib import HASH_ANNOTATION, KatibTuner, name_experiment
from mlflywheel.cluster.kubernetes_client import Cluster as PatientCluster
from mlflywheel.cluster.kubernetes_client import connect
from mlflywheel.errors import TuningError, UsageError
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.reader import read_experiment

POLL_SECONDS = 0.02
INJECTION = "katib.kubeflow.org/metrics-collector-injection"
MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
DOCUMENT = yaml.safe_load(
    """
    apiVersion: kubeflow.org/v1beta1
    kind: Experiment
    metadata: {name: topics, labels: {team: search}}
    spec:
      objective: {type: minimize, objectiveMetricName: loss, additionalMetricNames: [seconds]}
      algorithm: {algorithmName: random}
      parallelTrialCount: 2
      maxTrialCount: 4
      parameters:
        - {name: topics, parameterType: int, feasibleSpace: {min: "4", max: "40"}}
      trialTemplate:
        primaryContainerName: trial
        trialParameters: [{name: topics, reference: topics}]
        trialSpec:
          apiVersion: batch/v1
          kind: Job
          spec:
            template:
              spec:
                restartPolicy: Never
                containers:
                  - {name: trial, image: image, command: [python, -m, train, --topics, "${trialParameters.topics}"]}
    """
)


def make_experiment(**spec: Any) -> Experiment:
    """An Experiment as the reader makes one, with fields of its spec replaced."""
    document = deepcopy(DOCUMENT)
    document["spec"] |= spec
    return read_experiment(yaml.safe_dump(document))


def outcomes(*losses: str) -> list[Outcome]:
    return [Outcome({"loss": [loss], "seconds": ["3"]}) for loss in losses]


FAILED = Outcome(
    condition="Failed", message="Trial has failed. Job message: Job has reached the specified backoff limit"
)


class Lines:
    """What a search reported."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int]] = []

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.all.append((phase, done, total))

    @property
    def text(self) -> str:
        return "\n".join(phase for phase, _, _ in self.all)

    @property
    def trials(self) -> list[tuple[int, int]]:
        return [(done, total) for phase, done, total in self.all if phase == "trials"]


@pytest.fixture
def katib_namespace(cluster: Cluster, namespace: str, install_crds: Callable[[str], tuple[str, ...]]) -> str:
    """A fresh namespace in which Katib collects metrics."""
    install_crds("katib")
    label_namespace(cluster, namespace, "enabled")
    return namespace


@pytest.fixture
def stand_in(cluster: Cluster, katib_namespace: str) -> Iterator[Callable[..., KatibStandIn]]:
    """`stand_in(outcomes, ...)` starts Katib's stand-in for the test."""
    started: list[KatibStandIn] = []

    def start(trials: Sequence[Outcome], **options: Any) -> KatibStandIn:
        started.append(KatibStandIn(cluster.api_client(), katib_namespace, trials, **options).__enter__())
        return started[-1]

    yield start
    for one in started:
        one.__exit__()


@pytest.fixture
def tuner(cluster: Cluster, katib_namespace: str) -> Callable[..., KatibTuner]:
    """`tuner(...)` makes an impatient tuner for the test's namespace."""

    def make(**options: Any) -> KatibTuner:
        given = {"namespace": katib_namespace, "poll_seconds": POLL_SECONDS, "timeout_seconds": 60.0}
        return KatibTuner(**{**given, "client": cluster.api_client(), **options})

    return make


def label_namespace(cluster: Cluster, namespace: str, value: str | None) -> None:
    client.CoreV1Api(cluster.api_client()).patch_namespace(namespace, {"metadata": {"labels": {INJECTION: value}}})


def list_all(cluster: Cluster, namespace: str, plural: str = "experiments") -> list[dict[str, Any]]:
    answer = client.CustomObjectsApi(cluster.api_client()).list_namespaced_custom_object(
        GROUP, VERSION, namespace, plural
    )
    return list(answer["items"])


def wait_for_experiment(cluster: Cluster, namespace: str) -> dict[str, Any]:
    wait_until(lambda: list_all(cluster, namespace), 10, "an Experiment")
    return list_all(cluster, namespace)[0]


def hold(tuner: Callable[..., KatibTuner], katib: KatibStandIn) -> None:
    """Start the search of `make_experiment`, leave it, and wait until Katib has come as far as it shall."""
    with pytest.raises(TuningError, match=r"not finished after .*the same command takes it up again"):
        tuner(timeout_seconds=0.2).search(make_experiment())
    assert katib.is_holding.wait(30)


# What a search finds.


def test_search_creates_one_named_experiment_and_reads_every_trial(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    lines, experiment = Lines(), make_experiment()
    result = tuner().search(experiment, lines)
    (created,) = list_all(cluster, katib_namespace)
    assert created["metadata"]["name"] == name_experiment(experiment) == result.facts["name"]
    assert created["metadata"]["annotations"][HASH_ANNOTATION] == experiment.spec_hash
    assert created["metadata"]["labels"] == {"team": "search", "app.kubernetes.io/managed-by": "mlflywheel"}
    assert created["spec"] == DOCUMENT["spec"]
    assert result.reason == "ExperimentMaxTrialsReached"
    assert [trial.objective for trial in result.trials] == [0.5, 0.25, 0.75, 0.4]
    assert result.best is not None
    assert result.best.name == f"{created['metadata']['name']}-00000001"
    assert result.best.parameters == {"topics": "17"}
    assert [(metric.name, metric.latest) for metric in result.best.metrics] == [("loss", 0.25), ("seconds", 3.0)]
    assert result.best.seconds is not None
    assert result.resumed == 0
    assert result.facts["trials"] == "all"
    assert lines.trials[-1] == (4, 4)
    assert [done for done, _ in lines.trials] == sorted(done for done, _ in lines.trials)


def test_goal_ends_a_search_early(stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]) -> None:
    stand_in(outcomes("0.5", "0.1", "0.75", "0.4"))
    objective = {**DOCUMENT["spec"]["objective"], "goal": 0.2}
    result = tuner().search(make_experiment(objective=objective))
    assert result.reason == "ExperimentGoalReached"
    assert result.best is not None
    assert result.best.objective == 0.1
    assert result.count("succeeded") == 2


def test_suggestions_that_end_are_a_reason(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.1"))
    assert tuner().search(make_experiment()).reason == "ExperimentSuggestionEndReached"


def test_trials_keep_how_they_ended(stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]) -> None:
    stopped = Outcome({"loss": ["0.9", "0.8"]}, "EarlyStopped", "Trial is early stopped")
    unavailable = Outcome({"loss": ["unavailable"]}, "MetricsUnavailable", "Metrics are not available")
    stand_in([*outcomes("0.5"), FAILED, stopped, unavailable])
    result = tuner().search(make_experiment())
    assert [trial.status for trial in result.trials] == ["succeeded", "failed", "early_stopped", "metrics_unavailable"]
    assert [trial.objective for trial in result.trials] == [0.5, None, 0.8, None]
    assert "backoff limit" in result.trials[1].message


def test_too_many_failures_end_in_an_error_that_says_what_failed(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in([*outcomes("0.5"), FAILED, FAILED, *outcomes("0.4")])
    with pytest.raises(TuningError, match=r"2 trials.*backoff limit") as caught:
        tuner().search(make_experiment(maxFailedTrialCount=2))
    assert "max failed count" in caught.value.seen
    assert "kubectl logs" in caught.value.fix


def test_refusal_by_the_algorithms_service_is_told(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5"), suggestion_failure="Validation failed: gamma must be in (0, 1)")
    with pytest.raises(TuningError, match="gamma must be in"):
        tuner().search(make_experiment())


def test_succeeded_experiment_without_a_good_trial_is_an_error(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in([FAILED] * 4)
    with pytest.raises(TuningError, match="none of which has a finite loss: 4 failed"):
        tuner().search(make_experiment())


def test_best_of_nan_is_replaced_by_the_best_number(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.3", "0.7", ""))
    result = tuner().search(make_experiment())
    assert result.best is not None
    assert result.best.objective == 0.3
    assert result.trials[3].objective is None
    assert "not a finite number" in result.trials[3].message
    assert any("Katib names" in note and "-00000003" in note for note in result.facts["notes"])


def test_only_nan_is_an_error(stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]) -> None:
    stand_in(outcomes("", "", "", ""))
    with pytest.raises(TuningError, match="none of which has a finite loss"):
        tuner().search(make_experiment())


# A second call.


def test_retried_call_takes_up_the_running_search(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    katib = stand_in(outcomes("0.5", "0.25", "0.75", "0.4"), holds_after=2)
    hold(tuner, katib)
    with pytest.raises(TuningError, match=r"not finished after 0.2 s, with 2 of 4 trials finished"):
        tuner(timeout_seconds=0.2).search(make_experiment())
    katib.go_on()
    result = tuner().search(make_experiment())
    assert len(list_all(cluster, katib_namespace)) == 1
    assert result.resumed >= 2
    assert (len(result.trials), result.facts["adopted"]) == (4, True)


def test_finished_search_is_read_again_at_once(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    with KatibStandIn(cluster.api_client(), katib_namespace, outcomes("0.5", "0.25", "0.75", "0.4")):
        first = tuner().search(make_experiment())
    again = tuner(poll_seconds=100.0).search(make_experiment())
    assert again.trials == first.trials
    assert again.resumed == 4
    assert len(list_all(cluster, katib_namespace)) == 1


def test_failed_search_of_an_earlier_call_has_to_be_deleted(
    stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in([FAILED] * 4)
    experiment = make_experiment(maxFailedTrialCount=1)
    with pytest.raises(TuningError):
        tuner().search(experiment)
    with pytest.raises(TuningError, match="failed in an earlier call") as caught:
        tuner().search(experiment)
    assert f"kubectl delete experiments.kubeflow.org {name_experiment(experiment)}" in caught.value.fix


def test_other_spec_is_another_experiment(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    tuner().search(make_experiment())
    tuner().search(make_experiment(maxTrialCount=2))
    assert len(list_all(cluster, katib_namespace)) == 2


@pytest.mark.parametrize("annotations", [{}, {HASH_ANNOTATION: "sha256:other"}])
def test_foreign_experiment_of_the_same_name_is_left_alone(
    cluster: Cluster,
    katib_namespace: str,
    tuner: Callable[..., KatibTuner],
    annotations: Mapping[str, str],
) -> None:
    experiment = make_experiment()
    foreign = {**DOCUMENT, "metadata": {"name": name_experiment(experiment), "annotations": annotations}}
    client.CustomObjectsApi(cluster.api_client()).create_namespaced_custom_object(
        GROUP, VERSION, katib_namespace, "experiments", foreign, field_manager="somebody-elses-tool"
    )
    with pytest.raises(TuningError, match=r"there already, created .* by somebody-elses-tool"):
        tuner(cleanup="always").search(experiment)
    assert len(list_all(cluster, katib_namespace)) == 1


def test_search_waits_for_an_earlier_one_to_be_gone(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    experiment = make_experiment()
    with KatibStandIn(cluster.api_client(), katib_namespace, outcomes("0.9"), holds_after=0) as katib:
        hold(tuner, katib)
    # With nobody to take its finalizer away, it stays in deletion.
    before = list_all(cluster, katib_namespace)[0]["metadata"]
    assert before["finalizers"]
    client.CustomObjectsApi(cluster.api_client()).delete_namespaced_custom_object(
        GROUP, VERSION, katib_namespace, "experiments", before["name"]
    )
    lines = Lines()
    timer = threading.Timer(0.5, lambda: stand_in(outcomes("0.5", "0.25", "0.75", "0.4")))
    timer.start()
    result = tuner().search(experiment, lines)
    timer.join()
    assert "which is being deleted" in lines.text
    assert not result.facts["adopted"]
    assert result.facts["uid"] != before["uid"]


# What goes wrong while it waits.


def test_search_outlives_a_restart_of_the_api_server(
    control_plane: ControlPlane,
    katib_namespace: str,
    stand_in: Callable[..., KatibStandIn],
    tuner: Callable[..., KatibTuner],
) -> None:
    katib = stand_in(outcomes("0.5", "0.25", "0.75", "0.4"), holds_after=2)
    lines = Lines()

    def restart() -> None:
        katib.is_holding.wait(20)
        control_plane.restart_api_server(graceful=False)
        katib.go_on()

    thread = threading.Thread(target=restart)
    thread.start()
    account = control_plane.user_client("runner", katib_namespace)
    apply_role(control_plane, katib_namespace, "runner")
    result = tuner(client=account).search(make_experiment(), lines)
    thread.join()
    assert "waiting for the API server" in lines.text
    assert "the API server answers again" in lines.text
    assert [trial.objective for trial in result.trials] == [0.5, 0.25, 0.75, 0.4]


def test_deleted_experiment_ends_the_search(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    katib = stand_in(outcomes("0.5", "0.25", "0.75", "0.4"), holds_after=2)

    def delete() -> None:
        katib.is_holding.wait(20)
        name = wait_for_experiment(cluster, katib_namespace)["metadata"]["name"]
        client.CustomObjectsApi(cluster.api_client()).delete_namespaced_custom_object(
            GROUP, VERSION, katib_namespace, "experiments", name
        )

    thread = threading.Thread(target=delete)
    thread.start()
    with pytest.raises(TuningError, match="deleted by somebody else, after 2 finished trials"):
        tuner().search(make_experiment())
    thread.join()


def test_without_a_controller_the_wait_says_so(tuner: Callable[..., KatibTuner]) -> None:
    lines = Lines()
    with pytest.raises(TuningError, match="Katib has not taken notice of it") as caught:
        tuner(timeout_seconds=1).search(make_experiment(), lines)
    assert "waiting: Katib has not taken notice of it" in lines.text
    assert "kubectl delete experiments.kubeflow.org" in caught.value.needed


def test_namespace_without_the_label_is_told(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    label_namespace(cluster, katib_namespace, None)
    hold(tuner, stand_in(outcomes("0.5"), holds_after=0))
    with pytest.raises(TuningError, match=f"lacks the label {INJECTION}=enabled"):
        tuner(timeout_seconds=0.2).search(make_experiment())


def test_webhooks_refusal_names_the_label_to_set(
    cluster: Cluster, katib_namespace: str, tuner: Callable[..., KatibTuner]
) -> None:
    # The same refusal as by Katib's webhook, from a policy that the API server evaluates itself.
    with (
        RefusingPolicy(cluster, katib_namespace, f'the namespace lacks label "{INJECTION}: enabled"'),
        pytest.raises(TuningError, match="lacks label") as caught,
    ):
        tuner().search(make_experiment())
    assert caught.value.fix == f"kubectl label namespace {katib_namespace} {INJECTION}=enabled"


def test_what_katib_refuses_is_a_usage_error(
    cluster: Cluster, katib_namespace: str, tuner: Callable[..., KatibTuner]
) -> None:
    with (
        RefusingPolicy(cluster, katib_namespace, "spec.objective.type must be minimize"),
        pytest.raises(UsageError, match=r"Katib refuses it: .*spec\.objective\.type must be minimize"),
    ):
        tuner().search(make_experiment())


def test_pods_that_cannot_start_are_told(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    hold(tuner, stand_in(outcomes("0.5", "0.4"), holds_after=1))
    name = name_experiment(make_experiment())
    label = {"katib.kubeflow.org/experiment": name}
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "image"'}
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit."}
    killed = {"reason": "OOMKilled", "exitCode": 137}
    make_pod(cluster, katib_namespace, f"{name}-a-1", {**label, "katib.kubeflow.org/trial": "a"}, [("trial", waiting)])
    make_pod(cluster, katib_namespace, f"{name}-b-1", {**label, "katib.kubeflow.org/trial": "b"}, [], [unschedulable])
    make_pod(
        cluster, katib_namespace, f"{name}-random", label, [("suggestion", {"reason": "CrashLoopBackOff"})], [], killed
    )
    make_event(cluster, katib_namespace, "Job", f"{name}-c", "FailedCreate", 'serviceaccount "trainer" not found')
    make_event(cluster, katib_namespace, "Job", "another-search", "FailedCreate", "not this one")
    with pytest.raises(TuningError) as caught:
        tuner(timeout_seconds=0.2).search(make_experiment())
    for told in (
        'a trial\'s pod waits: container trial: ImagePullBackOff: Back-off pulling image "image"',
        "a trial's pod has no node: 0/3 nodes fit",
        "the algorithm's pod waits: container suggestion: CrashLoopBackOff",
        "the algorithm's pod needs more memory: container suggestion: OOMKilled",
        'FailedCreate: serviceaccount "trainer" not found',
    ):
        assert told in caught.value.seen
    assert "not this one" not in caught.value.seen


def test_trial_pod_without_a_collector_is_told(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    hold(tuner, stand_in(outcomes("0.5", "0.4", "0.3"), holds_after=1))
    trial = f"{name_experiment(make_experiment())}-00000001"
    make_pod(cluster, katib_namespace, f"{trial}-xyz", {"job-name": trial}, [], phase="Succeeded")
    with pytest.raises(TuningError, match="has run, and no metrics collector was put beside it"):
        tuner(timeout_seconds=0.2).search(make_experiment())


def test_server_that_stays_away_ends_the_wait(
    control_plane: ControlPlane, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    hold(tuner, stand_in(outcomes("0.5", "0.25"), holds_after=1))

    def stop_server(phase: str, done: int, total: int) -> None:
        if "taken up" in phase:
            control_plane.stop_api_server(graceful=False)

    began = time.monotonic()
    try:
        with pytest.raises(TuningError, match=r"not finished after 1 s, with 1 of 4 .*the API server is away"):
            tuner(timeout_seconds=1).search(make_experiment(), stop_server)
        assert time.monotonic() - began < 10
        with pytest.raises(TuningError, match=r"no answer for \d+ s: .*refused") as caught:
            tuner(unavailable_seconds=0.5).search(make_experiment())
        assert str(control_plane.port) in caught.value.where
    finally:
        control_plane.start_api_server()


# Leaving it.


def test_cleanup_deletes_the_experiment_with_its_trials(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    result = tuner(cleanup="on_success").search(make_experiment())
    assert len(result.trials) == 4
    assert result.facts["notes"] == ["deleted, with its trials"]
    wait_until(lambda: not list_all(cluster, katib_namespace), 10, "no Experiment")
    assert list_all(cluster, katib_namespace, "trials") == []


def test_experiment_is_not_gone_before_its_trials_are(
    cluster: Cluster, katib_namespace: str, tuner: Callable[..., KatibTuner]
) -> None:
    # Katib finds trials by the Experiment's name: a new one must not meet those of the old one.
    with pytest.raises(TuningError, match="it is deleted, as cleanup asks for"):
        tuner(cleanup="always", timeout_seconds=0.2).search(make_experiment())
    (left,) = list_all(cluster, katib_namespace)
    assert left["metadata"]["deletionTimestamp"]
    assert left["metadata"]["finalizers"] == ["foregroundDeletion"]


@pytest.mark.parametrize(("cleanup", "left"), [("never", 1), ("on_success", 1), ("always", 0)])
def test_cleanup_after_an_error_happens_only_if_always(
    cluster: Cluster,
    katib_namespace: str,
    stand_in: Callable[..., KatibStandIn],
    tuner: Callable[..., KatibTuner],
    cleanup: str,
    left: int,
) -> None:
    with KatibStandIn(cluster.api_client(), katib_namespace, [FAILED] * 4):
        with pytest.raises(TuningError):
            tuner(cleanup=cleanup).search(make_experiment())
        if not left:
            wait_until(lambda: not list_all(cluster, katib_namespace), 10, "no Experiment")
    assert len(list_all(cluster, katib_namespace)) == left


@pytest.mark.parametrize("cleanup", ["never", "always"])
def test_ctrl_c_says_what_becomes_of_the_search(
    cluster: Cluster,
    katib_namespace: str,
    stand_in: Callable[..., KatibStandIn],
    tuner: Callable[..., KatibTuner],
    cleanup: str,
) -> None:
    katib = stand_in(outcomes("0.5", "0.25", "0.75", "0.4"), holds_after=2)
    lines = Lines()

    def interrupt() -> None:
        katib.is_holding.wait(20)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            tuner(cleanup=cleanup, poll_seconds=POLL_SECONDS).search(make_experiment(), lines)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    if cleanup == "always":
        assert "deleted, with its trials" in str(caught.value)
        wait_until(lambda: not list_all(cluster, katib_namespace), 10, "no Experiment")
    else:
        assert "the same command takes it up again, and kubectl delete experiments.kubeflow.org" in str(caught.value)
        katib.go_on()
        assert tuner().search(make_experiment()).resumed >= 2
    assert "interrupted; " in lines.text


# Permissions and what is not there.


def apply_role(cluster: Cluster, namespace: str, account: str, without: tuple[str, str, str] | None = None) -> None:
    """Bind an account to the Role of the manifests, or to what is left of it without one (group, resource, verb)."""
    role = yaml.safe_load((MANIFESTS / "katib" / "role.yaml").read_text(encoding="utf-8"))
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if (group, resource, verb) != without
    ]
    rbac = client.RbacAuthorizationV1Api(cluster.api_client())
    rbac.create_namespaced_role(namespace, {"metadata": {"name": account}, "rules": rules})
    rbac.create_namespaced_role_binding(
        namespace,
        {
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    )


@pytest.mark.parametrize(("folder", "account"), [("katib", "default-editor"), ("katib-standalone", "pipeline-runner")])
def test_manifests_grant_all_that_a_search_needs(
    cluster: Cluster,
    katib_namespace: str,
    stand_in: Callable[..., KatibStandIn],
    tuner: Callable[..., KatibTuner],
    tmp_path: Path,
    folder: str,
    account: str,
) -> None:
    for name in ("katib", "katib-standalone"):
        (tmp_path / name).mkdir()
        for file in (MANIFESTS / name).glob("*.yaml"):
            text = file.read_text(encoding="utf-8")
            if file.name == "kustomization.yaml":
                lines = text.splitlines()
                text = "\n".join(
                    f"namespace: {katib_namespace}" if line.startswith("namespace: ") else line for line in lines
                )
            (tmp_path / name / file.name).write_text(text, encoding="utf-8")
    cluster.kubectl("apply", "-k", str(tmp_path / folder))
    permitted = cluster.user_client(account, katib_namespace)
    # What explains a search that stands still is permitted too.
    katib = stand_in(outcomes("0.5", "0.25", "0.75", "0.4"), holds_after=1)
    with pytest.raises(TuningError, match="not finished") as caught:
        tuner(client=permitted, timeout_seconds=0.5).search(make_experiment())
    assert "could not be checked" not in caught.value.seen
    katib.go_on()
    result = tuner(client=permitted, cleanup="on_success").search(make_experiment())
    assert len(result.trials) == 4
    assert result.facts["trials"] == "all"
    assert result.facts["notes"] == ["deleted, with its trials"]


@pytest.mark.parametrize("verb", ["create", "get"])
def test_missing_permission_is_named_with_the_manifest(
    cluster: Cluster, katib_namespace: str, tuner: Callable[..., KatibTuner], verb: str
) -> None:
    apply_role(cluster, katib_namespace, "runner", without=(GROUP, "experiments", verb))
    began = time.monotonic()
    with pytest.raises(TuningError, match=f"a Role with the verb {verb} on experiments.kubeflow.org") as caught:
        tuner(client=cluster.user_client("runner", katib_namespace)).search(make_experiment())
    assert time.monotonic() - began < 5
    assert caught.value.fix == "kubectl apply -k manifests/katib"


def test_without_delete_the_result_is_kept(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    apply_role(cluster, katib_namespace, "runner", without=(GROUP, "experiments", "delete"))
    permitted = cluster.user_client("runner", katib_namespace)
    result = tuner(client=permitted, cleanup="on_success").search(make_experiment())
    assert "not deleted" in result.facts["notes"][0]
    assert "kubectl delete" in result.facts["notes"][0]


def test_without_list_of_trials_the_best_alone_is_read(
    cluster: Cluster, katib_namespace: str, stand_in: Callable[..., KatibStandIn], tuner: Callable[..., KatibTuner]
) -> None:
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    apply_role(cluster, katib_namespace, "runner", without=(GROUP, "trials", "list"))
    result = tuner(client=cluster.user_client("runner", katib_namespace)).search(make_experiment())
    assert [trial.objective for trial in result.trials] == [0.25]
    assert result.trials[0].parameters == {"topics": "17"}
    assert result.facts["trials"] == "the best only"
    assert "trials could not be listed" in result.facts["notes"][0]


@pytest.mark.parametrize(
    ("right", "told"),
    [
        ((GROUP, "suggestions", "get"), "the Suggestion (not permitted)"),
        (("", "pods", "list"), "pods (not permitted)"),
        (("", "events", "list"), "events (not permitted)"),
        (("", "namespaces", "get"), f"the label {INJECTION} of the namespace (not permitted)"),
    ],
)
def test_what_may_not_be_looked_at_is_told(
    cluster: Cluster,
    katib_namespace: str,
    tuner: Callable[..., KatibTuner],
    right: tuple[str, str, str],
    told: str,
) -> None:
    apply_role(cluster, katib_namespace, "runner", without=right)
    with pytest.raises(TuningError) as caught:
        tuner(client=cluster.user_client("runner", katib_namespace), timeout_seconds=0.3).search(make_experiment())
    assert f"could not be checked: {told}" in caught.value.seen


def test_missing_katib_is_told(assets: Path) -> None:
    # A server of its own: definitions that other tests use cannot be taken away.
    with ControlPlane(assets) as bare:
        tuner = KatibTuner(namespace="default", client=bare.api_client(), poll_seconds=POLL_SECONDS)
        with pytest.raises(TuningError, match="Katib has to be installed"):
            tuner.search(make_experiment())


def test_missing_namespace_is_told(tuner: Callable[..., KatibTuner]) -> None:
    with pytest.raises(TuningError, match="the namespace has to exist"):
        tuner(namespace="nowhere").search(make_experiment())


def test_kubeconfig_leads_to_the_cluster_and_its_namespace(
    cluster: Cluster,
    katib_namespace: str,
    stand_in: Callable[..., KatibStandIn],
    tuner: Callable[..., KatibTuner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text(encoding="utf-8"))
    config["contexts"][0]["context"]["namespace"] = katib_namespace
    (tmp_path / "config").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    stand_in(outcomes("0.5", "0.25", "0.75", "0.4"))
    result = tuner(client=None, namespace=None).search(make_experiment())
    assert result.facts["namespace"] == katib_namespace
    assert f"context test of {tmp_path / 'config'}" == result.facts["connection"]


def test_expired_token_is_read_again_once(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = yaml.safe_load(Path(cluster.kubeconfig).read_text(encoding="utf-8"))
    expired = deepcopy(good)
    expired["users"][0]["user"] = {"token": "expired"}
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(expired), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))

    def read(api: client.ApiClient) -> Any:
        return client.CustomObjectsApi(api).get_cluster_custom_object(
            "apiregistration.k8s.io", "v1", "apiservices", "v1."
        )

    patient = PatientCluster(connect(), TuningError, "a manifest", pause_seconds=0.01)
    with pytest.raises(TuningError, match="does not accept the credentials of context test"):
        patient.call("get", "apiservices", "-", read)
    path.write_text(yaml.safe_dump(good), encoding="utf-8")
    assert patient.call("get", "apiservices", "-", read)["kind"] == "APIService"
    patient.close()


def test_untrusted_certificate_is_told_at_once(
    cluster: Cluster, tuner: Callable[..., KatibTuner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text(encoding="utf-8"))
    config["clusters"][0]["cluster"]["certificate-authority"] = certifi.where()
    (tmp_path / "config").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    began = time.monotonic()
    with pytest.raises(TuningError, match="its certificate is not trusted"):
        tuner(client=None).search(make_experiment())
    assert time.monotonic() - began < 5


class RefusingPolicy:
    """The API server refuses Experiments of a namespace with a message, by a ValidatingAdmissionPolicy."""

    def __init__(self, cluster: Cluster, namespace: str, message: str) -> None:
        self._api = client.CustomObjectsApi(cluster.api_client())
        self._namespace, self._message = namespace, message
        self._core = client.CoreV1Api(cluster.api_client())

    def __enter__(self) -> None:
        place = ("admissionregistration.k8s.io", "v1")
        self._api.create_cluster_custom_object(
            *place,
            "validatingadmissionpolicies",
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": self._namespace},
                "spec": {
                    "matchConstraints": {
                        "resourceRules": [
                            {
                                "apiGroups": [GROUP],
                                "apiVersions": [VERSION],
                                "operations": ["CREATE"],
                                "resources": ["experiments"],
                            }
                        ]
                    },
                    # As Katib's webhook answers: 400.
                    "validations": [{"expression": "false", "message": self._message, "reason": "Invalid"}],
                },
            },
        )
        self._api.create_cluster_custom_object(
            *place,
            "validatingadmissionpolicybindings",
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": self._namespace},
                "spec": {
                    "policyName": self._namespace,
                    "validationActions": ["Deny"],
                    "matchResources": {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}}
                    },
                },
            },
        )
        wait_until(self._is_in_force, 20, "the policy")

    def __exit__(self, *_: object) -> None:
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            self._api.delete_cluster_custom_object("admissionregistration.k8s.io", "v1", plural, self._namespace)

    def _is_in_force(self) -> bool:
        probe = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Experiment", "metadata": {"name": "probe"}}
        try:
            self._api.create_namespaced_custom_object(
                GROUP, VERSION, self._namespace, "experiments", probe, dry_run="All"
            )
        except client.ApiException as error:
            return bool(error.status == 422)
        return False


def make_pod(
    cluster: Cluster,
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    waiting: Sequence[tuple[str, Mapping[str, Any]]],
    conditions: Sequence[Mapping[str, Any]] = (),
    last: Mapping[str, Any] | None = None,
    phase: str = "Pending",
) -> None:
    core = client.CoreV1Api(cluster.api_client())
    core.create_namespaced_pod(
        namespace,
        {"metadata": {"name": name, "labels": dict(labels)}, "spec": {"containers": [{"name": "c", "image": "image"}]}},
    )
    statuses = [
        {
            "name": container,
            "image": "image",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": dict(state)},
            "lastState": {"terminated": dict(last)} if last else {},
        }
        for container, state in waiting
    ]
    core.patch_namespaced_pod_status(
        name,
        namespace,
        {"status": {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses}},
    )


def make_event(cluster: Cluster, namespace: str, kind: str, name: str, reason: str, message: str) -> None:
    client.CoreV1Api(cluster.api_client()).create_namespaced_event(
        namespace,
        {
            "metadata": {"generateName": "event-"},
            "involvedObject": {"kind": kind, "name": name, "namespace": namespace},
            "reason": reason,
            "message": message,
            "type": "Warning",
        },
    )
