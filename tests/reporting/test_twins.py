"""LaTeX, the index, and the sections that only some records fill."""

import re
import shutil
import subprocess

import pytest

from effitrans.errors import UsageError
from effitrans.evaluation.record import Change, Confusion, Curve
from effitrans.reporting import report, write_index
from effitrans.reporting.latex import escape


def detailed(records):
    """The run with what a classifier's record holds beside its figures."""
    last = records[-1]
    changes = (
        Change(row=3, inputs=("a fine <b>film</b>",), reference="positive", baseline="positive", model="negative"),
        Change(row=7, inputs=("dull & long",), reference="negative", baseline="positive", model="negative"),
    )
    fidelity = last.fidelity.model_copy(update={"changes": changes, "cka": ((1.0, 0.2), (0.3, 0.95))})
    more = {
        "fidelity": fidelity,
        "confusion": Confusion(labels=("negative", "positive"), counts=((80, 20), (10, 90))),
        "roc": Curve(x=(0.0, 0.1, 1.0), y=(0.0, 0.8, 1.0)),
    }
    return [*records[:-1], last.model_copy(update=more)]


def test_the_page_shows_what_changed_and_what_is_confused(run_of_records, tmp_path):
    report(detailed(run_of_records), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "a fine &lt;b&gt;film&lt;/b&gt;" in page
    assert re.search(r"lost</td>.*a fine", page, re.DOTALL)
    assert re.search(r"gained</td>.*dull &amp; long", page, re.DOTALL)
    assert "30 of 200 examples are taken for another class" in page
    assert "Receiver operating characteristic" in page
    assert "layer 1 and the baseline&#x27;s layer 1: .95" in page


def test_records_without_them_have_no_such_sections(run_of_records, tmp_path):
    report(run_of_records, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for heading in ("What changed", "Classes", "Layers alike"):
        assert f"<h2>{heading}</h2>" not in page


def test_the_latex_table_says_what_the_markdown_says(run_of_records, tmp_path):
    written = report(run_of_records, tmp_path / "report.html", latex=True)
    text = (tmp_path / "report.tex").read_text()
    assert tmp_path / "report.tex" in written
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line]
    assert len(rows) == len(run_of_records)
    columns = text.partition(r"\toprule")[2].partition(r"\\")[0].count("&")
    assert all(row.replace(r"\&", "").count("&") == columns for row in rows)
    for record in run_of_records:
        assert f"{100 * record.quality['accuracy'].value:.1f}" in body


def test_no_character_is_left_that_means_something_to_tex():
    assert escape("50 % of a_b & c#d") == r"50 \% of a\_b \& c\#d"
    assert escape("≥ 2.0×") == r"≥ 2.0$\times$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_table_compiles(run_of_records, tmp_path):
    report(run_of_records, tmp_path / "report.html", latex=True)
    document = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs}\begin{document}\input{report}"
    (tmp_path / "paper.tex").write_text(document + r"\end{document}")
    done = subprocess.run(["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_index_names_every_report_and_its_best_model(run_of_records, record, tmp_path):
    for name, records in {
        "first": run_of_records,
        "second": [record("a", accuracy=0.8), record("b", accuracy=0.9)],
    }.items():
        for i, each in enumerate(records):
            each.save(tmp_path / name / "records" / f"{i}.json")
    (tmp_path / "first" / "README.md").write_text("more")
    (tmp_path / "second" / "report.md").write_text("page")
    (tmp_path / "no-report").mkdir()
    text = write_index(tmp_path).read_text()
    assert "[first](first/README.md)" in text
    assert "[second](second/report.md)" in text
    assert "90.0 %" in next(line for line in text.splitlines() if "[second]" in line).split("|")[4]
    assert "no-report" not in text


def test_a_folder_without_reports_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no reports"):
        write_index(tmp_path)
