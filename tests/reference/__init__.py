"""The whole model in NumPy: the specification in code, which the runtime is tested against."""
