"""KFP components: thin wrappers that read paths, call one function of the library, write paths and log metrics."""

from mlflywheel.components.deployment import deploy_model
from mlflywheel.components.evaluation import evaluate_model, refuse_model
from mlflywheel.components.ingestion import ingest_data
from mlflywheel.components.preparation import prepare_table
from mlflywheel.components.registration import register_model
from mlflywheel.components.scoring import score_table
from mlflywheel.components.splitting import split_table
from mlflywheel.components.training import extend_model, train_model
from mlflywheel.components.tuning import tune_model
from mlflywheel.components.validation import validate_data

__all__ = [
    "deploy_model",
    "evaluate_model",
    "extend_model",
    "ingest_data",
    "prepare_table",
    "refuse_model",
    "register_model",
    "score_table",
    "split_table",
    "train_model",
    "tune_model",
    "validate_data",
]
