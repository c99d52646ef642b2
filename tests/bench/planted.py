"""The bugs that `plant.py` plants: one a line of thought, all over the package."""

import re
from pathlib import Path
from typing import NamedTuple

NBS = Path(__file__).resolve().parents[2] / 'nbs'


class Bug(NamedTuple):
    "A small change that makes the package wrong"

    module: str  # below trickbag/
    old: str  # stands there exactly once
    new: str
    tests: tuple  # arguments of pytest: where somebody should see it
    # 'sign', 'off by one', 'missing copy', 'no reset', 'axis', 'ignored', 'formula', 'order', 'state', 'undo'
    kind: str = ''
    reason: str = ''  # of a bug that no test can see: why


def page(*names):
    "The notebooks of these names, such as 'loop/metrics', whatever number each has in its room"
    return tuple(f'tests/test_notebooks.py::test_notebook[{numbered(n)}]' for n in names)


def numbered(name):
    "The path of a notebook below nbs/, with its number: 'loop/metrics' -> 'loop/06_metrics.ipynb'"
    room, _, stem = name.rpartition('/')
    found = [*(NBS / room).glob(f'[0-9]*_{stem}.ipynb'), *(NBS / room).glob(f'{stem}.ipynb')]
    found = [f for f in found if re.fullmatch(rf'(\d+_)?{stem}', f.stem)]
    if len(found) != 1:
        raise ValueError(f'{name}: {len(found)} notebooks have that name')
    return found[0].relative_to(NBS).as_posix()


def some(file, k):
    "Those tests of a file, such as 'loop/metrics', that `-k` selects"
    room, _, name = file.rpartition('/')
    return (f'tests/{room}/test_{name}.py' if room else f'tests/test_{name}.py', '-k', k)


def bag(name, what='resumes'):
    "What every trick must keep: 'resumes', 'undone', 'looking', 'own_stream'"
    return ('tests/promises/test_each_trick.py', '-k', f'{what} and {name}')


MIXES = [
    Bug('tricks/mixup.py', 'fold=True', 'fold=False', some('tricks/formulas', 'lambda_of_mixup'), 'ignored'),
    Bug(
        'tricks/mixup.py',
        'torch.lerp(y.index_select(0, perm), y, w)',
        'torch.lerp(y, y.index_select(0, perm), w)',
        page('tricks/mixup'),
        'sign',
    ),
    Bug('tricks/cutmix.py', 'lam = 1-boxes[:, 2]', 'lam = boxes[:, 2]', page('tricks/cutmix'), 'sign'),
    Bug(
        'vision/boxes.py',
        '(center_y+half_height).clamp(max=h)',
        '(center_y+half_height).clamp(max=w)',
        page('vision/boxes', 'tricks/cutmix'),
        'axis',
    ),
    Bug(
        'vision/boxes.py',
        '(i<(first+length)[:, None])',
        '(i<=(first+length)[:, None])',
        page('vision/boxes', 'tricks/cutmix'),
        'off by one',
    ),
    Bug('tricks/fmix.py', 'descending=True', 'descending=False', page('tricks/fmix'), 'sign'),
    Bug('tricks/fmix.py', 'clamp(min=1/max(h, w))', 'clamp(min=1/min(h, w))', page('tricks/fmix'), 'axis'),
    Bug(
        'tricks/resize_mix.py',
        '.clamp(min=1) for s in (w, h))',
        '.clamp(min=1) for s in (h, w))',
        page('tricks/resize_mix'),
        'axis',
    ),
    Bug('tricks/resize_mix.py', '+.5)*s-.5', ')*s', page('tricks/resize_mix'), 'off by one'),
    Bug(
        'tricks/mix_or_cut.py',
        'on & shared(coins[1] < self.switch_prob, n)',
        'shared(coins[1] < self.switch_prob, n)',
        page('tricks/mix_or_cut'),
        'ignored',
    ),
    Bug(
        'tricks/mix_or_cut.py',
        "'pair' if self.mode == 'pair' else 'sample'",
        "'sample'",
        page('tricks/mix_or_cut'),
        'sign',
    ),
    Bug('tricks/label_smoothing.py', '1-eps+eps/c, eps/c', '1-eps, eps/c', page('tricks/label_smoothing'), 'formula'),
    Bug('tricks/label_smoothing.py', '.add_(eps/c)', '.add_(eps/(c-1))', page('tricks/label_smoothing'), 'off by one'),
    Bug('tricks/binary_targets.py', '(y>threshold)', '(y>=threshold)', page('tricks/binary_targets'), 'off by one'),
]

