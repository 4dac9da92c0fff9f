"""Files from and to an object store with an S3 API.

s3fs makes the requests; what it leaves open is decided here:

- One layer repeats requests: botocore's standard mode, for refusals such as 503 and for connections that fail. A body
  that breaks off is asked for again from here, block by block, so that a large file survives a bad line.
- A file counts as read when every byte that the store promised is there, and all blocks are of the same object: they
  have one ETag. botocore compares the checksum of a small object where the store has one.
- A bounded number of blocks is in memory, whatever the sizes.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from mlflywheel.errors import UsageError
from mlflywheel.storage.addresses import check_endpoint, split_bucket
from mlflywheel.storage.failures import check_space
from mlflywheel.storage.patience import Patience

#: What is asked for at once; also the size of the parts of a large upload.
BLOCK_BYTES = 8 * 2**20
# At a time: files, files of more than a block, blocks of one of these, and requests. At most 32 blocks, 256 MiB, are in
# memory: those under way, and those that wait for the ones before them.
_FILES = 16
_LARGE_FILES = 4
_BLOCKS = 4
_REQUESTS = 16
_FIRST_PAUSE_SECONDS = 0.2
_BROKEN = {
    "BrokenTransferError",
    "ClientPayloadError",
    "FlexibleChecksumError",
    "IncompleteReadError",
    "ResponseStreamingError",
}

Report = Callable[[int], object]
_T = TypeVar("_T")


class BrokenTransferError(OSError):
    """Fewer bytes came than the store promised, or other ones."""


def open_s3(protocol: str, patience: Patience) -> Any:
    """Return s3fs's file system for the store that the environment names.

    Args:
        protocol: `s3` or `minio`.
        patience: Limits of its requests.

    Raises:
        UsageError: The endpoint is no URL, or there is no file of certificates where `AWS_CA_BUNDLE` says.
    """
    import fsspec

    endpoint = check_endpoint(protocol)
    bundle = os.environ.get("AWS_CA_BUNDLE", "")
    if bundle and not Path(bundle).is_file():
        raise UsageError("AWS_CA_BUNDLE", f"no file {bundle}", "a file of certificates is needed", "correct the path")
    settings: dict[str, Any] = {
        "connect_timeout": patience.connect_seconds,
        "read_timeout": patience.read_seconds,
        "retries": {"mode": "standard", "total_max_attempts": patience.attempts},
        "max_pool_connections": _REQUESTS,
    }
    if endpoint is not None and "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
        # Stores beside Amazon's refuse the checksums that botocore appends to uploads, MinIO's older releases among
        # them. Kubeflow's launcher leaves them out too.
        settings["request_checksum_calculation"] = "when_required"
    # No cache of instances or listings: a second call may come with other credentials, and must see what is there now.
    filesystem = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs=settings,
        session=_make_session(),
    )
    # s3fs would repeat what botocore has repeated already.
    filesystem.retries = 1
    return filesystem


def _make_session() -> Any:
    """Return a session that finds credentials anew, and shares with others what botocore knows of Amazon's services.

    Without it every call reads and parses the description of S3 again, which takes ten times as long as the rest.
    """
    session = import_module("aiobotocore.session").AioSession()
    session.register_component("data_loader", _find_loader())
    return session


@cache
def _find_loader() -> Any:
    return import_module("botocore.session").Session().get_component("data_loader")


def list_objects(filesystem: Any, remote: str) -> dict[str, int]:
    """Return the objects under a prefix that is a folder, by their names in it, and their sizes in bytes."""
    root = remote.strip("/")
    found = filesystem.find(remote, detail=True)
    paths = {str(name).strip("/"): int(details.get("size") or 0) for name, details in found.items()}
    return {name[len(root) + 1 :]: size for name, size in paths.items() if name.startswith(f"{root}/")}


def ask_why(filesystem: Any, remote: str) -> None:
    """Raise what a listing is refused for: an answer to HEAD has no body that would say why, one to a listing has."""
    bucket, key = split_bucket(f"s3://{remote}")
    filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)


def download(
    filesystem: Any,
    jobs: Sequence[tuple[str, Path]],
    patience: Patience,
    on_bytes: Callable[[int, int], object] = lambda done, total: None,
    on_file: Callable[[], object] = lambda: None,
) -> None:
    """Copy objects to files, several at a time.

    Args:
        filesystem: From `open_s3`.
        jobs: Object and target each. A target is whole only when this returns.
        patience: How often a body that broke off is asked for again.
        on_bytes: Called with bytes of a file that came, and its size.
        on_file: Called when a file is there.
    """

    async def run() -> None:
        requests, files = asyncio.Semaphore(_REQUESTS), asyncio.Semaphore(_FILES)
        large = asyncio.Semaphore(_LARGE_FILES)

        async def fetch(remote: str, target: Path) -> None:
            async with files:
                await _fetch(_Reader(filesystem, remote, patience.attempts, requests), target, large, on_bytes)
                on_file()

        await _all_or_first_error([fetch(remote, target) for remote, target in jobs])

    _wait(filesystem, run())


def upload(filesystem: Any, jobs: Sequence[tuple[Path, str]], on_file: Callable[[], object] = lambda: None) -> None:
    """Copy files to objects, several at a time; a large one in parts, which are no object before all are there."""

    async def run() -> None:
        small, large = asyncio.Semaphore(_FILES), asyncio.Semaphore(_LARGE_FILES)

        async def send(source: Path, remote: str) -> None:
            async with large if source.stat().st_size > BLOCK_BYTES else small:
                await filesystem._put_file(str(source), remote, chunksize=BLOCK_BYTES, max_concurrency=_BLOCKS)
                on_file()

        await _all_or_first_error([send(source, remote) for source, remote in jobs])

    _wait(filesystem, run())


class _Reader:
    """Reads one object in blocks, and keeps to the object that it began with."""

    def __init__(self, filesystem: Any, remote: str, attempts: int, requests: asyncio.Semaphore) -> None:
        self.filesystem = filesystem
        self.bucket, self.key = split_bucket(f"s3://{remote}")
        self.attempts = attempts
        self.requests = requests
        self.size = 0
        self.etag: str | None = None

    async def read_first(self) -> bytes:
        """Return the first block; `size` is known from then on."""

        async def ask() -> bytes:
            answer = await self._get()
            self.size, self.etag = int(answer["ContentLength"]), answer.get("ETag")
            async with answer["Body"] as body:
                # Read to its end, a body's checksum is compared. The rest of a large one is asked for in blocks.
                if self.size <= BLOCK_BYTES:
                    return _check_length(await body.read(), self.size)
                pieces, missing = [], BLOCK_BYTES
                while missing and (piece := await body.read(missing)):
                    pieces.append(piece)
                    missing -= len(piece)
                return _check_length(b"".join(pieces), BLOCK_BYTES)

        return await self._repeat(ask)

    async def read_block(self, start: int) -> bytes:
        """Return the block that starts there."""
        expected = min(BLOCK_BYTES, self.size - start)

        async def ask() -> bytes:
            answer = await self._get(Range=f"bytes={start}-{start + expected - 1}")
            if answer.get("ETag") != self.etag:
                raise BrokenTransferError("another file was written under this name meanwhile")
            async with answer["Body"] as body:
                return _check_length(await body.read(), expected)

        return await self._repeat(ask)

    async def _get(self, **options: str) -> Any:
        return await self.filesystem._call_s3("get_object", Bucket=self.bucket, Key=self.key, **options)

    async def _repeat(self, ask: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        for attempt in range(1, self.attempts + 1):
            try:
                async with self.requests:
                    return await ask()
            except Exception as error:
                if attempt == self.attempts or not _broke_off(error):
                    raise
            await asyncio.sleep(min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), 20))
        raise AssertionError("the last attempt returns or raises")


def _broke_off(error: Exception) -> bool:
    """Tell whether an answer began and did not end; what fails before it is botocore's to repeat."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(
        names & {"BrokenTransferError", "ClientPayloadError", "IncompleteReadError", "ResponseStreamingError"}
        | names & {"FlexibleChecksumError"}
    )


