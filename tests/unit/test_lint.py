"""The linter: every rule on planted faults and on their neighbours, reading, and documents of any shape."""

import copy
import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflywheel.errors import UsageError
from mlflywheel.lint import (
    RULES,
    SEVERITIES,
    Document,
    Finding,
    describe_rules,
    lint_documents,
    lint_paths,
    read_text,
)

HERE = Path(__file__).parent / "lint_manifests"
ROOT = Path(__file__).resolve().parents[2]
BAD = sorted((HERE / "bad").glob("*.yaml"))
GOOD = sorted((HERE / "good").glob("*.yaml"))
#: It needs a folder, and has a test of its own.
WITHOUT_A_FILE = {"kustomization-skipped"}


def read_expected(path: Path) -> list[str]:
    match = re.search(r"^# Finds: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, f"{path.name} does not say what it is for"
    return match.group(1).split(", ")


def lint_text(text: str) -> list[Finding]:
    return lint_documents(read_text(text, "set.yaml"))


def find_one(findings: Sequence[Finding], rule: str) -> Finding:
    (found,) = [finding for finding in findings if finding.rule == rule]
    return found


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_planted_fault_is_found_and_nothing_else(path: Path) -> None:
    assert {finding.rule for finding in lint_paths([path])} == set(read_expected(path))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_manifest_has_no_finding(path: Path) -> None:
    assert [str(finding) for finding in lint_paths([path])] == []


def test_every_rule_has_a_bad_manifest_and_a_good_neighbour() -> None:
    bad = {read_expected(path)[0] for path in BAD}
    assert set(RULES) - bad == WITHOUT_A_FILE
    assert {path.name for path in BAD} - {path.name for path in GOOD} == set()
    assert all(re.fullmatch(rf"{read_expected(path)[0]}(-\d)?", path.stem) for path in BAD)


def test_the_page_of_rules_is_up_to_date() -> None:
    page = (ROOT / "docs" / "lint-rules.md").read_text(encoding="utf-8")
    assert page == describe_rules(), "write mlflywheel.lint.describe_rules() to docs/lint-rules.md"


def test_findings_say_where_why_and_what_to_do() -> None:
    findings = [finding for path in BAD for finding in lint_paths([path])]
    for finding in findings:
        assert finding.severity == RULES[finding.rule].severity
        assert not re.search(r"[.\n]$", finding.reason), finding
        assert not re.search(r"[.\n]$", finding.fix), finding
        assert finding.fix[0].islower(), finding
    assert {finding.severity for finding in findings} == set(SEVERITIES)


SERVICE = """\
# A comment.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: ad-campaigns
  namespace: team
  annotations:
    serving.kserve.io/deploymentMode: Standard
    serving.kserve.io/autoscalerClass: external
spec:
  predictor:
    canaryTrafficPercent: 10
    model:
      modelFormat: {name: ad-topics}
      storageUri: s3://models/ad-campaigns
"""


def test_a_finding_names_file_line_object_and_field() -> None:
    found = find_one(lint_text(SERVICE), "canary-field-for-mode")
    assert found.place == ("set.yaml:12: InferenceService team/ad-campaigns, spec.predictor.canaryTrafficPercent")
    assert found.line == 12
    assert found.severity == "error"
    assert "all traffic" in found.reason
    assert json.loads(json.dumps(found.to_dict()))["file"] == "set.yaml"
    assert str(found).startswith("set.yaml:12: ")


def test_a_missing_field_has_the_line_of_what_it_is_missing_from() -> None:
    text = SERVICE.replace("external", "hpa").replace("    canaryTrafficPercent: 10\n", "")
    found = find_one(lint_text(text), "no-max-replicas")
    assert found.place == "set.yaml:11: InferenceService team/ad-campaigns, spec.predictor.maxReplicas"


def test_lines_count_through_a_stream_of_documents() -> None:
    second = SERVICE.replace("name: ad-campaigns", "name: other")
    found = [finding for finding in lint_text(f"{SERVICE}---\n{second}") if finding.rule == "canary-field-for-mode"]
    assert [finding.line for finding in found] == [12, 28]


def test_items_of_a_list_are_objects_with_their_own_lines() -> None:
    items = "".join(f"    {line}\n" for line in SERVICE.splitlines()[1:]).replace("    ", "  - ", 1)
    found = find_one(lint_text(f"apiVersion: v1\nkind: List\nitems:\n{items}"), "canary-field-for-mode")
    assert found.line == 14
    assert found.place.endswith("InferenceService team/ad-campaigns, spec.predictor.canaryTrafficPercent")


def test_json_is_read_with_its_lines() -> None:
    text = json.dumps(yaml.safe_load(SERVICE), indent=1)
    found = find_one(lint_text(text), "canary-field-for-mode")
    assert "canaryTrafficPercent" in text.splitlines()[(found.line or 0) - 1]


def test_the_mode_decides_which_canary_field_is_wrong() -> None:
    assert "canary-field-for-mode" not in {
        finding.rule for finding in lint_text(SERVICE.replace("Standard", "Knative").replace("external", "none"))
    }
    legacy = lint_text(SERVICE.replace("Standard", "RawDeployment"))
    assert {"canary-field-for-mode", "deployment-mode-legacy"} <= {finding.rule for finding in legacy}


def test_an_annotation_silences_warnings_of_its_object_only() -> None:
    text = SERVICE.replace("external", "none").replace("    canaryTrafficPercent: 10\n", "")
    other = text.replace("name: ad-campaigns", "name: other")
    ignoring = text.replace("  annotations:\n", "  annotations:\n    mlflywheel.io/lint-ignore: single-replica\n")
    assert find_one(lint_text(f"{ignoring}---\n{other}"), "single-replica").place.endswith(
        "InferenceService team/other, spec.predictor.minReplicas"
    )


def test_an_annotation_silences_no_error_and_says_so() -> None:
    text = SERVICE.replace("  annotations:\n", "  annotations:\n    mlflywheel.io/lint-ignore: canary-field-for-mode\n")
    assert {finding.rule for finding in lint_text(text)} == {"canary-field-for-mode", "lint-ignore"}


def test_a_disruption_budget_of_another_namespace_protects_nothing() -> None:
    text = (HERE / "good" / "feature-standard-production.yaml").read_text(encoding="utf-8")
    documents = [document.value for document in read_text(text)]
    for value in documents:
        if value["kind"] == "PodDisruptionBudget":
            value["metadata"]["namespace"] = "elsewhere"
    found = lint_documents([Document(value) for value in documents])
    assert [finding.rule for finding in found] == ["no-disruption-budget"]


def test_a_service_is_judged_with_its_runtime_below_it() -> None:
    """Memory that the service asks for, and a limit that its runtime has."""
    path = HERE / "bad" / "requests-over-limits.yaml"
    found = find_one(lint_paths([path]), "requests-over-limits")
    assert "InferenceService" in found.place
    runtime_alone = [document for document in read_text(path.read_bytes()) if "Runtime" in document.value["kind"]]
    assert lint_documents(runtime_alone) == []


MODEL = {"modelFormat": {"name": "ad-topics"}, "storageUri": "s3://models/ad-campaigns"}
QUERY = {"metric": {"query": "sum(x)"}, "target": {"type": "Value", "value": "5"}}
CANARY = {"name": "next", "minReplicas": 1, "model": MODEL}


def build_service(mode: str, scaler: str | None, **predictor: Any) -> dict[str, Any]:
    """Build a service that has no error."""
    annotations = {"serving.kserve.io/deploymentMode": mode}
    if scaler:
        annotations["serving.kserve.io/autoscalerClass"] = scaler
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "ad-campaigns", "annotations": annotations},
        "spec": {"predictor": {"model": MODEL, **predictor}},
    }


