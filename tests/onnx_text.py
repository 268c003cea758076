"""Tiny networks written in ONNX's text form."""

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser


def network(text: str, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    """The network of a graph in ONNX's text form, with these weights."""
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return ir.from_proto(proto)
