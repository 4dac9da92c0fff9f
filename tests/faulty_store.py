"""An object store on this machine, and a proxy before it that fails in the ways that networks and stores fail."""

import http.client
import http.server
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

REGION = "us-east-1"


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Args:
        status: Answered in place of the store, with `code` as S3 writes it.
        code: S3's name of the error.
        cut_after: Bytes of the body after which the connection is closed.
        shorten_to: Bytes that are sent of the body, in an answer that is whole as far as HTTP can tell.
        delay_seconds: Waited before anything is answered.
        reached: Whether the store gets the request first; so a refusal may follow on work that was done.
    """

    status: int = 0
    code: str = ""
    cut_after: int | None = None
    shorten_to: int | None = None
    delay_seconds: float = 0.0
    reached: bool = False


Choice = Callable[[str, str, int], Fault | None]


@dataclass
class FaultyProxy:
    """Hands requests on to a store; `choose(method, path, number)` says which fail, counted from 1."""

    upstream: str
    choose: Choice = lambda method, path, number: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def fail_first(self, count: int, fault: Fault, method: str = "", part: str = "") -> None:
        """Let the first requests of a method, with a part in their path, fail."""
        left = [count]

        def choose(called: str, path: str, number: int) -> Fault | None:
            with self.lock:
                if left[0] and (not method or called == method) and part in path:
                    left[0] -= 1
                    return fault
            return None

        self.choose = choose


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    # A client that gives up is part of the tests.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent."""


def _make_handler(proxy: FaultyProxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                proxy.requests.append((self.command, self.path))
                number = len(proxy.requests)
                proxy.in_flight += 1
                proxy.most_in_flight = max(proxy.most_in_flight, proxy.in_flight)
            try:
                self._answer(body, proxy.choose(self.command, self.path, number))
            finally:
                with proxy.lock:
                    proxy.in_flight -= 1

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

        def _answer(self, body: bytes, fault: Fault | None) -> None:
            fault = fault or Fault()
            time.sleep(fault.delay_seconds)
            if fault.status and not fault.reached:
                return self._refuse(fault)
            connection = http.client.HTTPConnection(proxy.upstream, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            if fault.status:
                return self._refuse(fault)
            sent = data if fault.shorten_to is None else data[: fault.shorten_to]
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(sent))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command == "HEAD":
                return None
            if fault.cut_after is None:
                self.wfile.write(sent)
                return None
            self.wfile.write(sent[: fault.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return None

        def _refuse(self, fault: Fault) -> None:
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>refused</Message></Error>"
            data = b"" if self.command == "HEAD" else text.encode()
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    return Handler


@contextmanager
def run_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy before `host:port`."""
    proxy = FaultyProxy(upstream)
    server = _Server(("127.0.0.1", 0), _make_handler(proxy))
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_client(endpoint: str, keys: Mapping[str, str], service: str = "s3") -> Any:
    """Return boto3's client, with the keys that stand in an environment."""
    # It brings no types.
    return import_module("boto3").client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )


@dataclass(frozen=True)
class Store:
    """moto's S3 and IAM: accepts any keys until `checked` is entered, and then only those that it gave out."""

    address: str

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def client(self, service: str = "s3") -> Any:
        return make_client(self.endpoint, {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}, service)

    def create_user(self, name: str, *actions: str) -> dict[str, str]:
        """Return the environment of a user who may do these actions on everything."""
        import json

        iam = self.client("iam")
        iam.create_user(UserName=name)
        document = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
        }
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(document))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_REGION": REGION,
        }

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check signatures and permissions from here on."""
        self.set_open_requests("0")
        try:
            yield
        finally:
            self.set_open_requests("inf")

    def set_open_requests(self, count: str) -> None:
        """Answer so many requests without looking at their keys, counted from when the store was started."""
        import urllib.request

        # Anything but a form, which moto would parse.
        headers = {"Content-Type": "text/plain"}
        address = f"{self.endpoint}/moto-api/reset-auth"
        request = urllib.request.Request(address, data=count.encode(), headers=headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def run_store(*buckets: str) -> Iterator[Store]:
    """Run an object store with empty buckets."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = Store(f"{host}:{port}")
        for bucket in buckets:
            store.client().create_bucket(Bucket=bucket)
        yield store
    finally:
        server.stop()
