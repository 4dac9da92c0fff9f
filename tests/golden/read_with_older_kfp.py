"""Parse compiled YAML as an older Kubeflow Pipelines does; run in a process of its own.

    python read_with_older_kfp.py FOLDER COMPILED.yaml

FOLDER holds the older `kfp-pipeline-spec` and `kfp-kubernetes`. A process knows each protobuf message once, so their
classes cannot be loaded beside those of the installed version. The server parses strictly: a field that it does not
know refuses the pipeline, or silently drops the whole platform document.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from google.protobuf import json_format


def read(folder: Path, compiled: Path) -> None:
    """Parse every document.

    Raises:
        ParseError: A field or a value that the older version does not know.
    """
    # Packages without their __init__, which would import the rest of an SDK that is not there.
    for name in ("kfp", "kfp.pipeline_spec", "kfp.kubernetes"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    spec_pb2 = import_module("kfp.pipeline_spec.pipeline_spec_pb2")
    executor_pb2 = import_module("kfp.kubernetes.kubernetes_executor_config_pb2")
    # A wrong folder must not pass for the older version.
    assert Path(spec_pb2.__file__ or "").is_relative_to(folder), spec_pb2.__file__
    assert Path(executor_pb2.__file__ or "").is_relative_to(folder), executor_pb2.__file__

    documents: list[dict[str, Any]] = list(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    pipeline, *platforms = documents
    json_format.ParseDict(pipeline, spec_pb2.PipelineSpec())
    for platform in platforms:
        json_format.ParseDict(platform, spec_pb2.PlatformSpec())
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(executor, executor_pb2.KubernetesExecutorConfig())
    print(f"{len(documents)} documents")


if __name__ == "__main__":
    read(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
