"""How the client computes: by deterministic kernels, in float32, with nothing chosen by trial."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """Let a computation of one shape always be the same one, meanwhile; also usable on a function.

    Kernels whose sums follow the order in which threads end are refused by PyTorch, cuDNN does
    not choose by timing, and no float32 is cut to TF32. Together with batches of one size this
    makes the bits of a row's gradient and score its own; `check_company` tries it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # its attribute is made when it is imported
    filled = settings.fill_uninitialized_memory
    narrow = torch.backends.cuda.matmul.allow_tf32
    # cuBLAS reads it when it starts, and PyTorch refuses to go on without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a search for bugs, which costs
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = narrow
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warned)
