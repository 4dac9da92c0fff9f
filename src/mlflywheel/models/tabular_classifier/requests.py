"""One row as a request, and the answer to it."""

from collections.abc import Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from mlflywheel.models.tabular_classifier.preparation import ROW_ID, write_number

_MOST_VALUES = 10_000


def _read_text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a character is half of a surrogate pair: send valid Unicode") from error
    return value


def _read_value(value: Any) -> Any:
    # As tables have them: a truth value is a category.
    return str(value) if isinstance(value, bool) else _read_text(value)


_Text = Annotated[str, StringConstraints(max_length=1000, strict=True)]
_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Value = Annotated[_Text | _Number | None, BeforeValidator(_read_value)]


class RowRequest(BaseModel):
    """One row to classify. A column that is left out is missing, which is flagged; one that is unknown is ignored."""

    model_config = ConfigDict(extra="forbid")

    row_id: Annotated[_Text | None, BeforeValidator(_read_text)] = Field(None, description="returned with the answer")
    values: dict[str, Value] = Field(description="the row: a text, a number or null by the name of its column")

    @field_validator("values")
    @classmethod
    def _check_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        if len(values) > _MOST_VALUES:
            raise ValueError(f"{len(values)} columns: send at most {_MOST_VALUES}")
        for name in values:
            _read_text(name)
        return values


class Driver(BaseModel):
    """A feature and what its value adds to the log-odds."""

    feature: str
    value: str | None = Field(description="as it was read; null where it is missing")
    contribution: float = Field(description="above 0 makes the positive class likelier; in log-odds")


class RowResponse(BaseModel):
    """The answer for one row."""

    row_id: str
    probability: float = Field(description="of the positive class")
    label: str = Field(description="the positive class from the decision threshold on, else the other")
    flags: list[str] = Field(description="what is missing, unknown, unreadable or beyond the training rows")
    drivers: list[Driver] = Field(description="the strongest first")


def tabulate_requests(requests: Sequence[RowRequest]) -> pa.Table:
    """Turn requests into rows; the id is empty where none was sent.

    A column is one of numbers if every request has a number or nothing there, else one of texts: the model reads both.
    """
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for request in requests for name in request.values):
        values = [request.values.get(name) for request in requests]
        if all(value is None or isinstance(value, float) for value in values):
            columns[name] = pa.array(values, pa.float64())
        else:
            texts = [write_number(value) if isinstance(value, float) else value for value in values]
            columns[name] = pa.array(texts, pa.string())
    columns.pop(ROW_ID, None)
    return pa.table({ROW_ID: pa.array([request.row_id or "" for request in requests], pa.string())} | columns)
