"""Settings: their old names still work, and what an earlier version wrote still loads."""

import inspect

import pytest

from speedysnn import finetune
from speedysnn.cli.finetune import command
from speedysnn.errors import InputError
from speedysnn.finetune.config import OLD_NAMES
from speedysnn.finetune.fit import planned
from tests.finetune.test_fit import _network

GIVEN = {"match": 0.0, "keep": "last", "threshold_rule": "step"}


@pytest.mark.parametrize("kind", [finetune.Config, finetune.TrainConfig])
@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_names_are_taken_with_a_warning(kind, old: str) -> None:
    new = OLD_NAMES[old]
    with pytest.warns(DeprecationWarning, match=f"'{old}' is now called '{new}'"):
        config = kind(**{old: GIVEN[old]})
    assert config == kind(**{new: GIVEN[old]})
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(config, old) == GIVEN[old]
    with pytest.raises(InputError, match=f"{new}: expected one value"):
        kind(**{old: GIVEN[old], new: GIVEN[old]})


def test_settings_written_under_the_old_names_load() -> None:
    config = finetune.Config(layer_match_weight=2.0, monitor="agreement", threshold_gradient="mixed")
    back = {new: old for old, new in OLD_NAMES.items()}
    written = {back.get(name, name): value for name, value in config.to_json().items()}
    assert set(OLD_NAMES) < set(written)
    assert finetune.Config.from_json(written) == config == finetune.Config.from_json(config.to_json())


def test_the_command_line_begins_with_the_same_settings() -> None:
    given = inspect.signature(command).parameters
    config = finetune.Config()
    names = ("layer_match_weight", "monitor", "threshold_gradient", "epochs_quantized", "epochs_spiking", "temperature",
             "average", "label_weight", "membrane", "batch_size", "mixup", "augment", "precision")  # fmt: skip
    assert {name: given[name].default for name in names} == {name: getattr(config, name) for name in names}


def test_open_epochs_follow_from_images_and_parameters() -> None:
    def stages(images: int, parameters: int, synchronous: bool = False, **given: int) -> list[str]:
        return [str(stage) for stage in planned(finetune.Config(**given), images, parameters, synchronous).plan]

    assert stages(5_000, 300_000) == ["reconstruct:0", "quantized:10", "spiking:1,rate=0.3"]
    assert stages(500_000, 10**8) == ["reconstruct:0", "quantized:3", "spiking:1,rate=0.3"]
    assert stages(500, 300_000, synchronous=True) == ["reconstruct:0", "quantized:20"]
    assert stages(5_000, 0) == ["quantized:10", "spiking:1,rate=0.3"]
    assert stages(500, 500_001) == ["reconstruct:4", "quantized:4", "spiking:1,rate=0.3"]
    assert stages(500, 10**7, epochs_quantized=2) == ["quantized:2", "spiking:1,rate=0.3"]
    assert stages(500, 100, synchronous=True, epochs_quantized=0) == ["spiking:1,rate=0.3"]
    assert stages(500, 10**7, epochs_quantized=1, epochs_spiking=2) == ["quantized:1", "spiking:2,rate=0.3"]


@pytest.mark.parametrize(
    ("images", "given", "normed"), [(5_000, None, True), (500, None, False), (500, True, True), (5_000, False, False)]
)
def test_batch_norm_is_in_place_unless_images_are_few(images: int, given: bool | None, normed: bool) -> None:
    assert planned(finetune.Config(batch_norm=given), images, 1_000_000, False).batch_norm is normed
    staged = finetune.Config(batch_norm=given, stages=(finetune.Stage("quantized", 1),))
    assert planned(staged, images, 1_000_000, False).batch_norm is given


def test_a_neuron_knows_its_gradient_under_the_old_name() -> None:
    neuron = next(iter(_network().neurons.values()))
    neuron.threshold_rule = "mixed"
    assert neuron.threshold_gradient == neuron.threshold_rule == "mixed"
