"""The contract's own part: parameters are checked, and a saved model is what was saved or is refused by name."""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from mlflywheel.errors import ModelFilesError, UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models import contract
from mlflywheel.models.contract import (
    MANIFEST,
    Column,
    Evaluation,
    Measurement,
    Model,
    Section,
    Settings,
    load_model,
    load_model_class,
    verify_model_folder,
)
from mlflywheel.models.topic_fingerprints import TopicFingerprints


class Inner(Settings):
    depth: int = Field(1, ge=1)


class Params(Settings):
    scale: float = Field(1.0, gt=0)
    inner: Inner = Field(default_factory=Inner)


class Number(BaseModel):
    value: float


class Mean(Model):
    """The smallest model there can be: the mean of a column."""

    format_name = "mean"
    format_version = "1.2"
    columns = (Column("value", "number", required=True),)
    Params = Params
    Config = Settings
    Request = Number
    Response = Number

    def __init__(self, mean: float) -> None:
        self.mean = mean

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        return raw

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> "Mean":
        values = table["value"].to_pylist()
        return cls(sum(values) / len(values))

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        return pa.table({"value": [self.mean] * table.num_rows})

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        return Evaluation((Measurement("mean", self.mean),))

    def explain(self, table: pa.Table) -> pa.Table:
        return table

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        return {"value": 1.0}

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        return pa.Table.from_pylist([instance.model_dump() for instance in instances])

    def write(self, folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "mean.json").write_text(json.dumps({"mean": self.mean}))
        (folder / "notes.txt").write_text("ok")

    @classmethod
    def read(cls, folder: Path) -> "Mean":
        return cls(json.loads((folder / "deep" / "mean.json").read_text())["mean"])

    class Twice(Settings):
        """Only here to be found by a dotted name, and no model."""


class OtherFormat(Mean):
    format_name = "median"


class NextMajor(Mean):
    format_version = "2.0"


class NextMinor(Mean):
    format_version = "1.9"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Mean(2.5).save(tmp_path / "model")
    return tmp_path / "model"


class TestSaving:
    def test_a_saved_model_loads_as_it_was(self, saved: Path) -> None:
        assert Mean.load(saved).mean == 2.5
        assert NextMinor.load(saved).mean == 2.5
        assert Mean.load(saved).versions() == {}

    def test_the_hash_names_the_content(self, saved: Path, tmp_path: Path) -> None:
        again = Mean(2.5).save(tmp_path / "again")
        other = Mean(2.6).save(tmp_path / "other")
        assert again == verify_model_folder(saved)["hash"]
        assert again.startswith("sha256:")
        assert other != again

    def test_an_older_save_is_replaced_completely(self, saved: Path) -> None:
        (saved / "left over.txt").write_text("from an older version")
        Mean(3.5).save(saved)
        assert Mean.load(saved).mean == 3.5
        assert [path.name for path in saved.parent.iterdir()] == ["model"]

    def test_an_empty_folder_and_missing_parents_are_fine(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        Mean(1.0).save(tmp_path / "empty")
        Mean(1.0).save(tmp_path / "a" / "b" / "c")
        assert Mean.load(tmp_path / "a" / "b" / "c").mean == 1.0

    def test_relative_folders_are_fine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Mean(1.0).save(Path("model"))
        assert Mean.load(Path("model")).mean == 1.0

    def test_what_is_not_a_model_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_text("meow")
        (tmp_path / "file").write_text("text")
        for name in ("photos", "file"):
            with pytest.raises(UsageError, match=f"{name}: exists and holds other files"):
                Mean(1.0).save(tmp_path / name)
        assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]

    def test_a_failing_write_leaves_the_older_save(self, saved: Path) -> None:
        class Broken(Mean):
            def write(self, folder: Path) -> None:
                super().write(folder)
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            Broken(9.0).save(saved)
        assert Mean.load(saved).mean == 2.5
        assert [path.name for path in saved.parent.iterdir()] == ["model"]


def _edit_manifest(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **values}))


