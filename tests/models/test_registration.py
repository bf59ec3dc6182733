"""The Auto classes of transformers know the base Transformer, whatever is imported first."""

import subprocess
import sys

import pytest
import transformers
from transformers import AutoConfig

from effitrans.models import EffitransConfig, register

from .cases import CASE_IDS, CASES, SIZES, Case


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_auto_class_builds_the_model(case: Case):
    config = EffitransConfig(**{**SIZES, **case.options, "form": case.form})
    assert type(getattr(transformers, case.auto_class).from_config(config)) is case.model_class


def test_registering_again_is_harmless():
    register()
    register()
    assert type(AutoConfig.for_model("effitrans", form="decoder")) is EffitransConfig


@pytest.mark.parametrize(
    "imports",
    [
        "import effitrans; from transformers import AutoModelForCausalLM",
        "from transformers import AutoModelForCausalLM; import effitrans",
        "from effitrans.models import EffitransConfig; from transformers import AutoModelForCausalLM",
        "from effitrans.models.backbone import EffitransModel; from transformers import AutoModelForCausalLM",
    ],
    ids=["effitrans-first", "transformers-first", "models", "one-module"],
)
@pytest.mark.slow
def test_a_fresh_process_loads_a_saved_model(imports, tmp_path):
    CASES[4].build().save_pretrained(tmp_path)
    program = f"{imports}; print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "EffitransForCausalLM"
