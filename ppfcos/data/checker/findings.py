"""All that a check found, in an order in which it can be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ppfcos.data.checker.kinds import KINDS, TRAINING, Finding, Severity, consequence
from ppfcos.data.checker.responsibility import Geometry
from ppfcos.data.checker.rules import SectionCheck


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
    findings: list[Finding]
    geometry: Geometry
    settings: dict[str, int]

    def by_kind(self) -> Iterator[tuple[str, SectionCheck, list[Finding]]]:
        """The findings of one kind and section together, in the order of KINDS, worst first.

        Yields:
            A key of KINDS, the section, and at least one finding.
        """
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.kind, finding.section), []).append(finding)
        for severity in Severity:
            for name, kind in KINDS.items():
                for section in self.sections:
                    if kind.severity is severity and (name, section.raw.section) in groups:
                        yield name, section, groups[name, section.raw.section]

    def consequence(self, kind: str, section: SectionCheck) -> str:
        """What the training, or for the validation set the evaluation, does about a kind of finding."""
        text = consequence(kind, section.raw.section == TRAINING, section.raw.is_coco)
        return text.format(**self.settings)
