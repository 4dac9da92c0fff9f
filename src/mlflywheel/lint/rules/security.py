"""A few things that no serving container needs."""

import re
from collections.abc import Iterator

from mlflywheel.lint.findings import Fault, rule
from mlflywheel.lint.manifests import Container, Manifests

_STANDARDS = "Kubernetes, pod security standards"
_SECRET_WORDS = frozenset(("KEY", "APIKEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE"))
#: Keys of tables are none of locks.
_OTHER_KEYS = frozenset(("PRIMARY", "FOREIGN", "PARTITION", "SORT", "PUBLIC", "CACHE", "PREFIX"))
#: What ends so names where a secret is, not what it is.
_REFERENCE_WORDS = frozenset(("FILE", "PATH", "DIR", "NAME", "URL", "URI", "HOST", "COUNT", "LENGTH", "TTL"))
_HARMLESS = re.compile(
    r"|true|false|yes|no|on|off|[0-9.]+|/.*|\$\([\w.-]+\)|[a-z+]+://[^@]*", re.IGNORECASE | re.DOTALL
)


@rule("privileged", "warning", "security", "A privileged container", _STANDARDS, Container)
def check_privileged(container: Container) -> Iterator[Fault]:
    """It is root on its node."""
    field = container.own["securityContext"]["privileged"]
    if field.flag() is True:
        yield Fault(field, f"{container.label} is root on its node", "remove privileged")


@rule("host-path", "warning", "security", "A volume from the node's own file system", _STANDARDS, Manifests)
def check_host_path(manifests: Manifests) -> Iterator[Fault]:
    """What it holds differs from node to node."""
    specs = [owner.field for owner in (*manifests.runtimes, *manifests.workloads)]
    for service in manifests.services:
        specs += [component.field for component in (*service.components, *service.canaries)]
    for spec in specs:
        for volume in spec["volumes"].items():
            if volume["hostPath"].exists:
                yield Fault(
                    volume["hostPath"],
                    "the pod reads or writes its node's own files",
                    "use a claim, an emptyDir, or a ConfigMap",
                )


@rule(
    "runs-as-root",
    "warning",
    "security",
    "Nothing keeps a container from running as root",
    _STANDARDS,
    Container,
)
def check_runs_as_root(container: Container) -> Iterator[Fault]:
    """A model of a runtime is judged there, unless it says otherwise itself."""
    if container.role == "init":
        return
    not_root, user = container.security("runAsNonRoot"), container.security("runAsUser")
    if user.whole() == 0:
        yield Fault(user, f"{container.label} runs as root", "write a runAsUser above 0 and runAsNonRoot: true")
    elif not_root.flag() is False:
        yield Fault(not_root, f"{container.label} may run as root", "write runAsNonRoot: true")
    elif container.origin in ("template", "alone") and not not_root.exists and not user.exists:
        yield Fault(
            container.own["securityContext"],
            f"{container.label} runs as root if its image says so",
            "write securityContext.runAsNonRoot: true",
        )


@rule(
    "literal-secret", "warning", "security", "A secret as plain text in an environment variable", _STANDARDS, Container
)
def check_literal_secret(container: Container) -> Iterator[Fault]:
    """The name tells: a word of it is KEY, SECRET, TOKEN or PASSWORD."""
    for entry in container.own["env"].items():
        name, value = entry["name"].text() or "", entry["value"].text() or ""
        words = re.split(r"[^A-Z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())
        secret = _SECRET_WORDS.intersection(words) and not _OTHER_KEYS.intersection(words)
        if secret and words[-1] not in _REFERENCE_WORDS and not _HARMLESS.fullmatch(value):
            yield Fault(
                entry["value"],
                f"{name[:63]} has its value in the manifest, for everybody who can read it",
                "write valueFrom.secretKeyRef",
            )
