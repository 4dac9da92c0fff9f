"""Change valid KServe objects at random, and see that the linter and KServe's real webhooks refuse the same ones.

    python tests/fuzz/lint.py --objects 5000 --seed 0 --out summary.json

Needs `make cluster-tools`. Each object is made from the seed and its number alone, so `--first 4711 --objects 1 --show`
repeats object 4711. It starts as one of tests/cluster/lint_agreement.yaml and gets one to three changes: what another
case of that table changes, a field that rules read with another value, a value anywhere that is removed, doubled,
misspelt or of another type.

An object counts as explained where only the schema refuses it, which the linter does not repeat, and where the linter
alone refuses it by rules that the table has a reason for. Everything else is a difference: exit code 1.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent / "cluster"))

# Beside the tests, which are no package.
from cluster_tools import find_kserve, find_tools, kserve_version  # noqa: E402
from control_plane import ControlPlane  # noqa: E402
from kserve_controller import KServe  # noqa: E402
from test_lint_against_webhooks import TABLE, Answer, Case, create, find_errors, merge, read_cases  # noqa: E402

_MODE = "serving.kserve.io/deploymentMode"
_CLASS = "serving.kserve.io/autoscalerClass"
_NUMBERS = (-(2**40), -1, 0, 1, 2, 3, 99, 100, 101, 2**31 - 1, 2**31, 2**53)
_TEXTS = ("", "x", "1", "v1", "v2", "A", "a.b", "s3://b/m", "pvc://c/m", "oci://r/i", "gs://b", "/mnt/models", "/a/b")
#: Fields that rules read, and values of theirs.
_METADATA: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("name",): ("ad", "a-", "-a", "a1", "1a", "a.b", "ad" * 22),
    ("annotations", _MODE): ("Standard", "Knative", "ModelMesh", "RawDeployment", "Serverless", "standard", None),
    ("annotations", _CLASS): ("hpa", "keda", "external", "none", "kpa", "", None),
    ("annotations", "autoscaling.knative.dev/class"): ("hpa.autoscaling.knative.dev", "kpa.autoscaling.knative.dev"),
    ("annotations", "serving.kserve.io/gpu-resource-types"): ('["example.com/npu"]', "[]", "{}", '[""]', "x"),
}
_CONTAINER = {"name": "kserve-container", "image": "registry.example/p:1"}
_ENV: tuple[Any, ...] = tuple(
    [{"name": name, "value": value}]
    for name in ("PYTHONPATH", "PROTOCOL", "STORAGE_URI", "PIPELINE_PARALLEL_SIZE", "MODEL")
    for value in ("v1", "v9")
)
_RESOURCES: tuple[Any, ...] = (
    {"limits": {"nvidia.com/gpu": "1"}},
    {"limits": {"example.com/npu": "1"}},
    {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}},
    {"limits": {"nvidia.com/mig-1g.5gb": 1}},
)
_COMPONENT: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("minReplicas",): _NUMBERS,
    ("maxReplicas",): _NUMBERS,
    ("containerConcurrency",): _NUMBERS,
    ("scaleTarget",): _NUMBERS,
    ("scaleMetric",): ("cpu", "memory", "concurrency", "rps", ""),
    ("canaryTrafficPercent",): (0, 50, 100, 101, -1),
    ("deploymentStrategy",): ({"type": "Recreate"}, {}),
    ("name",): ("v1", "v2", ""),
    ("annotations",): ({_CLASS: "keda"}, {_CLASS: "x"}),
    ("logger",): ({}, {"mode": "all"}, {"url": "http://l"}, {"mode": "request", "storage": {"path": "a", "key": "k"}}),
    ("storageUris",): (
        [{"uri": "s3://a"}],
        [{"uri": "s3://a", "mountPath": "/"}],
        [{"uri": "s3://a", "mountPath": "/a"}, {"uri": "gs://b", "mountPath": "/b/c"}],
        [{"uri": "pvc://a", "mountPath": "/a"}, {"uri": "pvc://b", "mountPath": "/a"}, {"uri": "gs://b"}],
    ),
    ("workerSpec",): ({}, {"containers": [_CONTAINER]}, {"pipelineParallelSize": 0}, {"tensorParallelSize": 2}),
    ("autoScaling",): (
        {},
        {"metrics": []},
        {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]},
        {"metrics": [{"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue"}}}]},
        {"metrics": [{"type": "External", "external": {"metric": {"backend": "prometheus"}, "target": {}}}]},
        {"metrics": [{"type": "PodMetric"}, {"type": "Resource"}]},
    ),
    ("containers",): (
        [_CONTAINER],
        [],
        [{"name": "transformer-container", "image": "i:1", "env": [{"name": "STORAGE_URI", "value": "x"}]}],
        [_CONTAINER, {"name": "side", "image": "i:1"}],
        [_CONTAINER, _CONTAINER],
    ),
    ("initContainers",): ([{"name": "first", "image": "i:1", "env": [{"name": "PYTHONPATH", "value": "x"}]}],),
    ("model",): (None, {}, {"modelFormat": {"name": "ad-topics"}}, {"modelFormat": {"name": "onnx"}, "name": "n"}),
    ("model", "storageUri"): (*_TEXTS, None),
    ("model", "env"): _ENV,
    ("model", "resources"): _RESOURCES,
    ("model", "protocolVersion"): ("v1", "v2", "grpc-v2", "v9"),
    ("model", "confidential"): ({"enabled": True}, {"enabled": True, "resourceId": "kbs:///a/b"}, {}),
    ("sklearn",): ({}, {"storageUri": "s3://a"}),
    ("onnx",): ({"storageUri": "s3://a/m.pt"}, {"storageUri": "s3://a/m.onnx"}, {"storage": {"key": "k"}}),
    ("tensorflow",): ({"runtimeVersion": "1-gpu"}, {"resources": _RESOURCES[0], "runtimeVersion": "1"}),
    ("huggingface",): ({"storageUri": "gs://a", "storage": {"key": "k"}}, {"storage": {"parameters": {"type": "gs"}}}),
}
_OF_A_RUNTIME: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("disabled",): (True, False),
    ("multiModel",): (True, False),
    ("protocolVersions",): (["v1", "v2"], ["v2"], []),
    ("annotations",): ({"serving.kserve.io/gpu-resource-types": '["example.com/npu"]'},),
    ("supportedModelFormats",): (
        [{"name": "ad-topics", "autoSelect": True, "priority": 1}],
        [{"name": "AD-topics", "version": "1", "autoSelect": True, "priority": 1}],
        [{"name": "a", "autoSelect": True, "priority": 1}, {"name": "a", "autoSelect": True, "priority": 2}],
        [{"name": "a", "priority": 1}, {"name": "a", "autoSelect": True, "priority": 2}],
        [],
    ),
    ("workerSpec",): ({"containers": []}, {"containers": [{"name": "worker-container", "image": "i:1"}]}, {}),
    ("containers",): ([_CONTAINER], [{**_CONTAINER, "env": _ENV[0]}], [{**_CONTAINER, "resources": _RESOURCES[1]}]),
}


def make_object(seed: int, number: int) -> Case:
    """Object `number`: a case of the table that was changed, with what stands beside it."""
    chance = random.Random(f"{seed}:{number}")
    cases = [case for case in read_cases().values() if case.base]
    # Most of the table is refused already.
    taken = [case for case in cases if not case.refused and not case.errors]
    case = chance.choice(taken if chance.random() < 0.8 else cases)
    value = deepcopy(case.value)
    for _ in range(chance.randint(1, 3)):
        chance.choice((change_as_another, change_field, change_field, change_anything))(chance, cases, value)
    return Case(f"{case.id}#{number}", case.group, value, beside=case.beside, base=case.base)


def change_as_another(chance: random.Random, cases: list[Case], value: dict[str, Any]) -> None:
    others = [case for case in cases if case.value["kind"] == value.get("kind")]
    if others:
        merged = merge(value, chance.choice(others).patch)
        value.clear()
        value.update(merged)


def change_field(chance: random.Random, cases: list[Case], value: dict[str, Any]) -> None:
    spec = value.get("spec")
    if not isinstance(spec, dict):
        return
    place: Any = spec
    if str(value.get("kind")).endswith("Runtime"):
        fields = _OF_A_RUNTIME
    elif value.get("kind") == "InferenceService":
        fields, kind = _COMPONENT, chance.choice(("predictor",) * 4 + ("transformer", "explainer", "canary"))
        if kind == "canary":
            entry = {"trafficPercent": chance.choice((0, 10, 60, 101)), "predictor": {"name": "v2"}}
            entries = spec.setdefault("canary", [])
            if not isinstance(entries, list):
                return
            if not entries or chance.random() < 0.2:
                entries.append(entry)
            place = entries[-1].get("predictor") if isinstance(entries[-1], dict) else None
        else:
            place = spec.setdefault(kind, {"containers": [deepcopy(_CONTAINER)]})
    else:
        fields = {("model", "storageUri"): _TEXTS}
    if chance.random() < 0.25:
        fields, place = _METADATA, value.setdefault("metadata", {})
    keys = chance.choice(list(fields))
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place[keys[-1]] = deepcopy(chance.choice(fields[keys]))


def change_anything(chance: random.Random, cases: list[Case], value: dict[str, Any]) -> None:
    places = list(find_places(value))
    if not places:
        return
    holder, key = chance.choice(places)
    change = chance.randrange(6)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, list):
        holder.append(deepcopy(holder[key]))
    elif change == 2 and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    elif change == 3:
        holder[key] = chance.choice(_NUMBERS)
    elif change == 4:
        holder[key] = chance.choice(_TEXTS)
    else:
        holder[key] = chance.choice((None, True, [], {}, [1], {"a": 1}, 1.5, "1"))


def find_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of values below the kind, with its keys; those that say what the object is stay."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if key not in ("apiVersion", "kind"):
            yield value, key
        yield from find_places(inner)


def leaves_mode_open(value: dict[str, Any]) -> bool:
    """Whether the cluster decides the mode, so that the linter warns and leaves rules out."""
    metadata = value.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return value.get("kind") == "InferenceService" and not (isinstance(annotations, dict) and _MODE in annotations)


def judge(case: Case, answer: Answer, errors: tuple[str, ...], explained: frozenset[str], late: frozenset[str]) -> str:
    """What to call it that the two say this."""
    read = answer.from_webhook and "unmarshal" not in answer.message
    if answer.message and not read:
        return "both refuse" if errors else "schema alone refuses"
    if answer.message:
        # A rule that stands for later failures does not find what the webhook did.
        if set(errors) - late:
            return "both refuse"
        return "webhook alone refuses, mode left open" if leaves_mode_open(case.value) else "webhook alone refuses"
    if not errors:
        return "both take"
    # A model in whose place KServe puts a framework is gone, with whatever was wrong in it.
    is_explained = set(errors) <= explained or "one-implementation" in errors
    return "linter alone refuses, explained" if is_explained else "linter alone refuses"


def main() -> int:
    """Run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every object that is not of one mind")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tools, sources = find_tools(), find_kserve()
    if tools is None or sources is None:
        parser.error(f"{TABLE.name}: no tools to ask the webhooks with. Fix: run `make cluster-tools`")
    cases = read_cases().values()
    explained = frozenset(rule for case in cases if case.why for rule in case.errors)
    # A mode that nobody knows stands for all of its rules.
    late = explained - {rule for case in cases if case.refused for rule in case.errors} - {"deployment-mode-unknown"}
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    found_by: Counter[str] = Counter()
    differences = []
    started = time.monotonic()
    with ControlPlane(tools, tools / "kubectl") as plane:
        KServe(plane, sources / "manager", sources).start()
        api = plane.api_client()
        namespaces = {False: plane.create_namespace(), True: plane.create_namespace()}
        # What cases have beside them; one of the cluster would stand beside the others too.
        runtime = next(case.value for case in cases if case.id == "runtime")
        assert create(api, namespaces[True], runtime, dry_run=False) == Answer()
        time.sleep(1)
        for number in range(given.first, given.first + given.objects):
            case = make_object(given.seed, number)
            if any(one["kind"] != "ServingRuntime" for one in case.beside):
                continue
            metadata = case.value.get("metadata")
            if case.beside and isinstance(metadata, dict) and metadata.get("name") == "ad-topics":
                # The one that is there would only be replaced.
                continue
            answer = create(api, namespaces[bool(case.beside)], case.value)
            errors = find_errors(case.value, case.beside)
            verdict = judge(case, answer, errors, explained, late)
            counts[verdict] += 1
            found_by.update(errors)
            if answer.from_webhook:
                refusals[answer.message.partition(" denied the request: ")[2][:60]] += 1
            if verdict in ("webhook alone refuses", "linter alone refuses"):
                differences.append({"id": case.id, "verdict": verdict, "cluster": answer.message, "linter": errors})
                print(case.id, verdict, "|", answer.message[-200:], "|", *errors)
                if given.show:
                    print(json.dumps(case.value))
    summary = {
        "objects": sum(counts.values()),
        "seed": given.seed,
        "first": given.first,
        "kserve": kserve_version(),
        "seconds": round(time.monotonic() - started, 1),
        "verdicts": dict(counts.most_common()),
        "different_refusals_of_webhooks": len(refusals),
        "rules_that_found_errors": dict(found_by.most_common()),
        "differences": differences,
    }
    text = json.dumps(summary, indent=1)
    print(text if not differences else json.dumps({**summary, "differences": len(differences)}, indent=1))
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
