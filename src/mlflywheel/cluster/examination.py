"""Look at a cluster, and say what would get in the way: every check, each by itself, all within half a minute.

A check yields findings. What it may not read becomes a note that names the missing right; what does not answer becomes
a note that says so; and neither hides what other checks see. Nothing is changed in the cluster. In the object store of
`storage` one small object is written and removed again. No token and no value of a Secret gets into a finding.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflywheel.cluster.api_reader import ApiReader, read_missing_right
from mlflywheel.cluster.findings import Finding
from mlflywheel.cluster.kubernetes_client import Connection, RefusedError, connect
from mlflywheel.errors import MlflywheelError

#: For all checks together.
EXAMINATION_SECONDS = 30.0
_THREADS = 6


@dataclass(frozen=True)
class Subject:
    """What is examined, and what else is known of it.

    Args:
        namespace: The team's namespace; the context's own if left out, else `default`.
        context: Context of the kubeconfig.
        service_account: Account in the namespace whose rights are judged, beside the caller's own.
        host: URL of Kubeflow Pipelines; its service in the cluster if left out.
        registry: URL of a Kubeflow Model Registry.
        storage: Folder in an object store, in which an object is written, read and deleted.
        pipelines: Compiled pipelines by name, to compare with the release of Kubeflow Pipelines.
        now: This machine's clock, in seconds since 1970.
    """

    namespace: str | None = None
    context: str | None = None
    service_account: str | None = None
    host: str | None = None
    registry: str | None = None
    storage: str | None = None
    pipelines: Mapping[str, Path] = field(default_factory=dict)
    now: Callable[[], float] = field(default=time.time, repr=False)


@dataclass(frozen=True)
class Examined:
    """What a check is given.

    Args:
        subject: What is examined.
        namespace: The namespace, known by now.
        reader: The API server. None where none answers; checks that need one are not asked then.
    """

    subject: Subject
    namespace: str
    reader: ApiReader | None = None

    @property
    def api(self) -> ApiReader:
        """The API server, for checks that are only asked when it answers."""
        assert self.reader is not None
        return self.reader


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Args:
        group: Heading that its findings stand under.
        name: What the subject of each of its findings begins with.
        looks_at: In words, as docs/doctor.md lists it.
        examine: Yields findings; `group` of theirs is set afterwards.
        needs_api: Whether it asks the API server.
    """

    group: str
    name: str
    looks_at: str
    examine: Callable[[Examined], Iterable[Finding]]
    needs_api: bool = True


def list_checks() -> tuple[Check, ...]:
    """Return every check, in the order of the findings."""
    from mlflywheel.cluster import examined_cluster, examined_kserve, examined_namespace, examined_services

    return (
        *examined_cluster.CHECKS,
        *examined_kserve.CHECKS,
        *examined_namespace.CHECKS,
        *examined_services.CHECKS,
    )


def examine_cluster(
    subject: Subject, connection: Connection | None = None, limit_seconds: float = EXAMINATION_SECONDS
) -> list[Finding]:
    """Carry out every check.

    Args:
        subject: What to look at.
        connection: Where the API server is; opened from the environment if left out, and closed.
        limit_seconds: A check that has not ended by then is reported as such, and left behind.

    Returns:
        Findings in the order of `list_checks`; those of a check that needs an API server which does not answer are left
        out, since one finding says so for all of them.
    """
    deadline = time.monotonic() + limit_seconds
    try:
        found_connection = connection or connect(subject.context)
    except MlflywheelError as error:
        missing = Finding("kubeconfig", "problem", f"{error.where}: {error.seen}", error.fix, "API server")
        examined = Examined(subject, subject.namespace or "default")
        return [missing, *_carry_out(_leave_out(list_checks()), examined, deadline)]
    reader = ApiReader(found_connection, is_own=connection is None)
    examined = Examined(subject, subject.namespace or found_connection.namespace or "default", reader)
    try:
        text = f"{found_connection.source}, namespace {examined.namespace}"
        found = [Finding("kubeconfig", "ok", text, "", "API server")]
        away = _find_away(reader)
        checks = list_checks()
        if away is not None:
            found.append(away)
            checks, examined = _leave_out(checks), replace(examined, reader=None)
        return [*found, *_carry_out(checks, examined, deadline)]
    finally:
        reader.close()


def run_check(check: Check, examined: Examined) -> list[Finding]:
    """Carry out one check; whatever it meets becomes a finding."""
    found: list[Finding] = []
    try:
        # One by one: what was found before a refusal stays.
        for finding in check.examine(examined):
            found.append(finding)
    except RefusedError as error:
        found.append(_explain_refusal(check.name, error))
    except ConnectionError as error:
        found.append(Finding(check.name, "note", f"no answer: {error}", "run the same command again"))
    except MlflywheelError as error:
        found.append(Finding(check.name, "problem", f"{error.where}: {error.seen}", error.fix))
    except Exception as error:
        # Its text could repeat what was read, a Secret included.
        text = f"the check itself failed with {type(error).__name__}"
        found.append(Finding(check.name, "note", text, "report it, with the version of the cluster's part"))
    return [replace(one, group=check.group, text=_clean(one.text), fix=_clean(one.fix)) for one in found]


def _clean(text: str) -> str:
    """Return a text that moves no cursor: names and annotations are written by whoever may write into the cluster."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _leave_out(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks that need no API server."""
    return tuple(check for check in checks if not check.needs_api)


def _find_away(reader: ApiReader) -> Finding | None:
    """Return what keeps every question from being answered; None if nothing does."""
    host = reader.connection.api.configuration.host
    source = reader.connection.source
    try:
        reader.get("/version")
    except ConnectionError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            fix = "correct certificate-authority of the cluster in the kubeconfig"
            return Finding("API server", "problem", f"{host}: its certificate is not trusted", fix, "API server")
        fix = f"kubectl get --raw /readyz; if that fails too, correct the address of {source}"
        return Finding("API server", "problem", f"{host} does not answer: {error}", fix, "API server")
    except RefusedError as error:
        if error.status == 401:
            text = f"{host} does not accept the credentials of {source}"
            return Finding("API server", "problem", text, "log in to the cluster again", "API server")
    return None


def _explain_refusal(name: str, refusal: RefusedError) -> Finding:
    verb, resource, place = read_missing_right(refusal)
    if refusal.status != 403 or not verb:
        return Finding(name, "note", f"cannot be seen: {refusal}", "ask whoever runs the cluster")
    return Finding(
        name,
        "note",
        f"cannot be seen: you may not {verb} {resource}{place}",
        f"have {verb} on {resource}{place} granted, or let somebody with that right run the same command",
    )


def _carry_out(checks: Sequence[Check], examined: Examined, deadline: float) -> Iterator[Finding]:
    """Yield the findings of all checks, in their order."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(checks)):
        waiting.put(number)
    done: queue.SimpleQueue[tuple[int, list[Finding]]] = queue.SimpleQueue()

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((number, run_check(checks[number], examined)))

    # Daemons: a check that hangs in a system call must not keep the process from ending.
    for _ in range(min(_THREADS, len(checks))):
        threading.Thread(target=work, name="examination", daemon=True).start()
    results: dict[int, list[Finding]] = {}
    while len(results) < len(checks):
        try:
            number, found = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        results[number] = found
    for number, check in enumerate(checks):
        late = [Finding(check.name, "note", "no answer in time", "run the same command again", check.group)]
        yield from results.get(number, late)
