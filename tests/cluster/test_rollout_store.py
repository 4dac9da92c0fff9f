"""A rollout's record and its lock on a real API server, with the rights that the manifests grant."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import Cluster, ControlPlane, wait_until
from kserve_controller import KServe, mark_deployment
from kubernetes import client

from mlflywheel.cluster import inference_services, rollout_lease
from mlflywheel.cluster.canary import open_actuator
from mlflywheel.cluster.kubernetes_client import Cluster as PatientCluster
from mlflywheel.cluster.kubernetes_client import Connection
from mlflywheel.cluster.rollout_store import KEY, LARGEST_BYTES, KubernetesStore, name_objects
from mlflywheel.decisions.canary.evidence import Arm, Window
from mlflywheel.decisions.canary.policy import Policy
from mlflywheel.errors import DataError, ForeignEditError, RolloutError
from mlflywheel.rollouts.interfaces import Candidate, Target
from mlflywheel.rollouts.record import Entry, Record

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
KSERVE = ("serving.kserve.io", "v1beta1")
#: One of those whose records manifests/rollouts/role.yaml names.
SERVICE = "ad-campaigns"
#: Of the locks that tests wait for.
LEASE_SECONDS = 3.0


def make_record(**changes: Any) -> Record:
    record = Record(
        id="r1",
        service=f"team/{SERVICE}",
        candidate=Candidate("s3://models/2", "v2"),
        policy=Policy(),
        source={},
        started=1_790_000_000.0,
    )
    return replace(record, **changes)


def make_service(cluster: Cluster, namespace: str, name: str = SERVICE) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/1"}
    body = {
        "apiVersion": "/".join(KSERVE),
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": {"model": model}},
    }
    made = client.CustomObjectsApi(cluster.api_client()).create_namespaced_custom_object(
        *KSERVE, namespace, "inferenceservices", body
    )
    return dict(made)


def read_service(cluster: Cluster, namespace: str) -> dict[str, Any]:
    return dict(
        client.CustomObjectsApi(cluster.api_client()).get_namespaced_custom_object(
            *KSERVE, namespace, "inferenceservices", SERVICE
        )
    )


@pytest.fixture
def service(cluster: Cluster, namespace: str, install_crds: Callable[[str], tuple[str, ...]]) -> dict[str, Any]:
    """An InferenceService in a namespace of its own."""
    install_crds("kserve")
    return make_service(cluster, namespace)


def connect(api: client.ApiClient) -> PatientCluster:
    connection = Connection(api, None, "the given client")
    return PatientCluster(connection, RolloutError, "manifests/rollouts", is_own=False, unavailable_seconds=5.0)


@pytest.fixture
def make_store(cluster: Cluster, namespace: str, service: dict[str, Any]) -> Callable[..., KubernetesStore]:
    """`make_store(...)` makes a store for the service with a connection of its own."""

    def make(api: client.ApiClient | None = None, **options: Any) -> KubernetesStore:
        uid = options.pop("uid", service["metadata"]["uid"])
        return KubernetesStore(connect(api or cluster.api_client()), namespace, SERVICE, uid, **options)

    return make


@pytest.fixture
def store(make_store: Callable[..., KubernetesStore]) -> KubernetesStore:
    return make_store()


def is_ready(cluster: Cluster, namespace: str) -> bool:
    conditions = read_service(cluster, namespace).get("status", {}).get("conditions") or ()
    return {one["type"]: one["status"] for one in conditions}.get("Ready") == "True"


def read_config_map(cluster: Cluster, store: KubernetesStore) -> Any:
    return client.CoreV1Api(cluster.api_client()).read_namespaced_config_map(store.name, store.namespace)


def read_lease(cluster: Cluster, store: KubernetesStore) -> Any:
    return client.CoordinationV1Api(cluster.api_client()).read_namespaced_lease(store.name, store.namespace)


def edit_lease(cluster: Cluster, store: KubernetesStore, **spec: Any) -> None:
    client.CoordinationV1Api(cluster.api_client()).patch_namespaced_lease(
        store.name, store.namespace, {"spec": spec}, field_manager="somebody-else"
    )


# The record.


def test_nothing_is_there_before_the_first_rollout(store: KubernetesStore) -> None:
    assert store.load() is None


def test_what_was_saved_is_loaded_elsewhere(make_store: Callable[..., KubernetesStore]) -> None:
    store = make_store()
    with store.lock("ann"):
        first = store.save(make_record().tell(Entry(1.0, "ann", "start", "because", {"n": 1})))
        assert first.version
        assert store.load() == first
        second = store.save(replace(first, message="waiting"))
    assert second.version != first.version
    assert make_store().load() == second


def test_record_goes_with_the_service(cluster: Cluster, store: KubernetesStore, service: dict[str, Any]) -> None:
    with store.lock("ann"):
        store.save(make_record())
        for made in (read_config_map(cluster, store), read_lease(cluster, store)):
            assert made.metadata.labels == {"app.kubernetes.io/managed-by": "mlflywheel"}
            (owner,) = made.metadata.owner_references
            assert (owner.kind, owner.name, owner.uid) == ("InferenceService", SERVICE, service["metadata"]["uid"])
            # Else the garbage collector's finalizer would hold up the service's deletion, and need more rights.
            assert not owner.controller
            assert not owner.block_owner_deletion


def test_writing_state_changes_nothing_of_the_service(cluster: Cluster, namespace: str, store: KubernetesStore) -> None:
    before = read_service(cluster, namespace)
    with store.lock("ann"):
        record = make_record()
        for number in range(5):
            record = store.save(replace(record, message=f"tick {number}"))
    after = read_service(cluster, namespace)
    assert after == before
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def make_kserve_namespace(kserve: KServe) -> str:
    """A namespace of KServe's, with a runtime for the service."""
    namespace = kserve.plane.create_namespace()
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "sklearn"},
        "spec": {
            "supportedModelFormats": [{"name": "sklearn", "autoSelect": True}],
            "containers": [{"name": "kserve-container", "image": "registry.example/predictor:1"}],
        },
    }
    client.CustomObjectsApi(kserve.plane.api_client()).create_namespaced_custom_object(
        "serving.kserve.io", "v1alpha1", namespace, "servingruntimes", runtime
    )
    return namespace


