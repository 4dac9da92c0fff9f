"""What this process runs in: code, packages, Python, threads, hardware and image, as JSON values.

    {"code": {"commit": "a07e...", "dirty": false, "version": "0.1.0", "source": "sha256:..."},
     "packages": {"numpy": "2.4.6", ...}, "packages_hash": "sha256:...",
     "lock_hash": "sha256:...", "lock": {"name": "components.txt", "not_in_it": ["mlflywheel"]},
     "python": "3.12.12", "implementation": "CPython", "platform": "Linux-x86_64-glibc2.36",
     "threads": {"variables": {"OMP_NUM_THREADS": "1", ...}, "pools": [{"library": "openblas", "threads": 1, ...}]},
     "hardware": {"architecture": "x86_64", "cpu": "...", "instructions": "x86-64-v4", "flags": ["avx", ...],
                  "cores": 2, "memory_bytes": 16000000000, "variables": {}},
     "image": {"reference": "...", "digest": "sha256:..."},
     "cluster": null,
     "unknown": {"cluster": "not in a cluster"}}

What cannot be known is null, and `unknown` says why. Nothing here names a user, a host or a folder of the machine, and
nothing is a clock time: two calls in one environment give the same description.

The code is known in three ways. `source` is a hash over the files that were imported, whoever installed them. `commit`
and `dirty` come from the git checkout that the package is installed from, or from the variable `MLFLYWHEEL_COMMIT`,
which an image is built with; `-dirty` behind it says that the build had changes that were not committed.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mlflywheel.errors import UsageError

COMMIT_VARIABLE = "MLFLYWHEEL_COMMIT"
IMAGE_VARIABLE = "MLFLYWHEEL_IMAGE"
DIGEST_VARIABLE = "MLFLYWHEEL_IMAGE_DIGEST"
TRIGGER_VARIABLE = "MLFLYWHEEL_TRIGGER"
TRIGGERS = ("manual", "scheduled", "ci")

#: With one thread each, sums are made in one order, and a model's hash repeats.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# They choose other code for the same processor.
_INSTRUCTION_VARIABLES = (
    "ARROW_USER_SIMD_LEVEL",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "OPENBLAS_CORETYPE",
)
#: What a training is repeated with: variables that change bits and nothing else.
PINNED_VARIABLES = (*THREAD_VARIABLES, *_INSTRUCTION_VARIABLES)
# Of the many that a processor has, those that numerical libraries choose their code by.
_FLAG_STARTS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "neon", "sse4", "sve")
# The levels of the x86-64 psABI, section 3.1.1, each with what it adds, by the kernel's names.
_LEVELS = (
    ("x86-64-v2", ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")),
    ("x86-64-v3", ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")),
    ("x86-64-v4", ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")),
)
# Files that can change what is computed; pages and images cannot.
_SOURCE_SUFFIXES = (".py", ".json", ".yaml")
# An image that was built with a lock keeps it here, below the environment's folder.
_LOCK_IN_ENVIRONMENT = "requirements.txt"
_GIT_SECONDS = 20.0


def describe_environment(
    package: Path | None = None, variables: Mapping[str, str] | None = None, cluster: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe what this process runs in.

    Args:
        package: Folder of the installed package; this one's by default.
        variables: Environment variables; the process's own by default.
        cluster: What is known of the cluster (`mlflywheel.cluster.surroundings`); its key `unknown` says what is not.

    Returns:
        JSON values, as the module's documentation has them.
    """
    from mlflywheel import __version__

    found = Path(__file__).resolve().parents[1] if package is None else package
    known = os.environ if variables is None else variables
    unknown: dict[str, str] = {}
    code = {**_describe_commit(found, known, unknown), "version": __version__, "source": hash_source(found)}
    packages = list_packages()
    lock_hash, lock = _find_lock(found, packages, unknown)
    described = dict(cluster or {"image": None, "cluster": None, "unknown": {"cluster": "not in a cluster"}})
    unknown |= described.get("unknown", {})
    return {
        "code": code,
        "packages": packages,
        "packages_hash": hash_packages(packages),
        "lock_hash": lock_hash,
        "lock": lock,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": "-".join(filter(None, (platform.system(), platform.machine(), "".join(platform.libc_ver())))),
        "threads": {"variables": {name: known.get(name) for name in THREAD_VARIABLES}, "pools": list_thread_pools()},
        "hardware": describe_hardware(known),
        "image": _describe_image(known, described.get("image"), unknown),
        "cluster": described.get("cluster"),
        "unknown": dict(sorted(unknown.items())),
    }


