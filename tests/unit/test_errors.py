"""Errors: their exit codes, their one form of message, and their way across a process border."""

import pickle

import pytest

from mlflywheel import errors
from mlflywheel.errors import (
    DataError,
    ExpectationError,
    ForeignEditError,
    GateRefusedError,
    MissingExtraError,
    MlflywheelError,
    ModelError,
    ModelFilesError,
    RegistryError,
    RolloutError,
    RunError,
    TuningError,
    UsageError,
    error_from_dict,
)

EXIT_CODES = {
    MlflywheelError: 1,
    UsageError: 2,
    MissingExtraError: 2,
    DataError: 1,
    ExpectationError: 1,
    ModelError: 1,
    ModelFilesError: 1,
    RegistryError: 1,
    TuningError: 1,
    RolloutError: 1,
    ForeignEditError: 1,
    RunError: 1,
    GateRefusedError: 3,
}
PARTS = ("terms.csv", "0 rows", "at least 1 row is needed", "export the table again")
each_class = pytest.mark.parametrize("cls", EXIT_CODES, ids=lambda cls: cls.__name__)


def test_table_above_names_every_class() -> None:
    defined = {item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert defined == set(EXIT_CODES)


@each_class
def test_exit_code_is_the_documented_one(cls: type[MlflywheelError]) -> None:
    assert cls.exit_code == cls(*PARTS).exit_code == EXIT_CODES[cls]


@each_class
def test_message_names_place_finding_need_and_fix(cls: type[MlflywheelError]) -> None:
    error = cls(*PARTS)
    assert str(error) == "terms.csv: 0 rows; at least 1 row is needed. Fix: export the table again."
    assert (error.where, error.seen, error.needed, error.fix) == PARTS


@pytest.mark.parametrize(
    ("cls", "parent"),
    [
        (MissingExtraError, UsageError),
        (ExpectationError, DataError),
        (ModelFilesError, ModelError),
        (GateRefusedError, MlflywheelError),
    ],
)
def test_narrow_error_is_caught_as_its_wider_one(cls: type[MlflywheelError], parent: type[MlflywheelError]) -> None:
    with pytest.raises(parent):
        raise cls(*PARTS)


def test_refused_gate_is_not_mistaken_for_bad_data_or_a_failed_run() -> None:
    assert not issubclass(GateRefusedError, DataError | RunError | UsageError)


@each_class
def test_pickle_round_trip_keeps_class_and_parts(cls: type[MlflywheelError]) -> None:
    copy = pickle.loads(pickle.dumps(cls(*PARTS)))
    assert type(copy) is cls
    assert (copy.where, copy.seen, copy.needed, copy.fix, str(copy)) == (*PARTS, str(cls(*PARTS)))


@each_class
def test_error_survives_as_a_dictionary(cls: type[MlflywheelError]) -> None:
    parts = cls(*PARTS).to_dict()
    assert parts == {
        "type": cls.__name__,
        "message": str(cls(*PARTS)),
        "where": PARTS[0],
        "seen": PARTS[1],
        "needed": PARTS[2],
        "fix": PARTS[3],
        "exit_code": EXIT_CODES[cls],
    }
    assert type(error_from_dict(parts)) is cls
    assert error_from_dict(parts).to_dict() == parts


@pytest.mark.parametrize("kind", [None, "KeyboardInterrupt", "os.system", "NoSuchError"])
def test_unknown_type_becomes_a_run_error(kind: str | None) -> None:
    parts = {**UsageError(*PARTS).to_dict(), "type": kind}
    assert type(error_from_dict(parts)) is RunError


def test_missing_extra_names_the_command_that_installs_it() -> None:
    error = MissingExtraError.of("kfp", "pipelines", "running a pipeline")
    assert (error.exit_code, error.fix) == (2, "pip install 'mlflywheel[pipelines]'")
