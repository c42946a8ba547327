# Bare `make` prints the targets. Everything goes into ./.venv and the user's cache; nothing else is touched.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOAK   ?= 30min
SAMPLE ?= 200
MINUTES ?= 30
# Six processes on two cores: tests often wait for an engine. Tests of a file share their fixtures; files are begun in the
# order of collection, the longest first. All processes share a broker, and one of them runs the tests on Flink (tests/conftest.py).
PROCESSES ?= 6
PARALLEL  ?= -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

BUILDER ?= docker
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ciml/version.py)
LOCK = --quiet pyproject.toml --generate-hashes --python-version 3.11 --no-annotate --no-emit-index-url --no-emit-find-links \
  --custom-compile-command "make lock"

# Tests start hundreds of processes, each of which would compile the same modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo check test tests coverage mutants interop lint type layers bench faults fuzz lock locks dist release sbom images clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## the locked dependencies and ciml itself, into ./.venv

$(STAMP): requirements.lock pyproject.toml setup.py
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not there: install Python 3.11, or say PYTHON=/path/to/it"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes --requirements requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat --editable . # a path, which mypy and editors follow; the default is an import hook
	@touch $@

demo: install ## CI events to a served model and predictions, on a real broker and Flink; see docs/demo.md
	$(BIN)/ciml demo $(DEMO)

# mypy takes one core for half a minute, so the tests run beside it. Without engines fewer tests wait, and each process costs 5 s
# of CPU before its first test.
check: install ## linters, types, layers, and short tests that need no engine
	$(MAKE) --no-print-directory -j 4 lint type layers tests CIML_TESTS=quick PROCESSES=4 \
	  SELECTED='-m "not engines and not bench and not interop and not whole"'

test: install ## the same, and all tests with a real broker and a real Flink
	$(MAKE) --no-print-directory -j 4 lint type layers tests

# A test that hangs outside of Python ignores its own timeout: its process prints where it is, and ends.
tests: install
	CIML_TESTS=$(CIML_TESTS) $(BIN)/python -m pytest $(PARALLEL) $(SELECTED) \
	  -o faulthandler_timeout=960 -o faulthandler_exit_on_timeout=true $(PYTEST)

coverage: install ## lines and branches that the short tests reach: a table, and pages in coverage/
	CIML_TESTS=quick $(BIN)/python -m pytest $(PARALLEL) -m "not engines and not bench and not interop and not whole" \
	  --cov --cov-report=html:coverage --cov-report=term:skip-covered $(PYTEST)

mutants: install ## SAMPLE small changes of ROOM's code, each of which a test should notice; MINUTES bound the time
	$(BIN)/python -m tests.mutants $(ROOM) --sample $(SAMPLE) --minutes $(MINUTES)

interop: install ## slow proofs: wheels, a real Zuul, API server and Prometheus, 5,000 simulated worlds, faults, a soak of SOAK=30min
	$(BIN)/python -m pytest -m interop --timeout 3600 -s $(PYTEST)
	CIML_SIMULATION_SEEDS=5000 $(BIN)/python -m pytest tests/simulation --timeout 3600
	$(MAKE) faults
	$(BIN)/python -m tests.faults --soak $(SOAK)

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## mypy, strict
	$(BIN)/mypy

layers: install ## import-linter
	$(BIN)/lint-imports

bench: install ## speed, as ratios in one run
	$(BIN)/python -m pytest tests/bench -m bench -s

faults: install ## kill, cut and starve the ingest, and compare; docs/faults.md is the report
	$(BIN)/python -m tests.faults --planted all
	$(BIN)/python -m tests.faults $(FAULTS)

fuzz: install ## try many hostile inputs, keep what fails; FUZZ="-k event" selects, CIML_FUZZ_EXAMPLES=1000 bounds
	CIML_TESTS=random $(BIN)/python -m pytest $(PARALLEL) --ignore tests/fuzz -m "hypothesis and not engines" --timeout 0 $(FUZZ)
	CIML_FUZZ=fuzz $(BIN)/python -m pytest tests/fuzz --timeout 0 $(FUZZ)

lock: ## resolve pyproject.toml anew into requirements.lock, and those of the images
	$(BIN)/uv pip compile $(LOCK) --all-extras -o requirements.lock
	$(MAKE) locks

# The locks of the images, from requirements.lock: which extras each image has.
locks:
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock --extra record -o deploy/images/recorder/requirements.lock
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock --extra pipelines --extra receivers --extra tables \
	  -o deploy/images/services/requirements.lock
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock --extra serve -o deploy/images/serve/requirements.lock
	$(BIN)/uv pip compile $(LOCK) --constraint requirements.lock --extra pipelines --extra dataflow --extra train --extra serve \
	  --extra kubeflow --extra lineage --extra tables \
	  -o deploy/images/worker/requirements.lock

dist: install ## wheel, sdist and bills of materials of HEAD in dist/, checked, and installed in fresh environments
	$(BIN)/python -m tests.project.release $(RELEASE) dist
	$(MAKE) sbom
	CIML_DIST=dist $(BIN)/python -m pytest -m interop --timeout 3600 -s tests/project/test_interpreters.py -k locked

release: ## make dist, which fails unless HEAD is a release; docs/releases.md
	$(MAKE) dist RELEASE=--release

sbom: install ## bills of materials of the images, CycloneDX, in dist/
	$(BIN)/python -m tests.deploy.sbom dist

images: ## the images of the wheel in dist/, by BUILDER=docker
	for image in recorder services serve worker; do \
	  $(BUILDER) build -f deploy/images/Dockerfile --build-arg IMAGE=$$image -t ciml/$$image:$(VERSION) . || exit; done
	for image in flink jobserver; do $(BUILDER) build -f deploy/$$image/Dockerfile -t ciml/$$image:$(VERSION) . || exit; done

clean: ## remove what was built here: .venv, caches, the demo's data
	rm -rf $(VENV) build dist coverage .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo .ciml
