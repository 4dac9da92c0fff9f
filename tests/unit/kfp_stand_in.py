"""A Kubeflow Pipelines server for tests: its REST API v2beta1 in memory, on 127.0.0.1, as the real one answers.

What it answers was copied from a server of release 2.17.0. The variable MLFLYWHEEL_TEST_KFP_API names such a server to
run the same tests against; `Gate` stands before either one, and loses, delays or replaces answers.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import urllib3
import yaml

PIPELINE = """\
# PIPELINE DEFINITION
components:
  comp-refuse-model:
    executorLabel: exec-refuse-model
    inputDefinitions:
      parameters:
        data:
          parameterType: STRING
  comp-train-model:
    executorLabel: exec-train-model
    inputDefinitions:
      parameters:
        data:
          parameterType: STRING
deploymentSpec:
  executors:
    exec-refuse-model:
      container:
        args: ["{remark}"]
        command: [echo]
        image: ghcr.io/mlflywheel/components:0.1.0
    exec-train-model:
      container:
        args: []
        command: [echo]
        image: ghcr.io/mlflywheel/components:0.1.0
pipelineInfo:
  name: {name}
root:
  dag:
    tasks:
      refuse-model:
        cachingOptions: {{}}
        componentRef:
          name: comp-refuse-model
        dependentTasks:
        - train-model
        inputs:
          parameters:
            data:
              componentInputParameter: data
        taskInfo:
          name: refuse-model
      train-model:
        cachingOptions: {{}}
        componentRef:
          name: comp-train-model
        inputs:
          parameters:
            data:
              componentInputParameter: data
        taskInfo:
          name: train-model
  inputDefinitions:
    parameters:
      confirmations:
        defaultValue: 5.0
        isOptional: true
        parameterType: NUMBER_INTEGER
      data:
        parameterType: STRING
      trigger:
        defaultValue: ''
        isOptional: true
        parameterType: STRING
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
"""
SECRET = """\
---
platforms:
  kubernetes:
    deploymentSpec:
      executors:
        exec-train-model:
          secretAsEnv:
          - keyToEnv:
            - envVar: KEY
              secretKey: key
            optional: true
            secretName: store
    pipelineConfig:
      {setting}: 60
