"""The fixture itself: a real API server that validates, guards, keeps and serves, and that leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cluster_tools import KSERVE_FILES, TOOLS, tools_folder
from control_plane import Cluster, ClusterError, ControlPlane, wait_until
from custom_resources import NoDefinitionError, install_definitions
from kubernetes import client

HERE = Path(__file__).resolve().parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")


def config_map(name: str, **data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def gauge_definition(group: str) -> dict[str, object]:
    """A kind with a schema and a status subresource."""
    status = {"type": "object", "properties": {"reading": {"type": "integer"}}}
    spec = {"type": "object", "properties": {"limit": {"type": "integer"}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
    }
    names = {"kind": "Gauge", "plural": "gauges", "singular": "gauge"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"gauges.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def living(groups: list[int]) -> list[int]:
    """Processes of these groups, without those that ended and wait for somebody to read their status."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z" and int(group) in groups:
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def core(cluster: Cluster) -> client.CoreV1Api:
    return client.CoreV1Api(cluster.api_client())


def test_object_is_stored_and_read_back(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("terms", market="de"))
    found = core.read_namespaced_config_map("terms", namespace)
    assert found.data == {"market": "de"}
    assert found.metadata.uid
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_config_map(namespace, config_map("terms"))
    assert refused.value.status == 409


def test_each_test_has_its_own_namespace(core: client.CoreV1Api, namespace: str) -> None:
    assert namespace.startswith("mlflywheel-test-")
    # The test before this one made a ConfigMap of that name in its own.
    assert "terms" not in {one.metadata.name for one in core.list_namespaced_config_map(namespace).items}


