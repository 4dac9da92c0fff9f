"""The ML Test Score of a registered version, computed from evidence and from nothing else.

`rubric` says what the 28 tests are and what earns their points, `folder` and its readers what lies in an evidence
folder, `evidence` what that and the registry show, `score` does the arithmetic, `sections` draws it.
"""

from mlflywheel.testscore.items import Evidence, Registered
from mlflywheel.testscore.rubric import RUBRIC, SECTIONS, RubricTest, name_band
from mlflywheel.testscore.score import ScoredTest, TestScore, score_registered, score_version
from mlflywheel.testscore.sections import render_page, sections

__all__ = [
    "RUBRIC",
    "SECTIONS",
    "Evidence",
    "Registered",
    "RubricTest",
    "ScoredTest",
    "TestScore",
    "name_band",
    "render_page",
    "score_registered",
    "score_version",
    "sections",
]
