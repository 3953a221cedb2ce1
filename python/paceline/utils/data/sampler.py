# SPDX-License-Identifier: Apache-2.0
"""Samplers: the order in which samples are read.

Those whose whole order is known give it as one int64 tensor by `order`, so that a loader can cut
batches off it without a Python object per sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

from paceline import _C
from paceline._tensor import Tensor

T = TypeVar("T", covariant=True)
_I64 = 3


class Sampler(Generic[T]):
    """Base of samplers: define ``__iter__``, and ``__len__`` where it is known."""

    def __init__(self, data_source: Any = None) -> None:
        pass

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError("Subclasses of Sampler should implement __iter__.")


def seeded(seed: int) -> _C.Generator:
    """A stream of its own that begins at `seed`."""
    generator = _C.Generator()
    generator.seed = seed % 2**64
    return generator


class SequentialSampler(Sampler[int]):
    """0, 1, 2, ..."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def order(self) -> Tensor:
        """All indices, in order."""
        return _C.arange(0, len(self.data_source), 1, _I64)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """All samples in random order, a new one in every epoch.

    Parameters
    ----------
    data_source : sized
        What is sampled.
    replacement : bool
        Draw every sample anew from all.
    num_samples : int, optional
        How many to give; the length of `data_source` by default.
    generator : Generator, optional
        Where the order comes from; by default a stream whose seed the default generator draws.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: _C.Generator | None = None,
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        if num_samples is not None and (not isinstance(num_samples, int) or num_samples <= 0):
            raise ValueError(
                f"num_samples should be a positive integer value, but got num_samples={num_samples}"
            )
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator

    @property
    def num_samples(self) -> int:
        """How many samples an epoch has."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def order(self) -> Tensor:
        """The indices of a new epoch."""
        generator = self.generator
        if generator is None:
            generator = seeded(int(_C.randint((), 0, 2**62, _I64, None).item()))
        n, wanted = len(self.data_source), self.num_samples
        if n == 0:
            return _C.empty((0,), _I64)
        if self.replacement:
            return _C.randint((wanted,), 0, n, _I64, generator)
        rounds = [_C.randperm(n, generator) for _ in range(-(-wanted // n))]
        whole = rounds[0] if len(rounds) == 1 else _C.cat(rounds, 0)
        return whole if whole.shape[0] == wanted else _C.slice(whole, 0, 0, wanted, 1)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: _C.Generator | None = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for i in _C.randperm(len(self.indices), self.generator).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn by weight.

    Parameters
    ----------
    weights : sequence of float
        Weight of each sample, 0 or more.
    num_samples : int
        How many to draw.
    replacement : bool
        Whether a sample may come twice.
    generator : Generator, optional
        Where the draws come from.
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: _C.Generator | None = None,
    ) -> None:
        from paceline._factories import as_tensor
        from paceline.dtypes import float64

        if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples <= 0:
            raise ValueError(
                f"num_samples should be a positive integer value, but got num_samples={num_samples}"
            )
        if not isinstance(replacement, bool):
            raise ValueError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        self.weights = as_tensor(weights, dtype=float64)
        if self.weights.ndim != 1:
            raise ValueError(
                "weights should be a 1d sequence but given weights have shape "
                f"{tuple(self.weights.shape)}"
            )
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        from paceline.random import multinomial

        drawn = multinomial(
            self.weights, self.num_samples, self.replacement, generator=self.generator
        )
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Groups what a sampler gives into lists.

    Parameters
    ----------
    sampler : iterable of int
        Gives the samples.
    batch_size : int
        How many make a batch.
    drop_last : bool
        Leave out a last batch that is not full.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size <= 0:
            raise ValueError(
                f"batch_size should be a positive integer value, but got batch_size={batch_size}"
            )
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last should be a boolean value, but got drop_last={drop_last}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def index_batches(self) -> Iterable[Any]:
        """The same batches, as int64 tensors where the sampler's order is known."""
        if type(self) is not BatchSampler or type(self.sampler) not in _ORDERED:
            return self
        return self._cut(self.sampler.order())

    def _cut(self, order: Tensor) -> Iterator[Tensor]:
        size, n = self.batch_size, order.shape[0]
        stop = n - n % size if self.drop_last else n
        for at in range(0, stop, size):
            yield _C.slice(order, 0, at, min(at + size, n), 1)

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class DistributedSampler(Sampler[int]):
    """The share of one rank: samples rank, rank + world, ... of an order that all ranks know.

    Parameters
    ----------
    dataset : sized
        What is sampled.
    num_replicas, rank : int, optional
        Number of ranks and which of them this is; by default those of the process group.
    shuffle : bool
        Whether the order is a permutation, decided by `seed` and the epoch.
    seed : int
        The same on all ranks.
    drop_last : bool
        Leave out the tail that does not divide, instead of looping to the start.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if num_replicas is None or rank is None:
            from paceline import distributed

            if num_replicas is None:
                num_replicas = distributed.get_world_size()
            if rank is None:
                rank = distributed.get_rank()
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.seed = seed

    @property
    def num_samples(self) -> int:
        """Samples of this rank."""
        n, world = len(self.dataset), self.num_replicas
        return n // world if self.drop_last else -(-n // world)

    @property
    def total_size(self) -> int:
        """Samples of all ranks together, repeated ones included."""
        return self.num_samples * self.num_replicas

    def order(self) -> Tensor:
        """Give this rank its indices in the present epoch."""
        n = len(self.dataset)
        whole = _C.randperm(n, seeded(self.seed + self.epoch)) if self.shuffle else None
        return _C.distributed_indices(n, self.num_replicas, self.rank, self.drop_last, whole)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, so that the order differs from the one before; on all ranks alike."""
        self.epoch = epoch


_ORDERED = (SequentialSampler, RandomSampler, DistributedSampler)
