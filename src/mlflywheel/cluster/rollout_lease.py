"""A Lease that one process holds, and knows when it has lost.

**Clocks.** No clock of one machine is ever compared with that of another, so clocks that differ by minutes cannot make
two holders. All is measured in time that passed on one machine:

- The holder renews every quarter of the lease's time. It counts the lease as lost as soon as half of that time has
  passed since it *sent* the last renewal that was accepted.
- Somebody else takes a held lease over only after they have watched it, without any change, for two thirds of that
  time. A holder that was alive when they began to watch has given up by then.
- The lease is written with the `resourceVersion` that was read, so that of two who take it over one succeeds.

What remains is a clock that runs a third faster than another, and a machine that sleeps in a way that its clock does
not see. Then the record's own `resourceVersion` keeps the second writer out.

Times in the Lease, and in messages, are the API server's, from the header `Date` of its answers. They decide one thing:
a lease that was renewed a moment ago is refused at once instead of watched. A wrong time there costs time, not safety.
client-go's leader election observes in the same way (k8s.io/client-go/tools/leaderelection); unlike it, this is no
service that waits, so that a call is refused when it sees a renewal.
"""

import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from mlflywheel.cluster.kubernetes_client import (
    REQUEST_TIMEOUT_SECONDS,
    ApiClient,
    Cluster,
    CustomObjectsApi,
    RefusedError,
)
from mlflywheel.errors import RolloutError

GROUP, VERSION, PLURAL = "coordination.k8s.io", "v1", "leases"
RESOURCE = f"{PLURAL}.{GROUP}"
LEASE_SECONDS = 60.0
# Shares of the lease's time, see above.
_RENEWED_AFTER, _LOST_AFTER, _TAKEN_AFTER = 1 / 4, 1 / 2, 2 / 3
_POLLS = 20
# The header Date has whole seconds.
_DATE_SECONDS = 1.0

Metadata = Mapping[str, Any]


