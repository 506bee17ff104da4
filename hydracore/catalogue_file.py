"""The catalogue's file, and checks that do not depend on what this process can reach."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from hydracore.agent.expressclaw.document import FALLBACKS_MAX
from hydracore.agent.runtime import RuntimeType
from hydracore.problems import Invalid, Problem, read

DEFAULT_PRESET: Final = "personal_assistant"

#: The fewest addresses of a region. With fewer it could run out of them while freed ones are in quarantine.
VPN_ADDRESSES_MIN: Final = 256

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Id = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
_Step = Annotated[str, Meta(min_length=1, max_length=1000)]
_ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
_Variable = Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where servers are rented. Has `endpoint` (the API's address) or `endpoint_env` (see `catalogue.API_PATH`)."""

    kind: Literal["hetzner"]
    token_env: _Variable
    endpoint: Annotated[str, Meta(pattern=r"^https?://")] | None = None
    endpoint_env: _Variable | None = None


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One location at one provider."""

    provider: str
    location: _Id
    image: _Id


class Region(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A region that customers choose. `vpn_network`: the CIDR from which agents get their private addresses."""

    name: _Name
    vpn_network: str
    placements: Annotated[list[Site], Meta(min_length=1)]


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A size and its price. `server_types`: per provider, in order of preference."""

    name: _Name
    price_eur_monthly: Decimal
    server_types: dict[str, list[_Id]]


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent is for, and what its runtime can do."""

    name: _Name
    runtime_type: RuntimeType
    system_prompt: str
    skills: list[_Id] = []
    capabilities: dict[str, bool] = {}


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Instructions that are added to a preset's system prompt."""

    name: _Name
    prompt: str


class Workflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent does, step by step, in the case that `when` describes. `skills`: the skills that it needs."""

    name: _Name
    when: _Name
    steps: Annotated[list[_Step], Meta(min_length=1, max_length=20)]
    skills: list[_Id] = []


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of a language model, in US dollars per million tokens."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models that an agent uses, in order of preference, unless its owner chooses others."""

    primary: _ModelName
    fallbacks: Annotated[list[_ModelName], Meta(max_length=FALLBACKS_MAX)] = []
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class CatalogueFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    providers: dict[str, Provider]
    regions: dict[str, Region]
    tiers: dict[str, Tier]
    presets: dict[str, Preset]
    recipes: dict[str, Recipe] = {}
    workflows: dict[_Id, Workflow] = {}
    models: dict[_ModelName, Model]
    model_policy: ModelPolicy


class CatalogueError(Exception):
    """The file cannot be used. `problems`: one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_file(path: Path) -> CatalogueFile:
    """Read and check the file. Raises `CatalogueError`."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError((f"{path}: {error}",)) from error
    try:
        file: CatalogueFile = read(raw, CatalogueFile)
    except Invalid as invalid:
        raise CatalogueError(tuple(_line(path, problem) for problem in invalid.problems)) from None
    lines = tuple(f"{path}: {text}" for text in _contradictions(file))
    if lines:
        raise CatalogueError(lines)
    return file


def _line(path: Path, problem: Problem) -> str:
    return f"{path}: {'.'.join(map(str, problem.loc))}: {problem.msg}"


def _contradictions(file: CatalogueFile) -> Iterator[str]:
    """Problems of several values together."""
    for name, provider in file.providers.items():
        if (provider.endpoint is None) == (provider.endpoint_env is None):
            yield f"providers.{name}: give one of endpoint and endpoint_env"
    for region_id, region in file.regions.items():
        yield from (f"regions.{region_id}.{text}" for text in _region_contradictions(region, file))
    for tier_id, tier in file.tiers.items():
        for name in tier.server_types.keys() - file.providers.keys():
            yield f"tiers.{tier_id}.server_types: there is no provider {name}"
        if tier.price_eur_monthly < 0:
            yield f"tiers.{tier_id}.price_eur_monthly: must not be negative"
    for model_id, model in file.models.items():
        if min(model.input_usd_per_mtok, model.output_usd_per_mtok) < 0:
            yield f"models.{model_id}: prices must not be negative"
    for name in (file.model_policy.primary, *file.model_policy.fallbacks):
        if name not in file.models:
            yield f"model_policy: there is no model {name}"
    if DEFAULT_PRESET not in file.presets:
        yield f"presets: the default preset {DEFAULT_PRESET} is missing"


def _region_contradictions(region: Region, file: CatalogueFile) -> Iterator[str]:
    for index, site in enumerate(region.placements):
        if site.provider not in file.providers:
            yield f"placements.{index}.provider: there is no provider {site.provider}"
    for tier_id, tier in file.tiers.items():
        if not any(tier.server_types.get(site.provider) for site in region.placements):
            yield f"placements: no placement has a server type for tier {tier_id}"
    try:
        network = IPv4Network(region.vpn_network)
    except ValueError as error:
        yield f"vpn_network: {error}"
        return
    if not network.is_private or network.num_addresses < VPN_ADDRESSES_MIN:
        yield f"vpn_network: must be private and have at least {VPN_ADDRESSES_MIN} addresses"
