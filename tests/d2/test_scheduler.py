import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from bevkd2.d2 import LRMultiplier, WarmupParamScheduler


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in rates], lr=1)


def run(schedule, opt, iterations, start=0):
    rates = []
    for _ in range(start, iterations):
        rates.append([group["lr"] for group in opt.param_groups])
        opt.step()
        schedule.step()
    return rates


def test_linear_warm_up_then_steps():
    steps = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[10, 20], num_updates=30)
    opt = optimizer(5.0, 1.0)
    rates = run(LRMultiplier(opt, WarmupParamScheduler(steps, 0.001, 5 / 30), max_iter=30), opt, 30)
    first = [0.001 + i / 5 * 0.999 for i in range(5)]
    expected = first + [1.0] * 5 + [0.1] * 10 + [0.01] * 10
    assert [rate[0] for rate in rates] == pytest.approx([5 * value for value in expected])
    assert [rate[1] for rate in rates] == pytest.approx(expected)


@pytest.mark.parametrize(("rescale", "at_warm_up_end"), [(False, 0.5), (True, 1.0)])
def test_warm_up_meets_the_schedule(rescale, at_warm_up_end):
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "linear", rescale)
    assert schedule(0.0) == pytest.approx(0.1)
    assert schedule(0.5) == pytest.approx(at_warm_up_end, abs=1e-5)
    assert schedule(1.0) == pytest.approx(0.0, abs=1e-5)


def test_constant_warm_up():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "constant")
    assert schedule(0.0) == schedule(0.4) == pytest.approx(0.1)


def test_unknown_warm_up_and_wrong_multiplier():
    with pytest.raises(ValueError, match="Unknown warmup method: quadratic"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "quadratic")
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(optimizer(1.0), lambda where: 1.0, 10)


def test_resumed_schedule_continues():
    def schedule(opt):
        return LRMultiplier(opt, CosineParamScheduler(1, 0), max_iter=20)

    whole_opt, first_opt, second_opt = optimizer(2.0), optimizer(2.0), optimizer(2.0)
    whole = run(schedule(whole_opt), whole_opt, 20)
    first = schedule(first_opt)
    run(first, first_opt, 8)
    assert first.state_dict() == {"base_lrs": [2.0], "last_epoch": 8}
    second = schedule(second_opt)
    second.load_state_dict(first.state_dict())
    second_opt.load_state_dict(first_opt.state_dict())
    assert run(second, second_opt, 20, start=8) == whole[8:]
