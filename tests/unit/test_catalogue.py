"""The catalogue: what the packaged one offers, and how an invalid one is reported."""

from decimal import Decimal
from pathlib import Path

import pytest

from hydracore.agent.expressclaw.skills import load_skills
from hydracore.catalogue import Placement, ProviderAccess, load
from hydracore.catalogue_file import DEFAULT_PRESET, CatalogueError
from hydracore.settings import PACKAGED_CATALOGUE

CLOUDSIM = {"HYDRACORE_CLOUDSIM_URL": "http://127.0.0.1:9000", "HYDRACORE_CLOUDSIM_TOKEN": "secret-token"}

SMALL = """
[providers.one]
kind = "hetzner"
endpoint = "https://one.example/v1"
token_env = "ONE_TOKEN"

[providers.two]
kind = "hetzner"
endpoint = "https://two.example/v1"
token_env = "TWO_TOKEN"

[regions.here]
name = "Here"
vpn_network = "10.1.0.0/16"
placements = [
    { provider = "one", location = "a", image = "debian-13" },
    { provider = "two", location = "b", image = "debian-14" },
]

[tiers.small]
name = "Small"
price_eur_monthly = "9.00"
server_types = { one = ["s1", "s2"], two = ["t1"] }

[presets.personal_assistant]
name = "Assistant"
runtime_type = "expressclaw"
system_prompt = "Help."

[models."big-1.5"]
input_usd_per_mtok = "2.50"
output_usd_per_mtok = "10"

[model_policy]
primary = "big-1.5"
"""


def test_the_packaged_catalogue_offers_the_embedded_region() -> None:
    catalogue = load(PACKAGED_CATALOGUE, CLOUDSIM)

    assert DEFAULT_PRESET in catalogue.presets
    assert catalogue.regions["local"].vpn_network == "127.64.0.0/10"
    assert catalogue.placements("local", "starter")[0] == Placement("cloudsim", "sim1", "local1", "debian-13")
    assert {placement.location for placement in catalogue.placements("local", "starter")} == {"local1", "local2"}
    assert catalogue.usable_providers["cloudsim"].endpoint == "http://127.0.0.1:9000/v1"


def test_every_region_of_the_packaged_catalogue_has_a_placement_for_every_tier() -> None:
    catalogue = load(PACKAGED_CATALOGUE, CLOUDSIM | {"HYDRACORE_HETZNER_TOKEN": "t"})

    assert catalogue.unavailable_regions == {}
    assert all(catalogue.placements(region, tier) for region in catalogue.regions for tier in catalogue.tiers)


def test_placements_come_in_order_of_preference(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL), {"ONE_TOKEN": "1", "TWO_TOKEN": "2"})

    found = catalogue.placements("here", "small")

    assert found == (
        Placement("one", "s1", "a", "debian-13"),
        Placement("one", "s2", "a", "debian-13"),
        Placement("two", "t1", "b", "debian-14"),
    )


def test_a_region_or_tier_that_is_not_in_the_file_has_no_placement(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL), {"ONE_TOKEN": "1", "TWO_TOKEN": "2"})

    assert catalogue.placements("there", "small") == catalogue.placements("here", "huge") == ()


def test_a_provider_without_its_token_is_left_out(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL), {"TWO_TOKEN": "2"})

    assert [placement.provider for placement in catalogue.placements("here", "small")] == ["two"]
    assert catalogue.unavailable_regions == {}
    assert catalogue.region_error("here") is None


def test_a_region_without_any_provider_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL), {"ONE_TOKEN": ""})

    assert catalogue.placements("here", "small") == ()
    assert catalogue.unavailable_regions == {"here": "ONE_TOKEN not set; TWO_TOKEN not set"}
    assert catalogue.region_error("here") == "region is not available; available: none"
    assert catalogue.region_error("mars") == "unknown region; available: none"


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL), {"ONE_TOKEN": "1"})

    assert catalogue.region_error("mars") == "unknown region; available: here"
    assert catalogue.tier_error("huge") == "unknown tier; known: small"
    assert catalogue.preset_error("poet") == "unknown preset; known: personal_assistant"
    assert catalogue.tier_error("small") is catalogue.preset_error("personal_assistant") is None


def test_the_packaged_workflows_use_only_skills_that_agents_have() -> None:
    catalogue = load(PACKAGED_CATALOGUE, {})

    taken = {skill for workflow in catalogue.workflows.values() for skill in workflow.skills}

    assert taken
    assert load_skills(taken).missing == {}
    assert catalogue.workflow_error(catalogue.workflows) is None
    assert catalogue.workflow_error(["weekly-review", "juggling", "juggling"]) == (
        "unknown: juggling; known: complaint, meeting-follow-up, weekly-review"
    )


def test_the_packaged_model_policy_has_prices_and_every_recipe_has_a_prompt() -> None:
    catalogue = load(PACKAGED_CATALOGUE, {})

    policy = catalogue.model_policy
    assert policy.fallbacks
    assert {policy.primary, *policy.fallbacks} <= catalogue.models.keys()
    assert all(
        model.input_usd_per_mtok <= model.output_usd_per_mtok
        for name, model in catalogue.models.items()
        if "embedding" not in name
    )
    assert all(recipe.prompt.strip() for recipe in catalogue.recipes.values())
    assert catalogue.recipe_error("daily_briefing") is None
    assert catalogue.recipe_error("juggling") == (
        "unknown recipe; known: appointment_desk, daily_briefing, product_expert"
    )


