"""What parts cost on a machine: clock, memory, and the benchmarks of `pyro_meta.bench`."""

PART_NAMES = ("attention", "prefill", "training", "decoding")
"""The parts of a model that `bench` times, by the names in routed.json."""
MECHANISMS = ("full", "window", "linear")
"""What timed routes choose from."""
