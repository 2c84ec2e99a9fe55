"""A run: its options, its loop and its folder."""
