"""Does this guest event exit, and what do the exit-information fields say?

Facts: exit_reasons.csv, boundary_events.csv, event_words.csv, exit_information.csv. Source: Intel
SDM vol. 3C, "VMX Non-Root Operation" and "VM Exits".
"""

from amaranth import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec import expression as ir
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import (
    BOUNDARY_EVENTS,
    EVENT_EXITS,
    EVENT_WORDS,
    EXIT_INFORMATION,
    EXIT_REASONS,
    SYMBOL_WIDTHS,
)

from .expression import lower
from .interface import (
    Event,
    cause_values,
    field_layout,
    register_layout,
    require_capabilities,
    symbol_values,
)

__all__ = ["ExitUnit", "Verdict", "word_layout"]


class Verdict(data.Struct):
    """What a guest event comes to; the first that is set counts. Else the guest goes on."""
    undefined:  1  # #UD
    exits:      1
    protection: 1  # #GP(0)
    delivers:   1  # the pending event goes through the guest's IDT


def word_layout(capabilities: Capabilities) -> data.StructLayout:
    """The words of event_words.csv that an event of this processor may read."""
    return data.StructLayout({
        symbol: SYMBOL_WIDTHS[symbol] for symbol, row in EVENT_WORDS.items()
        if capabilities.bind(row.when) != ir.NEVER})


