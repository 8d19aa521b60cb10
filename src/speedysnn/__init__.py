"""speedysnn: spiking networks from trained PyTorch networks, with the quantization noise measured and trained away.

from speedysnn import analysis, convert, finetune

snn = convert.to_spiking(ann, calibration, timesteps=4)
noise = analysis.measure_noise(snn, data)
result = finetune.fit(snn, train)
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own takes longer to import than all of this file
if TYPE_CHECKING:
    from speedysnn.artifact import load as load
    from speedysnn.artifact import save as save
    from speedysnn.errors import SpeedySNNError as SpeedySNNError
    from speedysnn.network import SpikingNetwork as SpikingNetwork
    from speedysnn.neurons import IFNeuron as IFNeuron
else:  # at first use: torch takes seconds to import, and the command line must be able to stop it
    _HOMES = {"load": "artifact", "save": "artifact", "SpeedySNNError": "errors", "SpikingNetwork": "network",
              "IFNeuron": "neurons"}  # fmt: skip

    def __getattr__(name: str) -> object:
        """A public name, or a module of this package."""
        from importlib import import_module
        from importlib.util import find_spec

        if name in _HOMES:
            globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return globals()[name]
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
