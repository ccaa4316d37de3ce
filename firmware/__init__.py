"""Software for the unit: VMM, driver, environments, readers of dumps, audits of VM entries."""

from .auditing import Audit, audit

__all__ = ["Audit", "audit"]
