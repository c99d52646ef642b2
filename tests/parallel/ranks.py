"Work in several processes that know each other, on the CPU."

import pickle
import traceback
import warnings

import torch
import torch.distributed as dist

from tests.helpers import processes


def _work(rank, world, store, work, args, result):
    "One of the processes"
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world)
    try:
        value = work(rank, *args)
        # who leaves early breaks the connection in which another still listens
        dist.barrier()
        # not `send`, which would share the memory of tensors, and this process is about to end
        result.send_bytes(pickle.dumps(('done', value)))
    except BaseException:
        result.send_bytes(pickle.dumps(('failed', traceback.format_exc())))
    finally:
        result.close()
        dist.destroy_process_group()


def on_ranks(
    world,  # how many processes
    folder,  # where they find each other
    work,  # `work(rank, *args)` -> what can be pickled
    *args,
):
    "What each of the processes gives, in order of their ranks"
    store = folder / f'store of {world} {len(list(folder.iterdir()))}'
    ends = []
    running = []
    for rank in range(world):
        mine, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=_work, args=(rank, world, store, work, args, theirs))
        process.start()
        theirs.close()
        ends.append(mine)
        running.append(process)
    said = [_receive(end) for end in ends]
    for process in running:
        process.join(60)
        process.kill()
    failed = [text for how, text in said if how == 'failed']
    assert not failed, failed[0]
    return [value for _, value in said]


def _receive(end):
    try:
        return pickle.loads(end.recv_bytes()) if end.poll(180) else ('failed', 'no answer in three minutes')
    except EOFError:
        return 'failed', 'the process died'
