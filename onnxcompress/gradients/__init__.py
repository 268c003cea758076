"""How what an ONNX network gives changes with its values: the backward pass, as a graph."""
