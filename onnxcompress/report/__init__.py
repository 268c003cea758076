"""Results as tables for people and as plain data for programs."""
