#!/usr/bin/env bash
# Builds the library as wheels have it for a system that this machine is not, and lets tests/smoke.c transcribe a
# sample with it, under an emulator:
#
#     tools/cross_test.sh aarch64 [-DOPTION=... for CMake]
#     tools/cross_test.sh windows [-DOPTION=... for CMake]
#     tools/cross_test.sh musl [-DOPTION=... for CMake]
#     tools/cross_test.sh macos [-DOPTION=... for CMake]
#
# For macOS it only compiles and links, one variant, without Metal: nothing emulates it, and zig has no Apple frameworks.
# On Debian, as root, it installs the compilers and emulators that are missing; for musl and macOS zig from PyPI compiles,
# in build/venv-zig. All variants of the CPU code take long; -DGGML_CPU_ALL_VARIANTS=OFF builds a single one.
set -euo pipefail
cd "$(dirname "$0")/.."

system=${1:?aarch64, windows, musl or macos}
shift
case $system in
    aarch64)
        triple=aarch64-linux-gnu gcc=gcc gxx=g++ emulator=qemu-aarch64 library=libpycrispasr.so
        packages=(g++-aarch64-linux-gnu qemu-user)
        target=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64)
        ;;
    windows)
        triple=x86_64-w64-mingw32 gcc=gcc-posix gxx=g++-posix emulator=wine library=pycrispasr.dll
        packages=(g++-mingw-w64-x86-64-posix wine wine64)
        target=(-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64)
        ;;
    musl)
        triple=x86_64-linux-musl gcc=cc gxx=c++ emulator=ld-musl-x86_64.so.1 library=libpycrispasr.so
        packages=(musl)
        target=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=x86_64)
        ;;
    macos)
        triple=aarch64-macos gcc=cc gxx=c++ emulator=true library=libpycrispasr.dylib
        packages=()
        target=(-DCMAKE_SYSTEM_NAME=Darwin -DCMAKE_SYSTEM_PROCESSOR=arm64 -DCMAKE_INSTALL_NAME_TOOL=/bin/true
                -DGGML_METAL=OFF -DGGML_ACCELERATE=OFF -DGGML_BLAS=OFF -DGGML_CPU_ALL_VARIANTS=OFF)
        ;;
    *)
        echo "$system: give aarch64, windows, musl or macos" >&2
        exit 2
        ;;
esac
if [ "$gcc" = cc ]; then
    zig=$PWD/build/venv-zig
    [ -x "$zig/bin/python" ] || python3 -m venv "$zig"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$zig/bin/pip" install --quiet ziglang
    for compiler in $gcc $gxx; do
        cat > "$zig/bin/$triple-$compiler" << WRAPPER
#!/usr/bin/env bash
given=()
for option; do
    case \$option in  # what its linker for macOS does not know
        -Wl,-exported_symbol,*) ;;
        -bundle) given+=(-dynamiclib) ;;
        *) given+=("\$option") ;;
    esac
done
exec '$zig/bin/python' -m ziglang $compiler -target $triple "\${given[@]}"
WRAPPER
    done
    for tool in ar ranlib; do
        printf '#!/bin/sh\nexec "%s" -m ziglang %s "$@"\n' "$zig/bin/python" $tool > "$zig/bin/$triple-$tool"
        target+=("-DCMAKE_${tool^^}=$zig/bin/$triple-$tool")
    done
    chmod +x "$zig/bin/$triple-"*
    PATH=$zig/bin:$PATH:/lib  # musl's loader is in /lib
fi
if ! command -v "$triple-$gxx" > /dev/null || ! command -v "$emulator" > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

build=build/cross-$system
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pycrispasr/__init__.py)
cmake -S . -B "$build" -G Ninja "${target[@]}" -DPYCRISPASR_PORTABLE=ON -DPYCRISPASR_WERROR=ON \
    -DCMAKE_BUILD_TYPE=Release -DSKBUILD_PROJECT_VERSION="$version" \
    -DCMAKE_C_COMPILER="$triple-$gcc" -DCMAKE_CXX_COMPILER="$triple-$gxx" -DCMAKE_FIND_ROOT_PATH="/usr/$triple" "$@"
cmake --build "$build" --target pycrispasr
"$triple-$gcc" -O1 -Wall -Wextra -Icsrc/include tests/smoke.c "$build/lib/$library" -o "$build/lib/smoke.exe" \
    "-Wl,-rpath,\$ORIGIN"

# Runs the smoke test with the emulator named, and compares the text with the sample's.
check() {
    local text
    text=$("$@" "$build/lib/smoke.exe" src/pycrispasr/bundled/tiny.gguf samples/spelling.wav | tr -d '\r')
    echo "$*: $text"
    [ "$text" = "$(cat samples/spelling.txt)" ]
}
case $system in
    windows) WINEDEBUG=-all WINEPREFIX=$(realpath "$build")/wine check wine ;;
    musl) check $emulator ;;
    macos) echo "compiled and linked: $build/lib/$library" ;;
    aarch64)
        for processor in cortex-a53 neoverse-n1 max; do  # without dot products, with them, with everything
            check qemu-aarch64 -L "/usr/$triple" -cpu "$processor"
        done
        ;;
esac
