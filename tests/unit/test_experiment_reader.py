"""The strict reader of a Katib Experiment."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Parameter
from mlflywheel.tuning.reader import read_experiment, read_experiment_file
from mlflywheel.tuning.rules import count_grid_points

FOLDER = Path(__file__).parent / "experiments"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
REMOVED = object()

TEMPLATE = "spec.trialTemplate"
TRIAL = f"{TEMPLATE}.trialSpec"
POD = f"{TRIAL}.spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
RATE, DEPTH, LOSS = (f"spec.parameters[{index}]" for index in range(3))
COLLECTOR = "spec.metricsCollectorSpec"


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return document


def steps(path: str) -> list[str | int]:
    """Split `a.b[2]['c.d']` into its names and positions."""
    return [
        int(position) if position else quoted or name
        for position, quoted, name in re.findall(r"\[(\d+)\]|\['([^']*)'\]|([^.\[\]]+)", path)
    ]


def change(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return a document with one value set, appended or removed."""
    changed: Any = copy.deepcopy(document)
    *parents, last = steps(path)
    holder = changed
    for step in parents:
        holder = holder[step]
    if value is REMOVED:
        del holder[last]
    elif isinstance(holder, list) and last == len(holder):
        holder.append(value)
    else:
        holder[last] = value
    return dict(changed)


def refuse(document: object, where: str, seen: str, fix: str) -> UsageError:
    """Assert that a document is refused at a field, for what was seen, with a fix."""
    with pytest.raises(UsageError) as caught:
        read_experiment(json.dumps(document), "e.yaml")
    error = caught.value
    assert (error.where, error.fix) == (f"e.yaml, {where}" if where else "e.yaml", fix)
    assert seen in f"{error.seen}; {error.needed}"
    return error


# --- what is read ---


@pytest.mark.parametrize("name", FILES)
def test_every_form_of_experiment_is_read(name: str) -> None:
    experiment = read_experiment_file(FOLDER / name)
    assert experiment.name == experiment.document["metadata"]["name"]
    assert experiment.parameters


@pytest.mark.parametrize("name", FILES)
def test_document_reads_back_as_an_equal_experiment(name: str) -> None:
    experiment = read_experiment_file(FOLDER / name)
    assert read_experiment(json.dumps(experiment.document)) == experiment
    assert read_experiment(json.dumps(experiment.document)).spec_hash == experiment.spec_hash


def test_fields_arrive_typed() -> None:
    experiment = read_experiment_file(FOLDER / "random.yaml")
    assert experiment.parameters == (
        Parameter("--rate", "double", 0.001, 0.3),
        Parameter("--depth", "int", 2.0, 9.0),
        Parameter("--loss", "categorical", values=("squared", "absolute", "huber")),
    )
    assert experiment.objective.direction == "maximize"
    assert experiment.objective.goal == 0.97
    assert experiment.objective.metrics == ("auc", "log-loss")
    assert (experiment.algorithm, experiment.settings) == ("random", {"random_state": "7"})
    assert (experiment.parallel_trials, experiment.max_trials, experiment.max_failed_trials) == (2, 8, 3)
    assert experiment.template.parameters == {"rate": "--rate", "depth": "--depth", "loss": "--loss"}


def test_defaults_are_katibs_and_stay_out_of_the_document() -> None:
    document = load("random")
    for name in ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount"):
        del document["spec"][name]
    experiment = read_experiment(json.dumps(document))
    assert (experiment.parallel_trials, experiment.max_trials, experiment.max_failed_trials) == (3, None, None)
    assert experiment.resume_policy == "Never"
    assert experiment.objective.strategies == {"auc": "max", "log-loss": "max"}
    assert experiment.parameters[0].distribution == "uniform"
    assert (experiment.collector.kind, experiment.collector.path, experiment.collector.filters) == ("StdOut", None, ())
    assert experiment.early_stopping is None
    assert '"Complete"' in experiment.template.success_condition
    assert experiment.document == document


def test_kubeflow_jobs_have_conditions_of_their_own() -> None:
    events = read_experiment_file(FOLDER / "tensorflow-events.yaml").template
    assert '"Succeeded"' in events.success_condition
    assert events.retain
    assert '"Complete"' in read_experiment_file(FOLDER / "trained-job.yaml").template.success_condition


def test_strategies_fill_up_to_every_metric() -> None:
    objective = read_experiment_file(FOLDER / "strategies.yaml").objective
    assert objective.strategies == {"rmse": "latest", "mae": "min", "r2": "max"}
    assert objective.goal is None


def test_template_in_a_config_map_has_no_spec() -> None:
    assert read_experiment_file(FOLDER / "config-map.yaml").template.spec is None


def test_collectors_have_katibs_paths() -> None:
    files, events = load("early-stopping"), load("tensorflow-events")
    del files["spec"]["metricsCollectorSpec"]["source"], events["spec"]["metricsCollectorSpec"]["source"]
    files["spec"]["objective"]["objectiveMetricName"] = "auc"
    assert read_experiment(json.dumps(files)).collector.path == "/var/log/katib/metrics.log"
    assert read_experiment(json.dumps(events)).collector.path == "/var/log/katib/tfevent/"
    collector = read_experiment_file(FOLDER / "early-stopping.yaml").collector
    assert (collector.path, collector.format) == ("/out/metrics.json", "JSON")


def test_what_a_server_adds_is_left_out() -> None:
    document = read_experiment_file(FOLDER / "from-a-cluster.yaml").document
    assert document["metadata"] == {"name": "prices-back", "namespace": "team-shop", "annotations": {"note": "kept"}}
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}


def test_aliases_are_written_out() -> None:
    experiment = read_experiment_file(FOLDER / "aliases.yaml")
    assert [(parameter.name, parameter.low) for parameter in experiment.parameters[1:3]] == [
        ("--depth", 2.0),
        ("--leaves", 1.0),
    ]
    parameters = experiment.document["spec"]["parameters"]
    parameters[2]["feasibleSpace"]["max"] = "5"
    assert parameters[1]["feasibleSpace"]["max"] == "9"


