"""TF32 is off inside the block, and comes back as it was."""

from collections.abc import Iterator

import pytest
import torch

from speedysnn.convert.read import full_precision

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [False, True])
def test_the_older_settings_come_back(precision: str, convolutions: bool) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(precision)
    with full_precision(GPU):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before torch 2.9")
def test_the_newer_settings_come_back_where_they_are_in_use() -> None:
    convolutions = torch.backends.cudnn
    convolutions.conv.fp32_precision, convolutions.rnn.fp32_precision = "ieee", "tf32"
    with full_precision(GPU):
        assert convolutions.conv.fp32_precision == convolutions.rnn.fp32_precision == "ieee"
    assert (convolutions.conv.fp32_precision, convolutions.rnn.fp32_precision) == ("ieee", "tf32")


def test_a_processor_needs_no_setting() -> None:
    torch.backends.cudnn.allow_tf32 = True
    with full_precision(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32
