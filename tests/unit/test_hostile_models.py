"""A model folder that somebody hostile wrote, with fitting checksums, is refused, and runs and reads nothing.

Checksums only say that a folder is whole, so every attack here renews them. Some arrays are indices of compiled code
that does not check them: where a check is missing, these tests end with the process and not with a failure.
"""

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_drivers import QUICK
from planted_listings import plant_listings
from small_model import FittedCampaigns

from mlflywheel.errors import ModelFilesError, UsageError
from mlflywheel.models.arrays import read_array
from mlflywheel.models.contract import MANIFEST, _hash_files, _sha256, load_model
from mlflywheel.models.tabular_classifier import TabularClassifier
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.samples.credit_decisions import generate_credit_decisions
from mlflywheel.serving.triton import write_repository

FORMATS = ("rotated-lsa", "lda", "vehicle-price", "logistic", "boosted-trees")


class Executed:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, fitted_campaigns: FittedCampaigns) -> Path:
    """One folder a format."""
    root = tmp_path_factory.mktemp("models")
    fitted_campaigns.model.save(root / "rotated-lsa")
    lda = FitParams.parse({"num_topics": 3, "algorithm": "lda", "lda": {"passes": 1}}, "test")
    TopicFingerprints.fit(fitted_campaigns.train, lda).save(root / "lda")
    listings = VehiclePrice.prepare(plant_listings(300), VehiclePrice.Config())
    VehiclePrice.fit(listings, VehiclePrice.Params.parse(QUICK, "test")).save(root / "vehicle-price")
    rows = TabularClassifier.prepare(generate_credit_decisions(200), TabularClassifier.Config())
    for name, params in (("logistic", {}), ("boosted-trees", {"algorithm": "boosted_trees", "max_iter": 5})):
        TabularClassifier.fit(rows, TabularClassifier.Params.parse(params, "test")).save(root / name)
    return root


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one that may be changed."""
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


def renew(folder: Path, **changes: Any) -> None:
    """Make the manifest fit the files, as somebody does who knows the format."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != path)
    manifest["files"] = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    manifest["hash"] = _hash_files(manifest["files"])
    path.write_text(json.dumps({**manifest, **changes}))


