"""What an error of a library means, in words that name the variable to set, and never a secret."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.storage.addresses import (
    S3,
    WEB,
    find_protocol,
    name_endpoint_variable,
    s3_endpoint,
    split_bucket,
    without_credentials,
)
from mlflywheel.storage.patience import ATTEMPTS_VARIABLE, CONNECT_VARIABLE, READ_VARIABLE, read_patience

_URI_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
# Packages whose exceptions mean that a server or the network said no. Any other exception is a defect, and passes.
_CLIENT_PACKAGES = ("aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "yarl")
# EFBIG: a limit on the size of a file, which an administrator sets for a process.
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_IN_A_POD = "in a pod the secret that fills them"
_NEW_TOKEN = (
    "get new ones and set AWS_SESSION_TOKEN with both keys, or unset it where the keys need none; "
    "in a pod, start the step again"
)
_SET_REGION = "set AWS_REGION to the bucket's region"
_PERMISSIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
}
_OTHER_REGION = (
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
    "301",
    "307",
)
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired")
_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidSecurity", "403")

Explanation = tuple[str, str, str]


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Turn what libraries raise into errors of ours, without the secrets that their messages may repeat."""
    shown = without_credentials(uri)
    try:
        yield
    except (DataError, UsageError):
        raise
    except ImportError:
        raise _missing_package(uri) from None
    except Exception as error:
        full_disk = isinstance(error, OSError) and error.errno in _FULL_DISK
        if full_disk and find_protocol(uri) != "file":
            raise DataError(
                shown,
                f"the disk here is full ({without_credentials(str(error))[:120].rstrip('.')})",
                "its copy on this machine needs room",
                "free some, or set TMPDIR to a folder of a larger disk; in a pod, ask for more ephemeral-storage",
            ) from None
        from_client = type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES
        from_client = from_client or (find_protocol(uri) in S3 and isinstance(error, RecursionError))
        if full_disk or not (from_client or isinstance(error, OSError | TimeoutError)):
            raise
        raise DataError(shown, *explain(uri, error)) from None


