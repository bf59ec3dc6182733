# make demo: the main job on the embedded default; make test: lint, types and tests. Both make the environment.
PYTHON ?= python3
VENV ?= .venv
PEERS_VENV ?= .venv-peers
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
export EFFITRANS_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data),)
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-all test-oldest test-newest lint format reports clean

REPORTS = sst2-minilm stsb-minilm multi30k-base tinyshakespeare-base
STUDIES = pruning/sst2-half pruning/sst2-seventy \
  distillation/sst2 distillation/sst2-narrow distillation/sst2-narrow-parts distillation/sst2-narrower \
  distillation/stsb distillation/multi30k conversion/sst2 decoder/tinyshakespeare \
  quantization/sst2 quantization/stsb quantization/tinyshakespeare \
  attention/listops attention/mqar attention/sst2-bytes

# What the benchmarks compare with is apart, as some of it patches torch on import. The oldest versions that
# pyproject.toml allows and the newest that there are have environments of their own.
%/.installed: EXTRAS = dev,bench
%/.installed: CONSTRAINTS = -c constraints.txt
$(PEERS_VENV)/.installed: EXTRAS = bench,peers,export
.venv-oldest/.installed: CONSTRAINTS = -c constraints-oldest.txt
.venv-newest/.installed: CONSTRAINTS =

%/.installed: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade pip
	$*/bin/python -m pip install --quiet $(CONSTRAINTS) torch
	$*/bin/python -m pip install --quiet $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	touch $@

demo: $(STAMP)
	$(BIN)/effitrans run quickstart --output runs/quickstart --overwrite
	@echo "open runs/quickstart/report.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -q

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-oldest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -n 2 --dist worksteal -m "not slow" -q

# Runs what is not finished under runs/, copies records and pages (no weights) to reports/, compares with the peers
# and draws the index.
reports: $(STAMP) $(PEERS_VENV)/.installed
	for name in $(REPORTS); do \
	  $(BIN)/effitrans run $$name --output runs/$$name $$([ -d runs/$$name ] && echo --resume) && \
	  mkdir -p reports/$$name/records && \
	  cp runs/$$name/recipe.yaml runs/$$name/report.* reports/$$name/ && \
	  cp runs/$$name/records/*.json reports/$$name/records/ || exit 1; \
	done
	for name in $(STUDIES); do \
	  study=$$(echo $$name | tr / -) && \
	  $(BIN)/effitrans compare recipes $$study --output runs/$$study --resume && \
	  mkdir -p reports/$$name/records && \
	  cp runs/$$study/study.yaml runs/$$study/report.* reports/$$name/ && \
	  cp runs/$$study/records/*.json reports/$$name/records/ || exit 1; \
	done
	for task in listops mqar; do \
	  $(BIN)/python benchmarks/lengths.py attention-$$task reports/attention/$$task || exit 1; \
	done
	$(BIN)/python benchmarks/pruning_curves.py runs/sst2-minilm/steps/01-teacher sst2 --output reports/pruning/sst2-curves
	$(BIN)/python benchmarks/latency_budget.py runs/sst2-minilm/steps/01-teacher sst2 --output runs/latency-budget
	mkdir -p reports/pruning/sst2-latency/records
	cp runs/latency-budget/report.* reports/pruning/sst2-latency/
	cp runs/latency-budget/records/*.json reports/pruning/sst2-latency/records/
	for task in sst2 stsb; do \
	  $(PEERS_VENV)/bin/python benchmarks/peers.py --run runs/$$task-minilm --task $$task --output reports/peers/$$task || exit 1; \
	done
	$(BIN)/effitrans report --index reports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEERS_VENV) .venv-oldest .venv-newest runs
