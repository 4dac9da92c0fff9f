"""The predictor serves a classifier of any table: V1 and V2 give the batch answer; odd rows are flagged or refused."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from running_server import RunningServer

from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.samples.credit_decisions import generate_credit_decisions

NAME = "credit-decisions"


@pytest.fixture(scope="module")
def model() -> TabularClassifier:
    table = TabularClassifier.prepare(generate_credit_decisions(600), TabularClassifier.Config())
    return TabularClassifier.fit(table, TabularClassifier.Params(algorithm="boosted_trees", max_iter=30))


@pytest.fixture(scope="module")
def classifier(model: TabularClassifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("classifier") / "model"
    model.save(folder)
    running = RunningServer(folder, "--model_version=1", name=NAME)
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def read_outputs(answer: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {
        output["name"]: [json.loads(text) for text in output["data"]]
        if output["name"] in ("flags", "drivers")
        else output["data"]
        for output in answer["outputs"]
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_v1_and_v2_give_the_answers_of_the_batch(model: TabularClassifier, classifier: RunningServer) -> None:
    table = TabularClassifier.prepare(generate_credit_decisions(130, seed=11), TabularClassifier.Config())
    batch = model.predict(table).to_pylist()
    features = model.encoder.features
    instances = [
        {"row_id": row["row_id"], "values": {name: row[name] for name in features}} for row in table.to_pylist()
    ]
    assert classifier.predict(instances).json()["predictions"] == batch
    inputs = [
        {
            "name": "row_id",
            "datatype": "BYTES",
            "shape": [len(batch)],
            "data": [instance["row_id"] for instance in instances],
        },
        {
            "name": "values",
            "datatype": "BYTES",
            "shape": [len(batch)],
            "data": [json.dumps(instance["values"]) for instance in instances],
        },
    ]
    assert read_outputs(classifier.infer({"inputs": inputs}).json()) == batch
    assert [classifier.predict([instance]).json()["predictions"][0] for instance in instances[:5]] == batch[:5]


def test_odd_rows_are_flagged_or_refused(classifier: RunningServer) -> None:
    example = TabularClassifier.example_request()
    (answer,) = classifier.predict([example]).json()["predictions"]
    assert "missing_checking_account" in answer["flags"]
    (empty,) = classifier.predict([{"values": {}}]).json()["predictions"]
    assert {driver["value"] for driver in empty["drivers"]} == {None}
    for body in ({"values": {"amount": [1]}}, {"values": None}, {"amount": 5}, {"values": {"amount": "x" * 2000}}):
        refused = classifier.predict([body])
        assert refused.status_code == 400
        assert "Fix: " in refused.json()["error"]
    assert classifier.events("defect") == []
