# Needs make and Python 3.11 or newer; each target sets up the .venv it runs in.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n auto --dist worksteal
EXAMPLES := $(wildcard examples/*.py)

.PHONY: demo demo-ray test test-all check lint examples mutate audit leaks soak soak-workers bench bench-long bench-agents bench-observing bench-simulated docs clean
.DELETE_ON_ERROR:

# The main job, end to end: a policy is trained, asynchronously and then synchronously. ARGS=--quick
demo: $(VENV)/.installed-demo
	$(PY) examples/train_reversal $(ARGS)

# The same with its rollouts played by two other processes, on Ray.
demo-ray: $(VENV)/.installed-demo-ray
	$(PY) examples/train_reversal --workers 2 $(ARGS)

# All tests, on both loops. ARGS="-k fork --loop uvloop" narrows; with -n0 in it they run in one process.
test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

# All tests on each Python and each loop. ARGS="--python 3.12 -k fork" narrows.
test-all:
	$(PYTHON) tests/all_pythons.py $(ARGS)

# What continuous integration runs.
check:
	$(MAKE) -j2 --output-sync=target lint examples
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy --exclude examples/train_agent/ areal_core tests $(wildcard examples benchmarks)
	MYPYPATH=examples/train_reversal $(PY) -m mypy examples/train_agent  # apart: of __main__ there is but one

# Not train_reversal and train_agent, which tests/test_examples.py runs. Two others need torch, and say so.
examples: $(VENV)/.installed-dev
	set -e; for example in $(EXAMPLES); do echo "# $$example"; $(PY) -X dev -W error $$example; done

# Which changes of the code no test notices: hours, in as many goes as you like. ARGS="--module _http".
# In an environment of its own: cosmic-ray brings much that the library should not see elsewhere.
mutate:
	$(MAKE) VENV=.venv-mutate .venv-mutate/.installed-mutate
	.venv-mutate/bin/python benchmarks/mutate.py $(ARGS)

# Whether anything that is installed to use or test the library has a known vulnerability. It asks OSV, and fails
# where that cannot be asked. ARGS="--ignore PYSEC-2026-1". In an environment of its own, which is not looked at.
audit: $(VENV)/.installed-test
	$(MAKE) VENV=.venv-audit .venv-audit/.installed-audit
	.venv-audit/bin/python benchmarks/audit.py --packages $(VENV) $(ARGS)

# What is left behind after many cycles.
leaks: $(VENV)/.installed-dev
	$(PY) benchmarks/leaks.py $(ARGS)

# Everything goes wrong for ten minutes, and the books have to balance. ARGS="--seed 7 --minutes 0.3"
soak: $(VENV)/.installed-dev
	$(PY) benchmarks/soak.py $(ARGS)

# Twenty workers of ten thousand rollouts are killed, and nothing may be lost. ARGS="--kills 5 --episodes 3000"
soak-workers: $(VENV)/.installed-demo-ray
	$(PY) benchmarks/killed_workers.py $(ARGS)

# Everything beside the raw loop, the published areal wheel and other peers: nine minutes. ARGS="--rows burst,cpu".
# In an environment of its own, for the peers: Ray alone is larger than all else together.
bench:
	$(MAKE) VENV=.venv-bench .venv-bench/.installed-bench
	.venv-bench/bin/python benchmarks/bench.py $(ARGS)

# Predictions of the simulation beside real runs on Ray. ARGS="--predict", "--run" or "--plot".
bench-simulated:
	$(MAKE) VENV=.venv-bench .venv-bench/.installed-bench
	.venv-bench/bin/python benchmarks/simulated.py $(ARGS)

# Ten million tasks: whether a runner is after a day what it was in the morning.
bench-long: $(VENV)/.installed-dev
	$(PY) benchmarks/long_run.py $(ARGS)

# Agents through the gateway beside the same agents at the server itself.
bench-agents: $(VENV)/.installed-dev
	$(PY) benchmarks/agents.py $(ARGS)

# The documentation, into build/site: a link or a name that leads nowhere fails. ARGS=--quiet
# In an environment of its own: nothing of it is needed to use or test the library.
docs:
	$(MAKE) VENV=.venv-docs .venv-docs/.installed-docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build $(ARGS)

# What figures, spans, logs, bar and status file add to the CPU of an episode.
bench-observing: $(VENV)/.installed-test
	$(PY) benchmarks/observing.py $(ARGS)

clean:
	rm -rf .venv .venv-3.* .venv-mutate .venv-audit .venv-bench .venv-docs .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist train_reversal.png

# Each set of extras has a stamp, so that nobody waits for what a target does not need: 6 s for none,
# 4 s more to test, 6 s more for the linters.
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --editable

$(VENV)/.installed: pyproject.toml | $(PY)
	$(INSTALL) .
	@touch $@

# Several extras have a hyphen between them.
comma := ,
$(VENV)/.installed-%: pyproject.toml | $(PY)
	$(INSTALL) '.[$(subst -,$(comma),$*)]'
	@touch $@

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit( \
		"$(PYTHON) is Python %d.%d; areal_core needs 3.11 or newer: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
