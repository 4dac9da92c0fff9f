"""What a served prediction costs, beside a server that computes nothing and beside MLServer with the same model.

    python -m benchmarks.serving.run                             all of it: about 15 minutes on 2 cores
    python -m benchmarks.serving.run --quick --out quick.json    short windows, one round: does it run?

The model is that of the sample pipeline: 3,000 made-up campaigns, default parameters. Requests hold campaigns that it
has not seen. Every server runs on one core and the load generator on another, and the servers are measured in turns, so
the ratio of two of them is taken from neighbouring seconds of one run.

- V1 JSON beside a bare kserve model of the same version that returns the instances it was sent: what is left is kserve.
- V2 JSON beside MLServer, which has no V1, with the same model and the same functions for tensors, in an environment of
  its own that is made in a temporary folder (`--mlserver-environment` keeps it for the next time).
- V2 with binary outputs, and gRPC, of ours alone.
- One and two workers, on both cores that the generator also needs.
"""

import argparse
import base64
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fingerprints.measuring import THREAD_VARIABLES

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "serving.json"
ROOT = FOLDER.parents[1]
MLSERVER = "mlserver==1.7.1"
#: From 0.22 on, MLServer's worker process ends at its start: "There is no current event loop".
_UVLOOP = "uvloop<0.22"
NAME = "ad-campaigns"
CLIENTS = (1, 8, 32)
CAMPAIGNS = (1, 100)
_START, _END = "<!-- serving: written by benchmarks.serving.run -->", "<!-- end of serving -->"
_OTHER_SEED = 1234
_READY_SECONDS = 120.0
_SEND_SECONDS = 120.0
#: What the model needs, in the versions that serve ours.
_MODEL_PACKAGES = (
    *("fsspec", "aiohttp", "gensim", "numba", "numpy", "orjson", "packaging", "pyarrow", "pydantic", "PyYAML", "rich"),
    *("scikit-learn", "scipy", "threadpoolctl", "typer"),
)


@dataclass(frozen=True)
class Side:
    """One server in one protocol, as it is measured.

    Args:
        key: Name in the results.
        server: Which server answers.
        protocol: `v1`, `v2`, `v2-binary` or `grpc`.
        pinned: Whether the server has a core of its own.
    """

    key: str
    server: str
    protocol: str
    pinned: bool = True


SIDES = (
    Side("ours, V1", "ours", "v1"),
    Side("kserve echo, V1", "echo", "v1"),
    Side("ours, V2 JSON", "ours", "v2"),
    Side("MLServer, V2 JSON", "mlserver", "v2"),
    Side("MLServer without its worker process, V2 JSON", "mlserver-0", "v2"),
    Side("ours, V2 binary", "ours", "v2-binary"),
    Side("ours, gRPC", "ours", "grpc"),
    Side("ours, V1, 1 worker on both cores", "ours-1", "v1", pinned=False),
    Side("ours, V1, 2 workers on both cores", "ours-2", "v1", pinned=False),
)