WEIGHTS = [
    Bug('tricks/ema.py', '1-(1+t)**-warmup', '1-t**-warmup', page('tricks/ema'), 'off by one'),
    Bug('loop/average.py', 'copy=True)', 'copy=False)', page('tricks/ema'), 'missing copy'),
    Bug(
        'loop/average.py',
        "('avg','raw','n','pos')",
        "('avg','raw','n')",
        some('tricks/accumulation', 'resumed_after'),
        'state',
    ),
    Bug('loop/average.py', 'self.raw.pop(learn.depth)', 'self.raw[learn.depth]', bag('EMA'), 'no reset'),
    Bug('loop/average.py', 'if self.n: self._put(self.avg)', 'pass', page('tricks/ema'), 'ignored'),
    Bug('tricks/swa.py', '1/(n+1)', '1/n', page('tricks/swa'), 'off by one'),
    Bug(
        'tricks/swa.py',
        'done/learn.n_epoch>=self.start',
        '(done-1)/learn.n_epoch>=self.start',
        page('tricks/swa'),
        'off by one',
    ),
    Bug('models/equal_average.py', '                update_bn(learn)\n', '', page('models/equal_average'), 'ignored'),
    Bug(
        'tricks/ema.py',
        'if learn.step%self.interval',
        'if learn.step%self.interval==1',
        page('tricks/ema'),
        'off by one',
    ),
    Bug('tricks/ema.py', '(t/(t+1))**(power+1)', '(t/(t+1))**power', page('tricks/ema'), 'formula'),
    Bug('tricks/sam.py', 'self.rho, adaptive=self.adaptive', 'self.rho', page('tricks/sam'), 'ignored'),
    Bug('tricks/swa.py', 'self.from_batch = batch', 'self.from_batch = batch+1', page('tricks/swa'), 'off by one'),
    Bug(
        'loop/schedule.py', 'bisect_right(starts, p+1e-12)', 'bisect_right(starts, p)', page('loop/schedule'), 'formula'
    ),
    Bug('loop/schedule.py', 'partial(sched_poly, power=0.5)', 'sched_lin', page('loop/schedule'), 'formula'),
    Bug('tricks/schedule_free.py', 'lr**2/self.total', 'lr/self.total', page('tricks/schedule_free'), 'formula'),
    Bug('tricks/schedule_free.py', "'z', 'total')", "'z')", page('tricks/schedule_free'), 'state'),
    Bug('tricks/rate_factors.py', "group['lr']*rate", "group['lr']/rate", page('tricks/rate_factors'), 'formula'),
    Bug('tricks/sam.py', 'rho/(norm+eps)', '-rho/(norm+eps)', page('tricks/sam'), 'sign'),
    Bug('tricks/sam.py', '[*params, *learn.model.buffers()]', '[*params]', page('tricks/sam'), 'undo'),
    Bug('tricks/sam.py', '(learn.step+1)%self.interval', 'learn.step%self.interval', page('tricks/sam'), 'off by one'),
    Bug(
        'tricks/lookahead.py',
        'torch._foreach_lerp_(slow, fast, alpha)',
        'torch._foreach_lerp_(slow, fast, 1-alpha)',
        page('tricks/lookahead'),
        'sign',
    ),
    Bug(
        'tricks/lookahead.py',
        'self.n = 0\n        self.went = self.alpha if',
        'self.went = self.alpha if',
        page('tricks/lookahead'),
        'no reset',
    ),
    Bug('tricks/lookahead.py', "('slow','n','at','begun')", "('slow','n','at')", bag('Lookahead'), 'state'),
    Bug(
        'tricks/grad_accumulation.py',
        'ratio(self.first, self.total))',
        '1/self.n_acc)',
        page('tricks/grad_accumulation'),
        'formula',
    ),
    Bug(
        'tricks/grad_accumulation.py',
        'if not self.count: return',
        'return',
        page('tricks/grad_accumulation'),
        'ignored',
    ),
    Bug(
        'tricks/grad_accumulation.py',
        'dict(grads=grads, of_all',
        'dict(grads={}, of_all',
        bag('GradientAccumulation'),
        'state',
    ),
    Bug(
        'tricks/grad_clip.py',
        'self.max_norm, self.norm_type, self.mode)',
        'self.max_norm, mode=self.mode)',
        some('tricks/formulas', 'gradient_clip'),
        'ignored',
    ),
    Bug(
        'tricks/agc.py',
        'unit_norms(p).clamp(min=eps)*clip',
        '(unit_norms(p)*clip).clamp(min=eps)',
        page('tricks/agc'),
        'order',
    ),
    Bug('tricks/agc.py', 'tuple(range(1, t.ndim))', 'tuple(range(t.ndim-1))', page('tricks/agc'), 'axis'),
    Bug('tricks/lamb.py', 'lr*w/s', 'w/s', page('tricks/lamb'), 'formula'),
    Bug('tricks/lamb.py', '.clamp(max=max_ratio)', '.clamp(min=max_ratio)', page('tricks/lamb'), 'sign'),
    Bug('tricks/lars.py', '((r-1)*wd)', '(r*wd)', page('tricks/lars'), 'formula'),
    Bug('tricks/lars.py', '(g+weight_decay*w+eps)', '(g+eps)', page('tricks/lars'), 'formula'),
    Bug('tricks/muon.py', ' and p.shape[1]>1', '', some('tricks/formulas', 'muon_gets'), 'ignored'),
    Bug('tricks/muon.py', 'mats[1:-1]', 'mats[:-1]', some('tricks/formulas', 'muon_gets'), 'off by one'),
    Bug(
        'tricks/gradient_centralization.py',
        'tuple(range(1, g.ndim))',
        'tuple(range(2, g.ndim))',
        page('tricks/gradient_centralization'),
        'axis',
    ),
    Bug('tricks/linear_scaling.py', 'bs*n_acc*', 'bs*', page('tricks/linear_scaling'), 'ignored'),
    Bug(
        'tricks/layer_freezing.py',
        'param_layers(learn.model)[:-1]',
        'param_layers(learn.model)',
        page('tricks/layer_freezing'),
        'off by one',
    ),
    Bug('tricks/no_bias_decay.py', 'p.ndim<2', 'p.ndim<=2', page('tricks/no_bias_decay'), 'off by one'),
    Bug(
        'tricks/decoupled_decay.py',
        'if self.due:',
        'if True:',
        some('tricks/formulas', 'decay_only'),
        'ignored',
    ),
    Bug('speed/mixed_precision.py', 'learn.pred.float()', 'learn.pred', some('tricks/formulas', 'float32'), 'ignored'),
]

MODELS = [
    Bug('tricks/distillation.py', '*T**2', '*T', page('tricks/distillation'), 'formula'),
    Bug(
        'tricks/distillation.py',
        'F.kl_div(log_p, log_teacher',
        'F.kl_div(log_teacher, log_p',
        page('tricks/distillation'),
        'sign',
    ),
    Bug(
        'tricks/distillation.py',
        'self.teacher.to(learn.device).eval()',
        'self.teacher.to(learn.device)',
        page('tricks/distillation'),
        'ignored',
    ),
    Bug('tricks/drop_block.py', '(h-kh+1)*(w-kw+1)', 'h*w', page('tricks/drop_block'), 'formula'),
    Bug(
        'tricks/drop_block.py',
        'def after_batch(self, learn): self._p.zero_()',
        'def after_batch(self, learn): pass',
        page('tricks/drop_block'),
        'no reset',
    ),
    Bug(
        'models/layers.py',
        '.bernoulli_(1-p).div_(1-p)',
        '.bernoulli_(1-p)',
        page('tricks/stochastic_depth'),
        'formula',
    ),
    Bug('tricks/stochastic_depth.py', 'drop*i/max(n-1, 1)', 'drop*i/n', page('tricks/stochastic_depth'), 'off by one'),
    Bug(
        'tricks/blur_pool.py',
        'm.stride = stride\n            hook.remove()',
        'hook.remove()',
        page('tricks/blur_pool'),
        'undo',
    ),
    Bug(
        'tricks/squeeze_excite.py',
        'fold_in(learn.seed, name_key(name))',
        'learn.seed',
        page('tricks/squeeze_excite'),
        'ignored',
    ),
    Bug('tricks/whiten.py', 'square/n-mean[:, None]*mean', 'square/n', page('tricks/whiten'), 'formula'),
    Bug(
        'tricks/whiten.py',
        'conv.out_channels>=2*len(filters)',
        'conv.out_channels>2*len(filters)',
        page('tricks/whiten'),
        'off by one',
    ),
    Bug(
        'tricks/ghost_batch_norm.py',
        'bn.bias, True, 1/(i+1), bn.eps',
        'bn.bias, True, bn.momentum, bn.eps',
        page('tricks/ghost_batch_norm'),
        'formula',
    ),
    Bug(
        'tricks/ghost_batch_norm.py',
        'n = -(-len(x)//size)',
        'n = len(x)//size',
        page('tricks/ghost_batch_norm'),
        'off by one',
    ),
    Bug('tricks/zero_gamma.py', 'if not learn.step: zero_gamma', 'zero_gamma', page('tricks/zero_gamma'), 'ignored'),
    Bug(
        'tricks/head_bias.py',
        '-math.log(head.out_features)',
        'math.log(head.out_features)',
        page('tricks/head_bias'),
        'sign',
    ),
    Bug(
        'speed/grad_checkpoint.py',
        'old = [(b, b.clone()) for b in m.buffers()]',
        'old = [(b, b) for b in m.buffers()]',
        page('speed/grad_checkpoint'),
        'missing copy',
    ),
    Bug(
        'models/batchnorm.py',
        'for m,old in self.norms: m.momentum = old',
        'pass',
        some('loop/module_state', 'momentum_of'),
        'undo',
    ),
]

