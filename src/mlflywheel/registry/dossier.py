"""The dossier of a registered version: one JSON document with everything that is known of it when it is registered.

The registry holds its address and its hash, in the lineage under `dossier` and `dossier_hash`; the document lies beside
the run's other artifacts. It is written once, by the registration, and holds no clock time and no name of a pod: a
retry writes the same bytes. The registration's own time stands in the registry.

    schema        1
    run           id              the pipeline run
                  pipeline        name of the compiled pipeline; "" if the wiring does not say
                  pipeline_spec   hash of the compiled YAML (`mlflywheel.reproducibility.specification`); "" if unknown
                  trigger         manual, scheduled or ci
    model         name            registered name
                  class           module:Class
                  format          {name, version}
                  hash            over the files of the version
                  facts           flat facts of `Model.describe`
                  contract        {version, request, response, example, columns}: JSON schemas of a request and an
                                  answer, an example request, and the Arrow types of what `predict` returns by column
    data          uri             without credentials
                  version         hash of the table's content
                  columns         {our name: the table's name}
                  prepare         settings of the preparation
                  rows            {table: number of rows}, as they were validated: rows, prepared
                  split           {method, column, seed, holdout_fraction}
                  validation      {status, expectations, passed, failed: [{name, severity}], skipped: [name],
                                   suite_hash, suite, checker}; None if nothing was validated
    training      params          as they were given, what a search found among them
                  settings        all of them, with defaults
                  search          {experiment, executor, objective, trials, baseline, best, improved, ...} as
                                  `mlflywheel.tuning.model_search.Tuned.facts`; None without a search
    evaluation    plan            what was measured beside the model's own metrics; None if nothing was
                  champion        NAME@VERSION that it was compared with, or None
                  measurements    [{metric, value, slice, count, low, high, note, ...}]
                  gates           [{metric, slice, value, limit, relation, holds, reason, ...}]; holds None is skipped
    reproducibility               as `mlflywheel.reproducibility.environment`: code, packages, packages_hash, lock_hash,
                                  lock, python, implementation, platform, threads, hardware, image, cluster, unknown;
                  seeds           {name: value} of the split and of every parameter that is a seed

A reader takes what it knows and ignores other keys. A new key comes without another `schema`; a key whose meaning
changes does not.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mlflywheel.errors import DataError, MlflywheelError, RegistryError
from mlflywheel.registry.locations import to_readable_uri

if TYPE_CHECKING:
    from mlflywheel.registry.records import ModelVersion

SCHEMA = 1
ADDRESS_KEY = "dossier"
CARD_KEY = "card"
HASH_KEY = "dossier_hash"


class Dossier(TypedDict):
    """The document's parts; what is in them stands in the module's documentation."""

    schema: int
    run: Mapping[str, Any]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    reproducibility: Mapping[str, Any]


_PARTS = ("run", "model", "data", "training", "evaluation", "reproducibility")


def read_dossier(version: "ModelVersion") -> Mapping[str, Any] | None:
    """Read the dossier of a registered version, its hash verified.

    Args:
        version: From a registry.

    Returns:
        The document, with the keys of `Dossier`; None for a version that was registered without one, as by another
        tool or before there were dossiers.

    Raises:
        DataError: It is gone, or the store cannot be asked.
        RegistryError: It is not what was registered, or of a newer schema.
    """
    uri = version.lineage.get(ADDRESS_KEY)
    if not uri:
        return None
    where = f"dossier of {version.reference}, {uri}"
    text = _read_bytes(to_readable_uri(uri, version.endpoint, version.secret), where)
    found, expected = hash_dossier(text), version.lineage.get(HASH_KEY, "")
    if found != expected:
        raise RegistryError(
            where,
            f"its hash is {found}",
            f"{expected or 'none'} is registered",
            "restore the file that the registration wrote",
        )
    return check_dossier(text, where)


def read_dossier_file(path: Path) -> Dossier:
    """Read a dossier from a file; nothing says what its hash should be.

    Raises:
        DataError: It cannot be read.
        RegistryError: Not a dossier, or of a newer schema.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            str(path), f"{error.strerror or error}", "a dossier is needed", "name the file that the registration wrote"
        ) from None
    return check_dossier(text, str(path))


def check_dossier(text: bytes, where: str) -> Dossier:
    """Return the document that bytes hold, after a look at its schema and its parts.

    Raises:
        RegistryError: Not a dossier, or of a newer schema.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int):
        raise RegistryError(where, "not a dossier", "a JSON object with a schema is needed", "run the pipeline again")
    if document["schema"] != SCHEMA:
        raise RegistryError(
            where,
            f"schema {document['schema']}",
            f"this version of the library reads schema {SCHEMA}",
            "read it with the library version that wrote it",
        )
    missing = [name for name in _PARTS if not isinstance(document.get(name), dict)]
    if missing:
        raise RegistryError(
            where, f"no {' and no '.join(missing)}", "a dossier has all its parts", "run the pipeline again"
        )
    return Dossier(
        schema=document["schema"],
        run=document["run"],
        model=document["model"],
        data=document["data"],
        training=document["training"],
        evaluation=document["evaluation"],
        reproducibility=document["reproducibility"],
    )


def write_dossier(dossier: Dossier, path: Path) -> str:
    """Write a dossier as canonical JSON, the same bytes for the same content.

    Args:
        dossier: The document. NaN and infinity, which JSON lacks, become null.
        path: Target; its folder is made.

    Returns:
        Its hash.
    """
    text = dump_dossier(dossier)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return hash_dossier(text)


def dump_dossier(dossier: Mapping[str, Any] | Dossier) -> bytes:
    """Return the bytes of a dossier: sorted keys, no spaces, UTF-8, a newline at the end."""
    text = json.dumps(_plain(dossier), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def hash_dossier(text: bytes) -> str:
    """Return `sha256:` and the digest of a dossier's bytes."""
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _read_bytes(uri: str, where: str) -> bytes:
    from mlflywheel import storage

    try:
        with storage.open_binary(uri) as file:
            return file.read()
    except MlflywheelError as error:
        raise DataError(
            where,
            error.seen,
            f"the registration wrote it there, and {error.needed}",
            f"{error.fix}; or restore the file, or run the pipeline again",
        ) from error
