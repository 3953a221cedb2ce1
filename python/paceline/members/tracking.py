# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that record how a run goes, and end it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._trace import Kind, span
from ..utils.dataclasses import ProfileKwargs
from .base import Members

if TYPE_CHECKING:
    from ..profiler import Profiler
    from ..tracking import GeneralTracker
    from ..tracking.registry import Chosen

__all__ = ["TrackingMembers"]


class TrackingMembers(Members):
    """Base of ``Accelerator``: trackers, profiles, and the end of the run.

    Attributes
    ----------
    trackers : list of GeneralTracker
        Those that run, on the main process; empty before ``init_trackers`` and elsewhere.
    log_with : list
        What ``log_with`` asked for, each once.
    """

    trackers: list[GeneralTracker]
    log_with: list[Chosen]
    _tracking: bool
    _warned_not_tracking: bool

    def _choose_trackers(self) -> None:
        """Look at ``log_with`` when the Accelerator is made, so that a wrong one fails early."""
        self.trackers, self.log_with = [], []
        self._tracking = self._warned_not_tracking = False
        if self._settings.log_with:
            from ..tracking import filter_trackers

            project = self._settings.project
            self.log_with = filter_trackers(self._settings.log_with, project.logging_dir)

    def init_trackers(
        self,
        project_name: str,
        config: Mapping[str, Any] | None = None,
        init_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Start a run of every tracker of ``log_with``, on the main process.

        Called again, it ends the runs that go on and starts new ones.

        Parameters
        ----------
        project_name : str
            What the trackers call the run; those that write files make a folder of this name.
        config : mapping, optional
            Hyperparameters to record at the start.
        init_kwargs : mapping, optional
            From the name of a tracker to further arguments of its constructor.
        """
        if not self._partial.is_main_process:
            return
        self._finish_trackers()
        given = {str(name): dict(kwargs) for name, kwargs in (init_kwargs or {}).items()}
        self.trackers = [self._make_tracker(one, project_name, given) for one in self.log_with]
        self._tracking = True
        for tracker in self.trackers:
            tracker.start()
        if config is not None:
            for tracker in self.trackers:
                tracker.store_init_configuration(dict(config))

    def _make_tracker(
        self, chosen: Chosen, project_name: str, init_kwargs: Mapping[str, dict[str, Any]]
    ) -> GeneralTracker:
        from ..tracking import GeneralTracker
        from ..tracking.registry import tracker_class_of

        if isinstance(chosen, GeneralTracker):
            return chosen
        make: Any = tracker_class_of(chosen) if isinstance(chosen, str) else chosen
        kwargs = init_kwargs.get(str(getattr(make, "name", "")), {})
        if getattr(make, "requires_logging_directory", False):
            folder = self._settings.project.logging_dir
            tracker: GeneralTracker = make(project_name, folder, **kwargs)
        else:
            tracker = make(project_name, **kwargs)
        return tracker

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        log_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Record values with every tracker, on the main process.

        The other processes do nothing: gather or reduce first what should be of all of them.

        Parameters
        ----------
        values : mapping
            Numbers, text or tensors of one element by name; dicts of them are one group.
        step : int, optional
            The step that they belong to.
        log_kwargs : mapping, optional
            From the name of a tracker to further arguments of its ``log``.
        """
        if not self._partial.is_main_process:
            return
        if self.log_with and not self._tracking and not self._warned_not_tracking:
            self._warned_not_tracking = True
            warnings.warn(
                "accelerator.log() records nothing: no tracker is running; call "
                "accelerator.init_trackers(project_name) first",
                stacklevel=2,
            )
        if not self._tracking:
            return
        given = {str(name): dict(kwargs) for name, kwargs in (log_kwargs or {}).items()}
        with span(Kind.USER, "log"):
            for tracker in self.trackers:
                name = str(getattr(tracker, "name", ""))
                tracker.log(dict(values), step=step, **given.get(name, {}))

    def get_tracker(self, name: str, unwrap: bool = False) -> Any:
        """Give a tracker by its name.

        Parameters
        ----------
        name : str
            Its ``name``.
        unwrap : bool
            Give what it wraps, such as TensorBoard's ``SummaryWriter``.

        Returns
        -------
        GeneralTracker or object
            Where no tracker runs, as on all processes but the main one, something that takes
            every call and does nothing.

        Raises
        ------
        ValueError
            When others run, and none of this name.
        """
        from ..tracking.base import BlankTracker

        if not self.trackers:
            blank = BlankTracker()
            return blank.tracker if unwrap else blank
        for tracker in self.trackers:
            if getattr(tracker, "name", None) == name:
                return getattr(tracker, "tracker") if unwrap else tracker  # noqa: B009 - a contract
        have = [getattr(tracker, "name", None) for tracker in self.trackers]
        raise ValueError(
            f"{name} is not an available tracker stored inside the `Accelerator`: there are {have}"
        )

    @contextmanager
    def profile(self, profile_handler: ProfileKwargs | None = None) -> Iterator[Profiler]:
        """Record what this process does inside the block.

        With an ``output_trace_dir`` all ranks must enter and leave the block: each writes
        ``profile_<rank>.json`` and rank 0 all together as ``profile.json``, for
        ``ui.perfetto.dev``.

        Parameters
        ----------
        profile_handler : ProfileKwargs, optional
            In place of the one that the Accelerator was given.

        Yields
        ------
        Profiler
            After the block its ``table()`` tells where the time went, and
            ``key_averages().table()`` which operators took it.

        Raises
        ------
        NotImplementedError
            For what ``ProfileKwargs`` asks for and cannot be had, by name.
        """
        from ..profiler.ranks import build, write_all

        handler = profile_handler or self._settings.profile
        profiler = build(handler, self._partial.process_index)
        if self._report is not None:
            self._report.end_profile()  # that of a sweep gives way
        with profiler:
            yield profiler
        if handler.output_trace_dir is not None:
            write_all(profiler, handler.output_trace_dir, self._group)

    def _finish_trackers(self) -> None:
        """End all runs; a tracker that fails does not keep the others from ending."""
        if not self._tracking:
            return
        self._tracking = False
        failures: list[Exception] = []
        for tracker in self.trackers:
            try:
                tracker.finish()
            except Exception as error:
                error.add_note(f"while the tracker {getattr(tracker, 'name', tracker)!r} finished")
                failures.append(error)
        if failures:
            raise failures[0]

    def end_training(self) -> None:
        """Finish the trackers and leave the process group; again does nothing."""
        try:
            self._finish_trackers()
            self._guard.tell_late(wait=True)
        finally:
            self._partial.destroy_process_group()
