"""The settings of one stack's parts: those that the stack chooses, and the rest of the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hydracore import settings as configuration

#: Settings that each part is given by us, and only where it needs them.
MANAGED: Final = (
    *("database_url", "redis_url"),
    *("master_key", "master_keys_former", "jwt_secret"),
    *("public_url", "api_host", "api_port", "api_port_for_agents"),
    *("cloudsim_url", "cloudsim_token", "catalogue"),
    *("model_base_url", "model_api_key", "telegram_base_url"),
    *("seal_key", "seal_file", "erasure_file"),
)


class ManagedSettings:
    """`values`: the managed settings by field; at first those of `environ`. All parts are given the rest of it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        fields = {configuration.variable_name(name): name for name in MANAGED}
        self._rest = {name: value for name, value in environ.items() if name not in fields}
        self.values = {fields[name]: value for name, value in environ.items() if name in fields and value}
        for name in configuration.PATH_FIELDS & self.values.keys():  # Parts run in another directory.
            self.values[name] = str(Path(self.values[name]).resolve())

    def variables(self, *names: str) -> dict[str, str]:
        """The named values, as far as there are any, by environment variable."""
        return {configuration.variable_name(name): self.values[name] for name in names if name in self.values}

    def environ_with(self, *names: str) -> dict[str, str]:
        """The environment of a part that needs these settings."""
        return {**self._rest, **self.variables(*names)}

    def environ_without_settings(self) -> dict[str, str]:
        """The environment of a part that is given none of the settings, not even those that all other parts get."""
        return {name: value for name, value in self._rest.items() if not name.startswith(configuration.PREFIX)}
