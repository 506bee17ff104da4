"""What can be ordered and where it runs: providers, regions, tiers, presets, recipes, workflows and models.

One TOML file, which is read at start and checked as a whole: `load` raises `CatalogueError` with all problems of single
values or, if there are none, all contradictions between values. A provider whose token is not in the environment is not
a problem of the file: its regions are unavailable, with that reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from hydracore.agent.messages import HeaderToken
from hydracore.catalogue_file import CatalogueError, CatalogueFile, read_file

#: The path of the API, relative to the address in a provider's `endpoint_env`.
API_PATH: Final = "/v1"


class Placement(NamedTuple):
    """One candidate for a server."""

    provider: str
    server_type: str
    location: str
    image: str


class ProviderAccess(NamedTuple):
    """How to reach a provider's API. `repr` hides the token."""

    name: str
    kind: str
    endpoint: str
    token: str

    def __repr__(self) -> str:
        return f"ProviderAccess(name={self.name!r}, kind={self.kind!r}, endpoint={self.endpoint!r}, token='***')"


class Catalogue:
    """The checked catalogue, and which of its providers this process can reach. Made by `load`."""

    def __init__(
        self,
        file: CatalogueFile,
        *,
        usable_providers: Mapping[str, ProviderAccess],
        unusable_providers: Mapping[str, str],
    ) -> None:
        self.regions: Final = file.regions
        self.tiers: Final = file.tiers
        self.presets: Final = file.presets
        self.recipes: Final = file.recipes
        self.workflows: Final = file.workflows
        self.models: Final = file.models
        self.model_policy: Final = file.model_policy
        #: The providers that this process can use, by name.
        self.usable_providers: Final = dict(usable_providers)
        #: The providers that it cannot use, with the reason.
        self.unusable_providers: Final = dict(unusable_providers)
        #: The regions in which it can create no server, with the reason.
        self.unavailable_regions: Final = {
            region_id: "; ".join(sorted({unusable_providers[site.provider] for site in region.placements}))
            for region_id, region in file.regions.items()
            if not any(site.provider in usable_providers for site in region.placements)
        }

    def placements(self, region: str, tier: str) -> tuple[Placement, ...]:
        """Candidates for a server, best first: all server types at one site come before the next site.

        Sites of providers that cannot be used are left out. Returns none if the file has no such region or tier.
        """
        if region not in self.regions or tier not in self.tiers:
            return ()
        types = self.tiers[tier].server_types
        return tuple(
            Placement(site.provider, server_type, site.location, site.image)
            for site in self.regions[region].placements
            if site.provider in self.usable_providers
            for server_type in types.get(site.provider, [])
        )

    def region_error(self, region: str) -> str | None:
        """Why nothing can be ordered in a region, or None."""
        available = self.regions.keys() - self.unavailable_regions.keys()
        if region in available:
            return None
        # Why one is not available names a setting of the operator, so it goes to the log and not to a customer.
        what = "region is not available" if region in self.regions else "unknown region"
        return f"{what}; available: {_listed(available)}"

    def tier_error(self, tier: str) -> str | None:
        """Why a tier cannot be ordered, or None."""
        return None if tier in self.tiers else f"unknown tier; known: {_listed(self.tiers)}"

    def preset_error(self, preset: str) -> str | None:
        """Why a preset cannot be ordered, or None."""
        return None if preset in self.presets else f"unknown preset; known: {_listed(self.presets)}"

    def recipe_error(self, recipe: str) -> str | None:
        """Why a recipe cannot be used, or None."""
        return None if recipe in self.recipes else f"unknown recipe; known: {_listed(self.recipes)}"

    def workflow_error(self, slugs: Iterable[str]) -> str | None:
        """Which of these workflows do not exist, or None."""
        unknown = [slug for slug in dict.fromkeys(slugs) if slug not in self.workflows]
        return f"unknown: {', '.join(unknown)}; known: {_listed(self.workflows)}"[:1000] if unknown else None


def load(path: Path, environ: Mapping[str, str]) -> Catalogue:
    """Read and check a catalogue; `environ` holds the tokens that it names. Raises `CatalogueError`."""
    file = read_file(path)
    usable_providers: dict[str, ProviderAccess] = {}
    unusable_providers: dict[str, str] = {}
    for name, provider in file.providers.items():
        wanted = [variable for variable in (provider.endpoint_env, provider.token_env) if variable]
        unset = [variable for variable in wanted if not environ.get(variable)]
        if unset:
            unusable_providers[name] = f"{' and '.join(unset)} not set"
        elif provider.endpoint_env is not None:
            endpoint = environ[provider.endpoint_env].rstrip("/") + API_PATH
            usable_providers[name] = ProviderAccess(name, provider.kind, endpoint, environ[provider.token_env])
        else:
            assert provider.endpoint is not None, "checked with the file"
            usable_providers[name] = ProviderAccess(
                name, provider.kind, provider.endpoint.rstrip("/"), environ[provider.token_env]
            )
    flaws = (*_bad_tokens(usable_providers.values()), *_duplicate_projects(usable_providers.values()))
    if lines := tuple(f"{path}: {text}" for text in flaws):
        raise CatalogueError(lines)
    return Catalogue(file, usable_providers=usable_providers, unusable_providers=unusable_providers)


def _bad_tokens(usable_providers: Iterable[ProviderAccess]) -> Iterator[str]:
    """Tokens are sent in a header. A token from a mounted file often ends in a line feed, which no header can hold."""
    for one in usable_providers:
        try:
            msgspec.convert(one.token, HeaderToken)
        except msgspec.ValidationError:
            yield f"providers.{one.name}: its token must be printable ASCII without spaces or line breaks"


def _duplicate_projects(usable_providers: Iterable[ProviderAccess]) -> Iterator[str]:
    """A project must have one name: servers that are recorded under one would be unaccounted for under the other."""
    names: dict[tuple[str, str], str] = {}
    for one in usable_providers:
        first = names.setdefault((one.endpoint, one.token), one.name)
        if first != one.name:
            yield f"providers.{one.name}: has the same endpoint and token as providers.{first}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