def test_source_on_one_line_is_read() -> None:
    text = json.dumps(load("random"))
    assert "\n" not in text
    assert read_experiment(text) == read_experiment_file(FOLDER / "random.yaml")
    assert read_experiment(text.replace('"kind"', "kind", 1)) == read_experiment(text)


# --- what is refused: text ---

HEAD = "apiVersion: kubeflow.org/v1beta1\nkind: Experiment\n"


@pytest.mark.parametrize(
    ("text", "where", "seen", "fix"),
    [
        ("", "e.yaml", "nothing", "write an Experiment"),
        ("# nothing but this\n---\n", "e.yaml", "nothing", "write an Experiment"),
        ("- a\n- b\n", "e.yaml", "no mapping", "write an Experiment"),
        ("a: [1\nb: 2\n", "e.yaml", "line 2: expected ',' or ']'", "mend it there"),
        ("a: 1\n---\nb: 2\n", "e.yaml", "2 documents", "put each in a file of its own"),
        ("a: 1\nb: 2\na: 3\n", "e.yaml", "line 3: 'a' a second time", "remove one"),
        ('{"a": {"b": 1, "b": 2}}', "e.yaml", "'b' a second time", "remove one"),
        ("a: &a [*a]\n", "e.yaml", "60 levels", "write it without"),
        ("[" * 5000, "e.yaml", "without end", "write it without"),
        ("{" + '"a":[' * 20000, "e.yaml", "without end", "write it without"),
        ("a: !!python/object:os.system x\n", "e.yaml", "could not determine a constructor", "mend it there"),
        ("a: !!bool 5\n", "e.yaml", "'5'", "mend it"),
        ("a: !!binary aGk=\n", "e.yaml, a", "a value of type bytes", "write text"),
        ("a: .nan\n", "e.yaml, a", "nan", "write a finite number"),
        (f"a: {'9' * 5000}\n", "e.yaml", "4300 digits", "mend it"),
        ("a: 99999999999999999999\n", "e.yaml, a", "a number that JSON holds", "write a finite number"),
        ("1: a\n", "e.yaml", "the key 1", 'write "1" in quotes'),
        ("on: a\n", "e.yaml", "the key True", 'write "True" in quotes'),
        ('a: "x\\0"\n', "e.yaml, a", "NUL", "remove the character"),
        ('{"a": "\\ud800"}', "e.yaml, a", "lone surrogates", "remove the character"),
        ("a: \x07\n", "e.yaml", "plain values", "mend it"),
        ("a: " + "x" * 2**18, "e.yaml", "more than 262144 bytes", "make it smaller"),
        (HEAD, "e.yaml, metadata", "nothing", "write metadata with a name"),
        (HEAD + "metadata: {name: a}\n", "e.yaml, spec", "nothing", "write a mapping"),
        (HEAD + "metadata: {name: a}\nspec: []\n", "e.yaml, spec", "no mapping", "write a mapping"),
    ],
)
def test_text_that_is_no_experiment_is_refused(text: str, where: str, seen: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_experiment(text, "e.yaml")
    assert (caught.value.where, caught.value.fix) == (where, fix)
    assert seen in f"{caught.value.seen}; {caught.value.needed}"


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UsageError, match="100000 values"):
        read_experiment("\n".join(lines))


@pytest.mark.parametrize(
    ("plain", "seen"), [("1e-3", "the number 0.001"), ("0.5", "the number 0.5"), ("7", "number 7")]
)
def test_numbers_are_those_that_kubectl_reads(plain: str, seen: str) -> None:
    text = (FOLDER / "random.yaml").read_text(encoding="utf-8").replace('min: "0.001"', f"min: {plain}")
    with pytest.raises(UsageError) as caught:
        read_experiment(text, "e.yaml")
    assert caught.value.where == f"e.yaml, {RATE}.feasibleSpace.min"
    assert seen in caught.value.seen
    assert caught.value.fix.startswith('put it in quotes: "')


@pytest.mark.parametrize("plain", ["2026-01-01", "1:30", "12_x"])
def test_dates_and_clock_times_stay_text(plain: str) -> None:
    text = (
        (FOLDER / "random.yaml").read_text(encoding="utf-8").replace("labels: {team: shop}", f"labels: {{at: {plain}}}")
    )
    assert read_experiment(text).document["metadata"]["labels"] == {"at": plain}


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.yaml: No such file"):
        read_experiment_file(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_experiment_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(UsageError, match="in UTF-8, is needed"):
        read_experiment_file(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**18 + 1))
    with pytest.raises(UsageError, match="more than 262144 bytes"):
        read_experiment_file(tmp_path / "large.yaml")


# --- what is refused: one change to a good file ---

