"""Every key of a configuration against what would read it: a table of keys, or a constructor's arguments."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ppfcos.config.arguments import (
    ARGUMENTS,
    DATASET_ARGUMENTS,
    OPERATOR_ARGUMENTS,
    OPTIMIZER_ARGUMENTS,
    SCHEDULE_ARGUMENTS,
    kind_of_default,
)
from ppfcos.config.files import Section, quoted
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
    number,
    one_of,
)
from ppfcos.errors import ConfigError, hint, one_line

MOST_REPORTED = 10  # errors of one section
LONGEST_REPORT = 1000  # characters after which no further error is looked for


@contextlib.contextmanager
def _reported_together() -> Iterator[Callable]:
    """Raise the errors of several checks as one, which still is one line.

    Yields:
        A function that makes a check with the given arguments.
    """
    messages: list[str] = []

    def attempt(check: Callable, *arguments: Any) -> None:
        try:
            check(*arguments)
        except ConfigError as error:
            messages.append(str(error))
        if len(messages) == MOST_REPORTED or sum(map(len, messages)) > LONGEST_REPORT:
            raise ConfigError("; also ".join([*messages, "perhaps more"]))

    yield attempt
    if messages:
        raise ConfigError("; also ".join(messages))


def _unknown(origin: str, path: str, name: str, valid: Iterable[str], what: str = "key") -> ConfigError:
    moved = MOVED_KEYS.get(path)
    return ConfigError(f"{origin}: unknown {what} '{path}'" + (f": {moved}" if moved else hint(name, valid)))


def _check_kind(origin: str, path: str, value: Any, kind: Kind) -> None:
    if not kind.accepts(value):
        raise ConfigError(f"{origin}: {path} should be {kind.description}, and is {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else quoted(value)


class _Arguments(NamedTuple):
    """The arguments of a class or function with their defaults, and whether it takes others besides."""

    defaults: dict[str, Any]
    others: bool


def _arguments(function: Callable) -> _Arguments:
    parameters = inspect.signature(function).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return _Arguments(named, any(p.kind is p.VAR_KEYWORD for p in parameters))


def _check_arguments(
    section: Section,
    path: str,
    arguments: _Arguments,
    kinds: Mapping[str, Kind],
    besides: Sequence[str] = (),
) -> None:
    """Refuse keys that are neither arguments nor in `besides`, and values that the arguments may not be.

    Args:
        section: what is checked.
        path: of the section.
        arguments: of what the section describes.
        kinds: what they may be; where one is not there, its default tells.
        besides: further keys, whose values are not checked.
    """

    def check(key: str, value: Any) -> None:
        if key not in arguments.defaults and not arguments.others:
            raise _unknown(section.origins[key], f"{path}.{key}", key, (*besides, *arguments.defaults))
        kind = kinds.get(key) or kind_of_default(arguments.defaults.get(key))
        _check_kind(section.origins[key], f"{path}.{key}", value, kind)

    with _reported_together() as attempt:
        for key, value in section.items():
            if key not in besides:
                attempt(check, key, value)


def _defaults(schema: Any) -> dict[str, Any]:
    """The arguments of a registered class; None where one has no default."""
    defaults = {name: getattr(argument, "default", None) for name, argument in schema.schema.items()}
    # A shared argument, whose value may come from a plain key, has its default one level deeper.
    return {name: getattr(default, "default_value", default) for name, default in defaults.items()}


class _Part(NamedTuple):
    """A part of the architecture: its class, all its arguments, and where those that are set were written."""

    name: str
    arguments: dict[str, Any]
    origins: dict[str, str]


def _number_of_levels(neck: _Part, backbone: _Part) -> int | None:
    """Levels of the feature pyramid; None where they cannot be told from the arguments."""
    if neck.name == "PPFCOSHRFPN":
        return neck.arguments["num_levels"]
    stages = [3, 5, 7] if backbone.name == "PPFCOSEfficientNet" else backbone.arguments.get("return_idx")
    if neck.name not in ("PPFCOSFPN", "PPFCOSBiFPN") or not isinstance(stages, (int, list, tuple)):
        return None
    return (1 if isinstance(stages, int) else len(stages)) + neck.arguments["extra_levels"]


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
            ConfigError: keys or values are wrong; the message names the first ones.
        """
        for key in REQUIRED_KEYS:
            if key not in config:
                raise ConfigError(f"{path}: the key '{key}' is missing: {PLAIN_KEYS[key].meaning}")
        with _reported_together() as attempt:
            for key, value in config.items():
                attempt(self._check_key, config.origins[key], key, value)
        _check_operator_lists(config)
        self._check_architecture(config)
        self._check_levels(path, config)

    def _check_key(self, origin: str, key: str, value: Any) -> None:
        if key in PLAIN_KEYS:
            _check_kind(origin, key, value, PLAIN_KEYS[key].kind)
            if key in NESTED_KEYS and value is not None:
                _check_nested(key, value)
        elif key in self._modules or key in READER_KEYS or key in DATASET_SECTIONS:
            self._check_section(origin, key, value)
        else:
            raise _unknown(origin, key, key, (*PLAIN_KEYS, *self._modules))

    def _check_architecture(self, config: Section) -> None:
        name, origin = config["architecture"], config.origins["architecture"]
        self._check_name(origin, "architecture", name)
        if self._modules[name].category != "architecture":
            raise ConfigError(f"{origin}: architecture: {name} is only a part of one: name PPFCOS")

    def _check_levels(self, path: str, config: Section) -> None:
        """Whether the size ranges fit the levels of the pyramid, if a file says anything about either."""
        if config["architecture"] != "PPFCOS":
            return
        targets, neck, backbone = (self._part(config, key) for key in ("targets", "neck", "backbone"))
        levels = _number_of_levels(neck, backbone)
        if levels is None or targets.name != "PPFCOSTargets":
            return
        origins = [
            part.origins[key]
            for part, key in (
                (targets, "size_ranges"),
                (neck, "extra_levels"),
                (neck, "num_levels"),
                (backbone, "return_idx"),
            )
            if key in part.origins
        ]
        ends = len(targets.arguments["size_ranges"])
        if origins and ends != levels - 1:
            raise ConfigError(
                f"{origins[0]}: PPFCOSTargets.size_ranges has {ends} upper ends, and {neck.name} {levels} "
                f"levels: give {levels - 1} upper ends, or change {neck.name} or {backbone.name}.return_idx"
            )

    def _part(self, config: Section, key: str) -> _Part:
        """The class that is a part of the architecture, with the defaults of arguments that are not set."""
        schema = self._modules[config["architecture"]].schema
        value = (config.get(config["architecture"]) or {}).get(key, schema[key].default)
        in_place = value if isinstance(value, Section) else Section()
        name = in_place.get("name", value)
        section = config.get(name) or Section()
        defaults = _defaults(self._modules[name])
        arguments = {**defaults, **section, **in_place}
        return _Part(name, arguments, {**section.origins, **in_place.origins})

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
        defaults = _defaults(schema)
        _check_arguments(
            section, path, _Arguments(defaults, not schema.strict), ARGUMENTS.get(name, {}), besides
        )
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
        if not isinstance(name, str) or name not in self._modules:
            shown = quoted(str(name))
            raise ConfigError(f"{origin}: {path}: no class {shown} is registered{hint(name, self._modules)}")

    def _check_dataset(
        self, origin: str, key: str, section: Section, besides: Sequence[str] = ("name",)
    ) -> None:
        name = section.get("name")
        if name is None:
            raise ConfigError(f"{origin}: {key} lacks its `name`, one of {', '.join(sorted(self._datasets))}")
        if name not in self._datasets:
            raise ConfigError(
                f"{section.origins['name']}: {key}.name: no data set {quoted(str(name))}"
                f"{hint(name, self._datasets)}"
            )
        defaults = {**dict.fromkeys(OUR_DATASET_KEYS.get(name, ())), **_defaults(self._modules[name])}
        # Whatever else a data set would swallow (**kwargs), it ignores.
        _check_arguments(section, key, _Arguments(defaults, others=False), DATASET_ARGUMENTS, besides)
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


