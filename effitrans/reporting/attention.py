"""A picture of attention maps: a row a layer, a column a head."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

LABELLED = 32
"""Up to this many tokens are written beside the maps."""


def draw_attention(maps: Mapping[str, Tensor], tokens: Sequence[str] | None, path: str | Path) -> None:
    """Write the maps as a picture in the format of the file's suffix (png, svg, pdf).

    Args:
        maps: name of the layer -> [H, L, S], as `attention_maps` gives them.
        tokens: of the input, written at the first head of each layer if there are few enough.
        path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heads = max(len(map_HLS) for map_HLS in maps.values())
    side = 1.3 if tokens is None or len(tokens) > LABELLED else max(1.3, 0.11 * len(tokens))
    figure, axes = pyplot.subplots(
        len(maps), heads, figsize=(side * heads + 1.2, side * len(maps) + 0.6), squeeze=False, layout="constrained"
    )
    for row, (name, map_HLS) in enumerate(maps.items()):
        for head, axis in enumerate(axes[row]):
            axis.set_xticks([])
            axis.set_yticks([])
            if head >= len(map_HLS):
                axis.axis("off")
                continue
            values_LS = map_HLS[head].numpy()
            axis.imshow(values_LS, cmap="Greens", vmin=0, vmax=max(float(values_LS.max()), 1e-9), aspect="auto")
            if row == 0:
                axis.set_title(f"head {head}", fontsize=8)
            if head == 0:
                _label(axis, name, values_LS.shape, tokens)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(axis: object, name: str, shape: tuple[int, ...], tokens: Sequence[str] | None) -> None:
    if tokens is not None and len(tokens) == shape[0] <= LABELLED:
        axis.set_yticks(range(len(tokens)), tokens, fontsize=6)  # type: ignore[attr-defined]
    axis.set_ylabel(_short(name), fontsize=7)  # type: ignore[attr-defined]


def _short(name: str) -> str:
    """The part of a module path around the layer's number.

    >>> _short("bert.encoder.layer.3.attention.self")
    'layer 3'
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return name
    stack = next((part for part in parts if part in ("encoder", "decoder")), "")
    both = f"{stack} {parts[number]}" if stack == "decoder" else f"layer {parts[number]}"
    crosses = any(mark in name.lower() for mark in ("cross", "encoder_attn", "encdec"))
    return both + (" cross" if crosses else "")
