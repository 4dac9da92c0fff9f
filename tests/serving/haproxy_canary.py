"""A service on one machine that can be rolled out: what KServe, a router and Prometheus are on a cluster.

- `Predictors` keeps one process for each arm, as KServe's controller and a kubelet keep a pod.
- `Router` is HAProxy with two servers; between rollouts one is in use and one free. It retries nothing, so that a
  request which meets a predictor that is not there, or no more, fails.
- `HaproxyActuator` moves traffic between them through HAProxy's runtime API.
- `Scraper` reads the predictors' `/metrics` and answers the queries of `PrometheusSource`: a small Prometheus.
- `Load` sends requests over connections that stay open, and counts the answers by who gave them.
"""

import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer

from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Target

NAMESPACE, SERVICE = "team", "listings"
MODEL = "listings"
# Longer than HAProxy needs to hear of it, see test_rolling.py.
_OPTIONS = ("--drain_delay_seconds=1.5", "--predict_threads=8", "--enable_grpc=false")
_SERVERS = ("blue", "green")
_SCRAPE_SECONDS = 0.2
_CLIENTS = 8
_PAUSE_SECONDS = 0.03
# What Kubernetes makes the names of pods of.
_POD_CHARACTERS = "bcdfghjklmnpqrstvwxz2456789"
_CONFIGURATION = """
global
    maxconn 2000
    stats socket {folder}/runtime level admin
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout check 5s
frontend clients
    bind fd@{descriptor}
    default_backend predictors
backend predictors
    balance roundrobin
    http-response set-header x-served-by %s
    option httpchk GET /v2/models/listings/ready
    http-check expect status 200
    default-server check inter 100ms fall 1 rise 1
    server blue {address} weight 100
    server green {address} weight 0 disabled
"""


@dataclass
class Pod:
    """A process of an arm."""

    arm: str
    folder: str
    name: str
    running: RunningServer
    is_to_end: bool = False

    @property
    def address(self) -> str:
        """Where it listens; empty until it does."""
        listening = self.running.events("listening")
        return f"127.0.0.1:{listening[0]['http_port']}" if listening else ""

    @property
    def is_ready(self) -> bool:
        return not self.is_to_end and self.running.process.poll() is None and bool(self.running.events("ready"))

    @property
    def has_ended(self) -> bool:
        return self.running.process.poll() is not None


class Predictors:
    """One process for each arm.

    Args:
        environment: For the processes, beside this one's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._random = random.Random(0)
        self.pods: dict[str, Pod] = {}
        self.past: list[Pod] = []

    def ensure(self, arm: str, folder: str) -> Pod:
        """Return the arm's process; one is started if there is none, or if it was told to end and has."""
        pod = self.pods.get(arm)
        if pod is None or (pod.is_to_end and pod.has_ended):
            port = pod.address.rpartition(":")[2] if pod else "0"
            self.past += [pod] if pod else []
            pod = self.pods[arm] = self._start(arm, folder, port)
        return pod

    def end(self, arm: str) -> None:
        """Tell the arm's process to end. As long as the arm is needed, another one follows at the same address."""
        pod = self.pods[arm]
        if not pod.is_to_end:
            pod.is_to_end = True
            pod.running.process.send_signal(signal.SIGTERM)

    def remove(self, arm: str) -> bool:
        """End the arm for good; return whether its process has ended."""
        if arm not in self.pods:
            return True
        self.end(arm)
        has_ended = self.pods[arm].has_ended
        if has_ended:
            self.past.append(self.pods.pop(arm))
        return has_ended

    def stop(self) -> None:
        for pod in (*self.pods.values(), *self.past):
            pod.running.stop()

    def _start(self, arm: str, folder: str, port: str) -> Pod:
        running = RunningServer(
            Path(folder), *_OPTIONS, f"--http_port={port}", name=MODEL, environment=self._environment
        )
        name = f"{arm}-6d4cf56db6-{''.join(self._random.choices(_POD_CHARACTERS, k=5))}"
        return Pod(arm, folder, name, running)


@dataclass(frozen=True)
class RoutedServer:
    """What HAProxy says about a server."""

    status: str
    weight: int
    sessions: int
    check: str
    address: str
    failures: Mapping[str, str]


