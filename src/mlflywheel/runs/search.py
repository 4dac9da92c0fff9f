"""A search for parameters outside of a run: of a pipeline's model, or of any Experiment file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflywheel.cluster.tuning import describe_access, make_tuner
from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import load_model_class
from mlflywheel.pipelines.catalog import Pipeline
from mlflywheel.runs.folder import write_json
from mlflywheel.runs.runner import SEARCHES, check_arguments
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.model_search import (
    Tuned,
    bind,
    check_model_parameters,
    identify_search,
    name_search_folder,
    tune_model,
    write_search,
)
from mlflywheel.tuning.search import SearchResult
from mlflywheel.tuning.trial import TrialInput

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Execution:
    """Who runs the trials of a search, and how.

    Args:
        executor: `local` or `katib`.
        any_command: Whether local trials may run another program than this package.
        restart: Whether a local search begins anew.
        namespace: The cluster's namespace.
        context: Context of the kubeconfig.
        timeout_seconds: How long to wait for the cluster; None for ever.
        cleanup: When the cluster's Experiment is deleted.
        storage: URI of a folder that trial pods read the training rows from.
        secret: The secret with that store's keys, as `cluster.tuning.describe_access` takes it.
    """

    executor: str = "local"
    any_command: bool = False
    restart: bool = False
    namespace: str | None = None
    context: str | None = None
    timeout_seconds: float | None = None
    cleanup: str = "never"
    storage: str | None = None
    secret: str = ""

    def tuner(self, searches: Path, key: str | None = None) -> Any:
        """Return the executor."""
        return make_tuner(
            self.executor,
            searches,
            key=key,
            any_command=self.any_command,
            restart=self.restart,
            namespace=self.namespace,
            context=self.context,
            timeout_seconds=self.timeout_seconds,
            cleanup=self.cleanup,
        )


@dataclass(frozen=True)
class Search:
    """A finished search.

    Args:
        result: Every trial.
        artifacts: Paths of `search` (JSON) and `report` (a page).
        tuned: What it means for the model; None for an Experiment that trains no model of ours.
    """

    result: SearchResult
    artifacts: Mapping[str, str]
    tuned: Tuned | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        facts = None if self.tuned is None else self.tuned.facts()
        return {"schema": 1, "facts": facts, "result": self.result.to_dict(), "artifacts": dict(self.artifacts)}


def read_any_experiment(source: str | Path) -> Experiment:
    """Read an Experiment from a path, or from text.

    Raises:
        UsageError: It cannot be read, or breaks one of Katib's rules.
        MissingExtraError: The extra `tuning` is not installed.
    """
    from importlib.util import find_spec

    if find_spec("kubeflow_katib_api") is None:
        raise MissingExtraError.of("kubeflow-katib-api", "tuning", "reading an experiment")
    from mlflywheel.tuning.reader import read_experiment, read_experiment_file

    return read_experiment_file(source) if isinstance(source, Path) else read_experiment(source)


def search_file(source: Path, runs: Path, execution: Execution, progress: ProgressCallback = ignore_progress) -> Search:
    """Run an Experiment as it stands.

    Raises:
        UsageError: It breaks a rule, or the executor cannot run it.
        TuningError: The search failed, or no trial succeeded.
    """
    from mlflywheel.tuning.sections import render_search

    _refuse_storage(execution)
    experiment = read_any_experiment(source)
    searches = runs / SEARCHES
    tuner = execution.tuner(searches)
    tuner.check(experiment)
    result = tuner.search(experiment, progress)
    folder = _make_folder(searches, experiment, experiment.spec_hash)
    search, report = folder / "search.json", folder / "report.html"
    report.write_text(render_search(result, experiment.parameters), encoding="utf-8")
    found = Search(result, {"search": str(search), "report": str(report)})
    write_json(search, found.to_dict())
    return found


def search_pipeline(
    pipeline: Pipeline,
    arguments: Mapping[str, Any],
    runs: Path,
    execution: Execution,
    progress: ProgressCallback = ignore_progress,
) -> Search:
    """Search for the parameters of a pipeline's model: read, prepare and split the data as a run does, then tune.

    Args:
        pipeline: The pipeline.
        arguments: Values of its parameters, as a run takes them.
        runs: Folder of all runs.
        execution: Who runs the trials.
        progress: Progress callback.

    Raises:
        UsageError: A parameter, the Experiment or the executor cannot be meant.
        DataError: The data cannot be read.
        ModelError: The objective has no value on these rows.
        TuningError: The search failed, or no trial succeeded.
    """
    values = check_arguments(pipeline.compiled, {**arguments, "registry": ""})
    experiment = read_any_experiment(str(values["experiment"]))
    searches = runs / SEARCHES
    _check_storage(execution)
    train, version = _read_training_rows(pipeline, values, progress)
    place = runs / SEARCHES / "rows" / f"{version.removeprefix('sha256:')[:16]}.parquet"
    given = _describe_trials(pipeline, experiment, values, str(_write_rows(train, place)))
    key = identify_search(experiment, given, version)
    secrets: Mapping[str, Any] = {}
    if execution.storage is not None:
        from mlflywheel import storage

        uri = f"{execution.storage.rstrip('/')}/{place.stem}"
        storage.upload_folder(_alone(place), uri, progress)
        given = given.model_copy(update={"data": f"{uri}/{place.name}"})
        secrets = describe_access(uri, execution.secret)
    confirmations = int(values["confirmations"])
    tuned = tune_model(
        experiment, execution.tuner(searches, key), given, train, secrets, progress, confirmations=confirmations
    )
    folder = _make_folder(searches, experiment, key)
    search, report = folder / "search.json", folder / "report.html"
    write_search(tuned, experiment, search, report)
    return Search(tuned.result, {"search": str(search), "report": str(report)}, tuned)


def check_file(source: Path, execution: Execution | None) -> Experiment:
    """Read an Experiment; with an executor, also its limits.

    Raises:
        UsageError: It breaks a rule of Katib's, or the executor cannot run it.
    """
    experiment = read_any_experiment(source)
    if execution is not None:
        execution.tuner(Path(SEARCHES)).check(experiment)
    return experiment


def check_pipeline(pipeline: Pipeline, arguments: Mapping[str, Any], execution: Execution | None) -> Experiment:
    """Read a pipeline's Experiment, and its parameters as its model will.

    Raises:
        UsageError: It breaks a rule of Katib's, the executor cannot run it, or the model has no such parameter.
    """
    values = check_arguments(pipeline.compiled, {"data": "", **arguments})
    experiment = read_any_experiment(str(values["experiment"]))
    given = _describe_trials(pipeline, experiment, values, "rows.parquet")
    check_model_parameters(experiment, given)
    if execution is not None:
        execution.tuner(Path(SEARCHES)).check(bind(experiment, given))
    return experiment


def _describe_trials(pipeline: Pipeline, experiment: Experiment, values: Mapping[str, Any], data: str) -> TrialInput:
    start = load_model_class(pipeline.model).Params.parse(values["params"], "model parameters")
    return TrialInput.parse(
        {
            "data": data,
            "model": pipeline.model,
            "metrics": experiment.objective.metrics,
            "params": start.model_dump(mode="json", exclude_unset=True),
            "split_method": values["split_method"],
            "split_column": values["split_column"],
            "split_seed": values["split_seed"],
            "validation_fraction": values["validation_fraction"],
        },
        "tuning",
    )


def _read_training_rows(
    pipeline: Pipeline, values: Mapping[str, Any], progress: ProgressCallback
) -> tuple["pa.Table", str]:
    """Return the rows that a run would train on, and their version."""
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.data.splitting import split
    from mlflywheel.data.versions import version_table

    model = load_model_class(pipeline.model)
    raw = ingest(
        values["data"], model.columns, json.loads(values["columns"]), progress, other_columns=model.other_columns
    ).table
    table = model.prepare(raw, model.Config.parse(values["prepare"], "preparation settings"), progress)
    parts = split(
        table,
        values["split_method"],
        values["holdout_fraction"],
        values["split_seed"],
        values["split_column"] or None,
        table.column_names[0],
    )
    return parts.train, version_table(parts.train).hash


def _write_rows(table: "pa.Table", place: Path) -> Path:
    import pyarrow.parquet as pq

    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial, compression="zstd")
        partial.replace(place)
    except OSError as error:
        raise DataError(
            str(place), f"{error.strerror or error}", "a search keeps its rows there", "choose another with --runs"
        ) from None
    return place.absolute()


def _alone(place: Path) -> Path:
    """Return a folder that holds the file alone, under a second name."""
    folder = place.with_suffix("")
    folder.mkdir(exist_ok=True)
    copy = folder / place.name
    if not copy.exists():
        copy.hardlink_to(place)
    return folder


def _make_folder(searches: Path, experiment: Experiment, key: str) -> Path:
    folder = searches / name_search_folder(experiment, key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def _check_storage(execution: Execution) -> None:
    if execution.executor != "katib":
        _refuse_storage(execution)
    elif execution.storage is None or "://" not in execution.storage:
        raise UsageError(
            f"--storage {execution.storage or ''}".rstrip(),
            "no object store",
            "trial pods read the training rows from one",
            "give a folder of it, such as --storage s3://BUCKET/tuning",
        )


def _refuse_storage(execution: Execution) -> None:
    for option, value in (("--storage", execution.storage), ("--secret", execution.secret)):
        if value:
            raise UsageError(
                option,
                "given where nothing is uploaded",
                "it is for a pipeline that Katib searches for",
                "leave it out",
            )
