"""The page and its twins."""

import csv
import re

import pytest
import yaml
from markdown_it import MarkdownIt

from effitrans.errors import UsageError
from effitrans.evaluation.record import StudyPlace
from effitrans.reporting import model_card, report, scorecard, write_card


@pytest.fixture
def page(run_of_records, tmp_path):
    report(run_of_records, tmp_path / "report.html")
    return tmp_path


def test_the_page_is_self_contained_and_small(page):
    html = (page / "report.html").read_text()
    assert len(html) < 1_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "http" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_the_page_says_what_the_records_say(page):
    html = (page / "report.html").read_text()
    for expected in (
        "88.3 %", "98.5 %", "4.8×", "16.7 %", "15.0 MB", "86.8–89.8", "32 × real data", "Some CPU (AVX512)",
        "ab12ab12", "0123456789abcdef", "coefficient of variation 9%", "McNemar",
    ):  # fmt: skip
        assert expected in html, expected
    assert html.count("<svg") == 2 + 3 + 4


def test_names_from_records_cannot_break_the_page(record, tmp_path):
    evil = '<script>alert("x")</script>|*'
    report([record(evil), record("b", speed=0.5, notes=["<img src=x>"])], tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in html
    assert "<img" not in html


EVIL = "a|b <i>c</i> `d` *e* _f_ [g](h) ![i](j) &lt; ~~k~~ $l$\n# m\n\n- n \\| o_p"

UNMADE = {"html_block", "html_inline", "link_open", "em_open", "s_open", "code_inline", "blockquote_open"}


def read(markdown):
    """The pieces of text of a page as a reader sees them, and the kinds of all marks in it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    inner = [token.children for token in tokens if token.type == "inline"]
    marks = {token.type for token in tokens} | {child.type for children in inner for child in children}
    return ["".join(child.content for child in children) for children in inner], marks


def test_names_stay_text_in_markdown(record, tmp_path):
    task = record("a").task.model_copy(update={"name": EVIL})
    first, evil = record("b", task=task), record(EVIL, baseline=(EVIL, 0.8), notes=[EVIL], task=task)
    report([first, evil], tmp_path / "report.html", title=EVIL)
    places = [StudyPlace(name=EVIL, variant=name, baseline=EVIL, seed=0) for name in ("b", EVIL)]
    study = [one.model_copy(update={"study": place}) for one, place in zip((first, evil), places, strict=True)]
    report(study, tmp_path / "study.html")
    made = evil.model_copy(update={"history": ({"verb": EVIL, "config": {"name": EVIL}},)})
    pages = [
        (tmp_path / "report.md").read_text(),
        (tmp_path / "study.md").read_text(),
        model_card(made, baseline=first),
    ]
    pages[2] = pages[2].split("---\n", 2)[2]
    for page in pages:
        texts, marks = read(page)
        assert not marks & UNMADE
        assert sum(" ".join(EVIL.split()) in text for text in texts) >= 5


def test_the_markdown_twin_shows_the_picture(page):
    markdown = (page / "report.md").read_text()
    assert "| **quantize** | 88.3 % (86.8–89.8) | 98.5 % (97.5–99.5) | 4.8× (4.7–4.9) |" in markdown
    assert "![Quality against latency and size](report.svg)" in markdown
    picture = (page / "report.svg").read_text()
    assert 'xmlns="http://www.w3.org/2000/svg"' in picture
    assert "prefers-color-scheme:dark" in picture


def test_tables_in_markdown_have_equally_many_cells(page):
    for block in (page / "report.md").read_text().split("\n\n"):
        if block.startswith("| "):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_csv_twin_has_plain_numbers(page):
    rows = list(csv.DictReader((page / "report.csv").open()))
    assert len(rows) == 4 * 4
    last = rows[-1]
    assert last["model"] == "quantize"
    assert float(last["accuracy"]) == 0.883
    assert float(last["ratio_to_baseline"]) == 0.21
    assert rows[0]["ratio_to_baseline"] == ""


def test_records_are_found_in_run_folders(run_of_records, tmp_path):
    for index, record in enumerate(reversed(run_of_records)):
        record.save(tmp_path / "run" / "records" / f"{index:02}-x.json")
    report([tmp_path / "run"], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    order = [html.index(f'data-sort="{name}"') for name in ("train", "distill", "prune", "quantize")]
    assert order == sorted(order), "steps come in the order of the recipe"


def test_records_are_found_as_files_and_in_model_folders(record, tmp_path):
    record("a").save(tmp_path / "a.json")
    record("b", speed=0.5).save(tmp_path / "model" / "record.json")
    (tmp_path / "model" / "config.json").write_text("{}")
    report([tmp_path / "a.json", tmp_path / "model"], tmp_path / "r.html")
    assert "2 models on sst2" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("source", ["absent", "empty", "."])
def test_a_source_without_records_is_refused_and_nothing_is_written(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"records|no such"):
        report([tmp_path / source], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_records_of_different_data_are_refused(record, tmp_path):
    first = record("a")
    other = record("b", task=first.task.model_copy(update={"fingerprint": "00"}))
    with pytest.raises(UsageError, match="fingerprint"):
        report([first, other], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_no_page_is_refused(record, tmp_path):
    with pytest.raises(UsageError, match="HTML"):
        report([record("a")], tmp_path / "report.pdf")


def test_records_without_costs_or_baseline_still_make_a_page(record, tmp_path):
    report([record("only", cost=None, structure=None)], tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "only on sst2" in html
    assert "What quality costs" not in html
    assert "Everything that was asked for was measured" in html
    assert not (tmp_path / "r.svg").exists()


def test_a_shape_that_failed_says_so(record, tmp_path):
    good = record("a", baseline=("b", 0.9))
    failed = good.cost.latency[1].model_copy(
        update={"p50_ms": None, "p90_ms": None, "p99_ms": None, "cv": None, "error": "out of memory", "runs": 0}
    )
    rows = (good.cost.latency[0], failed, *good.cost.latency[2:])
    broken = good.model_copy(update={"cost": good.cost.model_copy(update={"latency": rows})})
    report([record("b"), broken], tmp_path / "r.html")
    assert 'class="error">out of memory' in (tmp_path / "r.html").read_text()
    assert "out of memory" in (tmp_path / "r.md").read_text()


def test_noisy_figures_are_marked(record, tmp_path):
    model = record("a", baseline=("b", 0.9))
    rows = tuple(row.model_copy(update={"cv": 0.2}) for row in model.cost.latency)
    noisy = model.model_copy(update={"cost": model.cost.model_copy(update={"latency": rows})})
    report([record("b"), noisy], tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert 'class="noisy">1.00×' in html
    assert "noisy machine" in html
    assert "(noisy)" in (tmp_path / "r.md").read_text()


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_carries_results_as_the_hub_reads_them(run_of_records):
    history = ({"verb": "prune", "config": {"heads": {"ratio": 0.5}}}, {"verb": "quantize", "config": {"scheme": "x"}})
    card = model_card(run_of_records[-1].model_copy(update={"history": history}), baseline=run_of_records[0])
    data = front_matter(card)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert data["tags"] == ["effitrans", "pruned", "quantized"]
    result = data["model-index"][0]["results"][0]
    assert result["task"]["type"] == "text-classification"
    assert result["dataset"] == {"name": "sst2", "type": "sst2", "split": "test"}
    assert result["metrics"][0]["type"] == "accuracy"
    assert result["metrics"][0]["value"] == 0.883
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "import effitrans" in card
    assert "It keeps 98.5 % of the accuracy of train" in card
    assert "heads={ratio: 0.5}" in card
    assert "0123456789abcdef" in card


def test_the_card_is_read_back_by_the_hub_library(run_of_records):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(run_of_records[-1]))
    assert card.data.eval_results[0].metric_value == 0.883
    assert card.data.eval_results[0].dataset_split == "test"


def test_the_card_names_the_base_model_but_no_local_folder(run_of_records, tmp_path):
    class Config:
        name_or_path = "org/bert"

    assert front_matter(model_card(run_of_records[-1], Config()))["base_model"] == "org/bert"
    Config.name_or_path = str(tmp_path)
    card = model_card(run_of_records[-1], Config())
    assert "base_model" not in front_matter(card)
    assert str(tmp_path) not in card


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_scorecard_fits_the_terminal(run_of_records, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scorecard(run_of_records))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "88.3 %" in text
    assert "4.8×" in text
    assert "note: latency at 1 x data" in text


def test_results_on_hub_data_are_written_as_the_hub_reads_them(record, tmp_path):
    from huggingface_hub import EvalResultEntry
    from huggingface_hub._eval_results import parse_eval_result_entries

    record = record("a")
    write_card(tmp_path / "local", record)
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["README.md"]
    on_hub = record.model_copy(update={"task": record.task.model_copy(update={"dataset": "stanfordnlp/sst2"})})
    write_card(tmp_path / "hub", on_hub)
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / "hub/.eval_results/sst2.yaml").read_text()))
    assert isinstance(entry, EvalResultEntry)
    assert (entry.dataset_id, entry.value) == ("stanfordnlp/sst2", round(100 * record.quality["accuracy"].value, 4))
    assert entry.notes.startswith("Accuracy, 95 % interval")
