"""The child process of a run: `python -m mlflywheel.runs.execute REQUEST.json` runs compiled YAML through kfp.local.

A process of its own, because kfp.local prints to the process's standard output, changes its logging, and starts
subprocesses that have to end with it.
"""

import json
import sys
from pathlib import Path


def main(request_path: str) -> None:
    """Run what the request says: `{"compiled": path, "arguments": {...}, "root": path}`."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    from kfp import components, local

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=request["root"])
    components.load_component_from_file(request["compiled"])(**request["arguments"])


if __name__ == "__main__":
    main(sys.argv[1])
