"""What pruning must equal: the original network in which the readers of removed channels read zero.

The oracle knows nothing of channel graphs. It runs the original node by node and learns which elements
depend on a removed filter by filling them with different numbers: an output element that changes depends
on one. Readers (dense Conv, Gemm, MatMul, Einsum, LRN, sums) are given zero there instead.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

SUMS = ("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare")
FILLS = ((1.0, 2.0), (3.0, 5.0), (-2.0, -1.0), (-5.0, -3.0))


def outputs_with_removed_read_as_zero(
    model: ir.Model, removed: dict[str, list[int]], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """Outputs of the original network, in which removed filters (by node name) are read as zero."""
    proto = ir.to_proto(model)
    opset = proto.opset_import
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer} | feeds
    tainted = {name: np.zeros(array.shape, bool) for name, array in values.items()}
    constants = {tensor.name for tensor in proto.graph.initializer}
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
                filled = []
                for mask, name in zip(masks, inputs, strict=True):
                    noise = random.uniform(low, high, mask.shape).astype(values[name].dtype)
                    filled.append(np.where(mask, noise, values[name]))
                results.append(_run(node, filled, inputs, opset))
        for index, name in enumerate(node.output):
            if not name:
                continue
            first = results[0][index]
            values[name] = first
            changed = np.any([result[index] != first for result in results[1:]], axis=0)
            tainted[name] = np.zeros(first.shape, bool) | changed
            if node.op_type == "Pad":  # what it puts around a removed channel is removed with it
                around = np.flatnonzero(np.array(first.shape) != values[node.input[0]].shape)
                around = tuple(int(axis) for axis in around if axis != 1)
                tainted[name] |= tainted[name].any(axis=around, keepdims=True)
        if node.op_type == "LRN":  # it reads its neighbours and hands on its own channel
            tainted[node.output[0]] = tainted[node.input[0]]
        if node.op_type in SUMS:
            axes = values[node.input[1]] if len(node.input) > 1 else _attribute(node, "axes").ints
            axes = tuple(int(axis) for axis in np.ravel(axes)) or None
            tainted[node.output[0]] = masks[0].all(axis=axes).reshape(values[node.output[0]].shape)
        if node.op_type == "MatMul":  # channels along another axis than the one that is summed over pass
            left, right = (tainted[name] for name in node.input)
            whole = left.all(axis=-1, keepdims=True) | right.all(axis=-2, keepdims=True)
            tainted[node.output[0]] = np.broadcast_to(whole, values[node.output[0]].shape).copy()
        if node.op_type == "Einsum":  # likewise
            terms, result = _attribute(node, "equation").s.decode().split("->")
            tainted[node.output[0]][:] = False
            for term, mask in zip(terms.split(","), masks, strict=True):
                whole = mask.all(axis=tuple(axis for axis, each in enumerate(term) if each not in result))
                left = [each for each in term if each in result]
                whole = whole.transpose([left.index(each) for each in result if each in left])
                missing = [axis for axis, each in enumerate(result) if each not in left]
                tainted[node.output[0]] |= np.expand_dims(whole, missing)
        if node.name in removed:
            axis = 1
            if node.op_type == "MatMul":
                axis = -2 if node.input[0] in constants else -1
            np.moveaxis(tainted[node.output[0]], axis, 0)[removed[node.name]] = True
    for output in proto.graph.output:
        assert not tainted[output.name].any(), f"output {output.name} depends on removed filters"
    return [values[output.name] for output in proto.graph.output]


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next((each for each in node.attribute if each.name == name), onnx.AttributeProto())


def _reads(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> bool:
    if node.op_type in ("Conv", "ConvTranspose"):
        group = _attribute(node, "group").i or 1
        return group == 1 or group != values[node.input[0]].shape[1]
    return node.op_type in ("Einsum", "Gemm", "MatMul", "LRN", *SUMS)


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
