# SPDX-License-Identifier: Apache-2.0
"""What a run is: everything that must be put back for it to go on as if it had never stopped.

Rank 0 writes what all ranks share (weights, optimizers, schedulers, scaler, custom objects); each
rank writes what is its own (random states, positions in the data, gradients of an unfinished
accumulation window). All of it is reached through ``state_dict`` methods and engines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import safetensors_format, serialization
from .._handed_over import HandedOver
from ..engines import default_engine, known_engine, loaded_engines
from ..errors import CheckpointError
from . import random_states
from .disk import OpenFolder
from .manifest import FileEntry, Manifest, read_tensors, write_tensors

if TYPE_CHECKING:
    from ..engines import Engine
    from ..training.accumulation import Accumulation

__all__ = ["Loaded", "Run", "numbered", "read_own", "save_object"]


def numbered(stem: str, at: int) -> str:
    """Give the name of the file of the at-th thing of a kind."""
    return f"{stem}.safetensors" if at == 0 else f"{stem}_{at}.safetensors"


@dataclass
class Loaded:
    """A checkpoint in memory, checked, before anything of it is used.

    Attributes
    ----------
    weights, optimizers, schedulers, custom : list
        State dicts, in order of ``prepare`` and registration.
    scaler : object
        State of the gradient scaler, None if there was none.
    ranks : list
        What each rank wrote for itself; only as many as this process needs.
    world : int
        Number of processes that saved.
    save_iteration : int or None
        Number of the next checkpoint.
    notices : list of str
        What the user should be told.
    foreign : bool
        Whether another library wrote it, and so not all of a run is in it.
    """

    weights: list[Any]
    optimizers: list[Any] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    custom: list[Any] = field(default_factory=list)
    scaler: Any = None
    ranks: dict[int, Any] = field(default_factory=dict)
    world: int = 1
    save_iteration: int | None = None
    notices: list[str] = field(default_factory=list)
    foreign: bool = False

    def own(self, rank: int) -> Mapping[str, Any]:
        """Give what a rank wrote for itself, or rank 0 where there was no such rank."""
        found: Mapping[str, Any] = self.ranks[rank if rank in self.ranks else 0]
        return found


@dataclass
class Run:
    """The things that make up a run, and where this process stands among its ranks.

    Attributes
    ----------
    models, optimizers, schedulers, loaders, custom : list
        In order of ``prepare`` and registration.
    scaler : object
        The gradient scaler or None.
    windows : Accumulation
        Where the accumulation windows stand.
    """

    models: list[Any]
    optimizers: list[Any]
    schedulers: list[Any]
    loaders: list[Any]
    custom: list[Any]
    scaler: Any
    windows: Accumulation
    rank: int = 0
    world: int = 1

    @property
    def engine(self) -> Engine:
        """The engine of the first thing that has one."""
        for thing in (*self.models, *self.optimizers, *self.loaders):
            return known_engine(thing)
        return default_engine()

    # -- saving -----------------------------------------------------------------------------------

    def weights(self) -> list[dict[str, Any]]:
        """Give each model's state dict, over the same memory."""
        return [known_engine(model).state_dict(model) for model in self.models]

    def write(self, folder: str, weights: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Write this rank's files; gives their entries of the manifest."""
        made: dict[str, dict[str, Any]] = {}
        for name, obj in self._contents(weights):
            try:
                tensors, metadata = serialization.take_apart(obj, _to_core)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"[save_state] {name}: {error}") from error
            made[name] = write_tensors(os.path.join(folder, name), tensors, metadata).as_json()
        return made

    def _contents(self, weights: Sequence[Any]) -> Iterable[tuple[str, Any]]:
        if self.rank == 0:
            for at, state in enumerate(weights):
                yield numbered("model", at), state
            for stem, things in self._shared():
                for at, thing in enumerate(things):
                    yield numbered(stem, at), thing.state_dict()
            for at, obj in enumerate(self.custom):
                yield f"custom_checkpoint_{at}.safetensors", obj.state_dict()
        yield f"rank_{self.rank}.safetensors", self._own()

    def _shared(self) -> list[tuple[str, list[Any]]]:
        scalers = [] if self.scaler is None else [self.scaler]
        return [
            ("optimizer", self.optimizers),
            ("scheduler", self.schedulers),
            ("scaler", scalers),
        ]

    def _own(self) -> dict[str, Any]:
        gradients = None
        if self.windows.unfinished:
            gradients = [known_engine(model).gradients(model) for model in self.models]
        return {
            "loaders": [loader.state_dict() for loader in self.loaders],
            "window": self.windows.state_dict(self.models),
            "gradients": gradients,
            # Rank 0's are among the weights; the others' drift from them until the next copy.
            "buffers": [known_engine(model).buffers(model) for model in self.models]
            if self.rank > 0
            else None,
            "random": random_states.capture(loaded_engines()),
        }

    def about(self, n_weights: int, save_iteration: int) -> dict[str, Any]:
        """Give what the manifest tells besides its files."""
        from .._version import __version__

        return {
            "paceline": __version__,
            "world_size": self.world,
            "step": self.windows.batch,
            "save_iteration": save_iteration,
            "models": n_weights,
            "optimizers": len(self.optimizers),
            "schedulers": len(self.schedulers),
            "loaders": len(self.loaders),
            "scaler": self.scaler is not None,
            "custom": [type(obj).__name__ for obj in self.custom],
        }

    # -- loading ----------------------------------------------------------------------------------

    def read(self, folder: OpenFolder, manifest: Manifest) -> Loaded:
        """Read and check all files that this rank needs; nothing is changed yet."""
        about = manifest.about
        count = _Counts(about)
        loaded = Loaded([], world=count.of("world_size"), save_iteration=count.of("save_iteration"))

        def state(name: str) -> Any:
            return read_own(folder, name, manifest.entry(name))

        for stem, into in (
            ("model", loaded.weights),
            ("optimizer", loaded.optimizers),
            ("scheduler", loaded.schedulers),
        ):
            into += [state(numbered(stem, at)) for at in range(count.of(stem + "s"))]
        names = about.get("custom")
        if not isinstance(names, list):
            raise CheckpointError("[load_state] manifest.json: 'custom' is no list")
        loaded.custom = [state(f"custom_checkpoint_{at}.safetensors") for at in range(len(names))]
        if about.get("scaler"):
            loaded.scaler = state("scaler.safetensors")
        needed = [self.rank] if loaded.world == self.world else range(loaded.world)
        loaded.ranks = {at: state(f"rank_{at}.safetensors") for at in needed}
        return loaded

    def check(self, loaded: Loaded, models: Sequence[Any], strict: bool) -> None:
        """Refuse a checkpoint that does not fit, saying in what, before anything is changed."""
        found = {
            "models": (len(loaded.weights), len(models), "prepared models"),
            "optimizers": (len(loaded.optimizers), len(self.optimizers), "prepared optimizers"),
            "schedulers": (len(loaded.schedulers), len(self.schedulers), "prepared schedulers"),
            "custom checkpoints": (len(loaded.custom), len(self.custom), "registered objects"),
            "scalers": (int(loaded.scaler is not None), int(self.scaler is not None), "scalers"),
        }
        states = loaded.own(self.rank).get("loaders")
        if states is not None:
            found["data loaders"] = (len(states), len(self.loaders), "prepared data loaders")
        for what, (saved, here, name) in found.items():
            if saved != here:
                raise CheckpointError(
                    f"[load_state] number of {what} differs: the checkpoint has {saved}, this run "
                    f"has {here} {name}; prepare and register the same things before load_state"
                )
        for at, (model, state) in enumerate(zip(models, loaded.weights, strict=True)):
            _check_weights(f"model {at} ({type(model).__name__})", model, state, strict)
        for at, (optimizer, state) in enumerate(
            zip(self.optimizers, loaded.optimizers, strict=True)
        ):
            _check_groups(f"optimizer {at}", optimizer, state)

    def apply(self, loaded: Loaded, models: Sequence[Any], strict: bool) -> None:
        """Put everything back; random states last, since what is before them may draw numbers."""
        for model, state in zip(models, loaded.weights, strict=True):
            engine = known_engine(model)
            mine = {**state, **self._own_buffers(loaded, model)}
            engine.load_state_dict(model, _converted(mine, engine.from_core), strict)
        from_core = self.engine.from_core
        if self.scaler is not None:
            self.scaler.load_state_dict(_converted(loaded.scaler, from_core))
        pairs = [
            *zip(self.optimizers, loaded.optimizers, strict=True),
            *zip(self.schedulers, loaded.schedulers, strict=True),
        ]
        for thing, state in pairs:
            own_state = _converted(state, known_engine(thing).from_core)
            thing.load_state_dict(HandedOver(own_state))
        for obj, state in zip(self.custom, loaded.custom, strict=True):
            obj.load_state_dict(_converted(state, from_core))
        own = loaded.own(self.rank)
        self._apply_window(loaded, own)
        # Where the rest of an epoch is shared out anew, all ranks must go on from one place.
        loaders = (own if loaded.world == self.world else loaded.ranks.get(0, own)).get("loaders")
        if loaders is not None:
            self._apply_loaders(loaders)
        self._apply_random(loaded)

    def _own_buffers(self, loaded: Loaded, model: Any) -> Mapping[str, Any]:
        buffers = loaded.ranks.get(self.rank, {}).get("buffers")
        if not buffers or loaded.world != self.world:
            return {}
        own: Mapping[str, Any] = buffers[next(i for i, m in enumerate(self.models) if m is model)]
        return own

    def _apply_window(self, loaded: Loaded, own: Mapping[str, Any]) -> None:
        if own.get("window") is not None:
            self.windows.load_state_dict(own["window"], self.models)
        for at, model in enumerate(self.models):
            engine = known_engine(model)
            parts = [one["gradients"] for one in loaded.ranks.values() if one.get("gradients")]
            if not parts:
                engine.set_gradients(model, {})
            elif loaded.world == self.world:
                engine.set_gradients(model, _converted(parts[0][at], engine.from_core))
            else:  # every rank takes the mean, so that the mean over the ranks is what it was
                mean = _mean([part[at] for part in parts], loaded.world)
                engine.set_gradients(model, _converted(mean, engine.from_core))

    def _apply_loaders(self, states: Sequence[Any]) -> None:
        for loader, state in zip(self.loaders, states, strict=True):
            loader.load_state_dict(state)

    def _apply_random(self, loaded: Loaded) -> None:
        saved = [loaded.ranks[at].get("random") for at in sorted(loaded.ranks)]
        # Of a library that is merely imported now there need not be a state.
        used = {default_engine().name, self.engine.name, *random_states.names(saved[0])}
        engines = [engine for engine in loaded_engines() if engine.name in used]
        if loaded.world == self.world:
            random_states.restore(saved[0], engines, loaded.foreign)
            return
        random_states.restore_elsewhere(saved, self.rank, engines, loaded.foreign)
        loaded.notices.append(
            f"the checkpoint is of {loaded.world} processes, this run has {self.world}: weights "
            "and optimizer are exact, remaining samples are seen once; random states of new ranks "
            "follow from rank 0's, so the run is not bit for bit the one that was saved"
        )


