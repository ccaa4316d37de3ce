"""Reference model: what the unit does, in plain Python, with the tables of ``spec`` as its rules.

It has no clock, no ports and no shared checks: it reads the same rows as the hardware, so that what
a comparison of the two tests is the machinery around them.

Ref: Intel SDM (325462), vol. 3C, "VM Entries", "VM Exits" and "VMX Instruction Reference".
Facts: instructions.csv, entry_checks.csv, registers.csv, exit_information.csv, exit_reasons.csv.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import (
    EDGES,
    NO_VMCS,
    Answer,
    Boundary,
    Delivery,
    Event,
    Instruction,
    Mode,
    Outcome,
    Sample,
    Transition,
)
from vmxswitch.spec.region import ABORT_OFFSET, SHADOW_BIT, WORD_BYTES
from vmxswitch.spec.structures import LIST_ENTRY_BYTES, VTPR_OFFSET
from vmxswitch.spec.tables import (
    EXIT_REASONS,
    FIELD_BY_ENCODING,
    SYMBOL_WIDTHS,
    implemented_reason,
)

from .memory import BusError, Fault, Memory
from .residents import Residents
from .rules import rules

__all__ = ["Model"]

INVALID_OPCODE, GENERAL_PROTECTION = 6, 13  # exception vectors
ADDRESS_MASK = (1 << 64) - 1
HOST_PDPTES = tuple(f"HOST_PDPTE{number}" for number in range(4))


class Inputs(dict):
    """Values of symbols during one operation, each found when an expression first reads it.

    So memory is read only if the rows come to it, and every value is the one before the operation
    changed anything.
    """

    def __init__(self, model: "Model", instruction: Instruction | None = None, **given: int):
        super().__init__(given)
        self.instruction = instruction
        self.failing = None        # failing entry checks, once they have been made
        self.failing_entry = None  # number of the MSR-list entry that they are about, from 1
        self.address = None        # of the MSR-list entry that this is
        self._model = model

    def __missing__(self, symbol):
        value = self[symbol] = self._model.value_of(symbol, self)
        return value

    def cause(self, event: Event):
        """Give the symbols that describe what moves the processor to the host."""
        self.update(
            EXIT_REASON=event.reason,
            EXIT_BY_INSTRUCTION=int(EXIT_REASONS[event.reason].by_instruction),
            CAUSE_QUALIFICATION=event.qualification, CAUSE_LENGTH=event.length,
            CAUSE_INFORMATION=event.information, CAUSE_LINEAR_ADDRESS=event.linear_address,
            CAUSE_PHYSICAL_ADDRESS=event.physical_address, CAUSE_NUMBER=event.number,
            CAUSE_VALUE=event.value, CAUSE_INTERRUPTION=event.interruption,
            CAUSE_ERROR_CODE=event.error_code, CAUSE_VECTORING=event.vectoring,
            CAUSE_VECTORING_ERROR_CODE=event.vectoring_error_code)


class Model:
    """A processor with the unit; implements :class:`vmxswitch.firmware.port.Port`.

    Where the architecture leaves a choice: control checks decide before host checks; the
    qualification of entry failure 33 is that of the first failing row in table order; VMCSs active
    at VMXOFF are lost; VMPTRLD of a resident VMCS reads nothing from memory. Which VMCSs are
    resident: :class:`~.residents.Residents`.

    Where memory fails (:meth:`fail_memory`) the answer is a bus error and nothing has changed but
    this: words that were written before are written; a VMCS that had to make room is in memory
    only. During a VM exit it is VMX abort 5.

    ``Answer.failing`` names every failing check of the stages control, host and guest, whichever of
    them decided; if none fails, the failing checks of the first bad MSR-list entry.

    RFLAGS after VMsucceed and VMfail are the processor's to set. Translations are not cached, so
    INVEPT and INVVPID have nothing to drop.

    Parameters
    ----------
    capabilities : Capabilities
        The processor to be.
    """

    def __init__(self, capabilities: Capabilities):
        self.capabilities = capabilities
        self.watcher: Callable[[Sample], None] | None = None
        self._rules = rules(capabilities)
        self._register_bits = {
            name: capabilities.bits(row) for name, row in capabilities.registers.items()}
        self._field_bits = {
            name: capabilities.bits(row) for name, row in capabilities.fields.items()}
        self._memory = Memory()
        self._residents = Residents(capabilities, self._memory)
        self.reset()

    # --- The port ---

    def reset(self) -> None:
        """Registers 0, outside VMX operation, memory all zero, cycle 0."""
        self.cycle = 0
        self._mode = Mode.OFF
        self._registers = dict.fromkeys(self._register_bits, 0)
        self._memory.clear()
        self._abort_code = 0
        self._vmxon_pointer = 0
        self._residents.forget()

    @property
    def mode(self) -> Mode:
        """Present mode."""
        return self._mode

    @property
    def current_vmcs(self) -> int:
        """Current-VMCS pointer; all ones if there is none."""
        return self._vmcs.pointer

    @property
    def launched(self) -> bool:
        """Whether the current VMCS is launched; False if there is none."""
        return self._vmcs.launched

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""
        if self._mode == Mode.ABORT:
            return Answer(Outcome.ABORT, error=self._abort_code)
        inputs = Inputs(self, instruction)
        self._memory.transfers = []
        try:
            row = next(row for row, condition in self._rules.instructions[instruction.name]
                       if condition(inputs))
            answer = self._OUTCOMES[row.kind](self, row, inputs)
        except BusError:
            answer = Answer(Outcome.BUS_ERROR)
        self._sample()
        return answer

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions one after the other."""
        return [self.execute(instruction) for instruction in instructions]

    def report(self, event: Event | Boundary) -> Answer:
        """Tell of a guest event; only in VMX non-root operation.

        Raises :exc:`UsageError` outside it, and for a reason whose rule exit_reasons.csv does not
        give as an expression: those are not implemented.
        """
        if self._mode != Mode.NON_ROOT:
            raise UsageError(f"{event}: no guest is running (mode {self._mode.name})")
        self._memory.transfers = []
        try:
            answer = self._boundary(event) if isinstance(event, Boundary) else self._event(event)
        except BusError:
            answer = Answer(Outcome.BUS_ERROR)
        self._sample()
        return answer

    def pass_time(self, ticks: int) -> None:
        """Let the VMX-preemption timer count.

        ``ticks`` (32 bits) is how often bit IA32_VMX_MISC[4:0] of the time-stamp counter changed.
        """
        if self._mode == Mode.NON_ROOT and self._rules.flags["TIMER_COUNTS"](Inputs(self)):
            timer = self._registers["PREEMPTION_TIMER"]
            self._registers["PREEMPTION_TIMER"] = max(timer - ticks, 0)
        self._sample()

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register of ``capabilities.registers`` by name."""
        return dict(self._registers)

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers of the live environment.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register; then nothing has changed.
        """
        for name, value in values.items():
            bits = self._register_bits[name]
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{value:#x} does not fit the {bits} bits of {name}")
        self._registers |= values

    def read_memory(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8, naturally aligned), little-endian, of physical memory."""
        return self._memory.read(address, size)

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8, naturally aligned), little-endian."""
        self._memory.write(address, size, value)

    def field(self, symbol: str) -> int:
        """A field of the current VMCS; 0 if the processor does not have it."""
        return self._vmcs.fields.get(symbol, 0)

    def memory_words(self) -> dict[int, int]:
        """Every 64-bit word of memory that is not 0, by address."""
        return self._memory.words()

    def fail_memory(self, address: int, fault: Fault | None) -> None:
        """Let memory fail the unit at the 64-bit word of ``address``, or no longer (None)."""
        self._memory.fail(address, fault)

    @property
    def transfers(self) -> list[int]:
        """Addresses of the 64-bit words that the last instruction or event needed of memory."""
        return self._memory.transfers

    def _sample(self):
        self.cycle += 1
        if self.watcher is not None:
            self.watcher(Sample(self.cycle, self._mode, self.read_registers()))

    # --- Guest events ---

    def _event(self, event):
        row = self._rules.events[implemented_reason(event.reason).number]
        inputs = Inputs(self, FIRST_BOUNDARY=0)
        inputs.cause(event)
        self._read_words(inputs)
        if row.undefined(inputs):
            return Answer(Outcome.FAULT, vector=INVALID_OPCODE)
        if row.exits(inputs):
            return self._exit("", inputs)
        if row.protection(inputs):
            return Answer(Outcome.FAULT, vector=GENERAL_PROTECTION, error_code=0)
        return Answer(Outcome.NO_EXIT, value=self._natural(row.value(inputs)))

    def _boundary(self, boundary):
        """The first event, by priority, that is pending and exits or is delivered."""
        pending = {
            "FIRST_BOUNDARY": int(boundary.first), "PENDING_NMI": int(boundary.nmi),
            "PENDING_INTERRUPT": int(boundary.interrupt), "PENDING_INIT": int(boundary.init),
            "PENDING_SIPI": int(boundary.sipi), "PENDING_VECTOR": boundary.vector}
        for candidate in self._rules.boundary:
            inputs = Inputs(self, **pending)
            if not candidate.pending(inputs):
                continue
            reason = candidate.row.reason
            inputs.cause(Event(reason, candidate.qualification(inputs),
                               interruption=candidate.interruption(inputs)))
            self._read_words(inputs)
            if self._rules.events[reason].exits(inputs):
                return self._exit("", inputs)
            if candidate.row.delivers:
                return Answer(
                    Outcome.NO_EXIT, delivery=Delivery(inputs["CAUSE_INTERRUPTION"]))
        return Answer(Outcome.NO_EXIT)

    def _read_words(self, inputs):
        """Read what the event's row may ask for, all of it before anything is decided."""
        for symbol, (when, address) in self._rules.words.items():
            word = self._memory.transfer_read(address(inputs)) if when(inputs) else 0
            inputs[symbol] = word & (1 << SYMBOL_WIDTHS[symbol]) - 1

    def _natural(self, value):
        return value & (1 << self.capabilities.natural_bits) - 1

    # --- Outcomes: what a row of instructions.csv ends in ---

    def _invalid_opcode(self, row, inputs):
        return Answer(Outcome.FAULT, row.id, vector=INVALID_OPCODE)

    def _general_protection(self, row, inputs):
        return Answer(Outcome.FAULT, row.id, vector=GENERAL_PROTECTION, error_code=row.number)

    def _operand_fault(self, row, inputs):
        vector, error_code = inputs.instruction.operand_fault
        return Answer(Outcome.FAULT, row.id, vector=vector, error_code=error_code)

    def _exit_by_instruction(self, row, inputs):
        instruction = inputs.instruction
        inputs.cause(Event(row.number, instruction.displacement, instruction.length,
                           instruction.information))
        return self._exit(row.id, inputs)

    def _fail_invalid(self, row, inputs):
        return Answer(Outcome.FAIL_INVALID, row.id)

    def _fail(self, row, inputs):
        if self._vmcs.pointer == NO_VMCS:
            return Answer(Outcome.FAIL_INVALID, row.id)
        self._write_field("VM_INSTRUCTION_ERROR", row.number)
        return Answer(Outcome.FAIL_VALID, row.id, error=row.number, failing=_ids(inputs.failing))

    def _succeed(self, row, inputs):
        return Answer(Outcome.SUCCEED, row.id, value=self._effect(row, inputs) or 0)

    def _continue(self, row, inputs):
        self._effect(row, inputs)
        return Answer(Outcome.CONTINUE, row.id)

    def _enter(self, row, inputs):
        delivery = None
        if self._rules.flags["VECTORING"](inputs):
            delivery = Delivery(
                inputs["VM_ENTRY_INTR_INFO"], inputs["VM_ENTRY_EXCEPTION_ERROR_CODE"],
                inputs["VM_ENTRY_INSTRUCTION_LENGTH"] & 0xF)
        self._effect(row, inputs)
        return Answer(Outcome.ENTERED, row.id, delivery=delivery)

    def _entry_failure(self, row, inputs):
        qualification = inputs.failing[0].check.failure.qualification
        if qualification is None:
            qualification = inputs.failing_entry
        inputs.cause(Event(row.number, qualification))
        information = self._information(inputs)
        registers, abort = self._host_state(inputs)
        self._vmcs.fields.update(information)
        if abort:
            return self._abort(abort, _ids(inputs.failing))
        self._registers = registers
        return Answer(Outcome.ENTRY_FAILURE, row.id, reason=row.number,
                      qualification=qualification, failing=_ids(inputs.failing))

    #: The method for each outcome. Outcomes that are missing are those of rows that no processor of
    #: ours can come to (dual-monitor treatment).
    _OUTCOMES = {
        "#UD": _invalid_opcode,
        "#GP": _general_protection,
        "operand fault": _operand_fault,
        "exit": _exit_by_instruction,
        "VMfailInvalid": _fail_invalid,
        "VMfail": _fail,
        "VMsucceed": _succeed,
        "continue": _continue,
        "VM entry": _enter,
        "entry failure": _entry_failure,
    }

    # --- Effects of instructions; what they return is the answer's value ---

    def _effect(self, row, inputs):
        return getattr(self, f"_effect_{row.instruction}")(inputs)

    def _effect_VMXON(self, inputs):
        self._residents.forget()
        self._vmxon_pointer = inputs["POINTER"]
        self._move(Transition.VMXON)

    def _effect_VMXOFF(self, inputs):
        self._residents.forget()
        self._move(Transition.VMXOFF)

    def _effect_VMCLEAR(self, inputs):
        self._residents.clear(inputs["POINTER"])

    def _effect_VMPTRLD(self, inputs):
        self._residents.load(inputs["POINTER"], bool(inputs["REGION_WORD"] & SHADOW_BIT))

    def _effect_VMPTRST(self, inputs):
        return self._vmcs.pointer

    def _effect_VMREAD(self, inputs):
        field, is_high = _component(inputs["ENCODING"])
        value = self._read_field(field)
        return self._operand(inputs, value >> 32 if is_high else value)

    def _effect_VMWRITE(self, inputs):
        field, is_high = _component(inputs["ENCODING"])
        value = self._operand(inputs, inputs.instruction.value)
        if is_high:
            value = (value & 0xFFFFFFFF) << 32 | self._read_field(field) & 0xFFFFFFFF
        self._write_field(field, value & (1 << self._field_bits[field]) - 1)

    def _effect_VMLAUNCH(self, inputs):
        self._enter_guest(inputs)
        self._vmcs.launched = True

    def _effect_VMRESUME(self, inputs):
        self._enter_guest(inputs)

    def _effect_VMFUNC(self, inputs):
        self._vmcs.fields["EPT_POINTER"] = inputs["LIST_EPTP"]
        if self._rules.flags["PROC2_EPT_VIOLATION_VE"](inputs):
            self._vmcs.fields["EPTP_INDEX"] = inputs["ECX"] & 0xFFFF

    def _effect_INVEPT(self, inputs):
        pass

    def _effect_INVVPID(self, inputs):
        pass

    def _operand(self, inputs, value):
        """A value as a register operand: 32 bits outside 64-bit mode."""
        return value if self._rules.flags["MODE64"](inputs) else value & 0xFFFFFFFF

    # --- Moves between the worlds; all new values are found before the first one is stored ---

    def _enter_guest(self, inputs):
        registers = self._values(self._rules.entry, inputs)
        for entry in self._msr_list(inputs, "VM_ENTRY_MSR_LOAD"):
            registers |= self._loaded_by(entry)
        self._registers = registers
        self._move(Transition.ENTRY)

    def _exit(self, row_id, inputs):
        saved = self._values(self._rules.save, inputs) | self._information(inputs)
        registers, abort = None, self._store_msrs(inputs)
        if not abort:
            registers, abort = self._host_state(inputs)
        self._vmcs.fields.update(saved)
        if abort:
            return self._abort(abort)
        self._registers = registers
        self._move(Transition.EXIT)
        return Answer(Outcome.EXIT, row_id, reason=inputs["EXIT_REASON"],
                      qualification=self._vmcs.fields["EXIT_QUALIFICATION"])

    def _store_msrs(self, inputs):
        """Go through the VM-exit MSR-store list; returns the code of a VMX abort, 0 if none."""
        try:
            for entry in self._msr_list(inputs, "VM_EXIT_MSR_STORE"):
                if self._rules.aborts[1](entry):
                    return 1
                source = self.capabilities.readable_msrs[entry["LIST_INDEX"]]
                value = self._registers[source] if isinstance(source, str) else source
                self._memory.transfer_write(entry.address + WORD_BYTES, value)
        except BusError:
            return 5
        return 0

    def _host_state(self, inputs):
        """The host's registers, MSR-load list included, and the code of a VMX abort or 0."""
        if self._rules.aborts[6](inputs):
            return None, 6
        try:
            if self._rules.flags["HOST_PAE"](inputs):
                for symbol in HOST_PDPTES:
                    inputs[symbol]  # all are read before one is looked at
            if self._rules.aborts[2](inputs):
                return None, 2
            registers = self._values(self._rules.host, inputs)
            for entry in self._msr_list(inputs, "VM_EXIT_MSR_LOAD"):
                if any(fails(entry) for _, fails in self._rules.list_checks):
                    return None, 4
                registers |= self._loaded_by(entry)
        except BusError:
            return None, 5
        return registers, 0

    def _abort(self, code, failing=()):
        """VMX abort: nothing but the indicator in the region tells of it."""
        with suppress(BusError):
            self._memory.transfer_write(self._vmcs.pointer + ABORT_OFFSET, code, 4)
        self._abort_code = code
        self._move(Transition.ABORT)
        return Answer(Outcome.ABORT, error=code, failing=failing)

    def _move(self, transition):
        self._mode = EDGES[self._mode, transition]

    def _values(self, functions, inputs):
        return {name: function(inputs) for name, function in functions.items()}

    def _information(self, inputs):
        return {field: value(inputs) for field, (when, value) in self._rules.information.items()
                if when(inputs)}

    def _msr_list(self, inputs, name) -> Iterator[Inputs]:
        """The entries of an MSR list, as inputs of their checks."""
        for number in range(inputs[f"{name}_COUNT"]):
            address = inputs[f"{name}_ADDR"] + LIST_ENTRY_BYTES * number & ADDRESS_MASK
            entry = Inputs(
                self, LIST_INDEX=self._memory.transfer_read(address, 4),
                LIST_RESERVED=self._memory.transfer_read(address + 4, 4),
                LIST_DATA=self._memory.transfer_read(address + WORD_BYTES))
            entry.address = address
            yield entry

    def _loaded_by(self, entry):
        """What a list entry loads, by register; at most one."""
        return {name: entry["LIST_DATA"] & (1 << self._register_bits[name]) - 1
                for name, row in self.capabilities.registers.items()
                if row.msr == entry["LIST_INDEX"]}

    # --- The current VMCS; for the guest's own VMX instructions, its shadow VMCS ---

    @property
    def _vmcs(self):
        return self._residents.current

    def _read_field(self, field):
        if self._mode == Mode.NON_ROOT:
            return self._residents.read(self._shadow_vmcs(), field)
        return self._vmcs.fields[field]

    def _write_field(self, field, value):
        if self._mode == Mode.NON_ROOT:
            self._residents.write(self._shadow_vmcs(), field, value)
        else:
            self._vmcs.fields[field] = value

    def _shadow_vmcs(self):
        """Pointer of the guest's shadow VMCS, which from now on is in memory only."""
        pointer = self._vmcs.fields["VMCS_LINK_POINTER"]
        self._residents.flush(pointer)
        return pointer

    # --- Values of symbols ---

    def value_of(self, symbol: str, inputs: Inputs) -> int:
        """The present value of a symbol that is not given with the operation."""
        if symbol in self._field_bits:
            return self._vmcs.fields[symbol]
        if symbol.startswith("LIVE_"):
            return self._registers[symbol.removeprefix("LIVE_")]
        return int(self._SYMBOLS[symbol](self, inputs))

    #: Symbols of symbols.csv; those of the capabilities are folded in, those of the source exit and
    #: of a list entry are given.
    _SYMBOLS = {
        "IN_VMX": lambda self, inputs: self._mode != Mode.OFF,
        "NON_ROOT": lambda self, inputs: self._mode == Mode.NON_ROOT,
        "CURRENT_VMCS": lambda self, inputs: self._vmcs.pointer,
        "VMXON_POINTER": lambda self, inputs: self._vmxon_pointer,
        "LAUNCHED": lambda self, inputs: self._vmcs.launched,
        "SHADOW_VMCS": lambda self, inputs: self._vmcs.shadow,
        "REGISTER_OPERAND": lambda self, inputs: inputs.instruction.register_operand,
        "OPERAND_FAULT": lambda self, inputs: inputs.instruction.operand_fault is not None,
        "MOV_SS_BLOCKING": lambda self, inputs: inputs.instruction.mov_ss_blocking,
        "POINTER": lambda self, inputs: inputs.instruction.pointer,
        "ENCODING": lambda self, inputs: self._operand(inputs, inputs.instruction.encoding),
        "INVALIDATION": lambda self, inputs: self._operand(inputs, inputs.instruction.invalidation),
        "DESCRIPTOR_LOW": lambda self, inputs: inputs.instruction.descriptor & (1 << 64) - 1,
        "DESCRIPTOR_HIGH": lambda self, inputs: inputs.instruction.descriptor >> 64,
        "EAX": lambda self, inputs: inputs.instruction.eax,
        "ECX": lambda self, inputs: inputs.instruction.ecx,
        "FIELD_EXISTS": lambda self, inputs: inputs["ENCODING"] in self.capabilities.encodings,
        "CONTROLS_FAIL": lambda self, inputs: self._fails(inputs, "control"),
        "HOST_FAILS": lambda self, inputs: self._fails(inputs, "host"),
        "GUEST_FAILS": lambda self, inputs: self._fails(inputs, "guest", "guest-nonregister"),
        "MSR_LOAD_FAILS": lambda self, inputs: self._list_fails(inputs),
        "REGION_WORD": lambda self, inputs: self._region_word(inputs["POINTER"]),
        "VTPR": lambda self, inputs: self._memory.transfer_read(
            inputs["VIRTUAL_APIC_ADDR"] + VTPR_OFFSET, 4) & 0xFF,
        "LINK_WORD": lambda self, inputs: self._memory.transfer_read(
            inputs["VMCS_LINK_POINTER"], 4),
        "BITMAP_BIT": lambda self, inputs: self._bitmap_bit(inputs),
        "LIST_EPTP": lambda self, inputs: self._memory.transfer_read(
            inputs["EPTP_LIST_ADDR"] + WORD_BYTES * inputs["ECX"]),
        "PDPTE0": lambda self, inputs: self._pdpte(inputs, 0),
        "PDPTE1": lambda self, inputs: self._pdpte(inputs, 1),
        "PDPTE2": lambda self, inputs: self._pdpte(inputs, 2),
        "PDPTE3": lambda self, inputs: self._pdpte(inputs, 3),
        "HOST_PDPTE0": lambda self, inputs: self._host_pdpte(inputs, 0),
        "HOST_PDPTE1": lambda self, inputs: self._host_pdpte(inputs, 1),
        "HOST_PDPTE2": lambda self, inputs: self._host_pdpte(inputs, 2),
        "HOST_PDPTE3": lambda self, inputs: self._host_pdpte(inputs, 3),
        "WRMSR_ACCEPTED": lambda self, inputs: self._wrmsr_accepted(inputs),
        "RDMSR_ACCEPTED": lambda self, inputs:
            inputs["LIST_INDEX"] in self.capabilities.readable_msrs,
    }

    def _fails(self, inputs, *stages):
        if inputs.failing is None:
            for symbol, wanted in self._rules.checked_words.items():
                if wanted(inputs):
                    inputs[symbol]  # all are read before the first check is made
            inputs.failing = [check for check, fails in self._rules.checks if fails(inputs)]
        return any(check.stage in stages for check in inputs.failing)

    def _list_fails(self, inputs):
        for number, entry in enumerate(self._msr_list(inputs, "VM_ENTRY_MSR_LOAD"), 1):
            if failing := [check for check, fails in self._rules.list_checks if fails(entry)]:
                inputs.failing, inputs.failing_entry = failing, number
                return True
        return False

    def _region_word(self, pointer):
        """Revision and shadow indicator of a region; of a resident VMCS's, as it was loaded."""
        if vmcs := self._residents.find(pointer):
            return self.capabilities.revision | vmcs.shadow << 31
        return self._memory.transfer_read(pointer, 4)

    def _bitmap_bit(self, inputs):
        bitmap = inputs[f"{inputs.instruction.name}_BITMAP_ADDR"]
        bit = inputs["ENCODING"] & 0x7FFF
        return self._memory.transfer_read(bitmap + bit // 64 * WORD_BYTES) >> bit % 64 & 1

    def _pdpte(self, inputs, number):
        if self._rules.flags["PROC2_ENABLE_EPT"](inputs):
            return inputs[f"GUEST_PDPTE{number}"]
        table = inputs["GUEST_CR3"] & 0xFFFFFFE0
        return self._memory.transfer_read(table + WORD_BYTES * number)

    def _host_pdpte(self, inputs, number):
        table = inputs["HOST_CR3"] & 0xFFFFFFE0
        return self._memory.transfer_read(table + WORD_BYTES * number)

    def _wrmsr_accepted(self, entry):
        accepts = self._rules.wrmsr.get(entry["LIST_INDEX"])
        return accepts is not None and accepts(entry)


def _component(encoding) -> tuple[str, bool]:
    """Field that an existing encoding names, and whether only its bits 63:32 are meant."""
    row = FIELD_BY_ENCODING[encoding]
    return FIELD_BY_ENCODING[encoding & ~1].symbol, row.is_high


def _ids(checks) -> tuple[str, ...]:
    return tuple(check.id for check in checks or ())
