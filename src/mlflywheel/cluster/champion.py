"""The version in use, found in the registry and loaded, and what was measured of all versions before.

Whoever trains a new version wants to know whether it is at least as good as the one that answers now. The registry says
which one that is, and where its files lie; they are checked against the hash that was registered.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflywheel import storage
from mlflywheel.cluster.connection import open_registry
from mlflywheel.cluster.registration import RUN_ID_VARIABLE
from mlflywheel.errors import MissingExtraError, MlflywheelError, ModelFilesError
from mlflywheel.evaluation.judging import Champion, Predecessors
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import load_model, verify_model_folder
from mlflywheel.registry import ModelRegistry, ModelVersion, State, to_readable_uri
from mlflywheel.registry.dossier import read_dossier


@contextmanager
def find_predecessors(
    registry: str, name: str, states: Sequence[str], progress: ProgressCallback = ignore_progress
) -> Iterator[Predecessors | None]:
    """Find the version in use of a model, and the metrics of all its versions.

    Args:
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry; empty asks nobody.
        name: Name that the new version will be registered under; empty asks nobody.
        states: The champion is the newest version in the first of these states that any version has; without states
            there is none.
        progress: Called with the phase `downloading` where its files lie in a store.

    Yields:
        The champion, None where no version is in one of the states, and the history, which is empty for the first
        version; None where nobody was asked. Files that were downloaded are removed at the end of the body. A version
        that the run itself registered, before it was repeated, is no predecessor.

    Raises:
        RegistryError: The registry cannot be read.
        ModelFilesError: The champion's files are gone or changed, or nothing installed can read them.
        MissingExtraError: The package for its store is not installed.
        UsageError: Not a state, or not an address of a registry.
    """
    if not registry or not name:
        yield None
        return
    versions = _list_versions(open_registry(registry), name)
    history = tuple(version.metrics for version in versions)
    chosen = choose_champion(versions, states)
    if chosen is None:
        yield Predecessors(None, history)
        return
    with tempfile.TemporaryDirectory(prefix="mlflywheel-champion-") as scratch:
        yield Predecessors(_load(chosen, Path(scratch) / "model", progress), history)


def choose_champion(versions: Sequence[ModelVersion], states: Sequence[str]) -> ModelVersion | None:
    """Return the newest version in the first state that any version is in; None if none is in any.

    Args:
        versions: Oldest first.
        states: Such as `live`, `approved`.

    Raises:
        UsageError: Not a state.
    """
    for state in (State.parse(text) for text in states):
        found = next((version for version in reversed(versions) if version.state == state), None)
        if found is not None:
            return found
    return None


def _list_versions(registry: ModelRegistry, name: str) -> list[ModelVersion]:
    if all(model.name != name for model in registry.list_models()):
        return []
    own = os.environ.get(RUN_ID_VARIABLE)
    return [version for version in registry.list_versions(name) if not own or version.key != own]


def _load(version: ModelVersion, scratch: Path, progress: ProgressCallback) -> Champion:
    try:
        address = to_readable_uri(version.uri, version.endpoint, version.secret)
        local = storage.local_path(address)
        if local is None:
            storage.download_folder(address, scratch, progress)
        folder = scratch if local is None else local
        found = str(verify_model_folder(folder)["hash"])
        if version.hash and found != version.hash:
            raise ModelFilesError(
                storage.without_credentials(version.uri),
                f"model hash {found}",
                f"{version.hash} is registered",
                "restore the files of that version",
            )
        dossier = read_dossier(version) or {}
        contract = dossier.get("model", {}).get("contract") or None
        return Champion(version.reference, load_model(folder), contract, dossier.get("data"))
    except MissingExtraError:
        raise
    except MlflywheelError as error:
        raise ModelFilesError(
            f"champion {version.reference} ({version.state})",
            f"it cannot be loaded ({error.where}: {error.seen})",
            error.needed,
            f"{error.fix}; or archive {version.reference}, and an older version or none is the champion",
        ) from error
