"""How to reach a Kubeflow Pipelines server, and as whom.

The ways are those of `kfp.Client`, and so are the variables `KF_PIPELINES_ENDPOINT`, `KF_PIPELINES_SA_TOKEN_PATH` and
`KF_PIPELINES_UI_ENDPOINT`; but nobody is asked for a password, and nothing is written into the home folder.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from mlflywheel.cluster.pipelines_api import COOKIES_VARIABLE, LOOPBACK, PipelinesApi
from mlflywheel.errors import UsageError

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # The name of a variable that holds a path.
#: Where Kubeflow's PodDefault puts a pod's token for the pipelines' API, as kfp knows it.
_POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Access:
    """Where a Kubeflow Pipelines server is, and as whom to speak to it.

    Args:
        host: URL of the API or of the user interface in front of it; the variable `KF_PIPELINES_ENDPOINT` if left out,
            in a pod of the cluster its service, and else the service behind the kubeconfig's API server.
        context: Context of the kubeconfig; with one, the server is reached through that cluster's API server.
        namespace: The user's namespace, on an installation for several users; the pod's or the context's if left out.
        kubeflow_namespace: Where Kubeflow Pipelines is installed; needed without a host.
        token_file: File with a bearer token, read again for each call; the variable `KF_PIPELINES_SA_TOKEN_PATH` if
            left out.
        ca_file: Certificates to trust, PEM; the system's if left out.
    """

    host: str | None = None
    context: str | None = None
    namespace: str | None = None
    kubeflow_namespace: str = "kubeflow"
    token_file: Path | None = None
    ca_file: Path | None = None


def open_api(access: Access, told: Callable[[str], None] = lambda line: None) -> PipelinesApi:
    """Find the server and the credentials; nobody is asked yet.

    Args:
        access: What the caller said.
        told: Called with a line when a call has to wait, and with warnings.

    Raises:
        UsageError: The host is no URL, a file cannot be read, or nothing says where the server is.
    """
    host = access.host or (None if access.context else os.environ.get(HOST_VARIABLE))
    if host and access.context:
        raise UsageError("--host", "given together with --context", "one way is needed", "leave one of them out")
    if host is None and (access.context or not os.environ.get("KUBERNETES_SERVICE_HOST")):
        return _open_through_kubernetes(access, told)
    is_pod = host is None
    url = _read_host(host or f"http://ml-pipeline.{access.kubeflow_namespace}.svc.cluster.local:8888")
    token_file = access.token_file or _path(os.environ.get(TOKEN_VARIABLE)) or (_POD_TOKEN if is_pod else None)
    if is_pod and token_file == _POD_TOKEN and not _POD_TOKEN.exists():
        token_file = None
    cookies = os.environ.get(COOKIES_VARIABLE, "")
    if token_file is not None:
        _read_token(token_file)
    sources = [f"the token in {token_file}"] * (token_file is not None) + [f"{COOKIES_VARIABLE}"] * bool(cookies)
    name = urlsplit(url).hostname or ""
    if sources and url.startswith("http://") and name not in LOOPBACK and not _is_inside(name):
        told(f"warning: {' and '.join(sources)} cross the network unencrypted to {name}; use https://")

    def headers() -> dict[str, str]:
        made = {"Accept": "application/json"}
        if token_file is not None:
            made["Authorization"] = f"Bearer {_read_token(token_file)}"
        if cookies:
            made["Cookie"] = cookies
        return made

    def secrets() -> tuple[str, ...]:
        values = [part.partition("=")[2].strip() for part in cookies.split(";")] + [cookies]
        return (*values, *([_read_token(token_file)] if token_file is not None else []))

    ui = os.environ.get(UI_VARIABLE) or (None if _is_inside(name) else url)
    return PipelinesApi(
        url,
        _open_pool(access.ca_file),
        headers,
        " and ".join(sources) or "no credentials",
        secrets,
        namespace=access.namespace or _read_own_namespace(),
        kubeflow_namespace=access.kubeflow_namespace,
        ui=None if ui is None else ui.rstrip("/"),
        told=told,
    )


def _open_through_kubernetes(access: Access, told: Callable[[str], None]) -> PipelinesApi:
    """Go through the API server of a cluster, which forwards to the service."""
    from mlflywheel.cluster.kubernetes_client import connect

    try:
        connection = connect(access.context)
    except UsageError as error:
        if access.context:
            raise
        raise UsageError(
            "Kubeflow Pipelines",
            f"no host, and {error.seen}",
            "something has to say where the server is",
            f"give --host URL or --context NAME, or set {HOST_VARIABLE}",
        ) from error
    current = [connection]

    def headers() -> dict[str, str]:
        made = {"Accept": "application/json"}
        current[0].api.update_params_for_auth(made, [], ["BearerToken"])
        return made

    def reload() -> None:
        current[0] = connect(access.context)
        api.pool = current[0].api.rest_client.pool_manager

    url = f"{connection.api.configuration.host.rstrip('/')}/api/v1/namespaces/{access.kubeflow_namespace}"
    ui = os.environ.get(UI_VARIABLE)
    api = PipelinesApi(
        f"{url}/services/ml-pipeline:http/proxy",
        connection.api.rest_client.pool_manager,
        headers,
        connection.source,
        lambda: (headers().get("authorization", "").partition(" ")[2],),
        namespace=access.namespace or connection.namespace,
        kubeflow_namespace=access.kubeflow_namespace,
        ui=None if ui is None else ui.rstrip("/"),
        reload=reload,
        kubernetes=lambda: current[0],
        told=told,
    )
    return api


def _read_host(host: str) -> str:
    """Return the URL that paths are put behind."""
    url = host if "://" in host else f"https://{host}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError("--host", "not a URL", "https://NAME or http://NAME:PORT is needed", "correct the address")
    if parts.username or parts.password:
        raise UsageError(
            "--host",
            "a user or password in the URL",
            "addresses end up in logs",
            f"take it out, and give --token-file FILE or set {COOKIES_VARIABLE}",
        )
    # As copied from a browser's address bar.
    return url.partition("#")[0].partition("?")[0].rstrip("/").removesuffix("/apis/v2beta1")


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"token file {path}",
            getattr(error, "strerror", None) or "no text",
            "a readable file with a bearer token is needed",
            f"correct --token-file or {TOKEN_VARIABLE}",
        ) from None
    if not token or any(letter.isspace() for letter in token):
        raise UsageError(
            f"token file {path}",
            "several words" if token else "empty",
            "a bearer token alone is needed",
            "write a new token into it",
        )
    return token


def _open_pool(ca_file: Path | None) -> urllib3.PoolManager:
    if ca_file is not None and not ca_file.is_file():
        raise UsageError("--ca-file", f"no file {ca_file}", "certificates as PEM are needed", "correct the path")
    return urllib3.PoolManager(ca_certs=None if ca_file is None else str(ca_file), cert_reqs="CERT_REQUIRED")


def _is_inside(name: str) -> bool:
    """Tell whether a name exists inside a cluster alone."""
    return name.endswith((".svc", ".svc.cluster.local")) or (name not in LOOPBACK and "." not in name)


def _read_own_namespace() -> str | None:
    return _POD_NAMESPACE.read_text().strip() or None if _POD_NAMESPACE.is_file() else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
