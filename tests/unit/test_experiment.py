"""An Experiment as it was read: a trial's resource, variables for trials, the hash of a search."""

import copy
import json
from pathlib import Path

import pytest

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Experiment, TrialTemplate
from mlflywheel.tuning.reader import read_experiment, read_experiment_file

FOLDER = Path(__file__).parent / "experiments"


def read(name: str) -> Experiment:
    return read_experiment_file(FOLDER / f"{name}.yaml")


def test_render_replaces_every_placeholder() -> None:
    experiment = read("random")
    rendered = experiment.template.render({"--rate": "0.05", "--depth": "4", "--loss": "huber"}, "shop-1", "team")
    assert rendered["metadata"] == {"name": "shop-1", "namespace": "team"}
    container = experiment.template.container(rendered)
    assert container is not None
    assert container["command"][3:] == ["--rate=0.05", "--depth=4", "--loss=huber"]
    assert "${" not in json.dumps(rendered)


def test_render_leaves_the_template_as_it_was() -> None:
    template = read("random").template
    before = copy.deepcopy(template.spec)
    template.render({"--rate": "1", "--depth": "2", "--loss": "huber"}, "shop-1")
    assert template.spec == before


def test_render_takes_values_from_the_trial_itself() -> None:
    template = read("metadata-references").template
    rendered = template.render({"alpha": "0.5"}, "clicks-1", "team")
    container = template.container(rendered)
    assert container is not None
    assert [entry["value"] for entry in container["env"]] == [
        "clicks-1",
        "team",
        "Job/batch/v1",
        "clicks",
        "a note; with spaces",
    ]
    assert rendered["metadata"]["labels"] == {"example.com/team": "clicks"}


@pytest.mark.parametrize("value", ['say "x"', "back\\slash", "line\nbreak", "größe"])
def test_render_keeps_any_value_whole(value: str) -> None:
    template = TrialTemplate("c", {"x": "x"}, {"spec": {"value": "<${trialParameters.x}>"}})
    assert template.render({"x": value}, "t")["spec"]["value"] == f"<{value}>"


def test_render_bears_metadata_without_content() -> None:
    template = TrialTemplate("c", {}, {"kind": "Other", "metadata": None})
    assert template.render({}, "t")["metadata"] == {"name": "t", "namespace": "default"}


def test_container_is_the_primary_one() -> None:
    template = read("metadata-references").template
    assert template.spec is not None
    found = template.container(template.spec)
    assert found is not None
    assert found["image"] == "ghcr.io/example/clicks:5"
    assert template.container({"spec": {"template": "text"}}) is None
    train_job = read("trained-job").template
    assert train_job.spec is not None
    assert train_job.container(train_job.spec) is None


def test_environment_is_set_on_the_primary_container_alone() -> None:
    experiment = read("metadata-references")
    changed = experiment.with_environment({"DATA": "s3://bucket/a b", "TRIAL": "replaced"})
    sidecar, main = changed.document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    assert "env" not in sidecar
    values = {entry["name"]: entry["value"] for entry in main["env"]}
    assert values["DATA"] == "s3://bucket/a b"
    assert values["TRIAL"] == "replaced"
    assert len(main["env"]) == 6
    assert changed.template.spec == changed.document["spec"]["trialTemplate"]["trialSpec"]


def test_environment_takes_secrets() -> None:
    source = {"secretKeyRef": {"name": "keys", "key": "token"}}
    changed = read("random").with_environment({"TOKEN": source})
    assert changed.template.spec is not None
    container = changed.template.container(changed.template.spec)
    assert container is not None
    assert container["env"] == [{"name": "TOKEN", "valueFrom": source}]


def test_environment_leaves_the_experiment_as_it_was_and_is_read_again() -> None:
    experiment = read("random")
    before = copy.deepcopy(experiment.document)
    changed = experiment.with_environment({"DATA": "x"})
    assert experiment.document == before
    assert read_experiment(json.dumps(changed.document)) == changed
    assert changed.spec_hash != experiment.spec_hash


@pytest.mark.parametrize("name", ["config-map", "trained-job", "tensorflow-events"])
def test_environment_needs_a_job(name: str) -> None:
    with pytest.raises(UsageError, match="write a batch/v1 Job into trialSpec"):
        read(name).with_environment({"DATA": "x"})


def test_hash_is_that_of_name_and_spec() -> None:
    experiment = read("random")
    document = json.loads(json.dumps(experiment.document))
    reordered = json.dumps(document, sort_keys=True)
    assert read_experiment(reordered).spec_hash == experiment.spec_hash
    document["metadata"]["labels"] = {"team": "another"}
    assert read_experiment(json.dumps(document)).spec_hash == experiment.spec_hash
    document["metadata"]["name"] = "another"
    assert read_experiment(json.dumps(document)).spec_hash != experiment.spec_hash
    document["metadata"]["name"] = experiment.name
    document["spec"]["maxTrialCount"] = 9
    assert read_experiment(json.dumps(document)).spec_hash != experiment.spec_hash
