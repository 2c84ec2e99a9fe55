"""The one exception that a person's mistake raises, and the check of classes that people write."""


class UsageError(ValueError):
    """Bad input: an option or a file, the value seen, and what is allowed.

    Entry points print it as one line and exit with code 2; callers of the Python interface
    catch it as a `ValueError`.
    """


def require_defined(instance: object, base: type, *methods: str) -> None:
    """Raise `UsageError` unless the class of `instance` overrides `methods` of `base`."""
    missing = [name for name in methods if getattr(type(instance), name) is getattr(base, name)]
    if missing:
        raise UsageError(
            f"{type(instance).__name__} does not define {', '.join(missing)}; "
            f"a {base.__name__} defines {', '.join(methods)}"
        )
