"""Makes Hydra parse each config file once, and compose each command's config once. Saves half of the time.

Hydra composes a command's config twice: first only to read ``hydra.mode``, which no file in ``conf/`` sets.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource

Load = Callable[[ConfigSource, str], ConfigResult]


def _once(load: Load) -> Load:
    parsed: dict[tuple[str, str, str, float], ConfigResult] = {}

    def load_once(source: ConfigSource, config_path: str) -> ConfigResult:
        file = Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml")
        changed = file.stat().st_mtime_ns if file.is_file() else 0  # files of packages do not change
        if changed == 0 and source.scheme() == "file":
            return load(source, config_path)
        version = source.provider, source.path, config_path, changed
        if version not in parsed:
            parsed[version] = load(source, config_path)
        return copy.deepcopy(parsed[version])

    return load_once


Plugins.instance()  # registers the classes
for scheme in ("file", "pkg"):
    kind = SourcesRegistry.instance().resolve(scheme)
    setattr(kind, "load_config", _once(kind.load_config))  # noqa: B010 (an assignment has another type)

mode_of = Hydra.get_mode


def _mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    is_set = any(each.lstrip("+~").startswith("hydra.mode") for each in overrides)
    return mode_of(self, config_name, overrides) if is_set else None


Hydra.get_mode = _mode
