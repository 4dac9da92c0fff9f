"""Build etcd, kube-apiserver, kubectl and KServe's manager from their Go modules, once for each pinned version.

`make cluster-tools` runs this file. It needs Python's standard library and Go, and no environment of the project.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TOOLS = ("etcd", "kube-apiserver", "kubectl")
#: Where the other files of KServe's module are, in the folder with its manager: definitions in one folder for each
#: project, the configuration that KServe ships, and its webhooks.
KSERVE_FILES = {
    "config/crd/full/serving.kserve.io_*.yaml": "crds/kserve/",
    "config/crd/full/clusterstoragecontainer/serving.kserve.io_*.yaml": "crds/kserve/",
    "test/crds/gatewayapi_*.yaml": "crds/gateway-api/",
    "test/crds/keda.yaml": "crds/keda/",
    "test/crds/knative_service.yaml": "crds/knative/",
    "config/configmap/inferenceservice.yaml": "inferenceservice.yaml",
    "config/webhook/manifests.yaml": "webhooks.yaml",
}

_MODULE = Path(__file__).resolve().parent / "tools"
_KSERVE_MODULE = Path(__file__).resolve().parent / "kserve_tools"
_KSERVE = "github.com/kserve/kserve"
# The manager's webhooks listen on every address, and no option changes that. Tests keep to loopback: while it is built,
# this line of its main program is replaced.
_KSERVE_MAIN = "cmd/manager/main.go"
_KSERVE_LISTENS = ("webhook.Options{", 'webhook.Options{Host: "127.0.0.1",')
_PACKAGES = ("go.etcd.io/etcd/server/v3", "k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl")
# Part of the key: another way of building makes another folder. To leave out debugging information saves a tenth.
_BUILD_FLAGS = ("-trimpath", "-mod=readonly", "-buildvcs=false", "-gcflags=all=-dwarf=false")
_GO_NEEDED = "Go 1.26 or newer, or Go 1.21 or newer that may fetch it (GOTOOLCHAIN=auto)"


def kubernetes_version() -> str:
    """The pinned version of Kubernetes, such as `1.36.3`."""
    return _pinned_version(_MODULE, "k8s.io/kubernetes")


def kserve_version() -> str:
    """The pinned version of KServe, such as `0.20.0`."""
    return _pinned_version(_KSERVE_MODULE, _KSERVE)


def tools_folder() -> Path:
    """Where the tools belong, whether or not they are there; the name changes with all that goes into them."""
    return _cache_folder("cluster-tools", kubernetes_version(), _MODULE)


def kserve_folder() -> Path:
    """Where KServe's manager and the files beside it belong, as `tools_folder`."""
    files = "\0".join([*(f"{source}\0{place}" for source, place in KSERVE_FILES.items()), *_KSERVE_LISTENS])
    return _cache_folder("kserve-tools", kserve_version(), _KSERVE_MODULE, files.encode())


def find_tools() -> Path | None:
    """The folder of the tools if it is complete."""
    folder = tools_folder()
    return folder if all(os.access(folder / tool, os.X_OK) for tool in TOOLS) else None


def find_kserve() -> Path | None:
    """The folder with KServe's `manager` and the places of `KSERVE_FILES` if it is complete."""
    folder = kserve_folder()
    there = os.access(folder / "manager", os.X_OK) and all((folder / one).exists() for one in KSERVE_FILES.values())
    return folder if there else None


def build_tools() -> Path:
    """Build the tools unless they are there; the folder appears when all of them are complete.

    Raises:
        SystemExit: No Go, or the build failed.
    """

    def build(go: str, building: Path) -> None:
        command = [go, "build", *_BUILD_FLAGS, "-ldflags", _linker_flags(), "-o", f"{building}{os.sep}", *_PACKAGES]
        _run_go(command, _MODULE)
        # Go names a command after the folder of its package.
        (building / "server").rename(building / "etcd")

    what = f"etcd, kube-apiserver {kubernetes_version()} and kubectl"
    return _build(what, "three to six minutes", tools_folder(), find_tools, build)


