"""Apply these manifests to a namespace, and take away again what was applied.

`make up` and `make down` run this file. It needs Python's standard library and kubectl, and no environment of the
project.

Everything is applied by the server (`kubectl apply --server-side`), after a dry run of all of it: what the cluster
refuses, and a field that somebody else has set to another value, is told before anything changed. Which objects were
made is kept in the ConfigMap `mlflywheel-up` of the namespace, written before the objects themselves, so that an `up`
that was cut off can be repeated or taken down. `down` deletes those objects, then that ConfigMap, and the namespace
where `up` made it. An object that was there before is updated, and stays.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

INVENTORY = "mlflywheel-up"
_MANIFESTS = Path(__file__).resolve().parent
# What shows in an object's managed fields, and in a conflict.
_FIELD_MANAGER = "mlflywheel-up"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MADE_BY = "mlflywheel.io/made-by"
_METRICS_COLLECTOR = "katib.kubeflow.org/metrics-collector-injection"
#: What has to be installed in the cluster: the definition, whose it is, and what does not work without it.
_PARTS = (
    ("workflows.argoproj.io", "Kubeflow Pipelines", "pipelines"),
    ("experiments.kubeflow.org", "Katib", "--set tune=true"),
    ("inferenceservices.serving.kserve.io", "KServe", "serving, and --set deploy=true"),
    ("httproutes.gateway.networking.k8s.io", "the Gateway API", "canaries in Standard mode"),
)
_NEEDED_BY_OVERLAYS = "inferenceservices.serving.kserve.io"


class Cluster:
    """kubectl, in one namespace of the current context.

    Args:
        namespace: Where everything goes.
        kubectl: The command.
    """

    def __init__(self, namespace: str, kubectl: str) -> None:
        self.namespace = namespace
        self._kubectl = kubectl

    def run(self, *arguments: str, given: str | None = None) -> str:
        """Return what kubectl prints, and end the program with what it says when it fails."""
        done = self.try_run(*arguments, given=given)
        if done.returncode != 0:
            _fail(f"kubectl {arguments[0]}", done.stderr.strip() or f"exit status {done.returncode}")
        return done.stdout

    def try_run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, however that ends."""
        return subprocess.run(
            [self._kubectl, *arguments],
            input="" if given is None else given,
            # The user's own defaults for kubectl would change what is applied.
            env=os.environ | {"KUBECTL_KUBERC": "false"},
            capture_output=True,
            text=True,
            check=False,
        )

    def apply(self, documents: str, *, dry_run: bool = False) -> list[str]:
        """Apply YAML or JSON; return the objects' names, such as `role.rbac.authorization.k8s.io/mlflywheel-katib`."""
        options = ["--server-side", f"--field-manager={_FIELD_MANAGER}", "--validate=strict", "-o", "name"]
        if dry_run:
            options.append("--dry-run=server")
        return self.run("apply", *options, "-n", self.namespace, "-f", "-", given=documents).split()

    def find(self, documents: str) -> set[str]:
        """Return the names of those that are there."""
        options = ("--ignore-not-found", "-o", "name", "-n", self.namespace, "-f", "-")
        return set(self.run("get", *options, given=documents).split())

    def delete(self, names: Sequence[str]) -> set[str]:
        """Delete what is there of these, wait until it is gone, and return the names of it."""
        options = ("-n", self.namespace, "--ignore-not-found", "--timeout=5m", "-o", "name")
        done = self.try_run("delete", *names, *options)
        if done.returncode == 0:
            return set(done.stdout.split())
        # A kind that the cluster does not know any more took its objects with it, and stops nothing.
        deleted = set(done.stdout.split())
        for name in names:
            done = self.try_run("delete", name, *options)
            if done.returncode != 0 and "the server doesn't have a resource type" not in done.stderr:
                _fail(f"kubectl delete {name}", done.stderr.strip(), "mend that, and run `make down` again")
            deleted.update(done.stdout.split())
        return deleted

    def read_inventory(self) -> list[str]:
        """Return what `up` made here, in the order of making; empty if it made nothing."""
        path = "jsonpath={.data.objects}"
        return self.run("get", "configmap", INVENTORY, "-n", self.namespace, "--ignore-not-found", "-o", path).split()

    def write_inventory(self, names: Sequence[str]) -> None:
        """Keep what `up` makes."""
        labels = {"app.kubernetes.io/part-of": "mlflywheel"}
        content = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": INVENTORY, "labels": labels},
            "data": {"objects": "".join(f"{name}\n" for name in names)},
        }
        self.apply(json.dumps(content))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Apply mlflywheel's manifests to a namespace, or take them away.")
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--namespace", required=True, help="the namespace; `up` makes it where there is none")
    parser.add_argument("--overlay", default="", help="serve a model too: a folder of manifests/overlays")
    given = parser.parse_args(arguments)
    if not _NAMESPACE.fullmatch(given.namespace):
        _fail("NAMESPACE", f"{given.namespace!r}; the name of a namespace is needed", "make up NAMESPACE=team")
    overlays = sorted(path.name for path in (_MANIFESTS / "overlays").iterdir())
    if given.overlay and given.overlay not in overlays:
        _fail("OVERLAY", f"{given.overlay!r}; one of {', '.join(overlays)} is needed", "correct it, or leave it out")
    kubectl = shutil.which(os.environ.get("KUBECTL", "kubectl"))
    if kubectl is None:
        _fail("kubectl", "none on the PATH; one is needed", "install it, or name it in the variable KUBECTL")
    cluster = Cluster(given.namespace, kubectl)
    context = cluster.try_run("config", "current-context").stdout.strip()
    if not context:
        _fail(
            "kubeconfig",
            "no current context; the cluster's is needed",
            "kubectl config use-context NAME",
        )
    print(f"context {context}, namespace {given.namespace}")
    if given.command == "up":
        put_up(cluster, given.overlay)
    else:
        take_down(cluster)