def find_errors(*values: dict[str, Any]) -> list[tuple[str, str]]:
    """Lint objects; return rule and field of each error."""
    found = lint_documents([Document(value) for value in values])
    return [(each.rule, each.place.rpartition(", ")[2]) for each in found if each.severity == "error"]


def keda(*metrics: dict[str, Any]) -> dict[str, Any]:
    return build_service("Standard", "keda", autoScaling={"metrics": list(metrics)})


def resource(name: str, kind: str, **target: Any) -> dict[str, Any]:
    return {"type": "Resource", "resource": {"name": name, "target": {"type": kind, **target}}}


def canaries(*predictors: dict[str, Any], **stable: Any) -> dict[str, Any]:
    value = build_service("Standard", "none", **stable)
    value["spec"]["canary"] = [{"trafficPercent": 10, "predictor": predictor} for predictor in predictors]
    return value


def knative(**model: Any) -> dict[str, Any]:
    return build_service("Knative", None, model={**MODEL, **model})


METRIC = "spec.predictor.autoScaling.metrics[0]"


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        (keda({"type": "External", "external": QUERY}), []),
        (keda({"type": "PodMetric", "podmetric": QUERY}), []),
        (keda({"type": "PodMetric", "external": QUERY}), [("keda-metrics", METRIC)]),
        (keda({"type": "Pods", "pods": {}}), [("keda-metrics", f"{METRIC}.type")]),
        (keda({"type": "Resource"}), [("keda-metrics", METRIC)]),
        (keda(resource("gpu", "Utilization")), [("keda-metrics", f"{METRIC}.resource.name")]),
        (keda(resource("memory", "Utilization", averageUtilization=80)), []),
        (keda(resource("memory", "Value", value=1)), [("keda-metrics", f"{METRIC}.resource.target.type")]),
        (keda(resource("cpu", "Utilization")), [("keda-metrics", f"{METRIC}.resource.target")]),
        (
            keda(resource("cpu", "Utilization", averageUtilization=101)),
            [("keda-metrics", f"{METRIC}.resource.target.averageUtilization")],
        ),
        (
            build_service("Standard", "hpa", autoScaling={"metrics": [{"type": "Resource"}]}),
            [("hpa-metrics", METRIC)],
        ),
        (build_service("Standard", None, scaleTarget=150), []),
        (build_service("Standard", None, scaleTarget=0), [("scale-target", "spec.predictor.scaleTarget")]),
        (build_service("Knative", None, maxReplicas=-1), [("replica-bounds", "spec.predictor.maxReplicas")]),
        (canaries(CANARY), []),
        (canaries(CANARY, CANARY), [("canary-spec", "spec.canary[1].predictor.name")]),
        (canaries(CANARY, name="next"), [("canary-spec", "spec.canary[0].predictor.name")]),
        (canaries({**CANARY, "workerSpec": {}}), [("canary-spec", "spec.canary[0].predictor.workerSpec")]),
        (canaries({**CANARY, "maxReplicas": 0}), []),
        (
            canaries({**CANARY, "model": None}),
            [("one-implementation", "spec.canary[0].predictor")],
        ),
        (
            knative(storageUri="https://models.blob.core.windows.net/"),
            [("storage-scheme", "spec.predictor.model.storageUri")],
        ),
        (knative(storageUri="https://models.blob.core.windows.net/campaigns/3"), []),
        (knative(storageUri="models/campaigns"), []),
        (build_service("Knative", None, model={**MODEL, "storageUri": "x://y"}, storageContainerName="x"), []),
        (
            knative(storageUri=None, confidential={"enabled": True}),
            [("confidential", "spec.predictor.model.confidential")],
        ),
        (knative(storageUri=None, confidential={"enabled": False, "resourceId": "x"}), []),
        (
            build_service(
                "Knative",
                None,
                model={"modelFormat": {"name": "ad-topics"}},
                storageUris=[{"uri": "pvc://a", "mountPath": "/a"}, {"uri": "pvc://b", "mountPath": "/a"}],
            ),
            [("storage-uris", "spec.predictor.storageUris")],
        ),
        (
            build_service("Knative", None, model={"modelFormat": {"name": "ad-topics"}}, storageUris=[{"uri": ""}]),
            [("storage-uris", "spec.predictor.storageUris[0].uri")],
        ),
        (
            build_service(
                "Standard",
                "none",
                model={**MODEL, "storageUri": "pvc://a", "env": [{"name": "TENSOR_PARALLEL_SIZE", "value": "2"}]},
                workerSpec={"containers": [{"name": "worker-container"}, {"name": "other"}]},
            ),
            [
                ("multi-node", "spec.predictor.workerSpec.containers"),
                ("multi-node", "spec.predictor.model.env[0]"),
            ],
        ),
        (
            knative(securityContext={"runAsNonRoot": "no"}),
            [
                ("wrong-type", "spec.predictor.model.securityContext.runAsNonRoot"),
            ],
        ),
        (
            build_service("Knative", None, topologySpreadConstraints={}, volumes="none"),
            [("wrong-type", "spec.predictor.volumes")],
        ),
    ],
)
def test_errors_are_those_of_the_webhook(value: dict[str, Any], errors: list[tuple[str, str]]) -> None:
    assert find_errors(value) == errors