PHASES = [
    Bug(
        'tricks/selective_backprop.py',
        'losses.argsort(stable=True)',
        'losses.argsort(stable=True, descending=True)',
        page('tricks/selective_backprop'),
        'sign',
    ),
    Bug(
        'tricks/selective_backprop.py',
        'before_train = before_fit',
        'pass',
        some('tricks/formulas', 'every_epoch_drops'),
        'no reset',
    ),
    Bug('tricks/ohem.py', 'round(keep*len(losses))', 'int(keep*len(losses))', page('tricks/ohem'), 'off by one'),
    Bug(
        'tricks/progressive_resize.py',
        'sizes[bisect_right(jumps, p)]',
        'sizes[max(bisect_right(jumps, p)-1, 0)]',
        page('tricks/progressive_resize'),
        'off by one',
    ),
    Bug(
        'tricks/progressive_resize.py',
        "learn.crop_settings = {name: v for name, v in learn.crop_settings.items() if name != 'size'}",
        'pass',
        page('tricks/progressive_resize'),
        'no reset',
    ),
    Bug(
        'tricks/progressive_resize.py',
        "state = ('full','held')",
        "state = ('full',)",
        page('tricks/progressive_resize'),
        'state',
    ),
    Bug(
        'loop/phase.py',
        'run_position(epoch, iter, n_epoch, n_iter) < end',
        'run_position(epoch, iter, n_epoch, n_iter) <= end',
        page('loop/phase'),
        'off by one',
    ),
    Bug(
        'tricks/fix_res.py',
        'for p, required in self._was: p.requires_grad_(required)',
        'pass',
        page('tricks/fix_res'),
        'undo',
    ),
    Bug('runs/fix_res.py', '8e-3*bs/512', '8e-3*bs/256', page('tricks/fix_res'), 'formula'),
    Bug('runs/tta.py', 's.logsumexp(0)-math.log(v)', 's.logsumexp(0)', page('runs/tta'), 'formula'),
    Bug('vision/crop.py', '[x, x.flip(-1)]', '[x, x.flip(-2)]', some('vision/crop', 'ten_crop'), 'axis'),
    Bug(
        'tricks/random_erasing.py',
        '(scale[1]-scale[0]))/count',
        '(scale[1]-scale[0]))',
        page('tricks/random_erasing'),
        'ignored',
    ),
    Bug(
        'tricks/random_erasing.py',
        'torch.exp(math.log(ratio[0])+u[1]*math.log(ratio[1]/ratio[0]))',
        'ratio[0]+u[1]*(ratio[1]-ratio[0])',
        page('tricks/random_erasing'),
        'formula',
    ),
]

VISION = [
    Bug(
        'vision/cutout.py',
        'return lo.clamp(min=0),(lo+length)',
        'lo = lo.clamp(min=0)\n        return lo,(lo+length)',
        page('vision/cutout'),
        'order',
    ),
    Bug('vision/alternating_flip.py', 'learn.epochs_run', 'learn.epoch', page('vision/alternating_flip'), 'no reset'),
    Bug(
        'vision/aug_mix.py',
        '(u[1]*severity).floor()/9',
        '(u[1]*severity).floor()/10',
        page('vision/aug_mix'),
        'off by one',
    ),
    Bug('vision/auto_augment.py', 'u[1:3]<p', 'u[1:2]<p', page('vision/auto_augment'), 'off by one'),
    Bug('vision/rand_augment.py', 'level / most, (u[1]', 'level / 10, (u[1]', page('vision/rand_augment'), 'ignored'),
    Bug('vision/trivial_augment.py', '/(bins-1)', '/bins', page('vision/trivial_augment'), 'off by one'),
    Bug('vision/color_jitter.py', '2+(b-r)/s', '2+(r-b)/s', page('vision/color_jitter'), 'sign'),
    Bug(
        'vision/color_jitter.py',
        'key=lambda i: order[i]',
        'key=lambda i: i',
        page('vision/color_jitter'),
        'ignored',
    ),
    Bug('vision/basic.py', 'x[i].flip(2)', 'x[i].flip(1)', page('vision/basic'), 'axis'),
    Bug('vision/basic.py', 'else 255.0', 'else 256.0', page('vision/basic'), 'off by one'),
    Bug(
        'vision/pad_crop.py',
        'torch.randint(-self.pad, self.pad+1,',
        'torch.randint(-self.pad, self.pad,',
        page('vision/pad_crop'),
        'off by one',
    ),
    Bug(
        'vision/pad_crop.py',
        '(n-1-(n-1-i.abs()).abs())',
        '(n-(n-i.abs()).abs())',
        page('vision/pad_crop'),
        'off by one',
    ),
    Bug('vision/gaussian_blur.py', '-.5*(i/sigma', '-(i/sigma', page('vision/gaussian_blur'), 'formula'),
    Bug('vision/pca_lighting.py', 'p * v / deviation', 'p * v * deviation', page('vision/pca_lighting'), 'formula'),
    Bug(
        'vision/random_affine.py',
        '(-translate[0]*w, translate[0]*w)',
        '(-translate[0]*h, translate[0]*h)',
        page('vision/random_affine'),
        'axis',
    ),
    Bug(
        'vision/repeated_augmentation.py',
        "('xb', 'yb', 'clean_yb', 'idx')",
        "('xb', 'yb', 'idx')",
        page('vision/repeated_augmentation'),
        'ignored',
    ),
    Bug('vision/col_out.py', '.sort(1).values', '', page('vision/col_out'), 'order'),
    Bug('vision/ops.py', '-hist+step//2', '-hist', page('vision/ops'), 'formula'),
    Bug('vision/ops.py', '(x>=first.clamp(', '(x>first.clamp(', page('vision/ops'), 'off by one'),
    Bug('vision/ops.py', '-(width-1)/2', '-width/2', page('vision/ops'), 'off by one'),
    Bug('vision/ops.py', '.div_(13).round_()', '.div_(13)', page('vision/ops'), 'formula'),
    Bug(
        'vision/ops.py',
        '(op<=len(SIGNED))',
        '(op<len(SIGNED))',
        page('vision/ops', 'vision/trivial_augment'),
        'off by one',
    ),
    # the crop
    Bug(
        'vision/crop.py',
        'torch.floor(u_y*(height-box_height+1))',
        'torch.floor(u_y*(height-box_height))',
        some('vision/crop', 'last_row'),
        'off by one',
    ),
    Bug(
        'vision/crop.py',
        'own_size = self.size if learn.training else self.valid_size or self.size',
        'own_size = self.size',
        some('vision/crop', 'own_size'),
        'ignored',
    ),
    Bug('vision/crop.py', 'torch.round(width/ratio[0])', 'torch.round(width/ratio[1])', page('vision/crop'), 'axis'),
    Bug(
        'vision/crop.py',
        'box_width = torch.round((area*aspect).sqrt())\n    box_height = torch.round((area/aspect).sqrt())',
        'box_width = torch.round((area/aspect).sqrt())\n    box_height = torch.round((area*aspect).sqrt())',
        some('vision/crop', 'width_over'),
        'axis',
    ),
    Bug(
        'vision/crop.py',
        'torch.minimum(width, height * aspect) * crop_pct',
        'torch.maximum(width, height * aspect) * crop_pct',
        page('vision/crop'),
        'sign',
    ),
    Bug(
        'vision/crop.py',
        '(stored / wh).repeat(1, 2)',
        '(stored / wh.flip(1)).repeat(1, 2)',
        page('vision/crop'),
        'axis',
    ),
    Bug('vision/crop.py', 'unit = step.clamp(min=1)', 'unit = step', page('vision/crop'), 'formula'),
]

