"""The only place that turns URIs into bytes.

Reads and writes through fsspec. What a URI may start with:

| URI                    | Where                             | Comes with                        |
| ---------------------- | --------------------------------- | --------------------------------- |
| a path, `file://`      | this machine                      |                                   |
| `http://`, `https://`  | a web server, one file at a time  | aiohttp (`fsspec[http]`)          |
| `s3://`                | Amazon S3 and what speaks like it | the extra `s3`                    |
| `minio://`             | the object store of Kubeflow      | the extra `s3`                    |
| `gs://`, `gcs://`      | Google Cloud Storage              | the extra `gcs`                   |
| `memory://`            | this process, for tests           |                                   |

Other protocols that fsspec knows are refused on purpose: a URI is data, and data does not choose what code runs.

Credentials never stand in a URI of an object store. They come from the environment, which a mounted secret fills:

- `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` and the files they may point at, for
  `s3://` and `minio://` alike. Kubeflow's secret `mlpipeline-minio-artifact` holds the first two as `accesskey` and
  `secretkey`.
- `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`: another server than Amazon's.
- `MINIO_ENDPOINT`: the server behind `minio://`, as a URL or as `host:port` (then without TLS). Without it, the two
  above are asked. `s3://` never uses it.
- `GOOGLE_APPLICATION_CREDENTIALS` for `gs://`.
- `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` for all of them.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URI_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
# `?` is an ordinary character in the name of an object, so only a query that looks like a signature is masked there.
_NO_QUERY = ("file", "memory", "s3", "minio", "gs", "gcs")
_SIGNATURE = re.compile(r"(sig|signature|token|credential|secret|password|key)[^=&]*=", re.IGNORECASE)
_WEB = ("http", "https")
_KNOWN = ("file", "http", "https", "s3", "minio", "gs", "gcs", "memory")
# Packages whose exceptions mean that a server or the network said no. Any other exception is a defect, and passes.
_CLIENT_PACKAGES = ("aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "yarl")
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 60


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
    protocol = _protocol(uri)
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
    """Return the object store's address, from the variables that the module's documentation lists.

    Args:
        protocol: `s3` or `minio`.
        environment: Variables; the process's own by default.

    Returns:
        A URL without a trailing slash, or None where no variable is set: Amazon's own.

    >>> s3_endpoint("minio", {"MINIO_ENDPOINT": "minio-service.kubeflow:9000"})
    'http://minio-service.kubeflow:9000'
    """
    environment = os.environ if environment is None else environment
    names = ["MINIO_ENDPOINT"] if protocol == "minio" else []
    for name in [*names, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]:
        value = environment.get(name, "").strip().rstrip("/")
        if value:
            return value if "://" in value else f"http://{value}"
    return None


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
    if _protocol(uri) != "file":
        return None
    if not _PROTOCOL.match(uri):
        return Path(uri).expanduser()
    host, slash, path = uri[len("file://") :].partition("/")
    if host not in ("", "localhost"):
        raise DataError(
            uri, f"it names the host {host}", "a file URI has three slashes", f"write file:///{host}{slash}{path}"
        )
    return Path(url2pathname(slash + path))


def exists(uri: str) -> bool:
    """Tell whether a file or a folder is there.

    Raises:
        DataError: The store cannot be asked: unknown protocol, no connection, no permission.
        MissingExtraError: The package for this protocol is not installed.
    """
    path = local_path(uri)
    with _translated_errors(uri):
        if path is not None:
            return path.exists()
        filesystem, remote = _open_filesystem(uri)
        try:
            filesystem.info(remote)
        except FileNotFoundError:
            return False
    return True


@contextmanager
def local_copy(uri: str, progress: ProgressCallback = ignore_progress) -> Iterator[Path]:
    """Give a file as a path on this machine: the file itself where it is local, else a download.

    A download lives in the folder for temporary files, and is removed at the end of the body.

    Args:
        uri: One file.
        progress: Called with the phase `downloading` and bytes, possibly from another thread.

    Raises:
        DataError: No such file, a folder, an unknown protocol, no permission, no connection, or a broken download.
        MissingExtraError: The package for this protocol is not installed.
    """
    path = local_path(uri)
    if path is not None:
        with _translated_errors(uri):
            if path.is_dir():
                raise _folder_instead_of_file(uri, sorted(p.name for p in path.iterdir() if p.is_file())[:3])
            if path.exists() and not path.is_file():
                raise DataError(uri, "a pipe or a device", "a regular file is needed", "save it as a file first")
            path.open("rb").close()
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlflywheel-") as folder:
        copy = Path(folder) / "copy"
        with _translated_errors(uri):
            filesystem, remote = _open_filesystem(uri)
            try:
                filesystem.get_file(remote, str(copy), callback=_progress_callback(progress))
            except FileNotFoundError:
                # Asked only now, because listing may be forbidden where reading is allowed.
                if _protocol(uri) in _WEB or not filesystem.isdir(remote):
                    raise
            if not copy.is_file():
                names = [PurePosixPath(name).name for name in filesystem.ls(remote, detail=False)]
                raise _folder_instead_of_file(uri, sorted(names)[:3])
        yield copy


@contextmanager
def open_binary(uri: str, progress: ProgressCallback = ignore_progress) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; seekable, whatever the protocol. Arguments and errors as in `local_copy`."""
    with local_copy(uri, progress) as path, path.open("rb") as file:
        yield file