def check_space(folder: Path, size: int) -> None:
    """Refuse what cannot fit on the disk, before it is downloaded.

    Raises:
        OSError: ENOSPC.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"No space left on device: {size:,} bytes are needed, {free:,} are free")


def explain(uri: str, error: Exception) -> Explanation:
    """Say what an exception means: seen, needed, fix."""
    protocol = find_protocol(uri)
    if protocol in S3:
        found = _explain_s3(uri, protocol, error)
        if found is not None:
            return found
    names = " ".join(cls.__name__ for cls in type(error).__mro__)
    # aiohttp says `status`, gcsfs `code`; read from the instance, since aiohttp's own `code` is deprecated.
    status = vars(error).get("status", vars(error).get("code"))
    if isinstance(error, FileNotFoundError) or status == 404:
        seen = "HTTP 404, no such file" if protocol in WEB else "no such file"
        return (
            seen,
            "a file that exists is needed",
            "check the spelling and the folder" if protocol == "file" else "check the URI",
        )
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return "a folder on the way is a file, or the other way round", "one file is needed", "check the path"
    if "NoCredentials" in names or "PartialCredentials" in names or "DefaultCredentialsError" in names:
        return "no credentials in the environment", "the store asks for them", _credentials_fix(protocol)
    # gcsfs has no exception of its own for a 403.
    forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    if forbidden or status in (401, 403):
        seen = f"HTTP {status}, permission denied" if isinstance(status, int) else "permission denied"
        return seen, "permission to use it is needed", _credentials_fix(protocol)
    if isinstance(status, int) and status >= 400:
        return f"HTTP {status}", "HTTP 200 is needed", "try again later, or check the URI"
    if any(word in names for word in ("PayloadError", "IncompleteRead", "ContentLength", "BrokenTransfer")):
        return "the connection broke off in the middle", "the whole file is needed", "try again"
    if "Timeout" in names:
        return "no answer in time", "a server that answers is needed", "check the address, the network and the proxy"
    if any(word in names for word in ("Connector", "ConnectionError", "ServerDisconnected", "ClientOSError")):
        text = "the host is not known" if "DNS" in names else "no connection"
        return text, "a server that answers is needed", "check the address, the network and the proxy"
    if "InvalidURL" in names or "ParamValidation" in names:
        return "not a valid address", "a complete URI is needed", "check the URI"
    return _scrub(uri, error), "a readable file is needed", "check the URI and the permissions"


def _explain_s3(uri: str, protocol: str, error: Exception) -> Explanation | None:
    endpoint = s3_endpoint(protocol)
    store = without_credentials(endpoint) if endpoint else "Amazon S3"
    variable = name_endpoint_variable(protocol)
    refusal = _find_refusal(error)
    if refusal is not None:
        return _explain_refusal(uri, store, variable, refusal)
    if isinstance(error, RecursionError):
        # botocore follows redirects to where it is redirected again.
        return f"{store} redirects every request", "requests are signed for one region", _SET_REGION
    names = " ".join(cls.__name__ for cls in type(error).__mro__)
    # What botocore was told by the layers below, which say more than it does.
    cause = vars(error).get("kwargs", {}).get("error")
    below = " ".join(cls.__name__ for cls in type(cause).__mro__) if isinstance(cause, Exception) else ""
    network = f"{'correct' if endpoint else 'set'} {variable}, or look at the network, the NetworkPolicy and the proxy"
    if "NoCredentials" in names or "PartialCredentials" in names:
        return (
            "no credentials in the environment",
            f"{store} asks for them",
            f"set {_KEYS}, or mount the secret that holds them",
        )
    if "SSLError" in names or "SSL" in below or "Certificate" in below:
        return (
            f"no encrypted connection to {store}: {_first_line(str(cause or error))}",
            "a server that speaks TLS, with a certificate that is trusted, is needed",
            f"write http:// in {variable} if it speaks none; else set AWS_CA_BUNDLE to the certificate of its issuer",
        )
    if "ConnectTimeout" in names:
        seconds = read_patience().connect_seconds
        return f"no connection to {store} within {seconds:g} s", f"{CONNECT_VARIABLE} allows so much", network
    if "Timeout" in names:
        seconds = read_patience().read_seconds
        return (
            f"{store} was silent for {seconds:g} s",
            f"{READ_VARIABLE} allows so much",
            "try again later, or allow more",
        )
    if "DNS" in below:
        return f"the host of {store} is not known", "a name that resolves is needed", network
    if "BrokenTransfer" in names:
        return f"the file did not come whole: {error}", f"{store} has to send every byte", "try again"
    if "Payload" in names or "IncompleteRead" in names or "ResponseStreaming" in names:
        return (
            "the connection broke off in the middle",
            f"the whole file is needed from {store}",
            f"try again; {ATTEMPTS_VARIABLE} allows more attempts",
        )
    if "FlexibleChecksum" in names:
        return "the bytes that came have another checksum", f"the file that {store} holds is needed", "try again"
    is_unreachable = ("EndpointConnection", "ConnectionClosed", "ProxyConnection", "HTTPClientError", "ConnectionError")
    if any(word in names for word in is_unreachable):
        return f"no connection to {store}", "an object store that answers is needed", network
    return None


def _find_refusal(error: BaseException) -> tuple[str, int | None, str, str] | None:
    """Return code, HTTP status, operation and region of what the store answered; None if it did not."""
    found: BaseException | None = error
    while found is not None:
        response = vars(found).get("response")
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            refused = response["Error"]
            region = refused.get("Region") or refused.get("Endpoint") or ""
            return str(refused.get("Code") or ""), status, str(vars(found).get("operation_name", "")), str(region)
        found = found.__cause__
    return None


def _explain_refusal(uri: str, store: str, variable: str, refusal: tuple[str, int | None, str, str]) -> Explanation:
    code, status, operation, region = refusal
    answer = f"HTTP {status} {code}" if code and code != str(status) else f"HTTP {status}"
    bucket = without_credentials(uri).partition("://")[2].partition("/")[0]
    keys_fix = f"check {_KEYS}, {_IN_A_POD}"
    if code == "NoSuchBucket" or (status == 404 and (operation == "HeadBucket" or not split_bucket(uri)[1])):
        return (
            f"there is no bucket {bucket} at {store}",
            "the bucket has to exist",
            f"create it, correct the URI, or name another store with {variable}",
        )
    if code in ("NoSuchKey", "404") or status == 404:
        return "no such file", f"a file that exists at {store} is needed", f"check the URI, and {variable}"
    if code == "InvalidAccessKeyId":
        return f"{store} does not know the access key ({answer})", "a key of this store is needed", keys_fix
    if code == "SignatureDoesNotMatch":
        return f"{store} refused the signature ({answer})", "the secret key of this access key is needed", keys_fix
    if code in _EXPIRED:
        return f"the credentials have expired ({answer})", "valid ones are needed", _NEW_TOKEN
    if code == "InvalidToken":
        return f"{store} refused the session token ({answer})", "valid credentials are needed", _NEW_TOKEN
    if code == "RequestTimeTooSkewed":
        return f"{store} says that the time is wrong ({answer})", "a signature counts for minutes", "set the clock"
    if code in _OTHER_REGION:
        where = f", in {region}" if region else ""
        return (
            f"the bucket is somewhere else{where} ({answer})",
            "requests are signed for one region",
            _SET_REGION,
        )
    if code in _DENIED or status in (401, 403):
        needed = _PERMISSIONS.get(operation, "the permission")
        seen = f"permission denied for {operation} ({answer})" if operation else f"permission denied ({answer})"
        return seen, f"{needed} on it is needed", f"grant it to the keys, or {keys_fix}"
    if (status is not None and status >= 500) or code in ("SlowDown", "RequestTimeout", "Throttling"):
        attempts = read_patience().attempts
        times = f"{attempts} times" if attempts > 1 else "once"
        return (
            f"{store} answered {answer}, {times}",
            "an object store that answers is needed",
            f"try again later; {ATTEMPTS_VARIABLE} allows more attempts",
        )
    return f"{store} answered {answer}", "HTTP 200 is needed", f"check the URI, {variable} and the keys"


def _credentials_fix(protocol: str) -> str:
    if protocol in S3:
        return f"set {_KEYS}, or mount the secret that holds them"
    if protocol in ("gs", "gcs"):
        return "set GOOGLE_APPLICATION_CREDENTIALS, or mount the secret that holds them"
    return "ask for access" if protocol in WEB else "change the permissions, or run as the owner"


def _first_line(text: str) -> str:
    return (_URI_IN_TEXT.sub(lambda match: without_credentials(match.group()), text).splitlines() or [""])[0][
        :160
    ].rstrip(".")


def _scrub(uri: str, error: Exception) -> str:
    """Return the first line of an error, without anything that the URI keeps secret."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    text = _URI_IN_TEXT.sub(
        lambda match: without_credentials(match.group()), text.replace(uri, without_credentials(uri))
    )
    authority, _, query = uri.partition("://")[2].partition("?")
    secrets = [authority.rpartition("@")[0].partition(":")[2], *(pair.partition("=")[2] for pair in query.split("&"))]
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    return text[:200].rstrip(".")


def _missing_package(uri: str) -> MissingExtraError:
    protocol = find_protocol(uri)
    where = f"reading {without_credentials(uri)}"
    if protocol in S3:
        return MissingExtraError.of("s3fs", "s3", where)
    if protocol in ("gs", "gcs"):
        return MissingExtraError.of("gcsfs", "gcs", where)
    return MissingExtraError(
        where, "aiohttp is not installed", "fsspec reads the web with it", "pip install 'fsspec[http]'"
    )
