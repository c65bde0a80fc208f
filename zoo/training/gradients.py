"""How a step gets its gradient: in what precision, and from how many microbatches.

Legend: N networks, P numbers of one network (T of them trainable), B examples of a minibatch.
"""

from __future__ import annotations

from numbers import Integral

from torch import Tensor

from zoo.networks.counter_rng import at
from zoo.networks.layout import ParamLayout
from zoo.tasks.objectives import shares
from zoo.tasks.task import Batch, Task
from zoo.training.precision import check_precision, gradients_in


class Gradients:
    """A task whose losses and gradients are computed in parts, and in some precision; what `InnerStep` trains on.

    The parts together give the loss and gradient of the whole minibatch, whatever the weights of its examples, and take
    the memory of one. BatchNorm sees a part at a time, and masks of dropout are drawn for each part.

    Args:
        task: what to train on.
        precision: one of `zoo.training.precision.PRECISIONS`.
        accumulate: number of parts, a divisor of B.

    Raises:
        ValueError: for a precision that there is not, or parts of unequal size.
    """

    def __init__(self, task: Task, *, precision: str = "32", accumulate: int = 1, batch_size: int) -> None:
        check_precision(precision, task.device)
        check_accumulate(accumulate, batch_size, task)
        self.task, self.precision, self.accumulate = task, precision, accumulate
        self.layout: ParamLayout = task.layout

    @property
    def is_compilable(self) -> bool:
        return self.task.is_compilable

    def loss_and_grad(self, params: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (N,) and gradients (N, T) of the minibatch; buffers in `params` (N, P) advance in place."""
        with gradients_in(self.precision, params.device):
            if self.accumulate == 1:
                return self.task.loss_and_grad(params, batch)
            own = batch.targets.ndim > self.task.dataset.train.targets.ndim
            own_inputs = batch.inputs.ndim > self.task.dataset.train.inputs.ndim
            inputs = batch.inputs.chunk(self.accumulate, dim=int(own_inputs))
            targets = batch.targets.chunk(self.accumulate, dim=int(own))
            loss = params.new_zeros(len(params))
            grads = params.new_zeros(len(params), self.layout.num_trainable)
            in_whole = shares(self.task.objective, targets, own=own)
            for k, (share, _) in enumerate(in_whole):
                stream = None if batch.stream is None else at(batch.stream, part=k)
                of_part = self.task.loss_and_grad(params, Batch(inputs[k], targets[k], stream))
                loss += share * of_part[0]
                grads += (share.reshape(-1, 1) if isinstance(share, Tensor) else share) * of_part[1]
            return loss, grads


def check_accumulate(accumulate: int, batch_size: int, task: Task) -> None:
    """Raise ValueError unless a minibatch of the task falls into that many equal parts."""
    if isinstance(accumulate, bool) or not isinstance(accumulate, Integral) or accumulate < 1:
        raise ValueError(f"accumulate must be a positive integer, got {accumulate!r}")
    if batch_size % accumulate:
        raise ValueError(
            f"accumulate must divide batch_size into equal microbatches, got {accumulate} for a batch of {batch_size}"
        )
    if task.plays_episodes and accumulate > 1:
        raise ValueError(
            f"accumulate must be 1 for policies, whose episodes are weighed by each other, got {accumulate}"
        )