NAME_FIX = "rename it"
ODD_NAME = "at most 40 of a-z, 0-9 and -"
METADATA = [
    ("random", "apiVersion", "kubeflow.org/v1alpha3", "apiVersion", "'kubeflow.org/v1alpha3'", "write it so"),
    ("random", "kind", "Trial", "kind", "'Trial'", "write it so"),
    ("random", "specs", {}, "specs", "unknown field 'specs'", "write spec"),
    ("random", "metadata.name", REMOVED, "metadata.name", "nothing", "write a name"),
    ("random", "metadata.name", "a" * 41, "metadata.name", ODD_NAME, "write a shorter name"),
    ("random", "metadata.name", "a.b", "metadata.name", ODD_NAME, NAME_FIX),
    ("random", "metadata.name", "Shop", "metadata.name", ODD_NAME, NAME_FIX),
    ("random", "metadata.name", "größe", "metadata.name", ODD_NAME, NAME_FIX),
    ("random", "metadata.name", "shop-", "metadata.name", ODD_NAME, NAME_FIX),
    ("random", "metadata.name", 5, "metadata.name", "5", "write a name in quotes"),
    ("random", "metadata.namespace", "A b", "metadata.namespace", "'A b'", "write a namespace, or remove it"),
    ("random", "metadata.labels.team", 5, "metadata.labels.team", "5", "put it in quotes"),
    ("random", "metadata.labels", [], "metadata.labels", "[]", "write a mapping, or remove it"),
    ("random", "metadata.label", {}, "metadata.label", "unknown field 'label'", "write labels"),
]
TYPES = [
    ("random", "spec.paralelTrialCount", 2, "spec.paralelTrialCount", "unknown field", "write parallelTrialCount"),
    ("random", "spec.Objective", {}, "spec.Objective", "unknown field", "write objective"),
    ("random", "spec.xyz", 1, "spec.xyz", "unknown field", "write one of them, or remove 'xyz'"),
    (
        "random",
        f"{RATE}.feasibleSpace.minimum",
        "1",
        f"{RATE}.feasibleSpace.minimum",
        "the known ones are",
        "write min",
    ),
    ("random", f"{RATE}.feasibleSpace.max", 0.3, f"{RATE}.feasibleSpace.max", "0.3", 'put it in quotes: "0.3"'),
    (
        "random",
        f"{LOSS}.feasibleSpace.list[0]",
        True,
        f"{LOSS}.feasibleSpace.list[0]",
        "true",
        'put it in quotes: "true"',
    ),
    ("random", f"{LOSS}.feasibleSpace.list", "a", f"{LOSS}.feasibleSpace.list", "the text 'a'", "write a list"),
    ("random", "spec.parameters", {}, "spec.parameters", "a mapping", "write a list"),
    ("random", "spec.parameters[0]", None, "spec.parameters[0]", "null", "write a value, or remove the field"),
    ("random", "spec.objective", [], "spec.objective", "a list", "write a mapping"),
    ("random", "spec.objective.goal", "0.9", "spec.objective.goal", "the text '0.9'", "write a number"),
    ("random", "spec.maxTrialCount", "8", "spec.maxTrialCount", "the text '8'", "write a whole number"),
    ("random", "spec.maxTrialCount", 2.5, "spec.maxTrialCount", "the number 2.5", "write a whole number"),
    ("random", "spec.maxTrialCount", True, "spec.maxTrialCount", "true without quotes", "write a whole number"),
    ("random", "spec.maxTrialCount", 2**31, "spec.maxTrialCount", "32 bits", "write a smaller number"),
    ("random", f"{TEMPLATE}.retain", "no", f"{TEMPLATE}.retain", "the text 'no'", "write true or false"),
    (
        "random",
        "spec.algorithm.algorithmSettings[0].value",
        7,
        "spec.algorithm.algorithmSettings[0].value",
        "the number 7",
        'put it in quotes: "7"',
    ),
]
COUNTS = [
    ("random", "spec.parallelTrialCount", 0, "spec.parallelTrialCount", "at least 1", "write 1 or more"),
    ("random", "spec.maxTrialCount", 0, "spec.maxTrialCount", "at least 1", "write 1 or more"),
    ("random", "spec.maxFailedTrialCount", -1, "spec.maxFailedTrialCount", "at least 0", "write 0 or more"),
    (
        "random",
        "spec.maxFailedTrialCount",
        9,
        "spec.maxFailedTrialCount",
        "maxTrialCount is 8",
        "write 8 or less, or raise maxTrialCount",
    ),
    (
        "random",
        "spec.parallelTrialCount",
        9,
        "spec.parallelTrialCount",
        "maxTrialCount is 8",
        "write 8 or less, or raise maxTrialCount",
    ),
    ("push", "spec.maxTrialCount", 2, "spec.parallelTrialCount", "3", "write 2 or less, or raise maxTrialCount"),
    ("random", "spec.resumePolicy", "Always", "spec.resumePolicy", "unknown value 'Always'", None),
    ("random", "spec.resumePolicy", "never", "spec.resumePolicy", "unknown value 'never'", "write Never"),
]
OBJECTIVE = [
    ("random", "spec.objective", None, "spec.objective", "nothing", None),
    ("random", "spec.objective.type", "maximise", "spec.objective.type", "unknown value", "write maximize"),
    ("random", "spec.objective.type", REMOVED, "spec.objective.type", "nothing", "write one of them"),
    (
        "random",
        "spec.objective.goal",
        10**400,
        "spec.objective.goal",
        "a number that JSON holds",
        "write a finite number",
    ),
    (
        "random",
        "spec.objective.objectiveMetricName",
        "",
        "spec.objective.objectiveMetricName",
        "nothing",
        "write objectiveMetricName",
    ),
    (
        "random",
        "spec.objective.objectiveMetricName",
        "val/auc",
        "spec.objective.objectiveMetricName",
        "default filter",
        "rename the metric, or set source.filter.metricsFormat",
    ),
    (
        "random",
        "spec.objective.additionalMetricNames[0]",
        "größe",
        "spec.objective.additionalMetricNames[0]",
        "default filter",
        "rename the metric, or set source.filter.metricsFormat",
    ),
    (
        "random",
        "spec.objective.additionalMetricNames[0]",
        "auc",
        "spec.objective.additionalMetricNames[0]",
        "'auc' a second time",
        "remove the entry",
    ),
    (
        "early-stopping",
        "spec.objective.objectiveMetricName",
        "a;b",
        "spec.objective.objectiveMetricName",
        "joins metric names with ;",
        "rename the metric",
    ),
    (
        "strategies",
        "spec.objective.metricStrategies[1].name",
        "mse",
        "spec.objective.metricStrategies[1].name",
        "unknown metric 'mse'",
        "write rmse",
    ),
    (
        "strategies",
        "spec.objective.metricStrategies[1].name",
        "rmse",
        "spec.objective.metricStrategies[1].name",
        "'rmse' a second time",
        "remove it",
    ),
    (
        "strategies",
        "spec.objective.metricStrategies[1].value",
        "maximum",
        "spec.objective.metricStrategies[1].value",
        "unknown value 'maximum'",
        "write max",
    ),
]
PARAMETERS = [
    ("random", "spec.parameters", [], "spec.parameters", "nothing", "write the parameters to search"),
    ("random", "spec.parameters", REMOVED, "spec.parameters", "nothing", "write the parameters to search"),
    ("random", f"{RATE}.name", REMOVED, f"{RATE}.name", "nothing", "write name"),
    ("random", f"{RATE}.name", "größe", f"{RATE}.name", "ASCII", "rename the parameter"),
    ("random", f"{RATE}.name", "a b", f"{RATE}.name", "without spaces", "rename the parameter"),
    ("random", f"{DEPTH}.name", "--rate", f"{DEPTH}.name", "'--rate' a second time", "rename one of them"),
    ("random", f"{RATE}.parameterType", REMOVED, f"{RATE}.parameterType", "nothing", "write one of them"),
    ("random", f"{RATE}.parameterType", "float", f"{RATE}.parameterType", "unknown value 'float'", None),
    ("random", f"{RATE}.parameterType", "dobule", f"{RATE}.parameterType", "unknown value 'dobule'", "write double"),
    ("random", f"{RATE}.parameterType", "unknown", f"{RATE}.parameterType", "unknown value 'unknown'", None),
    ("random", f"{RATE}.feasibleSpace", REMOVED, f"{RATE}.feasibleSpace.min", "nothing", "write min"),
    ("random", f"{RATE}.feasibleSpace.max", REMOVED, f"{RATE}.feasibleSpace.max", "nothing", "write max"),
    ("random", f"{RATE}.feasibleSpace.max", "0.0001", f"{RATE}.feasibleSpace.max", "min is 0.001", "swap the two"),
    ("random", f"{RATE}.feasibleSpace.max", "nan", f"{RATE}.feasibleSpace.max", "finite", None),
    ("random", f"{RATE}.feasibleSpace.max", "1e999", f"{RATE}.feasibleSpace.max", "finite", None),
    ("random", f"{RATE}.feasibleSpace.max", "1_0", f"{RATE}.feasibleSpace.max", "finite", None),
    ("random", f"{RATE}.feasibleSpace.list", ["1"], f"{RATE}.feasibleSpace.list", "min and max", "remove list"),
    ("random", f"{DEPTH}.feasibleSpace.min", "2.5", f"{DEPTH}.feasibleSpace.min", "'2.5'; a whole number", None),
    ("random", f"{DEPTH}.feasibleSpace.step", "0.5", f"{DEPTH}.feasibleSpace.step", "a whole number", None),
    ("random", f"{DEPTH}.feasibleSpace.max", "9007199254740993", f"{DEPTH}.feasibleSpace.max", "2^53", None),
    ("grid", "spec.parameters[0].feasibleSpace.step", "0", "spec.parameters[0].feasibleSpace.step", "above 0", None),
    ("grid", "spec.parameters[0].feasibleSpace.step", "-1", "spec.parameters[0].feasibleSpace.step", "above 0", None),
    ("grid", "spec.parameters[0].feasibleSpace.step", "0.4", "spec.parameters[0].feasibleSpace.step", "wide", None),
    ("random", f"{LOSS}.feasibleSpace.list", [], f"{LOSS}.feasibleSpace.list", "nothing", None),
    ("random", f"{LOSS}.feasibleSpace.list[1]", "squared", f"{LOSS}.feasibleSpace.list[1]", "second time", None),
    ("random", f"{LOSS}.feasibleSpace.list[1]", "", f"{LOSS}.feasibleSpace.list[1]", "not empty", None),
    ("random", f"{LOSS}.feasibleSpace.list[1]", 'a"b', f"{LOSS}.feasibleSpace.list[1]", "template's JSON", None),
    ("random", f"{LOSS}.feasibleSpace.min", "1", f"{LOSS}.feasibleSpace.min", "has a list", None),
    ("random", f"{LOSS}.feasibleSpace.distribution", "normal", f"{LOSS}.feasibleSpace.distribution", "uniformly", None),
    ("random", f"{LOSS}.parameterType", "discrete", f"{LOSS}.feasibleSpace.list[0]", "a finite number", None),
    (
        "multivariate-tpe",
        "spec.parameters[1].feasibleSpace.list[1]",
        "1.0",
        "spec.parameters[1].feasibleSpace.list[1]",
        "second time",
        "remove the entry",
    ),
    (
        "random",
        f"{RATE}.feasibleSpace.distribution",
        "loguniform",
        f"{RATE}.feasibleSpace.distribution",
        "unknown value 'loguniform'",
        "write logUniform",
    ),
    (
        "distributions",
        "spec.parameters[1].feasibleSpace.min",
        "0",
        "spec.parameters[1].feasibleSpace.min",
        "logarithm",
        "raise min, or use distribution: uniform",
    ),
    (
        "distributions",
        "spec.parameters[0].feasibleSpace.max",
        "0.01",
        "spec.parameters[0].feasibleSpace.max",
        "deviation",
        "raise max, or use distribution: uniform",
    ),
]
SETTING = "spec.algorithm.algorithmSettings"


