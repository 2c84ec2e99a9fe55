"""What parts cost on a machine: clock, memory, and the benchmarks of `pyro_meta.bench`."""
