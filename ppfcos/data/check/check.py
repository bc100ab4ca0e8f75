"""The whole check of a configuration's training and validation data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ppfcos.data.check.annotations import AnnotatedData, captured_warnings, read_annotations
from ppfcos.data.check.levels import Geometry
from ppfcos.data.check.rules import SectionCheck, compare_sections, find_duplicates
from ppfcos.data.datasets import build_dataset, describe_loss
from ppfcos.data.issues import ISSUE_TYPES, RARE, TRAINING, VALIDATION, Issue, Severity, describe_consequence
from ppfcos.data.loader import TrainLoader
from ppfcos.errors import ConfigError, PPFCOSError


@dataclass
class DataReport:
    """The result of a check.

    Attributes:
        sections: Training, validation, or both.
        issues: All of them, those of a section together.
        geometry: The input and the levels of the model.
        values: Numbers that the texts of ISSUE_TYPES name.
    """

    sections: list[SectionCheck]
    issues: list[Issue]
    geometry: Geometry
    values: dict[str, int]

    def by_type(self) -> Iterator[tuple[str, SectionCheck, list[Issue]]]:
        """The issues of one type and section together, worst first.

        Yields:
            A key of ISSUE_TYPES, the section, and at least one issue.
        """
        groups: dict[tuple[str, str], list[Issue]] = {}
        for issue in self.issues:
            groups.setdefault((issue.kind, issue.section), []).append(issue)
        for severity in Severity:
            for name, issue_type in ISSUE_TYPES.items():
                for section in self.sections:
                    if issue_type.severity is severity and (name, section.dataset.section) in groups:
                        yield name, section, groups[name, section.dataset.section]

    def consequence(self, kind: str, section: SectionCheck) -> str:
        """What training, or for the validation set the evaluation, does about a type of issue."""
        data = section.dataset
        return describe_consequence(kind, data.section == TRAINING, data.is_coco).format(**self.values)


def check_data(cfg: Mapping[str, Any], geometry: Geometry, workers: int) -> DataReport:
    """Read all training and validation data of a configuration once.

    Args:
        cfg: The configuration: TrainDataset, EvalDataset or both; and TrainReader, which is checked too.
        geometry: The input and the levels of the model.
        workers: Processes that decode images; 0 decodes in this one.

    Raises:
        ConfigError: The configuration has no data set, or one that cannot be understood.
        DataError: There is nothing to check, since files or folders are missing or not of their format; or a
            worker died.
    """
    names = [name for name in (TRAINING, VALIDATION) if cfg.get(name)]
    if not names:
        raise ConfigError(f"the configuration names no data: it has neither {TRAINING} nor {VALIDATION}")
    datasets = [read_annotations(cfg, name) for name in names]
    for data in datasets:
        _run_reader(cfg, data, [category.name for category in datasets[0].categories])
    limit = int((cfg.get("PPFCOSDecode") or {}).get("keep_top_k", 100))
    values = {
        "max_bad_images": int(cfg.get("max_bad_images", 100)),
        "limit": limit,
        "evaluation_limit": min(limit, int(cfg.get("max_detections", 100))),
        "rare": RARE,
    }
    sections = [
        SectionCheck(data, geometry, values["limit"], workers)
        if data.section == TRAINING
        else SectionCheck(data, None, values["evaluation_limit"], workers)
        for data in datasets
    ]
    issues = [issue for section in sections for issue in (*section.issues, *find_duplicates(section))]
    if len(sections) == 2:
        issues += compare_sections(*sections)
        in_both = {issue.where for issue in issues if issue.kind == "category-only-in-validation"}
        issues = [
            issue
            for issue in issues
            if (issue.kind, issue.section) != ("category-never-seen", TRAINING) or issue.where not in in_both
        ]
    return DataReport(sections, issues, geometry, values)


def _run_reader(cfg: Mapping[str, Any], data: AnnotatedData, class_names: list[str]) -> None:
    """Read the data as training does: what training refuses is reported, whatever else is found."""
    try:
        with captured_warnings():
            is_part = {each.name for each in data.categories} < set(class_names)
            read = build_dataset(cfg, data.section, class_names if is_part else None)
            loss = describe_loss(read)
            if loss:
                data.report("annotations-lost", data.source, loss)
            if data.section == TRAINING and cfg.get("TrainReader"):
                TrainLoader(cfg, read)
    except PPFCOSError as error:
        data.report("refused", data.source, " ".join(str(error).split()))
