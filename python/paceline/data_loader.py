# SPDX-License-Identifier: Apache-2.0
"""The data loader that ``prepare`` gives back: this process's share, on its device.

It knows the place where it stands, gives it as ``state_dict``, and goes on from one. What it
reads, and in which order, is decided in ``sharding/``; it knows loaders through the engine only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._trace import Kind, each, span
from .sharding.build import make_source
from .sharding.rounds import rows_of
from .sharding.sources import Place
from .utils.dataclasses import DataLoaderConfiguration
from .utils.operations import send_to_device

if TYPE_CHECKING:
    from .distributed import ProcessGroup
    from .engines import Engine, LoaderParts
    from .sharding.sources import Source
    from .state import GradientState

__all__ = ["DataLoaderShard", "SkippedLoader", "prepare_data_loader", "skip_first_batches"]

_VERSION = 1


class _Facade:
    """Answers to ``isinstance`` as the loader it was made from, and has its attributes."""

    base: Any

    @property
    def __class__(self) -> type:
        # Scripts and libraries ask isinstance(loader, DataLoader); type(loader) is still ours.
        return type(self.__dict__.get("base", self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError(f"[{type(self).__name__}] the class cannot be changed")

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "loader"):  # not made yet, as while copying
            raise AttributeError(name)
        return getattr(self.base, name)


class DataLoaderShard(_Facade):
    """A data loader of one process.

    It answers to ``isinstance`` as the loader it was made from, and what is not listed here is
    that loader's attribute.

    Attributes
    ----------
    batch_size : int or None
        As the script wrote it.
    total_batch_size : int or None
        Of all processes together.
    total_dataset_length : int
        Samples in the whole data set.
    end_of_dataloader : bool
        Whether the batch given last is the last one.
    valid : int or None
        Real samples at the head of the batch given last; what follows them repeats others. None:
        all of it is real.
    rows : int or None
        Samples of the batch given last, repeated ones too; None where ``valid`` is, or where the
        batch has no tensor or list.
    iteration : int
        Number of the epoch that the next iteration reads.
    device : object
        Where batches go; None leaves them.
    """

    def __init__(
        self,
        source: Source,
        parts: LoaderParts,
        *,
        device: Any = None,
        non_blocking: bool = False,
        total_batch_size: int | None = None,
        gradient_state: GradientState | None = None,
        rng_types: Sequence[str] = (),
    ) -> None:
        self.base = source.base
        self.batch_size = parts.batch_size
        self.total_batch_size = total_batch_size
        self.end_of_dataloader = False
        self.valid: int | None = None
        self.rows: int | None = None
        self.iteration = 0
        self.device = device
        self._source = source
        self._parts = parts
        self._non_blocking = non_blocking
        self._gradient_state = gradient_state
        self._rng_types = tuple(rng_types)
        self._place = Place()  # where the running epoch was taken up
        self._given = 0  # batches of the running epoch, from its start in these rules
        self._epoch = 0
        self._running = False  # whether the epoch begun last is not over
        self._open = False  # whether it is being read
        self._armed: Place | None = None  # where the next iteration begins, if not at the start
        self._armed_samples = 0  # samples that all ranks together were given before it
        self._at_end = False  # whether that is behind the epoch's last batch

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return f"DataLoaderShard({self.base!r})"

    @property
    def total_dataset_length(self) -> int:
        """Samples in the whole data set."""
        return len(self._parts.dataset)

    @property
    def remainder(self) -> int:
        """Samples of the whole data set in its last round; 0 if it is full, -1 where unknown."""
        size = self.total_batch_size
        if size is None or self._parts.drop_last:
            return -1
        try:
            return self.total_dataset_length % size
        except TypeError:
            return -1

    @property
    def batches_left(self) -> int | None:
        """Batches still to come in the running iteration; None where that is not known."""
        try:
            return max(0, len(self) - self._given)
        except TypeError:
            return None

    # --- reading --------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and so the order, that the next iteration reads.

        A place that ``load_state_dict`` set is kept where it is in that epoch.
        """
        if self._armed is not None and epoch != self.iteration:
            self._armed, self._at_end = None, False
        if not self._open:
            self._running = False  # an epoch that was left early is left for good
        self.iteration = epoch
        self._source.set_epoch(epoch)

    def override_even_batches(self, even: bool | None) -> bool:
        """Complete short rounds or not, from the next iteration on; None: as prepared.

        Returns
        -------
        bool
            False where that cannot be chosen any more: streams, and batches that rank 0 reads.
        """
        return self._source.set_even(even)

    def __iter__(self) -> Iterator[Any]:
        place, at_end = self._armed or Place(), self._at_end
        self._armed, self._at_end = None, False
        epoch = self.iteration
        self._source.set_epoch(epoch)
        self.iteration = epoch + 1
        self.end_of_dataloader = False
        self.valid = self.rows = None
        if at_end:
            self._source.pass_over(epoch, place)
            return
        if self._rng_types and not place.resumed:
            from .utils.random import synchronize_rng_states

            synchronize_rng_states(self._rng_types)
        self._epoch, self._place, self._given = epoch, place, place.first
        self._running = self._open = True
        state = self._gradient_state
        if state is not None:
            state.enter_loader(self)
        try:
            for batch in each(self._source.open(epoch, place), Kind.DATA, "next batch"):
                self._given += 1
                self.end_of_dataloader = batch.last
                self.valid = batch.valid
                self.rows = None if batch.valid is None else rows_of(batch.data)
                yield self._to_device(batch.data)
            self._running = False
        finally:
            self._open = False
            if state is not None:
                state.leave_loader(self)

    def _to_device(self, batch: Any) -> Any:
        if self.device is None:
            return batch
        with span(Kind.DATA, "to device"):
            return send_to_device(batch, self.device, self._non_blocking)

    # --- position -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Give the place where this loader stands, and what fixes the order of the epoch.

        Returns
        -------
        dict
            Numbers, lists and strings, and under ``"order"`` maybe int64 tensors of the core. Each
            process saves its own.
        """
        state: dict[str, Any] = {"version": _VERSION, "rules": self._source.rules}
        if self._armed is not None:
            place, given, end = self._armed, self._armed.first, self._at_end
            epoch = self.iteration
        elif self._running:
            record = self._source.record()
            place = replace(record, before=self._place.before)
            given, end, epoch = self._given, self.end_of_dataloader, self._epoch
        else:
            place = Place(generators=self._source.record().generators)
            given, end, epoch = 0, False, self.iteration
        rounds, size = self._source.given(given)
        before = [list(pair) for pair in place.before]
        if self._armed is not None:
            samples = self._armed_samples
        else:
            samples = place.taken_before + (self._source.taken(given) if given else 0)
        return {
            **state,
            "epoch": epoch,
            "batches": given,
            "rounds": [rounds, size],
            "samples": samples,
            "end": end,
            "before": before,
            "order": None if place.order is None else dict(place.order),
            "seed": place.seed,
            "generators": place.generators,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on, with the next iteration, where a loader stood.

        Shared out by the same rules, the rest of the epoch comes batch for batch as it would
        have. With another number of processes, or another batch size, the samples that nobody
        had are shared out anew, each once.

        Parameters
        ----------
        state_dict : mapping
            What ``state_dict`` gave.

        Raises
        ------
        ValueError
            When it is of another version of paceline, or of data that cannot be continued so.
        """
        state = dict(state_dict)
        if state.get("version") != _VERSION:
            raise ValueError(
                f"[load_state_dict] version of the loader's state: got {state.get('version')!r}, "
                f"expected {_VERSION}"
            )
        place = Place(
            first=int(state["batches"]),
            before=tuple((int(rounds), int(size)) for rounds, size in state["before"]),
            order=state["order"],
            seed=state["seed"],
            generators=state["generators"],
        )
        if list(state["rules"]) != self._source.rules:
            place = self._other_rules(place, state)
        self._running = False
        self.iteration = int(state["epoch"])
        self._armed, self._at_end = place, bool(state["end"])
        self._armed_samples = int(state["samples"])

    def _other_rules(self, place: Place, state: Mapping[str, Any]) -> Place:
        old, new = list(state["rules"]), self._source.rules
        if "shared" in (old[0], new[0]) and state["batches"]:
            raise ValueError(
                "[load_state_dict] the sampler shares out itself: got a place by the rules "
                f"{old}, expected {new}; load at an epoch's start, or leave sharing to prepare"
            )
        divided = "stream" in (old[0], new[0]) and old[-1] != new[-1]
        if divided and state["batches"]:
            raise ValueError(
                "[load_state_dict] the data set divided itself by its `shard` method: got a place "
                f"in one of {old[-1]} parts, expected one of {new[-1]}; load at an epoch's start"
            )
        rounds, size = (int(number) for number in state["rounds"])
        before = (*place.before, (rounds, size)) if rounds else place.before
        return replace(place, first=0, before=before)

    def _begin_at(self, first: int) -> Place:
        """Give the place of batch ``first`` of the coming epoch, and forget one that was set."""
        armed, at_end = self._armed, self._at_end
        self._armed, self._at_end = None, False
        if armed is None:
            return Place(first)
        if at_end and first == 0:
            self.iteration += 1  # counted in steps of all epochs, that is the next one's start
            return Place(0, generators=armed.generators)
        return replace(armed, first=first, before=())


