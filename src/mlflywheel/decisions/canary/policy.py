"""What a rollout may cost and what it has to show, as a small YAML file.

Every field has a default; `DEFAULT_YAML` writes all of them out.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflywheel.decisions.canary.sequential import Limit
from mlflywheel.decisions.documents import load_yaml
from mlflywheel.errors import UsageError

SCHEMA = 1

DEFAULT_YAML = """\
schema: 1
# Whether a registered version has to be approved before it gets traffic (`mlflywheel models approve`): required or
# not_required. An archived version gets none either way, and one that is in no registry is not asked for.
approval: required
# Whole percents of the traffic that the candidate gets, step by step. A first step of 0 is a dark launch: it starts,
# and gets no traffic.
steps: [1, 5, 25, 50, 100]
# At most this share of equally good candidates is rolled back, and of candidates beyond a margin promoted: over all
# metrics and however often the judge is asked.
alpha: 0.05
# The share of equally good candidates for which the plan's number of requests suffices. It changes no decision.
power: 0.9
# A step ends only after both. Fewer seconds than three windows have would end it before harm can be found.
minimum: {requests: 50, seconds: 120}
# How long one piece of evidence is, and how long after a change of weights the next one starts.
window_seconds: 30
settle_seconds: 15
# Evidence of at least so many windows is needed for a decision.
sustained_windows: 2
# Without a decision after this time: rollback, hold or promote. A weight that is not reached within the other time,
# because the candidate does not start for instance, is rolled back too.
deadline: {after_minutes: 1440, action: rollback, shift_minutes: 30}
metrics:
  # role: superiority      promoted only if it is shown to be better than the margin
  #       non_inferiority  promoted only if it is shown to be within the margin
  #       guardrail        not needed for promotion
  # Each of them rolls back when it is shown to be worse than its tolerance, which is `no worse than stable`.
  # A margin has to be shown at the last step below 100; harm counts at every step.
  # A margin or tolerance is a limit on the candidate's rate: ratio * the stable rate + difference.
  - name: errors
    kind: errors
    role: non_inferiority
    margin: {ratio: 1.0, difference: 0.01}
    tolerance: {ratio: 1.0, difference: 0.0}
  # Requests slower than the bound of the histogram that the quantile of the stable arm lies under.
  - name: latency_p99
    kind: latency
    quantile: 0.99
    role: non_inferiority
    margin: {ratio: 1.0, difference: 0.01}
    tolerance: {ratio: 1.0, difference: 0.0}
"""

Role = Literal["superiority", "non_inferiority", "guardrail"]
DeadlineAction = Literal["rollback", "hold", "promote"]
Approval = Literal["required", "not_required"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LimitLine(_Strict):
    """How high the candidate's rate may be: `ratio` times the stable rate plus `difference`."""

    ratio: float = Field(default=1.0, gt=0, le=100)
    difference: float = Field(default=0.0, gt=-1, lt=1)

    def to_limit(self) -> Limit:
        """Return it as the tests take it."""
        return Limit(self.ratio, self.difference)


_EQUAL = LimitLine()
_DEFAULT_MARGIN = LimitLine(difference=0.01)


class _Metric(_Strict):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    role: Role = "non_inferiority"
    margin: LimitLine | None = None
    tolerance: LimitLine = _EQUAL

    @property
    def margin_limit(self) -> Limit:
        """What has to be shown for a promotion: by default one in a hundred more, or better for superiority."""
        if self.margin is not None:
            return self.margin.to_limit()
        return (_EQUAL if self.role == "superiority" else _DEFAULT_MARGIN).to_limit()

    @property
    def is_needed(self) -> bool:
        """Whether a promotion needs it."""
        return self.role != "guardrail"


class ErrorsMetric(_Metric):
    """Requests that were answered with an error, among all requests."""

    kind: Literal["errors"] = "errors"


class LatencyMetric(_Metric):
    """Requests that took longer than a bound of the histogram.

    Args:
        quantile: The bound is the smallest one that at least this share of the stable arm's requests stays under.
        seconds: The bound itself, instead of a quantile; the next bound of the histogram is taken.
    """

    kind: Literal["latency"]
    quantile: float | None = Field(default=None, gt=0, lt=1)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_bound(self) -> "LatencyMetric":
        if (self.quantile is None) == (self.seconds is None):
            raise ValueError("exactly one of quantile and seconds is needed")
        return self


class CounterMetric(_Metric):
    """Events among a total, both counted by the source under the metric's name.

    Args:
        better: Whether fewer or more events are good.
    """

    kind: Literal["counter"]
    better: Literal["fewer", "more"] = "fewer"


