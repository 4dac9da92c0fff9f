"""Build etcd, kube-apiserver and kubectl from their Go modules, once for each pinned version.

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
from pathlib import Path

TOOLS = ("etcd", "kube-apiserver", "kubectl")

_MODULE = Path(__file__).resolve().parent / "tools"
_PACKAGES = ("go.etcd.io/etcd/server/v3", "k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl")
# Part of the key: another way of building makes another folder. To leave out debugging information saves a tenth.
_BUILD_FLAGS = ("-trimpath", "-mod=readonly", "-buildvcs=false", "-gcflags=all=-dwarf=false")
_GO_NEEDED = "Go 1.26 or newer, or Go 1.21 or newer that may fetch it (GOTOOLCHAIN=auto)"


def kubernetes_version() -> str:
    """The pinned version of Kubernetes, such as `1.36.3`."""
    pin = re.search(r"^\s*k8s\.io/kubernetes v([\d.]+)", (_MODULE / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise SystemExit(f"{_MODULE / 'go.mod'}: no version of k8s.io/kubernetes; it has to be pinned there")
    return pin[1]


def tools_folder() -> Path:
    """Where the tools belong, whether or not they are there; the name changes with all that goes into them."""
    digest = hashlib.sha256("\0".join(_BUILD_FLAGS).encode() + _read_module()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{kubernetes_version()}-{platform.system().lower()}-{platform.machine()}-{digest[:12]}"
    return cache / "mlflywheel" / "cluster-tools" / name


def find_tools() -> Path | None:
    """The folder of the tools if it is complete."""
    folder = tools_folder()
    return folder if all(os.access(folder / tool, os.X_OK) for tool in TOOLS) else None


def build_tools() -> Path:
    """Build the tools unless they are there; the folder appears when all of them are complete.

    Raises:
        SystemExit: No Go, or the build failed.
    """
    folder = tools_folder()
    if find_tools():
        print(f"etcd, kube-apiserver {kubernetes_version()} and kubectl are in {folder}")
        return folder
    go = shutil.which("go")
    if go is None:
        raise SystemExit(
            f"cluster-tools: no go on PATH; {_GO_NEEDED} is needed to build kube-apiserver. Fix: install it from "
            "https://go.dev/dl, or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver."
        )
    print(
        f"Building etcd, kube-apiserver {kubernetes_version()} and kubectl into {folder}: three to six minutes on two "
        "cores, with 2 GB in Go's build cache.",
        flush=True,
    )
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # `timeout` and CI end a build with SIGTERM: then too nothing half-built may stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("cluster-tools: stopped before the build was complete"))
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as temporary:
        building = Path(temporary) / "tools"
        building.mkdir()
        command = [go, "build", *_BUILD_FLAGS, "-ldflags", _linker_flags(), "-o", f"{building}{os.sep}", *_PACKAGES]
        done = subprocess.run(command, cwd=_MODULE, env=_go_environment(), stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise SystemExit(f"cluster-tools: go build ended with {done.returncode}; {_GO_NEEDED} is needed")
        # Go names a command after the folder of its package.
        (building / "server").rename(building / "etcd")
        try:
            building.rename(folder)
        except OSError:
            # Another build was quicker.
            if not find_tools():
                raise
    print(f"Built in {time.monotonic() - started:.0f} s.")
    return folder


def _read_module() -> bytes:
    return (_MODULE / "go.mod").read_bytes() + (_MODULE / "go.sum").read_bytes()


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
    parser.add_argument("--print-path", action="store_true", help="only print the folder; exit 1 if it is not complete")
    if parser.parse_args().print_path:
        folder = find_tools()
        if folder is None:
            sys.exit(1)
        print(folder)
    else:
        build_tools()


if __name__ == "__main__":
    main()