def refuse(folder: Path) -> str:
    with pytest.raises(ModelFilesError) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def npy(array: Any, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def npy_header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * ((64 - (len(text) + 11) % 64) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npy_attacks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What no reader may take for the array that these bytes are."""
    array = np.load(io.BytesIO(data))
    kind, values = repr(array.dtype.str), data[128:]
    yield "an array of 128 TiB", npy_header(kind, f"({2**45},)") + values
    yield "an array of 2 GiB", npy_header(kind, f"({2**29},)") + values
    yield "elements of no bytes", npy_header("'|V0'", f"({2**40},)") + values
    yield "a header of brackets", npy_header("[" * 3000, "(1,)") + values
    yield "a zip archive", b"PK\x03\x04" + values
    yield "an axis more", npy(array.reshape((*array.shape, 1)))
    yield "objects", npy(array.astype(object), pickled=True)
    yield "another type", npy(array.astype(np.complex128))
    yield "other byte order", npy(array.astype(">i8"))


@pytest.mark.parametrize("name", FORMATS)
def test_an_array_that_lies_is_refused_in_every_format(folder: Callable[[str], Path], name: str) -> None:
    model = folder(name)
    files = sorted(model.rglob("*.npy"))
    assert files or name == "logistic"
    for number, file in enumerate(files):
        data = file.read_bytes()
        attacks = list(npy_attacks(data))
        # One of them tells whether the file is read by `read_array`, which the next test asks for all of them.
        file.write_bytes(attacks[number % len(attacks)][1])
        renew(model)
        assert file.name in refuse(model)
        file.write_bytes(data)
    renew(model)
    load_model(model)


def test_an_array_is_what_is_asked_for_or_refused(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "array.npy"
    path.write_bytes(npy(array))
    assert np.array_equal(read_array(path, np.float32, (3, None)), array)
    for what, attack in npy_attacks(npy(array)):
        path.write_bytes(attack)
        with pytest.raises(ValueError, match=r"array\.npy"):
            pytest.fail(f"{what}: {read_array(path, np.float32, (3, None))}")


@pytest.mark.parametrize("name", FORMATS)
def test_a_pickle_in_an_array_is_not_executed(folder: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    model, trap = folder(name), tmp_path / "executed"
    payloads = [pickle.dumps(Executed(trap)), npy(np.array([Executed(trap)], dtype=object), pickled=True)]
    for file in sorted(path for path in model.rglob("*") if path.is_file() and path.name != MANIFEST):
        data = file.read_bytes()
        for payload in payloads[file.suffix == ".npy" :][:1]:
            file.write_bytes(payload)
            renew(model)
            # The graph is for other runtimes, and the sizes are for people: neither is read.
            load_model(model) if file.name in ("model.onnx", "rotated_lsa.json") else refuse(model)
        file.write_bytes(data)
    assert not trap.exists()
    pickle.loads(payloads[0])
    assert trap.is_dir(), "the trap works"


@pytest.mark.parametrize("name", FORMATS)
def test_json_that_is_no_description_is_refused(folder: Callable[[str], Path], name: str) -> None:
    model = folder(name)
    files = sorted(path for path in model.rglob("*.json") if path.name not in (MANIFEST, "rotated_lsa.json"))
    assert files
    for file in files:
        data = file.read_bytes()
        for attack in (b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' + b"9" * 6000 + b"}", b"[]", b"null", b"\xff", b""):
            file.write_bytes(attack)
            renew(model)
            refuse(model)
        file.write_bytes(data)


# Each of these crashed the process, wrote where it should not, or asked for gigabytes.
INSIDE = [
    ("vehicle-price", "encoding.json", ("owners",), []),
    ("vehicle-price", "encoding.json", ("owners", 0), 10**9),
    ("vehicle-price", "encoding.json", ("owners", 0), -1),
    ("vehicle-price", "encoding.json", ("schema", "categories"), []),
    ("vehicle-price", "encoding.json", ("schema", "levels"), []),
    ("vehicle-price", "encoding.json", ("schema", "levels", 0, 0), ["x"]),
    ("vehicle-price", "encoding.json", ("schema", "categories", 0), "../../../etc/passwd"),
    ("vehicle-price", "encoding.json", ("schema", "categories", 0), "/etc/passwd"),
    ("vehicle-price", "intervals.json", ("below",), []),
    ("vehicle-price", "intervals.json", ("close_shares",), None),
    ("vehicle-price", "intervals.json", ("widths", 0), float("nan")),
    ("boosted-trees", "model.json", ("encoding", "ranges"), []),
    ("boosted-trees", "model.json", ("encoding", "categories", 0, "levels", 0), {}),
    ("logistic", "model.json", ("training", "positive"), -1),
    ("logistic", "logistic.json", ("slopes", 0), float("inf")),
    ("logistic", "references.json", ("strongest", 0), float("inf")),
    ("rotated-lsa", "model.json", ("topics",), []),
    ("rotated-lsa", "model.json", ("topics", 0, "id"), 10**30),
    ("lda", "topics/lda.json", ("num_terms",), 10**9),
]


@pytest.mark.parametrize(("name", "file", "place", "value"), INSIDE, ids=lambda value: str(value)[:40])
def test_a_description_that_does_not_fit_its_arrays_is_refused(
    folder: Callable[[str], Path], name: str, file: str, place: tuple[Any, ...], value: Any
) -> None:
    model = folder(name)
    content = json.loads((model / file).read_text())
    inner = content
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (model / file).write_text(json.dumps(content))
    renew(model)
    refuse(model)


def test_a_number_of_columns_is_a_flag_and_not_a_size(folder: Callable[[str], Path]) -> None:
    model = folder("logistic")
    content = json.loads((model / "model.json").read_text())
    next(one for one in content["encoding"]["categories"] if one["has_missing"])["has_missing"] = 10**9
    (model / "model.json").write_text(json.dumps(content))
    renew(model)
    # It counts as false, and with fewer columns the effects do not fit. A size of 10**9 would be a MemoryError.
    assert "does not fit the encoding" in refuse(model)


@pytest.mark.parametrize("name", ["vehicle-price", "boosted-trees"])
@pytest.mark.parametrize("value", [-1, 2**31 - 1, -(2**31)])
def test_an_index_that_leads_out_of_the_trees_is_refused(folder: Callable[[str], Path], name: str, value: int) -> None:
    model = folder(name)
    trees = "prices" if name == "vehicle-price" else "trees"
    for array in ("left", "right", "feature", "roots"):
        file = model / trees / f"{array}.npy"
        data = file.read_bytes()
        values = np.load(file)
        values[-1] = value
        file.write_bytes(npy(values))
        renew(model)
        assert "leads" in refuse(model)
        file.write_bytes(data)


def test_trees_that_go_in_circles_are_refused(folder: Callable[[str], Path]) -> None:
    model = folder("boosted-trees")
    file = model / "trees" / "left.npy"
    values = np.load(file)
    values[1:] = np.maximum(values[1:] - 1, 0)
    file.write_bytes(npy(values))
    renew(model)
    refuse(model)


@pytest.mark.parametrize("name", ["rotated-lsa", "lda"])
def test_tables_that_do_not_fit_the_topics_are_refused(folder: Callable[[str], Path], name: str) -> None:
    model = folder(name)
    for file, column in (("vocabulary.parquet", "feature"), ("catalogue.parquet", "campaign_id")):
        data = (model / file).read_bytes()
        table = pq.read_table(io.BytesIO(data))
        place = table.column_names.index(column)
        attacks = [
            table.slice(0, table.num_rows // 2),
            pa.concat_tables([table, table]),
            table.drop_columns([column]),
            table.set_column(place, column, pa.nulls(table.num_rows, pa.string())),
            table.set_column(place, column, pa.array([b"\xff\xfe"] * table.num_rows)),
            table.set_column(place, column, pa.array(range(table.num_rows))),
        ]
        for number, attack in enumerate(attacks):
            pq.write_table(attack, model / file, store_schema=False)
            renew(model)
            with pytest.raises(ModelFilesError):
                pytest.fail(f"{file}, attack {number}: {load_model(model)}")
        for damaged in (b"", b"PAR1" * 20, data[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"):
            (model / file).write_bytes(damaged)
            renew(model)
            refuse(model)
        (model / file).write_bytes(data)


def test_a_manifest_cannot_lead_out_of_its_folder(folder: Callable[[str], Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret.npy"
    secret.write_bytes(npy(np.zeros(1)))
    model = folder("logistic")
    manifest = json.loads((model / MANIFEST).read_text())
    for name in ("../secret.npy", str(secret), "./model.json", "MODEL.JSON", "model.json/", "a//b", ""):
        files = {**manifest["files"], name: _sha256(secret)}
        (model / MANIFEST).write_text(json.dumps({**manifest, "files": files, "hash": _hash_files(files)}))
        assert "missing" in refuse(model)
    renamed = dict(manifest["files"])
    renamed["Model.json"] = renamed.pop("model.json")
    (model / MANIFEST).write_text(json.dumps({**manifest, "files": renamed, "hash": _hash_files(renamed)}))
    refuse(model)


def test_of_two_entries_of_one_name_the_files_decide(folder: Callable[[str], Path]) -> None:
    model = folder("logistic")
    text = (model / MANIFEST).read_text()
    digest = json.loads(text)["files"]["model.json"]
    doubled = text.replace(f'"model.json": "{digest}"', f'"model.json": "{digest}", "model.json": "sha256:0"')
    assert doubled != text
    (model / MANIFEST).write_text(doubled)
    assert "changed" in refuse(model)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"schema": 1e999}', b"null", b'{"schema": true}', b"\x00"])
def test_a_manifest_that_is_none_is_refused(folder: Callable[[str], Path], content: bytes) -> None:
    model = folder("logistic")
    (model / MANIFEST).write_bytes(content)
    assert "missing or unreadable" in refuse(model)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "mlflywheel.models.contract:import_module",
        "mlflywheel.models.contract:json.decoder",
        "mlflywheel.models.../os:system",
        "mlflywheel.models.no_such:Model",
        "mlflywheel.models.contract:Model",
        "mlflywheel.models.contract",
        "mlflywheel.models.",
        ":",
        "",
    ],
)
def test_a_manifest_chooses_among_model_classes_only(folder: Callable[[str], Path], name: str) -> None:
    model = folder("logistic")
    renew(model, model=name)
    with pytest.raises((ModelFilesError, UsageError)):
        load_model(model)


def test_a_module_in_the_current_folder_is_not_imported(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_by_somebody.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = folder("logistic")
    renew(model, model="planted_by_somebody:Model")
    refuse(model)
    assert not (tmp_path / "executed").exists()


def test_a_link_to_a_folder_or_a_device_is_no_file_of_a_model(folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = folder("boosted-trees")
    (tmp_path / "elsewhere").mkdir()
    (model / "trees").rename(tmp_path / "elsewhere" / "trees")
    (model / "trees").symlink_to(tmp_path / "elsewhere" / "trees")
    assert "missing" in refuse(model)
    (model / "trees").unlink()
    (tmp_path / "elsewhere" / "trees").rename(model / "trees")
    (model / "model.onnx").unlink()
    (model / "model.onnx").symlink_to("/dev/zero")
    assert "model.onnx: missing" in refuse(model)


def test_a_graph_that_names_other_files_is_not_written_for_triton(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x00" * 16)
    model = folder("logistic")
    whole = (model / "model.onnx").read_bytes()
    for location in ("../secret.bin", str(secret)):
        (model / "model.onnx").write_bytes(whole)
        graph = onnx.load(str(model / "model.onnx"), load_external_data=False)
        tensor = onnx.helper.make_tensor("stolen", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        graph.graph.initializer.append(tensor)
        (model / "model.onnx").write_bytes(graph.SerializeToString())
        renew(model)
        with pytest.raises(ModelFilesError, match="lies in another file"):
            write_repository(model, tmp_path / "repository", "stolen")
        assert not list((tmp_path / "repository").rglob("*.onnx"))


def test_a_large_array_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    path.write_bytes(npy_header("'<f8'", f"({2**40},)"))
    with pytest.raises(ValueError, match="0 bytes of data"):
        read_array(path, np.float64, (None,))
