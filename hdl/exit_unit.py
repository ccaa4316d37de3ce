"""Does this guest event exit, and what do the exit-information fields say?

Facts: exit_reasons.csv, exit_information.csv. Source: Intel SDM vol. 3C, "VM Exits".
"""

from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import EXIT_INFORMATION, EXIT_REASONS

from .expression import lower
from .interface import Event, field_layout, register_layout, symbol_values

__all__ = ["ExitUnit"]


class ExitUnit(wiring.Component):
    """Combinational verdict on a guest event and the information fields that an exit writes.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    cause : In(Event)
        Guest event, VMX instruction that exits, or failed VM entry.
    fields, live : In(:func:`~.interface.field_layout`), In(:func:`~.interface.register_layout`)
        The resident VMCS and the running environment.
    mode : In(Mode)
        Present mode; outside ``NON_ROOT`` the cause is a failed VM entry.
    exits : Out(1)
        The event exits: its row of exit_reasons.csv has a condition and it holds.
    by_instruction : Out(1)
        The reason is that of an instruction.
    information : Out(:func:`~.interface.field_layout`), information_en : Out(number of fields)
        Values of the fields that the move to the host writes, and which these are.
    """
    def __init__(self, capabilities: Capabilities):
        if not isinstance(capabilities, Capabilities):
            raise TypeError(f"Exit unit wants Capabilities, not {capabilities!r}")
        self._capabilities = capabilities
        super().__init__({
            "cause": In(Event), "fields": In(field_layout(capabilities)),
            "live": In(register_layout(capabilities)), "mode": In(Mode),
            "exits": Out(1), "by_instruction": Out(1),
            "information": Out(field_layout(capabilities)),
            "information_en": Out(len(capabilities.fields)),
        })

    def elaborate(self, platform):
        m = Module()
        capabilities = self._capabilities
        cause = self.cause
        values = symbol_values(capabilities, fields=self.fields, live=self.live) | {
            "NON_ROOT": self.mode == Mode.NON_ROOT, "EXIT_REASON": cause.reason,
            "CAUSE_QUALIFICATION": cause.qualification, "CAUSE_LENGTH": cause.length,
            "CAUSE_INFORMATION": cause.information,
            "CAUSE_LINEAR_ADDRESS": cause.linear_address,
            "CAUSE_PHYSICAL_ADDRESS": cause.physical_address,
        }
        m.d.comb += self.exits.eq(Cat(
            (cause.reason == number) & lower(capabilities.bind(row.condition), values)
            for number, row in EXIT_REASONS.items() if row.condition is not None).any())
        m.d.comb += self.by_instruction.eq(cause.reason.matches(*(
            number for number, row in EXIT_REASONS.items()
            if row.instruction_length_saved == "yes")))
        for number, symbol in enumerate(capabilities.fields):
            if row := EXIT_INFORMATION.get(symbol):
                m.d.comb += [
                    self.information[symbol].eq(lower(capabilities.bind(row.value), values)),
                    self.information_en[number].eq(lower(capabilities.bind(row.when), values)),
                ]
        return m
