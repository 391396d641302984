#!/usr/bin/env bash
# Makes a CUDA toolkit of NVIDIA's packages on PyPI, inside the active Python environment, and prints its folder:
#     CUDA=$(tools/cuda_from_pypi.sh)
#     CMAKE_ARGS="-DGGML_CUDA=ON -DCUDAToolkit_ROOT=$CUDA -DCMAKE_CUDA_COMPILER=$CUDA/bin/nvcc" pip install .
set -euo pipefail
version=${1:-13.0}

packages=()
for part in nvidia-cuda-{nvcc,crt,runtime,cccl} nvidia-{nvvm,cublas}; do
    packages+=("$part==$version.*")
done
python3 -m pip install --quiet "${packages[@]}" >&2
folder=$(python3 -c 'import nvidia; print(nvidia.__path__[0])')/cu${version%%.*}
# What compilers and linkers look for, and wheels cannot hold: links.
ln -sfn lib "$folder/lib64"
for library in "$folder"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done
echo "$folder"
