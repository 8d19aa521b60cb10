"""The network as data: allow-listed operators, their wiring, and JSON."""

from speedysnn.graph.ir import Attrs as Attrs
from speedysnn.graph.ir import Graph as Graph
from speedysnn.graph.ir import Json as Json
from speedysnn.graph.ir import Node as Node
from speedysnn.graph.ir import map_outputs as map_outputs
from speedysnn.graph.operators import OPERATORS as OPERATORS