def test_writing_state_changes_no_pod_template_of_kserve(kserve: KServe) -> None:
    plane, namespace = kserve.plane, make_kserve_namespace(kserve)
    resources, apps = client.CustomObjectsApi(plane.api_client()), client.AppsV1Api(plane.api_client())
    uid = make_service(plane, namespace)["metadata"]["uid"]

    def read() -> dict[str, tuple[int, Any]]:
        found = apps.list_namespaced_deployment(namespace).items
        return {one.metadata.name: (one.metadata.generation, one.spec.template.to_dict()) for one in found}

    wait_until(read, 20, "KServe makes a Deployment")
    mark_deployment(apps, apps.read_namespaced_deployment(f"{SERVICE}-predictor", namespace))
    before = read()
    store = KubernetesStore(connect(plane.api_client()), namespace, SERVICE, uid)
    with store.lock("ann"):
        record = make_record()
        for number in range(5):
            record = store.save(replace(record, message=f"tick {number}"))

    # What KServe does with an annotation, in contrast; had it done anything before, that would show now too.
    body = {"metadata": {"annotations": {"example.com/state": "tick 5"}}}
    resources.patch_namespaced_custom_object(*KSERVE, namespace, "inferenceservices", SERVICE, body)
    wait_until(lambda: read() != before, 20, "the annotation reaches the pod template")
    ((name, (generation, template)),) = read().items()
    assert template["metadata"]["annotations"].pop("example.com/state") == "tick 5"
    assert (generation - 1, template) == before[name]


def test_foreign_edit_is_told_with_who_and_when(cluster: Cluster, store: KubernetesStore) -> None:
    with store.lock("ann"):
        stale = store.save(make_record())
        client.CoreV1Api(cluster.api_client()).patch_namespaced_config_map(
            store.name, store.namespace, {"data": {"note": "mine"}}, field_manager="kubectl-edit"
        )
        with pytest.raises(ForeignEditError, match=r"changed after it was read, and kubectl-edit wrote it at 20\d\d-"):
            store.save(replace(stale, message="later"))
        # Read anew, it goes on.
        found = store.load()
        assert found is not None
        assert store.save(replace(found, message="later")).version


