"""Cost, accuracy and latency."""
