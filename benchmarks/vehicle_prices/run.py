"""How good prices are on real listings, and what they cost beside plain scikit-learn and bare ONNX Runtime.

    python -m benchmarks.vehicle_prices.run                                  the real file: about 10 minutes
    python -m benchmarks.vehicle_prices.run --data mine.csv --out mine.json  any file; --map power=hp if needed
    python -m benchmarks.vehicle_prices.run --quick --out quick.json         2,000 listings, few trees: does it run?

Without `--data` it reads `../shared/data/used_cars/autoscout24_germany.csv.gz`, and the pipeline's sample where that is
not there; the results say which. Three questions:

- Quality: five folds of the prepared listings, duplicates removed. Every listing is priced by a model that did not see
  it: VehiclePrice, its two references (ridge on the log price; median by make and model), and what somebody would write
  in scikit-learn alone: `HistGradientBoostingRegressor` with its native categories on the log price, for both losses
  and with the number of trees, leaves and the learning rate of VehiclePrice. Ranges are counted overall, in every slice
  of 200 listings or more, and with each field left out.
- Duplicates: the same model on the same folds, once with the repeated rows left in before splitting.
- Cost: fit, a batch of all listings and one listing at a time, of VehiclePrice, of that scikit-learn pipeline and of
  the model's own ONNX graph in ONNX Runtime. CPU seconds of one thread, in turns, so that each ratio is of neighbouring
  runs. The answers differ: VehiclePrice gives a price, a calibrated range, confidence, flags and drivers; the graph a
  price and a range; scikit-learn a price.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fingerprints.measuring import THREAD_VARIABLES, time_each, time_once

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results" / "vehicle_prices.json"
REAL = "used_cars/autoscout24_germany.csv.gz"
#: Measured before this model was written, untuned, by five folds of the same file: HistGradientBoosting, L1 on the log.
BEFORE = {"mae": 1978.0, "mdape": 0.079, "within_10_percent": 0.597}
OURS, PLAIN, PLAIN_L1 = "VehiclePrice", "scikit-learn, squared error", "scikit-learn, absolute error"
RIDGE, MEDIAN = "ridge on the log price", "median by make and model"
FOLDS = 5
SLICE_MINIMUM = 200
_SLICES_SHOWN = 12
_START, _END = "<!-- vehicle prices: written by benchmarks.vehicle_prices.run -->", "<!-- end of vehicle prices -->"


def read_listings(data: str | None, columns: Mapping[str, str], listings: int | None) -> tuple[Any, str]:
    """Return raw listings, and what they are.

    Args:
        data: Path or URI; None for the real file, or the sample without it.
        columns: Our column names to the file's.
        listings: Only so many of them, the first; None for all.
    """
    from mlflywheel.data.ingestion import ingest
    from mlflywheel.models.vehicle_price import VehiclePrice
    from mlflywheel.samples.vehicle_prices import write_sample

    real = ROOT.parent / "shared" / "data" / REAL
    with tempfile.TemporaryDirectory() as scratch:
        if data is not None:
            source, name = data, Path(data).name
        elif real.exists():
            source, name = str(real), real.name
        else:
            name = "made-up listings of the sample: the real file is not there"
            source = str(write_sample(Path(scratch) / "sample.csv.gz"))
        table = ingest(source, VehiclePrice.columns, dict(columns)).table
    return table.slice(0, listings), name


def build_plain(loss: str, params: Any) -> Any:
    """Return the pipeline that somebody would write in scikit-learn alone, on the log price."""
    from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        # HistGradientBoosting takes 255 categories; the rarer ones share one.
        max_categories=254,
    )
    names = _list_features()
    columns = ColumnTransformer([("texts", encoder, names["texts"])], remainder="passthrough")
    trees_of_it = HistGradientBoostingRegressor(
        loss=loss,
        max_iter=params.max_iter,
        max_leaf_nodes=params.max_leaf_nodes,
        min_samples_leaf=params.min_samples_leaf,
        learning_rate=params.learning_rate,
        categorical_features=list(range(len(names["texts"]))),
        early_stopping=False,
        random_state=0,
    )
    return TransformedTargetRegressor(make_pipeline(columns, trees_of_it), func=np.log, inverse_func=np.exp)


def _list_features() -> dict[str, list[str]]:
    texts = ["make", "model", "fuel", "gear", "offer_type"]
    return {"texts": texts, "numbers": ["year", "mileage_km", "power_hp"]}


def to_frame(table: Any) -> Any:
    """Return the features as scikit-learn takes them; a column that is not there is missing in every row."""
    import pandas as pd

    names = _list_features()
    there = set(table.column_names)
    return pd.DataFrame(
        {
            name: (
                table[name].to_pandas()
                if name in there
                else pd.Series(
                    np.nan, index=range(table.num_rows), dtype="object" if name in names["texts"] else "float64"
                )
            )
            for name in (*names["texts"], *names["numbers"])
        }
    )


def summarise(true: np.ndarray, price: np.ndarray) -> dict[str, float]:
    """Return the metrics of one method."""
    error = price - true
    relative = error / true
    return {
        "mae": float(np.abs(error).mean()),
        "mdape": float(np.median(np.abs(relative))),
        "within_10_percent": float((np.abs(relative) <= 0.1).mean()),
        "bias": float(np.median(relative)),
        "r2": float(1 - (error**2).sum() / ((true - true.mean()) ** 2).sum()),
    }


def predict_out_of_fold(table: Any, params: Any, folds: np.ndarray, others: bool) -> dict[str, np.ndarray]:
    """Price every listing by models of the other folds.

    Args:
        table: Prepared listings, all with a price.
        params: Of VehiclePrice.
        folds: The fold of each listing.
        others: Whether to measure other methods and fields left out, too.

    Returns:
        Prices by method; `low`, `high` of VehiclePrice; with `others`, also its `price`, `low` and `high` with each
        field left out, named `price without year`.
    """
    import pyarrow as pa

    from mlflywheel.models.vehicle_price import VehiclePrice

    found: dict[str, np.ndarray] = {}

    def put(name: str, rows: np.ndarray, values: Any) -> None:
        found.setdefault(name, np.full(table.num_rows, np.nan))[rows] = values

    frame, prices = to_frame(table), table["price"].to_numpy()
    for fold in range(FOLDS):
        own = folds == fold
        print(f"fold {fold + 1} of {FOLDS}", file=sys.stderr, flush=True)
        model = VehiclePrice.fit(table.filter(pa.array(~own)), params)
        rows = table.filter(pa.array(own))
        answers = model.predict(rows)
        for name, column in ((OURS, "price"), ("low", "low"), ("high", "high")):
            put(name, own, answers[column].to_numpy())
        if not others:
            continue
        for field in model.schema.features:
            nothing = pa.nulls(rows.num_rows, rows.schema.field(field).type)
            hidden = model.predict(rows.set_column(rows.column_names.index(field), field, nothing))
            for column in ("price", "low", "high"):
                put(f"{column} without {field}", own, hidden[column].to_numpy())
        references = model.references.predict(rows)
        put(RIDGE, own, references["ridge"])
        put(MEDIAN, own, references["median"])
        for name, loss in ((PLAIN, "squared_error"), (PLAIN_L1, "absolute_error")):
            plain = build_plain(loss, params).fit(frame[~own], prices[~own])
            put(name, own, plain.predict(frame[own]))
    return found


def draw_folds(rows: int) -> np.ndarray:
    """Return the fold of each row, evenly and by seed 0."""
    return np.random.default_rng(0).permutation(np.arange(rows) % FOLDS)


def list_slices(table: Any, prices: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every slice of enough listings; a band of price is that of the predicted price, which a user knows."""
    from mlflywheel.models.vehicle_price.evaluation import band_ages, band_prices, read_texts

    columns = {name: read_texts(table, name) for name in ("make", "fuel", "gear", "offer_type", "region")}
    columns |= {"price_band": band_prices(prices), "age_band": band_ages(table)}
    for column, values in columns.items():
        for value in sorted(set(values)):
            rows = values == value
            if SLICE_MINIMUM <= rows.sum() < len(rows):
                yield f"{column}={value}", rows