"""
_NEVER = "1970-01-01T00:00:00Z"
_PLATFORM_FIELDS = {"activeDeadlineSeconds", "resourceTtlOnCompletion", "workspace"}
_LOGS = "/apis/v1alpha1/runs/"


def make_pipeline(name: str, remark: str = "hello") -> str:
    """Compiled YAML of a small pipeline, whose content the remark changes."""
    return PIPELINE.format(name=name, remark=remark)


@dataclass(frozen=True)
class Node:
    """A node of a Workflow as Argo has it, of which the server makes a task."""

    number: str
    name: str
    phase: str
    children: tuple[str, ...] = ()


def play(url: str, run_id: str, phase: str, *nodes: Node) -> None:
    """Report the state of a run as the persistence agent does, to the real server or to the stand-in."""
    status: dict[str, Any] = {"phase": "Running", "nodes": {}}
    for node in nodes:
        status["nodes"][f"small-x1-{node.number}"] = {
            "id": f"small-x1-{node.number}",
            "name": f"small-x1.{node.name}",
            "displayName": node.name,
            "type": "DAG",
            "phase": node.phase,
            "templateName": "system-container-impl",
            "startedAt": "2026-11-21T17:00:01Z",
            "finishedAt": None if node.phase == "Running" else f"2026-11-21T17:00:{10 + int(node.number)}Z",
            "children": [f"small-x1-{child}" for child in node.children],
        }
    metadata = {"name": "small-x1", "namespace": "kubeflow", "uid": run_id, "labels": {"pipeline/runid": run_id}}
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}}
    for state in dict.fromkeys(("Running", phase)):
        body = json.dumps(json.dumps({**workflow, "status": {**status, "phase": state}}))
        try:
            answer = urllib3.request("POST", f"{url}/apis/v2beta1/workflows", body=body.encode(), retries=False)
        except urllib3.exceptions.ReadTimeoutError:
            # The real server stores a final state, and then looks long for the Workflow, which nobody made.
            assert state != "Running"
        else:
            assert answer.status == 200 or state != "Running", answer.data


class _Refused(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


class _Server:
    """HTTP on a free port of 127.0.0.1; use with `with`."""

    url: str

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes] | None:
        """Return status, content type and body; None to say nothing and hang up."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body are two writes, and the second one would wait for the first one's receipt.
            disable_nagle_algorithm = True

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = owner.handle(self.command, self.path, dict(self.headers.items()), body)
                if answer is None:
                    self.close_connection = True
                    return
                status, kind, content = answer
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "https://login.example/dex/auth")
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = _do

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Gate(_Server):
    """Forwards to a server, and records, loses or replaces answers.

    Args:
        target: URL of the server.
        prefix: What stands before the paths here, and not there.
    """

    def __init__(self, target: str, prefix: str = "") -> None:
        self.target, self.prefix = target, prefix
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        #: (method, pattern of the path): the request is carried out and its answer is lost, once each.
        self.lost: list[tuple[str, str]] = []
        #: (pattern, status, content type, body): answered in place of the server, as long as it stands here.
        self.instead: list[tuple[str, int, str, str]] = []
        #: As `instead`, once each.
        self.once: list[tuple[str, int, str, str]] = []
        self._pool = urllib3.PoolManager()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._pool.clear()

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes] | None:
        """Forward a request."""
        path = path.removeprefix(self.prefix)
        self.requests.append((method, path, headers))
        for answers in (self.once, self.instead):
            for planned in answers:
                if re.search(planned[0], f"{method} {path}"):
                    if answers is self.once:
                        answers.remove(planned)
                    return planned[1], planned[2], planned[3].encode()
        kept = {key: value for key, value in headers.items() if key.lower() in ("content-type", "accept")}
        answer = self._pool.request(method, self.target + path, body=body or None, headers=kept, retries=False)
        for found in self.lost:
            if found[0] == method and re.search(found[1], path):
                self.lost.remove(found)
                return None
        return answer.status, answer.headers.get("Content-Type", "text/plain"), answer.data

    def paths(self, method: str) -> list[str]:
        """Paths of the requests of a method, without their queries."""
        return [path.partition("?")[0] for used, path, _ in self.requests if used == method]


