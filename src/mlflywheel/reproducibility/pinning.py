"""Replace the image of a compiled pipeline, everywhere that it is named, and change nothing else.

An image is named by the executors and also inside parameters: a Katib Experiment is text, and its trials run in the
same image. Kubeflow's cache key holds the image's name and not its content, so a digest is what makes a pipeline mean
the same tomorrow.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflywheel.errors import UsageError
from mlflywheel.images import COMPONENTS
from mlflywheel.reproducibility.specification import declare_hash, read_specification

_REPOSITORY = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
)
_TAG = r"[\w][\w.-]{0,127}"
# A full stop behind a name ends the sentence.
_TAG_IN_TEXT = r"\w(?:[\w.-]{0,126}\w)?"
_DIGEST = r"sha256:[0-9a-f]{64}"
_HASH = re.compile(_DIGEST)
_REFERENCE = re.compile(rf"(?P<repository>{_REPOSITORY.pattern})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")


@dataclass(frozen=True)
class ImageReference:
    """The name of a container image.

    Args:
        repository: With its registry, such as `registry.example:5000/team/components`.
        tag: Empty if it has none.
        digest: `sha256:` and 64 hexadecimal digits; empty if it has none.
    """

    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def read_reference(text: str, where: str = "--image") -> ImageReference:
    """Read the name of an image.

    Args:
        text: `REPOSITORY@sha256:...`, or `REPOSITORY:TAG`.
        where: What to call it in an error.

    Raises:
        UsageError: Not a name, or one with neither digest nor tag: that is `latest`, which means another image any day.

    >>> read_reference("registry.example:5000/team/components:0.1.0").tag
    '0.1.0'
    """
    found = _REFERENCE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            where, f"{text!r} is no image", "REPOSITORY@sha256:... is needed", "copy it from what the push printed"
        )
    reference = ImageReference(found["repository"], found["tag"] or "", found["digest"] or "")
    if not reference.digest and reference.tag in ("", "latest"):
        raise UsageError(
            where,
            f"{text} names whatever is newest",
            "Kubeflow's cache goes by the name, and would replay the results of an older image",
            f"write {reference.repository}@sha256:... with the digest that the push printed",
        )
    return reference


def pin_images(text_yaml: str, image: ImageReference, where: str = "pipeline.yaml") -> str:
    """Replace every reference to the components' image, and declare the new hash.

    Replaced is what names this library's published repository or the given one's: a pipeline that was compiled for a
    mirror is pinned as well. Other images stay, such as those of a team's own steps.

    Args:
        text_yaml: What the kfp compiler wrote.
        image: What to write in place.
        where: What to call the file in an error.

    Returns:
        The same text, but for the references and the hash that the file holds of itself.

    Raises:
        UsageError: Not a compiled pipeline, or none of its steps runs in such an image.
    """
    before = read_specification(text_yaml, where)
    steps = [found for found in _list_images(before) if _is_ours(found, image)]
    if not steps:
        raise UsageError(
            where,
            f"its steps run in {', '.join(sorted(set(_list_images(before)))) or 'no image'}",
            f"none of them is {_our_repository()} or {image.repository}",
            "name another repository with --image, or leave it out",
        )
    pinned = declare_hash(pin_text(text_yaml, image), where)
    if _replace(before, image) != _replace(read_specification(pinned, where), image):
        raise UsageError(
            where,
            "a reference that is broken over lines",
            "the layout of kfp's compiler is needed",
            "compile it with the kfp of requirements/",
        )
    return pinned


def pin_text(text: str, image: ImageReference) -> str:
    """Replace references to the components' image in any text, such as a Katib Experiment.

    >>> pin_text("image: ghcr.io/mlflywheel/components:0.1.0", ImageReference("team/components", "2"))
    'image: team/components:2'
    """
    for repository in {_our_repository(), image.repository}:
        # Neither a longer repository's name nor a longer tag may be cut into.
        pattern = rf"(?<![\w./-]){re.escape(repository)}(?::{_TAG_IN_TEXT})?(?:@{_DIGEST})?(?![\w/:@-]|\.\w)"
        text = re.sub(pattern, lambda _: str(image), text)
    return text


def _our_repository() -> str:
    return COMPONENTS.rpartition(":")[0]


def _is_ours(reference: str, image: ImageReference) -> bool:
    found = _REFERENCE.fullmatch(reference)
    return found is not None and found["repository"] in (_our_repository(), image.repository)


def _list_images(documents: Sequence[Any]) -> Iterator[str]:
    for document in documents:
        executors = ((document or {}).get("deploymentSpec") or {}).get("executors") or {}
        for executor in executors.values():
            image = (executor.get("container") or {}).get("image")
            if image:
                yield str(image)


def _replace(value: Any, image: ImageReference) -> Any:
    """Return a copy with the references replaced and without the hash that a pipeline holds of itself."""
    if isinstance(value, dict):
        return {
            key: _replace(item, image)
            for key, item in value.items()
            if not (key == "defaultValue" and isinstance(item, str) and _HASH.fullmatch(item))
        }
    if isinstance(value, list):
        return [_replace(item, image) for item in value]
    return pin_text(value, image) if isinstance(value, str) else value
