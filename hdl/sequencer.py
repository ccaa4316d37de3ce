"""Carries out one operation after the other: transfers first, then one edge with every effect.

Source: Intel SDM vol. 3C, "VMX Instruction Reference", "VM Entries", "VM Exits"; the column
``effects`` of instructions.csv.
"""

from amaranth import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode, Transition
from vmxswitch.spec.region import FIELDS_OFFSET, LAUNCH_OFFSET, WORD_BYTES
from vmxswitch.spec.structures import LIST_ENTRY_BYTES
from vmxswitch.spec.tables import expression

from .entry_checker import Wants
from .exit_unit import Verdict, word_layout
from .expression import lower
from .instruction_unit import GENERAL_PROTECTION, INVALID_OPCODE, Decision
from .interface import (
    INSTRUCTION_ROWS,
    Code,
    Event,
    Operation,
    Request,
    Response,
    field_layout,
    require_capabilities,
    symbol_values,
)
from .memory_unit import Command, CommandSignature
from .vmcs_bank import FieldSelect, VmcsBank
from .vmcs_pointers import Change

__all__ = ["Retired", "Sequencer"]

#: Instructions after which the pointers that checks compare with may have changed.
POINTER_MOVERS = (Operation.VMXON, Operation.VMXOFF, Operation.VMPTRLD, Operation.VMCLEAR)


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
    launched:    1  # at all times: launch state of the current VMCS, 0 if there is none
    current_vmcs: 64  # at all times: current-VMCS pointer


