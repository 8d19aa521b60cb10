"""The option --device: what is named is there, or the message says what is."""

import pytest
import torch

from speedysnn.cli.options import device_of
from speedysnn.errors import InputError


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_gpu_that_is_not_there(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert device_of("cpu") == torch.device("cpu")
    for number in range(count):
        assert device_of(f"cuda:{number}") == torch.device("cuda", number)
    if count:
        assert device_of("cuda").type == "cuda"
    with pytest.raises(InputError, match=rf"finds {count} GPU{'s' * (count != 1)}; take --device cpu"):
        device_of(f"cuda:{count}")


@pytest.mark.parametrize("text", ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "", "mps"])
def test_other_words(text: str) -> None:
    with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
        device_of(text)


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="built without CUDA"):
        device_of("cuda")
