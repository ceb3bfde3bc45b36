"""How a micro-batch is evaluated on each kind of device: placed weights, the forward pass, and the way of the pixels home.

In: latents and labels of a micro-batch. Out: a promise of its pixels, uint8 [N, H, W, C]. On a CPU it is kept at once. On a
GPU pixels are made uint8 where they are, and travel through pinned memory on a stream of their own while the next
micro-batches are computed. Eight bits know no NaN, so the first images are looked at before they become pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genworker.bulk.plan import Numerics
from genworker.bulk.stages import StageSeconds
from genworker.device import check_memory, memory_refusals, threads
from genworker.errors import BundleError
from genworker.families.base import Generator
from genworker.sampling.pixels import to_uint8
from genworker.sampling.subpixel import with_subpixel_layers
from genworker.schema import Int64Array, Pixels

Finish = Callable[[], Pixels]
_WARM_UPS = 3  # before a CUDA graph is captured, as its documentation asks


class Evaluator(Protocol):
    """Evaluates one micro-batch after the other.

    Attributes:
        ahead: how many micro-batches are started before the oldest of them is finished.
    """

    ahead: int

    def start(self, z: npt.NDArray[np.float32], labels: Int64Array | None, stages: StageSeconds) -> Finish:
        """Begin with latents [N, latent_dim] and labels [N]; what is returned gives the pixels, and is called once.

        Raises:
            BundleError: the first images that it makes are not finite.
        """
        ...


def evaluator(generator: Generator, numerics: Numerics, device: torch.device, *, labelled: bool) -> Evaluator:
    """The evaluator of a generator on ``device`` with the numerics of a plan; takes the generator over."""
    placed = place(generator, numerics, device)
    dtype = dtype_of(numerics)
    if device.type == "cuda":
        return _CudaEvaluator(placed, device, dtype, numerics, generator.latent_dim, labelled=labelled)
    return _CpuEvaluator(placed, dtype, numerics.threads)


def place(generator: Generator, numerics: Numerics, device: torch.device) -> nn.Module:
    """The generator as ``numerics`` want it: layers rewritten, in their type and layout, on ``device``."""
    module: object = generator
    assert isinstance(module, nn.Module)
    if numerics.upsampling == "subpixel":
        module = with_subpixel_layers(module)
    layout = torch.channels_last if numerics.memory_format == "channels_last" else torch.contiguous_format
    module.to(device=device, dtype=dtype_of(numerics))
    module.to(memory_format=layout)  # type: ignore[call-overload]  # torch documents it, its stubs lack it
    return module


def dtype_of(numerics: Numerics) -> torch.dtype:
    """The type that the generator computes in."""
    return torch.bfloat16 if numerics.dtype == "bfloat16" else torch.float32


class _FirstImages:
    """Looks at the first images that a generator makes; at the later ones it does not, because that would cost speed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.seen = False

    def check(self, images: Tensor) -> None:
        """Raise BundleError unless all are finite, the first time it is called."""
        if self.seen:
            return
        bad = len(images) - int(torch.isfinite(images).flatten(1).all(1).sum())
        if bad:
            raise BundleError(
                f"{bad} of the first {len(images)} images that the bundle's generator makes in {self._dtype} are not finite; "
                "take the bundle below best/ of its run, or train again"
            )
        self.seen = True


class _CpuEvaluator:
    """Computes while the caller waits, with as many threads as the plan says, whatever torch was given."""

    ahead = 0

    def __init__(self, module: nn.Module, dtype: torch.dtype, num_threads: int) -> None:
        self._module = module
        self._dtype = dtype
        self._num_threads = num_threads
        self._first = _FirstImages(dtype)

    @torch.inference_mode()
    def start(self, z: npt.NDArray[np.float32], labels: Int64Array | None, stages: StageSeconds) -> Finish:
        with stages.timed("forward"), threads(self._num_threads):
            images = self._module(
                torch.from_numpy(z).to(self._dtype), None if labels is None else torch.from_numpy(labels)
            )
            self._first.check(images)
        with stages.timed("quantise"):
            pixels = to_uint8(images).numpy()
        return lambda: pixels


class _CudaEvaluator:
    """Queues work on two streams; the caller's thread waits for finished pixels only."""

    ahead = 2  # one micro-batch is computed, one is on its way, one is taken

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        numerics: Numerics,
        latent_dim: int,
        *,
        labelled: bool,
    ) -> None:
        # The fastest algorithms of cuDNN may add in any order; a plan promises the same bits every time.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        # float32 means float32: no rounding of factors to ten bits.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._module = module
        self._device = device
        self._dtype = dtype
        self._first = _FirstImages(dtype)
        self._refusals = memory_refusals(device)
        self._compute = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copy = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The weights came here on the stream that was current; they may still be on their way.
        self._compute.wait_stream(torch.cuda.current_stream(device))
        self._graph: torch.cuda.CUDAGraph | None = None
        if numerics.launch == "cuda_graph":
            self._capture(numerics.micro_batch, latent_dim, labelled=labelled)

    @torch.inference_mode()
    def start(self, z: npt.NDArray[np.float32], labels: Int64Array | None, stages: StageSeconds) -> Finish:
        with stages.timed("forward"), torch.cuda.stream(self._compute):
            latents = torch.from_numpy(z).pin_memory().to(self._device, non_blocking=True).to(self._dtype)
            classes = None
            if labels is not None:
                classes = torch.from_numpy(labels).pin_memory().to(self._device, non_blocking=True)
            pixels = self._pixels(latents, classes)
        with stages.timed("quantise"):
            self._copy.wait_stream(self._compute)
            with torch.cuda.stream(self._copy):
                # Torch keeps pinned blocks for reuse, so this costs a look-up after the first few.
                host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
                host.copy_(pixels, non_blocking=True)
                pixels.record_stream(self._copy)
                # Waiting for it must not keep a processor busy that encoders could use.
                arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                arrived.record(self._copy)
        check_memory(self._device, self._refusals)

        def finish() -> Pixels:
            with stages.timed("forward"):
                arrived.synchronize()
            return host.numpy()

        return finish

    def _pixels(self, latents: Tensor, classes: Tensor | None) -> Tensor:
        if self._graph is None:
            images = self._module(latents, classes)
            self._first.check(images)
            return to_uint8(images)
        if not self._first.seen:  # a graph gives pixels alone; these images are made beside it
            self._first.check(self._module(latents, classes))
        self._latents.copy_(latents)
        if self._classes is not None and classes is not None:
            self._classes.copy_(classes)
        self._graph.replay()
        # The graph writes to the same place every time, while the pixels before are still on their way.
        return self._output.clone()

    @torch.inference_mode()
    def _capture(self, micro_batch: int, latent_dim: int, *, labelled: bool) -> None:
        with torch.cuda.stream(self._compute):
            self._latents = torch.zeros(micro_batch, latent_dim, device=self._device, dtype=self._dtype)
            self._classes = torch.zeros(micro_batch, device=self._device, dtype=torch.int64) if labelled else None
            for _ in range(_WARM_UPS):
                to_uint8(self._module(self._latents, self._classes))
        self._compute.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._compute, capture_error_mode="thread_local"):
            self._output = to_uint8(self._module(self._latents, self._classes))