class LabelsMetric(_Metric):
    """Losses from 0 to 1 that labels tell later, joined by request id.

    Args:
        by: An attribute of the answers, whose groups are watched each on their own; None for none.
        groups: The groups that are known beforehand: they share what is set apart for groups. Any other group
            gets less, the later it appears the less.
    """

    kind: Literal["labels"]
    by: str | None = None
    groups: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_groups(self) -> "LabelsMetric":
        if self.groups and self.by is None:
            raise ValueError("groups need `by`, the attribute that they are groups of")
        return self

    @field_validator("groups", mode="before")
    @classmethod
    def _read_groups(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


Metric = Annotated[ErrorsMetric | LatencyMetric | CounterMetric | LabelsMetric, Field(discriminator="kind")]


class Minimum(_Strict):
    """What every step needs before it ends.

    Args:
        requests: Answered by the candidate.
        seconds: Since the step's weight was reached.
    """

    requests: int = Field(default=50, ge=1)
    seconds: float = Field(default=120, ge=0)


class Deadline(_Strict):
    """What happens to a rollout that cannot be decided.

    Args:
        after_minutes: From the start.
        action: What is then done.
        shift_minutes: How long a step's weight may take to be reached.
    """

    after_minutes: float = Field(default=1440, gt=0)
    action: DeadlineAction = "rollback"
    shift_minutes: float = Field(default=30, gt=0)


class Policy(_Strict):
    """A rollout's policy; `DEFAULT_YAML` explains the fields."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    approval: Approval = "required"
    steps: tuple[int, ...] = (1, 5, 25, 50, 100)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.9, ge=0.5, lt=1)
    minimum: Minimum = Minimum()
    window_seconds: float = Field(default=30, gt=0)
    settle_seconds: float = Field(default=15, ge=0)
    sustained_windows: int = Field(default=2, ge=1, le=100)
    deadline: Deadline = Deadline()
    metrics: tuple[Metric, ...] = (
        ErrorsMetric(name="errors", margin=_DEFAULT_MARGIN),
        LatencyMetric(name="latency_p99", kind="latency", quantile=0.99, margin=_DEFAULT_MARGIN),
    )

    @field_validator("steps", "metrics", mode="before")
    @classmethod
    def _read_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if len(steps) < 2 or steps[-1] != 100:
            raise ValueError("at least one step below 100 is needed, and 100 at the end")
        if not all(before < after for before, after in pairwise(steps)):
            raise ValueError("every step must be larger than the one before")
        if steps[0] < 0 or steps[-2] == 0:
            raise ValueError("a step between 0 and 100 is needed: without traffic there is no evidence")
        return steps

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        names = [metric.name for metric in metrics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} stands twice")
        if not any(metric.is_needed for metric in metrics):
            raise ValueError("at least one metric that is no guardrail is needed: else nothing decides a promotion")
        return metrics

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `policy_from_dict` reads them."""
        return self.model_dump(mode="json", by_alias=True)


def read_policy(text: str, where: str = "policy.yaml") -> Policy:
    r"""Read a policy from YAML.

    Raises:
        UsageError: Not YAML, or a field is unknown, of another type, or impossible; the message names it.

    >>> read_policy("schema: 1\nsteps: [10, 100]").steps
    (10, 100)
    """
    document = load_yaml(text, where)
    if not isinstance(document, dict):
        raise UsageError(where, "no fields", "a policy is needed", "start with `schema: 1`")
    return _validate(document, where)


def policy_from_dict(values: Mapping[str, Any], where: str = "policy") -> Policy:
    """Read what `Policy.to_dict` wrote.

    A policy that was recorded before there were approvals asked for none, and is read as that.

    Raises:
        UsageError: As `read_policy`.

    >>> policy_from_dict(Policy().to_dict()).approval, policy_from_dict({"schema": 1}).approval
    ('required', 'not_required')
    """
    return _validate({"approval": "not_required", **values}, where)


def _validate(values: Mapping[str, Any], where: str) -> Policy:
    if "schema" not in values:
        raise UsageError(f"{where}, schema", "nothing", f"{SCHEMA} is needed", f"write `schema: {SCHEMA}`")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # The discriminator of the union stands in the path, beside the index.
        path = [part for part in first["loc"] if part not in ("errors", "latency", "counter", "labels")]
        place = ".".join(str(part) for part in path) or "policy"
        message = first["msg"].removeprefix("Value error, ")
        seen = "nothing" if first["type"] == "missing" else _show(first["input"])
        fix = "correct it" if first["type"] != "extra_forbidden" else "remove it"
        raise UsageError(f"{where}, {place}", seen, message[0].lower() + message[1:], fix) from None


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
