"""Two processes with one sample each learn what one process with both learns."""

import pytest
import torch

from tests.distill.methods.ddp_worker import RELATIVE, in_processes, joint_cases, loss_and_gradient

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Losses and gradients, averaged over two gloo processes, by case."""
    return in_processes(tmp_path_factory.mktemp("ddp"), SEEDS)


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")  # torch 2.14, of DDP
@pytest.mark.filterwarnings("ignore:In CPU autocast")  # float64_twin makes float32 look like another dtype
@pytest.mark.parametrize("number", range(len(joint_cases())), ids=lambda number: str(joint_cases()[number]))
def test_two_processes_are_one_with_the_joint_batch(two_processes, number):
    loss, gradient = two_processes[number]
    joint_loss, joint_gradient = loss_and_gradient(joint_cases()[number], *SEEDS)
    assert loss.dtype == gradient.dtype == torch.float64
    assert loss.item() == pytest.approx(joint_loss.item(), rel=RELATIVE)
    assert (gradient - joint_gradient).norm() <= RELATIVE * joint_gradient.norm()
