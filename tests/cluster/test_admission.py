"""The admission policies on a real API server: what this library makes passes, what runs something else is refused."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import Cluster, wait_until
from kserve_controller import KServe
from kubernetes import client
from rendered_manifests import MANIFESTS, ROOT, Document, Renderer, Rendering, kustomize, of_kind, only
from test_permissions import rendered

from mlflywheel.cluster.tuning import describe_access
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.reader import read_experiment

LABEL = "mlflywheel.io/admission"
#: Group, version and plural, by kind.
PLACES = {
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
    "ServingRuntime": ("serving.kserve.io", "v1alpha1", "servingruntimes"),
    "Experiment": ("kubeflow.org", "v1beta1", "experiments"),
    "Trial": ("kubeflow.org", "v1beta1", "trials"),
}
EVIL = "evil.example/miner:1"
EVIL_CONTAINER = {"name": "kserve-container", "image": EVIL}
EVIL_POD = {"containers": [EVIL_CONTAINER]}
PREDICTOR = "ghcr.io/mlflywheel/predictor:0.1.0"
TRIAL_POD = "spec.runSpec.spec.template.spec"
SEARCH_POD = "spec.trialTemplate.trialSpec.spec.template.spec"


class World:
    """A namespace in which the policies count, and one in which they do not."""

    def __init__(self, cluster: Cluster, guarded: str, free: str) -> None:
        self.cluster, self.guarded, self.free = cluster, guarded, free

    def create(self, document: Document, namespace: str, *, dry_run: bool = True) -> str:
        """Create an object, or see whether it could be; return why not, empty where it could."""
        group, version, plural = PLACES[document["kind"]]
        body = deepcopy(document)
        body["metadata"].pop("namespace", None)
        options = {"dry_run": "All"} if dry_run else {}
        resources = client.CustomObjectsApi(self.cluster.api_client())
        return attempt(
            lambda: resources.create_namespaced_custom_object(group, version, namespace, plural, body, **options)
        )


def attempt(call: Callable[[], Any]) -> str:
    """Return the API server's refusal; empty where there is none."""
    try:
        call()
    except client.ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


def change(document: Document, path: str, value: Any) -> Document:
    """A copy of a document with one field set; numbers are places in lists, and what is missing is made."""
    made = deepcopy(document)
    *names, last = path.split(".")
    target: Any = made
    for name in names:
        target = target[int(name)] if isinstance(target, list) else target.setdefault(name, {})
    if isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value
    return made


@contextmanager
def enforce(cluster: Cluster, *kinds: str) -> Iterator[World]:
    """The policies as the folder has them, under names of their own: the cluster may be somebody's."""
    guarded, free = cluster.create_namespace(), cluster.create_namespace()
    admission = client.AdmissionregistrationV1Api(cluster.api_client())
    delete = {
        "ValidatingAdmissionPolicy": admission.delete_validating_admission_policy,
        "ValidatingAdmissionPolicyBinding": admission.delete_validating_admission_policy_binding,
    }
    suffix = guarded.rpartition("-")[2]
    documents = kustomize(MANIFESTS / "admission")
    for document in documents:
        document["metadata"]["name"] += f"-{suffix}"
    allowed = only(documents, "ConfigMap")
    allowed["metadata"]["namespace"] = free
    policies = [one for one in documents if one is not allowed]
    for binding in of_kind(policies, "ValidatingAdmissionPolicyBinding"):
        binding["spec"]["policyName"] += f"-{suffix}"
        binding["spec"]["paramRef"] |= {"name": allowed["metadata"]["name"], "namespace": free}

    def apply(*some: Document) -> None:
        done = cluster.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", input=yaml.safe_dump_all(some))
        assert "Warning" not in done.stderr

    world = World(cluster, guarded, free)

    def is_refused(kind: str, because: str) -> bool:
        attack = {"apiVersion": "/".join(PLACES[kind][:2]), "kind": kind, "metadata": {"name": "a"}}
        attack["spec"] = {"containers": [EVIL_CONTAINER]} if kind == "ServingRuntime" else {"predictor": EVIL_POD}
        return because in world.create(attack, guarded)

    try:
        apply(*policies)
        client.CoreV1Api(cluster.api_client()).patch_namespace(guarded, {"metadata": {"labels": {LABEL: "enforced"}}})
        # Without the lists nothing is allowed.
        wait_until(partial(is_refused, kinds[0], "no params found"), 30, "the policies without their lists")
        apply(allowed)
        for kind in kinds:
            wait_until(partial(is_refused, kind, ". Fix: "), 30, f"the policy for {kind}")
        yield world
    finally:
        for document in policies:
            delete[document["kind"]](document["metadata"]["name"])
        for name in (guarded, free):
            cluster.delete_namespace(name)