def measure_quality(table: Any, params: Any) -> dict[str, Any]:
    """Measure every method by five folds, and ranges overall and by slice."""
    true = table["price"].to_numpy()
    found = predict_out_of_fold(table, params, draw_folds(table.num_rows), True)
    price, low, high = found[OURS], found["low"], found["high"]
    inside = (low <= true) & (true <= high)
    width = (high - low) / price
    slices = [
        {
            "slice": name,
            "count": int(rows.sum()),
            "mdape": float(np.median(np.abs(price[rows] / true[rows] - 1))),
            "bias": float(np.median(price[rows] / true[rows] - 1)),
            "coverage": float(inside[rows].mean()),
            "width": float(np.median(width[rows])),
        }
        for name, rows in list_slices(table, price)
    ]
    missing = []
    for key in found:
        if key.startswith("price without "):
            field = key.removeprefix("price without ")
            ends = [found[f"{end} without {field}"] for end in ("low", "high")]
            missing.append(
                {
                    "field": field,
                    "mdape": float(np.median(np.abs(found[key] / true - 1))),
                    "coverage": float(((ends[0] <= true) & (true <= ends[1])).mean()),
                    "times_as_wide": float(np.median(np.log(ends[1] / ends[0]) / np.log(high / low))),
                    "narrower_share": float((ends[1] / ends[0] < high / low).mean()),
                }
            )
    return {
        "missing": missing,
        "methods": {name: summarise(true, found[name]) for name in (OURS, PLAIN, PLAIN_L1, RIDGE, MEDIAN)},
        "nominal_coverage": float(params.coverage),
        "coverage": float(inside.mean()),
        "width": float(np.median(width)),
        "slices": slices,
    }


