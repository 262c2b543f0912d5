# make train: install into .venv, then run the main job.   make test: install, then run the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LMMS   := .venv-lmms
OLDEST := .venv-oldest
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: train test setup lint slow docs browser lmms-eval oldest clean
.DELETE_ON_ERROR:

train: $(STAMP)
	$(BIN)/python -m dpn.train

# The tests of a file share fixtures, so all of them run in one process. Threads of two processes
# would wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: $(STAMP)
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && $(BIN)/python -m mypy

# A warning, e.g. about a broken link, is an error. The variables silence advertisements of the tools.
docs: $(STAMP)
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(STAMP)

# PIP_CONSTRAINT applies to build environments, too, so nothing replaces the CPU build of torch.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

# Install a browser for the tests of the HTML report; without one they are skipped.
browser:
	{ command -v chromium && command -v chromedriver; } >/dev/null || { $(SUDO) apt-get update -qq \
	  && $(SUDO) apt-get install -y -qq --no-install-recommends chromium chromium-driver; } \
	  || echo 'No browser could be installed; its tests will be skipped.'

# lmms-eval needs older versions of some packages that dpn uses, so it gets an environment of its
# own; `make slow` tests the plug-in there.
lmms-eval: $(LMMS)/.installed

# The package index has torchvision for CUDA: with the CPU build of torch it cannot be imported, and
# then transformers cannot either. Nothing here needs it.
$(LMMS)/.installed: pyproject.toml constraints-lmms.txt
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	PIP_CONSTRAINT=constraints-lmms.txt $(LMMS)/bin/python -m pip install --disable-pip-version-check -q -e '.[lmms-eval]'
	$(LMMS)/bin/python -c 'import torchvision' 2>/dev/null || $(LMMS)/bin/python -m pip uninstall -q -y torchvision timm
	touch $@

# The oldest release of transformers that dpn supports; `make slow` compresses models with it. dpn is
# not installed there, as most of what it depends on is not needed for that.
oldest: $(OLDEST)/.installed

$(OLDEST)/.installed: constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -q -r constraints-oldest.txt
	touch $@

clean:
	rm -rf $(VENV) $(LMMS) $(OLDEST) outputs data build dist site .cache
