"""What becomes of a VMX instruction: the rows of instructions.csv, in order.

Source: Intel SDM vol. 3C, "VMX Instruction Reference" and "VM Entries".
"""

from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec import expression as ir
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import NO_VMCS, Mode
from vmxswitch.spec.tables import INSTRUCTIONS, SYMBOLS, expression

from .expression import lower
from .interface import (
    INSTRUCTION_ROWS,
    Code,
    Operation,
    Request,
    field_layout,
    register_layout,
    require_capabilities,
    symbol_values,
)
from .vmcs_bank import FieldSelect

__all__ = ["GENERAL_PROTECTION", "INVALID_OPCODE", "Decision", "Failures", "InstructionUnit"]

INVALID_OPCODE, GENERAL_PROTECTION = 6, 13  #: exception vectors


class Failures(data.Struct):
    """What is known to fail; it counts as soon as the decision no longer needs it."""
    controls: 1
    host:     1
    guest:    1
    list:     1  # an entry of the VM-entry MSR-load list


class Decision(data.Struct):
    """What the rows say. It holds if all that it ``needs`` is known; else more is to be found."""
    row:          range(len(INSTRUCTION_ROWS))
    code:         Code
    number:       16  # VM-instruction error or exit reason
    vector:       8   # exception, for FAULT
    error_code:   32
    has_code:     1   # the exception has an error code
    needs_word:   1   # the rows up to the deciding one read memory,
    needs_checks: 1   # the entry checks,
    needs_list:   1   # the VM-entry MSR-load list
    shadow:       1   # VMREAD or VMWRITE of the guest: an access to its shadow VMCS


