"""What is sent to a cluster for a run: compiled YAML with its images pinned, and parameters that make sense there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflywheel.errors import UsageError
from mlflywheel.images import COMPONENTS
from mlflywheel.reproducibility import find_trigger
from mlflywheel.reproducibility.pinning import pin_images, pin_text, read_reference
from mlflywheel.reproducibility.specification import read_specification
from mlflywheel.runs.runner import check_arguments


@dataclass(frozen=True)
class Submission:
    """What is sent.

    Args:
        text_yaml: The compiled pipeline.
        where: Its file, as messages name it.
        arguments: Values of its parameters, as JSON values of their types; the others keep their compiled defaults.
    """

    text_yaml: str
    where: str
    arguments: Mapping[str, Any]


def prepare_yaml(compiled: Path, image: str | None, told: Callable[[str], None]) -> str:
    """Read a compiled pipeline, and pin its images.

    Args:
        compiled: The file.
        image: What its steps shall run in; its own images if None.
        told: Called with a warning where a tag may move.

    Raises:
        UsageError: Not a compiled pipeline, not an image, or no step runs in such an image.
    """
    text = _read_text(compiled)
    if image is None:
        if f"image: {COMPONENTS}\n" in text:
            told(f"warning: the steps run in {COMPONENTS}, a tag that may move; pin it with --image REPO@sha256:...")
        return text
    reference = read_reference(image)
    if not reference.digest:
        told(
            f"warning: {reference} has no digest. Whoever pushes that tag again changes what the pipeline does, and"
            " Kubeflow's cache, which goes by the name, goes on with results of the older image"
        )
    return pin_images(text, reference, str(compiled))


def prepare_submission(
    compiled: Path,
    values: Mapping[str, Any],
    image: str | None,
    told: Callable[[str], None],
    *,
    is_scheduled: bool = False,
) -> Submission:
    """Check what a run on a cluster is started with, before anything is sent.

    Args:
        compiled: The compiled pipeline.
        values: Values of parameters; text is read as the parameter's type.
        image: What its steps shall run in; its own images if None.
        told: Called with warnings.
        is_scheduled: Whether the runs start by themselves, which their lineage records.

    Raises:
        UsageError: A parameter is unknown, missing or of a wrong type, or means something on this machine alone.
    """
    given = dict(values)
    declared = (
        read_specification(_read_text(compiled), str(compiled))[0]["root"]
        .get("inputDefinitions", {})
        .get("parameters", {})
    )
    if "trigger" in declared:
        given["trigger"] = "scheduled" if is_scheduled else find_trigger(str(given.get("trigger") or ""))
    if "data" in declared and "data" not in given and "defaultValue" not in declared["data"]:
        raise UsageError(
            "--data",
            "nothing",
            "a cluster has no sample of its own",
            "write one with mlflywheel sample, copy it to an object store, and give --data s3://BUCKET/FILE",
        )
    checked = check_arguments(compiled, given)
    arguments = {name: checked[name] for name in given}
    _check_places(arguments)
    text = prepare_yaml(compiled, image, told)
    if image is not None:
        reference = read_reference(image)
        arguments = {n: pin_text(v, reference) if isinstance(v, str) else v for n, v in arguments.items()}
    # A pipeline's own hash is its default: another value would be that of another file.
    arguments.pop("pipeline_spec", None)
    return Submission(text, str(compiled), arguments)


def _check_places(arguments: Mapping[str, Any]) -> None:
    """Refuse what names a place of this machine."""
    data = str(arguments.get("data") or "")
    if data and (not urlsplit(data).scheme or "://" not in data or data.startswith("file:")):
        name = Path(data).name or "FILE"
        raise UsageError(
            f"--data {data}",
            "a path of this machine",
            "the pods of a cluster cannot read it",
            f"aws s3 cp {data} s3://BUCKET/{name}, or as your store does, then --data s3://BUCKET/{name}",
        )
    registry = str(arguments.get("registry") or "")
    if registry and not registry.startswith(("http://", "https://")):
        raise UsageError(
            f"--set registry={registry}",
            "a file of one machine",
            "each step has a pod and files of its own",
            "give the URL of a Kubeflow Model Registry, or leave it out",
        )


def _read_text(compiled: Path) -> str:
    try:
        return compiled.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UsageError(str(compiled), reason, "compiled pipeline YAML is needed", "run mlflywheel compile") from None
