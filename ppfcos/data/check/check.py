"""The whole check: annotations, pictures, and what the readers of the training say to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppfcos import environment
from ppfcos.data.check.levels import Geometry
from ppfcos.data.check.images import Look, Task, look_at_all
from ppfcos.data.issues import ISSUE_TYPES, RARE, TRAINING, VALIDATION, Issue, Severity, consequence
from ppfcos.data.check.annotations import CocoSource, RawData, RawSource, RecordsSource, VocSource, log_lines
from ppfcos.data.check.rules import SectionCheck, between, duplicates, trained_boxes
from ppfcos.errors import ConfigError, PPFCOSError


@dataclass
class DataReport:
    """What a check found.

    Attributes:
        sections: Training, validation, or both.
        findings: All of them, those of a section together.
        geometry: At which sizes the boxes were looked at.
        settings: Figures that the texts of KINDS name.
    """

    sections: list[SectionCheck]
    findings: list[Issue]
    geometry: Geometry
    settings: dict[str, int]

    def by_type(self) -> Iterator[tuple[str, SectionCheck, list[Issue]]]:
        """The findings of one kind and section together, in the order of KINDS, worst first.

        Yields:
            A key of KINDS, the section, and at least one finding.
        """
        groups: dict[tuple[str, str], list[Issue]] = {}
        for finding in self.findings:
            groups.setdefault((finding.kind, finding.section), []).append(finding)
        for severity in Severity:
            for name, kind in KINDS.items():
                for section in self.sections:
                    if kind.severity is severity and (name, section.dataset.section) in groups:
                        yield name, section, groups[name, section.dataset.section]

    def consequence(self, kind: str, section: SectionCheck) -> str:
        """What the training, or for the validation set the evaluation, does about a kind of finding."""
        text = consequence(kind, section.dataset.section == TRAINING, section.dataset.is_coco)
        return text.format(**self.settings)


_SOURCES = {"COCODataSet": CocoSource, "PPFCOSVOCDataSet": VocSource}


def check_data(cfg: Mapping[str, Any], geometry: Geometry, workers: int) -> DataReport:
    """Reads all of a configuration's training and validation data once.

    Args:
        cfg: The configuration: TrainDataset, EvalDataset or both; and TrainReader, where a batch of it is to
            be possible.
        geometry: Sizes and rules of responsibility.
        workers: Processes that read images; 0 reads in this one.

    Returns:
        What was found.

    Raises:
        ConfigError: There is no data set in the configuration, or one that cannot be understood.
        DataError: There is nothing to check, since files or folders are missing or not of their format; or a
            reading process died.
    """
    names = [name for name in (TRAINING, VALIDATION) if cfg.get(name)]
    if not names:
        raise ConfigError(f"the configuration names no data: it has neither {TRAINING} nor {VALIDATION}")
    raws = [_source(cfg, name).read() for name in names]
    for raw in raws:
        _ask_the_readers(cfg, raw)
    settings = {
        "max_bad_images": int(cfg.get("max_bad_images", 100)),
        "limit": int((cfg.get("PPFCOSDecode") or {}).get("keep_top_k", 100)),
        "rare": RARE,
    }
    sections = []
    for raw in raws:
        rules = geometry if raw.section == TRAINING else None
        sections.append(SectionCheck(raw, _look(raw, rules, workers), rules, settings["limit"]))
    return DataReport(sections, _all_findings(sections), geometry, settings)


def _source(cfg: Mapping[str, Any], section: str) -> RawSource:
    arguments = {key: value for key, value in cfg[section].items() if key != "name"}
    reader = _SOURCES.get(cfg[section].get("name"))
    return reader(section, arguments) if reader else RecordsSource(cfg, section)


def _ask_the_readers(cfg: Mapping[str, Any], raw: RawData) -> None:
    """Has the training's own code read the data: what it refuses is refused, whatever is found here."""
    with environment.quiet_imports():
        from ppfcos.data.datasets import build_dataset
        from ppfcos.data.loader import TrainLoader

    try:
        with log_lines():
            data = build_dataset(cfg, raw.section)
            if raw.section == TRAINING and cfg.get("TrainReader"):
                TrainLoader(cfg, data)
    except PPFCOSError as error:
        raw.find("refused", raw.source, " ".join(str(error).split()))


def _look(raw: RawData, geometry: Geometry | None, workers: int) -> list[Look]:
    tasks = [Task(image.path, image.size, trained_boxes(image, raw), geometry) for image in raw.images]
    return look_at_all(tasks, workers, raw.section)


def _all_findings(sections: Sequence[SectionCheck]) -> list[Issue]:
    findings = []
    for section in sections:
        findings += section.issues + duplicates(section)
    if len(sections) == 2:
        findings += between(*sections)
        both = {finding.where for finding in findings if finding.kind == "category-only-in-validation"}
        findings = [
            finding
            for finding in findings
            if not (finding.kind == "category-never-seen" and finding.section == TRAINING)
            or finding.where not in both
        ]
    return findings
