"""Train a registered version again from its dossier, and compare.

What the version was made from is looked at first: the data, whose version has to be the recorded one, and then code,
packages, Python, the compiled pipeline, the image and the class of the machine. Only missing or other data stops the
rebuild; whatever else differs is told before the work begins, and decides afterwards what may be expected
(`mlflywheel.reproducibility.comparison`).

The compiled pipeline runs as it always does, in a folder below `runs/rebuilds/` with a registry of its own: with the
recorded split and parameters, without expectations, a search, gates, a champion or a deployment.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflywheel.errors import DataError, MlflywheelError, ModelError, RegistryError, UsageError, error_from_dict
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import load_model_class
from mlflywheel.pipelines.catalog import PIPELINES
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.registry.dossier import read_dossier
from mlflywheel.reproducibility import (
    Comparison,
    Difference,
    compare_environments,
    compare_models,
    describe_environment,
    find_trigger,
    hash_specification,
    read_declared_hash,
)
from mlflywheel.reproducibility.environment import PINNED_VARIABLES
from mlflywheel.runs.folder import RunFolder, new_run_id, write_json
from mlflywheel.runs.runner import EventCallback, read_name, read_parameters, run_pipeline

if TYPE_CHECKING:
    from mlflywheel.models.contract import Model

#: Folder of rebuilds, beside the folders of the pipelines.
REBUILDS = "rebuilds"
SCHEMA = 1
_NO_GATES = '{"schema":1,"gates":[]}'
# The data is of the recorded version, so it is as good as it was; rules that count from today may no longer hold.
_NO_EXPECTATIONS = '{"schema":1,"rows":[]}'


@dataclass(frozen=True)
class Rebuild:
    """A finished rebuild.

    Args:
        reference: The version that was trained again, `NAME@VERSION`.
        rebuild_id: Its id, which names its folder.
        comparison: What it showed.
        found_before: What differed before the work began.
        summary: Of the run.
        folder: Where everything lies; `rebuild.json` among it.
        trigger: `manual`, `scheduled` or `ci`.
        finished_at: When it ended, in UTC.
    """

    reference: str
    rebuild_id: str
    comparison: Comparison
    found_before: tuple[Difference, ...]
    summary: Mapping[str, Any]
    folder: Path
    trigger: str
    finished_at: datetime

    @property
    def outcome(self) -> str:
        """`same`, `equivalent` or `different`."""
        return self.comparison.outcome

    @property
    def path(self) -> Path:
        """The verdict as JSON."""
        return self.folder / "rebuild.json"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `rebuild.json` holds them."""
        return {
            "schema": SCHEMA,
            "kind": "rebuild",
            "reference": self.reference,
            "rebuild_id": self.rebuild_id,
            **self.comparison.to_dict(),
            "found_before": [difference.to_dict() for difference in self.found_before],
            "rebuilt": {
                "hash": self.comparison.rebuilt_hash,
                "run_id": self.summary["run_id"],
                "uri": self.summary["model"]["uri"],
                "data": self.summary["data"]["version"],
                "seconds": self.summary["seconds"],
            },
            "trigger": self.trigger,
            "finished_at": self.finished_at.isoformat(timespec="seconds"),
            "path": str(self.path),
        }

    def raise_for_status(self) -> "Rebuild":
        """Return the rebuild if it gave the same or an equivalent model.

        Raises:
            ModelError: It gave a different one.
        """
        if self.outcome != "different":
            return self
        raise ModelError(
            f"rebuild of {self.reference}",
            f"a different model: {self.comparison.reason}",
            "an equal hash, or metrics within the tolerance where the environment differs, is needed",
            f"look the differences up in {self.path}",
        )