class Sequencer(wiring.Component):
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
    request : Out(Request), event : Out(Event), by_event : Out(1)
        The operation at hand; it is the event if ``by_event``, else the request.
    named : Out(FieldSelect), show : Out(FieldSelect)
        The field that bits 31:0 of the request's operand name; the one that the bank is to show
        after the next edge.
    busy : Out(1)
        An operation is at hand; the core's register writes wait.
    fields, mode : In
        The current VMCS and the present mode.
    decision : In(Decision), word_address : In(64), source : In(64), select : In, wide : In(1)
        From the instruction unit, about ``request``.
    word : Out(64), list_failed : Out(1)
        To the instruction unit: the word read; an entry of the MSR-load list has failed.
    settled : In(1), qualification : In(8), wants : In(Wants), list_fails : In(1)
        From the entry checker; ``list_fails`` is about the list entry at hand.
    checked : Out(1)
        A VM entry that came to its checks ends at the next edge.
    other : Out(Event)
        To the exit unit: what moves the processor to the host if it is no event.
    event_words : Out(:func:`~.exit_unit.word_layout`)
        To the exit unit: words read from memory for the event.
    word_wants, word_addresses, verdict, event_value, cause, exit_qualification : In
        From the exit unit; the last is what the exit writes.
    pointer : Out(64), change : Out, change_stb : Out(1)
        To the VMCS pointers: pointer at hand; what happens to them at the next edge.
    resident, occupied, slot_launched, launched : In(1), slot_pointer, current_vmcs : In(64)
        From the VMCS pointers.
    transfer : Out(1)
        Fields of the VMCS at hand go to or from memory: the bank shows its slot, which may be
        another one than the current VMCS's.
    store_launched : Out(1)
        Launch state to write to a region.
    moving : Out(1)
        Combinational: a pointer may change at the next edge.
    memory : Out(CommandSignature)
        To and from the memory unit.
    exit, leave_start : Out(1), leave_needed, leave_done : In(1), leave_abort : In(3)
        To and from the exit steps; ``exit`` is high if the operation at hand is a VM exit.
    r_data : In(64), w_data : Out(64), w_en : Out(1), w_stb : Out(1)
        Bank access of VMREAD and VMWRITE.
    transition : Out(Transition), strobe : Out(1)
        To the mode controller.
    enter : Out(1), leave : Out(1)
        The guest state, or the host state, goes live at the next edge.
    save : Out(1), inform : Out(1)
        Guest state is saved at the next edge; exit information is written.
    stage_stb : Out(1), unstage : Out(1)
        For the VM-entry MSR-load list: keep the value at hand; forget all.
    error_number : Out(6), error_stb : Out(1)
        VMfailValid: VM_INSTRUCTION_ERROR to write at the next edge.
    eptp : Out(64), eptp_stb : Out(1), eptp_index : Out(16), eptp_index_stb : Out(1)
        VMFUNC EPTP switching: fields to write at the next edge.
    retired : Out(Retired)
        Registered: the operation that ended at the last edge.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        words = word_layout(capabilities)
        super().__init__({
            "requests": In(stream.Signature(Request)), "events": In(stream.Signature(Event)),
            "responses": Out(stream.Signature(Response)),
            "verdicts": Out(stream.Signature(Response)),
            "request": Out(Request), "event": Out(Event), "by_event": Out(1), "busy": Out(1),
            "named": Out(FieldSelect), "show": Out(FieldSelect),
            "fields": In(field_layout(capabilities)), "mode": In(Mode),
            "decision": In(Decision), "word_address": In(64), "source": In(64),
            "select": In(FieldSelect), "wide": In(1), "word": Out(64), "list_failed": Out(1),
            "settled": In(1), "qualification": In(8), "wants": In(Wants), "list_fails": In(1),
            "checked": Out(1),
            "other": Out(Event), "event_words": Out(words), "word_wants": In(len(words.members)),
            "word_addresses": In(data.ArrayLayout(64, len(words.members))),
            "verdict": In(Verdict), "event_value": In(64), "cause": In(Event),
            "exit_qualification": In(64),
            "pointer": Out(64), "change": Out(Change), "change_stb": Out(1),
            "resident": In(1), "occupied": In(1), "slot_launched": In(1), "launched": In(1),
            "slot_pointer": In(64), "current_vmcs": In(64), "transfer": Out(1),
            "store_launched": Out(1), "moving": Out(1), "memory": Out(CommandSignature()),
            "exit": Out(1), "leave_start": Out(1), "leave_needed": In(1), "leave_done": In(1),
            "leave_abort": In(3),
            "r_data": In(64), "w_data": Out(64), "w_en": Out(1), "w_stb": Out(1),
            "transition": Out(Transition), "strobe": Out(1),
            "enter": Out(1), "leave": Out(1), "save": Out(1), "inform": Out(1),
            "stage_stb": Out(1), "unstage": Out(1),
            "error_number": Out(6), "error_stb": Out(1),
            "eptp": Out(64), "eptp_stb": Out(1), "eptp_index": Out(16), "eptp_index_stb": Out(1),
            "retired": Out(Retired),
        })

    def elaborate(self, platform):
        m = Module()
        self._accept(m)
        self._decide(m)
        self._sequence(m)
        self._effects(m)
        self._respond(m)
        return m

    def _flag(self, text):
        """A condition on the current VMCS."""
        values = symbol_values(self._capabilities, fields=self.fields)
        return lower(self._capabilities.bind(expression(text)), values)

    # --- acceptance and decision ---

    def _accept(self, m):
        """One register for the operation at hand, filled when the one before it finishes.

        The field that it names is looked up on the way, so that the bank can read it meanwhile.
        Whether the operation at hand finishes is known too late for that. So the bank looks for the
        next one as long as it has shown the field of this one; if that stays, it reads again.
        """
        self._finish = Signal()
        free = ~self.busy | self._finish
        named = Signal(FieldSelect)
        VmcsBank.decode(self._capabilities, m, self.requests.p.operand[:32], named)
        self._shown = Signal()  # the bank shows the field that the request at hand names
        ahead = ~self.busy | self._shown
        m.d.comb += [
            self.events.ready.eq(free),
            self.requests.ready.eq(free & ~self.events.valid),
            self.show.eq(Mux(ahead, named, self.named)),
        ]
        m.d.sync += self._shown.eq(Mux(free, ahead, ~ahead))
        with m.If(free):
            m.d.sync += [
                self.busy.eq(self.events.valid | self.requests.valid),
                self.by_event.eq(self.events.valid),
                self.request.eq(self.requests.p),
                self.named.eq(named),
                self.event.eq(self.events.p),
            ]

    def _decide(self, m):
        """What the operation at hand ends in, instruction or event, if memory does not fail."""
        decision, verdict = self.decision, self.verdict
        self._code = Signal(Code)
        self._vector = Signal(8)
        self._has_code = Signal()
        self._abort = Signal(3)  # VMX-abort code; from then on nothing but a reset helps
        self._bus_error = Signal()
        m.d.comb += [
            self._code.eq(decision.code), self._vector.eq(decision.vector),
            self._has_code.eq(decision.has_code), self.exit.eq(self._code == Code.EXIT),
        ]
        with m.If(self.by_event):
            m.d.comb += self._code.eq(Code.NO_EXIT)
            with m.If(self.mode == Mode.NON_ROOT):
                with m.If(verdict.undefined):
                    m.d.comb += [self._code.eq(Code.FAULT), self._vector.eq(INVALID_OPCODE),
                                 self._has_code.eq(0)]
                with m.Elif(verdict.exits):
                    m.d.comb += self._code.eq(Code.EXIT)
                with m.Elif(verdict.protection):
                    m.d.comb += [self._code.eq(Code.FAULT), self._vector.eq(GENERAL_PROTECTION),
                                 self._has_code.eq(1)]
        with m.If(self._abort != 0):
            m.d.comb += self._code.eq(Code.ABORT)

    # --- what must happen before the end ---

    def _sequence(self, m):
        """Reads before the decision, transfers before the end; then ``finish``."""
        decision, memory, operation = self.decision, self.memory, self.request.operation
        free = (~self.responses.valid | self.responses.ready) & (
            ~self.verdicts.valid | self.verdicts.ready)
        self._fetched = Signal()  # memory has been read,
        self._listed = Signal()   # the MSR-load list gone through,
        self._moved = Signal()    # everything transferred,
        self._left = Signal()     # the steps of a move to the host taken, for the operation at hand
        self._got = Signal.like(self.word_wants)  # words of the event that have been read
        self._position = Signal(32)               # entries of the MSR-load list that are done
        succeeds = self._code == Code.SUCCEED
        fails = self._code == Code.FAIL_VALID
        loads, clears = operation == Operation.VMPTRLD, operation == Operation.VMCLEAR
        leaves = ~self._left & self.leave_needed & self._code.matches(
            Code.EXIT, Code.ENTRY_FAILURE)
        link = Signal(64)  # a copy, since the field is another VMCS's while that one is flushed
        with m.If(~self.transfer):
            m.d.sync += link.eq(self.fields.VMCS_LINK_POINTER)
        m.d.comb += self.pointer.eq(Mux(decision.shadow, link, self.request.operand))
        with m.FSM():
            with m.State("EXECUTE"):
                with m.If(self.busy & (self._bus_error | (self._abort != 0))):
                    m.d.comb += self._finish.eq(free)
                with m.Elif(self.busy & self.by_event):
                    with m.If((self.mode == Mode.NON_ROOT) & (self.word_wants & ~self._got).any()):
                        m.next = "EVENT WORD"
                    with m.Elif(leaves):
                        m.d.comb += self.leave_start.eq(1)
                        m.next = "LEAVE"
                    with m.Else():
                        m.d.comb += self._finish.eq(free)
                with m.Elif(self.busy):
                    with m.If(decision.needs_checks & ~self.settled):
                        pass
                    with m.Elif((operation == Operation.VMREAD) & ~self._shown):
                        pass
                    with m.Elif(decision.needs_word & ~self._fetched):
                        m.next = "READ"
                    with m.Elif(decision.needs_checks & Cat(self.wants).any() & ~self._fetched):
                        m.next = "FETCH"
                    with m.Elif(decision.needs_list & ~self._listed
                                & (self.fields.VM_ENTRY_MSR_LOAD_COUNT != 0)):
                        m.next = "LIST"
                    with m.Elif(~self._moved & decision.shadow & (succeeds | fails)
                                & self.resident):
                        m.next = "FLUSH"
                    with m.Elif(~self._moved & decision.shadow & fails):
                        m.next = "SHADOW ERROR"
                    with m.Elif(~self._moved & decision.shadow & succeeds):
                        m.next = "SHADOW READ"
                    with m.Elif(~self._moved & clears & succeeds):
                        m.next = "CLEAR"
                        with m.If(self.resident):
                            m.next = "STORE"
                    with m.Elif(~self._moved & loads & succeeds & ~self.resident):
                        m.next = "LOAD"
                        with m.If(self.occupied):
                            m.next = "EVICT"
                    with m.Elif(leaves):
                        m.d.comb += self.leave_start.eq(1)
                        m.next = "LEAVE"
                    with m.Else():
                        m.d.comb += self._finish.eq(free)
            with m.State("READ"):
                self._transfer(m, Command.READ, self.word_address, self._fetched)
                with m.If(memory.done):
                    m.d.sync += self.word.eq(memory.word)
            with m.State("FETCH"):
                self._transfer(m, Command.FETCH, 0, self._fetched)
            with m.State("LIST"):
                self._list(m)
            with m.State("STORE"):
                self._transfer_fields(m, Command.STORE, self.slot_pointer, self._moved)
            with m.State("EVICT"):
                self._transfer_fields(m, Command.STORE, self.slot_pointer)
                with m.If(memory.done & ~memory.error):
                    m.d.comb += [self.change.eq(Change.EVICT), self.change_stb.eq(1)]
                    m.next = "LOAD"
            with m.State("LOAD"):
                self._transfer_fields(m, Command.LOAD, self.request.operand, self._moved)
            with m.State("CLEAR"):
                self._transfer(m, Command.WRITE, self.request.operand + LAUNCH_OFFSET, self._moved)
            self._shadow_access(m)
            with m.State("EVENT WORD"):
                missing = self.word_wants & ~self._got
                for number in reversed(range(len(missing))):
                    with m.If(missing[number]):
                        self._transfer(m, Command.READ, self.word_addresses[number])
                with m.If(memory.done & ~memory.error):
                    m.d.sync += self._got.eq(self._got | (missing & -missing))
            with m.State("LEAVE"):
                with m.If(self.leave_done):
                    m.d.sync += [self._left.eq(1), self._abort.eq(self.leave_abort)]
                    m.next = "EXECUTE"
        with m.If(self._finish):
            m.d.sync += [flag.eq(0) for flag in (
                self._fetched, self._listed, self._moved, self._left, self._got, self._position,
                self._bus_error, self.list_failed)]
        self._event_words(m)

    def _transfer(self, m, command, address, did=None, word=0):
        """Hold a command until it is done; back to EXECUTE with what became of it.

        ``did`` is set then.
        """
        memory = self.memory
        m.d.comb += [memory.command.eq(command), memory.address.eq(address),
                     memory.w_word.eq(word), memory.start.eq(1)]
        with m.If(memory.done):
            m.d.sync += self._bus_error.eq(memory.error)
            if did is not None:
                m.d.sync += did.eq(1)
            m.next = "EXECUTE"

    def _transfer_fields(self, m, command, address, did=None):
        """The same for a whole VMCS, in the slot that the pointer at hand leads to."""
        m.d.comb += self.transfer.eq(1)
        self._transfer(m, command, address, did)

    def _list(self, m):
        """The VM-entry MSR-load list: stage each entry, up to the first that fails."""
        memory, position = self.memory, self._position
        m.d.comb += [
            memory.command.eq(Command.LIST_ENTRY), memory.start.eq(1),
            memory.address.eq(self.fields.VM_ENTRY_MSR_LOAD_ADDR + position * LIST_ENTRY_BYTES),
        ]
        with m.If(memory.done):
            m.d.sync += position.eq(position + 1)
            with m.If(memory.error | self.list_fails):
                m.d.comb += self.unstage.eq(1)
                m.d.sync += [self._bus_error.eq(memory.error),
                             self.list_failed.eq(~memory.error), self._listed.eq(1)]
                m.next = "EXECUTE"
            with m.Else():
                m.d.comb += self.stage_stb.eq(1)
                with m.If(position + 1 == self.fields.VM_ENTRY_MSR_LOAD_COUNT):
                    m.d.sync += self._listed.eq(1)
                    m.next = "EXECUTE"

    def _shadow_access(self, m):
        """The guest's VMREAD, VMWRITE, and VMfail of them, in its shadow VMCS in memory.

        If that one is resident it goes to memory first.
        """
        fields = self._capabilities.fields
        base = self.fields.VMCS_LINK_POINTER + FIELDS_OFFSET
        address = base + self.select.number * WORD_BYTES
        with m.State("FLUSH"):
            self._transfer_fields(m, Command.STORE, self.slot_pointer)
            with m.If(self.memory.done & ~self.memory.error):
                m.d.comb += [self.change.eq(Change.FREE), self.change_stb.eq(1)]
        with m.State("SHADOW READ"):
            self._transfer(m, Command.READ, address)
            with m.If(self.memory.done):
                with m.If((self.request.operation == Operation.VMWRITE) & ~self.memory.error):
                    m.next = "SHADOW WRITE"
                with m.Else():
                    m.d.sync += self._moved.eq(1)
        with m.State("SHADOW WRITE"):
            mask = Array((1 << self._capabilities.bits(row)) - 1
                         for row in fields.values())[self.select.number]
            high = Cat(self.memory.word[:32], self.source[:32])
            self._transfer(m, Command.WRITE, address, self._moved,
                           Mux(self.select.high, high, self.source & mask))
        with m.State("SHADOW ERROR"):
            error = list(fields).index("VM_INSTRUCTION_ERROR")
            self._transfer(m, Command.WRITE, base + error * WORD_BYTES, self._moved,
                           self.decision.number)

    def _event_words(self, m):
        """Words that decide about the event; those that are not read count as 0."""
        for number, symbol in enumerate(self.event_words.shape().members):
            word = Signal(len(Value.cast(self.event_words[symbol])), name=f"word_{symbol}")
            with m.If(self.memory.done & ~self._got[number]):
                m.d.sync += word.eq(self.memory.word)
            m.d.comb += self.event_words[symbol].eq(Mux(self._got[number], word, 0))

    # --- effects ---

    def _effects(self, m):
        """Everything that happens at the edge that ends the operation."""
        request, operation, decision = self.request, self.request.operation, self.decision
        code = self._code
        done = self._finish & ~self._bus_error & ~self.by_event
        succeeds = done & (code == Code.SUCCEED)
        exits = self._finish & ~self._bus_error & (code == Code.EXIT)
        aborts = self._finish & (self._abort != 0) & (self.mode != Mode.ABORT)
        failure = done & (code == Code.ENTRY_FAILURE)
        m.d.comb += [
            self.enter.eq(done & (code == Code.ENTERED)),
            self.leave.eq(exits | failure),
            self.save.eq(exits | (aborts & (self.mode == Mode.NON_ROOT))),
            self.inform.eq(self.leave | aborts),
            self.error_stb.eq(done & (code == Code.FAIL_VALID) & ~decision.shadow),
            self.error_number.eq(decision.number),
            self.w_data.eq(self.source),
            self.w_en.eq(~self.by_event & (operation == Operation.VMWRITE)
                         & (self.mode != Mode.NON_ROOT)),
            self.w_stb.eq(succeeds & (operation == Operation.VMWRITE) & ~decision.shadow),
            self.eptp.eq(self.word),
            self.eptp_index.eq(request.source[:16]),
            self.eptp_stb.eq(done & (code == Code.CONTINUE)),
            self.eptp_index_stb.eq(self.eptp_stb & self._flag("PROC2_EPT_VIOLATION_VE")),
            self.store_launched.eq(self.slot_launched & (operation != Operation.VMCLEAR)),
            self.moving.eq(succeeds & operation.matches(*POINTER_MOVERS)),
            self.checked.eq(done & decision.needs_checks & (self.mode != Mode.ABORT)),
            self.other.reason.eq(decision.number),
            self.other.qualification.eq(request.displacement),
            self.other.length.eq(request.length),
            self.other.information.eq(request.information),
        ]
        with m.If(self._finish):
            m.d.comb += self.unstage.eq(1)
        with m.If(decision.code == Code.ENTRY_FAILURE):
            m.d.comb += self.other.qualification.eq(
                Mux(self.list_failed, self._position, self.qualification))
        for strobe, transition in [
            (succeeds & (operation == Operation.VMXON), Transition.VMXON),
            (succeeds & (operation == Operation.VMXOFF), Transition.VMXOFF),
            (self.enter, Transition.ENTRY), (exits, Transition.EXIT), (aborts, Transition.ABORT),
        ]:
            with m.If(strobe):
                m.d.comb += [self.strobe.eq(1), self.transition.eq(transition)]
        for strobe, change in [
            (succeeds & (operation == Operation.VMXON), Change.VMXON),
            (succeeds & (operation == Operation.VMXOFF), Change.VMXOFF),
            (succeeds & (operation == Operation.VMPTRLD), Change.LOAD),
            (succeeds & (operation == Operation.VMCLEAR) & self.resident, Change.FREE),
            (self.enter, Change.LAUNCH),
        ]:
            with m.If(strobe):
                m.d.comb += [self.change_stb.eq(1), self.change.eq(change)]

    def _respond(self, m):
        """Register the answer."""
        response = Signal(Response)
        operation = self.request.operation
        word = self.memory.word
        whole = Mux(self.decision.shadow, Mux(self.select.high, word[32:], word), self.r_data)
        value = Mux(operation == Operation.VMPTRST, self.current_vmcs,
                    Mux(self.wide, whole, whole[:32]))
        m.d.comb += [
            response.code.eq(Mux(self._bus_error, Code.BUS_ERROR, self._code)),
            response.row.eq(self.decision.row),
            response.error.eq(Mux(self._abort != 0, self._abort, self.decision.number)),
            response.vector.eq(self._vector),
            response.error_code.eq(Mux(self.by_event, 0, self.decision.error_code)),
            response.has_code.eq(self._has_code),
            response.value.eq(Mux(
                self.by_event, self.event_value[:self._capabilities.natural_bits], value)),
            response.reason.eq(self.cause.reason),
            response.qualification.eq(self.exit_qualification),
        ]
        with m.If(self.by_event & (self._code == Code.NO_EXIT) & self.verdict.delivers
                  & (self.mode == Mode.NON_ROOT)):
            m.d.comb += response.delivery.eq(self.cause.interruption)
        with m.Elif((self._code == Code.ENTERED) & self._flag("VECTORING")):
            m.d.comb += [
                response.delivery.eq(self.fields.VM_ENTRY_INTR_INFO),
                response.error_code.eq(self.fields.VM_ENTRY_EXCEPTION_ERROR_CODE),
                response.length.eq(self.fields.VM_ENTRY_INSTRUCTION_LENGTH),
            ]
        for port, mine in ((self.responses, ~self.by_event), (self.verdicts, self.by_event)):
            with m.If(port.ready):
                m.d.sync += port.valid.eq(0)
            with m.If(self._finish & mine):
                m.d.sync += [port.valid.eq(1), port.p.eq(response)]
        ended = Signal(Retired)
        m.d.sync += [
            ended.valid.eq(self._finish),
            ended.event.eq(self.by_event),
            ended.operation.eq(operation),
            ended.row.eq(self.decision.row),
            ended.code.eq(response.code),
            ended.mode_before.eq(self.mode),
            ended.checked.eq(self.checked),
            ended.commit.eq(self.enter | self.leave),
        ]
        m.d.comb += [
            self.retired.eq(ended),
            self.retired.launched.eq(self.launched),
            self.retired.current_vmcs.eq(self.current_vmcs),
        ]
