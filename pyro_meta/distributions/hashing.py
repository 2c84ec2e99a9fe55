"""Pseudo-random numbers that are a function of what is hashed: the same wherever they are asked."""

import torch
from torch import Tensor

_LOW_BITS = (1 << 40) - 1


def uniform(key: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, of scrambled keys of the same shape."""
    return (key & _LOW_BITS).to(torch.float64) / (_LOW_BITS + 1)


def scramble(key: Tensor) -> Tensor:
    """The output function of SplitMix64 on int64 (Steele et al. 2014, doi:10.1145/2660193.2660195).

    Neighbouring keys give unrelated bits.
    """
    key = key + _signed(0x9E3779B97F4A7C15)
    key = (key ^ _shifted(key, 30)) * _signed(0xBF58476D1CE4E5B9)
    key = (key ^ _shifted(key, 27)) * _signed(0x94D049BB133111EB)
    return key ^ _shifted(key, 31)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(key: Tensor, bits: int) -> Tensor:
    """A right shift that brings in zeros."""
    return (key >> bits) & ((1 << (64 - bits)) - 1)
