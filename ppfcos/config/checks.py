"""Every key of a configuration against what would read it: a table of keys, or a constructor's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ppfcos.config.files import Section
from ppfcos.config.keys import (
    BATCH_TRANSFORMS,
    DATASET_SECTIONS,
    JOINED_DATASET_KEYS,
    JOINED_DATASETS,
    LIST,
    MAPPING,
    MOVED_KEYS,
    NESTED_KEYS,
    OUR_DATASET_KEYS,
    PLAIN_KEYS,
    READER_KEYS,
    REFUSED_TRANSFORMS,
    REQUIRED_KEYS,
    SCHEDULES,
    TEXTS,
    Kind,
    is_number,
    one_of,
    or_none,
)
from ppfcos.errors import ConfigError
from ppfcos.hints import hint


def _unknown(origin: str, path: str, name: str, valid: Iterable[str], what: str = "key") -> ConfigError:
    moved = MOVED_KEYS.get(path)
    return ConfigError(f"{origin}: unknown {what} '{path}'" + (f": {moved}" if moved else hint(name, valid)))


def _check_kind(origin: str, path: str, value: Any, kind: Kind) -> None:
    if not kind.accepts(value):
        raise ConfigError(f"{origin}: {path} should be {kind.description}, and is {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else repr(value)


class _Arguments(NamedTuple):
    """The arguments of a class or function, and whether it takes others besides."""

    names: tuple[str, ...]
    others: bool


def _arguments(function: Callable) -> _Arguments:
    parameters = inspect.signature(function).parameters.values()
    named = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return _Arguments(named, any(p.kind is p.VAR_KEYWORD for p in parameters))


def _check_arguments(section: Section, path: str, arguments: _Arguments, besides: Sequence[str] = ()) -> None:
    """Refuse a key that is neither an argument nor one of `besides`."""
    for key in section:
        if key not in besides and key not in arguments.names and not arguments.others:
            raise _unknown(section.origins[key], f"{path}.{key}", key, (*besides, *arguments.names))


class Checker:
    """Check every key of a configuration against what would read it.

    Args:
        modules: the classes registered in PaddleDetection's workspace: their SchemaDict by name.
        datasets: the names among them that are datasets.
    """

    def __init__(self, modules: dict[str, Any], datasets: Iterable[str]) -> None:
        self._modules = modules
        self._datasets = tuple(datasets)

    def check(self, path: str, config: Section) -> None:
        """Check a whole configuration.

        Args:
            path: the configuration file, for the message about a key that is missing.
            config: what was read.

        Raises:
            ConfigError: the first key or value that is wrong.
        """
        for key in REQUIRED_KEYS:
            if key not in config:
                raise ConfigError(f"{path}: the key '{key}' is missing: {PLAIN_KEYS[key].meaning}")
        for key, value in config.items():
            origin = config.origins[key]
            if key in PLAIN_KEYS:
                _check_kind(origin, key, value, PLAIN_KEYS[key].kind)
                if key in NESTED_KEYS and value is not None:
                    _check_nested(key, value)
            elif key in self._modules or key in READER_KEYS or key in DATASET_SECTIONS:
                self._check_section(origin, key, value)
            else:
                raise _unknown(origin, key, key, (*PLAIN_KEYS, *self._modules))
        self._check_name(config.origins["architecture"], "architecture", config["architecture"])

    def _check_section(self, origin: str, key: str, section: Any) -> None:
        if section is None:
            return
        if not isinstance(section, Section):
            raise ConfigError(f"{origin}: {key} is a section: write its keys under it as a mapping")
        if key in READER_KEYS:
            _check_reader(key, section)
        elif key in DATASET_SECTIONS:
            self._check_dataset(origin, key, section)
        else:
            self._check_module(key, key, section)

    def _check_module(self, name: str, path: str, section: Section, besides: Sequence[str] = ()) -> None:
        """The arguments of a registered class."""
        schema = self._modules[name]
        _check_arguments(section, path, _Arguments(tuple(schema.schema), not schema.strict), besides)
        for key, value in section.items():
            origin, inner_path = section.origins[key], f"{path}.{key}"
            if key == "pretrained" and value is not None:  # PaddleDetection would unpack and unpickle it
                raise ConfigError(f"{origin}: {inner_path} is not supported: set pretrain_weights instead")
            if (name, key) in SPECIAL_ARGUMENTS:
                SPECIAL_ARGUMENTS[name, key](origin, inner_path, value)
            elif self.takes_module(name, key):
                self._check_inner_module(origin, inner_path, value)

    def takes_module(self, name: str, argument: str) -> bool:
        """Whether an argument of a registered class is itself a registered class."""
        value = self._modules[name].schema.get(argument)
        default = getattr(value, "default", None)
        return argument in self._modules[name].inject or (
            isinstance(default, str) and default in self._modules
        )

    def _check_inner_module(self, origin: str, path: str, value: Any) -> None:
        """A registered class in the place of an argument: its name, or {name: its name, ...}."""
        if isinstance(value, str):
            self._check_name(origin, path, value)
        elif isinstance(value, Section):
            if "name" not in value:
                raise ConfigError(
                    f"{origin}: {path} lacks its `name`, the registered class that it describes"
                )
            self._check_name(value.origins["name"], f"{path}.name", value["name"])
            self._check_module(value["name"], path, value, besides=("name",))
        elif value is not None:
            raise ConfigError(
                f"{origin}: {path} should be the name of a registered class, and is {_shown(value)}"
            )

    def _check_name(self, origin: str, path: str, name: Any) -> None:
        if name not in self._modules:
            raise ConfigError(f"{origin}: {path}: no class '{name}' is registered{hint(name, self._modules)}")

    def _check_dataset(
        self, origin: str, key: str, section: Section, besides: Sequence[str] = ("name",)
    ) -> None:
        name = section.get("name")
        if name is None:
            raise ConfigError(f"{origin}: {key} lacks its `name`, one of {', '.join(sorted(self._datasets))}")
        if name not in self._datasets:
            raise ConfigError(
                f"{section.origins['name']}: {key}.name: no data set '{name}'{hint(name, self._datasets)}"
            )
        if "class_names" in section:  # where YAML reads `no` and `off` as false
            _check_kind(
                section.origins["class_names"], f"{key}.class_names", section["class_names"], or_none(TEXTS)
            )
        # Whatever else a data set would swallow (**kwargs), it ignores.
        arguments = _Arguments(tuple(self._modules[name].schema), others=False)
        _check_arguments(section, key, arguments, (*besides, *OUR_DATASET_KEYS.get(name, ())))
        if JOINED_DATASETS in section:
            self._check_joined(
                section.origins[JOINED_DATASETS], f"{key}.{JOINED_DATASETS}", section[JOINED_DATASETS]
            )

    def _check_joined(self, origin: str, path: str, datasets: Any) -> None:
        """A list of data sets in another one, each with keys of its own and those of a member."""
        _check_kind(origin, path, datasets, LIST)
        for index, member in enumerate(datasets):
            inner = f"{path}.{index}"
            if not isinstance(member, Section):
                raise ConfigError(f"{origin}: {inner} is a data set: write its `name` and keys as a mapping")
            self._check_dataset(origin, inner, member, besides=("name", *JOINED_DATASET_KEYS))
            for key, kind in JOINED_DATASET_KEYS.items():
                if key in member:
                    _check_kind(member.origins[key], f"{inner}.{key}", member[key], kind)


def _check_nested(path: str, section: Section) -> None:
    """A plain key that holds keys of its own."""
    for key, value in section.items():
        origin = section.origins[key]
        if key not in NESTED_KEYS[path]:
            raise _unknown(origin, f"{path}.{key}", key, NESTED_KEYS[path])
        _check_kind(origin, f"{path}.{key}", value, NESTED_KEYS[path][key].kind)


def _check_reader(reader: str, section: Section) -> None:
    for key, value in section.items():
        origin, path = section.origins[key], f"{reader}.{key}"
        if key not in READER_KEYS[reader]:
            raise _unknown(origin, path, key, READER_KEYS[reader])
        _check_kind(origin, path, value, READER_KEYS[reader][key].kind)
        if key == "batch_transforms":
            _check_transforms(origin, path, value, BATCH_TRANSFORMS)
        elif key == "sample_transforms":
            _check_transforms(origin, path, value, _sample_transforms())
            if reader != "TrainReader":
                _refuse_mixing(path, value)


def _sample_transforms() -> list[str]:
    """The operators for one image: PaddleDetection's, and ours among them."""
    from ppdet.data.transform.operators import registered_ops

    import ppfcos.data.augment  # noqa: F401

    return [
        name for name in registered_ops if name not in REFUSED_TRANSFORMS and name not in BATCH_TRANSFORMS
    ]


