"""The rubric: 28 tests in four sections, what each asks for, and which evidence earns its points here.

The same for all of them:

- **Half a point**: the test was done, and a dated record of it is there: by hand, or by a machine that is not shown to
  have done it more than once.
- **One point**: a machine did it, and does it again and again. That is shown by a run that continuous integration or a
  schedule started, or by the same evidence in at least two registered versions, runs or rollouts of the model.
- What cannot be shown earns nothing. So does evidence that is older than it is valid, that has no date, that lies in
  the future, or that says the test does not hold.

A section has the sum of its seven tests, and the score is the lowest of the four: a model is as ready as its weakest
side.

Source: E. Breck, S. Cai, E. Nielsen, M. Salib, D. Sculley, The ML Test Score: A Rubric for ML Production Readiness and
Technical Debt Reduction, IEEE Big Data 2017, doi 10.1109/BigData.2017.8258038. The tests and the arithmetic are theirs;
the words, and the decision which evidence counts, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Section = Literal["data", "model", "infrastructure", "monitoring"]
SECTIONS: tuple[Section, ...] = ("data", "model", "infrastructure", "monitoring")

VALID_DAYS = 180
"""How long a file of the evidence folder counts; a record may say another number."""

Source = Literal["junit", "check"]
"""What a test may rest on beside what it names: test cases that passed, reports of other jobs. A person's record may
always be written, for half a point."""


@dataclass(frozen=True)
class RubricTest:
    """One of the 28 tests.

    Args:
        id: `D1` to `D7`, `M1` to `M7`, `I1` to `I7`, `O1` to `O7`.
        section: Its section.
        title: What holds where the test is done.
        counts: Which evidence counts here, as a clause.
        earns: What would earn the first points, as an imperative without a full stop.
        effort: 1 for something to write down or switch on, 2 for a command to run, 3 for something to build.
        accepts: Which other files may prove it.
    """

    id: str
    section: Section
    title: str
    counts: str
    earns: str
    effort: int
    accepts: tuple[Source, ...] = ()


def _data(number: int, title: str, counts: str, earns: str, effort: int, *accepts: Source) -> RubricTest:
    return RubricTest(f"D{number}", "data", title, counts, earns, effort, accepts)


def _model(number: int, title: str, counts: str, earns: str, effort: int, *accepts: Source) -> RubricTest:
    return RubricTest(f"M{number}", "model", title, counts, earns, effort, accepts)


def _infrastructure(number: int, title: str, counts: str, earns: str, effort: int, *accepts: Source) -> RubricTest:
    return RubricTest(f"I{number}", "infrastructure", title, counts, earns, effort, accepts)


def _monitoring(number: int, title: str, counts: str, earns: str, effort: int, *accepts: Source) -> RubricTest:
    return RubricTest(f"O{number}", "monitoring", title, counts, earns, effort, accepts)


RUBRIC: tuple[RubricTest, ...] = (
    _data(
        1,
        "What is expected of the data stands in a schema",
        "the version's data passed its validation, with at least one expectation that holds (those of D4 and D5 aside)",
        "register a version whose data was validated: give the pipeline expectations",
        2,
    ),
    _data(
        2,
        "Every feature is of use",
        "the importance of features was measured on held-out rows, and at least one of them is above 0",
        "leave `explanations` in evaluation.yaml switched on, and register a version",
        2,
    ),
    _data(
        3,
        "No feature costs more than it is worth",
        "a report or a record of what each feature costs: time, money, dependencies",
        "write down what each feature costs, as a record or as a check of a job that measures it",
        1,
        "check",
    ),
    _data(
        4,
        "Features keep to rules that stand above the single model",
        "an expectation of which columns there may be at all holds (a closed list), or a check of the rules holds",
        "add expect_table_columns_to_match_set with the columns that may be used, or record the review of the rules",
        1,
        "junit",
        "check",
    ),
    _data(
        5,
        "The data's way is guarded for privacy",
        "an expectation that finds personal data holds on the version's data",
        "add expect_column_values_to_not_match_regex rules named for what they find: email, telephone, iban",
        1,
        "junit",
        "check",
    ),
    _data(
        6,
        "A new feature can be added quickly",
        "a record or a check of how long a feature took from the idea to serving",
        "write down when the last new feature was thought of and when it was served",
        1,
        "check",
    ),
    _data(
        7,
        "The code that makes features is tested",
        "test cases that are mapped to D7 passed",
        "map the tests of the preparation to D7 in testscore.yaml, and keep the JUnit XML of a test run",
        2,
        "junit",
    ),
    _model(
        1,
        "What is trained was reviewed and is under version control",
        "the version was trained from a commit without changes beside it, and was approved, with a reason, by somebody "
        "else than who registered it",
        "train from a clean commit, and let a second person approve the version with a reason",
        1,
    ),
    _model(
        2,
        "Offline and online metrics move together",
        "a rehearsal measured labels of recorded requests for both versions, under the name of an offline measurement "
        "that both have, and both put the two versions in the same order",
        "rehearse the version with labels, under the name of a measurement where lower is better",
        3,
        "check",
    ),
    _model(
        3,
        "Parameters were searched for",
        "a search with at least two finished trials came before the training",
        "run the pipeline with --set tune=true",
        2,
    ),
    _model(
        4,
        "It is known what an old model costs",
        "the version in use before, at least a day older and of other data, was measured on the newest held-out rows",
        "register a version while an older one is approved or live, so that both are compared on new rows",
        2,
        "check",
    ),
    _model(
        5,
        "A simpler model is not as good",
        "the gain over a simpler method is above 0, and a gate asks for it",
        "put a gate on gain_over_<reference>, or on the model's metric against its reference",
        1,
    ),
    _model(
        6,
        "Quality suffices on the slices that matter",
        "gates on slices hold (those of M7 aside)",
        "put gates on slices into gates.yaml: slices: [column]",
        1,
    ),
    _model(
        7,
        "The model was looked at for who it leaves out",
        "gaps between groups were measured, and gates on them hold",
        "name the groups in evaluation.yaml, and put a gate on a gap that matters",
        1,
    ),
    _infrastructure(
        1,
        "Training gives the same model again",
        "a rebuild of the version gave the same model, or one within the tolerance that it states",
        "run mlflywheel rebuild, and keep its JSON in the evidence folder",
        2,
    ),
    _infrastructure(
        2,
        "The model's code is unit-tested",
        "test cases that are mapped to I2 passed",
        "map the tests of the model to I2 in testscore.yaml, and keep the JUnit XML of a test run",
        2,
        "junit",
    ),
    _infrastructure(
        3,
        "The whole pipeline is tested in one piece",
        "test cases that are mapped to I3 passed, or continuous integration ran the pipeline to the registration",
        "map a test that runs the pipeline to I3 in testscore.yaml, and keep the JUnit XML of a test run",
        2,
        "junit",
    ),
    _infrastructure(
        4,
        "Quality is checked before a model is served",
        "gates on the model's overall quality, or against the version in use, held before it was registered",
        "put gates on the model's metrics into gates.yaml",
        1,
    ),
    _infrastructure(
        5,
        "A single answer can be looked into",
        "contributions to single answers were computed and add up to them",
        "leave `explanations` in evaluation.yaml switched on, and register a version",
        2,
        "junit",
    ),
    _infrastructure(
        6,
        "A new model serves few before it serves all",
        "a rollout gave this version a part of the traffic, and requests were judged there",
        "roll the version out with mlflywheel rollout, and keep the record",
        3,
    ),
    _infrastructure(
        7,
        "The model in service can be put back",
        "a rollout of the model was rolled back, or test cases that are mapped to I7 passed",
        "roll a candidate back on purpose, and keep the record",
        3,
        "junit",
    ),
    _monitoring(
        1,
        "Who depends on something hears when it changes",
        "a check or a record that changes of packages, data sources and callers are told to the model's owner",
        "let a job tell the owner of changed dependencies, and write its check",
        1,
        "check",
    ),
    _monitoring(
        2,
        "What holds for the inputs is checked in service",
        "a validation of served requests passed: a file serving-*.json of the evidence folder",
        "validate logged requests with the pipeline's expectations, and keep the result as serving-validation.json",
        3,
        "check",
    ),
    _monitoring(
        3,
        "Training and serving see the same features",
        "test cases that compare answers in a batch with answers online, mapped to O3, passed; or a check of logged "
        "requests",
        "map tests that compare batch and online answers to O3 in testscore.yaml",
        2,
        "junit",
        "check",
    ),
    _monitoring(
        4,
        "The model in service is not too old",
        "the version is younger than the age that testscore.yaml allows",
        "write maximum_age_days into testscore.yaml",
        1,
        "check",
    ),
    _monitoring(
        5,
        "No number runs out of range",
        "every measurement is finite (half a point), and no held-out row is without a score",
        "measure the share of rows without a finite score: unscored_share",
        2,
        "junit",
        "check",
    ),
    _monitoring(
        6,
        "Speed and memory did not get worse",
        "a rollout or a rehearsal of this version judged latency beside the version before, and shows no harm",
        "rehearse or roll out the version with a latency metric in the policy",
        2,
        "check",
    ),
    _monitoring(
        7,
        "Answers in service did not get worse",
        "a rollout of this version judged labels of served requests, and shows no harm",
        "roll the version out with a labels metric in the policy, or let a job compare answers with labels",
        3,
        "check",
    ),
)

TESTS: Mapping[str, RubricTest] = {test.id: test for test in RUBRIC}
"""The tests by id."""

# Upper ends, the end itself included.
_BANDS = (
    (0.0, "more of a research project than a system in production"),
    (1.0, "not wholly untested, with the chance of serious holes in its reliability"),
    (2.0, "a first pass at putting it into production is done, and more has to follow"),
    (3.0, "reasonably tested, while more of it could be automatic"),
    (5.0, "tested and monitored to a strong degree by machines"),
)
_BEST_BAND = "exceptionally tested and monitored by machines"


def name_band(score: float) -> str:
    """Return what a score means, from 0 to 7.

    Source: the table of interpretations in the paper, in our words.

    >>> name_band(0.0)
    'more of a research project than a system in production'
    >>> name_band(2.5)
    'reasonably tested, while more of it could be automatic'
    """
    return next((words for upper, words in _BANDS if score <= upper), _BEST_BAND)
