"""The command line."""

from onnxcompress.cli.commands import app

__all__ = ["app"]
