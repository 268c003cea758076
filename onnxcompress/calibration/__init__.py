"""What a network computes on calibration data: samples, patches of activations, their second moments."""