class InstructionUnit(wiring.Component):
    """Combinational: evaluates the rows of the instruction at hand; the first true one decides.

    Each branch knows which symbols its own row and those before it read, so that nothing is read
    from memory and no check is waited for that the deciding row does not depend on.

    Parameters
    ----------
    capabilities : Capabilities
        The processor. Rows that it can never meet are left out.

    Members
    -------
    request : In(Request)
        The instruction at hand.
    named : In(FieldSelect)
        The field that bits 31:0 of its operand name.
    fields, live, mode : In
        The current VMCS, the running environment and the present mode.
    current_vmcs, vmxon_pointer : In(64), launched, shadow, resident, slot_shadow : In(1)
        From the VMCS pointers; the last two about the pointer in ``request``.
    word : In(64)
        What has been read from ``word_address``.
    failures : In(Failures)
        From the entry checks and the MSR-load list.
    decision : Out(Decision)
        What becomes of the instruction.
    word_address : Out(64)
        Where the word is that the rows read.
    select : Out(FieldSelect)
        Field that VMREAD or VMWRITE names.
    source : Out(64), wide : Out(1)
        Source operand; the core's registers have 64 bits in the present environment, else 32.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        super().__init__({
            "request": In(Request), "named": In(FieldSelect),
            "fields": In(field_layout(capabilities)),
            "live": In(register_layout(capabilities)), "mode": In(Mode),
            "current_vmcs": In(64), "vmxon_pointer": In(64), "launched": In(1), "shadow": In(1),
            "resident": In(1), "slot_shadow": In(1),
            "word": In(64), "failures": In(Failures),
            "decision": Out(Decision), "word_address": Out(64), "select": Out(FieldSelect),
            "source": Out(64), "wide": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        request, decision = self.request, self.decision
        operand = Signal(64)
        m.d.comb += [
            operand.eq(Mux(self.wide, request.operand, request.operand[:32])),
            self.source.eq(Mux(self.wide, request.source, request.source[:32])),
            self.word_address.eq(self._word_address(operand)),
            self.select.eq(self.named),
            self.select.exists.eq(self.named.exists & (operand[32:] == 0)),
        ]
        values = self._values(operand)
        m.d.comb += self.wide.eq(lower(self._capabilities.bind(expression("MODE64")), values))
        outcomes = [
            outcome.as_value() for name, rows in INSTRUCTIONS.items()
            for outcome in self._outcomes(m, name, rows, values)]
        m.d.comb += [
            decision.eq(reduce(or_, outcomes)),
            decision.shadow.eq(
                (self.mode == Mode.NON_ROOT)
                & request.operation.matches(Operation.VMREAD, Operation.VMWRITE)),
        ]
        return m

    def _values(self, operand):
        """Values of the symbols that conditions read."""
        request, failures = self.request, self.failures
        as_loaded = Cat(Const(self._capabilities.revision, 31), self.slot_shadow)
        return symbol_values(self._capabilities, fields=self.fields, live=self.live) | {
            "IN_VMX": self.mode != Mode.OFF, "NON_ROOT": self.mode == Mode.NON_ROOT,
            "CURRENT_VMCS": self.current_vmcs, "VMXON_POINTER": self.vmxon_pointer,
            "LAUNCHED": self.launched, "SHADOW_VMCS": self.shadow,
            "REGISTER_OPERAND": request.register_operand, "OPERAND_FAULT": request.operand_fault,
            "MOV_SS_BLOCKING": request.mov_ss_blocking,
            "POINTER": request.operand, "ENCODING": operand, "INVALIDATION": operand,
            "DESCRIPTOR_LOW": request.source, "DESCRIPTOR_HIGH": request.source_high,
            "EAX": request.operand[:32], "ECX": request.source[:32],
            "FIELD_EXISTS": self.select.exists,
            "REGION_WORD": Mux(self.resident, as_loaded, self.word[:32]), "LIST_EPTP": self.word,
            "BITMAP_BIT": self.word.bit_select(operand[:6], 1),
            "CONTROLS_FAIL": failures.controls, "HOST_FAILS": failures.host,
            "GUEST_FAILS": failures.guest, "MSR_LOAD_FAILS": failures.list,
        }

    def _word_address(self, operand):
        operation = self.request.operation
        address = self.request.operand
        for name, field, offset in [
            ("VMREAD", "VMREAD_BITMAP_ADDR", operand[6:15] << 3),
            ("VMWRITE", "VMWRITE_BITMAP_ADDR", operand[6:15] << 3),
            ("VMFUNC", "EPTP_LIST_ADDR", self.request.source[:9] << 3),
        ]:
            if field in self._capabilities.fields:
                address = Mux(operation == Operation[name], self.fields[field] + offset, address)
        return address

    def _outcomes(self, m, name, rows, values):
        """What the rows of an instruction say: all 0 but for the row that decides.

        One signal for each row rather than a chain of multiplexers, since the way from a condition
        to the decision is the longest of the unit.
        """
        named = self.request.operation == Operation[name]
        seen = set()  # symbols that this and earlier rows read: all must be known
        earlier = []
        for row, condition in self._capabilities.met(rows):
            seen |= ir.symbols(condition)
            applies = lower(condition, values)
            outcome = Signal(Decision, name=f"outcome_{row.id}")
            with m.If(named & applies & ~Cat(earlier).any()):
                m.d.comb += [
                    outcome.row.eq(INSTRUCTION_ROWS.index(row)),
                    outcome.needs_word.eq(self._needs_word(seen, values)),
                    outcome.needs_checks.eq("CONTROLS_FAIL" in seen),
                    outcome.needs_list.eq("MSR_LOAD_FAILS" in seen),
                    *self._ends(outcome, row),
                ]
            yield outcome
            earlier.append(applies)

    def _needs_word(self, seen, values):
        """Whether the rows read memory.

        A region's first word is not read while its VMCS is resident; a bitmap is read in the guest
        only, and for encodings that have a bit in it.
        """
        read = [name for name in seen if name in SYMBOLS and SYMBOLS[name].source == "memory"]
        if "BITMAP_BIT" in read:
            return lower(self._capabilities.bind(expression(
                "NON_ROOT and PROC2_VMCS_SHADOWING and ENCODING[63:15] == 0")), values)
        if "REGION_WORD" in read:
            return ~self.resident
        return bool(read)

    def _ends(self, decision, row):
        """Drive a decision from the row's outcome column."""
        number = row.number or 0
        code, vector = {
            "#UD": (Code.FAULT, INVALID_OPCODE), "#GP": (Code.FAULT, GENERAL_PROTECTION),
            "operand fault": (Code.FAULT, None),
            "VMfail": (Code.FAIL_VALID, 0), "VMfailInvalid": (Code.FAIL_INVALID, 0),
            "VMsucceed": (Code.SUCCEED, 0), "continue": (Code.CONTINUE, 0),
            "VM entry": (Code.ENTERED, 0), "entry failure": (Code.ENTRY_FAILURE, 0),
            "exit": (Code.EXIT, 0),
        }[row.kind]
        if code is Code.FAIL_VALID:
            none = self.current_vmcs == NO_VMCS
            return [decision.code.eq(Mux(none, Code.FAIL_INVALID, code)),
                    decision.number.eq(number)]
        if code is Code.FAULT:
            if vector is None:
                return [decision.code.eq(code), decision.vector.eq(self.request.vector),
                        decision.error_code.eq(self.request.error_code), decision.has_code.eq(1)]
            return [decision.code.eq(code), decision.vector.eq(vector),
                    decision.has_code.eq(vector == GENERAL_PROTECTION)]
        return [decision.code.eq(code), decision.number.eq(number)]
