"""A GPU that is not there, for tests: tensors on 'cuda' have shapes and devices but no values.

Whatever mixes devices then fails as it would on a GPU, and whatever asks for a value, which on a GPU waits until it has caught up, is noticed. CPU tensors
are real, so loaders and stores work. Gradients are ones, as the backward pass of torch asks for a driver."""
import contextlib
from unittest import mock
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trickbag.core import Streams
from trickbag.learner import Learner
from trickbag.metrics import Averages
from trickbag.monitors.recorder import Recorder

GPU = torch.device('cuda', 0)

class Waits(AssertionError): "A step asked for what only the GPU knows"

def on_gpu(a): return isinstance(a, FakeTensor) and a.device.type=='cuda'

class FakeGPU(TorchDispatchMode):
    "Operations on 'cuda' tensors are not computed; `strict`: those that wait for the device raise `Waits`"
    def __init__(self): super().__init__(); self.strict,self.ops = False,0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}; flat = tree_leaves((args, kwargs)); name = func.overloadpacket.__name__
        gpu = any(map(on_gpu, flat))
        if not gpu and not any(isinstance(a, FakeTensor) or (isinstance(a, torch.device) and a.type=='cuda') for a in flat):
            with unset_fake_temporarily(): return func(*args, **kwargs)
        self.ops += 1
        if self.strict and (why := self._wait(name, args, kwargs)): raise Waits(f'{func}: {why}')
        try: return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as e:
            if self.strict: raise Waits(str(func)) from e
            return {torch.bool: False, torch.int64: 0}.get(args[0].dtype, 0.) if name=='_local_scalar_dense' else False

    def _wait(self, name, args, kwargs):
        "Why this operation makes the CPU wait for the GPU, though shapes do not depend on values"
        if name=='_to_copy':
            there = torch.device(kwargs['device']).type=='cuda' if kwargs.get('device') is not None else on_gpu(args[0])
            if on_gpu(args[0]) and not there: return 'to the CPU'
            if there and not on_gpu(args[0]) and not kwargs.get('non_blocking'): return 'to the GPU without non_blocking'
        if name=='copy_' and on_gpu(args[1]) and not on_gpu(args[0]): return 'to the CPU'
        if name=='copy_' and on_gpu(args[0]) and not on_gpu(args[1]) and args[1].ndim and not (args[2:] or [kwargs.get('non_blocking')])[0]: return 'to the GPU without non_blocking'
        if name in ('index', 'index_put_', 'index_put') and on_gpu(args[0]) and any(i is not None and not on_gpu(i) for i in args[1]): return 'an index on the CPU'

class Generator(torch.Generator): device = GPU

class Stream:
    "Of the CUDA streams, only what is called"
    def __init__(self, device=None): pass
    def record_event(self): return self
    def wait_event(self, event): assert isinstance(event, Stream)

def _streams(self, device): self.generator,self.seeds = Generator(),{}

def _backward(loss, *args, **kw):
    assert on_gpu(loss) and loss.requires_grad and loss.ndim==0
    for p in _backward.model.parameters():
        if p.requires_grad: p.grad = torch.ones_like(p) if p.grad is None else p.grad+1

def _to(module, device=None, *args, **kw):
    for m in module.modules() if isinstance(device, torch.device) and device.type=='cuda' else ():
        for n,p in m._parameters.items():
            if p is not None and not on_gpu(p): m._parameters[n] = torch.nn.Parameter(p.detach().to(device), p.requires_grad)
        for n,b in m._buffers.items():
            if b is not None and not on_gpu(b): m._buffers[n] = b.to(device)
    return module if device is None or isinstance(device, torch.device) else _real_to(module, device, *args, **kw)
_real_to = torch.nn.Module.to

def _values(f):
    "Where values are fetched together, at the end of a stretch: zeros"
    def tolist(t):
        if not isinstance(t, FakeTensor): return f(t)
        if _values.mode.strict: raise Waits('tolist')
        return torch.zeros(t.shape).tolist()
    return tolist

@contextlib.contextmanager
def fake_gpu():
    "Inside, learners with `device=GPU` run on a GPU that is not there; from the second batch of a fit on, a step that waits for it raises `Waits`"
    mode = _values.mode = FakeGPU()
    def strictly(f):
        def step(self, *args):
            _backward.model,mode.strict = self.model,self.iter>0
            try: return f(self, *args)
            finally: mode.strict = False
        return step
    def patch(name, value): s.enter_context(mock.patch(name, value))
    with contextlib.ExitStack() as s:
        for n in ('_train_batch', '_eval_batch'): s.enter_context(mock.patch.object(Learner, n, strictly(getattr(Learner, n))))
        s.enter_context(mock.patch.object(Streams, '__init__', _streams))
        for n,v in dict(Stream=Stream, stream=lambda s: contextlib.nullcontext(), current_stream=lambda d: Stream(), device=lambda d: contextlib.nullcontext(), mem_get_info=lambda d: (2**33, 2**34),
                        get_rng_state=lambda d: None, set_rng_state=lambda s, d: None, default_generators=[torch.Generator()], is_bf16_supported=lambda *a, **kw: True).items(): patch(f'torch.cuda.{n}', v)
        patch('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)      # else autocast switches itself off
        patch('torch.Tensor.pin_memory', lambda t, *a: t); patch('torch.Tensor.record_stream', lambda t, s: None)
        patch('torch.Tensor.backward', _backward); patch('torch.Tensor.tolist', _values(torch.Tensor.tolist)); patch('torch.nn.Module.to', _to)
        patch('torch._sample_dirichlet', lambda c, generator: torch.rand(c.shape, device=generator.device).to(c.device))    # has no shape function
        s.enter_context(FakeTensorMode(allow_non_fake_inputs=True)); s.enter_context(mode)
        yield mode
