"""The one exception that a person's mistake raises."""


class UsageError(ValueError):
    """Bad input: an option or a file, the value seen, and what is allowed.

    Entry points print it as one line and exit with code 2; callers of the Python interface
    catch it as a `ValueError`.
    """