def build_runtime(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "topic-server"},
        "spec": {"supportedModelFormats": [{"name": "ad-topics", "version": "2", "autoSelect": True}], **spec},
    }


@pytest.mark.parametrize(
    ("model", "spec", "rule", "reason"),
    [
        ({}, {}, None, ""),
        ({}, {"disabled": True}, "runtime-not-selected", "is disabled"),
        ({"modelFormat": {"name": "ad-topics", "version": "1"}}, {}, "runtime-not-selected", "has version 2"),
        ({"modelFormat": {"name": "ad-topics", "version": "2"}}, {}, None, ""),
        ({}, {"multiModel": True}, "runtime-not-selected", "for several models"),
        ({}, {"protocolVersions": ["v2"]}, "runtime-not-selected", "asks for v1, the default"),
        ({"modelFormat": {"name": "other"}, "runtime": "topic-server"}, {}, "runtime-mismatch", "the format 'other'"),
        ({"runtime": "topic-server"}, {"protocolVersions": ["v2"]}, None, ""),
        ({"runtime": "topic-servers"}, {}, "runtime-unknown", "in reach: topic-server"),
        ({"modelFormat": {"name": "other"}}, {}, None, ""),
    ],
)
def test_a_runtime_is_selected_as_kserve_selects(
    model: dict[str, Any], spec: dict[str, Any], rule: str | None, reason: str
) -> None:
    found = lint_documents([Document(knative(**model)), Document(build_runtime(**spec))])
    mine = [finding for finding in found if finding.rule.startswith("runtime-")]
    assert [finding.rule for finding in mine] == ([rule] if rule else [])
    assert all(reason in finding.reason for finding in mine)


