# Two commands: `make train` and `make test`. Each makes the environment that it needs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(or $(RUN),runs/$(shell date +%Y%m%d-%H%M%S))
BIN := $(VENV)/bin

.PHONY: train test lint types long study analysis bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: $(VENV)/.installed  ## Train on the embedded text, then read the posterior.
	$(BIN)/python -m pyro_meta.train --out $(RUN)
	$(BIN)/python -m pyro_meta.report $(RUN)

test: lint types  ## Lint, types and the default tests.
	$(BIN)/python -m pytest -n 2 --dist worksteal

long: $(VENV)/.installed-dev  ## The tests that are too slow for every day.
	$(BIN)/python -m pytest -m long

study: $(VENV)/.installed  ## The studies for 2 cores, some 75 minutes; repeat it to go on.
	failed=0; for name in planted text budget; do \
		$(BIN)/python -m pyro_meta.ablate benchmarks/studies/$$name.yaml --out studies/$$name --workers 2; \
		code=$$?; [ $$code -le 1 ] || exit $$code; [ $$code -eq 0 ] || failed=1; \
	done; exit $$failed

# Python 3.12 or later gets ArviZ 1.x; the analysis needs no torch.
analysis:  ## The tests of the analysis without torch: make analysis PYTHON=python3.13
	$(PYTHON) -m venv build/analysis
	build/analysis/bin/pip install --quiet 'arviz>=0.23.3,<2' h5netcdf h5py matplotlib mpltern jinja2 scipy pyyaml rich jsonargparse docstring-parser pytest pytest-timeout
	build/analysis/bin/pip install --quiet --no-deps .
	cd tests && PYTHONSAFEPATH=1 ../build/analysis/bin/python -m pytest --noconftest test_analysis.py test_diagnostics.py test_comparison.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy -p pyro_meta
	cd benchmarks && $(abspath $(BIN))/mypy --config-file ../pyproject.toml *.py

bench: $(VENV)/.installed  ## Measure this machine; results under benchmarks/results/.
	$(BIN)/python -m pyro_meta.bench
	$(BIN)/python benchmarks/svi.py
	$(BIN)/python benchmarks/targets.py

clean:
	rm -rf $(VENV) build