def build_kserve() -> Path:
    """Build KServe's manager, and take the files beside it from its module, unless they are there.

    Raises:
        SystemExit: No Go, or the build failed.
    """

    def build(go: str, building: Path) -> None:
        _run_go([go, "mod", "download", _KSERVE], _KSERVE_MODULE)
        module = Path(_run_go([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", _KSERVE], _KSERVE_MODULE).strip())
        with tempfile.TemporaryDirectory() as scratch:
            main = _bind_to_loopback(module, Path(scratch))
            _run_go([go, "build", *_BUILD_FLAGS, "-ldflags", "-s -w", "-o", str(building / "manager"), "."], main)
        for pattern, place in KSERVE_FILES.items():
            found = sorted(module.glob(pattern))
            if not found:
                raise SystemExit(f"cluster-tools: KServe {kserve_version()} has no {pattern}; the tests need it")
            for source in found:
                target = building / place / source.name if place.endswith("/") else building / place
                target.parent.mkdir(parents=True, exist_ok=True)
                # Without the permissions: nothing in Go's module cache may be written.
                shutil.copyfile(source, target)

    return _build(f"KServe's manager {kserve_version()}", "two to five minutes", kserve_folder(), find_kserve, build)


def _bind_to_loopback(module: Path, scratch: Path) -> Path:
    """Write the manager's main program with its webhooks on loopback into a module of its own, and return that."""
    original = module / _KSERVE_MAIN
    content = original.read_text(encoding="utf-8")
    before, after = _KSERVE_LISTENS
    if content.count(before) != 1:
        raise SystemExit(f"cluster-tools: {original} has {content.count(before)} times {before}; 1 is needed")
    (scratch / "main.go").write_text(content.replace(before, after), encoding="utf-8")
    # The same requirements, so that the same versions are built.
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(_KSERVE_MODULE / name, scratch / name)
    return scratch


def _pinned_version(module: Path, path: str) -> str:
    content = (module / "go.mod").read_text(encoding="utf-8")
    pin = re.search(rf"^(?:require)?\s*{re.escape(path)} v([\d.]+)", content, re.MULTILINE)
    if pin is None:
        raise SystemExit(f"{module / 'go.mod'}: no version of {path}; it has to be pinned there")
    return pin[1]


def _cache_folder(kind: str, version: str, module: Path, more: bytes = b"") -> Path:
    content = (module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()
    digest = hashlib.sha256("\0".join(_BUILD_FLAGS).encode() + content + more).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{version}-{platform.system().lower()}-{platform.machine()}-{digest[:12]}"
    return cache / "mlflywheel" / kind / name


def _build(
    what: str, duration: str, folder: Path, find: Callable[[], Path | None], build: Callable[[str, Path], None]
) -> Path:
    if find():
        print(f"{what}: in {folder}")
        return folder
    go = shutil.which("go")
    if go is None:
        raise SystemExit(
            f"cluster-tools: no go on PATH; {_GO_NEEDED} is needed to build {what}. Fix: install it from "
            "https://go.dev/dl, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver."
        )
    print(
        f"Building {what} into {folder}: {duration} on two cores, with 2 GB in Go's build cache.",
        flush=True,
    )
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # `timeout` and CI end a build with SIGTERM: then too nothing half-built may stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("cluster-tools: stopped before the build was complete"))
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as temporary:
        building = Path(temporary) / "tools"
        building.mkdir()
        build(go, building)
        try:
            building.rename(folder)
        except OSError:
            # Another build was quicker.
            if not find():
                raise
    print(f"Built in {time.monotonic() - started:.0f} s.")
    return folder


def _run_go(command: list[str], module: Path) -> str:
    """Run Go in a module and return what it printed."""
    done = subprocess.run(
        command,
        cwd=module,
        env=_go_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"cluster-tools: go {command[1]} ended with {done.returncode}; {_GO_NEEDED} is needed")
    return done.stdout


def _linker_flags() -> str:
    """No symbol tables, and the version that Kubernetes' own release build writes into its commands."""
    version = kubernetes_version()
    major, minor, _ = version.split(".", 2)
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamps = [f"-X {package}.{name}={value}" for package in packages for name, value in values.items()]
    return " ".join(["-s", "-w", *stamps])


def _go_environment() -> dict[str, str]:
    """The user's environment, so that proxies and caches stay theirs, without what changes the result."""
    changed = ("GOARCH", "GOEXPERIMENT", "GOFIPS140", "GOOS", "GO111MODULE")
    kept = {name: value for name, value in os.environ.items() if name not in changed}
    # The compiler collects its garbage less often: 15 % less time for more memory. An empty GOFLAGS would leave the one
    # in the user's `go env` file in force.
    return {"GOGC": "400"} | kept | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def main() -> None:
    """Build the tools, or print their folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", choices=list(_PARTS), help="build this alone; everything if left out")
    parser.add_argument(
        "--print-path",
        action="store_true",
        help="only print the folder (that of the control plane, or of the part); exit 1 if it is not complete",
    )
    options = parser.parse_args()
    if options.print_path:
        find, _ = _PARTS[options.only or "control-plane"]
        folder = find()
        if folder is None:
            sys.exit(1)
        print(folder)
    else:
        for name, (_, build) in _PARTS.items():
            if options.only in (None, name):
                build()


_PARTS = {"control-plane": (find_tools, build_tools), "kserve": (find_kserve, build_kserve)}


if __name__ == "__main__":
    main()
