"""Where a model's files lie, written so that a server on the cluster can read them.

Kubeflow Pipelines writes its artifacts under `minio://`, which KServe does not know: it reads the same bytes as `s3://`
once it has the endpoint and the name of a secret with the keys. A registry entry holds those three, never the keys.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from mlflywheel.errors import UsageError
from mlflywheel.storage import s3_endpoint

_S3_SCHEMES = ("minio", "s3")
# What KServe's storage initializer reads, and `file` for a registry that stays on one machine.
_OTHER_SCHEMES = ("gs", "https", "http", "pvc", "hf", "oci", "file")
_ANNOTATION = "serving.kserve.io/s3-"


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

    def secret_annotations(self, region: str = "us-east-1") -> dict[str, str]:
        """Return what KServe has to find on the secret with the keys, to ask the right server.

        KServe reads the keys themselves from the secret's entries `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and
        only from secrets that the predictor's service account lists.

        Args:
            region: The region that requests are signed for; MinIO takes any.

        >>> ServingLocation("s3://models/1", "http://seaweedfs.kubeflow:9000").secret_annotations()
        ... # doctest: +NORMALIZE_WHITESPACE
        {'serving.kserve.io/s3-region': 'us-east-1',
         'serving.kserve.io/s3-endpoint': 'seaweedfs.kubeflow:9000',
         'serving.kserve.io/s3-usehttps': '0', 'serving.kserve.io/s3-verifyssl': '0'}
        """
        annotations = {f"{_ANNOTATION}region": region}
        if self.endpoint:
            encrypted = "1" if self.endpoint.startswith("https://") else "0"
            annotations |= {
                f"{_ANNOTATION}endpoint": self.endpoint.partition("://")[2],
                f"{_ANNOTATION}usehttps": encrypted,
                f"{_ANNOTATION}verifyssl": encrypted,
            }
        return annotations


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

    >>> to_serving_uri("minio://mlpipeline/v2/model", "http://seaweedfs.kubeflow:9000", "mlpipeline-minio-artifact")
    ... # doctest: +NORMALIZE_WHITESPACE
    ServingLocation(uri='s3://mlpipeline/v2/model', endpoint='http://seaweedfs.kubeflow:9000',
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
            "give the endpoint, for example http://seaweedfs.kubeflow:9000",
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


def to_readable_uri(uri: str, endpoint: str = "", secret: str = "") -> str:
    """Return the address by which this process reads what a registry entry names.

    An entry says `s3://` and where the server is. The keys of one server are not sent to another one that an entry
    names, so a variable has to name the server here too: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, by which `s3://`
    is read, or `MINIO_ENDPOINT`, by which `minio://` is. Where both are set and differ, the entry's endpoint decides.
    The address of a server inside a cluster may be another one outside, so none has to be equal.

    Args:
        uri: Of a registered version, its dossier or its card.
        endpoint: Of the version; empty for Amazon's own and for other schemes than `s3://`.
        secret: Of the version; named in the error.

    Raises:
        UsageError: No variable names a server, and the entry does.

    >>> to_readable_uri("gs://models/1")
    'gs://models/1'
    """
    if not uri.startswith("s3://") or not endpoint:
        return uri
    found = {scheme: s3_endpoint(scheme) for scheme in _S3_SCHEMES}
    if found["s3"] and (found["s3"] == endpoint or found["minio"] != endpoint):
        return uri
    if found["minio"]:
        return f"minio://{uri.removeprefix('s3://')}"
    raise UsageError(
        uri,
        f"it lies at {endpoint}, and no variable names that server here",
        "the server's address and its keys are needed",
        f"set AWS_ENDPOINT_URL_S3 to {endpoint}, and the keys{f' of the secret {secret}' if secret else ''}; "
        "from outside its cluster the server may have another address",
    )