@dataclass
class Server:
    """A running server.

    Args:
        process: Its first process.
        http_port: Where HTTP is answered.
        grpc_port: Where gRPC is answered.
        log: What the servers write.
        start_seconds: From the start of the process to the first ready answer.
    """

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path
    start_seconds: float = field(default=0.0)

    def list_processes(self) -> list[int]:
        """Return the ids of its processes."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        found = [self.process.pid]
        for one in found:
            found += [child for child, parent in parents.items() if parent == one]
        return found

    def read_cpu_seconds(self) -> float:
        """Return the processor time of its processes."""
        ticks = 0
        for one in self.list_processes():
            values = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(values[11]) + int(values[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def read_memory(self) -> dict[str, Any]:
        """Return the resident MiB of each process, and the sum with shared pages divided among their users."""
        resident, proportional = [], 0.0
        for one in self.list_processes():
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.partition(":")[0]: int(line.split()[1]) / 1024 for line in lines}
            resident.append(round(sizes["Rss"], 1))
            proportional += sizes["Pss"]
        return {"resident_mib": sorted(resident, reverse=True), "proportional_mib": round(proportional, 1)}

    def stop(self) -> None:
        """End it and its processes."""
        processes = self.list_processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            for one in processes:
                os.kill(one, signal.SIGKILL)
            self.process.wait()


class Bench:
    """The servers, the requests and the cores.

    Args:
        scratch: A temporary folder.
        model: The saved model.
        mlserver: The Python of MLServer's environment.
        cores: That of the servers, and that of the generator.
    """

    def __init__(self, scratch: Path, model: Path, mlserver: Path, cores: tuple[int, int]) -> None:
        self._scratch = scratch
        self._model = model
        self._mlserver = mlserver
        self._cores = cores
        self._log = scratch / "servers.log"

    def start(self, name: str, *, pinned: bool) -> Server:
        """Start a server, and wait until it is ready."""
        http_port, grpc_port, metrics_port = find_ports(3)
        ours = [sys.executable, "-m", "mlflywheel.serving", f"--model_name={NAME}", f"--model_dir={self._model}"]
        ours += ["--host=127.0.0.1", f"--http_port={http_port}", f"--grpc_port={grpc_port}", "--drain_delay_seconds=0"]
        if name.startswith("ours"):
            command = [*ours, f"--workers={2 if name == 'ours-2' else 1}"]
        elif name == "echo":
            command = [sys.executable, str(FOLDER / "echo_server.py"), NAME, str(http_port)]
        elif name == "fixed":
            command = [sys.executable, str(FOLDER / "fixed_server.py"), str(http_port)]
        else:
            folder = self._scratch / name
            folder.mkdir(exist_ok=True)
            settings = {"host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port}
            settings |= {"metrics_port": metrics_port, "debug": False}
            settings |= {"parallel_workers": 0} if name == "mlserver-0" else {}
            runtime = {"name": NAME, "implementation": "mlserver_runtime.CampaignRuntime"}
            runtime |= {"parameters": {"uri": str(self._model)}}
            (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
            (folder / "model-settings.json").write_text(json.dumps(runtime), encoding="utf-8")
            command = [str(self._mlserver.with_name("mlserver")), "start", str(folder)]
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(FOLDER)]) if "mlserver" in name else ""
        cores = {self._cores[0]} if pinned else set(self._cores)
        started = time.perf_counter()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self._scratch,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        server = Server(process, http_port, grpc_port, self._log)
        if name != "fixed":
            wait_until_ready(server)
        else:
            time.sleep(1)
        server.start_seconds = time.perf_counter() - started
        return server

    @contextmanager
    def running(self, names: Mapping[str, bool]) -> Iterator[dict[str, Server]]:
        """Start servers, and stop them at the end."""
        servers: dict[str, Server] = {}
        try:
            for name, pinned in names.items():
                servers[name] = self.start(name, pinned=pinned)
            yield servers
        finally:
            for server in servers.values():
                server.stop()

    def send(self, server: Server, side: Side, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Run the generator once."""
        grpc = side.protocol == "grpc"
        port = server.grpc_port if grpc else server.http_port
        cores = set(self._cores) if not side.pinned else {self._cores[1]}
        before = server.read_cpu_seconds()
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.serving.load"],
            input=json.dumps({**plan, "port": port, "grpc": grpc}).encode(),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            check=True,
            timeout=_SEND_SECONDS,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        found: dict[str, Any] = json.loads(ended.stdout)
        if found["failures"]:
            raise RuntimeError(f"{side.key}: {found['failures']} requests failed")
        found["server_cpu_milliseconds"] = 1e3 * (server.read_cpu_seconds() - before) / found["total"]
        return found


def find_ports(count: int) -> list[int]:
    """Return free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until_ready(server: Server) -> None:
    """Ask for the model's readiness until it says yes."""
    until = time.perf_counter() + _READY_SECONDS
    while time.perf_counter() < until:
        if server.process.poll() is not None:
            written = server.log.read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"{server.process.args}: ended with {server.process.returncode}", *written]))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/v2/models/{NAME}/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"{server.process.args}: not ready in {_READY_SECONDS:.0f} seconds")


def make_model(folder: Path, campaigns: int) -> Path:
    """Fit the sample pipeline's model with its defaults, and save it."""
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.models.topic_fingerprints import TopicFingerprints
    from mlflywheel.samples.ad_campaigns import write_sample

    data = str(write_sample(folder / "terms.parquet", campaigns=campaigns))
    rows = ingest(data, TopicFingerprints.columns, {}).table
    table = TopicFingerprints.prepare(rows, TopicFingerprints.Config())
    saved = folder / "model"
    TopicFingerprints.fit(table, TopicFingerprints.Params()).save(saved)
    return saved


def make_instances(count: int) -> list[dict[str, Any]]:
    """Draw campaigns that the model has not seen."""
    from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

    table = generate_ad_campaigns(campaigns=count, seed=_OTHER_SEED)
    terms: dict[str, list[str]] = {}
    for campaign, term in zip(table["campaign_id"].to_pylist(), table["term"].to_pylist(), strict=True):
        terms.setdefault(f"new-{campaign}", []).append(term)
    return [{"campaign_id": campaign, "terms": listed} for campaign, listed in terms.items()]


