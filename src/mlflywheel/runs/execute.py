"""The child process of a run: `python -m mlflywheel.runs.execute REQUEST.json` runs compiled YAML through kfp.local.

A process of its own, because kfp.local prints to the process's standard output, changes its logging, and starts
subprocesses that have to end with it.
"""

import importlib
import json
import os
import sys
from pathlib import Path

_KFP_RUNTIME = "_KFP_RUNTIME"


def main(request_path: str) -> None:
    """Run what the request says: `{"compiled": path, "arguments": {...}, "root": path}`."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    _import_kfp()
    from kfp import components, local

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=request["root"])
    components.load_component_from_file(request["compiled"])(**request["arguments"])


def _import_kfp() -> None:
    """Import the package kfp without its client, which imports Kubernetes' client for over a second.

    kfp leaves its client out inside a step, which it knows by a variable. The submodules imported later are complete.
    """
    before = os.environ.get(_KFP_RUNTIME)
    os.environ[_KFP_RUNTIME] = "true"
    try:
        importlib.import_module("kfp")
    finally:
        if before is None:
            del os.environ[_KFP_RUNTIME]
        else:
            os.environ[_KFP_RUNTIME] = before


if __name__ == "__main__":
    main(sys.argv[1])
