"""`python -m pyro_meta.contracts CLASS`: put a class of one's own to the test."""

import os
from typing import Any

from pyro_meta.contracts import one_clause
from pyro_meta.contracts.names import read_call
from pyro_meta.contracts.suite import Clause, clauses, require_answer
from pyro_meta.errors import UsageError
from pyro_meta.terminal.commands import VERSION, run_command

USAGE = """usage: python -m pyro_meta.contracts CLASS [options of pytest]

CLASS is a mechanism, block, prior or guide, of routes or of depth gates: my_file.MyGuide, or
"my_file.MyGuide(hidden=8)" with arguments of its constructor, or the name of a built-in one. A
guide of routes also takes prior='NAME', a prior over them guide='NAME': the class that it is tested
with. Exits with code 1 if a clause is broken."""


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
    if argv[0].startswith("-"):
        raise UsageError(f"{argv[0]!r} given first; the name of a class comes first")
    try:
        import pytest
    except ImportError as error:
        raise UsageError("contracts are tests and need pytest: pip install pytest") from error
    name, arguments = read_call(argv[0])
    asked = clauses(name, **arguments)
    require_answer(asked)
    given = _Given(asked)
    # neither the settings of this package's tests nor those of the folder that we are in
    alone = ["-c", os.devnull, "--rootdir", os.curdir, "-p", "no:cacheprovider"]
    look = ["--no-header", "--verbose", "--tb=short"]
    return int(pytest.main([*alone, *look, str(one_clause.__file__), *argv[1:]], plugins=[given]))


if __name__ == "__main__":
    run_command(main)
