"""Carries out the VMX instructions and decides what guest events end in.

Facts: instructions.csv, whose rows are evaluated in order. Source: Intel SDM vol. 3C, "VMX
Instruction Reference" and "VM Entries".
"""

from amaranth import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Const, symbols
from vmxswitch.spec.operations import NO_VMCS, Mode, Transition
from vmxswitch.spec.region import FIELDS_OFFSET, LAUNCH_OFFSET, WORD_BYTES
from vmxswitch.spec.tables import ABORTS, INSTRUCTIONS, SYMBOLS, expression

from .entry_checker import Wants
from .exit_unit import Verdict, word_layout
from .expression import lower
from .interface import (
    INSTRUCTION_ROWS,
    Code,
    Event,
    Operation,
    Request,
    Response,
    field_layout,
    register_layout,
    symbol_values,
)
from .memory_unit import Command
from .vmcs_bank import FieldSelect, VmcsBank

__all__ = ["Checks", "InstructionUnit", "Retired"]

UD, GP = 6, 13
ENTRY_BYTES = 16  # of an MSR list
#: VMX-abort codes.
SAVE_GUEST_MSR, LOAD_HOST_PDPTE, _, LOAD_HOST_MSR, MACHINE_CHECK, NOT_LONG_MODE = ABORTS
POINTER_MOVERS = (Operation.VMXON, Operation.VMXOFF, Operation.VMPTRLD, Operation.VMCLEAR)


class Checks(data.Struct):
    """What the entry checker says; see :class:`~.entry_checker.EntryChecker`."""
    settled:       1
    controls_fail: 1
    host_fails:    1
    guest_fails:   1
    qualification: 8
    list_fails:    1  # the entry of the MSR-load list at hand fails


class Retired(data.Struct):
    """An operation that has just ended."""
    valid:       1  # high for one cycle
    event:       1  # it was a guest event, else an instruction
    operation:   Operation
    row:         range(len(INSTRUCTION_ROWS))
    code:        Code
    mode_before: Mode
    checked:     1  # it came to the entry checks
    commit:      1  # ``live`` changed owner or went back to the host


