"""Files and folders from and to a URI."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mlflywheel.errors import DataError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.storage.addresses import (
    KNOWN,
    S3,
    WEB,
    find_protocol,
    local_path,
    s3_endpoint,
    split_bucket,
    without_credentials,
)
from mlflywheel.storage.failures import check_space, translated_errors
from mlflywheel.storage.patience import Patience, read_patience

#: Written last into a folder: who reads a model asks for it first (`mlflywheel.models.contract`).
_LAST_FILE = "manifest.json"


def exists(uri: str) -> bool:
    """Tell whether a file or a folder is there.

    Raises:
        DataError: The store cannot be asked: unknown protocol, no connection, no permission.
        MissingExtraError: The package for this protocol is not installed.
    """
    path = local_path(uri)
    with translated_errors(uri):
        if path is not None:
            return path.exists()
        filesystem, remote = _open_filesystem(uri)
        try:
            filesystem.info(remote)
        except FileNotFoundError:
            return False
        except OSError as refusal:
            # What botocore raises of itself, such as a timeout, needs no second question.
            if find_protocol(uri) in S3 and type(refusal).__module__ == "builtins":
                from mlflywheel.storage import s3

                s3.ask_why(filesystem, remote)
            raise
    return True


@contextmanager
def local_copy(uri: str, progress: ProgressCallback = ignore_progress) -> Iterator[Path]:
    """Give a file as a path on this machine: the file itself where it is local, else a download.

    A download lives in the folder for temporary files (`TMPDIR`), and is removed at the end of the body.

    Args:
        uri: One file.
        progress: Called with the phase `downloading` and bytes, possibly from another thread.

    Raises:
        DataError: No such file, a folder, an unknown protocol, no permission, no connection, or a broken download.
        MissingExtraError: The package for this protocol is not installed.
    """
    path = local_path(uri)
    if path is not None:
        with translated_errors(uri):
            if path.is_dir():
                raise _folder_instead_of_file(uri, sorted(p.name for p in path.iterdir() if p.is_file())[:3])
            if path.exists() and not path.is_file():
                raise DataError(uri, "a pipe or a device", "a regular file is needed", "save it as a file first")
            path.open("rb").close()
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mlflywheel-") as folder:
        copy = Path(folder) / "copy"
        with translated_errors(uri):
            _download_file(uri, copy, progress)
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
        progress: Called with the phase `downloading` and numbers of files, possibly from another thread.

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
        with translated_errors(uri):
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

    A file `manifest.json` at the top goes last. So an upload that is interrupted leaves a folder without it, or with
    the one of before, which does not fit the new files: neither is taken for a model.

    Args:
        folder: Source.
        uri: A folder or a prefix in an object store; created if missing.
        progress: Called with the phase `uploading` and numbers of files, possibly from another thread.

    Raises:
        UsageError: A web server, which takes no files.
        DataError: The source is missing or empty, or the target cannot be written.
        MissingExtraError: The package for this protocol is not installed.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(str(folder), "no files", "a folder with files is needed", "check the path")
    if find_protocol(uri) in WEB:
        raise UsageError(
            without_credentials(uri), "a web address", "files are written to a store", "use s3:// or a path"
        )
    names = [path.relative_to(folder).as_posix() for path in files]
    stages = [name for name in names if name != _LAST_FILE], [name for name in names if name == _LAST_FILE]
    report = _Counter("uploading", len(names), progress)
    with translated_errors(uri):
        target = local_path(uri)
        filesystem, remote = (None, "") if target is not None else _open_filesystem(uri)
        for stage in stages:
            if target is not None:
                for name in stage:
                    _copy_whole(folder / name, target / name)
                    report.count()
            elif stage:
                _upload_files(filesystem, find_protocol(uri), folder, remote.rstrip("/"), stage, report)


class _Counter:
    """Tells how many files are done."""

    def __init__(self, phase: str, total: int, progress: ProgressCallback) -> None:
        self.phase, self.total, self.progress = phase, total, progress
        self.done = 0
        progress(phase, 0, total)

    def count(self) -> None:
        self.done += 1
        self.progress(self.phase, self.done, self.total)


def _download_file(uri: str, copy: Path, progress: ProgressCallback) -> None:
    filesystem, remote = _open_filesystem(uri)
    protocol = find_protocol(uri)
    try:
        if protocol in S3:
            from mlflywheel.storage import s3

            if not split_bucket(uri)[1]:
                raise FileNotFoundError(uri)

            def report(done: int, total: int) -> None:
                progress("downloading", done, total)

            s3.download(filesystem, [(remote, copy)], read_patience(), on_bytes=report)
        else:
            filesystem.get_file(remote, str(copy), callback=_progress_callback(progress))
    except FileNotFoundError:
        # Asked only now, because listing may be forbidden where reading is allowed.
        if protocol in WEB or not _is_folder(filesystem, remote):
            raise
    if not copy.is_file():
        names = [PurePosixPath(name).name for name in filesystem.ls(remote, detail=False)]
        raise _folder_instead_of_file(uri, sorted(names)[:3])


def _is_folder(filesystem: Any, remote: str) -> bool:
    try:
        return bool(filesystem.isdir(remote))
    except OSError:
        return False


def _upload_files(
    filesystem: Any, protocol: str, folder: Path, remote: str, names: list[str], report: _Counter
) -> None:
    if protocol in S3:
        from mlflywheel.storage import s3

        s3.upload(filesystem, [(folder / name, f"{remote}/{name}") for name in names], report.count)
        return
    for name in names:
        filesystem.put_file(str(folder / name), f"{remote}/{name}")
        report.count()


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _copy_folder(uri: str, target: Path, progress: ProgressCallback) -> None:
    protocol = find_protocol(uri)
    if protocol in WEB:
        raise DataError(
            without_credentials(uri), "a web address", "a web server lists no folders", "use s3://, gs:// or a path"
        )
    source = local_path(uri)
    if source is not None:
        if not source.is_dir():
            raise DataError(
                uri, "a file" if source.exists() else "no such folder", "a folder is needed", "check the path"
            )
        paths = (path for path in source.rglob("*") if path.is_file())
        sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in paths}
        filesystem, remote = None, ""
    else:
        from mlflywheel.storage import s3

        filesystem, remote = _open_filesystem(uri)
        sizes = s3.list_objects(filesystem, remote)
    # Some tools and consoles keep an empty object as a folder's mark.
    names = sorted(name for name in sizes if not (name.endswith("/") or (not name and not sizes[name])))
    if not names:
        raise DataError(without_credentials(uri), "no files under it", "a folder with files is needed", "check the URI")
    for name in names:
        # An object's name is any text, also one that climbs out of the target.
        if not name or name.startswith("/") or {".", ".."} & set(name.split("/")) or "\\" in name:
            raise DataError(
                without_credentials(uri),
                f"an object named {name!r}",
                "names must stay inside the folder",
                "rename or remove the object",
            )
    check_space(target, sum(sizes.values()))
    report = _Counter("downloading", len(names), progress)
    if filesystem is not None and protocol in S3:
        jobs = [(f"{remote.rstrip('/')}/{name}", target / name) for name in names]
        for parent in {path.parent for _, path in jobs}:
            parent.mkdir(parents=True, exist_ok=True)
        s3.download(filesystem, jobs, read_patience(), on_file=report.count)
        return
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            shutil.copyfile(source / name, target / name)
        else:
            assert filesystem is not None
            filesystem.get_file(f"{remote.rstrip('/')}/{name}", str(target / name))
        report.count()


def _open_filesystem(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system for a remote URI, and what that calls the file."""
    import fsspec

    protocol = find_protocol(uri)
    shown = without_credentials(uri)
    if protocol not in KNOWN:
        raise DataError(
            shown,
            f"unknown protocol {protocol}",
            f"known ones are {', '.join(KNOWN)}",
            "correct the URI, or copy the file",
        )
    rest = uri[len(protocol) + 3 :]
    if protocol in WEB:
        try:
            _ = urlsplit(uri).port
        except ValueError:
            raise DataError(shown, "not a valid address", "a complete URI is needed", "check the URI") from None
        return fsspec.filesystem(protocol, skip_instance_cache=True, **_web_options(read_patience())), uri
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

    if protocol == "minio" and s3_endpoint(protocol) is None:
        raise DataError(
            shown,
            "no server is known for minio://",
            "MINIO_ENDPOINT or AWS_ENDPOINT_URL names it",
            "set MINIO_ENDPOINT; in Kubeflow it is http://seaweedfs.kubeflow:9000",
        )
    from mlflywheel.storage.s3 import open_s3

    return open_s3(protocol, read_patience()), rest


def _web_options(patience: Patience) -> dict[str, Any]:
    import aiohttp

    # aiohttp gives up after five minutes in all, which a large table needs; a silent server is given up much earlier.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience.connect_seconds, sock_read=patience.read_seconds)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _progress_callback(progress: ProgressCallback) -> Any:
    from fsspec.callbacks import Callback

    def report(size: int | None, value: int, **_: Any) -> None:
        progress("downloading", value, size or 0)

    return Callback(hooks={"progress": report})


def _folder_instead_of_file(uri: str, names: list[str]) -> DataError:
    example = f", for example {names[0]}" if names else ""
    return DataError(without_credentials(uri), "a folder", "one file is needed", f"name a file in it{example}")
