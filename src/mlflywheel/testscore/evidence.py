"""Finding evidence: what a version's dossier, the registry and the files of the evidence folders show, test by test."""

from collections.abc import Sequence
from datetime import datetime

from mlflywheel.testscore.filed import read_cases, read_checks, read_document, read_records
from mlflywheel.testscore.folder import Files
from mlflywheel.testscore.items import Evidence, Registered, Remark
from mlflywheel.testscore.recorded import judge_age, read_registered


def find_evidence(
    subject: Registered, siblings: Sequence[Registered], files: Files, now: datetime
) -> tuple[tuple[Evidence, ...], tuple[Remark, ...]]:
    """Find everything that counts for a version, and what does not though it looks so.

    Args:
        subject: The version.
        siblings: The model's other versions.
        files: What the evidence folders hold.
        now: Until when evidence is valid; in UTC.

    Raises:
        UsageError: A test case stands for two tests.
        DataError: A file of a known kind does not have its shape.
    """
    others = [one for one in siblings if one.version.reference != subject.version.reference]
    found: list[Evidence | Remark] = []
    for one in (subject, *others):
        found += read_registered(one, [subject, *others], is_own=one is subject)
    maximum_ages = [book.maximum_age_days for _, book in files.notebooks if book.maximum_age_days is not None]
    if maximum_ages:
        found += judge_age(subject, others, min(maximum_ages), now)
    found += read_cases(files, now)
    for document in files.documents:
        if document.kind != "check":
            found += read_document(document, subject, others, now)
    found += read_checks([one for one in files.documents if one.kind == "check"], subject.version, now)
    found += read_records(files, now)
    evidence = tuple(one for one in found if isinstance(one, Evidence))
    return evidence, tuple(one for one in found if isinstance(one, Remark))