def test_a_runtime_of_another_namespace_is_not_selected() -> None:
    service, runtime = knative(runtime="topic-server"), build_runtime()
    service["metadata"]["namespace"], runtime["metadata"]["namespace"] = "a", "b"
    assert "runtime-unknown" in {finding.rule for finding in lint_documents([Document(service), Document(runtime)])}
    runtime["kind"] = "ClusterServingRuntime"
    assert "runtime-unknown" not in {finding.rule for finding in lint_documents([Document(service), Document(runtime)])}


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ({"key": "component", "operator": "In", "values": ["predictor"]}, True),
        ({"key": "component", "operator": "In", "values": ["transformer"]}, False),
        ({"key": "component", "operator": "NotIn", "values": ["predictor"]}, False),
        ({"key": "zone", "operator": "NotIn", "values": ["predictor"]}, True),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "Exists"}, False),
        ({"key": "zone", "operator": "DoesNotExist"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
    ],
)
def test_selectors_are_read_with_their_expressions(expression: dict[str, Any], selected: bool) -> None:
    spread = [{"topologyKey": "zone", "labelSelector": {"matchExpressions": [expression]}}]
    service = build_service("Standard", "none", minReplicas=2, topologySpreadConstraints=spread)
    rules = {finding.rule for finding in lint_documents([Document(service)])}
    assert ("topology-spread-selector" not in rules) is selected


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("API_KEY", "abc", True),
        ("awsSecretAccessKey", "abc", True),
        ("HF_TOKEN", "hf_abc", True),
        ("DB_PASSWORD", "abc", True),
        ("DB_PASSWORD", "$(PASSWORD_OF_SECRET)", False),
        ("DB_PASSWORD", "", False),
        ("ALLOW_EMPTY_PASSWORD", "yes", False),
        ("PASSWORD_FILE", "/run/password", False),
        ("MAX_TOKENS", "1000", False),
        ("TOKENIZER", "words", False),
        ("PARTITION_KEY", "campaign", False),
        ("MONKEY", "abc", False),
    ],
)
def test_secrets_are_told_from_other_variables_by_the_words_of_their_names(name: str, value: str, secret: bool) -> None:
    found = lint_documents([Document(knative(env=[{"name": name, "value": value}]))])
    assert ("literal-secret" in {finding.rule for finding in found}) is secret
    # Nothing repeats the secret.
    assert not any(value and value in str(finding) for finding in found if finding.rule == "literal-secret")


