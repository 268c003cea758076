"""Training an ONNX network by NumPy and ONNX Runtime: gradients, losses, optimizers, the loop."""
