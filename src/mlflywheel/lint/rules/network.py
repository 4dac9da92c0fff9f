"""Ports: what a Knative Service or a Service can be made of, and where gRPC is found."""

from collections.abc import Iterator

from mlflywheel.lint.fields import Field
from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Component

_GRPC_PROTOCOLS = ("grpc-v1", "grpc-v2")
_KNATIVE_NAMES = ("", "http1", "h2c")


@rule(
    "knative-ports",
    "error",
    "fails",
    "A Knative revision with more than one port, or with a port name that Knative refuses",
    "Knative serving k8s_validation.go validateContainersPorts",
    Component,
)
def check_knative_ports(component: Component) -> Iterator[Fault]:
    """REST and gRPC at once need Standard mode."""
    if component.service.mode != "Knative":
        return
    ports = [port for container in component.containers if container.role != "init" for port in container.ports()]
    if len(ports) > 1:
        yield Fault(
            ports[-1],
            f"the pod has {len(ports)} ports, and Knative allows one",
            "keep one port, or use Standard mode for REST and gRPC side by side",
        )
    for port in ports:
        if (port["name"].text() or "") not in _KNATIVE_NAMES:
            yield Fault(
                port["name"], f"Knative refuses the port name {port['name'].show()}", "write h2c for gRPC, else http1"
            )


@rule(
    "port-names",
    "error",
    "fails",
    "One of several ports has no name, so that the Service that KServe makes of them is refused",
    "KServe service_reconciler.go createDefaultSvc; Kubernetes Service validation",
    Component,
)
def check_port_names(component: Component) -> Iterator[Fault]:
    """A container may have nameless ports, a Service with several may not."""
    if component.service.mode != "Standard" or component.main is None:
        return
    ports = component.main.ports()
    for port in ports if len(ports) > 1 else ():
        if not port["name"].text():
            yield Fault(port, "it is one of several ports, and has no name", "write name: http1, or h2c for gRPC")


@rule(
    "grpc-port",
    "error",
    "fails",
    "A model is served by gRPC, and no port has h2c or grpc in its name",
    "KServe service_reconciler.go isGrpcPort, httproute_reconciler.go",
    Component,
)
def check_grpc_port(component: Component) -> Iterator[Fault]:
    """Without such a port the gateway speaks HTTP/1.1 to the REST port."""
    model, main = component.model, component.main
    if model is None or main is None or component.kind != "predictor" or not component.resolved:
        return
    if model["protocolVersion"].text() in _GRPC_PROTOCOLS and not any(map(_is_grpc, main.ports())):
        yield Fault(
            model["protocolVersion"],
            "gRPC is not reachable: no port of the container has h2c or grpc in its name",
            "add to ports {name: h2c, protocol: TCP, containerPort: 8081}",
        )


def _is_grpc(port: Field) -> bool:
    name = port["name"].text() or ""
    return "grpc" in name or "h2c" in name
