"""Training an ONNX network with nothing but NumPy and ONNX Runtime: gradients, losses, optimizers, the loop."""