def setting(file: str, index: int, value: str, needed: str) -> tuple[str, str, object, str, str, None]:
    return (file, f"{SETTING}[{index}].value", value, f"{SETTING}[{index}].value", needed, None)


ALGORITHMS = [
    ("random", "spec.algorithm", REMOVED, "spec.algorithm", "nothing", "write algorithm with algorithmName"),
    ("random", "spec.algorithm.algorithmName", "", "spec.algorithm.algorithmName", "nothing", "write algorithmName"),
    ("random", "spec.algorithm.algorithmName", "rnadom", "spec.algorithm.algorithmName", "rnadom", "write random"),
    ("random", "spec.algorithm.algorithmName", "cma-es", "spec.algorithm.algorithmName", "cma-es", "write cmaes"),
    ("random", "spec.algorithm.algorithmName", "enas", "spec.algorithm.algorithmName", "architecture search", None),
    ("random", "spec.nasConfig", {"graphConfig": {}}, "spec.nasConfig", "architecture search", None),
    ("random", f"{SETTING}[0].name", "random-state", f"{SETTING}[0].name", "unknown setting", "write random_state"),
    ("random", f"{SETTING}[0].name", "gamma", f"{SETTING}[0].name", "unknown setting of random", None),
    ("tpe", f"{SETTING}[2].name", "n_ei_candidates", f"{SETTING}[2].name", "unknown", "write n_EI_candidates"),
    ("tpe", f"{SETTING}[1].name", "gamma", f"{SETTING}[1].name", "gamma a second time", "remove the entry"),
    ("sobol", SETTING, [{"name": "x", "value": "1"}], f"{SETTING}[0].name", "the known ones are none", "remove 'x'"),
    setting("random", 0, "-1", "from 0 to 4294967295"),
    setting("random", 0, "4294967296", "from 0 to 4294967295"),
    setting("tpe", 0, "1", "between 0 and 1"),
    setting("tpe", 1, "0", "above 0"),
    setting("tpe", 2, "0", "from 1 to"),
    setting("tpe", 2, "1.5", "from 1 to"),
    setting("multivariate-tpe", 0, "-1", "from 0 to"),
    setting("multivariate-tpe", 1, "0", "from 1 to"),
    setting("cmaes", 0, "None", "none, ipop, bipop"),
    setting("cmaes", 1, "0", "above 0"),
    setting("hyperband", 0, "0.5", "at least 1"),
    setting("hyperband", 1, "1", "at least 2"),
    setting("bayesian-optimization", 0, "GBT", "GP, RF, ET, GBRT"),
    setting("bayesian-optimization", 1, "-1", "from 0 to"),
    setting("bayesian-optimization", 2, "ei", "gp_hedge, LCB, EI, PI"),
    setting("bayesian-optimization", 3, "newton", "auto, sampling, lbfgs"),
    setting("population-based", 1, "4", "at least 5"),
    setting("population-based", 2, "1.5", "from 0 to 1"),
    ("bayesian-optimization", f"{SETTING}[2].value", "EIps", f"{SETTING}[2]", "the seconds", "remove acq_func"),
    ("bayesian-optimization", f"{SETTING}[0].value", "RF", f"{SETTING}[3].value", "gradients", "write sampling"),
    (
        "population-based",
        f"{SETTING}[3]",
        {"name": "resample_probability", "value": "0.5"},
        f"{SETTING}[3]",
        "as text",
        "remove resample_probability",
    ),
    ("population-based", f"{SETTING}[0]", REMOVED, SETTING, "no setting suggestion_trial_dir", None),
    ("hyperband", f"{SETTING}[2]", REMOVED, SETTING, "no setting resource_name", "add resource_name"),
    ("hyperband", f"{SETTING}[2].value", "epoch", SETTING, "resource_name 'epoch'", "write epochs"),
    ("hyperband", "spec.parallelTrialCount", 8, "spec.parallelTrialCount", "starts 9 trials", "write 9"),
    ("grid", "spec.maxTrialCount", 25, "spec.maxTrialCount", "24 points", "write 24 or less"),
    (
        "grid",
        "spec.parameters[0].feasibleSpace.step",
        REMOVED,
        "spec.parameters[0].feasibleSpace.step",
        "grid needs the step of a double",
        "write step",
    ),
    (
        "grid",
        "spec.parameters[0].feasibleSpace.distribution",
        "normal",
        "spec.parameters[0].feasibleSpace.distribution",
        "uniform or logUniform",
        "write one of these, or use algorithm random or tpe",
    ),
    (
        "cmaes",
        "spec.parameters[0].feasibleSpace.distribution",
        "logUniform",
        "spec.parameters[0].feasibleSpace.distribution",
        "cmaes draws uniform",
        "write one of these, or use algorithm random or tpe",
    ),
    (
        "tpe",
        "spec.parameters[1].feasibleSpace.max",
        "10",
        "spec.parameters[1].feasibleSpace.max",
        "10, which is min",
        None,
    ),
    (
        "bayesian-optimization",
        "spec.parameters[0].feasibleSpace.min",
        "0",
        "spec.parameters[0].feasibleSpace.min",
        "logarithm",
        "write a min above 0, or use another algorithm",
    ),
]
STOPPING = "spec.earlyStopping"
FILTER = f"{COLLECTOR}.source.filter.metricsFormat"
FILES_AT = f"{COLLECTOR}.source.fileSystemPath"
COLLECTING = [
    (
        "early-stopping",
        f"{STOPPING}.algorithmName",
        "median",
        f"{STOPPING}.algorithmName",
        "unknown",
        "write medianstop",
    ),
    (
        "early-stopping",
        f"{STOPPING}.algorithmSettings[0].value",
        "0",
        f"{STOPPING}.algorithmSettings[0].value",
        "from 1 to",
        None,
    ),
    (
        "early-stopping",
        f"{STOPPING}.algorithmSettings[1].name",
        "startstep",
        f"{STOPPING}.algorithmSettings[1].name",
        "unknown setting",
        "write start_step",
    ),
    ("push", STOPPING, {"algorithmName": "medianstop"}, STOPPING, "kind Push", "remove earlyStopping"),
    ("push", f"{COLLECTOR}.collector.kind", "None", f"{COLLECTOR}.collector.kind", "unknown kind", None),
    ("push", f"{COLLECTOR}.collector.kind", "Stdout", f"{COLLECTOR}.collector.kind", "unknown kind", "write StdOut"),
    ("push", f"{COLLECTOR}.collector.kind", REMOVED, f"{COLLECTOR}.collector.kind", "unknown kind", None),
    ("early-stopping", f"{FILES_AT}.path", "out.json", f"{FILES_AT}.path", "absolute", None),
    ("early-stopping", f"{FILES_AT}.kind", "Directory", f"{FILES_AT}.kind", "File is needed", "write kind: File"),
    ("early-stopping", f"{FILES_AT}.format", "json", f"{FILES_AT}.format", "TEXT or JSON", "write one of them"),
    ("early-stopping", f"{COLLECTOR}.source.filter", {}, f"{COLLECTOR}.source.filter", "has no filter", None),
    ("tensorflow-events", f"{FILES_AT}.kind", "File", f"{FILES_AT}.kind", "Directory", "write kind: Directory"),
    ("tensorflow-events", f"{FILES_AT}.format", "TEXT", f"{FILES_AT}.format", "no format", "remove format"),
    ("custom-collector", f"{FILES_AT}.kind", REMOVED, f"{FILES_AT}.kind", "File or Directory", None),
    (
        "custom-collector",
        f"{COLLECTOR}.collector.customCollector",
        REMOVED,
        f"{COLLECTOR}.collector.customCollector",
        "needs a container",
        "write customCollector",
    ),
    (
        "custom-collector",
        f"{COLLECTOR}.collector.customCollector.arg",
        [],
        f"{COLLECTOR}.collector.customCollector.arg",
        "unknown field",
        "write args",
    ),
    ("prometheus", f"{COLLECTOR}.source.httpGet.port", "http", f"{COLLECTOR}.source.httpGet.port", "65535", None),
    ("prometheus", f"{COLLECTOR}.source.httpGet.port", 70000, f"{COLLECTOR}.source.httpGet.port", "65535", None),
    ("prometheus", f"{COLLECTOR}.source.httpGet.path", "m", f"{COLLECTOR}.source.httpGet.path", "absolute", None),
    ("filtered-file", f"{FILTER}[0]", r"(\w+=", f"{FILTER}[0]", "syntax", "write the filter without it"),
    ("filtered-file", f"{FILTER}[0]", r"(\w+)=(?=(\d+))", f"{FILTER}[0]", "syntax", "write the filter without it"),
    ("filtered-file", f"{FILTER}[0]", r"(\w+);(\d+)", f"{FILTER}[0]", "joins filters with ;", None),
    ("filtered-file", f"{FILTER}[0]", r"(\w+)=\d+", f"{FILTER}[0]", "1 groups", None),
    ("filtered-file", f"{FILTER}[0]", r"((\w+)=(\d+))", f"{FILTER}[0]", "side by side", None),
    ("filtered-file", f"{FILTER}[0]", r"(\w+(\d)?)=(\d+)", f"{FILTER}[0]", "side by side", None),
    ("random", COLLECTOR, {"source": {"filter": {"metricsFormat": ["("]}}}, f"{FILTER}[0]", "syntax", None),
]
TRIAL_PARAMETERS = f"{TEMPLATE}.trialParameters"
TEMPLATES = [
    ("random", TEMPLATE, REMOVED, TEMPLATE, "nothing", None),
    ("random", f"{TEMPLATE}.primaryContainerName", "", f"{TEMPLATE}.primaryContainerName", "nothing", None),
    ("random", f"{TEMPLATE}.primaryContainerName", "ift", f"{TEMPLATE}.primaryContainerName", "unknown", "write fit"),
    ("random", TRIAL_PARAMETERS, REMOVED, TRIAL_PARAMETERS, "nothing", "write name and reference of each"),
    ("random", TRIAL, REMOVED, TEMPLATE, "neither trialSpec nor configMap", "write trialSpec"),
    ("random", f"{TEMPLATE}.configMap", {}, TEMPLATE, "both trialSpec and configMap", "remove one"),
    (
        "config-map",
        f"{TEMPLATE}.configMap.templatePath",
        "",
        f"{TEMPLATE}.configMap.templatePath",
        "nothing",
        "write templatePath",
    ),
    (
        "config-map",
        f"{TEMPLATE}.failureCondition",
        REMOVED,
        f"{TEMPLATE}.failureCondition",
        "Katib has a default for the kinds Job",
        "write failureCondition",
    ),
    ("other-kind", f"{TEMPLATE}.successCondition", "", f"{TEMPLATE}.successCondition", "nothing", None),
    ("random", f"{TRIAL_PARAMETERS}[0].name", "", f"{TRIAL_PARAMETERS}[0].name", "nothing", "write name"),
    ("random", f"{TRIAL_PARAMETERS}[0].name", "ra{te", f"{TRIAL_PARAMETERS}[0].name", "without {", None),
    ("random", f"{TRIAL_PARAMETERS}[0].name", "größe", f"{TRIAL_PARAMETERS}[0].name", "ASCII", None),
    ("random", f"{TRIAL_PARAMETERS}[1].name", "rate", f"{TRIAL_PARAMETERS}[1].name", "'rate' a second time", None),
    ("random", f"{TRIAL_PARAMETERS}[1].reference", "--rate", f"{TRIAL_PARAMETERS}[1].reference", "second time", None),
    (
        "random",
        f"{TRIAL_PARAMETERS}[1].reference",
        "--dept",
        f"{TRIAL_PARAMETERS}[1].reference",
        "unknown parameter '--dept'",
        "write --depth",
    ),
    (
        "random",
        f"{TRIAL_PARAMETERS}[1]",
        REMOVED,
        TRIAL_PARAMETERS,
        "no reference to '--depth'",
        "add one with reference: --depth",
    ),
    (
        "random",
        f"{TRIAL_PARAMETERS}[3]",
        {"name": "trial", "reference": "${trialSpec.Name}"},
        f"{TRIAL_PARAMETERS}[3].name",
        "trialSpec has no ${trialParameters.trial}",
        "write the placeholder into trialSpec, or remove the entry",
    ),
    (
        "random",
        f"{CONTAINER}.command[6]",
        "--x=${trialParameters.dept}",
        f"{CONTAINER}.command[6]",
        "unknown trial parameter 'dept'",
        "write depth",
    ),
    ("random", f"{CONTAINER}.command[6]", "${trialSpec.Name}", f"{CONTAINER}.command[6]", "reference", None),
    (
        "metadata-references",
        f"{TRIAL_PARAMETERS}[1].reference",
        "${trialSpec.name}",
        f"{TRIAL_PARAMETERS}[1].reference",
        "unknown field of trialSpec 'name'",
        "write Name",
    ),
    (
        "metadata-references",
        f"{TRIAL_PARAMETERS}[1].reference",
        "${trialSpec.Labels}",
        f"{TRIAL_PARAMETERS}[1].reference",
        "a key in brackets",
        "write such as ${trialSpec.Labels[team]}",
    ),
    (
        "metadata-references",
        f"{TRIAL_PARAMETERS}[6].reference",
        "${trialSpec.Annotations[notes]}",
        f"{TRIAL_PARAMETERS}[6].reference",
        "unknown key in trialSpec.metadata.annotations 'notes'",
        "write note",
    ),
    ("random", f"{TRIAL}.kind", REMOVED, f"{TRIAL}.kind", "text is needed", "write kind"),
    ("random", f"{TRIAL}.apiVersion", 1, f"{TRIAL}.apiVersion", "text is needed", "write apiVersion"),
    ("random", f"{TRIAL}.metadata", {"name": "a"}, f"{TRIAL}.metadata.name", "Katib sets", "remove name"),
    ("trained-job", f"{TRIAL}.metadata", {"namespace": "a"}, f"{TRIAL}.metadata.namespace", "Katib sets", None),
    ("trained-job", f"{TRIAL}.metadata", [], f"{TRIAL}.metadata", "a mapping is needed", None),
]
LEFT_OUT = "Go leaves out when it is empty"
JOBS = [
    ("random", f"{TRIAL}.spec.backofLimit", 0, f"{TRIAL}.spec.backofLimit", "unknown field", "write backoffLimit"),
    ("random", f"{TRIAL}.spec.backoffLimit", "0", f"{TRIAL}.spec.backoffLimit", "the text '0'", None),
    (
        "random",
        f"{TRIAL}.spec.backoffLimit",
        "${trialParameters.depth}",
        f"{TRIAL}.spec.backoffLimit",
        "a whole number is needed",
        "leave the placeholder to text fields such as args and env",
    ),
    ("random", f"{TRIAL}.spec.template", REMOVED, f"{TRIAL}.spec.template", "nothing", "write template"),
    ("random", f"{TRIAL}.spec", REMOVED, f"{TRIAL}.spec", "nothing", "write spec"),
    ("random", POD, REMOVED, POD, "a pod spec is needed", "write spec with containers"),
    ("random", f"{POD}.restartPolicy", REMOVED, f"{POD}.restartPolicy", "which means Always", None),
    ("random", f"{POD}.restartPolicy", "Always", f"{POD}.restartPolicy", "'Always'", "write restartPolicy: Never"),
    ("random", f"{POD}.container", [], f"{POD}.container", "unknown field", "write containers"),
    ("random", f"{CONTAINER}.comand", [], f"{CONTAINER}.comand", "unknown field", "write command"),
    ("random", f"{CONTAINER}.name", REMOVED, f"{CONTAINER}.name", "nothing", "write name"),
    ("random", f"{CONTAINER}.image", REMOVED, f"{CONTAINER}.image", "an image is needed", "write image"),
    ("random", f"{CONTAINER}.command", "python", f"{CONTAINER}.command", "the text 'python'", "write a list"),
    ("random", f"{CONTAINER}.command[0]", 3, f"{CONTAINER}.command[0]", "the number 3", 'put it in quotes: "3"'),
    ("random", f"{CONTAINER}.args", [], f"{CONTAINER}.args", LEFT_OUT, "remove the field"),
    ("random", f"{CONTAINER}.args", None, f"{CONTAINER}.args", "null", "write a value, or remove the field"),
    ("random", f"{CONTAINER}.tty", False, f"{CONTAINER}.tty", LEFT_OUT, "remove the field"),
    ("random", f"{CONTAINER}.env", [{"name": "A", "value": ""}], f"{CONTAINER}.env[0].value", LEFT_OUT, None),
    ("random", f"{CONTAINER}.env", [{"name": "A", "value": 1}], f"{CONTAINER}.env[0].value", "number 1", None),
    ("random", f"{CONTAINER}.env", {"A": "1"}, f"{CONTAINER}.env", "a mapping", "write a list"),
    ("random", f"{CONTAINER}.env", [{"value": "1"}], f"{CONTAINER}.env[0].name", "nothing", "write name"),
    (
        "metadata-references",
        f"{POD}.containers[1].resources.limits.cpu",
        "two",
        f"{POD}.containers[1].resources.limits.cpu",
        "a quantity such as",
        "write a quantity",
    ),
    (
        "metadata-references",
        f"{TRIAL}.metadata.labels['example.com/team']",
        5,
        f"{TRIAL}.metadata.labels['example.com/team']",
        "the number 5",
        'put it in quotes: "5"',
    ),
    (
        "metadata-references",
        f"{TRIAL}.spec.podFailurePolicy.rules[0].onExitCodes.values[0]",
        "2",
        f"{TRIAL}.spec.podFailurePolicy.rules[0].onExitCodes.values[0]",
        "the text '2'",
        "write a whole number",
    ),
]


