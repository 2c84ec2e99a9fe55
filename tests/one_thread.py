"""One thread for this process and for all that it starts: import it before numpy and torch.

Both read these variables once, when they load. Two test workers and their trainings otherwise hold
more threads than there are cores, and threads of OpenMP that wait for each other spin.
"""

import os

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR", "RAYON")
os.environ |= {f"{library}_NUM_THREADS": "1" for library in LIBRARIES}
os.environ["VECLIB_MAXIMUM_THREADS"] = "1"
