"""Components take their inputs as KFP's launcher hands them over: without the types that kfp.local adds."""

import pytest

pytest.importorskip("kfp")

from kfp.dsl.executor import Executor

from mlflywheel import components


@pytest.mark.parametrize("name", components.__all__)
def test_component_takes_artifacts_without_types(name: str) -> None:
    component = getattr(components, name)
    # The type of an artifact has a version; that of a parameter has none.
    artifacts = [key for key, spec in (component.component_spec.inputs or {}).items() if "@" in str(spec.type)]
    handed = {key: {"artifacts": [{"name": "7", "uri": f"minio://store/{key}", "metadata": {}}]} for key in artifacts}
    executor = Executor({"inputs": {"artifacts": handed}, "outputs": {"outputFile": "unused"}}, component.python_func)
    assert {key: executor.get_input_artifact(key).path for key in artifacts} == {
        key: f"/minio/store/{key}" for key in artifacts
    }
