"""The score: points by test from evidence, sections by sum, and the lowest section as the score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflywheel.errors import MlflywheelError
from mlflywheel.registry.records import ModelRegistry, ModelVersion, Transition
from mlflywheel.testscore.evidence import find_evidence
from mlflywheel.testscore.folder import read_folders
from mlflywheel.testscore.items import AUTOMATIC, Evidence, Registered, Remark
from mlflywheel.testscore.rubric import RUBRIC, SECTIONS, Section, name_band

SCHEMA = 1
HALF, ONE = 0.5, 1.0
# One other version that has the same evidence is enough; each dossier is a file of its own to fetch.
_MOST_SIBLINGS = 20


@dataclass(frozen=True)
class ScoredTest:
    """One test with its points.

    Args:
        id: The rubric's id.
        section: Its section.
        title: What holds where it is done.
        points: 0, 0.5 or 1.
        evidence: What the points rest on; of a point, also what shows that it is repeated.
        missing: What would earn more, and what does not count and why; empty for a whole point.
        effort: 1 for something to write down or switch on, 2 for a command to run, 3 for something to build.
        remarks: What does not count and why; part of `missing` too.
    """

    id: str
    section: Section
    title: str
    points: float
    evidence: tuple[Evidence, ...]
    missing: str
    effort: int
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "id": self.id,
            "section": self.section,
            "title": self.title,
            "points": self.points,
            "evidence": [one.to_dict() for one in self.evidence],
            "missing": self.missing,
        }


@dataclass(frozen=True)
class TestScore:
    """The ML Test Score of a version.

    Args:
        reference: `NAME@VERSION`.
        at: When it was computed: evidence gets too old.
        tests: All 28, in the order of the rubric.
        notes: What else was seen and does not count.
    """

    # Not a test case, whatever pytest makes of the name.
    __test__ = False

    reference: str
    at: datetime
    tests: tuple[ScoredTest, ...]
    notes: tuple[str, ...] = ()

    @property
    def sections(self) -> dict[Section, float]:
        """Sum of the points by section, each from 0 to 7."""
        return {name: sum(test.points for test in self.tests if test.section == name) for name in SECTIONS}

    @property
    def score(self) -> float:
        """The lowest section, from 0 to 7."""
        return min(self.sections.values())

    @property
    def band(self) -> str:
        """What the score means, in words."""
        return name_band(self.score)

    @property
    def limiting(self) -> tuple[Section, ...]:
        """The sections that have the score."""
        return tuple(name for name, points in self.sections.items() if points == self.score)

    def next_points(self, most: int = 5) -> tuple[ScoredTest, ...]:
        """Return the tests to do next: those of the limiting sections first, and of these the cheapest first."""
        open_tests = [test for test in self.tests if test.points < ONE]
        sections = self.sections
        ordered = sorted(open_tests, key=lambda test: (sections[test.section] > self.score, test.effort, -test.points))
        return tuple(ordered[:most])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "schema": SCHEMA,
            "reference": self.reference,
            "at": self.at.isoformat(),
            "score": self.score,
            "band": self.band,
            "sections": dict(self.sections),
            "limiting": list(self.limiting),
            "tests": [test.to_dict() for test in self.tests],
            "next": [test.id for test in self.next_points()],
            "notes": list(self.notes),
        }


def score_version(
    version: ModelVersion,
    dossier: Mapping[str, Any] | None,
    history: Sequence[Transition],
    siblings: Sequence[Registered],
    evidence_folders: Sequence[Path],
    now: datetime,
) -> TestScore:
    """Compute the ML Test Score of a registered version from evidence.

    Nothing is asked and nothing is guessed: a test without evidence has no points, and says what would earn some.

    Args:
        version: The version.
        dossier: What was written when it was registered, as `mlflywheel.registry.dossier.read_dossier` returns it; None
            if it has none.
        history: The states that it went through, its registration first.
        siblings: The model's other versions; evidence that two versions have is repeated.
        evidence_folders: Folders and files, as docs/testscore.md describes them.
        now: The time that ages are counted to, with a time zone.

    Raises:
        UsageError: A folder does not exist, or a `testscore.yaml` is wrong; the message names it.
        DataError: A file of a folder cannot be read; the message names it.

    Source: doi 10.1109/BigData.2017.8258038.
    """
    files = read_folders(evidence_folders, now)
    evidence, remarks = find_evidence(Registered(version, dossier, history), siblings, files, now)
    tests = tuple(
        _score(
            test.id,
            [one for one in evidence if one.test == test.id],
            [one for one in remarks if one.test == test.id],
        )
        for test in RUBRIC
    )
    notes = [*files.notes, *(one.text for one in remarks if not one.test)]
    notes += [f"{one.test}: {one.text}" for one in remarks if one.test]
    if dossier is None:
        notes.insert(0, f"{version.reference} has no dossier: nothing is known of how it was made and measured")
    return TestScore(version.reference, now, tests, tuple(dict.fromkeys(notes)))


def score_registered(
    registry: ModelRegistry, version: ModelVersion, evidence_folders: Sequence[Path], now: datetime
) -> TestScore:
    """Compute the ML Test Score of a version, and ask its registry for everything that is needed.

    Args:
        registry: Where it is registered.
        version: The version.
        evidence_folders: As in `score_version`.
        now: As in `score_version`.

    Raises:
        RegistryError: The registry cannot be read.
        UsageError: As `score_version`.
        DataError: As `score_version`.
    """
    from mlflywheel.registry.dossier import read_dossier

    siblings, notes = [], []
    others = [one for one in registry.list_versions(version.name) if one.version != version.version]
    for other in others[-_MOST_SIBLINGS:]:
        dossier = None
        try:
            dossier = read_dossier(other)
        except MlflywheelError as error:
            # Another version only shows that something is repeated; this one is scored all the same.
            notes.append(f"the dossier of {other.reference} cannot be read: {error.seen}")
        siblings.append(Registered(other, dossier, registry.history(other.name, other.version)))
    history = registry.history(version.name, version.version)
    found = score_version(version, read_dossier(version), history, siblings, evidence_folders, now)
    return replace(found, notes=(*notes, *found.notes))


def _score(test_id: str, evidence: Sequence[Evidence], remarks: Sequence[Remark]) -> ScoredTest:
    test = next(one for one in RUBRIC if one.id == test_id)
    own = [one for one in evidence if one.is_own]
    own_whole = [one for one in own if one.earns_one]
    whole = [one for one in evidence if one.earns_one]
    points, missing = 0.0, f"Nothing counts yet. To earn points: {test.earns}."
    if own:
        # Of other versions alone nothing would follow for this one.
        is_automatic = any(one.trigger in AUTOMATIC or one.is_repeated for one in own_whole)
        is_repeated = bool(own_whole) and len({one.occasion for one in whole}) > 1
        points = ONE if is_automatic or is_repeated else HALF
        if not own_whole:
            missing = f"Worth half a point as it is. For the other half: {test.earns}."
        else:
            missing = (
                "Done once, or by hand. For the other half, let continuous integration or a schedule do it, or do it "
                "again for another version."
            )
    told = tuple(one.text for one in remarks)
    if points == ONE:
        evidence = (*own, *_first_other(whole))
        return ScoredTest(test.id, test.section, test.title, points, evidence, "", test.effort, told)
    missing = "".join(f"Does not count: {text}. " for text in told) + missing
    # What was done once has to be run again, and no more.
    effort = 2 if own_whole else test.effort
    return ScoredTest(test.id, test.section, test.title, points, tuple(own), missing, effort, told)


def _first_other(whole: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Return the newest piece of another version or rollout: one is enough to show that it is repeated."""
    others = [one for one in whole if not one.is_own and one.at is not None]
    return tuple(sorted(others, key=lambda one: one.at or datetime.min)[-1:])
