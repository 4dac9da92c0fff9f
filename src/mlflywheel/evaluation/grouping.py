"""Rows in groups: by the values of a text column, or by bands of a number column."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mlflywheel.errors import DataError
from mlflywheel.models.contract import Settings

#: The group of rows without a value.
MISSING = "missing"


class Grouping(Settings):
    """A column by which rows are grouped.

    Attributes:
        name: The column.
        bands: Upper ends of bands of a number column, both the last of one band and below the first of the next:
            `[25]` makes `25 or less` and `above 25`. Without bands every value is a group.
        optional: Whether rows that lack the column are not grouped by it; otherwise that is an error.
    """

    name: str = Field(min_length=1)
    bands: tuple[float, ...] = ()
    optional: bool = False

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: tuple[float, ...]) -> tuple[float, ...]:
        if list(bands) != sorted(set(bands)) or not np.isfinite(bands).all():
            raise ValueError("ends of bands are finite and rise")
        return bands

    def assign(self, attributes: pa.Table) -> NDArray[np.object_]:
        """Return the group of each row, text, `missing` where there is no value.

        Args:
            attributes: Such as those of `RowScores`.

        Raises:
            DataError: There is no such column, or bands are asked of text.

        >>> Grouping(name="age", bands=(25,)).assign(pa.table({"age": [19.0, 25.0, 26.0, None]})).tolist()
        ['25 or less', '25 or less', 'above 25', 'missing']
        """
        if self.name not in attributes.column_names:
            raise DataError(
                f"group column {self.name}",
                "not among the columns of the held-out rows",
                f"they have {', '.join(sorted(attributes.column_names)) or 'none'}",
                "correct the name in evaluation.yaml, or keep the column when the table is prepared",
            )
        column = attributes[self.name].combine_chunks()
        if self.bands:
            return self._assign_bands(column)
        if pa.types.is_floating(column.type):
            # 1.0 and 1 are one group.
            return np.array([MISSING if value is None else f"{value:g}" for value in column.to_pylist()], dtype=object)
        texts = column.cast(pa.string()).to_pylist()
        return np.array([MISSING if text is None else text for text in texts], dtype=object)

    def _assign_bands(self, column: pa.Array) -> NDArray[np.object_]:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(
                f"group column {self.name}",
                f"its values are {column.type}",
                "bands are made of numbers",
                "leave the bands out in evaluation.yaml: every value is a group then",
            )
        numbers = np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
        at = np.searchsorted(np.asarray(self.bands), numbers, side="left")
        names = np.array([*name_bands(self.bands), MISSING], dtype=object)
        return np.asarray(names[np.where(np.isnan(numbers), len(names) - 1, at)])


def name_bands(ends: Sequence[float]) -> list[str]:
    """Name the bands between ends, each with its upper end.

    >>> name_bands([25, 60])
    ['25 or less', 'above 25 to 60', 'above 60']
    """
    texts = [f"{end:,.15g}" for end in ends]
    middle = [f"above {low} to {high}" for low, high in pairwise(texts)]
    return [f"{texts[0]} or less", *middle, f"above {texts[-1]}"]