class Router:
    """HAProxy on a free port of this machine.

    Args:
        program: HAProxy's path.
        address: Of the predictor in use.
    """

    def __init__(self, program: str, address: str) -> None:
        # A socket's path may have 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="haproxy-")
        file = Path(self._folder.name) / "haproxy.cfg"
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port: int = listening.getsockname()[1]
            values = {"folder": self._folder.name, "descriptor": listening.fileno(), "address": address}
            file.write_text(_CONFIGURATION.format_map(values))
            self._process = subprocess.Popen([program, "-db", "-q", "-f", str(file)], pass_fds=[listening.fileno()])

    def wait_until_up(self) -> None:
        until = time.monotonic() + 20
        while True:
            assert self._process.poll() is None
            assert time.monotonic() < until
            try:
                if self.read()["blue"].check == "L7OK":
                    return
            except OSError:
                pass
            time.sleep(0.02)

    def read(self) -> dict[str, RoutedServer]:
        """Return what is true of each server now."""
        rows = csv.DictReader(self._ask("show stat predictors 4 -1").removeprefix("# ").splitlines())
        return {
            row["svname"]: RoutedServer(
                row["status"],
                int(row["uweight"]),
                int(row["scur"]),
                # A star says that the next check is under way.
                row["check_status"].removeprefix("* "),
                row["addr"],
                {key: row[key] for key in ("econ", "eresp", "wretr", "wredis")},
            )
            for row in rows
        }

    def set(self, *changes: tuple[str, str]) -> None:
        """Change servers, in this order."""
        for server, change in changes:
            answer = self._ask(f"set server predictors/{server} {change}").strip()
            # It tells what an address was changed from, and says nothing else unless it refuses.
            assert not answer or answer.startswith(("no need to change the addr", "IP changed")), answer

    def trust(self, server: str, is_trusted: bool) -> None:
        """End the checks of a server, so that it counts as ready, or begin them again."""
        assert not self._ask(f"{'disable' if is_trusted else 'enable'} health predictors/{server}").strip()

    def clear_counters(self) -> None:
        assert not self._ask("clear counters all").strip()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._folder.cleanup()

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(f"{self._folder.name}/runtime")
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


@dataclass(frozen=True)
class Side:
    """A version and the server of HAProxy that stands for it."""

    server: str
    arm: str
    folder: str