LOOP = [
    # the streams of a second fit repeat those of the first
    Bug(
        'loop/randomness.py',
        'learn._event_seed or (learn.iter, learn.epochs_run)',
        'learn._event_seed or (learn.iter, learn.epoch)',
        some('loop/random_state', 'second_fit'),
        'no reset',
    ),
    Bug(
        'loop/randomness.py',
        'epoch_key = (learn.seed, learn.epochs_run, learn.training',
        'epoch_key = (learn.seed, learn.epoch, learn.training',
        some('loop/random_state', 'second_fit'),
        'no reset',
    ),
    Bug('loop/batch.py', 'learn.opt.zero_grad()', 'pass', some('loop/learner', 'torchs_step'), 'no reset'),
    Bug(
        'loop/batch.py',
        'learn.position = (learn.epoch, learn.iter + 1)',
        'learn.position = (learn.epoch, learn.iter)',
        some('promises/promises', 'test_resume and MixUp'),
        'off by one',
    ),
    Bug(
        'learner.py',
        'torch.no_grad(), preserve_modes(learn.model), opt_eval',
        'preserve_modes(learn.model), opt_eval',
        some('loop/learner', 'no_graph'),
        'ignored',
    ),
    Bug(
        'learner.py',
        'learn.model.eval()',
        'pass',
        ('tests/loop/test_learner.py',),
        'ignored',
    ),
    Bug('learner.py', 'strict=not learn.fitting', 'strict=True', some('loop/metrics', 'fails_late'), 'ignored'),
    Bug(
        'learner.py',
        "*state.BATCH, 'results', 'directions')",
        "*state.BATCH, 'directions')",
        some('loop/learner', 'in_between'),
        'undo',
    ),
    Bug(
        'loop/learner_checks.py',
        'learn.lr if lr is None else lr)',
        'lr or learn.lr)',
        some('loop/learner', 'rate_of_zero'),
        'ignored',
    ),
    Bug(
        'runs/predictions.py', 'int(probs[0] > 0.5)', 'int(probs[0] > 0)', some('loop/metrics', 'one_output'), 'formula'
    ),
    Bug(
        'loop/learner_checks.py',
        "return ordered_view(dl, 'validate') if ordered else dl",
        'return dl',
        some('data/finding_data', 'order'),
        'ignored',
    ),
    Bug(
        'loop/learner_checks.py',
        'enter_training(learn.model, kept)',
        'learn.model.train()',
        some('loop/module_state', 'frozen'),
        'ignored',
    ),
    Bug(
        'loop/resume.py',
        'learn.epochs_run - trained_here',
        'learn.epochs_run',
        some('loop/random_state', 'resumed_run'),
        'off by one',
    ),
    # callbacks
    Bug('callback.py', 'class_name(cb), cb.name)', ')', some('loop/callbacks', 'one_stage'), 'order'),
    Bug(
        'callback.py',
        'not training and event in VALIDATION_BATCH_EVENTS',
        'not training',
        page('callback', 'tricks/progressive_resize'),
        'ignored',
    ),
    Bug('callback.py', 'deepcopy(sd[name])', 'sd[name]', some('loop/checkpoint', 'load_read'), 'missing copy'),
    Bug(
        'callback.py',
        'bool({*newer.owns} & {*older.owns})',
        'True',
        some('loop/callbacks', 'unrelated or place'),
        'ignored',
    ),
    Bug(
        'callback.py',
        "('reads', 'writes', 'owns', 'does', 'traced', 'state', 'tasks')",
        "('reads', 'writes', 'owns', 'does', 'traced', 'tasks')",
        some('loop/callbacks', 'a_text_where'),
        'ignored',
    ),
    # rules
    Bug(
        'loop/rules.py',
        'total = steps_an_epoch*learn.n_epoch',
        'total = (learn.n_iter or 0)*learn.n_epoch',
        some('tricks/accumulation', 'lag'),
        'ignored',
    ),
    Bug('loop/rules.py', 'owners[thing] = cb', '', page('loop/rules'), 'ignored'),
    Bug(
        'loop/rules.py',
        'b is not a and selects(rule.b, b)',
        'selects(rule.b, b)',
        page('loop/rules', 'runs/tta'),
        'ignored',
    ),
    Bug(
        'loop/rules.py',
        'n_teacher!=n_student',
        'n_teacher<n_student',
        page('loop/rules', 'tricks/distillation'),
        'sign',
    ),
]

SAVED = [
    # state in lists is not looked at by `save`
    Bug(
        'core/plain_files.py',
        "return kind(plain(value, f'{where}[{i}]') for i, value in enumerate(o))",
        'return o',
        some('loop/checkpoint', 'state_in_lists'),
        'ignored',
    ),
    Bug(
        'loop/snapshot.py',
        'deepcopy(opt_state(learn.opt, learn.model))',
        'opt_state(learn.opt, learn.model)',
        page('loop/snapshot', 'runs/lr_find'),
        'missing copy',
    ),
    Bug(
        'loop/snapshot.py',
        "'results', 'step', 'epochs_run'",
        "'results', 'epochs_run'",
        some('loop/learner', 'every_counter'),
        'undo',
    ),
    Bug('loop/same_fit.py', 'seed=described(learn.seed)', 'seed=0', some('loop/learner', 'resume_must_be'), 'ignored'),
    Bug(
        'loop/checkpoint.py',
        'if hidden := hidden_buffers(learn.model):',
        'if hidden := None:',
        some('loop/module_state', 'hidden_buffers'),
        'state',
    ),
    Bug(
        'loop/checkpoint.py',
        "own!=d['vocab']",
        "set(own)!=set(d['vocab'])",
        some('loop/checkpoint', 'another_order'),
        'order',
    ),
    Bug(
        'monitors/save_best.py',
        'self.best = float(value)',
        'pass',
        page('monitors/save_best'),
        'ignored',
    ),
    Bug(
        'monitors/save_best.py',
        "('best', 'best_epoch', 'direction')",
        "('best_epoch', 'direction')",
        page('monitors/save_best'),
        'state',
    ),
    Bug(
        'loop/checkpoint.py',
        'names = older_names(file, keep-1)',
        'names = older_names(file, keep)',
        page('monitors/save_best'),
        'off by one',
    ),
    Bug(
        'monitors/save_best.py',
        'learn.epoch + 1 == learn.n_epoch or unit',
        'unit',
        page('monitors/save_best'),
        'ignored',
    ),
    Bug(
        'monitors/early_stopping.py',
        'new - old) > min_delta',
        'new - old) >= min_delta',
        page('monitors/early_stopping'),
        'off by one',
    ),
    Bug(
        'monitors/early_stopping.py',
        'n_worse < self.patience',
        'n_worse <= self.patience',
        page('monitors/early_stopping'),
        'off by one',
    ),
    Bug(
        'monitors/early_stopping.py',
        'self.start = len(learn.history)',
        'self.start = 0',
        page('monitors/early_stopping'),
        'no reset',
    ),
    Bug(
        'monitors/recorder.py',
        'n * _metric_or_nan(f, pred, y, learn)',
        '_metric_or_nan(f, pred, y, learn)',
        some('loop/metrics', 'metric_of_training'),
        'formula',
    ),
    Bug(
        'core/files.py', '                os.fsync(f.fileno())\n', '', some('loop/checkpoint', 'on_the_disk'), 'ignored'
    ),
]