class SkippedLoader(_Facade):
    """A prepared loader without its first batches: a view, which moves that loader on.

    Parameters
    ----------
    loader : DataLoaderShard
        The whole.
    num_batches : int
        How many to leave out, counted from the epoch's start.
    """

    def __init__(self, loader: DataLoaderShard, num_batches: int) -> None:
        self.base = loader.base
        self.loader = loader
        self.num_batches = num_batches
        self._place: Place | None = loader._begin_at(num_batches)

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "loader"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return max(0, len(self.loader) - self.num_batches)

    def __repr__(self) -> str:
        return f"SkippedLoader({self.loader!r}, {self.num_batches})"

    def __iter__(self) -> Iterator[Any]:
        place, self._place = self._place, None
        self.loader._armed = place or Place(self.num_batches)
        self.loader._at_end = False
        yield from self.loader


class _SkippedBatches:
    """A batch sampler without its first batches, for a loader that is not prepared."""

    def __init__(self, batch_sampler: Any, num_batches: int) -> None:
        self.batch_sampler = batch_sampler
        self.num_batches = num_batches

    def __getattr__(self, name: str) -> Any:
        if name == "batch_sampler":
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __iter__(self) -> Iterator[Any]:
        for at, batch in enumerate(self.batch_sampler):
            if at >= self.num_batches:
                yield batch

    def __len__(self) -> int:
        return max(0, len(self.batch_sampler) - self.num_batches)


