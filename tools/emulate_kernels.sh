#!/usr/bin/env bash
# Tests the kernels of instruction sets that this processor lacks, under qemu-user, and those that it has:
#
#     tools/emulate_kernels.sh [FOLDER]
#
# For AArch64 the library is cross-compiled and tested with Debian's Python for it, on processors without dot products, with
# them, and with BF16; for x86-64 on this processor, and on one with AVX2. qemu 7.2 has no AVX-VNNI, AVX-512 and AMX: these
# are tested only where this processor has them. On each: tests/test_kernels.py, and a transcription by the bundled model, as
# it is and in F16, whose head is screened in 8-bit integers.
#
# FOLDER keeps what was built and fetched for the next time. On Debian, as root, it installs the compiler and the emulator
# where they are missing. Nothing else on the system is changed: the other architecture's packages are only unpacked.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    work=$(realpath "$1")
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
triple=aarch64-linux-gnu
if ! command -v $triple-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++-$triple qemu-user
fi

mapfile -t needed < <(sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)",.*/\1/p' pyproject.toml)
needed+=(gguf hypothesis pytest)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet cmake ninja "${needed[@]}"
PATH=$work/venv/bin:$PATH

# An AArch64 Python: Debian's packages, from lists and caches of our own, unpacked.
root=$work/root
apt_arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
        -o Dir::State::Lists="$work/apt/lists" -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt" "$@"
}
if [ ! -e "$root/complete" ]; then
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$root"
    touch "$work/apt/status"
    apt_arm64 update
    apt_arm64 install --download-only --no-install-recommends -y python3-minimal libpython3-stdlib libstdc++6
    for package in "$work/apt/archives"/*.deb; do
        dpkg -x "$package" "$root"
    done
    touch "$root/complete"
fi
python=$(realpath "$root/usr/bin/python3")
version=${python##*/python}
if [ ! -e "$work/site/complete" ]; then
    pip install --quiet --target "$work/site" --implementation cp --python-version "$version" --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 "${needed[@]}"
    touch "$work/site/complete"
fi

# build NAME [CMAKE OPTION...]: the library, and a package with it in $work/NAME/package.
build() {
    local name=$1
    shift
    cmake -S . -B "$work/$name/build" -G Ninja -DGGML_NATIVE=OFF -DPYCRISPASR_WERROR=ON -DCMAKE_BUILD_TYPE=Release \
        -DSKBUILD_PROJECT_VERSION="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pycrispasr/__init__.py)" "$@"
    cmake --build "$work/$name/build" --target pycrispasr pycrispasr_cdefs
    rm -rf "$work/$name/package"
    mkdir -p "$work/$name/package"
    cp -r src/pycrispasr tests samples "$work/$name/package"
    cp "$work/$name/build/libpycrispasr.so" "$work/$name/build/_cdefs.py" "$work/$name/package/pycrispasr"
}
build aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_FIND_ROOT_PATH=/usr/$triple \
    -DCMAKE_C_COMPILER=$triple-gcc -DCMAKE_CXX_COMPILER=$triple-g++
build x86-64

# F16 is converted in vectors: no call of ggml's conversion, no instruction for a single number.
for object in "$work"/aarch64/build/CMakeFiles/pycrispasr_kernels_*.dir/csrc/kernels/table.cpp.o; do
    if $triple-objdump -dr --no-show-raw-insn "$object" |
        grep -E 'ggml_fp(16_to_fp32|32_to_fp16)|fcvt[[:space:]]+(s[0-9]+, h|h[0-9]+, s)'; then
        echo "$object converts F16 one by one" >&2
        exit 1
    fi
done

# check NAME WANTED COMMAND...: the tests with the Python that COMMAND runs, where WANTED must be the fastest kernels, or
# anything. In a directory of their own, for hypothesis leaves files.
check() {
    local name=$1 wanted=$2 kernels model text
    shift 2
    kernels=$("$@" -c 'from pycrispasr.runtimes import native; print(*native.kernels())')
    echo "$name: kernels $kernels"
    [[ $kernels == *$wanted ]]
    "$@" -m pytest -q --no-header --noconftest -p no:cacheprovider -p no:xdist tests/test_kernels.py
    for model in tiny "$work/tiny-f16.gguf"; do
        text=$("$@" -m pycrispasr transcribe -m "$model" samples/hello.wav)
        echo "$name, ${model##*/}: $text"
        [ "$text" = "$(cat samples/hello.txt)" ]
    done
}
cd "$work/x86-64/package"
export PYTHONPATH=.
python -m pycrispasr quantize tiny "$work/tiny-f16.gguf" --type f16 --requantize
check "this processor" "" python
check "x86-64 max" " avx2" qemu-x86_64 -cpu max "$work/venv/bin/python"
cd "$work/aarch64/package"
export PYTHONPATH=.:$work/site
check cortex-a53 generic qemu-aarch64 -L "$root" -cpu cortex-a53 "$python"
check cortex-a72 generic qemu-aarch64 -L "$root" -cpu cortex-a72 "$python"
check neoverse-n1 " dotprod" qemu-aarch64 -L "$root" -cpu neoverse-n1 "$python"
check max " bf16" qemu-aarch64 -L "$root" -cpu max "$python"
