"""Chunks: a token attends to its own chunk and to summaries of earlier ones."""
