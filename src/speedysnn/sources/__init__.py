"""A name, a file or a function becomes the `nn.Module` to convert."""

from speedysnn.sources.checkpoint import open_checkpoint as open_checkpoint
from speedysnn.sources.checkpoint import read_checkpoint as read_checkpoint
from speedysnn.sources.exported import load_program as load_program
from speedysnn.sources.onnx_reader import load_onnx as load_onnx
from speedysnn.sources.registry import FILES as FILES
from speedysnn.sources.registry import MODELS as MODELS
from speedysnn.sources.registry import Source as Source
from speedysnn.sources.registry import import_torchvision as import_torchvision
from speedysnn.sources.registry import load_model as load_model
from speedysnn.sources.state_dict import load_weights as load_weights
