"""When a hook with a period has its turn."""

from bevkd2.d2.embedded.train_loop import TrainerBase


def due(trainer: TrainerBase, period: int) -> bool:
    """Whether the step just done is a period's last or the training's last."""
    return (trainer.iter + 1) % period == 0 or trainer.iter == trainer.max_iter - 1


def due_before_end(trainer: TrainerBase, period: int) -> bool:
    """Whether the step just done is a period's last, and not the training's: that is left to after_train."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def succeeded(trainer: TrainerBase) -> bool:
    """Whether, in after_train, the training came to its end; its last step may have failed too."""
    return trainer.iter >= trainer.max_iter
