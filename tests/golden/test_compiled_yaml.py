"""The committed YAML: it is what the code compiles to, and what servers and the local runner can read."""

import difflib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

import mlflywheel.components
from mlflywheel import images
from mlflywheel.data.validation import read_suite
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.decisions.gates import read_gates
from mlflywheel.evaluation import read_plan
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline
from mlflywheel.reproducibility import declare_hash, hash_specification

OLDER_KFP = Path(sys.prefix) / "kfp-2.16"
COMPONENTS = Path(mlflywheel.components.__file__).parent
READER = Path(__file__).with_name("read_with_older_kfp.py")
# Steps that read or change what lies outside the run: their result may differ when nothing in the cache's key does.
NEVER_CACHED = {"deploy-model", "evaluate-model", "ingest-data", "register-model"}

each_pipeline = pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)


def read_documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def read_spec(pipeline: Pipeline) -> dict[str, Any]:
    return read_documents(pipeline.compiled)[0]


def walk_dags(spec: dict[str, Any]) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield the tasks of the root and of every nested graph, by name."""
    for component in (spec["root"], *spec["components"].values()):
        if "dag" in component:
            yield component["dag"]["tasks"]


def walk_containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, executor in spec["deploymentSpec"]["executors"].items():
        yield name, executor["container"]


def list_open_conditions(spec: dict[str, Any]) -> list[str]:
    """Return the conditions whose branches do not cover every case: an If or Elif without an Else."""
    found = []
    for tasks in walk_dags(spec):
        conditions = [
            " ".join(task["triggerPolicy"]["condition"].split())
            for task in tasks.values()
            if "condition" in task.get("triggerPolicy", {})
        ]
        positive = [condition for condition in conditions if not condition.startswith("!(")]
        closing = " && ".join(f"!({condition})" for condition in positive)
        found.extend(positive if closing not in conditions else [])
    return found


def test_catalog_lists_pipelines() -> None:
    assert PIPELINES


@each_pipeline
def test_committed_yaml_is_what_the_code_compiles_to(pipeline: Pipeline, tmp_path: Path) -> None:
    again = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline.function(), str(again))
    again.write_text(declare_hash(again.read_text(encoding="utf-8")), encoding="utf-8")
    if again.read_bytes() != pipeline.compiled.read_bytes():
        texts = [path.read_text(encoding="utf-8").splitlines() for path in (pipeline.compiled, again)]
        changes = list(difflib.unified_diff(*texts, "committed", "compiled", lineterm="", n=0))
        shown = "\n".join(line[:160] for line in changes[:20])
        pytest.fail(f"{pipeline.compiled.name} of {pipeline.name} is out of date. Fix: make compile.\n{shown}", False)


@each_pipeline
def test_a_run_is_told_the_hash_of_the_yaml_that_it_was_started_from(pipeline: Pipeline) -> None:
    spec = read_spec(pipeline)
    declared = spec["root"]["inputDefinitions"]["parameters"]["pipeline_spec"]["defaultValue"]
    assert declared == hash_specification(pipeline.compiled.read_text(encoding="utf-8"))
    (registration,) = (tasks["register-model"] for tasks in walk_dags(spec) if "register-model" in tasks)
    given = registration["inputs"]["parameters"]["pipeline_spec"]
    assert given == {"componentInputParameter": "pipelinechannel--pipeline_spec"}


@each_pipeline
def test_registration_is_given_everything_that_a_dossier_records(pipeline: Pipeline) -> None:
    spec = read_spec(pipeline)
    (task,) = (tasks["register-model"] for tasks in walk_dags(spec) if "register-model" in tasks)
    declared = spec["components"][task["componentRef"]["name"]]["inputDefinitions"]
    for kind in ("parameters", "artifacts"):
        assert set(task["inputs"][kind]) == set(declared[kind])


@each_pipeline
def test_yaml_is_one_pipeline_of_that_name(pipeline: Pipeline) -> None:
    spec, *platforms = read_documents(pipeline.compiled)
    assert spec["pipelineInfo"]["name"] == pipeline.name
    assert spec["schemaVersion"] == "2.1.0"
    assert all(set(document) == {"platforms"} for document in platforms)
    assert pipeline.compiled.stat().st_size < 1_000_000


@each_pipeline
def test_every_image_is_the_one_of_this_version(pipeline: Pipeline) -> None:
    found = {name: container["image"] for name, container in walk_containers(read_spec(pipeline))}
    assert found == dict.fromkeys(found, images.COMPONENTS)
    assert found


@each_pipeline
def test_no_step_installs_packages_when_it_runs(pipeline: Pipeline) -> None:
    for name, container in walk_containers(read_spec(pipeline)):
        command = " ".join([*container["command"], *container.get("args", [])])
        assert "pip install" not in command, name
        assert "ensurepip" not in command, name


@each_pipeline
def test_every_parameter_is_described_as_in_the_code(pipeline: Pipeline) -> None:
    documentation = inspect.getdoc(pipeline.function().pipeline_func) or ""
    for name, parameter in read_spec(pipeline)["root"]["inputDefinitions"]["parameters"].items():
        assert f"{name}: {parameter['description'].splitlines()[0]}" in documentation


@each_pipeline
def test_every_input_of_a_step_is_described(pipeline: Pipeline) -> None:
    """Outputs are not: kfp 2.17 drops their descriptions."""
    for name, component in read_spec(pipeline)["components"].items():
        if "executorLabel" in component:
            for kind in component["inputDefinitions"].values():
                assert [f"{name}, {key}" for key, definition in kind.items() if not definition.get("description")] == []


@each_pipeline
def test_every_if_has_its_else(pipeline: Pipeline) -> None:
    """A branch that is not taken for want of an Else reports success, locally without a word."""
    assert list_open_conditions(read_spec(pipeline)) == []


@each_pipeline
def test_conditions_read_a_step_s_only_value(pipeline: Pipeline) -> None:
    """kfp.local cannot resolve a named output in a condition."""
    for tasks in walk_dags(read_spec(pipeline)):
        for task in tasks.values():
            condition = task.get("triggerPolicy", {}).get("condition", "")
            assert condition.count("pipelinechannel--") == condition.count("-Output']")


@each_pipeline
def test_every_step_is_given_every_artifact_that_it_can_take(pipeline: Pipeline) -> None:
    """A pipeline may leave out what is optional; ours have a step for each."""
    spec = read_spec(pipeline)
    for tasks in walk_dags(spec):
        for task in tasks.values():
            taken = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {}).get("artifacts", {})
            assert set(task.get("inputs", {}).get("artifacts", {})) == set(taken), task["taskInfo"]["name"]


@each_pipeline
def test_optional_parameters_have_a_default(pipeline: Pipeline) -> None:
    """A run of kfp.local fails on a parameter that is left at None."""
    spec = read_spec(pipeline)
    for component in (spec["root"], *spec["components"].values()):
        inputs = component.get("inputDefinitions", {})
        for name, parameter in inputs.get("parameters", {}).items():
            assert not parameter.get("isOptional") or "defaultValue" in parameter, name


@each_pipeline
def test_parameters_are_texts_and_numbers(pipeline: Pipeline) -> None:
    """Numbers inside dictionaries and lists arrive as floats, so settings travel as text."""
    spec = read_spec(pipeline)
    for component in (spec["root"], *spec["components"].values()):
        for side in ("inputDefinitions", "outputDefinitions"):
            for name, parameter in component.get(side, {}).get("parameters", {}).items():
                assert parameter["parameterType"] in ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN"), name


@each_pipeline
def test_steps_that_touch_the_world_are_never_cached(pipeline: Pipeline) -> None:
    cached = {
        name
        for tasks in walk_dags(read_spec(pipeline))
        for name, task in tasks.items()
        if task.get("cachingOptions", {}).get("enableCache")
    }
    steps = {name for tasks in walk_dags(read_spec(pipeline)) for name in tasks}
    assert steps >= NEVER_CACHED
    assert not cached & NEVER_CACHED
    assert "train-model" in cached


@each_pipeline
def test_defaults_are_the_configuration_files(pipeline: Pipeline) -> None:
    parameters = read_spec(pipeline)["root"]["inputDefinitions"]["parameters"]
    gates = (pipeline.folder / "gates.yaml").read_text(encoding="utf-8")
    assert read_gates(parameters["gates"]["defaultValue"]) == read_gates(gates)
    plan = (pipeline.folder / "evaluation.yaml").read_text(encoding="utf-8")
    assert read_plan(parameters["plan"]["defaultValue"]) == read_plan(plan)
    suite = (pipeline.folder / "expectations.json").read_text(encoding="utf-8")
    assert read_suite(parameters["expectations"]["defaultValue"], "") == read_suite(suite, "")
    experiment = (pipeline.folder / "experiment.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(parameters["experiment"]["defaultValue"]) == yaml.safe_load(experiment)
    rollout = (pipeline.folder / "rollout.yaml").read_text(encoding="utf-8")
    assert read_policy(parameters["rollout"]["defaultValue"]) == read_policy(rollout)


def list_differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return where two documents differ, with both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**first, **second}:
            found |= list_differences(first.get(key), second.get(key), f"{path}.{key}")
        return found
    return {} if first == second else {path: (first, second)}


@pytest.mark.parametrize("pipeline", PIPELINES[1:], ids=lambda pipeline: pipeline.name)
def test_pipelines_differ_in_name_model_and_configuration_alone(pipeline: Pipeline) -> None:
    """A use case is its model and its folder: the steps, and what is passed between them, are the same."""
    first = PIPELINES[0]
    differences = list_differences(read_spec(first), read_spec(pipeline))
    defaults = {"expectations", "experiment", "gates", "model_name", "pipeline_spec", "plan", "rollout", "service"}
    constants = ((first.model, pipeline.model), (first.name, pipeline.name))
    for path, values in differences.items():
        described = path.removeprefix(".pipelineInfo.") in ("name", "displayName", "description")
        default = path.split(".")[-2] in defaults and path.endswith(".defaultValue")
        assert described or default or values in constants, path
    assert set(constants) <= set(differences.values())


def test_components_name_no_use_case() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in COMPONENTS.rglob("*.py")}
    assert len(sources) > len(PIPELINES)
    for path, source in sources.items():
        for pipeline in PIPELINES:
            for name in (pipeline.name, pipeline.package, pipeline.model):
                assert name not in source, f"{path.parent.name}: {name}"


@each_pipeline
def test_every_step_that_needs_a_model_gets_the_pipelines_own(pipeline: Pipeline) -> None:
    spec = read_spec(pipeline)
    named = 0
    for tasks in walk_dags(spec):
        for name, task in tasks.items():
            given = task.get("inputs", {}).get("parameters", {}).get("model")
            declared = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {})
            if "model" in declared.get("parameters", {}):
                assert given == {"runtimeValue": {"constant": pipeline.model}}, name
                named += 1
    assert named == 5


@each_pipeline
def test_nothing_is_deployed_unless_it_is_asked_for(pipeline: Pipeline) -> None:
    parameters = read_spec(pipeline)["root"]["inputDefinitions"]["parameters"]
    assert parameters["deploy"]["defaultValue"] is False


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["a == 'x'"], ["a == 'x'"]),
        (["a == 'x'", "!(a == 'x')"], []),
        (["a == 'x'", "!(a == 'x') && a == 'y'"], ["a == 'x'"]),
        ([], []),
    ],
    ids=["if", "if-else", "if-elif", "none"],
)
def test_check_of_conditions_finds_a_missing_else(conditions: list[str], expected: list[str]) -> None:
    tasks = {str(number): {"triggerPolicy": {"condition": text}} for number, text in enumerate(conditions)}
    assert list_open_conditions({"root": {"dag": {"tasks": tasks}}, "components": {}}) == expected


def read_with_older_kfp(path: Path) -> "subprocess.CompletedProcess[str]":
    if not OLDER_KFP.is_dir():
        pytest.skip(f"no {OLDER_KFP.name} beside the installed packages; make setup installs it")
    command = [sys.executable, str(READER), str(OLDER_KFP), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@each_pipeline
def test_older_kubeflow_pipelines_reads_the_yaml(pipeline: Pipeline) -> None:
    done = read_with_older_kfp(pipeline.compiled)
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout == f"{len(read_documents(pipeline.compiled))} documents\n"


@pytest.mark.parametrize(
    ("platform", "unknown"),
    [
        (
            {"deploymentSpec": {"executors": {}}, "pipelineConfig": {"activeDeadlineSeconds": 60}},
            "activeDeadlineSeconds",
        ),
        ({"deploymentSpec": {"executors": {"exec-a": {"newerThanTheServer": True}}}}, "newerThanTheServer"),
    ],
    ids=["pipeline", "executor"],
)
def test_field_of_a_newer_kfp_is_noticed(platform: dict[str, Any], unknown: str, tmp_path: Path) -> None:
    documents = [read_spec(PIPELINES[0]), {"platforms": {"kubernetes": platform}}]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    done = read_with_older_kfp(path)
    assert done.returncode != 0
    assert "ParseError" in done.stderr
    assert f'has no field named "{unknown}"' in done.stderr
