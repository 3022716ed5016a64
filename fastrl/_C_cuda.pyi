"""The compiled CUDA kernels; call them through fastrl.kernels, which documents them."""

from collections.abc import Sequence
from typing import Any, type_check_only

def devices() -> list[str]: ...

@type_check_only
class _PybindType(type): ...

class SumTreeCore(metaclass=_PybindType):
    def __init__(
        self,
        capacity: int,
        widths: Sequence[int],
        leaves: Any,
        sums: Any,
        mins: Any,
        maxs: Any,
        winner: Any,
        flag: Any,
        smallest: Any,
        state: Any,
    ) -> None: ...
    def update(self, indices: Any, priorities: Any) -> None: ...
    def update_from_td_errors(
        self, indices: Any, td_errors: Any, alpha: float, eps: float, keep_zeros: bool
    ) -> Any: ...
    def get(self, indices: Any) -> Any: ...
    def find(self, prefix_sums: Any) -> Any: ...
    def sample(self, batch_size: int, stratified: bool, replacement: bool) -> tuple[Any, Any]: ...
    def sample_weighted(self, batch_size: int, beta: float, whole_tree: bool, stratified: bool) -> tuple[Any, Any]: ...
