"""Whole networks out of files, .pt2 and ONNX, built from their graphs; nothing in a file is run."""

from speedysnn.sources.exported import load_program as load_program
from speedysnn.sources.onnx_reader import load_onnx as load_onnx

__all__ = ["load_onnx", "load_program"]