def rebuild(
    version: ModelVersion,
    runs: Path,
    *,
    data: str | None = None,
    compiled: Path | None = None,
    tolerance: float = 0.01,
    progress: ProgressCallback = ignore_progress,
    on_event: EventCallback = lambda event: None,
    on_output: Callable[[str], None] | None = None,
) -> Rebuild:
    """Train a version again from its dossier, and compare hash and metrics.

    Args:
        version: From a registry.
        runs: The folder of all runs.
        data: Another place of the same data; where it was when left out.
        compiled: The compiled pipeline; this library's of the recorded name when left out.
        tolerance: Share by which a metric may differ where the hash need not repeat.
        progress: Called while the data is looked at.
        on_event: Called with every event of the run, and before it with one event `checked` that holds `differences`.
        on_output: Called with every line that kfp and the steps print.

    Returns:
        What came out; `raise_for_status` raises for a different model.

    Raises:
        RegistryError: The version has no dossier, or it was changed.
        DataError: The dossier or the data is gone, or the data is of another version.
        UsageError: The compiled pipeline is not known, or another one; or a negative tolerance.
        MlflywheelError: The run failed; its folder stays.
    """
    dossier = read_dossier(version)
    if dossier is None:
        raise RegistryError(
            version.reference,
            "registered without a dossier",
            "a rebuild needs the record of what it was made from",
            "run the pipeline again, which registers a version that has one",
        )
    # Before any work: a slip here would be told after minutes.
    compare_models("", "", {}, {}, (), tolerance)
    recorded = dossier["reproducibility"]
    path = _find_compiled(version.reference, dossier, compiled)
    pinned = read_pinned_variables(recorded)
    pipeline_differences = _compare_pipeline(dossier, path)
    differences = pipeline_differences + compare_environments(
        recorded,
        describe_environment(variables={k: v for k, v in {**os.environ, **pinned}.items() if v is not None}),
        with_pools=False,
    )
    on_event({"event": "checked", "step": "rebuild", "differences": [found.to_dict() for found in differences]})
    place = _check_data(version.reference, dossier, path, data, progress)
    rebuild_id = new_run_id()
    folder = RunFolder.create(runs, REBUILDS, rebuild_id).path
    registry = folder / "registry.sqlite"
    arguments = compose_arguments(dossier, read_parameters(path), place, registry)
    summary = run_pipeline(read_name(path), path, arguments, folder, on_event, on_output, pinned)
    if summary["error"] is not None:
        raise error_from_dict(summary["error"])
    rebuilt = _find_rebuilt(summary, registry)
    made = read_dossier(rebuilt)
    if made is not None:
        differences = pipeline_differences + compare_environments(recorded, made["reproducibility"])
    comparison = compare_models(version.hash, rebuilt.hash, version.metrics, rebuilt.metrics, differences, tolerance)
    finished = Rebuild(
        version.reference,
        rebuild_id,
        comparison,
        differences,
        summary,
        folder,
        find_trigger(),
        datetime.now(UTC),
    )
    write_json(finished.path, finished.to_dict())
    return finished


def compose_arguments(
    dossier: Mapping[str, Any], parameters: Mapping[str, Any], data: str, registry: Path
) -> dict[str, Any]:
    """Return the arguments that make a pipeline train what a dossier records, and nothing beside it.

    Args:
        dossier: From `read_dossier`.
        parameters: Those that the compiled pipeline declares; others are left out.
        data: Where the data lies.
        registry: Where to register what is trained.
    """
    source, split = dossier["data"], dossier["data"].get("split", {})
    plan = dossier["evaluation"].get("plan")
    wanted: dict[str, Any] = {
        "data": data,
        "columns": _dump(source.get("columns") or {}),
        "prepare": _dump(source.get("prepare") or {}),
        "split_method": split.get("method"),
        "split_column": split.get("column"),
        "split_seed": split.get("seed"),
        "holdout_fraction": split.get("holdout_fraction"),
        "params": _dump(dossier["training"].get("params") or {}),
        "expectations": _NO_EXPECTATIONS,
        "plan": None if plan is None else _shorten_plan(plan),
        "gates": _NO_GATES,
        "registry": str(registry),
        "tune": False,
        "approve": False,
        "deploy": False,
        "trigger": find_trigger(),
    }
    return {name: value for name, value in wanted.items() if name in parameters and value is not None}


def _shorten_plan(plan: Mapping[str, Any]) -> str:
    """Leave out of the plan what takes long and is not compared."""
    short = {**plan, "schema": 1, "explanations": {**(plan.get("explanations") or {}), "rows": 0}}
    slices = dict(plan.get("slices") or {})
    short["slices"] = {**slices, "discover": {**(slices.get("discover") or {}), "enabled": False}}
    return _dump(short)