RATES = [
    Bug(
        'loop/schedule.py',
        '(epoch*n_iter+iter)/max(n_epoch*n_iter-1, 1)',
        '(epoch*n_iter+iter)/(n_epoch*n_iter)',
        page('loop/schedule'),
        'off by one',
    ),
    Bug('loop/schedule.py', '(start*(1+c)+end*(1-c))/2', '(start*(1-c)+end*(1+c))/2', page('loop/schedule'), 'sign'),
    Bug(
        'loop/schedule.py',
        'up_and_down(1/self.div, 1, 1/self.div_final)',
        'up_and_down(1/self.div, 1, 1/self.div/self.div_final)',
        page('loop/schedule'),
        'formula',
    ),
    Bug(
        'loop/schedule.py',
        'value*(group[param] if param in self._set_before else self._base[param][i])',
        'value*group[param]',
        page('loop/schedule'),
        'no reset',
    ),
    Bug('loop/schedule.py', "(value, *group['betas'][1:])", '(value, value)', page('loop/schedule'), 'axis'),
    Bug(
        'loop/schedule.py',
        'range(1, math.ceil(1 / first) + 1)',
        'range(math.ceil(1 / first) + 1)',
        page('loop/schedule'),
        'off by one',
    ),
    Bug(
        'runs/one_cycle.py',
        'slice(base_lr/2/lr_mult, base_lr/2)',
        'slice(base_lr/lr_mult, base_lr)',
        page('runs/one_cycle'),
        'formula',
    ),
    Bug('runs/lr_find.py', 'slopes.index(min(slopes))', 'slopes.index(max(slopes))', page('runs/lr_find'), 'sign'),
    Bug(
        'runs/lr_find.py',
        'return self.mean_sum / self.mean_size',
        'return self.mean_sum',
        page('runs/lr_find'),
        'formula',
    ),
    Bug('runs/lr_find.py', 'self.i/(self.num_it-1)', 'self.i/self.num_it', page('runs/lr_find'), 'off by one'),
    Bug('runs/lr_find.py', "g['lr'] = self.lr*r", "g['lr'] = self.lr", page('runs/lr_find'), 'ignored'),
    Bug('loop/optimizer.py', '(i/max(n-1, 1))', '(i/n)', page('loop/optimizer'), 'off by one'),
    Bug(
        'loop/optimizer.py', 'opt.param_groups[:] = old', 'pass', some('loop/module_state', 'hyper_parameters'), 'undo'
    ),
    Bug('loop/optimizer.py', 'i >= first or id(param) in norms', 'i>=first', page('loop/optimizer'), 'ignored'),
]

DATA = [
    # a store's stamp without the file's size
    Bug(
        'data/sources.py',
        's.st_mtime_ns, s.st_size, s.st_ctime_ns, s.st_ino',
        's.st_mtime_ns, s.st_ctime_ns, s.st_ino',
        some('data/store', 'stamp'),
        'ignored',
    ),
    Bug(
        'data/sources.py',
        's.st_mtime_ns, s.st_size, s.st_ctime_ns, s.st_ino',
        's.st_mtime_ns, s.st_size',
        some('data/decode', 'stamp'),
        'ignored',
    ),
    Bug(
        'data/sources.py',
        'digest.update(repr([tuple(box) for box in boxes.tolist()]).encode())',
        'pass',
        page('data/sources'),
        'ignored',
    ),
    Bug(
        'data/decode.py',
        '6: lambda x: x.transpose(0, 1).flip(1)',
        '6: lambda x: x.transpose(0, 1).flip(0)',
        some('data/decode', 'rotation'),
        'axis',
    ),
    Bug('data/decode.py', 'mark in (2, 3, 7, 8)', 'mark in (2, 3, 6, 7)', some('data/decode', 'box'), 'axis'),
    Bug('data/decode.py', '(values*255+.5)', '(values*255)', some('data/decode', 'arrays'), 'formula'),
    Bug(
        'data/files.py',
        'round(len(members) * valid_pct)',
        'int(len(members) * valid_pct)',
        some('data/finding_data', 'share_of_a_class'),
        'off by one',
    ),
    Bug(
        'data/files.py',
        'secret = hidden or dotted',
        'secret = dotted',
        some('data/finding_data', 'hidden'),
        'ignored',
    ),
    Bug(
        'data/datasets.py',
        'self.labels = found[self.idxs]',
        'self.labels = found',
        page('data/datasets'),
        'ignored',
    ),
    Bug(
        'data/store.py',
        'images._stamps[i] = 0',
        'pass',
        some('data/store', 'being_replaced'),
        'order',
    ),
    Bug(
        'data/store.py',
        'images.left-(not images._ready[i])',
        'images.left-1',
        some('data/store', 'twice_at_once'),
        'ignored',
    ),
    Bug('data/store.py', 'smallest<=need<=free_disk(cache_dir())//2', 'smallest<=need', page('data/store'), 'ignored'),
    Bug(
        'data/store.py', "have.get('format')!=want['format']", 'False', ('tests/data/test_store_damage.py',), 'ignored'
    ),
    Bug('data/store.py', "f'{key}-{presize}'", "f'{key}'", page('data/store'), 'ignored'),
    Bug(
        'data/image_loader.py',
        '-(-len(self.store)//self.bs)',
        'len(self.store)//self.bs+1',
        some('data/loaders', 'as_many_batches'),
        'off by one',
    ),
    Bug(
        'data/image_loader.py',
        'all_of_them and not self.shuffle',
        'all_of_them',
        some('data/loaders', 'ordered_view'),
        'ignored',
    ),
    Bug(
        'data/tables.py',
        '[name.strip() for name in',
        '[name for name in',
        some('data/tables', 'names_of_columns'),
        'ignored',
    ),
    Bug(
        'data/loaders.py',
        'loader(train, bs, shuffle=True, drop_last=drop_last, max_bad=may_be_bad)',
        'loader(train, bs, drop_last=drop_last, max_bad=may_be_bad)',
        some('data/loaders', 'another_order_each'),
        'ignored',
    ),
]