def test_second_rollout_does_not_replace_the_first(make_store: Callable[..., KubernetesStore]) -> None:
    store = make_store()
    with store.lock("ann"):
        first = store.save(make_record())
        with pytest.raises(ForeignEditError, match="there already, and mlflywheel wrote it"):
            store.save(make_record(id="r2"))
        assert store.load() == first


def test_deleted_record_is_not_put_back(cluster: Cluster, store: KubernetesStore) -> None:
    with store.lock("ann"):
        record = store.save(make_record())
        client.CoreV1Api(cluster.api_client()).delete_namespaced_config_map(store.name, store.namespace)
        with pytest.raises(ForeignEditError, match="deleted"):
            store.save(record)
        assert store.load() is None


def test_write_that_was_done_without_an_answer_is_ours(store: KubernetesStore) -> None:
    api = store.cluster.connection.api
    real, sent = api.request, []

    def lose_first_answer(method: str, url: str, *arguments: Any, **options: Any) -> Any:
        if method not in ("POST", "PUT") or "configmaps" not in url:
            return real(method, url, *arguments, **options)
        sent.append(method)
        answer = real(method, url, *arguments, **options)
        if sent.count(method) == 1:
            raise client.ApiException(status=503, reason="cut off")
        return answer

    with store.lock("ann"):
        api.request = lose_first_answer
        first = store.save(make_record())
        second = store.save(replace(first, message="later"))
    assert sent == ["POST", "POST", "PUT", "PUT"]
    assert store.load() == second


def test_service_that_was_created_anew_has_no_record(
    cluster: Cluster, namespace: str, make_store: Callable[..., KubernetesStore]
) -> None:
    old = make_store()
    with old.lock("ann"):
        record = old.save(make_record())
    client.CustomObjectsApi(cluster.api_client()).delete_namespaced_custom_object(
        *KSERVE, namespace, "inferenceservices", SERVICE
    )
    uid = make_service(cluster, namespace)["metadata"]["uid"]
    store = make_store(uid=uid)
    # No garbage collector runs here, as none may have come by yet.
    assert read_config_map(cluster, store).data[KEY]
    assert store.load() is None
    with store.lock("ann"):
        fresh = store.save(make_record(id="r2"))
    assert store.load() == fresh
    # What still works on the old one notices.
    with old.lock("ann"), pytest.raises(ForeignEditError, match="deleted and created again"):
        old.save(replace(record, message="later"))
    assert old.load() is None
    with store.lock("ann"):
        pass
    assert [owner.uid for owner in read_lease(cluster, store).metadata.owner_references] == [uid]


def test_config_map_of_somebody_else_is_left_alone(cluster: Cluster, store: KubernetesStore) -> None:
    core = client.CoreV1Api(cluster.api_client())
    core.create_namespaced_config_map(
        store.namespace, {"metadata": {"name": store.name}, "data": {"a": "b"}}, field_manager="helm"
    )
    for act in (store.load, lambda: store.save(make_record())):
        with store.lock("ann"), pytest.raises(RolloutError, match="no record of a rollout, and helm wrote it") as told:
            act()
        assert f"kubectl delete configmap {store.name}" in told.value.fix
    assert read_config_map(cluster, store).data == {"a": "b"}


def test_record_that_was_broken_is_told(cluster: Cluster, store: KubernetesStore) -> None:
    with store.lock("ann"):
        store.save(make_record())
    client.CoreV1Api(cluster.api_client()).patch_namespaced_config_map(
        store.name, store.namespace, {"data": {KEY: "{}"}}
    )
    with pytest.raises(DataError, match=rf"{store.name}: no record of a rollout"):
        store.load()


def make_windows(count: int, text: str = "") -> tuple[Window, ...]:
    arm = Arm(1.0, 0.0)
    return tuple(Window(30.0 * n, 30.0 * (n + 1), 0, 5.0, arm, arm, f"{n} {text}") for n in range(count))


