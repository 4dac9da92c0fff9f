"""A search for a model's parameters around any tuner: what is bound, checked, compared and handed to training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from planted_campaigns import plant_campaigns

from mlflywheel import images
from mlflywheel.cluster.tuning import describe_access, make_tuner, tune
from mlflywheel.errors import ModelError, TuningError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.pipelines.catalog import PIPELINES, find_pipeline
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.model_search import bind, check_model_parameters, identify_search, tune_model
from mlflywheel.tuning.reader import read_experiment
from mlflywheel.tuning.search import SearchResult, Trial, Tuner
from mlflywheel.tuning.trial import INPUT_VARIABLE, TrialInput, run_trial

SMALL = {
    "num_topics": {"parameterType": "int", "feasibleSpace": {"min": "2", "max": "12"}},
    "text.bigrams": {"parameterType": "categorical", "feasibleSpace": {"list": ["true", "false"]}},
}


def write_experiment(parameters: Mapping[str, Any] = SMALL, **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "kubeflow.org/v1beta1",
            "kind": "Experiment",
            "metadata": {"name": "small"},
            "spec": {
                "objective": {"type": "maximize", "objectiveMetricName": "neighbour_purity_at_10"},
                "algorithm": {"algorithmName": "random", "algorithmSettings": [{"name": "random_state", "value": "1"}]},
                "parallelTrialCount": 2,
                "maxTrialCount": 4,
                "parameters": [{"name": name, **value} for name, value in parameters.items()],
                "trialTemplate": {
                    "primaryContainerName": "trial",
                    "trialParameters": [
                        {"name": f"p{number}", "reference": name} for number, name in enumerate(parameters)
                    ],
                    "trialSpec": {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "spec": {
                            "template": {
                                "spec": {
                                    "restartPolicy": "Never",
                                    "containers": [
                                        {
                                            "name": "trial",
                                            "image": images.COMPONENTS,
                                            "command": ["python", "-m", "mlflywheel.tuning.trial"],
                                            "args": [
                                                f"{name}=${{trialParameters.p{number}}}"
                                                for number, name in enumerate(parameters)
                                            ],
                                        }
                                    ],
                                }
                            }
                        },
                    },
                },
                **spec,
            },
        }
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.parquet"
    pq.write_table(plant_campaigns(120), path)
    return path


def describe(rows: Path, **changes: Any) -> TrialInput:
    values = {"data": str(rows), "model": "topic-fingerprints", "metrics": ["neighbour_purity_at_10"], **changes}
    return TrialInput.parse(values, "test")


class FixedTuner(Tuner):
    """Runs each given assignment in this process, without a search."""

    name = "fixed"

    def __init__(self, *assignments: Mapping[str, str], worth: float | None = None) -> None:
        self.assignments, self.worth = assignments, worth
        self.given: Experiment | None = None

    def check(self, experiment: Experiment) -> None:
        pass

    def search(self, experiment: Experiment, progress: ProgressCallback = ignore_progress) -> SearchResult:
        self.given = experiment
        trials = tuple(
            Trial(f"t{number}", number, assignment, "succeeded", objective=self.worth)
            for number, assignment in enumerate(self.assignments)
        )
        return SearchResult(experiment.name, self.name, experiment.objective, trials, "ExperimentMaxTrialsReached")


def test_the_best_trials_parameters_are_laid_over_the_given_ones(rows: Path) -> None:
    given = describe(rows, params={"num_topics": 2, "text": {"minimum_campaigns": 1}})
    tuner = FixedTuner({"num_topics": "7", "text.bigrams": "false"}, worth=1.1)
    tuned = tune_model(read_experiment(write_experiment()), tuner, given, plant_campaigns(120))
    assert tuned.improved
    assert tuned.params == {"num_topics": 7, "text": {"minimum_campaigns": 1, "bigrams": False}}
    assert tuned.baseline == run_trial(given, {})["neighbour_purity_at_10"]
    json.dumps(tuned.facts(), allow_nan=False)


@pytest.mark.parametrize("worth", [None, 0.0])
def test_parameters_that_are_not_better_are_not_used(rows: Path, worth: float | None) -> None:
    given = describe(rows, params={"num_topics": 6})
    tuner = FixedTuner({"num_topics": "7", "text.bigrams": "false"}, worth=worth)
    tuned = tune_model(read_experiment(write_experiment()), tuner, given, plant_campaigns(120))
    assert not tuned.improved
    assert tuned.params == {"num_topics": 6}


def test_trials_get_their_input_by_one_variable_and_secrets_by_reference(rows: Path) -> None:
    tuner = FixedTuner({"num_topics": "7", "text.bigrams": "false"}, worth=1.0)
    secret = {"AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "keys", "key": "accesskey"}}}
    tune_model(read_experiment(write_experiment()), tuner, describe(rows), plant_campaigns(120), secret)
    assert tuner.given is not None
    container = tuner.given.template.container(tuner.given.document["spec"]["trialTemplate"]["trialSpec"])
    assert container is not None
    variables = {entry["name"]: entry for entry in container["env"]}
    assert TrialInput.parse(variables[INPUT_VARIABLE]["value"], "test") == describe(rows)
    assert variables["AWS_ACCESS_KEY_ID"]["valueFrom"] == secret["AWS_ACCESS_KEY_ID"]
    assert read_experiment(json.dumps(tuner.given.document)).spec_hash == tuner.given.spec_hash


def test_binding_leaves_the_experiment_as_it_was(rows: Path) -> None:
    experiment = read_experiment(write_experiment())
    before = json.dumps(experiment.document)
    bound = bind(experiment, describe(rows))
    assert json.dumps(experiment.document) == before
    assert bound.spec_hash != experiment.spec_hash
    assert bind(bound, describe(rows)).spec_hash == bound.spec_hash


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"num_topic": SMALL["num_topics"]}, "trial parameters, num_topic"),
        ({"num_topics": {"parameterType": "int", "feasibleSpace": {"min": "2", "max": "200"}}}, "num_topics: 200"),
        ({"num_topics": {"parameterType": "int", "feasibleSpace": {"min": "1", "max": "20"}}}, "num_topics: 1"),
        ({"algorithm": {"parameterType": "categorical", "feasibleSpace": {"list": ["lda", "nmf"]}}}, "'nmf'"),
    ],
)
def test_a_search_space_that_the_model_refuses_is_told_before_any_trial(
    rows: Path, parameters: Mapping[str, Any], told: str
) -> None:
    tuner = FixedTuner()
    with pytest.raises(UsageError, match=r"trial parameters") as raised:
        tune_model(read_experiment(write_experiment(parameters)), tuner, describe(rows), plant_campaigns(120))
    assert told in str(raised.value)
    assert tuner.given is None


def test_a_template_that_trains_something_else_is_refused(rows: Path) -> None:
    text = write_experiment().replace('"-m", "mlflywheel.tuning.trial"', '"train.py"')
    with pytest.raises(UsageError, match="does not run a trial of a model"):
        check_model_parameters(read_experiment(text), describe(rows))


def test_a_search_is_the_same_wherever_its_rows_lie(rows: Path) -> None:
    experiment = read_experiment(write_experiment())
    here = identify_search(experiment, describe(rows), "sha256:1")
    assert here == identify_search(experiment, describe(Path("elsewhere.parquet")), "sha256:1")
    assert here != identify_search(experiment, describe(rows), "sha256:2")
    assert here != identify_search(experiment, describe(rows, params={"seed": 1}), "sha256:1")
    assert here != identify_search(read_experiment(write_experiment(maxTrialCount=5)), describe(rows), "sha256:1")


def test_an_objective_without_a_value_ends_before_the_search(rows: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "rows.parquet"
    pq.write_table(plant_campaigns(80).drop_columns(["vertical"]), unlabelled)
    with pytest.raises(ModelError, match="no vertical to compare with"):
        tune(write_experiment(), "local", unlabelled, "unused", model="topic-fingerprints")


@pytest.mark.long
def test_a_local_search_finds_the_planted_number_of_topics(
    rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six verticals: with two topics neighbours are mixed, and any trial with more is better."""
    monkeypatch.setenv("MLFLYWHEEL_SEARCHES", str(tmp_path))
    phases = []
    start = json.dumps({"num_topics": 2, "rotated_lsa": {"smoothing": 0.5}})
    _, tuned = tune(
        write_experiment(),
        "local",
        rows,
        "unused",
        model="topic-fingerprints",
        params=start,
        progress=lambda phase, done, total: phases.append((phase, done, total)),
    )
    assert tuned.improved
    assert tuned.best > tuned.baseline
    assert tuned.params["num_topics"] > 2
    assert tuned.params["rotated_lsa"] == {"smoothing": 0.5}
    assert tuned.result.count("succeeded") == 4
    assert ("trials", 4, 4) in phases
    best = tuned.result.best
    assert best is not None
    assert tuned.best == run_trial(describe(rows), tuned.params)["neighbour_purity_at_10"]
    _, again = tune(write_experiment(), "local", rows, "unused", model="topic-fingerprints", params=start)
    assert again.result.resumed == 4
    assert again.params == tuned.params


