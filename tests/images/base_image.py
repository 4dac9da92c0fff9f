"""A base image made on this machine, for where none can be pulled: Debian's smallest system and this machine's Python.

It stands in for `python:3.12-slim`: Python in /usr/local, started as `python`, with pip, on Debian of the release that
this machine runs. Nothing here is published.

`debootstrap` makes the system (a minute or two, once: it is kept in the user's cache folder), a copy of a Python that
was built into a folder of its own gives the rest, together with the shared libraries that the system lacks.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

# What a slim image leaves out as well.
_WITHOUT = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
_WITHOUT_PYTHON = shutil.ignore_patterns(
    "__pycache__", "test", "idlelib", "tkinter", "turtledemo", "_tkinter*", "_test*", "site-packages", "*.a"
)
_LIBRARY = re.compile(r"=> (/\S+)")
_DEBOOTSTRAP_SECONDS = 900


def find_cache_folder() -> Path:
    """Where the system and the images of these tests are kept between runs; it can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflywheel" / "images"


def find_python(versions: Sequence[str] = ("3.12", "3.13", "3.11")) -> Path:
    """Return the prefix of a Python that lies in a folder of its own and can be copied."""
    for version in versions:
        program = shutil.which(f"python{version}")
        if program is None:
            continue
        done = subprocess.run(
            [program, "-c", "import ssl, sqlite3, ensurepip, sys; print(sys.base_prefix)"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        prefix = Path(done.stdout.strip())
        if done.returncode == 0 and prefix not in (Path("/usr"), Path("/")):
            return prefix
    pytest.skip(f"no Python {', '.join(versions)} in a folder of its own that a base image could be made of")


def make_root_folder(folder: Path, python: Path) -> None:
    """Fill a folder with the root file system.

    Args:
        folder: Does not exist yet.
        python: What `find_python` found.
    """
    release = platform.freedesktop_os_release()
    system = find_cache_folder() / f"{release['ID']}-{release['VERSION_CODENAME']}.tar"
    if not system.is_file():
        system.parent.mkdir(parents=True, exist_ok=True)
        made = folder.with_name("system")
        run(["debootstrap", "--variant=minbase", "--include=ca-certificates", release["VERSION_CODENAME"], str(made)])
        for path in _WITHOUT:
            shutil.rmtree(made / path, ignore_errors=True)
        half = system.with_suffix(f".{os.getpid()}")
        run(
            [
                "tar",
                "--create",
                "--numeric-owner",
                "--one-file-system",
                "--file",
                str(half),
                "--directory",
                str(made),
                ".",
            ]
        )
        half.replace(system)
        shutil.rmtree(made)
    folder.mkdir(parents=True)
    # tar itself, since Python's filter for archives refuses the device files.
    run(["tar", "--extract", "--numeric-owner", "--file", str(system), "--directory", str(folder)])
    _copy_python(python, folder)


def _copy_python(python: Path, root: Path) -> None:
    (library,) = (python / "lib").glob("python3.*")
    local = root / "usr" / "local"
    shutil.copytree(library, local / "lib" / library.name, ignore=_WITHOUT_PYTHON, symlinks=True, dirs_exist_ok=True)
    (local / "lib" / library.name / "site-packages").mkdir()
    for shared in (python / "lib").glob("libpython3*.so*"):
        shutil.copy2(shared, local / "lib", follow_symlinks=False)
    shutil.copy2((python / "bin" / library.name).resolve(), local / "bin" / library.name)
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(library.name)
    _copy_libraries([local / "bin" / library.name, *(local / "lib" / library.name).rglob("*.so")], root)
    run(["chroot", str(root), "ldconfig"])
    run(["chroot", str(root), f"/usr/local/bin/{library.name}", "-m", "ensurepip", "--default-pip"])


def _copy_libraries(programs: Iterable[Path], root: Path) -> None:
    for program in programs:
        found = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False, timeout=60).stdout
        for library in map(Path, _LIBRARY.findall(found)):
            if library.name.startswith("libpython"):
                continue
            there = [root / "usr" / "lib" / library.parent.name / library.name, root / str(library)[1:]]
            if not any(path.exists() for path in there):
                shutil.copy2(library.resolve(), root / "usr" / "local" / "lib" / library.name)


def make_base_image(buildah: Sequence[str], folder: Path) -> str:
    """Make the image, if it is not there; return its name.

    Args:
        buildah: The program with its global options.
        folder: An empty folder to work in; its file system must not forbid devices.
    """
    python = find_python()
    version = next((python / "lib").glob("python3.*")).name
    name = f"localhost/mlflywheel-base:{version}"
    if subprocess.run([*buildah, "inspect", "--type", "image", name], capture_output=True, check=False).returncode == 0:
        return name
    root = folder / "root"
    make_root_folder(root, python)
    container = run([*buildah, "from", "scratch"]).strip()
    try:
        run([*buildah, "add", "--quiet", container, str(root), "/"])
        run([*buildah, "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--env", "LANG=C.UTF-8", container])
        run([*buildah, "commit", "--quiet", container, name])
    finally:
        run([*buildah, "rm", container])
        shutil.rmtree(root)
    return name


def run(command: Sequence[str]) -> str:
    """Run a program, and return what it prints; a failure is an assertion with all of it."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_DEBOOTSTRAP_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout
