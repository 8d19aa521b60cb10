"""Whole networks out of files, .pt2 and ONNX, built from their graphs; nothing in a file is run."""

from speedysnn.programs.onnx import load_onnx as load_onnx
from speedysnn.programs.pt2 import load_program as load_program

__all__ = ["load_onnx", "load_program"]
