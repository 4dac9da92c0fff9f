"""Where a model's files lie, written so that a server on the cluster can read them.

Kubeflow Pipelines writes its artifacts under `minio://`, which KServe does not know: it reads the same bytes as `s3://`
once it has the endpoint and the name of a secret with the keys. A registry entry holds those three, never the keys.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from mlflywheel.errors import UsageError

_S3_SCHEMES = ("minio", "s3")
# What KServe's storage initializer reads, and `file` for a registry that stays on one machine.
_OTHER_SCHEMES = ("gs", "https", "http", "pvc", "hf", "oci", "file")


@dataclass(frozen=True)
class ServingLocation:
    """A storage address that KServe can read.

    Args:
        uri: The address, never `minio://`.
        endpoint: URL of the S3 service, with `http://` or `https://`; empty for Amazon's own and for other schemes.
        secret: Name of the Kubernetes secret with the access keys; empty where the storage asks for none.
    """

    uri: str
    endpoint: str = ""
    secret: str = ""

    @property
    def path(self) -> str:
        """The part of the address inside the bucket, or the whole path of an address that has no bucket.

        >>> ServingLocation("s3://models/ad-campaigns/1").path
        'ad-campaigns/1'
        """
        return urlsplit(self.uri).path.lstrip("/")


def to_serving_uri(uri: str, endpoint: str = "", secret: str = "") -> ServingLocation:
    """Turn the address that a pipeline wrote to into one that KServe reads.

    Args:
        uri: `minio://BUCKET/KEY`, an address with `s3`, `gs`, `https`, `http`, `pvc`, `hf`, `oci` or `file`, or an
            absolute path.
        endpoint: URL of the S3 service. Needed for `minio://`, allowed for `s3://`, refused elsewhere.
        secret: Name of the Kubernetes secret with the access keys.

    Raises:
        UsageError: An unknown scheme, a relative path, credentials in the address, no bucket, or an endpoint that is
            missing, refused or not a URL.

    >>> to_serving_uri("minio://mlpipeline/v2/model", "http://minio-service.kubeflow:9000", "mlpipeline-minio-artifact")
    ... # doctest: +NORMALIZE_WHITESPACE
    ServingLocation(uri='s3://mlpipeline/v2/model', endpoint='http://minio-service.kubeflow:9000',
                    secret='mlpipeline-minio-artifact')
    >>> to_serving_uri("/srv/models/1").uri
    'file:///srv/models/1'
    """
    if uri.startswith("/"):
        uri = f"file://{uri}"
    scheme, separator, rest = uri.partition("://")
    known = ", ".join(f"{name}://" for name in (*_S3_SCHEMES, *_OTHER_SCHEMES))
    if not separator or not rest or scheme not in (*_S3_SCHEMES, *_OTHER_SCHEMES):
        raise UsageError(
            f"model address {uri!r}",
            "no scheme that a server can read",
            f"{known} or an absolute path is needed",
            "store the model under one of these, or write the path in full",
        )
    authority = rest.split("/", 1)[0]
    if "@" in authority:
        raise UsageError(
            f"model address {scheme}://...@{authority.rpartition('@')[2]}",
            "it carries credentials",
            "a registry entry is readable by everyone who may list models",
            "put the keys into a Kubernetes secret and give the secret's name",
        )
    if scheme not in _S3_SCHEMES:
        if endpoint:
            raise UsageError(
                f"endpoint {endpoint!r}",
                f"given for a {scheme}:// address",
                "only minio:// and s3:// have an endpoint",
                "leave the endpoint out",
            )
        return ServingLocation(uri.rstrip("/"), "", secret)
    if not authority or "?" in rest:
        raise UsageError(
            f"model address {uri!r}",
            "no bucket" if not authority else "it has a query",
            f"{scheme}://BUCKET/KEY is needed",
            "give the endpoint by itself, and leave out what follows the question mark",
        )
    if scheme == "minio" and not endpoint:
        raise UsageError(
            f"model address {uri!r}",
            "minio:// without an endpoint",
            "KServe reads it as s3:// and has to know the server",
            "give the endpoint, for example http://minio-service.kubeflow:9000",
        )
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise UsageError(
            f"endpoint {endpoint!r}",
            "not an http:// or https:// URL",
            "the scheme decides whether the connection is encrypted",
            "write http:// or https:// in front",
        )
    if urlsplit(endpoint).username is not None:
        raise UsageError(
            "endpoint", "it carries credentials", "only the server's address belongs here", "name a secret instead"
        )
    return ServingLocation(f"s3://{rest.rstrip('/')}", endpoint.rstrip("/"), secret)