def read_pinned_variables(recorded: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the environment variables that a run needs to compute as it was recorded; None is one that is not set.

    Only variables that are known here are taken: what else a document asks for is ignored.

    >>> read_pinned_variables({"threads": {"variables": {"OMP_NUM_THREADS": "1", "PATH": "/tmp"}}})
    {'OMP_NUM_THREADS': '1'}
    """
    threads = (recorded.get("threads") or {}).get("variables") or {}
    instructions = (recorded.get("hardware") or {}).get("variables") or {}
    given = {**threads, **instructions}
    return {name: given[name] for name in PINNED_VARIABLES if name in given}


def _find_compiled(reference: str, dossier: Mapping[str, Any], given: Path | None) -> Path:
    name = dossier["run"].get("pipeline") or ""
    if given is not None:
        found = read_name(given)
        if name and found != name:
            raise UsageError(
                f"--compiled {given}", f"the pipeline {found}", f"{reference} was made by {name}", "name its YAML"
            )
        return given
    for pipeline in PIPELINES:
        if pipeline.name == name:
            return pipeline.compiled
    raise UsageError(
        f"pipeline {name or 'of ' + reference}",
        "not a pipeline of this library",
        "its compiled YAML is needed",
        "name it with --compiled FILE",
    )


def _compare_pipeline(dossier: Mapping[str, Any], compiled: Path) -> tuple[Difference, ...]:
    text = compiled.read_text(encoding="utf-8")
    found, declared = hash_specification(text, str(compiled)), read_declared_hash(text, str(compiled))
    recorded = dossier["run"].get("pipeline_spec") or ""
    differences = []
    if recorded != found:
        differences.append(Difference("pipeline", recorded or "unknown", found))
    if declared and declared != found:
        differences.append(Difference("pipeline, as the file says of itself", declared, found, changes_bits=False))
    return tuple(differences)


def _check_data(
    reference: str, dossier: Mapping[str, Any], compiled: Path, given: str | None, progress: ProgressCallback
) -> str:
    """Return where the data lies, once it is sure to be what the version was trained on."""
    from mlflywheel.data.ingestion import ingest

    source = dossier["data"]
    place, recorded = given or str(source.get("uri") or ""), source.get("version")
    if given is None and (not place or "=***" in place):
        raise DataError(
            place or f"data of {reference}",
            "the recorded address has no credentials" if place else "no address is recorded",
            "the data that it was trained on is needed",
            "name the table with --data",
        )
    model = _find_model(compiled)
    try:
        found = ingest(
            place, model.columns, source.get("columns") or {}, progress, other_columns=model.other_columns
        ).version
    except MlflywheelError as error:
        raise DataError(
            error.where,
            error.seen,
            f"{reference} was trained on it, version {recorded}",
            "restore it, or name another place of the same data with --data",
        ) from error
    if found.hash != recorded:
        raise DataError(
            place,
            f"its version is {found.hash}",
            f"{reference} was trained on version {recorded}",
            "name the unchanged data with --data",
        )
    return place


def _find_model(compiled: Path) -> "type[Model]":
    """Return the model class that a compiled pipeline names: it is the pipeline's choice and not the dossier's."""
    import yaml

    document = next(iter(yaml.safe_load_all(compiled.read_text(encoding="utf-8"))))
    for task in document["root"]["dag"]["tasks"].values():
        given = task.get("inputs", {}).get("parameters", {}).get("model", {})
        name = given.get("runtimeValue", {}).get("constant")
        if isinstance(name, str):
            return load_model_class(name)
    raise UsageError(
        str(compiled),
        "no step is given a model",
        "the model's columns say how the data is read",
        "name the pipeline that trained the version",
    )


def _find_rebuilt(summary: Mapping[str, Any], registry: Path) -> ModelVersion:
    found = summary["model"]
    if found is None:
        raise ModelError(
            f"run {summary['run_id']}",
            "it registered no model",
            "a pipeline that registers what it trains is needed",
            "rebuild with the pipeline that registered the version",
        )
    return EmbeddedRegistry(registry).get(found["name"], found["version"])


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
