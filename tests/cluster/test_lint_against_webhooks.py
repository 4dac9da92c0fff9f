"""The linter and KServe's real webhooks, asked about the same objects: they agree, or lint_agreement.yaml says why not.

Every rule of the webhooks for InferenceServices, runtimes, graphs and trained models refuses at least one object of
that table. Nothing is stored: each object is created by a dry run, with strict field validation.

    python tests/cluster/test_lint_against_webhooks.py > docs/lint-agreement.md
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mlflywheel.lint import Document, lint_documents

if TYPE_CHECKING:
    from kserve_controller import KServe
    from rendered_manifests import Renderer

TABLE = Path(__file__).resolve().parent / "lint_agreement.yaml"
ROOT = Path(__file__).resolve().parents[2]
FUZZED = ROOT / "tests" / "fuzz" / "results" / "lint.json"
PAGE = ROOT / "docs" / "lint-agreement.md"
PLURALS = {
    "InferenceService": "inferenceservices",
    "ServingRuntime": "servingruntimes",
    "ClusterServingRuntime": "clusterservingruntimes",
    "InferenceGraph": "inferencegraphs",
    "TrainedModel": "trainedmodels",
    "ClusterStorageContainer": "clusterstoragecontainers",
}
_OF_CLUSTER = ("ClusterServingRuntime", "ClusterStorageContainer")
_SECONDS = 10


@dataclass(frozen=True)
class Case:
    """An object, what refuses it and what the linter finds."""

    id: str
    group: str
    value: dict[str, Any]
    refused: str = ""
    by: str = "webhook"
    errors: tuple[str, ...] = ()
    why: str = ""
    beside: list[dict[str, Any]] = field(default_factory=list)
    base: str = ""
    patch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the cluster says; no message where it takes the object."""

    message: str = ""
    from_webhook: bool = False


@cache
def read_cases() -> dict[str, Case]:
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    bases, cases = table["bases"], {}
    for group, entries in table["cases"].items():
        for entry in entries:
            value = merge(bases[entry["base"]], entry.get("patch", {}))
            beside = [deepcopy(bases[name]) for name in entry.get("beside", ())]
            assert entry["id"] not in cases
            cases[entry["id"]] = Case(
                **{**entry, "beside": beside, "errors": tuple(sorted(entry.get("errors", ())))},
                group=group,
                value=value,
            )
    return cases


def merge(value: Any, patch: Any) -> Any:
    """RFC 7386: mappings are merged, null removes, everything else replaces."""
    if not isinstance(patch, Mapping):
        return deepcopy(patch)
    merged = dict(deepcopy(value)) if isinstance(value, Mapping) else {}
    for key, change in patch.items():
        if change is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), change)
    return merged


def find_errors(value: Any, beside: list[dict[str, Any]]) -> tuple[str, ...]:
    """The linter's rules that find an error."""
    found = lint_documents([*map(Document, beside), Document(value)])
    return tuple(sorted({finding.rule for finding in found if finding.severity == "error"}))


def create(api: Any, namespace: str, value: Mapping[str, Any], *, dry_run: bool = True) -> Answer:
    """Create an object, or only ask what would come of it."""
    from kubernetes import client

    resources = client.CustomObjectsApi(api)
    group, _, version = value["apiVersion"].partition("/")
    options: dict[str, Any] = {"field_validation": "Strict"} | ({"dry_run": "All"} if dry_run else {})
    plural = PLURALS[value["kind"]]
    try:
        if value["kind"] in _OF_CLUSTER:
            resources.create_cluster_custom_object(group, version, plural, value, **options)
        else:
            resources.create_namespaced_custom_object(group, version, namespace, plural, value, **options)
    except client.ApiException as error:
        try:
            message = str(json.loads(error.body)["message"])
        except ValueError:
            message = str(error.body)
        # One that panics, or that cannot read the object, answers as well.
        return Answer(message, "admission webhook" in message)
    return Answer()


@contextlib.contextmanager
def standing(api: Any, namespace: str, values: list[dict[str, Any]]) -> Iterator[None]:
    """Let objects be there."""
    from kubernetes import client

    resources = client.CustomObjectsApi(api)
    for value in values:
        assert create(api, namespace, value, dry_run=False) == Answer()
    yield
    for value in values:
        group, _, version = value["apiVersion"].partition("/")
        plural, name = PLURALS[value["kind"]], value["metadata"]["name"]
        if value["kind"] in _OF_CLUSTER:
            resources.delete_cluster_custom_object(group, version, plural, name)
        else:
            resources.delete_namespaced_custom_object(group, version, namespace, plural, name)


def is_as_expected(case: Case, answer: Answer) -> bool:
    if not case.refused:
        return not answer.message
    return case.refused in answer.message and answer.from_webhook is (case.by == "webhook")


@pytest.fixture(scope="module")
def answers(kserve: "KServe") -> dict[str, Answer]:
    """What the cluster says of every object."""
    from control_plane import wait_until

    api = kserve.plane.api_client()
    namespace = kserve.plane.create_namespace()
    found = {}
    for case in read_cases().values():
        if not case.beside:
            found[case.id] = create(api, namespace, case.value)
            continue
        apart = kserve.plane.create_namespace()
        with standing(api, apart, case.beside):

            def ask(case: Case = case, apart: str = apart) -> bool:
                found[case.id] = create(api, apart, case.value)
                return is_as_expected(case, found[case.id])

            # The webhook's own list of what is there follows a moment later.
            with contextlib.suppress(TimeoutError):
                wait_until(ask, _SECONDS, case.id)
    return found