def measure_duplicates(raw: Any, params: Any, distinct: Mapping[str, float]) -> dict[str, Any]:
    """Measure VehiclePrice once more with repeated rows left in."""
    from mlflywheel.models.vehicle_price import VehiclePrice

    table = keep_priced(VehiclePrice.prepare(raw, VehiclePrice.Config.parse({"deduplicate": False}, "settings")))
    found = predict_out_of_fold(table, params, draw_folds(table.num_rows), False)
    left_in = summarise(table["price"].to_numpy(), found[OURS])
    return {"rows": table.num_rows, "left_in": left_in, "removed": dict(distinct)}


def keep_priced(table: Any) -> Any:
    """Return the prepared listings that have a price."""
    import pyarrow.compute as pc

    return table.filter(pc.fill_null(pc.greater(table["price"], 0.0), False)).combine_chunks()


def measure_cost(table: Any, params: Any, runs: int, singles: int) -> dict[str, Any]:
    """Measure fit, batch and single listings of the three, in turns."""
    import onnxruntime

    from mlflywheel.models.vehicle_price import VehiclePrice
    from mlflywheel.models.vehicle_price.encoding import Schema

    frame, prices = to_frame(table), table["price"].to_numpy()
    fits: dict[str, list[float]] = {OURS: [], PLAIN: []}
    model: Any = None
    plain: Any = None
    for run in range(runs):
        print(f"fit {run + 1} of {runs}", file=sys.stderr, flush=True)
        seconds, model = time_once(lambda: VehiclePrice.fit(table, params))
        fits[OURS].append(seconds)
        seconds, plain = time_once(lambda: build_plain("squared_error", params).fit(frame, prices))
        fits[PLAIN].append(seconds)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
    schema: Schema = model.schema
    feed = {
        name: (
            table[name].to_numpy().astype(np.float32)
            if name in schema.numbers
            else np.array([text or "" for text in table[name].to_pylist()], dtype=object)
        ).reshape(-1, 1)
        for name in schema.features
    }
    callers: dict[str, Callable[[slice], Any]] = {
        OURS: lambda rows: model.predict(table.slice(rows.start, rows.stop - rows.start)),
        PLAIN: lambda rows: plain.predict(frame.iloc[rows]),
        "ONNX Runtime": lambda rows: session.run(None, {name: values[rows] for name, values in feed.items()}),
    }
    everything = slice(0, table.num_rows)
    batches: dict[str, list[float]] = {name: [] for name in callers}
    medians: dict[str, list[float]] = {name: [] for name in callers}
    rows = [slice(row, row + 1) for row in np.linspace(0, table.num_rows - 1, singles, dtype=int).tolist()]
    for run in range(-1, runs):
        for name, call in list(callers.items())[:: 1 if run % 2 else -1]:
            seconds, _ = time_once(lambda call=call: call(everything))
            single = time_each(call, rows)
            # The first round compiles kernels and fills caches.
            if run >= 0:
                batches[name].append(seconds)
                medians[name].append(float(np.median(single)))
    return {
        "trees": params.max_iter,
        "leaves": params.max_leaf_nodes,
        "rows": table.num_rows,
        "fit_cpu_seconds": fits,
        "batch_cpu_seconds": batches,
        "single_cpu_seconds": medians,
        "largest_difference_of_onnx": float(
            np.abs(session.run(["price"], feed)[0].ravel() / model.predict(table)["price"].to_numpy() - 1).max()
        ),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS and OpenMP to one thread, whatever is loaded."""
    import sklearn.ensemble  # noqa: F401  (its OpenMP has to be there to be held)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def measure(data: str | None, columns: Mapping[str, str], quick: bool) -> dict[str, Any]:
    """Measure everything."""
    from mlflywheel.models.vehicle_price import VehiclePrice

    raw, name = read_listings(data, columns, 2000 if quick else None)
    few = {"max_iter": 10, "scale_iter": 5} if quick else {}
    params = VehiclePrice.Params.parse(few, "params")
    load_before = os.getloadavg()[0]
    started = time.monotonic()
    with one_thread():
        table = keep_priced(VehiclePrice.prepare(raw, VehiclePrice.Config()))
        quality = measure_quality(table, params)
        duplicates = measure_duplicates(raw, params, quality["methods"][OURS])
        cost = measure_cost(table, params, 2 if quick else 3, 10 if quick else 200)
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.vehicle_prices.run" + (" --quick" if quick else ""),
        "data": name,
        "raw_rows": raw.num_rows,
        "rows": table.num_rows,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, one thread",
        "load_averages": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "wall_minutes": round((time.monotonic() - started) / 60, 1),
        "versions": {
            package: version(package) for package in ("mlflywheel", "scikit-learn", "onnxruntime", "numpy", "pyarrow")
        },
        "quality": quality,
        "duplicates": duplicates,
        "cost": cost,
    }


def _ratio(values: Mapping[str, list[float]], name: str) -> str:
    """Return how often ours goes into another's time, run by run: the middle one and the range."""
    ratios = sorted(other / ours for ours, other in zip(values[OURS], values[name], strict=True))
    return f"{np.median(ratios):.2g} ({ratios[0]:.2g} to {ratios[-1]:.2g})"


def format_markdown(result: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    quality, cost, duplicates = result["quality"], result["cost"], result["duplicates"]
    loads = " to ".join(f"{load:g}" for load in result["load_averages"])
    lines = [
        f"`{result['command']}`, {result['data']}: {result['rows']:,} listings of {result['raw_rows']:,} rows, "
        f"{result['machine']} (load average {loads}), {result['measured']}.",
        "",
        f"Five folds, {result['rows']:,} listings without duplicates:",
        "",
        "| method | MAE | MdAPE | within 10 % | bias | R² |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    if result["data"] == Path(REAL).name:
        before = f"{BEFORE['mae']:,.0f} | {BEFORE['mdape']:.1%} | {BEFORE['within_10_percent']:.1%}"
        lines.append(f"| measured before this model was written | {before} | | |")
    for name, found in quality["methods"].items():
        lines.append(
            f"| {name} | {found['mae']:,.0f} | {found['mdape']:.2%} | {found['within_10_percent']:.1%} | "
            f"{found['bias']:+.1%} | {found['r2']:.2f} |"
        )
    worst = sorted(quality["slices"], key=lambda entry: -abs(entry["coverage"] - quality["nominal_coverage"]))
    lines += [
        "",
        f"The range holds {quality['coverage']:.1%} of the prices ({quality['nominal_coverage']:.0%} is asked for); "
        f"its median width is {quality['width']:.0%} of the price. Of {len(quality['slices'])} slices with at least "
        f"{SLICE_MINIMUM} listings these are the furthest off:",
        "",
        "| slice | listings | MdAPE | bias | in the range | width |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for entry in worst[:_SLICES_SHOWN]:
        lines.append(
            f"| {entry['slice']} | {entry['count']:,} | {entry['mdape']:.1%} | {entry['bias']:+.1%} | "
            f"{entry['coverage']:.1%} | {entry['width']:.0%} |"
        )
    lines += [
        "",
        "One field left out of every listing:",
        "",
        "| left out | MdAPE | in the range | range, times as wide | narrower for |",
        "|---|---:|---:|---:|---:|",
    ]
    for entry in quality["missing"]:
        lines.append(
            f"| {entry['field']} | {entry['mdape']:.1%} | {entry['coverage']:.1%} | {entry['times_as_wide']:.2f} | "
            f"{entry['narrower_share']:.0%} |"
        )
    left_in, removed = duplicates["left_in"], duplicates["removed"]
    lines += [
        "",
        f"With repeated rows left in before splitting ({duplicates['rows']:,} listings), the same model looks better "
        f"than it is: MdAPE {left_in['mdape']:.2%} in place of {removed['mdape']:.2%}, within 10 % "
        f"{left_in['within_10_percent']:.1%} in place of {removed['within_10_percent']:.1%}.",
        "",
        f"CPU seconds of one thread; {cost['trees']} trees of {cost['leaves']} leaves on each side, with VehiclePrice "
        "those of the range on top:",
        "",
        "| | VehiclePrice | scikit-learn | ONNX Runtime | scikit-learn / ours | ONNX Runtime / ours |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    batch, single, fit = cost["batch_cpu_seconds"], cost["single_cpu_seconds"], cost["fit_cpu_seconds"]
    onnx = "ONNX Runtime"
    middle = {
        key: {name: np.median(runs) for name, runs in cost[key].items()} for key in cost if key.endswith("_seconds")
    }
    fits, batches, singles = (middle[f"{key}_cpu_seconds"] for key in ("fit", "batch", "single"))
    lines += [
        f"| fit, s | {fits[OURS]:.1f} | {fits[PLAIN]:.1f} | | {_ratio(fit, PLAIN)} | |",
        f"| {cost['rows']:,} listings, s | {batches[OURS]:.2f} | {batches[PLAIN]:.2f} | {batches[onnx]:.2f} | "
        f"{_ratio(batch, PLAIN)} | {_ratio(batch, onnx)} |",
        f"| one listing, ms | {singles[OURS] * 1e3:.2f} | {singles[PLAIN] * 1e3:.2f} | {singles[onnx] * 1e3:.2f} | "
        f"{_ratio(single, PLAIN)} | {_ratio(single, onnx)} |",
        "",
        f"Prices of the graph differ from those of VehiclePrice by at most {cost['largest_difference_of_onnx']:.1g} "
        "of a price.",
    ]
    return "\n".join(lines)


def write_table(result: Mapping[str, Any], page: Path) -> None:
    """Put the results between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_START)
    _, after = rest.split(_END)
    page.write_text(f"{before}{_START}\n{format_markdown(result)}\n{_END}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="listings: path or URI of CSV, CSV.gz or Parquet")
    parser.add_argument(
        "--map", action="append", default=[], metavar="OURS=THEIRS", help="our column name and the file's"
    )
    parser.add_argument("--quick", action="store_true", help="few listings and trees, whose figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--page", type=Path, default=FOLDER.parent / "README.md", help="where the tables go")
    options = parser.parse_args(arguments)
    if (options.quick or options.data) and options.out == RESULTS:
        parser.error("the committed results are of all of the real file; name another --out")
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    result = measure(options.data, dict(item.split("=", 1) for item in options.map), options.quick)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(format_markdown(result))
    if options.out == RESULTS:
        write_table(result, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
