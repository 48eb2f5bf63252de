"""A deployed defense as an ONNX file, checked against PyTorch."""

from lightning_advdef.export.onnx_file import write_onnx
from lightning_advdef.export.parity import Parity, compare_with_file

__all__ = ["Parity", "compare_with_file", "write_onnx"]
