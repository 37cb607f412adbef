"""Devices that a bundle may run on, and the memory that a process gets there. From the cited sources, not measured.

Note: a Jetson's CPU and GPU share one memory, so data that stays in the host's memory with a card competes with the
engines there.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.target import Target

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One device, or all cards of one size.

    memory      bytes that the system reports; less than the name suggests, since firmware reserves some
    system      bytes used before our process starts: by Linux without a desktop, or by a card's desktop
    unified     whether host and GPU share the memory
    capability  compute capability of the GPU; several for cards of one size, '' if a CPU computes
    targets     targets that run on it, the preferred one first
    """

    name: str
    memory: int
    system: int
    unified: bool
    capability: str
    targets: tuple[str, ...]

    @property
    def usable(self) -> int:
        return self.memory - self.system

    @property
    def is_cpu(self) -> bool:
        return not self.capability


def _jetson(name: str, memory_mib: int, *, thor: bool = False) -> Device:
    """A Jetson with its targets by JetPack: 7.2 for both, 6.2 for Orin, 7.0 for Thor (docs/decisions/0006)."""
    family, older = ("thor", "jp70") if thor else ("orin", "jp62")
    return Device(
        name=name,
        memory=memory_mib * MIB,
        # `free` on an Orin Nano without a desktop: 544 MiB used of 7.3 GiB (github.com/dusty-nv/jetson-containers#342).
        system=640 * MIB,
        unified=True,
        capability="SM110" if thor else "SM87",
        targets=(f"jetson-{family}-jp72", f"jetson-{family}-{older}"),
    )


def _card(name: str, memory_mib: int, capability: str) -> Device:
    return Device(
        name=name,
        memory=memory_mib * MIB,
        # A 4090 that draws a desktop: 459 to 507 MiB of 24564 (github.com/RLinf/RLinf#255).
        system=512 * MIB,
        unified=False,
        capability=capability,
        targets=("rtx", "tensorrt", "tensorrt-10", "cuda"),
    )


# Jetsons: Linux reports 7.3 of 8 GiB on an Orin Nano (jetson-containers#342) and 62841 of 65536 MiB on an AGX Orin
# (tegrastats, github.com/rollthecloudinc/hedge#303). Modules of 4 to 16 GB are estimated with the Nano's share (91 %),
# those of 32 to 128 GB with the AGX's (95 %), since no published figure was found. Sizes and compute capabilities:
# NVIDIA's module pages. Cards: nvidia-smi shows 24564 MiB on a 4090 (RLinf#255) and 32607 on a 5090
# (github.com/noonghunna/club-3090#1261); the others are estimated with the smaller of the two shares (99.5 %).
DEVICES = (
    _jetson("Jetson Orin Nano 4 GB", 3738),
    _jetson("Jetson Orin Nano 8 GB", 7475),
    _jetson("Jetson Orin NX 8 GB", 7475),
    _jetson("Jetson Orin NX 16 GB", 14950),
    _jetson("Jetson AGX Orin 32 GB", 31420),
    _jetson("Jetson AGX Orin 64 GB", 62841),
    _jetson("Jetson AGX Thor 128 GB", 125682, thor=True),
    _card("RTX card, 8 GB", 8151, "SM86, SM89, SM120"),
    _card("RTX card, 12 GB", 12227, "SM86, SM89, SM120"),
    _card("RTX card, 16 GB", 16303, "SM89, SM120"),
    _card("RTX card, 24 GB", 24455, "SM86, SM89, SM120"),
    _card("RTX card, 32 GB", 32607, "SM120"),
)


def share_of_device(target: Target, memory: int) -> Device:
    """A device that runs the target and gives one process `memory` bytes: of RAM for a CPU, of a Jetson's memory, or of
    a card's."""
    found = next((device for device in DEVICES if target.name in device.targets), None)
    return Device(
        name=target.name,
        memory=memory,
        system=0,
        unified=found is None or found.unified,
        capability="" if found is None else found.capability,
        targets=(target.name,),
    )
