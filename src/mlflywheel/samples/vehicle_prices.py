"""Made-up listings of used cars, as a marketplace exports them, with the faults that such exports have.

A price is that of the model when new, lowered by age and mileage, moved by power, fuel, gearbox, kind of offer and
region, and by a noise that no column explains; `ground_truth` returns it before that noise. What makes real exports
hard is drawn too: models of which there are few, dear ones that are far from all others, electric cars that lose value
faster, and faults (`FAULTS`): rows that stand twice, odometers of 1,111,111 and engines of 1 hp, missing cells, a price
`N/A`, a price of 0 and a car from the future.

`market` writes the same kind of listings as another country's marketplace does: other names of columns, miles, pounds,
engine sizes and taxes.

A seed gives the same rows with every version of Python and NumPy (`mlflywheel.samples.drawing`). The names of makes and
models are those of real cars, since a reader knows what they are; the numbers are made up.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from mlflywheel.errors import UsageError
from mlflywheel.samples.drawing import Floats, choose, draw_normals, draw_uniforms, write_table

Market = Literal["germany", "united-kingdom"]

#: The newest year of registration.
NEWEST_YEAR = 2026
#: What is planted in tables of at least this many listings, each at least once.
FAULTS_FROM = 100
FAULTS = (
    "repeated row",
    "mileage 1,111,111",
    "power 1",
    "model missing",
    "gear missing",
    "power missing",
    "price N/A",
    "price 0",
    "year in the future",
)
_REPEATED_SHARE = 0.046
_MISSING_SHARES = {"model": 0.003, "gear": 0.004, "power": 0.0006}
_NOISE = 0.10

# Make: share of the listings, then models with share, price when new in thousand euros, horsepower and kind.
_MAKES: dict[str, tuple[float, tuple[tuple[str, float, float, float, str], ...]]] = {
    "Volkswagen": (
        6.9,
        (
            ("Golf", 5, 30, 130, "car"),
            ("Polo", 3, 22, 95, "small"),
            ("Passat", 2, 41, 150, "estate"),
            ("Tiguan", 2, 40, 150, "suv"),
            ("up!", 1, 15, 65, "small"),
            ("ID.3", 0.6, 41, 204, "electric"),
        ),
    ),
    "Opel": (
        4.8,
        (
            ("Corsa", 4, 19, 90, "small"),
            ("Astra", 3, 27, 120, "car"),
            ("Insignia", 1, 36, 150, "estate"),
            ("Mokka", 1, 28, 130, "suv"),
        ),
    ),
    "Ford": (
        4.4,
        (
            ("Fiesta", 4, 19, 95, "small"),
            ("Focus", 3, 27, 125, "car"),
            ("Kuga", 2, 35, 150, "suv"),
            ("Mustang", 0.3, 55, 440, "sport"),
        ),
    ),
    "Skoda": (
        2.9,
        (
            ("Octavia", 4, 30, 130, "estate"),
            ("Fabia", 3, 19, 95, "small"),
            ("Superb", 1, 42, 170, "estate"),
            ("Enyaq", 0.4, 48, 204, "electric"),
        ),
    ),
    "Renault": (
        2.8,
        (
            ("Clio", 4, 19, 90, "small"),
            ("Megane", 3, 26, 120, "car"),
            ("Captur", 2, 24, 110, "suv"),
            ("ZOE", 1, 33, 110, "electric"),
        ),
    ),
    "Audi": (
        2.7,
        (
            ("A3", 3, 36, 150, "car"),
            ("A4", 3, 47, 170, "estate"),
            ("Q5", 2, 58, 200, "suv"),
            ("R8", 0.1, 185, 570, "sport"),
        ),
    ),
    "BMW": (
        2.4,
        (
            ("118", 2, 34, 136, "car"),
            ("320", 3, 48, 184, "estate"),
            ("X3", 2, 59, 190, "suv"),
            ("i3", 0.5, 42, 170, "electric"),
        ),
    ),
    "Mercedes-Benz": (
        2.4,
        (
            ("A 180", 2, 35, 136, "car"),
            ("C 220", 3, 51, 190, "estate"),
            ("GLC 250", 1.5, 58, 210, "suv"),
            ("G 63 AMG", 0.1, 190, 585, "sport"),
        ),
    ),
    "SEAT": (1.9, (("Ibiza", 3, 19, 95, "small"), ("Leon", 3, 27, 130, "car"), ("Ateca", 1, 32, 150, "suv"))),
    "Hyundai": (
        1.9,
        (
            ("i20", 3, 18, 85, "small"),
            ("i30", 3, 25, 120, "car"),
            ("Tucson", 2, 33, 150, "suv"),
            ("KONA Elektro", 0.5, 40, 204, "electric"),
        ),
    ),
    "Fiat": (1.7, (("500", 4, 17, 70, "small"), ("Panda", 3, 14, 70, "small"), ("Ducato", 1, 38, 140, "van"))),
    "Toyota": (
        1.3,
        (("Yaris", 3, 20, 100, "hybrid"), ("Corolla", 2, 29, 122, "hybrid"), ("RAV 4", 1, 39, 218, "hybrid")),
    ),
    "Dacia": (0.7, (("Sandero", 3, 12, 90, "small"), ("Duster", 3, 17, 115, "suv"))),
    "Volvo": (0.8, (("V60", 2, 49, 190, "estate"), ("XC60", 3, 58, 200, "suv"))),
    "Porsche": (0.25, (("911", 2, 130, 420, "sport"), ("Macan", 2, 75, 265, "suv"), ("Cayenne", 1, 98, 340, "suv"))),
    "Tesla": (0.2, (("Model 3", 3, 52, 325, "electric"), ("Model S", 1, 105, 525, "electric"))),
}
_FUELS = ("Gasoline", "Diesel", "Electric", "Electric/Gasoline", "LPG")
_FUEL_SHARES = {
    "small": (0.90, 0.08, 0, 0.01, 0.01),
    "car": (0.68, 0.29, 0, 0.02, 0.01),
    "estate": (0.30, 0.65, 0, 0.04, 0.01),
    "suv": (0.50, 0.44, 0, 0.05, 0.01),
    "sport": (1.0, 0, 0, 0, 0),
    "van": (0.02, 0.98, 0, 0, 0),
    "hybrid": (0.25, 0, 0, 0.75, 0),
    "electric": (0, 0, 1.0, 0, 0),
}
_YEARLY_LOSS = {"electric": 0.17, "sport": 0.07, "van": 0.10}
_LOSS_OF_MAKE = {"Dacia": -0.03, "Toyota": -0.025, "Porsche": -0.02, "Fiat": 0.02, "Renault": 0.015, "BMW": 0.01}
_OFFERS = ("Used", "Pre-registered", "Demonstration", "Employee's car", "New")
_REGIONS = {"north": 0.99, "south": 1.02, "east": 0.97, "west": 1.0}
# Another country's names of columns and of fuels, gearboxes and offers.
_BRITISH_COLUMNS = {
    "listing_id": "ad_ref",
    "make": "brand",
    "model": "model_name",
    "year": "registered",
    "mileage": "odometer_miles",
    "power": "bhp",
    "fuel": "fuel_type",
    "gear": "transmission",
    "offer_type": "condition",
    "region": "area",
    "engine_size": "engine_litres",
    "tax": "road_tax",
    "price": "asking_price",
}
_BRITISH_WORDS = {
    "Gasoline": "Petrol",
    "Electric/Gasoline": "Hybrid",
    "Used": "Pre-owned",
    "Demonstration": "Ex-demo",
    "Employee's car": "Management car",
}
_MILES_OF_KM = 1 / 1.609344
_POUNDS_OF_EUROS = 0.86


def generate_vehicle_prices(listings: int = 6000, seed: int = 7, market: Market = "germany") -> pa.Table:
    """Draw a table of listings, one row a listing and a few rows twice.

    Columns of `germany`: `listing_id` (`v-000123`), `make`, `model`, `year`, `mileage` (km), `power` (hp), `fuel`,
    `gear`, `offer_type`, `region` and `price` (euros, as text, since an export that writes `N/A` holds texts).
    `united-kingdom` has other names, miles, pounds, and the columns `engine_litres` and `road_tax`.

    Args:
        listings: How many listings, at least 1; repeated rows come on top. Faults are planted from `FAULTS_FROM` on.
        seed: Not negative; equal seeds give equal tables.
        market: Whose export it looks like.

    Raises:
        UsageError: `listings` is below 1, `seed` is negative, or there is no such market.

    >>> table = generate_vehicle_prices(listings=40)
    >>> table.column_names[:4], table.num_rows
    (['listing_id', 'make', 'model', 'year'], 40)
    """
    if market not in get_args(Market):
        raise UsageError(
            "market", repr(market), f"one of {', '.join(get_args(Market))} is needed", "choose one of them"
        )
    drawn = _draw(listings, seed)
    columns: dict[str, list[Any]] = {name: list(drawn[name]) for name in drawn if name != "fair_price"}
    columns["price"] = [f"{price:.0f}" for price in drawn["price"]]
    rows = list(range(listings))
    if listings >= FAULTS_FROM:
        rows = _plant_faults(columns, listings, seed)
    table = pa.table({name: [values[row] for row in rows] for name, values in columns.items()}, _schema(columns))
    return table if market == "germany" else _as_british(table)


def ground_truth(listings: int = 6000, seed: int = 7) -> pa.Table:
    """Return what each listing is worth before noise and faults, one row a listing.

    Columns: `listing_id` and `fair_price` (float64, euros).

    Raises:
        UsageError: `listings` is below 1, or `seed` is negative.
    """
    drawn = _draw(listings, seed)
    return pa.table({name: pa.array(drawn[name]) for name in ("listing_id", "fair_price")})


def write_sample(path: str | Path, listings: int = 6000, seed: int = 7, market: Market = "germany") -> Path:
    """Write the table of `generate_vehicle_prices` to a file, all or nothing.

    Args:
        path: Ends in `.csv`, `.csv.gz` or `.parquet`; missing folders are made, an existing file is replaced.
        listings: How many listings, at least 1.
        seed: Not negative; equal seeds give equal bytes on one machine.
        market: Whose export it looks like.

    Returns:
        The path written.

    Raises:
        UsageError: Another suffix, `listings` below 1, a negative `seed` or another market.
    """
    return write_table(path, generate_vehicle_prices(listings, seed, market))


def _draw(listings: int, seed: int) -> dict[str, Any]:
    """Draw listings without faults: a sequence a column, and `fair_price`."""
    if listings < 1:
        raise UsageError("listings", str(listings), "at least 1 is needed", "ask for 1 listing or more")
    if seed < 0:
        raise UsageError("seed", str(seed), "0 or more is needed", "take a seed that is not negative")

    def draw(name: str) -> Floats:
        return draw_uniforms(seed, name, listings)

    def noise(name: str) -> Floats:
        return draw_normals(seed, name, listings)

    cars = [(make, share, *car) for make, (share, models) in _MAKES.items() for car in _spread(models)]
    shares = np.array([car[1] * car[3] for car in cars])
    chosen = choose(shares, draw("car"))
    kinds = np.array([car[6] for car in cars], dtype=object)[chosen]
    new_price = np.array([car[4] for car in cars])[chosen] * 1000.0
    usual_power = np.array([car[5] for car in cars])[chosen]

    age = np.floor(12.0 * draw("age") ** 1.1)
    age = np.where(kinds == "electric", np.floor(age * 0.55), age)
    offers = np.where(age < 1, choose(np.array([35.0, 30, 25, 9, 1]), draw("offer")), 0)
    offers = np.where((age == 1) & (draw("young offer") < 0.25), 2, offers)
    yearly = 13_500.0 * np.exp(0.45 * noise("yearly mileage"))
    mileage = np.maximum(np.rint((age + 0.5 * draw("months")) * yearly), 5.0)
    mileage = np.where(offers == 0, mileage, np.minimum(mileage, 9_000.0))
    mileage = np.where(mileage > 20_000, np.rint(mileage / 100.0) * 100.0, mileage)
    power = np.rint(usual_power * np.exp(0.13 * noise("power")))
    fuel_shares = np.cumsum(np.array([_FUEL_SHARES[kind] for kind in kinds], dtype=np.float64), axis=1)
    fuels = (fuel_shares[:, :-1] <= draw("fuel")[:, None] * fuel_shares[:, -1:]).sum(axis=1)
    automatic = draw("gear") < np.clip((new_price - 15_000.0) / 60_000.0 + 0.04, 0.03, 0.9)
    automatic |= (fuels == 2) | (kinds == "hybrid")
    region = choose(np.array([2.0, 3.0, 1.5, 3.5]), draw("region"))

    loss = np.array([_YEARLY_LOSS.get(kind, 0.115) for kind in kinds])
    loss += np.array([_LOSS_OF_MAKE.get(car[0], 0.0) for car in cars])[chosen]
    value = np.log(new_price) - loss * age
    # The first year costs most, and a new generation of a model lets the old one look old.
    value -= np.where(age >= 1, 0.09, 0.0) + np.where(age >= 1 + chosen % 7, 0.10, 0.0)
    # A diesel is made for long distances, and an engine's life ends somewhere.
    diesel = fuels == 1
    value -= np.where(diesel, 0.035, 0.065) * (mileage - age * 12_000.0) / 15_000.0
    value -= np.where(diesel, 0.10, 0.22) * (mileage > 150_000.0) + 0.15 * (mileage > 220_000.0)
    # Old diesels may not enter every city.
    value += np.where(diesel, np.where(age >= 8, -0.16, np.where(age <= 3, 0.05, 0.0)), 0.0)
    premium = np.where((kinds == "sport") | (kinds == "suv"), 1.1, np.where(kinds == "small", 0.35, 0.7))
    value += premium * np.log(power / usual_power)
    value += np.array([0.0, 0.0, 0.0, 0.06, -0.03])[fuels]
    value += np.where(automatic, np.where(new_price > 40_000.0, 0.02, np.where(age <= 4, 0.10, 0.04)), 0.0)
    value += np.array([0.0, -0.10, -0.12, -0.09, 0.02])[offers]
    value += np.log(np.array(list(_REGIONS.values())))[region]
    # Age is dear where a car is driven for its own sake.
    value += np.where(kinds == "sport", 0.004 * age**2, 0.0)
    fair = np.exp(value)
    # Some sellers ask what they like; electric cars are harder to price for everybody.
    spread = np.where(kinds == "electric", 1.6, 1.0) * np.where(draw("careless") < 0.06, 2.5, 1.0)
    price = fair * np.exp(_NOISE * spread * noise("price"))
    rounding = np.where(price > 3_000.0, 10.0, 5.0)
    price = np.maximum(
        np.rint(price / rounding) * rounding - np.where(draw("charm") < 0.4, rounding / 10.0, 0.0), 300.0
    )
    return {
        "listing_id": [f"v-{number:06d}" for number in range(listings)],
        "make": [cars[car][0] for car in chosen],
        "model": [cars[car][2] for car in chosen],
        "year": (NEWEST_YEAR - age).astype(np.int64).tolist(),
        "mileage": mileage.astype(np.int64).tolist(),
        "power": power.astype(np.int64).tolist(),
        "fuel": [_FUELS[fuel] for fuel in fuels],
        "gear": ["Automatic" if yes else "Manual" for yes in automatic],
        "offer_type": [_OFFERS[offer] for offer in offers],
        "region": [list(_REGIONS)[number] for number in region],
        "price": price,
        "fair_price": fair,
    }


def _spread(models: tuple[tuple[str, float, float, float, str], ...]) -> list[tuple[str, float, float, float, str]]:
    total = sum(share for _, share, *_ in models)
    return [(name, share / total, price, power, kind) for name, share, price, power, kind in models]


def _schema(columns: dict[str, list[Any]]) -> pa.Schema:
    numbers = ("year", "mileage", "power")
    return pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in columns])


def _plant_faults(columns: dict[str, list[Any]], listings: int, seed: int) -> list[int]:
    """Spoil cells, and return the rows with those that stand twice."""
    # One row carries one fault, so that each can be told from the others.
    order = np.argsort(draw_uniforms(seed, "faulty rows", listings), kind="stable").tolist()
    few = max(1, listings // 20_000)
    planted: list[tuple[str, Any, int]] = [
        ("mileage", 1_111_111, few),
        ("power", 1, max(1, listings // 5_000)),
        ("price", "N/A", few),
        ("price", "0", few),
        ("year", NEWEST_YEAR + 6, few),
        *((name, None, max(1, round(share * listings))) for name, share in _MISSING_SHARES.items()),
    ]
    for name, value, count in planted:
        for _ in range(count):
            columns[name][order.pop()] = value
    repeated = sorted(order.pop() for _ in range(max(1, round(_REPEATED_SHARE * listings))))
    return sorted([*range(listings), *repeated])


def _as_british(table: pa.Table) -> pa.Table:
    columns = table.to_pydict()
    power = columns["power"]
    cells: dict[str, list[Any]] = {
        **columns,
        "mileage": [km if km == 1_111_111 else round(km * _MILES_OF_KM) for km in columns["mileage"]],
        "engine_size": [_size_engine(fuel, hp) for fuel, hp in zip(columns["fuel"], power, strict=True)],
        "tax": [
            0 if fuel == "Electric" else 20 + 5 * ((hp or 100) // 10)
            for fuel, hp in zip(columns["fuel"], power, strict=True)
        ],
        "price": [
            text if text in ("0", "N/A") else f"{round(float(text) * _POUNDS_OF_EUROS / 5) * 5}"
            for text in columns["price"]
        ],
    }
    for name in ("fuel", "offer_type"):
        cells[name] = [_BRITISH_WORDS.get(text, text) for text in columns[name]]
    return pa.table({theirs: pa.array(cells[ours]) for ours, theirs in _BRITISH_COLUMNS.items()})


def _size_engine(fuel: str, horsepower: int | None) -> float | None:
    """Return litres, to a tenth, that go with the power; an electric car has none.

    >>> _size_engine("Diesel", 150), _size_engine("Electric", 204)
    (1.9, None)
    """
    if fuel == "Electric" or horsepower is None:
        return None
    return round(0.7 + horsepower / 125.0, 1)
