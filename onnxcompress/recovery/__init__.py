"""Getting accuracy back: weights change, shapes do not."""