def put_up(cluster: Cluster, overlay: str) -> None:
    """Apply the rights and settings of pipelines, and an overlay if one is named; print what is applied."""
    _check_parts(cluster, overlay)
    known = cluster.read_inventory()
    made = _make_namespace(cluster)
    if made and made not in known:
        known.append(made)
        cluster.write_inventory(known)
    documents = _render(cluster, overlay)
    names = cluster.apply(documents, dry_run=True)
    there = cluster.find(documents)
    foreign = sorted(there.difference(known))
    mine = known + [name for name in names if name not in known and name not in there]
    if mine != known or not known:
        cluster.write_inventory(mine)
    cluster.apply(documents)
    for name in names:
        state = "was there before, so that `down` leaves it" if name in foreign else ""
        print(f"  {name}{f': {state}' if state else '' if name in there else ': made'}")
    left = [name for name in mine if name not in names and not name.startswith("namespace/")]
    if left:
        print(f"still there from an earlier `up`: {', '.join(left)}")


def take_down(cluster: Cluster) -> None:
    """Delete what `up` made, the last one first; print it."""
    known = cluster.read_inventory()
    if not known and not cluster.try_run("get", "configmap", INVENTORY, "-n", cluster.namespace).stdout:
        print("nothing here is from `up`")
        return
    namespaces = [name for name in known if name.startswith("namespace/")]
    objects = [name for name in reversed(known) if name not in namespaces]
    deleted = cluster.delete(objects) if objects else set()
    for name in objects:
        print(f"  {name}: {'deleted' if name in deleted else 'was gone'}")
    cluster.run("delete", "configmap", INVENTORY, "-n", cluster.namespace, "--ignore-not-found")
    for name in namespaces:
        cluster.run("delete", name, "--ignore-not-found", "--wait=false")
        print(f"  {name}: being deleted, with all that is in it")


def _check_parts(cluster: Cluster, overlay: str) -> None:
    asked = [name for name, _, _ in _PARTS]
    done = cluster.try_run("get", "customresourcedefinitions", *asked, "--ignore-not-found", "-o", "name")
    if done.returncode != 0:
        # Permitted to few in a shared cluster.
        print(f"not checked what is installed: {done.stderr.strip()}")
        return
    there = {line.partition("/")[2] for line in done.stdout.split()}
    for name, whose, use in _PARTS:
        if name not in there:
            if overlay and name == _NEEDED_BY_OVERLAYS:
                _fail(f"OVERLAY={overlay}", "the cluster has no KServe", "install it: docs/installation.md")
            print(f"missing: {whose} ({name}); without it no {use}")


def _make_namespace(cluster: Cluster) -> str:
    """Return the namespace's name in the inventory if it is `up` that made it."""
    found = cluster.run("get", "namespace", cluster.namespace, "--ignore-not-found", "-o", "json")
    if found:
        there = json.loads(found)["metadata"]
        if there.get("deletionTimestamp"):
            _fail(f"namespace {cluster.namespace}", "it is being deleted", "wait until it is gone, then try again")
        # An `up` that was cut off before it could write the inventory.
        return f"namespace/{cluster.namespace}" if _MADE_BY in there.get("annotations", {}) else ""
    metadata = {
        "name": cluster.namespace,
        "labels": {_METRICS_COLLECTOR: "enabled"},
        "annotations": {_MADE_BY: _FIELD_MANAGER},
    }
    content = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    (name,) = cluster.apply(content)
    print(f"  {name}: made")
    return name


def _render(cluster: Cluster, overlay: str) -> str:
    folders = [_MANIFESTS / "pipelines", *([_MANIFESTS / "overlays" / overlay] if overlay else [])]
    with tempfile.TemporaryDirectory(prefix="mlflywheel-") as scratch:
        # kustomize takes no absolute paths, and follows links before it counts the dots.
        folder = Path(scratch).resolve()
        resources = [os.path.relpath(one, folder) for one in folders]
        # JSON is YAML.
        content = {"namespace": cluster.namespace, "resources": resources}
        (folder / "kustomization.yaml").write_text(json.dumps(content), encoding="utf-8")
        return cluster.run("kustomize", str(folder))


def _fail(where: str, seen: str, fix: str = "") -> NoReturn:
    print(f"{where}: {seen}.{f' Fix: {fix}.' if fix else ''}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
