"""The evidence folder: which of its files are evidence, and of what. Nothing in it is trusted or executed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mlflywheel.errors import DataError, UsageError
from mlflywheel.testscore.junit import Case, read_junit
from mlflywheel.testscore.notebook import FILE_NAME, Notebook, read_notebook

DocumentKind = Literal["rollout", "rehearsal", "rebuild", "validation", "check"]

# A rollout's record has 1 MiB at the most; a report of 100,000 test cases has about 20 MB.
_MOST_BYTES = 64 * 2**20
_MOST_YAML_BYTES = 2**20
_MOST_FILES = 5_000
_NAMED = 5


@dataclass(frozen=True)
class Document:
    """A JSON file of a known kind.

    Args:
        path: The file, as it is named in the score.
        kind: What it is.
        values: What stands in it.
    """

    path: str
    kind: DocumentKind
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Files:
    """What the evidence folders hold.

    Args:
        cases: Test cases, each with its file.
        documents: JSON files of known kinds.
        notebooks: What people wrote down, each with the folder that its links start from.
        notes: What was left out, as sentences without a full stop.
    """

    cases: tuple[tuple[str, Case], ...] = ()
    documents: tuple[Document, ...] = ()
    notebooks: tuple[tuple[Path, Notebook], ...] = ()
    notes: tuple[str, ...] = ()


def read_folders(paths: Sequence[Path], now: datetime) -> Files:
    """Read every file of the evidence folders that is evidence of a known kind.

    Args:
        paths: Folders, read with all folders in them, and single files. Links are not followed.
        now: Today, for what people wrote down.

    Raises:
        UsageError: A path does not exist, or a `testscore.yaml` is wrong.
        DataError: A file cannot be read, is too large, or is broken XML or JSON; the message names it.
    """
    cases: list[tuple[str, Case]] = []
    documents: list[Document] = []
    notebooks: list[tuple[Path, Notebook]] = []
    unknown: list[str] = []
    for path in _list_files(paths):
        if path.name == FILE_NAME:
            notebooks.append(
                (path.parent, read_notebook(_read_text(path, _MOST_YAML_BYTES), path.as_posix(), now.date()))
            )
        elif path.suffix == ".xml":
            found = read_junit(_read_text(path), path.as_posix())
            if found is None:
                unknown.append(path.name)
            cases += ((path.as_posix(), case) for case in found or ())
        elif path.suffix == ".json":
            document = _read_document(path)
            if document is None:
                unknown.append(path.name)
            else:
                documents.append(document)
    notes: tuple[str, ...] = ()
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        notes = (f"of no kind that the rubric knows, and left out: {', '.join(sorted(unknown)[:_NAMED])}{more}",)
    return Files(tuple(cases), tuple(documents), tuple(notebooks), notes)


def _list_files(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for given in paths:
        if not given.exists():
            raise UsageError(
                f"--evidence {given}", "no such file or folder", "a folder of evidence is needed", "correct the path"
            )
        found = sorted(given.rglob("*")) if given.is_dir() else [given]
        for path in found:
            # A link could lead out of the folder, and its target would be quoted in an error.
            if path.is_symlink() or not path.is_file() or path.resolve() in seen:
                continue
            seen.add(path.resolve())
            if len(seen) > _MOST_FILES:
                raise UsageError(
                    f"--evidence {given}", f"more than {_MOST_FILES:,} files", "evidence is less", "name its folder"
                )
            yield path


def _read_text(path: Path, most_bytes: int = _MOST_BYTES) -> str:
    try:
        if path.stat().st_size > most_bytes:
            seen = f"{path.stat().st_size / 2**20:,.0f} MiB"
        else:
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        seen = getattr(error, "strerror", None) or "not UTF-8"
    raise DataError(
        path.as_posix(), seen, f"readable UTF-8 text of at most {most_bytes // 2**20} MiB is needed", "remove the file"
    )


def _read_document(path: Path) -> Document | None:
    text = _read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            path.as_posix(), f"not JSON ({error})", "a JSON document is needed", "write it again, or remove it"
        ) from None
    if not isinstance(values, dict):
        return None
    kind, values = _name_kind(path, values)
    return None if kind is None else Document(path.as_posix(), kind, values)


def _name_kind(path: Path, values: Mapping[str, Any]) -> tuple[DocumentKind | None, Mapping[str, Any]]:
    """Say what a document is by its fields, as each command writes them."""
    inner = values.get("record")
    # deploy-model wraps the record that `mlflywheel rollout status --json` prints.
    if isinstance(inner, Mapping) and {"candidate", "phase"} <= inner.keys():
        return "rollout", inner
    if {"candidate", "phase", "policy", "history"} <= values.keys():
        return "rollout", values
    if {"candidate", "stable", "verdict", "requests"} <= values.keys():
        return "rehearsal", values
    if values.get("kind") in ("check", "rebuild"):
        return values["kind"], values
    # That of the training data stands in the dossier; only the name tells one of served requests.
    if {"rules", "checker", "status"} <= values.keys() and path.name.startswith("serving-"):
        return "validation", values
    return None, values
