"""Made-up applications for credit with the bank's decision, by a process that is stated, gaps between groups too.

Whether an application is decided `good` is drawn with a probability (`ground_truth`) whose log-odds are a sum:

    1.3
    + checking_account   none -0.95, low -0.35, medium 0.15, high 0.9
    + savings            below 100 -0.35, 100 to 500 0, 500 to 1000 0.35, above 1000 0.75, before any is left out
    + purpose            car 0.1, furniture 0, electronics 0.2, education -0.35, business -0.15, repairs -0.1
    + housing            own 0.3, rent -0.15, free 0
    + guarantor          yes 0.45
    - 0.045 * (duration_months - 21)
    - 0.22 * (amount - 3200) / 1000 above 6000, 0.06 of it below
    + 0.11 * (min(employment_years, 10) - 4)
    - 0.30 * (installment_percent - 3)
    - 0.35 * (open_credits - 1)
    + age and sex        25 or less -0.30, female -0.20: the planted gaps, which no other column explains

Age and sex also work through other columns, as they do in files of banks: the young have had less time to be employed
and rent more often, and women apply for smaller amounts and have been employed a little shorter. So a model that does
not see them gives groups different shares of `good`, too.

A seed gives the same rows with every version of Python and NumPy (`mlflywheel.samples.drawing`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflywheel.errors import UsageError
from mlflywheel.samples.drawing import Floats, choose, draw_normals, draw_uniforms, write_table

#: Faults are planted in tables of at least this many applications.
FAULTS_FROM = 100
_CHECKING = {"none": (0.30, -0.95), "low": (0.27, -0.35), "medium": (0.28, 0.15), "high": (0.15, 0.9)}
_SAVINGS = {
    "below 100": (0.52, -0.35),
    "100 to 500": (0.20, 0.0),
    "500 to 1000": (0.14, 0.35),
    "above 1000": (0.14, 0.75),
}
_PURPOSES = {
    "car": (0.33, 0.1),
    "furniture": (0.18, 0.0),
    "electronics": (0.26, 0.2),
    "education": (0.07, -0.35),
    "business": (0.11, -0.15),
    "repairs": (0.05, -0.1),
}
_HOUSING = {"own": 0.3, "rent": -0.15, "free": 0.0}
_YOUNG = 25
_YOUNG_GAP, _FEMALE_GAP = -0.30, -0.20
_MISSING_SHARES = {"savings": 0.08, "employment_years": 0.04, "housing": 0.01}


def generate_credit_decisions(applications: int = 4000, seed: int = 7) -> pa.Table:
    """Draw a table of applications, one row an application.

    Columns: `application_id` (`a-000123`), `purpose`, `duration_months`, `amount`, `checking_account`, `savings`,
    `employment_years`, `housing`, `installment_percent` of the income, `open_credits`, `guarantor`, `age` in years,
    `sex` and `decision` (`good` or `bad`). From `FAULTS_FROM` applications on, some cells of savings, employment and
    housing are empty, as in real files.

    Args:
        applications: How many rows, at least 1.
        seed: Not negative; equal seeds give equal tables.

    Raises:
        UsageError: `applications` is below 1, or `seed` is negative.

    >>> table = generate_credit_decisions(applications=40)
    >>> table.column_names[:3], table.num_rows
    (['application_id', 'purpose', 'duration_months'], 40)
    """
    drawn, _ = _draw(applications, seed)
    columns = {name: list(values) for name, values in drawn.items()}
    if applications >= FAULTS_FROM:
        for name, share in _MISSING_SHARES.items():
            empty = draw_uniforms(seed, f"{name} missing", applications) < share
            columns[name] = [None if gone else value for value, gone in zip(columns[name], empty, strict=True)]
    numbers = {name for name, values in drawn.items() if isinstance(values, np.ndarray)}
    return pa.table(
        {name: pa.array(values, pa.int64() if name in numbers else pa.string()) for name, values in columns.items()}
    )


def ground_truth(applications: int = 4000, seed: int = 7) -> pa.Table:
    """Return with which probability each application is good, one row an application.

    Columns: `application_id` and `probability` (float64).

    Raises:
        UsageError: `applications` is below 1, or `seed` is negative.
    """
    drawn, probability = _draw(applications, seed)
    return pa.table({"application_id": pa.array(drawn["application_id"]), "probability": pa.array(probability)})


def write_sample(path: str | Path, applications: int = 4000, seed: int = 7) -> Path:
    """Write the table of `generate_credit_decisions` to a file, all or nothing.

    Args:
        path: Ends in `.csv`, `.csv.gz` or `.parquet`; missing folders are made, an existing file is replaced.
        applications: How many rows, at least 1.
        seed: Not negative; equal seeds give equal bytes on one machine.

    Returns:
        The path written.

    Raises:
        UsageError: Another suffix, `applications` below 1 or a negative `seed`.
    """
    return write_table(path, generate_credit_decisions(applications, seed))


def _draw(applications: int, seed: int) -> tuple[dict[str, Any], Floats]:
    """Draw applications without empty cells, and the probability of each to be good."""
    if applications < 1:
        raise UsageError("applications", str(applications), "at least 1 is needed", "ask for 1 application or more")
    if seed < 0:
        raise UsageError("seed", str(seed), "0 or more is needed", "take a seed that is not negative")

    def draw(name: str) -> Floats:
        return draw_uniforms(seed, name, applications)

    def noise(name: str) -> Floats:
        return draw_normals(seed, name, applications)

    age = np.floor(19.0 + 46.0 * draw("age") ** 1.2)
    young = age <= _YOUNG
    female = draw("sex") < np.where(young, 0.45, 0.34)
    checking = _pick(_CHECKING, draw("checking"))
    savings = _pick(_SAVINGS, draw("savings"))
    purpose = _pick(_PURPOSES, draw("purpose"))
    housing = np.where(draw("housing") < np.where(young, 0.38, 0.72), 0, np.where(draw("rent") < 0.75, 1, 2))
    employed = np.clip((age - 18.0) * 0.25 + 2.2 * noise("employment") - np.where(female, 0.7, 0.0), 0.0, age - 17.0)
    employment = np.floor(employed)
    duration = 6.0 * np.clip(np.rint(1.0 + 6.0 * draw("duration") ** 1.4), 1.0, 10.0)
    spread = 1900.0 + 95.0 * (duration - 12.0) - np.where(female, 350.0, 0.0)
    amount = np.rint(np.maximum(spread * (0.35 + 1.3 * draw("amount") + 0.9 * draw("large amount") ** 6), 250.0))
    installment = 1.0 + choose(np.array([1.4, 2.3, 1.6, 4.7]), draw("installment"))
    credits = 1.0 + choose(np.array([6.3, 3.3, 0.3, 0.1]), draw("credits"))
    guarantor = draw("guarantor") < 0.06

    value = 1.3 + _effects(_CHECKING, checking) + _effects(_SAVINGS, savings) + _effects(_PURPOSES, purpose)
    value = value + np.array(list(_HOUSING.values()))[housing] + np.where(guarantor, 0.45, 0.0)
    value = value - 0.045 * (duration - 21.0)
    value = value - np.where(amount > 6000.0, 0.22, 0.06) * (amount - 3200.0) / 1000.0
    value = value + 0.11 * (np.minimum(employment, 10.0) - 4.0)
    value = value - 0.30 * (installment - 3.0) - 0.35 * (credits - 1.0)
    value = value + np.where(young, _YOUNG_GAP, 0.0) + np.where(female, _FEMALE_GAP, 0.0)
    probability = 1.0 / (1.0 + np.exp(-value))
    good = draw("decision") < probability
    return {
        "application_id": [f"a-{number:06d}" for number in range(applications)],
        "purpose": _names(_PURPOSES, purpose),
        "duration_months": duration.astype(np.int64),
        "amount": amount.astype(np.int64),
        "checking_account": _names(_CHECKING, checking),
        "savings": _names(_SAVINGS, savings),
        "employment_years": employment.astype(np.int64),
        "housing": [list(_HOUSING)[number] for number in housing],
        "installment_percent": installment.astype(np.int64),
        "open_credits": credits.astype(np.int64),
        "guarantor": ["yes" if one else "no" for one in guarantor],
        "age": age.astype(np.int64),
        "sex": ["female" if one else "male" for one in female],
        "decision": ["good" if one else "bad" for one in good],
    }, probability


def _pick(table: dict[str, tuple[float, float]], u: Floats) -> np.ndarray:
    return choose(np.array([share for share, _ in table.values()]), u)


def _effects(table: dict[str, tuple[float, float]], chosen: np.ndarray) -> Floats:
    effects: Floats = np.array([effect for _, effect in table.values()])
    return np.asarray(effects[chosen], dtype=np.float64)


def _names(table: dict[str, tuple[float, float]], chosen: np.ndarray) -> list[str]:
    return [list(table)[number] for number in chosen]