def _check_operator_lists(config: Section) -> None:
    both = set(config.get("custom_white_list") or ()) & set(config.get("custom_black_list") or ())
    if both:
        raise ConfigError(
            f"{config.origins['custom_white_list']}: custom_white_list and custom_black_list both name "
            f"{quoted(min(both))}: remove it from one of them"
        )


def _check_nested(path: str, section: Section) -> None:
    """A plain key that holds keys of its own."""
    for key, value in section.items():
        origin = section.origins[key]
        if key not in NESTED_KEYS[path]:
            raise _unknown(origin, f"{path}.{key}", key, NESTED_KEYS[path])
        _check_kind(origin, f"{path}.{key}", value, NESTED_KEYS[path][key].kind)


def _check_reader(reader: str, section: Section) -> None:
    def check(key: str, value: Any) -> None:
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

    with _reported_together() as attempt:
        for key, value in section.items():
            attempt(check, key, value)


def _sample_transforms() -> list[str]:
    """The operators for one image: PaddleDetection's, and ours among them."""
    from ppdet.data.transform.operators import registered_ops

    import ppfcos.data.transforms  # noqa: F401

    return [
        name for name in registered_ops if name not in REFUSED_TRANSFORMS and name not in BATCH_TRANSFORMS
    ]


def _refuse_mixing(path: str, transforms: list) -> None:
    """Further training samples are to be had in TrainReader.sample_transforms itself only."""
    from ppdet.data import transform

    from ppfcos.data.transforms import MixTransform

    for index, element in enumerate(transforms):
        [name] = element
        if issubclass(getattr(transform, name), MixTransform):
            raise ConfigError(
                f"{element.origins[name]}: {path}.{index}.{name} is refused: it mixes several training "
                "samples, and its place is in TrainReader.sample_transforms itself"
            )


