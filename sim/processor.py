"""The processor around a unit: what a core does itself before and beside the VMX instructions.

It works on any ``Port`` (:mod:`vmxswitch.firmware.port`), so the same set-up and the same recorded
cases run on the reference model and on the hardware.

Ref: Intel SDM (325462), vol. 3A, "Control Registers"; vol. 3C, "Restrictions on VMX Operation";
vol. 3D, appendix A; vol. 4, IA32_FEATURE_CONTROL.
"""

from collections.abc import Mapping

from vmxswitch.spec.operations import Answer, Instruction, Mode, Outcome

from .rules import rules

__all__ = [
    "AR_L", "CR4_PAE", "CR4_PCIDE", "DERIVED", "EFER_LMA", "EFER_LME", "Fault", "Processor",
]

#: Entries of an environment that are no registers, with the numbers that they may take: operand
#: size (it follows from EFER and CS), privilege level (in SS_AR), 64-bit code segment (in CS_AR).
DERIVED = {"MODE": (32, 64), "CPL": (0, 1, 2, 3), "CS_L": (0, 1)}

GENERAL_PROTECTION = 13
FEATURE_CONTROL = 0x3A
CAPABILITY_MSRS = range(0x480, 0x494)

CR0_PE, CR0_ET, CR0_WP, CR0_NW, CR0_CD, CR0_PG = (1 << bit for bit in (0, 4, 16, 29, 30, 31))
CR0_WRITABLE = 0xE005_003F  # the other bits ignore what is written
CR4_PAE, CR4_LA57, CR4_VMXE, CR4_PCIDE, CR4_CET = (1 << bit for bit in (5, 12, 13, 17, 23))
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
AR_DPL, AR_L = 3 << 5, 1 << 13

#: Outcomes after which another environment than the instruction's is live.
MOVED = {Outcome.ENTERED, Outcome.ENTRY_FAILURE, Outcome.EXIT}


class Fault(Exception):
    """An exception that an instruction of the processor ended in; it had no effect."""

    def __init__(self, vector: int, error_code: int | None = None):
        super().__init__(f"exception {vector}, error code {error_code}")
        self.vector, self.error_code = vector, error_code


class Processor:
    """A core that has a unit at its side.

    Parameters
    ----------
    port : Port
        The unit and the live registers.
    """

    def __init__(self, port):
        self.port = port
        self._capabilities = port.capabilities

    def set_up(self, environment: Mapping[str, int]) -> None:
        """Give the live registers the values of an environment; the others stay as they are."""
        self.port.write_registers(self._as_registers(environment))

    def environment(self) -> dict[str, int]:
        """The live environment: every register, and the :data:`DERIVED` entries."""
        registers = self.port.read_registers()
        return registers | {
            "MODE": 64 if self._is_64_bit(registers) else 32,
            "CPL": _privilege(registers),
            "CS_L": int(bool(registers["CS_AR"] & AR_L)),
        }

    def execute(self, instruction: Instruction, environment: Mapping[str, int]) -> Answer:
        """Carry out a VMX instruction with some entries of the environment changed for it alone."""
        changed = self._as_registers(environment)
        registers = self.port.read_registers() if changed else {}
        self.port.write_registers(changed)
        answer = self.port.execute(instruction)
        if answer.outcome not in MOVED:
            self.port.write_registers({name: registers[name] for name in changed})
        return answer

    def read_msr(self, index: int) -> int:
        """RDMSR. It knows IA32_FEATURE_CONTROL, the capability MSRs and what a list may load."""
        registers = self.port.read_registers()
        self._demand(_privilege(registers) == 0)
        if index in CAPABILITY_MSRS:
            self._demand(index in self._capabilities.msrs)
            return self._capabilities.msrs[index]
        return registers[self._register_of(index)]

    def write_msr(self, index: int, value: int) -> None:
        """WRMSR, to the MSRs that :meth:`read_msr` knows."""
        registers = self.port.read_registers()
        self._demand(_privilege(registers) == 0)
        if index == FEATURE_CONTROL:
            locked = registers["IA32_FEATURE_CONTROL"] & 1
            self._demand(not locked and value <= 0b111)
        else:
            accepts = rules(self._capabilities).wrmsr.get(index)
            self._demand(accepts is not None and accepts({"LIST_DATA": value}))
        name = self._register_of(index)
        bits = self._capabilities.bits(self._capabilities.registers[name])
        self.port.write_registers({name: value & (1 << bits) - 1})

    def move_to_cr(self, number: int, value: int) -> None:
        """MOV to CR0 or CR4 outside the guest."""
        registers = self.port.read_registers()
        self._demand(_privilege(registers) == 0)
        if self.port.mode == Mode.ROOT:
            self._demand(~value & self._capabilities.msr(f"CR{number}_FIXED0") == 0)
            self._demand(value & ~self._capabilities.msr(f"CR{number}_FIXED1") == 0)
        change = {0: self._move_to_cr0, 4: self._move_to_cr4}[number]
        self.port.write_registers(change(value, registers))

    def _move_to_cr0(self, value, registers):
        cr4, efer = registers["CR4"], registers.get("EFER", 0)
        paging, was_paging = value & CR0_PG, registers["CR0"] & CR0_PG
        self._demand(value < 1 << 32)
        self._demand(not paging or value & CR0_PE)
        self._demand(not value & CR0_NW or value & CR0_CD)
        self._demand(not cr4 & CR4_CET or value & CR0_WP)
        changes = {"CR0": value & CR0_WRITABLE | CR0_ET}
        if paging and not was_paging and efer & EFER_LME:
            self._demand(cr4 & CR4_PAE and not registers["CS_AR"] & AR_L)
            changes["EFER"] = efer | EFER_LMA
        if was_paging and not paging:
            self._demand(not self._is_64_bit(registers) and not cr4 & CR4_PCIDE)
            if "EFER" in registers:
                changes["EFER"] = efer & ~EFER_LMA
        return changes

    def _move_to_cr4(self, value, registers):
        long_mode = registers.get("EFER", 0) & EFER_LMA
        changed = value ^ registers["CR4"]
        self._demand(value & ~self._capabilities.msr("CR4_FIXED1") == 0)
        self._demand(not long_mode or value & CR4_PAE and not changed & CR4_LA57)
        self._demand(not value & changed & CR4_PCIDE or long_mode and not registers["CR3"] & 0xFFF)
        self._demand(not value & CR4_CET or registers["CR0"] & CR0_WP)
        return {"CR4": value}

    def _demand(self, holds):
        """Raise #GP(0) unless the condition holds."""
        if not holds:
            raise Fault(GENERAL_PROTECTION, 0)

    def _register_of(self, msr):
        for name, row in self._capabilities.registers.items():
            if row.msr == msr:
                return name
        raise Fault(GENERAL_PROTECTION, 0)

    def _is_64_bit(self, registers):
        return bool(registers.get("EFER", 0) & EFER_LMA and registers["CS_AR"] & AR_L)

    def _as_registers(self, environment):
        """Registers that an environment names, the :data:`DERIVED` entries put where they live."""
        registers = {name: value for name, value in environment.items() if name not in DERIVED}
        for name, register, mask in (("CPL", "SS_AR", AR_DPL), ("CS_L", "CS_AR", AR_L)):
            if name in environment:
                if register not in registers:
                    registers[register] = self.port.read_registers()[register]
                lowest_bit = mask & -mask
                registers[register] = registers[register] & ~mask | environment[name] * lowest_bit
        return registers


def _privilege(registers):
    return (registers["SS_AR"] & AR_DPL) >> 5