@pytest.fixture(scope="module")
def world(cluster: Cluster, install_crds: Callable[[str], tuple[str, ...]]) -> Iterator[World]:
    for project in ("kserve", "katib"):
        install_crds(project)
    with enforce(cluster, *PLACES) as world:
        yield world


def documents_of(kind: str) -> list[tuple[str, Document]]:
    """What the folders make of a kind."""
    return [(folder, one) for folder, documents in rendered() for one in of_kind(documents, kind)]


def service() -> Document:
    return deepcopy(dict(documents_of("InferenceService"))["manifests/overlays/production"])


def runtime() -> Document:
    return deepcopy(documents_of("ServingRuntime")[0][1])


@cache
def searches() -> list[Experiment]:
    """The searches of the pipelines, with the variables that a run gives them."""
    access = {**describe_access("s3://bucket/train.parquet"), **describe_access("minio://bucket/train.parquet")}
    found = [
        read_experiment(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "pipelines").glob("*/experiment.yaml"))
    ]
    assert len(found) == 3
    return [one.with_environment({"MLFLYWHEEL_TRIAL": '{"data": "s3://a; b"}', **access}) for one in found]


def search() -> Document:
    return deepcopy(dict(searches()[0].document))


def trial(experiment: Document | None = None, **values: str) -> Document:
    """As Katib makes it of an Experiment: with the parameters' values put in as text."""
    experiment = search() if experiment is None else experiment
    spec = experiment["spec"]
    text = json.dumps(spec["trialTemplate"]["trialSpec"])
    text = re.sub(r"\$\{trialParameters\.(\w+)\}", lambda match: values.get(match[1], "0.5"), text)
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Trial",
        "metadata": {"name": "trial"},
        "spec": {
            "objective": spec["objective"],
            "parameterAssignments": [],
            "metricsCollector": {"collector": {"kind": "StdOut"}},
            "runSpec": json.loads(text),
        },
    }


MADE = {"InferenceService": service, "ServingRuntime": runtime, "Experiment": search, "Trial": trial}


def test_everything_of_the_manifests_passes(world: World, tmp_path: Path) -> None:
    logged = Renderer(tmp_path)(Rendering("manifests/overlays/cpu", ("monitoring", "logger")))
    services = [*documents_of("InferenceService"), ("logger", only(logged, "InferenceService"))]
    assert {one["metadata"]["name"] for _, one in services} >= {"ad-campaigns", "credit-decisions", "vehicle-prices"}
    for folder, document in [*services, *documents_of("ServingRuntime")]:
        assert (folder, world.create(document, world.guarded)) == (folder, "")


def test_searches_of_the_pipelines_pass_and_their_trials(world: World) -> None:
    for one in searches():
        document = deepcopy(dict(one.document))
        assert (one.name, world.create(document, world.guarded)) == (one.name, "")
        assert (one.name, world.create(trial(document), world.guarded)) == (one.name, "")


def test_canaries_of_a_rollout_pass(world: World) -> None:
    predictor = deepcopy(service()["spec"]["predictor"])
    predictor["model"] |= {"storageUri": "s3://models/2", "name": ""}
    canary = [{"trafficPercent": 10, "predictor": {**predictor, "name": "v2", "minReplicas": 2}}]
    assert world.create(change(service(), "spec.canary", canary), world.guarded) == ""


