"""The manifest: what differs between a model and the one its architecture builds from `config.json`.

It is stored under `quantization_config` (the key that transformers reads before it loads weights) with
`quant_method: effitrans`:

    {"quant_method": "effitrans", "manifest_version": 1,
     "modules":    {"encoder.layer.0.attention.self.query": {"kind": "resized", "shapes": {"weight": [192, 384], ...}},
                    "embeddings.word_embeddings": {"kind": "int8_embedding", ...}},
     "attributes": {"encoder.layer.0.attention.self": {"num_attention_heads": 6, "all_head_size": 192}},
     "history":    [{"verb": "prune", "config": {...}, "summary": {...}, "effitrans": "0.1.0"}]}

Nothing is recorded by hand: `diff` compares the model with a fresh skeleton on the meta device, and `apply`
does to a skeleton what `diff` found. Only JSON is read; nothing is unpickled or evaluated. A manifest is validated
whole when it is read, before anything is built: the entries by `Schema`, the spec of a module kind by its class.
"""

import copy
import math
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from effitrans.checkpoint.kinds import MODULE_KINDS, Spec, module_kind, spec_config
from effitrans.config import Config, Dimension
from effitrans.errors import CheckpointError, UsageError

MANIFEST_VERSION = 1
_RUNTIME_ATTRIBUTES = {"training", "gradient_checkpointing", "is_quantized"}


class Resized(Spec):
    """A module of an unchanged class, some of whose tensors have another shape or (null) are gone."""

    shapes: dict[str, list[Dimension] | None]


class Removed(Spec):
    """A module that the architecture builds and the model does not have."""


def _check_entry(entry: Any) -> Any:
    if not isinstance(entry, dict) or not isinstance(kind := entry.get("kind"), str):
        raise ValueError('expected an object with a "kind"')
    own: dict[str, type[Config]] = {"resized": Resized, "removed": Removed}
    config = own[kind] if kind in own else spec_config(module_kind(kind))
    config.parse({name: value for name, value in entry.items() if name != "kind"}, kind)
    return entry


def _check_value(value: Any) -> Any:
    numbers = value if isinstance(value, (tuple, list)) else [value]
    if not _plain(value) or not all(map(math.isfinite, numbers)):
        raise ValueError("expected a number, true, false, or a list of them")
    return value


class Pass(pydantic.BaseModel):
    """A pass of the history."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    verb: str
    config: dict[str, Any]
    summary: dict[str, Any]
    effitrans: str


class Schema(Spec):
    """What a manifest may hold."""

    quant_method: Literal["effitrans"] = "effitrans"
    manifest_version: int = pydantic.Field(ge=1, le=10**6)
    modules: dict[str, Annotated[Any, pydantic.PlainValidator(_check_entry)]]
    attributes: dict[str, dict[str, Annotated[Any, pydantic.PlainValidator(_check_value)]]]
    history: list[Pass]

    @pydantic.field_validator("manifest_version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version > MANIFEST_VERSION:
            raise ValueError(
                f"the manifest has version {version}; this effitrans reads versions up to {MANIFEST_VERSION}. "
                "Upgrade effitrans to load this checkpoint"
            )
        return version


class Manifest(QuantizationConfigMixin):
    """The declarative structure of a compressed model and the history of the passes that made it.

    Args:
        manifest_version: version of this format; a newer one than `MANIFEST_VERSION` is refused.
        modules: module path -> {"kind": ..., ...}, in the order in which they are applied (parents first).
        attributes: module path -> attribute name -> value, for modules of an unchanged class.
        history: one entry a pass, oldest first.
        more: `quant_method`, as transformers passes it; anything else is refused.

    Raises:
        CheckpointError: the version is newer than this effitrans, or a field does not fit `Schema`; it is named.
    """

    def __init__(
        self,
        manifest_version: int = MANIFEST_VERSION,
        modules: dict[str, dict[str, Any]] | None = None,
        attributes: dict[str, dict[str, Any]] | None = None,
        history: list[dict[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        modules, attributes = {} if modules is None else modules, {} if attributes is None else attributes
        history = [] if history is None else history
        given = {"manifest_version": manifest_version, "modules": modules, "attributes": attributes, "history": history}
        try:
            Schema.parse({**given, **more})
        except UsageError as error:
            raise CheckpointError(f"the manifest in config.json cannot be read: {error}") from error
        self.quant_method = "effitrans"  # type: ignore[assignment]
        self.manifest_version = manifest_version
        self.modules = modules
        self.attributes = attributes
        self.history = history

    @property
    def is_structural(self) -> bool:
        """Whether the model differs from what its architecture builds."""
        return bool(self.modules or self.attributes)


register_quantization_config("effitrans")(Manifest)  # as a call: as a decorator it would hide the class's type


def skeleton(model: nn.Module) -> nn.Module:
    """What the architecture builds from the model's config, on the meta device: no memory, no weights."""
    config: Any = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return type(model)(config)


