"""Removing filters: what is tied to what, which ones to take, and taking them out."""