SERVICE_ATTACKS = [
    ("spec.predictor.model.image", EVIL, f"spec.predictor: image {EVIL};"),
    # A name that goes on is another image.
    (
        "spec.predictor.model.image",
        "ghcr.io/mlflywheel/predictor-of-mine:1",
        "image ghcr.io/mlflywheel/predictor-of-mine",
    ),
    ("spec.predictor.containers", [EVIL_CONTAINER], f"spec.predictor: image {EVIL};"),
    ("spec.transformer", EVIL_POD, f"spec.transformer: image {EVIL};"),
    ("spec.explainer", EVIL_POD, f"spec.explainer: image {EVIL};"),
    ("spec.canary", [{"trafficPercent": 1, "predictor": EVIL_POD}], f"spec.canary.predictor: image {EVIL};"),
    ("spec.predictor.initContainers", [EVIL_CONTAINER], "spec.predictor.initContainers;"),
    ("spec.predictor.workerSpec", EVIL_POD, "spec.predictor.workerSpec;"),
    ("spec.predictor.sklearn", {"storageUri": "s3://evil/pickle"}, "spec.predictor.sklearn;"),
    ("spec.predictor.serviceAccountName", "mlflywheel-pipelines", "serviceAccountName mlflywheel-pipelines;"),
    ("spec.predictor.serviceAccount", "mlflywheel-pipelines", "spec.predictor.serviceAccount;"),
    ("spec.predictor.automountServiceAccountToken", True, "spec.predictor.automountServiceAccountToken;"),
    ("spec.predictor.hostNetwork", True, "spec.predictor.hostNetwork;"),
    ("spec.predictor.volumes", [{"name": "node", "hostPath": {"path": "/"}}], "spec.predictor.volumes;"),
    ("spec.predictor.volumes", [{"name": "keys", "secret": {"secretName": "other"}}], "spec.predictor.volumes;"),
    # Our own image holds a Python.
    ("spec.predictor.model.command", ["python", "-c", "1"], "spec.predictor, container model: command;"),
    ("spec.predictor.model.env", [{"name": "PYTHONPATH", "value": "/mnt/models"}], "container model: env;"),
    ("spec.predictor.model.workingDir", "/mnt/models", "container model: workingDir;"),
    ("spec.predictor.model.lifecycle", {"postStart": {"exec": {"command": ["sh"]}}}, "container model: lifecycle;"),
    ("spec.predictor.model.livenessProbe", {"exec": {"command": ["sh"]}}, "container model: livenessProbe;"),
    ("spec.predictor.model.securityContext", {"privileged": True}, "container model: securityContext;"),
    ("spec.predictor.containers", [{"name": "c", "image": PREDICTOR, "command": ["sh"]}], "container c: command;"),
    # A format whose server runs what lies in the store.
    ("spec.predictor.model.modelFormat.name", "sklearn", "spec.predictor.model: format or runtime sklearn;"),
    ("spec.predictor.model.runtime", "kserve-huggingfaceserver", "format or runtime kserve-huggingfaceserver;"),
]
RUNTIME_ATTACKS = [
    ("spec.containers.0.image", EVIL, f"spec, container kserve-container: image {EVIL};"),
    ("spec.workerSpec", EVIL_POD, f"spec.workerSpec, container kserve-container: image {EVIL};"),
    ("spec.containers.0.securityContext.privileged", True, "container kserve-container: privileged;"),
    ("spec.hostIPC", True, "spec.hostIPC;"),
    ("spec.volumes.0", {"name": "node", "hostPath": {"path": "/"}}, "volume node: hostPath;"),
]
POD_ATTACKS = [
    ("containers.0.image", EVIL, f"container trial: image {EVIL};"),
    ("containers.0.image", "ghcr.io/mlflywheel/components-of-mine:1", "image ghcr.io/mlflywheel/components-of-mine:1;"),
    ("initContainers", [EVIL_CONTAINER], "pod: initContainers;"),
    ("serviceAccountName", "mlflywheel-pipelines", "serviceAccountName mlflywheel-pipelines;"),
    ("serviceAccount", "mlflywheel-pipelines", "pod: serviceAccount;"),
    ("automountServiceAccountToken", True, "a token is mounted;"),
    ("hostNetwork", True, "pod: hostNetwork;"),
    ("volumes", [{"name": "node", "hostPath": {"path": "/"}}], "pod: volumes;"),
    ("containers.0.command", ["python", "-c", "1"], "container trial: python -c 1 "),
    ("containers.0.args", ["a=1;curl", "evil.example"], "container trial: python -m mlflywheel.tuning.trial a=1;curl"),
    ("containers.0.env", [{"name": "PYTHONWARNINGS", "value": "all:0:antigravity.x:0:0"}], "trial: PYTHONWARNINGS;"),
    (
        "containers.0.env",
        [{"name": "AWS_SESSION_TOKEN", "valueFrom": {"secretKeyRef": {"name": "other", "key": "a"}}}],
        "container trial: AWS_SESSION_TOKEN;",
    ),
    ("containers.0.envFrom", [{"secretRef": {"name": "other"}}], "container trial: envFrom;"),
    ("containers.0.securityContext", {"privileged": True}, "container trial: securityContext;"),
    ("containers.0.lifecycle", {"postStart": {"exec": {"command": ["sh"]}}}, "container trial: lifecycle;"),
]
CUSTOM = {"kind": "Custom", "customCollector": {"name": "c", "image": EVIL}}
SEARCH_ATTACKS = [
    ("spec.trialTemplate.trialSpec.kind", "CronJob", "spec.trialTemplate.trialSpec: CronJob; a Job"),
    ("spec.trialTemplate.trialSpec.apiVersion", "batch/v2", "a Job of batch/v1 is needed"),
    ("spec.metricsCollectorSpec", {"collector": CUSTOM}, "a container of one's own"),
    (
        "spec.metricsCollectorSpec",
        {"collector": {"kind": "File"}, "source": {"fileSystemPath": {"kind": "File", "path": "/tmp/$(sh)"}}},
        "a plain path is needed",
    ),
]
ATTACKS = [
    *(("InferenceService", *one) for one in SERVICE_ATTACKS),
    *(("ServingRuntime", *one) for one in RUNTIME_ATTACKS),
    *(("Experiment", f"{SEARCH_POD}.{path}", value, told) for path, value, told in POD_ATTACKS),
    *(("Trial", f"{TRIAL_POD}.{path}", value, told) for path, value, told in POD_ATTACKS),
    *(("Experiment", *one) for one in SEARCH_ATTACKS),
    ("Trial", "spec.metricsCollector.collector", CUSTOM, "a container of one's own"),
    ("Trial", "spec.runSpec.kind", "Pod", "spec.runSpec: Pod; a Job"),
]


