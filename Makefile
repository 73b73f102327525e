.PHONY: help check format test slow

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

check:  ## what CI checks before the tests: format, lint, types
	ruff format --check .
	ruff check .
	pyright

format:  ## rewrite files in the project's format
	ruff format .
	ruff check --fix .

test:  ## the default tests, under ten minutes on two cores
	pytest -n 2 --dist loadfile

slow:  ## learning on several seeds, real models
	pytest -m slow -n 2 --dist loadfile
