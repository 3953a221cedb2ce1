# SPDX-License-Identifier: Apache-2.0
"""Rank 0 among several machines: it lets the others in and tells them about each other.

See ``machines.py`` for the whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from paceline.distributed.frames import FrameError
from paceline.distributed.links import Links, failure, rank_list
from paceline.distributed.machine_frames import (
    FRAME_S,
    Machine,
    hello,
    listen,
    table_of,
    take_frame,
)
from paceline.distributed.machine_party import TICK_S, Leader
from paceline.distributed.secure import CONTROL, Channel, Gate

_REPORT_S = 5.0


class Host(Leader):
    """Rank 0: it listens for the other machines and tells all of them about each other."""

    def run(self) -> Links:
        """Wait for every machine, then give them the table and the word to go."""
        job_id = secrets.token_bytes(16)
        address = str(socket.getaddrinfo(self._job.master_addr, 0)[0][4][0])
        self._listener = listen(address, 0, self._deadline)
        own = hello(self._job, self._settings, self._listener)
        self._machines = [Machine(0, own["count"], own["address"], own["port"])]
        retry_until = min(self._deadline, time.monotonic() + FRAME_S)
        listener = listen(address, self._job.port, retry_until)
        gate = Gate(listener, self._secret, job_id, CONTROL, self._take)
        try:
            self._gather(gate, address)
        finally:
            gate.close()
        self._machines.sort(key=lambda machine: machine.first)
        for channel in self._channels():
            channel.send("machines", **table_of(self._machines, job_id))
        links = self._connect_all(job_id)
        while any(not machine.is_ready for machine in self._machines[1:]):
            self._check_members()
            self._check_others()
            time.sleep(0.002)
        for channel in self._channels():
            channel.send("go")
        return self._go(job_id, links)

    def close(self) -> None:
        """Close everything that is not in the links."""
        super().close()
        for channel in self._channels():
            channel.sock.close()

    def _channels(self) -> Iterator[Channel]:
        for machine in self._machines:
            if machine.channel is not None:
                yield machine.channel

    @property
    def _joined(self) -> list[int]:
        return sorted(rank for machine in self._machines for rank in machine.ranks)

    def _gather(self, gate: Gate, address: str) -> None:
        start = time.monotonic()
        report_at = start + _REPORT_S
        while missing := sorted(set(range(self._job.world)) - set(self._joined)):
            gate.step(TICK_S)
            self._check_members()
            self._check_others()
            now = time.monotonic()
            where = f"{address} port {self._job.port}"
            if address.startswith("127.") or address == "::1":
                where += f" (MASTER_ADDR={self._job.master_addr}: no other machine reaches that)"
            if now > self._deadline:
                raise failure(
                    f"[init_process_group] {len(self._joined)} of {self._job.world} ranks came "
                    f"within {self._settings.timeout_s:g} s to {where}; joined: "
                    f"{rank_list(self._joined)}; missing: {rank_list(missing)}",
                    joined=self._joined,
                    missing=missing,
                )
            if now > report_at:
                report_at = float("inf")
                print(
                    f"paceline: rank 0 waits for {rank_list(missing)} of {self._job.world} at "
                    f"{where} (gives up after {self._settings.timeout_s:g} s)",
                    file=sys.stderr,
                    flush=True,
                )

    def _take(self, channel: Channel) -> None:
        """Hear which machine has proved itself, and whether it belongs here."""
        channel.sock.setblocking(True)
        channel.sock.settimeout(FRAME_S)
        try:
            frame = channel.receive()
        except (OSError, FrameError):
            frame = None
        if frame is not None and frame["kind"] == "failed":  # not even its own ranks met
            channel.sock.close()
            raise failure(frame["text"], dead=frame["dead"])
        if frame is None or frame["kind"] != "machine":
            channel.sock.close()
            return
        ours = hello(self._job, self._settings, None)
        if frame["group"] != ours["group"]:  # another group of this job, or another job
            refusal = "" if frame["run"] == ours["run"] else self._other_job(frame)
            self._turn_away(channel, refusal)
            return
        first, count = frame["first"], frame["count"]
        machine = Machine(first, count, frame["address"], frame["port"], channel)
        taken = sorted(set(self._joined) & set(machine.ranks))
        if taken:
            self._turn_away(
                channel,
                f"[init_process_group] {rank_list(taken)} of job {ours['run']!r} at "
                f"{self._job.where} {'is' if len(taken) == 1 else 'are'} taken by another machine",
            )
            return
        self._machines.append(machine)
        for name in ("world", "protocol", "version", "config"):
            if frame[name] != ours[name]:
                what = "WORLD_SIZE" if name == "world" else name
                raise failure(
                    f"[init_process_group] ranks disagree on {what}: got {frame[name]} on rank "
                    f"{first}, {ours[name]} on rank 0; joined: {rank_list(self._joined)}",
                    joined=self._joined,
                )
        if first < 1 or first + count > self._job.world:
            raise failure(
                f"[init_process_group] a machine has ranks {first} to {first + count - 1}: "
                f"expected ranks of 1 to {self._job.world - 1}"
            )

    def _other_job(self, frame: dict[str, Any]) -> str:
        return (
            f"[init_process_group] {self._job.where} is used by another job: it is "
            f"{hello(self._job, self._settings, None)['run']!r} (pid {os.getpid()} of rank 0), "
            f"this one {frame['run']!r}; choose another MASTER_PORT or PACELINE_PORT"
        )

    def _turn_away(self, channel: Channel, refusal: str) -> None:
        with contextlib.suppress(OSError):
            if refusal:
                channel.send("refused", text=refusal)
            else:
                channel.send("later")
        channel.sock.close()

    def _check_others(self) -> None:
        for machine in self._machines:
            channel = machine.channel
            if channel is not None and select.select([channel.sock], [], [], 0)[0]:
                take_frame(channel, machine.ranks, "ready")
                machine.is_ready = True