def _check_length(data: bytes, expected: int) -> bytes:
    if len(data) != expected:
        raise BrokenTransferError(f"{len(data):,} bytes came of {expected:,}")
    return bytes(data)


async def _fetch(
    reader: _Reader, target: Path, large: asyncio.Semaphore, on_bytes: Callable[[int, int], object]
) -> None:
    first = await reader.read_first()
    check_space(target.parent, reader.size)
    done = 0
    with target.open("wb") as file:

        def keep(data: bytes) -> None:
            nonlocal done
            file.write(data)
            done += len(data)
            on_bytes(done, reader.size)

        keep(first)
        del first
        if done == reader.size:
            return
        async with large:
            starts = range(BLOCK_BYTES, reader.size, BLOCK_BYTES)
            for position in range(0, len(starts), _BLOCKS):
                batch = starts[position : position + _BLOCKS]
                for data in await _all_or_first_error([reader.read_block(start) for start in batch]):
                    keep(data)


async def _all_or_first_error(coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return all results, or cancel the others and raise what the first one raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        # The cause holds what the store answered.
        raise first from first.__cause__
    return [task.result() for task in tasks]


def _wait(filesystem: Any, coroutine: Coroutine[Any, Any, None]) -> None:
    future = asyncio.run_coroutine_threadsafe(coroutine, filesystem.loop)
    try:
        future.result()
    except BaseException:
        # Ctrl-C comes to this thread; nothing may be written after it.
        future.cancel()
        raise
