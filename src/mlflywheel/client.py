"""The same calls as the command line, for notebooks and scripts: `from mlflywheel import Client`."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflywheel.cluster.connection import open_registry
from mlflywheel.errors import (
    DataError,
    MissingExtraError,
    MlflywheelError,
    RegistryError,
    UsageError,
    error_from_dict,
)
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline, find_pipeline
from mlflywheel.registry import ModelRegistry, ModelVersion, RegisteredModel, State, parse_reference
from mlflywheel.registry.records import TRANSITIONS
from mlflywheel.reproducibility import declare_hash
from mlflywheel.runs.folder import DEFAULT_RUNS, new_run_id
from mlflywheel.runs.runner import EventCallback, read_name, read_parameters, run_pipeline
from mlflywheel.runs.search import (
    Execution,
    Search,
    check_file,
    check_pipeline,
    read_any_experiment,
    search_file,
    search_pipeline,
)
from mlflywheel.runs.server import LocalServer, ServeOptions, ignore_event

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflywheel.cluster.kubeflow_pipelines import KubeflowPipelines
    from mlflywheel.cluster.pipeline_runs import SubmittedRun
    from mlflywheel.cluster.pipelines_access import Access
    from mlflywheel.cluster.pipelines_records import RunSettings, Schedule, Timing, Upload
    from mlflywheel.cluster.rollouts import ServiceRollout
    from mlflywheel.decisions.canary.policy import Policy
    from mlflywheel.models.contract import Model
    from mlflywheel.rollouts.interfaces import Candidate
    from mlflywheel.rollouts.rehearsal import Rehearsal
    from mlflywheel.runs.rebuild import Rebuild
    from mlflywheel.runs.submission import Submission
    from mlflywheel.tuning.experiment import Experiment

DEFAULT_EXECUTION = Execution()
DEFAULT_SERVING = ServeOptions()


def ignore_line(line: str) -> None:
    """Do nothing: for callers that want no warnings."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        summary: What `summary.json` holds.
    """

    summary: dict[str, Any]

    @property
    def status(self) -> str:
        """`succeeded`, `gate_refused` or `failed`."""
        return str(self.summary["status"])

    @property
    def metrics(self) -> dict[str, float]:
        """The overall measurements."""
        return dict(self.summary["metrics"])

    @property
    def report(self) -> Path:
        """The page."""
        return Path(self.summary["artifacts"]["report"])

    @property
    def error(self) -> MlflywheelError | None:
        """What ended the run, None if nothing did."""
        return None if self.summary["error"] is None else error_from_dict(self.summary["error"])

    @property
    def model(self) -> str | None:
        """NAME@VERSION of the registered model, None if none was."""
        found = self.summary["model"]
        return None if found is None else f"{found['name']}@{found['version']}"

    def scores(self) -> "pa.Table":
        """Read the batch scores.

        Raises:
            DataError: The run did not get that far.
        """
        import pyarrow.parquet as pq

        path = self.summary["artifacts"].get("scores")
        if path is None:
            raise DataError(f"run {self.summary['run_id']}", "no scores", f"the run {self.status}", "read its error")
        return pq.read_table(path)

    def raise_for_status(self) -> "Run":
        """Raise the error that ended the run, if one did; return the run otherwise."""
        if self.error is not None:
            raise self.error
        return self

    def __repr__(self) -> str:
        """Name the run in one line; the summary has hundreds."""
        return (
            f"<Run {self.summary['pipeline']} {self.summary['run_id']}: {self.status} {self.model or ''}".rstrip() + ">"
        )

    def _repr_html_(self) -> str:
        """Show status, metrics and the way to the report in a notebook."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in sorted(self.metrics.items())
        )
        problem = f"<p>{escape(str(self.error))}</p>" if self.error else ""
        head = escape(f"{self.summary['pipeline']} {self.summary['run_id']}: {self.status} {self.model or ''}")
        return f"<b>{head}</b>{problem}<table>{rows}</table><p>{escape(str(self.report))}</p>"