@pytest.mark.parametrize(("kind", "path", "value", "told"), ATTACKS, ids=lambda value: str(value)[:60])
def test_attack_is_refused_with_its_place_and_a_way_out(
    world: World, kind: str, path: str, value: Any, told: str
) -> None:
    attack = change(MADE[kind](), path, value)
    refusal = world.create(attack, world.guarded)
    assert "ValidatingAdmissionPolicy 'mlflywheel-" in refusal
    assert told in refusal
    assert ". Fix: " in refusal
    assert refusal.endswith(".")
    # The other namespace is nobody's business, and so the object is one that the API server would take.
    assert world.create(attack, world.free) == ""


def test_value_of_a_parameter_cannot_become_another_image(world: World) -> None:
    """Katib writes values into the template as text: what the Experiment does not show is seen in the Trial."""
    value = f'a"], "image": "{EVIL}", "env": ["'
    attack = search()
    attack["spec"]["parameters"][0]["feasibleSpace"]["list"].append(value)
    assert world.create(attack, world.guarded) == ""
    assert f"image {EVIL};" in world.create(trial(attack, algorithm=value), world.guarded)
    assert "lda;sh" in world.create(trial(attack, algorithm="lda;sh"), world.guarded)


def test_template_that_lies_elsewhere_is_refused(world: World) -> None:
    attack = search()
    place = {"configMapName": "templates", "configMapNamespace": world.free, "templatePath": "a.yaml"}
    attack["spec"]["trialTemplate"] = {
        **{key: value for key, value in attack["spec"]["trialTemplate"].items() if key != "trialSpec"},
        "configMap": place,
    }
    assert "spec.trialTemplate.trialSpec: nothing; a Job" in world.create(attack, world.guarded)


