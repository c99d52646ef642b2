"""A GPU that is not there, for tests: tensors on 'cuda' have shapes and devices but no values.

Whatever mixes devices, or draws from a generator of another device, fails as it would on a GPU. From the second batch
of a fit on, and whenever a batch is sent, these raise `Waits`: to ask for a value, to index by a mask, to copy without
`non_blocking` or, above 64 kB, from memory that is not pinned. A tensor used on another stream than it was made on,
without a wait for it and `record_stream`, raises `Races`. CPU tensors are real, so loaders and stores work. Gradients
are ones, as the backward pass of torch asks for a driver: what waits within it, or in hooks of it, is not seen, nor are
operations that torch has for no such dtype on CUDA, or that wait inside (`linalg`, `multinomial`)."""

import contextlib
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trickbag.core.streams import Streams
from trickbag.data.store import PendingOnGPU
from trickbag.loop import batch

GPU = torch.device('cuda', 0)


class Waits(AssertionError):
    "A step asked for what only the GPU knows"


class Races(AssertionError):
    "A stream uses what another one may not have made yet, or whose memory another may be given"


def on_gpu(a):
    return isinstance(a, FakeTensor) and a.device.type == 'cuda'


class FakeGPU(TorchDispatchMode):
    "Operations on 'cuda' tensors are not computed; `strict`: those that wait for the device raise `Waits`"

    def __init__(self):
        super().__init__()
        # pinned: address -> tensor, kept alive
        self.strict, self.ops, self.stream, self.pinned = False, 0, Stream(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = tree_leaves((args, kwargs))
        name = func.overloadpacket.__name__
        gpu = any(map(on_gpu, flat))
        if not gpu and not any(
            isinstance(a, FakeTensor) or (isinstance(a, torch.device) and a.type == 'cuda') for a in flat
        ):
            if (g := kwargs.get('generator')) is not None and g.initial_seed() in Generator.marks:
                raise RuntimeError(f'{func}: on the CPU with a generator of the GPU')
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.ops += 1
        g = kwargs.get('generator')
        if g is not None and (g.initial_seed() in Generator.marks) != (
            torch.device(kwargs['device']).type == 'cuda' if kwargs.get('device') is not None else gpu
        ):
            raise RuntimeError(f'{func}: the generator is on another device')
        for a in filter(on_gpu, flat):
            self.stream.check(a, func)
        if self.strict and (why := self._wait(name, args, kwargs)):
            raise Waits(f'{func}: {why}')
        try:
            res = func(*args, **kwargs)
            for a in filter(on_gpu, tree_leaves(res)):
                self.stream.made(a, self.ops)
            return res
        except (DataDependentOutputException, DynamicOutputShapeException) as e:
            if self.strict:
                raise Waits(str(func)) from e
            return (
                {torch.bool: False, torch.int64: 0}.get(args[0].dtype, 0.0) if name == '_local_scalar_dense' else False
            )

    def _wait(self, name, args, kwargs):
        "Why this operation makes the CPU wait for the GPU, though shapes do not depend on values"
        if name == '_to_copy':
            there = (
                torch.device(kwargs['device']).type == 'cuda' if kwargs.get('device') is not None else on_gpu(args[0])
            )
            if on_gpu(args[0]) and not there:
                return 'to the CPU'
            if there and not on_gpu(args[0]) and not kwargs.get('non_blocking'):
                return 'to the GPU without non_blocking'
            if (
                there
                and not on_gpu(args[0])
                and args[0].nbytes > 65536
                and args[0].untyped_storage().data_ptr() not in self.pinned
            ):
                return 'to the GPU from memory that is not pinned'
        if name == 'copy_' and on_gpu(args[1]) and not on_gpu(args[0]):
            return 'to the CPU'
        if (
            name == 'copy_'
            and on_gpu(args[0])
            and not on_gpu(args[1])
            and args[1].ndim
            and not (args[2:] or [kwargs.get('non_blocking')])[0]
        ):
            return 'to the GPU without non_blocking'
        if (
            name in ('index', 'index_put_', 'index_put')
            and on_gpu(args[0])
            and any(i is not None and not on_gpu(i) for i in args[1])
        ):
            return 'an index on the CPU'
        if name in ('index', 'index_put_', 'index_put') and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            return 'a mask'


class Generator(torch.Generator):
    """On the GPU, as far as one can see; torch gives operations another object of the same state, so its seeds are
    marked"""

    device = GPU
    marks = set()

    def manual_seed(self, seed):
        self.said = seed
        self.marks.add(seed ^ 0x5EED)
        super().manual_seed(seed ^ 0x5EED)
        return self

    def initial_seed(self):
        return self.said


class Stream:
    "Of the CUDA streams, what is called; and what each may use"

    def __init__(self, device=None):
        self.seen = {}  # other stream -> number of the newest operation of it that this one has waited for

    def record_event(self):
        return self, _values.mode.ops

    def wait_event(self, event):
        self.seen[event[0]] = event[1]

    def made(self, t, n):
        t.of = (self, n) if not hasattr(t, 'of') or t.of[0] is self else t.of

    def check(self, t, func):
        if not hasattr(t, 'of') or t.of[0] is self:
            return
        if self.seen.get(t.of[0], -1) < t.of[1]:
            raise Races(f'{func}: did not wait for the stream that made its input')
        if self not in getattr(t, 'recorded', ()):
            raise Races(f'{func}: its input comes from another stream, without record_stream')


@contextlib.contextmanager
def _stream(s):
    m = _values.mode
    was = m.stream
    m.stream = s
    try:
        yield
    finally:
        m.stream = was


def _record(t, s):
    t.recorded = (*getattr(t, 'recorded', ()), s)


def _pin(t, *args):
    t = t.clone(memory_format=torch.preserve_format)
    _values.mode.pinned[t.untyped_storage().data_ptr()] = t
    return t


def _streams(self, device):
    self.generator = Generator()
    self.seeds = {}


def _backward(loss, *args, **kw):
    assert on_gpu(loss) and loss.requires_grad and loss.ndim == 0
    for p in _backward.model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p) if p.grad is None else p.grad + 1