class PipelinesStandIn(_Server):
    """The API in memory.

    Args:
        tag: The release that it says to be.
        is_multi_user: Whether it is installed for several users.
    """

    def __init__(self, tag: str = "2.17.0", is_multi_user: bool = False) -> None:
        self.tag, self.is_multi_user = tag, is_multi_user
        self.logs: dict[str, str] = {}
        self._pipelines: list[dict[str, Any]] = []
        self._versions: list[dict[str, Any]] = []
        self._experiments = [{"experiment_id": "e0", "display_name": "Default", "storage_state": "AVAILABLE"}]
        self._runs: list[dict[str, Any]] = []
        self._schedules: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Answer a request."""
        parts = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path.startswith(_LOGS):
            pod = parts.path.split("/")[-2]
            failed = json.dumps(
                {"error_message": "BadRequestError: Failed to read logs", "error_details": ""}, separators=(",", ":")
            )
            return 200, "text/plain", self.logs.get(pod, failed).encode()
        steps = [unquote(step) for step in parts.path.removeprefix("/apis/v2beta1/").split("/")]
        try:
            with self._lock:
                if steps[-1] == "upload_version":
                    answer = self._upload(query, headers, body)
                else:
                    answer = self._route(method, steps, query, json.loads(body) if body else None)
        except _Refused as refused:
            details = [
                {"@type": "type.googleapis.com/google.rpc.Status", "code": refused.code, "message": str(refused)}
            ]
            told = {"code": refused.code, "message": f"Failed: {refused}", "details": details}
            return refused.status, "application/json", json.dumps(told).encode()
        return 200, "application/json", json.dumps(answer).encode()

    def _route(self, method: str, steps: Sequence[str], query: Mapping[str, str], body: Any) -> dict[str, Any]:
        table: Mapping[tuple[str, str, int], Callable[[], dict[str, Any]]] = {
            ("GET", "healthz", 1): lambda: {
                "commit_sha": "unknown", "tag_name": self.tag, "multi_user": self.is_multi_user,
                "pipeline_store": "database",
            },
            ("POST", "pipelines", 1): lambda: self._create_pipeline(body),
            ("GET", "pipelines", 3): lambda: (
                self._find(self._pipelines, "name", steps[2], f"Namespace/Pipeline /{steps[2]} not found")
                if steps[1] == "names"
                else self._list(
                    [one for one in self._versions if one["pipeline_id"] == steps[1]], "pipeline_versions", query
                )
            ),
            ("GET", "pipelines", 4): lambda: self._find(self._versions, "pipeline_version_id", steps[3], "no version"),
            ("DELETE", "pipelines", 4): lambda: self._remove(self._versions, "pipeline_version_id", steps[3]),
            ("GET", "experiments", 1): lambda: self._list(self._experiments, "experiments", query),
            ("POST", "experiments", 1): lambda: self._create_experiment(body),
            ("POST", "runs", 1): lambda: self._create_run(body),
            ("GET", "runs", 1): lambda: self._list(self._runs, "runs", query),
            ("GET", "runs", 2): lambda: self._find(self._runs, "run_id", steps[1], f"Run {steps[1]} not found"),
            ("POST", "recurringruns", 1): lambda: self._create_schedule(body),
            ("GET", "recurringruns", 1): lambda: self._list(self._schedules, "recurringRuns", query),
            ("POST", "recurringruns", 2): lambda: self._disable(steps[1]),
            ("DELETE", "recurringruns", 2): lambda: self._remove(self._schedules, "recurring_run_id", steps[1]),
            ("POST", "workflows", 1): lambda: self._report(body),
        }  # fmt: skip
        found = table.get((method, steps[0], len(steps)))
        if found is None:
            raise _Refused(404, 5, "Not Found")
        return found()

    @staticmethod
    def _find(among: Sequence[dict[str, Any]], key: str, value: str, message: str) -> dict[str, Any]:
        for one in among:
            if one[key] == value:
                return one
        raise _Refused(404, 5, message)

    @staticmethod
    def _list(among: Sequence[dict[str, Any]], key: str, query: Mapping[str, str]) -> dict[str, Any]:
        kept = list(among)
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", ()):
            field, value = predicate["key"], predicate["string_value"]
            if predicate["operation"] == "EQUALS":
                kept = [one for one in kept if one.get(field) == value]
            else:
                kept = [one for one in kept if value in one.get(field, "")]
        # As the real server, which leaves an empty list out.
        return {key: kept, "total_size": len(kept)} if kept else {}

    @staticmethod
    def _remove(among: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
        among[:] = [one for one in among if one[key] != value]
        return {}

    def _create_pipeline(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if any(one["name"] == body["name"] for one in self._pipelines):
            raise _Refused(409, 6, f"Failed to create a new pipeline. The name {body['name']} already exist")
        self._pipelines.append({**body, "pipeline_id": str(uuid.uuid4())})
        return self._pipelines[-1]

    def _upload(self, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        part = BytesParser().parsebytes(head + body).get_payload(0)
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        text = part.get_payload(decode=True)
        pipeline, *platforms = [one for one in yaml.safe_load_all(text) if one]
        known = [
            one
            for one in platforms
            if set(one["platforms"]["kubernetes"].get("pipelineConfig", ())) <= _PLATFORM_FIELDS
        ]
        if any((one["pipeline_id"], one["name"]) == (query["pipelineid"], query["name"]) for one in self._versions):
            raise _Refused(409, 6, "Failed to create a pipeline version")
        stored = {"pipeline_spec": pipeline, "platform_spec": known[0]} if known else pipeline
        self._versions.append(
            {
                "pipeline_id": query["pipelineid"],
                "pipeline_version_id": str(uuid.uuid4()),
                "display_name": query["name"],
                "name": query["name"],
                "pipeline_spec": stored,
            }
        )
        return self._versions[-1]

    def _create_experiment(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if any(one["display_name"] == body["display_name"] for one in self._experiments):
            raise _Refused(409, 6, f"The name {body['display_name']} already exists. Please specify a new name")
        self._experiments.append({**body, "experiment_id": str(uuid.uuid4()), "storage_state": "AVAILABLE"})
        return self._experiments[-1]

    def _check(self, body: Mapping[str, Any]) -> None:
        reference = body["pipeline_version_reference"]["pipeline_version_id"]
        stored = self._find(self._versions, "pipeline_version_id", reference, "no version")["pipeline_spec"]
        declared = stored.get("pipeline_spec", stored)["root"]["inputDefinitions"]["parameters"]
        given = body["runtime_config"].get("parameters", {})
        for name, definition in declared.items():
            if name not in given and "defaultValue" not in definition:
                raise _Refused(400, 3, f"parameter {name} is not optional, yet has neither default value nor value")
        for name, value in given.items():
            if name not in declared:
                raise _Refused(400, 3, f"parameter(s) provided are not required by pipeline: {name}")
            if declared[name]["parameterType"] == "NUMBER_INTEGER" and not isinstance(value, int | float):
                raise _Refused(400, 3, f"input parameter {name} requires type double or integer")

    def _create_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._check(body)
        made = {"service_account": "pipeline-runner", **body, "run_id": str(uuid.uuid4()), "state": "PENDING"}
        self._runs.append({**made, "storage_state": "AVAILABLE", "finished_at": _NEVER})
        return self._runs[-1]

    def _create_schedule(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._check(body)
        cron = (body["trigger"].get("cron_schedule") or {}).get("cron")
        if cron is not None and not re.fullmatch(r"@\w+|([\d*/,?-]+ ?){5,6}", cron):
            raise _Refused(400, 3, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron)")
        self._schedules.append({**body, "recurring_run_id": str(uuid.uuid4()), "status": "ENABLED"})
        return self._schedules[-1]

    def _disable(self, step: str) -> dict[str, Any]:
        found = self._find(self._schedules, "recurring_run_id", step.removesuffix(":disable"), "no schedule")
        found |= {"mode": "DISABLE", "status": "DISABLED"}
        return {}

    def _report(self, text: str) -> dict[str, Any]:
        workflow = json.loads(text)
        run_id, status = workflow["metadata"]["labels"]["pipeline/runid"], workflow["status"]
        run = self._find(self._runs, "run_id", run_id, f"Run {run_id} not found")
        run["state"] = status["phase"].upper()
        if status["phase"] == "Running":
            run["run_details"] = {
                "task_details": [
                    {
                        "run_id": run_id,
                        "task_id": node["id"],
                        "display_name": node["displayName"],
                        "create_time": "0001-01-01T00:00:00Z",
                        "start_time": node["startedAt"],
                        "end_time": node["finishedAt"] or "0001-01-01T00:00:00Z",
                        **({} if node["phase"] == "Omitted" else {"state": node["phase"].upper()}),
                        **(
                            {"child_tasks": [{"pod_name": one} for one in node["children"]]} if node["children"] else {}
                        ),
                    }
                    for node in status["nodes"].values()
                ]
            }
        else:
            run["finished_at"] = datetime.now(UTC).isoformat()
        return {}
