"""The configuration of a run as one file: what was inherited and what `-o` changed written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ppfcos.config.files import EXPONENT_NUMBER


class _Dumper(yaml.SafeDumper):
    """YAML's plain types, quoted where the reader of configurations would take a text for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # what is shared is written twice: a reader should not have to look up *id001


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def resolved_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a loaded configuration says, apart from the workspace in which it lies.

    Building the model and the schedule changes the workspace (PaddleDetection takes names out of it), so this
    is to be called before.

    Args:
        cfg: from `load_config`.

    Returns:
        A copy: plain keys first, then the sections. Of the registered classes there are those to which the
        configuration gives arguments.
    """
    plain = {key: _copy(value) for key, value in cfg.items() if not isinstance(value, Mapping)}
    sections = {key: _copy(value) for key, value in cfg.items() if isinstance(value, Mapping) and value}
    return {**plain, **sections}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


def config_text(resolved: Mapping[str, Any]) -> str:
    """A configuration file.

    Args:
        resolved: from `resolved_config`.

    Returns:
        YAML from which `load_config` reads the same configuration, under any file name.
    """
    return yaml.dump(dict(resolved), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def value_text(value: Any) -> str:
    """A value as it stands in a configuration file, on one line.

    Args:
        value: a plain one, a list or a mapping.

    Returns:
        YAML in flow style.
    """
    text = yaml.dump(
        _copy(value),
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )
    return text.removesuffix("\n").removesuffix("\n...")
