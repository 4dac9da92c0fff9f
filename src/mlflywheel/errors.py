"""Every error that this library raises on purpose.

    MlflywheelError            exit code 1
    ├── UsageError             2   the caller asked for something that cannot be meant
    │   └── MissingExtraError  2   an optional dependency is needed and not installed
    ├── DataError              1   the data cannot be read, or not as asked
    │   └── ExpectationError   1   the data was read, and an error-severity expectation does not hold
    ├── ModelError             1   a model cannot be fitted, saved or loaded
    │   └── ModelFilesError    1   a model folder is incomplete, changed or not a model
    ├── RegistryError          1   the model registry refused, or contradicts the request
    ├── TuningError            1   a search for parameters failed, or found no best trial
    ├── RolloutError           1   a rollout cannot start or go on
    │   └── ForeignEditError   1   somebody else changed what a rollout works on
    ├── RunError               1   a pipeline step failed, or the run was interrupted
    └── GateRefusedError       3   a gate said no: the model is measured, and not good enough

A message always reads `<where>: <seen>; <needed>. Fix: <action>.`, and the parts stay available as attributes, so
that a command line can print one line, a service can answer 4xx or 5xx, and a test can assert the fix.
"""

from typing import Any, ClassVar

# C0 without tabulator and line feed, DEL, C1, and what turns the direction of text around.
_CONTROLS = (range(9), range(11, 32), range(0x7F, 0xA0), range(0x202A, 0x202F), range(0x2066, 0x206A))
_WRITTEN_CONTROLS = {code: ascii(chr(code))[1:-1] for codes in _CONTROLS for code in codes}


def show_controls(text: str) -> str:
    r"""Write control characters as `\x1b`, so that text from a file cannot move the cursor, or rename a terminal.

    >>> show_controls("red\x1b[31m")
    'red\\x1b[31m'
    """
    return text.translate(_WRITTEN_CONTROLS)


class MlflywheelError(Exception):
    """An error a user can act on.

    Args:
        where: The file, parameter, column or component that is at fault.
        seen: What was found there.
        needed: What would have been accepted.
        fix: The action that mends it, as an imperative without a full stop.

    >>> print(DataError("terms.csv", "0 rows", "at least 1 row is needed", "export the table again"))
    terms.csv: 0 rows; at least 1 row is needed. Fix: export the table again.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, seen: str, needed: str, fix: str) -> None:
        self.where = where
        self.seen = seen
        self.needed = needed
        self.fix = fix
        super().__init__(show_controls(f"{where}: {seen}; {needed}. Fix: {fix}."))

    def to_dict(self) -> dict[str, Any]:
        """Return the parts, as they stand in `summary.json` and in an event."""
        return {
            "type": type(self).__name__,
            "message": str(self),
            "where": self.where,
            "seen": self.seen,
            "needed": self.needed,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.seen, self.needed, self.fix)


class UsageError(MlflywheelError):
    """The caller asked for something that cannot be meant."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> "MissingExtraError":
        """Build the error for a package that one of our extras brings.

        >>> print(MissingExtraError.of("kfp", "pipelines", "running a pipeline"))
        running a pipeline: kfp is not installed; it comes with an extra. Fix: pip install 'mlflywheel[pipelines]'.
        """
        return cls(
            purpose, f"{package} is not installed", "it comes with an extra", f"pip install 'mlflywheel[{extra}]'"
        )


class DataError(MlflywheelError):
    """The data cannot be read, or not as asked."""


class ExpectationError(DataError):
    """The data was read, and an error-severity expectation does not hold."""


class ModelError(MlflywheelError):
    """A model cannot be fitted, saved or loaded."""


class ModelFilesError(ModelError):
    """A model folder is incomplete, changed since it was saved, or not a model."""


class RegistryError(MlflywheelError):
    """The model registry refused, or what it holds contradicts the request."""


class TuningError(MlflywheelError):
    """A search for parameters failed, or ended without a best trial."""


class RolloutError(MlflywheelError):
    """A rollout cannot start, or cannot go on."""


class ForeignEditError(RolloutError):
    """Somebody else changed what a rollout works on."""


class RunError(MlflywheelError):
    """A pipeline step failed for another reason than its data, or the run was interrupted."""


class GateRefusedError(MlflywheelError):
    """A gate said no: the model is measured, and not good enough."""

    exit_code = 3


def error_from_dict(parts: dict[str, Any]) -> MlflywheelError:
    """Rebuild an error from `MlflywheelError.to_dict`, so that it can cross a process border.

    >>> error_from_dict(UsageError("--map", "x", "ours=theirs is needed", "write it so").to_dict()).exit_code
    2
    """
    classes = {cls.__name__: cls for cls in _all_subclasses(MlflywheelError)}
    cls = classes.get(str(parts.get("type")), RunError)
    return cls(str(parts["where"]), str(parts["seen"]), str(parts["needed"]), str(parts["fix"]))


def _all_subclasses(cls: type[MlflywheelError]) -> list[type[MlflywheelError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found.extend(_all_subclasses(child))
    return found
