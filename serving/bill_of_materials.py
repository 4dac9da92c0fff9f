"""What an image holds: its packages with their licences and sizes, and whether the licences may be shipped.

    python -m mlflywheel.serving.bill_of_materials                      # a table, largest first
    python -m mlflywheel.serving.bill_of_materials --refuse             # fails where a licence is refused or unknown
    python -m mlflywheel.serving.bill_of_materials --refuse --lock requirements/predictor.txt
    python -m mlflywheel.serving.bill_of_materials --write sbom.cdx.json

It reads what is installed beside it, so it says what is there and not what a lock asked for. The written document is
CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/); it holds no clock time and no random number, so equal packages
give equal bytes. Packages of the operating system come with the base image and are not in it.

Licences are what a package says of itself: its expression (PEP 639), else its classifiers, else its field `License`.
Libraries that a wheel brings along without saying so are not found.
"""

import argparse
import hashlib
import json
import platform
import re
import sys
import sysconfig
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from mlflywheel import __version__
from mlflywheel.errors import MlflywheelError, UsageError

_MEGABYTE = 1_000_000
# What follows from shipping or serving it cannot be met by an image that anyone may use and change.
_REFUSED = (
    "AGPL", "BUSL", "CC-BY-NC", "Commons-Clause", "Elastic", "FSL-", "GPL", "Parity", "PolyForm", "Prosperity", "RSAL",
    "SSPL",
)  # fmt: skip
# Exceptions that take the duties back for what is linked or compiled with it.
_EXCEPTIONS = ("Classpath-exception-2.0", "GCC-exception-2.0", "GCC-exception-3.1", "LLVM-exception")
# Looked up in the packages' own licence files, where the metadata says nothing or not enough.
_LOOKED_UP = {"python-dateutil": "Apache-2.0 OR BSD-3-Clause"}
# NVIDIA's terms let the run-time libraries be shipped with an application that uses them (CUDA EULA, attachment A).
_NVIDIA = re.compile(r"(nvidia-[a-z]+|nvidia-cuda-[a-z]+|cuda-toolkit)(-cu\d+)?")
_NVIDIA_LICENCE = "LicenseRef-NVIDIA-CUDA-EULA"
# Names outside SPDX that packages give, by their beginning in lower case; longer ones first.
_NAMES = (
    ("https://www.apache.org/licenses/license-2.0", "Apache-2.0"),
    ("gnu affero", "AGPL-3.0-only"),
    ("gnu lesser", "LGPL-2.1-or-later"),
    ("gnu library or lesser", "LGPL-2.1-or-later"),
    ("gnu general", "GPL-3.0-only"),
    ("mozilla public license 2.0", "MPL-2.0"),
    ("python software foundation", "PSF-2.0"),
    ("3-clause bsd", "BSD-3-Clause"),
    ("bsd 3-clause", "BSD-3-Clause"),
    ("bsd license", "BSD-3-Clause"),
    ("apache", "Apache-2.0"),
    ("isc license", "ISC"),
    ("mit license", "MIT"),
    ("bsd", "BSD-3-Clause"),
)
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_WORD = re.compile(r"\(|\)|[^\s()]+")


_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One installed distribution.

    Args:
        name: Normalised, as in a lock.
        version: As installed.
        licence: SPDX expression; empty where the package does not say.
        size_bytes: Of the files that are there, compiled ones included.
        needs: Names of the installed packages that it requires.
    """

    name: str
    version: str
    licence: str
    size_bytes: int
    needs: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Its package URL (https://github.com/package-url/purl-spec)."""
        return f"pkg:pypi/{self.name}@{self.version}"


def list_packages(path: Sequence[str] | None = None) -> list[Package]:
    """Return the installed packages, sorted by name; of two versions the one that is imported.

    Args:
        path: Folders to look in; where packages are installed by default.
    """
    from packaging.utils import canonicalize_name

    if path is None:
        # Not all that Python imports from: what a process has put there besides is not in the image.
        path = [sysconfig.get_path(name) for name in ("purelib", "platlib")]

    found: dict[str, Distribution] = {}
    for distribution in distributions(path=list(dict.fromkeys(path))):
        if "Name" in distribution.metadata:
            found.setdefault(str(canonicalize_name(distribution.metadata["Name"])), distribution)
    return [
        Package(
            name=name,
            version=distribution.version,
            licence=_find_licence(name, distribution),
            size_bytes=_count_bytes(distribution),
            needs=_find_needs(distribution, found),
        )
        for name, distribution in sorted(found.items())
    ]