class ExitUnit(wiring.Component):
    """Combinational verdict on a guest event and the information fields that an exit writes.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    event : In(Event)
        Guest event at hand.
    other : In(Event), by_event : In(1)
        VMX instruction that exits, or failed VM entry; it is the cause unless ``by_event``.
    words : In(:func:`word_layout`)
        What has been read from memory for the event.
    wants : Out(number of words), addresses : Out(64 bits for each word)
        Which words the event reads, and the byte address of each.
    fields, live : In(:func:`~.interface.field_layout`), In(:func:`~.interface.register_layout`)
        The resident VMCS and the running environment.
    mode : In(Mode)
        Present mode; outside ``NON_ROOT`` the cause is a failed VM entry.
    verdict : Out(Verdict), value : Out(64)
        About the event; what a guest's access reads, or writes to the register, if it does not
        exit.
    cause : Out(Event)
        What moves the processor to the host: the event, at a boundary the pending one, or
        ``other``.
    by_instruction : Out(1)
        The reason is that of an instruction.
    information : Out(:func:`~.interface.field_layout`), information_en : Out(number of fields)
        Values of the fields that the move to the host writes, and which these are.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        words = word_layout(capabilities)
        self._word_symbols = tuple(words.members)
        super().__init__({
            "event": In(Event), "other": In(Event), "by_event": In(1),
            "words": In(words), "wants": Out(len(words.members)),
            "addresses": Out(data.ArrayLayout(64, len(words.members))),
            "fields": In(field_layout(capabilities)), "live": In(register_layout(capabilities)),
            "mode": In(Mode), "verdict": Out(Verdict), "value": Out(64),
            "cause": Out(Event), "by_instruction": Out(1),
            "information": Out(field_layout(capabilities)),
            "information_en": Out(len(capabilities.fields)),
        })

    def elaborate(self, platform):
        m = Module()
        pending = self.event.pending
        self._values = symbol_values(self._capabilities, fields=self.fields, live=self.live) | {
            "NON_ROOT": self.mode == Mode.NON_ROOT,
            "PENDING_NMI": pending.nmi, "PENDING_INTERRUPT": pending.interrupt,
            "PENDING_INIT": pending.init, "PENDING_SIPI": pending.sipi,
            "PENDING_VECTOR": pending.vector,
            "FIRST_BOUNDARY": self.event.boundary & pending.first,
        } | {symbol: self.words[symbol] if symbol in self._word_symbols
             else Const(0, SYMBOL_WIDTHS[symbol]) for symbol in EVENT_WORDS}
        event = Signal(Event)  # at a boundary: the pending event
        m.d.comb += event.eq(self.event)
        with m.If(self.event.boundary):
            self._boundary(m, event)
        with m.Else():
            self._event(m)
        self._words(m, event)
        m.d.comb += self.cause.eq(Mux(self.by_event, event, self.other))
        self._information(m)
        return m

    def _bound(self, expression, known=()):
        return ir.bind(self._capabilities.bind(expression), dict(known))

    def _event(self, m):
        """An event that the core reports as the exit that it would be."""
        values = self._values | cause_values(self.event)
        with m.Switch(self.event.reason):
            for number, row in EVENT_EXITS.items():
                with m.Case(number):
                    known = {"EXIT_REASON": number, "FIRST_BOUNDARY": 0}
                    for output, part in [
                        (self.verdict.exits, row.condition),
                        (self.verdict.undefined, row.undefined),
                        (self.verdict.protection, row.protection),
                    ]:
                        m.d.comb += output.eq(lower(self._bound(part, known), values))
                    if row.value is not None:
                        m.d.comb += self.value.eq(lower(self._bound(row.value, known), values))

    def _boundary(self, m, event):
        """The first pending event, by priority, that exits or is delivered."""
        m.d.comb += [
            event.eq(0), event.boundary.eq(1), event.pending.eq(self.event.pending)]
        candidates = [self._candidate(m, row) for row in BOUNDARY_EVENTS]
        for number, (row, exits, happens, interruption, qualification) in enumerate(candidates):
            with m.If(happens) if number == 0 else m.Elif(happens):
                m.d.comb += [
                    self.verdict.exits.eq(exits), self.verdict.delivers.eq(row.delivers),
                    event.reason.eq(row.reason), event.interruption.eq(interruption),
                    event.qualification.eq(qualification),
                ]

    def _candidate(self, m, row):
        """What may come at a boundary: whether it exits, whether it comes at all, and as what."""
        known = {"EXIT_REASON": row.reason} | {
            f"CAUSE_{part}": self._capabilities.bind(value) for part, value in [
                ("INTERRUPTION", row.interruption), ("QUALIFICATION", row.qualification)]}
        exits, happens = Signal(name=f"exits_{row.order}"), Signal(name=f"happens_{row.order}")
        condition = self._bound(EXIT_REASONS[row.reason].condition, known)
        values = self._values | cause_values(Signal(Event))  # beyond what is known: all 0
        m.d.comb += [
            exits.eq(lower(condition, values)),
            happens.eq(lower(self._bound(row.pending), self._values) & (exits | row.delivers)),
        ]
        return row, exits, happens, *(
            lower(known[f"CAUSE_{part}"], self._values)
            for part in ("INTERRUPTION", "QUALIFICATION"))

    def _words(self, m, event):
        """Which words of memory decide. At a boundary only the first row reads any."""
        first = BOUNDARY_EVENTS[0]
        for number, symbol in enumerate(self._word_symbols):
            row = EVENT_WORDS[symbol]
            values = self._values | cause_values(self.event)
            m.d.comb += self.addresses[number].eq(lower(self._bound(row.address), values))
            with m.If(self.event.boundary):
                known = {"EXIT_REASON": first.reason}
                m.d.comb += self.wants[number].eq(
                    lower(self._bound(first.pending, known), values)
                    & lower(self._bound(row.when, known), values))
            with m.Else():
                m.d.comb += self.wants[number].eq(lower(self._bound(row.when), values))

    def _information(self, m):
        """What the move to the host writes into the exit-information fields."""
        values = self._values | cause_values(self.cause)
        m.d.comb += self.by_instruction.eq(self.cause.reason.matches(*(
            number for number, row in EXIT_REASONS.items() if row.by_instruction)))
        for number, symbol in enumerate(self._capabilities.fields):
            if row := EXIT_INFORMATION.get(symbol):
                m.d.comb += [
                    self.information[symbol].eq(lower(self._bound(row.value), values)),
                    self.information_en[number].eq(lower(self._bound(row.when), values)),
                ]