def encode_request(instances: Sequence[Mapping[str, Any]], protocol: str) -> bytes:
    """Return a whole HTTP request, or a gRPC message."""
    texts = {
        "campaign_id": [instance["campaign_id"] for instance in instances],
        "terms": [json.dumps(instance["terms"]) for instance in instances],
    }
    if protocol == "grpc":
        return _encode_grpc(texts)
    path = f"/v2/models/{NAME}/infer"
    body: dict[str, Any] = {
        "inputs": [
            {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data} for name, data in texts.items()
        ]
    }
    if protocol == "v1":
        path, body = f"/v1/models/{NAME}:predict", {"instances": list(instances)}
    if protocol == "v2-binary":
        body["parameters"] = {"binary_data_output": True}
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


def _encode_grpc(texts: Mapping[str, list[str]]) -> bytes:
    values, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
    finally:
        sys.argv = values
    message = ModelInferRequest(model_name=NAME)
    for name, data in texts.items():
        item = message.inputs.add(name=name, datatype="BYTES", shape=[len(data)])
        item.contents.bytes_contents.extend(text.encode() for text in data)
    return bytes(message.SerializeToString())


def check_answers(servers: Mapping[str, Server], instances: Sequence[Mapping[str, Any]]) -> None:
    """Ask everybody the same, and compare ours with MLServer's."""
    outputs = {}
    for name in ("ours", "mlserver", "mlserver-0"):
        body = encode_request(instances, "v2").partition(b"\r\n\r\n")[2]
        url = f"http://127.0.0.1:{servers[name].http_port}/v2/models/{NAME}/infer"
        asked = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found = json.load(answer)["outputs"]
        outputs[name] = {item["name"]: _round(item["data"]) for item in found}
    if not outputs["ours"] == outputs["mlserver"] == outputs["mlserver-0"]:
        names = [name for name, data in outputs["ours"].items() if data != outputs["mlserver"].get(name)]
        raise RuntimeError(f"MLServer and ours answer differently: {names}")


def _round(data: list[Any]) -> list[Any]:
    # The shortest decimal of a float32 on one side, of the same number as a float64 on the other.
    return [float(np.float32(value)) if isinstance(value, float) else value for value in data]


def make_environment(folder: Path) -> Path:
    """Return the Python of an environment with MLServer and what our model needs; make it where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, env=environment)
        pins = [f"{package}=={version(package)}" for package in _MODEL_PACKAGES]
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", str(python), MLSERVER, _UVLOOP, *pins],
            check=True,
            env=environment,
        )
    return python


def measure_load(
    bench: Bench, servers: Mapping[str, Server], instances: Sequence[Mapping[str, Any]], seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Measure every side with every number of campaigns and clients, in turns."""
    cells: list[dict[str, Any]] = []
    for campaigns in CAMPAIGNS:
        groups = [instances[first : first + campaigns] for first in range(0, len(instances), campaigns)][:200]
        bodies = {
            protocol: [base64.b64encode(encode_request(group, protocol)).decode() for group in groups]
            for protocol in {side.protocol for side in SIDES}
        }
        for clients in CLIENTS:
            found: dict[str, list[dict[str, Any]]] = {side.key: [] for side in SIDES}
            for turn in range(rounds):
                # Neighbours in the list stay neighbours, and each goes first in every second round.
                for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                    plan = {
                        "requests": bodies[side.protocol],
                        "clients": clients,
                        "seconds": seconds,
                        "warm_up_seconds": seconds / 5,
                        "fewest": max(30, 3 * clients),
                        "most_seconds": 20.0,
                    }
                    found[side.key].append(bench.send(servers[side.server], side, plan))
            for side in SIDES:
                cell = summarise(found[side.key])
                cells.append({"side": side.key, "campaigns": campaigns, "clients": clients, **cell})
                rate, pooled = cell["requests_per_second"]["median"], cell["milliseconds"]
                print(
                    f"{campaigns:>4} {clients:>3} {side.key:<46}{rate:>9.1f}/s"
                    f"{pooled['p50']:>9.1f}{pooled['p99']:>9.1f} ms  generator {cell['generator_cpu']:.2f}",
                    flush=True,
                )
    return cells


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rates and processor times round by round, and percentiles of the answers of all rounds."""
    pooled = sorted(value for run in runs for value in run["milliseconds"])
    return {
        "requests_per_second": _spread([run["requests_per_second"] for run in runs]),
        "server_cpu_milliseconds": _spread([run["server_cpu_milliseconds"] for run in runs]),
        "milliseconds": {"p50": _percentile(pooled, 50), "p99": _percentile(pooled, 99), "answers": len(pooled)},
        "p99_milliseconds": _spread([_percentile(sorted(run["milliseconds"]), 99) for run in runs]),
        "generator_cpu": round(statistics.median(run["generator_cpu"] for run in runs), 3),
    }


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    numbers = [float(f"{value:.4g}") for value in values]
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers), "runs": numbers}


def measure_starts(bench: Bench, rounds: int) -> dict[str, dict[str, Any]]:
    """Start every server alone, in turns, and measure how long it takes to be ready."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in ("ours", "echo", "mlserver", "mlserver-0"):
            server = bench.start(name, pinned=True)
            server.stop()
            seconds.setdefault(name, []).append(server.start_seconds)
    return {name: _spread(values) for name, values in seconds.items()}


