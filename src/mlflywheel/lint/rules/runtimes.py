"""Serving runtimes, and whether a service finds one."""

from collections import defaultdict
from collections.abc import Iterator

from mlflywheel.lint.fields import show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Component, Format, Manifests, Runtime

_WEBHOOK = "KServe servingruntime_webhook.go"
_SELECTION = "KServe predictor_model.go GetSupportingRuntimes"
#: Of KServe's own installation.
_BUILT_IN = (
    "kserve-huggingfaceserver",
    "kserve-huggingfaceserver-multinode",
    "kserve-lgbserver",
    "kserve-mlserver",
    "kserve-paddleserver",
    "kserve-pmmlserver",
    "kserve-predictiveserver",
    "kserve-sklearnserver",
    "kserve-tensorflow-serving",
    "kserve-torchserve",
    "kserve-tritonserver",
    "kserve-vllmserver",
    "kserve-xgbserver",
)


def _list_rivals(manifests: Manifests) -> Iterator[tuple[Format, Runtime]]:
    """Yield formats between which and one of another runtime KServe would have to choose, and that runtime.

    Both have one priority, or none.
    """
    seen: dict[tuple[object, ...], list[Runtime]] = defaultdict(list)
    for runtime in manifests.runtimes:
        for entry in runtime.formats if not runtime.disabled else ():
            if not entry.auto_select:
                continue
            # KServe compares names without case here, and with case where it selects.
            # Priorities are compared whether or not there are workers; without any, services choose by those first.
            key = entry.priority if entry.priority is not None else runtime.multi_node
            others = seen[runtime.cluster_wide, entry.name.lower(), entry.version, entry.priority is None, key]
            for rival in others:
                if (
                    rival is not runtime
                    and rival.manifest.name != runtime.manifest.name
                    and (runtime.cluster_wide or runtime.manifest.sees(rival.manifest))
                    and set(runtime.protocols) & set(rival.protocols)
                    and (runtime.field["multiModel"].flag() is True) is (rival.field["multiModel"].flag() is True)
                ):
                    yield entry, rival
                    break
            others.append(runtime)


@rule(
    "runtime-priority",
    "error",
    "fails",
    "Two runtimes of one scope select a format with one priority, or one runtime gives a format two priorities",
    _WEBHOOK,
    Manifests,
)
def check_runtime_priority(manifests: Manifests) -> Iterator[Fault]:
    """Priorities decide only if they differ."""
    for entry, rival in _list_rivals(manifests):
        if entry.priority is not None:
            yield Fault(
                entry.field["priority"],
                f"{rival.manifest.title} selects the format {show(entry.name)} with priority {entry.priority} too",
                "give them different priorities, or set autoSelect: false in one",
            )
    for runtime in manifests.runtimes:
        first: dict[str, int | None] = {}
        for entry in runtime.formats if not runtime.disabled else ():
            known = first.setdefault(entry.name, entry.priority) if entry.auto_select else None
            if known is not None and entry.priority is not None and entry.priority != known:
                yield Fault(
                    entry.field["priority"],
                    f"the format {show(entry.name)} has the priorities {known} and {entry.priority}",
                    "give it one priority",
                )


@rule(
    "runtime-ambiguous",
    "warning",
    "availability",
    "Two runtimes of one scope select a format, and no priority says which",
    _SELECTION,
    Manifests,
)
def check_runtime_ambiguous(manifests: Manifests) -> Iterator[Fault]:
    """Then protocols and dates of creation decide."""
    for entry, rival in _list_rivals(manifests):
        if entry.priority is None:
            yield Fault(
                entry.field,
                f"{rival.manifest.title} selects the format {show(entry.name)} too, so dates of creation decide",
                "give both a priority, or set autoSelect: false in one",
            )