def download_folder(uri: str, folder: Path, progress: ProgressCallback = ignore_progress) -> None:
    """Copy every file under a URI into a folder of this machine, all or nothing.

    Args:
        uri: A folder, or a prefix in an object store.
        folder: Target: missing or empty. It appears only when every file is there.
        progress: Called with the phase `downloading` and numbers of files.

    Raises:
        UsageError: The target holds files.
        DataError: As in `local_copy`; also an empty or missing folder, and a name that leads out of the target.
        MissingExtraError: The package for this protocol is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(str(folder), "not an empty folder", "a new or empty folder is needed", "choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        with _translated_errors(uri):
            _copy_folder(uri, partial, progress)
        # A folder from mkdtemp is closed to other users; the target is an ordinary folder.
        partial.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def upload_folder(folder: Path, uri: str, progress: ProgressCallback = ignore_progress) -> None:
    """Copy every file of a local folder to a URI; files of the same name are replaced, others are left alone.

    Args:
        folder: Source.
        uri: A folder or a prefix in an object store; created if missing.
        progress: Called with the phase `uploading` and numbers of files.

    Raises:
        UsageError: A web server, which takes no files.
        DataError: The source is missing or empty, or the target cannot be written.
        MissingExtraError: The package for this protocol is not installed.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(str(folder), "no files", "a folder with files is needed", "check the path")
    if _protocol(uri) in _WEB:
        raise UsageError(
            without_credentials(uri), "a web address", "files are written to a store", "use s3:// or a path"
        )
    target = local_path(uri)
    with _translated_errors(uri):
        filesystem, remote = (None, "") if target is not None else _open_filesystem(uri)
        for done, path in enumerate(files):
            progress("uploading", done, len(files))
            name = path.relative_to(folder).as_posix()
            if target is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
            else:
                assert filesystem is not None
                filesystem.put_file(str(path), f"{remote.rstrip('/')}/{name}")
        progress("uploading", len(files), len(files))


def _protocol(uri: str) -> str:
    match = _PROTOCOL.match(uri)
    return match.group(1).lower() if match else "file"


