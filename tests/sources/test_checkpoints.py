"""Checkpoints: what loads, what each mistake says, that no file runs code, and weights that do not fit."""

import argparse
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from speedysnn.errors import SourceError
from speedysnn.sources import load_model, read_checkpoint
from tests.material import source_files
from tests.material.source_files import RunsCode, prefixed, some_weights

nets = source_files.nets


# --- checkpoints that load -----------------------------------------------------------------------------------------

LAYOUTS = {
    "plain": lambda w: w,
    "ordered": OrderedDict,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"state": {}, "lr": 0.1}},
    "model_state_dict": lambda w: {"model_state_dict": w},
    "net": lambda w: {"net": w, "acc": 0.9},
    "ema alone": lambda w: {"ema": w},
    "nested twice": lambda w: {"model": {"state_dict": w}},
    "plain before averaged": lambda w: {"state_dict_ema": {k: v + 1 for k, v in w.items()}, "state_dict": w},
    "model is a name": lambda w: {"model": {"arch": "resnet"}, "net": w},
    "DataParallel": lambda w: prefixed("module.", w),
    "compiled DataParallel": lambda w: prefixed("module._orig_mod.", w),
    "lightning": lambda w: {"state_dict": prefixed("model.", w), "pytorch-lightning_version": "2"},
    "numpy and arguments beside": lambda w: {
        "model": w,
        "best": np.float64(0.9),
        "args": argparse.Namespace(lr=0.1),
    },
    "half precision": lambda w: {k: v.half() for k, v in w.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_layouts(tmp_path, nets, layout):
    file = tmp_path / "w.pth"
    torch.save(LAYOUTS[layout](some_weights()), file)
    read = read_checkpoint(file)
    assert read.keys() == {"weight", "bias"}
    model = load_model(f"{nets}:fixed", checkpoint=file).model
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.detach(), some_weights()["weight"], atol=2e-3, rtol=0)


def test_safetensors_and_the_checksum(tmp_path, nets):
    file = tmp_path / "w.safetensors"
    save_file(some_weights(), file)
    source = load_model(f"{nets}:fixed", checkpoint=file)
    assert torch.equal(source.model.bias.detach(), some_weights()["bias"])
    assert source.checkpoint == str(file)
    assert len(source.sha256) == 64


def test_notes_say_what_was_taken(tmp_path, nets):
    torch.save({"state_dict_ema": some_weights(1), "state_dict": prefixed("module.")}, tmp_path / "w.pth")
    notes = load_model(f"{nets}:fixed", checkpoint=tmp_path / "w.pth").notes
    taken = "took 'state_dict', not 'state_dict_ema' (for those write w.pth::state_dict_ema)"
    assert notes == (taken, "removed 'module.' from the front of every key")
    averaged = load_model(f"{nets}:fixed", checkpoint=f"{tmp_path / 'w.pth'}::state_dict_ema").model
    assert torch.equal(averaged.bias.detach(), some_weights(1)["bias"])
    with pytest.raises(SourceError, match=r"no part 'other': it has the keys 'state_dict_ema'"):
        load_model(f"{nets}:fixed", checkpoint=f"{tmp_path / 'w.pth'}::other")


def test_a_lightning_module_with_more_than_the_network(tmp_path, nets):
    content = {**prefixed("net."), "criterion.weight": torch.ones(2)}
    torch.save({"state_dict": content, "hyper_parameters": {"lr": 0.1}}, tmp_path / "w.ckpt")
    source = load_model(f"{nets}:fixed", checkpoint=tmp_path / "w.ckpt")
    assert source.notes == ("took the names behind 'net.'; left out 1 others (criterion.weight)",)
    assert torch.equal(source.model.bias.detach(), some_weights()["bias"])


