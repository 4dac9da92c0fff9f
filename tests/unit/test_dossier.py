"""The dossier of a version: read back as it was written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlflywheel.errors import DataError, RegistryError
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.registry.dossier import (
    Dossier,
    dump_dossier,
    hash_dossier,
    read_dossier,
    read_dossier_file,
    write_dossier,
)

DOSSIER = Dossier(
    schema=1,
    run={"id": "run-1", "trigger": "manual"},
    model={"name": "ad-campaigns", "facts": {"terms": 812}},
    data={"uri": "data/Größe.csv"},
    training={"params": {"seed": 3}, "search": None},
    evaluation={"measurements": [{"metric": "purity", "value": 0.1 + 0.2}]},
    reproducibility={"packages": {"numpy": "2.4.6"}},
)


def register(folder: Path, lineage: dict[str, str]) -> ModelVersion:
    registry = EmbeddedRegistry(folder / "registry.sqlite")
    return registry.ensure_version(
        "ad-campaigns", "/srv/model", key="1", format_name="x", format_version="1", hash="sha256:0", lineage=lineage
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "with space" / "dossier.json"


@pytest.fixture
def version(path: Path, tmp_path: Path) -> ModelVersion:
    digest = write_dossier(DOSSIER, path)
    return register(tmp_path, {"dossier": f"file://{path}", "dossier_hash": digest})


def test_version_gives_back_what_was_written(version: ModelVersion) -> None:
    assert read_dossier(version) == DOSSIER


def test_plain_path_is_an_address_too(path: Path, tmp_path: Path) -> None:
    digest = write_dossier(DOSSIER, path)
    assert read_dossier(register(tmp_path, {"dossier": str(path), "dossier_hash": digest})) == DOSSIER


def test_version_of_another_tool_has_none(tmp_path: Path) -> None:
    assert read_dossier(register(tmp_path, {})) is None


def test_deleted_file_is_named_with_its_version(version: ModelVersion, path: Path) -> None:
    path.unlink()
    with pytest.raises(DataError) as raised:
        read_dossier(version)
    assert raised.value.where == f"dossier of ad-campaigns@1, file://{path}"


def test_changed_byte_is_refused_with_both_hashes(version: ModelVersion, path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"812", b"813"))
    with pytest.raises(RegistryError) as raised:
        read_dossier(version)
    assert hash_dossier(path.read_bytes()) in raised.value.seen
    assert version.lineage["dossier_hash"] in raised.value.needed


def test_address_without_a_hash_is_not_trusted(path: Path, tmp_path: Path) -> None:
    write_dossier(DOSSIER, path)
    with pytest.raises(RegistryError, match="none is registered"):
        read_dossier(register(tmp_path, {"dossier": str(path)}))


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ({**DOSSIER, "schema": 2}, "schema 2"),
        ({**DOSSIER, "schema": "1"}, "not a dossier"),
        ([1], "not a dossier"),
        ({**DOSSIER, "run": None, "data": []}, "no run and no data"),
    ],
)
def test_other_document_is_refused(content: Any, seen: str, tmp_path: Path) -> None:
    path = tmp_path / "dossier.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    digest = hash_dossier(path.read_bytes())
    with pytest.raises(RegistryError) as raised:
        read_dossier(register(tmp_path, {"dossier": str(path), "dossier_hash": digest}))
    assert raised.value.seen == seen


def test_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dossier.json").write_bytes(b"\xff{")
    with pytest.raises(RegistryError, match="not a dossier"):
        read_dossier_file(tmp_path / "dossier.json")


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_dossier_file(tmp_path / "none.json")


def test_bytes_do_not_depend_on_the_order_of_keys() -> None:
    turned = dict(reversed(list(DOSSIER.items())))
    assert list(turned) != list(DOSSIER)
    assert dump_dossier(turned) == dump_dossier(DOSSIER)


def test_numbers_survive_exactly_and_nan_becomes_null() -> None:
    values = json.loads(dump_dossier({"a": 0.1 + 0.2, "b": float("nan"), "c": [float("inf"), (1, 2)]}))
    assert values == {"a": 0.1 + 0.2, "b": None, "c": [None, [1, 2]]}


def test_key_of_a_newer_library_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "dossier.json"
    path.write_text(json.dumps({**DOSSIER, "new": 1}), encoding="utf-8")
    assert read_dossier_file(path) == DOSSIER
