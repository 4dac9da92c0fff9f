"""One listing as a request, and the answer to it."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from mlflywheel.models.vehicle_price.preparation import CATEGORIES, HP_OF_KW, HP_OF_PS, KM_OF_MILE, NUMBERS, clean_text


def _read_number(value: Any) -> Any:
    # A binary tensor has no other way to leave a number out.
    return None if isinstance(value, float) and math.isnan(value) else value


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a character is half of a surrogate pair: send valid Unicode") from error
    return clean_text(value) or None


_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Number = Annotated[_Number | None, BeforeValidator(_read_number)]
Text = Annotated[Annotated[str, StringConstraints(max_length=200)] | None, BeforeValidator(_read_text)]


class ListingRequest(BaseModel):
    """One listing to price. Every field may be left out; what is left out widens the range and is flagged."""

    model_config = ConfigDict(extra="forbid")

    listing_id: Text = Field(None, description="returned with the answer")
    make: Text = Field(None, description="the brand, in any case")
    model: Text = Field(None, description="the model, in any case; read together with the make")
    year: Number = Field(None, description="year of the first registration")
    mileage_km: Number = Field(None, description="distance driven, in kilometres")
    mileage_miles: Number = Field(None, description="the same in miles; send one of the two")
    power_hp: Number = Field(None, description="the engine's power, in horsepower as in the training rows")
    power_kw: Number = Field(None, description="the same in kilowatts; send one of the three")
    power_ps: Number = Field(None, description="the same in metric horsepower; send one of the three")
    fuel: Text = Field(None, description="as the marketplace writes it, in any case")
    gear: Text = Field(None, description="manual or automatic, as the marketplace writes it")
    offer_type: Text = Field(None, description="used, new, demonstration, as the marketplace writes it")
    engine_size: Number = Field(None, description="the engine's size, in the unit of the training rows")
    tax: Number = Field(None, description="tax a year, in the currency of the training rows")
    region: Text = Field(None, description="where the vehicle stands")
    body: Text = Field(None, description="the vehicle's shape, such as estate")

    @model_validator(mode="after")
    def _check_units(self) -> Self:
        for names in (("mileage_km", "mileage_miles"), ("power_hp", "power_kw", "power_ps")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are given: send one of them")
        return self

    def in_units(self) -> dict[str, float | str | None]:
        """Return the values by prepared column, in kilometres and horsepower."""
        values = {name: getattr(self, name) for name in (*NUMBERS, *CATEGORIES)}
        if self.mileage_miles is not None:
            values["mileage_km"] = self.mileage_miles * KM_OF_MILE
        if self.power_kw is not None:
            values["power_hp"] = self.power_kw * HP_OF_KW
        if self.power_ps is not None:
            values["power_hp"] = self.power_ps * HP_OF_PS
        return values


class Driver(BaseModel):
    """A feature and the factor that its value puts on the price."""

    feature: str
    value: str | None = Field(description="as it was read; null where it is missing")
    factor: float = Field(description="above 1 raises the price; all factors of a listing lead from the base price")


class ListingResponse(BaseModel):
    """The answer for one listing."""

    listing_id: str
    price: float
    low: float = Field(description="lower end of the range")
    high: float = Field(description="upper end of the range")
    currency: str
    confidence: float = Field(description="share of listings with so wide a range whose price was within 10 %")
    needs_review: bool = Field(description="whether a person should look at it")
    flags: list[str] = Field(description="what is missing, unknown or out of range")
    drivers: list[Driver] = Field(description="the strongest first")


def tabulate_requests(requests: Sequence[ListingRequest]) -> pa.Table:
    """Turn requests into prepared rows; the id is empty where none was sent."""
    rows = [request.in_units() for request in requests]
    columns = {"listing_id": pa.array([request.listing_id or "" for request in requests], pa.string())}
    columns |= {name: pa.array([row[name] for row in rows], pa.float64()) for name in NUMBERS}
    columns |= {name: pa.array([row[name] for row in rows], pa.string()) for name in CATEGORIES}
    return pa.table(columns)
