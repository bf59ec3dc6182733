"""`optimize`: compile a model for inference.

`torch.compile` with Inductor turns the many small operators between the matrix products into a few loops: a layer
norm or an activation is fused with the quantization of its result, and the scaling of an integer product with the
bias, activation or residual that follows it. Four things are done beyond that call:

- Batch size and length are symbols, so that a model compiles once for single examples and once for batches, not
  once for every shape.
- Guards on the model's modules are dropped, as `optimize` fixes the model. They cost a tenth of the time of a
  single short sentence.
- Batches with padding run without it (see `unpadding.py`), where the model is an encoder that allows it.
- In a model with int8 layers, what lies between the integer products is done as exactly as int8 needs (see
  `substitutes.py`).

The first output for every kind of input is compared with what the model gives uncompiled.
"""

import copy
import functools
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, fx, nn
from torch._dynamo.exc import Unsupported
from transformers import PreTrainedModel

from effitrans.attention.cache import find_cache
from effitrans.checkpoint.accepting import as_model
from effitrans.errors import UsageError, WrongResult
from effitrans.inference.noise import l2_norm, rounding_noise
from effitrans.inference.substitutes import substitute
from effitrans.inference.unpadding import (
    Tokens,
    gives_more,
    tokens_of,
    without_padding,
)
from effitrans.quantization.modules.integer import Int8Linear

logger = logging.getLogger(__name__)

if Version(torch.__version__) < Version("2.13"):
    # Up to 2.9 at least, guards in C++ do not see that two sizes differ where a graph holds symbolic floats.
    torch._dynamo.config.enable_cpp_symbolic_shape_guards = False  # type: ignore[attr-defined]

_OPTIMIZED = "is_optimized"
"""Attribute of a forward pass that `optimize` made."""

_NOISE_MARGIN = 8

_STORED_FROM = 8
"""Operations from which on a result that is read more than once is stored, where Inductor would compute it anew up to
30: scales and zero points of rows would be divided out again for every 32 columns."""


def optimize(model: PreTrainedModel, *, tolerance: float | None = None) -> PreTrainedModel:
    """Compile a model for inference on inputs of any batch size and length.

    The first call with a new kind of input (a single example or a batch; with or without an argument) compiles and
    takes from seconds to a minute; the compiled kernels are cached on disk. Calls with a key/value cache, as
    `generate` makes them, run uncompiled.

    Args:
        model: a model in evaluation mode. It is not changed. One that is optimized already is returned as it is.
        tolerance: relative L2 difference from the uncompiled model that is accepted in any case. Default: 0.02 for
            16-bit models and those with int8 layers, else 0.001. With int8 layers more is accepted where rounding
            explains it.

    Returns:
        A model that shares the weights of `model` and runs its forward pass compiled, without gradients. What is
        done to its modules after the first call (hooks, training mode, other layers) has no effect on it. Hidden
        states at padding may be 0 (and logits there those of 0), and hooks may see a batch without its padding.

    Raises:
        UsageError: the model is in training mode, or there is no C++ compiler.
        WrongResult: from the first call with a kind of input, where the compiled model differs too much.

    Example:
        fast = optimize(quantize(model, Int8()))
        logits = fast(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    """
    model = as_model(model)
    if any(module.training for module in model.modules()):
        raise UsageError("optimize takes a model in evaluation mode: call model.eval() first")
    if getattr(model.forward, _OPTIMIZED, False):
        return model
    require_compiler(model.device)
    integer_layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    if tolerance is None:
        tolerance = 0.02 if integer_layers or model.dtype in (torch.float16, torch.bfloat16) else 0.001
    optimized = copy.copy(model)
    optimized.forward = _compiled_forward(model, integer_layers, tolerance)  # type: ignore[method-assign]
    return optimized