@pytest.mark.parametrize(
    ("file", "path", "value", "where", "seen", "fix"),
    [*METADATA, *TYPES, *COUNTS, *OBJECTIVE, *PARAMETERS, *ALGORITHMS, *COLLECTING, *TEMPLATES, *JOBS],
)
def test_one_fault_is_refused_with_its_field(
    file: str, path: str, value: object, where: str, seen: str, fix: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        read_experiment(json.dumps(change(load(file), path, value)), f"{file}.yaml")
    error = caught.value
    assert error.where == f"{file}.yaml, {where}"
    assert seen in f"{error.seen}; {error.needed}"
    assert error.fix == fix if fix else error.fix
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "value", ["two words", "a'b", "$HOME", "a;b", "a&b", "a|b", "a>b", "(a)", "`a`", "#a", "~", "*"]
)
def test_value_that_an_unquoted_command_breaks_is_refused_there(value: str) -> None:
    document = change(load("random"), f"{LOSS}.feasibleSpace.list[1]", value)
    refuse(document, f"{CONTAINER}.command[5]", "by sh -c, unquoted", "pass it by env, or rename the value")
    # The Push collector leaves the command alone.
    pushed = change(document, COLLECTOR, {"collector": {"kind": "Push"}})
    assert value in read_experiment(json.dumps(pushed)).parameters[2].values
    # An environment variable is no part of the command.
    moved = change(document, f"{CONTAINER}.command[5]", REMOVED)
    moved = change(moved, f"{CONTAINER}.env", [{"name": "LOSS", "value": "${trialParameters.loss}"}])
    assert value in read_experiment(json.dumps(moved)).parameters[2].values


