# To try it: make demo | up. To work on it: make check | test | bench | fmt | lock | clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
DIR ?= .hydracore
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: demo up check test bench fmt lock clean

demo: $(VENV)/.runtime
	$(BIN)/hydracore demo

up: $(VENV)/.runtime
	$(BIN)/hydracore up --home "$(DIR)" --port $(PORT)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

test: $(VENV)/.dev
	$(BIN)/pytest -n 8 --dist worksteal $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

fmt: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every package is pinned by hash; the project itself is installed without build isolation, so nothing unpinned is fetched.
# An environment is kept where it is whole: without Debian's package python3-venv, what a first try leaves has no pip.
# It is compiled here, because images often forbid Python to keep what it compiles, and each part would do so at each start.
# PostgreSQL's initdb has a shell start what is beside it, with its path in double quotes.
# Where we are is written relatively: Python before 3.13 does not start in the locale C where it reads a path beyond ASCII.
$(VENV)/.runtime: requirements.lock pyproject.toml
	@case "$$PWD" in *[\"\$$\`\\]*) \
		echo "PostgreSQL cannot be started below a directory that has one of \" \$$ \` \\ in its name: move the clone" >&2; exit 1;; esac
	@$(BIN)/python -c '$(IS_NEW_ENOUGH)' 2>/dev/null && \
		{ $(BIN)/python -m pip --version || $(BIN)/python -m ensurepip; } >/dev/null 2>&1 || { \
		$(PYTHON) -c '$(IS_NEW_ENOUGH)' 2>/dev/null || { \
			echo "HydraCore needs Python 3.11 or newer, and \`$(PYTHON) --version\` says \"$$($(PYTHON) --version 2>&1)\":" \
				"name another, as in: make demo PYTHON=python3.12" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	for path in $(VENV)/lib/python*/site-packages/_editable_impl_hydracore.pth; do echo ../../../.. >"$$path"; done
	$(BIN)/python -m compileall -q events projections workers hydracore
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	touch $@

# Needs uv on PATH. No URL is emitted, so the lock works with any index.
lock:
	uv pip compile pyproject.toml --extra parquet --group build --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --quiet -o requirements.lock
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --quiet -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
