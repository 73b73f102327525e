.PHONY: help check format test slow docs measures lock newest oldest

PYTHON ?= python3
# Where `newest` and `oldest` make their environments, and which tests they run there.
SCRATCH ?= build
TESTS ?= tests

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

check:  ## what CI checks before the tests: format, lint, imports, types
	ruff format --check .
	ruff check .
	lint-imports
	pyright

format:  ## rewrite files in the project's format
	ruff format .
	ruff check --fix .

test:  ## the default tests, some six minutes on two idle cores
	pytest -n 2 --dist loadfile

slow:  ## learning on several seeds, real models
	pytest -m slow -n 2 --dist loadfile

docs:  ## the documentation as a site in build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

measures:  ## how many files, functions and lines a reader meets
	$(PYTHON) -m tests.measures

lock:  ## renew requirements.lock, the versions that README's commands install; needs uv
	$(PYTHON) -m tests.locked_versions

newest:  ## the default tests with the newest versions that pyproject.toml admits, in an environment of their own
	$(PYTHON) -m venv --clear $(SCRATCH)/newest
	$(SCRATCH)/newest/bin/python -m pip install --quiet -e '.[test]'
	$(SCRATCH)/newest/bin/python -m pip list
	$(SCRATCH)/newest/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

oldest:  ## the same with the oldest; needs uv
	$(PYTHON) -m venv --clear $(SCRATCH)/oldest
	uv pip compile --quiet --resolution lowest-direct --python $(SCRATCH)/oldest/bin/python --extra test \
	  pyproject.toml --output-file $(SCRATCH)/oldest/requirements.txt
	$(SCRATCH)/oldest/bin/python -m pip install --quiet -r $(SCRATCH)/oldest/requirements.txt
	$(SCRATCH)/oldest/bin/python -m pip install --quiet --no-deps -e .
	$(SCRATCH)/oldest/bin/python -m pytest -n 2 --dist loadfile $(TESTS)
