#!/usr/bin/env bash
# Runs the fuzzers of fuzz/, all of them or those that are named, for so many seconds in all:
#
#     tools/fuzz.sh SECONDS [TARGET...]
#
# As many run at once as there are cores. Those in C++ are built with Clang, with its sanitizers for addresses and
# undefined behaviour; those in Python need the package with the extra `test`. All of it lies in build/fuzz: in corpus/
# what was found to be worth trying, which the next run begins with, in log/ what they say, and in found/ the inputs that
# show a fault. Then the exit status is 1. On Debian, as root, it installs Clang where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?seconds}
shift
native=(model quantize session tokenizer)
python=(audio hub lists model_files outputs)
targets=("$@")
[ $# -gt 0 ] || targets=("${native[@]}" "${python[@]}")

if ! command -v clang++ > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang
    version=$(clang --version | sed -n 's/.*version \([0-9]*\).*/\1/p')
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "libclang-rt-$version-dev" "llvm-$version"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
command -v cmake > /dev/null || pip install --quiet cmake
command -v ninja > /dev/null || pip install --quiet ninja
# Only some versions of Python have a wheel of it: with others the seeds are tried once each.
python -c 'import atheris' 2> /dev/null || pip install --quiet --only-binary :all: atheris==3.0.0 || true

build=build/fuzz
mkdir -p $build/found $build/log
flags="-O2 -DNDEBUG"
cmake -S . -B $build -G Ninja -DPYCRISPASR_FUZZ=ON -DPYCRISPASR_SANITIZE=address,undefined \
    -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" -DGGML_NATIVE=OFF -DGGML_LLAMAFILE=OFF -DGGML_CPU_REPACK=OFF \
    -DSKBUILD_PROJECT_VERSION="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pycrispasr/__init__.py)" > $build/log/build.log ||
    { cat $build/log/build.log; exit 1; }
cmake --build $build --target "${native[@]/#/fuzz_}" > $build/log/build.log 2>&1 || { cat $build/log/build.log; exit 1; }
python fuzz/make_seeds.py $build/seeds

# The layout of addresses of newer kernels is more random than Clang 14's sanitizers expect.
steady=()
! setarch -R true 2> /dev/null || steady=(setarch -R)
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
cores=$(nproc)

# Runs one target; says how often it was run. To count how rare each path is (entropic) would take half of the time.
fuzz() {
    local target=$1 share=$2 corpus=$build/corpus/$1 log=$build/log/$1.log program
    local options=(-max_total_time="$share" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1
                   -entropic=0 -artifact_prefix="$build/found/$target-")
    [ ! -e "fuzz/$target.dict" ] || options+=(-dict="fuzz/$target.dict")
    export PYCRISPASR_FUZZ_MODEL=src/pycrispasr/bundled/tiny.gguf
    case $target in
        session)
            export PYCRISPASR_FUZZ_MODEL=$build/seeds/model/short_windows.gguf
            options+=(-max_len=72 -detect_leaks=0)  # which would run most inputs twice: leaks are found at the end
            ;;
        model) options+=(-max_len=65536) ;;
        outputs) options+=(-max_len=400) ;;  # more than the longest name
    esac
    program=("${steady[@]}" "$build/fuzz/fuzz_$target")
    [ -x "$build/fuzz/fuzz_$target" ] || program=(python fuzz/fuzz.py "$target")
    mkdir -p "$corpus"
    local inputs=("$corpus" "$build/seeds/$target")
    [ ! -d "fuzz/regressions/$target" ] || inputs+=("fuzz/regressions/$target")
    if ! "${program[@]}" "${options[@]}" "${inputs[@]}" > "$log" 2>&1; then
        grep -v -E '^(#|INFO|WARNING|NEW_FUNC)' "$log" | head -n 60
        echo "$target: FOUND, see $log"
        return 1
    fi
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p; s/^Done \([0-9]*\) runs.*/\1/p' "$log" | tail -n 1) runs"
}

share=$(((seconds * cores + ${#targets[@]} - 1) / ${#targets[@]}))
failed=0
running=0
for target in "${targets[@]}"; do
    if [ "$running" -ge "$cores" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    fuzz "$target" $share &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
exit $failed
