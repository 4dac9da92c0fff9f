"""Run one container of a pod as a process of this machine: `sandbox.py SPECIFICATION`, in a mount namespace of its own.

The root folder is a new one, in memory. It has this machine's programs and libraries in it, read-only, none of its
temporary files, and the pod's volumes. The specification is JSON: `root` (an empty folder), `mounts` (pairs of a source
and a path in the container), `command`, `environment` and `folder` to start in.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

_READ_ONLY, _BIND, _RECURSIVE, _REMOUNT = 0x1, 0x1000, 0x4000, 0x20
_LIBC = ctypes.CDLL(None, use_errno=True)
#: What a container has of its own.
_OWN = ("dev", "proc", "run", "sys", "tmp")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Attach one place to another, as the system call does; an OSError names both when it fails."""
    arguments = [one.encode() if one else None for one in (source, target, kind)]
    if _LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def bind(source: str, target: str, *, read_only: bool = False, recursive: bool = False) -> None:
    """Show a file or folder at another place too."""
    mount(source, target, flags=_BIND | (_RECURSIVE if recursive else 0))
    if read_only:
        mount(source, target, flags=_BIND | _REMOUNT | _READ_ONLY)


def _enter(root: Path, mounts: list[tuple[str, str]]) -> None:
    mount("root", str(root), "tmpfs", options="mode=755")
    for entry in Path("/").iterdir():
        place = root / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name not in _OWN:
            place.mkdir()
            bind(str(entry), str(place), read_only=True)
    for name in _OWN:
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    for name in ("dev", "sys"):
        bind(f"/{name}", str(root / name), recursive=True)
    mount("proc", str(root / "proc"), "proc")
    # Bind mounts of single files do not come with the folder that they are in.
    for name in ("/etc/hosts", "/etc/resolv.conf"):
        bind(name, f"{root}{name}")
    # A path such as /var/run/argo may lead over a link, which has to be followed inside.
    volumes = root / ".volumes"
    volumes.mkdir()
    for number, (source, _) in enumerate(mounts):
        place = volumes / str(number)
        place.mkdir() if Path(source).is_dir() else place.touch()
        bind(source, str(place))
    os.chroot(root)
    for number, (_, target) in enumerate(mounts):
        source, place = Path("/.volumes") / str(number), Path(os.path.realpath(target))
        if source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        bind(str(source), str(place))


def _run(specification: dict[str, object]) -> None:
    _enter(Path(specification["root"]), specification["mounts"])
    os.chdir(specification["folder"])
    environment, command = specification["environment"], specification["command"]
    os.environ["PATH"] = environment["PATH"]
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    try:
        _run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except OSError as failure:
        print(f"container: {failure}", file=sys.stderr)
        sys.exit(128)
