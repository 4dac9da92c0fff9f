"""The contract between a use case and everything else: components, registry, serving and reports know only this.

A use case is one `Model` subclass and one pipeline folder. A model is named `module:Class`, or by an entry point of the
group `mlflywheel.models`, so a package that we have never heard of can bring one (`load_model_class`).

Why a base class and not a bare protocol: saving and loading a folder of data files with a checksum for each is the same
for every model, and must not be got wrong once per model (docs/adr/0002).
"""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mlflywheel.errors import MlflywheelError, ModelFilesError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.parameters import describe_json_fault

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
ENTRY_POINT_GROUP = "mlflywheel.models"
_SHOWN_CHARACTERS = 100
_SHOWN_ERROR_CHARACTERS = 200

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Column:
    """One column of the raw table that a model reads.

    Args:
        name: Our name of it; `--map ours=theirs` renames the source's.
        kind: `id` and `text` are strings that must not be guessed to be numbers (`007` stays `007`).
        required: Whether the table is refused without it.
        description: One line for `--help`, documentation and error messages.
        aliases: Other names that sources have for it, taken where neither our name nor a mapping finds a column.
        missing: Texts that stand for a missing value in it, such as `N/A`; an empty cell always does.
    """

    name: str
    kind: Literal["id", "text", "number", "date"]
    required: bool = False
    description: str = ""
    aliases: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One measured value with the rows it rests on.

    Args:
        metric: Its name, a measurement and never a verdict (`selection_rate_gap`, not `is_fair`).
        value: The value, or None where it is not defined (no rows, no vertical column).
        slice: `all`, or `column=value`.
        count: Number of rows behind the value.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end of the same.
        note: Why a value is None, or how to read it.
        about: What was looked at: the `model` by its own metrics, its `slices`, `groups`, the `champion`, the `trend`
            over versions, `explanations`, or the `contract` with callers.
    """

    metric: str
    value: float | None
    slice: str = "all"
    count: int = 0
    low: float | None = None
    high: float | None = None
    note: str = ""
    about: Literal["model", "slices", "groups", "champion", "trend", "explanations", "contract"] = "model"


@dataclass(frozen=True)
class Section:
    """One part of a report: data with a kind, which `mlflywheel.reports` knows how to draw.

    Args:
        kind: `table`, `scatter`, `bars`, `cards`, `lines`, `parallel` or `text`; the shape of `data` is documented in
            `mlflywheel.reports`.
        title: Heading.
        text: One or two sentences under it that say what is seen and how to read it.
        data: JSON values.
    """

    kind: Literal["table", "scatter", "bars", "cards", "lines", "parallel", "text"]
    title: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What `Model.evaluate` found on held-out rows.

    Args:
        measurements: Metrics, overall (`slice="all"`) and per slice, references of simpler methods among them.
        sections: The model's own part of the report.
    """

    measurements: tuple[Measurement, ...]
    sections: tuple[Section, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Return the model's own overall values that are defined, by name."""
        own = (m for m in self.measurements if m.slice == "all" and m.about == "model")
        return {m.metric: m.value for m in own if m.value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `evaluation.json` holds them."""
        return {
            "schema": 1,
            "measurements": [asdict(m) for m in self.measurements],
            "sections": [asdict(s) for s in self.sections],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Rebuild from `to_dict`."""
        return cls(
            tuple(Measurement(**m) for m in values["measurements"]), tuple(Section(**s) for s in values["sections"])
        )


@dataclass(frozen=True)
class RowMetric:
    """One measured value for every held-out row: what metrics of the evaluation are means of.

    Args:
        name: A measurement, such as `absolute_relative_error`.
        values: float64 (rows,); NaN where it is not defined for a row.
        better: Which values are the better ones.
        bounds: Smallest and largest possible value, or None.
    """

    name: str
    values: NDArray[np.float64]
    better: Literal["lower", "higher"] = "lower"
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class RowScores:
    """What every held-out row got: slices, groups and a comparison of two models on the same rows are made of it.

    Args:
        task: What kind of answer the model gives; only models of one task are compared.
        ids: string (rows,), one a row.
        attributes: Text and number columns of the rows by which they may be sliced or grouped, what the model answered
            among them where that is known when it is asked (`predicted_price`).
        metrics: At least one; the first is what models are compared by.
        answers: What a caller gets, (rows,): a class as text, a number, or a list<string> of recommended ids, best
            first; null where the model has no finite score to answer by.
        truth: float64 (rows,): the true number, or 1 for the positive class and 0 for another; NaN where unknown. None
            for recommendations.
        probability: float64 (rows,): probability of the positive class; None but for classification.
        references: The first metric's values by simpler methods, float64 (rows,) by name.
        catalogue: What can be recommended: `id` and attributes as above; None but for recommendations.
    """

    task: Literal["classification", "regression", "recommendation"]
    ids: pa.Array
    attributes: pa.Table
    metrics: tuple[RowMetric, ...]
    answers: pa.Array
    truth: NDArray[np.float64] | None = None
    probability: NDArray[np.float64] | None = None
    references: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    catalogue: pa.Table | None = None


class Settings(BaseModel):
    """Base of a model's parameters and of its preparation settings: typed, with defaults, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any] | str | None, where: str) -> Self:
        """Validate values, or a JSON object, into parameters.

        Args:
            values: A mapping, a JSON object as text, or nothing for the defaults.
            where: What to call the source in an error: `--params`, `pipeline parameter params`.

        Raises:
            UsageError: Not an object, an unknown name, or a value out of range; the message names the field.
        """
        if isinstance(values, str):
            try:
                values = json.loads(values) if values.strip() else {}
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    where, f"not JSON ({describe_json_fault(error)})", "a JSON object is needed",
                    "quote names with double quotes",
                ) from None  # fmt: skip
        elif values is None:
            values = {}
        if not isinstance(values, Mapping):
            seen = "null" if values is None else f"a {type(values).__name__}"
            raise UsageError(where, seen, "a JSON object is needed", 'write it as {"name": value}')
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "the object"
            seen = repr(first.get("input"))
            raise UsageError(
                f"{where}, {name}",
                f"{seen if len(seen) <= _SHOWN_CHARACTERS else seen[:_SHOWN_CHARACTERS] + '...'}: {first['msg']}",
                f"known names are {', '.join(cls._names_beside(first['loc']))}",
                "correct this name" if first["type"] == "extra_forbidden" else "correct this value",
            ) from None

    @classmethod
    def _names_beside(cls, path: Sequence[str | int]) -> list[str]:
        """Return the names of the settings that the last part of a path stands among."""
        settings: type[BaseModel] = cls
        for part in path[:-1]:
            inner = settings.model_fields[part].annotation if part in settings.model_fields else None
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                settings = inner
        return sorted(settings.model_fields)


class Model(ABC):
    """A model that can be prepared for, fitted, evaluated, explained, saved and served.

    Tables are pyarrow tables. `predict` is the only scoring path: a batch is a table of many rows and an online request
    a table of one, so both give the same answer.
    """

    #: Format name in the registry and in a ServingRuntime's `supportedModelFormats`.
    format_name: ClassVar[str]
    #: Version of the file format that `save` writes; a change that older code cannot read raises it.
    format_version: ClassVar[str] = "1"
    #: Version of what requests and answers look like; a change that breaks callers raises it.
    contract_version: ClassVar[str] = "1"
    #: The raw table's columns that `prepare` reads.
    columns: ClassVar[tuple[Column, ...]]
    #: Whether `prepare` also reads columns that are not declared: those of a general model are the user's.
    other_columns: ClassVar[bool] = False
    #: Parameters of `fit`.
    Params: ClassVar[type[Settings]]
    #: Settings of `prepare`.
    Config: ClassVar[type[Settings]]
    #: One instance of a request, and the answer to it (V1 `instances` and `predictions` elements).
    Request: ClassVar[type[BaseModel]]
    Response: ClassVar[type[BaseModel]]

    @classmethod
    @abstractmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Turn raw rows into one row an entity (a campaign, a listing, a series)."""

    @classmethod
    def describe_table(cls, table: pa.Table) -> dict[str, int]:
        """Return what preparing removed or changed, as counts by name, for the run's record; nothing by default."""
        return {}

    @classmethod
    @abstractmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        """Learn from prepared rows.

        Raises:
            ModelError: Nothing can be learned from these rows.
        """

    @abstractmethod
    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Score prepared rows: one output row for each, in the same order. Threads may call it at the same time."""

    @abstractmethod
    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        """Measure the model on prepared rows that it was not fitted on."""

    def measure(
        self, table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
    ) -> tuple[Measurement, ...]:
        """Measure some overall metrics of `evaluate` alone: a search for parameters asks for few, again and again.

        A model overrides this where it can spare work; the values are those of `evaluate`.

        Args:
            table: Prepared rows that the model was not fitted on.
            metrics: Names of metrics.
            progress: Progress callback.

        Raises:
            UsageError: The model has no metric of such a name.
        """
        return choose_measurements(self.evaluate(table, progress).measurements, metrics)

    def score_rows(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> RowScores | None:
        """Measure every row that the model was not fitted on by itself; None where a model cannot.

        Rows whose truth is missing are left out, so the result depends on the rows and not on the model: two models
        of one task give the same ids in the same order.
        """
        return None

    @abstractmethod
    def explain(self, table: pa.Table) -> pa.Table:
        """Attribute each prediction to its inputs, in contributions that add up to it."""

    def extend(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Self:
        """Return the model that goes into service after the evaluation: held-out rows added to what it looks up.

        What was learned stays as it was evaluated. A model that looks nothing up returns itself.
        """
        return self

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return flat facts for the registry: algorithm, sizes, parameters worth comparing."""
        return {}

    def use_device(self, wanted: DeviceName) -> tuple[Self, str]:
        """Return the model that computes there, and what that is: `cpu` or `cuda`, and behind a colon more about it.

        A model that can use a GPU overrides this.

        Args:
            wanted: `cuda` is a GPU and nothing else, `auto` a GPU where there is one.

        Raises:
            UsageError: `cuda` is wanted, and the model or the machine cannot.
        """
        if wanted == "cuda":
            raise UsageError(
                "--device cuda",
                f"{type(self).__name__} computes on the CPU only",
                "a model that can use a GPU is needed",
                "leave --device out, or write --device auto",
            )
        return self, "cpu"

    def versions(self) -> dict[str, str]:
        """Return hashes that a caller may compare: what the answer depends on beside the model's files."""
        return {}

    @classmethod
    @abstractmethod
    def example_request(cls) -> dict[str, Any]:
        """Return one valid instance, as documentation and the serving page show it."""

    @classmethod
    @abstractmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        """Turn validated request instances into the table that `predict` takes."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the model's data files into an empty folder: JSON, Parquet, npy or ONNX; never a pickle."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote. Called only after every file's checksum was verified."""

    def save(self, folder: Path) -> str:
        """Write the model and its checksum manifest, all or nothing.

        The files are written beside the target and moved into place, so a killed process leaves no half model.

        Args:
            folder: Target; replaced if it is empty or an older save, and created if missing.

        Returns:
            The model's hash: `sha256:` over the names and checksums of its files.

        Raises:
            UsageError: The target is a file, or holds something else than an older save.
        """
        folder = Path(folder).absolute()
        _check_replaceable(folder)
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self.write(partial)
            files = {p.relative_to(partial).as_posix(): _sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
            manifest = {
                "schema": MANIFEST_SCHEMA,
                "model": _name_class(type(self)),
                "format": {"name": self.format_name, "version": self.format_version},
                "facts": self.describe(),
                "files": files,
                "hash": _hash_files(files),
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                folder.rename(replaced)
            partial.rename(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return str(manifest["hash"])

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved model after checking every file against its checksum.

        Raises:
            ModelFilesError: A file is missing, added or changed, or another model or format was saved there.
        """
        folder = Path(folder)
        seen = verify_model_folder(folder)["format"]
        if seen["name"] != cls.format_name or seen["version"].split(".")[0] != cls.format_version.split(".")[0]:
            raise ModelFilesError(
                str(folder),
                f"format {seen['name']} {seen['version']}",
                f"{cls.__name__} reads {cls.format_name} {cls.format_version}",
                "load it with the model class and library version that wrote it",
            )
        try:
            return cls.read(folder)
        except MlflywheelError:
            raise
        except Exception as error:
            # The files are what was saved, but not what this version reads, or a manifest was written by hand: whoever
            # writes files also chooses what reading them raises.
            raise ModelFilesError(
                str(folder),
                f"{type(error).__name__}: {error}".splitlines()[0][:_SHOWN_ERROR_CHARACTERS].rstrip("."),
                f"files as {cls.__name__} {cls.format_version} writes them are needed",
                "load it with the library version that wrote it",
            ) from error


def choose_measurements(measurements: Iterable[Measurement], metrics: Collection[str]) -> tuple[Measurement, ...]:
    """Return the overall measurements of the named metrics, in the order of the names.

    Raises:
        UsageError: There is none of such a name.
    """
    overall = {found.metric: found for found in measurements if found.slice == "all"}
    for name in metrics:
        if name not in overall:
            near = get_close_matches(name, overall, n=1)
            raise UsageError(
                f"metric {name}",
                "not measured by this model",
                f"it measures {', '.join(sorted(overall))}",
                f"write {near[0]}" if near else "choose one of these",
            )
    return tuple(overall[name] for name in metrics)


def verify_model_folder(folder: Path) -> dict[str, Any]:
    """Check a model folder's files against its manifest, and return the manifest.

    Raises:
        ModelFilesError: No manifest, or a file is missing, added or changed; the message names the first one.
    """
    path = folder / MANIFEST
    manifest = _read_manifest(path)
    expected: dict[str, str] = manifest["files"]
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(found ^ set(expected)):
        seen = "not in the manifest" if name in found else "missing"
        raise ModelFilesError(str(folder / name), seen, "the manifest lists every file", "copy the whole folder again")
    for name, digest in sorted(expected.items()):
        if _sha256(folder / name) != digest:
            raise ModelFilesError(
                str(folder / name), "changed since it was saved", f"{digest} is recorded", "copy the whole folder again"
            )
    if manifest["hash"] != _hash_files(expected):
        raise ModelFilesError(
            str(path), "its hash is not that of its files", f"{manifest['hash']} is recorded", "save the model again"
        )
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        complete = (
            isinstance(manifest["schema"], int)
            and isinstance(manifest["files"], dict)
            and all(isinstance(digest, str) for digest in manifest["files"].values())
            and isinstance(manifest["hash"], str)
            and isinstance(manifest["model"], str)
            and all(isinstance(manifest["format"][key], str) for key in ("name", "version"))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        complete = False
    if not complete:
        raise ModelFilesError(
            str(path), "missing or unreadable", "a saved model has a manifest", "point at the folder that save() wrote"
        )
    if manifest["schema"] != MANIFEST_SCHEMA:
        raise ModelFilesError(
            str(path),
            f"manifest schema {manifest['schema']}",
            f"this version reads schema {MANIFEST_SCHEMA}",
            "load the model with the library version that wrote it",
        )
    return dict(manifest)


def load_model(folder: Path) -> Model:
    """Load a saved model by the class that its manifest names.

    Only classes that are installed as an entry point, or live in this library, are followed: a manifest is data, and
    data does not choose what code is imported.

    Raises:
        ModelFilesError: As for `Model.load`, or the class is not one of those.
    """
    name = str(_read_manifest(Path(folder) / MANIFEST)["model"])
    if name.startswith("mlflywheel.models."):
        return load_model_class(name).load(Path(folder))
    points = entry_points(group=ENTRY_POINT_GROUP)
    for point in points:
        # An entry point may name a package, and the manifest the module inside it that defines the class.
        if point.value.split(".")[0].split(":")[0] == name.split(".")[0].split(":")[0]:
            found = load_model_class(point.name)
            if _name_class(found) == name:
                return found.load(Path(folder))
    raise ModelFilesError(
        str(folder),
        f"saved by {name}",
        f"known models are {', '.join(sorted(point.name for point in points))}",
        f"install the package that registers it in the entry point group {ENTRY_POINT_GROUP}",
    )


def load_model_class(name: str) -> type[Model]:
    """Find a model class by entry point name or as `module:Class`.

    Raises:
        UsageError: No such entry point, module or class, or not a `Model`.

    >>> load_model_class("topic-fingerprints").__name__
    'TopicFingerprints'
    """
    points = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    target = points.get(name, name)
    module_name, _, class_name = target.partition(":")
    try:
        found = attrgetter(class_name)(import_module(module_name))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(
            f"model {name}",
            f"{error}",
            f"an entry point ({', '.join(sorted(points))}) or module:Class is needed",
            "install the package that brings the model, or correct the name",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Model) and found is not Model):
        raise UsageError(
            f"model {name}",
            f"{target} is not a Model",
            "a subclass of mlflywheel.models.contract.Model is needed",
            "derive the class from Model",
        )
    return found


def _name_class(model: type[Model]) -> str:
    return f"{model.__module__}:{model.__qualname__}"


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is not an empty folder or an older save."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise UsageError(
            str(folder),
            "exists and holds other files",
            "a model is saved to a folder of its own",
            "choose another folder",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _hash_files(files: Mapping[str, str]) -> str:
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