def test_service_account_may_do_what_its_role_says_and_nothing_else(cluster: Cluster, namespace: str) -> None:
    user = client.CoreV1Api(cluster.user_client("reader", namespace))
    with pytest.raises(client.ApiException) as refused:
        user.list_namespaced_config_map(namespace)
    assert refused.value.status == 403
    assert f"system:serviceaccount:{namespace}:reader" in refused.value.body

    roles = client.RbacAuthorizationV1Api(cluster.api_client())
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}
    roles.create_namespaced_role(namespace, {"metadata": {"name": "reader"}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    binding = {"metadata": {"name": "reader"}, "subjects": [subject], "roleRef": reference}
    roles.create_namespaced_role_binding(namespace, binding)

    def may_list() -> bool:
        try:
            user.list_namespaced_config_map(namespace)
        except client.ApiException as error:
            if error.status != 403:
                raise
            return False
        return True

    wait_until(may_list, 10, "the role is in force")
    with pytest.raises(client.ApiException) as refused:
        user.create_namespaced_config_map(namespace, config_map("terms"))
    assert refused.value.status == 403


def test_wrong_token_is_refused(cluster: Cluster, namespace: str) -> None:
    user = cluster.user_client("reader", namespace)
    user.configuration.api_key = {"authorization": "Bearer of.no.token"}
    with pytest.raises(client.ApiException) as refused:
        client.CoreV1Api(user).list_namespaced_config_map(namespace)
    assert refused.value.status == 401


def test_strict_validation_refuses_an_unknown_field(core: client.CoreV1Api, namespace: str) -> None:
    misspelt = config_map("terms") | {"dta": {"market": "de"}}
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_config_map(namespace, misspelt, field_validation="Strict")
    assert refused.value.status == 400
    assert 'unknown field \\"dta\\"' in refused.value.body


def test_api_server_refuses_a_deployment_that_contradicts_itself(cluster: Cluster, namespace: str) -> None:
    container = {"name": "main", "image": "registry.example/none:1"}
    template = {"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": {"app": "one"}}, "template": template}
    with pytest.raises(client.ApiException) as refused:
        client.AppsV1Api(cluster.api_client()).create_namespaced_deployment(
            namespace, {"metadata": {"name": "one"}, "spec": spec}
        )
    assert refused.value.status == 422
    assert "spec.template.metadata.labels" in refused.value.body


def test_pod_is_accepted_without_a_default_service_account(control_plane: ControlPlane, namespace: str) -> None:
    pods = client.CoreV1Api(control_plane.api_client())
    spec = {"containers": [{"name": "main", "image": "registry.example/none:1"}]}
    made = pods.create_namespaced_pod(namespace, {"metadata": {"name": "main"}, "spec": spec})
    assert made.status.phase == "Pending"


def test_server_side_apply_keeps_the_field_of_another_manager(cluster: Cluster, namespace: str) -> None:
    def apply(manager: str, market: str, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["apply", "--server-side", "--namespace", namespace, "--field-manager", manager, *options]
        return cluster.kubectl(*arguments, "-f", "-", input=json.dumps(config_map("terms", market=market)), check=False)

    assert apply("one", "de").returncode == 0
    refused = apply("other", "fr")
    assert refused.returncode == 1
    assert 'conflict with "one": .data.market' in refused.stderr
    assert apply("other", "fr", "--force-conflicts").returncode == 0
    core = client.CoreV1Api(cluster.api_client())
    assert core.read_namespaced_config_map("terms", namespace).data == {"market": "fr"}


def test_definition_with_a_status_is_served_and_checked(cluster: Cluster, namespace: str) -> None:
    group = f"t{uuid.uuid4().hex[:8]}.mlflywheel.example"
    cluster.create_definition(gauge_definition(group))
    assert f"gauges.{group}" in cluster.defined()

    gauges = client.CustomObjectsApi(cluster.api_client())
    place = (group, "v1", namespace, "gauges")
    gauge = {"apiVersion": f"{group}/v1", "kind": "Gauge", "metadata": {"name": "one"}}
    wrong = gauge | {"spec": {"limit": "four"}}
    with pytest.raises(client.ApiException) as refused:
        gauges.create_namespaced_custom_object(*place, wrong)
    assert refused.value.status == 422

    made = gauges.create_namespaced_custom_object(*place, gauge | {"spec": {"limit": 4}, "status": {"reading": 9}})
    assert "status" not in made
    made["status"] = {"reading": 3}
    made["spec"]["limit"] = 5
    gauges.replace_namespaced_custom_object_status(*place, "one", made)
    found = gauges.get_namespaced_custom_object(*place, "one")
    assert (found["spec"], found["status"]) == ({"limit": 4}, {"reading": 3})


def test_katib_kinds_can_be_installed_anywhere(
    cluster: Cluster, namespace: str, install_crds: Callable[[str], tuple[str, ...]]
) -> None:
    names = install_crds("katib")
    assert install_crds("katib") == names
    assert set(names) <= cluster.defined()
    trial = {"apiVersion": "kubeflow.org/v1beta1", "kind": "Trial", "metadata": {"name": "one"}, "spec": {"labels": {}}}
    # Where a real Katib runs, its controller need not see it.
    arguments = ["create", "--dry-run=server", "--namespace", namespace, "-f", "-", "-o", "json"]
    assert json.loads(cluster.kubectl(*arguments, input=json.dumps(trial)).stdout)["spec"] == {"labels": {}}


def test_definition_that_is_nowhere_is_named(cluster: Cluster, tmp_path: Path) -> None:
    known = cluster.defined()
    if "scaledobjects.keda.sh" in known:
        pytest.skip("this cluster has it")
    with pytest.raises(NoDefinitionError, match=r"keda: the cluster has no scaledobjects\.keda\.sh"):
        install_definitions(cluster, "keda", [tmp_path])
    assert cluster.defined() == known


def test_a_given_cluster_is_left_as_it_was(control_plane: ControlPlane) -> None:
    given = Cluster(control_plane.kubeconfig, None)
    core = client.CoreV1Api(control_plane.api_client())
    known = given.defined()
    namespaces = {given.create_namespace(), given.create_namespace()}
    given.create_definition(gauge_definition("left.mlflywheel.example"))
    assert given.defined() - known == {"gauges.left.mlflywheel.example"}

    def is_in_deletion(name: str) -> bool:
        return core.read_namespace(name).metadata.deletion_timestamp is not None

    def finish_namespaces() -> None:
        """What the namespace controller does for a namespace that is empty."""
        for name in sorted(namespaces):
            wait_until(partial(is_in_deletion, name), 10, "deletion is asked")
            found = core.read_namespace(name)
            found.spec.finalizers = []
            core.replace_namespace_finalize(name, found)

    controller = threading.Thread(target=finish_namespaces)
    controller.start()
    given.clean()
    controller.join()
    assert given.defined() == known
    assert not namespaces & {one.metadata.name for one in core.list_namespace().items}


def test_kubectl_failure_shows_what_kubectl_said(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ClusterError, match='configmaps "none" not found'):
        cluster.kubectl("get", "configmap", "none", "--namespace", namespace)


def test_kubectl_renders_a_kustomization(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "terms.yaml").write_text(json.dumps(config_map("terms")), encoding="utf-8")
    (tmp_path / "kustomization.yaml").write_text("namePrefix: test-\nresources: [terms.yaml]\n", encoding="utf-8")
    assert "name: test-terms" in cluster.kubectl("kustomize", str(tmp_path)).stdout


@pytest.mark.parametrize("graceful", [True, False], ids=["stopped", "killed"])
def test_restart_keeps_data_address_and_tokens(control_plane: ControlPlane, namespace: str, graceful: bool) -> None:
    admin = client.CoreV1Api(control_plane.api_client())
    user = client.AuthenticationV1Api(control_plane.user_client("reader", namespace))
    made = admin.create_namespaced_config_map(namespace, config_map("terms", market="de"))
    port = control_plane.port
    control_plane.restart_api_server(graceful=graceful)
    assert control_plane.port == port
    found = admin.read_namespaced_config_map("terms", namespace)
    assert found.metadata.uid == made.metadata.uid
    review = user.create_self_subject_review({"apiVersion": "authentication.k8s.io/v1"})
    assert review.status.user_info.username == f"system:serviceaccount:{namespace}:reader"


@needs_proc
def test_stop_leaves_no_process_and_no_file(assets: Path) -> None:
    with ControlPlane(assets) as started:
        groups = started.process_groups
        # The server and the small process that watches over it, twice.
        assert len(living(groups)) == 4
        assert started.folder.stat().st_mode & 0o077 == 0
    assert living(groups) == []
    assert not started.folder.exists()
    assert started.process_groups == []


@needs_proc
def test_nothing_is_left_when_the_tests_are_killed(assets: Path) -> None:
    code = (
        "import json, sys, time; from pathlib import Path; from control_plane import ControlPlane\n"
        "plane = ControlPlane(Path(sys.argv[1])); plane.start()\n"
        "print(json.dumps([plane.process_groups, str(plane.folder)]), flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(assets)], cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        groups, folder = json.loads(child.stdout.readline())
        assert len(living(groups)) == 4
    finally:
        child.kill()
        child.communicate()
    wait_until(lambda: not living(groups), 10, "the servers ended")
    wait_until(lambda: not Path(folder).exists(), 10, "their folder is gone")


@needs_proc
def test_server_ends_with_the_process_that_watches_over_it(assets: Path) -> None:
    started = ControlPlane(assets)
    started._start_etcd()
    groups = started.process_groups
    os.kill(groups[0], signal.SIGKILL)
    try:
        wait_until(lambda: not living(groups), 10, "etcd ended")
    finally:
        started.stop()


def test_failed_start_shows_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho the disk is upside down >&2\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    plane = ControlPlane(tmp_path)
    with pytest.raises(ClusterError, match=r"(?s)etcd: ended with 3.*the disk is upside down"):
        plane.start()
    assert plane.process_groups == []
    assert not plane.folder.exists()


def test_server_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    hanging = tmp_path / "etcd"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    hanging.chmod(0o755)
    plane = ControlPlane(tmp_path, ready_seconds=0.3)
    with pytest.raises(ClusterError, match=r"etcd: not ready in 0\.3 s"):
        plane.start()
    assert plane.process_groups == []


def run_cluster_tools(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "cluster_tools.py"), *options]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60)


def test_tools_have_a_path_only_when_all_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tools_folder()
    folder.mkdir(parents=True)
    for name in TOOLS:
        done = run_cluster_tools("--print-path")
        assert (done.returncode, done.stdout) == (1, "")
        shutil.copy("/bin/sh", folder / name)
    assert run_cluster_tools("--print-path").stdout.strip() == str(folder)


def test_without_go_the_message_says_what_to_install(tmp_path: Path) -> None:
    done = run_cluster_tools(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "no go on PATH" in done.stderr
    assert "go.dev/dl" in done.stderr
    assert list(tmp_path.iterdir()) == []


def put_go(folder: Path, *lines: str) -> str:
    """Write a stand-in for `go build ... -o FOLDER/ ...`, which then runs the lines in that folder; return a PATH."""
    script = ["#!/bin/sh", 'while [ "$1" != -o ]; do shift; done', 'cd "$2"', *lines]
    go = folder / "go"
    go.write_text("\n".join(script) + "\n", encoding="utf-8")
    go.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    path = put_go(tmp_path, "echo half > kubectl", "exit 1")
    done = run_cluster_tools(XDG_CACHE_HOME=str(tmp_path / "cache"), PATH=path)
    assert done.returncode == 1
    assert "go build ended with 1" in done.stderr
    assert list((tmp_path / "cache" / "mlflywheel" / "cluster-tools").iterdir()) == []


def test_build_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    path = put_go(tmp_path, "echo half > kubectl", "kill $PPID", "exec sleep 1")
    done = run_cluster_tools(XDG_CACHE_HOME=str(tmp_path / "cache"), PATH=path)
    assert done.returncode == 1
    assert "stopped before the build was complete" in done.stderr
    assert list((tmp_path / "cache" / "mlflywheel" / "cluster-tools").iterdir()) == []


def test_finished_build_is_found_and_not_repeated(tmp_path: Path) -> None:
    tools = "for name in server kube-apiserver kubectl; do echo > $name; chmod +x $name; done"
    path = put_go(tmp_path, tools, f'echo "$CGO_ENABLED $GOWORK $GOOS" >> {tmp_path}/builds')
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": path, "CGO_ENABLED": "1", "GOOS": "plan9"}
    assert run_cluster_tools("control-plane", **variables).returncode == 0
    assert run_cluster_tools("control-plane", **variables).returncode == 0
    assert (tmp_path / "builds").read_text() == "0 off \n"
    folder = Path(run_cluster_tools("--print-path", **variables).stdout.strip())
    assert {file.name for file in folder.iterdir()} == set(TOOLS)


MAIN = "webhook.NewServer(webhook.Options{\n\tPort: options.webhookPort,\n})\n"


def write_go_for_kserve(folder: Path, module: Path) -> Path:
    """Write a Go that has KServe's module, and whose manager is what it was told to build."""
    lines = (
        "#!/bin/sh",
        '[ "$1" = mod ] && exit',
        f'[ "$1" = list ] && echo {module} && exit',
        'while [ "$1" != -o ]; do shift; done',
        '{ echo "#!/bin/sh"; sed "s/^/# /" main.go; } > "$2"',
        'chmod 755 "$2"',
    )
    go = folder / "go"
    go.write_text("\n".join(lines) + "\n", encoding="utf-8")
    go.chmod(0o755)
    return go


def test_kserve_comes_with_the_files_of_its_module(tmp_path: Path) -> None:
    module = tmp_path / "module"
    for source in (*KSERVE_FILES, "cmd/manager/main.go"):
        file = module / source.replace("*", "one")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(MAIN if source.endswith(".go") else source, encoding="utf-8")
        # As Go's module cache has them.
        file.chmod(0o444)
    go = write_go_for_kserve(tmp_path, module)
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run_cluster_tools("kserve", "--print-path", **variables).returncode == 1
    assert run_cluster_tools("kserve", **variables).returncode == 0
    folder = Path(run_cluster_tools("kserve", "--print-path", **variables).stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"manager", "crds", "inferenceservice.yaml", "webhooks.yaml"}
    assert 'webhook.Options{Host: "127.0.0.1",' in (folder / "manager").read_text(encoding="utf-8")
    copied = folder / "crds" / "knative" / "knative_service.yaml"
    assert copied.read_text(encoding="utf-8") == "test/crds/knative_service.yaml"
    # What is there is not built again.
    go.unlink()
    assert run_cluster_tools("kserve", **variables).returncode == 0


def test_kserve_without_a_file_that_is_needed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "cmd" / "manager").mkdir(parents=True)
    (tmp_path / "cmd" / "manager" / "main.go").write_text(MAIN, encoding="utf-8")
    write_go_for_kserve(tmp_path, tmp_path)
    cache = tmp_path / "cache"
    done = run_cluster_tools("kserve", XDG_CACHE_HOME=str(cache), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "has no config/crd/full" in done.stderr
    assert list((cache / "mlflywheel" / "kserve-tools").iterdir()) == []
