"""What a user's installer and a NumPy code base see: names, dependencies, and what an import loads."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastrl
import fastrl.kernels


def run_python(code, cwd, **env):
    """Standard output of `code` in a fresh interpreter, outside the source tree."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["fastrl", "fastrl.kernels", "fastrl.replay"])
def test_import_loads_neither_torch_nor_numba(module, tmp_path):
    code = f"import sys, {module}; print(*[m for m in ('torch', 'numba', 'gymnasium') if m in sys.modules])"
    assert run_python(code, tmp_path).strip() == ""


def test_numpy_is_the_only_core_dependency():
    core = [line for line in metadata.requires("fastrl-kernels") if "extra ==" not in line]
    assert [line.partition(">")[0].strip() for line in core] == ["numpy"]


def test_version_is_that_of_the_distribution():
    assert fastrl.__version__ == metadata.version("fastrl-kernels")


def test_the_version_is_everywhere_the_same():
    root = Path(__file__).parents[1]
    assert f"version: {fastrl.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"note = {{Version {fastrl.__version__}}}" in (root / "README.md").read_text()
    headings = [line for line in (root / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert any(heading.startswith(f"## [{fastrl.__version__}]") for heading in headings[:2])


@pytest.mark.skipif(importlib.util.find_spec("fastrl._C") is None, reason="nothing is compiled in")
def test_what_is_compiled_in_is_listed():
    files = [f for f in metadata.files("fastrl-kernels") if f.match("*.dist-info/sboms/*.cdx.json")]
    sbom = json.loads(files[0].read_text())
    assert len(files) == 1 and sbom["bomFormat"] == "CycloneDX"
    parts = {part["name"]: part["version"] for part in [sbom["metadata"]["component"], *sbom["components"]]}
    assert parts["fastrl-kernels"] == fastrl.__version__ and parts["pybind11"].startswith("3.")
    assert ("CUDA runtime" in parts) == (importlib.util.find_spec("fastrl._C_cuda") is not None)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("set(CMAKE_SIZEOF_VOID_P 4)", "64-bit processors: this compiler makes pointers of 4 bytes"),
        ("set(CMAKE_CXX_BYTE_ORDER BIG_ENDIAN)", "little-endian processors"),
    ],
)
def test_processors_that_the_extensions_are_not_for(code, text, tmp_path):
    cmake = shutil.which("cmake") or pytest.skip("no CMake here")
    (tmp_path / "another.cmake").write_text(code)  # after project() has looked at this compiler
    source, found = Path(__file__).parents[1], f"-DCMAKE_PROJECT_INCLUDE={(tmp_path / 'another.cmake').as_posix()}"
    run = subprocess.run([cmake, "-S", source, "-B", tmp_path / "build", found], capture_output=True, text=True)
    assert run.returncode and text in " ".join(run.stderr.split()), run.stderr


def test_extras():
    extras = set(metadata.metadata("fastrl-kernels").get_all("Provides-Extra"))
    assert extras == {
        "agents",
        "bench",
        "box2d",
        "dev",
        "docs",
        "jax",
        "minari",
        "mujoco",
        "numba",
        "plot",
        "sb3",
        "test",
        "torch",
        "ray",
        "video",
    }


def test_console_script():
    (script,) = [e for e in metadata.distribution("fastrl-kernels").entry_points if e.group == "console_scripts"]
    assert (script.name, script.value) == ("fastrl", "fastrl.cli:main")


def test_the_package_is_typed_and_has_its_stubs():
    package = Path(fastrl.__file__).parent
    assert (package / "py.typed").is_file()
    assert {path.name for path in package.glob("*.pyi")} == {"_C.pyi", "_C_cuda.pyi"}


@pytest.mark.parametrize("module", [fastrl, fastrl.kernels], ids=["fastrl", "fastrl.kernels"])
def test_all_names_exist_once(module):  # their order is ruff's
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_required_extension_is_an_error_when_it_is_missing(tmp_path):
    # A stand-in for an install without a compiler: the extension's name leads to a module that cannot be imported.
    code = "import sys; sys.modules['fastrl._C'] = None; import fastrl"
    with pytest.raises(AssertionError, match="FASTRL_REQUIRE_EXT is set, but fastrl._C is missing"):
        run_python(code, tmp_path, FASTRL_REQUIRE_EXT="1", FASTRL_BACKEND="")


def test_without_extension_and_numba_one_warning_names_the_remedy(tmp_path):
    code = (
        "import sys, warnings; sys.modules['fastrl._C'] = None; sys.modules['numba'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'numba' else real(name, *a)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import fastrl, fastrl.kernels, fastrl.replay\n"
        "    fastrl.SumTree(4)\n"
        "print(len(caught), caught[0].message)"
    )
    out = run_python(code, tmp_path, FASTRL_REQUIRE_EXT="", FASTRL_BACKEND="")
    assert out.startswith("1 ")
    editable = (Path(fastrl.__file__).parents[1] / "pyproject.toml").is_file()  # its source tree is what is imported
    assert ("pip install -e ." if editable else 'pip install "fastrl-kernels[numba]"') in out


def test_info_runs_and_names_the_backend(tmp_path):
    script = Path(sys.executable).with_name("fastrl.exe" if os.name == "nt" else "fastrl")
    result = subprocess.run([script, "info"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert fastrl.__version__ in result.stdout
    for word in ("sum_tree", "gather_rows", "numpy", "threads"):
        assert word in result.stdout.lower()


def test_agents_are_imported_when_first_used(tmp_path):
    pytest.importorskip("torch")
    code = "import fastrl, sys; print('torch' in sys.modules, fastrl.agents.PPO.__name__, hasattr(fastrl, 'agent'))"
    assert run_python(code, tmp_path).split() == ["False", "PPO", "False"]


@pytest.mark.parametrize("numba", [True, False])
def test_a_source_tree_without_its_extension_says_so(numba, tmp_path):
    """As `python -c "import fastrl"` in a checkout finds it, with and without an install elsewhere."""
    package = Path(fastrl.__file__).parent
    compiled = shutil.ignore_patterns("_C.*", "_C_cuda.*", "__pycache__")
    shutil.copytree(package, tmp_path / "fastrl", ignore=compiled)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "CMakeLists.txt").write_text("")
    code = (
        "import sys, warnings; sys.meta_path[:] = [f for f in sys.meta_path if 'Redirect' not in type(f).__name__]\n"
        f"import importlib.util; find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == 'numba' and not {numba} else find(name)\n"
        "warnings.simplefilter('always')\n"
        "with warnings.catch_warnings(record=True) as seen: import fastrl\n"
        "print(fastrl.__file__); print(*[str(w.message) for w in seen], sep='\\n')"
    )
    file, *messages = run_python(code, tmp_path, FASTRL_REQUIRE_EXT="0").splitlines()
    assert Path(file).parent == tmp_path / "fastrl"
    assert len(messages) == 1 and messages[0].startswith(f"fastrl is imported from its source tree {tmp_path}")
    assert "pip install -e ." in messages[0]
    code = code.replace(
        "import fastrl\n", "\n    try: import fastrl\n    except ImportError as e: print(e); sys.exit()\n"
    )
    assert "FASTRL_REQUIRE_EXT is set" in run_python(code, tmp_path, FASTRL_REQUIRE_EXT="1")