class HaproxyActuator(Actuator):
    """Moves traffic between HAProxy's two servers; the memo says which version has which.

    A call looks at what runs and at what HAProxy says, and does the first thing that is missing. A server gets weight
    once it was seen to be ready, and is taken away once it has no request left.
    """

    def __init__(self, router: Router, predictors: Predictors) -> None:
        self._router, self._predictors = router, predictors

    def begin(self, candidate: Candidate) -> Memo:
        servers = self._router.read()
        used = [name for name, server in servers.items() if server.status != "MAINT"]
        if len(used) != 1:
            raise RolloutError(
                "HAProxy", f"{len(used)} servers are in use", "one is needed, and one in maintenance", "set their state"
            )
        free = next(name for name in _SERVERS if name not in used)
        stable = next(pod for pod in self._predictors.pods.values() if pod.address == servers[used[0]].address)
        if stable.folder == candidate.storage_uri:
            raise RolloutError(
                f"candidate {candidate.name}", "the folder in use", "another model is needed", "name another folder"
            )
        return {
            "stable": {"server": used[0], "arm": stable.arm, "folder": stable.folder},
            "candidate": {"server": free, "arm": f"{SERVICE}-{candidate.name}", "folder": candidate.storage_uri},
        }

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        old, new = Side(**memo["stable"]), Side(**memo["candidate"])
        percent = {"weight": target.traffic_percent, "promoted": 100.0, "rolled_back": 0.0}[target.kind]
        kept = {"weight": (old, new), "promoted": (new,), "rolled_back": (old,)}[target.kind]
        steps: list[Callable[[], Move | None]] = [partial(self._bring_in, side) for side in kept]
        steps.append(partial(self._weigh, old, new, percent))
        steps += [partial(self._take_out, side) for side in (old, new) if side not in kept]
        missing = next((move for step in steps if (move := step()) is not None), None)
        return replace(missing or Move(True, traffic_percent=percent), arms={"stable": old.arm, "candidate": new.arm})

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        return ()

    def _bring_in(self, side: Side) -> Move | None:
        pod = self._predictors.ensure(side.arm, side.folder)
        if pod.has_ended and not pod.is_to_end:
            return Move(False, failed=f"{side.arm} has ended: {' '.join(pod.running.other_lines[-1:])}")
        if not pod.is_ready:
            return Move(False, waiting_for=f"{side.arm} is not ready")
        server = self._router.read()[side.server]
        if server.address != pod.address:
            host, _, port = pod.address.rpartition(":")
            self._router.set((side.server, "state maint"), (side.server, f"addr {host} port {port}"))
            return Move(False, did=f"gave {side.server} the address of {side.arm}", waiting_for="HAProxy")
        if server.status in ("MAINT", "DRAIN"):
            # HAProxy takes a server for ready until the first check says otherwise.
            self._router.set((side.server, "weight 0"), (side.server, "state ready"))
            return Move(False, did=f"put {side.server} in", waiting_for="HAProxy's check of it")
        if server.status != "UP" or server.check != "L7OK":
            return Move(False, waiting_for=f"HAProxy says that {side.server} is {server.status}, {server.check}")
        return None

    def _weigh(self, old: Side, new: Side, percent: float) -> Move | None:
        servers = self._router.read()
        wanted = {new.server: round(percent), old.server: 100 - round(percent)}
        if all(servers[name].weight == weight for name, weight in wanted.items()):
            return None
        # What rises comes first: with both at 0 there would be nobody to answer.
        rising = sorted(wanted, key=lambda name: servers[name].weight - wanted[name])
        self._router.set(*((name, f"weight {wanted[name]}") for name in rising))
        return Move(False, did=f"gave {new.server} a weight of {wanted[new.server]} in 100", waiting_for="HAProxy")

    def _take_out(self, side: Side) -> Move | None:
        server = self._router.read()[side.server]
        if server.status.startswith("UP"):
            self._router.set((side.server, "state drain"))
            return Move(False, did=f"drained {side.server}", waiting_for="its requests")
        if server.sessions:
            return Move(False, waiting_for=f"{server.sessions} requests of {side.server}")
        if server.status != "MAINT":
            self._router.set((side.server, "state maint"))
            return Move(False, did=f"took {side.server} out", waiting_for="HAProxy")
        return None if self._predictors.remove(side.arm) else Move(False, waiting_for=f"the end of {side.arm}")


