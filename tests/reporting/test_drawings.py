"""The drawings: valid SVG, text kept as text, labels apart, the right things said."""

import xml.etree.ElementTree as ElementTree

import pytest

from effitrans.evaluation.comparison import compare_records
from effitrans.reporting import lengths, pareto, structure, svg, waterfall
from effitrans.reporting.labels import overlap, place


def texts(drawing):
    root = ElementTree.fromstring(drawing.svg(standalone=True))
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_model_is_named_in_both_plots(run_of_records):
    comparison = compare_records(run_of_records)
    for drawing in (pareto.latency_plot(comparison), pareto.size_plot(comparison)):
        assert {"train", "distill", "prune", "quantize"} <= set(texts(drawing))
        assert "Pareto front: quantize, prune, distill, train" in drawing.description


def test_a_dominated_model_is_not_on_the_front(record):
    records = [record("good", accuracy=0.9), record("bad", accuracy=0.8, bytes_on_disk=95_000_000)]
    assert pareto.size_plot(compare_records(records)).description.endswith("front: good.")


def test_in_a_crowd_numbers_stand_at_the_points_and_names_below(record):
    records = [record(f"model {i}", accuracy=0.8 + 0.01 * i, speed=0.3 + 0.05 * i) for i in range(10)]
    for drawing in (pareto.latency_plot(compare_records(records)), pareto.size_plot(compare_records(records))):
        said = texts(drawing)
        for i in range(10):
            assert said.count(f"model {i}") == 1
            assert said.count(str(i + 1)) >= 2, "at the point and in the key"
        assert drawing.height > pareto.HEIGHT


def test_milliseconds_stand_in_where_there_is_no_baseline(record):
    comparison = compare_records([record("a"), record("b", speed=0.5)])
    assert "Latency at 32 × real data (ms)" in texts(pareto.latency_plot(comparison))


def test_parameters_stand_in_for_models_that_are_not_saved(record):
    first = record("a")
    unsaved = [first, record("b", cost=first.cost.model_copy(update={"bytes_on_disk": None, "parameters": 3_000_000}))]
    assert "Parameters (millions)" in texts(pareto.size_plot(compare_records(unsaved)))


def test_one_point_makes_no_plot(record):
    comparison = compare_records([record("a")])
    assert pareto.latency_plot(comparison) is None
    assert pareto.size_plot(comparison) is None
    assert pareto.latency_plot(compare_records([record("a", cost=None), record("b", cost=None)])) is None


def test_the_waterfall_says_what_each_step_gained_and_lost(run_of_records):
    quality, time, size = waterfall.waterfalls(compare_records(run_of_records))
    assert {"89.6 %", "−0.8", "88.3 %"} <= set(texts(quality))
    assert {"1.00×", "0.52×", "−48 %"} <= set(texts(time))
    assert {"90.0 MB", "−74 %"} <= set(texts(size))


def test_a_gain_is_no_loss(run_of_records):
    better = run_of_records[1].model_copy(
        update={"quality": {"accuracy": run_of_records[1].quality["accuracy"].model_copy(update={"value": 0.91})}}
    )
    quality = waterfall.waterfalls(compare_records([run_of_records[0], better]))[0]
    assert "+1.4" in texts(quality)
    assert svg.COLOURS["loss"] not in quality.svg()


def test_latency_is_drawn_against_length_where_there_are_several(record):
    first = record("a")
    assert lengths.length_plots(compare_records([first])) == []
    rows = tuple(
        row.model_copy(update={"length": 512, "p50_ms": 4 * row.p50_ms}) if row.length == "data" else row
        for row in first.cost.latency
    )
    long = record("b", cost=first.cost.model_copy(update={"latency": rows}))
    drawings = lengths.length_plots(compare_records([first, long]))
    assert [drawing.title for drawing in drawings] == [f"Latency against length, batch {n}" for n in (1, 32)]
    assert "b" in texts(drawings[0])
    assert "a" not in texts(drawings[0])


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([10.0, 50.0], [10.0, 50.0]),
        ([11.0, 10.0, 50.0], [12.5, 8.5, 50.0]),
        ([10.0, 10.0, 10.0], [6.0, 10.0, 14.0]),
        ([10.0, 12.0, 15.0], [8.333333, 12.333333, 16.333333]),
    ],
    ids=["apart", "pair", "all-equal", "chain"],
)
def test_names_of_lines_are_spread_out(heights, expected):
    assert lengths.spread_out(heights, 4.0) == pytest.approx(expected)


def test_records_that_are_no_steps_have_no_waterfall(record):
    assert waterfall.waterfalls(compare_records([record("a"), record("b")])) == []


def test_the_structure_shows_what_is_left(run_of_records):
    drawings = structure.drawings(run_of_records)
    assert [names for names, _ in drawings] == ["train", "distill", "prune", "quantize"]
    assert "3 layers, 8 heads, FFN 1024, hidden 384" in texts(drawings[2][1])
    assert "8" in texts(drawings[3][1])
    assert "Embedding 11.7 M, 8 bits" in texts(drawings[3][1])


def test_equal_structures_are_drawn_once(record):
    assert [names for names, _ in structure.drawings([record("a"), record("b")])] == ["a, b"]
    assert structure.drawings([record("a", structure=None)]) == []


def test_layers_that_differ_are_a_range(record):
    whole = record("a").structure
    mixed = whole.model_copy(
        update={
            "layers": (
                whole.layers[0].model_copy(update={"heads": 4, "operator": "local"}),
                whole.layers[1].model_copy(update={"heads": None}),
                whole.layers[2],
            )
        }
    )
    assert structure.summary(mixed) == "3 layers, 4–12 heads, FFN 1536, hidden 384"
    drawn = structure.drawings([record("a", structure=mixed)])[0][1]
    assert "32 local" in texts(drawn)


def test_names_are_escaped(record):
    records = [record("<b>&"), record("c", speed=0.5)]
    drawing = pareto.latency_plot(compare_records(records))
    assert "<b>&" in texts(drawing)
    assert "<b>" not in drawing.svg()


@pytest.mark.parametrize("count", [2, 6, 12])
def test_labels_do_not_lie_on_each_other(count):
    points = [(60 + 300 * (i / count), 60 + 25 * (i % 3)) for i in range(count)]
    placed = place(points, [(55, 14)] * count, (0, 0, 440, 320))
    for i, a in enumerate(placed):
        assert a.box[0] >= 0
        assert a.box[2] <= 440
        for b in placed[:i]:
            assert overlap(a.box, b.box) == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (86.3, 91.5, [87, 88, 89, 90, 91]), (0, 97, [0, 20, 40, 60, 80]), (2, 2, [2])],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == expected


def contrast(first, second):
    """WCAG contrast ratio of two hex colours."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [svg.COLOURS, svg.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "loss"])
def test_text_colours_have_enough_contrast(theme, name):
    assert contrast(theme[name], theme["panel"]) >= 4.5


def test_page_and_drawings_share_their_colours():
    from importlib.resources import files

    css = (files("effitrans.reporting") / "templates" / "report.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark")[:2]
    assert all(f"--{name}: {value}" in light for name, value in svg.COLOURS.items())
    assert all(f"--{name}: {value}" in dark for name, value in svg.DARK.items())
