"""The tests. `pytest` runs the quick ones; CONTRIBUTING.md tells how to run the others."""
