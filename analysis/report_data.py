"""What the page takes: tables, advice and JSON, by protocol, so that a result may write itself without a circle."""

from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd

from speedysnn.analysis.commands import Advice
from speedysnn.analysis.details import LayerDetail
from speedysnn.analysis.schema import Column


class MemoryTold(Protocol):
    """What a measurement held in memory, told in a sentence."""

    def sentence(self) -> str:
        """In words."""
        ...


class NoiseTables(Protocol):
    """The tables of a noise report; `NoiseReport` has them."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row a neuron layer."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The whole network's figures."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do."""
        ...

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        ...

    @property
    def columns(self) -> Mapping[str, Column]:
        """What each column of `layers` means and how it is shown."""
        ...

    @property
    def details(self) -> Mapping[str, LayerDetail]:
        """By layer, what its row has no room for."""
        ...

    @property
    def memory(self) -> MemoryTold | None:
        """What the measurement held; None where not measured."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The report as strict JSON data."""
        ...


class SensitivityTables(Protocol):
    """The tables of a sensitivity measurement; `Sensitivity` has them."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer and mode."""
        ...

    @property
    def gains(self) -> pd.DataFrame:
        """One row a layer and change."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """The whole network's figures."""
        ...

    @property
    def temporal_gap_db(self) -> float:
        """SQNR(twin) - SQNR(spiking) at the output, dB."""
        ...

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What was found and what to do."""
        ...

    @property
    def verdict(self) -> tuple[str, ...]:
        """The advice as plain sentences."""
        ...

    @property
    def memory(self) -> MemoryTold | None:
        """What the measurement held; None where not measured."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything as strict JSON data."""
        ...
