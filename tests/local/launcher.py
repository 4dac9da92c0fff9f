"""Runs a compiled pipeline step by step as Kubeflow's driver and launcher do, with artifacts in an object store.

Written from kubeflow/pipelines `backend/src/v2` (driver, `component/launcher_v2.go`, `objectstore/object_store.go`):

- An output artifact gets an address below the pipeline root, and the step the path that its scheme maps to:
  `minio://bucket/key` is `/minio/bucket/key`.
- Inputs are downloaded before the step, everything under the address of each; outputs are uploaded after it, a folder
  file by file in the order of the names. What a step did not write is not uploaded.
- `{{$}}` in the command is the ExecutorInput as JSON, and parameters and metadata are read from the file that the step
  writes.

The paths lie below a folder of the test in place of `/`: kfp keeps the prefixes in constants of a module, which its
own tests set too. Here every step's interpreter sets them when it starts.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_SITE = """\
import os
if os.environ.get("_KFP_RUNTIME") == "true":
    from kfp.dsl.types import artifact_types
    root = os.environ["LAUNCHER_ROOT"]
    artifact_types._MINIO_LOCAL_MOUNT_PREFIX = root + "/minio/"
    artifact_types._S3_LOCAL_MOUNT_PREFIX = root + "/s3/"
"""
_CONDITION = re.compile(r"(!?)\(?inputs\.parameter_values\['([^']+)'\] == '([^']*)'\)?")


class StepFailedError(Exception):
    """A step ended with another code than 0."""

    def __init__(self, task: str, code: int, output: str) -> None:
        super().__init__(f"{task} ended with {code}:\n{output[-4000:]}")
        self.task, self.code, self.output = task, code, output


@dataclass
class Launcher:
    """A run.

    Args:
        folder: Where steps find their files; each step has one of its own, as a pod has.
        store: boto3's client of the object store.
        root: Pipeline root, `minio://bucket/key` or `s3://bucket/key`.
        environment: Of the steps, on top of this process's.
        run_id: The run's id.
    """

    folder: Path
    store: Any
    root: str
    environment: Mapping[str, str]
    run_id: str = "0b7a4c1e-run"
    document: dict[str, Any] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, compiled: Path, arguments: Mapping[str, Any]) -> None:
        """Run every step; outputs are in `artifacts` and `parameters` by the step's name.

        Raises:
            StepFailedError: A step failed.
        """
        self.document = next(iter(yaml.safe_load_all(compiled.read_text(encoding="utf-8"))))
        definitions = self.document["root"]["inputDefinitions"]["parameters"]
        defaults = {name: given["defaultValue"] for name, given in definitions.items() if "defaultValue" in given}
        unknown = set(arguments) - set(definitions)
        assert not unknown, f"the pipeline has no {unknown}"
        self._run_dag(self.document["root"]["dag"], {**defaults, **arguments}, {})

    def _run_dag(self, dag: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Any]) -> None:
        waiting = dict(dag["tasks"])
        while waiting:
            ready = [n for n, task in waiting.items() if not set(task.get("dependentTasks", ())) & set(waiting)]
            for name in ready:
                self._run_task(name, waiting.pop(name), parameters, artifacts)

    def _run_task(
        self, name: str, task: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Any]
    ) -> None:
        component = self.document["components"][task["componentRef"]["name"]]
        given = task.get("inputs", {})
        values = {key: self._find_parameter(source, parameters) for key, source in given.get("parameters", {}).items()}
        found = {key: self._find_artifact(source, artifacts) for key, source in given.get("artifacts", {}).items()}
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None and not _holds(condition, values):
            return
        if "dag" in component:
            self._run_dag(component["dag"], values, found)
        else:
            self._execute(name, component, values, found)

    def _find_parameter(self, source: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
        if "componentInputParameter" in source:
            return parameters[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            output = source["taskOutputParameter"]
            return self.parameters[output["producerTask"]][output["outputParameterKey"]]
        constant = source["runtimeValue"]["constant"]
        return self.run_id if constant == "{{$.pipeline_job_uuid}}" else constant

    def _find_artifact(self, source: Mapping[str, Any], artifacts: Mapping[str, Any]) -> Any:
        if "componentInputArtifact" in source:
            return artifacts[source["componentInputArtifact"]]
        output = source["taskOutputArtifact"]
        return self.artifacts[output["producerTask"]][output["outputArtifactKey"]]

    def _execute(
        self, name: str, component: Mapping[str, Any], values: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> None:
        pod = self.folder / name
        definitions = component.get("inputDefinitions", {}).get("parameters", {})
        defaults = {key: one["defaultValue"] for key, one in definitions.items() if "defaultValue" in one}
        outputs = component.get("outputDefinitions", {})
        addresses = {
            key: {
                "name": key,
                "uri": f"{self.root}/{self.document['pipelineInfo']['name']}/{self.run_id}/{name}/{key}",
                "type": one["artifactType"],
                "metadata": {},
            }
            for key, one in outputs.get("artifacts", {}).items()
        }
        written = pod / "outputs" / "output_metadata.json"
        executor_input = {
            "inputs": {
                "parameterValues": {key: _to_json(value) for key, value in {**defaults, **values}.items()},
                "artifacts": {key: {"artifacts": [one]} for key, one in inputs.items()},
            },
            "outputs": {
                "parameters": {
                    key: {"outputFile": str(pod / "outputs" / key)} for key in outputs.get("parameters", {})
                },
                "artifacts": {key: {"artifacts": [one]} for key, one in addresses.items()},
                "outputFile": str(written),
            },
        }
        for one in inputs.values():
            self._download(one["uri"], self._path(pod, one["uri"]))
        for one in addresses.values():
            self._path(pod, one["uri"]).parent.mkdir(parents=True, exist_ok=True)
        written.parent.mkdir(parents=True)
        container = self.document["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        words = [*container["command"], *container["args"]]
        self._call(name, pod, [word.replace("{{$}}", json.dumps(executor_input)) for word in words])
        told = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        for key, listed in told.get("artifacts", {}).items():
            addresses[key]["metadata"] = listed["artifacts"][0].get("metadata", {})
        for one in addresses.values():
            self._upload(self._path(pod, one["uri"]), one["uri"])
        self.artifacts[name] = addresses
        self.parameters[name] = told.get("parameterValues", {})
        self.finished.append(name)

    def _call(self, name: str, pod: Path, words: list[str]) -> None:
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
        temporary = pod / "tmp"
        temporary.mkdir()
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "LAUNCHER_ROOT": str(pod),
            "TMPDIR": str(temporary),
            **self.environment,
        }
        child = subprocess.run(
            words, cwd=pod, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
        )
        if child.returncode:
            raise StepFailedError(name, child.returncode, child.stdout)

    def _path(self, pod: Path, uri: str) -> Path:
        scheme, _, rest = uri.partition("://")
        return pod / scheme / rest

    def _download(self, uri: str, target: Path) -> None:
        bucket, _, prefix = uri.partition("://")[2].partition("/")
        pages = self.store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for listed in (one for page in pages for one in page.get("Contents", ())):
            if listed["Key"] == prefix or listed["Key"].startswith(f"{prefix}/"):
                path = target if listed["Key"] == prefix else target / listed["Key"][len(prefix) + 1 :]
                path.parent.mkdir(parents=True, exist_ok=True)
                self.store.download_file(bucket, listed["Key"], str(path))

    def _upload(self, source: Path, uri: str) -> None:
        bucket, _, key = uri.partition("://")[2].partition("/")
        if source.is_dir():
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                self.store.upload_file(str(path), bucket, f"{key}/{path.relative_to(source).as_posix()}")
        elif source.exists():
            self.store.upload_file(str(source), bucket, key)


def _to_json(value: Any) -> Any:
    """Write a whole number as the launcher does, which has doubles only and prints them without a fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _holds(condition: str, values: Mapping[str, Any]) -> bool:
    """Judge the conditions that kfp compiles from `output == "text"`, and their negation."""
    match = _CONDITION.fullmatch(condition)
    assert match is not None, condition
    return bool(values[match[2]] == match[3]) != bool(match[1])
