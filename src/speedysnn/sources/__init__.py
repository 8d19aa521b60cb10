"""A name, a file or a function becomes the `nn.Module` to convert."""

from speedysnn.errors import InputError as InputError
from speedysnn.errors import SourceError as SourceError
from speedysnn.files.safety import FILE as FILE
from speedysnn.files.safety import MODULE as MODULE
from speedysnn.files.safety import UserFunction as UserFunction
from speedysnn.files.safety import closest as closest
from speedysnn.files.safety import kind_of as kind_of
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