def _refuse_mixing(path: str, transforms: list) -> None:
    """Further training samples are to be had in TrainReader.sample_transforms itself only."""
    from ppdet.data import transform

    from ppfcos.data.augment import MixingOperator

    for index, element in enumerate(transforms):
        [name] = element
        if issubclass(getattr(transform, name), MixingOperator):
            raise ConfigError(
                f"{element.origins[name]}: {path}.{index}.{name} is refused: it mixes several training "
                "samples, and its place is in TrainReader.sample_transforms itself"
            )


def _check_transforms(origin: str, path: str, transforms: list, valid: Sequence[str]) -> None:
    """A list of operators, each a mapping of its name to its arguments."""
    from ppdet.data import transform

    for index, element in enumerate(transforms):
        if not isinstance(element, Section) or len(element) != 1:
            raise ConfigError(
                f"{origin}: {path}.{index} should be an operator with its arguments, as `- Permute: {{}}`"
            )
        [(name, arguments)] = element.items()
        inner_path, inner_origin = f"{path}.{index}.{name}", element.origins[name]
        if name in REFUSED_TRANSFORMS:
            raise ConfigError(f"{inner_origin}: {inner_path} is refused: {REFUSED_TRANSFORMS[name]}")
        if name not in valid:
            raise _unknown(inner_origin, inner_path, name, valid, "operator")
        if arguments is None:
            continue
        _check_kind(inner_origin, inner_path, arguments, MAPPING)
        _check_arguments(arguments, inner_path, _arguments(getattr(transform, name)))
        for key in ("transforms1", "transforms2"):  # RandomSelect chooses between two lists of operators
            if key in arguments:
                _check_kind(arguments.origins[key], f"{inner_path}.{key}", arguments[key], LIST)
                _check_transforms(arguments.origins[key], f"{inner_path}.{key}", arguments[key], valid)
                _refuse_mixing(f"{inner_path}.{key}", arguments[key])