class InstructionUnit(wiring.Component):
    """One operation at a time, one per cycle where nothing has to wait.

    An operation is accepted in cycle 0 and decided in cycle 1 if it needs no memory and, for VM
    entries, the checks are settled (they are not in the cycle after a write). The edge that
    ends the deciding cycle carries out everything: commit, mode, bank writes, response.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    requests : In(stream of Request), events : In(stream of Event)
        Operations in program order; the core offers one kind at a time. Events win a tie.
    responses : Out(stream of Response), verdicts : Out(stream of Response)
        What became of each request; of each event.
    fields, live, mode : In
        Resident VMCS, running environment, present mode.
    select : Out(FieldSelect), r_data : In(64), w_data : Out(64), w_stb : Out(1)
        Bank access of VMREAD and VMWRITE.
    checks : In(Checks), wants : In(Wants)
        From the entry checker.
    command, address, w_word, start : Out; done, error, word : In
        To and from the memory unit.
    w_launched : In(1), w_launched_stb : In(1)
        Launch state from a region that is being loaded.
    event, other : Out(Event), by_event : Out(1)
        To the exit unit: guest event at hand; what else moves the processor to the host.
    event_words : Out(:func:`~.exit_unit.word_layout`)
        To the exit unit: words read from memory for the event.
    word_wants, word_addresses, verdict, event_value, cause, qualification : In
        From the exit unit; ``qualification`` is what the exit writes.
    msr_value, store_fails, pae, pdptes_fail, long_mode_fails : In
        From the exit steps.
    transition : Out(Transition), strobe : Out(1)
        To the mode controller.
    enter : Out(1)
        The guest state goes live at the next edge.
    leave : Out(1)
        The host state goes live at the next edge.
    save : Out(1), inform : Out(1)
        Guest state is saved at the next edge; exit information is written.
    stage_stb : Out(1), unstage : Out(1)
        For the MSR-load list: keep the value at hand; forget all.
    error_number : Out(6), error_stb : Out(1)
        VMfailValid: VM_INSTRUCTION_ERROR to write at the next edge.
    eptp : Out(64), eptp_stb : Out(1), eptp_index : Out(16), eptp_index_stb : Out(1)
        VMFUNC EPTP switching: fields to write at the next edge.
    current_vmcs, vmxon_pointer : Out(64), launched : Out(1)
        Pointers and launch state of the resident VMCS.
    store_launched : Out(1)
        Launch state to write to a region.
    moving : Out(1)
        Combinational: a pointer may change at the next edge.
    busy : Out(1)
        An operation is being carried out; the core's register writes wait.
    checked : Out(1)
        A VM entry that came to its checks ends at the next edge.
    list_failed : Out(1)
        An entry of the MSR-load list has failed in this VM entry.
    retired : Out(Retired)
        Registered: the operation that ended at the last edge.
    """
    def __init__(self, capabilities: Capabilities):
        if not isinstance(capabilities, Capabilities):
            raise TypeError(f"Instruction unit wants Capabilities, not {capabilities!r}")
        self._capabilities = capabilities
        words = word_layout(capabilities)
        super().__init__({
            "requests": In(stream.Signature(Request)), "events": In(stream.Signature(Event)),
            "responses": Out(stream.Signature(Response)),
            "verdicts": Out(stream.Signature(Response)),
            "fields": In(field_layout(capabilities)), "live": In(register_layout(capabilities)),
            "mode": In(Mode),
            "select": Out(FieldSelect), "r_data": In(64), "w_data": Out(64), "w_stb": Out(1),
            "checks": In(Checks), "wants": In(Wants),
            "command": Out(Command), "address": Out(64), "w_word": Out(64), "start": Out(1),
            "done": In(1), "error": In(1), "word": In(64),
            "w_launched": In(1), "w_launched_stb": In(1),
            "event": Out(Event), "other": Out(Event), "by_event": Out(1),
            "event_words": Out(words), "word_wants": In(len(words.members)),
            "word_addresses": In(data.ArrayLayout(64, len(words.members))),
            "verdict": In(Verdict), "event_value": In(64), "cause": In(Event),
            "qualification": In(64), "msr_value": In(64), "store_fails": In(1), "pae": In(1),
            "pdptes_fail": In(1), "long_mode_fails": In(1),
            "transition": Out(Transition), "strobe": Out(1),
            "enter": Out(1), "leave": Out(1), "save": Out(1), "inform": Out(1),
            "stage_stb": Out(1), "unstage": Out(1),
            "error_number": Out(6), "error_stb": Out(1),
            "eptp": Out(64), "eptp_stb": Out(1), "eptp_index": Out(16), "eptp_index_stb": Out(1),
            "current_vmcs": Out(64, init=NO_VMCS), "vmxon_pointer": Out(64), "launched": Out(1),
            "store_launched": Out(1), "moving": Out(1), "busy": Out(1), "checked": Out(1),
            "list_failed": Out(1), "retired": Out(Retired),
        })

    def elaborate(self, platform):
        m = Module()
        self._accept(m)
        self._operands(m)
        self._decide(m)
        self._sequence(m)
        self._effects(m)
        self._respond(m)
        return m

    # --- acceptance ---

    def _accept(self, m):
        """One register for the operation at hand, filled when the one before it finishes."""
        self._valid = Signal()
        self._event = Signal()  # the operation is a guest event
        self._request = Signal(Request)
        self._event_payload = Signal(Event)
        self._finish = Signal()
        free = ~self._valid | self._finish
        m.d.comb += [
            self.events.ready.eq(free),
            self.requests.ready.eq(free & ~self.events.valid),
            self.busy.eq(self._valid),
        ]
        with m.If(free):
            m.d.sync += [
                self._valid.eq(self.events.valid | self.requests.valid),
                self._event.eq(self.events.valid),
                self._request.eq(self.requests.p),
                self._event_payload.eq(self.events.p),
            ]

    def _operands(self, m):
        """Operands as the present mode has them: registers are 32 bits outside 64-bit mode."""
        self._values = symbol_values(self._capabilities, fields=self.fields, live=self.live)
        self._mode64 = Signal()
        self._operand = Signal(64)
        self._source = Signal(64)
        self._shadow = Signal()    # the resident VMCS is a shadow VMCS
        self._word = Signal(64)    # what the deciding rows have read from memory
        request = self._request
        m.d.comb += [
            self._mode64.eq(self._value("MODE64")),
            self._operand.eq(Mux(self._mode64, request.operand, request.operand[:32])),
            self._source.eq(Mux(self._mode64, request.source, request.source[:32])),
        ]
        VmcsBank.decode(self._capabilities, m, self._operand, self.select)
        self._values |= {
            "IN_VMX": self.mode != Mode.OFF, "NON_ROOT": self.mode == Mode.NON_ROOT,
            "CURRENT_VMCS": self.current_vmcs, "VMXON_POINTER": self.vmxon_pointer,
            "LAUNCHED": self.launched, "SHADOW_VMCS": self._shadow,
            "REGISTER_OPERAND": request.register_operand, "OPERAND_FAULT": request.operand_fault,
            "MOV_SS_BLOCKING": request.mov_ss_blocking,
            "POINTER": request.operand, "ENCODING": self._operand, "INVALIDATION": self._operand,
            "DESCRIPTOR_LOW": request.source, "DESCRIPTOR_HIGH": request.source_high,
            "EAX": request.operand[:32], "ECX": request.source[:32],
            "FIELD_EXISTS": self.select.exists,
            "REGION_WORD": self._word[:32], "LIST_EPTP": self._word,
            "BITMAP_BIT": self._word.bit_select(self._operand[:6], 1),
        }

    def _value(self, text):
        return lower(self._capabilities.bind(expression(text)), self._values)

    # --- decision ---

    def _decide(self, m):
        """Evaluate the rows of the instruction at hand; the first true one decides."""
        self._row = Signal(range(len(INSTRUCTION_ROWS)))
        self._row_code = Signal(Code)
        self._number = Signal(16)  # error or exit reason of the row
        self._code = Signal(Code)  # of the operation at hand, instruction or event
        self._vector = Signal(8)
        self._error_code = Signal(32)
        self._has_code = Signal()
        self._needs_word = Signal()    # the rows up to the deciding one read memory,
        self._needs_checks = Signal()  # the entry checks,
        self._needs_list = Signal()    # the MSR-load list
        values = self._values | {
            "CONTROLS_FAIL": self.checks.controls_fail, "HOST_FAILS": self.checks.host_fails,
            "GUEST_FAILS": self.checks.guest_fails, "MSR_LOAD_FAILS": self.list_failed,
        }
        with m.Switch(self._request.operation):
            for name, rows in INSTRUCTIONS.items():
                with m.Case(Operation[name]):
                    self._decide_instruction(m, rows, values)
        self._abort = Signal(3)  # VMX-abort code; from then on nothing but a reset helps
        m.d.comb += self._code.eq(self._row_code)
        with m.If(self._event):
            m.d.comb += self._code.eq(Code.NO_EXIT)
            with m.If(self.mode == Mode.NON_ROOT):
                self._decide_event(m)
        with m.If(self._abort != 0):
            m.d.comb += self._code.eq(Code.ABORT)

    def _decide_event(self, m):
        with m.If(self.verdict.undefined):
            m.d.comb += [self._code.eq(Code.FAULT), self._vector.eq(UD), self._has_code.eq(0)]
        with m.Elif(self.verdict.exits):
            m.d.comb += self._code.eq(Code.EXIT)
        with m.Elif(self.verdict.protection):
            m.d.comb += [self._code.eq(Code.FAULT), self._vector.eq(GP), self._has_code.eq(1),
                         self._error_code.eq(0)]

    def _decide_instruction(self, m, rows, values):
        seen = set()  # symbols that this and earlier rows read: all must be known
        first = True
        for row in rows:
            condition = self._capabilities.bind(row.condition)
            seen |= symbols(condition)
            if condition == Const(1, 0):
                continue
            branch = m.If(lower(condition, values)) if first else (
                m.Else() if condition == Const(1, 1) else m.Elif(lower(condition, values)))
            first = False
            with branch:
                m.d.comb += [
                    self._row.eq(INSTRUCTION_ROWS.index(row)),
                    self._needs_word.eq(any(
                        SYMBOLS[name].source == "memory" for name in seen if name in SYMBOLS)),
                    self._needs_checks.eq("CONTROLS_FAIL" in seen),
                    self._needs_list.eq("MSR_LOAD_FAILS" in seen),
                    *self._outcome(row),
                ]
            if condition == Const(1, 1):
                break

    def _outcome(self, row):
        """Drive the decision from the row's outcome column."""
        number = row.number or 0
        code, vector = {
            "#UD": (Code.FAULT, UD), "#GP": (Code.FAULT, GP), "operand fault": (Code.FAULT, None),
            "VMfail": (Code.FAIL_VALID, 0), "VMfailInvalid": (Code.FAIL_INVALID, 0),
            "VMsucceed": (Code.SUCCEED, 0), "continue": (Code.CONTINUE, 0),
            "VM entry": (Code.ENTERED, 0), "entry failure": (Code.ENTRY_FAILURE, 0),
            "exit": (Code.EXIT, 0),
        }[row.kind]
        if code is Code.FAIL_VALID:
            none = self.current_vmcs == NO_VMCS
            return [self._row_code.eq(Mux(none, Code.FAIL_INVALID, code)), self._number.eq(number)]
        if code is Code.FAULT:
            if vector is None:
                return [self._row_code.eq(code), self._vector.eq(self._request.vector),
                        self._error_code.eq(self._request.error_code), self._has_code.eq(1)]
            return [self._row_code.eq(code), self._vector.eq(vector),
                    self._has_code.eq(vector == GP)]
        return [self._row_code.eq(code), self._number.eq(number)]

    # --- what must happen before the end ---

    def _sequence(self, m):
        """Reads before the decision, transfers before the end; then ``finish``."""
        request = self._request
        operation = request.operation
        free = (~self.responses.valid | self.responses.ready) & (
            ~self.verdicts.valid | self.verdicts.ready)
        self._fetched = Signal()  # memory has been read,
        self._listed = Signal()   # the MSR-load list gone through,
        self._moved = Signal()    # everything transferred, for the operation at hand
        self._bus_error = Signal()
        position = Signal(32)  # entries of the MSR-load list that are done
        self._position = position
        access = (operation == Operation.VMREAD) | (operation == Operation.VMWRITE)
        self._in_memory = in_memory = Signal()  # the access is one to the guest's shadow VMCS
        reads = self._needs_word & ~self._fetched & (~access | self._value(
            "NON_ROOT and PROC2_VMCS_SHADOWING and ENCODING[63:15] == 0"))
        succeeds = self._code == Code.SUCCEED
        fails = self._code == Code.FAIL_VALID
        moves = ~self._moved & Mux(in_memory, succeeds | fails, succeeds & (
            (operation == Operation.VMCLEAR)
            | ((operation == Operation.VMPTRLD) & (request.operand != self.current_vmcs))))
        m.d.comb += in_memory.eq(access & (self.mode == Mode.NON_ROOT))

        m.d.comb += self.w_word.eq(0)
        self._left = Signal()  # all that a move to the host does in memory is done
        got = Signal.like(self.word_wants)  # words of the event that have been read
        self._event_words(m, got)
        leaves = ~self._left & (self._code.matches(Code.EXIT, Code.ENTRY_FAILURE)) & (
            self.pae | self.long_mode_fails | (self.fields.VM_EXIT_MSR_LOAD_COUNT != 0)
            | ((self._code == Code.EXIT) & (self.fields.VM_EXIT_MSR_STORE_COUNT != 0)))
        with m.FSM():
            with m.State("EXECUTE"):
                with m.If(self._valid & self._event & ~self._bus_error & (self._abort == 0)):
                    with m.If((self.mode == Mode.NON_ROOT) & (self.word_wants & ~got).any()):
                        m.next = "EVENT WORD"
                    with m.Elif(leaves):
                        m.next = "LEAVE"
                    with m.Else():
                        m.d.comb += self._finish.eq(free)
                with m.Elif(self._valid & ~self._bus_error & (self._abort == 0)):
                    with m.If(self._needs_checks & ~self.checks.settled):
                        pass
                    with m.Elif(reads):
                        m.next = "READ"
                    with m.Elif(self._needs_checks & Cat(self.wants).any() & ~self._fetched):
                        m.next = "FETCH"
                    with m.Elif(self._needs_list & ~self._listed
                                & (self.fields.VM_ENTRY_MSR_LOAD_COUNT != 0)):
                        m.next = "LIST"
                    with m.Elif(moves & in_memory & fails):
                        m.next = "SHADOW ERROR"
                    with m.Elif(moves & in_memory):
                        m.next = "SHADOW READ"
                    with m.Elif(moves & (operation == Operation.VMCLEAR)
                                & (request.operand != self.current_vmcs)):
                        m.next = "CLEAR"
                    with m.Elif(moves):
                        m.next = "STORE"
                    with m.Elif(leaves):
                        m.next = "LEAVE"
                    with m.Else():
                        m.d.comb += self._finish.eq(free)
                with m.Elif(self._valid):
                    m.d.comb += self._finish.eq(free)
            with m.State("READ"):
                self._transfer(m, Command.READ, self._word_address())
                with m.If(self.done):
                    m.d.sync += [self._fetched.eq(1), self._word.eq(self.word)]
            with m.State("FETCH"):
                self._transfer(m, Command.FETCH, 0)
                with m.If(self.done):
                    m.d.sync += self._fetched.eq(1)
            with m.State("LIST"):
                m.d.comb += [
                    self.command.eq(Command.LIST_ENTRY), self.start.eq(1),
                    self.address.eq(self.fields.VM_ENTRY_MSR_LOAD_ADDR + position * ENTRY_BYTES),
                ]
                with m.If(self.done):
                    m.d.sync += position.eq(position + 1)
                    with m.If(self.error | self.checks.list_fails):
                        m.d.comb += self.unstage.eq(1)
                        m.d.sync += [self._bus_error.eq(self.error),
                                     self.list_failed.eq(~self.error), self._listed.eq(1)]
                        m.next = "EXECUTE"
                    with m.Else():
                        m.d.comb += self.stage_stb.eq(1)
                        with m.If(position + 1 == self.fields.VM_ENTRY_MSR_LOAD_COUNT):
                            m.d.sync += self._listed.eq(1)
                            m.next = "EXECUTE"
            with m.State("STORE"):
                with m.If(self.current_vmcs == NO_VMCS):
                    m.next = "LOAD"
                with m.Else():
                    m.d.comb += [self.command.eq(Command.STORE), self.start.eq(1),
                                 self.address.eq(self.current_vmcs)]
                    with m.If(self.done):
                        m.next = "EXECUTE"
                        m.d.sync += [self._moved.eq(1), self._bus_error.eq(self.error)]
                        with m.If((operation == Operation.VMPTRLD) & ~self.error):
                            m.d.sync += [self._moved.eq(0), self.current_vmcs.eq(NO_VMCS)]
                            m.next = "LOAD"
            with m.State("LOAD"):
                self._transfer(m, Command.LOAD, request.operand)
                with m.If(self.done):
                    m.d.sync += self._moved.eq(1)
            with m.State("CLEAR"):
                self._transfer(m, Command.WRITE, request.operand + LAUNCH_OFFSET)
                with m.If(self.done):
                    m.d.sync += self._moved.eq(1)
            with m.State("SHADOW READ"):
                m.d.comb += [self.command.eq(Command.READ), self.start.eq(1),
                             self.address.eq(self._shadow_address(self.select.number))]
                with m.If(self.done):
                    m.d.sync += [self._moved.eq(1), self._bus_error.eq(self.error)]
                    m.next = "EXECUTE"
                    with m.If((operation == Operation.VMWRITE) & ~self.error):
                        m.d.sync += self._moved.eq(0)
                        m.next = "SHADOW WRITE"
            with m.State("SHADOW WRITE"):
                self._transfer(m, Command.WRITE, self._shadow_address(self.select.number))
                m.d.comb += self.w_word.eq(self._shadow_value())
                with m.If(self.done):
                    m.d.sync += self._moved.eq(1)
            with m.State("SHADOW ERROR"):
                error = list(self._capabilities.fields).index("VM_INSTRUCTION_ERROR")
                self._transfer(m, Command.WRITE, self._shadow_address(error))
                m.d.comb += self.w_word.eq(self._number)
                with m.If(self.done):
                    m.d.sync += self._moved.eq(1)
            with m.State("EVENT WORD"):
                missing = self.word_wants & ~got
                for number in reversed(range(len(got))):
                    with m.If(missing[number]):
                        self._transfer(m, Command.READ, self.word_addresses[number])
                with m.If(self.done & ~self.error):
                    m.d.sync += got.eq(got | (missing & -missing))
            self._leave(m)
        with m.If(self._finish):
            m.d.sync += [flag.eq(0) for flag in (
                self._fetched, self._listed, self._moved, self._bus_error, self.list_failed,
                self._left, got, position)]

    def _event_words(self, m, got):
        """Words that decide about the event; those that are not read count as 0."""
        for number, symbol in enumerate(self.event_words.shape().members):
            word = Signal(len(Value.cast(self.event_words[symbol])), name=f"word_{symbol}")
            with m.If(self.done & ~got[number]):
                m.d.sync += word.eq(self.word)
            m.d.comb += self.event_words[symbol].eq(Mux(got[number], word, 0))

    def _leave(self, m):
        """What a move to the host does in memory before the commit: MSR lists, host PDPTEs.

        The VM-exit MSR-store list is for VM exits only. Everything that goes wrong is a VMX abort.
        """
        fields = self.fields
        code = Signal(3)      # of the VMX abort to come
        position = Signal(32)  # entries of the list at hand that are done

        def abort(number):
            m.d.sync += code.eq(number)
            m.next = "ABORT"

        def loads():
            with m.If(fields.VM_EXIT_MSR_LOAD_COUNT != 0):
                m.next = "LOAD MSR"
            with m.Else():
                m.d.sync += self._left.eq(1)
                m.next = "EXECUTE"

        with m.State("LEAVE"):
            m.d.comb += self.unstage.eq(1)
            m.d.sync += position.eq(0)
            m.next = "HOST"
            with m.If((self._code == Code.EXIT) & (fields.VM_EXIT_MSR_STORE_COUNT != 0)):
                m.next = "STORE MSR"
        with m.State("STORE MSR"):
            m.d.comb += [self.command.eq(Command.LIST_ENTRY), self.start.eq(1),
                         self.address.eq(fields.VM_EXIT_MSR_STORE_ADDR + position * ENTRY_BYTES)]
            with m.If(self.done):
                with m.If(self.error):
                    abort(MACHINE_CHECK)
                with m.Elif(self.store_fails):
                    abort(SAVE_GUEST_MSR)
                with m.Else():
                    m.next = "STORE MSR DATA"
        with m.State("STORE MSR DATA"):
            address = fields.VM_EXIT_MSR_STORE_ADDR + position * ENTRY_BYTES + WORD_BYTES
            m.d.comb += [self.command.eq(Command.WRITE), self.start.eq(1),
                         self.address.eq(address), self.w_word.eq(self.msr_value)]
            with m.If(self.done):
                m.d.sync += position.eq(position + 1)
                m.next = "STORE MSR"
                with m.If(self.error):
                    abort(MACHINE_CHECK)
                with m.Elif(position + 1 == fields.VM_EXIT_MSR_STORE_COUNT):
                    m.d.sync += position.eq(0)
                    m.next = "HOST"
        with m.State("HOST"):
            with m.If(self.long_mode_fails):
                abort(NOT_LONG_MODE)
            with m.Elif(self.pae):
                m.next = "HOST PDPTES"
            with m.Else():
                loads()
        with m.State("HOST PDPTES"):
            m.d.comb += [self.command.eq(Command.PDPTES), self.start.eq(1),
                         self.address.eq(fields.HOST_CR3 & 0xFFFFFFE0)]
            with m.If(self.done):
                with m.If(self.error):
                    abort(MACHINE_CHECK)
                with m.Elif(self.pdptes_fail):
                    abort(LOAD_HOST_PDPTE)
                with m.Else():
                    loads()
        with m.State("LOAD MSR"):
            m.d.comb += [self.command.eq(Command.LIST_ENTRY), self.start.eq(1),
                         self.address.eq(fields.VM_EXIT_MSR_LOAD_ADDR + position * ENTRY_BYTES)]
            with m.If(self.done):
                m.d.sync += position.eq(position + 1)
                with m.If(self.error):
                    abort(MACHINE_CHECK)
                with m.Elif(self.checks.list_fails):
                    abort(LOAD_HOST_MSR)
                with m.Else():
                    m.d.comb += self.stage_stb.eq(1)
                    with m.If(position + 1 == fields.VM_EXIT_MSR_LOAD_COUNT):
                        m.d.sync += self._left.eq(1)
                        m.next = "EXECUTE"
        with m.State("ABORT"):
            m.d.comb += [self.command.eq(Command.READ), self.start.eq(1),
                         self.address.eq(self.current_vmcs)]
            with m.If(self.done):
                m.next = "ABORT INDICATOR"
        with m.State("ABORT INDICATOR"):
            m.d.comb += [self.command.eq(Command.WRITE), self.start.eq(1),
                         self.address.eq(self.current_vmcs),
                         self.w_word.eq(Cat(self.word[:32], code))]
            with m.If(self.done):
                m.d.sync += self._abort.eq(code)
                m.next = "EXECUTE"

    def _transfer(self, m, command, address):
        """Hold a command until it is done; back to EXECUTE with what became of it."""
        m.d.comb += [self.command.eq(command), self.address.eq(address), self.start.eq(1)]
        with m.If(self.done):
            m.d.sync += self._bus_error.eq(self.error)
            m.next = "EXECUTE"

    def _word_address(self):
        """Where the word is that the rows of the instruction at hand read."""
        operation, fields = self._request.operation, self._capabilities.fields
        address = self._request.operand
        for name, field, offset in [
            ("VMREAD", "VMREAD_BITMAP_ADDR", self._operand[6:15] << 3),
            ("VMWRITE", "VMWRITE_BITMAP_ADDR", self._operand[6:15] << 3),
            ("VMFUNC", "EPTP_LIST_ADDR", self._request.source[:9] << 3),
        ]:
            if field in fields:
                address = Mux(operation == Operation[name], self.fields[field] + offset, address)
        return address

    def _shadow_address(self, number):
        """Where field ``number`` of the guest's shadow VMCS is."""
        return self.fields.VMCS_LINK_POINTER + FIELDS_OFFSET + number * WORD_BYTES

    def _shadow_value(self):
        """The shadow VMCS's field with the new value in it, cut to the field's width."""
        mask = Array((1 << self._capabilities.bits(row)) - 1
                     for row in self._capabilities.fields.values())[self.select.number]
        high = Cat(self.word[:32], self._source[:32])
        return Mux(self.select.high, high, self._source & mask)

    # --- effects ---

    def _effects(self, m):
        """Everything that happens at the edge that ends the operation."""
        request, operation = self._request, self._request.operation
        code = self._code
        done = self._finish & ~self._bus_error & ~self._event
        succeeds = done & (code == Code.SUCCEED)
        exits = self._finish & ~self._bus_error & (code == Code.EXIT)
        aborts = self._finish & (self._abort != 0) & (self.mode != Mode.ABORT)
        failure = done & (code == Code.ENTRY_FAILURE)
        m.d.comb += [
            self.enter.eq(done & (code == Code.ENTERED)),
            self.leave.eq(exits | failure),
            self.save.eq(exits | (aborts & (self.mode == Mode.NON_ROOT))),
            self.inform.eq(self.leave | aborts),
            self.error_stb.eq(done & (code == Code.FAIL_VALID) & ~self._in_memory),
            self.error_number.eq(self._number),
            self.w_data.eq(self._source),
            self.w_stb.eq(succeeds & (operation == Operation.VMWRITE) & ~self._in_memory),
            self.eptp.eq(self._word),
            self.eptp_index.eq(request.source[:16]),
            self.eptp_stb.eq(done & (code == Code.CONTINUE)),
            self.eptp_index_stb.eq(self.eptp_stb & self._value("PROC2_EPT_VIOLATION_VE")),
            self.event.eq(self._event_payload), self.by_event.eq(self._event),
            self.store_launched.eq(self.launched & (operation != Operation.VMCLEAR)),
            self.moving.eq(succeeds & operation.matches(*POINTER_MOVERS)),
            self.checked.eq(done & self._needs_checks & (self.mode != Mode.ABORT)),
            self.other.reason.eq(self._number),
            self.other.qualification.eq(request.displacement),
            self.other.length.eq(request.length),
            self.other.information.eq(request.information),
        ]
        with m.If(self._finish):
            m.d.comb += self.unstage.eq(1)
        with m.If(self._row_code == Code.ENTRY_FAILURE):
            m.d.comb += self.other.qualification.eq(
                Mux(self.list_failed, self._position, self.checks.qualification))
        for strobe, transition in [
            (succeeds & (operation == Operation.VMXON), Transition.VMXON),
            (succeeds & (operation == Operation.VMXOFF), Transition.VMXOFF),
            (self.enter, Transition.ENTRY), (exits, Transition.EXIT), (aborts, Transition.ABORT),
        ]:
            with m.If(strobe):
                m.d.comb += [self.strobe.eq(1), self.transition.eq(transition)]
        with m.If(self.enter):
            m.d.sync += self.launched.eq(1)
        with m.If(self.w_launched_stb):
            m.d.sync += self.launched.eq(self.w_launched)
        with m.If(succeeds):
            with m.Switch(operation):
                with m.Case(Operation.VMXON):
                    m.d.sync += [self.vmxon_pointer.eq(request.operand),
                                 self.current_vmcs.eq(NO_VMCS)]
                with m.Case(Operation.VMXOFF):
                    m.d.sync += self.current_vmcs.eq(NO_VMCS)
                with m.Case(Operation.VMPTRLD):
                    m.d.sync += [self.current_vmcs.eq(request.operand),
                                 self._shadow.eq(self._word[31])]
                with m.Case(Operation.VMCLEAR):
                    with m.If(request.operand == self.current_vmcs):
                        m.d.sync += self.current_vmcs.eq(NO_VMCS)

    def _respond(self, m):
        """Register the answer."""
        response = Signal(Response)
        whole = Mux(self._in_memory, Mux(self.select.high, self.word[32:], self.word), self.r_data)
        value = Mux(self._request.operation == Operation.VMPTRST, self.current_vmcs,
                    Mux(self._mode64, whole, whole[:32]))
        m.d.comb += [
            response.code.eq(Mux(self._bus_error, Code.BUS_ERROR, self._code)),
            response.row.eq(self._row),
            response.error.eq(Mux(self._abort != 0, self._abort, self._number)),
            response.vector.eq(self._vector),
            response.error_code.eq(self._error_code),
            response.has_code.eq(self._has_code),
            response.value.eq(Mux(
                self._event, self.event_value[:self._capabilities.natural_bits], value)),
            response.reason.eq(self.cause.reason),
            response.qualification.eq(self.qualification),
        ]
        with m.If(self._event & (self._code == Code.NO_EXIT) & self.verdict.delivers
                  & (self.mode == Mode.NON_ROOT)):
            m.d.comb += response.delivery.eq(self.cause.interruption)
        with m.Elif((self._code == Code.ENTERED) & self._value("VECTORING")):
            m.d.comb += [
                response.delivery.eq(self.fields.VM_ENTRY_INTR_INFO),
                response.error_code.eq(self.fields.VM_ENTRY_EXCEPTION_ERROR_CODE),
                response.length.eq(self.fields.VM_ENTRY_INSTRUCTION_LENGTH),
            ]
        for port, mine in ((self.responses, ~self._event), (self.verdicts, self._event)):
            with m.If(port.ready):
                m.d.sync += port.valid.eq(0)
            with m.If(self._finish & mine):
                m.d.sync += [port.valid.eq(1), port.p.eq(response)]
        m.d.sync += [
            self.retired.valid.eq(self._finish),
            self.retired.event.eq(self._event),
            self.retired.operation.eq(self._request.operation),
            self.retired.row.eq(self._row),
            self.retired.code.eq(response.code),
            self.retired.mode_before.eq(self.mode),
            self.retired.checked.eq(self.checked),
            self.retired.commit.eq(self.enter | self.leave),
        ]