def test_record_that_grew_loses_its_oldest_windows_first(store: KubernetesStore) -> None:
    history = tuple(Entry(float(n), "ann", "advance", "", {"n": n}) for n in range(3))
    judge = {"state": "x" * 400_000}
    record = make_record(windows=make_windows(100, "x" * 10_000), history=history, judge=judge)
    with store.lock("ann"):
        saved = store.save(record)
    assert store.load() == saved
    assert len(saved.to_json()) <= LARGEST_BYTES
    # No more than had to go, and the latest stay.
    assert LARGEST_BYTES - len(saved.to_json()) < 11_000
    assert saved.windows == record.windows[-len(saved.windows) :]
    assert (saved.history, saved.judge) == (history, judge)


def test_evidence_of_the_history_goes_next_and_its_lines_stay(store: KubernetesStore) -> None:
    history = tuple(Entry(float(n), "ann", "advance", f"why {n}", {"x": "x" * 10_000}) for n in range(100))
    judge = {"state": "x" * 400_000}
    with store.lock("ann"):
        saved = store.save(make_record(windows=make_windows(3), history=history, judge=judge))
    assert store.load() == saved
    assert saved.windows == ()
    assert saved.judge == judge
    kept = [entry for entry in saved.history if "x" in entry.evidence]
    assert 50 < len(kept) < 70
    assert kept == list(history[-len(kept) :])
    assert [replace(one, evidence={}) for one in saved.history] == [replace(one, evidence={}) for one in history]


def test_the_judges_state_is_never_cut(store: KubernetesStore) -> None:
    with store.lock("ann"), pytest.raises(RolloutError, match=r"1,048,\d+ of them in `judge`"):
        store.save(make_record(judge={"state": "x" * LARGEST_BYTES}, windows=make_windows(100)))


def test_record_of_the_largest_size_is_taken(store: KubernetesStore) -> None:
    room = LARGEST_BYTES - len(make_record(message="").to_json())
    with store.lock("ann"):
        saved = store.save(make_record(message="x" * room))
        assert len(saved.to_json()) == LARGEST_BYTES
        assert store.load() == saved
        store.save(replace(saved, message="y" * room))


@pytest.mark.parametrize("length", [63, 246, 247, 253])
def test_longest_names_are_taken(cluster: Cluster, namespace: str, length: int) -> None:
    name = "a" * (length - 1) + "b"
    store = KubernetesStore(connect(cluster.api_client()), namespace, name, "11111111-2222-3333-4444-555555555555")
    with store.lock("ann"):
        assert store.load() is None
        saved = store.save(make_record(service=f"{namespace}/{name}"))
    assert store.load() == saved
    assert len(store.name) <= 253
    assert store.name != name_objects("a" * length)


# The lock.


def test_lock_is_named_renewed_and_given_back(cluster: Cluster, make_store: Callable[..., KubernetesStore]) -> None:
    store = make_store(lease_seconds=LEASE_SECONDS)
    assert not store.still_held
    with store.lock("ann"):
        assert store.still_held
        taken = read_lease(cluster, store)
        assert taken.spec.holder_identity.startswith("ann_")
        assert taken.spec.lease_duration_seconds == LEASE_SECONDS
        wait_until(lambda: read_lease(cluster, store).spec.renew_time > taken.spec.renew_time, 5, "a renewal")
        assert read_lease(cluster, store).spec.acquire_time == taken.spec.acquire_time
    assert not store.still_held
    assert not read_lease(cluster, store).spec.holder_identity
    # At once, for the next one.
    began = time.monotonic()
    with store.lock("bob"):
        assert time.monotonic() - began < LEASE_SECONDS * 2 / 3
        assert read_lease(cluster, store).spec.lease_transitions == 1


def test_by_default_it_lasts_a_minute(cluster: Cluster, store: KubernetesStore) -> None:
    with store.lock("ann"):
        assert read_lease(cluster, store).spec.lease_duration_seconds == 60


def test_lock_is_given_back_after_an_error(cluster: Cluster, store: KubernetesStore) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("ann"):
        raise ZeroDivisionError
    assert not read_lease(cluster, store).spec.holder_identity


