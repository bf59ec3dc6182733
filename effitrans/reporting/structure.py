"""Layer by layer: which heads are left, how wide the FFN is, how many bits a weight has, which operator attends."""

from collections.abc import Sequence

from effitrans.evaluation.record import LayerStructure, Record, Structure
from effitrans.reporting import format
from effitrans.reporting.svg import Drawing

WIDTH, ROW, TOP = 300, 20, 46
HEADS_X, HEADS_WIDTH = 26, 96
FFN_X, FFN_WIDTH = 136, 92
BITS_X = 238


def drawings(records: Sequence[Record]) -> list[tuple[str, Drawing]]:
    """A drawing for each structure that differs from the one before, with the names of the models that have it."""
    groups: list[tuple[list[str], Structure]] = []
    for record in records:
        if record.structure is None or not record.structure.layers:
            continue
        if groups and groups[-1][1] == record.structure:
            groups[-1][0].append(record.model)
        else:
            groups.append(([record.model], record.structure))
    everything = [layer for _, structure in groups for layer in structure.layers]
    most_heads = max((layer.heads or 0 for layer in everything), default=0)
    widest = max((layer.ffn or 0 for layer in everything), default=0)
    return [(", ".join(names), _draw(structure, most_heads, widest)) for names, structure in groups]


def _draw(structure: Structure, most_heads: int, widest: int) -> Drawing:
    layers = structure.layers
    height = TOP + ROW * len(layers) + 26
    drawing = Drawing(WIDTH, height, f"Structure of {structure.architecture}", summary(structure))
    for x, label in ((HEADS_X, "heads"), (FFN_X, "FFN width"), (BITS_X, "bits")):
        drawing.text(x, TOP - 10, label, 12, "muted")
    drawing.text(0, 14, summary(structure), 12.5, "ink")
    for index, layer in enumerate(layers):
        y = TOP + ROW * index
        drawing.text(16, y + 10, str(index), 12, "muted", "end")
        _heads(drawing, layer, most_heads, y)
        _ffn(drawing, layer, widest, y)
        drawing.text(BITS_X, y + 10, _bits(layer), 12, "ink")
    if structure.embedding_parameters:
        bits = f", {structure.embedding_bits:g} bits" if structure.embedding_bits else ""
        embedded = f"Embedding {format.scaled(structure.embedding_parameters)}{bits}"
        drawing.text(HEADS_X, TOP + ROW * len(layers) + 14, embedded, 12, "muted")
    return drawing


def _heads(drawing: Drawing, layer: LayerStructure, most: int, y: float) -> None:
    if not layer.heads or not most:
        return
    pitch = min(10.0, HEADS_WIDTH / most)
    side = pitch - (2 if pitch >= 6 else 0.75)
    for head in range(most):
        kept = head < layer.heads
        drawing.rect(HEADS_X + head * pitch, y + 5 - side / 2 + 1, side, side, "accent" if kept else "line", radius=1)


def _ffn(drawing: Drawing, layer: LayerStructure, widest: int, y: float) -> None:
    if not layer.ffn or not widest:
        return
    drawing.rect(FFN_X, y + 1, FFN_WIDTH, 10, "line")
    drawing.rect(FFN_X, y + 1, FFN_WIDTH * layer.ffn / widest, 10, "accent")


def _bits(layer: LayerStructure) -> str:
    bits = f"{layer.bits:.3g}" if layer.bits is not None else ""
    operator = layer.operator if layer.operator not in (None, "full") else ""
    return " ".join(part for part in (bits, operator) if part)


def summary(structure: Structure) -> str:
    """One line: 3 layers, 8 heads, FFN 1024; a range where layers differ."""
    layers = structure.layers
    heads, ffn = _range([layer.heads for layer in layers]), _range([layer.ffn for layer in layers])
    parts = [f"{len(layers)} layer{'s' if len(layers) != 1 else ''}"]
    parts += [f"{heads} heads"] if heads else []
    parts += [f"FFN {ffn}"] if ffn else []
    parts += [f"hidden {structure.hidden_size}"] if structure.hidden_size else []
    return ", ".join(parts)


def _range(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "–".join(str(end) for end in dict.fromkeys((known[0], known[-1]))) if known else ""
