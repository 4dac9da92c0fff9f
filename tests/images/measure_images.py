"""Measure the images that `make test-images` built: sizes, and how long a container takes until it works.

    .venv/bin/python tests/images/measure_images.py [--runs 5] [--write FILE]

Prints JSON. Sizes are in megabytes of 1,000,000 bytes: of the layers as a registry keeps them (gzip), unpacked, and of
each package. Times are the medians of some runs, in seconds from the start of the container to a line that it prints,
with the files in the machine's cache; a first start on a node is slower by what it reads.
"""

import argparse
import json
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from base_image import find_cache_folder, run
from image_container import Container, MountedImage, mount_image

from mlflywheel import images
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.model import FitParams
from mlflywheel.models.topic_fingerprints.preparation import PrepareConfig
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

ROOT = Path(__file__).resolve().parents[2]
_MEGABYTE = 1_000_000
_LARGEST = 15
_FIRST_LINE = "first line of work after"
_READY = '"event": "ready"'
_LISTENING = '"event": "listening"'
_PRINT = f"import time; print({_FIRST_LINE!r}, time.process_time(), flush=True)"


def measure_layers(buildah: Sequence[str], name: str, folder: Path) -> list[dict[str, Any]]:
    """Sizes of an image's layers, the base image's first."""
    run([*buildah, "push", "--quiet", name, f"oci:{folder}"])
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))

    def blob(digest: str) -> Path:
        return folder / "blobs" / digest.replace(":", "/")

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text(encoding="utf-8"))
    made_by = [
        entry.get("created_by", "")
        for entry in json.loads(blob(manifest["config"]["digest"]).read_text(encoding="utf-8"))["history"]
        if not entry.get("empty_layer")
    ]
    found = []
    for layer, command in zip(manifest["layers"], made_by, strict=True):
        with tarfile.open(blob(layer["digest"])) as archive:
            size = sum(member.size for member in archive if member.isfile())
        found.append(
            {
                "made_by": re.sub(r"\s+", " ", command)[:70] or "base image",
                "compressed_mb": round(layer["size"] / _MEGABYTE, 1),
                "mb": round(size / _MEGABYTE, 1),
            }
        )
    return found


def list_largest(image: MountedImage) -> dict[str, float]:
    """The packages that take most, in megabytes."""
    document = json.loads((image.root / "opt/venv/sbom.cdx.json").read_text(encoding="utf-8"))
    sizes = {
        f"{component['name']} {component['version']}": int(component["properties"][0]["value"])
        for component in document["components"]
        if "properties" in component
    }
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    largest = {name: round(sizes[name] / _MEGABYTE, 1) for name in ordered[:_LARGEST]}
    return {**largest, "all others": round(sum(sizes[name] for name in ordered[_LARGEST:]) / _MEGABYTE, 1)}


def measure_start(runs: int, start: Callable[[Path], Container], mark: str) -> dict[str, float]:
    """Median seconds from a container's start to the line that holds `mark`.

    Where the line goes on with the processor's seconds until then, these are given too: they do not depend on what else
    the machine does.
    """
    seconds, processor = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            running = start(Path(folder))
            try:
                line = running.wait_for(partial(find_line, running, mark))
                seconds.append(time.monotonic() - running.started)
                processor += [float(line.rpartition(" ")[2])] if mark == _FIRST_LINE else []
            finally:
                running.stop()
    times = {"seconds": seconds, **({"processor_seconds": processor} if processor else {})}
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def find_line(running: Container, mark: str) -> str | None:
    """The first line that holds `mark`."""
    return next((line for line in running.log if mark in line), None)


