"""Training an ONNX network by NumPy and ONNX Runtime: losses, optimizers, the loop."""