def diff(model: nn.Module) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The (modules, attributes) in which `model` differs from its skeleton.

    Raises:
        CheckpointError: a module of a class that the manifest cannot describe.
    """
    expected = dict(skeleton(model).named_modules(remove_duplicate=False))
    modules: dict[str, dict[str, Any]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    described: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{parent}.") for parent in described):
            continue
        original = expected.get(path)
        if original is None or type(module) is not type(original):
            modules[path] = _kind_entry(path, module)
            described.append(path)
            continue
        if shapes := _changed_shapes(module, original):
            modules[path] = {"kind": "resized", "shapes": shapes}
        if changed := _changed_attributes(module, original):
            attributes[path] = changed
    present = {path for path, _ in model.named_modules(remove_duplicate=False)}
    for path in expected.keys() - present:
        parent = path.rpartition(".")[0]
        if parent in present and not any(path.startswith(f"{described_path}.") for described_path in described):
            modules[path] = {"kind": "removed"}
    return modules, attributes


def _kind_entry(path: str, module: nn.Module) -> dict[str, Any]:
    kind = getattr(type(module), "kind", None)
    if kind not in MODULE_KINDS:
        raise CheckpointError(
            f"{path} is a {type(module).__name__}, which the manifest cannot describe: "
            f"give the class a `kind` listed in effitrans.checkpoint.kinds (known: {', '.join(MODULE_KINDS)})"
        )
    return {"kind": kind, **module.spec()}  # type: ignore[operator]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor | None]:
    persistent = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
    return {**module._parameters, **persistent}


def _changed_shapes(module: nn.Module, original: nn.Module) -> dict[str, list[int] | None]:
    def shapes(tensors: dict[str, torch.Tensor | None]) -> dict[str, list[int] | None]:
        return {name: None if tensor is None else list(tensor.shape) for name, tensor in tensors.items()}

    mine, theirs = shapes(_tensors(module)), shapes(_tensors(original))
    return {name: shape for name, shape in mine.items() if name not in theirs or shape != theirs[name]}


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (
        isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float)) for item in value)
    )


def _changed_attributes(module: nn.Module, original: nn.Module) -> dict[str, Any]:
    theirs = vars(original)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in _RUNTIME_ATTRIBUTES
        and name in theirs
        and _plain(value)
        and _plain(theirs[name])
        and value != theirs[name]
    }


def apply(manifest: Manifest, model: nn.Module, resolve: dict[str, str | None] | None = None) -> None:
    """Give a skeleton the structure that the manifest describes, in place, on the skeleton's device.

    Args:
        manifest: what to apply.
        model: a model as its architecture builds it.
        resolve: manifest path -> path in `model`; None for a part this model does not have. Default: identity.

    Raises:
        CheckpointError: a path, kind, shape or attribute that does not fit the model.
    """
    resolve = resolve or {}
    for path, entry in manifest.modules.items():
        target = resolve.get(path, path)
        if target is not None:
            _apply_module(model, target, entry)
    for path, values in manifest.attributes.items():
        target = resolve.get(path, path)
        if target is not None:
            _apply_attributes(_submodule(model, target), target, values)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CheckpointError(
            f"the manifest names the module {path!r}, which {type(model).__name__} does not have: "
            "the folder's config.json and its manifest do not belong together"
        ) from None


def _apply_module(model: nn.Module, path: str, entry: dict[str, Any]) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = _submodule(model, parent_path)
    kind = entry["kind"]
    try:
        if kind == "resized":
            _resize(_submodule(model, path), path, entry["shapes"])
        elif kind == "removed":
            _submodule(model, path)
            delattr(parent, name)
        else:
            spec = {key: value for key, value in entry.items() if key != "kind"}
            built = module_kind(kind).from_spec(spec, parent._modules.get(name))
            parent.register_module(name, built)
    except CheckpointError:
        raise
    except (AttributeError, ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the manifest's {kind} entry does not fit ({error!r})") from error


def _resize(module: nn.Module, path: str, shapes: dict[str, list[int] | None]) -> None:
    tensors = _tensors(module)
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: {type(module).__name__} has no tensor {name!r}")
        old = tensors[name]
        if shape is None:
            setattr(module, name, None)
        elif old is None:
            raise CheckpointError(f"{path}.{name}: the architecture builds no such tensor")
        else:
            new = torch.empty(shape, dtype=old.dtype, device=old.device)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(module, name, new)


def _apply_attributes(module: nn.Module, path: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        old = vars(module).get(name)
        if name.startswith("_") or not _plain(old) or not _alike(old, value):
            raise CheckpointError(f"{path}: the manifest may not set {name!r} on {type(module).__name__} to {value!r}")
        setattr(module, name, tuple(value) if isinstance(old, tuple) else value)


def _alike(old: Any, value: Any) -> bool:
    """Whether a value can stand where the architecture has `old`: numbers of the same kind, sizes stay sizes."""
    if isinstance(old, (tuple, list)):
        return isinstance(value, (tuple, list)) and all(_alike(old[0] if old else 0, item) for item in value)
    if type(old) is int:
        return type(value) is int and min(old, 0) <= value < 2**40
    return type(value) is type(old) or (type(old) is float and type(value) is int)
