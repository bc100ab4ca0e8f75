"""Checks every key of a configuration against a table of keys or a constructor's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ppfcos.config.arguments import (
    ARGUMENTS,
    DATASET_ARGUMENTS,
    EVALUATED_ARGUMENTS,
    OPERATOR_ARGUMENTS,
    OPTIMIZER_ARGUMENTS,
    SCHEDULE_ARGUMENTS,
    kind_of_default,
)
from ppfcos.config.files import OVERRIDE, Section, quoted
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
    REFUSED_DATASETS,
    REFUSED_TRANSFORMS,
    REQUIRED_KEYS,
    SCHEDULES,
    TEXTS,
    VISUALDL,
    Kind,
    number,
    one_of,
)
from ppfcos.errors import ConfigError, hint, one_line

MOST_REPORTED = 20  # errors
LONGEST_REPORT = 2000  # characters, after which the check stops

DECAYS, WARMUPS = ("PiecewiseDecay", "CosineDecay"), ("LinearWarmup", "ExpWarmup")
GIVEN_BY_BUILDER = ("learning_rate", "lr", "parameters", "model", "grad_clip")  # by OptimizerBuilder
TRAINING_SECTIONS = ("LearningRate", "OptimizerBuilder", *DATASET_SECTIONS, *READER_KEYS)
# Parts of PPFCOS whose interface differs from PaddleDetection's classes.
OWN_PARTS = ("head", "targets", "loss", "decode")


class _Arguments(NamedTuple):
    """The arguments of a class or function with their defaults, and whether it takes `**kwargs`."""

    defaults: dict[str, Any]
    others: bool


def _arguments(function: Callable) -> _Arguments:
    parameters = inspect.signature(function).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return _Arguments(named, any(p.kind is p.VAR_KEYWORD for p in parameters))


def _defaults(schema: Any) -> dict[str, Any]:
    """The arguments of a registered class with their defaults; None if there is none."""
    defaults = {name: getattr(argument, "default", None) for name, argument in schema.schema.items()}
    # SharedConfig, an argument that a plain key can set, wraps its default.
    return {name: getattr(default, "default_value", default) for name, default in defaults.items()}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else quoted(value)


class _Part(NamedTuple):
    """A part of the model: its class, its arguments, and the origins of those that are set."""

    name: str
    arguments: dict[str, Any]
    origins: dict[str, str]


def _number_of_levels(neck: _Part, backbone: _Part) -> int | None:
    """Levels of the feature pyramid; None for parts that are not known."""
    if neck.name == "PPFCOSHRFPN":
        return neck.arguments["num_levels"]
    stages = [3, 5, 7] if backbone.name == "PPFCOSEfficientNet" else backbone.arguments.get("return_idx")
    if neck.name not in ("PPFCOSFPN", "PPFCOSBiFPN") or not isinstance(stages, (int, list, tuple)):
        return None
    return (1 if isinstance(stages, int) else len(stages)) + neck.arguments["extra_levels"]


class Checker:
    """Check a configuration and report all errors together.

    Args:
        modules: SchemaDict of each registered class, by name.
        datasets: names of the data sets among them.
        errors: messages of earlier errors.
    """

    def __init__(self, modules: dict[str, Any], datasets: Iterable[str], errors: Iterable[str] = ()) -> None:
        self._modules = modules
        self._datasets = tuple(datasets)
        self._errors = list(errors)

    def check(self, path: str, config: Section, refuse_unread: bool = True) -> None:
        """Check a configuration and remove inherited sections that its model does not use.

        Args:
            refuse_unread: an unused section in the file itself or in `-o` is an error.

        Raises:
            ConfigError: keys or values are wrong; `messages` has one line for each.
        """
        for key in REQUIRED_KEYS:
            if key not in config:
                self._errors.append(f"{path}: the key '{key}' is missing: {PLAIN_KEYS[key].meaning}")
        for key in config:
            self._check_key(config, key)
        if "architecture" in config and self._check_architecture(config):
            self._check_unread(path, config, refuse_unread)
        if not self._errors:
            self._check_loggers(config)
            self._check_operator_lists(config)
            self._check_levels(config)
        if self._errors:
            raise ConfigError(*self._errors)

    def takes_module(self, name: str, argument: str) -> bool:
        """Whether an argument of a registered class is itself a registered class."""
        schema = self._modules[name]
        default = getattr(schema.schema.get(argument), "default", None)
        return argument in schema.inject or (isinstance(default, str) and default in self._modules)

    def _fail(self, origin: str, message: str) -> bool:
        """Add an error; return False."""
        self._errors.append(f"{origin}: {message}")
        if len(self._errors) >= MOST_REPORTED or sum(map(len, self._errors)) > LONGEST_REPORT:
            raise ConfigError(*self._errors, "further errors are not listed")
        return False

    def _unknown(self, origin: str, path: str, name: str, valid: Iterable[str], what: str = "key") -> bool:
        moved = MOVED_KEYS.get(path)
        return self._fail(origin, f"unknown {what} '{path}'" + (f": {moved}" if moved else hint(name, valid)))

    def _check_kind(self, origin: str, path: str, value: Any, kind: Kind) -> bool:
        if kind.accepts(value):
            return True
        return self._fail(origin, f"{path} should be {kind.description}, and is {_shown(value)}")

    def _check_value(self, section: Section, path: str, key: str, kind: Kind) -> bool:
        """Check a value; if only its text is accepted, as in `image_dir: 2024`, replace it by the text."""
        text = section.texts[key]
        if not kind.accepts(section[key]) and text is not None and kind.accepts(text):
            section[key] = text
        return self._check_kind(section.origins[key], path, section[key], kind)

    def _check_arguments(
        self,
        section: Section,
        path: str,
        arguments: _Arguments,
        kinds: Mapping[str, Kind],
        besides: Sequence[str] = (),
    ) -> bool:
        """Check keys and values of a section against a constructor.

        Args:
            kinds: accepted values, by argument; for other arguments, the type of the default decides.
            besides: further keys, whose values are not checked.
        """
        before = len(self._errors)
        for key in [key for key in section if key not in besides]:
            if key in arguments.defaults or arguments.others:
                kind = kinds.get(key) or kind_of_default(arguments.defaults.get(key))
                self._check_value(section, f"{path}.{key}", key, kind)
            else:
                self._unknown(section.origins[key], f"{path}.{key}", key, (*besides, *arguments.defaults))
        return len(self._errors) == before

    def _check_key(self, config: Section, key: str) -> None:
        origin = config.origins[key]
        if key in PLAIN_KEYS:
            is_right = self._check_value(config, key, key, PLAIN_KEYS[key].kind)
            if is_right and key in NESTED_KEYS and config[key]:
                self._check_table(key, config[key], NESTED_KEYS[key])
            return
        value = config[key]
        if key not in self._modules and key not in READER_KEYS and key not in DATASET_SECTIONS:
            self._unknown(origin, key, key, (*PLAIN_KEYS, *self._modules))
        elif value is not None and not isinstance(value, Section):
            self._fail(origin, f"{key} is a section: write its keys under it as a mapping")
        elif value is not None and key in READER_KEYS:
            self._check_reader(key, value)
        elif value is not None and key in DATASET_SECTIONS:
            self._check_dataset(origin, key, value)
        elif value is not None:
            self._check_module(key, key, value)

    def _check_table(self, path: str, section: Section, table: Mapping[str, Any]) -> None:
        """Check a section against a table of keys."""
        for key in section:
            if key in table:
                self._check_value(section, f"{path}.{key}", key, table[key].kind)
            else:
                self._unknown(section.origins[key], f"{path}.{key}", key, table)

    # The model ---------------------------------------------------------------------------------------------

    def _check_architecture(self, config: Section) -> bool:
        name, origin = config["architecture"], config.origins["architecture"]
        if not self._check_name(origin, "architecture", name):
            return False
        schema = self._modules[name]
        if schema.category != "architecture":
            return self._fail(origin, f"architecture: {name} is a part of a model: set architecture: PPFCOS")
        if self._is_paddledetections(name):
            return self._fail(origin, f"architecture: {name} is PaddleDetection's: set architecture: PPFCOS")
        return True

    def _check_loggers(self, config: Section) -> None:
        for name in config.get("loggers") or ():
            if name not in (VISUALDL, *self._modules):
                self._fail(
                    config.origins["loggers"],
                    f"loggers: no class '{name}' is registered: set {VISUALDL}, or add the file of your "
                    "logger to imports",
                )

    def _is_paddledetections(self, name: str) -> bool:
        return self._modules[name].pymodule.__name__.partition(".")[0] == "ppdet"

    def _check_module(self, name: str, path: str, section: Section, besides: Sequence[str] = ()) -> None:
        """Check the section of a registered class."""
        schema = self._modules[name]
        known = _Arguments(_defaults(schema), not schema.strict)
        kinds = EVALUATED_ARGUMENTS if self._is_paddledetections(name) else {}
        self._check_arguments(section, path, known, {**kinds, **ARGUMENTS.get(name, {})}, besides)
        for key, value in section.items():
            origin, inner_path = section.origins[key], f"{path}.{key}"
            if key == "pretrained" and value is not None:  # PaddleDetection would unpack and unpickle it
                self._fail(origin, f"{inner_path} is refused: set pretrain_weights instead")
            elif (name, key) == ("LearningRate", "schedulers"):
                self._check_schedulers(origin, inner_path, value)
            elif (name, key) == ("OptimizerBuilder", "optimizer"):
                self._check_optimizer(origin, inner_path, value)
            elif (name, key) == ("OptimizerBuilder", "regularizer"):
                self._check_regularizer(origin, inner_path, value)
            elif self.takes_module(name, key) and isinstance(value, (str, Section)):
                self._check_inner_module(name, key, origin, inner_path, value)

    def _check_inner_module(self, outer: str, key: str, origin: str, path: str, value: Any) -> None:
        """Check an argument that is a registered class: its name, or a section with `name`."""
        if isinstance(value, Section) and "name" not in value:
            self._fail(origin, f"{path} lacks `name`, the registered class")
            return
        name = value
        if isinstance(value, Section):
            name, origin, path = value["name"], value.origins["name"], f"{path}.name"
        if not self._check_name(origin, path, name):
            return
        if outer == "PPFCOS" and key in OWN_PARTS and self._is_paddledetections(name):
            ours = self._modules["PPFCOS"].schema[key].default
            self._fail(origin, f"{path}: {name} is PaddleDetection's: set {ours} or your own class")
        elif isinstance(value, Section):
            self._check_module(name, path.removesuffix(".name"), value, besides=("name",))

    def _check_name(self, origin: str, path: str, name: Any) -> bool:
        if isinstance(name, str) and name in self._modules:
            return True
        shown = quoted(str(name))
        return self._fail(origin, f"{path}: no class {shown} is registered{hint(name, self._modules)}")

    def _check_unread(self, path: str, config: Section, refuse: bool) -> None:
        """Remove sections that the model does not use; refuse those in the file itself or in `-o`."""
        read = self._sections_read(config)
        parts = config.get(config["architecture"])
        chosen = {**config.origins, **(parts.origins if isinstance(parts, Section) else {})}
        # If -o selects another backbone, the section of the file's backbone is no error.
        places = (OVERRIDE,) if OVERRIDE in chosen.values() else (OVERRIDE, path)
        for name in [name for name in config if name in self._modules and name not in read]:
            section = config.pop(name)
            own = section.origins if isinstance(section, Section) and refuse else {}
            for key, origin in own.items():
                if (origin if origin == OVERRIDE else origin.rpartition(":")[0]) in places:
                    used = ", ".join(sorted(read - set(TRAINING_SECTIONS)))
                    self._fail(origin, f"{name}.{key} is not used: the model consists of {used}")
                    break

    def _sections_read(self, config: Section) -> set[str]:
        """Names of the classes that the model and its training consist of."""
        names = [config["architecture"], *(config.get("loggers") or ())]
        read, waiting = set(TRAINING_SECTIONS), [(name, Section()) for name in names]
        while waiting:
            name, in_place = waiting.pop()
            if not isinstance(name, str) or name not in self._modules or name in read:
                continue
            read.add(name)
            section = config.get(name)
            section = {**(section if isinstance(section, dict) else {}), **in_place}
            for key, default in _defaults(self._modules[name]).items():
                if self.takes_module(name, key):
                    value = section.get(key, default)
                    waiting.append((value.get("name"), value) if isinstance(value, dict) else (value, {}))
        return read

    def _check_levels(self, config: Section) -> None:
        """Check that size_ranges fits the number of levels, if the configuration sets either."""
        if config["architecture"] != "PPFCOS":
            return
        targets, neck, backbone = (self._part(config, key) for key in ("targets", "neck", "backbone"))
        levels = _number_of_levels(neck, backbone)
        if levels is None or targets.name != "PPFCOSTargets":
            return
        deciding = ((targets, "size_ranges"), (neck, "extra_levels"), (neck, "num_levels"))
        deciding = (*deciding, (backbone, "return_idx"))
        origins = [part.origins[key] for part, key in deciding if key in part.origins]
        ends = len(targets.arguments["size_ranges"])
        if origins and ends != levels - 1:
            self._fail(
                origins[0],
                f"PPFCOSTargets.size_ranges has {ends} upper limits, and {neck.name} has {levels} levels: "
                f"set {levels - 1} limits, or change {neck.name} or {backbone.name}.return_idx",
            )

    def _part(self, config: Section, key: str) -> _Part:
        schema = self._modules[config["architecture"]].schema
        value = (config.get(config["architecture"]) or {}).get(key, schema[key].default)
        in_place = value if isinstance(value, Section) else Section()
        name = in_place.get("name", value)
        section = config.get(name) or Section()
        arguments = {**_defaults(self._modules[name]), **section, **in_place}
        return _Part(name, arguments, {**section.origins, **in_place.origins})

    # The data ----------------------------------------------------------------------------------------------

    def _check_dataset(
        self, origin: str, key: str, section: Section, besides: Sequence[str] = ("name",)
    ) -> None:
        name = section.get("name")
        if name is None:
            self._fail(origin, f"{key} lacks `name`, one of {', '.join(sorted(self._datasets))}")
            return
        if name not in self._datasets:
            shown = quoted(str(name))
            self._fail(
                section.origins["name"], f"{key}.name: no data set {shown}{hint(name, self._datasets)}"
            )
            return
        if name in REFUSED_DATASETS:
            self._fail(section.origins["name"], f"{key}.name: {name} is refused: {REFUSED_DATASETS[name]}")
            return
        defaults = {**dict.fromkeys(OUR_DATASET_KEYS.get(name, ())), **_defaults(self._modules[name])}
        # Data sets ignore other keys in **kwargs.
        self._check_arguments(section, key, _Arguments(defaults, others=False), DATASET_ARGUMENTS, besides)
        members, listed = section.get(JOINED_DATASETS), section.origins.get(JOINED_DATASETS, origin)
        path = f"{key}.{JOINED_DATASETS}"
        if members and not self._check_kind(listed, path, members, LIST):
            return
        for index, member in enumerate(members or ()):
            inner = f"{path}.{index}"
            if not isinstance(member, Section):
                self._fail(listed, f"{inner} is a data set: write its `name` and keys as a mapping")
                continue
            self._check_dataset(listed, inner, member, besides=("name", *JOINED_DATASET_KEYS))
            for name, kind in JOINED_DATASET_KEYS.items():
                if name in member:
                    self._check_value(member, f"{inner}.{name}", name, kind)

    def _check_reader(self, reader: str, section: Section) -> None:
        self._check_table(reader, section, READER_KEYS[reader])
        for key, valid in (
            ("batch_transforms", BATCH_TRANSFORMS),
            ("sample_transforms", _sample_transforms()),
        ):
            if isinstance(section.get(key), list):
                is_mixing_allowed = reader == "TrainReader" and key == "sample_transforms"
                path = f"{reader}.{key}"
                self._check_transforms(section.origins[key], path, section[key], valid, is_mixing_allowed)

    def _check_transforms(
        self, origin: str, path: str, transforms: list, valid: Sequence[str], is_mixing_allowed: bool
    ) -> bool:
        """Check a list of transforms, each a mapping of its name to its arguments."""
        before = len(self._errors)
        for index, element in enumerate(transforms):
            if isinstance(element, Section) and len(element) == 1:
                self._check_transform(f"{path}.{index}", element, valid, is_mixing_allowed)
            else:
                self._fail(
                    origin, f"{path}.{index} should be a transform with its arguments, as `- Permute: {{}}`"
                )
        return len(self._errors) == before

    def _check_transform(
        self, path: str, element: Section, valid: Sequence[str], is_mixing_allowed: bool
    ) -> None:
        from ppfcos.data.transforms import MixTransform
        from ppfcos.data.transforms.uint8 import find_transform

        [(name, arguments)] = element.items()
        path, origin = f"{path}.{name}", element.origins[name]
        if name in REFUSED_TRANSFORMS:
            self._fail(origin, f"{path} is refused: {REFUSED_TRANSFORMS[name]}")
            return
        if name not in valid:
            self._unknown(origin, path, name, valid, "transform")
            return
        arguments = Section() if arguments is None else arguments
        operator = find_transform(name)
        is_right = self._check_kind(origin, path, arguments, MAPPING) and self._check_arguments(
            arguments, path, _arguments(operator), OPERATOR_ARGUMENTS.get(name, {})
        )
        if not is_right or name in BATCH_TRANSFORMS:  # PPFCOS pads batches itself
            return
        if not is_mixing_allowed and issubclass(operator, MixTransform):
            self._fail(
                origin,
                f"{path} is refused: it mixes several training images, so it must be an element of "
                "TrainReader.sample_transforms",
            )
            return
        for key in ("transforms1", "transforms2"):  # of RandomSelect
            if key in arguments and not self._check_transforms(
                arguments.origins[key], f"{path}.{key}", arguments[key], valid, False
            ):
                return
        try:
            operator(**arguments)
        except Exception as error:  # PaddleDetection's constructors raise any kind
            self._fail(origin, f"{path} cannot be used: {one_line(error)}")

    # The training ------------------------------------------------------------------------------------------

    def _check_operator_lists(self, config: Section) -> None:
        both = set(config.get("custom_white_list") or ()) & set(config.get("custom_black_list") or ())
        if both:
            self._fail(
                config.origins["custom_white_list"],
                f"custom_white_list and custom_black_list both contain {quoted(min(both))}: "
                "remove it from one of them",
            )

    def _check_schedulers(self, origin: str, path: str, schedulers: Any) -> None:
        """Check LearningRate.schedulers: a decay, followed by a warmup."""
        from ppdet.optimizer import optimizer

        if not isinstance(schedulers, list):  # already reported
            return
        before = len(self._errors)
        for index, section in enumerate(schedulers):
            inner_path = f"{path}.{index}"
            name = section.get("name") if isinstance(section, Section) else section
            if not isinstance(section, Section) or name not in SCHEDULES:
                shown = quoted(str(name))
                self._fail(origin, f"{inner_path}: no schedule {shown} is known{hint(name, SCHEDULES)}")
                continue
            known = _arguments(getattr(optimizer, name))
            if (
                self._check_arguments(section, inner_path, known, SCHEDULE_ARGUMENTS[name], ("name",))
                and name == "PiecewiseDecay"
            ):
                self._check_values_of_decay(origin, inner_path, {**known.defaults, **section})
        if len(self._errors) > before:
            return
        names = [section["name"] for section in schedulers]
        warms_up = bool(schedulers) and schedulers[0].get("use_warmup", True)
        is_decay = bool(names) and names[0] in DECAYS
        is_warmup = len(names) == 2 and names[1] in WARMUPS
        if not is_decay or not (is_warmup or (len(names) == 1 and not warms_up)):
            self._fail(
                origin,
                f"{path} should be a decay ({' or '.join(DECAYS)}) and a warmup ({' or '.join(WARMUPS)}), "
                "or a decay with use_warmup: false",
            )

    def _check_values_of_decay(self, origin: str, path: str, arguments: Mapping[str, Any]) -> None:
        milestones, gamma, values = (arguments[key] for key in ("milestones", "gamma", "values"))
        if values is not None and len(values) != len(milestones) + 1:
            self._fail(
                origin, f"{path}.values should have one value more than the {len(milestones)} milestones"
            )
        if values is None and isinstance(gamma, list) and len(gamma) != len(milestones):
            self._fail(origin, f"{path}.gamma should have {len(milestones)} values, one for each milestone")

    def _check_optimizer(self, origin: str, path: str, section: Any) -> None:
        """Check OptimizerBuilder.optimizer: `type`, a class of paddle.optimizer, and its arguments."""
        import paddle
        from ppdet.optimizer.adamw import build_adamwdl

        if not self._check_kind(origin, path, section, MAPPING):
            return
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
            origin, shown = section.origins.get("type", origin), quoted(str(kind))
            self._fail(origin, f"{path}.type: no optimizer {shown} is known{hint(kind, builders)}")
            return
        besides = ["type", "param_groups"]
        if "weight_decay" in section and kind not in ("AdamW", "AdamWDL"):
            besides.append("weight_decay")
            self._fail(
                section.origins["weight_decay"],
                f"{path}.weight_decay would be ignored: set OptimizerBuilder.regularizer.factor",
            )
        arguments = _arguments(builders[kind])
        own = {key: value for key, value in arguments.defaults.items() if key not in GIVEN_BY_BUILDER}
        self._check_arguments(
            section, path, arguments._replace(defaults=own), OPTIMIZER_ARGUMENTS, besides=besides
        )
        groups, path = section.get("param_groups", []), f"{path}.param_groups"
        if groups and self._check_kind(section.origins["param_groups"], path, groups, LIST):
            for index, group in enumerate(groups):
                origin = section.origins["param_groups"]
                self._check_param_group(origin, f"{path}.{index}", group, arguments)

    def _check_param_group(self, origin: str, path: str, group: Any, arguments: _Arguments) -> None:
        """Check the arguments for weights whose names contain one of `params`."""
        if not self._check_kind(origin, path, group, MAPPING):
            return
        self._check_arguments(group, path, arguments, OPTIMIZER_ARGUMENTS, besides=("params",))
        self._check_kind(group.origins.get("params", origin), f"{path}.params", group.get("params"), TEXTS)
        decay = group.get("weight_decay")
        if decay is not None and not isinstance(decay, float):
            # Paddle calls any other type as a function that computes the decay.
            self._fail(group.origins["weight_decay"], f"{path}.weight_decay should be a decimal, such as 0.0")

    def _check_regularizer(self, origin: str, path: str, section: Any) -> None:
        """Check OptimizerBuilder.regularizer: {type: L1 or L2, factor: number}, or nothing."""
        if section is None or section == "None" or not self._check_kind(origin, path, section, MAPPING):
            return
        kinds = {"type": one_of("L1", "L2"), "factor": number(0, 1000)}
        self._check_arguments(section, path, _Arguments(dict.fromkeys(kinds), False), kinds)
        for key in [key for key in kinds if key not in section]:
            self._check_kind(origin, f"{path}.{key}", None, kinds[key])


def _sample_transforms() -> list[str]:
    """Names of the transforms of an image, PaddleDetection's and ours."""
    from ppdet.data.transform.operators import registered_ops

    import ppfcos.data.transforms  # noqa: F401

    return [
        name for name in registered_ops if name not in REFUSED_TRANSFORMS and name not in BATCH_TRANSFORMS
    ]
