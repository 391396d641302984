# What is run again and again. `pip install rust-just` gives `just`; CI and CONTRIBUTING.md call the same.

# List these.
default:
    @just --list

# Compile what has changed, and install the package so that changes in Python need nothing more.
build *options:
    pip install --quiet --no-build-isolation -e '.[test,dev]' {{options}}

# The quick tests, on all cores; `just test -m slow` and so on for others.
test *arguments:
    python -m pytest {{arguments}}

# Formats, lint, types, and clang-tidy over the C++ that `build` has configured.
lint:
    ruff check
    ruff format --check
    mypy
    git ls-files 'csrc/*.cpp' 'csrc/*.h' | xargs clang-format --dry-run -Werror
    git ls-files 'csrc/*.cpp' | xargs -P 2 -n 4 clang-tidy -p "$(ls -d build/*/compile_commands.json | head -n 1)" --quiet 2> /dev/null

# Rewrite what `lint` would complain about.
format:
    ruff check --fix
    ruff format
    git ls-files 'csrc/*.cpp' 'csrc/*.h' | xargs clang-format -i

# The documentation's site; a broken link or a page outside the navigation is an error.
docs folder='site':
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir {{folder}}

# Every stage of a model's file, alternating with CrispASR's library.
bench model *options:
    pycrispasr bench {{model}} {{options}}

# The Linux wheel, and the tests that a wheel could break.
wheel folder='wheelhouse' *tests='tests/test_abi.py tests/test_coexistence.py tests/test_model.py tests/test_packaging.py tests/test_process.py tests/test_stages.py':
    tools/build_wheel.sh {{folder}} {{tests}}

# Tests under sanitizers: `just sanitize address,undefined`, or `just sanitize thread tests/test_stress.py`.
sanitize kind='address,undefined' *tests='tests':
    pip install --quiet --no-build-isolation -e . -Cbuild-dir=build/{{replace(kind, ',', '-')}} -Cinstall.strip=false \
        -Ccmake.build-type=RelWithDebInfo -Ccmake.define.PYCRISPASR_SANITIZE={{kind}}
    LD_PRELOAD="$(gcc -print-file-name={{if kind == 'thread' {'libtsan.so'} else {'libasan.so'} }}) $(gcc -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS="suppressions=tests/tsan.supp exitcode=66" \
        python -m pytest --numprocesses=0 {{tests}}
