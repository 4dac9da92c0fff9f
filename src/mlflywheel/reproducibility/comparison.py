"""What differs between two environments, and what a model that was trained again shows beside the recorded one.

The promise is this. On the same class of machine, with the same code, packages and numbers of threads, training again
gives the same files, and so the same hash. Elsewhere the last bits may differ, and with them a hash; then the metrics
are compared, within a stated tolerance.

Two machines are of one class when numerical libraries choose the same code on both: the same architecture, the same
flags among those that they look at, the same kernels, the same C library. The processor's name, its cores and its
memory may differ.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlflywheel.errors import UsageError

Outcome = Literal["same", "equivalent", "different"]
#: Below this size of a metric the tolerance no longer shrinks with it: 1 % of a share of 0.002 would be noise.
SMALLEST_SCALE = 0.1


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was recorded.

    Args:
        subject: What: `python`, `package numpy`, `threads OMP_NUM_THREADS`, `pipeline`.
        recorded: As the version was trained.
        found: As it is here.
        changes_bits: Whether the same hash can no longer be asked for.
    """

    subject: str
    recorded: str
    found: str
    changes_bits: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.recorded} was recorded, {self.found} is found"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class MetricPair:
    """A metric of both models.

    Args:
        metric: Its name.
        recorded: Of the registered version.
        rebuilt: Of the model that was trained again.
        allowed: Largest absolute difference that the tolerance allows.
    """

    metric: str
    recorded: float
    rebuilt: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether they are within the tolerance."""
        return abs(self.rebuilt - self.recorded) <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True)
class Comparison:
    """What training again showed.

    Args:
        outcome: `same` (equal hash), `equivalent` (metrics within the tolerance, where the hash need not repeat) or
            `different`.
        reason: Why, in one sentence without a full stop.
        recorded_hash: Of the registered version's files.
        rebuilt_hash: Of the files that were made again.
        tolerance: Share of a metric's recorded value by which it may differ.
        metrics: Those that both have.
        unmatched: Metrics that only one of both has, such as those against a champion.
        differences: Of the environments.
    """

    outcome: Outcome
    reason: str
    recorded_hash: str
    rebuilt_hash: str
    tolerance: float
    metrics: tuple[MetricPair, ...]
    unmatched: tuple[str, ...]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "recorded_hash": self.recorded_hash,
            "rebuilt_hash": self.rebuilt_hash,
            "tolerance": self.tolerance,
            "metrics": [pair.to_dict() for pair in self.metrics],
            "unmatched": list(self.unmatched),
            "differences": [difference.to_dict() for difference in self.differences],
        }


def compare_environments(
    recorded: Mapping[str, Any], found: Mapping[str, Any], *, with_pools: bool = True
) -> tuple[Difference, ...]:
    """List what differs between two environments, as `describe_environment` describes them.

    Args:
        recorded: The one that the version was trained in.
        found: The one here.
        with_pools: Whether to compare the thread pools. Only those of loaded libraries are known, so two descriptions
            can be compared only where both were made behind a training.

    >>> one = {"python": "3.12.1", "packages": {"numpy": "2.3.0"}}
    >>> [str(found) for found in compare_environments(one, {**one, "packages": {"numpy": "2.4.0"}})]
    ['package numpy: 2.3.0 was recorded, 2.4.0 is found']
    """
    return tuple(_list_differences(recorded, found, with_pools))


def _list_differences(recorded: Mapping[str, Any], found: Mapping[str, Any], with_pools: bool) -> Iterator[Difference]:
    yield from _compare_code(_part(recorded, "code"), _part(found, "code"))
    for name in ("python", "implementation", "platform"):
        yield from _compare(name, recorded.get(name), found.get(name))
    before, now = _part(recorded, "packages"), _part(found, "packages")
    for package in sorted({*before, *now}):
        yield from _compare(
            f"package {package}", before.get(package, "not installed"), now.get(package, "not installed")
        )
    if before != now:
        yield from _compare("lock", recorded.get("lock_hash"), found.get("lock_hash"), changes_bits=False)
    threads, threads_now = _part(recorded, "threads"), _part(found, "threads")
    variables, variables_now = _part(threads, "variables"), _part(threads_now, "variables")
    for name in sorted({*variables, *variables_now}):
        yield from _compare(f"threads {name}", variables.get(name) or "not set", variables_now.get(name) or "not set")
    if with_pools:
        yield from _compare(
            "thread pools", _show_pools(threads.get("pools") or ()), _show_pools(threads_now.get("pools") or ())
        )
    yield from _compare_hardware(_part(recorded, "hardware"), _part(found, "hardware"))
    image, image_now = _part(recorded, "image"), _part(found, "image")
    for name in ("reference", "digest"):
        # What an image holds is compared above: packages, code and the C library.
        yield from _compare(f"image {name}", image.get(name), image_now.get(name), changes_bits=False)


def _compare_code(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Difference]:
    is_same = bool(recorded.get("source")) and recorded.get("source") == found.get("source")
    yield from _compare("code", recorded.get("source"), found.get("source"))
    yield from _compare("version", recorded.get("version"), found.get("version"), changes_bits=not is_same)
    yield from _compare("commit", _show_commit(recorded), _show_commit(found), changes_bits=False)


def _compare_hardware(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Difference]:
    for name in ("architecture", "instructions"):
        yield from _compare(name, recorded.get(name), found.get(name))
    before, now = set(recorded.get("flags") or ()), set(found.get("flags") or ())
    if before != now:
        yield Difference("processor flags", _show_flags(before - now), _show_flags(now - before))
    chosen, chosen_now = _part(recorded, "variables"), _part(found, "variables")
    for name in sorted({*chosen, *chosen_now}):
        yield from _compare(name, chosen.get(name, "not set"), chosen_now.get(name, "not set"))
    for name in ("cpu", "cores"):
        yield from _compare(name, recorded.get(name), found.get(name), changes_bits=False)


def _compare(subject: str, recorded: Any, found: Any, *, changes_bits: bool = True) -> Iterator[Difference]:
    if recorded != found:
        yield Difference(subject, _show(recorded), _show(found), changes_bits)


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _show(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _show_commit(code: Mapping[str, Any]) -> str:
    return f"{code.get('commit') or 'unknown'}{' with changes' if code.get('dirty') else ''}"


def _show_flags(flags: set[str]) -> str:
    return " ".join(sorted(flags)) or "none more"


def _show_pools(pools: Any) -> str:
    shown = [f"{p.get('library')} {p.get('version')} {p.get('kernels')} with {p.get('threads')}" for p in pools]
    return ", ".join(sorted(text.replace("None ", "") for text in shown)) or "none"


def compare_models(
    recorded_hash: str,
    rebuilt_hash: str,
    recorded_metrics: Mapping[str, float],
    rebuilt_metrics: Mapping[str, float],
    differences: tuple[Difference, ...],
    tolerance: float = 0.01,
) -> Comparison:
    """Say whether a model that was trained again is the recorded one.

    - `same`: the hash is equal, whatever else differs.
    - `equivalent`: the environments differ in something that may change bits, and every metric of both is within the
      tolerance: `tolerance` times the recorded value, or times 0.1 where that is smaller.
    - `different`: anything else. On the same class of machine, with the same code, packages and threads, another hash
      is different whatever the metrics say: something in the training is not pinned.

    Args:
        recorded_hash: Of the registered version.
        rebuilt_hash: Of the model that was trained again.
        recorded_metrics: Overall values by name.
        rebuilt_metrics: The same of the other.
        differences: Of the environments that both were trained in.
        tolerance: Share, 0 or more.

    Raises:
        UsageError: A negative tolerance, or one of 1 and more.

    >>> other = (Difference("package numpy", "2.3.0", "2.4.0"),)
    >>> compare_models("a", "b", {"purity": 0.8}, {"purity": 0.803}, other).outcome
    'equivalent'
    >>> compare_models("a", "b", {"purity": 0.8}, {"purity": 0.803}, ()).outcome
    'different'
    """
    if not 0 <= tolerance < 1:
        raise UsageError("tolerance", str(tolerance), "0 or more is needed, and less than 1", "write 0.01 for 1 %")
    pairs = tuple(
        MetricPair(
            name,
            recorded_metrics[name],
            rebuilt_metrics[name],
            tolerance * max(abs(recorded_metrics[name]), SMALLEST_SCALE),
        )
        for name in sorted(set(recorded_metrics) & set(rebuilt_metrics))
    )
    unmatched = tuple(sorted(set(recorded_metrics) ^ set(rebuilt_metrics)))
    outcome, reason = _judge(recorded_hash == rebuilt_hash, pairs, differences, tolerance)
    return Comparison(outcome, reason, recorded_hash, rebuilt_hash, tolerance, pairs, unmatched, differences)


def _judge(
    is_equal: bool, pairs: tuple[MetricPair, ...], differences: tuple[Difference, ...], tolerance: float
) -> tuple[Outcome, str]:
    if is_equal:
        return "same", "the rebuilt model's files have the recorded hash"
    causes = [difference.subject for difference in differences if difference.changes_bits]
    if not causes:
        return (
            "different",
            "the hash differs although code, packages, threads and the class of machine are the recorded ones: "
            "something in the training is not pinned",
        )
    because = f"the hash differs, and so does {_enumerate(causes)}"
    beyond = [pair.metric for pair in pairs if not pair.holds]
    if not pairs:
        return "different", f"{because}; there is no metric that both have"
    if beyond:
        return "different", f"{because}; beyond the tolerance of {tolerance:.4g} is {_enumerate(beyond)}"
    return "equivalent", f"{because}; {len(pairs)} metrics are within the tolerance of {tolerance:.4g}"


def _enumerate(names: list[str]) -> str:
    """Name the first few.

    >>> _enumerate(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
