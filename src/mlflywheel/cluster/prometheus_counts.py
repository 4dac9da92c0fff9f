"""What a window's raw samples in Prometheus say: how much each counter rose, or why that is not known.

A counter's rise is the difference of the last sample before the window's end and the last one before its start, so
that windows which follow each other count every request once. It is exact, as opposed to `increase()`, which
extrapolates to the window's borders. The cases:

- *A series that is new* in a target that was scraped before the start (a first error), or in a target that was not
  known before while others of the arm were (a new pod): it began at 0.
- *A counter that falls*, or a series that disappears while its target is still scraped: the process was restarted. What
  is known counts, and the arm is marked as reset: requests between the last scrape and the restart are lost.
- *A target that is gone* (a pod that was scaled down) while others of the arm are scraped: its count until its last
  scrape. Of errors and requests the same seconds are missing, so that their ratio stays what it was; to leave such
  windows out would stop a service that scales from being judged at all. If it was the arm's last target, it is a gap.
- *A target whose scrape fails*, or that was not scraped around the start: a gap.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mlflywheel.decisions.canary.evidence import Histogram

# All series of one scrape have its time; this is for the rounding of times in JSON.
_SAME_SCRAPE_SECONDS = 0.01
# Labels of the way on which a series came, not of what it counts.
_SCRAPE_LABELS = frozenset(
    ("job", "instance", "endpoint", "service", "container", "prometheus", "prometheus_replica", "replica", "receive")
)

TargetKey = tuple[str, ...]


class MissingError(Exception):
    """Something that a window needs is not there; the text says what."""


@dataclass(frozen=True)
class Series:
    """A series' samples.

    Args:
        labels: Its labels, with `__name__`.
        samples: Pairs of time (seconds since 1970) and value, ascending.
    """

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, float]]

    @property
    def target(self) -> TargetKey:
        """What was scraped."""
        return tuple(self.labels.get(name, "") for name in ("cluster", "job", "instance"))

    def last_until(self, time: float) -> tuple[float, float] | None:
        """Return the last sample at or before a time."""
        return next((sample for sample in reversed(self.samples) if sample[0] <= time), None)


@dataclass(frozen=True)
class Rise:
    """How much counters rose.

    Args:
        value: Their sum.
        reset: Whether one of them began again.
    """

    value: float
    reset: bool


class Scrapes:
    """When what was scraped, over the series of one arm.

    Args:
        counters: All series that count.
        up: The `up` series that belong to them.
        start: Of the window, seconds since 1970.
        end: Of the window.
        stale_seconds: How old a sample may be.
    """

    def __init__(
        self, counters: Iterable[Series], up: Iterable[Series], start: float, end: float, stale_seconds: float
    ) -> None:
        self.start, self.end, self.stale_seconds = start, end, stale_seconds
        times: dict[TargetKey, list[float]] = defaultdict(list)
        self._up: dict[TargetKey, Series] = {}
        self._counting: set[TargetKey] = set()
        for series in counters:
            self._counting.add(series.target)
            times[series.target].extend(time for time, _ in series.samples)
        for series in up:
            self._up[series.target] = series
            times[series.target].extend(time for time, value in series.samples if value == 1)
        self._before = {key: max((t for t in all_ if t <= start), default=None) for key, all_ in times.items()}
        self._within = {key: max((t for t in all_ if start < t <= end), default=None) for key, all_ in times.items()}

    @property
    def is_any(self) -> bool:
        """Whether anything of the arm was ever scraped."""
        return any(time is not None for time in (*self._before.values(), *self._within.values()))

    def before(self, key: TargetKey) -> float | None:
        """Return the time of a target's last scrape before the window."""
        return self._before.get(key)

    def within(self, key: TargetKey) -> float | None:
        """Return the time of a target's last scrape in the window."""
        return self._within.get(key)

    def check(self) -> None:
        """Check that the arm was watched over the whole window.

        Raises:
            MissingError: It was not.
        """
        for key in sorted(self._counting):
            self._check_target(key)
        # What else is scraped of the same pods says nothing about these counters.
        jobs = {key[1] for key in self._counting}
        keys = [key for key in self._before if not jobs or key[1] in jobs]
        before = [time for time in (self._before[key] for key in keys) if time is not None]
        if not before:
            raise MissingError("nothing was scraped before the window")
        if not self._is_fresh(max(before), self.start):
            raise MissingError(f"the last scrape was {self.start - max(before):.0f} s before the window")
        within = [time for time in (self._within[key] for key in keys) if time is not None]
        if not within:
            raise MissingError(
                f"no scrape between the window's start and its end, {self.end - self.start:.0f} s later "
                "(stopped, or the interval of scrapes is longer)"
            )
        if not self._is_fresh(max(within), self.end):
            raise MissingError(f"the last scrape was {self.end - max(within):.0f} s before the window's end")

    def _check_target(self, key: TargetKey) -> None:
        name = key[-1] or "it"
        up = self._up.get(key)
        last_up = up.last_until(self.end) if up is not None else None
        if last_up is not None and last_up[1] != 1 and self._is_fresh(last_up[0], self.end):
            raise MissingError(f"{name} cannot be scraped")
        if self._within[key] is None:
            return
        before = self._before[key]
        if before is not None and not self._is_fresh(before, self.start):
            raise MissingError(f"{name} was not scraped for {self.start - before:.0f} s before the window")
        if before is None and up is not None and up.last_until(self.start) is not None:
            raise MissingError(f"{name} could not be scraped before the window")

    def _is_fresh(self, time: float, at: float) -> bool:
        return at - time <= self.stale_seconds


