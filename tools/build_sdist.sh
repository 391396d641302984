#!/usr/bin/env bash
# Makes the source distribution in dist/, and builds it again without a network:
#
#     tools/build_sdist.sh
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet build cffi cmake ninja pip scikit-build-core
PATH="$work/build/bin:$PATH" "$work/build/bin/python" -m build --sdist --outdir dist
sdist=dist/pycrispasr-$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pycrispasr/__init__.py).tar.gz
tar -tzf "$sdist" > "$work/contents"
grep -q '/vendor/ggml/CMakeLists.txt$' "$work/contents"
if grep -E '^[^/]*/(\.ci|\.github|build|cuda|cuda-wheel)/|\.whl$' "$work/contents"; then
    echo "these do not belong into the sdist" >&2
    exit 1
fi

# A network namespace of its own, where the system lets us have one; and in any case no index and an empty cache.
alone=()
if unshare --map-root-user --net true 2> /dev/null; then
    alone=(unshare --map-root-user --net)
fi
PYCRISPASR_CACHE=$work/cache PATH="$work/build/bin:$PATH" "${alone[@]}" \
    "$work/build/bin/pip" wheel "$sdist" --no-deps --no-index --no-build-isolation --no-cache-dir --wheel-dir "$work"
ls -l "$sdist" "$work"/*.whl
