"""What pruning must equal: the original network in which the readers of removed channels read zero.

The oracle knows nothing of channel graphs. It runs the original node by node and learns which elements
depend on a removed filter by filling them with different numbers: an output element that changes depends
on one. Readers (dense Conv, Gemm, MatMul, LRN) are given zero there instead.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

FILLS = ((1.0, 2.0), (3.0, 5.0), (-2.0, -1.0), (-5.0, -3.0))


def outputs_with_removed_read_as_zero(
    model: ir.Model, removed: dict[str, list[int]], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Outputs of the original network, in which removed filters (by node name) are read as zero."""
    proto = ir.to_proto(model)
    opset = proto.opset_import
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer} | feeds
    tainted = {name: np.zeros(array.shape, bool) for name, array in values.items()}
    random = np.random.default_rng(0)
    for node in proto.graph.node:
        inputs = [name for name in node.input if name]
        masks = [tainted[name] for name in inputs]
        if _reads(node, values) or not any(mask.any() for mask in masks):
            results = [
                _run(
                    node,
                    [np.where(m, 0, values[n]) for n, m in zip(inputs, masks, strict=True)],
                    inputs,
                    opset,
                )
            ]
        else:
            results = []
            for low, high in FILLS:
                filled = [
                    np.where(mask, random.uniform(low, high, mask.shape), values[name]).astype(
                        values[name].dtype
                    )
                    for name, mask in zip(inputs, masks, strict=True)
                ]
                results.append(_run(node, filled, inputs, opset))
        for index, name in enumerate(node.output):
            if not name:
                continue
            first = results[0][index]
            values[name] = first
            changed = np.any([result[index] != first for result in results[1:]], axis=0)
            tainted[name] = np.zeros(first.shape, bool) | changed
            if (
                node.op_type == "Pad" and first.ndim == 4
            ):  # what it puts around a removed channel goes with it
                tainted[name] |= tainted[name].any(axis=(2, 3), keepdims=True)
        if node.op_type == "LRN":  # it reads its neighbours and hands on its own channel
            tainted[node.output[0]] = tainted[node.input[0]]
        if node.name in removed:
            axis = -1 if node.op_type == "MatMul" else 1
            np.moveaxis(tainted[node.output[0]], axis, 0)[removed[node.name]] = True
    for output in proto.graph.output:
        assert not tainted[output.name].any(), f"output {output.name} depends on removed filters"
    return [values[output.name] for output in proto.graph.output]


def _reads(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> bool:
    if node.op_type in ("Conv", "ConvTranspose"):
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        return group == 1 or group != values[node.input[0]].shape[1]
    return node.op_type in ("Gemm", "MatMul", "LRN")


def _run(
    node: onnx.NodeProto, arrays: list[np.ndarray], names: list[str], opset: list[onnx.OperatorSetIdProto]
) -> list[np.ndarray]:
    unique = dict(zip(names, arrays, strict=True))
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in unique.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    model = helper.make_model(graph, opset_imports=list(opset), ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = iter(session.run(None, unique))
    return [next(results) if name else None for name in node.output]
