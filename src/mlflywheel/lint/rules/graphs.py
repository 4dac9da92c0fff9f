"""InferenceGraphs."""

from collections.abc import Iterator

from mlflywheel.lint.fields import show
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Graph

_VALIDATION = "KServe inference_graph_validation.go"
_TARGETS = ("nodeName", "serviceName", "serviceUrl")


@rule("graph-root", "error", "fails", "A graph has no node called root", _VALIDATION, Graph)
def check_graph_root(graph: Graph) -> Iterator[Fault]:
    """Requests enter there."""
    if not graph.nodes["root"].exists:
        yield Fault(graph.nodes, "no node is called root", "call the first node root")


@rule(
    "graph-step-target",
    "error",
    "fails",
    "A step has no target, or more than one, or a node that does not exist",
    _VALIDATION,
    Graph,
)
def check_graph_step_target(graph: Graph) -> Iterator[Fault]:
    """The webhook does not check that a node exists; the router then fails on each request."""
    nodes = dict(graph.nodes.entries())
    for node in nodes.values():
        for step in node["steps"].items():
            targets = [name for name in _TARGETS if step[name].text()]
            if len(targets) != 1:
                seen = " and ".join(targets) or "no target"
                yield Fault(step, f"the step has {seen}", f"write one of {', '.join(_TARGETS)}")
            elif targets == ["nodeName"] and step["nodeName"].text() not in nodes:
                known = ", ".join(nodes)
                yield Fault(step["nodeName"], f"the graph has no node {step['nodeName'].show()}", f"use {known[:200]}")


@rule("graph-splitter-weights", "error", "fails", "The weights of a splitter are not 100 together", _VALIDATION, Graph)
def check_graph_splitter_weights(graph: Graph) -> Iterator[Fault]:
    """Each step has one."""
    for _, node in graph.nodes.entries():
        if node["routerType"].text() != "Splitter":
            continue
        weights = [step["weight"] for step in node["steps"].items()]
        missing = [weight for weight in weights if not weight.exists]
        total = sum(weight.whole() or 0 for weight in weights)
        if missing:
            yield Fault(missing[0], "the step has no weight", "write weight")
        elif total != 100:
            yield Fault(node["steps"], f"the weights are {total} together", "let them be 100")


@rule("graph-step-names", "error", "fails", "Two steps of a node have one name", _VALIDATION, Graph)
def check_graph_step_names(graph: Graph) -> Iterator[Fault]:
    """Names are optional."""
    for _, node in graph.nodes.entries():
        names: set[str] = set()
        for step in node["steps"].items():
            name = step["name"].text()
            if name and name in names:
                yield Fault(step["name"], f"two steps are called {show(name)}", "rename one of them")
            names.add(name or "")
