# Set up a virtual environment once, then run the job. `make test PYTHON=/path/to/python` uses an existing one instead.
VENV := .venv

ifdef PYTHON
BIN := $(dir $(PYTHON))
READY :=
PEERS :=
else
BIN := $(VENV)/bin/
CHECKSUM := $(shell cksum < pyproject.toml | cut -d' ' -f1)
READY := $(VENV)/.installed-$(CHECKSUM)
PEERS := $(VENV)/.peers-$(CHECKSUM)
endif

# a first impression in minutes; benchmarks/README.md has the commands of the full comparison
BENCH_ATTACKS := --images 50 --seeds 1 --attacks FGSM BIM PGD MIM APGD APGD-DLR APGD-T FAB-norm DeepFool DDN FMN

ADVDEF := $(BIN)python -m lightning_advdef

.PHONY: demo test test-all test-gpu bench docs lint format clean

demo: $(READY)
	$(ADVDEF) fit -c configs/standard/digits.yaml --overwrite
	$(ADVDEF) fit -c configs/deep_defense/digits.yaml --overwrite
	$(ADVDEF) test -c configs/standard/digits.yaml -c configs/evaluation/demo.yaml \
		--model.weights runs/standard_digits/model.ckpt --overwrite
	$(ADVDEF) test -c configs/deep_defense/digits.yaml -c configs/evaluation/demo.yaml \
		--model.weights runs/deep_defense_digits/model.ckpt --overwrite
	$(ADVDEF) report runs/standard_digits runs/deep_defense_digits

test: $(READY)
	$(BIN)python -m pytest --numprocesses auto --dist loadfile

test-all: $(READY)
	$(BIN)python -m pytest -m "not gpu"

test-gpu: $(READY)
	$(BIN)python -m pytest -m gpu

bench: $(READY) $(PEERS)
	$(BIN)python -m benchmarks.bench_data
	$(BIN)python -m benchmarks.bench_rng
	$(BIN)python -m benchmarks.bench_deep_defense
	$(BIN)python -m benchmarks.bench_adversarial_training --width 16 --batch 32
	$(BIN)python -m benchmarks.bench_active_defense
	$(BIN)python -m benchmarks.bench_ride --images 32 --steps 10
	$(BIN)python -m benchmarks.bench_idfr --batch 16 --rounds 3
	$(BIN)python -m benchmarks.bench_idle --images 80 --rounds 2
	$(BIN)python -m benchmarks.bench_attacks $(BENCH_ATTACKS)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)python -m mkdocs build --quiet --strict
	@echo documentation: site/index.html

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

# torchattacks pins a version of requests that is years old, so it comes without its dependencies.
$(VENV)/.peers-%: $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'torchattacks>=3.5.1'
	rm -f $(VENV)/.peers-*
	touch $@

clean:
	rm -rf $(VENV) runs site