NUMBERS = [
    Bug(
        'loop/metrics.py',
        'missing if value is None else n*value',
        'missing if value is None else value',
        page('loop/metrics'),
        'formula',
    ),
    Bug('loop/losses.py', 'alpha*y+(1-alpha)*(1-y)', 'alpha*(1-y)+(1-alpha)*y', page('loop/losses'), 'sign'),
    Bug('loop/losses.py', ".square().mean(1)", ".abs().mean(1)", some('loop/losses', 'attention_maps'), 'formula'),
    Bug(
        'loop/losses.py',
        "reduction='none').sum(1",
        "reduction='none').mean(1",
        page('loop/losses'),
        'formula',
    ),
    Bug(
        'look/interpret.py',
        'self.targets * n + self.preds',
        'self.preds * n + self.targets',
        page('look/interpret'),
        'axis',
    ),
    Bug(
        'look/interpret.py',
        'precision = hits / predicted.clamp(min=1)\n    recall = hits / true.clamp(min=1)',
        'recall = hits / predicted.clamp(min=1)\n    precision = hits / true.clamp(min=1)',
        page('look/interpret'),
        'axis',
    ),
    Bug('look/interpret.py', '-pair[2]', 'pair[2]', page('look/interpret'), 'sign'),
    Bug(
        'core/streams.py',
        'zlib.crc32(name.encode())',
        'abs(hash(name))',
        some('loop/random_state', 'one_number'),
        'formula',
    ),
    Bug('core/threads.py', 'np.random.set_state(of_numpy)', 'pass', page('core/threads'), 'undo'),
    Bug('core/streams.py', 'parts.amax(1)', 'parts.amin(1)', page('core/streams'), 'sign'),
    Bug(
        'core/basics.py',
        'for module, training in modes:\n            module.training = training',
        'model.train(modes[0][1])',
        page('core/basics'),
        'undo',
    ),
    Bug(
        'core/draws.py',
        'set_generator_state(generator, state)',
        'pass',
        some('loop/random_state', 'gives_generators'),
        'undo',
    ),
    Bug(
        'core/draws.py',
        'if self.user: self.user(worker_id)',
        'pass',
        some('loop/random_state', 'worker_init'),
        'ignored',
    ),
    Bug(
        'core/modules.py',
        'layers[:] = [o for o in layers if o is not layer]',
        'layers.pop()',
        some('loop/module_state', 'taken_off'),
        'undo',
    ),
    Bug(
        'core/modules.py',
        '{name: tensor.detach().clone() for name',
        '{name: tensor.detach() for name',
        page('core/modules', 'runs/lr_find'),
        'missing copy',
    ),
    Bug(
        'core/interrupts.py', '        torch.set_grad_enabled(grad)\n', '', some('kill/interrupts', 'grad_mode'), 'undo'
    ),
    Bug(
        'speed/conv.py',
        'image_step, row_step*stride[0], column_step*stride[1]',
        'image_step, row_step*stride[1], column_step*stride[0]',
        page('speed/conv'),
        'axis',
    ),
]

RECIPES = [
    Bug(
        'recipes/recipe.py',
        'epochs=phase.epochs, lr=phase.lr',
        'epochs=phase.epochs',
        some('recipes/schedules', 'goes_through_all'),
        'ignored',
    ),
    Bug(
        'recipes/recipe.py',
        'part.get(name, constant[name])',
        'part.get(name, [math.nan] * n)',
        some('recipes/schedules', 'leaves_alone'),
        'ignored',
    ),
    Bug(
        'loop/phase.py',
        't + n_epoch if t < 0 else t for t',
        't for t',
        some('recipes/schedules', 'mixing_is_drawn'),
        'sign',
    ),
    Bug('recipes/calls.py', 'float in kinds and int not in kinds', 'float in kinds', page('recipes/calls'), 'ignored'),
    Bug(
        'recipes/calls.py',
        'phase.stop == 1 and not phase.epochs',
        'phase.stop == 1',
        page('recipes/calls'),
        'ignored',
    ),
    Bug('recipes/recipe.py', 'sorted(recipe.tricks)', 'list(recipe.tricks)', page('recipes/recipe'), 'order'),
    Bug(
        'recipes/recipe.py',
        'ratio * recipe.bs / new.bs * new.n_images / recipe.n_images',
        'ratio * new.n_images / recipe.n_images',
        some('recipes/wrong_answers', 'average_in_a_shorter'),
        'ignored',
    ),
    Bug(
        'recipes/recipe.py',
        '_own_rate_ratio(recipe, new, phase.tricks)',
        '_own_rate_ratio(recipe, new, recipe.tricks)',
        some('recipes/wrong_answers', 'rates'),
        'ignored',
    ),
    Bug(
        'recipes/recipe.py',
        'if learn.step == steps:',
        'if True:',
        some('recipes/training', 'broken_off'),
        'undo',
    ),
    Bug(
        'recipes/recipe.py',
        "steps = learn.step\n",
        'steps = -1\n',
        some('recipes/training', 'refused_recipe'),
        'undo',
    ),
    Bug(
        'recipes/ladder.py',
        'technique.added_to(whole)',
        'technique.added_to(base)',
        page('recipes/ladder'),
        'state',
    ),
    Bug(
        'recipes/ablation.py',
        'range(first_seed + n_seeds, first_seed + 2 * n_seeds)',
        'range(first_seed, first_seed + n_seeds)',
        page('recipes/ablation'),
        'off by one',
    ),
    Bug(
        'recipes/ablation.py',
        'best_first[: math.ceil(len(left) / 2)]',
        'best_first[: len(left) // 2]',
        some('recipes/ablation', 'losers_are_dropped'),
        'off by one',
    ),
    Bug(
        'recipes/ablation.py',
        'frozenset({row.key, recipe_hash(row.against)}) if',
        'frozenset({row.key}) if',
        some('recipes/paired', 'count_once'),
        'ignored',
    ),
    Bug(
        'recipes/ablation.py',
        'return frozenset({row.key, recipe_hash(row.against)})',
        'return row.key, recipe_hash(row.against)',
        some('recipes/paired', 'count_once'),
        'order',
    ),
    Bug(
        'recipes/paired.py',
        'resolution / math.sqrt(6))\n    if',
        'resolution)\n    if',
        some('recipes/paired', 'prove_nothing'),
        'formula',
    ),
    Bug(
        'recipes/paired.py',
        'highest = max(highest, min(1.0, p * (count - rank)))',
        'highest = min(1.0, p * (count - rank))',
        some('recipes/paired', 'holm'),
        'formula',
    ),
    Bug('recipes/runs.py', 'order[(n + 1) // 2 :]', 'order[n // 2 :]', page('recipes/runs'), 'off by one'),
    Bug(
        'recipes/runs.py',
        'torch.manual_seed(job.seed)',
        'torch.manual_seed(0)',
        some('recipes/ablation', 'recipes_own_training'),
        'ignored',
    ),
    Bug(
        'recipes/tune.py',
        'range(first_seed + 1, first_seed + 1 + n_seeds)',
        'range(first_seed, first_seed + n_seeds)',
        some('recipes/tune', 'confirmed_by_other'),
        'off by one',
    ),
    Bug(
        'recipes/tune.py',
        'return 2 * n_seeds * longest',
        'return 0.0',
        some('recipes/tune', 'budget'),
        'ignored',
    ),
    Bug('recipes/evidence.py', "'hurts' if high < 0", "'hurts' if low < 0", page('recipes/evidence'), 'sign'),
]