def measure_generator(bench: Bench, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure how many requests the generator sends to a server that only writes."""
    body = base64.b64encode(encode_request(make_instances(1), "v1")).decode()
    plan = {"requests": [body], "clients": 8, "seconds": seconds, "warm_up_seconds": 0.2}
    plan |= {"fewest": 1, "most_seconds": seconds}
    with bench.running({"fixed": True}) as servers:
        runs = [bench.send(servers["fixed"], Side("generator", "fixed", "v1"), plan) for _ in range(rounds)]
    return _spread([run["requests_per_second"] for run in runs])


def compare(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rates as ratios, round by round."""
    rates = {(cell["side"], cell["campaigns"], cell["clients"]): cell["requests_per_second"]["runs"] for cell in cells}
    pairs = (
        ("ours, V1", "kserve echo, V1"),
        ("ours, V2 JSON", "MLServer, V2 JSON"),
        ("ours, V2 JSON", "MLServer without its worker process, V2 JSON"),
        ("ours, V1, 2 workers on both cores", "ours, V1, 1 worker on both cores"),
    )
    return [
        {
            "ours": ours,
            "other": other,
            "campaigns": campaigns,
            "clients": clients,
            "rate_over_other": _spread(
                [a / b for a, b in zip(rates[ours, campaigns, clients], rates[other, campaigns, clients], strict=True)]
            ),
        }
        for ours, other in pairs
        for campaigns in CAMPAIGNS
        for clients in CLIENTS
    ]


def format_tables(result: Mapping[str, Any]) -> list[str]:
    """Return the results as Markdown."""
    cells = {(cell["side"], cell["campaigns"], cell["clients"]): cell for cell in result["cells"]}
    ratios = {(row["ours"], row["other"], row["campaigns"], row["clients"]): row for row in result["ratios"]}
    loads = [(campaigns, clients) for campaigns in CAMPAIGNS for clients in CLIENTS]

    def ratio(ours: str, other: str, load: tuple[int, int]) -> str:
        found = ratios[ours, other, *load]["rate_over_other"]
        return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"

    def rate(side: str, load: tuple[int, int]) -> str:
        found = cells[side, *load]["requests_per_second"]["median"]
        return f"{found:,.0f}" if found >= 100 else f"{found:.3g}"

    def latency(side: str, load: tuple[int, int]) -> str:
        found = cells[side, *load]["milliseconds"]
        return " / ".join(f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}" for ms in (found["p50"], found["p99"]))

    v1, echo, v2, mlserver, lone, binary, grpc, one, two = (side.key for side in SIDES)
    pinned = (v1, echo, v2, mlserver, lone, binary, grpc)
    before, after = result["load_average"]
    lines = [
        f"`{result['command']}`, {result['machine']}, {result['measured']}; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f". {result['rounds']} rounds, sides in turns; load average {before:.1f} before, {after:.1f} at the end.",
        "",
        "Requests a second of one worker on one core, medians; ratios round by round, with their range:",
        "",
        "| campaigns | clients | V1 | kserve echo, V1 | ours / echo | V2 JSON | MLServer, V2 JSON | ours / MLServer "
        "| ours / MLServer, one process | V2 binary | gRPC |",
        "|" + "---:|" * 11,
    ]
    for load in loads:
        values = [str(load[0]), str(load[1]), rate(v1, load), rate(echo, load), ratio(v1, echo, load), rate(v2, load)]
        values += [rate(mlserver, load), ratio(v2, mlserver, load), ratio(v2, lone, load)]
        lines.append("| " + " | ".join([*values, rate(binary, load), rate(grpc, load)]) + " |")
    lines += [
        "",
        "Milliseconds, p50 / p99 over the answers of all rounds:",
        "",
        "| campaigns | clients | V1 | kserve echo, V1 | V2 JSON | MLServer, V2 JSON | MLServer, one process "
        "| V2 binary | gRPC |",
        "|" + "---:|" * 9,
    ]
    for load in loads:
        values = [str(load[0]), str(load[1]), *(latency(side, load) for side in pinned)]
        lines.append("| " + " | ".join(values) + " |")
    lines += [
        "",
        "The server's processor time a request in milliseconds, with 8 clients:",
        "",
        "| campaigns | V1 | kserve echo, V1 | V2 JSON | MLServer, V2 JSON | MLServer, one process | V2 binary | gRPC |",
        "|" + "---:|" * 8,
    ]
    for campaigns in CAMPAIGNS:
        times = [cells[side, campaigns, 8]["server_cpu_milliseconds"]["median"] for side in pinned]
        lines.append(f"| {campaigns} | " + " | ".join(f"{milliseconds:.3g}" for milliseconds in times) + " |")
    lines += [
        "",
        "One worker and two, V1, on the two cores that the generator also needs:",
        "",
        "| campaigns | clients | 1 worker, requests/s | 2 workers, requests/s | ratio | 1 worker, ms | 2 workers, ms |",
        "|" + "---:|" * 7,
    ]
    for load in loads:
        values = [str(load[0]), str(load[1]), rate(one, load), rate(two, load), ratio(two, one, load)]
        lines.append("| " + " | ".join([*values, latency(one, load), latency(two, load)]) + " |")
    lines += [
        "",
        "| | start to ready, s | resident MiB, each process | MiB in all, shared pages divided |",
        "|---|---:|---:|---:|",
    ]
    for name, title in _SERVER_TITLES.items():
        start, memory = result["starts"].get(name), result["memory"][name]
        shown = f"{start['median']:.1f} ({start['min']:.1f} to {start['max']:.1f})" if start else ""
        resident = ", ".join(f"{size:.0f}" for size in memory["resident_mib"])
        lines.append(f"| {title} | {shown} | {resident} | {memory['proportional_mib']:.0f} |")
    generator = result["generator"]
    lines += [
        "",
        f"The generator alone sends {generator['median']:,.0f} requests a second to a server that only writes.",
    ]
    return lines


_SERVER_TITLES = {
    "ours": "ours, 1 worker",
    "ours-2": "ours, 2 workers and their parent",
    "echo": "kserve echo",
    "mlserver": "MLServer, with its worker process",
    "mlserver-0": "MLServer, one process",
}


def write_tables(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(_START)
    _, after = rest.split(_END)
    page.write_text("\n".join([before + _START, *format_tables(result), _END + after]), encoding="utf-8")


def main() -> None:
    """Read the options, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, short windows, one round")
    parser.add_argument("--rounds", type=int, help="how often every side has its turn (4)")
    parser.add_argument("--seconds", type=float, help="of a window (1.5)")
    parser.add_argument(
        "--mlserver-environment", type=Path, help="folder of MLServer's environment, kept if it is there"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 4)
    seconds = options.seconds or (0.5 if options.quick else 1.5)
    known = sorted(os.sched_getaffinity(0))
    if len(known) < 2:
        parser.error("two cores are needed, one for the servers and one for the load generator")
    before = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        mlserver = make_environment(options.mlserver_environment or scratch / "environment")
        model = make_model(scratch, 300 if options.quick else 3000)
        instances = make_instances(800)
        bench = Bench(scratch, model, mlserver, (known[0], known[1]))
        starts = measure_starts(bench, rounds)
        generator = measure_generator(bench, seconds, rounds)
        with bench.running({side.server: side.pinned for side in SIDES}) as servers:
            check_answers(servers, instances[:100])
            cells = measure_load(bench, servers, instances, seconds, rounds)
            memory = {name: servers[name].read_memory() for name in _SERVER_TITLES}
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.serving.run",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in ("mlflywheel", "kserve", "uvicorn", "numpy")},
            "MLServer": MLSERVER.partition("==")[2],
        },
        "rounds": rounds,
        "window_seconds": seconds,
        # Of the last five minutes; the machine may have other work.
        "load_average": [round(before, 2), round(os.getloadavg()[1], 2)],
        "generator": generator,
        "starts": starts,
        "memory": memory,
        "ratios": compare(cells),
        "cells": cells,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.out == RESULTS:
        write_tables(result, FOLDER.parent / "README.md")
    print("\n".join(format_tables(result)))


if __name__ == "__main__":
    main()