def test_every_trial_failing_ends_with_the_first_reason(
    rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLYWHEEL_SEARCHES", str(tmp_path))
    # No word is used by more campaigns than there are.
    impossible = {"text.minimum_campaigns": {"parameterType": "int", "feasibleSpace": {"min": "1000", "max": "2000"}}}
    with pytest.raises(TuningError, match="minimum_campaigns"):
        tune(write_experiment(impossible), "local", rows, "unused", model="topic-fingerprints")


@pytest.mark.parametrize(
    ("uri", "secret", "variables"),
    [
        ("/data/train.parquet", "", {}),
        ("s3://bucket/train", "", {}),
        (
            "s3://bucket/train",
            "keys",
            {
                "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "keys", "key": "AWS_ACCESS_KEY_ID"}},
                "AWS_SECRET_ACCESS_KEY": {"secretKeyRef": {"name": "keys", "key": "AWS_SECRET_ACCESS_KEY"}},
            },
        ),
        (
            "minio://mlpipeline/train",
            "",
            {
                "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "mlpipeline-minio-artifact", "key": "accesskey"}},
                "AWS_SECRET_ACCESS_KEY": {"secretKeyRef": {"name": "mlpipeline-minio-artifact", "key": "secretkey"}},
                "MINIO_ENDPOINT": "http://seaweedfs.kubeflow:9000",
            },
        ),
        (
            "minio://mlpipeline/train",
            "own:id:key",
            {
                "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "own", "key": "id"}},
                "AWS_SECRET_ACCESS_KEY": {"secretKeyRef": {"name": "own", "key": "key"}},
                "MINIO_ENDPOINT": "http://seaweedfs.kubeflow:9000",
            },
        ),
    ],
)
def test_trial_pods_get_keys_by_reference(
    uri: str, secret: str, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "MINIO_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "MLFLYWHEEL_S3_ENDPOINT",
        "MLFLYWHEEL_S3_SECRET",
    ):
        monkeypatch.delenv(name, raising=False)
    assert describe_access(uri, secret) == variables


def test_half_a_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="write NAME:ACCESS_KEY:SECRET_KEY"):
        describe_access("s3://bucket/train", "name:only")