def test_a_folder_as_accelerate_saves_it(tmp_path, nets):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder in (whole, sharded):
        folder.mkdir()
    save_file(some_weights(), whole / "model.safetensors")
    index = {"weight_map": {key: f"model-{key}.safetensors" for key in some_weights()}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for key, value in some_weights().items():
        save_file({key: value}, sharded / f"model-{key}.safetensors")
    for folder in (whole, sharded):
        model = load_model(f"{nets}:fixed", checkpoint=folder).model
        assert torch.equal(model.bias.detach(), some_weights()["bias"])
    (sharded / "model-bias.safetensors").unlink()
    with pytest.raises(SourceError, match=r"the shard model-bias\.safetensors that .* names is missing"):
        load_model(f"{nets}:fixed", checkpoint=sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(SourceError, match="outside its folder"):
        load_model(f"{nets}:fixed", checkpoint=sharded)


def test_a_prefix_that_is_the_networks_own(tmp_path, nets):
    torch.save(prefixed("model."), tmp_path / "w.pth")
    model = load_model(f"{nets}:Wrapper", checkpoint=tmp_path / "w.pth").model
    assert torch.equal(model.model.bias.detach(), some_weights()["bias"])


def test_old_files_without_batch_counters(tmp_path, nets):
    state = {k: v for k, v in load_model(f"{nets}:small").model.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pth")
    load_model(f"{nets}:small", checkpoint=tmp_path / "w.pth")


# --- checkpoints that do not ---------------------------------------------------------------------------------------


def _cut(content, share=0.5):
    def write(path):
        torch.save(content, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


def _torch_file(content):
    return lambda path: torch.save(content, path)


def _raw(content):
    return lambda path: path.write_bytes(content)


def _script(path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def _cut_safetensors(path):
    save_file(some_weights(), path)
    path.write_bytes(path.read_bytes()[:-8])


def _with_pickle(content):
    """A file of torch.save with this in place of its pickle."""

    def write(path):
        torch.save({"a": torch.ones(2)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, held in members.items():
                archive.writestr(name, content if name.endswith("data.pkl") else held)

    return write


CHECKPOINT_MISTAKES = {
    "missing": ("w.pth", lambda path: None, "does not exist; check the path"),
    "folder": ("w.pth", lambda path: path.mkdir(), "is a folder, expected a file"),
    "empty": ("w.pth", _raw(b""), r"is empty \(0 bytes\); download or copy it again"),
    "web page": ("w.pth", _raw(b"\n<!DOCTYPE html><html>login"), "is a web page, not weights"),
    "web page as safetensors": ("w.safetensors", _raw(b"<html>"), "is a web page, not weights"),
    "lfs pointer": ("w.pth", _raw(b"version https://git-lfs.example/spec/v1\noid"), "is a Git LFS pointer"),
    "cut short": ("w.pth", _cut({"a": torch.ones(999)}), "cut short or damaged .* bytes came; download"),
    "cut at the start": ("w.pth", _cut({"a": torch.ones(999)}, 0.01), "w.pth (is cut short|is not a file torch.save)"),
    "cut safetensors": ("w.safetensors", _cut_safetensors, "not a whole safetensors file"),
    "torch file as safetensors": ("w.safetensors", _torch_file(some_weights()), "rename it if torch.save wrote it"),
    "text": ("w.pth", _raw(b"epoch,loss\n1,0.5\n"), "is not a file torch.save wrote, or it is damaged"),
    "code": (
        "w.pth",
        _torch_file({"a": RunsCode()}),
        r"was not opened: .* it holds posix.mkdir, and loading that would run code",
    ),
    "a number without its type": (
        "w.pth",
        _with_pickle(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R)b."),
        "is cut short or damaged",
    ),
    "whole model": (
        "w.pth",
        _torch_file(nn.Linear(2, 2)),
        r"holds torch\.nn\.modules\.linear\.Linear, .*state_dict\(\)",
    ),
    "TorchScript": ("w.pt", _script, "is a TorchScript program, not weights"),
    "no tensors": ("w.pth", _torch_file({"epoch": 3, "loss": 0.5}), r"no weights: it has the keys 'epoch' \(int\), 'l"),
    "empty dict": ("w.pth", _torch_file({}), "no weights: it is an empty dict"),
    "one tensor": ("w.pth", _torch_file(torch.ones(3)), "no weights: it is one Tensor"),
    "NaN": ("w.pth", _torch_file({"a": torch.tensor([1.0, float("nan")])}), "NaN or infinity in a: its training div"),
    "infinity": ("w.pth", _torch_file({"a": torch.tensor(float("inf"))}), "NaN or infinity in a"),
}


@pytest.mark.parametrize("mistake", CHECKPOINT_MISTAKES)
def test_checkpoint_mistakes(tmp_path, monkeypatch, mistake):
    name, write, message = CHECKPOINT_MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(SourceError, match=message) as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran-code").exists()


def test_a_folder_lists_its_checkpoints(tmp_path):
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(SourceError, match=r"it holds best\.ckpt; give the checkpoint file itself"):
        read_checkpoint(tmp_path)


# --- weights that do not fit ---------------------------------------------------------------------------------------


def _small(**changes):
    state = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).state_dict()
    for key, value in changes.items():
        state[key.replace("_", ".")] = value
    return {key: value for key, value in state.items() if value is not None}


MISFITS = {
    "classes": (
        _small(**{"3_weight": torch.ones(10, 5), "3_bias": torch.ones(10)}),
        r"2 of another shape \(3\.weight \(10, 5\) in the file, \(4, 5\) in the network, .*\)\. "
        r"The checkpoint has 10 classes and the network 4: pass --num-classes 10$",
    ),
    "width": (_small(**{"0_weight": torch.ones(5, 6)}), r"1 of another shape .*another variant of it"),
    "missing": (
        _small(**{"0_bias": None}),
        r"1 missing \(0\.bias\)\. 6 of the network's 9|7 of the network's 9|8 of the",
    ),
    "unexpected": (_small(aux_weight=torch.ones(1)), r"1 unexpected \(aux\.weight\)\. .*another variant of it"),
    "other names": (
        {f"layer{n}.w": torch.ones(1) for n in range(5)},
        r"8 missing \(0\.weight, 0\.bias, 1\.weight and 5 more\); 5 unexpected .*No name is in both .*'layer0\.w'",
    ),
    "prefix in part": (
        {**prefixed("model.", _small(**{"0_bias": None})), "criterion.weight": torch.ones(2)},
        r"names are in the file behind 'model\.', beside other ones",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit(tmp_path, nets, misfit):
    content, message = MISFITS[misfit]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SourceError, match=message):
        load_model(f"{nets}:small", checkpoint=tmp_path / "w.pth")


def test_the_advice_on_classes_works(tmp_path, nets):
    torch.save(load_model(f"{nets}:small", num_classes=10).model.state_dict(), tmp_path / "w.pth")
    assert load_model(f"{nets}:small", checkpoint=tmp_path / "w.pth", num_classes=10).sha256


def test_the_published_cifar10_checkpoint_reads():
    file = Path("../shared/data/resnet20-12fca82f.th")
    if not file.is_file():
        pytest.skip("needs ../shared/data/resnet20-12fca82f.th")
    weights = read_checkpoint(file)
    assert weights["conv1.weight"].shape == (16, 3, 3, 3)
    assert weights["linear.weight"].shape == (10, 64)
