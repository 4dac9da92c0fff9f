"""Rows of any table to a class: what is read, learned, answered, explained and saved, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mlflywheel.data.ingestion import ingest
from mlflywheel.errors import DataError, ModelError, ModelFilesError, UsageError
from mlflywheel.models.contract import load_model, load_model_class
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.models.tabular_classifier.onnx_graph import feed_table, run_graph
from mlflywheel.models.tabular_classifier.preparation import Facts, PrepareConfig
from mlflywheel.samples.credit_decisions import generate_credit_decisions

ALGORITHMS: dict[str, dict[str, Any]] = {
    "logistic": {},
    "boosted_trees": {"algorithm": "boosted_trees", "max_iter": 40},
}


def prepare(raw: pa.Table, **settings: Any) -> pa.Table:
    return TabularClassifier.prepare(raw, PrepareConfig.parse(settings, "test"))


def read_facts(table: pa.Table) -> Facts:
    facts = Facts.read(table)
    assert facts is not None
    return facts


def fit(table: pa.Table, **params: Any) -> TabularClassifier:
    return TabularClassifier.fit(table, TabularClassifier.Params.parse(params, "test"))


@pytest.fixture(scope="module")
def raw() -> pa.Table:
    return generate_credit_decisions(700)


@pytest.fixture(scope="module")
def unseen() -> pa.Table:
    return prepare(generate_credit_decisions(150, seed=11))


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def model(request: pytest.FixtureRequest, raw: pa.Table) -> TabularClassifier:
    return fit(prepare(raw), **ALGORITHMS[request.param])


def planted(rows: int = 400, seed: int = 0) -> pa.Table:
    """Two classes that `cause` decides but for a tenth of the rows; `colour` helps a little, `noise` not at all."""
    random = np.random.default_rng(seed)
    cause, noise = random.normal(size=rows), random.normal(size=rows)
    colour = random.choice(["red", "green", "blue"], rows)
    chance = 1 / (1 + np.exp(-(3 * cause + (colour == "red"))))
    return pa.table(
        {"noise": noise, "colour": colour, "cause": cause, "decision": np.where(random.random(rows) < chance, "y", "n")}
    )


# What is read.


def test_ingestion_gives_columns_that_nobody_declared_the_type_of_their_values(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,amount,code,account,flag,empty\n7,1.5,007,12345678901234567,True,\n8,,010,1,False,\n")
    read = ingest(str(path), TabularClassifier.columns, {}, other_columns=True)
    assert read.table.to_pylist()[0] == {
        "row_id": "7",
        "amount": 1.5,
        "code": "007",
        "account": "12345678901234567",
        "flag": "True",
        "empty": None,
    }
    pq.write_table(
        pa.table(
            {
                "id": [7, 8],
                "amount": [1.5, None],
                "code": ["007", "010"],
                "account": [12345678901234567, 1],
                "flag": [True, False],
                "empty": pa.nulls(2),
            }
        ),
        tmp_path / "table.parquet",
    )
    again = ingest(str(tmp_path / "table.parquet"), TabularClassifier.columns, {}, other_columns=True)
    assert again.version.hash == read.version.hash
    plain = ingest(str(path), TabularClassifier.columns, {})
    assert plain.table["amount"].to_pylist() == ["1.5", None]


def test_ids_of_the_file_are_kept_and_others_are_made_of_the_content() -> None:
    raw = pa.table({"a": [1.0, 1.0, 2.0], "decision": ["y", "n", "y"], "key": ["k1", None, " k3 "]})
    made = prepare(raw.drop_columns("key"))["row_id"].to_pylist()
    assert made[1] == f"{made[0]}-2"
    assert len(set(made)) == 3
    given = prepare(raw, id="key")
    assert given["row_id"].to_pylist() == ["k1", made[1], "k3"]
    assert read_facts(given).kinds == {"a": "number"}
    assert TabularClassifier.describe_table(given)["repeated_rows"] == 1
    # The class is not in it, so a row has the same id before and after its class is known.
    assert prepare(raw.select(["a"]))["row_id"].to_pylist() == made
    moved = raw.select(["decision", "a"])
    assert prepare(moved)["row_id"].to_pylist() == made


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        (["bad", "good", " good ", None, ""], None, [0.0, 1.0, 1.0, None, None]),
        (["bad", "good", "good", None, None], "bad", [1.0, 0.0, 0.0, None, None]),
        ([1, 2, 10, None, 2], 2, [0.0, 1.0, 0.0, None, 1.0]),
        ([9.0, 10.0, 9.0, None, None], None, [0.0, 1.0, 0.0, None, None]),
        ([True, False, None, None, None], None, [1.0, 0.0, None, None, None]),
        ([True, False, None, None, None], False, [0.0, 1.0, None, None, None]),
        (["1", "2", "2", None, None], 1, [1.0, 0.0, 0.0, None, None]),
    ],
)
def test_target_is_one_for_the_positive_class(values: list[Any], positive: Any, expected: list[Any]) -> None:
    raw = pa.table({"a": [1.0, 2.0, 3.0, 4.0, 5.0], "decision": pa.array(values)})
    assert prepare(raw, positive=positive)["target"].to_pylist() == expected


def test_columns_that_the_model_must_not_see_stay_as_attributes(raw: pa.Table) -> None:
    table = prepare(raw)
    facts = read_facts(table)
    assert facts.attributes == ("age", "sex")
    assert {"age", "sex"} <= set(table.column_names)
    assert not {"age", "sex"} & set(fit(table).encoder.features)
    seeing = prepare(raw, not_features=[])
    assert {"age", "sex"} <= set(fit(seeing).encoder.features)
    chosen = read_facts(prepare(raw, features=["age", "amount"]))
    assert set(chosen.kinds) == {"age", "amount"}
    assert "purpose" in chosen.attributes


def test_settings_say_what_is_a_number_and_what_a_category() -> None:
    raw = pa.table({"zone": [1, 2, 10], "size": ["5", "?", "7.5"], "decision": ["y", "n", "y"]})
    table = prepare(raw, categorical=["zone"], numeric=["size"])
    assert table["zone"].to_pylist() == ["1", "2", "10"]
    assert table["size"].to_pylist() == [5.0, None, 7.5]
    assert TabularClassifier.describe_table(table)["unreadable_size"] == 1
    assert prepare(raw)["size"].to_pylist() == ["5", "?", "7.5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "nr"}, "setting id: nr is no column"),
        ({"features": ["amuont"]}, "write amount"),
        ({"not_features": ["gender"]}, "setting not_features: gender is no column"),
        ({"target": "grade"}, "3 values"),
        ({"features": ["amount"], "not_features": ["amount"]}, "amount is in features and in not_features"),
        ({"not_features": ["amount", "grade", "age"]}, "none of the columns"),
        ({"features": ["decision"]}, "decision is the target"),
        ({"colour": 1}, "known names are"),
    ],
)
def test_settings_that_do_not_fit_the_table_are_refused(settings: dict[str, Any], message: str) -> None:
    raw = pa.table({"amount": [1.0, 2.0, 3.0], "age": [1, 2, 3], "grade": ["a", "b", "c"], "decision": ["y", "n", "y"]})
    with pytest.raises((DataError, UsageError), match=message):
        prepare(raw, **settings)


def test_names_that_answers_use_are_refused_as_features() -> None:
    with pytest.raises(DataError, match="column probability"):
        prepare(pa.table({"probability": [0.1], "decision": ["y"]}))


# What cannot be learned from.


@pytest.mark.parametrize(
    ("column", "settings", "message"),
    [
        (None, {}, "target column: it is none of amount"),
        (["y"] * 40, {}, r"y \(40\)"),
        (["y"] * 40, {"positive": "y"}, "every training row is y"),
        (["yes", "no"] * 20, {"positive": "yess"}, "Fix: write yes"),
        (["y", "n"] * 5 + [None] * 30, {}, "10 training rows"),
    ],
)
def test_table_without_two_classes_is_refused(column: Any, settings: dict[str, Any], message: str) -> None:
    raw = pa.table({"amount": np.arange(40.0)} | ({} if column is None else {"decision": pa.array(column)}))
    with pytest.raises(ModelError, match=message):
        fit(prepare(raw, **settings))


def test_rows_that_no_feature_tells_apart_are_refused() -> None:
    raw = pa.table({"a": [1.0] * 40, "name": [f"n{row}" for row in range(40)], "decision": ["y", "n"] * 20})
    with pytest.raises(ModelError, match="no two rows differ"):
        fit(prepare(raw))


def test_table_that_lost_its_facts_is_refused(raw: pa.Table) -> None:
    with pytest.raises(ModelError, match="no facts of preparing"):
        fit(prepare(raw).replace_schema_metadata(None))


# Answers.


def test_one_row_gets_the_bits_that_it_gets_in_a_batch(model: TabularClassifier, unseen: pa.Table) -> None:
    batch = model.predict(unseen)
    for row in range(0, unseen.num_rows, 7):
        assert model.predict(unseen.slice(row, 1)).equals(batch.slice(row, 1))
    reverse = pa.array(range(unseen.num_rows - 1, -1, -1))
    assert model.predict(unseen.take(reverse)).take(reverse).equals(batch)
    assert model.predict(unseen.slice(0, 0)).schema == batch.schema


def test_request_gets_the_bits_of_the_batch(model: TabularClassifier, unseen: pa.Table) -> None:
    """Requests are JSON: their columns may get other types than those of a file, alone and together."""
    features = list(model.encoder.features)
    requests = [
        TabularClassifier.Request.model_validate(
            json.loads(json.dumps({"row_id": row["row_id"], "values": {name: row[name] for name in features}}))
        )
        for row in unseen.slice(0, 40).to_pylist()
    ]
    batch = model.predict(unseen.slice(0, 40))
    assert model.predict(TabularClassifier.to_table(requests)).equals(batch)
    for row, request in enumerate(requests):
        assert model.predict(TabularClassifier.to_table([request])).equals(batch.slice(row, 1))
    mixed = [requests[0].model_copy(update={"values": {**requests[0].values, "amount": "many"}}), *requests[1:]]
    assert model.predict(TabularClassifier.to_table(mixed)).slice(1).equals(batch.slice(1))


def test_answer_has_the_documented_shape(model: TabularClassifier, unseen: pa.Table) -> None:
    for row in model.predict(unseen).to_pylist():
        answer = TabularClassifier.Response.model_validate(row)
        assert 0 < answer.probability < 1
        assert answer.label == ("good" if answer.probability >= 0.5 else "bad")
        assert len(answer.drivers) == 5
        sizes = [abs(driver.contribution) for driver in answer.drivers]
        assert sizes == sorted(sizes, reverse=True)


def test_example_request_is_answered_by_a_model_of_any_table() -> None:
    example = TabularClassifier.Request.model_validate(TabularClassifier.example_request())
    (answer,) = fit(prepare(planted())).predict(TabularClassifier.to_table([example])).to_pylist()
    assert set(answer["flags"]) == {"missing_noise", "missing_colour", "missing_cause"}
    assert [driver["contribution"] for driver in answer["drivers"]] == [0.0, 0.0, 0.0]


def test_what_the_model_cannot_know_is_flagged(model: TabularClassifier, unseen: pa.Table) -> None:
    good = unseen.filter(pa.array([not row["flags"] for row in model.predict(unseen).to_pylist()])).slice(0, 1)
    row = {name: good[name][0].as_py() for name in model.encoder.features}

    def ask(**values: Any) -> dict[str, Any]:
        request = TabularClassifier.Request(row_id="x", values={**row, **values})
        answer: dict[str, Any] = model.predict(TabularClassifier.to_table([request])).to_pylist()[0]
        return answer

    assert ask()["flags"] == []
    assert ask(purpose="yacht")["flags"] == ["unknown_purpose"]
    assert ask(purpose=None)["flags"] == ask(purpose="  ")["flags"] == ["missing_purpose"]
    assert ask(amount=10_000_000)["flags"] == ["amount_beyond_training"]
    assert ask(amount="a lot")["flags"] == ["unreadable_amount"]
    # A number goes on to count as the nearest that the training rows had.
    assert ask(amount=10_000_000)["probability"] == ask(amount=1e30)["probability"]
    # No training row lacked a purpose, so that nothing is known of that.
    assert {d["feature"]: d["contribution"] for d in ask(purpose=None)["drivers"]}.get("purpose", 0.0) == 0.0


@pytest.mark.parametrize(
    "values",
    [
        {"amount": float("nan")},
        {"amount": float("inf")},
        {"amount": [1]},
        {"amount": {"x": 1}},
        {"purpose": "x" * 1001},
        {"purpose": "\ud800"},
        {"\ud800": "x"},
        {f"c{number}": None for number in range(10_001)},
    ],
)
def test_values_that_no_column_holds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TabularClassifier.Request.model_validate({"values": values})


def test_threshold_moves_the_label_and_not_the_probability(raw: pa.Table, unseen: pa.Table) -> None:
    table = prepare(raw)
    usual, strict = fit(table).predict(unseen), fit(table, decision_threshold=0.8).predict(unseen)
    assert usual["probability"].equals(strict["probability"])
    probability = strict["probability"].to_numpy()
    assert strict["label"].to_pylist() == ["good" if one >= 0.8 else "bad" for one in probability]
    assert strict["label"].to_pylist() != usual["label"].to_pylist()


# Contributions.


def test_contributions_add_up_to_the_last_bit(model: TabularClassifier, unseen: pa.Table) -> None:
    found = model.explain(unseen)
    probability = model.predict(unseen)["probability"].to_numpy()
    for row, expected in zip(found.to_pylist(), probability, strict=True):
        parts = [driver["contribution"] for driver in row["drivers"]]
        assert {driver["feature"] for driver in row["drivers"]} == set(model.encoder.features)
        assert row["base_log_odds"] + sum(parts) == row["log_odds"]
        assert row["base_log_odds"] + sum(reversed(parts)) == row["log_odds"]
        assert 1 / (1 + np.exp(-row["log_odds"])) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_planted_driver_ranks_first(algorithm: str) -> None:
    model = fit(prepare(planted()), **ALGORITHMS[algorithm])
    rows = [row for row in prepare(planted(seed=1)).to_pylist() if abs(row["cause"]) > 1]
    found = model.predict(prepare(pa.Table.from_pylist(rows).drop_columns(["row_id", "target"]))).to_pylist()
    assert len(found) > 50
    assert np.mean([answer["drivers"][0]["feature"] == "cause" for answer in found]) > 0.97
    pushed = np.array([answer["drivers"][0]["contribution"] for answer in found])
    assert np.mean(np.sign(pushed) == np.sign([row["cause"] for row in rows])) > 0.97


def test_logistic_model_is_that_of_scikit_learn() -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    raw = planted(600)
    frame = raw.to_pandas()
    encoding = ColumnTransformer(
        [("numbers", StandardScaler(), ["noise", "cause"]), ("texts", OneHotEncoder(), ["colour"])]
    )
    theirs = make_pipeline(encoding, LogisticRegression(tol=1e-10, max_iter=1000))
    theirs.fit(frame, frame["decision"])
    ours = fit(prepare(raw)).predict(prepare(raw))["probability"].to_numpy()
    assert ours == pytest.approx(theirs.predict_proba(frame)[:, 1], abs=1e-6)


def test_trees_are_those_of_scikit_learn(raw: pa.Table) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    table = prepare(raw)
    model = fit(table, **ALGORITHMS["boosted_trees"])
    encoded = model.encoder.read(table.sort_by("row_id")).encoded
    target = table.sort_by("row_id")["target"].to_numpy()
    params = model.params
    theirs = HistGradientBoostingClassifier(
        learning_rate=params.learning_rate,
        max_iter=params.max_iter,
        max_leaf_nodes=params.max_leaf_nodes,
        min_samples_leaf=params.min_samples_leaf,
        l2_regularization=params.l2_regularization,
        early_stopping=False,
        random_state=0,
    ).fit(encoded, target)
    ours = model.classify(table.sort_by("row_id")).probability
    assert ours == pytest.approx(theirs.predict_proba(encoded)[:, 1], abs=1e-6)


# Files.


def test_equal_rows_give_equal_files_in_whatever_order(model: TabularClassifier, raw: pa.Table, tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(raw.num_rows)
    again = fit(prepare(raw.take(pa.array(order))), **model.params.model_dump())
    assert again.save(tmp_path / "again") == model.save(tmp_path / "model")


def test_loaded_model_answers_the_same(model: TabularClassifier, unseen: pa.Table, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, TabularClassifier)
    assert load_model_class("tabular-classifier") is TabularClassifier
    assert loaded.predict(unseen).equals(model.predict(unseen))
    assert loaded.evaluate(unseen) == model.evaluate(unseen)
    facts = loaded.describe()
    assert facts["not_features"] == "age, sex"
    assert facts["positive"] == "good"
    assert "onnx_difference" not in facts


def test_files_of_another_encoding_are_refused(raw: pa.Table, tmp_path: Path) -> None:
    model = fit(prepare(raw))
    model.save(tmp_path / "model")
    model.write(tmp_path / "model")
    values = json.loads((tmp_path / "model" / "logistic.json").read_text())
    values["effects"].append(0.0)
    (tmp_path / "model" / "logistic.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="effects"):
        TabularClassifier.read(tmp_path / "model")
    with pytest.raises(ModelFilesError, match="changed"):
        load_model(tmp_path / "model")


def test_graph_gives_the_probability(model: TabularClassifier, unseen: pa.Table) -> None:
    assert model.onnx_difference is not None
    assert model.onnx_difference < 1e-5
    found = run_graph(model.graph, feed_table(model.encoder, unseen))
    assert found == pytest.approx(model.predict(unseen)["probability"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_columns_may_have_the_names_of_a_graphs_inner_values(algorithm: str) -> None:
    names = {"cause": "constant_0", "noise": "where 3", "colour": "labelencoder_0"}
    raw = planted().rename_columns({**{name: name for name in ("decision",)}, **names})
    model = fit(prepare(raw), **ALGORITHMS[algorithm])
    plain = fit(prepare(planted()), **ALGORITHMS[algorithm])
    feed = feed_table(model.encoder, prepare(raw))
    assert run_graph(model.graph, feed) == pytest.approx(plain.classify(prepare(planted())).probability, abs=1e-5)


def test_rare_and_many_categories_share_a_column() -> None:
    random = np.random.default_rng(0)
    town = [f"town {number}" for number in np.minimum(random.geometric(0.05, 600), 80)]
    table = prepare(pa.table({"town": town, "decision": random.choice(["y", "n"], 600)}))
    model = fit(table, max_categories=10, min_category_rows=5)
    (category,) = model.encoder.categories
    assert len(category.levels) == 10
    assert category.has_rare
    answers = [model.predict(pa.table({"row_id": ["x"], "town": [one]})).to_pylist()[0] for one in ("town 80", "never")]
    assert answers[0]["probability"] == answers[1]["probability"]
    assert [answer["flags"] for answer in answers] == [["unknown_town"]] * 2
