"""Several streams in one pass: each runs its code as if it were alone, and stops where it would run a graph.

Once all have stopped, requests for the same graph with tensors of the same shape are run as one batch, and each stream
continues with its part of the outputs. So the code of a stream is the same whether it is alone or not. Each runs on its
own stack (greenlet), all on one thread, one at a time.

Note: on a GPU a session's outputs are valid until its next run. So the graph furthest along in a frame runs first: the
trunk does not run again before every stream has stored the outputs of the previous run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import Bundle
from ..errors import BackendUnavailable, StreamError
from ..memory import Caches, DeviceArray, DeviceMemory, Tensor
from ..session import Session
from .slab import Slab, address_of, part
from .turns import Step

if TYPE_CHECKING:
    from greenlet import greenlet

BATCHED = ("head", "llm", "compressor", "temporal", "trunk")
"""Graphs that run for several streams in one pass, in order of priority."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassBundle(Bundle):
    """A bundle whose streams share a slab per graph. `spare` is the same for streams being prepared."""

    slabs: Mapping[str, Slab]
    spare: PassBundle | None

    def open_caches(self, graph: str) -> Caches:
        return self.slabs[graph].take()

    @property
    def of_successors(self) -> Bundle:
        return self.spare or self


class Passes:
    """A Together. Create the streams from `bundle`; each may occur at most once in a `run`."""

    def __init__(self, bundle: Bundle, *, max_streams: int) -> None:
        """Allow up to `max_streams` streams; one pass takes as many as the bundle was exported for (--streams).

        Raises StreamError for a bundle exported for one stream, BackendUnavailable without the package greenlet.
        """
        self.most = bundle.manifest.limits.streams
        if self.most < 2:
            raise StreamError(
                f"{bundle.folder} runs one stream per pass", expected="a bundle exported for several streams",
                fix="export it again with --streams 8, or run its streams one by one",
            )  # fmt: skip
        self._greenlet = import_greenlet()
        self._driver: Any = None
        spare = self._bundle(bundle, max_streams, None)
        self.bundle: Bundle = self._bundle(bundle, max_streams, spare)

    def run(self, steps: Sequence[Step]) -> None:
        self._driver = self._greenlet.getcurrent()
        callers = [self._greenlet.greenlet(step) for step in steps]
        waiting: list[Request] = []
        try:
            for caller in callers:
                waiting += _asked(caller.switch())
            while waiting:
                together = next_pass(waiting, self.most)
                waiting = [request for request in waiting if request not in together]
                try:
                    outputs = together[0].session.run_together(together)
                except Exception as error:  # raised in every stream: each undoes its step
                    for request in together:
                        waiting += _asked(request.caller.throw(error))
                else:
                    for request, own in zip(together, outputs, strict=True):
                        waiting += _asked(request.caller.switch(own))
        finally:
            self._driver = None
            for caller in callers:
                if caller and not caller.dead:  # an interrupt
                    caller.throw()

    def caller(self) -> greenlet | None:
        """The step that is running; None outside of a pass."""
        current = self._greenlet.getcurrent()
        return current if self._driver is not None and current.parent is self._driver else None

    def ask(self, request: Request) -> dict[str, Tensor]:
        """Hand over a request and wait for its outputs."""
        outputs: dict[str, Tensor] = self._driver.switch(request)
        return outputs

    def _bundle(self, bundle: Bundle, max_streams: int, spare: PassBundle | None) -> PassBundle:
        slabs = {
            name: Slab(session.spec, session.memory, num_slots=max_streams)
            for name, session in bundle.sessions.items()
            if session.spec.states
        }
        sessions = {
            name: PassSession(session, self, slabs.get(name)) if name in BATCHED else session
            for name, session in bundle.sessions.items()
        }
        known = {each.name: getattr(bundle, each.name) for each in fields(Bundle)}
        return PassBundle(**known | {"sessions": sessions}, slabs=slabs, spare=spare)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """A graph run that a stream requests.

    slot  slot of its caches in the session's slab; None for a graph without caches, and for caches outside the slab
    key   requests with equal keys can share a pass, if their slots are neighbours
    """

    session: PassSession
    inputs: Mapping[str, Tensor]
    slot: int | None
    key: tuple[Any, ...]
    caller: greenlet


