"""What notebooks show: escaped, with the figures in it, and short for long tables."""

from html.parser import HTMLParser

import pandas as pd
import torch
from torch import nn

from speedysnn import analysis, convert, finetune
from speedysnn.display import block


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_data(self, data) -> None:
        self.text += data


def _read(html: str) -> _Text:
    parser = _Text()
    parser.feed(html)
    return parser


def test_networks_reports_and_runs() -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 4)
    snn = convert.to_spiking(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), x, timesteps=2)
    noise = analysis.measure_noise(snn, x)
    assert noise.verdict[0] in _read(noise._repr_html_()).text
    assert "latency=2" in _read(snn._repr_html_()).text
    result = finetune.fit(snn, x, config=finetune.Config(epochs_quantized=1, epochs_spiking=0))
    assert "held_out_loss" in _read(result._repr_html_()).text


def test_text_is_escaped_and_long_tables_are_cut() -> None:
    frame = pd.DataFrame({"<b>": ["<script>alert(1)</script>"] * 50})
    html = block("<i>", ["<u>"], frame, most=40)
    found = _read(html)
    assert not {"script", "b", "i", "u"} & set(found.tags)
    assert found.tags.count("tr") == 41
    assert "10 more rows" in found.text
