"""The documentation is complete: a new event, setting, command or error that it does not describe fails here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest
from transitions.extensions.diagrams import GraphMachine

from events import errors, keys, loading, pages
from events.failures import TEXTS
from events.lifecycle import STATUSES, TRANSITIONS
from events.state import BOOTSTRAP_STAGES, STAGES, TEARDOWN_STEPS
from events.types import AnyEvent
from hydracore import settings
from hydracore.api import schemas, use_schemas
from hydracore.api.errors import ApiError, ClientGone
from hydracore.audit import history
from hydracore.auth import AuthError
from hydracore.cli import exit_status, main
from hydracore.settings import Settings, variable_name
from hydracore.signals import INTERRUPTED
from projections import refolding, stream_assembly
from workers.unreadable_histories import HISTORY_UNREADABLE

#: The exit status of a usage error, as click has it.
USAGE = 2
ROOT = Path(__file__).parents[2]
DOCS = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}


@pytest.mark.parametrize("event", get_args(AnyEvent), ids=lambda event: event.__name__)
def test_every_event_is_described(event: type[msgspec.Struct]) -> None:
    row = next(line for line in DOCS["docs/events.md"].splitlines() if line.startswith(f"| `{event.__name__}` "))

    assert f"`{event.__struct_config__.tag}`" in row
    assert all(f"`{field}`" in row for field in event.__struct_fields__ if field != "at_ms")


def all_errors(root: type[Exception]) -> list[type[Exception]]:
    return [found for child in root.__subclasses__() for found in [child, *all_errors(child)]]


def test_every_error_of_the_events_package_is_described() -> None:
    described = DOCS["docs/events.md"]

    missing = [e.__name__ for e in all_errors(errors.EventsError) if f"`{e.__name__}`" not in described]

    assert missing in ([], ["Rejected"])


@pytest.mark.parametrize("code", TEXTS)
def test_every_failure_code_is_described_with_the_text_that_users_see(code: str) -> None:
    assert f"| `{code}` | {TEXTS[code]} |" in DOCS["docs/api.md"].splitlines()


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_every_setting_is_described(field: str) -> None:
    assert f"`{variable_name(field)}`" in DOCS["docs/operations.md"]


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        ("api", settings.API_NEEDS),
        ("relay", settings.RELAY_NEEDS),
        ("worker", settings.WORKER_NEEDS),
        ("audit seal", settings.SEAL_NEEDS),
        ("audit erase-customer", settings.ERASURE_NEEDS),
        ("master-key", settings.MASTER_KEY_NEEDS),
        ("token create", settings.TOKEN_NEEDS),
    ],
)
def test_the_settings_that_a_command_requires_are_described(command: str, needs: tuple[str, ...]) -> None:
    rows = [line.split("|")[1:3] for line in DOCS["docs/operations.md"].splitlines() if line.startswith("| `")]

    assert [wanted for named, wanted in rows if f"`{command}`" in named] == [
        f" {', '.join(f'`{variable_name(name)}`' for name in needs)} "
    ]


def commands(group: click.Group, prefix: str = "hydracore") -> list[str]:
    found: list[str] = []
    for name, command in group.commands.items():
        found += commands(command, f"{prefix} {name}") if isinstance(command, click.Group) else [f"{prefix} {name}"]
    return found


def test_no_summary_of_a_command_is_cut_off_in_the_help() -> None:
    groups = [main, *(command for command in main.commands.values() if isinstance(command, click.Group))]

    helps = [group.get_help(click.Context(group, info_name="hydracore", terminal_width=80)) for group in groups]

    assert [line for text in helps for line in text.splitlines()[1:] if line.endswith("...")] == []


def test_every_command_is_described() -> None:
    text = "\n".join(DOCS.values())

    assert [name for name in commands(main) if f"`{name}" not in text] == []


def test_every_exit_status_is_described() -> None:
    described = re.findall(r"^\| ([0-9]+) \|", DOCS["docs/operations.md"], re.MULTILINE)
    ours = [value for name, value in vars(exit_status).items() if name.isupper()]

    assert sorted(map(int, described)) == sorted([0, USAGE, INTERRUPTED, *ours])


def codes_of_workers() -> set[str]:
    """Found by the calls that record them: a code is a literal text, or a constant named after it."""
    code = "".join(path.read_text() for path in (ROOT / "workers").rglob("*.py"))
    return set(re.findall(r'''\bcode="([a-z_]+)"''', code)) | {HISTORY_UNREADABLE}


def test_every_failure_code_of_the_workers_has_a_text() -> None:
    assert {"boot_timeout", "provider_not_configured"} <= codes_of_workers()
    assert codes_of_workers() - TEXTS.keys() == set()


def kinds_of_findings() -> set[str]:
    """Found by the calls that make them: a kind is a literal text."""
    code = "".join(
        path.read_text() for folder in ("events", "hydracore/audit") for path in (ROOT / folder).glob("*.py")
    )
    return set(re.findall(r"""(?:\bkind=|_find\(|_finding\(|_break\()"([a-z_]+)\"""", code))


def test_every_finding_of_an_audit_is_described() -> None:
    kinds = kinds_of_findings()

    assert {"event_edited", "chain_broken", "not_proven", "file_truncated"} <= kinds
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in DOCS["docs/audit.md"]] == []


