# `make` lists the targets. Everything runs in $(VENV), which is made on first use.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
JOBS ?= logical
TESTS ?=
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc tests/cuda_emulation -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help install build demo demo-teacher demo-mono demo-mono-teacher test coverage fuzz reliability lint format tables docs wheel cuda sanitize gpu-check bench clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables of a new environment: PYTHON (default python3), VENV (.venv), TORCH (what pip installs first: torch torchvision).'
	@echo 'Variables of the tests: JOBS (processes; default one per core), TESTS (arguments of pytest; default all tests).'
	@echo 'Variables of gpu-check: ARGS (its arguments, such as --resume).'

install: $(STAMP)  ## make the environment and build the CPU ops

# torch first: the extension is built against the torch that it will run with, without build isolation.
# nuscenes-devkit last: from Python 3.13 on, no numpy satisfies its requirements (docs/getting_started.md).
$(STAMP): pyproject.toml setup.py $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bevkd2 needs Python 3.10 or newer; name one with make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" wheel ninja pybind11
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "nuscenes-devkit>=1.2"
	touch $@

build: $(STAMP)  ## build the ops again, after a change in csrc/
	$(BIN)/python setup.py build_ext --inplace

demo: $(STAMP)  ## multi-view: make a world, train, distil, score, draw (minutes, no GPU)
	$(BIN)/python tools/demo.py

# Trains the teacher that ships in assets/ (docs/demo.md).
demo-teacher: $(STAMP)  ## train the teacher of the demo
	$(BIN)/python tools/make_synthetic.py --out data/demo_teacher --train-scenes 720 --val-scenes 48 --seed 1
	$(BIN)/python tools/train_net.py --config-file configs/demo/teacher.yaml
	$(BIN)/python tools/export_weights.py output/demo_teacher/model_final.pth assets/demo_teacher.safetensors

demo-mono: $(STAMP)  ## monocular: the same
	$(BIN)/python tools/demo_mono.py

# Trains the monocular teacher that ships in assets/ (docs/demo.md).
demo-mono-teacher: $(STAMP)  ## train the teacher of the monocular demo
	$(BIN)/python tools/make_synthetic.py --format kitti --out data/demo_mono --train-frames 480 --val-frames 120 --seed 0
	$(BIN)/python tools/train_net.py --config-file configs/demo_mono/teacher.yaml
	$(BIN)/python tools/export_weights.py output/demo_mono_teacher/model_final.pth assets/demo_mono_teacher.safetensors

# A file's tests run in one process, the slow files first, so that no core is idle at the end.
test: $(STAMP)  ## run all tests, in JOBS processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

# pyproject.toml has the share of Python's lines that is required.
coverage: $(STAMP)  ## run all tests, and print which share of the lines of Python and C++ they run
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --cov --cov-report=term:skip-covered --cov-report=html:build/coverage/html $(TESTS)
	$(BIN)/python csrc/cpp_coverage.py --fail-under 90

# Minutes; JOBS does not matter. The first tenth of the cases runs in `make test`.
fuzz: $(STAMP)  ## read 2,340 mutated files of every kind, and write what survived
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability fuzz
	$(BIN)/python docs/make_reliability_table.py

# Minutes to hours; as root, since it mounts small disks. The results are the table of docs/reliability.md.
reliability: $(STAMP)  ## kill, break and scale trainings, and write what survived
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability
	$(BIN)/python docs/make_reliability_table.py

lint: $(STAMP)  ## run ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(STAMP)  ## fix what ruff and clang-format can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# A test fails where a page and the results differ.
tables: $(STAMP)  ## write the tables of the docs, from benchmarks/results and the code
	for script in docs/make_*.py; do $(BIN)/python $$script || exit 1; done

docs: $(STAMP)  ## build the docs and the API reference in build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# The wheel is built from the source distribution, which so proves to be complete.
wheel: $(STAMP)  ## build and test the source distribution and the wheel in dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python .ci/check_wheel.py dist

cuda: $(STAMP)  ## compile the CUDA sources, without a GPU
	$(BIN)/python csrc/compile_cuda.py

# csrc/sanitize.py names what is left out, and why.
sanitize: $(STAMP)  ## run the CPU kernels' tests under AddressSanitizer, UBSan and ThreadSanitizer
	$(BIN)/python -m tests.reliability sanitize
	$(BIN)/python docs/make_reliability_table.py

# Without pip and the network: in $(VENV) if there is one, else in PYTHON and the packages that it has.
gpu-check:  ## run everything that needs a GPU, first results first
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check $(ARGS)

# Two of the baselines are optional: `pip install --no-build-isolation -e ".[bench]"` builds them here.
bench: $(STAMP)  ## time the ops
	$(BIN)/python -m benchmarks.bench_kitti_eval
	$(BIN)/python -m benchmarks.bench --steps

clean:  ## remove builds, outputs and caches, but not the environment
	rm -rf build dist output .pytest_cache .mypy_cache .ruff_cache
	find bevkd2 -name '*.so' -delete