def _copy_folder(uri: str, target: Path, progress: ProgressCallback) -> None:
    if _protocol(uri) in _WEB:
        raise DataError(
            without_credentials(uri), "a web address", "a web server lists no folders", "use s3://, gs:// or a path"
        )
    source = local_path(uri)
    filesystem, remote = (None, "") if source is not None else _open_filesystem(uri)
    if source is not None:
        if not source.is_dir():
            raise DataError(
                uri, "a file" if source.exists() else "no such folder", "a folder is needed", "check the path"
            )
        names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    else:
        assert filesystem is not None
        root = remote.strip("/")
        found = (str(name).strip("/") for name in filesystem.find(remote))
        names = sorted(name[len(root) + 1 :] for name in found if name.startswith(f"{root}/"))
    if not names:
        raise DataError(without_credentials(uri), "no files under it", "a folder with files is needed", "check the URI")
    for done, name in enumerate(names):
        progress("downloading", done, len(names))
        # An object's name is any text, also one that climbs out of the target.
        if not name or name.startswith("/") or {".", ".."} & set(name.split("/")) or "\\" in name:
            raise DataError(
                without_credentials(uri),
                f"an object named {name!r}",
                "names must stay inside the folder",
                "rename or remove the object",
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            shutil.copyfile(source / name, target / name)
        else:
            assert filesystem is not None
            filesystem.get_file(f"{remote.rstrip('/')}/{name}", str(target / name))
    progress("downloading", len(names), len(names))


def _open_filesystem(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system for a remote URI, and what that calls the file."""
    import fsspec

    protocol = _protocol(uri)
    shown = without_credentials(uri)
    if protocol not in _KNOWN:
        raise DataError(
            shown,
            f"unknown protocol {protocol}",
            f"known ones are {', '.join(_KNOWN)}",
            "correct the URI, or copy the file",
        )
    rest = uri[len(protocol) + 3 :]
    if protocol in _WEB:
        try:
            _ = urlsplit(uri).port
        except ValueError:
            raise DataError(shown, "not a valid address", "a complete URI is needed", "check the URI") from None
        return fsspec.filesystem(protocol, skip_instance_cache=True, **_web_options()), uri
    if protocol == "memory":
        return fsspec.filesystem("memory"), f"/{rest.strip('/')}"
    if without_credentials(uri).partition("?")[0] != uri.partition("?")[0]:
        raise DataError(
            shown,
            "the URI holds credentials",
            "they are read from the environment",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and remove them from the URI",
        )
    if not rest.strip("/"):
        raise DataError(shown, "no bucket and no name", f"{protocol}://bucket/name is needed", "complete the URI")
    if protocol in ("gs", "gcs"):
        return fsspec.filesystem("gcs", skip_instance_cache=True, use_listings_cache=False), rest
    endpoint = s3_endpoint(protocol)
    if protocol == "minio" and endpoint is None:
        raise DataError(
            shown,
            "no server is known for minio://",
            "MINIO_ENDPOINT or AWS_ENDPOINT_URL names it",
            "set MINIO_ENDPOINT; in Kubeflow it is http://minio-service.kubeflow:9000",
        )
    # No cache of instances or listings: a second call may come with other credentials, and must see what is there now.
    filesystem = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "read_timeout": _READ_TIMEOUT_SECONDS,
            "retries": {"max_attempts": 2},
        },
    )
    return filesystem, rest


def _web_options() -> dict[str, Any]:
    import aiohttp

    # aiohttp gives up after five minutes in all, which a large table needs; a silent server is given up much earlier.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _progress_callback(progress: ProgressCallback) -> Any:
    from fsspec.callbacks import Callback

    def report(size: int | None, value: int, **_: Any) -> None:
        progress("downloading", value, size or 0)

    return Callback(hooks={"progress": report})


def _folder_instead_of_file(uri: str, names: list[str]) -> DataError:
    example = f", for example {names[0]}" if names else ""
    return DataError(without_credentials(uri), "a folder", "one file is needed", f"name a file in it{example}")


@contextmanager
def _translated_errors(uri: str) -> Iterator[None]:
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
        from_client = type(error).__module__.partition(".")[0] in _CLIENT_PACKAGES
        if full_disk or not (from_client or isinstance(error, OSError | TimeoutError)):
            raise
        raise DataError(shown, *_explain(uri, error)) from None


def _explain(uri: str, error: Exception) -> tuple[str, str, str]:
    """Say what an exception means: seen, needed, fix."""
    protocol = _protocol(uri)
    names = " ".join(cls.__name__ for cls in type(error).__mro__)
    # aiohttp says `status`, gcsfs `code`; read from the instance, since aiohttp's own `code` is deprecated.
    status = vars(error).get("status", vars(error).get("code"))
    if isinstance(error, FileNotFoundError) or status == 404:
        seen = "HTTP 404, no such file" if protocol in _WEB else "no such file"
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
    if "PayloadError" in names or "IncompleteRead" in names or "ContentLength" in names:
        return "the connection broke off in the middle", "the whole file is needed", "try again"
    if "Timeout" in names:
        return "no answer in time", "a server that answers is needed", "check the address, the network and the proxy"
    if any(word in names for word in ("Connector", "ConnectionError", "ServerDisconnected", "ClientOSError")):
        text = "the host is not known" if "DNS" in names else "no connection"
        return text, "a server that answers is needed", "check the address, the network and the proxy"
    if "InvalidURL" in names or "ParamValidation" in names:
        return "not a valid address", "a complete URI is needed", "check the URI"
    return _scrub(uri, error), "a readable file is needed", "check the URI and the permissions"


def _credentials_fix(protocol: str) -> str:
    if protocol in ("s3", "minio"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or mount the secret that holds them"
    if protocol in ("gs", "gcs"):
        return "set GOOGLE_APPLICATION_CREDENTIALS, or mount the secret that holds them"
    return "ask for access" if protocol in _WEB else "change the permissions, or run as the owner"


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
    protocol = _protocol(uri)
    where = f"reading {without_credentials(uri)}"
    if protocol in ("s3", "minio"):
        return MissingExtraError.of("s3fs", "s3", where)
    if protocol in ("gs", "gcs"):
        return MissingExtraError.of("gcsfs", "gcs", where)
    return MissingExtraError(
        where, "aiohttp is not installed", "fsspec reads the web with it", "pip install 'fsspec[http]'"
    )