def test_account_of_a_rollout_moves_traffic_and_runs_nothing_else(world: World) -> None:
    namespace, rbac = world.guarded, client.RbacAuthorizationV1Api(world.cluster.api_client())
    role = yaml.safe_load((MANIFESTS / "rollouts" / "role.yaml").read_text(encoding="utf-8"))
    rbac.create_namespaced_role(namespace, role)
    name = role["metadata"]["name"]
    user = client.CustomObjectsApi(world.cluster.user_client(name, namespace))
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    rbac.create_namespaced_role_binding(namespace, binding)
    assert world.create(service(), namespace, dry_run=False) == ""

    def patch(predictor: dict[str, Any]) -> str:
        place = (
            *PLACES["InferenceService"][:2],
            namespace,
            PLACES["InferenceService"][2],
            service()["metadata"]["name"],
        )
        return attempt(lambda: user.patch_namespaced_custom_object(*place, {"spec": {"predictor": predictor}}))

    wait_until(lambda: patch({"minReplicas": 4}) == "", 10, "the role counts")
    assert patch({"model": {"storageUri": "s3://models/2"}}) == ""
    assert f"image {EVIL};" in patch({"containers": [EVIL_CONTAINER]})
    assert "serviceAccountName mlflywheel-rollouts;" in patch({"serviceAccountName": name})
    assert "container model: command;" in patch({"model": {"command": ["python", "-c", "1"]}})
    core = client.CoreV1Api(world.cluster.user_client(name, namespace))

    def make(name: str) -> str:
        return attempt(lambda: core.create_namespaced_config_map(namespace, {"metadata": {"name": name}}))

    wait_until(lambda: make("kfp-launcher"), 10, "the policy for records")
    assert "kfp-launcher; mlflywheel-rollouts makes records of rollouts" in make("kfp-launcher")
    assert make("ads-rollout") == ""
    somebody = client.CoreV1Api(world.cluster.api_client())
    assert (
        attempt(lambda: somebody.create_namespaced_config_map(namespace, {"metadata": {"name": "kfp-launcher"}})) == ""
    )


def test_what_was_there_before_can_be_changed_elsewhere_and_deleted(world: World) -> None:
    old = change(service(), "spec.predictor.model.image", EVIL)
    core, resources = client.CoreV1Api(world.cluster.api_client()), client.CustomObjectsApi(world.cluster.api_client())
    namespace = world.cluster.create_namespace()
    group, version, plural = PLACES["InferenceService"]
    place = (group, version, namespace, plural, old["metadata"]["name"])
    try:
        assert world.create(old, namespace, dry_run=False) == ""
        core.patch_namespace(namespace, {"metadata": {"labels": {LABEL: "enforced"}}})
        wait_until(lambda: world.create(change(old, "metadata.name", "new"), namespace), 10, "the label counts")
        assert (
            attempt(lambda: resources.patch_namespaced_custom_object(*place, {"metadata": {"labels": {"a": "b"}}}))
            == ""
        )
        more = {"spec": {"predictor": {"minReplicas": 5}}}
        assert EVIL in attempt(lambda: resources.patch_namespaced_custom_object(*place, more))
        assert attempt(lambda: resources.delete_namespaced_custom_object(*place)) == ""
    finally:
        world.cluster.delete_namespace(namespace)


@pytest.mark.long
def test_services_pass_as_kserve_completes_them(kserve: KServe) -> None:
    """KServe's webhooks write defaults into a service before a policy sees it."""
    with enforce(kserve.plane, "InferenceService", "ServingRuntime") as world:
        for kind in ("ServingRuntime", "InferenceService"):
            for folder, document in documents_of(kind):
                refusal = world.create(document, world.guarded)
                assert (folder, refusal) == (folder, "")
        # What KServe takes for a format of its own time ends in a model, and is seen there.
        old = change(service(), "spec.predictor.model", None)
        del old["spec"]["predictor"]["model"]
        old["spec"]["predictor"]["sklearn"] = {"storageUri": "s3://evil/pickle"}
        assert "'mlflywheel-services-" in world.create(old, world.guarded)


def test_the_page_says_what_the_policies_look_at() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert LABEL in page
    labels = [one["metadata"]["labels"] for one in of_kind([d for _, ds in rendered() for d in ds], "Namespace")]
    assert labels
    assert all(one[LABEL] == "enforced" for one in labels)
