"""The fixed catalogue of what can be ordered: two locations, three server types, two images."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec


class Location(msgspec.Struct, frozen=True):
    id: int
    name: str

    def render(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "description": f"This machine, hall {self.id}",
            "country": "DE",
            "city": "Here",
            "latitude": 50.0,
            "longitude": 10.0,
            "network_zone": "local",
        }


class ServerType(msgspec.Struct, frozen=True):
    id: int
    name: str
    cores: int
    memory_gb: int
    disk_gb: int
    #: Net prices in Euro; gross ones carry 19 % on top.
    hourly: float
    monthly: float

    def render(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "description": self.name.upper(),
            "category": "Simulated",
            "cores": self.cores,
            "memory": float(self.memory_gb),
            "disk": self.disk_gb,
            "deprecated": False,
            "deprecation": None,
            "storage_type": "local",
            "cpu_type": "shared",
            "architecture": "x86",
            "prices": [self._price(location) for location in LOCATIONS],
            "locations": [
                {"id": location.id, "name": location.name, "available": True, "recommended": True, "deprecation": None}
                for location in LOCATIONS
            ],
        }

    def _price(self, location: Location) -> dict[str, Any]:
        return {
            "location": location.name,
            "price_hourly": _money(self.hourly),
            "price_monthly": _money(self.monthly),
            "included_traffic": 20 * 2**40,
            "price_per_tb_traffic": _money(1.0),
        }


class Image(msgspec.Struct, frozen=True):
    id: int
    name: str
    flavor: str
    version: str

    def render(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "type": "system",
            "status": "available",
            "description": f"{self.flavor.title()} {self.version}",
            "image_size": None,
            "disk_size": 5,
            "created": "2026-01-01T00:00:00+00:00",
            "created_from": None,
            "bound_to": None,
            "os_flavor": self.flavor,
            "os_version": self.version,
            "architecture": "x86",
            "rapid_deploy": True,
            "protection": {"delete": False},
            "deprecation": None,
            "deleted": None,
            "labels": {},
        }


LOCATIONS: Final = (Location(1, "local1"), Location(2, "local2"))
SERVER_TYPES: Final = (
    ServerType(1, "sim1", cores=1, memory_gb=2, disk_gb=20, hourly=0.006, monthly=3.5),
    ServerType(2, "sim2", cores=2, memory_gb=4, disk_gb=40, hourly=0.01, monthly=6.0),
    ServerType(3, "sim4", cores=4, memory_gb=8, disk_gb=80, hourly=0.02, monthly=12.0),
)
IMAGES: Final = (Image(1, "debian-13", "debian", "13"), Image(2, "ubuntu-24.04", "ubuntu", "24.04"))

Entry = TypeVar("Entry", Location, ServerType, Image)


def find(entries: Iterable[Entry], id_or_name: str | int) -> Entry | None:
    """An entry by its name or its id; the API takes either, the id also as text."""
    for entry in entries:
        if str(id_or_name) in {entry.name, str(entry.id)}:
            return entry
    return None


def _money(net: float) -> dict[str, str]:
    return {"net": f"{net:.10f}", "gross": f"{net * 1.19:.16f}"}
