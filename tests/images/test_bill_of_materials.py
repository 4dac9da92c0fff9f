"""What is said of installed packages; none of these tests needs an image."""

import json
import sys
from pathlib import Path

import pytest

from mlflywheel.errors import UsageError
from mlflywheel.serving.bill_of_materials import (
    Package,
    check_licences,
    describe_materials,
    format_table,
    is_refused,
    keep_locked,
    list_packages,
    main,
)

#: An environment for development has more than an image.
LOCKS = [Path(__file__).resolve().parents[2] / "requirements" / f"{name}.txt" for name in ("components", "predictor")]


def install(folder: Path, name: str, *fields: str, version: str = "1.0", body: str = "x = 1\n") -> None:
    """Write what installing a wheel leaves."""
    module = name.lower().replace("-", "_")
    (folder / f"{module}.py").write_text(body, encoding="utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *fields]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (info / "RECORD").write_text(f"{module}.py,,\n{module}_removed.so,,\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Package]:
    return {package.name: package for package in list_packages([str(folder)])}


def test_licence_is_the_closest_that_a_package_says_of_itself(tmp_path: Path) -> None:
    install(tmp_path, "By-Expression", "License-Expression: MIT AND Zlib", "License: GPL")
    install(tmp_path, "By-Field", "License: LGPL-2.1-only", "Classifier: License :: OSI Approved :: BSD License")
    install(tmp_path, "By-Classifier", "Classifier: License :: OSI Approved :: Apache Software License")
    install(
        tmp_path, "By-Text", "License: BSD 3-Clause License", "\t", "Classifier: License :: OSI Approved :: MIT License"
    )
    install(tmp_path, "Says-Nothing", "License: UNKNOWN LICENCE OF OURS")
    found = {name: package.licence for name, package in read(tmp_path).items()}
    assert found["by-expression"] == "MIT AND Zlib"
    assert found["by-field"] == "LGPL-2.1-only"
    assert found["by-classifier"] == "Apache-2.0"
    assert found["by-text"] == "BSD-3-Clause"
    assert found["says-nothing"] == ""


def test_several_classifiers_are_all_taken_to_hold(tmp_path: Path) -> None:
    install(
        tmp_path,
        "two-licences",
        "Classifier: License :: OSI Approved :: MIT License",
        "Classifier: License :: OSI Approved :: GNU Affero General Public License v3",
    )
    package = read(tmp_path)["two-licences"]
    assert package.licence == "AGPL-3.0-only AND MIT"
    assert is_refused(package.licence)


@pytest.mark.parametrize(
    "expression",
    [
        "AGPL-3.0-or-later", "BUSL-1.1", "SSPL-1.0", "GPL-3.0-only", "MIT AND (BUSL-1.1 OR SSPL-1.0)", "agpl-3.0",
        "Elastic-2.0", "CC-BY-NC-4.0", "GPL-2.0-only WITH Autoconf-exception-2.0", "MIT AND AGPL-3.0-only OR SSPL-1.0",
    ],
)  # fmt: skip
def test_expression_without_an_allowed_choice_is_refused(expression: str) -> None:
    assert is_refused(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "MIT", "LGPL-2.1-only", "GPL-3.0-only OR MIT", "GPL-3.0-or-later WITH GCC-exception-3.1", "MPL-2.0 AND MIT",
        "(AGPL-3.0-only OR Apache-2.0) AND MIT", "Apache-2.0 WITH LLVM-exception",
        "AGPL-3.0-only AND MIT OR BSD-3-Clause",
    ],
)  # fmt: skip
def test_expression_with_an_allowed_choice_is_not_refused(expression: str) -> None:
    assert not is_refused(expression)


def test_refusal_names_package_and_licence(tmp_path: Path) -> None:
    install(tmp_path, "free", "License-Expression: MIT")
    install(tmp_path, "bound", "License-Expression: AGPL-3.0-only", version="2.1")
    with pytest.raises(UsageError, match=r"bound 2\.1: AGPL-3\.0-only; .* Fix: replace the package"):
        check_licences(list_packages([str(tmp_path)]))


def test_package_without_a_licence_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "silent")
    with pytest.raises(UsageError, match=r"no licence in the metadata of silent 1\.0"):
        check_licences(list_packages([str(tmp_path)]))


def test_licences_of_this_environment_may_be_shipped() -> None:
    packages = keep_locked(list_packages(), [file.read_text(encoding="utf-8") for file in LOCKS])
    assert len(packages) > 50
    check_licences(packages)


def test_only_files_that_are_there_count(tmp_path: Path) -> None:
    install(tmp_path, "small", "License-Expression: MIT", body="y" * 1000)
    assert read(tmp_path)["small"].size_bytes == 1000


def test_compiled_modules_count_with_their_package(tmp_path: Path) -> None:
    install(tmp_path, "small", "License-Expression: MIT", body="y" * 1000)
    compiled = tmp_path / "__pycache__" / f"small.{sys.implementation.cache_tag}.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"z" * 500)
    assert read(tmp_path)["small"].size_bytes == 1500


def test_document_lists_packages_with_what_they_need(tmp_path: Path) -> None:
    install(tmp_path, "Needs-Things", "License-Expression: MIT", "Requires-Dist: other>=1", "Requires-Dist: absent")
    install(tmp_path, "other", "License-Expression: Zlib")
    document = describe_materials(list_packages([str(tmp_path)]), image="repo/image:1", commit="abc")
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    by_name = {component["name"]: component for component in document["components"]}
    assert sorted(by_name) == ["needs-things", "other", "python"]
    assert by_name["other"]["purl"] == "pkg:pypi/other@1.0"
    assert by_name["other"]["licenses"] == [{"expression": "Zlib"}]
    assert {"ref": "pkg:pypi/needs-things@1.0", "dependsOn": ["pkg:pypi/other@1.0"]} in document["dependencies"]
    assert document["metadata"]["component"]["properties"] == [
        {"name": "mlflywheel:image", "value": "repo/image:1"},
        {"name": "mlflywheel:commit", "value": "abc"},
    ]


def test_equal_packages_give_equal_documents_and_another_package_another_number(tmp_path: Path) -> None:
    install(tmp_path, "one", "License-Expression: MIT")
    first = describe_materials(list_packages([str(tmp_path)]))
    assert first == describe_materials(list_packages([str(tmp_path)]))
    install(tmp_path, "two", "License-Expression: MIT")
    assert describe_materials(list_packages([str(tmp_path)]))["serialNumber"] != first["serialNumber"]


def test_table_starts_with_the_largest_and_ends_with_the_sum() -> None:
    packages = [Package("a", "1", "MIT", 1_500_000, ()), Package("b", "2", "", 20_000_000, ())]
    lines = format_table(packages).splitlines()
    assert lines[1].split() == ["20.0", "b", "2", "unknown"]
    assert lines[-1].split() == ["21.5", "2", "packages"]


def test_command_writes_the_document_of_this_environment(tmp_path: Path) -> None:
    file = tmp_path / "sbom.cdx.json"
    locks = [word for lock in LOCKS for word in ("--lock", str(lock))]
    assert main(["--refuse", "--write", str(file), "--image", "repo/image:1", *locks]) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert "numpy" in {component["name"] for component in document["components"]}
