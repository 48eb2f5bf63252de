# Set up a virtual environment once, then run the job. `make test PYTHON=/path/to/python` uses an existing one instead.
VENV := .venv

ifdef PYTHON
BIN := $(dir $(PYTHON))
READY :=
else
BIN := $(VENV)/bin/
READY := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
endif

ADVDEF := $(BIN)python -m lightning_advdef

.PHONY: demo test test-all bench lint format clean

demo: $(READY)
	$(ADVDEF) fit -c configs/standard/digits.yaml --overwrite
	$(ADVDEF) fit -c configs/deep_defense/digits.yaml --overwrite
	$(ADVDEF) test -c configs/standard/digits.yaml -c configs/evaluation/demo.yaml \
		--model.weights runs/standard_digits/model.ckpt --overwrite
	$(ADVDEF) test -c configs/deep_defense/digits.yaml -c configs/evaluation/demo.yaml \
		--model.weights runs/deep_defense_digits/model.ckpt --overwrite
	$(ADVDEF) report runs/standard_digits runs/deep_defense_digits

test: $(READY)
	$(BIN)python -m pytest

test-all: $(READY)
	$(BIN)python -m pytest -m "not gpu"

bench: $(READY)
	$(BIN)python -m benchmarks.bench_data
	$(BIN)python -m benchmarks.bench_rng
	$(BIN)python -m benchmarks.bench_deep_defense

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

format: $(READY)
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

# The stamp's name holds a checksum of pyproject.toml, so a change of dependencies installs anew.
$(VENV)/.installed-%:
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) runs
