"""TabularClassifier on German Credit, beside plain scikit-learn: five folds, repeated, the same rows for everybody.

    python -m benchmarks.evaluation.german_credit                     about a minute on one core
    python -m benchmarks.evaluation.german_credit --repeats 1 --out quick.json

It reads `../shared/data/fairness/german_credit.csv` (1,000 applications; Statlog German Credit, UCI, CC BY 4.0), or
`--data FILE`. The positive class is 1, a good credit. Every row is scored by a model that did not see it. Two settings:

- `all columns`: every column is a feature.
- `without personal_status and age`: these two are kept for groups, and no model sees them.

"plain scikit-learn" is what somebody would write alone: `StandardScaler` and `OneHotEncoder` before
`LogisticRegression` with its defaults, and `HistGradientBoostingClassifier` with native categories and the parameters
of ours. Differences are of the log loss, ours minus theirs, paired by row and averaged over the repeats, with a 95 %
interval over rows. The area under the ROC curve is that of the probabilities of all folds together.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "fairness" / "german_credit.csv"
RESULTS = Path(__file__).parent / "results" / "german_credit.json"
TARGET, POSITIVE = "credit", "1"
HIDDEN = ("personal_status", "age")
FOLDS = 5
SETTINGS = {"all columns": (), "without personal_status and age": HIDDEN}
BOOSTED = {"algorithm": "boosted_trees"}


def build_plain(kind: str, numbers: list[str], texts: list[str]) -> Any:
    """Return the pipeline that somebody would write in scikit-learn alone."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    from mlflywheel.models.tabular_classifier.fitting import FitParams

    if kind == "logistic":
        one_hot = OneHotEncoder(handle_unknown="ignore")
        columns = ColumnTransformer([("numbers", StandardScaler(), numbers), ("texts", one_hot, texts)])
        return make_pipeline(columns, LogisticRegression(max_iter=2000))
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    params = FitParams()
    trees = HistGradientBoostingClassifier(
        learning_rate=params.learning_rate,
        max_iter=params.max_iter,
        max_leaf_nodes=params.max_leaf_nodes,
        min_samples_leaf=params.min_samples_leaf,
        l2_regularization=params.l2_regularization,
        categorical_features=list(range(len(texts))),
        early_stopping=False,
        random_state=0,
    )
    return make_pipeline(ColumnTransformer([("texts", codes, texts)], remainder="passthrough"), trees)


def measure(data: Path, repeats: int) -> dict[str, Any]:
    """Score every row by every method in every setting, `repeats` times in other folds."""
    import pyarrow as pa

    from mlflywheel.data.ingestion import ingest
    from mlflywheel.models.tabular_classifier import TabularClassifier
    from mlflywheel.models.tabular_classifier.evaluation import measure_log_loss
    from mlflywheel.models.tabular_classifier.preparation import Facts
    from mlflywheel.models.tabular_classifier.ranking import estimate_auc
    from mlflywheel.statistics.intervals import estimate_mean

    raw = ingest(str(data), TabularClassifier.columns, {}, other_columns=True).table
    found: dict[str, Any] = {}
    for setting, hidden in SETTINGS.items():
        config = {"target": TARGET, "positive": POSITIVE, "not_features": list(hidden)}
        table = TabularClassifier.prepare(raw, TabularClassifier.Config.parse(config, "benchmark"))
        facts = Facts.read(table)
        assert facts is not None
        truth = table["target"].to_numpy()
        frame = table.select(list(facts.kinds)).to_pandas()
        numbers = [name for name, kind in facts.kinds.items() if kind == "number"]
        texts = [name for name, kind in facts.kinds.items() if kind == "category"]
        scores: dict[str, list[np.ndarray]] = {}
        for repeat in range(repeats):
            folds = np.random.default_rng(repeat).permutation(np.arange(len(truth)) % FOLDS)
            probability: dict[str, np.ndarray] = {}
            for fold in range(FOLDS):
                own = folds == fold
                train, rest = table.filter(pa.array(~own)), table.filter(pa.array(own))
                for name, params in (("logistic", {}), ("boosted_trees", BOOSTED)):
                    model = TabularClassifier.fit(train, TabularClassifier.Params.parse(params, "benchmark"))
                    answer = model.predict(rest)["probability"].to_numpy()
                    probability.setdefault(name, np.empty(len(truth)))[own] = answer
                    plain = build_plain(name, numbers, texts).fit(frame[~own], truth[~own])
                    theirs = probability.setdefault(f"plain scikit-learn {name}", np.empty(len(truth)))
                    theirs[own] = plain.predict_proba(frame[own])[:, 1]
                references = model.references.predict(model.encoder.read(rest), model.encoder)
                for name in ("strongest_columns", "base_rate"):
                    probability.setdefault(name, np.empty(len(truth)))[own] = references[name]
            for name, values in probability.items():
                scores.setdefault(name, []).append(values)
        losses = {
            name: np.mean([measure_log_loss(truth, one) for one in runs], axis=0) for name, runs in scores.items()
        }
        methods = {}
        for name, runs in scores.items():
            areas = [estimate_auc(truth, one) for one in runs]
            loss = estimate_mean(losses[name])
            methods[name] = {"log_loss": loss.value, "log_loss_low": loss.low, "log_loss_high": loss.high}
            # One number a fold ranks nothing.
            if name != "base_rate":
                for key in ("value", "low", "high"):
                    label = "auc" if key == "value" else f"auc_{key}"
                    methods[name][label] = float(np.mean([getattr(area, key) for area in areas]))
        differences = {}
        for name in ("logistic", "boosted_trees"):
            paired = estimate_mean(losses[name] - losses[f"plain scikit-learn {name}"])
            differences[name] = {"log_loss": paired.value, "low": paired.low, "high": paired.high}
        found[setting] = {"features": len(facts.kinds), "methods": methods, "ours_minus_plain": differences}
    return {"rows": raw.num_rows, "positives": int(truth.sum()), "settings": found}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REAL)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not options.data.is_file():
        print(f"{options.data.name}: not there; give its path with --data", file=sys.stderr)
        return 1
    results = {
        "command": "python -m benchmarks.evaluation.german_credit",
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "scikit-learn": version("scikit-learn"),
        "folds": FOLDS,
        "repeats": options.repeats,
        **measure(options.data, options.repeats),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for setting, part in results["settings"].items():
        print(setting)
        for name, method in part["methods"].items():
            area = f"{method['auc']:.3f}" if "auc" in method else "    -"
            print(f"  {name:36} auc {area}  log loss {method['log_loss']:.4f}")
        for name, difference in part["ours_minus_plain"].items():
            print(f"  {name}: {difference['log_loss']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