class Scraper:
    """Scrapes all predictors that listen, and answers what `PrometheusSource` asks: selectors with a range, and time().

    Labels are those that a PodMonitor gives.
    """

    def __init__(self, predictors: Predictors) -> None:
        self._predictors = predictors
        self._samples: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        scraper = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                body = json.dumps({"status": "success", "data": scraper.answer(form)}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._threads = [threading.Thread(target=self._server.serve_forever, args=(0.1,))]
        self._threads += [threading.Thread(target=self._scrape_all)]
        for thread in self._threads:
            thread.start()

    def answer(self, form: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return the data of an instant query's answer."""
        query = form["query"][0]
        if query == "time()":
            return {"resultType": "scalar", "result": [time.time(), repr(time.time())]}
        found = re.fullmatch(r"(\w+)\{(.*)\}\[(\d+)ms\]", query)
        assert found, query
        matchers = re.findall(r'(\w+)(=~?)"([^"]*)"', found[2])
        end = float(form["time"][0])
        start = end - float(found[3]) / 1000
        result = []
        with self._lock:
            for key, samples in self._samples.items():
                labels = dict(key)
                if labels["__name__"] != found[1] or not all(_matches(labels, *matcher) for matcher in matchers):
                    continue
                values = [[at, repr(value)] for at, value in samples if start < at <= end]
                if values:
                    result.append({"metric": labels, "values": values})
        return {"resultType": "matrix", "result": result}

    def stop(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def _scrape_all(self) -> None:
        with httpx.Client(timeout=2) as client:
            while not self._stopping.wait(_SCRAPE_SECONDS):
                for pod in list(self._predictors.pods.values()):
                    if pod.address:
                        self._scrape(client, pod)

    def _scrape(self, client: httpx.Client, pod: Pod) -> None:
        common = {"namespace": NAMESPACE, "pod": pod.name, "job": "listings", "instance": pod.address}
        # Before the request: what is counted meanwhile belongs to the next sample's time, and is not lost.
        now = round(time.time(), 3)
        found = [({"__name__": "up", **common}, 0.0)]
        try:
            lines = client.get(f"http://{pod.address}/metrics").text.splitlines()
            page = "\n".join(line for line in lines if "mlflywheel_" in line)
            found = [
                ({**sample.labels, "__name__": sample.name, **common}, sample.value)
                for family in text_string_to_metric_families(page)
                for sample in family.samples
            ]
            found.append(({"__name__": "up", **common}, 1.0))
        except httpx.TransportError:
            pass
        with self._lock:
            for labels, value in found:
                self._samples[tuple(sorted(labels.items()))].append((now, value))


def _matches(labels: Mapping[str, str], name: str, operator: str, value: str) -> bool:
    text = labels.get(name, "")
    return bool(re.fullmatch(value, text)) if operator == "=~" else text == value


class Load:
    """Clients that send one request after the other, each over its own connection, until told to stop.

    Prices are uniform from 0. Outcomes are counted by cause: `blue: 200`, `green: 500`, `proxy: 503`,
    `ConnectionResetError`.

    Args:
        port: HAProxy's.
        seed: Of the prices.
        highest_price: Candidates of `listings_candidates` are worse for prices below 0.25.
    """

    def __init__(self, port: int, seed: int, highest_price: float = 1.0) -> None:
        self._port, self._seed, self._highest_price = port, seed, highest_price
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send_all, args=(number,)) for number in range(_CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> dict[str, int]:
        """Return everything but right answers."""
        with self._lock:
            return {outcome: count for outcome, count in self.outcomes.items() if not outcome.endswith(": 200")}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, self.outcomes
            time.sleep(0.01)

    def wait_for_more(self) -> None:
        """Wait until every client has had another answer or so."""
        seen = self.outcomes.total()
        self.wait_for(lambda: self.outcomes.total() >= seen + 2 * _CLIENTS)

    def _send_all(self, client: int) -> None:
        prices = random.Random(f"{self._seed} {client}")
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        number = 0
        while not self._stopping.wait(_PAUSE_SECONDS):
            number += 1
            outcome = self._send(
                connection, f"request {number} of client {client}", prices.uniform(0, self._highest_price)
            )
            with self._lock:
                self.outcomes[outcome] += 1
        connection.close()

    def _send(self, connection: HTTPConnection, title: str, price: float) -> str:
        body = json.dumps({"instances": [{"title": title, "price": price}]})
        try:
            connection.request("POST", f"/v1/models/{MODEL}:predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            # The next request opens another connection.
            connection.close()
            return type(error).__name__
        who = response.getheader("x-served-by") or "proxy"
        if response.status != 200:
            return f"{who}: {response.status}"
        predictions = json.loads(content)["predictions"]
        return f"{who}: 200" if [one["title"] for one in predictions] == [title] else f"{who}: another's answer"


class Stage:
    """All of it together: one version in use, behind HAProxy and scraped.

    Args:
        program: HAProxy's path.
        stable: Folder of the model in use.
        package: Folder of the package that brings the models' classes.
        soon: Folders of candidates by their names, whose processes are to start at the same time: to start takes most
            of a test's time. An actuator starts what is not there.
    """

    def __init__(self, program: str, stable: Path, package: Path, soon: Mapping[str, Path]) -> None:
        self.predictors = Predictors({"PYTHONPATH": str(package), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]})
        self._started: list[Router | Scraper | Predictors] = [self.predictors]
        try:
            pod = self.predictors.ensure(f"{SERVICE}-v1", str(stable))
            others = [self.predictors.ensure(f"{SERVICE}-{name}", str(folder)) for name, folder in soon.items()]
            for one in (pod, *others):
                one.running.wait_until_ready()
            self.router = Router(program, pod.address)
            self._started.append(self.router)
            self.router.wait_until_up()
            self.scraper = Scraper(self.predictors)
            self._started.append(self.scraper)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for one in reversed(self._started):
            one.stop()
