"""Who owns what the kernels take and give; masked arrays; a torch that is not there yet."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import pytest

from fastrl import _backend
from fastrl.kernels._core import backends

from .helpers import INDICES, ROWS, CapsuleOnly, OldProducer, Producer


def test_no_reference_is_kept_or_lost(loader):
    """Also on the error paths: 100 calls leave every reference count as it was."""
    tree = loader.SumTree(4, seed=0)
    priorities, u = np.ones(3, np.float32), np.zeros(3)
    out, bad = np.zeros((3, 3), np.float32), np.array([9, 9, 9])
    values = (ROWS, INDICES, priorities, u, out, bad, np.dtype(np.float32), np.dtype(np.int64), None)

    def calls():
        tree.update(INDICES, priorities)
        tree.find(u)
        tree[INDICES]
        tree.sample(3)
        tree.sample_weighted(3, 0.5)
        loader.gather_rows(ROWS, INDICES)
        loader.gather_rows(ROWS, INDICES, out=out)
        loader.gather_rows([ROWS, ROWS], INDICES)
        for call in (
            lambda: tree.update(bad, priorities),
            lambda: tree.update(priorities, priorities),
            lambda: tree.update(INDICES, u[:2]),
            lambda: loader.gather_rows(ROWS, bad, out=out),
            lambda: loader.gather_rows([ROWS, None], INDICES),
            lambda: loader.gather_rows(ROWS, INDICES, out=u),
        ):
            with pytest.raises((TypeError, ValueError, IndexError)):
                call()

    calls()
    gc.collect()
    before = [sys.getrefcount(value) for value in values]
    for _ in range(100):
        calls()
    gc.collect()
    after = [sys.getrefcount(value) for value in values]
    for count, later in zip(before[:6], after[:6], strict=True):
        assert later == count
    for count, later in zip(before[6:], after[6:], strict=True):  # shared with the rest of the process
        assert abs(later - count) < 50


@pytest.mark.parametrize("producer", [Producer, OldProducer, CapsuleOnly])
def test_producers_memory_is_given_back(loader, producer):
    class Owner(np.ndarray):
        pass

    array = ROWS.copy().view(Owner)
    alive = weakref.ref(array)
    source = producer(array.__dlpack__()) if producer is CapsuleOnly else producer(array)
    got = loader.gather_rows(source, INDICES)
    np.testing.assert_array_equal(got, ROWS[INDICES])
    with pytest.raises(IndexError):
        loader.gather_rows(producer(array.__dlpack__()) if producer is CapsuleOnly else source, np.array([99]))
    del array, source
    gc.collect()
    assert alive() is None


def test_tensor_memory_is_given_back(loader, torch):
    tensor = torch.arange(12.0).reshape(4, 3)
    alive = weakref.ref(tensor)
    result = loader.gather_rows(tensor, INDICES)
    del tensor
    assert alive() is None
    kept = weakref.ref(result)
    del result
    assert kept() is None
    tree = loader.SumTree(16, dtype=torch.float32, seed=0)
    tree.update(torch.arange(16), 1.0)
    drawn = tree.sample(4)
    refs = [weakref.ref(tensor) for tensor in drawn]
    del drawn
    assert all(ref() is None for ref in refs)


def test_a_tree_can_be_collected(loader):
    tree = loader.SumTree(16, seed=0)
    generator, alive = tree.generator, weakref.ref(tree)
    tree.update(np.arange(16), 1.0)
    tree.sample(4)
    del tree
    gc.collect()
    assert alive() is None and generator.counter == 4


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_masked_arrays_are_refused_everywhere(backend):
    """In a process of its own, which has that backend from its start."""
    if backend == "cpp":
        pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    if backend == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
    code = f"""
        import importlib.util, numpy as np
        spec = importlib.util.spec_from_file_location("cases", {str(Path(__file__).with_name("masked.py"))!r})
        cases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cases)
        for where, call in cases.MASKED.items():
            x, i = np.array([1.0, 2.0], np.float32), np.array([0, 1])
            try:
                call(lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) % 2), x, i)
            except TypeError as error:
                wanted = f"{{where}} must not be a masked array, whose mask would be ignored: give filled(value)"
                assert str(error) == wanted, (str(error), wanted)
            else:
                raise AssertionError(where)
            assert x.tolist() == [1, 2] and i.tolist() == [0, 1], where
    """
    environment = {**os.environ, "FASTRL_BACKEND": backend}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=300
    )


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_kernels_work_while_another_thread_imports_torch(backend):
    """sys.modules then holds a torch without most of its names; one that somebody has put there for it may stay so."""
    if backend == "cpp":
        pytest.importorskip("fastrl._C", reason="the C++ extension is not built")
    if backend == "numba":
        pytest.importorskip("numba", reason="the Numba backend needs numba, which is not installed")
    code = """
        import sys, types
        import numpy as np, fastrl
        x, no, i = np.ones((4, 2), np.float32), np.zeros((4, 2), bool), np.array([0, 1])
        def calls():
            fastrl.gae(x, x, x, no, no, gamma=0.9, lam=0.9, out=(x.copy(), x.copy()))
            fastrl.reverse_affine_scan(x, x)
            fastrl.vtrace(x, x, x, no, no, -x, gamma=0.9)
            fastrl.n_step_gather(x, no, no, i, 0, 4, gamma=0.9, n=2)
            fastrl.gather_rows(x, i)
            fastrl.categorical_sample(x)
            fastrl.normal_log_prob_entropy(x, x, x)
            fastrl.tanh_normal_sample(x, x, low=[-1, -1], high=1)
            fastrl.conjugate_gradient(np.eye(2), np.ones(2))
            fastrl.adam_step([x.copy()], [x], [x.copy()], [x.copy()], [np.zeros((), np.float32)], lr=0.1)
            fastrl.SumTree(8).update(i, np.ones(2))
            fastrl.get_num_threads()
            fastrl.line_search(lambda p: (1.0, 0.0), np.zeros(2), np.ones(2), expected_improvement=1.0, max_kl=1.0)
        assert "torch" not in sys.modules
        sys.modules["torch"] = types.ModuleType("torch")
        calls()
        sys.modules["torch"].compiler = types.ModuleType("torch.compiler")
        calls()
    """
    environment = {**os.environ, "FASTRL_BACKEND": backend}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=300
    )


def test_kernels_work_during_the_import_of_torch(torch):
    code = """
        import sys, threading
        import numpy as np, fastrl
        x, no = np.ones((4, 2), np.float32), np.zeros((4, 2), bool)
        thread = threading.Thread(target=__import__, args=("torch",))
        thread.start()
        while thread.is_alive():
            fastrl.gae(x, x, x, no, no, gamma=0.9, lam=0.9)
            fastrl.tanh_normal_mode(x, low=-1, high=np.ones(2))
        thread.join()
        assert hasattr(sys.modules["torch"], "compiler")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


def test_arrays_on_the_cpu_do_not_ask_what_serves_cuda(monkeypatch):
    """Where fastrl._C_cuda is built, to ask is to import torch."""
    monkeypatch.setattr(_backend, "cuda_backend", lambda: pytest.fail("asked"))
    backend = backends.Backend("fastrl.kernels.scans")
    assert backend.of(ROWS) is backend.named(_backend.CPU_BACKEND)
