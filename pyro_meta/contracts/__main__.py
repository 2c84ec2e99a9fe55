"""`python -m pyro_meta.contracts CLASS`: put a class of one's own to the test."""

import os
from functools import partial
from typing import Any

from pyro_meta.contracts import one_clause
from pyro_meta.contracts.names import read_call
from pyro_meta.contracts.suite import Clause, clauses, pretrained_clauses, require_answer
from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import VERSION, run_command

USAGE = """usage: python -m pyro_meta.contracts CLASS [options of pytest]
       python -m pyro_meta.contracts --pretrained FOLDER_OR_NAME [options of pytest]

CLASS is a mechanism, block, prior or guide, of routes or of depth gates: my_file.MyGuide, or
"my_file.MyGuide(hidden=8)" with arguments of its constructor, or the name of a built-in one. A
guide of routes also takes prior='NAME', a prior over them guide='NAME': the class that it is tested
with.

--pretrained puts a model of transformers to the test, in single precision, as it is wrapped and
converted: with all routes full nothing of it is lost, and along others no token sees what follows
it. FOLDER_OR_NAME as of python -m pyro_meta.train.

Exits with code 1 if a clause is broken."""


class _Given:
    """The plugin that gives the test its cases."""

    def __init__(self, found: list[Clause]) -> None:
        self.found = found

    def pytest_generate_tests(self, metafunc: Any) -> None:
        metafunc.parametrize("clause", self.found, ids=str)


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] == "--version":
        print(VERSION)
        return 0
    asked, rest = _asked(argv)
    try:
        import pytest
    except ImportError as error:
        raise UsageError("contracts are tests and need pytest: pip install pytest") from error
    require_answer(asked)
    given = _Given(asked)
    # neither the settings of this package's tests nor those of the folder that we are in
    alone = ["-c", os.devnull, "--rootdir", os.curdir, "-p", "no:cacheprovider"]
    alone += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # no plugin
    look = ["--no-header", "--verbose", "--tb=short"]
    return int(pytest.main([*alone, *look, str(one_clause.__file__), *rest], plugins=[given]))


def _asked(argv: list[str]) -> tuple[list[Clause], list[str]]:
    """The clauses of what the words name, and the words that follow."""
    option, has_value, model = argv[0].partition("=")
    if option == "--pretrained":
        rest = argv[1:]
        if not has_value:
            if not rest or rest[0].startswith("-"):
                raise UsageError("option --pretrained: a folder or a name is missing")
            model, rest = rest[0], rest[1:]
        from pyro_meta.pretrained.loading import load_model

        return pretrained_clauses(partial(load_model, model)), rest
    if option.startswith("-"):
        raise UsageError(
            f"{argv[0]!r} given first; the name of a class comes first, or --pretrained"
        )
    name, arguments = read_call(argv[0])
    return clauses(name, **arguments), argv[1:]


if __name__ == "__main__":
    run_command(main)
