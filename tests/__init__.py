"""The tests. `pytest` runs the quick ones; CONTRIBUTING.md tells how to run the others."""

import os

# Workers share the cores: NumPy's threads, in them and in processes that they start, would only wait for each other.
# Before NumPy is imported.
for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
