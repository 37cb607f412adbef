"""What all endpoints have in common."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .limits import Bodies, Limits
from .metrics import Metrics
from .service import Service


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """created: when this server began, as Unix has it."""

    service: Service
    limits: Limits
    metrics: Metrics
    bodies: Bodies
    created: int = field(default_factory=lambda: int(time.time()))
