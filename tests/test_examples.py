"""The examples run as they stand, and the classes in them keep their contracts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_meta.contracts import contract

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, example.name],
        cwd=example.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not done.stderr.strip()


test_my_prior = contract("my_prior.CheapBelow", cheap=2)
test_my_mechanism = contract("my_mechanism.Ends")
