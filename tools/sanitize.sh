#!/bin/sh
# Run the tests of all native code under the address and undefined-behaviour sanitizers.
#
# Builds the extension with them into a temporary copy of the package, so that the tree's own build
# stays as it is. Leak checking is off: the interpreter keeps memory on purpose. Arguments go to
# pytest. PYTHON chooses the interpreter (default: .venv/bin/python, else python3), CC the compiler.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
compiler=${CC:-cc}

library=$("$compiler" -print-file-name=libasan.so)
if [ ! -e "$library" ]; then
    echo "sanitize: $compiler has no libasan.so; install the compiler's sanitizer libraries" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tests"
cp -r "$root/chip" "$root/interconnect" "$root/setup.py" "$work/"
cp "$root"/tests/kernel_reference.py "$root"/tests/native_kit.py "$root"/tests/transport_suite.py \
    "$root"/tests/test_chip_kernels_*.py "$root"/tests/test_interconnect_rings.py \
    "$root"/tests/test_interconnect_moves.py "$work/tests/"
rm -f "$work"/chip/kernels/_native*.so "$work"/interconnect/_rings*.so

cd "$work"
LPU_KERNELS_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1" \
    "$python" setup.py -q build_ext --inplace
cp "$root/pyproject.toml" "$work/" # pytest's settings; of any age, setuptools builds without it
[ -n "$(ls chip/kernels/_native*.so 2>/dev/null)" ] && [ -n "$(ls interconnect/_rings*.so)" ] || { echo "sanitize: no extension" >&2; exit 1; }

LD_PRELOAD="$library" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$work" "$python" -c \
    "from chip.kernels import _native as n; assert n.__file__.startswith('$work'), n.__file__"

[ $# -gt 0 ] || set -- -q tests/test_chip_kernels_native.py tests/test_chip_kernels_native_binding.py \
    tests/test_interconnect_rings.py tests/test_interconnect_moves.py
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$library" PYTHONPATH="$work" PYTHONMALLOC=malloc \
    "$python" -m pytest -p no:cacheprovider "$@"
