"""What an evaluation measures beside the model's own metrics, as a small YAML file.

    schema: 1
    slices:
      columns: [fuel, gear]
      discover: {columns: [fuel, gear, age_band, price_band, make], minimum_count: 100}
    fairness:
      groups:
        - age: [25]          # "25 or less" and "above 25"
        - sex
        - {name: region, optional: true}    # not every table has it
      minimum_count: 50
    champion:
      states: [live, approved]

Every field has a default. What is measured decides nothing by itself: gates do (`mlflywheel.decisions.gates`).
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from mlflywheel.decisions.documents import load_yaml
from mlflywheel.errors import UsageError
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.models.contract import Settings

SCHEMA = 1


class DiscoveryPlan(Settings):
    """How slices are searched that nobody declared.

    Attributes:
        enabled: Whether to search.
        columns: Attributes that conditions may be about; all of them if empty.
        minimum_count: Rows that a slice must have to be looked at.
        most: How many slices are reported.
        conditions: The most conditions of a slice.
        alpha: Share of evaluations without a weak slice in which one is reported as significant.
    """

    enabled: bool = True
    columns: tuple[str, ...] = ()
    minimum_count: int = Field(default=100, ge=10)
    most: int = Field(default=10, ge=1, le=100)
    conditions: Literal[1, 2] = 2
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)


class SlicePlan(Settings):
    """Which slices every metric is measured on.

    Attributes:
        columns: Declared slices: each value of these attributes, or bands of numbers, as in `Grouping`.
        discover: The search for others.
    """

    columns: tuple[Grouping, ...] = ()
    discover: DiscoveryPlan = DiscoveryPlan()

    @field_validator("columns", mode="before")
    @classmethod
    def _read_columns(cls, value: Any) -> Any:
        return read_groupings(value)


class FairnessPlan(Settings):
    """Between which groups answers are compared.

    Attributes:
        groups: Attributes, or bands of number attributes.
        minimum_count: Rows that a group must have to count in a gap; smaller ones are reported, and in no gap.
        decision_threshold: Probability from which the positive class is the answer, of a classification.
        confidence: Of the intervals, all pairs of groups of a column together.
    """

    groups: tuple[Grouping, ...] = ()
    minimum_count: int = Field(default=50, ge=2)
    decision_threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)

    @field_validator("groups", mode="before")
    @classmethod
    def _read_groups(cls, value: Any) -> Any:
        return read_groupings(value)


class ChampionPlan(Settings):
    """Which version a new one is compared with, and where.

    Attributes:
        states: The newest version in the first of these states that any version has.
        slices: Attributes on whose values both are compared too; those of `slices` and `fairness` if empty.
        minimum_count: Rows that a slice must have to be compared.
        trend_versions: Registered versions whose metrics are looked at for a slow decline; below 4 none is.
        confidence: Of the intervals.
    """

    states: tuple[Literal["live", "approved", "candidate"], ...] = ("live", "approved")
    slices: tuple[Grouping, ...] = ()
    minimum_count: int = Field(default=50, ge=2)
    trend_versions: int = Field(default=10, ge=0, le=1000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)

    @field_validator("slices", mode="before")
    @classmethod
    def _read_slices(cls, value: Any) -> Any:
        return read_groupings(value)


class ExplanationPlan(Settings):
    """How it is measured what the model goes by.

    Attributes:
        rows: Held-out rows that are used, at most; 0 measures nothing.
        repeats: Permutations of each column.
        shown: Rows whose contributions are shown.
    """

    rows: int = Field(default=1000, ge=0)
    repeats: int = Field(default=3, ge=1, le=100)
    shown: int = Field(default=3, ge=0, le=50)


class EvaluationPlan(Settings):
    """What is measured beside the model's own metrics.

    Attributes:
        slices: See `SlicePlan`.
        fairness: See `FairnessPlan`.
        champion: See `ChampionPlan`.
        explanations: See `ExplanationPlan`.
        seed: Of everything random.
    """

    slices: SlicePlan = SlicePlan()
    fairness: FairnessPlan = FairnessPlan()
    champion: ChampionPlan = ChampionPlan()
    explanations: ExplanationPlan = ExplanationPlan()
    seed: int = 0

    def fit_to(self, columns: Collection[str]) -> "EvaluationPlan":
        r"""Return the plan without the optional groupings whose column is not there.

        >>> plan = read_plan("schema: 1\nfairness: {groups: [sex, {name: region, optional: true}]}")
        >>> [group.name for group in plan.fit_to(["age"]).fairness.groups]
        ['sex']
        """

        def present(groupings: tuple[Grouping, ...]) -> tuple[Grouping, ...]:
            return tuple(one for one in groupings if one.name in columns or not one.optional)

        return self.model_copy(
            update={
                "slices": self.slices.model_copy(update={"columns": present(self.slices.columns)}),
                "fairness": self.fairness.model_copy(update={"groups": present(self.fairness.groups)}),
                "champion": self.champion.model_copy(update={"slices": present(self.champion.slices)}),
            }
        )


def read_plan(text_yaml: str, where: str = "evaluation.yaml") -> EvaluationPlan:
    r"""Read a plan from YAML; empty text is the default plan.

    Raises:
        UsageError: Not YAML, another schema, or a field that is unknown or out of range; the message names it.

    >>> plan = read_plan("schema: 1\nfairness: {groups: [sex, {age: [25]}]}")
    >>> [group.name for group in plan.fairness.groups]
    ['sex', 'age']
    """
    if not text_yaml.strip():
        return EvaluationPlan()
    document = load_yaml(text_yaml, where)
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        seen = repr(document.get("schema")) if isinstance(document, Mapping) else f"a {type(document).__name__}"
        raise UsageError(f"{where}, schema", seen, f"{SCHEMA} is needed", f"start with `schema: {SCHEMA}`")
    # A section whose lines are all commented out is null, and means its defaults.
    values = {name: value for name, value in document.items() if name != "schema" and value is not None}
    return EvaluationPlan.parse(values, where)


def read_groupings(value: Any) -> Any:
    """Turn `[sex, {age: [25]}]` into what `Grouping` is validated from.

    Raises:
        ValueError: Not a list of names, or ends of bands that are none; entries of other kinds are left to pydantic.
    """
    if not isinstance(value, list | tuple):
        raise ValueError("a list is needed, as in [sex, {age: [25]}]")
    found: list[Any] = []
    for entry in value:
        if isinstance(entry, str):
            found.append({"name": entry})
        elif isinstance(entry, Mapping) and len(entry) == 1 and "name" not in entry:
            ((name, bands),) = entry.items()
            if not isinstance(bands, list | tuple):
                raise ValueError(f"ends of bands are a list, as in {{{name}: [{bands}]}}")
            found.append({"name": name, "bands": bands})
        else:
            found.append(entry)
    return tuple(found)
