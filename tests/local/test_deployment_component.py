"""The deployment component as kfp runs it: in a process of its own, and without a cluster."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl, local

from mlflywheel.components import deploy_model
from mlflywheel.errors import error_from_dict
from mlflywheel.events import EVENTS_VARIABLE
from mlflywheel.registry import EmbeddedRegistry


@dataclass(frozen=True)
class Finished:
    """What a run of the component left."""

    folder: Path
    outputs: dict[str, Any]
    events: list[dict[str, Any]]
    error: str

    @property
    def failure(self) -> dict[str, Any]:
        (failed,) = [event["error"] for event in self.events if event["event"] == "failed"]
        return dict(failed)


@pytest.fixture
def run_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """`run_component(...)` runs the component with `ads@1` in a registry, and with no way to a cluster."""
    registry = tmp_path / "registry.sqlite"
    EmbeddedRegistry(registry).ensure_version(
        "ads", f"file://{tmp_path}/model", key="run", format_name="f", format_version="1", hash=f"sha256:{'0' * 64}"
    )
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))

    def run(**arguments: Any) -> Finished:
        given = {"model_version": "ads@1", "registry": str(registry), "service": "ads", **arguments}
        outputs: dict[str, Any] = {}
        error = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"))
            try:
                outputs = dict(deploy_model(**given).outputs)
            except RuntimeError as failure:
                error = str(failure)
        events = tmp_path / "events.jsonl"
        lines = events.read_text("utf-8").splitlines() if events.exists() else []
        return Finished(tmp_path, outputs, [json.loads(line) for line in lines], error)

    return run


def test_without_being_asked_nothing_is_read_or_told(run_component: Callable[..., Finished]) -> None:
    finished = run_component(
        enabled=False, model_version="never@9", registry="/nowhere", policy="not a policy", on_rollback="ignore"
    )
    assert finished.error == ""
    assert finished.outputs["Output"] == "not asked for"
    assert finished.events == []
    written = json.loads(Path(finished.outputs["rollout"].path).read_text("utf-8"))
    assert written == {"schema": 1, "verdict": "not asked for", "record": None, "sections": []}
    assert "deploy" in Path(finished.outputs["report"].path).read_text("utf-8")
    assert isinstance(finished.outputs["metrics"], dsl.Metrics)
    assert finished.outputs["metrics"].metadata == {}


def test_a_version_on_this_machine_is_refused_with_what_to_do(run_component: Callable[..., Finished]) -> None:
    finished = run_component(prometheus="http://127.0.0.1:1")
    error = error_from_dict(finished.failure)
    assert (type(error).__name__, error.exit_code, error.where) == ("UsageError", 2, "ads@1")
    assert error.seen == f"it lies at file://{finished.folder}/model"
    assert "rollout start --uri" in error.fix


def test_without_a_source_of_evidence_nothing_is_deployed(run_component: Callable[..., Finished]) -> None:
    error = error_from_dict(run_component().failure)
    assert (error.where, error.seen, error.exit_code) == ("evidence of the rollout", "nothing", 2)
