import re

import pytest
import torch

from bevkd2.d2 import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset


class Temporal(torch.nn.Module):
    """A model whose output depends on all inputs so far."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def forward(self, inputs):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.total = 10 * self.total + inputs
        return self.total


class Collect(DatasetEvaluator):
    def __init__(self, results):
        self.results, self.pairs = results, ["stale"]

    def reset(self):
        self.pairs = []

    def process(self, inputs, outputs):
        self.pairs.append((inputs, outputs))

    def evaluate(self):
        return self.results


@pytest.mark.parametrize("training", [False, True])
def test_batches_keep_their_order_and_the_model_its_mode(training):
    model = Temporal().train(training)
    evaluator = Collect({"bbox": {"NDS": 0.5}})
    assert inference_on_dataset(model, [1, 2, 3], evaluator) == {"bbox": {"NDS": 0.5}}
    assert evaluator.pairs == [(1, 1), (2, 12), (3, 123)]
    assert model.training is training


def test_times_are_logged(engine_log):
    inference_on_dataset(lambda inputs: inputs, list(range(12)), None)
    assert engine_log[0] == "Start inference on 12 batches"
    progress = r"Inference done 11/12\. Dataloading: 0\.\d{4} s/iter\. Inference: 0\.\d{4} s/iter\. "
    progress += r"Eval: 0\.\d{4} s/iter\. Total: 0\.\d{4} s/iter\. ETA=0:00:00"
    assert any(re.fullmatch(progress, line) for line in engine_log) or len(engine_log) == 3
    end = r"\(0\.\d{6} s / iter per device, on 1 devices\)"
    assert re.fullmatch(r"Total inference time: 0:00:00(\.\d{6})? " + end, engine_log[-2])
    assert re.fullmatch(r"Total inference pure compute time: 0:00:00 " + end, engine_log[-1])


def test_no_result_is_an_empty_dict():
    assert inference_on_dataset(lambda inputs: inputs, [1], Collect(None)) == {}
    assert inference_on_dataset(lambda inputs: inputs, [1], None) == {}


def test_no_batches():
    assert inference_on_dataset(Temporal(), [], Collect({"bbox": {}})) == {"bbox": {}}


def test_several_evaluators():
    first, second = Collect({"a": 1}), Collect({"b": 2})
    assert inference_on_dataset(lambda inputs: -inputs, [1, 2], [first, second]) == {"a": 1, "b": 2}
    assert first.pairs == second.pairs == [(1, -1), (2, -2)]
    with pytest.raises(AssertionError, match="same key a"):
        DatasetEvaluators([first, first]).evaluate()


def test_callbacks():
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}

    def model(inputs):
        calls.append(inputs)

    inference_on_dataset(model, [1, 2], None, callbacks)
    step = ["before_inference", 1, "after_inference", "before_inference", 2, "after_inference"]
    assert calls == ["on_start", *step, "on_end"]


@pytest.mark.parametrize("training", [False, True])
def test_inference_context(training):
    model = torch.nn.Dropout().train(training)
    with inference_context(model):
        assert not model.training
    assert model.training is training


def test_evaluator_base_methods_do_nothing():
    evaluator = DatasetEvaluator()
    evaluator.reset()
    evaluator.process([], [])
    assert evaluator.evaluate() is None
