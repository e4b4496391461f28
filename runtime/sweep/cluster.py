"""Workers on a Ray cluster: actors, each with its models. Ray places them and finds out when one is gone."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

from .file import Cluster, Sweep, SweepError
from .plan import Order
from .render import Renderer, Result
from .workers import Gone

NAMED = ("auto", "local")


class Actor:
    """An actor that does tasks. Actors rather than Ray's tasks: a model is loaded once for each, not for each task. Ray
    does not restart it: what is done again, and how often, is for the queue to say."""

    patience = float("inf")  # a cluster may have no room for it yet

    def __init__(self, ray: Any, name: str, sweep: Sweep, where: Cluster) -> None:
        self.ray, self.name = ray, name
        self.made = ray.remote(Renderer).options(num_cpus=where.cpus, num_gpus=where.gpus, max_restarts=0)
        self.given = (str(sweep.input.absolute()), sweep.measures, sweep.home, int(where.cpus))
        self.actor: Any = None

    async def start(self) -> None:
        """Place the actor, and wait until it has what it needs."""
        if self.actor is None:
            self.actor = self.made.remote(*self.given)
            await self._answer(self.actor.ready)

    async def do(self, order: Order) -> Result:
        """Have a task done."""
        return await self._answer(self.actor.do, order)

    async def _answer(self, method: Any, *given: Any) -> Any:
        try:
            return await method.remote(*given)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.WorkerCrashedError) as error:
            self.actor = None
            raise Gone("its process ended") from error

    async def close(self) -> None:
        """Give its place back."""
        if self.actor is not None:
            self.ray.kill(self.actor)
        self.actor = None


def actors(sweep: Sweep, where: Cluster) -> tuple[list[Actor], Any]:
    """The workers, and Ray, which is to be shut down. SweepError if there is no such cluster, or no room on it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise SweepError('a Ray cluster needs Ray: pip install -e ".[sweep,ray]" in the pack') from error
    _reachable(where.ray)
    local = {"num_cpus": where.workers * max(1, where.cpus), "include_dashboard": False} if where.ray == "local" else {}
    try:
        ray.init(address=where.ray, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SweepError(_away(where.ray, str(error).splitlines()[0])) from error
    have = ray.cluster_resources()
    for name, kind, wanted in (("cpus", "CPU", where.cpus), ("gpus", "GPU", where.gpus)):
        if wanted > have.get(kind, 0):
            ray.shutdown()
            raise SweepError(f"[cluster] {name}: a worker asks for {wanted:g}, the cluster has {have.get(kind, 0):g}")
    return [Actor(ray, f"actor {n + 1}", sweep, where) for n in range(where.workers)], ray


def _reachable(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in NAMED:
        return
    if not host or not port.isdecimal():
        raise SweepError(f'[cluster] ray: expected "auto", "local" or HOST:PORT, got {address!r}')
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise SweepError(_away(address, str(error))) from error


def _away(address: str, why: str) -> str:
    return (
        f'[cluster] ray = "{address}": there is no Ray cluster ({why}); start one with `ray start --head`, or take '
        "[workers] in place of [cluster] to run on this machine"
    )
