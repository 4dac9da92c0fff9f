"""Checks of KServe: its configuration, webhooks and controller, what they mean for canaries, and our runtimes."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflywheel import __version__
from mlflywheel.cluster.examination import Check, Examined
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.kubernetes_client import RefusedError

_GROUP = "serving.kserve.io"
_CONFIG_MAP = "inferenceservice-config"
_CONTROLLER = "kserve-controller-manager"
# KServe's own installation, and Kubeflow's.
_NAMESPACES = ("kserve", "kubeflow")
_WEBHOOKS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_LEGACY_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
#: The first release with `spec.canary`, which the manifests are made for.
OLDEST_KSERVE = (0, 20)
# 0.20 takes `spec.canary` and writes no weights.
_FIRST_WITH_WEIGHTS = (0, 21)
#: Formats of this library's models, and what brings a ServingRuntime for each; None where no manifest does.
FORMATS = {
    "mlflywheel-topic-fingerprints": "manifests/overlays/cpu",
    "mlflywheel-vehicle-price": "manifests/vehicle-prices/cpu",
    "mlflywheel-tabular-classifier": None,
}


def _is_installed(examined: Examined) -> bool:
    """Tell whether to go on: that KServe is missing is said with the kinds, once."""
    return examined.api.serves(_GROUP, "v1beta1", "inferenceservices")


def _find(examined: Examined, path: str) -> tuple[str, dict[str, Any]] | None:
    """Return namespace and object from the first of KServe's namespaces that has it.

    Raises:
        RefusedError: It is in none that may be read.
    """
    refusal: RefusedError | None = None
    for namespace in _NAMESPACES:
        try:
            found = examined.api.find(path.format(namespace=namespace))
        except RefusedError as error:
            refusal = refusal or error
            continue
        if found is not None:
            return namespace, found
    if refusal is not None:
        raise refusal
    return None


def _read_config(examined: Examined) -> tuple[str, dict[str, Mapping[str, Any]]] | None:
    """Return the namespace and the sections of KServe's configuration that are JSON objects."""
    found = _find(examined, f"/api/v1/namespaces/{{namespace}}/configmaps/{_CONFIG_MAP}")
    if found is None:
        return None
    sections: dict[str, Mapping[str, Any]] = {}
    for name, text in (found[1].get("data") or {}).items():
        try:
            values = json.loads(text)
        except ValueError:
            continue
        if isinstance(values, dict):
            sections[name] = values
    return found[0], sections


def _check_configuration(examined: Examined) -> Iterator[Finding]:
    if not _is_installed(examined):
        return
    found = _read_config(examined)
    if found is None:
        text = f"no ConfigMap {_CONFIG_MAP} in namespace {' or '.join(_NAMESPACES)}"
        yield Finding("configuration", "problem", text, "install KServe again: its resources, not its kinds alone")
        return
    namespace, sections = found
    for section in ("deploy", "ingress"):
        if section not in sections:
            text = f"{section} in {namespace}/{_CONFIG_MAP} is no JSON object"
            fix = f"kubectl edit configmap {_CONFIG_MAP} -n {namespace}"
            yield Finding("configuration", "problem", text, fix)
    written = str(sections.get("deploy", {}).get("defaultDeploymentMode") or "Standard")
    mode = _LEGACY_MODES.get(written, written)
    if mode == "Knative" and not examined.api.serves("serving.knative.dev", "v1", "services"):
        yield Finding(
            "configuration mode",
            "note",
            f"{written}, and there is no Knative: services that do not name Standard mode themselves, as those of "
            "manifests/ do, never start",
            f'kubectl edit configmap {_CONFIG_MAP} -n {namespace}: in deploy, "defaultDeploymentMode": "Standard"',
        )
    else:
        yield Finding("configuration mode", "ok", f"{mode} where a service does not name its own")
    yield from _check_gateway(examined, namespace, sections.get("ingress", {}))


