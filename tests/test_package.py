"""The package itself: light to import, and its public names are there."""

import subprocess
import sys

import pytest

import effitrans


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    heavy = "torch transformers datasets sklearn scipy matplotlib torch_pruning bitsandbytes pydantic"
    code = f"import sys, effitrans; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run_python(code) == "[]"


def test_every_public_name_resolves():
    for name in effitrans.__all__:
        assert getattr(effitrans, name) is not None


ORDERS = {
    "effitrans-then-auto-model": "import effitrans; from transformers import AutoModel",
    "effitrans-then-auto-config": "import effitrans; from transformers import AutoConfig",
    "effitrans-then-a-model": "import effitrans; from transformers import BertModel",
    "effitrans-then-trainer": "import effitrans; from transformers import Trainer",
    "transformers-first": "from transformers import BertModel, AutoModel; import effitrans",
    "bare-transformers-first": "import transformers; import effitrans",
    "base-model-first": "from effitrans.models.language import EffitransForCausalLM",
    "checkpoint-first": "import effitrans.checkpoint",
}


@pytest.mark.slow
@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS.keys())
def test_registration_does_not_depend_on_the_order_of_imports(imports):
    code = (
        f"{imports}; from transformers import AutoConfig, AutoModelForCausalLM;"
        "model = AutoModelForCausalLM.from_config(AutoConfig.for_model('effitrans', form='decoder', hidden_size=16,"
        "num_attention_heads=2, num_hidden_layers=1, vocab_size=9));"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as quantizers;"
        "print(type(model).__name__, 'effitrans' in quantizers)"
    )
    assert run_python(code) == "EffitransForCausalLM True"