@pytest.mark.parametrize(
    ("image", "moves"),
    [
        ("registry.example/a:1", False),
        ("registry.example/a", True),
        ("registry.example:5000/a", True),
        ("registry.example:5000/a:1", False),
        ("a:latest", True),
        ("a:latest-gpu", True),
        (f"a:latest@sha256:{'0' * 64}", False),
    ],
)
def test_images_that_move_are_told_from_those_that_do_not(image: str, moves: bool) -> None:
    found = lint_documents([Document(knative(image=image))])
    assert ("moving-image-tag" in {finding.rule for finding in found}) is moves


def test_a_file_larger_than_any_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(2**25 + 1)
    assert "larger than 32 MiB" in find_one(lint_paths([tmp_path / "big.yaml"]), "unreadable").reason


def test_folders_are_read_with_all_below_and_without_kustomizations(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.yaml").write_text("{")
    (tmp_path / "base" / "service.yml").write_text(SERVICE)
    (tmp_path / "base" / "kustomization.yaml").write_text("resources: [service.yml]\n")
    (tmp_path / "notes.txt").write_text("{")
    found = lint_paths([tmp_path])
    assert [finding.rule for finding in found] == ["kustomization-skipped", "canary-field-for-mode"]
    assert found[0].severity == "note"
    assert "kubectl kustomize" in found[0].fix


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SERVICE.encode())))
    assert find_one(lint_paths(["-"]), "canary-field-for-mode").place.startswith("-:12: ")


def test_a_path_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        lint_paths([tmp_path / "manifest.yaml"])


def test_nothing_to_lint_is_an_error_and_not_a_clean_result(tmp_path: Path) -> None:
    assert [finding.rule for finding in lint_paths([tmp_path])] == ["no-manifests"]
    assert [finding.rule for finding in lint_paths([])] == ["no-manifests"]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"a: 1\nb: [\n", 3, "not YAML"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        (b"a: 1\n\tb: 2\n", 2, "not YAML"),
        (b"a: {{ .Values.b }}\n", 1, "a key is a mapping"),
        (b"a: *nothing\n", 1, "no anchor"),
        (b"a: &b [*b]\n", 1, "part of itself"),
        (b"[" * 100_000, 1, "nested deeper"),
        (b"\n".join(b" " * depth + b"a:" for depth in range(400)), 201, "nested deeper"),
    ],
)
def test_unreadable_files_are_findings_with_a_line(content: bytes, line: int, reason: str) -> None:
    found = find_one(lint_documents(read_text(content)), "unreadable")
    assert found.line == line
    assert reason in found.reason


def test_documents_before_a_syntax_error_are_still_linted() -> None:
    found = lint_text(f"{SERVICE}---\nb: [\n")
    assert {finding.rule for finding in found} == {"canary-field-for-mode", "unreadable"}


def test_aliases_that_multiply_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    started = time.process_time()
    assert find_one(lint_text("\n".join(lines)), "unreadable").reason.startswith("it has more than")
    assert time.process_time() - started < 1


def test_scalars_are_read_as_kubernetes_reads_them() -> None:
    text = "\n".join(
        [
            "- 2024-05-01", "- 12:30:00", "- 010", "- 0o10", "- 0x1F", "- 1_000", "- yes", "- 'yes'", "- ~", "-",
            "- 1.5", "- 1e3", "- !!str 5", "- 0x_", "- ._", "- 1.2.3", "- on", "- null", '- "1"', "- |\n  1\n",
            "- .nan",
        ]
    )  # fmt: skip
    (document,) = read_text(text)
    assert document.value == [
        "2024-05-01", "12:30:00", 8, 8, 31, 1000, True, "yes", None, None,
        1.5, 1000.0, "5", "0x_", "._", "1.2.3", True, None, "1", "1\n", ".nan",
    ]  # fmt: skip


