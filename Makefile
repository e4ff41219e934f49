# `make demo` and `make test` are all a newcomer needs; both make .venv, install and build first.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/gpu
SUITE ?= ops
# Options of pip for torch, such as an index that holds its CPU build.
TORCH_OPTIONS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
CXX_FILES = $(shell find csrc tests examples -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' -o -name '*.inc')

.PHONY: demo test lint format build bench gpu-check sanitize clean

# Threads that spin at barriers take the processor from the one they wait for when the machine is
# shared: 20 times slower there.
demo test: export OMP_WAIT_POLICY ?= passive

demo: build
	$(PY) examples/demo.py

test: lint build
	$(PY) -m pytest -m "not gpu" -q -n 2 --dist loadfile --durations=10

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

bench: build
	$(PY) -m ardiff bench $(SUITE) --json out/bench-$(SUITE).json

# The C++ CPU kernels under ASan, UBSan and TSan.
sanitize: $(VENV)/.installed
	$(MAKE) -C tests/kernels/cpp PY=$(abspath $(PY))

# Uses python3's own torch, needs no network and no .venv.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --out $(OUT)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old or missing: Python 3.10 or newer is needed (make PYTHON=/path/to/python3 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(wildcard requirements/*.txt requirements/*/*.txt)
	$(PIP) install -q --no-compile --no-deps $(TORCH_OPTIONS) -r requirements/torch.txt
	$(PIP) install -q --no-compile $(addprefix -r ,$(wildcard requirements/*.txt))
	$(PIP) install -q --no-compile --no-deps $(addprefix -r ,$(wildcard requirements/no-deps/*.txt))
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

clean:
	rm -rf build out *.egg-info .pytest_cache .ruff_cache
	find ardiff_kernels -name '*.so' -delete
	rm -rf ardiff_kernels/libardiff
	rm -f $(VENV)/.built
