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
    from speedysnn.integer.chip import to_integer as to_integer
    from speedysnn.network import SpikingNetwork as SpikingNetwork
    from speedysnn.neurons import IFNeuron as IFNeuron
else:  # at first use: torch takes seconds to import, and the command line must be able to stop it
    _HOMES = {"load": "artifact", "save": "artifact", "SpeedySNNError": "errors", "SpikingNetwork": "network",
              "IFNeuron": "neurons", "to_integer": "integer.chip"}  # fmt: skip

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

    MOVED = {
        "operators": "graph.operators", "tap": "execution.observers", "trains": "spike_trains", "progress": "display",
        "thresholds": "calibration.rules", "histogram": "calibration.histogram", "plan": "execution.scheduling",
        "stream": "execution.runner", "executor": "execution.interpreter", "modes": "torch_utils",
        "spike_codes": "encoders", "analysis.columns": "analysis.noise.schema", "analysis.entries": "analysis.noise",
        "analysis.cost.energy": "analysis.cost", "analysis.noise.rows": "analysis.noise.layer",
        "bench.timing": "bench", "calibration.record": "calibration", "convert.encode": "convert.lower",
        "convert.handlers": "convert.ops", "convert.ops.attention": "convert.ops.modules",
        "convert.ops.layers": "convert.ops.functions", "convert.verify": "convert.read",
        "execution.streaming": "execution.runner", "sources.registry": "sources", "data.registry": "data",
        "assets.make": "assets.digits", "finetune.blocks.config": "finetune.blocks", "integer.bounds": "integer.lower",
        "kernels.elementwise": "kernels.numba_backend",
        "graph.blocks": "graph", "integer.store": "integer",
    }  # fmt: skip

    class _MovedModules:
        """Old import paths, kept until 0.3: each gives the module at its new place and a warning."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            """The module's spec where it has moved, else None."""
            from importlib import import_module
            from importlib.util import spec_from_loader
            from warnings import warn

            new = MOVED.get(name.removeprefix("speedysnn.")) if name.startswith("speedysnn.") else None
            if new is None:
                return None
            warn(f"{name} is now speedysnn.{new}; the old path goes in 0.3", DeprecationWarning, stacklevel=2)
            return spec_from_loader(name, _Loader(import_module(f"speedysnn.{new}")))

    class _Loader:
        """Hands out a module that is there already, and leaves its own spec on it."""

        def __init__(self, module: object) -> None:
            self.module, self.spec = module, module.__spec__

        def create_module(self, spec: object) -> object:
            """The module at its new place."""
            return self.module

        def exec_module(self, module: object) -> None:
            """Nothing runs again."""
            module.__spec__ = self.spec

    import sys

    if not any(type(finder).__name__ == "_MovedModules" for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
