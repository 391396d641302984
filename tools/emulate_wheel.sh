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

# check PROCESSOR WANTED UNWANTED: regular expressions of the features that the chosen code is built with.
check() {
    local text
    text=$(qemu-x86_64 -cpu "$1" "$work/smoke" src/pycrispasr/bundled/tiny.gguf samples/spelling.wav 2> "$work/log")
    printf '%-12s %s\n%-12s %s\n' "$1:" "$text" "" "$(cat "$work/log")"
    [ "$text" = "$(cat samples/spelling.txt)" ]
    grep -Eq "^cpu: .*$2" "$work/log"
    if grep -E "$3" "$work/log"; then
        return 1
    fi
}
check qemu64 "" "SSE4|SSSE3 = 1|AVX"  # no more than x86-64 has from the beginning
check Nehalem "SSE3" "AVX"
check SandyBridge "AVX" "AVX2|F16C|FMA"
check IvyBridge "F16C" "AVX2|FMA"
check Haswell "AVX2" "AVX512"
check EPYC-Rome "AVX2" "AVX512"
