"""What can be ordered and where it runs: providers, regions, tiers, presets, recipes, workflows and models, from one TOML file.

Read once, at start, and checked as a whole: `load` raises `CatalogueError` with every problem of the file. A provider
whose token is not in the environment is no problem of the file: its regions are unavailable, and say why.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hydracore.agent.expressclaw.document import FALLBACKS_MAX
from hydracore.agent.messages import HeaderToken
from hydracore.agent.runtime import RuntimeType
from hydracore.problems import Invalid, Problem, read

DEFAULT_PRESET: Final = "personal_assistant"

#: Where the API is below the root address that a provider's `endpoint_env` holds.
API_PATH: Final = "/v1"

#: Below this, a region would run out of addresses while freed ones are in quarantine.
VPN_ADDRESSES_MIN: Final = 256

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Id = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
_Step = Annotated[str, Meta(min_length=1, max_length=1000)]
_ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
_Variable = Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where servers are rented. One of `endpoint` (the API's address) and `endpoint_env` (see `API_PATH`) is given."""

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
    """What a customer chooses. `vpn_network`: the CIDR that agents' private addresses are taken from."""

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
    """A way of working that is added to what a preset says."""

    name: _Name
    prompt: str


class Workflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent does, step by step, in the case that `when` describes; `skills` are those that it takes."""

    name: _Name
    when: _Name
    steps: Annotated[list[_Step], Meta(min_length=1, max_length=20)]
    skills: list[_Id] = []


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a language model costs, in US dollars for a million tokens."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which models an agent asks, in order, until its owner says otherwise."""

    primary: _ModelName
    fallbacks: Annotated[list[_ModelName], Meta(max_length=FALLBACKS_MAX)] = []
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    providers: dict[str, Provider]
    regions: dict[str, Region]
    tiers: dict[str, Tier]
    presets: dict[str, Preset]
    recipes: dict[str, Recipe] = {}
    workflows: dict[_Id, Workflow] = {}
    models: dict[_ModelName, Model]
    model_policy: ModelPolicy


class Placement(NamedTuple):
    """One candidate for a server."""

    provider: str
    server_type: str
    location: str
    image: str


class Access(NamedTuple):
    """How to reach a provider's API. `repr` hides the token."""

    name: str
    kind: str
    endpoint: str
    token: str

    def __repr__(self) -> str:
        return f"Access(name={self.name!r}, kind={self.kind!r}, endpoint={self.endpoint!r}, token='***')"