def read_own(folder: OpenFolder, name: str, entry: FileEntry) -> Any:
    """Read one object of a file of ours."""
    if entry.tensors is None:
        raise CheckpointError(f"[load_state] manifest.json: {name} has no checksums of tensors")
    tensors, metadata = read_tensors(folder, name, entry)
    return serialization.put_together(tensors, metadata)


class _Counts:
    """Whole numbers of a manifest."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = about

    def of(self, name: str) -> int:
        value = self._about.get(name)
        if type(value) is not int or not 0 <= value < 1 << 20:
            raise CheckpointError(f"[load_state] manifest.json: {name!r} is {value!r}")
        return value


# -- tensors of all engines -------------------------------------------------------------------


def save_object(obj: Any, f: Any) -> None:
    """Write an object of tensors of any engine, as ``paceline.save`` does."""
    tensors, metadata = serialization.take_apart(obj, _to_core)
    if isinstance(f, (str, os.PathLike)):
        serialization.write_beside(os.fspath(f), tensors, metadata)
    else:
        safetensors_format.write(f, tensors, metadata)


def _to_core(obj: Any) -> Any:
    for engine in loaded_engines():
        if engine.is_tensor(obj):
            return engine.to_core(obj)
    return None


def _converted(obj: Any, from_core: Callable[[Any], Any]) -> Any:
    from .. import _C

    if isinstance(obj, _C.Tensor):
        return from_core(obj)
    if type(obj) is dict:
        return {key: _converted(value, from_core) for key, value in obj.items()}
    if type(obj) in (list, tuple):
        return type(obj)(_converted(value, from_core) for value in obj)
    return obj


def _mean(parts: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return {name: value / n for name, value in total.items()}


# -- does it fit ------------------------------------------------------------------------------


def _check_weights(what: str, model: Any, state: Any, strict: bool) -> None:
    own = known_engine(model).state_dict(model)
    if not isinstance(state, dict):
        raise CheckpointError(f"[load_state] {what}: got no state dict")
    _fill_tied(own, state)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if strict and (missing or unexpected):
        raise CheckpointError(
            f"[load_state] {what} is another one than was saved: missing in the checkpoint "
            f"{missing[:5]}, unexpected {unexpected[:5]}"
        )
    for name, value in own.items():
        saved = state.get(name)
        if hasattr(value, "shape") and name in state:
            got = tuple(getattr(saved, "shape", ()))
            if got != tuple(value.shape):
                raise CheckpointError(
                    f"[load_state] {what}: {name} has shape {list(got)} in the checkpoint, "
                    f"expected {list(value.shape)}"
                )


def _fill_tied(own: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Weights that are one tensor under two names are often saved under one of them."""
    if all(name in state for name in own):
        return
    held: dict[tuple[Any, ...], str] = {}
    for name, value in own.items():
        core = _to_core(value)
        if core is not None and name in state:
            held.setdefault((core._data_ptr, tuple(core.shape)), name)
    for name, value in own.items():
        core = _to_core(value)
        twin = None if core is None else held.get((core._data_ptr, tuple(core.shape)))
        if name not in state and twin is not None:
            state[name] = state[twin]


def _check_groups(what: str, optimizer: Any, state: Any) -> None:
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if groups is None:
        return
    saved = [len(group["params"]) for group in groups]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if saved != own:
        raise CheckpointError(
            f"[load_state] {what}: the checkpoint has parameter groups of {saved} parameters, "
            f"expected {own}"
        )