class PassSession:
    """A Session that waits for other streams' requests while a pass is assembled."""

    def __init__(self, session: Session, passes: Passes, slab: Slab | None) -> None:
        self.spec, self.memory, self.computes_in = session.spec, session.memory, session.computes_in
        self._session, self._passes, self._slab = session, passes, slab
        self._states = frozenset(state.input for state in session.spec.states)
        self._staging: dict[str, DeviceArray] = {}
        # The first rows of several caches are not contiguous, and a GPU is given addresses: one stream per pass.
        copies = any(state.order == "linear" and state.update == "rows" for state in session.spec.states)
        self._is_copied = copies and isinstance(session.memory, DeviceMemory)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        caller, slot = self._passes.caller(), self._slot_of(inputs)
        if caller is None or (slot is None and self._states):
            return self._session.run(inputs)
        shapes = (inputs[tensor.name].shape[1:] for tensor in self.spec.inputs if tensor.name not in self._states)
        key = (BATCHED.index(self.spec.name), id(self), *shapes)
        if slot is not None and self._is_copied:
            key += (slot,)
        return self._passes.ask(Request(session=self, inputs=inputs, slot=slot, key=key, caller=caller))

    def run_together(self, requests: Sequence[Request]) -> list[dict[str, Tensor]]:
        """Run requests with the same key in one pass; their slots are neighbours, in this order."""
        inputs = {
            tensor.name: self._joined(tensor.name, [request.inputs[tensor.name] for request in requests])
            for tensor in self.spec.inputs
            if tensor.name not in self._states
        }
        outputs = self._session.run(inputs | self._caches(requests))
        return [self._own(outputs, index, request) for index, request in enumerate(requests)]

    def _slot_of(self, inputs: Mapping[str, Tensor]) -> int | None:
        if self._slab is None:
            return None
        name = self.spec.states[0].input
        return self._slab.slot_at(name, inputs[name])

    def _caches(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """The caches as they are now: the slab's layout may have changed since the requests were made."""
        if self._slab is None:
            return {}
        first = requests[0]
        assert first.slot is not None
        caches = self._slab.tensors(first.slot, len(requests))
        for state in self.spec.states:
            if state.order == "linear" and state.update == "rows":
                count = first.inputs[state.input].shape[state.slot_axis]
                caches[state.input] = self.memory.prefix(caches[state.input], state, count)
        return caches

    def _own(self, outputs: Mapping[str, Tensor], index: int, request: Request) -> dict[str, Tensor]:
        """A request's part of the outputs; for caches updated in place, the caches themselves."""
        own = {name: part(output, index, 1) for name, output in outputs.items()}
        if self._slab is not None and request.slot is not None:
            caches = self._slab.tensors(request.slot, 1)
            own |= {output: caches[name] for output, name in self.spec.aliases.items()}
        return own

    def _joined(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Join tensors (1, ...) to one batch. On a GPU, contiguous ones already are one."""
        first = tensors[0]
        if len(tensors) == 1:
            return first
        if isinstance(first, np.ndarray):
            return np.concatenate([self.memory.to_host(tensor) for tensor in tensors])
        shape, step = (len(tensors), *first.shape[1:]), first.num_bytes
        if all(address_of(tensor) == first.address + index * step for index, tensor in enumerate(tensors)):
            return first.front(shape)
        assert isinstance(self.memory, DeviceMemory)
        if name not in self._staging:
            self._staging[name] = self.memory.empty((self._passes.most, *first.shape[1:]), first.dtype)
        self.memory.gather([tensor for tensor in tensors if isinstance(tensor, DeviceArray)], self._staging[name])
        return self._staging[name].front(shape)


def next_pass(waiting: Sequence[Request], most: int) -> list[Request]:
    """The requests to run next: of the graph furthest along, as many as have neighbouring slots."""
    first = min(waiting, key=lambda request: request.key[0])
    alike = [request for request in waiting if request.key == first.key]
    if first.slot is None:
        return alike[:most]
    by_slot = sorted(alike, key=lambda request: request.slot or 0)
    start = by_slot[0].slot or 0
    together = [request for index, request in enumerate(by_slot) if request.slot == start + index]
    return together[:most]


def _asked(request: object) -> list[Request]:
    """The step's next request; empty if it is done."""
    return [request] if isinstance(request, Request) else []


def has_greenlet() -> bool:
    """Whether greenlet is installed, which shared passes need."""
    try:
        import_greenlet()
    except BackendUnavailable:
        return False
    return True


def import_greenlet() -> Any:
    try:
        import greenlet
    except ImportError as error:
        raise BackendUnavailable(
            f"running several streams in one pass needs the package greenlet, which cannot be imported ({error})",
            fix="pip install -e '.[live]'",
        ) from error
    return greenlet
