# `make test` and `make demo` install everything they need; `make help` lists all commands.
PYTHON ?= python3
UV_VERSION := 0.13.8
VENV := .venv
RUN := $(VENV)/bin
UV := .uv/bin/uv

# Let Python cache its bytecode. Otherwise each process that Ray starts compiles torch: 13 s instead of 5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup test test-random test-faults test-cloud test-cluster test-gpu test-lowest lint format audit docs demo bench bench-gpu bench-peers requirements clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## create the virtual environment with pinned requirements

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.ready: requirements.txt pyproject.toml | $(UV)
	test -d $(VENV) || $(UV) venv -q --python $(PYTHON) $(VENV)
	$(UV) pip sync -q --python $(RUN)/python requirements.txt
	$(UV) pip install -q --python $(RUN)/python --no-deps -e .
	touch $@

test: lint  ## install everything, lint, and run all tests
	$(RUN)/python -m pytest -n 2 --dist loadfile --durations=25

lint: setup  ## check style and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

test-random: setup  ## run the property tests with new random examples
	HYPOTHESIS_PROFILE=random $(RUN)/python -m pytest -n 2 --dist loadfile -m "hypothesis and not faults and not cloud and not cluster"

test-faults: setup  ## run the long tests of crashes, full disks and corruption
	$(RUN)/python -m pytest -m 'faults and not cloud and not cluster' -s --durations=20

AZURITE_VERSION := 3.37.0

.azurite/$(AZURITE_VERSION):
	command -v npm >/dev/null || { echo "Azurite needs npm: tests of Azure are skipped"; exit 0; }; \
	npm install --silent --no-audit --no-fund --prefix .azurite azurite@$(AZURITE_VERSION) && touch $@

test-cloud: setup .azurite/$(AZURITE_VERSION)  ## run the long tests on servers of Google Cloud Storage and Azure
	$(RUN)/python -m pytest -m cloud -rs --durations=20

test-cluster: setup  ## run the long tests of a cluster of several hosts (as root, on Linux)
	$(RUN)/python -m pytest -m cluster -s --durations=20 tests/cluster

test-gpu: setup  ## run the tests that need a GPU
	$(RUN)/python -m pytest -k test_cuda_ -rs

# Tests of each room that need neither Ray nor training: minutes.
LOWEST_TESTS := tests/pipeline/geometry tests/pipeline/planning tests/pipeline/raster \
  tests/pipeline/publish tests/pipeline/results/test_query.py tests/pipeline/test_settings.py \
  tests/pipeline/test_sweep.py tests/model/inference/test_detector.py tests/model/files

test-lowest: $(UV)  ## run fast tests with the lowest versions that pyproject.toml allows
	test -d .lowest || $(UV) venv -q --python $(PYTHON) .lowest
	$(UV) pip compile pyproject.toml --all-extras --group lowest --python-version 3.11 \
	  --resolution lowest-direct --no-emit-index-url --no-emit-find-links --no-header -q -o .lowest/requirements.txt
	$(UV) pip sync -q --python .lowest/bin/python .lowest/requirements.txt
	$(UV) pip install -q --python .lowest/bin/python --no-deps -e .
	.lowest/bin/python -m pytest $(LOWEST_TESTS)

audit: setup  ## check the pinned requirements for known vulnerabilities
	$(RUN)/pip-audit --disable-pip --no-deps -r requirements.txt

docs: setup  ## generate the reference pages and build the site in build/site
	$(RUN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

format: setup  ## format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

demo: setup  ## paint a scene, sweep it with Ray on this machine, compare with the truth
	$(RUN)/scenesweep demo

bench: setup  ## measure start-up, merge, publishing, network and pipeline (15 minutes)
	$(RUN)/python -m benchmarks.startup
	$(RUN)/python -m benchmarks.merge
	$(RUN)/python -m benchmarks.publish
	$(RUN)/python -m benchmarks.network
	$(RUN)/python -m benchmarks.pipeline

bench-gpu: setup  ## measure a GPU (8 minutes)
	$(RUN)/python -m benchmarks.gpu

bench-peers: setup  ## compare with DeepForest and SAHI (an hour on 2 cores)
	test -d .bench/venv || $(UV) venv -q --python $(PYTHON) .bench/venv
	$(UV) pip sync -q --python .bench/venv/bin/python benchmarks/peers/requirements.txt
	test -e .bench/model/scenesweep.safetensors || $(RUN)/python -m benchmarks.peers.make_model
	$(RUN)/python -m benchmarks.peers.compare

requirements: $(UV)  ## pin the requirements again
	$(UV) pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --no-emit-index-url \
	  --no-emit-find-links --no-header -q -o requirements.txt
	$(UV) pip compile benchmarks/peers/requirements.in --python-version 3.11 --no-emit-index-url \
	  --no-emit-find-links --no-header -q -o benchmarks/peers/requirements.txt

clean:  ## remove the environment and all generated files
	rm -rf $(VENV) .uv .bench .lowest demo-out build *.egg-info