@pytest.mark.parametrize("name", read_cases())
def test_webhooks_say_what_the_table_says(answers: dict[str, Answer], name: str) -> None:
    case, answer = read_cases()[name], answers[name]
    assert is_as_expected(case, answer), answer


@pytest.mark.parametrize("name", read_cases())
def test_linter_says_what_the_table_says(name: str) -> None:
    case = read_cases()[name]
    assert find_errors(case.value, case.beside) == case.errors


def test_reasons_stand_where_only_one_of_them_refuses() -> None:
    for case in read_cases().values():
        assert bool(case.why) is (bool(case.refused) is not bool(case.errors)), case.id


def test_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == describe()


# Manifests


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> "Renderer":
    from rendered_manifests import Renderer

    return Renderer(tmp_path_factory.mktemp("overlays"))


def test_webhooks_take_every_manifest_that_is_not_reconciled_anyway(kserve: "KServe", render: "Renderer") -> None:
    from rendered_manifests import MANIFESTS, RENDERINGS, TRITON, VEHICLES, Rendering
    from test_overlays_reconciled import KNATIVE_MODE, STANDARD

    known = {one.folder for one in (*RENDERINGS, *VEHICLES, *TRITON)}
    folders = {f"manifests/{path.parent.relative_to(MANIFESTS)}" for path in MANIFESTS.rglob("kustomization.yaml")}
    # Whatever is added to the manifests later.
    others = [
        Rendering(folder)
        for folder in sorted(folders - known)
        if "kind: InferenceService" in "".join(path.read_text("utf-8") for path in (ROOT / folder).glob("*.yaml"))
        and "kind: Component" not in (ROOT / folder / "kustomization.yaml").read_text(encoding="utf-8")
    ]
    api, namespace = kserve.plane.api_client(), kserve.plane.create_namespace()
    asked = set()
    for rendering in {*RENDERINGS, *VEHICLES, *TRITON, *others} - {*STANDARD, *KNATIVE_MODE}:
        documents = [one for one in render(rendering) if one["apiVersion"].startswith("serving.kserve.io/")]
        for document in documents:
            asked.add((rendering, document["kind"]))
            assert create(api, namespace, document) == Answer(), f"{rendering}: {document['kind']}"
        assert find_errors(documents[-1], documents[:-1]) == (), rendering
    assert {kind for _, kind in asked} == {"InferenceService", "ServingRuntime", "ClusterServingRuntime"}
    assert len({one for one, _ in asked} | {*STANDARD, *KNATIVE_MODE}) >= len({*RENDERINGS, *VEHICLES, *TRITON})


# The page


def describe() -> str:
    """The page in Markdown."""
    cases = read_cases().values()
    refused = [case for case in cases if case.refused and case.errors]
    stricter = [case for case in cases if case.errors and not case.refused]
    laxer = [case for case in cases if case.refused and not case.errors]
    fuzzed = json.loads(FUZZED.read_text(encoding="utf-8"))
    both = len(cases) - len(refused) - len(stricter) - len(laxer)
    lines = [
        "# The linter and KServe's webhooks",
        "",
        "The same objects were shown to `mlflywheel lint` and, by a dry run with strict field validation, to the",
        "webhooks of the KServe that `tests/cluster/kserve_tools/go.mod` pins. Each rule of the webhooks for",
        "InferenceServices, serving runtimes, inference graphs and trained models that an object can reach refuses at",
        "least one of them.",
        "",
        f"Of {len(cases)} objects both take {both}, and both refuse {len(refused)}. The linter alone refuses",
        f"{len(stricter)}, and the cluster alone {len(laxer)}: the last column says why. A refusal by the schema comes",
        "before the webhooks: an unknown field, a type, a range.",
        "",
        "What the webhooks compare with an older state of an object is not here, for a linter sees one state: a",
        "deployment mode that changes, a `predictor.name` that changes without a new `storageUri`, the memory of a",
        "TrainedModel, workers that are removed from a runtime.",
        "",
        "This page is written by `python tests/cluster/test_lint_against_webhooks.py`, from",
        "`tests/cluster/lint_agreement.yaml`; a test asks the webhooks and the linter again and compares.",
        "",
        "`python tests/fuzz/lint.py` shows both objects that it changes at random: "
        f"{fuzzed['objects']:,} with seed {fuzzed['seed']} on KServe",
        f"{fuzzed['kserve']}, whose webhooks refused with {fuzzed['different_refusals_of_webhooks']} different",
        f"messages. Differences without a reason on this page: {len(fuzzed['differences'])}.",
        "",
        "| verdict | objects |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in fuzzed["verdicts"].items()),
    ]
    group = ""
    for case in cases:
        if case.group != group:
            group = case.group
            lines += ["", f"## {group}", "", "| object | cluster | linter | why they differ |", "|---|---|---|---|"]
        cluster = f"{case.by}: {case.refused}" if case.refused else "takes it"
        linter = ", ".join(f"`{name}`" for name in case.errors) or "no error"
        cells = (f"`{case.id}`", cluster, linter, case.why)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(describe())