@pytest.mark.parametrize("value", ["relu", "[64,32]", "a.b/c:1", "x=1,y=2", "-1e-5", "größe", "#fff"[1:]])
def test_plain_value_may_stand_in_a_command(value: str) -> None:
    document = change(load("random"), f"{LOSS}.feasibleSpace.list[1]", value)
    assert value in read_experiment(json.dumps(document)).parameters[2].values


def test_annotation_in_a_command_is_checked_too() -> None:
    field = f"{POD}.containers[1].command[2]"
    document = change(load("metadata-references"), field, "fit ${trialParameters.alpha} ${trialParameters.note}")
    refuse(document, field, "'a note; with spaces'", "pass it by env, or rename the value")


def test_grid_may_have_fewer_trials_than_points() -> None:
    for count in (1, 24):
        document = change(change(load("grid"), "spec.maxTrialCount", count), "spec.parallelTrialCount", 1)
        assert read_experiment(json.dumps(document)).max_trials == count


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(0.1, 0.4, 0.1), (0.01, 0.05, 0.01), (0.01, 0.05, 0.005), (0.5, 0.9, 0.1), (0, 1, 0.3), (-1, 1, 0.7), (1, 3, 2)],
)
def test_points_of_a_double_are_those_that_katib_counts(low: float, high: float, step: float) -> None:
    numpy = pytest.importorskip("numpy")
    points = numpy.arange(low, high + step, step)
    katib = len(points) - bool(points[-1] > high)
    assert count_grid_points(Parameter("p", "double", low, high, step)) == katib


