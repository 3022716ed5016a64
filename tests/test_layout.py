"""The rules of the layout: who may import what, and how long a file and a function may be.  See CONTRIBUTING.md."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE, LONGEST_FUNCTION = 500, 80
STANDARD = set(sys.stdlib_module_names)


@cache
def sources(*folders):
    """The Python files below folders of the checkout, and their syntax trees."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def without_types(tree):
    """The nodes of a file but for what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from without_types(other)
        else:
            yield node
            yield from without_types(node)


def imports(path, tree, types=True):
    """The full names of what a file imports, inside functions too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree) if types else without_types(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def import_graph(*folders):
    """module -> the modules of ours that it imports; a package's name alone stands for its __init__.py."""
    files = sources(*folders)
    names = {module_name(path) for path in files}
    if "bench" in folders:  # its files import each other by their bare names
        names |= {path.stem for path in files if path.parent.name == "bench"}
    graph = {}
    for path, tree in files.items():
        found = set()
        for name in imports(path, tree, types=False):
            while name and name not in names:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
        own = path.stem if path.parent == ROOT / "bench" else module_name(path)
        graph[own] = found - {own}
    return graph


def circles(graph):
    """The groups of modules that import each other (Tarjan's strongly connected components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize("folder", ["fastrl", "bench"])
def test_no_import_circle(folder):
    assert circles(import_graph(folder)) == []


def ops():
    return sorted(path.parent.name for path in (ROOT / "fastrl" / "kernels").glob("*/reference.py"))


def test_the_ops_are_found():
    assert {"adam", "categorical", "gather_rows", "scans", "sum_tree", "tanh_normal"} <= set(ops())


ALLOWED = {"reference.py": {"numpy"}, "_numba.py": {"numpy", "numba"}, "_torch.py": {"numpy", "torch"}}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_name_of_a_file_says_what_it_imports(name):
    wrong = []
    for path, tree in sources("fastrl/kernels").items():
        if path.name == name:
            packages = {imported.partition(".")[0] for imported in imports(path, tree)}
            wrong += [
                (str(path.relative_to(ROOT)), extra) for extra in packages - STANDARD - {"fastrl"} - ALLOWED[name]
            ]
    assert wrong == []


def test_the_shared_parts_know_no_op():
    """Neither fastrl/kernels/_core nor csrc/core nor csrc/binding names an op."""
    pattern = re.compile(rf"\b({'|'.join(ops())})\b")
    shared = [*(ROOT / "fastrl/kernels/_core").rglob("*.py")]
    shared += [path for folder in ("core", "binding") for path in (ROOT / "csrc" / folder).iterdir()]
    assert len(shared) > 10
    wrong = []
    for path in shared:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#" if path.suffix == ".py" else "//")[0]
            wrong += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in pattern.findall(code)]
    assert wrong == []


def tracked_sources():
    suffixes = {".py", ".pyi", ".h", ".cuh", ".inl", ".cpp", ".cu"}
    folders = ("fastrl", "csrc", "bench", "tests")
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in suffixes]


def test_no_file_is_long():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in tracked_sources()}
    lengths.pop("fastrl/agents/__init__.pyi", None)  # generated
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_python_function_is_long():
    long = {}
    for path, tree in sources("fastrl", "bench", "tests").items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body  # the docstring is no code
                if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                    body = body[1:] or body
                length = node.end_lineno - body[0].lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}


def test_cuda_sources_have_no_anonymous_namespace():
    """nvcc names it by the folder that the source lies in: two builds would differ."""
    files = [path for path in tracked_sources() if path.suffix in {".cu", ".cuh"}]
    assert len(files) > 5
    assert [str(p.relative_to(ROOT)) for p in files if re.search(r"^namespace \{", p.read_text("utf-8"), re.M)] == []


def test_no_cpp_function_is_long():
    """In clang-format's layout the body of a top-level function ends with a brace in its first column."""
    long = {}
    for path in tracked_sources():
        if path.suffix in {".h", ".cuh", ".inl", ".cpp", ".cu"}:
            start = None
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if line.endswith("{") and re.match(r"\S.*\)( const| noexcept|)* \{$|^ {2,}.*\) \{$", line):
                    start = start or (number if not line.startswith(" ") else None)
                elif line == "}" and start:
                    if number - start + 1 > LONGEST_FUNCTION:
                        long[f"{path.relative_to(ROOT)}:{start}"] = number - start + 1
                    start = None
    assert long == {}