@rule(
    "runtime-not-selected",
    "warning",
    "fails",
    "No runtime of the set is selected for a model whose format one of them has",
    _SELECTION,
    Component,
)
def check_runtime_not_selected(component: Component) -> Iterator[Fault]:
    """Without protocolVersion KServe looks for v1."""
    if component.kind != "predictor" or component.model is None or component.service.mode == "ModelMesh":
        return
    name, version = component.format
    if component.model["runtime"].text() or not name or component.runtime is not None:
        return
    near = [
        runtime
        for runtime in component.visible_runtimes
        if any(entry.name.lower() == name.lower() for entry in runtime.formats)
    ]
    if not near:
        return
    runtime = near[0]
    title = runtime.manifest.title
    field = component.model["modelFormat"]
    if runtime.disabled:
        reason, fix = f"{title} is disabled", "enable it"
    elif not any(entry.name == name for entry in runtime.formats):
        known = next(entry.name for entry in runtime.formats if entry.name.lower() == name.lower())
        reason, fix = f"{title} has the format {show(known)}, and case matters", f"write modelFormat.name: {known}"
    elif not runtime.supports(name, None, False):
        reason, fix = f"{title} has the format without autoSelect: true", f"write runtime: {runtime.manifest.name}"
    elif not runtime.supports(name, version, False):
        versions = ", ".join(str(entry.version) for entry in runtime.formats if entry.name == name)
        reason, fix = f"{title} has version {versions} of the format, and not {version}", "write that, or no version"
    elif not runtime.speaks(component.protocol):
        spoken = ", ".join(runtime.protocols)
        default = "" if component.model["protocolVersion"].exists else ", the default"
        field = component.model["protocolVersion"]
        reason = f"{title} speaks {spoken}, and the model asks for {component.protocol}{default}"
        fix = f"write protocolVersion: {runtime.protocols[0]}"
    else:
        reason, fix = f"{title} is for several models, or has other workers", f"write runtime: {runtime.manifest.name}"
    yield Fault(field, f"no runtime of these manifests is selected: {reason[:300]}", fix)


@rule(
    "runtime-mismatch",
    "error",
    "fails",
    "The runtime that a model names is disabled, or lacks its format or protocol",
    "KServe components/predictor.go",
    Component,
)
def check_runtime_mismatch(component: Component) -> Iterator[Fault]:
    """The service then stays unready, with the reason NoSupportingRuntime or RuntimeDisabled."""
    if component.model is None or component.runtime is None or not component.model["runtime"].text():
        return
    runtime, (name, version), field = component.runtime, component.format, component.model["runtime"]
    if runtime.disabled:
        yield Fault(field, f"{runtime.manifest.title} is disabled", "enable it, or name another one")
    elif not runtime.supports(name, version, True):
        seen = show(name) if version is None else f"{show(name)} in version {show(version)}"
        yield Fault(field, f"{runtime.manifest.title} does not have the format {seen}", "name another runtime")
    elif component.model["protocolVersion"].text() and not runtime.speaks(component.protocol):
        spoken = ", ".join(runtime.protocols)
        yield Fault(
            component.model["protocolVersion"],
            f"{runtime.manifest.title} speaks {spoken[:80]}, and not {component.protocol[:40]}",
            f"write protocolVersion: {runtime.protocols[0][:40]}",
        )


@rule(
    "runtime-unknown",
    "note",
    "fails",
    "A model names a runtime that is not among the runtimes of the set",
    "KServe components/predictor.go, reason RuntimeNotRecognized",
    Component,
)
def check_runtime_unknown(component: Component) -> Iterator[Fault]:
    """It may be in the cluster; a set without any runtime says nothing about that."""
    if component.model is None or component.runtime is not None or not component.manifests.runtimes:
        return
    name = component.model["runtime"].text()
    if name and name not in _BUILT_IN:
        known = ", ".join(sorted({runtime.manifest.name for runtime in component.visible_runtimes}))
        yield Fault(
            component.model["runtime"],
            f"{show(name)} is none of the runtimes in reach: {known[:200] or 'none'}",
            "make sure that the cluster has it, or correct the name; case matters",
        )
