"""Whether weight files hold exactly the tensors of a model that a manifest has rebuilt."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from effitrans.checkpoint.manifest import Manifest
from effitrans.errors import CheckpointError


def resolve(manifest: Manifest, model: PreTrainedModel) -> dict[str, str | None]:
    """Manifest path -> path in this model, which may be the bare encoder of the saved one or the reverse.

    A path that belongs to the head of the saved model maps to None in a model that has another head.
    """
    same = same_class(model)
    prefix = f"{model.base_model_prefix}."
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def fits(path: str) -> bool:
        return path in known or (path.rpartition(".")[0] in known and path.rpartition(".")[0] != "")

    resolved: dict[str, str | None] = {}
    for path in {*manifest.modules, *manifest.attributes}:
        candidates = [path] if same else [path, path.removeprefix(prefix), prefix + path]
        found = next((candidate for candidate in candidates if fits(candidate)), None)
        if found is None and same:
            found = path
        resolved[path] = found
    return resolved


def same_class(model: PreTrainedModel) -> bool:
    saved = getattr(model.config, "architectures", None) or [type(model).__name__]
    return type(model).__name__ in saved


def check_weights(model: PreTrainedModel, manifest: Manifest, files: list[Path]) -> None:
    """Refuse weight files that are not safetensors, are damaged, or do not hold exactly the model's tensors.

    Where the model has another head than the saved one, only the modules that the manifest names must be
    complete; new heads are initialised by transformers as usual.

    Raises:
        CheckpointError: with the file or the tensors named.
    """
    found = read_shapes(files)
    # Checkpoints of training keep the model's own names.
    tensors = max(_as_saved(model), model.state_dict(), key=lambda names: len(names.keys() & found.keys()))
    expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if not same_class(model):
        named = tuple(f"{path}." for path in resolve(manifest, model).values() if path is not None)
        prefix = f"{model.base_model_prefix}."
        has_prefix = any(name.startswith(prefix) for name in expected)
        found = {(prefix + name if has_prefix and prefix + name in expected else name): s for name, s in found.items()}
        found = {(name if has_prefix else name.removeprefix(prefix)): shape for name, shape in found.items()}
        expected = {name: shape for name, shape in expected.items() if name.startswith(named)}
        found = {name: shape for name, shape in found.items() if name in expected}
    tied = getattr(model, "all_tied_weights_keys", {}) or {}
    missing = {
        name
        for name in expected.keys() - found.keys()
        if not (tied.get(name) in found or any(target in found for target, source in tied.items() if source == name))
    }
    extra = found.keys() - expected.keys()
    missing = _drop_ignored(missing, model._keys_to_ignore_on_load_missing)
    extra = _drop_ignored(extra, model._keys_to_ignore_on_load_unexpected)
    wrong = [
        f"{name}: file {found[name]}, model {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    for problem, names in (("lacks", missing), ("has unexpected", extra), ("has misshapen", wrong)):
        if names:
            raise CheckpointError(
                f"{files[0].parent} {problem} weights ({len(names)}): {shorten(names)}. "
                "The weights and the manifest in config.json do not belong together; save or download the folder again."
            )


def _as_saved(model: PreTrainedModel) -> dict[str, Any]:
    """The model's (meta) tensors under the names that `save_pretrained` gives them, which some families rename."""
    return revert_weight_conversion(model, model.state_dict())


def read_shapes(files: list[Path]) -> dict[str, list[int]]:
    """Tensor name -> shape over all files, read from the headers alone.

    Raises:
        CheckpointError: a file is a pickle, missing, truncated or not safetensors.
    """
    shapes: dict[str, list[int]] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise CheckpointError(f"{file} is not a safetensors file: pickled weights are refused, convert them first")
        try:
            with safe_open(file, framework="pt") as opened:
                shapes.update({name: opened.get_slice(name).get_shape() for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or truncated ({error}): save or download it again") from error
    return shapes


def _drop_ignored(names: Any, patterns: Any) -> set[str]:
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}


def shorten(names: Any, limit: int = 4) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