def _to(module, device=None, *args, **kw):
    for m in module.modules() if isinstance(device, torch.device) and device.type == 'cuda' else ():
        for n, p in m._parameters.items():
            if p is not None and not on_gpu(p):
                m._parameters[n] = torch.nn.Parameter(p.detach().to(device), p.requires_grad)
        for n, b in m._buffers.items():
            if b is not None and not on_gpu(b):
                m._buffers[n] = b.to(device)
    return module if device is None or isinstance(device, torch.device) else _real_to(module, device, *args, **kw)


_real_to = torch.nn.Module.to


def _values(f):
    "Where values are fetched together, at the end of a stretch: zeros"

    def tolist(t):
        if not isinstance(t, FakeTensor):
            return f(t)
        if _values.mode.strict:
            raise Waits('tolist')
        return torch.zeros(t.shape).tolist()

    return tolist


@contextlib.contextmanager
def fake_gpu():
    """Inside, learners with `device=GPU` run on a GPU that is not there; from the second batch of a fit on, a step
    that waits for it raises `Waits`"""
    mode = _values.mode = FakeGPU()

    def strictly(f):
        def step(self, *args):
            _backward.model = self.model
            mode.strict = self.iter > 0
            try:
                return f(self, *args)
            finally:
                mode.strict = False

        return step

    def sending(f):
        def start(self):
            mode.strict = True
            try:
                return f(self)
            finally:
                mode.strict = False

        return start

    def patch(name, value):
        s.enter_context(mock.patch(name, value))

    with contextlib.ExitStack() as s:
        s.enter_context(mock.patch.object(PendingOnGPU, 'start', sending(PendingOnGPU.start)))
        s.enter_context(mock.patch.object(batch, 'one_batch', strictly(batch.one_batch)))
        s.enter_context(mock.patch.object(Streams, '__init__', _streams))
        patch('trickbag.learner.check_device', lambda who, device: device)  # else a device that is not there is refused
        for n, v in dict(
            Stream=Stream,
            stream=_stream,
            current_stream=lambda d: mode.stream,
            device=lambda d: contextlib.nullcontext(),
            mem_get_info=lambda d: (2**33, 2**34),
            get_rng_state=lambda d: None,
            set_rng_state=lambda s, d: None,
            default_generators=[torch.Generator()],
            is_bf16_supported=lambda *a, **kw: True,
        ).items():
            patch(f'torch.cuda.{n}', v)
        patch('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)  # else autocast switches itself off
        patch('torch.Tensor.pin_memory', _pin)
        patch('torch.Tensor.record_stream', _record)
        patch('torch.Tensor.backward', _backward)
        patch('torch.Tensor.tolist', _values(torch.Tensor.tolist))
        patch('torch.nn.Module.to', _to)
        # has no shape function
        patch('torch._sample_dirichlet', lambda c, generator: torch.rand(c.shape, device=generator.device).to(c.device))
        s.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        s.enter_context(mode)
        yield mode
