"""Listings whose prices follow a known formula, for tests of the vehicle price model."""

import numpy as np
import pyarrow as pa

MAKES = {"Ada": 0.3, "Brun": 0.0, "Cel": -0.2, "Dorn": 0.1}
MODELS = ("S", "M", "L")
REFERENCE_YEAR = 2021


def plant_listings(rows: int, seed: int = 0, noise: float = 0.08) -> pa.Table:
    """Return raw listings; log prices are linear in age, mileage, power, make and model, plus normal noise."""
    random = np.random.default_rng(seed)
    makes = random.choice(list(MAKES), rows)
    models = random.integers(0, len(MODELS), rows)
    year = random.integers(2011, REFERENCE_YEAR + 1, rows)
    age = REFERENCE_YEAR - year
    mileage = np.round(age * random.uniform(5_000, 20_000, rows) + random.uniform(0, 3_000, rows))
    power = np.round(70 + 40 * models + random.normal(0, 10, rows))
    log_price = (
        10.0
        + np.array([MAKES[make] for make in makes])
        + 0.2 * models
        - 0.08 * age
        - 2e-6 * mileage
        + 0.002 * power
        + noise * (1.0 + 0.1 * age) * random.normal(size=rows)
    )
    fuel = random.choice(["Petrol", "Diesel"], rows)
    return pa.table(
        {
            "listing_id": [f"l{row:06}" for row in range(rows)],
            "price": np.round(np.exp(log_price)),
            "make": makes,
            "model": [MODELS[model] for model in models],
            "year": year.astype(float),
            "mileage": mileage,
            "power": power,
            "fuel": fuel,
            "gear": random.choice(["Manual", "Automatic"], rows),
        }
    )
