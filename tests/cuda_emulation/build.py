"""Compile csrc's CUDA sources with g++ into a Python module that runs their kernels on the CPU."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
LAUNCH = re.compile(r"([\w:]+(?:<[^<>;{}]*>)?|\([^();{}]*\))<<<(.*?)>>>\(")
# csrc/binding without what the CPU module alone has, as in CMakeLists.txt.
CPU_ONLY = {"module.cpp", "probe.cpp", "signals.cpp", "threads.cpp"}


def sources():
    """The .cu files, and the C++ files of the CUDA module."""
    bindings = [*CSRC.glob("*/bind_cuda.cpp"), *(f for f in CSRC.glob("binding/*.cpp") if f.name not in CPU_ONLY)]
    return sorted(CSRC.glob("*/*.cu")), sorted(bindings)


def closing(text, begin):
    """The place of the parenthesis that closes the one before `begin`."""
    depth = 1
    for i in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError("an open parenthesis")


def as_cpp(text):
    """CUDA to C++: `kernel<<<how>>>(arguments)` becomes a call of the emulation; the lines stay where they are."""
    while match := LAUNCH.search(text):
        kernel, how = match.groups()
        end = closing(text, match.end())
        call = f"{kernel}({text[match.end() : end]})"
        launch = f'emulation::Launch("{kernel}", {how}) << [&] {{ {call}; }}'
        text = text[: match.start()] + launch + text[end + 1 :]
    assert "<<<" not in text, "a launch that the emulation cannot read"
    return text


def compile_all(commands):
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), commands):
            assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"


def build(folder, patch=None, base=None):
    """The path of the module, made in `folder`.

    `patch` is (file under csrc, regex, replacement), and the regex must match; the rest comes from the folder `base`.
    """
    import pybind11

    folder = Path(folder)
    copy = folder / "csrc"
    for file in CSRC.rglob("*.*"):
        text = file.read_text()
        if patch and str(file.relative_to(CSRC)) == patch[0]:
            text, count = re.subn(patch[1], patch[2], text, count=1)
            assert count == 1, f"{patch[1]!r} is not in {patch[0]}"
        target = copy / file.relative_to(CSRC)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(as_cpp(text) if file.suffix in (".cu", ".cuh") else text)
    compiler = [tool for tool in (shutil.which("ccache"),) if tool] + [os.environ.get("CXX", "g++")]
    flags = ["-std=c++17", "-fPIC", "-g1", "-O1", "-w", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off"]
    for path in (HERE / "include", copy, pybind11.get_include(), sysconfig.get_path("include")):
        flags.append(f"-I{path}")
    flags += ["-include", str(HERE / "include" / "cuda_runtime_api.h")]
    # The compiler's hooks for races are runtime.cpp's; inside a kernel undefined behaviour ends the process.
    in_kernels = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize=undefined"]
    in_kernels += ["-fno-sanitize-recover=all", "-fno-sanitize=vptr", "-D__CUDACC__", "-D__CUDA_ARCH__=900", "-xc++"]
    kernels, rest = sources()
    commands, objects = [], []
    for file in [*kernels, *rest, HERE / "runtime.cpp"]:
        inside = CSRC in file.parents
        name = str(file.relative_to(CSRC)) if inside else file.name
        if patch and name != patch[0] and f'"{patch[0]}"' not in file.read_text():
            objects.append(Path(base) / f"{name.replace('/', '+')}.o")
            continue
        objects.append(folder / f"{name.replace('/', '+')}.o")
        extra = in_kernels if file.suffix == ".cu" else []
        source = copy / name if inside else file
        commands.append([*compiler, *flags, *extra, "-c", str(source), "-o", str(objects[-1])])
    compile_all(commands)
    module = folder / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = [compiler[-1], "-shared", "-o", str(module), *map(str, objects), "-lubsan", "-Wl,-Bsymbolic"]
    subprocess.run(link, check=True)
    return module


if __name__ == "__main__":
    print(build(sys.argv[1]))
