"""The package itself: light to import, and its public names are there."""

import subprocess
import sys

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


def test_registration_does_not_depend_on_the_order_of_imports():
    code = (
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as q;"
        "{before}import effitrans;from transformers import BertModel, AutoModel, AutoConfig;"
        "print('effitrans' in q, 'effitrans' in AutoConfig.for_model('effitrans').model_type)"
    )
    assert run_python(code.format(before="")) == "True True"
    assert run_python(code.format(before="from transformers import BertModel, AutoModel;")) == "True True"
