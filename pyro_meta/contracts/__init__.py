"""What every mechanism, block, prior and guide promises, as tests for a user's own class too.

In a test file, one line; constructor arguments follow the class:

    test_mine = contract("my_file.MyGuide", hidden=8)

On the command line, without a file:

    python -m pyro_meta.contracts "my_file.MyGuide(hidden=8)"

A clause is a plain function that takes the subject and raises `Broken`; its name is what it
promises. pytest is imported where a test is made, and not before.
"""

from pyro_meta.contracts.checks import Broken
from pyro_meta.contracts.names import built_in
from pyro_meta.contracts.suite import broken, clauses, contract

__all__ = ["Broken", "broken", "built_in", "clauses", "contract"]
