"""Networks by name: what loads, and what each mistake says."""

import sys

import pytest
import torch

from speedysnn import sources
from speedysnn.errors import InputError, SourceError
from speedysnn.sources import Source, load_model
from tests.material import source_files
from tests.material.source_files import some_weights

nets = source_files.nets


def test_torchvision_network_with_its_classes():
    source = load_model("torchvision:resnet18", num_classes=7)
    assert isinstance(source, Source)
    assert source.model.fc.out_features == 7
    assert not source.model.training
    assert (source.checkpoint, source.sha256, source.notes) == (None, None, ())
    assert "Conv2d" not in repr(source)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_whose_constructor_would_warn(name):
    assert load_model(f"torchvision:{name}", num_classes=3).model.fc.out_features == 3


def test_functions_of_a_file_and_of_a_module(nets, tmp_path, monkeypatch):
    assert load_model(f"{nets}:small").model[3].out_features == 4
    assert load_model(f"{nets}:small", num_classes=9).model[3].out_features == 9
    assert load_model(f"{nets}:neighbour").model.in_features == 1
    assert load_model("speedysnn.assets.digits:avg_net").model.fc2.out_features == 10
    monkeypatch.chdir(tmp_path)
    assert load_model("nets:fixed").model.out_features == 4
    sys.modules.pop("nets")
    assert str(tmp_path) not in sys.path


MODEL_MISTAKES = [
    ("torchvision:resnet19", {}, SourceError, r"no classification network 'resnet19'; did you mean 'resnet18'"),
    ("torchvision:qqqq", {}, SourceError, r"no classification network 'qqqq'; there are alexnet, convnext"),
    ("torchvision:fasterrcnn_resnet50_fpn", {}, SourceError, r"no classification network"),
    ("torchvison:resnet18", {}, InputError, r"unknown network 'torchvison:resnet18'; did you mean 'torchvision'\?"),
    ("resnet18", {}, InputError, r"did you mean 'torchvision:resnet18'\?; expected 'torchvision:NAME', 'FILE.py:FUNC"),
    ("{nets}", {}, InputError, r"name the function in it too: .*nets\.py:FUNCTION"),
    ("", {}, InputError, r"unknown network ''"),
    ("torchvision:resnet18", {"num_classes": 0}, InputError, r"num_classes must be at least 1, not 0"),
    ("absent.py:net", {}, SourceError, r"the file absent\.py does not exist"),
    ("~\ud800.py:net", {}, SourceError, r"the file ~\\ud800\.py does not exist"),
    ("{nets}:smal", {}, SourceError, r"no function 'smal' \(it defines small, fixed, .*did you mean 'small'"),
    ("{nets}:WIDTH", {}, SourceError, r"WIDTH is a int, expected a function"),
    ("{nets}:broken", {}, SourceError, r"calling broken failed at nets\.py:24: RuntimeError: .*mat1 and mat2 shapes"),
    ("{nets}:exits", {}, SourceError, r"it calls sys\.exit; keep what runs as a script below"),
    ("{nets}:text", {}, SourceError, r"returned a str, expected a torch\.nn\.Module"),
    ("{nets}:needs", {}, SourceError, r"is called without any arguments, but needs width; give these defaults"),
    ("{nets}:fixed", {"num_classes": 3}, SourceError, r"takes no argument num_classes, so --num-classes 3 has nowhere"),
    ("no.such.module:net", {}, SourceError, r"importing it failed: ModuleNotFoundError: No module named 'no'"),
    ("speedysnn.errors:net", {}, SourceError, r"speedysnn\.errors has no function 'net' \(it defines no functions\)"),
]


@pytest.mark.parametrize(("spec", "options", "error", "message"), MODEL_MISTAKES)
def test_network_mistakes(nets, spec, options, error, message):
    with pytest.raises(error, match=message):
        load_model(spec.format(nets=nets), **options)


def test_a_syntax_error_names_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef net(:\n")
    with pytest.raises(SourceError, match=r"importing it failed at bad\.py:2: SyntaxError"):
        load_model(f"{tmp_path / 'bad.py'}:net")


def test_a_checkpoint_in_place_of_a_network(tmp_path):
    torch.save(some_weights(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="a checkpoint holds weights alone: name the network"):
        load_model(str(tmp_path / "w.pth"))


# --- torchvision beside a torch it was not built for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "torchvision is not installed"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "does not import beside torch .*PIL"),
        (RuntimeError("operator torchvision::nms does not exist"), "install the torchvision release made for this"),
        (RuntimeError("something else"), "does not import beside torch .*something else"),
        (OSError("undefined symbol"), "does not import beside torch .*undefined symbol"),
    ],
)
def test_torchvision_that_does_not_import(monkeypatch, failure, message):
    def importing():
        raise failure

    monkeypatch.setattr(sources, "_import", importing)
    loaded = {name for name in sys.modules if name.startswith("torchvision")}
    with pytest.raises(SourceError, match=f"{message}.*pip install --upgrade torch torchvision"):
        load_model("torchvision:resnet18")
    assert loaded <= set(sys.modules), "what was imported before stays imported"


def test_weights_that_expect_another_input_are_mentioned(tmp_path) -> None:
    models = pytest.importorskip("torchvision").models
    file = tmp_path / "net.pth"
    torch.save(models.get_model("googlenet", weights=None, init_weights=False, num_classes=3).state_dict(), file)
    notes = load_model("torchvision:googlenet", checkpoint=file, num_classes=3).notes
    assert any("transform_input=True" in note for note in notes)
