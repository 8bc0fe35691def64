"""A training's step, recorded once as a CUDA graph and replayed.

The networks here are small: on a GPU much of a step passes while Python starts kernels one by one. A graph starts them
all at once (on an H200, beside another training, the denoiser's step took 17 ms instead of 26). Needs torch alone, as
train.py does.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

WARM = 3  # runs before a recording, in which libraries choose their algorithms


class Recorded:
    """`function`, from tensors of fixed shapes to a tuple of tensors without gradients, which may change parameters.

    Called with a `key` of whatever else decides what it does: where the key is as before, the recording is replayed;
    where it is None, and off the GPU, the function itself runs. A function that cannot be recorded runs as it is; `say`
    is told why. What is returned is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], say: Callable[[str], object] = print):
        self.function, self.say, self.works = function, say, True
        self.key: Hashable = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0
        self.given: list[Tensor] = []
        self.results: tuple[Tensor, ...] = ()

    def __call__(self, key: Hashable, *tensors: Tensor) -> tuple[Tensor, ...]:
        if key is None or not self.works or not tensors[0].is_cuda:
            return self.function(*tensors)
        if key != self.key:
            self.key, self.graph, self.results, self.runs = key, None, (), 0
        if self.graph is None and self.runs < WARM:
            self.runs += 1
            return self._aside(*tensors)
        if self.graph is None:
            stream = torch.cuda.current_stream()
            try:
                self._record(*tensors)
            except RuntimeError as error:
                torch.cuda.synchronize()
                torch.cuda.set_stream(stream)  # a recording that broke off leaves its own behind
                self.works, self.graph, self.given = False, None, []
                self.say(f"the step cannot be recorded and runs as it is: {error}")
                return self.function(*tensors)
        torch._foreach_copy_(self.given, list(tensors))
        self.graph.replay()
        return self.results

    def _aside(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs it on a stream of its own, as a recording wants its predecessors to."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return results

    def _record(self, *tensors: Tensor) -> None:
        self.given = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls: one that pins memory for a loader may go on.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.results = self.function(*self.given)
        self.graph = graph