def test_points_of_other_parameters_are_counted() -> None:
    assert count_grid_points(Parameter("p", "int", 1, 10, 4)) == 3
    assert count_grid_points(Parameter("p", "int", 1, 10)) == 10
    assert count_grid_points(Parameter("p", "categorical", values=("a", "b"))) == 2
    assert count_grid_points(Parameter("p", "double", 0, 1e300, 5e-324)) >= 10**17


@pytest.mark.parametrize("file", ["random", "grid", "sobol", "multivariate-tpe", "hyperband"])
def test_range_of_one_point_is_read_where_the_service_can_draw_it(file: str) -> None:
    document = change(load(file), "spec.parameters[0].feasibleSpace", {"min": "0.1", "max": "0.1", "step": "0.1"})
    document["spec"]["maxTrialCount"] = 1 if file == "grid" else 9
    document["spec"]["parallelTrialCount"] = 1 if file == "grid" else 9
    assert read_experiment(json.dumps(document)).parameters[0].low == 0.1


def test_error_is_one_line_of_the_usual_form() -> None:
    document = change(load("random"), f"{LOSS}.parameterType", "categorial")
    error = refuse(document, f"{LOSS}.parameterType", "unknown value 'categorial'", "write categorical")
    assert str(error) == (
        "e.yaml, spec.parameters[2].parameterType: unknown value 'categorial'; "
        "the known ones are categorical, discrete, double, int. Fix: write categorical."
    )


