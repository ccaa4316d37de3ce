"""Audits of VMCS dumps: why did my VM entry fail? See ``docs/audit.md``."""

from .audits import Audit, Finding, audit, audit_lines
from .knowledge import Knowledge

__all__ = ["Audit", "Finding", "Knowledge", "audit", "audit_lines"]
