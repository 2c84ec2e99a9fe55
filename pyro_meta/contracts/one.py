"""The test that `python -m pyro_meta.contracts CLASS` hands to pytest, with the clauses of CLASS."""

from pyro_meta.contracts.suite import Clause


def test_contract(clause: Clause) -> None:
    __tracebackhide__ = True
    clause.check()