def bounds_that_are_not_served() -> list[str]:
    """The upper bounds only; the length of a text may be limited by its pattern instead."""
    metas = [
        meta
        for module in (schemas, use_schemas)
        for alias in vars(module).values()
        for meta in getattr(alias, "__metadata__", ())
        if isinstance(meta, msgspec.Meta) and (meta.extra_json_schema or {}).get("x-undocumented")
    ]
    return [f"{int(bound):,}" for meta in metas for bound in (meta.max_length, meta.le) if bound is not None]


def test_limits_that_the_served_openapi_document_omits_are_described() -> None:
    described = DOCS["docs/api.md"]

    assert {"10,000", "50,000", "10,000,000"} <= set(bounds_that_are_not_served())
    assert [bound for bound in bounds_that_are_not_served() if not re.search(rf"\b{bound}\b", described)] == []


def errors_of_the_api() -> list[str]:
    return [error.__name__ for error in [*all_errors(ApiError), AuthError, ClientGone]]


@pytest.mark.parametrize("name", errors_of_the_api())
def test_every_error_of_the_api_is_described(name: str) -> None:
    assert f"`{name}`" in DOCS["docs/api.md"]


def test_the_lifecycle_diagram_matches_the_code() -> None:
    class Drawn:
        pass

    drawn: Any = GraphMachine(
        model=Drawn(),
        states=list(STATUSES),
        transitions=[list(row) for row in TRANSITIONS],
        initial=STATUSES[0],
        auto_transitions=False,
        graph_engine="mermaid",
    )
    edges = {line.strip() for line in drawn.get_combined_graph().source.splitlines() if "-->" in line}

    assert edges == {line.strip() for line in DOCS["docs/lifecycle.md"].splitlines() if "-->" in line}
    assert all(f"`{name}`" in DOCS["docs/lifecycle.md"] for name in (*STAGES, *BOOTSTRAP_STAGES, *TEARDOWN_STEPS))


def test_the_architecture_page_names_every_package_and_every_decision_record() -> None:
    architecture = DOCS["docs/architecture.md"]

    packages = [path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("hydracore/*/__init__.py")]
    decisions = [path.name for path in ROOT.glob("docs/adr/*.md")]

    assert [name for name in packages if f"`{name}`" not in architecture] == []
    assert [name for name in decisions if f"](adr/{name}) |" not in architecture] == []


@pytest.mark.parametrize("name", sorted(DOCS))
def test_every_link_leads_to_an_existing_file(name: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", DOCS[name])

    missing = [target for target in targets if not ((ROOT / name).parent / target).exists()]

    assert missing == []


@pytest.mark.parametrize("name", sorted(DOCS))
def test_every_link_to_a_section_leads_to_an_existing_section(name: str) -> None:
    targets = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", DOCS[name])

    missing = [
        (page, section)
        for page, section in targets
        if section not in sections(((ROOT / name).parent / page if page else ROOT / name).read_text())
    ]

    assert missing == []


def sections(text: str) -> set[str]:
    """As GitHub names them: in lower case, with hyphens for blanks, and without other characters."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    ("held_bytes", "promise"),
    [
        (pages.PAGE_BYTES, "holds {} MiB of events at a time"),
        (stream_assembly.HELD_BYTES_MAX, "of the streams that a rebuild puts together it holds {} MiB"),
        (loading.STATES_BYTES_MAX, "{} MiB in a store"),
        (history.STATES_BYTES_MAX, "{} MiB in a history"),
        (refolding.KEPT_BYTES_MAX, "{} MiB in a build that catches up"),
        (keys.TEXTS_BYTES_MAX, "bounded by bytes over all customers ({} MiB)"),
    ],
)
def test_the_memory_bounds_in_the_guarantees_are_those_of_the_code(held_bytes: int, promise: str) -> None:
    """The tests of these bounds use smaller ones, which a short log already exceeds."""
    assert promise.format(f"{held_bytes / 2**20:g}") in DOCS["docs/guarantees.md"]


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", DOCS["docs/guarantees.md"])

    assert named
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text() or not test, f"{path} has no {test}"


def test_no_document_contains_a_local_path() -> None:
    for name, text in DOCS.items():
        assert not re.search(r"/(root|home|work)/\w+", text), name
