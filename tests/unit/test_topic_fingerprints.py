"""`TopicFingerprints` end to end: what it learns, predicts, explains, extends and saves, for both algorithms."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_campaigns import campaigns_of, plant_campaigns
from pydantic import ValidationError

from mlflywheel.errors import DataError, ModelError, ModelFilesError, UsageError
from mlflywheel.models.contract import load_model, verify_model_folder
from mlflywheel.models.topic_fingerprints.model import (
    CampaignRequest,
    CampaignResponse,
    FitParams,
    TopicFingerprints,
)
from mlflywheel.models.topic_fingerprints.preparation import PrepareConfig

ALGORITHMS = ("rotated-lsa", "lda")


def fit(table: pa.Table, **params: Any) -> TopicFingerprints:
    return TopicFingerprints.fit(table, FitParams.model_validate({"num_topics": 8, **params}))


@pytest.fixture(scope="module")
def campaigns() -> pa.Table:
    return plant_campaigns()


@pytest.fixture(scope="module")
def fitted(campaigns: pa.Table) -> dict[str, TopicFingerprints]:
    return {algorithm: fit(campaigns, algorithm=algorithm) for algorithm in ALGORITHMS}


@pytest.fixture(params=ALGORITHMS)
def model(request: pytest.FixtureRequest, fitted: dict[str, TopicFingerprints]) -> TopicFingerprints:
    return fitted[request.param]


@pytest.fixture(scope="module")
def strangers() -> pa.Table:
    """Campaigns that no model here was fitted on."""
    return plant_campaigns(40, seed=9, prefix="new")


def verticals_near(model: TopicFingerprints, answer: dict[str, Any]) -> list[str]:
    known = dict(zip(model.catalogue["campaign_id"].to_pylist(), model.catalogue["vertical"].to_pylist(), strict=True))
    return [known[neighbour["campaign_id"]] for neighbour in answer["neighbours"]]


class TestPredicting:
    def test_answers_have_the_declared_shape(self, model: TopicFingerprints, strangers: pa.Table) -> None:
        scored = model.predict(strangers)
        assert scored["campaign_id"].to_pylist() == strangers["campaign_id"].to_pylist()
        for row in scored.to_pylist():
            answer = CampaignResponse.model_validate(row)
            assert sum(answer.fingerprint) == pytest.approx(1.0, abs=1e-5)
            assert len(answer.fingerprint) == model.num_topics
            assert len(answer.neighbours) == 10
            assert len(answer.recommended) == 10
            weights = [topic.weight for topic in answer.topics]
            assert weights == sorted(weights, reverse=True)
            assert weights[0] == max(answer.fingerprint)
            assert all(1 <= len(topic.terms) <= 3 for topic in answer.topics)
            assert answer.note is None

    def test_neighbours_are_of_the_same_vertical(self, model: TopicFingerprints, strangers: pa.Table) -> None:
        truth = strangers["vertical"].to_pylist()
        near = [verticals_near(model, row) for row in model.predict(strangers).to_pylist()]
        assert np.mean([[name == own for name in names] for names, own in zip(near, truth, strict=True)]) > 0.97

    def test_recommended_keywords_are_new_and_of_the_vertical(
        self, model: TopicFingerprints, strangers: pa.Table
    ) -> None:
        for campaign, answer in zip(strangers.to_pylist(), model.predict(strangers).to_pylist(), strict=True):
            terms = [keyword["term"] for keyword in answer["recommended"]]
            assert not set(terms) & set(campaign["terms"])
            assert np.mean([campaign["vertical"] in term for term in terms]) > 0.7
            near = {neighbour["campaign_id"] for neighbour in answer["neighbours"]}
            for keyword in answer["recommended"]:
                assert keyword["evidence"]["neighbours"]
                assert set(keyword["evidence"]["neighbours"]) <= near

    def test_a_campaign_of_the_catalogue_is_not_its_own_neighbour(
        self, model: TopicFingerprints, campaigns: pa.Table
    ) -> None:
        for row in model.predict(campaigns).to_pylist():
            assert row["campaign_id"] not in {neighbour["campaign_id"] for neighbour in row["neighbours"]}

    def test_batch_equals_single_bit_for_bit(self, model: TopicFingerprints, campaigns: pa.Table) -> None:
        both = pa.concat_tables([campaigns, plant_campaigns(40, seed=5, prefix="x")])
        together = model.predict(both)
        random = np.random.default_rng(0)
        for size in (1, 1, 1, 2, 7, 31):
            rows = pa.array(random.permutation(both.num_rows)[:size])
            assert model.predict(both.take(rows)).equals(together.take(rows).combine_chunks())
        assert model.predict(both.slice(60, 11)).equals(together.slice(60, 11).combine_chunks())

    def test_no_campaigns_give_no_rows(self, model: TopicFingerprints, campaigns: pa.Table) -> None:
        nothing = model.predict(campaigns.slice(0, 0))
        assert nothing.num_rows == 0
        assert nothing.schema == model.predict(campaigns.slice(0, 1)).schema

    def test_a_campaign_without_known_terms_says_so(self, model: TopicFingerprints) -> None:
        scored = model.predict(campaigns_of([], ["!!", " "], ["zyzzyva quux"], ["plumbing1 zyzzyva"])).to_pylist()
        assert [row["note"] for row in scored] == ["no terms", "no known terms", "no known terms", None]
        assert [row["unknown_share"] for row in scored] == [None, None, 1.0, 0.5]
        for row in scored[:3]:
            assert row["topics"] == row["neighbours"] == row["recommended"] == []
            assert sum(row["fingerprint"]) == pytest.approx(1.0, abs=1e-5)
            CampaignResponse.model_validate(row)
        assert scored[3]["neighbours"]

    def test_a_null_list_is_an_empty_campaign(self, model: TopicFingerprints) -> None:
        table = pa.table({"campaign_id": ["a"], "terms": pa.array([None], pa.list_(pa.string()))})
        assert model.predict(table)["note"].to_pylist() == ["no terms"]

    def test_one_term_is_enough(self, model: TopicFingerprints) -> None:
        (answer,) = model.predict(campaigns_of(["travel3 travel4"])).to_pylist()
        assert set(verticals_near(model, answer)[:5]) == {"travel"}

    def test_spelling_does_not_change_the_answer(self, model: TopicFingerprints) -> None:
        plain = model.predict(campaigns_of(["travel3 travel4", "shoes1"]))
        exported = model.predict(campaigns_of(['"TRAVEL3  travel4"', "[Shoes1]"]))
        assert plain.equals(exported)

    def test_a_hundred_thousand_terms_are_scored(self, model: TopicFingerprints) -> None:
        terms = [f"travel{number % 12} shoes{number % 7} extra{number}" for number in range(100_000)]
        (answer,) = model.predict(campaigns_of(terms)).to_pylist()
        assert len(answer["neighbours"]) == 10
        assert answer["unknown_share"] == pytest.approx(1 / 3, abs=1e-3)

    def test_a_locale_never_seen_is_scored_by_its_terms(self, model: TopicFingerprints, strangers: pa.Table) -> None:
        abroad = strangers.set_column(strangers.column_names.index("locale"), "locale", [["xx-XX"] * 40])
        assert model.predict(abroad).equals(model.predict(strangers))
        (answer,) = model.predict(campaigns_of(["給湯器の修理", "Ремонт"])).to_pylist()
        assert answer["note"] == "no known terms"

    def test_weights_shift_the_fingerprint(self, model: TopicFingerprints) -> None:
        table = pa.table(
            {
                "campaign_id": ["a", "b", "c"],
                "terms": [["travel3 travel4", "shoes1 shoes2"]] * 3,
                "weights": pa.array([[9.0, 1.0], [1.0, 9.0], [1.0, 0.0]], pa.list_(pa.float32())),
            }
        )
        first, second, alone = model.predict(table).to_pylist()
        assert verticals_near(model, first)[0] == "travel"
        assert verticals_near(model, second)[0] == "shoes"
        only = model.predict(campaigns_of(["travel3 travel4"])).to_pylist()[0]
        assert alone["fingerprint"] == only["fingerprint"]

    def test_raw_rows_are_refused(self, model: TopicFingerprints) -> None:
        with pytest.raises(DataError, match="preparation step"):
            model.predict(pa.table({"campaign_id": ["a"], "term": ["x"]}))

    def test_progress_reaches_its_end(self, model: TopicFingerprints, strangers: pa.Table) -> None:
        calls: list[tuple[str, int, int]] = []
        model.predict(strangers, lambda *call: calls.append(call))
        assert calls[-1] == ("scoring", 40, 40)


class TestFitting:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_the_order_of_campaigns_does_not_matter(self, algorithm: str, campaigns: pa.Table, tmp_path: Path) -> None:
        shuffled = campaigns.take(pa.array(np.random.default_rng(0).permutation(campaigns.num_rows)))
        chunked = pa.concat_tables([shuffled.slice(0, 50), shuffled.slice(50)]).replace_schema_metadata({"a": "b"})
        first = fit(campaigns, algorithm=algorithm).save(tmp_path / "a")
        assert fit(chunked, algorithm=algorithm).save(tmp_path / "b") == first

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_topics_are_named_by_their_vertical(self, algorithm: str, fitted: dict[str, TopicFingerprints]) -> None:
        model = fitted[algorithm]
        assert [topic.id for topic in model.named] == list(range(model.num_topics))
        led = {max(set(words), key=words.count) for topic in model.named if (words := _stems(topic.terms[:5]))}
        assert led >= {"plumbing", "dentistry", "travel", "shoes", "software", "gardening"}

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize(
        "terms",
        [
            [["water heater", "drain"]],
            [["water heater", "drain"]] * 2,
            [["water heater", "drain"]] * 40,
            [["tea"], ["tea"], ["milk"]],
            [["tea"], []],
            [["tea cup", "pot"], ["tea pot"], ["cup"], [], ["!!"]],
        ],
        ids=["one", "two equal", "forty equal", "one word each", "one and an empty one", "five small"],
    )
    def test_corpora_smaller_than_the_topics_work(self, algorithm: str, terms: list[list[str]], tmp_path: Path) -> None:
        table = campaigns_of(*terms)
        model = fit(table, algorithm=algorithm, num_topics=50, text={"minimum_campaigns": 1})
        assert 1 <= model.num_topics <= len(terms)
        scored = model.predict(table)
        for own, row in zip(terms, scored.to_pylist(), strict=True):
            CampaignResponse.model_validate(row)
            others = sum(bool(_stems(other)) for other in terms) - bool(_stems(own))
            assert len(row["neighbours"]) == (min(10, others) if row["note"] is None else 0)
            assert all(np.isfinite(near["similarity"]) for near in row["neighbours"])
        model.save(tmp_path / "model")
        assert TopicFingerprints.load(tmp_path / "model").predict(table).equals(scored)
        assert model.explain(table).num_rows == len(terms) * model.num_topics

    def test_equal_campaigns_have_equal_fingerprints_and_are_nearest(self, campaigns: pa.Table) -> None:
        twin = campaigns.slice(3, 1).set_column(0, "campaign_id", [["twin"]])
        for algorithm in ALGORITHMS:
            model = fit(pa.concat_tables([campaigns, twin]), algorithm=algorithm)
            first, second = model.predict(pa.concat_tables([campaigns.slice(3, 1), twin])).to_pylist()
            assert first["fingerprint"] == second["fingerprint"]
            assert first["neighbours"][0] == {"campaign_id": "twin", "similarity": pytest.approx(1.0, abs=1e-6)}
            assert second["neighbours"][0]["campaign_id"] == first["campaign_id"]

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("terms", [[], [[]], [["!!"], [" "]]], ids=["no campaigns", "no terms", "no words"])
    def test_nothing_to_learn_from_is_refused(self, algorithm: str, terms: list[list[str]]) -> None:
        with pytest.raises(ModelError):
            fit(campaigns_of(*terms), algorithm=algorithm)

    def test_columns_that_a_model_can_do_without_may_be_missing(self) -> None:
        table = plant_campaigns(30).select(["campaign_id", "terms"])
        model = fit(table)
        assert model.extend(plant_campaigns(3, seed=4, prefix="x")).catalogue.num_rows == 33
        assert model.predict(table).num_rows == 30

    def test_lists_are_as_long_as_asked_for(self, campaigns: pa.Table) -> None:
        model = fit(campaigns, neighbours=3, recommendations=0)
        rows = model.predict(campaigns).to_pylist()
        assert {len(row["neighbours"]) for row in rows} == {3}
        assert all(row["recommended"] == [] for row in rows)

    def test_description_tells_what_was_fitted(self, model: TopicFingerprints) -> None:
        facts = model.describe()
        assert facts["algorithm"] == model.params.algorithm
        assert facts["catalogue_campaigns"] == 120
        assert facts["num_topics"] == len(model.named)
        assert facts["vocabulary_terms"] == len(model.vocabulary)
        assert facts["dictionary_hash"] == model.dictionary_hash

    def test_models_of_one_vocabulary_have_one_dictionary_hash(
        self, fitted: dict[str, TopicFingerprints], campaigns: pa.Table, strangers: pa.Table
    ) -> None:
        first, second = (model.versions() for model in fitted.values())
        assert first == second == fitted["lda"].extend(strangers).versions()
        assert re.fullmatch("sha256:[0-9a-f]{64}", first["dictionary_hash"])
        assert fit(campaigns, text={"bigrams": False}).versions() != first

    def test_spacy_lemmas_work_from_fit_to_load(self, tmp_path: Path) -> None:
        pytest.importorskip("spacy", reason="needs mlflywheel[spacy]")
        pytest.importorskip("spacy_lookups_data", reason="needs mlflywheel[spacy]")
        table = campaigns_of(
            ["water heaters", "drain"], ["water heater", "drains"], ["shoe", "boot"], ["shoes", "boots"]
        )
        model = fit(table, text={"tokenizer": "spacy"}, num_topics=2)
        assert "heater" in model.vocabulary.words
        assert "heaters" not in model.vocabulary.words
        model.save(tmp_path / "model")
        asked = campaigns_of(["boots"], ["heaters"])
        loaded = TopicFingerprints.load(tmp_path / "model")
        assert loaded.predict(asked).equals(model.predict(asked))
        assert loaded.predict(asked).to_pylist()[0]["neighbours"][0]["campaign_id"] in ("q2", "q3")


def _stems(terms: Any) -> list[str]:
    return ["".join(filter(str.isalpha, word)) for term in terms for word in term.split() if word[0].isalpha()]


class TestParameters:
    def test_parameters_survive_json(self) -> None:
        params = FitParams.parse({"num_topics": 12, "lda": {"passes": 3}, "text": {"bigrams": False}}, "--params")
        again = FitParams.parse(json.dumps(params.model_dump(mode="json")), "summary")
        assert again.model_dump() == params.model_dump()
        assert again.lda.passes == 3

    @pytest.mark.parametrize("nested", ["rotated_lsa", "lda"])
    @pytest.mark.parametrize("name", ["num_topics", "seed"])
    def test_a_number_has_one_place(self, nested: str, name: str) -> None:
        with pytest.raises(UsageError, match=f"{name} must be set at the top level"):
            FitParams.parse({nested: {name: 3}}, "--params")
        assert name not in FitParams().model_dump()[nested]

    def test_the_shared_numbers_reach_the_algorithm(self, campaigns: pa.Table) -> None:
        assert fit(campaigns, num_topics=4).num_topics == 4
        assert fit(campaigns, num_topics=4, algorithm="lda").topics.params.seed == 0


class TestSaving:
    def test_a_loaded_model_gives_the_same_bits(
        self, model: TopicFingerprints, strangers: pa.Table, tmp_path: Path
    ) -> None:
        saved_hash = model.save(tmp_path / "model")
        loaded = load_model(tmp_path / "model")
        assert isinstance(loaded, TopicFingerprints)
        assert loaded.predict(strangers).equals(model.predict(strangers))
        assert loaded.explain(strangers.slice(0, 2)).equals(model.explain(strangers.slice(0, 2)))
        assert loaded.describe() == model.describe()
        assert loaded.versions() == model.versions()
        assert loaded.save(tmp_path / "again") == saved_hash
        assert verify_model_folder(tmp_path / "model")["facts"] == model.describe()

    def test_files_are_data(self, model: TopicFingerprints, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json", ".npy", ".parquet"}
        for path in files:
            if path.suffix == ".npy":
                np.load(path, allow_pickle=False)

    def test_any_changed_file_is_named(self, model: TopicFingerprints, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        names = [p.relative_to(tmp_path / "model") for p in (tmp_path / "model").rglob("*") if p.is_file()]
        for name in set(names) - {Path("manifest.json")}:
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "model", copy)
            content = bytearray((copy / name).read_bytes())
            content[len(content) // 2] ^= 1
            (copy / name).write_bytes(content)
            with pytest.raises(ModelFilesError) as caught:
                TopicFingerprints.load(copy)
            assert name.name in caught.value.where
            shutil.rmtree(copy)

    def test_all_settings_are_saved_and_not_only_the_changed_ones(self, tmp_path: Path, campaigns: pa.Table) -> None:
        fit(campaigns).save(tmp_path / "model")
        saved = json.loads((tmp_path / "model" / "model.json").read_text())["params"]
        assert saved["text"]["minimum_campaigns"] == 2
        assert saved["rotated_lsa"]["smoothing"] == 0.1

    def test_another_process_saves_the_same_hash(self, fitted: dict[str, TopicFingerprints], tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from planted_campaigns import plant_campaigns\n"
            "from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints\n"
            "for algorithm in ('rotated-lsa', 'lda'):\n"
            "    model = TopicFingerprints.fit(plant_campaigns(), FitParams(num_topics=8, algorithm=algorithm))\n"
            "    print(model.save(Path(sys.argv[1]) / algorithm))\n"
        )
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "2",
        }
        there = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "there")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split() == [fitted[name].save(tmp_path / name) for name in ALGORITHMS]


class TestRequests:
    def test_the_example_is_valid_and_scored(self, model: TopicFingerprints) -> None:
        request = model.Request.model_validate(model.example_request())
        (answer,) = model.predict(model.to_table([request])).to_pylist()
        assert CampaignResponse.model_validate(answer).campaign_id == "example"

    def test_requests_become_prepared_campaigns(self) -> None:
        requests = [
            CampaignRequest(terms=["a", "b"]),
            CampaignRequest(campaign_id="x", terms=["c"], weights=[2.5]),
            CampaignRequest(terms=[], weights=[]),
        ]
        assert TopicFingerprints.to_table(requests).to_pylist() == [
            {"campaign_id": "", "terms": ["a", "b"], "weights": [1.0, 1.0]},
            {"campaign_id": "x", "terms": ["c"], "weights": [2.5]},
            {"campaign_id": "", "terms": [], "weights": []},
        ]

    def test_the_terms_of_a_topic_are_written_as_they_were_cleaned(self, model: TopicFingerprints) -> None:
        (answer,) = model.predict(campaigns_of(['"TRAVEL3  travel4"', "[Shoes1]", "zyzzyva"])).to_pylist()
        named = {topic["terms"][0] for topic in answer["topics"] if topic["weight"] > 0.2}
        assert named == {"travel3 travel4", "shoes1"}

    def test_a_request_equals_the_same_prepared_row(self, model: TopicFingerprints, strangers: pa.Table) -> None:
        row = strangers.slice(0, 1).to_pylist()[0]
        request = CampaignRequest(campaign_id=row["campaign_id"], terms=row["terms"])
        assert model.predict(model.to_table([request])).equals(model.predict(strangers.slice(0, 1)))

    @pytest.mark.parametrize(
        ("instance", "message"),
        [
            ({}, "terms"),
            ({"terms": ["a", "b"], "weights": [1.0]}, "1 weights for 2 terms: give one weight a term"),
            ({"terms": ["a"], "weights": []}, "0 weights for 1 terms"),
            ({"terms": ["a"], "weights": [-1.0]}, "greater than or equal to 0"),
            ({"terms": ["a"], "weights": [math.nan]}, "finite number"),
            ({"terms": ["a"], "weights": [math.inf]}, "finite number"),
            ({"terms": ["a"], "weights": [1e30]}, "less than or equal to"),
            ({"terms": [None]}, "valid string"),
            ({"terms": ["\ud800"]}, "send valid Unicode"),
            ({"terms": [], "campaign_id": "\udfff"}, "send valid Unicode"),
            ({"terms": "abc"}, "valid list"),
            ({"terms": ["a"], "weigths": [1.0]}, "Extra inputs"),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_a_wrong_request_is_refused_by_name(self, instance: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            CampaignRequest.model_validate(instance)


class TestExtending:
    def test_topics_stay_and_campaigns_are_added(
        self, model: TopicFingerprints, campaigns: pa.Table, strangers: pa.Table
    ) -> None:
        extended = model.extend(strangers)
        assert extended.named == model.named
        assert extended.catalogue.num_rows == 160
        before, after = model.predict(campaigns), extended.predict(campaigns)
        assert after["fingerprint"].equals(before["fingerprint"])
        assert after["topics"].equals(before["topics"])
        shown = {near["campaign_id"] for row in after.to_pylist() for near in row["neighbours"]}
        assert any(name.startswith("new") for name in shown)
        # The model that was evaluated is as it was.
        assert model.catalogue.num_rows == 120
        assert model.predict(campaigns).equals(before)

    def test_extending_equals_one_catalogue_whatever_the_order(
        self, model: TopicFingerprints, strangers: pa.Table, tmp_path: Path
    ) -> None:
        at_once = model.extend(strangers).save(tmp_path / "a")
        in_parts = model.extend(strangers.slice(20)).extend(strangers.slice(0, 20)).save(tmp_path / "b")
        assert at_once == in_parts

    def test_an_id_that_is_there_is_replaced(self, model: TopicFingerprints) -> None:
        first = model.catalogue["campaign_id"][0].as_py()
        replacement = campaigns_of(["software1 software2", "software3"]).set_column(0, "campaign_id", [[first]])
        extended = model.extend(replacement)
        assert extended.catalogue.num_rows == 120
        (row,) = extended.catalogue.slice(0, 1).to_pylist()
        assert row["terms"] == ["software1 software2", "software3"]
        assert row["vertical"] is None
        again = extended.predict(replacement).to_pylist()[0]
        assert verticals_near(extended, again)[0] == "software"

    def test_other_attributes_are_left_out_or_null(self, model: TopicFingerprints) -> None:
        table = campaigns_of(["travel1 travel2"]).append_column("account", [["one"]])
        extended = model.extend(table)
        assert extended.catalogue.column_names == model.catalogue.column_names
        assert extended.catalogue.filter(pa.compute.equal(extended.catalogue["campaign_id"], "q0")).to_pylist() == [
            {
                "campaign_id": "q0",
                "terms": ["travel1 travel2"],
                "weights": [1.0],
                "vertical": None,
                "advertiser_tier": None,
                "locale": None,
            }
        ]

    def test_campaigns_without_known_terms_are_kept_and_near_nobody(
        self, model: TopicFingerprints, campaigns: pa.Table, tmp_path: Path
    ) -> None:
        extended = model.extend(campaigns_of(["zyzzyva"], []))
        assert extended.catalogue.num_rows == 122
        shown = {near["campaign_id"] for row in extended.predict(campaigns).to_pylist() for near in row["neighbours"]}
        assert not shown & {"q0", "q1"}
        extended.save(tmp_path / "model")
        assert TopicFingerprints.load(tmp_path / "model").predict(campaigns).equals(extended.predict(campaigns))

    def test_nothing_to_add_changes_nothing(self, model: TopicFingerprints, tmp_path: Path) -> None:
        empty = model.catalogue.slice(0, 0)
        assert model.extend(empty).save(tmp_path / "a") == model.save(tmp_path / "b")


class TestGensim:
    def test_rotated_lsa_becomes_tfidf_and_lsi(self, fitted: dict[str, TopicFingerprints]) -> None:
        model = fitted["rotated-lsa"]
        dictionary, (tfidf, lsi) = model.to_gensim()
        bow = dictionary.doc2bow(["travel1", "travel2", "travel1 travel2", "unknown"])
        assert len(bow) == 3
        coordinates = dict(lsi[tfidf[bow]])
        (answer,) = model.predict(campaigns_of(["travel1 travel2"])).to_pylist()
        assert max(coordinates, key=lambda topic: coordinates[topic]) == answer["topics"][0]["id"]

    def test_lda_becomes_an_lda_model(self, fitted: dict[str, TopicFingerprints]) -> None:
        model = fitted["lda"]
        dictionary, (lda,) = model.to_gensim()
        bow = dictionary.doc2bow(["travel1", "travel2", "travel1 travel2"])
        shares = dict(lda.get_document_topics(bow, minimum_probability=0))
        (answer,) = model.predict(campaigns_of(["travel1 travel2"])).to_pylist()
        assert max(shares, key=lambda topic: shares[topic]) == answer["topics"][0]["id"]

    def test_the_dictionary_counts_the_catalogue_as_we_do(self, fitted: dict[str, TopicFingerprints]) -> None:
        model = fitted["rotated-lsa"]
        dictionary, _ = model.to_gensim()
        assert dictionary.token2id == {word: column for column, word in enumerate(model.vocabulary.words)}
        assert PrepareConfig() == model.Config()