def test_second_holder_is_told_who_since_when_and_until_when(make_store: Callable[..., KubernetesStore]) -> None:
    with make_store().lock("ann"), pytest.raises(RolloutError) as told, make_store().lock("bob"):
        pass
    error = told.value
    assert error.where.startswith("Lease ")
    assert error.seen.startswith("held by ann_")
    since = datetime.fromisoformat(error.seen.rpartition(" since ")[2])
    ends = datetime.fromisoformat(error.needed.partition("ends at ")[2].split()[0])
    assert timedelta(seconds=59) <= ends - since <= timedelta(seconds=62)
    assert abs(datetime.now(UTC) - since) < timedelta(seconds=10)


def test_one_of_many_gets_it(make_store: Callable[..., KubernetesStore]) -> None:
    stores = [make_store() for _ in range(6)]
    barrier, ended = threading.Barrier(6), threading.Event()
    refused: list[str] = []

    def take(number: int) -> bool:
        barrier.wait(10)
        try:
            with stores[number].lock(f"holder-{number}"):
                ended.wait(10)
                return True
        except RolloutError as error:
            refused.append(error.seen)
            if len(refused) == 5:
                ended.set()
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(take, range(6))) == 1
    assert ended.is_set()
    assert len({text.split()[2] for text in refused}) == 1


