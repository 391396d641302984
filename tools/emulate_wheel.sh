#!/usr/bin/env bash
# Runs the library of a Linux x86-64 wheel on older processors than this one, under qemu-user: each must pick code that it
# can run, and hear what was said.
#
#     tools/emulate_wheel.sh WHEEL
set -euo pipefail
wheel=$(realpath "${1:?a wheel}")
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m zipfile -e "$wheel" "$work"
cc -O1 -Wall -Wextra -Icsrc/include tests/smoke.c "$work/pycrispasr/libpycrispasr.so" -o "$work/smoke" \
    "-Wl,-rpath,$work/pycrispasr"

# check PROCESSOR WANTED UNWANTED: regular expressions of the instructions that the chosen code is built with.
check() {
    local text features
    text=$(qemu-x86_64 -cpu "$1" "$work/smoke" src/pycrispasr/bundled/tiny.gguf samples/hello.wav 2> "$work/log")
    features=$(grep '^cpu: ' "$work/log")
    printf '%-12s %s\n%-12s %s\n' "$1:" "$text" "" "$features"
    [ "$text" = "$(cat samples/hello.txt)" ]
    [[ $features =~ $2 ]]
    [[ ! $features =~ $3 ]]
}
check qemu64 "LLAMAFILE" "SSE3|AVX" # what every x86-64 processor has
check Nehalem "SSE3" "AVX"
check SandyBridge "AVX" "AVX2|F16C|FMA"
check IvyBridge "F16C" "AVX2|FMA"
check Haswell "AVX2" "AVX512"
