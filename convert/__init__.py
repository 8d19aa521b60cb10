"""Convert a trained network into a spiking one: trace, replace every activation, choose the thresholds."""

from speedysnn.convert.clips import as_clip as as_clip
from speedysnn.convert.correct import apply_correction as apply_correction
from speedysnn.convert.handler_api import Call as Call
from speedysnn.convert.handler_api import Handler as Handler
from speedysnn.convert.handler_api import Key as Key
from speedysnn.convert.handler_api import Ref as Ref
from speedysnn.convert.handler_api import Unsupported as Unsupported
from speedysnn.convert.ops import HANDLERS as HANDLERS
from speedysnn.convert.ops.activations import as_leaky as as_leaky
from speedysnn.convert.ops.activations import as_neuron as as_neuron
from speedysnn.convert.ops.activations import as_operator as as_operator
from speedysnn.convert.report import Report as Report
from speedysnn.convert.report import Row as Row
from speedysnn.convert.search import SearchResult as SearchResult
from speedysnn.convert.search import search as search
from speedysnn.convert.spiking import inspect as inspect
from speedysnn.convert.spiking import to_spiking as to_spiking
