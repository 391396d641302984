"""The library of ggml's CUDA backend, which pycrispasr loads from this folder. There is nothing to import."""
