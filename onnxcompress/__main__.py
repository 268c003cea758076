"""Entry point of the command ``onnxcompress`` and of ``python -m onnxcompress``."""

import signal
import sys


def main() -> None:
    """Run the command line. Interrupts end in one line from the start, while its modules still load."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from onnxcompress.cli import app

        app()
    except KeyboardInterrupt:
        print("onnxcompress: interrupted, nothing was written; run the same command again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