def list_component_words(folder: str, first: bool) -> list[str]:
    """The compiled command of `prepare-table`, with a line that it prints first, or after its imports."""
    text = (ROOT / "pipelines/ad_campaigns/pipeline.yaml").read_text(encoding="utf-8")
    container = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"]["exec-prepare-table"]["container"]
    before = "    import pyarrow.parquet as pq" if first else '    with step("preparation")'
    command = [word.replace(before, f"    {_PRINT}\n{before}") for word in container["command"]]
    assert command != container["command"]
    artifact = {"type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}, "metadata": {}}
    given = {
        "inputs": {
            "parameterValues": {"model": "topic-fingerprints", "config": "{}"},
            "artifacts": {"rows": {"artifacts": [{**artifact, "name": "rows", "uri": f"{folder}/rows"}]}},
        },
        "outputs": {
            "artifacts": {"table": {"artifacts": [{**artifact, "name": "table", "uri": "/tmp/out/table"}]}},
            "outputFile": "/tmp/out/output.json",
        },
    }
    return [word.replace("{{$}}", json.dumps(given)) for word in (*command, *container["args"])]


def measure_components(image: MountedImage, data: Path, runs: int) -> dict[str, dict[str, float]]:
    """Seconds until Python runs, until a component's first line, and until it has imported what it needs."""

    def start(words: Sequence[str]) -> Callable[[Path], Container]:
        return lambda folder: Container(image, folder, words, mounts={"/data:ro": data})

    return {
        "python": measure_start(runs, start(["python", "-c", _PRINT]), _FIRST_LINE),
        "component's first line": measure_start(runs, start(list_component_words("/data", True)), _FIRST_LINE),
        "component's imports done": measure_start(runs, start(list_component_words("/data", False)), _FIRST_LINE),
    }


def measure_predictor(image: MountedImage, model: Path, kernels: Path, runs: int) -> dict[str, dict[str, float]]:
    """Seconds until the predictor is ready: as a new pod, and where numba finds what it compiled before."""
    words = [*image.config["Entrypoint"], "--model_name=campaigns", "--model_dir=/mnt/models", "--host=127.0.0.1"]
    words += ["--http_port=0", "--grpc_port=0", "--drain_delay_seconds=0"]

    def start(folder: Path, mounts: Mapping[str, Path]) -> Container:
        return Container(image, folder, words, mounts={"/mnt/models:ro": model, **mounts})

    kept = partial(start, mounts={image.environment["NUMBA_CACHE_DIR"]: kernels})
    measure_start(1, kept, _READY)
    return {
        "listening": measure_start(runs, partial(start, mounts={}), _LISTENING),
        "ready": measure_start(runs, partial(start, mounts={}), _READY),
        "ready with kept kernels": measure_start(runs, kept, _READY),
    }


def main() -> None:
    """Measure what there is."""
    parser = argparse.ArgumentParser(description="Measure the images that `make test-images` built.")
    parser.add_argument("--runs", type=int, default=5, help="starts of each container")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the result there instead of printing it")
    given = parser.parse_args()
    cache = find_cache_folder()
    buildah = ["buildah", "--root", str(cache / "storage"), "--runroot", str(cache / "running")]
    there = set(run([*buildah, "images", "--format", "{{.Name}}:{{.Tag}}"]).split())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir()
        kernels = folder / "kernels"
        kernels.mkdir()
        # The container's user writes there.
        kernels.chmod(0o777)
        rows = generate_ad_campaigns(campaigns=120)
        pq.write_table(rows, data / "rows")
        table = TopicFingerprints.prepare(rows, PrepareConfig())
        TopicFingerprints.fit(table, FitParams.parse({"num_topics": 8}, "params")).save(data / "model")
        for name in (images.COMPONENTS, images.PREDICTOR, images.PREDICTOR_GPU):
            if name not in there:
                continue
            with mount_image(buildah, name) as image:
                layers = measure_layers(buildah, name, folder / name.replace("/", "_").replace(":", "_"))
                kind = name.rpartition("/")[2]
                found[kind] = {"layers": layers, "packages_mb": list_largest(image)}
                for key in ("compressed_mb", "mb"):
                    found[kind][key] = round(sum(layer[key] for layer in layers), 1)
                if name == images.COMPONENTS:
                    found[kind]["starts"] = measure_components(image, data, given.runs)
                elif name == images.PREDICTOR:
                    found[kind]["starts"] = measure_predictor(image, data / "model", kernels, given.runs)
    text = json.dumps(found, indent=1) + "\n"
    if given.write:
        given.write.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