def keep_locked(packages: Sequence[Package], locks: Sequence[str]) -> list[Package]:
    """Return the packages that lock files name: an environment for development has others, which no image ships.

    Args:
        packages: What is installed.
        locks: Texts of requirements with a pinned version each.
    """
    from packaging.utils import canonicalize_name

    named = {str(canonicalize_name(name)) for text in locks for name in _LOCKED.findall(text)}
    # With more around it, an optional need of a package is there too.
    return [
        replace(package, needs=tuple(name for name in package.needs if name in named))
        for package in packages
        if package.name in named
    ]


def _count_bytes(distribution: Distribution) -> int:
    paths = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
    # What was compiled after the installation is in no list of the package.
    compiled = {
        path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
        for path in paths
        if path.suffix == ".py"
    }
    return sum(path.stat().st_size for path in paths | compiled if path.is_file())


def _find_needs(distribution: Distribution, installed: Mapping[str, object]) -> tuple[str, ...]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = set()
    for line in distribution.requires or ():
        requirement = Requirement(line)
        # Which extras were asked for is not recorded: a package that is there and belongs to one counts.
        name = str(canonicalize_name(requirement.name))
        if name in installed and (requirement.marker is None or "extra" in line or requirement.marker.evaluate()):
            found.add(name)
    return tuple(sorted(found))


def _find_licence(name: str, distribution: Distribution) -> str:
    if name in _LOOKED_UP:
        return _LOOKED_UP[name]
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    if _NVIDIA.fullmatch(name):
        return _NVIDIA_LICENCE
    field = metadata["License"].strip() if "License" in metadata else ""
    classifiers = [
        value.rpartition(" :: ")[2] for value in metadata.get_all("Classifier") or () if value.startswith("License :: ")
    ]
    # A short field names a licence more closely than a classifier does; a long one is its text.
    named = [] if "\n" in field or len(field) > 60 else [field]
    for given in (*named, *classifiers):
        licence = normalise_licence(given)
        if licence:
            others = {normalise_licence(other) for other in classifiers} - {"", licence}
            # Several classifiers mean any of: a choice or a sum. The check takes the sum, which is the stricter.
            return licence if given in named else " AND ".join(sorted({licence, *others}))
    return ""


def normalise_licence(given: str) -> str:
    """Return the SPDX expression of what a package gives as its licence; empty if it is none.

    >>> normalise_licence("BSD License"), normalise_licence("Apache 2.0"), normalise_licence("LGPL-2.1-only")
    ('BSD-3-Clause', 'Apache-2.0', 'LGPL-2.1-only')
    >>> normalise_licence("MPL-2.0 AND MIT"), normalise_licence("Dual License")
    ('MPL-2.0 AND MIT', '')
    """
    text = " ".join(given.split())
    for start, licence in _NAMES:
        # `BSD-3-Clause` and `Apache-2.0 OR MIT` say more than their beginning.
        if text.lower().startswith(start) and not re.match(r"[A-Za-z]+-\d", text):
            return licence
    words = _WORD.findall(text)
    names = [word for word in words if word not in ("(", ")", "AND", "OR", "WITH")]
    joined = len(words) == len(names) > 1
    return "" if not names or joined or not all(_SPDX.fullmatch(name) for name in names) else text


def is_refused(expression: str) -> bool:
    """Tell whether an SPDX expression leaves no choice but a refused licence.

    Of alternatives (`OR`) one has to be allowed, of parts (`AND`) all. `AND` binds closer (SPDX 2.3, annex D.4).

    >>> [is_refused(text) for text in ("MIT", "AGPL-3.0-only", "MIT AND SSPL-1.0", "GPL-2.0-only OR MIT")]
    [False, True, True, False]
    >>> [is_refused(text) for text in ("LGPL-2.1-only", "GPL-3.0-or-later WITH GCC-exception-3.1", "BUSL-1.1")]
    [False, False, True]
    """
    words = _WORD.findall(expression)
    position = 0

    def read_any() -> bool:
        nonlocal position
        refused = read_all()
        while position < len(words) and words[position] == "OR":
            position += 1
            refused = read_all() and refused
        return refused

    def read_all() -> bool:
        nonlocal position
        refused = read_one()
        while position < len(words) and words[position] == "AND":
            position += 1
            refused = read_one() or refused
        return refused

    def read_one() -> bool:
        nonlocal position
        if position >= len(words):
            return False
        word = words[position]
        position += 1
        if word == "(":
            refused = read_any()
            position += 1
            return refused
        exception = ""
        if words[position : position + 1] == ["WITH"]:
            exception = "".join(words[position + 1 : position + 2])
            position += 2
        return word.lower().startswith(tuple(name.lower() for name in _REFUSED)) and exception not in _EXCEPTIONS

    return read_any()