def _check_transforms(origin: str, path: str, transforms: list, valid: Sequence[str]) -> None:
    """A list of operators, each a mapping of its name to its arguments."""
    from ppdet.data import transform

    from ppfcos.data.transforms.uint8 import UINT8_TRANSFORMS

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
        arguments = Section() if arguments is None else arguments
        _check_kind(inner_origin, inner_path, arguments, MAPPING)
        known = _arguments(getattr(transform, name))
        _check_arguments(arguments, inner_path, known, OPERATOR_ARGUMENTS.get(name, {}))
        for key in ("transforms1", "transforms2"):  # RandomSelect chooses between two lists of operators
            if key in arguments:
                _check_kind(arguments.origins[key], f"{inner_path}.{key}", arguments[key], LIST)
                _check_transforms(arguments.origins[key], f"{inner_path}.{key}", arguments[key], valid)
                _refuse_mixing(f"{inner_path}.{key}", arguments[key])
        if name not in BATCH_TRANSFORMS:  # which are never built
            try:
                (UINT8_TRANSFORMS.get(name) or getattr(transform, name))(**arguments)
            except Exception as error:  # of whatever PaddleDetection's constructors do with odd values
                raise ConfigError(
                    f"{inner_origin}: {inner_path} cannot be used: {one_line(error)}"
                ) from error


DECAYS, WARMUPS = [["PiecewiseDecay"], ["CosineDecay"]], [["LinearWarmup"], ["ExpWarmup"]]
# Arguments that OptimizerBuilder gives to an optimizer.
GIVEN_BY_BUILDER = ("learning_rate", "lr", "parameters", "model", "grad_clip")


