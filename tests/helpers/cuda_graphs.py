"""CUDA graphs of the tests; tests/cuda_emulation puts a stand-in in the place of `captured`."""


def captured(work):
    """A graph of `work`, and what it returns; `work` has run once, on a side stream, as torch asks."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph, results
