"""Attention as tensor functions: the slow truth beside the fast ways."""
