"""The command line."""

from onnxcompress.cli.app import app

__all__ = ["app"]
