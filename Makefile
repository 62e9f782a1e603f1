# Everything runs through the interpreter $(RUN). `make test PYTHON=python3 VENV=` installs nothing and uses PYTHON.
PYTHON ?= python3
VENV ?= .venv
DATASET ?= digits
RUN = $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY = $(if $(VENV),$(VENV)/.installed)

.PHONY: reproduce test test-slow test-all gradcheck sanitize kernels notebooks package lint bench clean

reproduce: $(READY)
	$(RUN) -m experiments.reproduce --dataset $(DATASET)

test: $(READY)
	$(RUN) -m pytest $(if $(VENV),-n auto --maxprocesses 4 --dist loadscope)

test-slow: $(READY)
	$(RUN) -m pytest $(if $(VENV),-n 4 --dist worksteal) -m slow

test-all: test test-slow

gradcheck: $(READY)
	$(RUN) -m tests.gradient_table

sanitize: $(READY)
	$(RUN) -m tests.sanitize

kernels: $(READY)
	$(RUN) -m tests.compile_matrix

package: $(READY)
	$(RUN) -m pip install --quiet build
	$(RUN) -m tests.try_package

notebooks: $(READY)
	$(RUN) -m tests.notebooks

bench: $(READY)
	$(RUN) -m pip install --quiet -e '.[benchmark]'
	$(RUN) -m experiments.benchmark --against torch --json runs/benchmark.json

lint: $(READY)
	$(RUN) -m pip install --quiet ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

ifneq ($(VENV),)
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	touch $@
endif

clean:
	rm -rf .venv build *.egg-info runs
