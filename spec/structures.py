"""Sizes and offsets of the architecture's structures in memory that a VMCS points to.

Source: Intel SDM vol. 3C, "VM-Entry Controls for MSRs" (table "Format of an MSR Entry"); vol. 3A,
"Local APIC Register Address Map".
"""

__all__ = ["LIST_ENTRY_BYTES", "VTPR_OFFSET"]

LIST_ENTRY_BYTES = 16  #: of an MSR list: index, 32 bits that must be 0, data
VTPR_OFFSET = 0x80     #: of the virtual task-priority register in the virtual-APIC page