def _check_gateway(examined: Examined, namespace: str, ingress: Mapping[str, Any]) -> Iterator[Finding]:
    if not _is_true(ingress.get("enableGatewayApi")):
        yield Finding(
            "configuration gateway",
            "note",
            "enableGatewayApi is false: services in Standard mode get an Ingress, which cannot split traffic",
            f'kubectl edit configmap {_CONFIG_MAP} -n {namespace}: in ingress, "enableGatewayApi": true; then '
            f"kubectl rollout restart deployment {_CONTROLLER} -n {namespace}",
        )
        return
    name = str(ingress.get("kserveIngressGateway") or "")
    place, _, gateway = name.partition("/")
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{place}/gateways/{gateway}"
    if not gateway or examined.api.find(path) is None:
        text = f"enableGatewayApi is true, and there is no Gateway {name or 'named'}: no service is reached through it"
        fix = f"create the Gateway {name}, or name yours as kserveIngressGateway in {namespace}/{_CONFIG_MAP}"
        yield Finding("configuration gateway", "problem", text, fix)
    else:
        yield Finding("configuration gateway", "ok", f"Gateway API, through {name}")


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _check_webhooks(examined: Examined) -> Iterator[Finding]:
    if not _is_installed(examined):
        return
    for resource in _WEBHOOKS:
        subject = "webhook that checks" if resource.startswith("validating") else "webhook that fills in"
        path = f"/apis/admissionregistration.k8s.io/v1/{resource}/inferenceservice.{_GROUP}"
        try:
            found = examined.api.find(path)
        except RefusedError as error:
            if error.status != 403:
                raise
            text = f"cannot be seen: you may not get {resource}"
            yield Finding(subject, "note", text, f"have get on {resource} granted, or ask whoever runs the cluster")
            continue
        if found is None:
            text = (
                f"none: what breaks KServe's rules gets into the cluster, and no defaults (no {resource} of its name)"
            )
            yield Finding(subject, "problem", text, "install KServe again: its resources, not its kinds alone")
        elif not all(_has_authority(one) for one in found.get("webhooks") or ()):
            text = "its clientConfig has no certificate authority: every InferenceService is refused"
            fix = "see whether cert-manager runs, since it writes that: kubectl get pods -n cert-manager"
            yield Finding(subject, "problem", text, fix)
        else:
            yield Finding(subject, "ok", f"{len(found.get('webhooks') or ())} in inferenceservice.{_GROUP}")


def _has_authority(webhook: Mapping[str, Any]) -> bool:
    # What KServe's manifest holds until cert-manager fills it in: a line break.
    return (webhook.get("clientConfig") or {}).get("caBundle") not in (None, "", "Cg==")


def _read_controller(examined: Examined) -> tuple[str, dict[str, Any]] | None:
    return _find(examined, f"/apis/apps/v1/namespaces/{{namespace}}/deployments/{_CONTROLLER}")


