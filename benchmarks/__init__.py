"""Long-running measurements; none of them is a test."""
