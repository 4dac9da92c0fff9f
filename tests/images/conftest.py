"""Images built with buildah on a base image that is made on this machine, where the tests are asked to."""

import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from base_image import find_cache_folder, make_base_image
from image_container import MountedImage, mount_image

from mlflywheel import images

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "MLFLYWHEEL_TEST_IMAGES"
_BUILD_SECONDS = 1800


def find_reason_to_skip() -> str:
    """Why images cannot be built here; empty if they can."""
    if not os.environ.get(VARIABLE):
        return f"minutes: make test-images sets {VARIABLE}"
    missing = [name for name in ("buildah", "debootstrap", "make", "runc") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "only root can make a base image and mount an image's files"


def list_secrets() -> list[str]:
    """Options that show this machine's pip configuration and certificates to a build, and leave them in no layer."""
    homes = (Path("/etc/pip.conf"), Path.home() / ".config" / "pip" / "pip.conf")
    pip = next((path for path in (Path(os.environ.get("PIP_CONFIG_FILE", "/")), *homes) if path.is_file()), None)
    certificates = ssl.get_default_verify_paths().cafile
    found = [("pip", pip), ("ca", certificates)]
    return [word for name, path in found if path for word in ("--secret", f"id={name},src={path}")]


@pytest.fixture(scope="session")
def buildah() -> list[str]:
    """The program, with images and containers in a folder of its own: the user's are not touched."""
    reason = find_reason_to_skip()
    if reason:
        pytest.skip(reason)
    cache = find_cache_folder()
    return ["buildah", "--root", str(cache / "storage"), "--runroot", str(cache / "running")]


@pytest.fixture(scope="session")
def build_image(buildah: list[str]) -> Iterator[Callable[[str], MountedImage]]:
    """Builds an image with `make image` at its first use, and mounts it."""
    cache = find_cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        base = make_base_image(buildah, Path(folder))
    built: dict[str, MountedImage] = {}
    with ExitStack() as opened:

        def build(kind: str) -> MountedImage:
            if kind not in built:
                flags = [
                    "--isolation",
                    "chroot",
                    "--pull-never",
                    "--build-arg",
                    f"PYTHON_IMAGE={base}",
                    *list_secrets(),
                ]
                done = subprocess.run(
                    [
                        *("make", "--old-file=setup", "image", f"IMAGE={kind}"),
                        *(f"BUILD_IMAGE={' '.join(buildah)} build --layers", f"IMAGE_FLAGS={' '.join(flags)}"),
                    ],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_BUILD_SECONDS,
                )
                assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
                name = str(getattr(images, kind.upper().replace("-", "_")))
                built[kind] = opened.enter_context(mount_image(buildah, name))
            return built[kind]

        yield build


@pytest.fixture(scope="session")
def components(build_image: Callable[[str], MountedImage]) -> MountedImage:
    return build_image("components")


@pytest.fixture(scope="session")
def predictor(build_image: Callable[[str], MountedImage]) -> MountedImage:
    return build_image("predictor")