def test_katib_cannot_read_rows_of_this_machine(rows: Path) -> None:
    with pytest.raises(UsageError, match="object store"):
        tune(write_experiment(), "katib", rows, str(rows), model="topic-fingerprints")


@pytest.mark.parametrize(
    ("executor", "options", "told"),
    [
        ("ray", {}, "executor ray: not known"),
        ("local", {"namespace": "team"}, "--namespace: given with --executor local"),
        ("local", {"timeout_seconds": 3.0}, "--timeout"),
        ("local", {"cleanup": "always"}, "--cleanup"),
        ("katib", {"any_command": True}, "--any-command"),
        ("katib", {"restart": True}, "--restart"),
        ("katib", {"cleanup": "sometimes"}, "--cleanup sometimes: not known"),
    ],
)
def test_options_that_an_executor_would_ignore_are_refused(
    tmp_path: Path, executor: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as raised:
        make_tuner(executor, tmp_path, **options)
    assert told in str(raised.value)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_a_pipelines_experiment_names_our_image_and_fits_its_model(pipeline: Any) -> None:
    text = (pipeline.folder / "experiment.yaml").read_text(encoding="utf-8")
    experiment = read_experiment(text)
    assert experiment.name == pipeline.name
    container = experiment.template.container(dict(experiment.template.spec or {}))
    assert container is not None
    assert container["image"] == images.COMPONENTS
    given = TrialInput(data="unused", model=pipeline.model, metrics=experiment.objective.metrics)
    check_model_parameters(experiment, given)
    for executor in ("local", "katib"):
        make_tuner(executor, Path("unused")).check(bind(experiment, given))


def test_the_compiled_pipeline_holds_the_experiment() -> None:
    pipeline = find_pipeline("ad-campaigns")
    compiled = next(iter(yaml.safe_load_all(pipeline.compiled.read_text(encoding="utf-8"))))
    default = compiled["root"]["inputDefinitions"]["parameters"]["experiment"]["defaultValue"]
    assert (
        read_experiment(default).spec_hash
        == read_experiment((pipeline.folder / "experiment.yaml").read_text()).spec_hash
    )