def find_trigger(given: str = "", variables: Mapping[str, str] | None = None) -> str:
    """Tell what started a run: `manual`, `scheduled` or `ci`.

    Kubeflow Pipelines tells a run's steps nothing that says whether a recurring run made it: the placeholder of the
    scheduled time is left unresolved or replaced by the time of creation (kubeflow/pipelines issues 12616 and 13424).
    Whoever sets up a recurring run therefore gives the pipeline's parameter `trigger`.

    Args:
        given: The pipeline's parameter; empty where nobody said so.
        variables: Environment variables; the process's own by default. `MLFLYWHEEL_TRIGGER` comes first, then `CI`.

    Raises:
        UsageError: None of the three.

    >>> find_trigger("", {"CI": "true"}), find_trigger("scheduled", {"CI": "true"}), find_trigger("", {})
    ('ci', 'scheduled', 'manual')
    """
    known = os.environ if variables is None else variables
    wanted = given.strip() or known.get(TRIGGER_VARIABLE, "").strip()
    if not wanted:
        return "ci" if known.get("CI", "").lower() not in ("", "0", "false") else "manual"
    if wanted not in TRIGGERS:
        raise UsageError(
            "trigger", repr(wanted), f"one of {', '.join(TRIGGERS)} is needed", f"correct trigger or {TRIGGER_VARIABLE}"
        )
    return wanted


def list_packages() -> dict[str, str]:
    """Return the installed packages' versions by normalised name: of each the one that is imported."""
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(str(canonicalize_name(name)), distribution.version)
    return dict(sorted(found.items()))