NEWEST = [
    Bug('loop/class_metrics.py', 'f1[counts > 0]', 'f1[there]', page('loop/class_metrics'), 'ignored'),
    Bug('loop/class_metrics.py', 'each[each > 0].mean()', 'each.mean()', page('loop/class_metrics'), 'ignored'),
    Bug(
        'data/label_sets.py',
        'os.path.abspath(file) for file in files',
        'str(file) for file in files',
        page('data/label_sets'),
        'ignored',
    ),
    Bug(
        'data/label_sets.py',
        '[files[i]] * len(sets[i])',
        '[files[i]]',
        page('data/label_sets'),
        'off by one',
    ),
    Bug(
        'data/skipped.py',
        'len(bad) > limit * n',
        'len(bad) >= limit * n',
        some('data/bad_images', 'too_many'),
        'off by one',
    ),
    Bug(
        'data/skipped.py',
        'loader.store.bad.clear()',
        'pass',
        some('data/bad_images', 'counts_anew'),
        'no reset',
    ),
    Bug(
        'data/skipped.py',
        'if place().world == 1 else {}',
        'if False else {}',
        some('data/bad_images', 'goes_on'),
        'state',
    ),
    Bug(
        'monitors/log.py',
        'at[1] and at != self.at:',
        'at[1]:',
        some('loop/logs', 'killed and TensorBoard'),
        'state',
    ),
    Bug(
        'monitors/log.py',
        'return step > self.had',
        'return step >= self.had',
        some('loop/logs', 'killed and MLflow'),
        'off by one',
    ),
    Bug(
        'monitors/log.py',
        "ignored = -100 if learn.ignored is None else learn.ignored",
        'ignored = -100',
        some('loop/logs', 'ignored_label'),
        'ignored',
    ),
    Bug(
        'parallel/gradients.py',
        'self._size + self._size_of_batch',
        'self._size + 1',
        some('parallel/training', 'unequal_sizes'),
        'formula',
    ),
    Bug(
        'parallel/gradients.py',
        'for i in missing: if not has_grad[i]:',
        'for i in missing:\n        if True:',
        some('parallel/training', 'whoever_has_one'),
        'ignored',
    ),
    Bug(
        'parallel/gradients.py',
        'for i in without: if not has_grad[i]:',
        'for i in without:\n            if True:',
        some('parallel/training', 'travel'),
        'ignored',
    ),
    Bug(
        'parallel/gradients.py',
        'for param in reversed(params):',
        'for param in params:',
        some('parallel/training', 'parcels'),
        'order',
    ),
    Bug(
        'parallel/gradients.py',
        "return 'accumulate' in cb.owns or changes_gradients",
        "return 'accumulate' in cb.owns",
        some('parallel/training', 'travel'),
        'ignored',
    ),
    Bug(
        'models/batchnorm.py',
        "does = ('even batches',)",
        "does = ()",
        some('parallel/pairs', 'in_vain'),
        'ignored',
    ),
    Bug(
        'data/store.py',
        'smallest = 0 if several_here() else SMALL',
        'smallest = SMALL',
        ('tests/parallel/test_store.py',),
        'ignored',
    ),
    Bug(
        'data/decode.py',
        'if tries == len(_WAITS):',
        'if tries == len(_WAITS) - 1:',
        some('data/decode', 'network'),
        'off by one',
    ),
    Bug(
        'loop/by_rank.py',
        'key: of_each[rank]}',
        'key: of_each[0]}',
        page('loop/by_rank'),
        'ignored',
    ),
    Bug('loop/by_rank.py', "if path[-1] not in watchers", 'if True', ('tests/parallel/test_resume.py',), 'ignored'),
    Bug(
        'monitors/save_best.py',
        'learn.step // count > self._n_steps // count',
        'learn.step % count == 0',
        ('tests/loop/test_when_saved.py',),
        'off by one',
    ),
    Bug(
        'monitors/save_best.py',
        'self._best_epoch.start = len(learn.history)',
        'pass',
        some('loop/when_saved', 'best'),
        'no reset',
    ),
    Bug(
        'monitors/save_best.py',
        "self.improves(row[self.monitor], best):\n                best",
        "True:\n                best",
        some('loop/when_saved', 'best'),
        'formula',
    ),
    Bug(
        'monitors/preemptible.py',
        'if not self._is_over:',
        'if True:',
        some('kill/signals', 'late_signal'),
        'no reset',
    ),
    Bug(
        'monitors/preemptible.py',
        'if os.getpid() == self._process:',
        'if True:',
        some('kill/signals', 'a_child'),
        'ignored',
    ),
    Bug(
        'monitors/preemptible.py',
        'signal.getsignal(number) == self._note',
        'True',
        some('kill/signals', 'came_later'),
        'undo',
    ),
    Bug('runs/batch_size.py', 'if n_samples % n == 0', 'if True', page('runs/batch_size'), 'formula'),
    Bug('runs/batch_size.py', 'self.n >= 2', 'self.n >= 1', page('runs/batch_size'), 'off by one'),
    Bug('runs/batch_size.py', 'error = error.__cause__', 'error = None', page('runs/batch_size'), 'ignored'),
]

