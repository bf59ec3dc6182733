"""The package itself: light to import, and its public names are there."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import effitrans
from effitrans.errors import UsageError
from effitrans.versions import check_versions

PROJECT = Path(__file__).parent.parent


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
    "effitrans-then-quantizers": "import effitrans; from transformers.quantizers.auto import AutoHfQuantizer",
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


DECLARED = ["torch>=2.9", "transformers>=5.10,<6", "PyYAML>=6", "peft>=0.18 ; extra == 'lora'"]
FITTING = {"torch": "2.9.0+cpu", "transformers": "5.24.0", "PyYAML": "6.0", "peft": "0.21.2"}
OUTSIDE = {
    "too-old": (
        {"torch": "2.8.0"},
        "",
        "installed: torch 2.8.0; effitrans works with torch>=2.9: pip install 'torch>=2.9'",
    ),
    "too-new": ({"transformers": "6.0.1"}, "", "works with transformers<6,>=5.10"),
    "several": ({"torch": "2.8.0", "PyYAML": "5.4"}, "", "torch 2.8.0, PyYAML 5.4; .* 'torch>=2.9' 'PyYAML>=6'"),
    "of-an-extra": ({"peft": "0.17.1"}, "lora", "peft 0.17.1; effitrans works with peft>=0.18"),
}
INSIDE = {
    "all": ({}, ""),
    "an-extra-that-is-not-asked-for": ({"peft": "0.17.1"}, ""),
    "development-builds": ({"torch": "2.9.0a0+git1234", "transformers": "5.10.0.dev0"}, ""),
    "not-installed": ({"torch": None}, ""),
}


def install(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None]) -> None:
    def version(name: str) -> str:
        found = {**FITTING, **changed}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "requires", lambda name: DECLARED)
    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(("changed", "extra", "message"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_version_outside_the_range_is_named(changed, extra, message, monkeypatch):
    install(monkeypatch, changed)
    for kind in (UsageError, ImportError):
        with pytest.raises(kind, match=message):
            check_versions(extra)


@pytest.mark.parametrize(("changed", "extra"), INSIDE.values(), ids=INSIDE.keys())
def test_versions_inside_the_range_are_taken(changed, extra, monkeypatch):
    install(monkeypatch, changed)
    check_versions(extra)


def test_a_folder_that_was_never_installed_declares_nothing(monkeypatch):
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    check_versions()


def test_the_import_looks_at_versions():
    code = (
        "from importlib import metadata; metadata.requires = lambda name: ['torch>=99']\n"
        "try: import effitrans\nexcept ImportError as error: print(error)"
    )
    assert "effitrans works with torch>=99" in run_python(code)


def test_the_oldest_versions_tested_are_those_declared():
    """One pin for each range in pyproject.toml but for those of development tools, at its lower end."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges = dict(line.split(">=") for line in [*project["dependencies"], *extras["search"], *extras["lora"]])
    lines = (PROJECT / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name.lower(): low for name, low in ranges.items()} == {name.lower(): pin for name, pin in pins.items()}


@pytest.mark.parametrize(
    ("target", "constraints"),
    [("test", "-c constraints.txt"), ("test-oldest", "-c constraints-oldest.txt"), ("test-newest", "")],
)
def test_the_makefile_tests_either_end_of_the_range(target, constraints):
    make = ["make", "--dry-run", "--always-make", target]
    printed = subprocess.run(make, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    installs = re.findall(r"pip install --quiet (.*?) ?-e", printed)
    assert [text.strip() for text in installs] == [constraints]
    assert re.search(r"pytest .*-m \"not slow\"", printed)


def test_a_star_import_hides_no_module_of_torch():
    assert not set(effitrans.__all__) & set(dir(torch.nn))


def test_the_settings_of_every_scheme_are_offered():
    from effitrans.quantization import SCHEMES

    assert {config.__name__ for config in SCHEMES.values()} <= set(effitrans.__all__)