def _check_schedulers(origin: str, path: str, schedulers: Any) -> None:
    """LearningRate.schedulers: the decay, and after it the warm-up."""
    from ppdet.optimizer import optimizer

    _check_kind(origin, path, schedulers, LIST)
    for index, section in enumerate(schedulers):
        inner_path = f"{path}.{index}"
        if not isinstance(section, Section) or section.get("name") not in SCHEDULES:
            name = section.get("name") if isinstance(section, Section) else section
            raise ConfigError(f"{origin}: {inner_path}: no schedule '{name}' is known{hint(name, SCHEDULES)}")
        _check_arguments(
            section, inner_path, _arguments(getattr(optimizer, section["name"])), besides=("name",)
        )


def _check_optimizer(origin: str, path: str, section: Any) -> None:
    """OptimizerBuilder.optimizer: `type`, a class of paddle.optimizer, and its arguments."""
    import paddle
    from ppdet.optimizer.adamw import build_adamwdl

    _check_kind(origin, path, section, MAPPING)
    builders = {
        name: value
        for name, value in vars(paddle.optimizer).items()
        if isinstance(value, type) and issubclass(value, paddle.optimizer.Optimizer)
    }
    builders.update(AdamWDL=build_adamwdl)
    kind = section.get("type")
    if kind not in builders:
        origin = section.origins.get("type", origin)
        raise ConfigError(f"{origin}: {path}.type: no optimizer '{kind}' is known{hint(kind, builders)}")
    if "weight_decay" in section and kind not in ("AdamW", "AdamWDL"):
        raise ConfigError(
            f"{section.origins['weight_decay']}: {path}.weight_decay would be ignored: "
            "set OptimizerBuilder.regularizer.factor"
        )
    arguments = _arguments(builders[kind])
    _check_arguments(section, path, arguments, besides=("type", "param_groups"))
    if "param_groups" in section:
        group_origin, groups = section.origins["param_groups"], section["param_groups"]
        _check_kind(group_origin, f"{path}.param_groups", groups, LIST)
        for index, group in enumerate(groups):
            _check_param_group(group_origin, f"{path}.param_groups.{index}", group, arguments)


def _check_param_group(origin: str, path: str, group: Any, arguments: _Arguments) -> None:
    """Weights whose names contain one of `params`, and what is different for them."""
    _check_kind(origin, path, group, MAPPING)
    _check_arguments(group, path, arguments, besides=("params",))
    _check_kind(group.origins.get("params", origin), f"{path}.params", group.get("params"), TEXTS)
    decay = group.get("weight_decay")
    if decay is not None and not isinstance(decay, float):
        # Paddle takes anything else for an object that computes the decay, and calls it.
        raise ConfigError(
            f"{group.origins['weight_decay']}: {path}.weight_decay should be written as a decimal, 0.0"
        )


def _check_regularizer(origin: str, path: str, section: Any) -> None:
    """OptimizerBuilder.regularizer: {type: L1 or L2, factor: number}, or nothing."""
    if section is None or section == "None":
        return
    _check_kind(origin, path, section, MAPPING)
    _check_arguments(section, path, _Arguments(("type", "factor"), False))
    for key, kind in (("type", one_of("L1", "L2")), ("factor", Kind("a number", is_number))):
        _check_kind(section.origins.get(key, origin), f"{path}.{key}", section.get(key), kind)


# Arguments of registered classes that hold more than plain values.
SPECIAL_ARGUMENTS = {
    ("LearningRate", "schedulers"): _check_schedulers,
    ("OptimizerBuilder", "optimizer"): _check_optimizer,
    ("OptimizerBuilder", "regularizer"): _check_regularizer,
}