SCENES = [
    Bug(
        'data/beetle_scene.py',
        'frequent[uneven] = counts.argmax(0)',
        'frequent[uneven] = counts.argmin(0)',
        page('data/beetle_scene'),
        'formula',
    ),
    Bug('data/beetle_scene.py', 'fill=k + 1', 'fill=k', page('data/beetle_scene'), 'off by one'),
    Bug(
        'data/beetle_scene.py',
        '_paint(numbers, leaves, _OVERSAMPLE, fill=0)',
        'pass',
        page('data/beetle_scene'),
        'ignored',
    ),
    Bug('data/toy_scenes.py', 'int(edge) + 1', 'int(edge)', some('data/scenes', 'extent'), 'off by one'),
    Bug('data/toy_scenes.py', 'mine.any(1).nonzero', 'mine.any(0).nonzero', some('data/scenes', 'extent'), 'axis'),
    Bug('data/toy_scenes.py', 'classes[scene.mixed] = 255', 'pass', some('data/scenes', 'masks_of_classes'), 'ignored'),
    Bug(
        'data/toy_scenes.py',
        'scene.seen[k] < min_seen',
        'scene.seen[k] > min_seen',
        some('data/scenes', 'difficult'),
        'sign',
    ),
    Bug('data/toy_scenes.py', 'color[channel] |=', 'color[2 - channel] |=', some('data/scenes', 'palette'), 'order'),
    Bug('data/toy_scenes.py', "_read_knobs(folder) != knobs", 'False', page('data/toy_scenes'), 'ignored'),
    Bug('data/scene_readers.py', '[x0 - first_pixel,', '[x0,', some('data/scenes', 'voc_boxes'), 'off by one'),
    Bug(
        'data/scene_readers.py',
        "strip() == '1')",
        "strip() == '0')",
        some('data/scenes', 'voc_boxes'),
        'sign',
    ),
    Bug(
        'data/scene_readers.py',
        'boxes[i].append((x, y, x + width, y + height))',
        'boxes[i].append((x, y, width, height))',
        some('data/scenes', 'coco_boxes'),
        'formula',
    ),
    Bug(
        'data/scene_readers.py',
        "sorted(data['categories'], key=lambda category: category['id'])",
        "data['categories']",
        some('data/scenes', 'coco_boxes'),
        'order',
    ),
    Bug(
        'data/scene_readers.py',
        'problems |= {i + len(files): words',
        'problems |= {i: words',
        page('data/scene_readers'),
        'off by one',
    ),
    Bug(
        'data/scene_readers.py',
        'zero_is_ignored=True',
        'zero_is_ignored=False',
        some('data/scenes', 'ade20k'),
        'ignored',
    ),
    Bug(
        'data/scenes.py',
        'minimum(scenes.wh[scenes.image]',
        'minimum(scenes.wh[scenes.image].flip(1)',
        page('data/scenes'),
        'axis',
    ),
    Bug('data/scenes.py', 'second.image + len(first)', 'second.image', some('data/scenes', 'two_sets'), 'off by one'),
    Bug(
        'data/scenes.py',
        'place[scenes.image].sort(stable=True)',
        'place[scenes.image].sort(descending=True)',
        page('data/scenes'),
        'order',
    ),
    Bug('data/scenes.py', 'mark in range(2, 9)', 'mark in range(7, 9)', page('data/scenes'), 'ignored'),
    Bug('data/scenes.py', 'len(problems) > limit * n', 'len(problems) < limit * n', page('data/scenes'), 'sign'),
    Bug('data/masks.py', "mode='nearest'", "mode='nearest-exact'", some('data/scenes', 'nearest'), 'formula'),
    Bug('data/masks.py', 'first = int(zero_is_ignored)', 'first = 0', some('data/scenes', 'ade20k'), 'off by one'),
    Bug('data/masks.py', 'allowed[NO_CLASS] = True', 'pass', some('data/scenes', 'nearest'), 'ignored'),
    Bug(
        'data/masks.py',
        'meaning = fold_in(self.n_classes, int(self.zero_is_ignored))',
        'meaning = 0',
        some('data/scenes', 'on_disk'),
        'state',
    ),
    Bug('data/masks.py', 'store.max_bad = None', 'pass', page('data/masks'), 'no reset'),
    Bug('data/scene_loaders.py', 'targets[..., 4] = -1', 'pass', some('data/scenes', 'plain_loop'), 'ignored'),
    Bug(
        'data/scene_loaders.py',
        'counts.cumsum(0) - counts',
        'counts.cumsum(0)',
        some('data/scenes', 'rows_of_any'),
        'off by one',
    ),
    Bug(
        'data/scene_loaders.py',
        '(P / scenes.wh.double())',
        '(P / scenes.wh.double().flip(1))',
        some('data/scenes', 'plain_loop'),
        'axis',
    ),
    Bug(
        'data/scene_loaders.py',
        'torch.isin(asked, idx).nonzero()',
        '(asked >= 0).nonzero()',
        some('data/scenes', 'skipped'),
        'ignored',
    ),
    Bug(
        'data/scene_loaders.py',
        'batches(self.masks, order, start, step)',
        'batches(self.masks, order, start, 1)',
        some('data/scenes', 'shares'),
        'order',
    ),
    Bug('data/scene_loaders.py', 'drop_last=self.drop_last, ahead', 'ahead', some('data/scenes', 'shares'), 'ignored'),
    Bug(
        'data/scene_loaders.py',
        'BoxTable(side, presize, most)',
        'BoxTable(side, presize)',
        some('data/scenes', 'both_sides'),
        'axis',
    ),
    Bug('data/image_loader.py', 'self.labels[idx]', 'self.labels', page('data/image_loader'), 'axis'),
    Bug('look/draw_scene.py', 'max(x1 - 1, x0)', 'max(x1, x0)', page('look/draw_scene'), 'off by one'),
    Bug('look/draw_scene.py', 'label < 0', 'label > 0', page('look/draw_scene'), 'sign'),
]

# boxes and masks
TASKS = [
    Bug(
        'vision/moved_targets.py',
        'step * new_middle - old_middle',
        'step * new_middle - new_middle',
        page('vision/moved_targets'),
        'axis',
    ),
    Bug(
        'vision/moved_targets.py',
        'torch.where(mirrored, -1.0, 1.0)',
        'torch.where(mirrored, 1.0, 1.0)',
        some('tasks/geometry', 'flip'),
        'sign',
    ),
    Bug(
        'vision/moved_targets.py',
        'limit = 2 * new_middle',
        'limit = 2 * old_middle',
        some('tasks/geometry', 'test_crop'),
        'axis',
    ),
    Bug(
        'vision/moved_targets.py',
        '(boxes[..., 4] >= 0) &',
        '(boxes[..., 4] > 0) &',
        page('vision/moved_targets'),
        'off by one',
    ),
    Bug(
        'vision/moved_targets.py',
        'new_length - 1 - pixel',
        'new_length - pixel',
        page('vision/moved_targets'),
        'off by one',
    ),
    Bug(
        'vision/moved_targets.py',
        'sides.prod(2) >= min_visible * area',
        'sides.prod(2) >= area',
        page('vision/moved_targets'),
        'ignored',
    ),
    Bug(
        'vision/crop.py',
        'edges[:, :2] - place[:, :2].double() * step',
        'edges[:, :2] - place[:, :2].double()',
        some('tasks/geometry', 'test_crop'),
        'formula',
    ),
    Bug('loop/task.py', "'x' in cb.writes", "'x' in cb.reads", some('tasks/each_trick', 'must_say'), 'ignored'),
    Bug('loop/metrics.py', 'self.names[self.no_loss :]', 'self.names', page('tasks/detectors'), 'ignored'),
    Bug('tasks/detection.py', 'rows[:, 4].long() + 1', 'rows[:, 4].long()', page('tasks/detection'), 'off by one'),
    Bug('tasks/detection.py', 'rows[:, 5] == 0', 'rows[:, 5] >= 0', page('tasks/detection'), 'ignored'),
    Bug('tasks/segmentation.py', "self._of(pred['aux'], y)", "self._of(pred['out'], y)", page('tasks/segmentation')),
    Bug(
        'tasks/segmentation.py',
        'self.counts.sum(0) + self.counts.sum(1)',
        'self.counts.sum(0) + self.counts.sum(0)',
        page('tasks/segmentation'),
        'axis',
    ),
    Bug('models/backbones.py', 'rate *= 2', 'rate *= 3', page('models/backbones'), 'formula'),
    Bug('models/backbones.py', 'before if i == 0 else rate', 'rate', page('models/backbones'), 'order'),
    Bug(
        'tricks/progressive_resize.py',
        'resize_with_targets(learn, self.size)',
        'pass',
        page('tricks/progressive_resize'),
    ),
    Bug(
        'parallel/ray_train.py',
        'not learn.rank and folder.is_dir()',
        'False',
        page('parallel/ray_train'),
        'state',
    ),
]

PLANTED = (
    MIXES
    + WEIGHTS
    + MODELS
    + PHASES
    + VISION
    + LOOP
    + SAVED
    + RATES
    + DATA
    + NUMBERS
    + RECIPES
    + NEWEST
    + SCENES
    + TASKS
)
