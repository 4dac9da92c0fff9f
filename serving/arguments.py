"""The command line of the predictor, read before kserve is imported, because importing kserve reads `sys.argv` too.

Names have underscores, as in KServe's own servers, so that one ServingRuntime reads like the others.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NoReturn

from mlflywheel.errors import UsageError

_MEBIBYTE = 1024 * 1024
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "b": 1, "kib": 1024, "mib": _MEBIBYTE, "gib": 1024 * _MEBIBYTE}
_MAX_WORKERS = 64
_EXAMPLE = """
example:
  python -m mlflywheel.serving --model_name ad-campaigns --model_dir runs/ad-campaigns/latest/model --host 127.0.0.1
  curl -s localhost:8080/v1/models/ad-campaigns:predict -d '{"instances": [{"terms": ["emergency plumber"]}]}'
"""


@dataclass(frozen=True)
class ServeArguments:
    """What a predictor is started with.

    Args:
        model_name: Name in URLs: `/v2/models/NAME/infer`.
        model_dir: The folder that `Model.save` wrote, or one that holds such a folder and nothing else.
        model_version: Version in answers and metrics; the start of the model's hash if left out.
        host: Address to listen on, `::` for both IPv4 and IPv6.
        http_port: Port of V1, V2, metrics and pages; 0 takes a free one.
        grpc_port: Port of gRPC; 0 takes a free one.
        enable_grpc: Whether gRPC is served at all.
        workers: Processes, each with the whole model.
        predict_threads: Requests that a worker computes at once; the others wait.
        max_rows: Most rows a request.
        max_request_bytes: Largest body of a request.
        max_concurrency: Most requests that a worker computes or lets wait; further ones are answered 503.
        device: Where the model does its arithmetic.
        log_format: `json` (one object a line) or `text`.
        drain_delay_seconds: How long requests are still taken after SIGTERM, while readiness says no.
        drain_deadline_seconds: When a stop after SIGTERM no longer waits for running requests, delay included.
        keep_alive_seconds: How long an idle connection stays open; longer than the idle timeout of the proxy before it.
        worker_sockets: File descriptors that a worker process inherits; only set by the parent of several workers.
    """

    model_name: str
    model_dir: Path
    model_version: str | None = None
    host: str = "0.0.0.0"
    http_port: int = 8080
    grpc_port: int = 8081
    enable_grpc: bool = True
    workers: int = 1
    predict_threads: int = 2
    max_rows: int = 1000
    max_request_bytes: int = 8 * _MEBIBYTE
    max_concurrency: int = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_format: Literal["json", "text"] = "json"
    drain_delay_seconds: float = 5.0
    drain_deadline_seconds: float = 25.0
    keep_alive_seconds: int = 65
    worker_sockets: tuple[int, int] | None = None


def parse_arguments(values: Sequence[str]) -> ServeArguments:
    """Read the command line.

    Args:
        values: Without the program's name.

    Raises:
        UsageError: An unknown argument (the nearest is named), a missing one, or a value out of range.
        SystemExit: `--help`, with code 0.

    >>> parse_arguments(["--model_name=m", "--model_dir=/mnt/models", "--max_request_bytes=64KiB"]).max_request_bytes
    65536
    >>> parse_arguments(["--model_name=m", "--model_dir=/mnt/models", "--max_row=3"])
    Traceback (most recent call last):
      ...
    mlflywheel.errors.UsageError: --max_row: not an argument of the predictor; see --help. Fix: write --max_rows.
    """
    parser = _build_parser()
    found, unknown = parser.parse_known_args(list(values))
    if unknown:
        name = unknown[0].partition("=")[0]
        near = get_close_matches(name, [option for action in parser._actions for option in action.option_strings], n=1)
        raise UsageError(
            name, "not an argument of the predictor", "see --help", f"write {near[0]}" if near else "leave it out"
        )
    return ServeArguments(**vars(found))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        match = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
        where, seen = (match.group(1), match.group(2)) if match else ("command line", message)
        raise UsageError(where, seen, "see --help", "correct the command line")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m mlflywheel.serving",
        description="Serve a saved model over the V1, V2 and gRPC protocols of KServe.",
        epilog=_EXAMPLE,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ServeArguments("", Path())

    def add(name: str, kind: object, text: str, value: object) -> None:
        shown = f"{value // _MEBIBYTE}MiB" if name == "max_request_bytes" and isinstance(value, int) else value
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text} ({shown})")  # type: ignore[arg-type]

    parser.add_argument("--model_name", type=_name, required=True, help="name in URLs")
    parser.add_argument("--model_dir", type=Path, required=True, help="folder with the saved model")
    parser.add_argument("--model_version", type=_name, help="version in answers (the start of the model's hash)")
    add("host", str, "address to listen on, :: for IPv4 and IPv6", default.host)
    add("http_port", _whole(0, 65535), "port of V1, V2, /metrics, /docs and /try; 0 takes a free one", 8080)
    add("grpc_port", _whole(0, 65535), "port of gRPC; 0 takes a free one", 8081)
    add("enable_grpc", _truth, "serve gRPC", True)
    add("workers", _whole(1, _MAX_WORKERS), "processes, each with the whole model", default.workers)
    add("predict_threads", _whole(1, 256), "requests that a worker computes at once", default.predict_threads)
    add("max_rows", _whole(1, 1_000_000), "most rows a request", default.max_rows)
    add("max_request_bytes", _size, "largest body of a request", default.max_request_bytes)
    add("max_concurrency", _whole(1, 100_000), "most requests computed or waiting, then 503", default.max_concurrency)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")
    parser.add_argument("--log_format", choices=["json", "text"], default="json", help="form of log lines (json)")
    add("drain_delay_seconds", _seconds, "requests still taken after SIGTERM", default.drain_delay_seconds)
    add("drain_deadline_seconds", _seconds, "longest stop after SIGTERM", default.drain_deadline_seconds)
    add("keep_alive_seconds", _whole(1, 86_400), "how long idle connections stay open", default.keep_alive_seconds)
    parser.add_argument("--worker_sockets", type=_descriptors, help=argparse.SUPPRESS)
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, dots, dashes and underscores")
    return text


def _whole(low: int, high: int) -> object:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    size = int(match.group(1)) * _SIZE_UNITS[(match.group(2) or "").lower()] if match else 0
    # A gRPC message length is a signed 32-bit number.
    if not 1 <= size < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1 to 2147483647 bytes, such as 8MiB")
    return size


def _truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _descriptors(text: str) -> tuple[int, int]:
    listening, parent = (int(part) for part in text.split(","))
    return listening, parent


#: Variables that give BLAS and OpenMP their number of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def pin_threads() -> None:
    """Give BLAS and OpenMP one thread each, unless the environment says otherwise. Call before numpy is imported.

    A server runs requests beside each other. Threads inside one request would compete with them, and a sum that is
    divided among threads is not the same sum in its last bits.
    """
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