def test_prices_are_exact(tmp_path: Path) -> None:
    catalogue = load(_written(tmp_path, SMALL.replace('"9.00"', "9.1")), {})

    assert catalogue.models["big-1.5"].input_usd_per_mtok == Decimal("2.50")
    assert catalogue.tiers["small"].price_eur_monthly == Decimal("9.1"), "not the nearest binary fraction"
    assert catalogue.model_policy.temperature is None


def test_a_token_is_not_printed() -> None:
    assert "secret" not in repr(ProviderAccess("one", "hetzner", "https://one.example/v1", "secret"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[tiers.small]", "[tiers.small"), "at line 20"),
        (('name = "Small"', ""), "tiers.small.name: Field required"),
        (('"9.00"', '"cheap"'), "tiers.small.price_eur_monthly: Input should be a valid decimal"),
        (('"9.00"', '"-1"'), "tiers.small.price_eur_monthly: must not be negative"),
        (('"9.00"', "true"), "tiers.small.price_eur_monthly: Decimal input should be"),
        (('two = ["t1"]', 'too = ["t1"]'), "tiers.small.server_types: there is no provider too"),
        (("server_types = {", "server_typos = {"), "tiers.small.server_typos: Extra inputs are not permitted"),
        (("10.1.0.0/16", "10.1.0.1/16"), "regions.here.vpn_network: 10.1.0.1/16 has host bits set"),
        (("10.1.0.0/16", "8.8.0.0/16"), "regions.here.vpn_network: must be private"),
        (("10.1.0.0/16", "10.1.0.0/30"), "regions.here.vpn_network: must be private and have at least 256"),
        (('provider = "two"', 'provider = "three"'), "regions.here.placements.1.provider: there is no provider three"),
        (('{ one = ["s1", "s2"], two = ["t1"] }', "{}"), "regions.here.placements: no placement has a server type for"),
        (('kind = "hetzner"', 'kind = "other"'), "providers.one.kind: Input should be 'hetzner'"),
        (('endpoint = "https://one.example/v1"', ""), "providers.one: give one of endpoint and endpoint_env"),
        (("presets.personal_assistant", "presets.poet"), "presets: the default preset personal_assistant is missing"),
        (('"2.50"', '"-2.50"'), "models.big-1.5: prices must not be negative"),
        (('"2.50"', "[2.5]"), "models.big-1.5.input_usd_per_mtok: Decimal input should be"),
        (('primary = "big-1.5"', 'primary = "small"'), "model_policy: there is no model small"),
        (
            ('primary = "big-1.5"', 'primary = "big-1.5"\ntemperature = 3'),
            "model_policy.temperature: Input should be less",
        ),
        (('primary = "big-1.5"', 'primary = "big-1.5"\nfallbacks = ["x"]'), "model_policy: there is no model x"),
        (
            ('primary = "big-1.5"', 'primary = "big-1.5"\nfallbacks = [' + '"big-1.5", ' * 9 + "]"),
            "model_policy.fallbacks: List should have at most 8 items after validation, not 9",
        ),
        (('"expressclaw"', '"openclaw"'), "runtime_type: Input should be 'expressclaw'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_catalogue_is_refused_with_the_problem_and_its_place(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in SMALL

    with pytest.raises(CatalogueError) as raised:
        load(_written(tmp_path, SMALL.replace(change[0], change[1], 1)), {})

    assert complaint in "\n".join(raised.value.problems)


def test_a_token_that_is_not_printable_ascii_is_refused_and_not_printed(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError) as raised:
        load(_written(tmp_path, SMALL), {"ONE_TOKEN": "s3cret\n", "TWO_TOKEN": "fine"})

    (problem,) = raised.value.problems
    assert "providers.one: its token must be printable ASCII" in problem
    assert "s3cret" not in problem


def test_two_providers_with_one_endpoint_and_token_are_refused_without_printing_the_token(tmp_path: Path) -> None:
    same = SMALL.replace("https://two.example/v1", "https://one.example/v1/")

    with pytest.raises(CatalogueError) as raised:
        load(_written(tmp_path, same), {"ONE_TOKEN": "secret", "TWO_TOKEN": "secret"})

    (problem,) = raised.value.problems
    assert problem.endswith("catalogue.toml: providers.two: has the same endpoint and token as providers.one")
    assert load(_written(tmp_path, same), {"ONE_TOKEN": "secret", "TWO_TOKEN": "another"}).usable_providers.keys() == {
        "one",
        "two",
    }


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    wrong = SMALL.replace('name = "Here"', "").replace('"9.00"', '"cheap"').replace('"ONE_TOKEN"', '"one token"')

    with pytest.raises(CatalogueError) as raised:
        load(_written(tmp_path, wrong), {})

    assert len(raised.value.problems) == 3
    assert all("catalogue.toml: " in problem for problem in raised.value.problems)


def test_a_missing_file_is_reported_as_a_catalogue_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="No such file"):
        load(tmp_path / "catalogue.toml", {})


def _written(directory: Path, text: str) -> Path:
    path = directory / "catalogue.toml"
    path.write_text(text)
    return path
