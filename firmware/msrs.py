"""MSRs of guests: which VM entries and exits switch, which MSR lists do, and which nothing does.

Ref: Intel SDM (325462), vol. 3C, "VM-Exit Controls for MSRs" and "VM-Entry Controls for MSRs".
Facts: registers.csv.
"""

from collections.abc import Callable, Mapping

from vmxswitch.spec.structures import LIST_ENTRY_BYTES

from .guest import Guest
from .host import Memory
from .ledger import Ledger
from .port import Port

__all__ = ["TIME_STAMP_COUNTER", "Msrs"]

TIME_STAMP_COUNTER = 0x10


class Msrs:
    """The MSRs that are registers of the processor.

    Parameters
    ----------
    port : Port
        The processor.
    fields : mapping of str to int
        A VMCS with the controls that all guests have.
    uses_lists : bool
        Switch by MSR lists what VM entries leave alone and a list may load.
    read : callable
        VMREAD of a field of the guest that exited.

    Attributes
    ----------
    names : dict of int to str
        Registers by MSR index.
    lists : dict of int to str
        Those that MSR lists switch.
    shared : dict of int to str
        Those that nothing switches, or not wholly.
    """
    def __init__(self, port: Port, fields: Mapping[str, int], uses_lists: bool,
                 read: Callable[[Guest, str], int]):
        self._port, self._read = port, read
        capabilities = port.capabilities
        ledger = Ledger(capabilities, {}, {})
        ledger.written(fields)
        kept = ledger.shared()
        self._registers = capabilities.registers
        self.names = {row.msr: name for name, row in self._registers.items()
                      if row.msr is not None}
        self.lists = {
            index: name for index, name in self.names.items()
            if name in kept and index in capabilities.wrmsr_rules
            and index != TIME_STAMP_COUNTER} if uses_lists else {}
        self.shared = {index: name for index, name in self.names.items()
                       if name in kept and index not in self.lists}

    def listed(self, registers: Mapping[str, int]) -> dict[str, int]:
        """Those of ``registers`` that MSR lists switch."""
        return {name: registers[name] for name in self.lists.values()}

    def write_list(self, memory: Memory, page: int, registers: Mapping[str, int]) -> None:
        """Write an MSR list with the values of registers."""
        memory.write_list(page, {index: registers[name] for index, name in self.lists.items()})

    def fields(self, guest_page: int, host_page: int) -> dict[str, int]:
        """The VMCS fields that say where the lists are."""
        if not self.lists:
            return {}
        return {
            "VM_EXIT_MSR_STORE_ADDR": guest_page, "VM_ENTRY_MSR_LOAD_ADDR": guest_page,
            "VM_EXIT_MSR_LOAD_ADDR": host_page,
            **dict.fromkeys(("VM_EXIT_MSR_STORE_COUNT", "VM_ENTRY_MSR_LOAD_COUNT",
                             "VM_EXIT_MSR_LOAD_COUNT"), len(self.lists))}

    def read(self, guest: Guest, index: int) -> int | None:
        """What an MSR holds for the guest that exited; None if it is no register."""
        if index not in self.names or index == TIME_STAMP_COUNTER:
            return None
        name = self.names[index]
        if index in self.lists:
            return self._port.read_memory(self._data(guest, index), 8)
        if index in self.shared:
            return self._port.read_registers()[name]
        return self._read(guest, self._registers[name].field)

    def write(self, guest: Guest, index: int, value: int) -> bool:
        """Write an MSR for the guest that exited; False if it is no register."""
        if index not in self.names or index == TIME_STAMP_COUNTER:
            return False
        name = self.names[index]
        if index in self.lists:
            guest.ledger.listed(name, value)
            self._port.write_memory(self._data(guest, index), 8, value)
        elif index in self.shared:
            self._port.write_registers({name: value})
        else:
            guest.writes[self._registers[name].field] = value
        return True

    def _data(self, guest, index):
        return guest.msr_list + LIST_ENTRY_BYTES * list(self.lists).index(index) + 8