def test_killed_holder_is_followed_and_one_that_lives_is_not(
    cluster: Cluster, namespace: str, service: dict[str, Any], make_store: Callable[..., KubernetesStore]
) -> None:
    code = textwrap.dedent(f"""
        import sys, time
        from kubernetes import client, config
        from mlflywheel.cluster.kubernetes_client import Cluster, Connection
        from mlflywheel.cluster.rollout_store import KubernetesStore
        from mlflywheel.errors import RolloutError
        configuration = client.Configuration()
        config.load_kube_config(config_file=sys.argv[1], client_configuration=configuration)
        cluster = Cluster(Connection(client.ApiClient(configuration), None, "x"), RolloutError, "x", is_own=False)
        store = KubernetesStore(
            cluster, {namespace!r}, {SERVICE!r}, {service["metadata"]["uid"]!r}, lease_seconds={LEASE_SECONDS}
        )
        with store.lock("carl"):
            print("held", flush=True)
            time.sleep(60)
    """)
    store = make_store(lease_seconds=LEASE_SECONDS)
    with subprocess.Popen(
        [sys.executable, "-c", code, cluster.kubeconfig], stdout=subprocess.PIPE, env=os.environ | {"KUBECONFIG": ""}
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            # It lives, for longer than the lease: somebody who comes again and again is refused each time.
            end = time.monotonic() + 1.2 * LEASE_SECONDS
            while time.monotonic() < end:
                with pytest.raises(RolloutError, match="held by carl"), store.lock("ann"):
                    pass
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait(10)
    # A first tick may still be refused; the one after the lease's half goes on.
    # The server tells its time in whole seconds.
    time.sleep(LEASE_SECONDS / 2 + 1)
    began = time.monotonic()
    with store.lock("ann"):
        assert LEASE_SECONDS * 2 / 3 <= time.monotonic() - began < 3 * LEASE_SECONDS
        assert read_lease(cluster, store).spec.holder_identity.startswith("ann_")
        store.save(make_record())


@pytest.mark.parametrize("skew_minutes", [-10, 10])
def test_clocks_that_differ_make_no_second_holder(
    cluster: Cluster,
    make_store: Callable[..., KubernetesStore],
    monkeypatch: pytest.MonkeyPatch,
    skew_minutes: int,
) -> None:
    holding, other = (make_store(lease_seconds=LEASE_SECONDS) for _ in range(2))
    with holding.lock("ann"):
        # All that the second one reads from clocks of others is wrong: the times in the lease, or the server's.
        real = rollout_lease._read_time
        shift = 60.0 * skew_minutes

        def read(text: Any) -> float | None:
            seconds = real(text)
            return None if seconds is None else seconds + shift

        monkeypatch.setattr(rollout_lease, "_read_time", read)
        end = time.monotonic() + 1.2 * LEASE_SECONDS
        while time.monotonic() < end:
            with pytest.raises(RolloutError, match="held by ann"), other.lock("bob"):
                pass
        assert holding.still_held


@pytest.mark.parametrize("skew_minutes", [-10, 10])
def test_clocks_that_differ_do_not_keep_a_dead_holders_lease(
    cluster: Cluster, make_store: Callable[..., KubernetesStore], skew_minutes: int
) -> None:
    store = make_store(lease_seconds=1.0)
    with store.lock("ann"):
        pass
    skewed = (datetime.now(UTC) + timedelta(minutes=skew_minutes)).isoformat(timespec="microseconds")
    edit_lease(cluster, store, holderIdentity="dead", renewTime=skewed, acquireTime=skewed)
    with store.lock("bob"):
        assert read_lease(cluster, store).spec.holder_identity.startswith("bob_")


def test_what_lost_the_lease_writes_nothing(cluster: Cluster, make_store: Callable[..., KubernetesStore]) -> None:
    store = make_store(lease_seconds=LEASE_SECONDS)
    with store.lock("ann"):
        record = store.save(make_record())
        edit_lease(cluster, store, holderIdentity="bob_1")
        wait_until(lambda: not store.still_held, 5, "the loss is known")
        with pytest.raises(RolloutError, match=r"bob_1.* holds it now; nothing is written without the lock"):
            store.save(replace(record, message="later"))
        with pytest.raises(RolloutError, match="holds it now"):
            store.require_lock()
    assert store.load() == record
    # What is another's is not given back.
    assert read_lease(cluster, store).spec.holder_identity == "bob_1"


def test_lease_that_somebody_deletes_is_put_back(cluster: Cluster, make_store: Callable[..., KubernetesStore]) -> None:
    coordination = client.CoordinationV1Api(cluster.api_client())
    store = make_store(lease_seconds=LEASE_SECONDS)
    with store.lock("ann"):
        coordination.delete_namespaced_lease(store.name, store.namespace)

        def is_back() -> bool:
            return bool(coordination.list_namespaced_lease(store.namespace).items)

        wait_until(is_back, 5, "the lease")
        assert read_lease(cluster, store).spec.holder_identity.startswith("ann_")
        assert store.still_held
        store.save(make_record())


def test_lease_that_was_deleted_and_taken_is_lost(cluster: Cluster, make_store: Callable[..., KubernetesStore]) -> None:
    store = make_store(lease_seconds=LEASE_SECONDS)
    with store.lock("ann"):
        client.CoordinationV1Api(cluster.api_client()).delete_namespaced_lease(store.name, store.namespace)
        with make_store(lease_seconds=LEASE_SECONDS).lock("bob"):
            wait_until(lambda: not store.still_held, 5, "the loss is known")
            with pytest.raises(RolloutError, match=r"bob_.* holds it now"):
                store.save(make_record())


def test_edit_that_leaves_the_holder_does_not_take_the_lease(
    cluster: Cluster, make_store: Callable[..., KubernetesStore]
) -> None:
    store = make_store(lease_seconds=LEASE_SECONDS)
    with store.lock("ann"):
        edit_lease(cluster, store, leaseTransitions=7)
        before = read_lease(cluster, store).spec.renew_time
        wait_until(lambda: read_lease(cluster, store).spec.renew_time > before, 5, "a renewal")
        assert store.still_held
    assert not read_lease(cluster, store).spec.holder_identity


def test_lease_that_cannot_be_renewed_is_lost_before_it_can_be_taken(
    control_plane: ControlPlane, make_store: Callable[..., KubernetesStore]
) -> None:
    store = make_store(lease_seconds=LEASE_SECONDS)
    with store.lock("ann"):
        record = store.save(make_record())
        control_plane.stop_api_server(graceful=False)
        try:
            began = time.monotonic()
            wait_until(lambda: not store.still_held, 5, "the loss is known")
            assert time.monotonic() - began < LEASE_SECONDS * 2 / 3
            with pytest.raises(RolloutError, match=r"it was not renewed for \d\.\d s: "):
                store.save(replace(record, message="later"))
        finally:
            control_plane.start_api_server()
    assert make_store().load() == record


# Permissions.


def apply_role(cluster: Cluster, namespace: str, account: str, without: tuple[str, str, str] | None = None) -> None:
    """Bind an account to the Role of the manifests, or to what is left of it without one (group, resource, verb)."""
    role = yaml.safe_load((MANIFESTS / "rollouts" / "role.yaml").read_text(encoding="utf-8"))
    rules = [
        {key: rule[key] for key in ("resourceNames",) if key in rule}
        | {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
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


@pytest.fixture
def applied(cluster: Cluster, namespace: str, tmp_path: Path) -> list[Mapping[str, Any]]:
    """The folder of the manifests, applied to the test's namespace under strict validation."""
    for file in (MANIFESTS / "rollouts").glob("*.yaml"):
        lines = file.read_text(encoding="utf-8").splitlines()
        if file.name == "kustomization.yaml":
            lines = [f"namespace: {namespace}" if line.startswith("namespace: ") else line for line in lines]
        (tmp_path / file.name).write_text("\n".join(lines), encoding="utf-8")
    done = cluster.kubectl("apply", "--server-side", "--validate=strict", "-k", str(tmp_path))
    assert "Warning" not in done.stderr
    return list(yaml.safe_load_all(cluster.kubectl("kustomize", str(tmp_path)).stdout))


def test_account_of_the_manifests_may_do_what_a_store_does(
    cluster: Cluster, namespace: str, applied: list[Mapping[str, Any]], make_store: Callable[..., KubernetesStore]
) -> None:
    (account,) = [one for one in applied if one["kind"] == "ServiceAccount"]
    user = cluster.user_client(account["metadata"]["name"], namespace)
    store = make_store(user, lease_seconds=LEASE_SECONDS)
    with store.lock("cron"):
        saved = store.save(make_record())
        saved = store.save(replace(saved, message="tick"))
        assert store.load() == saved
        before = read_lease(cluster, store).spec.renew_time
        wait_until(lambda: read_lease(cluster, store).spec.renew_time > before, 5, "a renewal")
    with store.lock("cron"):
        pass
    core = client.CoreV1Api(user)
    forbidden: list[Callable[[], Any]] = [
        lambda: core.delete_namespaced_config_map(store.name, namespace),
        lambda: core.list_namespaced_config_map(namespace),
        # What redirects artifacts, and the keys' place: of the names that matter here none can be taken over.
        *(
            partial(act, name, namespace, **body)
            for name in ("kfp-launcher", "mlflywheel-store", "other-rollout")
            for act, body in (
                (core.read_namespaced_config_map, {}),
                (core.replace_namespaced_config_map, {"body": {"metadata": {"name": name}}}),
                (core.patch_namespaced_config_map, {"body": {"data": {"a": "b"}}}),
            )
        ),
        lambda: core.list_namespaced_secret(namespace),
        lambda: core.create_namespaced_pod(namespace, {}),
        lambda: client.CustomObjectsApi(user).delete_namespaced_custom_object(
            *KSERVE, namespace, "inferenceservices", SERVICE
        ),
        lambda: core.read_namespaced_config_map(store.name, "default"),
    ]
    for call in forbidden:
        with pytest.raises(client.ApiException) as refused:
            call()
        assert refused.value.status == 403
    # The right to create goes without names, and is no way around them.
    mine = client.CoreV1Api(cluster.api_client())
    mine.create_namespaced_config_map(namespace, {"metadata": {"name": "kfp-launcher"}, "data": {"a": "b"}})
    with pytest.raises(client.ApiException) as taken:
        core.create_namespaced_config_map(namespace, {"metadata": {"name": "kfp-launcher"}, "data": {"a": "c"}})
    assert taken.value.status == 409
    assert mine.read_namespaced_config_map("kfp-launcher", namespace).data == {"a": "b"}


def test_service_that_the_role_does_not_name_is_told_so(
    cluster: Cluster, namespace: str, service: dict[str, Any]
) -> None:
    apply_role(cluster, namespace, "runner")
    connection = connect(cluster.user_client("runner", namespace))
    store = KubernetesStore(connection, namespace, "other", service["metadata"]["uid"])
    with pytest.raises(RolloutError, match="Role with the verb get on configmaps/other-rollout is needed"):
        store.load()
    with (
        pytest.raises(RolloutError, match=r"Role with the verb get on leases\.coordination\.k8s\.io/other-rollout is"),
        store.lock("cron"),
    ):
        pass
    # Somebody else's object of the name stays as it is, also where it came after the store had looked.
    core = client.CoreV1Api(cluster.api_client())
    core.create_namespaced_config_map(namespace, {"metadata": {"name": store.name}, "data": {"a": "b"}})
    with pytest.raises(client.ApiException) as taken:
        client.CoreV1Api(connection.connection.api).create_namespaced_config_map(
            namespace, {"metadata": {"name": store.name}}
        )
    assert taken.value.status == 409
    assert read_config_map(cluster, store).data == {"a": "b"}


def test_manifests_grant_what_the_code_names_and_nothing_else() -> None:
    role = yaml.safe_load((MANIFESTS / "rollouts" / "role.yaml").read_text(encoding="utf-8"))
    granted = {
        f"{resource}.{group}".rstrip(".")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == inference_services._KINDS.keys() | {"configmaps", rollout_lease.RESOURCE}


def test_account_of_the_manifests_may_do_what_a_rollout_does(kserve: KServe) -> None:
    plane, namespace = kserve.plane, make_kserve_namespace(kserve)
    make_service(plane, namespace)
    apply_role(plane, namespace, "cron")
    api = plane.user_client("cron", namespace)
    real, answered = api.request, []

    def note(method: str, url: str, *arguments: Any, **options: Any) -> Any:
        try:
            answer = real(method, url, *arguments, **options)
        except client.ApiException as error:
            answered.append((method, url.rpartition("/namespaces/")[2], error.status))
            raise
        answered.append((method, url.rpartition("/namespaces/")[2], answer.status))
        return answer

    with kserve.play_cluster(namespace):
        wait_until(lambda: is_ready(plane, namespace), 20, "the service is ready")
        api.request = note
        actuator = open_actuator(connect(api), namespace, SERVICE)
        candidate = Candidate("s3://models/2", "v2")
        memo = actuator.begin(candidate)
        deployments = client.AppsV1Api(plane.api_client())

        def has_canary() -> bool:
            actuator.move(candidate, Target("weight", 50), memo)
            return len(deployments.list_namespaced_deployment(namespace).items) == 2

        wait_until(has_canary, 20, "the canary has its Deployment")
        wait_until(lambda: actuator.move(candidate, Target("rolled_back"), memo).reached, 20, "it is rolled back")
    api.request = real
    client.AutoscalingV2Api(api).delete_namespaced_horizontal_pod_autoscaler(f"{SERVICE}-predictor", namespace)
    assert {"deployments", "horizontalpodautoscalers", "httproutes", "inferenceservices"} <= {
        url.split("/")[1] for _, url, status in answered if status in (200, 404)
    }
    # KServe's configuration lies elsewhere, and is done without.
    refused = {url.partition("/")[0] for _, url, status in answered if status == 403}
    assert refused <= {"kserve", "kubeflow"}


@pytest.mark.parametrize("verb", ["get", "create", "update"])
@pytest.mark.parametrize(
    ("group", "resource", "told"),
    [("", "configmaps", "configmaps"), ("coordination.k8s.io", "leases", "leases.coordination.k8s.io")],
)
def test_missing_permission_is_named_with_the_manifest(
    cluster: Cluster,
    namespace: str,
    make_store: Callable[..., KubernetesStore],
    group: str,
    resource: str,
    verb: str,
    told: str,
) -> None:
    apply_role(cluster, namespace, "runner", without=(group, resource, verb))
    user = cluster.user_client("runner", namespace)
    told = told if verb == "create" else f"{told}/{name_objects(SERVICE)}"
    began = time.monotonic()

    def roll() -> None:
        # Twice: the first creates the lease, the second takes it.
        for _ in range(2):
            store = make_store(user)
            with store.lock("cron"):
                store.save(store.load() or make_record())

    with ExitStack() as stack:
        caught = stack.enter_context(pytest.raises(RolloutError, match=f"a Role with the verb {verb} on {told} is"))
        roll()
    assert caught.value.fix == "kubectl apply -k manifests/rollouts"
    assert time.monotonic() - began < 5
