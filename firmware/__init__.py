"""Software for the unit: VMM and its guests, driver, environments, readers and audits of dumps."""

from .auditing import Audit, audit

__all__ = ["Audit", "audit"]
