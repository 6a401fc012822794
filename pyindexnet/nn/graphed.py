# SPDX-License-Identifier: Apache-2.0
"""A network replayed as a CUDA graph: the host issues one launch in place of hundreds.

Capture follows PyTorch's rules (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): static input and output,
warm-up on the stream of the capture, autocast without its cache, memory from the graph's own pool of the caching allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

import torch
from torch import Tensor, nn

from pyindexnet import backends

_WARM_UPS: Final = 3  # libraries choose their algorithms, Triton compiles its kernels


class GraphedModule(nn.Module):
    """``model``, for inference on a CUDA device, captured once for each kind of input and replayed from then on.

    A kind is shape, strides, dtype and device of ``x``, the dtype of autocast and the backend that is forced. Weights may be
    changed in place (``load_state_dict``); conversions of this module, such as ``half()``, drop its graphs. All else that the
    model reads while it runs, TF32 for instance, stays what it was at the capture. Not for several threads or streams at once.

    Args:
        model: issues the same operators for every input of a kind and brings no value back to the host, as all networks of
            this package do; it gives one tensor. The module itself is used, and put into evaluation mode.
        max_graphs: of more kinds than that, the one that was not met for longest is dropped.
    Shape: that of ``model``. The output is a copy, without gradient: the next call leaves it alone.
    Raises:
        ValueError: ``max_graphs`` is below 1; ``x`` is not on a CUDA device or needs a gradient; training mode.
        TypeError: the model gives something other than a tensor.
    Memory: a graph keeps its input, its output and all maps between them.
    """

    def __init__(self, model: nn.Module, *, max_graphs: int = 4) -> None:
        super().__init__()
        if max_graphs < 1:
            raise ValueError(f"GraphedModule: max_graphs must be at least 1, got {max_graphs}")
        self.model = model
        self.max_graphs = max_graphs
        self._graphs: dict[Hashable, Callable[[Tensor], Tensor]] = {}  # the one that was used last is the last
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("GraphedModule: module must be in evaluation mode, got training mode")
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("GraphedModule: x must need no gradient, which a graph has not, got requires_grad=True")
        kind = (x.shape, x.stride(), x.dtype, x.device, _autocast_dtype(x), backends.forced())
        with torch.no_grad():
            replay = self._graphs.pop(kind, None)
            if replay is None:
                while len(self._graphs) >= self.max_graphs:
                    del self._graphs[next(iter(self._graphs))]
                replay = _capture(self.model, x)
            self._graphs[kind] = replay
            return replay(x)

    def _apply(self, *args: Any, **kwargs: Any) -> GraphedModule:
        self._graphs.clear()  # they read the weights where these were
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": {}}  # graphs cannot be copied


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _capture(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that replays ``model`` for inputs of the kind of ``x``."""
    if x.device.type != "cuda":
        raise ValueError(f"GraphedModule: x must be on a CUDA device, got {x.device}")
    dtype = _autocast_dtype(x)
    # Weights that autocast has cast before and kept would be freed when it ends, while the graph goes on reading them.
    autocast = torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False)
    # Out of inference mode, so that the static input may be written in any mode.
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(x.device), autocast:
        static_x = x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                y = model(static_x)
        torch.cuda.current_stream().wait_stream(stream)
        if not isinstance(y, Tensor):
            raise TypeError(f"GraphedModule: model must give a tensor, got {type(y).__name__}")
        del y
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            static_y = model(static_x)

    def replay(x: Tensor) -> Tensor:
        static_x.copy_(x)
        graph.replay()
        return static_y.clone()

    return replay
