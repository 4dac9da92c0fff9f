"""What a URI means: its protocol, where its server is, and what of it may be shown."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflywheel.errors import DataError, UsageError

#: Protocols of a web server.
WEB = ("http", "https")
#: Protocols that go through an S3 API.
S3 = ("s3", "minio")
#: Every protocol that is read.
KNOWN = ("file", "http", "https", "s3", "minio", "gs", "gcs", "memory")

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# `?` is an ordinary character in the name of an object, so only a query that looks like a signature is masked there.
_NO_QUERY = ("file", "memory", "s3", "minio", "gs", "gcs")
_SIGNATURE = re.compile(r"(sig|signature|token|credential|secret|password|key)[^=&]*=", re.IGNORECASE)
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def find_protocol(uri: str) -> str:
    """Return the protocol in lower case; `file` for a plain path.

    >>> find_protocol("S3://bucket/a.csv"), find_protocol("data/a.csv")
    ('s3', 'file')
    """
    match = _PROTOCOL.match(uri)
    return match.group(1).lower() if match else "file"


def without_credentials(uri: str) -> str:
    """Return a URI that can be shown and stored: no user, no password, no value of a query.

    Args:
        uri: Any URI or path.

    Returns:
        The URI with `user:password@` removed, the values of its query masked and its fragment dropped. A plain path
        is returned as it is. Query values are all masked, because each service names its signature in its own way.

    >>> without_credentials("https://ann:pw@example.org/a.csv?day=3&sig=abc")
    'https://example.org/a.csv?day=***&sig=***'
    >>> without_credentials("data/terms.csv?")
    'data/terms.csv?'
    """
    protocol = find_protocol(uri)
    if protocol == "file":
        return uri
    start, rest = uri[: len(protocol) + 3], uri[len(protocol) + 3 :]
    query = ""
    if protocol not in _NO_QUERY or _SIGNATURE.search(rest.partition("?")[2]):
        rest, _, query = rest.partition("#")[0].partition("?")
        names = (part.partition("=") for part in query.split("&"))
        query = "?" + "&".join(f"{name}=***" if equals else "***" for name, equals, _ in names) if query else ""
    authority, slash, path = rest.partition("/")
    # A secret key may hold an unescaped slash: a colon that starts no port tells that the authority goes on.
    spilled = "@" not in authority and re.search(r":(?!\d*$)", authority) and "@" in path
    authority = (authority + slash + path if spilled else authority).rpartition("@")[2]
    return start + authority + ("" if spilled else slash + path) + query


def s3_endpoint(protocol: str = "s3", environment: Mapping[str, str] | None = None) -> str | None:
    """Return the object store's address, from the variables that the package's documentation lists.

    Args:
        protocol: `s3` or `minio`.
        environment: Variables; the process's own by default.

    Returns:
        A URL without a trailing slash, or None where no variable is set: Amazon's own.

    >>> s3_endpoint("minio", {"MINIO_ENDPOINT": "seaweedfs.kubeflow:9000"})
    'http://seaweedfs.kubeflow:9000'
    """
    return _find_endpoint(protocol, environment)[1]


def check_endpoint(protocol: str) -> str | None:
    """Return `s3_endpoint`, once it is sure to be a URL.

    Raises:
        UsageError: The variable holds something else, or credentials.
    """
    variable, endpoint = _find_endpoint(protocol, None)
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in WEB and bool(parts.hostname) and parts.port != 0 and not parts.query
    except ValueError:
        is_url = False
    if not is_url or parts.username is not None:
        raise UsageError(
            variable,
            "it holds credentials" if is_url else repr(without_credentials(endpoint)),
            "the address of the object store is needed, such as http://seaweedfs.kubeflow:9000",
            f"correct {variable}",
        )
    return endpoint


def name_endpoint_variable(protocol: str) -> str:
    """Return the variable that names the store, or the one that could."""
    return _find_endpoint(protocol, None)[0]


def _find_endpoint(protocol: str, environment: Mapping[str, str] | None) -> tuple[str, str | None]:
    environment = os.environ if environment is None else environment
    names = ("MINIO_ENDPOINT", *_ENDPOINT_VARIABLES) if protocol == "minio" else _ENDPOINT_VARIABLES
    for name in names:
        value = environment.get(name, "").strip().rstrip("/")
        if value:
            return name, value if "://" in value else f"http://{value}"
    return names[0], None


def local_path(uri: str) -> Path | None:
    """Return the path that a plain path or a `file://` URI names, and None for every other URI.

    Raises:
        DataError: A `file://` URI that names a host.
        UsageError: Nothing, or a NUL character.

    >>> local_path("file:///data/a%20b.csv").as_posix()
    '/data/a b.csv'
    >>> local_path("s3://bucket/a.csv") is None
    True
    """
    if not uri.strip() or "\0" in uri:
        raise UsageError("uri", repr(uri), "a path or a URI is needed", "name the file")
    if find_protocol(uri) != "file":
        return None
    if not _PROTOCOL.match(uri):
        return Path(uri).expanduser()
    host, slash, path = uri[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise DataError(
            uri, f"it names the host {host}", "a file URI has three slashes", f"write file:///{host}{slash}{path}"
        )
    return Path(url2pathname(slash + path))


def split_bucket(uri: str) -> tuple[str, str]:
    """Return bucket and key of an object's URI.

    >>> split_bucket("s3://models/ads/1/manifest.json")
    ('models', 'ads/1/manifest.json')
    """
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key
