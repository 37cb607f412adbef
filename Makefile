# make demo   install, export the tiny model, build RTX engines, check, stream a video
# make test   install, lint, types, tests
# make check  lint and types only
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check bench clean

demo: $(INSTALLED)
	@$(BIN)/python -m pvc_export.demo $(if $(FILE),--file "$(FILE)") $(if $(SEED),--seed $(SEED))

test: $(INSTALLED) check
	$(BIN)/python -m pytest -q

check: $(INSTALLED)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m pvc_ref.bench

# Everything goes into .venv; nothing on the machine changes. A half-made .venv is made again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
	  { echo "This Python cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 4; }
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,ort,rtx,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build