def measure_rise(all_series: Iterable[Series], scrapes: Scrapes) -> Rise:
    """Return how much counters rose in the window.

    Raises:
        MissingError: A value is not a number.
    """
    rises, reset = [], False
    for series in all_series:
        rise = _measure_one(series, scrapes)
        rises.append(rise.value)
        reset = reset or rise.reset
    return Rise(math.fsum(rises), reset)


def measure_histogram(all_series: Sequence[Series], scrapes: Scrapes, unit_seconds: float) -> tuple[Histogram, bool]:
    """Return the requests of the window by how long they took, and whether a counter was reset.

    Args:
        all_series: The buckets, one series or more.
        scrapes: Of the arm.
        unit_seconds: Seconds in one unit of `le`.

    Raises:
        MissingError: The buckets differ between series, lack the last one, or are not cumulative.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[float, Series]] = defaultdict(dict)
    # The pods of a version before may have had other bounds.
    alive = [series for series in all_series if scrapes.within(series.target) is not None]
    for series in alive or all_series:
        identity = tuple(sorted((name, value) for name, value in series.labels.items() if name != "le"))
        groups[identity][_read_bound(series)] = series
    bounds: tuple[float, ...] | None = None
    rises: dict[float, list[float]] = defaultdict(list)
    reset = False
    for group in groups.values():
        found = tuple(sorted(group))
        if bounds is not None and found != bounds:
            raise MissingError(f"the histogram's bounds differ between series ({_show(bounds)} and {_show(found)})")
        bounds = found
        for bound, series in group.items():
            rise = _measure_one(series, scrapes)
            rises[bound].append(rise.value)
            reset = reset or rise.reset
    assert bounds is not None
    if bounds[-1] != math.inf or len(bounds) < 2:
        raise MissingError(f"the histogram's bounds are {_show(bounds)}; one and +Inf at least are needed")
    cumulative = [math.fsum(rises[bound]) for bound in bounds]
    counts = [after - before for before, after in zip([0.0, *cumulative], cumulative, strict=False)]
    if min(counts) < 0:
        if not reset:
            raise MissingError("the histogram's buckets are not cumulative")
        counts = [max(0.0, count) for count in counts]
    return Histogram(tuple(bound * unit_seconds for bound in bounds[:-1]), tuple(counts)), reset


def check_scraped_once(all_series: Iterable[Series], scrapes: Scrapes) -> None:
    """Check that no pod's counter comes on two ways, which would count every request twice.

    Raises:
        MissingError: One does.
    """
    seen: dict[tuple[tuple[str, str], ...], TargetKey] = {}
    for series in all_series:
        if not series.labels.get("pod") or scrapes.within(series.target) is None:
            continue
        identity = tuple(sorted(pair for pair in series.labels.items() if pair[0] not in _SCRAPE_LABELS))
        if identity in seen:
            ways = " and ".join(" ".join(part for part in key if part) for key in (seen[identity], series.target))
            raise MissingError(f"{series.labels['pod']} is scraped twice ({ways}), and would count twice")
        seen[identity] = series.target


def _measure_one(series: Series, scrapes: Scrapes) -> Rise:
    if any(math.isnan(value) or math.isinf(value) for _, value in series.samples):
        raise MissingError(f"{series.labels.get('__name__', 'a series')} has a value that is not a number")
    last_scrape_before, last_scrape = scrapes.before(series.target), scrapes.within(series.target)
    before = series.last_until(scrapes.start)
    # One that ended before the window belongs to a process that is no more.
    is_alive = before is not None and last_scrape_before is not None and _is_same(before[0], last_scrape_before)
    previous = before[1] if before is not None and is_alive else 0.0
    within = [sample for sample in series.samples if scrapes.start < sample[0] <= scrapes.end]
    if not within:
        return Rise(0.0, is_alive and last_scrape is not None)
    rise, reset = 0.0, last_scrape is not None and not _is_same(within[-1][0], last_scrape)
    for _, value in within:
        if value < previous:
            reset, previous = True, 0.0
        rise += value - previous
        previous = value
    return Rise(rise, reset)


def _is_same(time: float, other: float) -> bool:
    return abs(time - other) <= _SAME_SCRAPE_SECONDS


def _read_bound(series: Series) -> float:
    text = series.labels.get("le", "")
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if math.isnan(bound):
        name = series.labels.get("__name__", "a series")
        raise MissingError(f"{name} has le={text!r}; the buckets of a classic histogram are needed")
    return bound


def _show(bounds: Sequence[float]) -> str:
    return ", ".join(f"{bound:g}" for bound in bounds)