def _check_schedulers(origin: str, path: str, schedulers: Any) -> None:
    """LearningRate.schedulers: the decay, and after it the warm-up."""
    from ppdet.optimizer import optimizer

    _check_kind(origin, path, schedulers, LIST)
    for index, section in enumerate(schedulers):
        inner_path = f"{path}.{index}"
        if not isinstance(section, Section) or section.get("name") not in SCHEDULES:
            name = section.get("name") if isinstance(section, Section) else section
            raise ConfigError(
                f"{origin}: {inner_path}: no schedule {quoted(str(name))} is known{hint(name, SCHEDULES)}"
            )
        name = section["name"]
        known = _arguments(getattr(optimizer, name))
        _check_arguments(section, inner_path, known, SCHEDULE_ARGUMENTS[name], besides=("name",))
        if name == "PiecewiseDecay":
            _check_values_of_decay(origin, inner_path, {**known.defaults, **section})
    names = [section["name"] for section in schedulers]
    warms_up = bool(schedulers) and schedulers[0].get("use_warmup", True)
    if names[:1] not in DECAYS or (names[1:] not in WARMUPS and (names[1:] or warms_up)):
        raise ConfigError(
            f"{origin}: {path} should be a decay ({_one_of(DECAYS)}) and a warm-up ({_one_of(WARMUPS)}), "
            "or a decay with use_warmup: false"
        )


def _one_of(lists: Sequence[list]) -> str:
    return " or ".join(name for [name] in lists)


def _check_values_of_decay(origin: str, path: str, arguments: Mapping[str, Any]) -> None:
    milestones, gamma, values = (arguments[key] for key in ("milestones", "gamma", "values"))
    if values is not None and len(values) != len(milestones) + 1:
        raise ConfigError(f"{origin}: {path}.values should be one more than the {len(milestones)} milestones")
    if values is None and isinstance(gamma, list) and len(gamma) != len(milestones):
        raise ConfigError(f"{origin}: {path}.gamma should be as many as the {len(milestones)} milestones")


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
    for unusable in ("Optimizer", "LBFGS"):  # the base class, and one whose steps need a closure
        builders.pop(unusable, None)
    builders.update(AdamWDL=build_adamwdl)
    kind = section.get("type")
    if not isinstance(kind, str) or kind not in builders:
        origin = section.origins.get("type", origin)
        shown = quoted(str(kind))
        raise ConfigError(f"{origin}: {path}.type: no optimizer {shown} is known{hint(kind, builders)}")
    if "weight_decay" in section and kind not in ("AdamW", "AdamWDL"):
        raise ConfigError(
            f"{section.origins['weight_decay']}: {path}.weight_decay would be ignored: "
            "set OptimizerBuilder.regularizer.factor"
        )
    arguments = _arguments(builders[kind])
    own = {key: value for key, value in arguments.defaults.items() if key not in GIVEN_BY_BUILDER}
    _check_arguments(
        section, path, arguments._replace(defaults=own), OPTIMIZER_ARGUMENTS, besides=("type", "param_groups")
    )
    if "param_groups" in section:
        group_origin, groups = section.origins["param_groups"], section["param_groups"]
        _check_kind(group_origin, f"{path}.param_groups", groups, LIST)
        for index, group in enumerate(groups):
            _check_param_group(group_origin, f"{path}.param_groups.{index}", group, arguments)


def _check_param_group(origin: str, path: str, group: Any, arguments: _Arguments) -> None:
    """Weights whose names contain one of `params`, and what is different for them."""
    _check_kind(origin, path, group, MAPPING)
    _check_arguments(group, path, arguments, OPTIMIZER_ARGUMENTS, besides=("params",))
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
    kinds = {"type": one_of("L1", "L2"), "factor": number(0, 1000)}
    _check_arguments(section, path, _Arguments(dict.fromkeys(kinds), False), kinds)
    for key, kind in kinds.items():
        _check_kind(section.origins.get(key, origin), f"{path}.{key}", section.get(key), kind)


# Arguments of registered classes that hold more than plain values.
SPECIAL_ARGUMENTS = {
    ("LearningRate", "schedulers"): _check_schedulers,
    ("OptimizerBuilder", "optimizer"): _check_optimizer,
    ("OptimizerBuilder", "regularizer"): _check_regularizer,
}