# --- what is refused: anything else ---

ODD: list[object] = [
    *(None, "", " ", 0, -1, 1, 2.5, 1e300, True, False, [], {}, [None], [[]], {"a": None}, {"name": 1}, "0.5", "-3"),
    *("nan", "1e400", "1e300", "5e-324", "9" * 25, "é", "${trialParameters.rate}", "${trialSpec.Labels[x]}", "random"),
    *("grid", "File", "int", "categorical", "x" * 300, "a\nb", "("),
]


def list_paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for name, element in value.items():
            found += list_paths(element, (*path, name))
    elif isinstance(value, list):
        for index, element in enumerate(value):
            found += list_paths(element, (*path, index))
    return found


def mutate(document: dict[str, Any], draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Drop, replace or rename one value anywhere in a document."""
    paths = list_paths(document)
    if not paths:
        return
    *parents, last = draw(st.sampled_from(paths))
    holder: Any = document
    for step in parents:
        holder = holder[step]
    action = draw(st.sampled_from(["drop", "replace", "replace", "rename", "repeat"]))
    if action == "drop":
        del holder[last]
    elif action == "rename" and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif action == "repeat" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder[last] = copy.deepcopy(draw(st.sampled_from(ODD)))


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES), st.integers(1, 3), st.data())
def test_changed_document_is_read_or_refused(name: str, count: int, data: st.DataObject) -> None:
    document = load(name.removesuffix(".yaml"))
    for _ in range(count):
        mutate(document, data.draw)
    refused: UsageError | None = None
    try:
        experiment = read_experiment(json.dumps(document))
    except UsageError as error:
        refused = error
    if refused is None:
        assert read_experiment(json.dumps(experiment.document)) == experiment
    else:
        assert refused.where.startswith("experiment")
        assert all((refused.seen, refused.needed, refused.fix))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.text(alphabet="{}[]:,&*!#|>%@-?'\"\\ \n\tab1.", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_experiment(text)
