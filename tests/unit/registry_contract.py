"""What every registry promises, as tests that run against each backend."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from mlflywheel.errors import RegistryError, UsageError
from mlflywheel.registry.records import TRANSITIONS, ModelRegistry, ModelVersion, State

PATHS_TO_STATE = {
    State.CANDIDATE: [],
    State.APPROVED: [State.APPROVED],
    State.LIVE: [State.APPROVED, State.LIVE],
    State.ARCHIVED: [State.ARCHIVED],
}


def register(registry: ModelRegistry, key: str = "run-1", name: str = "ad-campaigns", **changes: Any) -> ModelVersion:
    """Register a version with every kind of value, or with some of them changed."""
    content: dict[str, Any] = {
        "uri": f"s3://models/{name}/{key}",
        "format_name": "topic-fingerprints",
        "format_version": "1",
        "hash": f"sha256:{key}",
        "metrics": {"neighbour_purity_at_10": 0.1 + 0.2, "rows": 812.0},
        "parameters": {
            "topics": 30,
            "seed": 2**62 + 1,
            "low": -(10**9),
            "alpha": 0.5,
            "whole": 2.0,
            "sparse": True,
            "language": "Übersicht, 'x'",
        },
        "lineage": {"data": "sha256:d", "code": "abc", "run_id": key, "namespace": "team-a"},
        "description": "first",
    }
    content.update(changes)
    return registry.ensure_version(name, key=key, **content)


class RegistryContract:
    """Tests of `ModelRegistry`; a subclass's module has a fixture `registry`."""

    def test_first_version_is_candidate_one_with_all_it_was_given(self, registry: ModelRegistry) -> None:
        made = register(registry, endpoint="http://minio:9000", secret="keys", service_account="reader")
        found = registry.get("ad-campaigns", "1")
        assert found == made
        assert (found.version, found.state, found.reference) == ("1", State.CANDIDATE, "ad-campaigns@1")
        assert found.uri == "s3://models/ad-campaigns/run-1"
        assert (found.endpoint, found.secret, found.service_account) == ("http://minio:9000", "keys", "reader")
        assert (found.format_name, found.format_version) == ("topic-fingerprints", "1")
        assert (found.key, found.hash, found.description) == ("run-1", "sha256:run-1", "first")
        assert found.metrics == {"neighbour_purity_at_10": 0.1 + 0.2, "rows": 812.0}
        assert found.lineage == {"data": "sha256:d", "code": "abc", "run_id": "run-1", "namespace": "team-a"}
        kinds = {name: (type(value), value) for name, value in found.parameters.items()}
        assert kinds == {
            "topics": (int, 30),
            "seed": (int, 2**62 + 1),
            "low": (int, -(10**9)),
            "alpha": (float, 0.5),
            "whole": (float, 2.0),
            "sparse": (bool, True),
            "language": (str, "Übersicht, 'x'"),
        }
        assert abs(datetime.now(UTC) - found.created_at) < timedelta(minutes=1)
        assert json.loads(json.dumps(found.to_dict()))["reference"] == "ad-campaigns@1"

    def test_same_key_gives_same_version_and_no_history_row(self, registry: ModelRegistry) -> None:
        first = register(registry)
        again = register(registry, description="second try")
        assert again == first
        assert len(registry.list_versions("ad-campaigns")) == 1
        assert len(registry.history("ad-campaigns", "1")) == 1

    def test_retry_after_a_decision_keeps_the_decision(self, registry: ModelRegistry) -> None:
        register(registry)
        registry.set_state("ad-campaigns", "1", State.APPROVED, by="ann")
        assert register(registry).state == State.APPROVED

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"hash": "sha256:other"}, "hash 'sha256:run-1', now 'sha256:other'"),
            ({"uri": "s3://models/elsewhere"}, "uri 's3://models/ad-campaigns/run-1', now 's3://models/elsewhere'"),
            ({"format_version": "2"}, "format version '1', now '2'"),
            ({"metrics": {"neighbour_purity_at_10": 0.1 + 0.2}}, "metric rows 812.0, now None"),
            ({"lineage": {"data": "sha256:e"}}, "lineage code 'abc', now None (and 3 more)"),
            ({"secret": "keys"}, "secret '', now 'keys'"),
        ],
    )
    def test_same_key_with_other_content_is_refused(
        self, registry: ModelRegistry, change: dict[str, Any], named: str
    ) -> None:
        before = register(registry)
        with pytest.raises(RegistryError) as caught:
            register(registry, **change)
        assert named in str(caught.value)
        assert "new run's id" in caught.value.fix
        assert registry.list_versions("ad-campaigns") == [before]

    def test_truth_value_is_not_the_number_one(self, registry: ModelRegistry) -> None:
        register(registry, parameters={"sparse": True})
        with pytest.raises(RegistryError, match="parameter sparse True, now 1"):
            register(registry, parameters={"sparse": 1})

    def test_versions_count_up_within_a_model(self, registry: ModelRegistry) -> None:
        numbers = [register(registry, f"run-{i}").version for i in range(11)]
        assert numbers == [str(i + 1) for i in range(11)]
        assert register(registry, "run-0", "vehicle-prices").version == "1"
        assert [v.version for v in registry.list_versions("ad-campaigns")] == numbers
        assert registry.get("ad-campaigns").version == "11"
        assert [model.name for model in registry.list_models()] == ["ad-campaigns", "vehicle-prices"]

    def test_find_returns_the_newest_in_a_state(self, registry: ModelRegistry) -> None:
        assert registry.find("ad-campaigns", State.LIVE) is None
        for i in range(3):
            register(registry, f"run-{i}")
        assert registry.find("ad-campaigns", State.LIVE) is None
        for version in ("1", "2"):
            registry.set_state("ad-campaigns", version, State.APPROVED, by="ann")
            registry.set_state("ad-campaigns", version, State.LIVE, by="ann")
        live = registry.find("ad-campaigns", State.LIVE)
        candidate = registry.find("ad-campaigns", State.CANDIDATE)
        assert (live and live.version, candidate and candidate.version) == ("2", "3")

    @pytest.mark.parametrize("start", list(State))
    def test_only_listed_steps_are_legal(self, registry: ModelRegistry, start: State) -> None:
        for i, wanted in enumerate(State):
            version = register(registry, f"run-{i}").version
            for state in PATHS_TO_STATE[start]:
                registry.set_state("ad-campaigns", version, state, by="ann")
            if wanted == start or wanted in TRANSITIONS[start]:
                assert registry.set_state("ad-campaigns", version, wanted, by="ann").state == wanted
                assert registry.get("ad-campaigns", version).state == wanted
            else:
                with pytest.raises(RegistryError, match=f"{start} cannot become {wanted}"):
                    registry.set_state("ad-campaigns", version, wanted, by="ann")
                assert registry.get("ad-campaigns", version).state == start

    def test_history_has_a_row_a_step(self, registry: ModelRegistry) -> None:
        register(registry, by="run-1")
        registry.set_state("ad-campaigns", "1", "approved", by="ann", reason="purity is up")
        registry.set_state("ad-campaigns", "1", "approved", by="bob", reason="repeated")
        registry.set_state("ad-campaigns", "1", "archived", by="bob")
        rows = registry.history("ad-campaigns", "1")
        assert [(row.from_state, row.to_state, row.by, row.reason) for row in rows] == [
            (None, State.CANDIDATE, "run-1", ""),
            (State.CANDIDATE, State.APPROVED, "ann", "purity is up"),
            (State.APPROVED, State.ARCHIVED, "bob", ""),
        ]
        assert rows[0].at <= rows[1].at <= rows[2].at <= datetime.now(UTC)

    def test_a_step_changes_nothing_but_the_state(self, registry: ModelRegistry) -> None:
        before = register(registry).to_dict()
        after = registry.set_state("ad-campaigns", "1", "approved", by="ann").to_dict()
        assert {**before, "state": "approved"} == after

    def test_unknown_names_list_what_there_is(self, registry: ModelRegistry) -> None:
        with pytest.raises(RegistryError, match="no model ad-campaigns; registered models: none"):
            registry.get("ad-campaigns")
        register(registry)
        with pytest.raises(RegistryError, match="no model ad_campaigns; registered models: ad-campaigns"):
            registry.list_versions("ad_campaigns")
        for call in (
            lambda: registry.get("ad-campaigns", "2"),
            lambda: registry.get("ad-campaigns", "01"),
            lambda: registry.history("ad-campaigns", "x"),
            lambda: registry.set_state("ad-campaigns", "2", "approved", by="ann"),
        ):
            with pytest.raises(RegistryError, match="versions of ad-campaigns: 1"):
                call()

    def test_minio_address_is_registered_as_s3(self, registry: ModelRegistry) -> None:
        uri, endpoint = "minio://mlpipeline/v2/model", "http://minio-service.kubeflow:9000"
        made = register(registry, uri=uri, endpoint=endpoint, secret="keys")
        assert (made.uri, made.endpoint, made.secret) == ("s3://mlpipeline/v2/model", endpoint, "keys")
        assert register(registry, uri=uri, endpoint=endpoint, secret="keys") == made

    def test_numpy_scalars_are_values(self, registry: ModelRegistry) -> None:
        made = register(registry, metrics={"a": np.float32(0.5)}, parameters={"n": np.int64(3), "b": np.bool_(True)})
        assert registry.get("ad-campaigns", "1") == made
        assert (made.metrics, made.parameters) == ({"a": 0.5}, {"n": 3, "b": True})

    @pytest.mark.parametrize("text", ["a\\u0000b", "C:\\", "\\\\u0000\n", '"\\"'])
    def test_text_with_backslashes_comes_back(self, registry: ModelRegistry, text: str) -> None:
        registered = register(registry, lineage={"l": text}, parameters={"p": text})
        found = registry.get(registered.name, registered.version)
        assert (found.lineage["l"], found.parameters["p"]) == (text, text)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"name": "Ad_Campaigns"}, "model name 'Ad_Campaigns'"),
            ({"name": ""}, "model name ''"),
            ({"key": " "}, "key: empty"),
            ({"key": "k" * 201}, "201 characters"),
            ({"hash": ""}, "hash: empty"),
            ({"metrics": {"m": float("nan")}}, "metric m: nan"),
            ({"metrics": {"m": True}}, "metric m: True"),
            ({"metrics": {"": 1.0}}, "metric name ''"),
            ({"parameters": {"p": [1]}}, "parameter p: a list"),
            ({"parameters": {"p": float("inf")}}, "parameter p: inf"),
            ({"lineage": {"l": "a\x00b"}}, "null character"),
            ({"lineage": {"l": "a\ud800b"}}, "half a character"),
            ({"lineage": {"l": 3}}, "lineage l: 3"),
            ({"uri": "minio://b/k"}, "minio:// without an endpoint"),
            ({"uri": "models/1"}, "no scheme"),
            ({"by": ""}, "by: empty"),
        ],
    )
    def test_what_cannot_be_registered_is_named(
        self, registry: ModelRegistry, change: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            register(registry, **change)
        assert named in str(caught.value)
        assert registry.list_models() == []

    def test_no_state_and_nobody_are_refused(self, registry: ModelRegistry) -> None:
        register(registry)
        with pytest.raises(UsageError, match="one of candidate, approved, live, archived"):
            registry.set_state("ad-campaigns", "1", "champion", by="ann")
        with pytest.raises(UsageError, match="by: empty"):
            registry.set_state("ad-campaigns", "1", "approved", by="")

    def test_threads_share_numbers_and_never_a_key(self, registry: ModelRegistry) -> None:
        keys = [f"run-{i}" for i in range(8)]
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda key: register(registry, key), keys * 2))
        assert made[:8] == made[8:]
        assert sorted(int(v.version) for v in made[:8]) == list(range(1, 9))
        assert {v.key for v in registry.list_versions("ad-campaigns")} == set(keys)
