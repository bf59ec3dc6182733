"""The page in a real browser, headless: it renders, sorts, filters, fits a phone, and logs no error."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from effitrans.reporting import report
from tests.reporting.test_twins import detailed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

PROBE = """
<script>
const seen = {};
const column = (table, n) => [...table.tBodies[0].rows].filter(r => !r.hidden)
  .map(r => r.cells[n].firstChild.data.trim());
const table = document.getElementById("results");
const button = table.tHead.rows[0].cells[1].querySelector("button");
seen.before = column(table, 1);
button.click(); seen.ascending = column(table, 1); seen.state = button.closest("th").getAttribute("aria-sort");
button.click(); seen.descending = column(table, 1);
table.tHead.rows[0].cells[2].querySelector("button").click(); seen.missing_last = column(table, 2);
const input = document.querySelector("input[data-filters]");
input.value = "quant"; input.dispatchEvent(new Event("input"));
seen.filtered = column(document.getElementById("latency"), 0);
input.value = ""; input.dispatchEvent(new Event("input"));
seen.unfiltered = column(document.getElementById("latency"), 0).length;
seen.drawings = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().height > 50);
const labels = [...document.querySelectorAll("svg text")];
seen.texts = labels.every(t => t.textContent && t.getBoundingClientRect().width > 0);
const outside = t => { const a = t.getBoundingClientRect(), b = t.closest("svg").getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; };
seen.cut = labels.filter(outside).map(t => t.textContent);
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.colour = getComputedStyle(document.body).backgroundColor;
seen.unnamed = [...document.querySelectorAll("svg,button,input,table")].filter(e => !(
  e.querySelector("title, caption") || e.textContent.trim() || e.closest("label"))).length;
const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>
"""


def browse(page, tmp_path, *flags):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", *flags, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True)
    return unescape(done.stdout), done.stderr


@pytest.fixture
def page(run_of_records, tmp_path):
    report(run_of_records, tmp_path / "report.html")
    probed = tmp_path / "probed.html"
    probed.write_text((tmp_path / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    return probed


def probe(page, tmp_path, *flags):
    dom, log = browse(page, tmp_path, *flags)
    assert "CONSOLE" not in log, log
    return json.loads(re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[1])


def test_the_page_sorts_filters_and_draws(page, tmp_path):
    seen = probe(page, tmp_path, "--window-size=1280,900")
    assert seen["before"] == ["89.6 %", "88.8 %", "88.4 %", "88.3 %"]
    assert seen["ascending"] == ["88.3 %", "88.4 %", "88.8 %", "89.6 %"]
    assert seen["state"] == "ascending"
    assert seen["descending"] == seen["before"]
    assert seen["missing_last"] == ["98.5 %", "98.7 %", "99.1 %", "–"]
    assert seen["filtered"] == ["quantize"] * 4
    assert seen["unfiltered"] == 16
    assert len(seen["drawings"]) == 9
    assert all(seen["drawings"])
    assert seen["texts"]
    assert seen["cut"] == []
    assert seen["overflow"] <= 0
    assert seen["unnamed"] == 0


def test_the_page_turns_dark_with_the_system(page, tmp_path):
    light = probe(page, tmp_path, "--blink-settings=preferredColorScheme=1")["colour"]
    dark = probe(page, tmp_path, "--blink-settings=preferredColorScheme=0")["colour"]
    assert light == "rgb(247, 246, 242)"
    assert dark == "rgb(17, 19, 21)"


def test_the_page_fits_a_phone(page, tmp_path):
    frame = tmp_path / "phone.html"
    copy = """<script>window.addEventListener("load", () => {
      const found = document.querySelector("iframe").contentDocument.getElementById("probe");
      document.body.append(document.importNode(found, true)); });</script>"""
    frame.write_text(f'<body><iframe src="{page.name}" width="360" height="800"></iframe>{copy}</body>')
    seen = probe(frame, tmp_path, "--allow-file-access-from-files")
    assert seen["overflow"] <= 0
    assert seen["cut"] == []
    assert all(seen["drawings"])


AXE = """
<script>{source}</script>
<script>
axe.run(document, {{resultTypes: ["violations"]}}).then(found => {{
  const out = document.createElement("pre"); out.id = "probe";
  out.textContent = JSON.stringify(found.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 120))]));
  document.body.append(out);
}});
</script>
"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(mode, run_of_records, tmp_path):
    axe = pytest.importorskip("axe_playwright_python", reason="needs the package axe-playwright-python (extra dev)")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    report(detailed(run_of_records), tmp_path / "report.html")
    page = tmp_path / "checked.html"
    text = (tmp_path / "report.html").read_text()
    page.write_text(text.replace("</body>", AXE.format(source=source) + "</body>"))
    flags = ["--blink-settings=preferredColorScheme=0"] if mode == "dark" else []
    assert probe(page, tmp_path, "--window-size=1280,900", "--virtual-time-budget=20000", *flags) == []
