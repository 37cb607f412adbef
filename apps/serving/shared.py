"""The objects shared by all endpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .limits import Bodies, Limits
from .metrics import Metrics
from .service import Service


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Shared by all endpoints. created: the server's start, in Unix time."""

    service: Service
    limits: Limits
    metrics: Metrics
    bodies: Bodies
    created: int = field(default_factory=lambda: int(time.time()))
