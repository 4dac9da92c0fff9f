"""Pinning replaces the image of our steps everywhere, and nothing else."""

import pytest
from kfp_stand_in import make_pipeline

from mlflywheel.errors import UsageError
from mlflywheel.images import COMPONENTS, PREDICTOR
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline
from mlflywheel.reproducibility import declare_hash, hash_specification, read_declared_hash
from mlflywheel.reproducibility.pinning import ImageReference, pin_images, pin_text, read_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4
PINNED = read_reference(f"registry.example:5000/team/components@{DIGEST}")


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_every_reference_is_pinned_and_nothing_else_changes(pipeline: Pipeline) -> None:
    before = pipeline.compiled.read_text(encoding="utf-8")
    after = pin_images(before, PINNED)
    assert COMPONENTS.partition(":")[0] not in after
    assert after.count(str(PINNED)) == before.count(COMPONENTS) >= 12
    # Undone by hand, it is the same file again: the references and the hash are all that was touched.
    assert declare_hash(after.replace(str(PINNED), COMPONENTS)) == before
    assert read_declared_hash(after) == hash_specification(after) != read_declared_hash(before)
    # The trials of a search for parameters run in it too: their template is text in a parameter.
    assert f'"image":"{PINNED}"' in after


def test_a_pinned_file_can_be_pinned_to_the_next_image() -> None:
    once = pin_images(make_pipeline("small"), PINNED)
    assert pin_images(once, PINNED) == once
    later = ImageReference(PINNED.repository, digest="sha256:" + "f" * 64)
    assert pin_images(once, later) == pin_images(make_pipeline("small"), later)


def test_other_images_stay() -> None:
    other = make_pipeline("small").replace(COMPONENTS, "python:3.11", 1)
    pinned = pin_images(other, PINNED)
    assert pinned.count("python:3.11") == 1
    assert pinned.count(str(PINNED)) == 1
    with pytest.raises(UsageError, match=r"its steps run in python:3\.11") as refused:
        pin_images(make_pipeline("small").replace(COMPONENTS, "python:3.11"), PINNED)
    assert "--image" in refused.value.fix


@pytest.mark.parametrize(
    "text",
    [
        PREDICTOR,
        "ghcr.io/mlflywheel/components-extra:1",
        "mirror.example/ghcr.io/mlflywheel/components:0.1.0",
        "ghcr.io/mlflywheel/components/more:1",
        "my-ghcr.io/mlflywheel/components:1",
    ],
)
def test_names_that_only_look_alike_stay(text: str) -> None:
    assert pin_text(f"image: {text}", PINNED) == f"image: {text}"


@pytest.mark.parametrize(
    "text",
    [
        "ghcr.io/mlflywheel/components",
        COMPONENTS,
        f"ghcr.io/mlflywheel/components@{DIGEST}",
        f"{COMPONENTS}@{DIGEST}",
        "registry.example:5000/team/components:rc-1",
    ],
)
def test_every_way_to_write_the_image_is_replaced(text: str) -> None:
    for frame in ("image: {}", '{{"image":"{}","args":[]}}', "in {}, and", "{}.", "'{}'"):
        assert pin_text(frame.format(text), PINNED) == frame.format(PINNED)


@pytest.mark.parametrize("text", ["", "a b", "Repo/UPPER:1", "repo@sha256:123", "https://registry.example/x@" + DIGEST])
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no image"):
        read_reference(text)


@pytest.mark.parametrize("text", ["team/components", "team/components:latest", "registry.example:5000/components"])
def test_a_name_that_moves_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="whatever is newest"):
        read_reference(text)


def test_a_tag_is_read_with_and_without_a_digest() -> None:
    assert read_reference("localhost:5001/c:1").tag == "1"
    both = read_reference(f"c:1@{DIGEST}")
    assert (both.tag, both.digest, str(both)) == ("1", DIGEST, f"c:1@{DIGEST}")