def read_clock_seconds() -> float:
    """Return a time that only runs forward, also while the machine sleeps where the system can tell."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass(frozen=True)
class _Seen:
    """A Lease as the API server answered.

    Args:
        lease: The object.
        sent: When the request was sent, by `read_clock_seconds`.
        received: When its answer came.
        server_seconds: What the server's clock said, seconds since 1970.
    """

    lease: Mapping[str, Any]
    sent: float
    received: float
    server_seconds: float

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.lease.get("spec") or {}

    @property
    def version(self) -> str:
        return str(self.lease["metadata"]["resourceVersion"])

    @property
    def holder(self) -> str:
        return str(self.spec.get("holderIdentity") or "")

    @property
    def age_seconds(self) -> float | None:
        """Time since the last renewal, as the times in the Lease have it; None if they make no sense."""
        renewed = _read_time(self.spec.get("renewTime"))
        if renewed is None or self.server_seconds - renewed < -2 * _DATE_SECONDS:
            return None
        return max(0.0, self.server_seconds - renewed)


class Lease:
    """One Lease object.

    Args:
        cluster: Where.
        namespace: Of the object.
        name: Of the object.
        metadata: Labels and owners that it gets, with `labels`, `annotations` and `ownerReferences`.
        lease_seconds: How long it is held without being renewed.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, metadata: Metadata, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self._metadata = dict(metadata)
        self._lease_seconds = lease_seconds
        self._guard = threading.Lock()
        self._seen: _Seen | None = None
        self._identity = ""
        self._lost_because = ""
        self._last_failure = ""

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"Lease {self._namespace}/{self._name}"

    @property
    def lost_because(self) -> str:
        """Why the lease is not held, in words; empty while it is."""
        with self._guard:
            if self._lost_because or self._seen is None:
                return self._lost_because or "it was never taken"
            silent, failure = read_clock_seconds() - self._seen.sent, self._last_failure
        if silent < self._lease_seconds * _LOST_AFTER:
            return ""
        return f"it was not renewed for {silent:.1f} s{failure and f': {failure}'}"

    @contextmanager
    def hold(self, holder: str) -> Iterator[None]:
        """Hold the lease, and renew it beside what the block does.

        Args:
            holder: Who, as others are told. A part that only this call has is added.

        Raises:
            RolloutError: Somebody else holds it, or it is not permitted.
        """
        self._identity = f"{holder}_{uuid.uuid4().hex[:8]}"
        ended = threading.Event()
        try:
            self._take()
            renewing = threading.Thread(
                target=self._renew_until, args=(ended,), name=f"renew {self.where}", daemon=True
            )
            renewing.start()
            try:
                yield
            finally:
                ended.set()
                renewing.join()
                self._release()
        except (KeyboardInterrupt, SystemExit):
            # It may have come while the lease was taken or given back: whose it is then, only the server knows.
            ended.set()
            self._release_unknown()
            raise

    def _release_unknown(self) -> None:
        with suppress(RefusedError, ConnectionError):
            found = self._ask(once=True)
            if found.holder == self._identity:
                with self._guard:
                    self._seen, self._lost_because = found, ""
                self._release()

    # Taking it.

    def _take(self) -> None:
        watched: _Seen | None = None
        while True:
            seen = self._get()
            if seen is None:
                # With nobody's name, and taken as any other: so that a missing right to renew it is found at once.
                self._write("create", None)
                continue
            if seen.holder:
                watched = self._watch(seen, watched)
                if read_clock_seconds() - watched.received < self._lease_seconds * _TAKEN_AFTER:
                    time.sleep(self._lease_seconds * _TAKEN_AFTER / _POLLS)
                    continue
            taken = self._write("update", seen)
            if taken is not None:
                with self._guard:
                    self._seen, self._lost_because = taken, ""
                return

    def _watch(self, seen: _Seen, watched: _Seen | None) -> _Seen:
        """Return since when a held lease has not changed; an error if its holder lives."""
        if watched is None:
            age = seen.age_seconds
            if age is not None and age < self._lease_seconds * _LOST_AFTER:
                raise self._held(seen)
            self._cluster.told(
                f"{self.where} is held by {_describe(seen)}, and was not renewed in time: it is taken over if it stays "
                f"so for {self._lease_seconds * _TAKEN_AFTER:.0f} s"
            )
            return seen
        if (seen.holder, seen.spec.get("renewTime")) != (watched.holder, watched.spec.get("renewTime")):
            raise self._held(seen)
        return watched

    def _held(self, seen: _Seen) -> RolloutError:
        renewed = _read_time(seen.spec.get("renewTime")) or seen.server_seconds
        return RolloutError(
            self.where,
            f"held by {_describe(seen)}",
            f"one process moves a rollout at a time; unless it is renewed, it ends at "
            f"{_write_time(renewed + self._lease_seconds, 'seconds')} at the latest",
            "wait for it, or end that process; the lease of a process that was killed needs no deletion",
        )

    # Keeping it.

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._lease_seconds * _RENEWED_AFTER):
            while not self._renew():
                lost = self.lost_because
                if lost:
                    # For good: a renewal that came through later would come too late.
                    with self._guard:
                        self._lost_because = lost
                    return
                # The server is away, for a moment perhaps.
                if ended.wait(self._lease_seconds * _RENEWED_AFTER / 10):
                    return

    def _renew(self) -> bool:
        """Renew once; False if it did not work or the lease is somebody else's."""
        with self._guard:
            seen = self._seen
        assert seen is not None
        try:
            renewed = self._send("update", seen, once=True)
        except RefusedError as error:
            if error.status not in (404, 409):
                return self._note(error)
            return self._find_out(error.status == 404)
        except ConnectionError as error:
            return self._note(error)
        with self._guard:
            self._seen = renewed
        return True

    def _note(self, error: Exception) -> bool:
        with self._guard:
            self._last_failure = str(error)
        return False

    def _find_out(self, is_gone: bool) -> bool:
        """Look who changed the lease: ourselves, in a call that went unanswered, or somebody else."""
        try:
            found = None if is_gone else self._ask(once=True)
        except RefusedError as error:
            if error.status != 404:
                return self._note(error)
            found = None
        except ConnectionError as error:
            return self._note(error)
        with self._guard:
            if found is None:
                self._lost_because = "somebody deleted it"
            elif found.holder == self._identity:
                assert self._seen is not None
                # The version to go on with. When it was renewed is known of answered calls alone.
                self._seen = replace(found, sent=self._seen.sent)
            else:
                self._lost_because = f"{_describe(found) if found.holder else 'nobody'} holds it now"
        return False

    def _release(self) -> None:
        with self._guard:
            seen, lost = self._seen, self._lost_because
            self._seen, self._lost_because = None, "it was given back"
        if seen is None or lost:
            return
        # What goes wrong here costs the next one the time of the lease, and nothing else.
        for _ in range(2):
            try:
                self._send("update", seen, once=True, release=True)
            except RefusedError as error:
                if error.status != 409:
                    return
            except ConnectionError:
                continue
            else:
                return
            try:
                found = self._ask(once=True)
            except (RefusedError, ConnectionError):
                return
            if found.holder != self._identity:
                return
            seen = found

    # Calls.

    def _get(self) -> _Seen | None:
        try:
            return self._ask()
        except RefusedError as error:
            if error.status == 404:
                return None
            raise self._refused(error) from error

    def _write(self, verb: Literal["create", "update"], seen: _Seen | None) -> _Seen | None:
        """Create the lease, or put this call's name into it; None if somebody else was quicker."""
        try:
            return self._send(verb, seen)
        except RefusedError as error:
            # Without the namespace, nothing can be created; without the lease, it is created next.
            if error.status == 409 or (error.status == 404 and verb == "update"):
                found = self._get()
                # An earlier attempt may have succeeded without an answer. Since when is not known: from before it.
                if found is not None and found.holder == self._identity:
                    return self._send("update", found)
                return None
            raise self._refused(error) from error

    def _refused(self, error: RefusedError) -> RolloutError:
        return RolloutError(
            self.where,
            f"the API server refused it: {error.message}",
            "a rollout is held by a Lease in the service's namespace",
            "see whether the namespace exists and allows Leases",
        )

    def _ask(self, *, once: bool = False) -> _Seen:
        return self._call(
            "get",
            lambda api: CustomObjectsApi(api).get_namespaced_custom_object_with_http_info(
                GROUP, VERSION, self._namespace, PLURAL, self._name, _request_timeout=self._timeout(once)
            ),
            once,
        )

    def _send(
        self, verb: Literal["create", "update"], seen: _Seen | None, *, once: bool = False, release: bool = False
    ) -> _Seen:
        def send(api: ApiClient) -> Any:
            body = self._body(seen, release)
            place = (GROUP, VERSION, self._namespace, PLURAL)
            options = {"field_manager": "mlflywheel", "_request_timeout": self._timeout(once)}
            if verb == "create":
                return CustomObjectsApi(api).create_namespaced_custom_object_with_http_info(*place, body, **options)
            return CustomObjectsApi(api).replace_namespaced_custom_object_with_http_info(
                *place, self._name, body, **options
            )

        return self._call(verb, send, once)

    def _call(self, verb: str, send: Any, once: bool) -> _Seen:
        """Send a request, and note when it was sent and what the server's clock said."""
        facts = {"sent": 0.0, "received": 0.0, "server": 0.0}

        def noted(api: ApiClient) -> Any:
            facts["sent"] = read_clock_seconds()
            lease, _, headers = send(api)
            facts["received"] = read_clock_seconds()
            facts["server"] = _read_date(headers)
            return lease

        # Roles grant creation to all names or none, and the rest by name.
        resource = RESOURCE if verb == "create" else f"{RESOURCE}/{self._name}"
        lease = self._cluster.try_once(noted) if once else self._cluster.call(verb, resource, self._namespace, noted)
        return _Seen(lease, facts["sent"], facts["received"], facts["server"])

    def _timeout(self, once: bool) -> tuple[float, float]:
        # A renewal that hangs must leave time for another.
        longest = self._lease_seconds * _RENEWED_AFTER / 2 if once else math.inf
        return min(REQUEST_TIMEOUT_SECONDS[0], longest), min(REQUEST_TIMEOUT_SECONDS[1], longest)

    def _body(self, seen: _Seen | None, release: bool) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace, **self._metadata}
        spec: dict[str, Any] = {}
        if seen is not None:
            metadata["resourceVersion"] = seen.version
            # On the server's clock, so that holders with different clocks write times that others can read.
            now = _write_time(seen.server_seconds + read_clock_seconds() - seen.received)
            spec = {**seen.spec, "renewTime": now}
            if release:
                spec.pop("holderIdentity", None)
            elif spec.get("holderIdentity") != self._identity:
                transitions = int(spec.get("leaseTransitions", -1)) + 1
                spec |= {"holderIdentity": self._identity, "acquireTime": now, "leaseTransitions": transitions}
        spec["leaseDurationSeconds"] = max(1, math.ceil(self._lease_seconds))
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Lease", "metadata": metadata, "spec": spec}


def _describe(seen: _Seen) -> str:
    since = _read_time(seen.spec.get("acquireTime"))
    return seen.holder + (f" since {_write_time(since, 'seconds')}" if since is not None else "")


def _read_date(headers: Mapping[str, str]) -> float:
    """Return the time of an answer; that of this machine if a proxy took the header away."""
    try:
        return parsedate_to_datetime(headers.get("Date") or "").timestamp()
    except ValueError:
        return time.time()


def _read_time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _write_time(seconds: float, timespec: str = "microseconds") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
