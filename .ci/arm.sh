#!/usr/bin/env bash
# The kernels on Arm without one: `bash .ci/arm.sh PYTHON [TESTS...]` compiles the extension for it and runs tests under
# QEMU, minutes a file. PYTHON has pybind11, CMake and Ninja. Needs Debian's apt-get with packages of arm64, and
# aarch64-linux-gnu-g++ and qemu-aarch64-static (g++-aarch64-linux-gnu, qemu-user-static); else it exits with 3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for tool in apt-get dpkg aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$tool" >/dev/null || { echo "no $tool here"; exit 3; }
done
python=$1
shift
# All but how processes end, fork, are interrupted and share cores, which would be QEMU's doing.
[ $# -gt 0 ] || set -- tests/kernels --ignore=tests/kernels/test_{exit,fork,interrupt,threads}.py
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Python for arm64 in a folder, of Debian's version; apt keeps its lists there too, so this machine's stay as they are.
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,root,site,build}
touch "$work/state/status"
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Dir::Cache="$work/cache"
  -o Dir::State="$work/state" -o Dir::State::status="$work/state/status")
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends --download-only libpython3-dev libstdc++6 python3 >/dev/null
for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$work/root"; done
include=$(echo "$work"/root/usr/include/python3.*)
version=${include##*/python}
"$python" -m pip install -q --only-binary=:all: --target "$work/site" --python-version "$version" --implementation cp \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  -c constraints.txt numpy scipy hypothesis mpmath pytest

"$python" -m cmake -G Ninja -S . -B "$work/build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-isystem $work/root/usr/include" -DFASTRL_CUDA=OFF \
  -DPython_INCLUDE_DIR="$include" \
  -DPYTHON_MODULE_EXTENSION=".cpython-${version/./}-aarch64-linux-gnu.so" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$work/log" || { cat "$work/log"; exit 1; }
"$python" -m cmake --build "$work/build" >"$work/log" || { tail -n 50 "$work/log"; exit 1; }
cp -r fastrl tests pyproject.toml "$work"
cp "$work"/build/_C.*.so "$work/fastrl"
cd "$work"
# Tests start Python by sys.executable, which needs QEMU.
printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s/root" "%s/root/usr/bin/python%s" "$@"\n' "$work" "$work" "$version" >python
chmod +x python
FASTRL_REQUIRE_EXT=1 PYTHONPATH=$work:$work/site ./python -c \
  'import os, sys, pytest; sys.executable = os.path.abspath("python"); sys.exit(pytest.main(sys.argv[1:]))' \
  -q -p no:cacheprovider --import-mode=importlib --backends cpp "$@"