def check_licences(packages: Sequence[Package]) -> None:
    """Refuse packages whose licence is refused, or that do not name one.

    Raises:
        UsageError: Which they are.
    """
    refused = [
        f"{package.name} {package.version}: {package.licence}" for package in packages if is_refused(package.licence)
    ]
    if refused:
        raise UsageError(
            "licences",
            "; ".join(refused),
            "licences that an image may be shipped with are needed",
            "replace the package",
        )
    unknown = [f"{package.name} {package.version}" for package in packages if not package.licence]
    if unknown:
        raise UsageError(
            "licences",
            f"no licence in the metadata of {', '.join(unknown)}",
            "an SPDX expression for each package is needed",
            f"read the package's licence file, and add it to _LOOKED_UP in {Path(__file__).name}",
        )


def describe_materials(packages: Sequence[Package], image: str = "", commit: str = "") -> dict[str, Any]:
    """Return the CycloneDX 1.6 document.

    Args:
        packages: What `list_packages` found.
        image: Reference of the image that they are in; empty if it is not known.
        commit: Of the source that the image was built from; empty if it is not known.
    """
    python = f"pkg:generic/python@{platform.python_version()}"
    own = next((package.purl for package in packages if package.name == "mlflywheel"), "mlflywheel")
    components: list[dict[str, Any]] = [
        {
            "type": "platform",
            "bom-ref": python,
            "name": "python",
            "version": platform.python_version(),
            "licenses": [{"expression": "PSF-2.0"}],
            "purl": python,
        }
    ]
    for package in packages:
        if package.purl == own:
            continue
        components.append(
            {
                "type": "library",
                "bom-ref": package.purl,
                "name": package.name,
                "version": package.version,
                **({"licenses": [{"expression": package.licence}]} if package.licence else {}),
                "purl": package.purl,
                "properties": [{"name": "mlflywheel:size_bytes", "value": str(package.size_bytes)}],
            }
        )
    purls = {package.name: package.purl for package in packages}
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "mlflywheel",
                "version": __version__,
                "licenses": [{"expression": "Apache-2.0"}],
                "purl": own,
                "properties": [
                    {"name": f"mlflywheel:{name}", "value": value}
                    for name, value in (("image", image), ("commit", commit))
                    if value
                ],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": package.purl, "dependsOn": sorted(purls[name] for name in package.needs)} for package in packages
        ],
    }
    # The specification wants a number of its own for each document; a hash of what it holds is one that repeats.
    content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    document["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=content[:16], version=4)}"
    return document


def format_table(packages: Sequence[Package]) -> str:
    """Return a table of sizes and licences, the largest first, in megabytes of 1,000,000 bytes."""
    rows = sorted(packages, key=lambda package: (-package.size_bytes, package.name))
    lines = [f"{'MB':>7}  {'package':<34}  licence"]
    lines += [
        f"{row.size_bytes / _MEGABYTE:7.1f}  {f'{row.name} {row.version}':<34}  {row.licence or 'unknown'}"
        for row in rows
    ]
    total = sum(row.size_bytes for row in rows) / _MEGABYTE
    return "\n".join([*lines, f"{total:7.1f}  {len(rows)} packages"])


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mlflywheel.serving.bill_of_materials",
        description="What is installed here: sizes, licences, and a CycloneDX document.",
    )
    parser.add_argument("--refuse", action="store_true", help="fail where a licence is refused or unknown")
    parser.add_argument(
        "--lock", type=Path, action="append", default=[], metavar="FILE", help="only what this lock names; repeatable"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the CycloneDX document")
    parser.add_argument("--image", default="", help="reference of the image, for the document")
    parser.add_argument("--commit", default="", help="commit of the source, for the document")
    given = parser.parse_args(words)
    try:
        packages = list_packages()
        if given.lock:
            packages = keep_locked(packages, [file.read_text(encoding="utf-8") for file in given.lock])
        if given.refuse:
            check_licences(packages)
        if given.write:
            text = json.dumps(describe_materials(packages, given.image, given.commit), indent=1, ensure_ascii=False)
            given.write.write_text(text + "\n", encoding="utf-8")
        if not given.write:
            print(format_table(packages))
    except MlflywheelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