def _compiled_forward(
    model: PreTrainedModel, integer_layers: Sequence[nn.Module], tolerance: float
) -> Callable[..., Any]:
    """The model's forward pass, compiled once for every kind of input, and then compared with the uncompiled one."""
    eager = model.forward
    twin = without_padding(model)
    backend = _backend(bool(integer_layers))
    compiled: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            if find_cache(args, kwargs) is not None:
                return eager(*args, **kwargs)
            tokens = None if twin is None or gives_more(model.config) else tokens_of(kwargs)
            given = kwargs if tokens is None else {**kwargs, "tokens": tokens}
            kind = (tuple(map(_kind, args)), tuple((name, _kind(value)) for name, value in given.items()))
            if kind in compiled:
                return compiled[kind](*args, **given)
            # The uncompiled call comes first: in it transformers may install hooks, which cannot be captured.
            expected = eager(*args, **kwargs)
            source = eager if twin is None or tokens is None else twin.forward
            run, output = _first_call(source, backend, args, given)
            seen = functools.partial(_tensors, tokens=tokens)
            noise = rounding_noise(lambda: list(seen(eager(*args, **kwargs))), integer_layers)
            _verify(list(seen(output)), list(seen(expected)), noise, tolerance, type(model).__name__)
            compiled[kind] = run
            return output

    setattr(forward, _OPTIMIZED, True)
    return forward


def _first_call(
    eager: Callable[..., Any], backend: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Callable[..., Any], Any]:
    """Compile, as one graph or else in parts; returns what was compiled and its output."""
    compiled = _compile(eager, backend)
    try:
        return compiled, compiled(*args, **kwargs)
    except Unsupported as error:
        logger.info("compiling in parts, as there is no single graph: %s", str(error).split("\n")[0])
    compiled = torch.compile(eager, dynamic=True, backend=backend)
    return compiled, compiled(*args, **kwargs)


def _compile(eager: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as one graph, whose guards look at the inputs only.

    That is safe as long as the compiled code belongs to this model alone. Dynamo keeps compiled code with the code
    object of a function, which all models of a class share; so the function gets a code object of its own.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return eager(*args, **kwargs)

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, "forward", forward.__defaults__, forward.__closure__
    )
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(own, dynamic=True, fullgraph=True, backend=backend, options=options)  # type: ignore[call-overload]


def _backend(integer: bool) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """Inductor with multiply-adds contracted; for integer models with substitutes, and what is read twice stored."""
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    if integer:
        options["realize_opcount_threshold"] = _STORED_FROM

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        if integer:
            substitute(graph.graph)
            graph.recompile()
        return torch._inductor.compile(graph, inputs, options=options)  # type: ignore[return-value]

    return backend


def _kind(value: Any) -> Any:
    """What decides which compiled code an argument needs: for tensors the type, and which dimensions are 0 or 1."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(min(size, 2) for size in value.shape)
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value)


def _verify(output: list[Tensor], expected: list[Tensor], noise: Sequence[float], tolerance: float, name: str) -> None:
    """Raise where a tensor of `output` is further from the uncompiled model's than rounding explains.

    Two right computations of an int8 model differ by more than any relative tolerance (see `noise.py`), so
    what is accepted is measured: `_NOISE_MARGIN` times what the uncompiled model's output moves when the outputs of its
    int8 layers are changed in the fifth digit.
    """
    for ours, theirs, moves in zip(output, expected, noise, strict=True):
        distance, size = l2_norm(ours - theirs), l2_norm(theirs)
        logger.info("output %s: compiled differs by %.2g of %.2g, noise %.2g", tuple(ours.shape), distance, size, moves)
        if not distance <= max(tolerance * size, _NOISE_MARGIN * moves) or not torch.equal(
            ours.isfinite(), theirs.isfinite()
        ):
            raise WrongResult(
                f"{name} compiled gives an output of shape {tuple(ours.shape)} that differs from the "
                f"uncompiled model by {distance / max(size, 1e-12):.3g} (relative L2; {tolerance:g} is accepted). Use "
                "the model as it is on this machine, or raise the tolerance if the difference does not matter."
            )


def _tensors(output: Any, tokens: Tokens | None) -> Iterator[Tensor]:
    """The floating-point tensors in a model output, depth first; of those with a row a token, the rows of real ones."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            by_token = tokens is not None and output.shape[:2] == tokens.real_BL.shape
            yield output[tokens.real_BL] if tokens is not None and by_token else output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value, tokens)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value, tokens)


def meant_compiled(model: nn.Module) -> bool:
    """Whether the model holds modules that are meant to run under `optimize`, as those of int8 are."""
    return any(getattr(module, "meant_compiled", False) for module in model.modules())


def require_compiler(device: torch.device) -> None:
    """Refuse what `optimize` cannot compile for.

    Raises:
        UsageError: there is no C++ compiler, which the CPU needs.
    """
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UsageError(
            "optimize compiles C++ and found no compiler: install g++ or clang++ (Debian and Ubuntu: apt install g++), "
            "or name one in the environment variable CXX"
        ) from error