def test_anchors_and_merge_keys_are_followed() -> None:
    text = "base: &base {a: 1, b: 2}\nlist:\n  - <<: *base\n    b: 3\n  - <<: [{c: 4}, *base]\n  - *base\n"
    (document,) = read_text(text)
    assert document.value["list"] == [{"a": 1, "b": 3}, {"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 2}]


def test_what_is_read_is_what_yaml_reads() -> None:
    """On the manifests of these tests, which have nothing that Kubernetes reads in another way."""
    for path in GOOD:
        text = path.read_text(encoding="utf-8")
        assert [document.value for document in read_text(text)] == list(yaml.safe_load_all(text))


def test_a_thousand_documents_take_less_than_two_seconds() -> None:
    text = (HERE / "good" / "feature-standard-production.yaml").read_text(encoding="utf-8")
    names = ("ad-campaigns", "topic-server", "ad-topics", "default-deny")
    parts = []
    for number in range(250):
        part = text
        for name in names:
            part = part.replace(name, f"{name}-{number}")
        parts.append(part)
    started = time.process_time()
    documents = list(read_text("---\n".join(parts)))
    found = lint_documents(documents)
    assert time.process_time() - started < 2
    assert (len(documents), found) == (1000, [])


def collect_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, child in children for below in collect_paths(child, (*path, key)))]


READABLE = [
    values
    for path in [*BAD, *GOOD]
    if (values := [document.value for document in read_text(path.read_bytes()) if document.value is not None])
]
JUNK = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2**200, 1.5, float("inf"), float("nan"), "", " ", "x" * 5000, "\ud800", "1e99",
        "100%", "999999999%", "$(A)", "://", "s3://", "\n", [], {}, [None], [[]], [{}], {"a": 1}, {1: 2}, {"": None},
        {"name": []}, [{"name": {}}], ["a"], "Standard", "Knative", "keda",
    ]
)  # fmt: skip


SCRAPS = [
    b"", b"\n", b": ", b"- ", b"*a", b"&a ", b"[", b"}", b"'", b"\x00", b"\xff", b"!!int ", b"<<: ", b"? ", b"|\n",
    b"\t", b"---\n", b"%YAML 3\n", b"9" * 500,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> list[Any]:
    """Draw a set of manifests in which some values are gone, are others, or stand elsewhere."""
    root: dict[str, Any] = {"root": thaw(draw(st.sampled_from(READABLE)))}
    for _ in range(draw(st.integers(1, 6))):
        paths = collect_paths(root)[1:]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        holder: Any = root
        for key in path[:-1]:
            holder = holder[key]
        kind = draw(st.sampled_from(["drop", "junk", "wrap", "move"]))
        if kind == "drop" and path != ("root",):
            del holder[path[-1]]
        elif kind == "wrap":
            holder[path[-1]] = draw(st.sampled_from([[holder[path[-1]]], {"name": holder[path[-1]]}]))
        elif kind == "move":
            other: Any = root
            for key in draw(st.sampled_from(paths)):
                other = other[key]
            holder[path[-1]] = copy.deepcopy(other)
        else:
            holder[path[-1]] = thaw(draw(JUNK))
    found = root["root"]
    return found if isinstance(found, list) else [found]


def thaw(value: Any) -> Any:
    """Copy a value as plain mappings and lists."""
    if isinstance(value, dict):
        return {key: thaw(child) for key, child in value.items()}
    return [thaw(child) for child in value] if isinstance(value, list) else value


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_documents_of_any_shape_yield_findings_and_nothing_else(values: list[Any]) -> None:
    before = repr(values)
    findings = lint_documents([Document(value, "set.yaml") for value in values])
    assert repr(values) == before
    for finding in findings:
        assert finding.rule in RULES
        assert finding.place.startswith(("set.yaml", "documents"))
        assert finding.reason
        assert finding.fix
        # A value of the manifest is never printed at length.
        assert len(str(finding)) < 2000
        json.dumps(finding.to_dict())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*BAD, *GOOD]), st.data())
def test_texts_of_any_kind_yield_findings_and_nothing_else(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content)))
        kept = data.draw(st.integers(0, 20))
        content[at : at + kept] = data.draw(st.sampled_from(SCRAPS))
    for finding in lint_documents(read_text(bytes(content), "set.yaml")):
        assert finding.rule in RULES
        assert finding.line is None or 1 <= finding.line <= content.count(b"\n") + 2
