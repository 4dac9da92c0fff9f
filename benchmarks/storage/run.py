"""Reading and writing an object store: `mlflywheel.storage` against boto3 and s3fs, one after the other in one run.

    python -m benchmarks.storage.run                        one file of 64 MiB, 300 of 4 KiB, 5 rounds
    python -m benchmarks.storage.run --mebibytes 9 --files 20 --rounds 1 --out quick.json

The store is moto in a process of its own, on this machine. It answers one request after the other and is slower than
any real store, so that only ratios mean something: seconds of the other divided by ours, paired by round. Wall seconds
contain moto's; CPU seconds are those of the client's process alone, and vary less on a busy machine. Every round begins
with new clients, as every call of ours does.

- boto3: `upload_file` and `download_file` with its defaults; small files one after the other, as a loop does it.
- s3fs: `put` and `get` of a folder or a file with its defaults.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "storage.json"
BUCKET = "bench"
_SERVER = """\
import sys
from moto.server import ThreadedMotoServer
import logging
logging.getLogger("werkzeug").setLevel("ERROR")
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def run_store() -> Iterator[str]:
    """Run moto in a process of its own, with an empty bucket; yield its endpoint."""
    child = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        endpoint = f"http://127.0.0.1:{int(child.stdout.readline())}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=10).close()
        yield endpoint
    finally:
        child.communicate(timeout=30)


def _ours() -> dict[str, Callable[[Path, str], None]]:
    from mlflywheel import storage

    return {
        "write": lambda folder, place: storage.upload_folder(folder, f"s3://{BUCKET}/{place}"),
        "read": lambda folder, place: storage.download_folder(f"s3://{BUCKET}/{place}", folder),
    }


def _boto3() -> dict[str, Callable[[Path, str], None]]:
    # It brings no types.
    boto3 = import_module("boto3")

    def write(folder: Path, place: str) -> None:
        client = boto3.client("s3")
        for path in folder.iterdir():
            client.upload_file(str(path), BUCKET, f"{place}/{path.name}")

    def read(folder: Path, place: str) -> None:
        client = boto3.client("s3")
        folder.mkdir()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{place}/"):
            for one in page["Contents"]:
                client.download_file(BUCKET, one["Key"], str(folder / one["Key"].rpartition("/")[2]))

    return {"write": write, "read": read}


def _s3fs() -> dict[str, Callable[[Path, str], None]]:
    import s3fs

    def make() -> Any:
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    return {
        "write": lambda folder, place: make().put(f"{folder}/", f"{BUCKET}/{place}/", recursive=True),
        "read": lambda folder, place: make().get(f"{BUCKET}/{place}/", f"{folder}/", recursive=True),
    }


def measure(mebibytes: int, files: int, rounds: int) -> dict[str, Any]:
    """Return wall seconds of every round, by job and side, and the ratios to ours."""
    sides = {"ours": _ours(), "boto3": _boto3(), "s3fs": _s3fs()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mlflywheel-") as scratch:
        sources = {"large": Path(scratch) / "large", "small": Path(scratch) / "small"}
        for source in sources.values():
            source.mkdir()
        (sources["large"] / "0").write_bytes(os.urandom(mebibytes * 2**20))
        for number in range(files):
            (sources["small"] / str(number)).write_bytes(os.urandom(4096))
        for size, source in sources.items():
            seconds: dict[tuple[str, str], dict[str, list[float]]] = {
                (job, clock): {side: [] for side in sides} for job in ("write", "read") for clock in ("wall", "cpu")
            }
            # The round before the first one warms every side up: imports, and what botocore reads from its data.
            for number in range(-1, rounds):
                for side, jobs in sides.items():
                    for job, target in (("write", source), ("read", Path(scratch) / f"{size}-{side}-{number}")):
                        wall, cpu = time.perf_counter(), time.process_time()
                        jobs[job](target, f"{size}-{side}")
                        if number >= 0:
                            seconds[job, "cpu"][side].append(round(time.process_time() - cpu, 4))
                            seconds[job, "wall"][side].append(round(time.perf_counter() - wall, 4))
                    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
                        path.name: path.read_bytes() for path in source.iterdir()
                    }
            for (job, clock), by_side in seconds.items():
                ratios = {
                    side: statistics.median(other / ours for other, ours in zip(times, by_side["ours"], strict=True))
                    for side, times in by_side.items()
                    if side != "ours"
                }
                rounded = {side: round(ratio, 2) for side, ratio in ratios.items()}
                found[f"{job} {size}, {clock} seconds"] = {"seconds": by_side, "median_ratio_to_ours": rounded}
                print(f"{job} {size}, {clock} seconds", by_side, rounded)
    return found


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with run_store() as endpoint:
        os.environ.update(
            AWS_ACCESS_KEY_ID="any",
            AWS_SECRET_ACCESS_KEY="any",
            AWS_REGION="us-east-1",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=endpoint,
            NO_PROXY="127.0.0.1",
        )
        results = measure(given.mebibytes, given.files, given.rounds)
    document = {
        "command": f"python -m benchmarks.storage.run --mebibytes {given.mebibytes} --files {given.files}"
        f" --rounds {given.rounds}",
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": {"python": platform.python_version(), "system": platform.system(), "cpus": os.cpu_count()},
        "versions": {name: version(name) for name in ("boto3", "fsspec", "moto", "s3fs")},
        "results": results,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
