"""The only place that names container images.

Tagged by version, never `latest`: Kubeflow's cache key holds the image string and not our code, so a moving tag would
replay results of older code (docs/adr/0003). `mlflywheel submit --image repo@sha256:...` replaces the reference.
"""

from mlflywheel import __version__

COMPONENTS = f"ghcr.io/mlflywheel/components:{__version__}"
# What manifests/ deploy. The second one holds CUDA's libraries as well.
PREDICTOR = f"ghcr.io/mlflywheel/predictor:{__version__}"
PREDICTOR_GPU = f"{PREDICTOR}-gpu"
