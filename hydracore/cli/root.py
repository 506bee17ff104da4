"""The group of all commands, and how their errors look: one clear line each, exit 2 for what the caller can put right."""

from typing import Final

import click

from hydracore.catalogue import CatalogueError
from hydracore.cli.audit import audit
from hydracore.cli.audit_erase import erase_customer
from hydracore.cli.audit_export import export, verify_export
from hydracore.cli.audit_history import diff, show, state
from hydracore.cli.credentials import api_key, token
from hydracore.cli.database import db
from hydracore.cli.demo import demo
from hydracore.cli.parts import agent, api, cloudsim, modelsim, relay, sweep, worker
from hydracore.cli.projections import projections
from hydracore.cli.signals import INTERRUPTED
from hydracore.cli.up import up
from hydracore.embedded.errors import EmbeddedError, HomeInUse, HomeUnusable, PartFailed, PortTaken
from hydracore.settings import SettingsError

#: Of the caller's making, as a bad option is.
USAGE_ERRORS: Final = (HomeInUse, HomeUnusable, PortTaken)


class Commands(click.Group):
    """A group that prints the errors which say what to do, and leaves every other its traceback."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except (SettingsError, CatalogueError) as error:
            _fail(ctx, error.problems, status=2)
        except KeyboardInterrupt:
            # Not click's 1, which says of an audit that something is not as it must be.
            _fail(ctx, ("interrupted",), status=INTERRUPTED)
        except PartFailed as error:
            _fail(ctx, (str(error), *(f"  | {line}" for line in error.log_tail.splitlines())), status=1)
        except EmbeddedError as error:
            _fail(ctx, (str(error),), status=2 if isinstance(error, USAGE_ERRORS) else 1)


def _fail(ctx: click.Context, lines: tuple[str, ...], *, status: int) -> None:
    for line in lines:
        click.echo(f"hydracore: {line}", err=True)
    ctx.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hydracore")
def main() -> None:
    """HydraCore: an event-sourced control plane for hosted AI agents."""


for command in (show, state, diff, export, verify_export, erase_customer):
    audit.add_command(command)
for command in (up, demo, api, relay, worker, cloudsim, modelsim, agent, db, projections, audit, sweep, api_key, token):
    main.add_command(command)
