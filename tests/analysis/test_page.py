"""The whole report: its twins, its layer pages, and what a browser makes of it, scripts on and off."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

from speedysnn import analysis
from speedysnn.analysis.report import page as sketch
from speedysnn.assets.digits import load_digits_net
from speedysnn.convert import to_spiking
from speedysnn.data import load

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report with everything in it."""
    torch.manual_seed(0)
    snn = to_spiking(load_digits_net("max"), load("digits", "train", limit=200), timesteps=4)
    images = load("digits", "test", limit=60)
    noise = analysis.measure_noise(snn, images, detail="full")
    return noise.save(
        tmp_path_factory.mktemp("page") / "report",
        sweep=analysis.sweep(snn, images, (2, 4)),
        sensitivity=analysis.measure_sensitivity(snn, images, modes=("isolated",), limit=30),
        cost=analysis.measure_cost(snn, images),
    )


class Parts(HTMLParser):
    """Tags that must close, and everything a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        self.loads += [given[name] for name in ("src", "href") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "img", "path", "rect", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(folder):
    parts = Parts()
    parts.feed((folder / "report.html").read_text())
    assert parts.open == []
    assert all(load.startswith(("data:image/png;base64,", "#layer-")) for load in parts.loads)
    linked = {load[1:] for load in parts.loads if load.startswith("#")}
    assert linked == set(parts.ids)
    assert len(linked) == len(pd.read_csv(folder / "layers.csv"))


def test_the_twins_say_the_same(folder):
    data = json.loads((folder / "noise.json").read_text())
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for sentence in (*data["verdict"], *data["sensitivity"]["verdict"]):
        assert sentence in text
    assert f"{data['cost']['total']['synops']:,.0f}" in text
    assert f"{data['cost']['total']['synops']:,.0f}" in page
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert {"sqnr.png", "gains.png", "cost.png", "sweep.png", "sensitivity.png"} <= set(pictures)
    assert all((folder / name).is_file() for name in pictures)
    assert len(pd.read_csv(folder / "gains.csv")) == len(data["sensitivity"]["gains"])
    assert len(pd.read_csv(folder / "cost.csv")) == len(data["cost"]["layers"])


def test_a_sketch_draws_what_was_counted(folder):
    counts = (2, 6)
    heights = [float(x) for x in re.findall(r'height="([\d.]+)"', str(sketch.per_step(counts)))]
    assert heights[1] / heights[0] == pytest.approx(3, rel=0.01)
    assert not sketch.per_step(None)
    assert not sketch.per_step((0, 0))


def browse(*options: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_sorts_and_opens(folder, tmp_path):
    page = (folder / "report.html").read_text()
    click = "document.querySelector('table.all').tHead.rows[0].cells[10].click();"
    head = page.index("</body>")
    changed = tmp_path / "clicked.html"
    changed.write_text(f"{page[:head]}<script>{click}</script>{page[head:]}")
    seen = browse("--dump-dom", f"file://{changed}#layer-relu2")
    assert re.search(r'<details class="layer" id="layer-relu2" open="">', seen)
    assert seen.count("<details class=\"layer\"") == seen.count('id="layer-')
    table = seen[seen.index('<table class="all') : seen.index("</table>", seen.index('<table class="all'))]
    assert 'aria-sort="descending"' in table
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row)[9] for row in table.split("<tr>")[2:]]
    values = [float(cell.replace("−", "-").replace(",", "")) for cell in cells]
    assert values == sorted(values, reverse=True)
    assert values != [float(x) for x in pd.read_csv(folder / "layers.csv").iloc[:, 10]]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scripts", [True, False])
def test_a_browser_shows_it(folder, tmp_path, scripts):
    from matplotlib.image import imread

    page, shot = tmp_path / "page.html", tmp_path / "shot.png"
    forbidden = "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'\">"
    page.write_text((folder / "report.html").read_text().replace("<head>", "<head>" + forbidden * (not scripts)))
    browse(f"--screenshot={shot}", f"file://{page}")
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (1600, 1200)
    rows = (pixels.min(axis=(1, 2)) < 0.6).mean()  # of them with something dark in it
    assert 0.2 < rows < 0.95
