"""Fixtures of the tests that need a real API server.

Which one: the cluster of MLFLYWHEEL_TEST_KUBECONFIG; else a control plane of our own, started once for each worker of
pytest, from the folder KUBEBUILDER_ASSETS or from what `make cluster-tools` built; else they are skipped, and say why.
KServe's controller runs on a control plane of its own in any case: its webhooks see to every InferenceService there.
Nothing reads KUBECONFIG, so that `make test` never touches somebody's cluster; `make test-cluster` passes it on.
"""

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_tools import TOOLS, find_kserve, find_tools
from control_plane import Cluster, ControlPlane
from custom_resources import NoDefinitionError, install_definitions
from kserve_controller import KServe

_GIVEN = "MLFLYWHEEL_TEST_KUBECONFIG"
# Another build of KServe's controller manager, to see what the tests say of a newer KServe.
_GIVEN_MANAGER = "MLFLYWHEEL_TEST_KSERVE_MANAGER"
_HERE = Path(__file__).resolve().parent
_NO_ASSETS = (
    "no API server for the cluster tests. Fix: run `make cluster-tools` (needs Go, takes minutes, once), or name a "
    "folder with etcd and kube-apiserver in KUBEBUILDER_ASSETS"
)
_NO_KSERVE = "no KServe for its tests. Fix: run `make cluster-tools` (needs Go, takes minutes, once)"


def pytest_report_header() -> str:
    """Say what the tests will touch."""
    given = os.environ.get(_GIVEN)
    return f"cluster: {given} ({_GIVEN})" if given else f"cluster: own control plane, tools: {_find_assets()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an API server when there is none: here, not in a fixture, so that one line reports them all."""
    needy = {"assets"} if os.environ.get(_GIVEN) else {"assets", "cluster"}
    names = getattr(item, "fixturenames", ())
    if not needy.isdisjoint(names) and _find_assets() is None:
        pytest.skip(_NO_ASSETS)
    if "kserve" in names and find_kserve() is None:
        pytest.skip(_NO_KSERVE)


# urllib3 leaves the socket of a TLS handshake that a stopping server cuts off to the garbage collector.
_CUT_OFF = "ignore:unclosed <ssl.SSLSocket:ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let such a socket fail no test: it may outlive the one that stopped the server, by a traceback that is kept."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(_CUT_OFF))


@pytest.fixture(autouse=True)
def _collect_cut_off_sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "control_plane" in request.fixturenames:
        gc.collect()


@pytest.fixture(autouse=True)
def _close_clients(request: pytest.FixtureRequest) -> Iterator[None]:
    clusters: list[Cluster] = []
    if "cluster" in request.fixturenames:
        clusters.append(request.getfixturevalue("cluster"))
    if "kserve" in request.fixturenames:
        clusters.append(request.getfixturevalue("kserve").plane)
    with contextlib.ExitStack() as stack:
        for one in clusters:
            stack.enter_context(one.closing_clients())
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """A folder with etcd and kube-apiserver; without one the test was skipped before it came here."""
    folder = _find_assets()
    assert folder is not None
    missing = [name for name in TOOLS if name != "kubectl" and not os.access(folder / name, os.X_OK)]
    if missing:
        pytest.fail(f"KUBEBUILDER_ASSETS: {folder} lacks {', '.join(missing)}; both are needed", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server with administrator's rights; what tests make there through it is deleted at the end."""
    given = os.environ.get(_GIVEN)
    if given:
        if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
            pytest.fail(
                f"{_GIVEN}: a given cluster is tested by one process, as `make test-cluster` does", pytrace=False
            )
        known = Cluster(given, _find_kubectl())
        yield known
        known.clean()
    else:
        with ControlPlane(request.getfixturevalue("assets"), _find_kubectl()) as started:
            yield started


@pytest.fixture(scope="session")
def control_plane(cluster: Cluster) -> ControlPlane:
    """The same, for tests that stop and start the API server; skipped on a cluster that is not ours."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("the API server of a given cluster is not stopped")
    return cluster


@pytest.fixture(scope="session")
def kserve(assets: Path) -> Iterator[KServe]:
    """KServe's controller manager and webhooks on a control plane of their own; about 9 s and 750 MB for each worker.

    It is the version that `kserve_tools/go.mod` pins, or the command that MLFLYWHEEL_TEST_KSERVE_MANAGER names.
    """
    sources = find_kserve()
    assert sources is not None
    manager = Path(os.environ.get(_GIVEN_MANAGER) or sources / "manager")
    with ControlPlane(assets, _find_kubectl()) as plane:
        started = KServe(plane, manager, sources)
        started.start()
        yield started


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace, deleted after the test. On our own control plane it stays: nothing there could finish that."""
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)


@pytest.fixture(scope="session")
def install_crds(cluster: Cluster) -> Callable[[str], tuple[str, ...]]:
    """`install_crds("katib")` sees to it that a project's kinds are served, and returns the names of their definitions.

    Definitions that the cluster lacks come from the folder `shared/crds` beside the repository, then from `crds` here,
    then from what `make cluster-tools` took from KServe's module. The test is skipped when all of them lack one.
    """
    folders = [_HERE.parents[1].parent / "shared" / "crds", _HERE / "crds"]
    built = find_kserve()
    if built is not None:
        folders.append(built / "crds")

    def install(project: str) -> tuple[str, ...]:
        try:
            return install_definitions(cluster, project, folders)
        except NoDefinitionError as error:
            pytest.skip(str(error))

    return install


def _find_assets() -> Path | None:
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return Path(named) if named else find_tools()


def _find_kubectl() -> Path | None:
    """Of the version that the tests know, where it is there."""
    for folder in (_find_assets(), find_tools()):
        if folder and os.access(folder / "kubectl", os.X_OK):
            return folder / "kubectl"
    on_path = shutil.which("kubectl")
    return Path(on_path) if on_path else None