class Client:
    """Runs pipelines and looks at what they made.

    Args:
        runs: The folder of all runs.
        registry: Path of an embedded registry or URL of a Kubeflow Model Registry; the variable `MLFLYWHEEL_REGISTRY`
            when absent, and without that `registry.sqlite` in the folder of runs.

    >>> [pipeline.name for pipeline in Client().pipelines()]
    ['ad-campaigns', 'vehicle-prices', 'credit-decisions']
    """

    def __init__(self, runs: str | Path = DEFAULT_RUNS, registry: str | Path | None = None) -> None:
        self.runs = Path(runs)
        self._address = registry or os.environ.get("MLFLYWHEEL_REGISTRY") or self.runs / "registry.sqlite"

    @property
    def registry(self) -> ModelRegistry:
        """The registry; nothing is opened before it is asked something."""
        return open_registry(self._address)

    def pipelines(self) -> Sequence[Pipeline]:
        """Return the pipelines that ship with the library."""
        return PIPELINES

    def run(
        self,
        pipeline: str | Path,
        data: str | Path | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        prepare: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_event: EventCallback = lambda event: None,
        on_output: Any = None,
    ) -> Run:
        """Run a pipeline's compiled YAML on this machine.

        Args:
            pipeline: The name of one of `pipelines()`, or the path of any compiled YAML.
            data: Path or URI of the table. A named pipeline without data runs on its sample.
            columns: Our column names to the table's.
            prepare: The model's preparation settings.
            params: The model's parameters.
            arguments: Any other pipeline parameters by name.
            on_event: Called with every event.
            on_output: Called with every line that kfp prints.

        Returns:
            The run, failed or not; `raise_for_status` raises what ended it.

        Raises:
            UsageError: The request cannot be meant.
        """
        values = dict(arguments or {})
        found, compiled = _find_compiled(pipeline)
        name = read_name(compiled) if found is None else found.name
        if found is not None and data is None and "data" not in values:
            data = self.sample_once(found.name)
        # Compiled defaults are those of a cluster.
        declared = read_parameters(compiled)
        if "registry" in declared:
            values.setdefault("registry", self._registry_argument())
        if "tune_executor" in declared:
            values.setdefault("tune_executor", "local")
        if data is not None:
            values["data"] = _absolute(data)
        for key, value in (("columns", columns), ("prepare", prepare), ("params", params)):
            if value:
                values[key] = json.dumps(value, sort_keys=True)
        if found is not None:
            _check_settings(found, values)
            if str(values.get("tune", "")).lower() == "true":
                check_pipeline(found, values, Execution(str(values["tune_executor"])))
        return Run(run_pipeline(name, compiled, values, self.runs, on_event, on_output))

    def upload(
        self,
        pipeline: str | Path,
        *,
        image: str | None = None,
        version: str | None = None,
        accept_losses: bool = False,
        server: "Access | str | None" = None,
        told: Callable[[str], None] = ignore_line,
    ) -> "Upload":
        """Store a compiled pipeline on a Kubeflow Pipelines server; the same content twice is one version.

        Args:
            pipeline: The name of one of `pipelines()`, or the path of any compiled YAML.
            image: What its steps shall run in, `REPOSITORY@sha256:...`; the images that it names if left out.
            version: Name of the version; from the content's hash if left out.
            accept_losses: Whether to go on although the server does not understand all of it.
            server: Where the server is, or its URL; found as `mlflywheel submit` does if left out.
            told: Called with warnings, and with a line when a call has to wait.

        Raises:
            UsageError: Not a compiled pipeline, an image that is not one, or the server would lose something.
            RunError: The server refused, or cannot be reached.
        """
        from mlflywheel.runs.submission import prepare_yaml

        _, compiled = _find_compiled(pipeline)
        text = prepare_yaml(compiled, image, told)
        with _open_pipelines(server, told) as pipelines:
            return pipelines.upload(text, str(compiled), version, accept_losses)

    def submit(
        self,
        pipeline: str | Path,
        data: str | None = None,
        *,
        settings: "RunSettings | None" = None,
        wait: bool = False,
        timeout_seconds: float | None = None,
        on_event: EventCallback = lambda event: None,
        image: str | None = None,
        version: str | None = None,
        accept_losses: bool = False,
        server: "Access | str | None" = None,
        told: Callable[[str], None] = ignore_line,
        **values: Any,
    ) -> "SubmittedRun":
        """Upload a pipeline to a Kubeflow Pipelines server, and start one run of it.

        Args:
            pipeline: The name of one of `pipelines()`, or the path of any compiled YAML.
            data: URI of the table, which the pods of the cluster can read.
            settings: Experiment, service account, folder of the artifacts and name of the run.
            wait: Whether to watch the run until it ends.
            timeout_seconds: How long to watch; for ever if None.
            on_event: Called when a step starts and ends.
            image: As for `upload`.
            version: As for `upload`.
            accept_losses: As for `upload`.
            server: As for `upload`.
            told: As for `upload`.
            values: `columns`, `prepare`, `params` and `arguments`, as `run` takes them.

        Returns:
            The run, as it began or, with `wait`, as it ended; `raise_for_status` raises what ended it.

        Raises:
            UsageError: The request cannot be meant; nothing was sent.
            RunError: The server refused, or cannot be reached.
        """
        from mlflywheel.cluster.pipelines_records import RunSettings

        submission = self._prepare(pipeline, data, values, image, told)
        with _open_pipelines(server, told) as pipelines:
            uploaded = pipelines.upload(submission.text_yaml, submission.where, version, accept_losses)
            run = pipelines.start(uploaded, submission.arguments, settings or RunSettings())
            on_event({"event": "submitted", "run": run, "upload": uploaded})
            return pipelines.follow(run.run_id, on_event, timeout_seconds) if wait else run

    def schedule(
        self,
        pipeline: str | Path,
        timing: "Timing",
        data: str | None = None,
        *,
        settings: "RunSettings | None" = None,
        image: str | None = None,
        version: str | None = None,
        accept_losses: bool = False,
        server: "Access | str | None" = None,
        told: Callable[[str], None] = ignore_line,
        **values: Any,
    ) -> "Schedule":
        """Upload a pipeline, and let runs of it start by themselves; one schedule of a name is kept or replaced.

        Args:
            pipeline: As for `submit`.
            timing: When.
            data: As for `submit`.
            settings: As for `submit`; a run's name is not used.
            image: As for `upload`.
            version: As for `upload`.
            accept_losses: As for `upload`.
            server: As for `upload`.
            told: As for `upload`.
            values: As for `submit`.

        Raises:
            UsageError: The request cannot be meant, or another program made a schedule of that name.
            RunError: The server refused, or cannot be reached.
        """
        from mlflywheel.cluster.pipelines_records import RunSettings

        submission = self._prepare(pipeline, data, values, image, told, is_scheduled=True)
        with _open_pipelines(server, told) as pipelines:
            uploaded = pipelines.upload(submission.text_yaml, submission.where, version, accept_losses)
            return pipelines.schedule(uploaded, submission.arguments, settings or RunSettings(), timing)

    def schedules(self, *, server: "Access | str | None" = None) -> "list[Schedule]":
        """Return the schedules on a Kubeflow Pipelines server."""
        with _open_pipelines(server, ignore_line) as pipelines:
            return pipelines.schedules()

    def delete_schedule(self, name: str, *, server: "Access | str | None" = None) -> "list[Schedule]":
        """Delete the schedules of a name; the runs that they started stay.

        Raises:
            RunError: There is none of that name.
        """
        with _open_pipelines(server, ignore_line) as pipelines:
            return pipelines.delete_schedule(name)

    def follow(
        self,
        run_id: str,
        *,
        timeout_seconds: float | None = None,
        on_event: EventCallback = lambda event: None,
        server: "Access | str | None" = None,
        told: Callable[[str], None] = ignore_line,
    ) -> "SubmittedRun":
        """Watch a run on a Kubeflow Pipelines server until it ends.

        Args:
            run_id: Its number, as `submit` returns it.
            timeout_seconds: How long to watch; for ever if None, and 0 looks once.
            on_event: Called when a step starts and ends.
            server: As for `upload`.
            told: As for `upload`.

        Raises:
            RunError: There is no such run, or the time is over; the run goes on then.
        """
        with _open_pipelines(server, told) as pipelines:
            return pipelines.follow(run_id, on_event, timeout_seconds)

    def _prepare(
        self,
        pipeline: str | Path,
        data: str | None,
        values: Mapping[str, Any],
        image: str | None,
        told: Callable[[str], None],
        is_scheduled: bool = False,
    ) -> "Submission":
        """Check a submission as `run` checks its request, without sending anything."""
        from mlflywheel.runs.submission import prepare_submission

        unknown = set(values) - {"columns", "prepare", "params", "arguments"}
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        given = dict(values.get("arguments") or {})
        for key in ("columns", "prepare", "params"):
            if values.get(key):
                given[key] = json.dumps(values[key], sort_keys=True)
        if data is not None:
            given["data"] = str(data)
        found, compiled = _find_compiled(pipeline)
        if found is not None:
            _check_settings(found, given)
            if str(given.get("tune", "")).lower() == "true":
                check_pipeline(found, given, Execution(str(given.get("tune_executor", "katib"))))
        return prepare_submission(compiled, given, image, told, is_scheduled=is_scheduled)

    def tune(
        self,
        target: str | Path,
        data: str | Path | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        prepare: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        execution: Execution = DEFAULT_EXECUTION,
        progress: ProgressCallback = ignore_progress,
    ) -> Search:
        """Search for parameters with a Katib Experiment; a search that was stopped is taken up where it stands.

        Args:
            target: A pipeline's name, whose model is tuned on `data`; or the path of an Experiment, which runs as it
                stands.
            data: Path or URI of the pipeline's table; a sample, made once, when absent.
            columns: Our column names to the table's.
            prepare: Preparation settings.
            params: Model parameters that the search begins from.
            arguments: Any other parameter of the pipeline by name, `experiment` among them.
            execution: Who runs the trials, and how.
            progress: Called with the phases `baseline` and `trials`.

        Returns:
            Every trial, and for a pipeline what they mean for the model.

        Raises:
            UsageError: The request, the Experiment or a parameter cannot be meant.
            TuningError: The search failed, or no trial succeeded.
        """
        pipeline, values = self._read_target(target, columns, prepare, params, arguments, data)
        if pipeline is None:
            return search_file(Path(target), self.runs, execution, progress)
        values.setdefault("data", _absolute(self.sample_once(pipeline.name)))
        return search_pipeline(pipeline, values, self.runs, execution, progress)

    def check_experiment(
        self, target: str | Path, execution: Execution | None = None, arguments: Mapping[str, Any] | None = None
    ) -> "Experiment":
        """Read an Experiment by Katib's rules, without running anything.

        Args:
            target: A pipeline's name, or the path of an Experiment.
            execution: With it, also what this executor cannot do.
            arguments: Parameters of the pipeline, `experiment` among them.

        Raises:
            UsageError: It would be refused; the message names the field.
        """
        pipeline, values = self._read_target(target, None, None, None, arguments, None)
        if pipeline is None:
            return check_file(Path(target), execution)
        return check_pipeline(pipeline, values, execution)

    @staticmethod
    def _read_target(
        target: str | Path,
        columns: Mapping[str, str] | None,
        prepare: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        arguments: Mapping[str, Any] | None,
        data: str | Path | None,
    ) -> tuple[Pipeline | None, dict[str, Any]]:
        """Return the pipeline that is meant, None for a file, and the values of its parameters."""
        values = dict(arguments or {})
        if data is not None:
            values["data"] = _absolute(data)
        for key, value in (("columns", columns), ("prepare", prepare), ("params", params)):
            if value:
                values[key] = json.dumps(value, sort_keys=True)
        if Path(target).suffix not in (".yaml", ".yml", ".json"):
            pipeline = find_pipeline(str(target))
            _check_settings(pipeline, values)
            return pipeline, values
        if values:
            raise UsageError(
                str(target),
                f"{', '.join(sorted(values))} given with an experiment file",
                "a file runs as it stands",
                "name a pipeline in its place, and the file with --experiment",
            )
        return None, values

    def _registry_argument(self) -> str:
        """Return the registry's address for another process, which may have another working folder."""
        text = str(self._address)
        return text if "://" in text else str(Path(text).resolve())

    def sample_once(self, pipeline: str) -> Path:
        """Write a pipeline's sample beside the runs, unless it is there."""
        path = self.runs / "samples" / f"{pipeline}.csv.gz"
        return path if path.exists() else self.sample(pipeline, path)

    def sample(self, pipeline: str, path: str | Path, size: int | None = None, **options: Any) -> Path:
        """Write a seeded sample of a pipeline's data.

        Args:
            pipeline: Its name.
            path: Target: .csv, .csv.gz or .parquet.
            size: How many of the pipeline's `entities` (campaigns, listings); its own `sample_size` if left out.
            **options: Of the sample's `write_sample`, such as `seed`.
        """
        found = find_pipeline(pipeline)
        module = import_module(f"mlflywheel.samples.{found.sample}")
        target = Path(path)
        options = {found.entities: found.sample_size if size is None else size, **options}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return Path(module.write_sample(target, **options))
        except OSError as error:
            raise DataError(
                str(target),
                f"{error.strerror or error}",
                "a file that can be written is needed",
                "choose another --output",
            ) from None

    def score(
        self,
        model: str | Path,
        data: str | Path,
        *,
        output: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        prepare: Mapping[str, Any] | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> "pa.Table":
        """Score a table with a registered model or a model folder.

        Args:
            model: NAME, NAME@VERSION, or a folder.
            data: Path or URI of the table.
            output: Where to write the scores as Parquet; nowhere if absent.
            columns: Our column names to the table's.
            prepare: Preparation settings on top of those that the registered model was trained with.
            progress: Progress callback.

        Returns:
            One row an entity.
        """
        from mlflywheel.data.ingestion import ingest
        from mlflywheel.scoring import score, write_scores

        with self._load(str(model), progress) as (loaded, reference, trained_with):
            settings = type(loaded).Config.parse({**trained_with, **(prepare or {})}, "preparation settings")
            ingested = ingest(
                _absolute(data),
                type(loaded).columns,
                dict(columns or {}),
                progress,
                other_columns=type(loaded).other_columns,
            )
            scores = score(loaded, type(loaded).prepare(ingested.table, settings, progress), reference, progress)
        if output is not None:
            try:
                write_scores(scores, Path(output))
            except OSError as error:
                raise DataError(
                    str(output),
                    f"{error.strerror or error}",
                    "a file that can be written is needed",
                    "choose another --output",
                ) from None
        return scores

    @contextmanager
    def serve(
        self,
        model: str | Path,
        options: ServeOptions = DEFAULT_SERVING,
        on_event: EventCallback = ignore_event,
    ) -> Iterator[LocalServer]:
        """Serve a registered model or a model folder on this machine while the block runs.

        Args:
            model: NAME, NAME@VERSION, or a folder.
            options: Ports, workers and device.
            on_event: Called with every log line of the server, from another thread.

        Yields:
            The server, ready; its `url` is where it answers.

        Raises:
            MlflywheelError: The model cannot be found or served.
        """
        with self._locate(str(model), ignore_progress) as (folder, reference, _):
            name, _, version = reference.rpartition("@")
            if not name:
                # A folder's name need not be one that can stand in a URL.
                name, version = "model", reference.removeprefix("sha256:")[:12]
            with LocalServer(folder, name, version, options, on_event) as server:
                yield server

    def load_model(self, model: str | Path) -> "Model":
        """Load a model by NAME, NAME@VERSION or folder, its checksums verified."""
        with self._load(str(model), ignore_progress) as (loaded, _, _):
            return loaded

    @contextmanager
    def _load(self, model: str, progress: ProgressCallback) -> Iterator[tuple["Model", str, dict[str, Any]]]:
        """Yield the model, how to name it beside scores, and the settings that its data was prepared with."""
        from mlflywheel.models.contract import load_model

        with self._locate(model, progress) as (folder, reference, trained_with):
            yield load_model(folder), reference, trained_with

    @contextmanager
    def _locate(self, model: str, progress: ProgressCallback) -> Iterator[tuple[Path, str, dict[str, Any]]]:
        """Yield a folder of this machine with the model, its name, and the settings that its data was prepared with."""
        from mlflywheel import storage
        from mlflywheel.models.contract import verify_model_folder
        from mlflywheel.registry import to_readable_uri

        if Path(model).is_dir():
            yield Path(model), str(verify_model_folder(Path(model))["hash"]), {}
            return
        version = self.model(model)
        trained_with = json.loads(version.lineage.get("prepare") or "{}")
        address = to_readable_uri(version.uri, version.endpoint, version.secret)
        local = storage.local_path(address)
        with tempfile.TemporaryDirectory() as scratch:
            folder = local if local is not None else Path(scratch) / "model"
            if local is None:
                storage.download_folder(address, folder, progress)
            found = str(verify_model_folder(folder)["hash"])
            if version.hash and found != version.hash:
                raise DataError(
                    str(folder),
                    f"model hash {found}",
                    f"{version.reference} is registered with {version.hash}",
                    "restore the files of that version",
                )
            yield folder, version.reference, trained_with

    def models(self) -> list[tuple[RegisteredModel, list[ModelVersion]]]:
        """Return the registered models with their versions."""
        registry = self.registry
        return [(model, list(registry.list_versions(model.name))) for model in registry.list_models()]

    def model(self, reference: str) -> ModelVersion:
        """Return a version by NAME@VERSION, or the newest by NAME.

        Raises:
            RegistryError: There is no such version.
            UsageError: Not a reference.
        """
        name, version = parse_reference(reference)
        return self.registry.get(name, version)

    def approve(self, reference: str, reason: str, *, by: str | None = None) -> ModelVersion:
        """Approve a candidate: it may be rolled out from now on.

        Args:
            reference: `NAME@VERSION`; a name alone is refused, because the newest version may change meanwhile.
            reason: Why, in your words; it is needed.
            by: Who approves; this user and host if left out.

        Returns:
            The version; one that was approved already stays as it is.

        Raises:
            UsageError: No version, or no reason.
            RegistryError: There is no such version, or it is no candidate; the message lists the legal steps.
        """
        if not reason.strip():
            raise UsageError(
                "--reason", "nothing", "an approval needs a reason", 'add --reason "..." with what it rests on'
            )
        return self._decide(reference, State.CANDIDATE, State.APPROVED, reason, by)

    def withdraw(self, reference: str, reason: str = "", *, by: str | None = None) -> ModelVersion:
        """Take an approval back: the version is a candidate again, and may not be rolled out.

        Args:
            reference: `NAME@VERSION`.
            reason: Why.
            by: Who withdraws it; this user and host if left out.

        Raises:
            RegistryError: There is no such version, or it is not approved.
        """
        return self._decide(reference, State.APPROVED, State.CANDIDATE, reason, by)

    def archive(self, reference: str, reason: str = "", *, by: str | None = None) -> ModelVersion:
        """Put a version away: it may not be rolled out, and is no champion; its files stay.

        Args:
            reference: `NAME@VERSION`.
            reason: Why.
            by: Who archives it; this user and host if left out.

        Raises:
            RegistryError: There is no such version.
        """
        return self._decide(reference, None, State.ARCHIVED, reason, by)

    def restore(self, reference: str, reason: str = "", *, by: str | None = None) -> ModelVersion:
        """Take an archived version back as a candidate, to be approved again.

        Args:
            reference: `NAME@VERSION`.
            reason: Why.
            by: Who restores it; this user and host if left out.

        Raises:
            RegistryError: There is no such version, or it is not archived.
        """
        return self._decide(reference, State.ARCHIVED, State.CANDIDATE, reason, by)

    def _decide(self, reference: str, start: State | None, end: State, reason: str, by: str | None) -> ModelVersion:
        """Take a version from one state, or any if None, to another; one that is there already stays as it is."""
        from mlflywheel.registry.identity import name_this_user

        name, number = parse_reference(reference)
        if number is None:
            raise UsageError(
                f"model version {reference}", "no version", "a decision is about one version", f"write {name}@VERSION"
            )
        registry = self.registry
        version = registry.get(name, number)
        if version.state == end:
            return version
        if start is not None and version.state != start:
            legal = ", ".join(sorted(TRANSITIONS[version.state]))
            raise RegistryError(
                f"{registry.address}, {version.reference}",
                f"it is {version.state}",
                f"only what is {start} becomes {end} by this; from {version.state} there is {legal}",
                f"look at `mlflywheel models show {version.reference}` for who decided what",
            )
        return registry.set_state(name, number, end, by=by or name_this_user(), reason=reason.strip())

    def card(
        self,
        reference: str,
        output: str | Path | None = None,
        *,
        testscore: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a version's model card, and write it if asked.

        Args:
            reference: `NAME@VERSION`, or `NAME` for the newest.
            output: Where to write it: `.html` for a page, anything else Markdown.
            testscore: Its ML Test Score, as `mlflywheel testscore --json` prints it; without it the card says that it
                is missing.

        Returns:
            The card: a page if `output` ends in `.html`, else Markdown.

        Raises:
            RegistryError: There is no such version, or its dossier is not what was registered.
            DataError: The dossier is gone, or the card cannot be written.
        """
        from mlflywheel.registry.dossier import read_dossier
        from mlflywheel.reports.card import render_card, render_card_html

        version = self.model(reference)
        history = self.registry.history(version.name, version.version)
        is_page = output is not None and Path(output).suffix.lower() in (".html", ".htm")
        card = (render_card_html if is_page else render_card)(version, read_dossier(version), history, testscore)
        if output is not None:
            try:
                Path(output).write_text(card, encoding="utf-8")
            except OSError as error:
                raise DataError(
                    str(output),
                    f"{error.strerror or error}",
                    "a file that can be written is needed",
                    "choose another --output",
                ) from None
        return card

    def export(
        self,
        model: str | Path,
        repository: str | Path,
        *,
        name: str | None = None,
        version: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> Path:
        """Write a model's ONNX graph into a Triton model repository, with its `config.pbtxt`.

        Args:
            model: `NAME`, `NAME@VERSION` or a model folder.
            repository: The repository's folder; made if missing.
            name: The model's name there; the registered one if left out, which a folder has not.
            version: Its number there; the registered one if left out, 1 for a folder.
            device: Where Triton computes.

        Returns:
            The model's folder in the repository.

        Raises:
            UsageError: A folder without a name, or a version that is no number.
            ModelFilesError: The model has no ONNX graph.
        """
        from mlflywheel.serving.triton import write_repository

        with self._locate(str(model), ignore_progress) as (folder, reference, _):
            known, _, number = ("", "", "1") if Path(model).is_dir() else reference.rpartition("@")
            if not (name or known):
                raise UsageError("--name", "nothing", "a folder has no name of its own", "add --name NAME")
            if version is None and not number.isdecimal():
                raise UsageError("--version", f"registered as {number}", "Triton needs a number", "add --version 1")
            return write_repository(
                folder, Path(repository), name or known, version=version or int(number), device=device
            )

    def rollout(
        self,
        service: str,
        *,
        namespace: str | None = None,
        context: str | None = None,
        source: Mapping[str, Any] | None = None,
        who: str | None = None,
        told: Callable[[str], None] = lambda line: None,
    ) -> "ServiceRollout":
        """Open the canary rollout of an InferenceService, running or to be started.

        Args:
            service: Name of the InferenceService.
            namespace: Its namespace; the pod's or the kubeconfig's own if left out.
            context: Context of the kubeconfig.
            source: Where evidence comes from, such as `{"kind": "prometheus", "address": URL}`; what the rollout was
                started with if left out.
            who: For the history; this user and host if left out.
            told: Called with a line when the API server keeps a call waiting.

        Returns:
            The rollout: `start`, `step`, `watch`, `promote`, `roll_back`, `pause`, `resume` and `status`.

        Raises:
            MissingExtraError: kubernetes is not installed.
            RolloutError: There is no such service, or a permission is missing.
        """
        from mlflywheel.cluster.rollouts import open_rollout

        return open_rollout(service, namespace=namespace, context=context, source=source, who=who, told=told)

    def candidate(
        self,
        reference: str,
        *,
        name: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        service: "ServiceRollout | None" = None,
        policy: "Policy | None" = None,
    ) -> "Candidate":
        """Return a registered version as what a rollout takes.

        Args:
            reference: `NAME@VERSION`, or `NAME` for the newest.
            name: Short name in the service; `v` and the version's number if left out.
            overrides: Fields of the predictor to change with it.
            service: The rollout that it is for: arguments that name the version in use are changed with it.
            policy: The rollout's; without it, or by default, the version has to be approved.

        Raises:
            RegistryError: There is no such version.
            UsageError: It lies where a cluster cannot read it.
            GateRefusedError: It is archived, or not approved, and the policy asks for that.
        """
        from mlflywheel.cluster.deployment import check_approval, make_candidate
        from mlflywheel.decisions.canary.policy import Policy

        version = self.model(reference)
        made = make_candidate(version, name, overrides)
        check_approval(version, policy or Policy())
        return made if service is None else service.adapt(made)

    def rehearse(
        self,
        stable: str | Path,
        candidate: str | Path,
        requests: str | Path,
        *,
        policy: "Policy | None" = None,
        folder: Path | None = None,
        progress: ProgressCallback = ignore_progress,
        **options: Any,
    ) -> "Rehearsal":
        """Send recorded requests to two versions on this machine, and let the judge of rollouts compare them.

        Args:
            stable: The version in use: `NAME`, `NAME@VERSION` or a folder.
            candidate: The version to be judged, named alike.
            requests: Path or URI of the recorded requests, JSON lines.
            policy: What has to be shown; the default policy if left out.
            folder: Where the report goes; a new folder beside the runs if left out.
            progress: Called with the phase and how far it is.
            options: As `mlflywheel.runs.rehearsal.rehearse` takes them: `labels`, `undecided`, `in_process`, `seed`
                and `concurrency`.

        Raises:
            DataError: A file cannot be read, or has too few requests.
            ModelError: A version cannot be served.
        """
        from mlflywheel.decisions.canary.policy import Policy
        from mlflywheel.runs.rehearsal import rehearse

        with (
            self._locate(str(stable), progress) as (old, old_name, _),
            self._locate(str(candidate), progress) as (new, new_name, _),
        ):
            names = (
                str(stable) if Path(stable).is_dir() else old_name,
                str(candidate) if Path(candidate).is_dir() else new_name,
            )
            return rehearse(
                old,
                new,
                str(requests),
                policy or Policy(),
                references=names,
                folder=folder or self.runs / "rehearsals" / new_run_id(),
                progress=progress,
                **options,
            )

    def rebuild(
        self,
        reference: str,
        *,
        data: str | Path | None = None,
        compiled: str | Path | None = None,
        tolerance: float = 0.01,
        progress: ProgressCallback = ignore_progress,
        on_event: EventCallback = lambda event: None,
        on_output: Callable[[str], None] | None = None,
    ) -> "Rebuild":
        """Train a registered version again from its dossier, and compare hash and metrics.

        Args:
            reference: `NAME@VERSION`, or `NAME` for the newest.
            data: Another place of the same data; where it was if left out.
            compiled: Compiled YAML of a pipeline that is not one of `pipelines()`.
            tolerance: Share by which a metric may differ where the hash need not repeat.
            progress: Called while the data is looked at.
            on_event: Called with every event of the run, and with one `checked` before it, which holds `differences`.
            on_output: Called with every line that kfp prints.

        Returns:
            What came out: its `outcome` is `same`, `equivalent` or `different`; `raise_for_status` raises the last.

        Raises:
            RegistryError: There is no such version, or it has no dossier.
            DataError: The data is gone, or of another version.
            UsageError: The compiled pipeline is not known, or another one.
        """
        from mlflywheel.runs.rebuild import rebuild

        return rebuild(
            self.model(reference),
            self.runs,
            data=None if data is None else _absolute(data),
            compiled=None if compiled is None else Path(compiled),
            tolerance=tolerance,
            progress=progress,
            on_event=on_event,
            on_output=on_output,
        )

    def compile(self, pipeline: str | None = None, *, check: bool = False) -> list[Path]:
        """Compile pipelines into the YAML beside them, or only compare.

        Args:
            pipeline: A name; all pipelines when absent.
            check: Compare with the committed YAML and write nothing.

        Returns:
            The files that differed: written, or with `check` out of date.

        Raises:
            MissingExtraError: kfp is not installed.
        """
        chosen = PIPELINES if pipeline is None else (find_pipeline(pipeline),)
        return [found.compiled for found in chosen if _compile(found, check)]

    def describe(
        self, folder: str | Path, pipeline: str | None = None, *, namespace: str | None = None, image: str | None = None
    ) -> list[Path]:
        """Write compiled pipelines as objects of Kubernetes, for a Kubeflow that keeps its pipelines so.

        Args:
            folder: Where they go, one file a pipeline.
            pipeline: A name; all pipelines when absent.
            namespace: Written into the objects; left to who applies them when absent.
            image: Takes the place of the components' image, such as `registry.example/components@sha256:...`.

        Returns:
            The files.

        Raises:
            UsageError: There is no such pipeline, or the image cannot be put in.
        """
        from mlflywheel.pipelines.objects import write_objects
        from mlflywheel.reproducibility.pinning import read_reference

        chosen = PIPELINES if pipeline is None else (find_pipeline(pipeline),)
        return write_objects(Path(folder), chosen, namespace, None if image is None else read_reference(image))


def _find_compiled(pipeline: str | Path) -> tuple[Pipeline | None, Path]:
    """Return the pipeline that is meant, None for a file, and its compiled YAML."""
    if Path(pipeline).suffix in (".yaml", ".yml"):
        return None, Path(pipeline)
    found = find_pipeline(str(pipeline))
    return found, found.compiled


@contextmanager
def _open_pipelines(server: "Access | str | None", told: Callable[[str], None]) -> "Iterator[KubeflowPipelines]":
    """Open a Kubeflow Pipelines server, which is asked nothing yet."""
    from mlflywheel.cluster.kubeflow_pipelines import KubeflowPipelines
    from mlflywheel.cluster.pipelines_access import Access, open_api

    access = server if isinstance(server, Access) else Access(server)
    api = open_api(access, told)
    try:
        yield KubeflowPipelines(api)
    finally:
        api.close()


def _check_settings(pipeline: Pipeline, values: Mapping[str, Any]) -> None:
    """Read the settings as the steps will, so that a slip is told at once and not in the fifth step."""
    from mlflywheel.data.ingestion import check_mapping
    from mlflywheel.data.validation import read_suite
    from mlflywheel.decisions.gates import read_gates
    from mlflywheel.evaluation.plan import read_plan
    from mlflywheel.models.contract import load_model_class
    from mlflywheel.reproducibility import find_trigger

    model = load_model_class(pipeline.model)
    model.Params.parse(values.get("params"), "model parameters")
    model.Config.parse(values.get("prepare"), "preparation settings")
    check_mapping(json.loads(values.get("columns") or "{}"), model.columns)
    if "gates" in values:
        read_gates(values["gates"], "gates")
    if "plan" in values:
        read_plan(values["plan"], "plan")
    find_trigger(str(values.get("trigger") or ""))
    if "experiment" in values:
        read_any_experiment(values["experiment"])
    if "expectations" in values:
        read_suite(values["expectations"], "expectations")


def _compile(pipeline: Pipeline, check: bool) -> bool:
    """Compile one pipeline; return whether the committed YAML differed."""
    try:
        from kfp import compiler
    except ImportError:
        raise MissingExtraError.of("kfp", "pipelines", "compiling a pipeline") from None
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline.function(), str(fresh))
        text = declare_hash(fresh.read_text(encoding="utf-8"), str(pipeline.compiled)).encode()
    if pipeline.compiled.exists() and pipeline.compiled.read_bytes() == text:
        return False
    if not check:
        pipeline.compiled.write_bytes(text)
    return True


def _absolute(data: str | Path) -> str:
    """Make a local path absolute: steps may run in another folder."""
    text = str(data)
    if not text:
        raise UsageError("--data", "empty", "a path or URI is needed", "name a table")
    return text if "://" in text else str(Path(text).expanduser().absolute())