class TestTampering:
    @pytest.mark.parametrize(
        ("damage", "named", "seen"),
        [
            (lambda f: (f / "deep" / "mean.json").write_text('{"mean": 9.5}'), "deep/mean.json", "changed since"),
            (lambda f: (f / "notes.txt").unlink(), "notes.txt", "missing"),
            (lambda f: (f / "deep" / "extra.py").write_text("1"), "deep/extra.py", "not in the manifest"),
            (lambda f: (f / MANIFEST).unlink(), MANIFEST, "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text("{"), MANIFEST, "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_text("[]"), MANIFEST, "missing or unreadable"),
            (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), MANIFEST, "missing or unreadable"),
            (lambda f: _edit_manifest(f, files=["notes.txt"]), MANIFEST, "missing or unreadable"),
            (lambda f: _edit_manifest(f, format="mean"), MANIFEST, "missing or unreadable"),
            (lambda f: _edit_manifest(f, model=None), MANIFEST, "missing or unreadable"),
            (lambda f: _edit_manifest(f, hash="sha256:0"), MANIFEST, "its hash is not that of its files"),
            (lambda f: _edit_manifest(f, schema=2), MANIFEST, "manifest schema 2"),
            (lambda f: _edit_manifest(f, files={"../../etc/passwd": "sha256:0"}), "passwd", "missing"),
        ],
        ids=[
            "a changed file",
            "a missing file",
            "an added file",
            "no manifest",
            "a cut manifest",
            "a list as manifest",
            "a binary manifest",
            "a list of files",
            "no format version",
            "no model",
            "another hash",
            "another schema",
            "a file elsewhere",
        ],
    )
    def test_every_difference_is_refused_and_named(
        self, saved: Path, damage: Callable[[Path], Any], named: str, seen: str
    ) -> None:
        damage(saved)
        for load in (Mean.load, verify_model_folder):
            with pytest.raises(ModelFilesError) as caught:
                load(saved)
            assert named in caught.value.where
            assert seen in caught.value.seen

    def test_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFilesError, match="missing or unreadable"):
            Mean.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("other", [OtherFormat, NextMajor])
    def test_another_format_is_refused(self, saved: Path, other: type[Model]) -> None:
        with pytest.raises(ModelFilesError, match=r"format mean 1\.2"):
            other.load(saved)

    def test_files_that_a_version_cannot_read_are_refused(self, tmp_path: Path) -> None:
        class Older(Mean):
            def write(self, folder: Path) -> None:
                (folder / "mean.json").write_text("2")

        Older(1.0).save(tmp_path / "model")
        with pytest.raises(ModelFilesError, match="FileNotFoundError"):
            Mean.load(tmp_path / "model")


class TestFinding:
    def test_a_class_is_found_by_entry_point_and_by_name(self) -> None:
        assert load_model_class("topic-fingerprints") is TopicFingerprints
        assert load_model_class("mlflywheel.models.topic_fingerprints.model:TopicFingerprints") is TopicFingerprints

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "nothing",
            "no.such.module:Model",
            "mlflywheel.models.contract:Missing",
            "mlflywheel.models.contract",
            ".relative:Model",
            f"{__name__}:Mean.Twice",
            "pathlib:Path",
            "mlflywheel.models.contract:load_model",
        ],
    )
    def test_what_is_not_a_model_class_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"^model "):
            load_model_class(name)

    def test_an_unregistered_class_is_not_imported_from_a_manifest(self, saved: Path) -> None:
        with pytest.raises(ModelFilesError, match=r"saved by .*Mean.*topic-fingerprints"):
            load_model(saved)

    def test_a_registered_package_may_define_its_class_in_a_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "third_party"
        package.mkdir()
        (package / "__init__.py").write_text("from third_party.inside import Third\n")
        (package / "inside.py").write_text(f"from {__name__} import Mean\n\nclass Third(Mean):\n    pass\n")
        monkeypatch.syspath_prepend(tmp_path)
        point = importlib.metadata.EntryPoint("third", "third_party:Third", contract.ENTRY_POINT_GROUP)
        monkeypatch.setattr(contract, "entry_points", lambda group: importlib.metadata.EntryPoints([point]))
        load_model_class("third")(4.0).save(tmp_path / "model")
        assert verify_model_folder(tmp_path / "model")["model"] == "third_party.inside:Third"
        assert load_model(tmp_path / "model").predict(pa.table({"value": [1]}))["value"].to_pylist() == [4.0]


class TestSettings:
    @pytest.mark.parametrize("values", [None, "", "  ", "{}", {}])
    def test_nothing_means_the_defaults(self, values: Any) -> None:
        assert Params.parse(values, "--params") == Params()

    def test_values_come_as_mapping_or_json(self) -> None:
        assert Params.parse('{"scale": 2, "inner": {"depth": 3}}', "--params").inner.depth == 3
        assert Params.parse({"scale": 2}, "--params").scale == 2.0

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ("[]", "--params: a list; a JSON object is needed"),
            ([], "--params: a list"),
            ("null", "--params: null"),
            ("0", "--params: a int"),
            ("{'scale': 1}", r"--params: not JSON .* at character 1"),
            ({"scale": -1}, "--params, scale: -1: .*known names are inner, scale"),
            ({"speed": 1}, "--params, speed: 1: .*known names are inner, scale"),
            ({"inner": {"width": 1}}, r"--params, inner\.width: 1: .*known names are depth"),
            ({"scale": "x" * 1000}, r"x{50,100}\.\.\.: "),
        ],
    )
    def test_a_mistake_is_named_with_the_names_that_exist(self, values: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Params.parse(values, "--params")

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Params().scale = 2.0


def test_an_evaluation_survives_json() -> None:
    evaluation = Evaluation(
        (
            Measurement("purity", 0.5, count=3, low=0.25, high=0.75),
            Measurement("purity", None, "locale=de-DE", note="no rows"),
        ),
        (Section("bars", "Title", "Text", {"bars": [{"label": "a", "value": 1.0}]}),),
    )
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))) == evaluation
    assert evaluation.metrics() == {"purity": 0.5}


def test_a_model_that_looks_nothing_up_extends_to_itself() -> None:
    model = Mean(1.0)
    assert model.extend(pa.table({"value": [1.0]})) is model
    assert model.describe() == {}