def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
    """Give a loader without its first batches; data with an index is not read to leave it out.

    Parameters
    ----------
    dataloader : DataLoader
        A prepared loader, or one as a script made it.
    num_batches : int
        How many batches of this process to leave out, counted from the start of the epoch, also
        where ``load_state_dict`` set a place.

    Returns
    -------
    DataLoader
        For a prepared loader a view with all its properties: its epochs, metrics, device and
        accumulation go on as if the batches had been read.

    Raises
    ------
    ValueError
        For a negative number.
    """
    if num_batches < 0:
        raise ValueError(f"[skip_first_batches] num_batches: got {num_batches}, expected 0 or more")
    if type(dataloader) is SkippedLoader:
        return SkippedLoader(dataloader.loader, dataloader.num_batches + num_batches)
    if type(dataloader) is DataLoaderShard:
        return SkippedLoader(dataloader, num_batches)
    from .engines import known_engine

    engine = known_engine(dataloader)
    parts = engine.loader_parts(dataloader)
    if parts.batch_sampler is not None and parts.order != "stream":
        rest = _SkippedBatches(parts.batch_sampler, num_batches)
        return engine.with_batches(dataloader, rest)
    alone = prepare_data_loader(
        dataloader, engine, None, DataLoaderConfiguration(use_seedable_sampler=False)
    )
    return SkippedLoader(alone, num_batches)


def prepare_data_loader(
    loader: Any,
    engine: Engine,
    group: ProcessGroup | None,
    config: DataLoaderConfiguration,
    *,
    device: Any = None,
    gradient_state: GradientState | None = None,
    slice_fn_for_dispatch: Callable[..., Any] | None = None,
    rng_types: Sequence[str] = (),
) -> DataLoaderShard:
    """Give this process's share of a data loader.

    Parameters
    ----------
    loader : DataLoader
        The engine's loader, as the script made it.
    engine : Engine
        Whose loader it is.
    group : ProcessGroup or None
        None shares nothing out.
    config : DataLoaderConfiguration
        The rules.
    device : optional
        Where batches go; None leaves them.
    gradient_state : GradientState, optional
        Told when an iteration begins and ends.
    slice_fn_for_dispatch : callable, optional
        Cuts this rank's part of what rank 0 read:
        ``slice_fn(batch, slice, process_index=..., num_processes=...)``.
    rng_types : sequence of str
        Which random states are rank 0's on all ranks when an epoch begins. ``"generator"`` needs
        nothing here: orders are always agreed on.

    Returns
    -------
    DataLoaderShard
        A new loader; the given one is not changed.

    Raises
    ------
    ValueError
        When ``split_batches`` is asked for and the processes do not divide the batch size, or
        ``dispatch_batches`` without a device to put batches on.
    """
    parts = engine.loader_parts(loader)
    world = 1 if group is None else group.world_size
    if config.dispatch_batches and device is None:
        raise ValueError(
            "[prepare] dispatch_batches=True needs batches put on the device: got "
            "device_placement=False, expected True"
        )
    if config.dispatch_batches is None:
        # Nobody else can know that a stream reads the same on every rank: so rank 0 reads.
        dispatch = parts.order == "stream" and device is not None
        config = replace(config, dispatch_batches=dispatch)
    size = parts.batch_size
    return DataLoaderShard(
        make_source(loader, engine, group, config, slice_fn_for_dispatch),
        parts,
        device=device,
        non_blocking=config.non_blocking or parts.pins,
        total_batch_size=size if size is None or config.split_batches else size * world,
        gradient_state=gradient_state,
        rng_types=[] if group is None else [kind for kind in rng_types if kind != "generator"],
    )
