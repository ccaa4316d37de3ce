"""A whole dump tried on a processor: VMLAUNCH, and the rows that the processor's diagnosis names.

What no format prints is filled in: the link pointer is all ones, other fields are 0, and the
running environment is that of a VMM of the host's kind. So the processor may name rows that the
audit leaves undecided, but never one that the audit says passes, and always those that it says
fail.

Ref: Intel SDM (325462), vol. 3C, "Preparation and Launching a Virtual Machine".
"""

from collections.abc import Callable
from dataclasses import dataclass

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import to_function
from vmxswitch.spec.operations import NO_VMCS, Answer, Instruction
from vmxswitch.spec.structures import LIST_ENTRY_BYTES
from vmxswitch.spec.tables import FIELDS, REGISTERS, expression

from ..driver import Driver
from ..port import Port
from .audits import Audit

__all__ = ["Trial", "on"]

VMXON_REGION, VMCS_REGION, LIST = 0x1000, 0x2000, 0x3000  # physical addresses
HARMLESS_MSR = REGISTERS["SYSENTER_CS"].msr  # stands for entries that are not known


@dataclass(frozen=True)
class Trial:
    """What a processor made of a dump.

    Attributes
    ----------
    backend : str
        Where it ran.
    answer : Answer
        Of VMLAUNCH.
    unexpected : tuple of str
        Rows that the processor names and the audit says pass.
    unnamed : tuple of str
        Rows that the audit says fail and the processor does not name.
    """
    backend: str
    answer: Answer
    unexpected: tuple[str, ...]
    unnamed: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether processor and audit name the same rows, as far as these are decided."""
        return not self.unexpected and not self.unnamed

    @property
    def text(self) -> str:
        """One line."""
        named = " ".join(self.answer.failing) or "no row"
        told = f"{self.backend:<11}VMLAUNCH: {self.answer.outcome.value}; names {named}; "
        if self.agrees:
            return told + "agrees with the audit"
        return told + "DISAGREES: " + "; ".join(
            f"{what} {' '.join(rows)}" for what, rows in (
                ("it names what should pass:", self.unexpected),
                ("it does not name:", self.unnamed)) if rows)

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {"name": self.backend, "outcome": self.answer.outcome.value,
                "failing": list(self.answer.failing), "agrees": self.agrees}


def on(
    make: Callable[[Capabilities], Port], audit: Audit, source: str, backend: str,
) -> Trial:
    """Try a dump on a port that ``make`` gives for the processor.

    Raises
    ------
    :exc:`UsageError`
        If the dump is not whole, or not everything is known of the processor.
    """
    capabilities = audit.knowledge.capabilities
    if capabilities is None:
        raise UsageError("--backend needs a whole processor: give --capabilities with a preset or "
                         "a recorded profile, such as skylake_x_64")
    if not audit.complete:
        raise UsageError(f"{source}:{audit.dump.line}: --backend needs a whole dump; this one "
                         f"lacks {', '.join(audit.missing[:4])}")
    answer = _launch(make(capabilities), audit)
    failed = {finding.id for finding in audit.failed}
    named = set(answer.failing)
    if audit.verdict != "reason 34":  # other failures come before the list is read
        failed = {check for check in failed if check[0] != "M"}
    return Trial(
        backend, answer,
        tuple(sorted(named - failed - set(audit.undecided))), tuple(sorted(failed - named)))


def _launch(port: Port, audit: Audit) -> Answer:
    capabilities = port.capabilities
    fields = {"VMCS_LINK_POINTER": NO_VMCS} | audit.dump.fields
    environment = _environment(capabilities, fields)
    port.reset()
    port.write_registers(environment)
    for region in (VMXON_REGION, VMCS_REGION):
        port.write_memory(region, 4, capabilities.revision)
    driver = Driver(port)
    driver.vmxon(VMXON_REGION)
    driver.vmclear(VMCS_REGION)
    driver.vmptrld(VMCS_REGION)
    if audit.situation.entries:
        fields = fields | _list(port, audit)
    for symbol, value in fields.items():
        if symbol in capabilities.fields and FIELDS[symbol].access == "rw":
            driver.vmwrite(symbol, value)
    return port.execute(Instruction("VMLAUNCH"))


def _environment(capabilities: Capabilities, fields: dict[str, int]) -> dict[str, int]:
    """A VMM's registers: of the host's kind where the processor has a choice."""
    rule = capabilities.bind(expression("EXIT_HOST_ADDR_SPACE_SIZE"))
    long_mode = capabilities.intel64 and to_function(rule)({"VM_EXIT_CTLS": 0, **fields})
    registers = {
        "CR0": capabilities.msr("CR0_FIXED0") | 0x33, "RFLAGS": 2,
        "CR4": capabilities.msr("CR4_FIXED0") | 0x20,
        "CS_AR": 0xA09B if long_mode else 0xC09B, "SS_AR": 0xC093, "TR_AR": 0x8B,
        "EFER": 0x500 if long_mode else 0, "IA32_FEATURE_CONTROL": 5,
    }
    return {name: value for name, value in registers.items() if name in capabilities.registers}


def _list(port: Port, audit: Audit) -> dict[str, int]:
    """Put the known entries of the MSR-load list into memory; the fields that say where."""
    entries = {entry.place or 1: entry for entry in audit.situation.entries}
    for place in range(1, max(entries) + 1):
        address = LIST + LIST_ENTRY_BYTES * (place - 1)
        entry = entries.get(place)
        index, data, reserved = ((entry.index, entry.data, entry.reserved or 0) if entry
                                 else (HARMLESS_MSR, 0, 0))
        port.write_memory(address, 8, reserved << 32 | index)
        port.write_memory(address + 8, 8, data)
    return {"VM_ENTRY_MSR_LOAD_ADDR": LIST, "VM_ENTRY_MSR_LOAD_COUNT": max(entries)}