class CatalogueError(Exception):
    """The file cannot be used. `problems`: one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Catalogue:
    """The checked catalogue, and which of its providers this process can reach. Made by `load`."""

    def __init__(self, file: _File, *, access: Mapping[str, Access], missing: Mapping[str, str]) -> None:
        self.regions: Final = file.regions
        self.tiers: Final = file.tiers
        self.presets: Final = file.presets
        self.recipes: Final = file.recipes
        self.workflows: Final = file.workflows
        self.models: Final = file.models
        self.model_policy: Final = file.model_policy
        #: The providers that can be used, by name.
        self.access: Final = dict(access)
        #: Those that cannot, each with the reason.
        self.missing: Final = dict(missing)
        #: The regions where nothing can be made by this process, each with the reason.
        self.unavailable: Final = {
            region_id: "; ".join(sorted({missing[site.provider] for site in region.placements}))
            for region_id, region in file.regions.items()
            if not any(site.provider in access for site in region.placements)
        }

    def placements(self, region: str, tier: str) -> tuple[Placement, ...]:
        """Candidates for a server, best first: every server type at a site before the next site.

        Sites of providers that cannot be used are left out, and of a region or a tier that is not in the file there are none.
        """
        if region not in self.regions or tier not in self.tiers:
            return ()
        types = self.tiers[tier].server_types
        return tuple(
            Placement(site.provider, server_type, site.location, site.image)
            for site in self.regions[region].placements
            if site.provider in self.access
            for server_type in types.get(site.provider, [])
        )

    def region_complaint(self, region: str) -> str | None:
        """Why nothing can be ordered in a region, or None."""
        if region not in self.regions:
            return f"unknown region; known: {_listed(self.regions)}"
        if region in self.unavailable:
            # The reason names a setting of ours: it is in the log, not in a customer's answer.
            return f"region is not available; available: {_listed(self.regions.keys() - self.unavailable.keys())}"
        return None

    def tier_complaint(self, tier: str) -> str | None:
        """Why a tier cannot be ordered, or None."""
        return None if tier in self.tiers else f"unknown tier; known: {_listed(self.tiers)}"

    def preset_complaint(self, preset: str) -> str | None:
        """Why a preset cannot be ordered, or None."""
        return None if preset in self.presets else f"unknown preset; known: {_listed(self.presets)}"

    def recipe_complaint(self, recipe: str) -> str | None:
        """Why a recipe cannot be used, or None."""
        return None if recipe in self.recipes else f"unknown recipe; known: {_listed(self.recipes)}"

    def workflow_complaint(self, slugs: Iterable[str]) -> str | None:
        """Which of these workflows do not exist, or None."""
        unknown = [slug for slug in dict.fromkeys(slugs) if slug not in self.workflows]
        return f"unknown: {', '.join(unknown)}; known: {_listed(self.workflows)}"[:1000] if unknown else None


def load(path: Path, environ: Mapping[str, str]) -> Catalogue:
    """Read and check a catalogue; `environ` holds the tokens that it names. Raises `CatalogueError`."""
    file = _read(path)
    access: dict[str, Access] = {}
    missing: dict[str, str] = {}
    for name, provider in file.providers.items():
        wanted = [variable for variable in (provider.endpoint_env, provider.token_env) if variable]
        unset = [variable for variable in wanted if not environ.get(variable)]
        if unset:
            missing[name] = f"{' and '.join(unset)} not set"
        elif provider.endpoint_env is not None:
            endpoint = environ[provider.endpoint_env].rstrip("/") + API_PATH
            access[name] = Access(name, provider.kind, endpoint, environ[provider.token_env])
        else:
            assert provider.endpoint is not None, "checked with the file"
            access[name] = Access(name, provider.kind, provider.endpoint.rstrip("/"), environ[provider.token_env])
    flaws = (*_bad_tokens(access.values()), *_doubled_projects(access.values()))
    if lines := tuple(f"{path}: {text}" for text in flaws):
        raise CatalogueError(lines)
    return Catalogue(file, access=access, missing=missing)


def _bad_tokens(access: Iterable[Access]) -> Iterator[str]:
    """A token goes into a header of each call. One that is mounted from a file mostly ends in a line feed, which none may have."""
    for one in access:
        try:
            msgspec.convert(one.token, HeaderToken)
        except msgspec.ValidationError:
            yield f"providers.{one.name}: its token may have printable ASCII characters only, no blanks and no line end"


def _doubled_projects(access: Iterable[Access]) -> Iterator[str]:
    """A project has one name: what is made under one is recorded there, and nobody accounts for it under the other."""
    names: dict[tuple[str, str], str] = {}
    for one in access:
        first = names.setdefault((one.endpoint, one.token), one.name)
        if first != one.name:
            yield f"providers.{one.name}: has the endpoint and the token of providers.{first}"


def _read(path: Path) -> _File:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError((f"{path}: {error}",)) from error
    try:
        file: _File = read(raw, _File)
    except Invalid as invalid:
        raise CatalogueError(tuple(_line(path, problem) for problem in invalid.problems)) from None
    lines = tuple(f"{path}: {text}" for text in _contradictions(file))
    if lines:
        raise CatalogueError(lines)
    return file


def _line(path: Path, problem: Problem) -> str:
    return f"{path}: {'.'.join(map(str, problem.loc))}: {problem.msg}"


def _contradictions(file: _File) -> Iterator[str]:
    """What no single value shows."""
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


def _region_contradictions(region: Region, file: _File) -> Iterator[str]:
    for index, site in enumerate(region.placements):
        if site.provider not in file.providers:
            yield f"placements.{index}.provider: there is no provider {site.provider}"
    for tier_id, tier in file.tiers.items():
        if not any(tier.server_types.get(site.provider) for site in region.placements):
            yield f"placements: none of them has a server type for tier {tier_id}"
    try:
        network = IPv4Network(region.vpn_network)
    except ValueError as error:
        yield f"vpn_network: {error}"
        return
    if not network.is_private or network.num_addresses < VPN_ADDRESSES_MIN:
        yield f"vpn_network: must be private and have at least {VPN_ADDRESSES_MIN} addresses"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
