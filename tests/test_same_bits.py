"""The same call gives the same bits: twice in a process, in another process, and with an empty cache folder."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from speedysnn import convert, settings
from tests.material import same_bits
from tests.material.same_bits import IMAGES, WEIGHTS

SCRIPT = Path(same_bits.__file__)


def _elsewhere(cases: Sequence[str], folder: Path, **variables: str) -> dict[str, dict[str, str]]:
    """What another process finds that has no cache folder yet: one for all cases, since it compiles every kernel anew."""
    roots = [str(SCRIPT.parents[2] / "src"), str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(roots), "SPEEDYSNN_CACHE": str(folder / "cache"),
        "XDG_CACHE_HOME": str(folder / "xdg"), **variables,
    }  # fmt: skip
    threads = str(torch.get_num_threads())
    run = subprocess.run(
        [sys.executable, str(SCRIPT), threads, *cases], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, str]] = json.loads(run.stdout.splitlines()[-1])
    return found


def _alike(cases: Sequence[str], folder: Path) -> None:
    made = {}
    for case in cases:
        first = made[case] = same_bits.found(case)
        assert first["spiking full"] == first["quantized full"] == first["quantized 0"]  # counts are the quantizer's
        assert first["spiking 0"] != first["spiking full"]
        assert '"events": "fixed"' in first["evaluation"]
        assert same_bits.found(case) == first
    assert _elsewhere(cases, folder) == made


def test_small_networks(tmp_path) -> None:
    _alike(["digits", "random"], tmp_path)


@pytest.mark.nightly
@pytest.mark.skipif(not (IMAGES.is_file() and WEIGHTS.is_file()), reason="the published data is not here")
def test_the_published_resnet20(tmp_path) -> None:
    """The same as of small networks, on the network where it once was not so."""
    _alike(["published"], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (IMAGES.is_file() and WEIGHTS.is_file()), reason="the published data is not here")
def test_full_lookahead_is_the_quantized_reading_on_every_published_image() -> None:
    """The counts are equal by construction; the logits are equal to the last bit, whatever way an image is passed."""
    ann, calibration, _, test = same_bits.published(images=846)
    assert len(test) == 846
    snn = convert.to_spiking(ann, calibration, timesteps=8, delay="full")
    with torch.no_grad():
        spiking, quantized = snn.read("spiking", test), snn.read("quantized", test)
        assert torch.equal(spiking.argmax(1), quantized.argmax(1))
        assert torch.equal(spiking, quantized)
        with settings.using(events="always"):
            few = test[:64]
            assert torch.equal(snn.read("spiking", few), snn.read("quantized", few))
