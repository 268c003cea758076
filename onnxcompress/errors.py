"""What a user did or gave that cannot work."""


class InputError(Exception):
    """Bad input or usage. The message is one line that names the file or node and the way out.

    The command line prints it and exits with code 2.
    """
