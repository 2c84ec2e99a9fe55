"""The test that `python -m pyro_meta.contracts CLASS` runs on every clause of CLASS."""

from pyro_meta.contracts.suite import Clause


def test_contract(clause: Clause) -> None:
    __tracebackhide__ = True
    clause.tested()
