#!/usr/bin/env bash
# pybind11 3.1.0 with GCC: a file that includes pybind11/pybind11.h and does nothing else compiles to 100 KB of code, in
# seconds of CPU time.
#
# error_already_set::what() is the first virtual function of its class that is not inline there, so the class's key
# function; pybind11.h then defines it, inline. By the C++ ABI of GCC the file that defines the key function emits the
# virtual table, which every file that includes pybind11.h is, and the table reaches what(), which reaches
# gil_scoped_acquire, the internals, the dispatcher of functions and most of the rest. With pybind11/cast.h, which has all
# of pybind11's objects, nothing is emitted. 15 such files were half of the compile time of an extension.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pybind11==3.1.0
includes=$("$work/venv/bin/python" -m pybind11 --includes)

compile() { # compile HEADER: its bytes of code, in a file that only includes it
  echo "#include <pybind11/$1>" >"$work/$1.cpp"
  # shellcheck disable=SC2086
  g++ -w -std=c++17 -O2 -DNDEBUG -fPIC -fvisibility=hidden $includes -c "$work/$1.cpp" -o "$work/$1.o"
  size "$work/$1.o" | awk 'NR == 2 {print $1}'
}

whole=$(compile pybind11.h)
objects=$(compile cast.h)
echo "bytes of code of a file that only includes pybind11.h: $whole; cast.h: $objects"
[ "$whole" -gt 50000 ] && [ "$objects" -lt 1000 ]
