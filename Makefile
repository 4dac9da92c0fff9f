# What continuous integration runs is one of these targets. Needs a POSIX shell, GNU make and Python 3.11, 3.12 or 3.13.

# The newest Python that the project supports. Another one: make setup PYTHON=/path/to/python3.12
supported := 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if ( $$python -c $(supported) ) >/dev/null 2>&1; then echo $$python; break; fi; done)

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# One version of each package for every Python, so that results agree between them. To move the pins to the newest
# versions: make lock UPGRADE=--upgrade
LOCK = UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UPGRADE)
# What builds images; options for it stand in IMAGE_FLAGS.
BUILD_IMAGE ?= $(shell for program in buildah podman docker; do \
	if command -v $$program >/dev/null 2>&1; then echo "$$program build"; break; fi; done)
# What an image says it was built from; `-dirty` behind it stands for changes that were not committed.
COMMIT ?= $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)
PIPELINE ?= ad-campaigns
BENCH ?= fingerprints
FUZZ ?= predictor
IMAGE ?= components

.PHONY: help setup run test test-long test-cluster cluster-tools test-images check format compile lock bench image images \
	licences docs notebooks fuzz up down clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the packages that requirements/ pins, and the project itself

# uv is ten times quicker than pip, but does not read pip's configuration: where that names a mirror, pip does the work.
$(READY): pyproject.toml requirements/bootstrap.txt requirements/dev.txt requirements/kfp-2.16.txt
	@{ $(BIN)/python -c $(supported) && $(BIN)/python -c 'import pip'; } 2>/dev/null || { \
		$(or $(PYTHON),false) -c $(supported) || { \
			echo 'make: $(or $(PYTHON),PATH): no supported Python there; 3.11, 3.12 or 3.13 is needed.' \
				'Fix: install one, or name it: make setup PYTHON=/path/to/python3.12.' >&2; exit 1; }; \
		echo '$(PYTHON) -m venv .venv'; $(PYTHON) -m venv --clear .venv; }
	$(PIP) install --require-hashes -r requirements/bootstrap.txt
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt \
		|| $(PIP) install --require-hashes -r requirements/dev.txt
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip install --python $(BIN)/python --require-hashes --no-deps \
		--target .venv/kfp-2.16 -r requirements/kfp-2.16.txt \
		|| $(PIP) install --require-hashes --no-deps --upgrade --target .venv/kfp-2.16 -r requirements/kfp-2.16.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: setup ## Run a pipeline on sample data, or on yours: make run PIPELINE=vehicle-prices ARGS="--data listings.csv"
	$(BIN)/mlflywheel run $(PIPELINE) $(ARGS)

test: setup ## Run the tests
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile -m "not long" $(ARGS)

test-long: setup ## Run the tests that `make test` leaves out because they take long
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m long $(ARGS)

test-cluster: setup $(if $(KUBECONFIG)$(KUBEBUILDER_ASSETS),,cluster-tools) ## Run the tests that need a cluster: on KUBECONFIG's, or else on an API server of our own
	MLFLYWHEEL_TEST_KUBECONFIG='$(KUBECONFIG)' $(BIN)/python -m pytest tests/cluster $(ARGS)

cluster-tools: ## Build etcd, kube-apiserver, kubectl and KServe's manager for those tests, once; needs Go
	$(or $(PYTHON),python3) tests/cluster/cluster_tools.py

test-images: setup ## Build the images with buildah on a base image made here, and run what they hold; minutes, as root
	MLFLYWHEEL_TEST_IMAGES=1 $(BIN)/python -m pytest tests/images $(ARGS)

check: setup ## Lint, check types and layers, and compare the compiled pipelines with their source
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mlflywheel compile --check

format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: setup ## Write every pipeline.yaml from its pipeline.py
	$(BIN)/mlflywheel compile

lock: setup ## Resolve requirements/*.txt from pyproject.toml
	$(LOCK) pyproject.toml --extra all --extra gcs --group dev --group benchmarks -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra pipelines --extra tuning --extra cluster --extra trees --extra fairness --extra fast \
		--extra s3 -c requirements/dev.txt -o requirements/components.txt
	$(LOCK) pyproject.toml --extra serving --extra fast -c requirements/dev.txt -o requirements/predictor.txt
	$(LOCK) pyproject.toml --extra serving --extra fast --extra gpu -c requirements/dev.txt \
		-o requirements/predictor-gpu.txt
	$(LOCK) requirements/bootstrap.in -c requirements/dev.txt -o requirements/bootstrap.txt

bench: setup ## Measure against peers; also BENCH=pipeline, rollouts, serving or tuning
	$(BIN)/python -m benchmarks.$(BENCH).run $(ARGS)

image: setup ## Build an image: make image IMAGE=components, predictor or predictor-gpu
	@[ -n "$(BUILD_IMAGE)" ] || { echo 'make: PATH: none of buildah, podman and docker; one is needed.' \
		'Fix: install one, or name it: make image BUILD_IMAGE="/path/to/buildah build".' >&2; exit 1; }
	@image=$$($(BIN)/python -c 'from mlflywheel import images; print(getattr(images, "$(IMAGE)".upper().replace("-", "_")))') \
	&& set -x && $(BUILD_IMAGE) $(IMAGE_FLAGS) -f serving/$(IMAGE:-gpu=).Containerfile \
		$(if $(filter %-gpu,$(IMAGE)),--build-arg LOCK=$(IMAGE).txt) --build-arg IMAGE="$$image" \
		--build-arg VERSION="$${image##*:}" --build-arg COMMIT="$(COMMIT)" -t "$$image" .

images: ## Build all three
	for image in components predictor predictor-gpu; do $(MAKE) image IMAGE=$$image || exit 1; done

licences: setup ## Fail where a package of an image has a licence that may not be shipped, or names none
	$(BIN)/python -m mlflywheel.serving.bill_of_materials --refuse --lock requirements/components.txt \
		--lock requirements/predictor.txt

docs: setup ## Build the documentation site in build/site; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d build/doctrees . build/site

notebooks: setup ## Run the notebooks of examples/ and write what they print into them; minutes
	cd examples && ../$(BIN)/jupyter-execute --inplace --NotebookClient.record_timing=False *.ipynb

fuzz: setup ## Send malformed requests to a predictor; FUZZ=lint changes manifests and compares the linter with KServe
	$(BIN)/python tests/fuzz/$(FUZZ).py $(ARGS)

# Both need kubectl alone, and no environment; where there is one, the doctor looks at the cluster first.
up: ## Apply the manifests to the current context: make up NAMESPACE=team; OVERLAY=cpu serves a model too
	@! [ -x $(BIN)/mlflywheel ] || $(BIN)/mlflywheel doctor --cluster --namespace '$(NAMESPACE)' || true
	$(or $(PYTHON),python3) manifests/installation.py up --namespace '$(NAMESPACE)' --overlay '$(OVERLAY)'

down: ## Delete what make up made: make down NAMESPACE=team
	$(or $(PYTHON),python3) manifests/installation.py down --namespace '$(NAMESPACE)'

clean: ## Remove caches and build output; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find benchmarks components pipelines serving src tests -name __pycache__ -type d -prune -exec rm -rf {} +
