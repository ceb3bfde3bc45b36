"""Pictures and pages about models and datasets."""

from __future__ import annotations

from genworker.report.sheet import Block, contact_sheet

__all__ = ["Block", "contact_sheet"]