def _read_release(deployment: Mapping[str, Any]) -> tuple[str, tuple[int, int] | None]:
    """Return the image of KServe's manager, and the release that its tag names."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    manager = next((one for one in containers if one.get("name") == "manager"), containers[0])
    image = str(manager.get("image"))
    match = re.search(r":v?(\d+)\.(\d+)\.\d+[^:/@]*(?:@.*)?$", image)
    return image, (int(match[1]), int(match[2])) if match else None


def _check_controller(examined: Examined) -> Iterator[Finding]:
    if not _is_installed(examined):
        return
    found = _read_controller(examined)
    if found is None:
        text = f"no Deployment {_CONTROLLER} in namespace {' or '.join(_NAMESPACES)}: its version is not known"
        yield Finding("controller", "note", text, "kubectl get deployments -A | grep kserve")
        return
    namespace, deployment = found
    image, release = _read_release(deployment)
    if not (deployment.get("status") or {}).get("availableReplicas"):
        fix = f"kubectl describe deployment {_CONTROLLER} -n {namespace}"
        yield Finding("controller", "problem", f"{image} does not run: no InferenceService is acted on", fix)
    elif release is not None and release < OLDEST_KSERVE:
        text = f"{image}; the manifests here are made for {_dotted(OLDEST_KSERVE)} and newer"
        yield Finding("controller", "note", text, f"upgrade KServe to {_dotted(OLDEST_KSERVE)} or newer")
    else:
        yield Finding("controller", "ok", image)


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _check_canaries(examined: Examined) -> Iterator[Finding]:
    if not _is_installed(examined):
        return
    yield from _check_standard_canaries(examined)
    if examined.api.serves("serving.knative.dev", "v1", "services"):
        yield Finding("canaries in Knative mode", "ok", "traffic is split by canaryTrafficPercent")
    else:
        text = "not possible: there is no Knative"
        fix = "install Knative Serving (https://knative.dev/docs/install), or use Standard mode"
        yield Finding("canaries in Knative mode", "note", text, fix)


def _check_standard_canaries(examined: Examined) -> Iterator[Finding]:
    against: list[tuple[str, str]] = []
    unknown: list[str] = []
    if not _knows_canaries(examined):
        against.append(("InferenceService has no spec.canary", "upgrade KServe to 0.21 or newer, kinds included"))
    if not examined.api.serves("gateway.networking.k8s.io", "v1", "httproutes"):
        against.append(("there is no HTTPRoute", "install the Gateway API and a gateway"))
    try:
        config = _read_config(examined)
        if config is not None and not _is_true(config[1].get("ingress", {}).get("enableGatewayApi")):
            against.append(("enableGatewayApi is false", f"set enableGatewayApi in {config[0]}/{_CONFIG_MAP} to true"))
    except RefusedError:
        unknown.append("whether enableGatewayApi is true")
    try:
        found = _read_controller(examined)
        release = None if found is None else _read_release(found[1])[1]
    except RefusedError:
        release = None
    if release is None:
        unknown.append(f"whether KServe is {_dotted(_FIRST_WITH_WEIGHTS)} or newer")
    elif release < _FIRST_WITH_WEIGHTS:
        first = _dotted(_FIRST_WITH_WEIGHTS)
        against.append((f"KServe {_dotted(release)} writes no weights", f"upgrade KServe to {first} or newer"))
    subject = "canaries in Standard mode"
    if against:
        text = f"get no share of the traffic: {'; '.join(seen for seen, _ in against)}"
        yield Finding(subject, "note", text, "; ".join(fix for _, fix in against))
    elif unknown:
        text = f"possible as far as can be seen; not known: {'; '.join(unknown)}"
        fix = f"ask whoever runs KServe, or read {_CONFIG_MAP} and the Deployment {_CONTROLLER} with their rights"
        yield Finding(subject, "note", text, fix)
    else:
        yield Finding(subject, "ok", "traffic is split by the weights of HTTPRoutes")


def _knows_canaries(examined: Examined) -> bool:
    """Tell whether the served schema has `spec.canary`; without any schema it is taken to."""
    schemas = examined.api.get(f"/openapi/v3/apis/{_GROUP}/v1beta1").get("components", {}).get("schemas", {})
    service: Mapping[str, Any] = next((one for name, one in schemas.items() if name.endswith(".InferenceService")), {})
    spec = service.get("properties", {}).get("spec", {}).get("properties")
    return spec is None or "canary" in spec


def _check_runtimes(examined: Examined) -> Iterator[Finding]:
    if not _is_installed(examined):
        return
    runtimes: list[tuple[str, dict[str, Any]]] = []
    refusals: list[RefusedError] = []
    namespace = examined.namespace
    for kind, path in (
        ("ServingRuntime", f"/apis/{_GROUP}/v1alpha1/namespaces/{namespace}/servingruntimes"),
        ("ClusterServingRuntime", f"/apis/{_GROUP}/v1alpha1/clusterservingruntimes"),
    ):
        try:
            runtimes += [(kind, one) for one in (examined.api.find(path) or {}).get("items") or ()]
        except RefusedError as error:
            refusals.append(error)
    for name, overlay in FORMATS.items():
        subject = f"runtime {name.removeprefix('mlflywheel-')}"
        # KServe prefers those of the namespace, which come first.
        found = next(((kind, one) for kind, one in runtimes if _supports(one, name)), None)
        if found is not None:
            yield _judge_runtime(subject, *found)
        elif refusals:
            text = f"cannot be seen: HTTP 403 for {'both kinds' if len(refusals) > 1 else 'one kind'} of runtime"
            yield Finding(subject, "note", text, f"kubectl auth can-i list servingruntimes.{_GROUP} -n {namespace}")
        elif overlay is None:
            text = f"none for {name}, and no manifest here brings one"
            yield Finding(subject, "note", text, "copy manifests/runtime and change its format (docs/new-use-case.md)")
        else:
            text = f"none for {name}, in namespace {namespace} or for all; its overlay brings one"
            yield Finding(subject, "note", text, f"kubectl apply -k {overlay} -n {namespace}")


def _supports(runtime: Mapping[str, Any], name: str) -> bool:
    spec = runtime.get("spec") or {}
    formats = [one.get("name") for one in spec.get("supportedModelFormats") or ()]
    return name in formats and not spec.get("disabled")


def _judge_runtime(subject: str, kind: str, runtime: Mapping[str, Any]) -> Finding:
    containers = (runtime.get("spec") or {}).get("containers") or [{}]
    main = next((one for one in containers if one.get("name") == "kserve-container"), containers[0])
    image = str(main.get("image") or "")
    reference, _, digest = image.partition("@")
    tag = reference.rpartition("/")[2].partition(":")[2].removesuffix("-gpu")
    named = f"{kind} {runtime['metadata']['name']}, {image}"
    if tag == __version__ or (digest and not tag):
        return Finding(subject, "ok", named)
    text = f"{named}; this is mlflywheel {__version__}, and its models may be newer than the server"
    fix = f"set newTag: {__version__} in manifests/runtime/kustomization.yaml and apply the overlay again"
    return Finding(subject, "note", text, fix)


CHECKS = (
    Check(
        "KServe",
        "configuration",
        f"`{_CONFIG_MAP}`: the default mode and whether it is there, the Gateway API and its Gateway",
        _check_configuration,
    ),
    Check(
        "KServe",
        "webhook",
        "both webhooks for InferenceServices, and whether their certificate authority is filled in",
        _check_webhooks,
    ),
    Check(
        "KServe",
        "controller",
        f"whether it runs, and its version: {_dotted(OLDEST_KSERVE)} or newer",
        _check_controller,
    ),
    Check("KServe", "canaries", "in which modes a canary gets its share of the traffic, and why not", _check_canaries),
    Check(
        "KServe",
        "runtime",
        "a runtime for each format of this library, in the namespace or for all, with the image of this version",
        _check_runtimes,
    ),
)