def hash_packages(packages: Mapping[str, str]) -> str:
    """Return one hash over names and versions.

    >>> hash_packages({"b": "2", "a": "1"}) == hash_packages({"a": "1", "b": "2"})
    True
    """
    text = "\n".join(f"{name}=={version}" for name, version in sorted(packages.items()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def hash_source(package: Path) -> str:
    """Return one hash over a package's code and data files: their paths in it, and what they hold."""
    whole = hashlib.sha256()
    for path in sorted(_walk(package), key=lambda path: path.relative_to(package).as_posix()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(package).as_posix()} {digest}\n".encode())
    return "sha256:" + whole.hexdigest()


def _walk(package: Path) -> Iterator[Path]:
    # Some folders of the package are symlinks in a checkout, and folders in a wheel.
    for folder, names, files in os.walk(package, followlinks=True):
        names[:] = [name for name in names if name != "__pycache__"]
        yield from (Path(folder) / name for name in files if name.endswith(_SOURCE_SUFFIXES))


def _describe_commit(package: Path, variables: Mapping[str, str], unknown: dict[str, str]) -> dict[str, Any]:
    given = variables.get(COMMIT_VARIABLE, "").strip()
    if given:
        return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}
    try:
        # A checkout that somebody installed a wheel into is not where the code comes from.
        _run_git(package, "ls-files", "--error-unmatch", "errors.py")
        commit = _run_git(package, "rev-parse", "HEAD")
        # Files that git does not know are in the hash of the source.
        changed = _run_git(package, "status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = "git did not answer in time"
    except subprocess.CalledProcessError as error:
        foreign = "dubious ownership" in str(error.stderr)
        reason = "the checkout belongs to another user" if foreign else "not installed from a git checkout"
    else:
        return {"commit": commit, "dirty": bool(changed)}
    unknown["commit"] = f"{reason}, and {COMMIT_VARIABLE} is not set"
    return {"commit": None, "dirty": None}


def _run_git(package: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(package), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_SECONDS,
        # A hook of the caller's, or a refresh of the index, would write to the checkout.
        env={**{k: v for k, v in os.environ.items() if not k.startswith("GIT_")}, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def _find_lock(
    package: Path, packages: Mapping[str, str], unknown: dict[str, str]
) -> tuple[str | None, dict[str, Any] | None]:
    """Return the hash of the lock that the packages were installed from, and its name.

    A lock that lies around proves nothing, so its pins are compared with what is installed: all of them have to be.
    Of several the one that pins most was installed.
    """
    best: tuple[int, str, str, list[str]] | None = None
    for path in _list_locks(package):
        pins = _read_pins(path)
        if pins and all(packages.get(name) == version for name, version in pins.items()):
            digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            extra = sorted(set(packages) - set(pins))
            best = max(best or (0, "", "", []), (len(pins), digest, path.name, extra))
    if best is None:
        unknown["lock_hash"] = "no lock beside the code or in the environment pins what is installed"
        return None, None
    return best[1], {"name": best[2], "not_in_it": best[3]}


def _list_locks(package: Path) -> Iterator[Path]:
    inside = Path(sys.prefix) / _LOCK_IN_ENVIRONMENT
    if inside.is_file():
        yield inside
    # src/mlflywheel of a checkout, which has requirements/ at its top.
    top = package.parent.parent
    if (top / "pyproject.toml").is_file():
        yield from sorted((top / "requirements").glob("*.txt"))


def _read_pins(path: Path) -> dict[str, str]:
    """Return what a lock pins for this platform and Python; hashes stand on lines of their own."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line[:1].isalnum():
            continue
        try:
            requirement = Requirement(line.partition(" #")[0].rstrip(" \\"))
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            for pin in requirement.specifier:
                if pin.operator == "==":
                    found[str(canonicalize_name(requirement.name))] = pin.version
    return found


def list_thread_pools() -> list[dict[str, Any]]:
    """Return the thread pools of the numerical libraries that are loaded: library, version, threads, kernels.

    `kernels` is the processor that OpenBLAS chose its code for. Where two libraries bring an OpenBLAS each, both count.
    """
    from threadpoolctl import threadpool_info

    pools = [
        {
            "library": str(pool.get("internal_api", "")),
            "version": pool.get("version"),
            "threads": int(pool["num_threads"]),
            "kernels": pool.get("architecture"),
        }
        for pool in threadpool_info()
    ]
    return sorted(pools, key=lambda pool: (pool["library"], str(pool["version"]), pool["threads"]))


def describe_hardware(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Describe the machine, as far as it has to do with bits and sizes.

    Returns:
        `architecture`, the processor's name `cpu`, the level of the x86-64 ABI that it meets as `instructions` (None
        for other architectures), the `flags` that numerical libraries choose their code by, `cores` that this process
        may use, `memory_bytes` of the machine, and the `variables` that make libraries choose other code.
    """
    known = os.environ if variables is None else variables
    cpu, flags = _read_cpu()
    machine = platform.machine()
    return {
        "architecture": machine,
        "cpu": cpu or platform.processor() or machine,
        "instructions": _find_level(flags) if machine in ("x86_64", "AMD64") else None,
        "flags": sorted(flag for flag in flags if flag.startswith(_FLAG_STARTS)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _count_memory_bytes(),
        "variables": {name: known[name] for name in _INSTRUCTION_VARIABLES if known.get(name)},
    }


def _read_cpu() -> tuple[str, frozenset[str]]:
    """Return name and flags of the first processor; both empty where the system is no Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", frozenset()
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields.get("model name", ""), frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _find_level(flags: frozenset[str]) -> str | None:
    """Return the highest level whose flags, and those of the levels below, are all there.

    >>> _find_level(frozenset(_LEVELS[0][1])), _find_level(frozenset(_LEVELS[1][1])), _find_level(frozenset())
    ('x86-64-v2', 'x86-64-v1', None)
    """
    if not flags:
        return None
    level = "x86-64-v1"
    for name, needed in _LEVELS:
        if not flags.issuperset(needed):
            break
        level = name
    return level


def _count_memory_bytes() -> int | None:
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return None


def _describe_image(
    variables: Mapping[str, str], running: Mapping[str, Any] | None, unknown: dict[str, str]
) -> dict[str, Any] | None:
    """Return the image that this process runs in: what the cluster says of the pod, completed by the variables."""
    reference = (running or {}).get("reference") or variables.get(IMAGE_VARIABLE) or None
    digest = (running or {}).get("digest") or variables.get(DIGEST_VARIABLE) or None
    if reference is None and digest is None:
        unknown.setdefault("image", f"not in a pod, and neither {IMAGE_VARIABLE} nor {DIGEST_VARIABLE} is set")
        return None
    if digest is None:
        unknown.setdefault("image.digest", f"{DIGEST_VARIABLE} is not set")
    return {"reference": reference, "digest": digest}
