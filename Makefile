# Everything runs in .venv, which the first target makes. On a machine with its own PyTorch (and no network):
# make test-gpu PY=python3
PY ?= .venv/bin/python
ifeq ($(origin PY),file)
VENV := .venv/.installed
endif
export OMP_NUM_THREADS ?= 2

.PHONY: demo build test test-ops test-cuda test-rest test-interpret test-gpu lint format bench bench-gpu clean

demo: build
	$(PY) examples/demo.py

build: $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .

# Processes side by side, a core each. (Three at once took longer: the last one then runs alone.)
test: build
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 --output-sync=target --keep-going test-ops test-rest test-interpret test-cuda

test-ops: build
	$(PY) -m pytest tests/ops

# Kernels under emulation start threads by the thousand: not in the process of the others.
test-cuda: build
	$(PY) -m pytest tests/cuda

test-rest: build
	$(PY) -m pytest --ignore tests/ops --ignore tests/cuda

# Triton's interpreter must be chosen before Triton is imported, so its tests are a process of their own.
test-interpret: build
	TRITON_INTERPRET=1 $(PY) -m pytest tests/triton tests/ops -k "triton"

# What only a GPU shows comes first. By name: other folders need packages that a machine with a GPU may lack.
GPU_TESTS := tests/cuda/test_gpu.py tests/models/test_graphed.py tests/bench tests/ops tests/triton

# With pytest-xdist: make test-gpu ARGS="-n 12"
test-gpu: build
	$(PY) -m pytest -m gpu $(ARGS) $(GPU_TESTS)

bench-gpu: build
	$(PY) -m bench gpu $(ARGS)

lint: $(VENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(dir $(PY))clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.cu' '*.h' '*.cuh')

format: $(VENV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(dir $(PY))clang-format -i $$(git ls-files '*.cpp' '*.cu' '*.h' '*.cuh')

bench: build
	$(PY) -m bench ops --device cpu
	$(PY) -m bench ops --device cpu --allocator default
	$(PY) -m bench models --device cpu
	$(PY) -m bench report

clean:
	rm -rf .venv build dist *.egg-info pyindexnet/*.so demo_output

.venv/.installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
