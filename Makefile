# Every target works from a fresh clone: the first one used creates .venv with the tested versions of constraints.txt.
#   make PYTHON=python3.12 demo                                            another interpreter
#   make SEED=7 test                                                       the tests in another order, with other random numbers
#   make PIP_ARGS='--extra-index-url URL' demo    where pip would fetch a CUDA build of torch: the index of CPU builds

PYTHON ?= python3
PIP_ARGS ?=
SEED ?= 0
COVERAGE_ARGS ?=
DATA ?= npz:mnist.npz
MNIST_ARGS ?=
COMPARE_ARGS ?= --study check
MINUTES ?= 5
FUZZ_ARGS ?=
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_MODELS := $(VENV)/.installed-models
export ORT_DISABLE_TELEMETRY ?= 1
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --randomly-seed=$(SEED) --hypothesis-seed=$(SEED)

# Benchmarks and tests need no annotations; of tests, names and calls are checked: a call that no longer fits is found before it runs.
LOOSE_MYPY = MYPYPATH=$(CURDIR)/tests/helpers:$(CURDIR)/tests/tasks:$(CURDIR)/benchmarks:$(CURDIR)/benchmarks/fuzz $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	--cache-dir $(CURDIR)/.mypy_cache/loose --check-untyped-defs --allow-untyped-defs --allow-incomplete-defs
TEST_ERRORS = arg-type assignment attr-defined comparison-overlap dict-item index method-assign misc operator override return-value \
	type-var union-attr var-annotated

.PHONY: help install demo test lint types types-all unit test-slow coverage coverage-models mutation-rules operations options bench-alignment bench-own-loop bench-step bench-gates bench-mnist bench-compare fuzz clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(INSTALLED) ## create .venv with l0prune (editable) and the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[report,test]'
	touch $@

$(INSTALLED_MODELS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps timm
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt transformers pyyaml lightning
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps torchvision
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	cp tests/helpers/torchvision_beside_cpu_torch.py $$site && \
	echo 'import torchvision_beside_cpu_torch' > $$site/torchvision_beside_cpu_torch.pth
	touch $@

demo: $(INSTALLED) ## prune, cut, export and measure the bundled network (about a minute)
	$(BIN)/l0prune demo

test: lint types unit ## lint, types and the quick tests (under 8 minutes on 2 cores)

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# cli/ and models/ are packages of l0prune that live beside it: mypy sees them where an installation puts them.
types: $(INSTALLED) ## mypy, strict, of the library
	rm -rf build/typed
	mkdir -p build/typed/l0prune
	ln -s $(CURDIR)/l0prune/* build/typed/l0prune
	ln -s $(CURDIR)/cli $(CURDIR)/models build/typed/l0prune
	cd build/typed && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

types-all: types ## and of benchmarks and tests (a minute)
	cd build/typed && $(LOOSE_MYPY) $(CURDIR)/benchmarks/*.py $(CURDIR)/benchmarks/fuzz/*.py
	cd build/typed && $(LOOSE_MYPY) $(TEST_ERRORS:%=--disable-error-code %) $$(find $(CURDIR)/tests -name '*.py')

unit: $(INSTALLED)
	$(PYTEST) -n 2

test-slow: types-all ## the tests that take longer than a few seconds each
	$(PYTEST) -n 2 -m slow

coverage-models: $(INSTALLED_MODELS) ## cut real architectures from timm, torchvision and transformers
	$(PYTEST) -n 2 -m models

coverage: $(INSTALLED_MODELS) ## cut every timm family, torchvision and transformers, with ONNX; docs/coverage.md (hours, goes on where it stopped)
	$(BIN)/python benchmarks/coverage.py $(COVERAGE_ARGS)

mutation-rules: $(INSTALLED) ## break every rule of the channel flow in turn: which test notices? docs/mutations.md (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation_rules.py --jobs 2

operations: $(INSTALLED_MODELS) ## which operations networks are made of, and what becomes of them: docs/operations.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/operations.py --collect

options: $(INSTALLED) ## all options of a run: docs/options.md
	$(BIN)/python benchmarks/option_page.py

bench-alignment: $(INSTALLED_MODELS) ## latency of a pruned MobileNetV2 against the rounding of its widths
	$(BIN)/python benchmarks/alignment.py

bench-own-loop: $(INSTALLED_MODELS) ## the README's loop on four networks: equal outputs, the budget, the clock
	$(BIN)/python benchmarks/own_loop.py

bench-step: $(INSTALLED) ## time of a gated training step against a plain one
	$(BIN)/python benchmarks/step_overhead.py

bench-gates: $(INSTALLED) ## time of one sampled step of a million gates, each family
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gate_step.py

fuzz: $(INSTALLED) ## damaged files for every reader: make fuzz MINUTES=10
	$(BIN)/python benchmarks/fuzz/run.py --minutes $(MINUTES) $(FUZZ_ARGS)

bench-mnist: $(INSTALLED) ## LeNets as in the L0 papers; docs/mnist.md (hours, goes on where it stopped): make bench-mnist DATA=npz:mnist.npz
	$(BIN)/python benchmarks/mnist_l0.py $(DATA) $(MNIST_ARGS)

bench-compare: $(INSTALLED_MODELS) ## gates against every criterion: docs/benchmarks.md (hours, goes on where it stopped): make bench-compare COMPARE_ARGS='--data CIFAR10.npz --checkpoints DIR'
	$(BIN)/python benchmarks/compare.py $(COMPARE_ARGS)

bench-closed-form: $(INSTALLED_MODELS) ## networks cut without training, beside onnxsim: make bench-closed-form CLOSED_FORM_ARGS='--cifar10 CIFAR10.npz --resnet20 FILE'
	$(BIN)/python benchmarks/closed_form.py $(CLOSED_FORM_ARGS)

clean: ## remove .venv and everything generated
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
