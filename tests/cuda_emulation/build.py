"""Compile csrc's CUDA sources with g++ into a Python module that runs their kernels on the CPU."""

import os
import re
import shutil
import subprocess
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
    cpp = [f for f in CSRC.rglob("*.cpp") if "cuda" in f.name or f.name == "scalars.cpp" or f.parent.name == "binding"]
    return sorted(CSRC.rglob("*.cu")), sorted(f for f in cpp if f.name not in CPU_ONLY)


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


def build(folder, patches=()):
    """Compile into `folder`; `patches` are (file name ending, regex, replacement), each of which must match.

    Returns the module's path. What a patch does not touch is taken from the folder that `base` was built in.
    """
    import pybind11

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = [HERE / "include", CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-fPIC", "-g1", "-O1", "-w", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off"]
    flags += ["-include", str(HERE / "include" / "cuda_runtime_api.h")]
    flags += [f"-I{path}" for path in include]
    kernels, rest = sources()
    compiler = [tool for tool in (shutil.which("ccache"),) if tool] + [os.environ.get("CXX", "g++")]
    commands, objects, changed = [], [], 0
    for file in [*kernels, *rest, HERE / "runtime.cpp"]:
        name = str(file.relative_to(CSRC) if CSRC in file.parents else file.name).replace("/", "+")
        target, extra = folder / f"{name}.o", []
        objects.append(target)
        text = file.read_text()
        patched = text
        for ending, pattern, replacement in patches:
            if name.endswith(ending):
                patched, n = re.subn(pattern, replacement, patched, count=1)
                assert n == 1, f"{pattern!r} is not in {name}"
        changed += patched != text
        if patches and patched == text:
            target.symlink_to(folder.parent / "base" / target.name)
            continue
        if file.suffix == ".cu":
            source = folder / f"{name}.cpp"
            source.write_text(as_cpp(patched))
            # The compiler's hooks for races are runtime.cpp's; inside a kernel undefined behaviour ends the process.
            extra = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
            extra += ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
            extra += ["-D__CUDACC__", "-D__CUDA_ARCH__=900", f"-I{file.parent}"]
        else:
            source = file
        commands.append([*compiler, *flags, *extra, "-c", str(source), "-o", str(target)])
    assert changed == len({ending for ending, _, _ in patches})
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), commands):
            assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stderr}"
    module = folder / f"_C_cuda{suffix}"
    link = ["g++", "-shared", "-o", str(module), *map(str, objects), "-lubsan", "-Wl,-Bsymbolic", "-Wl,-z,defs"]
    link = [x for x in link if x != "-Wl,-z,defs"]  # Python's own symbols come from the process
    subprocess.run(link, check=True)
    return module


if __name__ == "__main__":
    import sys

    print(build(sys.argv[1]))
