"""The cores of CUDA tensors, imported only when one is used."""
